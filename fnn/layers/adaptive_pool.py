"""Pooling to an output of a fixed size, whatever the size of the input."""

from collections.abc import Callable, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from fnn._numerics import widen
from fnn.layers.base import (
    SPATIAL,
    ArgumentError,
    Layer,
    ShapeError,
    as_size,
    check_channels,
    check_floating,
    check_params,
    check_tensor,
    factory,
)

OutputSize = int | None | Sequence[int | None]


@factory
def adaptive_avg_pool1d(output_size: OutputSize) -> Layer:
    """The means of ``output_size`` windows of about equal size; see :func:`adaptive_avg_pool2d`.

    x: (batch, channels, length) -> (batch, channels, output_size), or a single sample without the batch axis.

    >>> import torch
    >>> adaptive_avg_pool1d(2).apply({}, torch.tensor([[[1.0, 2.0, 6.0]]]))
    tensor([[[1.5000, 4.0000]]])
    """
    return _adaptive("adaptive_avg_pool1d", 1, _wide(F.adaptive_avg_pool1d), output_size)


@factory
def adaptive_avg_pool2d(output_size: OutputSize) -> Layer:
    """The means of height' x width' windows of about equal size.

    x: (batch, channels, height, width) -> (batch, channels, height', width'), or a single image without the batch axis.
    ``output_size`` is one number or (height', width'), in which None keeps the size of the input. Window i of n out of
    N rows reaches from floor(i N / n) to ceil((i + 1) N / n). Raises ``ShapeError`` for another rank and an empty
    image, and ``TypeError`` for integers.

    >>> import torch
    >>> adaptive_avg_pool2d(1).apply({}, torch.ones(4, 6, 7, 9)).shape
    torch.Size([4, 6, 1, 1])
    """
    return _adaptive("adaptive_avg_pool2d", 2, _wide(F.adaptive_avg_pool2d), output_size)


@factory
def adaptive_avg_pool3d(output_size: OutputSize) -> Layer:
    """:func:`adaptive_avg_pool2d` for volumes (batch, channels, depth, height, width).

    >>> import torch
    >>> adaptive_avg_pool3d((2, None, 1)).apply({}, torch.ones(4, 6, 7, 8, 9)).shape
    torch.Size([4, 6, 2, 8, 1])
    """
    return _adaptive("adaptive_avg_pool3d", 3, _wide(F.adaptive_avg_pool3d), output_size)


@factory
def adaptive_max_pool1d(output_size: OutputSize, return_indices: bool = False) -> Layer:
    """The maxima of ``output_size`` windows of about equal size; see :func:`adaptive_max_pool2d`.

    x: (batch, channels, length) -> (batch, channels, output_size), or a single sample without the batch axis.

    >>> import torch
    >>> adaptive_max_pool1d(2).apply({}, torch.tensor([[[1.0, 2.0, 6.0]]]))
    tensor([[[2., 6.]]])
    """
    return _adaptive("adaptive_max_pool1d", 1, F.adaptive_max_pool1d, output_size, return_indices)


@factory
def adaptive_max_pool2d(output_size: OutputSize, return_indices: bool = False) -> Layer:
    """The maxima of height' x width' windows of about equal size, which are those of :func:`adaptive_avg_pool2d`.

    x: (batch, channels, height, width) -> (batch, channels, height', width'), or a single image without the batch axis.
    With ``return_indices`` the result is a pair: the maxima and their int64 indices into height x width. Raises
    ``ShapeError`` for another rank and an empty image, and ``TypeError`` for integers.

    >>> import torch
    >>> adaptive_max_pool2d((1, 2)).apply({}, torch.tensor([[[1.0, 2.0], [4.0, 0.0]]]))
    tensor([[[4., 2.]]])
    """
    return _adaptive("adaptive_max_pool2d", 2, F.adaptive_max_pool2d, output_size, return_indices)


@factory
def adaptive_max_pool3d(output_size: OutputSize, return_indices: bool = False) -> Layer:
    """:func:`adaptive_max_pool2d` for volumes (batch, channels, depth, height, width).

    >>> import torch
    >>> adaptive_max_pool3d((2, None, 1)).apply({}, torch.ones(4, 6, 7, 8, 9)).shape
    torch.Size([4, 6, 2, 8, 1])
    """
    return _adaptive("adaptive_max_pool3d", 3, F.adaptive_max_pool3d, output_size, return_indices)


def _adaptive(layer: str, dims: int, pool: Callable[..., Any], output_size: OutputSize, *options: bool) -> Layer:
    wanted = tuple(output_size) if isinstance(output_size, (tuple, list)) else (output_size,) * dims
    if len(wanted) != dims:
        raise ValueError(
            f"{layer} expects output_size as one integer or ({', '.join(SPATIAL[dims])}), got {output_size}"
        )
    wanted = tuple(size if size is None else as_size(layer, "output_size", size) for size in wanted)

    def apply(params: dict, x: Tensor, *, key: Tensor | None = None) -> Any:
        check_params(layer, params)
        check_channels(layer, x, None, SPATIAL[dims])
        check_floating(layer, x)
        given = x.shape[-dims:]
        if 0 in given:
            raise ShapeError(f"{layer} got an input of size {tuple(given)}, which has no entries")
        sizes = [g if w is None else w for w, g in zip(wanted, given, strict=True)]
        return pool(x, sizes, *options)

    return Layer(lambda key=None: {}, apply)


def _wide(mean: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Take means of 16-bit values in float32."""
    return lambda x, sizes: mean(widen(x), sizes).to(x.dtype)


def global_avg_pool(x: Tensor) -> Tensor:
    """The mean of each channel: (batch, channels, ...) -> (batch, channels).

    ``adaptive_avg_pool2d(1)`` gives the same numbers with axes of size 1. Raises ``ShapeError`` unless x has at least
    three axes, none of which is empty but the batch, and ``TypeError`` for integers.

    >>> import torch
    >>> global_avg_pool(torch.tensor([[[1.0, 2.0, 6.0]]]))
    tensor([[3.]])
    """
    _check_places("global_avg_pool", x)
    check_floating("global_avg_pool", x)
    return widen(x).flatten(2).mean(2).to(x.dtype)


def global_max_pool(x: Tensor) -> Tensor:
    """The maximum of each channel: (batch, channels, ...) -> (batch, channels).

    If it is attained more than once, its derivative is shared equally. Raises ``ShapeError`` unless x has at least
    three axes, none of which is empty but the batch, and ``TypeError`` for complex numbers.

    >>> import torch
    >>> global_max_pool(torch.tensor([[[1.0, 2.0, 6.0]]]))
    tensor([[6.]])
    """
    _check_places("global_max_pool", x)
    if x.is_complex():
        raise ArgumentError("global_max_pool: complex numbers have no order; apply it to x.abs()")
    return x.flatten(2).amax(2)


def _check_places(layer: str, x: Tensor) -> None:
    check_tensor(layer, x)
    if x.dim() < 3 or 0 in x.shape[2:]:
        raise ShapeError(
            f"{layer} expects inputs of shape (batch, channels, ...) with at least one entry per channel, "
            f"got {tuple(x.shape)}"
        )
