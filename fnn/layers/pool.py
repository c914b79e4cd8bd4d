"""Pooling."""

import torch.nn.functional as F
from torch import Tensor

from fnn.layers.base import Layer, ShapeError, as_pair, check_channels, check_params, factory


@factory
def max_pool2d(
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int] | None = None,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
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
    kernel, strides, margin = _window("max_pool2d", kernel_size, stride, padding)
    dilations = as_pair("max_pool2d", "dilation", dilation)

    def apply(params: dict, x: Tensor, *, key: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        check_params("max_pool2d", params)
        _check_window("max_pool2d", x, kernel, margin, dilations)
        return F.max_pool2d(x, kernel, strides, margin, dilations, ceil_mode, return_indices)

    return Layer(lambda key: {}, apply)


@factory
def avg_pool2d(
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int] | None = None,
    padding: int | tuple[int, int] = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Layer:
    """The mean of each window. ``stride`` defaults to the size of the window.

    x: (batch, channels, height, width) -> (batch, channels, height', width'), or a single image without the batch axis.
    The mean includes the zeros of the padding unless ``count_include_pad`` is False. ``divisor_override`` replaces the
    number of pixels by which sums are divided. With ``ceil_mode`` windows that extend beyond the edge are used too.
    Raises ``ShapeError`` for another rank and for a window larger than the image, and ``ValueError`` for padding of
    more than half a window.

    >>> import torch
    >>> avg_pool2d(2).apply({}, torch.ones(4, 6, 28, 28)).shape
    torch.Size([4, 6, 14, 14])
    """
    kernel, strides, margin = _window("avg_pool2d", kernel_size, stride, padding)

    def apply(params: dict, x: Tensor, *, key: Tensor | None = None) -> Tensor:
        check_params("avg_pool2d", params)
        _check_window("avg_pool2d", x, kernel, margin, (1, 1))
        return F.avg_pool2d(x, kernel, strides, margin, ceil_mode, count_include_pad, divisor_override)

    return Layer(lambda key: {}, apply)


_Pair = tuple[int, int]


def _window(
    layer: str, kernel_size: int | _Pair, stride: int | _Pair | None, padding: int | _Pair
) -> tuple[_Pair, _Pair, _Pair]:
    """Return the window, the stride and the padding as pairs."""
    kernel = as_pair(layer, "kernel_size", kernel_size)
    margin = as_pair(layer, "padding", padding, 0)
    if 2 * margin[0] > kernel[0] or 2 * margin[1] > kernel[1]:
        raise ValueError(f"{layer} pads by at most half a window of {kernel}, got padding={margin}")
    return kernel, kernel if stride is None else as_pair(layer, "stride", stride), margin


def _check_window(layer: str, x: Tensor, kernel: _Pair, margin: _Pair, dilation: _Pair) -> None:
    check_channels(layer, x, None, ("height", "width"))
    rows = zip(x.shape[-2:], kernel, margin, dilation, strict=True)
    if any(size + 2 * extra < step * (window - 1) + 1 for size, window, extra, step in rows):
        raise ShapeError(f"{layer} with a window of {kernel} got images of {tuple(x.shape[-2:])}")
