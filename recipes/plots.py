"""The pictures that the recipes write."""

from pathlib import Path

import matplotlib
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from fnn.linalg import Density

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def curves(path: Path, history: list[dict[str, float]]) -> None:
    """Training loss, test loss and test accuracy by epoch."""
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
    """A grid of images with their predicted classes; wrong predictions are red and also name the true class."""
    guesses = logits.argmax(-1)
    side = max(1, int(len(images) ** 0.5))
    tiles = images[: side**2, 0]
    height, width = tiles.shape[1:]
    top, edge = height // 4, width // 10  # space for the titles and between images
    tiles = F.pad(tiles, (edge, edge, top, 0)).unflatten(0, (side, side))
    # drawing one picture of all images is several times as fast as drawing each image
    figure = plt.figure(figsize=(1.6 * side, 1.75 * side))
    axes = figure.add_axes((0, 0.01, 1, 0.99))
    axes.imshow(tiles.transpose(1, 2).flatten(2).flatten(0, 1), cmap="gray_r", vmin=0, vmax=1)
    for i, (label, guess) in enumerate(zip(labels[: side**2], guesses, strict=False)):
        right = bool(label == guess)
        title = classes[guess] if right else f"{classes[guess]} (is {classes[label]})"
        x, y = (i % side + 0.5) * (width + 2 * edge), i // side * (height + top) + top - 1
        axes.text(x, y, title, fontsize=8, color="black" if right else "tab:red", ha="center", va="bottom")
    axes.axis("off")
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """Write the figure as PNG and close it."""
    part = path.with_suffix(".part")
    try:
        figure.savefig(part, format="png", dpi=120)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)  # of a full disk
        plt.close(figure)


