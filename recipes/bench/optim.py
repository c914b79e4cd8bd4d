"""Time of one update of Adam and SGD with momentum by fnn (eager, replayed, compiled), torch.optim and TorchOpt.

The flags are ``--leaves 10 100 300``, ``--scale 1`` (a factor of ResNet-18's widths), ``--optimizers adam sgd`` and
``--rounds 15``. The leaves have the shapes of the 62 weights and biases of ResNet-18 in order; the list is repeated or
cut off to the given number of leaves.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import fnn
from recipes.bench import harness

DONATED: dict[str, Any] = {"donate_argnums": (0, 1)}


def resnet_shapes(count: int, scale: float) -> list[tuple[int, ...]]:
    """The shapes of the first ``count`` leaves of ResNet-18, with widths times ``scale``; they repeat after the last."""
    width = lambda channels: max(1, round(channels * scale))
    shapes: list[tuple[int, ...]] = [(width(64), 3, 7, 7), (width(64),), (width(64),)]
    for before, channels in ((64, 64), (64, 128), (128, 256), (256, 512)):
        a, c = width(before), width(channels)
        for block in range(2):
            first = a if block == 0 else c
            shapes += [(c, first, 3, 3), (c,), (c,), (c, c, 3, 3), (c,), (c,)]
            if block == 0 and before != channels:
                shapes += [(c, a, 1, 1), (c,), (c,)]
    shapes += [(1000, width(512)), (1000,)]
    return [shapes[i % len(shapes)] for i in range(count)]


def theirs(name: str, params: list[Tensor], grads: list[Tensor], compiled: bool = False, **settings: Any) -> Callable:
    weights = [p.clone().requires_grad_() for p in params]
    for weight, grad in zip(weights, grads, strict=True):
        weight.grad = grad.clone()
    maker: Any = {"adam": torch.optim.Adam, "sgd": lambda p, **s: torch.optim.SGD(p, momentum=0.9, **s)}[name]
    optimizer = maker(weights, lr=1e-3, **settings)
    return torch.compile(optimizer.step) if compiled else optimizer.step


def ours(
    name: str, params: list[Tensor], grads: list[Tensor], jit: dict[str, Any] | None, chained: bool = False
) -> Callable:
    rate = 1e-3
    optimizer = fnn.optim.adam(rate) if name == "adam" else fnn.optim.sgd(rate, momentum=0.9)
    if chained:
        optimizer = fnn.optim.chain(fnn.optim.chain(optimizer))
    paths = [f"layer{i // 2}.{'bias' if i % 2 else 'weight'}" for i in range(len(params))]
    tree, given = (
        fnn.tree.from_state_dict({path: x.clone() for path, x in zip(paths, leaves, strict=True)})
        for leaves in (params, grads)
    )

    def step(params: Any, state: Any, grads: Any) -> tuple:
        updates, state = optimizer.update(grads, state, params)
        return fnn.optim.apply_updates(params, updates), state

    call: Callable = step if jit is None else fnn.jit(step, **jit)
    held = [tree, optimizer.init(tree)]

    def run() -> None:
        held[:] = call(*held, given)

    return run


def torchopt(name: str, params: list[Tensor], grads: list[Tensor]) -> Callable:
    import torchopt as library  # pyright: ignore[reportMissingImports]

    rate = 1e-3
    optimizer = library.adam(rate) if name == "adam" else library.sgd(rate, momentum=0.9)
    held = [tuple(p.clone() for p in params)]
    state = [optimizer.init(held[0])]

    def run() -> None:
        updates, state[0] = optimizer.update(tuple(grads), state[0], params=held[0], inplace=False)
        held[0] = library.apply_updates(held[0], updates, inplace=False)

    return run


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--leaves", nargs="+", type=int, default=[10, 100, 300])
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--optimizers", nargs="+", default=["adam", "sgd"])
    parser.add_argument(
        "--few",
        type=int,
        default=100,
        help="with more leaves than this, omit the rivals that Inductor compiles, which takes minutes",
    )
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    columns: dict[str, dict[str, float]] = {}
    for name in options.optimizers:
        for count in options.leaves:
            generator = torch.Generator().manual_seed(0)
            params = [torch.randn(s, generator=generator) for s in resnet_shapes(count, options.scale)]
            grads = [torch.randn(p.shape, generator=generator) for p in params]
            torch.compiler.reset()
            rivals: dict[str, Callable] = {
                "torch.optim, foreach": theirs(name, params, grads, foreach=True),
                "torch.optim, loop": theirs(name, params, grads, foreach=False),
                "torch.optim, fused": theirs(name, params, grads, fused=True),
                "fnn eager": ours(name, params, grads, None),
                "fnn eager, in a chain in a chain": ours(name, params, grads, None, chained=True),
                "fnn.jit, replay, donated": ours(name, params, grads, DONATED),
            }
            if count <= options.few:
                rivals["fnn.jit, inductor, donated"] = ours(name, params, grads, DONATED | {"backend": "inductor"})
                rivals["torch.optim, compiled"] = theirs(name, params, grads, compiled=True, foreach=True)
            try:
                rivals["TorchOpt, functional"] = torchopt(name, params, grads)
            except ImportError:
                print("TorchOpt is not installed and is left out")
            seconds = harness.interleave(rivals, rounds=options.rounds, inner=5)
            numbers = sum(p.numel() for p in params) / 1e6
            columns[f"{name}, {count} leaves, {numbers:.2f} M"] = harness.ratios(seconds, "torch.optim, foreach")
    names = list(dict.fromkeys(rival for column in columns.values() for rival in column))
    rows = [[rival, *(column.get(rival, "-") for column in columns.values())] for rival in names]
    body = (
        "Time of one update over that of torch.optim with foreach, float32; smaller is faster. Leaves of ResNet-18's "
        f"shapes, widths times {options.scale:g}.\n\n"
    )
    harness.report("optim", "Optimizers", body + harness.table(["", *columns], rows), ["torchopt"])
