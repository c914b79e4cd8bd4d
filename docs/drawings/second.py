"""Pictures of the chapters on whole Jacobians, second order, samples and KFAC."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgba
from matplotlib.figure import Figure
from torch import Tensor

import fnn
from drawings.running_model import running_model
from drawings.style import BLUE, FAINT, GREEN, INK, ORANGE, VERMILION, bare, picture
from fnn.curvature import empirical_fisher_operator, fisher_operator, ggn_operator, hessian_operator, kfac
from fnn.jacobian import blocks_to_matrix, dense_jacobian
from fnn.linalg import estimate_trace

# Zero is transparent, so that a matrix reads on any ground.
SIGNED = LinearSegmentedColormap.from_list(
    "signed", [(0.0, BLUE), (0.5, to_rgba(BLUE, 0.0)), (0.5, to_rgba(VERMILION, 0.0)), (1.0, VERMILION)]
)


def show(
    axes: Axes,
    matrix: Tensor,
    limit: float | None = None,
    power: float = 0.5,
    aspect: Literal["equal", "auto"] = "equal",
) -> None:
    """A matrix as coloured squares: blue is negative, vermilion positive, the colour grows with the entry's power."""
    limit = float(matrix.abs().max()) if limit is None else limit
    coloured = matrix.sign() * (matrix.abs() / limit).clamp(max=1.0) ** power
    axes.imshow(coloured.numpy(), cmap=SIGNED, vmin=-1, vmax=1, interpolation="none", aspect=aspect)
    bare(axes)
    for spine in axes.spines.values():
        spine.set(visible=True, color=FAINT)


def descend(f: Callable, params: fnn.tree.Tree, rate: float, steps: int) -> fnn.tree.Tree:
    """Gradient descent on a function of params."""
    for _ in range(steps):
        params = fnn.tree.map(lambda p, g: p - rate * g, params, fnn.grad(f)(params))
    return params


def little(*sizes: int, count: int = 24) -> tuple[fnn.Layer, fnn.tree.Tree, tuple[Tensor, Tensor]]:
    """A perceptron and a batch of the digits 0, 1 and 2, shrunk to the means of four quarters of the image."""
    images, labels = fnn.data.load_dataset("digits").train
    kept = labels < sizes[-1]
    quarters = torch.nn.functional.adaptive_avg_pool2d(images[kept][:count].double(), 2).flatten(1)
    x = (quarters - quarters.mean(0)) / quarters.std(0)
    model = fnn.models.mlp(*sizes, activation=fnn.layers.tanh)
    return model, fnn.tree.cast(model.init(fnn.random.key(0)), torch.float64), (x, labels[kept][:count])


def named_columns(params: fnn.tree.Tree) -> list[tuple[str, int]]:
    """The dotted path and the size of each leaf, in the order of ``fnn.tree.ravel``."""
    return [(path, leaf.numel()) for path, leaf in fnn.tree.items(params)]


def joint_places(start: int, rows: int, columns: int) -> Tensor:
    """The places in the flat params of a layer's [weight, bias], row after row; the bias comes first in a tree."""
    weight = start + rows + torch.arange(rows * columns).reshape(rows, columns)
    return torch.cat([weight, start + torch.arange(rows)[:, None]], 1).flatten()


@picture
def blocks() -> Figure:
    """The Jacobian of the logits of four images by the params, block by block."""
    model, params, (x, _) = little(4, 4, 3)
    x = x[:4]
    jacobian = dense_jacobian(lambda p: model.apply(p, x))(params)
    matrix = blocks_to_matrix(jacobian, params)
    columns = named_columns(params)
    sizes = [size for _, size in columns]
    figure, panels = plt.subplots(1, len(sizes), figsize=(7.2, 2.9), width_ratios=sizes, gridspec_kw={"wspace": 0.12})
    for axes, part, (path, size) in zip(panels, matrix.split(sizes, 1), columns, strict=True):
        show(axes, part, float(matrix.abs().max()), aspect="auto")
        axes.set_title(path)
        axes.set_xlabel(str(size))
        for row in (2.5, 5.5, 8.5):
            axes.axhline(row, color=INK, lw=0.8)
    panels[0].set_yticks([1, 4, 7, 10], [f"image {i}" for i in range(4)])
    panels[0].tick_params(length=0)
    return figure


