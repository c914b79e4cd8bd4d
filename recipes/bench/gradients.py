"""Peak memory and time of the eager gradient, of networks and through a scan, compared with ``.backward()``.

The peak is the most that torch has allocated for tensors at one time, which does not depend on the machine.
"""

from collections.abc import Callable
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import fnn
from recipes.bench import harness, networks, rivals

HAND, OURS = ".backward()", "fnn.grad, eager"
AUTOGRAD = "torch.autograd.grad of the same function"
LENGTH, SAMPLES, WIDTH = 256, 64, 128  # of the scan
SMALL = 64  # the batch of the narrow network
ROWS = ("deep", "lenet", "narrow", "scan")


def calls(row: str, batch: int) -> dict[str, Callable[[], Any]]:
    """Functions that compute the gradient by hand, by torch.autograd.grad and by fnn; each returns named tensors."""
    if row == "scan":
        return recurrent()
    given = rivals.problem(row, "sgd", SMALL if row == "narrow" else batch)
    network, model = networks.module(row), networks.layer(row)
    network.load_state_dict(given.start)
    params = fnn.tree.from_state_dict(given.start)
    loss = lambda params: fnn.losses.cross_entropy(model.apply(params, given.x), given.y)

    def by_hand() -> dict[str, Tensor | None]:
        F.cross_entropy(network(given.x), given.y).backward()
        gradients = {name: leaf.grad for name, leaf in network.named_parameters()}
        network.zero_grad()  # here, for a peak counts nothing that an earlier call had allocated
        return gradients

    return {HAND: by_hand, **functional(loss, params)}


def functional(loss: Callable[[Any], Tensor], params: dict) -> dict[str, Callable[[], dict[str, Tensor]]]:
    def autograd() -> dict[str, Tensor]:
        held = {path: leaf.detach().requires_grad_() for path, leaf in fnn.tree.to_state_dict(params).items()}
        value = loss(fnn.tree.from_state_dict(held))
        return dict(zip(held, torch.autograd.grad(value, list(held.values())), strict=True))

    return {AUTOGRAD: autograd, OURS: lambda: fnn.tree.to_state_dict(fnn.grad(loss)(params))}


def recurrent() -> dict[str, Callable[[], Any]]:
    """The gradient of a recurrence h <- tanh(W x + U h) over a sequence."""
    keys = fnn.random.split(fnn.random.key(0), 3)
    params = {name: fnn.random.normal(key, (WIDTH, WIDTH)) / WIDTH**0.5 for name, key in zip("UW", keys, strict=False)}
    xs, start = fnn.random.normal(keys[2], (LENGTH, SAMPLES, WIDTH)), torch.zeros(SAMPLES, WIDTH)
    cell = lambda params, h, x: torch.tanh(x @ params["W"] + h @ params["U"])

    def by_hand() -> dict[str, Tensor | None]:
        leaves = {name: leaf.clone().requires_grad_() for name, leaf in params.items()}
        h = start
        for x in xs.unbind(0):
            h = cell(leaves, h, x)
        h.square().mean().backward()
        return {name: leaf.grad for name, leaf in leaves.items()}

    def loss(params: dict[str, Tensor]) -> Tensor:
        def body(h: Tensor, x: Tensor) -> tuple[Tensor, tuple]:
            h = cell(params, h, x)
            return h, ()

        return fnn.scan(body, start, xs)[0].square().mean()

    return {HAND: by_hand, **functional(loss, params)}


def check(rivals: dict[str, Callable[[], Any]]) -> None:
    """Raise ``RuntimeError`` unless all rivals compute the same gradients."""
    first, *others = (call() for call in rivals.values())
    for other in others:
        for name, leaf in first.items():
            if not torch.allclose(leaf, other[name], rtol=1e-3, atol=1e-6):
                raise RuntimeError(f"the gradients at {name} differ")


def peak(call: Callable[[], Any]) -> int:
    """The most bytes that the tensors of a second call hold at one time, its results included."""
    call()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiled:
        results = call()  # held until the profiler has stopped
    del results
    profiler: Any = profiled.profiler
    changes = [event for event in profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(change.nbytes() for change in sorted(changes, key=lambda event: event.start_ns())))


def section(rows: list[str], batch: int, rounds: int) -> str:
    """A table of peaks and times."""
    cells: list[list[object]] = []
    for row in rows:
        rivals = calls(row, batch)
        check(rivals)
        seconds = harness.interleave(rivals, rounds, inner=20 if row == "narrow" else 1)
        title = f"grad through fnn.scan, {LENGTH} steps, width {WIDTH}, batch {SAMPLES}"
        if row != "scan":
            title = f"{networks.describe(row)}, batch {SMALL if row == 'narrow' else batch:,}"
        cells.append(
            [
                title,
                peak(rivals[OURS]) / peak(rivals[HAND]),
                seconds[OURS] / seconds[HAND],
                seconds[OURS] / seconds[AUTOGRAD],
            ]
        )
        print(cells[-1], flush=True)
    header = ["", f"peak memory over {HAND}", f"time over {HAND}", f"time over {AUTOGRAD}"]
    return f"{OURS}; smaller is better.\n\n" + harness.table(header, cells)
