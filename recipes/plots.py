"""The pictures that recipes write."""

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from torch import Tensor

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def curves(path: Path, history: list[dict[str, float]]) -> None:
    """Train and test loss, and test accuracy, by epoch."""
    epochs = [row["epoch"] for row in history]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    left.plot(epochs, [row["train_loss"] for row in history], label="train")
    left.plot(epochs, [row["test_loss"] for row in history], label="test")
    left.set(xlabel="epoch", ylabel="cross-entropy (nats)", ylim=(0, None))
    left.legend(frameon=False)
    right.plot(epochs, [100 * row["test_accuracy"] for row in history], color="tab:orange")
    right.set(xlabel="epoch", ylabel="test accuracy (%)")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.get_major_locator().set_params(integer=True)
    save(figure, path)


def predictions(path: Path, images: Tensor, labels: Tensor, logits: Tensor, classes: tuple[str, ...]) -> None:
    """A grid of images with the predicted class; red, with the true one, where they differ."""
    guesses = logits.argmax(-1)
    side = max(1, int(len(images) ** 0.5))
    figure, grid = plt.subplots(side, side, figsize=(1.6 * side, 1.8 * side), layout="constrained", squeeze=False)
    for axes, image, label, guess in zip(grid.flat, images, labels, guesses, strict=False):
        axes.imshow(image[0], cmap="gray_r", vmin=0, vmax=1)
        right = bool(label == guess)
        title = classes[guess] if right else f"{classes[guess]} (is {classes[label]})"
        axes.set_title(title, fontsize=8, color="black" if right else "tab:red")
        axes.axis("off")
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG and let it go."""
    part = path.with_suffix(".part")
    figure.savefig(part, format="png", dpi=120)
    plt.close(figure)
    part.replace(path)


def sweep(path: Path, rates: Tensor, losses: Tensor) -> None:
    """Final loss against learning rate, both logarithmic; the best is marked, what is not finite left out."""
    figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
    axes.loglog(rates, losses, marker="o", markersize=3)
    best = losses.nan_to_num(float("inf")).argmin()
    axes.plot(rates[best], losses[best], "o", color="tab:orange", label=f"best: {float(rates[best]):.2g}")
    axes.set(xlabel="learning rate", ylabel="final training loss (nats)")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def privacy(path: Path, rows: list[dict[str, float]], delta: float) -> None:
    """Test accuracy against the epsilon spent."""
    figure, axes = plt.subplots(figsize=(5, 3.5), layout="constrained")
    axes.plot([row["epsilon"] for row in rows], [100 * row["test_accuracy"] for row in rows], marker="o", markersize=3)
    axes.set(xlabel=f"epsilon at delta = {delta:g}", ylabel="test accuracy (%)", xlim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def difficulty(path: Path, norms: Tensor, wrong: Tensor) -> None:
    """Histograms of gradient norms, of right and of wrong labels."""
    figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
    logs = norms.clamp(min=1e-6).log10()
    bins = [float(logs.min()) + (float(logs.max()) - float(logs.min())) * i / 60 for i in range(61)]
    axes.hist(logs[~wrong], bins, density=True, alpha=0.6, label="right label")
    axes.hist(logs[wrong], bins, density=True, alpha=0.6, label="wrong label")
    axes.set(xlabel="log10 of the gradient's norm", ylabel="density")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def gallery(path: Path, images: Tensor, titles: list[str], marked: list[bool]) -> None:
    """A row of four images a line, with titles; marked ones in red."""
    lines = -(-len(images) // 4)
    figure, grid = plt.subplots(lines, 4, figsize=(6.4, 1.8 * lines), layout="constrained", squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, image, title, red in zip(grid.flat, images, titles, marked, strict=False):
        axes.imshow(image[0], cmap="gray_r", vmin=0, vmax=1)
        axes.set_title(title, fontsize=8, color="tab:red" if red else "black")
    save(figure, path)
