"""Convolution."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fnn import init, random
from fnn.layers.base import (
    SPATIAL,
    Layer,
    ShapeError,
    as_size,
    as_sizes,
    check_channels,
    check_dtype,
    check_mapping,
    check_params,
    factory,
)
from fnn.layers.padding import PADDING_MODES, pad

Sizes = int | Sequence[int]
PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]


@factory
def conv1d(
    in_channels: int,
    out_channels: int,
    kernel_size: Sizes,
    stride: Sizes = 1,
    padding: Sizes | Literal["same", "valid"] = 0,
    dilation: Sizes = 1,
    groups: int = 1,
    bias: bool = True,
    padding_mode: PaddingMode = "zeros",
    weight_init: init.Initializer | None = None,
    bias_init: init.Initializer | None = None,
    dtype: torch.dtype = torch.float32,
) -> Layer:
    """One-dimensional cross-correlation with the arguments of ``torch.nn.Conv1d``; see :func:`conv2d`.

    x: (batch, in_channels, length) -> (batch, out_channels, length'), or a single sample without the batch axis.

    >>> layer = conv1d(2, 6, 3)
    >>> layer.apply(layer.init(random.key(0)), torch.ones(4, 2, 32)).shape
    torch.Size([4, 6, 30])
    """
    numbers = (in_channels, out_channels, kernel_size, stride, padding, dilation, groups)
    return _convolution(1, F.conv1d, *numbers, bias, padding_mode, weight_init, bias_init, dtype)


@factory
def conv2d(
    in_channels: int,
    out_channels: int,
    kernel_size: Sizes,
    stride: Sizes = 1,
    padding: Sizes | Literal["same", "valid"] = 0,
    dilation: Sizes = 1,
    groups: int = 1,
    bias: bool = True,
    padding_mode: PaddingMode = "zeros",
    weight_init: init.Initializer | None = None,
    bias_init: init.Initializer | None = None,
    dtype: torch.dtype = torch.float32,
) -> Layer:
    """Two-dimensional cross-correlation with the arguments of ``torch.nn.Conv2d``.

    x: (batch, in_channels, height, width) -> (batch, out_channels, height', width'), or a single image without the
    batch axis. ``padding`` is a number of pixels, "same" or "valid", and ``padding_mode`` determines the values of the
    added pixels. Params: ``weight`` (out_channels, in_channels / groups, *kernel_size) and ``bias`` (out_channels,),
    initialised as in torch. Raises ``ShapeError`` for another number of channels, for a kernel larger than the padded
    image, and for params of other names, shapes, device or dtype; ``ValueError`` if groups does not divide both numbers
    of channels, and for sizes that are not one integer or two.

    >>> layer = conv2d(1, 6, 3)
    >>> layer.apply(layer.init(random.key(0)), torch.ones(4, 1, 32, 32)).shape
    torch.Size([4, 6, 30, 30])
    """
    numbers = (in_channels, out_channels, kernel_size, stride, padding, dilation, groups)
    return _convolution(2, F.conv2d, *numbers, bias, padding_mode, weight_init, bias_init, dtype)


@factory
def conv3d(
    in_channels: int,
    out_channels: int,
    kernel_size: Sizes,
    stride: Sizes = 1,
    padding: Sizes | Literal["same", "valid"] = 0,
    dilation: Sizes = 1,
    groups: int = 1,
    bias: bool = True,
    padding_mode: PaddingMode = "zeros",
    weight_init: init.Initializer | None = None,
    bias_init: init.Initializer | None = None,
    dtype: torch.dtype = torch.float32,
) -> Layer:
    """Three-dimensional cross-correlation with the arguments of ``torch.nn.Conv3d``; see :func:`conv2d`.

    x: (batch, in_channels, depth, height, width) -> (batch, out_channels, depth', height', width'), or a single volume
    without the batch axis.

    >>> layer = conv3d(1, 6, 3)
    >>> layer.apply(layer.init(random.key(0)), torch.ones(4, 1, 8, 9, 10)).shape
    torch.Size([4, 6, 6, 7, 8])
    """
    numbers = (in_channels, out_channels, kernel_size, stride, padding, dilation, groups)
    return _convolution(3, F.conv3d, *numbers, bias, padding_mode, weight_init, bias_init, dtype)


def _convolution(
    dims: int,
    convolve: Callable[..., Tensor],
    in_channels: int,
    out_channels: int,
    kernel_size: Sizes,
    stride: Sizes,
    padding: Sizes | str,
    dilation: Sizes,
    groups: int,
    bias: bool,
    padding_mode: str,
    weight_init: init.Initializer | None,
    bias_init: init.Initializer | None,
    dtype: torch.dtype,
) -> Layer:
    layer = f"conv{dims}d"
    in_channels, out_channels, groups = check_groups(layer, in_channels, out_channels, groups)
    kernel = as_sizes(layer, "kernel_size", kernel_size, dims)
    dilations = as_sizes(layer, "dilation", dilation, dims)
    strides = as_sizes(layer, "stride", stride, dims)
    if padding_mode not in PADDING_MODES:
        raise ValueError(f"{layer}: padding_mode is one of {', '.join(map(repr, PADDING_MODES))}, got {padding_mode!r}")
    reach = tuple(d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True))
    before, after = _margins(layer, reach, strides, padding)
    # the convolution itself can pad with equally many zeros on both sides
    inner = before if padding_mode == "zeros" and before == after else (0,) * dims
    margins = tuple(margin for pair in reversed(list(zip(before, after, strict=True))) for margin in pair)
    shape = (out_channels, in_channels // groups, *kernel)
    init_params, shapes = weight_and_bias(shape, out_channels if bias else None, weight_init, bias_init, dtype)

    def apply(params: dict[str, Tensor], x: Tensor, *, key: Tensor | None = None) -> Tensor:
        check_mapping(layer, params)
        check_channels(layer, x, in_channels, SPATIAL[dims])
        sizes = x.shape[-dims:]
        if any(size + low + high < r for size, low, high, r in zip(sizes, before, after, reach, strict=True)):
            raise ShapeError(f"{layer} with a kernel that reaches over {reach} got an input of size {tuple(sizes)}")
        check_params(layer, params, **shapes)
        check_dtype(layer, x, params["weight"])
        if inner != before or inner != after:
            x = pad(layer, x, margins, padding_mode)
        return convolve(x, params["weight"], params.get("bias"), strides, inner, dilations, groups)

    return Layer(init_params, apply)


def _margins(
    layer: str, reach: tuple[int, ...], strides: tuple[int, ...], padding: Sizes | str
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the numbers of entries added before and after, for each axis."""
    if padding == "valid":
        return (0,) * len(reach), (0,) * len(reach)
    if padding == "same":
        if any(stride != 1 for stride in strides):
            raise ValueError(f"{layer}: padding='same' needs stride 1, got {strides}")
        return tuple((r - 1) // 2 for r in reach), tuple(r - 1 - (r - 1) // 2 for r in reach)
    if isinstance(padding, str):
        raise ValueError(f"{layer}: padding is a number of pixels, 'same' or 'valid', got {padding!r}")
    margins = as_sizes(layer, "padding", padding, len(reach), 0)
    return margins, margins


def check_groups(layer: str, in_channels: int, out_channels: int, groups: int) -> tuple[int, int, int]:
    """Return the three numbers as Python integers. Raises ``ValueError`` unless groups divides both others."""
    in_channels = as_size(layer, "in_channels", in_channels)
    out_channels = as_size(layer, "out_channels", out_channels)
    groups = as_size(layer, "groups", groups)
    if in_channels % groups or out_channels % groups:
        raise ValueError(
            f"{layer}: groups={groups} must divide in_channels={in_channels} and out_channels={out_channels}"
        )
    return in_channels, out_channels, groups


def weight_and_bias(
    shape: tuple[int, ...],
    channels: int | None,
    weight_init: init.Initializer | None,
    bias_init: init.Initializer | None,
    dtype: torch.dtype,
) -> tuple[Callable[..., dict[str, Tensor]], dict[str, tuple[int, ...]]]:
    """Return the ``init`` of a weight of this shape and of a bias, and the shapes of both. None means no bias."""
    weight_init = weight_init or init.torch_default()
    bias_init = bias_init or init.torch_default_bias(math.prod(shape[1:]))
    shapes = {"weight": shape} | ({"bias": (channels,)} if channels is not None else {})

    def init_params(key: Any = None) -> dict[str, Tensor]:
        weight_key, bias_key = random.split(key)
        params = {"weight": weight_init(weight_key, shape, dtype)}
        return params | ({"bias": bias_init(bias_key, (channels,), dtype)} if channels is not None else {})

    return init_params, shapes