@picture
def saliency() -> Figure:
    """A digit, and the derivative of each of LeNet's ten logits by its pixels."""
    digits = fnn.data.load_dataset("digits", size=32)
    model = fnn.models.lenet()
    params = fnn.tree.cast(model.init(fnn.random.key(0)), torch.float64)
    optimizer = fnn.optim.adam(2e-3)
    opt_state = optimizer.init(params)
    first = digits.train[0][:1024].double(), digits.train[1][:1024]
    for images, labels in fnn.data.batches(first, 32):
        loss = lambda p, x=images, y=labels: fnn.losses.cross_entropy(model.apply(p, x), y)
        updates, opt_state = optimizer.update(fnn.grad(loss)(params), opt_state, params)
        params = fnn.optim.apply_updates(params, updates)
    image = digits.test[0][0].double()
    logits = lambda image: model.apply(params, image[None])[0]
    maps = dense_jacobian(logits)(image)[:, 0]  # (10, 32, 32)
    figure, grid = plt.subplots(2, 6, figsize=(7.2, 2.8), gridspec_kw={"wspace": 0.08, "hspace": 0.25})
    show(grid[0, 0], -image[0], 1.0, 1.0)
    grid[0, 0].set_title(f"a {int(digits.test[1][0])}")
    grid[1, 0].set_visible(False)
    for digit, axes in enumerate(grid[:, 1:].flat):
        show(axes, maps[digit], float(maps.abs().max()), 0.75)
        axes.set_title(f"logit {digit}", color=VERMILION if digit == int(logits(image).argmax()) else INK)
    return figure


@picture
def frontier() -> Figure:
    """The measured time of reverse mode over that of forward mode, over inputs n and outputs m."""
    found = json.loads((Path(__file__).parent / "frontier.json").read_text())
    sizes = found["sizes"]
    figure, panels = plt.subplots(1, 2, figsize=(7.6, 3.5), gridspec_kw={"wspace": 0.1})
    for axes, kind in zip(panels, ("eager", "replay"), strict=True):
        ratios = torch.tensor(found[kind], dtype=torch.float64)
        show(axes, ratios.log2(), 5.0, 0.6)
        axes.invert_yaxis()
        for i, row in enumerate(ratios.tolist()):
            for j, ratio in enumerate(row):
                colour = "white" if abs(math.log2(ratio)) > 2 else INK
                axes.text(j, i, f"{ratio:.2g}", ha="center", va="center", color=colour, fontweight="bold")
        axes.plot([-0.5, len(sizes) - 0.5], [-0.5, len(sizes) - 0.5], color=FAINT, lw=3)
        axes.set_xticks(range(len(sizes)), [f"{n:,}" for n in sizes])
        axes.tick_params(length=0)
        axes.set(xlabel="inputs n", title={"eager": "eager", "replay": "in fnn.jit"}[kind])
    panels[0].set_yticks(range(len(sizes)), [f"{m:,}" for m in sizes])
    panels[0].set_ylabel("outputs m")
    return figure


@picture
def five_matrices() -> Figure:
    """Hessian, Gauss-Newton, Fisher, empirical Fisher and KFAC of a network with 35 params."""
    model, params, batch = little(4, 4, 3)
    predict = lambda params, batch: model.apply(params, batch[0])
    compare = lambda logits, batch: fnn.losses.cross_entropy(logits, batch[1])
    loss = lambda params, batch: compare(predict(params, batch), batch)
    losses = lambda params, batch: fnn.losses.cross_entropy(predict(params, batch), batch[1], reduction="none")
    params = descend(lambda p: loss(p, batch), params, 0.5, 20)
    operators = {
        "Hessian": hessian_operator(loss, params, batch),
        "Gauss-Newton": ggn_operator(predict, compare, params, batch),
        "Fisher": fisher_operator(predict, params, batch, likelihood="categorical"),
        "empirical Fisher": empirical_fisher_operator(losses, params, batch),
        "KFAC": kfac(predict, params, batch, likelihood="categorical"),
    }
    places = torch.cat([joint_places(0, 4, 4), joint_places(20, 3, 4)])
    matrices = {name: operator.dense()[places][:, places] for name, operator in operators.items()}
    limit, first = 0.7 * float(matrices["Hessian"].abs().max()), 20
    figure, panels = plt.subplots(1, 5, figsize=(9.5, 2.3), gridspec_kw={"wspace": 0.08})
    for axes, (name, matrix) in zip(panels, matrices.items(), strict=True):
        show(axes, matrix, limit, 0.6)
        axes.axhline(first - 0.5, color=INK, lw=0.6)
        axes.axvline(first - 0.5, color=INK, lw=0.6)
        axes.set_title(name)
    panels[0].set_ylabel("layer 2     layer 1")
    return figure


