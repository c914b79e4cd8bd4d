"""What a layer is, and how an error finds its place in a network."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor

from fnn.tree import Tree


class Layer(NamedTuple):
    """A pair of pure functions.

    ``init(key) -> params`` makes a tree of tensors (``{}`` for a layer without parameters).
    ``apply(params, x, *, key=None) -> y`` computes the layer. A key turns training randomness on
    (dropout); without one the result is deterministic.
    """

    init: Callable[[Tensor], Tree]
    apply: Callable[..., Any]


class StatefulLayer(NamedTuple):
    """A layer with state that is not trained, such as running statistics.

    ``init(key) -> (params, state)`` and ``apply(params, state, x, *, train=False, key=None) -> (y, state)``.
    """

    init: Callable[[Tensor], tuple[Tree, Tree]]
    apply: Callable[..., tuple[Any, Tree]]


class ShapeError(ValueError):
    """An input does not fit a layer. Its text starts with the layer's place in ``params``."""

    def __init__(self, message: str, path: tuple[str, ...] = ()):
        self.message = message
        self.path = path
        place = "params" + "".join(f"[{name!r}]" for name in path)
        super().__init__(f"{place}: {message}" if path else message)

    def below(self, name: str) -> "ShapeError":
        """The same error, seen from the combinator that holds the layer under ``name``."""
        return ShapeError(self.message, (name, *self.path))


def check_last_axis(layer: str, x: Tensor, features: int) -> None:
    """Raise :class:`ShapeError` unless the last axis of ``x`` has ``features`` entries."""
    if x.dim() == 0 or x.shape[-1] != features:
        raise ShapeError(f"{layer} expects inputs of shape (..., {features}), got {tuple(x.shape)}")


def check_channels(layer: str, x: Tensor, channels: int | None, spatial: tuple[str, ...]) -> None:
    """Raise :class:`ShapeError` unless ``x`` is (batch, channels, *spatial) or (channels, *spatial)."""
    rank = len(spatial) + 1
    if x.dim() not in (rank, rank + 1) or (channels is not None and x.shape[-rank] != channels):
        wanted = ", ".join(["batch", "channels" if channels is None else str(channels), *spatial])
        raise ShapeError(f"{layer} expects inputs of shape ({wanted}), got {tuple(x.shape)}")


def check_channels_first(layer: str, x: Tensor, channels: int) -> None:
    """Raise :class:`ShapeError` unless ``x`` is (batch, channels, ...), with any number of further axes."""
    if x.dim() < 2 or x.shape[1] != channels:
        raise ShapeError(f"{layer} expects inputs of shape (batch, {channels}, ...), got {tuple(x.shape)}")


_apart = [0]  # how many per-sample transforms are being run or traced


@contextmanager
def samples_apart() -> Iterator[None]:
    """While a per-sample transform runs the loss: the batch of one that layers see is one row of a larger batch."""
    _apart[0] += 1
    try:
        yield
    finally:
        _apart[0] -= 1


def refuse_samples_apart(layer: str) -> None:
    """Raise ``ValueError`` inside a per-sample transform: for layers that mix the samples of a batch.

    >>> with samples_apart():
    ...     refuse_samples_apart("batch_norm")
    Traceback (most recent call last):
    ValueError: batch_norm in training mode normalises each sample by the statistics of the whole batch ...
    """
    if _apart[0]:
        raise ValueError(
            f"{layer} in training mode normalises each sample by the statistics of the whole batch, so the loss is no "
            "sum over samples and has no per-sample gradient; write group_norm, layer_norm or instance_norm in its "
            "place, or apply(params, state, x, train=False) to use the running statistics"
        )
