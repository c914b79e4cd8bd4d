"""Whether a per-sample transform is running: layers that mix the samples of a batch refuse to be called inside one.

Gradients and layers both import this file, so that neither depends on the other.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class _PerThread(threading.local):
    """The number of per-sample transforms that this thread is running or tracing. torch cannot trace a ContextVar."""

    def __init__(self) -> None:  # runs once in every thread, so that each starts from 0
        self.apart = 0


_running = _PerThread()


@contextmanager
def samples_apart() -> Iterator[None]:
    """Mark that a per-sample transform runs the loss: the batch of one that layers see is a row of a larger batch."""
    _running.apart += 1
    try:
        yield
    finally:
        _running.apart -= 1


def refuse_samples_apart(layer: str) -> None:
    """Raise ``ValueError`` inside a per-sample transform: for layers that mix the samples of a batch.

    >>> with samples_apart():
    ...     refuse_samples_apart("batch_norm")
    Traceback (most recent call last):
    ValueError: batch_norm in training mode normalises each sample by the statistics of the whole batch ...
    """
    if _running.apart:
        raise ValueError(
            f"{layer} in training mode normalises each sample by the statistics of the whole batch, so the loss is not "
            "a sum over samples and has no per-sample gradient; write group_norm, layer_norm or instance_norm in its "
            "place, or apply(params, state, x, train=False) to use the running statistics"
        )
