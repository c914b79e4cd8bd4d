"""Pooling with windows of a fixed size."""

from collections.abc import Callable, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from fnn._numerics import safe_sqrt, widen
from fnn.layers.base import (
    SPATIAL,
    ArgumentError,
    Layer,
    ShapeError,
    as_size,
    as_sizes,
    check_channels,
    check_floating,
    check_params,
    factory,
)

Sizes = int | Sequence[int]


@factory
def max_pool1d(
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Sizes = 0,
    dilation: Sizes = 1,
    return_indices: bool = False,
    ceil_mode: bool = False,
) -> Layer:
    """The maximum of each window, with the arguments of ``torch.nn.MaxPool1d``; see :func:`max_pool2d`.

    x: (batch, channels, length) -> (batch, channels, length'), or a single sample without the batch axis.

    >>> import torch
    >>> max_pool1d(2).apply({}, torch.tensor([[[1.0, 3.0, 2.0, 0.0]]]))
    tensor([[[3., 2.]]])
    """
    return _max_pool(1, F.max_pool1d, kernel_size, stride, padding, dilation, return_indices, ceil_mode)


@factory
def max_pool2d(
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Sizes = 0,
    dilation: Sizes = 1,
    return_indices: bool = False,
    ceil_mode: bool = False,
) -> Layer:
    """The maximum of each window. ``stride`` defaults to the size of the window.

    x: (batch, channels, height, width) -> (batch, channels, height', width'), or a single image without the batch axis.
    ``dilation`` is the distance between the pixels of a window. With ``ceil_mode`` windows that extend beyond the edge
    are used too. With ``return_indices`` the result is a pair: the maxima and their int64 indices into height x width.
    Raises ``ShapeError`` for another rank and for a window larger than the image, and ``ValueError`` for padding of
    more than half a window.

    >>> import torch
    >>> max_pool2d(2).apply({}, torch.ones(4, 6, 30, 30)).shape
    torch.Size([4, 6, 15, 15])
    """
    return _max_pool(2, F.max_pool2d, kernel_size, stride, padding, dilation, return_indices, ceil_mode)


@factory
def max_pool3d(
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Sizes = 0,
    dilation: Sizes = 1,
    return_indices: bool = False,
    ceil_mode: bool = False,
) -> Layer:
    """The maximum of each window, with the arguments of ``torch.nn.MaxPool3d``; see :func:`max_pool2d`.

    x: (batch, channels, depth, height, width) -> (batch, channels, depth', height', width'), or a single volume without
    the batch axis.

    >>> import torch
    >>> max_pool3d(2).apply({}, torch.ones(4, 6, 8, 9, 10)).shape
    torch.Size([4, 6, 4, 4, 5])
    """
    return _max_pool(3, F.max_pool3d, kernel_size, stride, padding, dilation, return_indices, ceil_mode)


