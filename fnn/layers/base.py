"""What a layer is, and how an error finds its place in a network."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
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


def check_params(layer: str, params: dict[str, Tensor], **shapes: tuple[int, ...]) -> None:
    """Raise :class:`ShapeError` unless ``params`` holds leaves of these names and shapes.

    >>> check_params("linear", {"weight": torch.ones(3, 2)}, weight=(2, 3))
    Traceback (most recent call last):
    fnn.layers.base.ShapeError: linear expects a weight of shape (2, 3), got (3, 2)
    """
    for name, shape in shapes.items():
        if name not in params:
            raise ShapeError(f"{layer} expects a {name} of shape {shape}, but was given only {sorted(params)}")
        given = tuple(params[name].shape)
        if given != shape:
            hint = "; stacked params go through vmap, as in vmap(model.apply, (0, None))" if given[1:] == shape else ""
            raise ShapeError(f"{layer} expects a {name} of shape {shape}, got {given}{hint}")


def check_dtype(layer: str, x: Tensor, leaf: Tensor) -> None:
    """Raise :class:`ShapeError` when inputs and params differ in dtype, except under autocast."""
    if x.dtype != leaf.dtype and not torch.is_autocast_enabled(x.device.type):
        raise ShapeError(
            f"{layer} has params of {leaf.dtype} and got inputs of {x.dtype}; write x.to({leaf.dtype}), "
            "or fnn.tree.cast(params, dtype) for another precision"
        )


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


class _PerThread(threading.local):
    """How many per-sample transforms this thread is running or tracing. torch cannot trace a ContextVar."""

    def __init__(self) -> None:  # in every thread, so that a graph made in one fits the others
        self.apart = 0


_running = _PerThread()


@contextmanager
def samples_apart() -> Iterator[None]:
    """While a per-sample transform runs the loss: the batch of one that layers see is one row of a larger batch."""
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
            f"{layer} in training mode normalises each sample by the statistics of the whole batch, so the loss is no "
            "sum over samples and has no per-sample gradient; write group_norm, layer_norm or instance_norm in its "
            "place, or apply(params, state, x, train=False) to use the running statistics"
        )
