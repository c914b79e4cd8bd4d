"""Lower bounds on the time of a step: bytes over measured copy bandwidth, and operations over measured matrix rate.

The bytes are those that every program must move: it reads and writes the parameters and the optimizer state once, and
reads the batch. A real step moves far more. On a CPU, small networks fit into caches that are faster than the measured
copy between large tensors. The figure is therefore a rough bound and not a goal. The operations are those of matrix
products and convolutions.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

import fnn
from recipes.bench import harness, rivals


class Rates(NamedTuple):
    bytes_per_second: float
    operations_per_second: float


class Floor(NamedTuple):
    """The two bounds in seconds, and the number of kernels that a step launches (None if not on CUDA)."""

    bytes: float
    operations: float
    launches: int | None


@functools.cache
def rates(device: str, dtype: torch.dtype, size: int = 0, rounds: int = 7) -> Rates:
    """Measure both rates with ``size`` x ``size`` matrices.

    A float32 copy counts each byte twice, as read and as written; a product counts 2 size^3 operations.
    """
    size = size or (8192 if device == "cuda" else 2048)
    # random numbers, because a GPU needs less power, and so runs faster, with constant or round ones
    source = fnn.random.normal(fnn.random.key(0).to(device), (size, size))
    target, factor = torch.empty_like(source), source.to(dtype)
    out = torch.empty_like(factor)
    calls: dict[str, Callable[[], object]] = {
        "copy": lambda: target.copy_(source),
        "product": lambda: torch.mm(factor, factor, out=out),
    }
    seconds = harness.interleave(calls, rounds=rounds)
    return Rates(2 * source.nbytes / seconds["copy"], 2 * size**3 / seconds["product"])


def of_step(given: rivals.Problem, measured: Rates, step: Callable[[], object]) -> Floor:
    """The floor of a train step. On CUDA the launches of ``step`` are counted, which is called three times."""
    with FlopCounterMode(display=False) as counter:
        rivals.eager(given)()
    slots = {"sgd": 0, "adam": 2}[given.optimizer]
    parameters = sum(leaf.nbytes for leaf in given.start.values())
    moved = 2 * (1 + slots) * parameters + given.x.nbytes + given.y.nbytes
    return Floor(
        moved / measured.bytes_per_second,
        counter.get_total_flops() / measured.operations_per_second,
        launches(step) if given.device.type == "cuda" else None,
    )


def launches(step: Callable[[], object]) -> int:
    """The number of kernels and copies that one call launches on the device."""
    step()
    step()
    harness.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        step()
        harness.synchronize()
    return sum(event.device_type.name == "CUDA" for event in seen.events() or ())
