"""Pictures of the chapters on higher order, edges and recipes."""

import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

import fnn
from drawings.style import BLUE, FAINT, GREEN, INK, ORANGE, VERMILION, bare, picture
from drawings.training_memory import MEASURED, STEPS

COLOURS = (BLUE, ORANGE, GREEN)


@picture
def training_memory() -> Figure:
    """Memory for the derivative of the loss after training by the learning rate, over the number of steps."""
    looks = {"reverse": (VERMILION, -2.2), "reverse, recomputed": (BLUE, 0.5), "forward": (GREEN, -1.1)}
    figure, axes = plt.subplots(figsize=(5.2, 3.2))
    for name, (colour, above) in looks.items():
        megabytes = MEASURED[name]
        axes.plot(STEPS, megabytes, "o-", ms=4, color=colour)
        axes.text(50, megabytes[-1] + above, name, color=colour, ha="right")
    axes.set(xlabel="steps of training", ylabel="largest memory alive, MB", ylim=(-1, 13), xticks=STEPS)
    axes.grid(True)
    return figure


@picture
def tridiagonal() -> Figure:
    """A tridiagonal Jacobian in three colours, the sums of its basis vectors, and the three products."""
    size = 12
    figure, panels = plt.subplots(
        1, 3, figsize=(7.6, 3.5), gridspec_kw={"width_ratios": [size, 3, 3], "wspace": 0.28}, layout="constrained"
    )
    titles = ("$J$: a colour for each column", "three seeds $s$", "products $Js$")
    for axes, title, width in zip(panels, titles, (size, 3, 3), strict=True):
        bare(axes)
        axes.set(xlim=(-0.1, width + 0.1), ylim=(size + 0.1, -0.1), aspect="equal", title=title)
        axes.add_patch(Rectangle((0, 0), width, size, fill=False, edgecolor=FAINT))

    def cell(axes, row: int, column: int, colour: str) -> None:
        axes.add_patch(Rectangle((column + 0.06, row + 0.06), 0.88, 0.88, facecolor=colour))

    for row in range(size):
        for column in range(max(0, row - 1), min(size, row + 2)):
            cell(panels[0], row, column, COLOURS[column % 3])
            cell(panels[2], row, column % 3, COLOURS[column % 3])
            label = f"{column}"
            panels[2].text(column % 3 + 0.5, row + 0.55, label, color="white", ha="center", va="center", fontsize=7)
        cell(panels[1], row, row % 3, COLOURS[row % 3])
    panels[0].set_xlabel("columns 0 to 11")
    panels[2].set_xlabel("number: the column\nan entry belongs to")
    return figure


@picture
def edges() -> Figure:
    """Straight through, the slopes chosen at kinks, and a square root whose input is guarded."""
    figure, panels = plt.subplots(1, 3, figsize=(8.2, 2.8), layout="constrained")
    x = torch.linspace(-1.2, 1.2, 241, dtype=torch.float64)

    panels[0].set_title("straight through")
    panels[0].plot(x, x, "--", color=ORANGE)
    for level in (-1, 0, 1):
        start, stop = max(level - 0.5, -1.2), min(level + 0.5, 1.2)
        panels[0].plot([start, stop], [level, level], color=BLUE)
    panels[0].text(-1.15, 0.65, "value: round", color=BLUE)
    panels[0].text(-0.05, -0.75, "derivative taken:\nthe identity's", color=ORANGE)

    panels[1].set_title("slopes chosen at a kink")
    kinks = {"relu": (torch.relu, 1.3, BLUE), "abs": (torch.abs, 0.0, ORANGE)}
    kinks["max(x, 0)"] = (lambda x: torch.maximum(x, torch.zeros_like(x)), -1.3, GREEN)
    near = torch.tensor([-0.55, 0.55], dtype=torch.float64)
    for name, (f, height, colour) in kinks.items():
        slope = fnn.grad(f)(torch.zeros((), dtype=torch.float64))
        panels[1].plot(x, f(x) + height, color=colour)
        panels[1].plot(near, slope * near + height, color=VERMILION, lw=1.2)
        panels[1].text(-1.2, height + (0.25 if name != "abs" else -0.4), f"{name}: {float(slope):g}", color=colour)
    panels[1].set(ylim=(-1.7, 2.6), yticks=[])

    panels[2].set_title(r"$\sqrt{x}$ where $x > 0$, else 0")

    def guarded(x: Tensor) -> Tensor:
        positive = x > 0
        return torch.where(positive, torch.where(positive, x, 1.0).sqrt(), 0.0)

    panels[2].plot(x, guarded(x), color=BLUE)
    slope = fnn.grad(lambda x: guarded(x).sum())(x)
    for part in (x <= 0, x > 0.01):
        panels[2].plot(x[part], slope[part], color=ORANGE)
    panels[2].axvspan(-1.2, 0, color=VERMILION, alpha=0.18, lw=0)
    panels[2].set_ylim(-0.3, 3)
    panels[2].text(0.72, 1.12, "value", color=BLUE)
    panels[2].text(0.3, 1.5, "derivative,\nguarded", color=ORANGE)
    panels[2].text(-1.15, 1.8, "nan without\nthe guard", color=VERMILION)
    for axes in panels:
        axes.axhline(0, color=FAINT, lw=0.8, zorder=0)
        axes.set_xlabel("$x$", color=INK)
    return figure
