"""Peak memory and time of a transformer's gradient with and without recomputation of its blocks.

``python -m recipes.bench.recomputation`` runs a model of 12 blocks. A figure is the most memory that the process held
during a call, less what it held before; this needs Linux. On a GPU it is that of torch's allocator, which has not been
run. The time is the best of three calls. ``--device cpu``, ``--batch 16`` and ``--ways`` are the flags.
"""

import argparse
import gc
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import fnn
from recipes.bench import harness


def network(recompute: bool, stacked: bool, size: dict[str, int], device: str) -> tuple[Callable, Any, Tensor]:
    model = fnn.models.gpt(
        256, size["length"], size["width"], size["heads"], size["depth"], recompute=recompute, stacked=stacked
    )
    params = model.init(fnn.random.key(0, device))
    tokens = fnn.random.randint(fnn.random.key(1, device), (size["batch"], size["length"]), 0, 256)

    def loss(params: Any, tokens: Tensor) -> Tensor:
        return fnn.losses.cross_entropy(model.apply(params, tokens).flatten(0, 1), tokens.flatten())

    return loss, params, tokens


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def measure(function: Callable, args: tuple, device: str) -> tuple[float, float]:
    """Peak memory in MiB above what is held before, and the seconds of a call, the best of three."""
    times = []
    for _ in range(3):
        wait(device)
        start = time.perf_counter()
        function(*args)
        wait(device)
        times.append(time.perf_counter() - start)
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function(*args)
        return (torch.cuda.max_memory_allocated() - before) / 2**20, min(times)
    harness.trim()
    harness.reset_peak()
    before = harness.resident("VmRSS")
    function(*args)
    return (harness.resident("VmHWM") - before) / 2**20, min(times)


WAYS: dict[str, Callable] = {
    "eager `grad`": fnn.grad,
    "eager `torch.func.grad`": torch.func.grad,
    "eager `vmap(grad)`": lambda f: (
        lambda p, x: torch.func.vmap(torch.func.grad(f), (None, 0))(p, x.unflatten(0, (2, -1)))
    ),
    "`jit(grad)`, replay": lambda f: fnn.jit(fnn.grad(f), backend="replay"),
    "`jit(grad)`, Inductor": lambda f: fnn.jit(fnn.grad(f), backend="inductor"),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--ways", nargs="*", default=list(WAYS))
    flags = parser.parse_args()
    size = {"length": 128, "width": 256, "heads": 4, "depth": 12, "batch": flags.batch}
    print("torch", torch.__version__, flags.device, size)
    print("| | blocks | kept | computed again | time, kept | time, computed again |\n|---|---|---|---|---|---|")
    for way in flags.ways:
        for stacked in (False, True):
            row = []
            for recompute in (False, True):
                loss, params, tokens = network(recompute, stacked, size, flags.device)
                row.append(measure(WAYS[way](loss), (params, tokens), flags.device))
            (kept, time_kept), (again, time_again) = row
            blocks = "`repeat`" if stacked else "12 layers"
            sizes = f"{kept:,.0f} MiB | {again:,.0f} MiB"
            print(f"| {way} | {blocks} | {sizes} | {time_kept:.2f} s | {time_again:.2f} s |", flush=True)


if __name__ == "__main__":
    main()
