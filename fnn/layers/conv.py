"""Convolution."""

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fnn import init, random
from fnn.layers.base import (
    Layer,
    ShapeError,
    as_pair,
    as_size,
    check_channels,
    check_dtype,
    check_mapping,
    check_params,
    factory,
)


@factory
def conv2d(
    in_channels: int,
    out_channels: int,
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | Literal["same", "valid"] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    bias: bool = True,
    padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
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
    in_channels = as_size("conv2d", "in_channels", in_channels)
    out_channels = as_size("conv2d", "out_channels", out_channels)
    kernel = as_pair("conv2d", "kernel_size", kernel_size)
    dilations = as_pair("conv2d", "dilation", dilation)
    strides = as_pair("conv2d", "stride", stride)
    groups = as_size("conv2d", "groups", groups)
    if in_channels % groups or out_channels % groups:
        raise ValueError(f"groups={groups} must divide in_channels={in_channels} and out_channels={out_channels}")
    if padding_mode not in _PADDING_MODES:
        raise ValueError(f"conv2d: padding_mode is one of {', '.join(map(repr, _PADDING_MODES))}, got {padding_mode!r}")
    margins = _margins(kernel, strides, padding, dilations)  # left, right, top, bottom
    # F.conv2d can pad with equally many zeros on both sides itself
    equal = padding_mode == "zeros" and margins[0] == margins[1] and margins[2] == margins[3]
    shape = (out_channels, in_channels // groups, *kernel)
    fan_in = math.prod(shape[1:])
    weight_init = weight_init or init.torch_default()
    bias_init = bias_init or init.torch_default_bias(fan_in)
    shapes: dict = {"weight": shape} | ({"bias": (out_channels,)} if bias else {})

    def init_params(key: Any = None) -> dict[str, Tensor]:
        weight_key, bias_key = random.split(key)
        params = {"weight": weight_init(weight_key, shape, dtype)}
        return params | ({"bias": bias_init(bias_key, (out_channels,), dtype)} if bias else {})

    def apply(params: dict[str, Tensor], x: Tensor, *, key: Tensor | None = None) -> Tensor:
        check_mapping("conv2d", params)
        check_channels("conv2d", x, in_channels, ("height", "width"))
        reach = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
        if x.shape[-2] + sum(margins[2:]) < reach[0] or x.shape[-1] + sum(margins[:2]) < reach[1]:
            raise ShapeError(f"conv2d with a kernel reaching over {reach} pixels got images of {list(x.shape[-2:])}")
        check_params("conv2d", params, **shapes)
        check_dtype("conv2d", x, params["weight"])
        inner = (margins[2], margins[0]) if equal else (0, 0)
        if not equal:
            x = F.pad(x, margins, "constant" if padding_mode == "zeros" else padding_mode)
        return F.conv2d(x, params["weight"], params.get("bias"), strides, inner, dilations, groups)

    return Layer(init_params, apply)


_PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


def _margins(
    kernel: tuple[int, int], strides: tuple[int, int], padding: int | tuple[int, int] | str, dilations: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Return the numbers of pixels added left, right, above and below."""
    if padding == "valid":
        return 0, 0, 0, 0
    if padding == "same":
        if strides != (1, 1):
            raise ValueError(f"conv2d: padding='same' needs stride 1, got {strides}")
        rows, columns = (d * (k - 1) for d, k in zip(dilations, kernel, strict=True))
        return columns // 2, columns - columns // 2, rows // 2, rows - rows // 2
    if isinstance(padding, str):
        raise ValueError(f"conv2d: padding is a number of pixels, 'same' or 'valid', got {padding!r}")
    rows, columns = as_pair("conv2d", "padding", padding, 0)
    return columns, columns, rows, rows
