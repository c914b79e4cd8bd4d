"""Peak memory of an Adam step of a perceptron with 100 million parameters: donated, not donated, torch.optim.

Each rival runs in a process of its own: three steps at batch 64; what is reported is the peak of the second and third,
less what the process holds once the tensors are gone. Linux only. ``--widths 784 8192 8192 3072 10``.
"""

import argparse
import gc
import itertools
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fnn
from recipes.bench import harness

BATCH = 64


def torch_step(widths: list[int], x: Tensor, y: Tensor, **settings: Any) -> Callable[[], None]:
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b), nn.ReLU()]
    net = nn.Sequential(*layers[:-1])
    optimizer = torch.optim.Adam(net.parameters(), 1e-3, **settings)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()

    return step


def fnn_step(widths: list[int], x: Tensor, y: Tensor, donated: bool) -> Callable[[], None]:
    model, optimizer = fnn.models.mlp(*widths), fnn.optim.adam(1e-3)
    params = model.init(fnn.random.key(0))
    held = [params, optimizer.init(params)]
    del params

    @fnn.jit(donate_argnums=(0, 1) if donated else ())
    def train_step(params: dict, state: tuple, batch: tuple) -> tuple:
        loss = lambda params: fnn.losses.cross_entropy(model.apply(params, batch[0]), batch[1])
        grads = fnn.grad(loss)(params)
        updates, state = optimizer.update(grads, state, params)
        return fnn.optim.apply_updates(params, updates), state

    def step() -> None:
        held[:] = train_step(*held, (x, y))

    return step


RIVALS: dict[str, Callable[[list[int], Tensor, Tensor], Callable[[], None]]] = {
    "torch.optim.Adam, fused": lambda *given: torch_step(*given, fused=True),
    "torch.optim.Adam, foreach": lambda *given: torch_step(*given, foreach=True),
    "fnn.jit, donated": lambda *given: fnn_step(*given, donated=True),
    "fnn.jit": lambda *given: fnn_step(*given, donated=False),
}


def once(name: str, widths: list[int]) -> None:
    """Print the peak of one rival in bytes."""
    x = fnn.random.normal(fnn.random.key(1), (BATCH, widths[0]))
    y = fnn.random.randint(fnn.random.key(2), (BATCH,), 0, widths[-1])
    step = RIVALS[name](widths, x, y)
    step()
    harness.reset_peak()
    step()
    step()
    peak = harness.resident("VmHWM")
    del step
    gc.collect()
    harness.trim()
    print("TENSORS", peak - harness.resident("VmRSS"))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--widths", nargs="+", type=int, default=[784, 8192, 8192, 3072, 10])
    parser.add_argument("--once", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.once:
        return once(options.once, options.widths)
    sizes = [str(width) for width in options.widths]
    peaks = {}
    for name in RIVALS:
        command = [sys.executable, "-m", "recipes.bench", "memory", "--widths", *sizes, "--once", name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks[name] = int(done.stdout.rsplit("TENSORS", 1)[1])
    count = sum((a + 1) * b for a, b in itertools.pairwise(options.widths))
    parameters = 4 * count
    rows = [[name, peak / peaks["torch.optim.Adam, fused"], peak / parameters] for name, peak in peaks.items()]
    body = (
        f"Perceptron {'-'.join(sizes)}, {count / 1e6:.0f} million parameters, batch {BATCH}, float32, CPU. Peak memory "
        "of a step, less what the process holds without tensors, over that of torch.optim's fused Adam, and in copies "
        "of the parameters.\n\n"
    )
    harness.report("memory", "Memory of an Adam step", body + harness.table(["", "ratio", "copies"], rows))


if __name__ == "__main__":
    main()