def _max_pool(
    dims: int,
    pool: Callable[..., Any],
    kernel_size: Sizes,
    stride: Sizes | None,
    padding: Sizes,
    dilation: Sizes,
    return_indices: bool,
    ceil_mode: bool,
) -> Layer:
    layer = f"max_pool{dims}d"
    kernel, strides, margin = window(layer, dims, kernel_size, stride, padding)
    dilations = as_sizes(layer, "dilation", dilation, dims)

    def apply(params: dict, x: Tensor, *, key: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        check_params(layer, params)
        _check_window(layer, x, kernel, margin, dilations)
        if x.is_complex():
            raise ArgumentError(f"{layer}: complex numbers have no order; apply it to x.abs()")
        return pool(x, kernel, strides, margin, dilations, ceil_mode, return_indices)

    return Layer(lambda key=None: {}, apply)


@factory
def avg_pool1d(
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Sizes = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Layer:
    """The mean of each window, with the arguments of ``torch.nn.AvgPool1d``; see :func:`avg_pool2d`.

    x: (batch, channels, length) -> (batch, channels, length'), or a single sample without the batch axis.

    >>> import torch
    >>> avg_pool1d(2).apply({}, torch.tensor([[[1.0, 3.0, 2.0, 0.0]]]))
    tensor([[[2., 1.]]])
    """
    return _avg_pool(1, F.avg_pool1d, kernel_size, stride, padding, ceil_mode, count_include_pad)


@factory
def avg_pool2d(
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Sizes = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Layer:
    """The mean of each window. ``stride`` defaults to the size of the window.

    x: (batch, channels, height, width) -> (batch, channels, height', width'), or a single image without the batch axis.
    The mean includes the zeros of the padding unless ``count_include_pad`` is False. ``divisor_override`` replaces the
    number of pixels by which sums are divided. With ``ceil_mode`` windows that extend beyond the edge are used too.
    Raises ``ShapeError`` for another rank and for a window larger than the image, ``TypeError`` for integers, and
    ``ValueError`` for padding of more than half a window and for a divisor of 0.

    >>> import torch
    >>> avg_pool2d(2).apply({}, torch.ones(4, 6, 28, 28)).shape
    torch.Size([4, 6, 14, 14])
    """
    divisor = _divisor("avg_pool2d", divisor_override)
    return _avg_pool(2, F.avg_pool2d, kernel_size, stride, padding, ceil_mode, count_include_pad, *divisor)


@factory
def avg_pool3d(
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Sizes = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Layer:
    """The mean of each window, with the arguments of ``torch.nn.AvgPool3d``; see :func:`avg_pool2d`.

    x: (batch, channels, depth, height, width) -> (batch, channels, depth', height', width'), or a single volume without
    the batch axis.

    >>> import torch
    >>> avg_pool3d(2).apply({}, torch.ones(4, 6, 8, 9, 10)).shape
    torch.Size([4, 6, 4, 4, 5])
    """
    divisor = _divisor("avg_pool3d", divisor_override)
    return _avg_pool(3, F.avg_pool3d, kernel_size, stride, padding, ceil_mode, count_include_pad, *divisor)


def _divisor(layer: str, divisor: int | None) -> tuple[int, ...]:
    return () if divisor is None else (as_size(layer, "divisor_override", divisor),)


def _avg_pool(
    dims: int,
    pool: Callable[..., Tensor],
    kernel_size: Sizes,
    stride: Sizes | None,
    padding: Sizes,
    ceil_mode: bool,
    count_include_pad: bool,
    *divisor: int,
) -> Layer:
    layer = f"avg_pool{dims}d"
    kernel, strides, margin = window(layer, dims, kernel_size, stride, padding)

    def apply(params: dict, x: Tensor, *, key: Tensor | None = None) -> Tensor:
        check_params(layer, params)
        _check_window(layer, x, kernel, margin, (1,) * dims)
        check_floating(layer, x)
        return pool(widen(x), kernel, strides, margin, ceil_mode, count_include_pad, *divisor).to(x.dtype)

    return Layer(lambda key=None: {}, apply)


@factory
def lp_pool1d(norm_type: float, kernel_size: Sizes, stride: Sizes | None = None, ceil_mode: bool = False) -> Layer:
    """(sum of x^p)^(1/p) of each window, with the arguments of ``torch.nn.LPPool1d``; see :func:`lp_pool2d`.

    x: (batch, channels, length) -> (batch, channels, length'), or a single sample without the batch axis.

    >>> import torch
    >>> lp_pool1d(2, 2).apply({}, torch.tensor([[[3.0, 4.0, 5.0, 12.0]]]))
    tensor([[[ 5., 13.]]])
    """
    return _lp_pool(1, norm_type, kernel_size, stride, ceil_mode)


@factory
def lp_pool2d(norm_type: float, kernel_size: Sizes, stride: Sizes | None = None, ceil_mode: bool = False) -> Layer:
    """(sum of x^p)^(1/p) of each window, where p is ``norm_type``. ``stride`` defaults to the size of the window.

    x: (batch, channels, height, width) -> (batch, channels, height', width'), or a single image without the batch axis.
    p = 1 is the sum and p = inf the largest |x|. As in torch the result is nan if the sum of x^p is negative, so x
    should be positive unless p is an even number. With ``ceil_mode`` windows that extend beyond the edge are used too,
    and their sums are scaled up to a whole window, also as in torch. Where the sum is 0 the derivative is 0. Raises
    ``ShapeError`` for another rank and for a window larger than the image, and ``ValueError`` unless p > 0.

    >>> import torch
    >>> lp_pool2d(2, 2).apply({}, torch.tensor([[[1.0, 2.0], [2.0, 4.0]]]))
    tensor([[[5.]]])
    """
    return _lp_pool(2, norm_type, kernel_size, stride, ceil_mode)


@factory
def lp_pool3d(norm_type: float, kernel_size: Sizes, stride: Sizes | None = None, ceil_mode: bool = False) -> Layer:
    """(sum of x^p)^(1/p) of each window, with the arguments of ``torch.nn.LPPool3d``; see :func:`lp_pool2d`.

    x: (batch, channels, depth, height, width) -> (batch, channels, depth', height', width'), or a single volume without
    the batch axis.

    >>> import torch
    >>> lp_pool3d(2, 2).apply({}, torch.ones(4, 6, 8, 9, 10)).shape
    torch.Size([4, 6, 4, 4, 5])
    """
    return _lp_pool(3, norm_type, kernel_size, stride, ceil_mode)


def _lp_pool(dims: int, norm_type: float, kernel_size: Sizes, stride: Sizes | None, ceil_mode: bool) -> Layer:
    layer = f"lp_pool{dims}d"
    kernel, strides, margin = window(layer, dims, kernel_size, stride, 0)
    if not norm_type > 0:
        raise ValueError(f"{layer} expects norm_type > 0, got {norm_type}")
    mean = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[dims]
    largest = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}[dims]
    count = 1
    for size in kernel:
        count *= size

    def apply(params: dict, x: Tensor, *, key: Tensor | None = None) -> Tensor:
        check_params(layer, params)
        _check_window(layer, x, kernel, margin, (1,) * dims)
        check_floating(layer, x)
        if norm_type == float("inf"):
            return largest(x.abs(), kernel, strides, ceil_mode=ceil_mode)
        wide = widen(x)
        total = count * mean(wide if norm_type == 1 else wide.pow(norm_type), kernel, strides, ceil_mode=ceil_mode)
        return _root(total, norm_type).to(x.dtype)

    return Layer(lambda key=None: {}, apply)


def _root(total: Tensor, p: float) -> Tensor:
    """Return total^(1/p) with derivative 0 at 0, where that of ``pow`` is infinite."""
    if p == 1:
        return total
    if p == 2:
        return safe_sqrt(total)
    zero = total == 0
    return total.masked_fill(zero, 1.0).pow(1.0 / p).masked_fill(zero, 0.0)


def window(
    layer: str, dims: int, kernel_size: Sizes, stride: Sizes | None, padding: Sizes
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Return the window, the stride and the padding, each with one size for each axis.

    Raises ``ValueError`` for padding of more than half a window.
    """
    kernel = as_sizes(layer, "kernel_size", kernel_size, dims)
    margin = as_sizes(layer, "padding", padding, dims, 0)
    if any(2 * extra > size for size, extra in zip(kernel, margin, strict=True)):
        raise ValueError(f"{layer} pads by at most half a window of {kernel}, got padding={margin}")
    return kernel, kernel if stride is None else as_sizes(layer, "stride", stride, dims), margin


def _check_window(
    layer: str, x: Tensor, kernel: tuple[int, ...], margin: tuple[int, ...], dilation: tuple[int, ...]
) -> None:
    check_channels(layer, x, None, SPATIAL[len(kernel)])
    sizes = tuple(x.shape[-len(kernel) :])
    rows = zip(sizes, kernel, margin, dilation, strict=True)
    if any(size + 2 * extra < step * (window - 1) + 1 for size, window, extra, step in rows):
        raise ShapeError(f"{layer} with a window of {kernel} got an input of size {sizes}")