@picture
def kronecker() -> Figure:
    """KFAC's factors of one layer, their Kronecker product, the true block and the difference."""
    model, params, batch = little(4, 5, 3)
    params = descend(lambda p: fnn.losses.cross_entropy(model.apply(p, batch[0]), batch[1]), params, 0.5, 20)
    K = kfac(model.apply, params, batch[0], likelihood="categorical").factors["0.weight"]
    places = joint_places(0, 5, 4)
    F = fisher_operator(model.apply, params, batch[0], likelihood="categorical")
    true = F.restrict(lambda path: path.startswith("0")).dense()[places][:, places]
    approximation = torch.kron(K.output, K.input)
    limit = float(true.abs().max())
    panels_of = {
        "$A$, 5 x 5": (K.input, float(K.input.abs().max())),
        "$B$, 5 x 5": (K.output, float(K.output.abs().max())),
        "$B \\otimes A$, 25 x 25": (approximation, limit),
        "true block": (true, limit),
        "difference": (true - approximation, limit),
    }
    figure, panels = plt.subplots(
        1, 5, figsize=(9.5, 2.5), width_ratios=[0.45, 0.45, 1, 1, 1], gridspec_kw={"wspace": 0.12}
    )
    for axes, (title, (matrix, largest)) in zip(panels, panels_of.items(), strict=True):
        show(axes, matrix, largest)
        axes.set_title(title)
        if len(matrix) == 25:
            for tile in range(1, 5):
                axes.axhline(5 * tile - 0.5, color=FAINT, lw=0.6)
                axes.axvline(5 * tile - 0.5, color=FAINT, lw=0.6)
    return figure


@picture
def estimators() -> Figure:
    """The error of three estimates of the trace of a layer's Gauss-Newton matrix against the number of products."""
    given = running_model()
    compare = lambda logits, batch: fnn.losses.cross_entropy(logits, batch[1])
    predict = lambda params, batch: given.model.apply(params, batch[0])
    operator = ggn_operator(predict, compare, given.params, given.batch)
    matrix = operator.restrict(lambda path: path.startswith("2")).dense()  # (170, 170)
    exact = float(matrix.trace())
    counts, keys = [8, 16, 32, 64, 128], fnn.random.split(fnn.random.key(1), 20)
    figure, axes = plt.subplots(figsize=(4.8, 3.2))
    off_diagonal = float((matrix - matrix.diag().diag()).norm())
    expected = [math.sqrt(2 / count) * off_diagonal / exact for count in counts]
    axes.loglog(counts, expected, color=INK, ls=":", lw=1.2, label="hutchinson, formula")
    for method, colour, marker in (("hutchinson", BLUE, "o"), ("hutch++", ORANGE, "s"), ("xtrace", GREEN, "^")):
        errors = []
        for count in counts:
            found = [float(estimate_trace(matrix, key, count, method).value) for key in keys]  # type: ignore[arg-type]
            errors.append(math.sqrt(sum((value - exact) ** 2 for value in found) / len(found)) / exact)
        axes.loglog(counts, errors, marker=marker, color=colour, label=method)
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.minorticks_off()
    axes.set(xlabel="products", ylabel="relative error of the trace")
    axes.grid(True)
    axes.legend(loc="lower left", fontsize=9)
    return figure


@picture
def spectrum() -> Figure:
    """Eigenvalues of the Hessian and the Gauss-Newton matrix of the running model, before and after training."""
    given = running_model()
    predict = lambda params, batch: given.model.apply(params, batch[0])
    compare = lambda logits, batch: fnn.losses.cross_entropy(logits, batch[1])
    trained = descend(lambda p: given.loss(p, given.batch), given.params, 0.5, 60)
    figure, panels = plt.subplots(1, 2, figsize=(7.6, 3), sharey=True, gridspec_kw={"wspace": 0.1})
    for axes, (title, params) in zip(panels, {"before training": given.params, "after": trained}.items(), strict=True):
        operators = {
            "Hessian": hessian_operator(given.loss, params, given.batch),
            "Gauss-Newton": ggn_operator(predict, compare, params, given.batch),
        }
        for (name, operator), colour in zip(operators.items(), (BLUE, ORANGE), strict=True):
            values = torch.linalg.eigvalsh(operator.dense(chunk_size=128))
            width = 0.02
            bins = torch.arange(-40, 120) * width - width / 2  # zero is in the middle of a bin
            axes.hist(values.numpy(), bins=bins.tolist(), histtype="step", color=colour, lw=1.3, label=name)
        axes.set_yscale("log")
        axes.set(title=title, xlabel="eigenvalue", xlim=(-0.7, 2.2))
    panels[0].set_ylabel("eigenvalues in a bin")
    panels[0].legend()
    return figure


