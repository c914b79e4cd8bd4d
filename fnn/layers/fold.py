"""Images as patches, and patches as images."""

import math

import torch.nn.functional as F
from torch import Tensor

from fnn._numerics import widen
from fnn.layers.base import SPATIAL, Layer, ShapeError, as_sizes, check_channels, check_params, check_tensor, factory
from fnn.layers.pool import Sizes


@factory
def unfold(kernel_size: Sizes, dilation: Sizes = 1, padding: Sizes = 0, stride: Sizes = 1) -> Layer:
    """Cut an image into patches, with the arguments of ``torch.nn.Unfold``.

    x: (batch, channels, height, width) -> (batch, channels times pixels of a patch, patches), or a single image without
    the batch axis. Raises ``ShapeError`` for another rank and for a patch larger than the padded image.

    >>> import torch
    >>> unfold(2).apply({}, torch.arange(6.0).reshape(1, 1, 2, 3))
    tensor([[[0., 1.],
             [1., 2.],
             [3., 4.],
             [4., 5.]]])
    """
    windows = _windows("unfold", kernel_size, dilation, padding, stride)

    def apply(params: dict, x: Tensor, *, key: Tensor | None = None) -> Tensor:
        check_params("unfold", params)
        check_channels("unfold", x, None, SPATIAL[2])
        sizes = tuple(x.shape[-2:])
        if min(_counts(sizes, *windows)) < 1:
            raise ShapeError(f"unfold with patches of {windows[0]} got an input of size {sizes}")
        return F.unfold(x, *windows)

    return Layer(lambda key=None: {}, apply)


@factory
def fold(output_size: Sizes, kernel_size: Sizes, dilation: Sizes = 1, padding: Sizes = 0, stride: Sizes = 1) -> Layer:
    """Put patches back to their places in an image, with the arguments of ``torch.nn.Fold``; what overlaps is added.

    x: (batch, channels times pixels of a patch, patches) -> (batch, channels, *output_size), or a single image without
    the batch axis. It is the transpose of :func:`unfold` as a linear map. Raises ``ShapeError`` for another rank and
    for numbers of rows or patches that do not belong to an image of this size.

    >>> import torch
    >>> fold((2, 3), 2).apply({}, torch.ones(1, 4, 2))
    tensor([[[[1., 2., 1.],
              [1., 2., 1.]]]])
    """
    sizes = as_sizes("fold", "output_size", output_size, 2)
    windows = _windows("fold", kernel_size, dilation, padding, stride)
    pixels, patches = math.prod(windows[0]), math.prod(max(count, 0) for count in _counts(sizes, *windows))
    if patches < 1:
        raise ValueError(f"fold with patches of {windows[0]} cannot make an output of size {sizes}")

    def apply(params: dict, x: Tensor, *, key: Tensor | None = None) -> Tensor:
        check_params("fold", params)
        check_tensor("fold", x)
        if x.dim() not in (2, 3) or x.shape[-2] % pixels or x.shape[-1] != patches:
            raise ShapeError(
                f"fold expects inputs of shape (batch, a multiple of {pixels}, {patches}), got {tuple(x.shape)}"
            )
        return F.fold(widen(x), sizes, *windows).to(x.dtype)

    return Layer(lambda key=None: {}, apply)


Pairs = tuple[int, ...]


def _windows(
    layer: str, kernel_size: Sizes, dilation: Sizes, padding: Sizes, stride: Sizes
) -> tuple[Pairs, Pairs, Pairs, Pairs]:
    return (
        as_sizes(layer, "kernel_size", kernel_size, 2),
        as_sizes(layer, "dilation", dilation, 2),
        as_sizes(layer, "padding", padding, 2, 0),
        as_sizes(layer, "stride", stride, 2),
    )


def _counts(sizes: Pairs, kernel: Pairs, dilation: Pairs, padding: Pairs, stride: Pairs) -> list[int]:
    """Return the numbers of patches along each axis, which are 0 or less if none fits."""
    rows = zip(sizes, kernel, dilation, padding, stride, strict=True)
    return [(size + 2 * p - d * (k - 1) - 1) // s + 1 for size, k, d, p, s in rows]
