"""Transposed convolution."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fnn import init
from fnn.layers.base import (
    SPATIAL,
    Layer,
    ShapeError,
    as_sizes,
    check_channels,
    check_dtype,
    check_mapping,
    check_params,
    factory,
)
from fnn.layers.conv import Sizes, check_groups, weight_and_bias


@factory
def conv_transpose1d(
    in_channels: int,
    out_channels: int,
    kernel_size: Sizes,
    stride: Sizes = 1,
    padding: Sizes = 0,
    output_padding: Sizes = 0,
    groups: int = 1,
    bias: bool = True,
    dilation: Sizes = 1,
    weight_init: init.Initializer | None = None,
    bias_init: init.Initializer | None = None,
    dtype: torch.dtype = torch.float32,
) -> Layer:
    """The transpose of :func:`conv1d`, with the arguments of ``torch.nn.ConvTranspose1d``; see `conv_transpose2d`.

    x: (batch, in_channels, length) -> (batch, out_channels, length'), or a single sample without the batch axis.

    >>> from fnn import random
    >>> layer = conv_transpose1d(6, 2, 4, stride=2, padding=1)
    >>> layer.apply(layer.init(random.key(0)), torch.ones(3, 6, 10)).shape
    torch.Size([3, 2, 20])
    """
    sizes = (in_channels, out_channels, kernel_size, stride, padding, output_padding, groups)
    return _transposed(1, F.conv_transpose1d, *sizes, bias, dilation, weight_init, bias_init, dtype)


@factory
def conv_transpose2d(
    in_channels: int,
    out_channels: int,
    kernel_size: Sizes,
    stride: Sizes = 1,
    padding: Sizes = 0,
    output_padding: Sizes = 0,
    groups: int = 1,
    bias: bool = True,
    dilation: Sizes = 1,
    weight_init: init.Initializer | None = None,
    bias_init: init.Initializer | None = None,
    dtype: torch.dtype = torch.float32,
) -> Layer:
    """The transpose of :func:`conv2d` as a linear map, with the arguments of ``torch.nn.ConvTranspose2d``.

    x: (batch, in_channels, height, width) -> (batch, out_channels, height', width'), or a single image without the
    batch axis, where height' = (height - 1) stride - 2 padding + dilation (kernel_size - 1) + output_padding + 1.
    ``output_padding`` is the number of further rows and columns at the end. Params: ``weight`` (in_channels,
    out_channels / groups, *kernel_size) and ``bias`` (out_channels,), initialised as in torch. Raises ``ShapeError``
    for another number of channels, for an empty output, and for params of other names, shapes, device or dtype;
    ``ValueError`` if groups does not divide both numbers of channels, and unless output_padding is less than the
    stride or the dilation.

    >>> from fnn import random
    >>> layer = conv_transpose2d(6, 1, 3, stride=2, padding=1, output_padding=1)
    >>> layer.apply(layer.init(random.key(0)), torch.ones(4, 6, 16, 16)).shape
    torch.Size([4, 1, 32, 32])
    """
    sizes = (in_channels, out_channels, kernel_size, stride, padding, output_padding, groups)
    return _transposed(2, F.conv_transpose2d, *sizes, bias, dilation, weight_init, bias_init, dtype)


@factory
def conv_transpose3d(
    in_channels: int,
    out_channels: int,
    kernel_size: Sizes,
    stride: Sizes = 1,
    padding: Sizes = 0,
    output_padding: Sizes = 0,
    groups: int = 1,
    bias: bool = True,
    dilation: Sizes = 1,
    weight_init: init.Initializer | None = None,
    bias_init: init.Initializer | None = None,
    dtype: torch.dtype = torch.float32,
) -> Layer:
    """The transpose of :func:`conv3d`, with the arguments of ``torch.nn.ConvTranspose3d``; see `conv_transpose2d`.

    x: (batch, in_channels, depth, height, width) -> (batch, out_channels, depth', height', width'), or a single volume
    without the batch axis.

    >>> from fnn import random
    >>> layer = conv_transpose3d(6, 1, 2, stride=2)
    >>> layer.apply(layer.init(random.key(0)), torch.ones(4, 6, 3, 4, 5)).shape
    torch.Size([4, 1, 6, 8, 10])
    """
    sizes = (in_channels, out_channels, kernel_size, stride, padding, output_padding, groups)
    return _transposed(3, F.conv_transpose3d, *sizes, bias, dilation, weight_init, bias_init, dtype)


def _transposed(
    dims: int,
    convolve: Callable[..., Tensor],
    in_channels: int,
    out_channels: int,
    kernel_size: Sizes,
    stride: Sizes,
    padding: Sizes,
    output_padding: Sizes,
    groups: int,
    bias: bool,
    dilation: Sizes,
    weight_init: init.Initializer | None,
    bias_init: init.Initializer | None,
    dtype: torch.dtype,
) -> Layer:
    layer = f"conv_transpose{dims}d"
    in_channels, out_channels, groups = check_groups(layer, in_channels, out_channels, groups)
    kernel = as_sizes(layer, "kernel_size", kernel_size, dims)
    strides = as_sizes(layer, "stride", stride, dims)
    margins = as_sizes(layer, "padding", padding, dims, 0)
    extra = as_sizes(layer, "output_padding", output_padding, dims, 0)
    dilations = as_sizes(layer, "dilation", dilation, dims)
    if any(e >= max(s, d) for e, s, d in zip(extra, strides, dilations, strict=True)):
        raise ValueError(
            f"{layer}: output_padding={extra} must be less than stride={strides} or dilation={dilations} on each axis"
        )
    shape = (in_channels, out_channels // groups, *kernel)
    init_params, shapes = weight_and_bias(shape, out_channels if bias else None, weight_init, bias_init, dtype)

    def apply(params: dict[str, Tensor], x: Tensor, *, key: Tensor | None = None) -> Tensor:
        check_mapping(layer, params)
        check_channels(layer, x, in_channels, SPATIAL[dims])
        rows = zip(x.shape[-dims:], strides, margins, dilations, kernel, extra, strict=True)
        sizes = tuple((n - 1) * s - 2 * m + d * (k - 1) + e + 1 for n, s, m, d, k, e in rows)
        if min(sizes) < 1:
            raise ShapeError(f"{layer} turns an input of size {tuple(x.shape[-dims:])} into one of size {sizes}")
        check_params(layer, params, **shapes)
        check_dtype(layer, x, params["weight"])
        return convolve(x, params["weight"], params.get("bias"), strides, margins, extra, groups, dilations)

    return Layer(init_params, apply)