@picture
def paths() -> Figure:
    """Gradient descent, Newton's method and the natural gradient on the loss of a network with two params."""
    x = torch.linspace(-2, 2, 21, dtype=torch.float64)
    y = 1.2 * torch.tanh(1.8 * x)
    model = lambda w: w[1] * torch.tanh(w[0] * x)
    loss = lambda w: 0.5 * (model(w) - y).square().mean()
    damped = 0.05 * torch.eye(2, dtype=torch.float64)

    def natural(w: Tensor) -> Tensor:
        J = fnn.jacfwd(model)(w)
        return torch.linalg.solve(J.T @ J / len(x) + damped, fnn.grad(loss)(w))

    steps = {
        "gradient": (lambda w: 0.4 * fnn.grad(loss)(w), 60, BLUE, "o"),
        "Newton": (lambda w: torch.linalg.solve(fnn.hessian(loss)(w), fnn.grad(loss)(w)), 6, VERMILION, "X"),
        "natural gradient": (lambda w: 0.6 * natural(w), 25, GREEN, "s"),
    }
    figure, axes = plt.subplots(figsize=(5.4, 3.6))
    across, up = torch.linspace(-0.4, 2.6, 61).double(), torch.linspace(-0.4, 1.8, 45).double()
    plane = torch.stack([torch.stack([loss(torch.stack([a, b])) for a in across]) for b in up])
    levels = (torch.linspace(0.03, 1.0, 16) ** 2 * float(plane.max())).tolist()
    axes.contour(across, up, plane, levels=levels, colors=FAINT, linewidths=0.9)
    for name, (step, count, colour, marker) in steps.items():
        points = [torch.tensor([0.35, 0.2], dtype=torch.float64)]
        for _ in range(count):
            points.append(points[-1] - step(points[-1]))
        walked = torch.stack(points)
        axes.plot(walked[:, 0], walked[:, 1], color=colour, marker=marker, ms=4, lw=1.3, label=name)
    axes.plot(1.8, 1.2, marker="*", ms=12, color=ORANGE, ls="", label="minimum")
    axes.plot(0, 0, marker="+", ms=11, mew=2, color=INK, ls="", label="saddle")
    axes.set(xlabel="$w_1$", ylabel="$w_2$", xlim=(-0.4, 2.6), ylim=(-0.4, 1.8))
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


@picture
def samples_by_params() -> Figure:
    """The gradients of the 32 samples of the running model as rows, with their norms, and their mean below."""
    given = running_model()
    each = fnn.per_sample_grad(given.loss)(given.params, given.batch)
    rows = torch.cat([leaf.flatten(1) for leaf in fnn.tree.leaves(each)], 1)  # (32, 1210)
    mean = rows.mean(0, keepdim=True)
    figure, grid = plt.subplots(
        2, 2, figsize=(7.6, 3.4), width_ratios=[6, 1], height_ratios=[6, 0.7], gridspec_kw={"wspace": 0.04}
    )
    limit = 0.5 * float(rows.abs().max())
    show(grid[0, 0], rows, limit, 0.6, "auto")
    show(grid[1, 0], mean, limit, 0.6, "auto")
    grid[0, 0].set_ylabel("32 samples")
    grid[1, 0].set_ylabel("mean", rotation=0, ha="right", va="center")
    start = 0
    for path, size in named_columns(given.params):
        if start:
            for axes in grid[:, 0]:
                axes.axvline(start - 0.5, color=INK, lw=0.8)
        if size > 100:
            grid[1, 0].text(start + size / 2, 0.7, f"{path}\n{size:,}", ha="center", va="top")
        start += size
    bars = grid[0, 1]
    bars.barh(range(32), rows.norm(dim=1).tolist(), color=BLUE, height=0.8)
    bars.set_ylim(31.5, -0.5)
    bars.set(yticks=[], xticks=[], title="norms")
    grid[1, 1].barh([0], mean.norm(dim=1).tolist(), color=ORANGE, height=0.8)
    grid[1, 1].set(xlim=bars.get_xlim(), ylim=(-0.5, 0.5), yticks=[], xticks=[0, 2])
    return figure