def sweep(path: Path, rates: Tensor, losses: Tensor, guessing: float) -> None:
    """Final loss by learning rate, on logarithmic axes, with the best rate and those that diverged marked.

    A rate has diverged if its loss is not finite or above ``guessing``, the loss of equal probabilities.
    """
    figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
    good = losses <= guessing  # false for nan
    axes.loglog(rates[good], losses[good], marker="o", markersize=3)
    best = losses.nan_to_num(float("inf")).argmin()
    axes.plot(rates[best], losses[best], "o", color="tab:orange", label=f"best: {float(rates[best]):.2g}")
    axes.axhline(guessing, color="gray", linestyle=":", linewidth=1)
    axes.text(float(rates[0] * rates[-1]) ** 0.5, guessing, "guessing", fontsize=8, color="gray", va="bottom")
    if not good.all():
        top = 3 * guessing  # losses above it, and those that are not finite, are drawn there
        shown = losses[~good].nan_to_num(float("inf"), float("inf")).clamp(max=top)
        label = f"diverged: {int((~good).sum())} rates"
        if (shown == top).any():
            label += f" (at the top: loss above {top:.1f} or not finite)"
        axes.plot(rates[~good], shown, "x", color="tab:red", markersize=4, label=label)
    axes.set(xlabel="learning rate", ylabel="final training loss (nats)", ylim=(None, 4 * guessing))
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def privacy(path: Path, rows: list[dict[str, float]], delta: float) -> None:
    """Test accuracy against the epsilon that has been spent."""
    figure, axes = plt.subplots(figsize=(5, 3.5), layout="constrained")
    axes.plot([row["epsilon"] for row in rows], [100 * row["test_accuracy"] for row in rows], marker="o", markersize=3)
    axes.set(xlabel=f"epsilon at delta = {delta:g}", ylabel="test accuracy (%)", xlim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def difficulty(path: Path, norms: Tensor, wrong: Tensor) -> None:
    """Histograms of the gradient norms of samples with right and with wrong labels."""
    figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
    logs = norms.clamp(min=1e-6).log10()
    bins = [float(logs.min()) + (float(logs.max()) - float(logs.min())) * i / 60 for i in range(61)]
    axes.hist(logs[~wrong], bins, density=True, alpha=0.6, label="right label")
    axes.hist(logs[wrong], bins, density=True, alpha=0.6, label="wrong label")
    axes.set(xlabel="log10 of the gradient's norm", ylabel="density")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def gallery(path: Path, images: Tensor, titles: list[str], marked: list[bool], heading: str = "") -> None:
    """Images with titles, four in a row, below a heading; the titles of marked images are red."""
    lines = -(-len(images) // 4)
    figure, grid = plt.subplots(lines, 4, figsize=(6.4, 1.9 * lines), layout="constrained", squeeze=False)
    if heading:
        figure.suptitle(heading, fontsize=9)
    for axes in grid.flat:
        axes.axis("off")
    for axes, image, title, red in zip(grid.flat, images, titles, marked, strict=False):
        axes.imshow(image[0], cmap="gray_r", vmin=0, vmax=1)
        axes.set_title(title, fontsize=8, color="tab:red" if red else "black")
    save(figure, path)


def heat(path: Path, found: Tensor, truth: Tensor, duration: float, rows: list[dict[str, float]]) -> None:
    """The network's and the exact solution (places, times) at five times, the error, and its norm by training step."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.5), layout="constrained")
    places = [i / (len(found) - 1) for i in range(len(found))]
    for column in range(0, found.shape[1], (found.shape[1] - 1) // 4):
        left.plot(places, found[:, column], label=f"t = {duration * column / (found.shape[1] - 1):.3g}")
        left.plot(places, truth[:, column], color="black", linestyle=":", linewidth=1)
    left.set(xlabel="x", ylabel="temperature (dotted: exact)")
    left.legend(frameon=False, fontsize=8)
    error, most = (found - truth).T.numpy(), float((found - truth).abs().max())
    extent = (0.0, 1.0, 0.0, duration)
    image = middle.imshow(error, "RdBu_r", origin="lower", extent=extent, aspect="auto", vmin=-most, vmax=most)
    figure.colorbar(image, label="network minus exact")
    middle.set(xlabel="x", ylabel="t")
    right.semilogy([row["step"] for row in rows], [row["relative_error"] for row in rows])
    right.set(xlabel="step", ylabel="relative error in the 2-norm")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def spectra(
    path: Path, densities: dict[tuple[str, str], Density], largest: dict[tuple[str, str], list[float]], count: int
) -> None:
    """The spectra of matrices with ``count`` eigenvalues: a panel for each, with a curve before and one after training.

    Eigenvalues span orders of magnitude on both sides of zero, so the axis and the smoothing are uniform in
    t = asinh(eigenvalue / scale). Both curves of a panel have one width, which is larger than the distance of the nodes
    of Lanczos; triangles are single eigenvalues.
    """
    names = list(dict.fromkeys(name for name, _ in densities))
    figure, panels = plt.subplots(1, len(names), figsize=(5.5 * len(names), 3.8), layout="constrained", squeeze=False)
    for axes, name in zip(panels.flat, names, strict=True):
        chosen = {moment: density for (matrix, moment), density in densities.items() if matrix == name}
        nodes = torch.cat([density.nodes for density in chosen.values()])
        scale = 0.01 * float(nodes.abs().max())
        ends = torch.asinh(nodes / scale)
        grid = torch.linspace(float(ends.min()) - 0.6, float(ends.max()) + 0.6, 1000)
        for color, (moment, density) in zip(("tab:blue", "tab:orange"), chosen.items(), strict=True):
            heights = count * Density(torch.asinh(density.nodes / scale), density.weights).smooth(grid, 0.15)
            axes.plot(scale * grid.sinh(), heights, color=color, label=f"{moment} training")
            found = largest[name, moment]
            axes.plot(found, [0.07] * len(found), "^", color=color, markersize=4)
        axes.set_xscale("asinh", linear_width=scale)
        low, high = float(nodes.min()), float(nodes.max())
        ticks = [sign * 10.0**power for power in range(-6, 7) for sign in (-1, 1)]
        ticks = [0.0, *(tick for tick in ticks if abs(tick) > 2 * scale and low < tick < 2 * high)]
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set(xlabel="eigenvalue λ", ylabel=f"eigenvalues per unit of asinh(λ / {scale:.2g})")
        axes.set(title=name, yscale="log", ylim=(0.05, None))
        axes.legend(frameon=False, title=f"triangles: the {len(found)} largest")
        axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def race(path: Path, rows: dict[str, list[dict[str, float]]]) -> None:
    """Training loss of several methods, against steps and against time."""
    figure, panels = plt.subplots(1, 2, figsize=(10, 3.5), layout="constrained", sharey=True)
    for axes, by, label in zip(
        panels, ("step", "time"), ("steps", "time without tracing (median Adam steps of 64 samples)"), strict=True
    ):
        for name, history in rows.items():
            axes.loglog([row[by] for row in history[1:]], [row["loss"] for row in history[1:]], label=name)
        axes.set(xlabel=label)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set(ylabel="training loss (nats)")
    panels[0].legend(frameon=False, loc="lower left")
    save(figure, path)


def language_model(path: Path, history: list[dict[str, float]], uniform: float, frequencies: float) -> None:
    """Training and held-out loss by step, beside those of guessing uniformly and by frequency."""
    figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
    steps = [row["step"] for row in history]
    axes.plot(steps, [row["train_loss"] for row in history], label="train")
    axes.plot(steps, [row["held_out_loss"] for row in history], label="held out")
    best = min(history, key=lambda row: row["held_out_loss"])
    label = f"least: {best['held_out_loss']:.2f}"
    axes.plot(best["step"], best["held_out_loss"], "o", color="tab:orange", label=label)
    for value, words in ((uniform, "all characters alike"), (frequencies, "by their frequency")):
        axes.axhline(value, color="gray", linestyle=":", linewidth=1)
        axes.text(steps[-1], value, words, fontsize=8, color="gray", ha="right", va="bottom")
    axes.set(xlabel="step", ylabel="cross-entropy (nats per character)", ylim=(0, 1.1 * uniform))
    axes.legend(frameon=False, loc="lower left")
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def accuracies(path: Path, rows: dict[str, list[float]]) -> None:
    """Test accuracy by step of several ways of training."""
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for number, (name, row) in enumerate(rows.items()):
        axes.plot([100 * value for value in row], label=name, linestyle="--" if number == 1 else "-")
    axes.set(xlabel="step", ylabel="test accuracy (%)")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def adapters(path: Path, rows: dict[str, dict[str, float]]) -> None:
    """Test accuracy by the number of trained parameters; the first row, which trained none, is a dashed line."""
    (name, base), *others = rows.items()
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    axes.axhline(100 * base["accuracy"], color="grey", linestyle="--", label=name)
    axes.semilogx([row["trained"] for _, row in others], [100 * row["accuracy"] for _, row in others], "o-")
    for name, row in others:
        axes.annotate(name, (row["trained"], 100 * row["accuracy"]), xytext=(7, -13), textcoords="offset points")
    axes.set(xlabel="trained parameters", ylabel="test accuracy (%)")
    axes.margins(0.12)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def reaching(path: Path, runs: list[tuple[list[float], list[float]]], targets: list[float]) -> None:
    """Test accuracy by training time: a line for each seed, and a dot where it first reached each target."""
    figure, axes = plt.subplots(figsize=(6, 3.8), layout="constrained")
    for seconds, found in runs:
        axes.plot(seconds, [100 * value for value in found], color="tab:blue", alpha=0.5, linewidth=1)
        for number, target in enumerate(targets):
            at = next((i for i, value in enumerate(found) if value >= target), None)
            if at is not None:
                axes.plot(seconds[at], 100 * found[at], "o", color=f"C{number + 1}", markersize=4)
    for number, target in enumerate(targets):
        axes.axhline(100 * target, color=f"C{number + 1}", linestyle="--", linewidth=1, label=f"{target:.1%}")
    axes.set(xlabel="seconds of training", ylabel="test accuracy (%)", xlim=(0, None))
    axes.legend(frameon=False, loc="lower right", title=f"target, {len(runs)} seeds")
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)
