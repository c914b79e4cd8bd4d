"""Pictures of the chapters on higher order, edges and recipes."""

import math
from collections.abc import Callable

import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

import fnn
from drawings.running_model import running_model
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


@picture
def gradient_flow() -> Figure:
    """Norms of the cotangents of the hidden values of a deep network, with and without layer normalisation."""
    depth, width = 12, 64
    images, labels = fnn.data.load_dataset("digits").train
    x = images[:32].flatten(1).double()
    keys = fnn.random.split(fnn.random.key(2), depth)
    layers = [fnn.tree.cast(fnn.layers.linear(width, width).init(key), torch.float64) for key in keys]

    def loss(taps: list[Tensor], activation: Callable, normalise: bool) -> Tensor:
        h = x
        for layer, tap in zip(layers, taps, strict=True):
            z = h @ layer["weight"].T + layer["bias"]
            if normalise:
                z = (z - z.mean(1, keepdim=True)) / (z.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
            h = activation(z) + tap
        return fnn.losses.cross_entropy(h[:, :10], labels[:32])

    figure, axes = plt.subplots(figsize=(5.2, 3.3))
    places = {"sigmoid": (torch.sigmoid, VERMILION), "tanh": (torch.tanh, BLUE), "relu": (torch.relu, GREEN)}
    for name, (activation, colour) in places.items():
        for normalise, line in ((False, "--"), (True, "-")):
            taps = [torch.zeros(32, width, dtype=torch.float64)] * depth
            found = fnn.grad(loss)(taps, activation, normalise)
            norms = [float(torch.linalg.matrix_norm(cotangent)) for cotangent in found]
            label = f"{name}, normalised" if normalise else name
            axes.semilogy(range(1, depth + 1), norms, line, marker="o", ms=3, color=colour, label=label)
    axes.set(xlabel="layer, from the input to the loss", ylabel="norm of the cotangent", xticks=[1, 4, 8, 12])
    axes.grid(True)
    axes.legend(loc="lower right", fontsize=8, handlelength=3.2)
    return figure


@picture
def clipped_cotangent() -> Figure:
    """The derivative of the sine, and that of the sine whose cotangent is clipped where it leaves."""
    clip = fnn.jacobian.custom_vjp(torch.clone, lambda x: (x.clone(), ()), lambda kept, u: (u.clamp(-0.75, 0.75),))
    t = torch.linspace(0, 10, 401, dtype=torch.float64)
    figure, axes = plt.subplots(figsize=(5.2, 2.4))
    axes.plot(t, torch.sin(t), color=FAINT, label=r"$\sin t$, with either")
    axes.plot(t, fnn.vmap(fnn.grad(torch.sin))(t), "--", color=ORANGE, label="derivative")
    clipped = fnn.vmap(fnn.grad(lambda x: torch.sin(clip(x))))(t)
    axes.plot(t, clipped, color=BLUE, label="derivative, cotangent clipped to 0.75")
    axes.set(xlabel="$t$", ylim=(-1.1, 2.3), yticks=[-1, -0.75, 0, 0.75, 1])
    axes.grid(True)
    axes.legend(loc="upper right", fontsize=8, ncols=1)
    return figure


@picture
def taylor() -> Figure:
    """The loss of the running model along a line, and its Taylor polynomials at the middle."""
    _, params, batch, loss = running_model()
    v = fnn.tree.cast(fnn.random.like(fnn.random.key(1), running_model(torch.float32).params), torch.float64)
    v = fnn.tree.scale(1 / fnn.tree.global_norm(v), v)
    line = lambda p: loss(p, batch)
    derivatives = fnn.jacobian.directional_derivatives(line, (params,), (v,), order=6)
    t = torch.linspace(-16, 16, 161, dtype=torch.float64)
    values = fnn.vmap(lambda t: line(fnn.tree.map(lambda p, v: p + t * v, params, v)))(t)
    figure, axes = plt.subplots(figsize=(5.2, 3.2))
    axes.plot(t, values, color=INK, lw=3)
    axes.text(-15.5, float(values[0]) + 0.15, "loss", color=INK)
    for order, colour in ((1, VERMILION), (2, ORANGE), (4, GREEN), (6, BLUE)):
        series = sum(derivatives[k] * t**k / math.factorial(k) for k in range(order + 1))
        axes.plot(t, series, color=colour, lw=1.4, label=f"order {order}")
    axes.set(xlabel="step $t$ along a unit direction", ylim=(float(values.min()) - 0.8, float(values.max()) + 1.2))
    axes.grid(True)
    axes.legend(loc="upper center", fontsize=8, ncols=4)
    return figure


@picture
def products_map() -> Figure:
    """The spaces of inputs, outputs and the loss, and which call leads from which to which."""
    figure, axes = plt.subplots(figsize=(7.6, 3.9))
    bare(axes)
    axes.set(xlim=(-0.6, 10.6), ylim=(-2.1, 3.1), aspect="equal")
    places = {
        "x": (1.2, "inputs or params\n$x$:  $n$ numbers"),
        "f": (5.6, "outputs\n$f(x)$:  $m$"),
        "l": (9.5, "loss\n$L$:  1"),
    }
    half = {"x": 1.35, "f": 0.9, "l": 0.65}
    for name, (centre, label) in places.items():
        axes.add_patch(Rectangle((centre - half[name], -0.5), 2 * half[name], 1, fill=False, edgecolor=INK, lw=1.4))
        axes.text(centre, 0, label, ha="center", va="center")

    def lead(start: tuple, end: tuple, bend: float, colour: str) -> None:
        look = {"arrowstyle": "-|>", "connectionstyle": f"arc3,rad={bend}", "color": colour, "lw": 1.8}
        axes.annotate("", end, start, arrowprops={**look, "shrinkA": 0, "shrinkB": 0})

    def say(x: float, y: float, words: str, colour: str) -> None:
        axes.text(x, y, words, color=colour, ha="center", va="center", fontsize=9)

    lead((2.55, 0.2), (4.7, 0.2), 0, BLUE)
    say(3.62, 0.75, "jvp, jmp\n$Jv$", BLUE)
    lead((4.7, -0.2), (2.55, -0.2), 0, ORANGE)
    say(3.62, -0.75, "vjp, mjp\n$J^\\top u$", ORANGE)
    lead((6.5, 0.2), (8.85, 0.2), 0, BLUE)
    say(7.67, 0.55, r"a slope, $\nabla L^\top v$", BLUE)
    lead((9.5, -0.5), (1.2, -0.5), -0.22, ORANGE)
    say(5.35, -1.75, r"grad: $\nabla L$    per_sample_grad: one row for each sample", ORANGE)
    lead((0.5, 0.5), (1.9, 0.5), -2.2, GREEN)
    say(
        1.2,
        2.6,
        "hvp, ggn_product, fisher_product, kfac\n$Hv$,  $J^\\top H_{\\ell} Jv$,  $Fv$,  $(A \\otimes G)v$",
        GREEN,
    )
    lead((5.1, 0.5), (6.1, 0.5), -2.6, GREEN)
    say(5.6, 2.2, "ntk\n$JJ^\\top u$", GREEN)
    return figure
