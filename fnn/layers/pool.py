"""Pooling."""

import torch.nn.functional as F
from torch import Tensor

from fnn.layers.base import Layer, ShapeError, check_channels


def max_pool2d(
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int] | None = None,
    padding: int | tuple[int, int] = 0,
) -> Layer:
    """The maximum of each window; ``stride`` defaults to the window, so windows do not overlap.

    x: (batch, channels, height, width) -> (batch, channels, height', width'). Raises ``ShapeError`` for
    another rank or a window larger than the image.

    >>> import torch
    >>> max_pool2d(2).apply({}, torch.ones(4, 6, 30, 30)).shape
    torch.Size([4, 6, 15, 15])
    """

    def apply(params: dict, x: Tensor, *, key: Tensor | None = None) -> Tensor:
        _check_window("max_pool2d", x, kernel_size, padding)
        return F.max_pool2d(x, kernel_size, stride, padding)

    return Layer(lambda key: {}, apply)


def avg_pool2d(
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int] | None = None,
    padding: int | tuple[int, int] = 0,
) -> Layer:
    """The mean of each window; ``stride`` defaults to the window, so windows do not overlap.

    x: (batch, channels, height, width) -> (batch, channels, height', width'). Padding counts as zeros, as
    in torch. Raises ``ShapeError`` for another rank or a window larger than the image.

    >>> import torch
    >>> avg_pool2d(2).apply({}, torch.ones(4, 6, 28, 28)).shape
    torch.Size([4, 6, 14, 14])
    """

    def apply(params: dict, x: Tensor, *, key: Tensor | None = None) -> Tensor:
        _check_window("avg_pool2d", x, kernel_size, padding)
        return F.avg_pool2d(x, kernel_size, stride, padding)

    return Layer(lambda key: {}, apply)


def _check_window(layer: str, x: Tensor, kernel_size: int | tuple[int, int], padding: int | tuple[int, int]) -> None:
    check_channels(layer, x, None, ("height", "width"))
    kernel = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
    margin = (padding, padding) if isinstance(padding, int) else padding
    if any(size + 2 * extra < window for size, window, extra in zip(x.shape[-2:], kernel, margin, strict=True)):
        raise ShapeError(f"{layer} with a window of {tuple(kernel)} got images of {tuple(x.shape[-2:])}")
