"""What no step can be faster than: bytes over measured copy bandwidth, operations over measured matrix rate.

The bytes are those that must move whatever the program: parameters and optimizer state read and written once, and the
batch read. They are far fewer than a step moves, and on a CPU small networks lie in caches that are faster than a copy
between large tensors; so this is a bound and no goal. Operations are those of matrix products and convolutions.
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
    """Seconds of the two bounds, and the number of kernels that a step launches (None off CUDA)."""

    bytes: float
    operations: float
    launches: int | None


@functools.cache
def rates(device: str, dtype: torch.dtype, size: int = 0, rounds: int = 7) -> Rates:
    """Measured: a copy of ``size``^2 float32 numbers counts each byte read and written; a product is 2 size^3."""
    size = size or (8192 if device == "cuda" else 2048)
    # equal or round numbers cost a GPU less power than those of a network
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
    """The floor of a train step; launches are those of ``step``, which is called three times."""
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
    """Kernels and copies that one call runs on the device."""
    step()
    step()
    harness.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        step()
        harness.synchronize()
    return sum(event.device_type.name == "CUDA" for event in seen.events() or ())
