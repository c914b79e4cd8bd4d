"""Pictures of the chapters on shapes, pushing and pulling, accumulation and checks."""

import functools
import math
from collections.abc import Callable

import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

import fnn
from drawings.running_model import running_model
from drawings.style import BLUE, FAINT, GREEN, INK, ORANGE, VERMILION, bare, picture

WEIGHT = torch.tensor([[1.6, 0.6], [-0.4, 0.9]], dtype=torch.float64)
POINT = torch.tensor([0.3, -0.2], dtype=torch.float64)


def bend(x: Tensor) -> Tensor:
    """The map from the plane to the plane of chapter 1."""
    return torch.tanh(WEIGHT @ x)


def arrow(axes: Axes, end: Tensor, colour: str, label: str, beyond: float = 0.18) -> None:
    """An arrow from the origin, with a label beyond its tip."""
    x, y = end.tolist()
    look = {"arrowstyle": "-|>", "color": colour, "lw": 1.8, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", (x, y), (0, 0), arrowprops=look)
    far = 1 + beyond / math.hypot(x, y)
    axes.text(far * x, far * y, label, color=colour, ha="center", va="center")


def planes(left: str, right: str) -> tuple[Figure, list[Axes]]:
    """A plane of inputs beside a plane of outputs."""
    figure, panels = plt.subplots(1, 2, figsize=(7, 3.3))
    for axes, title in zip(panels, (left, right), strict=True):
        axes.axhline(0, color=FAINT, lw=0.8, zorder=0)
        axes.axvline(0, color=FAINT, lw=0.8, zorder=0)
        axes.set(aspect="equal", xlim=(-1.9, 1.9), ylim=(-1.5, 1.5), title=title, xticks=[-1, 0, 1], yticks=[-1, 0, 1])
    return figure, list(panels)


@picture
def circle_to_ellipse() -> Figure:
    """Unit tangents at a point, their images under the Jacobian, and the axes that its singular values measure."""
    J = fnn.jacfwd(bend)(POINT)
    U, S, V = torch.linalg.svd(J)
    signs = torch.where(V[:, :1] < 0, -1.0, 1.0)  # a singular vector is known up to its sign
    angles = torch.linspace(0, 2 * math.pi, 121, dtype=torch.float64)
    circle = torch.stack([angles.cos(), angles.sin()])
    figure, panels = planes("unit tangents $v$ at $x$", "their images $Jv$ at $f(x)$")
    panels[0].plot(*circle, color=INK)
    panels[1].plot(*(J @ circle), color=INK)
    for i, colour in enumerate((BLUE, ORANGE)):
        arrow(panels[0], signs[i] * V[i], colour, f"$v_{i + 1}$")
        arrow(panels[1], signs[i] * S[i] * U[:, i], colour, rf"$\sigma_{i + 1}u_{i + 1}$", 0.28)
    v = torch.tensor([math.cos(2.2), math.sin(2.2)], dtype=torch.float64)
    arrow(panels[0], v, VERMILION, "$v$")
    arrow(panels[1], J @ v, VERMILION, "$Jv$", 0.22)
    return figure


@picture
def stripes_pulled_back() -> Figure:
    """A covector as stripes among the outputs, pulled back to the inputs, and a tangent that is pushed forward."""
    J = fnn.jacfwd(bend)(POINT)
    u = torch.tensor([1.2, 2.4], dtype=torch.float64)
    v = torch.tensor([0.3, 1.15], dtype=torch.float64)
    figure, panels = planes(r"stripes of $u^\top J$, and $v$", r"stripes of $u^\top$, and $Jv$")
    for axes, covector, vector, label in ((panels[0], J.T @ u, v, "$v$"), (panels[1], u, J @ v, "$Jv$")):
        a, b = covector.tolist()
        xs = torch.tensor([-1.9, 1.9])
        for level in range(-9, 10):
            axes.plot(
                xs, (level - a * xs) / b, color=BLUE, lw=2.2 if level == 0 else 1.0, alpha=1 if level == 0 else 0.6
            )
        arrow(axes, vector, VERMILION, label, 0.2)
    panels[0].set_xlabel(f"$(u^\\top J)\\,v = {float(u @ J @ v):.2f}$ stripes")
    panels[1].set_xlabel(f"$u^\\top (Jv) = {float(u @ J @ v):.2f}$ stripes")
    return figure


@picture
def linearisation_error() -> Figure:
    """How far the network moves along a direction, and how much of that the Jacobian leaves unexplained."""
    _, params, (images, _), _ = running_model()
    v = fnn.tree.cast(fnn.random.like(fnn.random.key(1), running_model(torch.float32).params), torch.float64)
    f = lambda p: running_model().model.apply(p, images)
    logits, slope = fnn.jvp(f, (params,), (v,))
    steps = torch.logspace(-5, 0.5, 23, dtype=torch.float64)
    moved, missed = [], []
    for t in steps.tolist():
        change = f(fnn.tree.map(lambda p, v, t=t: p + t * v, params, v)) - logits
        moved.append(float(torch.linalg.vector_norm(change)))
        missed.append(float(torch.linalg.vector_norm(change - t * slope)))
    figure, axes = plt.subplots(figsize=(5, 3.4))
    axes.loglog(steps, moved, "o-", ms=3, color=ORANGE, label=r"$\|f(x + tv) - f(x)\|$")
    axes.loglog(steps, missed, "o-", ms=3, color=BLUE, label=r"$\|f(x + tv) - f(x) - t\,Jv\|$")
    axes.text(2e-5, 1e-2, "slope 1", color=ORANGE)
    axes.text(3e-4, 1e-6, "slope 2", color=BLUE)
    axes.set(xlabel="step $t$", ylabel="norm over 32 × 10 logits")  # noqa: RUF001
    axes.grid(True)
    axes.legend(loc="lower right")
    return figure


@picture
def columns_and_rows() -> Figure:
    """The Jacobian of a small network, and what one product of each kind shows of it."""
    model = fnn.models.mlp(8, 6, 5, activation=fnn.layers.tanh)
    params = model.init(fnn.random.key(0))
    x = fnn.random.normal(fnn.random.key(1), (8,))
    J = fnn.jacrev(lambda x: model.apply(params, x))(x)
    shown = torch.zeros_like(J)
    figure, panels = plt.subplots(1, 3, figsize=(7.5, 2.4))
    titles = ("J: 5 rows, 8 columns", "jvp with $e_3$: column 3", "vjp with $e_2$: row 2")
    masks = (
        torch.ones_like(J),
        shown.index_fill(1, torch.tensor([3]), 1.0),
        shown.index_fill(0, torch.tensor([2]), 1.0),
    )
    for axes, title, mask in zip(panels, titles, masks, strict=True):
        for i in range(5):
            for j in range(8):
                value = float(J[i, j] / J.abs().max()) * float(mask[i, j])
                colour = BLUE if value > 0 else ORANGE
                axes.add_patch(Rectangle((j, i), 1, 1, facecolor=colour, alpha=abs(value), lw=0))
                axes.add_patch(Rectangle((j, i), 1, 1, fill=False, edgecolor=FAINT, lw=0.8))
        axes.set(xlim=(-0.1, 8.1), ylim=(5.1, -0.1), aspect="equal", title=title)
        bare(axes)
    panels[1].set_xlabel("5 numbers")
    panels[2].set_xlabel("8 numbers")
    panels[0].set_xlabel("blue positive, orange negative")
    return figure


def product_of_boxes(axes: Axes, top: float, shapes: list[tuple[int, int]], fresh: int | None, note: str) -> None:
    """A row of boxes as wide and as high as the matrices; the box that was just computed is filled."""
    left = 0.0
    for number, (height, width) in enumerate(shapes):
        colour = VERMILION if number == fresh else BLUE
        alpha = 0.55 if number == fresh else 0.25
        axes.add_patch(Rectangle((left, top - height / 2), width, height, facecolor=colour, alpha=alpha, lw=0))
        axes.add_patch(Rectangle((left, top - height / 2), width, height, fill=False, edgecolor=colour, lw=1))
        axes.text(left + width / 2, top + height / 2 + 1.5, f"{height} x {width}", ha="center", fontsize=7.5)
        left += width + 7
    axes.text(168, top, note, ha="right", va="center", fontsize=9)


@picture
def chain_orders() -> Figure:
    """The product of four Jacobians from the left and from the right, with boxes sized by their dimensions."""
    figure, panels = plt.subplots(2, 1, figsize=(7, 6.6))
    J4, J3, J2, J1 = (1, 10), (10, 16), (16, 16), (16, 64)
    left = [
        ([J4, J3, J2, J1], None, ""),
        ([(1, 16), J2, J1], 0, "160 multiplications"),
        ([(1, 16), J1], 0, "16"),
        ([(1, 64)], 0, "1,024"),
    ]
    right = [
        ([J4, J3, J2, J1], None, ""),
        ([J4, J3, (16, 64)], 2, "1,024"),
        ([J4, (10, 64)], 1, "10,240"),
        ([(1, 64)], 0, "640"),
    ]
    titles = (
        "from the left, as reverse mode does: 1,200 multiplications",
        "from the right, as forward mode does with all columns: 11,904 multiplications",
    )
    for axes, rows, title in zip(panels, (left, right), titles, strict=True):
        top = 0.0
        for shapes, fresh, note in rows:
            height = max(shape[0] for shape in shapes)
            top -= height / 2 + 5
            product_of_boxes(axes, top, shapes, fresh, note)
            top -= height / 2
        axes.set(xlim=(-1, 169), ylim=(top - 1, 1), aspect="equal")
        axes.set_title(title, loc="left")
        bare(axes)
    return figure


def pull_with_recomputation(segments: list[Callable], x: Tensor, u: Tensor) -> Tensor:
    """The pullback of u through a chain of segments, of each of which only the input is kept; as in chapter 2."""
    kept = [x]
    for segment in segments:
        kept.append(segment(kept[-1]))
    for segment, start in zip(reversed(segments), reversed(kept[:-1]), strict=True):
        (u,) = fnn.vjp(segment, start)[1](u)
    return u


@picture
def memory_over_layers() -> Figure:
    """The values in use at each matrix product of a jvp, a vjp and a vjp with recomputation, read off their graphs."""
    width, depth = 64, 16
    weights = fnn.random.normal(fnn.random.key(0), (depth, width, width)).unbind()
    x = fnn.random.normal(fnn.random.key(1), (8 * width, width))
    layers = [lambda x, w=w: torch.tanh(x @ w) for w in weights]
    segment = lambda start, stop: lambda x: functools.reduce(lambda x, layer: layer(x), layers[start:stop], x)
    chain, segments = segment(0, depth), [segment(i, i + 4) for i in range(0, depth, 4)]
    graphs = {
        "jvp": fnn.trace(lambda x, v: fnn.jvp(chain, (x,), (v,))[1])(x, x),
        "vjp": fnn.trace(lambda x, u: fnn.vjp(chain, x)[1](u)[0])(x, x),
        "vjp, recomputing 4 layers at a time": fnn.trace(lambda x, u: pull_with_recomputation(segments, x, u))(x, x),
    }
    figure, axes = plt.subplots(figsize=(6, 3.2))
    for (name, graph), colour in zip(graphs.items(), (BLUE, ORANGE, GREEN), strict=True):
        rows = zip(graph.nodes, graph.memory, strict=True)
        in_use = [memory for node, memory in rows if "mm" in str(node.target)]
        beside = sum(w.nbytes for w in weights)
        axes.step(range(1, len(in_use) + 1), [(m - beside) / x.nbytes for m in in_use], color=colour, label=name)
    axes.set(xlabel="matrix products done", ylabel="activations in use", ylim=(0, 27), yticks=range(0, 25, 4))
    axes.grid(True, axis="y")
    axes.legend(loc="upper right")
    return figure


@picture
def fan_out() -> Figure:
    """A value that is used twice: tangents are copied on the way forward, cotangents are added on the way back."""
    figure, panels = plt.subplots(1, 2, figsize=(7, 2.6))
    places = {"x": (0.0, 0.0), "a": (1.5, 0.7), "b": (1.5, -0.7), "y": (3.0, 0.0)}
    edges = (("x", "a"), ("x", "b"), ("a", "y"), ("b", "y"))
    labels = (
        (
            "forward: a tangent is copied",
            {"x": r"$\dot x$", "a": r"$\dot a = A\dot x$", "b": r"$\dot b = B\dot x$", "y": r"$\dot y$"},
        ),
        (
            "reverse: cotangents are added",
            {"x": r"$A^\top\bar a + B^\top\bar b$", "a": r"$\bar a$", "b": r"$\bar b$", "y": r"$\bar y$"},
        ),
    )
    for axes, (title, names), back in zip(panels, labels, (False, True), strict=True):
        for start, end in edges:
            tail, head = (places[end], places[start]) if back else (places[start], places[end])
            look = {"arrowstyle": "-|>", "color": ORANGE if back else BLUE, "lw": 1.6, "shrinkA": 9, "shrinkB": 9}
            axes.annotate("", head, tail, arrowprops=look)
        for name, (x, y) in places.items():
            axes.plot([x], [y], "o", ms=12, mfc="none", mec=INK)
            axes.text(x, y, name, ha="center", va="center", fontsize=8.5)
            dx, dy, side = {
                "x": (-0.32, 0, "right"),
                "y": (0.32, 0, "left"),
                "a": (0, 0.4, "center"),
                "b": (0, -0.45, "center"),
            }[name]
            axes.text(x + dx, y + dy, names[name], ha=side, va="center")
        axes.set(xlim=(-1.9, 3.6), ylim=(-1.5, 1.5), title=title)
        bare(axes)
    return figure


@picture
def difference_errors() -> Figure:
    """The error of finite differences against their step: each curve is a V, and its lowest point is the best step.

    f(x) = 1 / (1 + x^2) at 64 points takes only operations that every processor rounds alike, and so do the steps.
    """
    f = lambda x: 1 / (1 + x * x)
    points = torch.arange(64, dtype=torch.float64) / 64 + 0.25
    slopes = -2 * points * f(points) ** 2
    figure, axes = plt.subplots(figsize=(6, 3.6))
    for dtype, smallest, colours in ((torch.float64, 46, (BLUE, GREEN)), (torch.float32, 22, (ORANGE, VERMILION))):
        x = points.to(dtype)
        steps = [2.0**-k for k in range(smallest + 1)]
        one_sided = lambda h, x=x: (f(x + h) - f(x)) / h
        central = lambda h, x=x: (f(x + h) - f(x - h)) / (2 * h)
        for name, difference, colour in (("one-sided", one_sided, colours[0]), ("central", central, colours[1])):
            errors = [float((difference(h).double() - slopes).square().mean().sqrt()) for h in steps]
            axes.loglog(steps, errors, color=colour, lw=1.6, label=f"{name}, {str(dtype).removeprefix('torch.')}")
    axes.text(3e-13, 3e-8, "rounding", color=INK, rotation=0)
    axes.text(2e-2, 4e-8, "truncation", color=INK)
    axes.set(xlabel="step $h$", ylabel="error of the derivative", ylim=(1e-12, 30))
    axes.grid(True)
    axes.legend(loc="upper left", fontsize=8.5)
    return figure
