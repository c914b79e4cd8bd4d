"""Pictures of the chapters on shapes, pushing and pulling, and checks."""

import math

import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

import fnn
from drawings.style import BLUE, FAINT, INK, ORANGE, VERMILION, picture

WEIGHT = torch.tensor([[1.6, 0.6], [-0.4, 0.9]], dtype=torch.float64)
POINT = torch.tensor([0.3, -0.2], dtype=torch.float64)


def bend(x: Tensor) -> Tensor:
    """The map from the plane to the plane of chapter 1."""
    return torch.tanh(WEIGHT @ x)


def arrow(axes: Axes, end: Tensor, colour: str, label: str = "", start: tuple[float, float] = (0.0, 0.0)) -> None:
    """An arrow with a label a little beyond its tip."""
    x, y = float(end[0]) + start[0], float(end[1]) + start[1]
    axes.annotate(
        "", (x, y), start, arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 1.8, "shrinkA": 0, "shrinkB": 0}
    )
    length = math.hypot(float(end[0]), float(end[1]))
    axes.text(
        x + 0.16 * float(end[0]) / length,
        y + 0.16 * float(end[1]) / length,
        label,
        color=colour,
        ha="center",
        va="center",
    )


@picture
def circle_to_ellipse() -> Figure:
    """Unit tangents at a point and their images under the Jacobian, with the axes that its singular values measure."""
    J = fnn.jacfwd(bend)(POINT)
    U, S, V = torch.linalg.svd(J)
    angles = torch.linspace(0, 2 * math.pi, 121, dtype=torch.float64)
    circle = torch.stack([angles.cos(), angles.sin()])
    figure, panels = plt.subplots(1, 2, figsize=(7, 3.4))
    for axes, curve, title in zip(panels, (circle, J @ circle), ("tangents v at x", "J v at f(x)"), strict=True):
        axes.plot(*curve, color=INK)
        axes.axhline(0, color=FAINT, lw=0.8)
        axes.axvline(0, color=FAINT, lw=0.8)
        axes.set(aspect="equal", xlim=(-1.75, 1.75), ylim=(-1.4, 1.4), title=title)
    for i, colour in enumerate((BLUE, ORANGE)):
        arrow(panels[0], V[i], colour, f"$v_{i + 1}$")
        arrow(panels[1], S[i] * U[:, i], colour, rf"$\sigma_{i + 1} u_{i + 1}$")
    v = torch.tensor([math.cos(2.2), math.sin(2.2)], dtype=torch.float64)
    arrow(panels[0], v, VERMILION, "$v$")
    arrow(panels[1], J @ v, VERMILION, "$J v$")
    return figure
