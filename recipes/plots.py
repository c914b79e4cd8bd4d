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
