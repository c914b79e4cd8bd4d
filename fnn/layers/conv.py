"""Convolution."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fnn import init, random
from fnn.layers.base import Layer, ShapeError, check_channels, check_dtype, check_params


def conv2d(
    in_channels: int,
    out_channels: int,
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    bias: bool = True,
    weight_init: init.Initializer | None = None,
    bias_init: init.Initializer | None = None,
    dtype: torch.dtype = torch.float32,
) -> Layer:
    """Two-dimensional cross-correlation, ``torch.nn.Conv2d``'s arguments.

    x: (batch, in_channels, height, width) -> y: (batch, out_channels, height', width'); a single image
    without the batch axis also. ``padding`` is a number of pixels, "same" or "valid". Params: ``weight``
    (out_channels, in_channels / groups, *kernel_size) and ``bias`` (out_channels,); torch's default
    initialisation. Raises ``ShapeError`` for another number of channels, a kernel larger than the padded
    image, and params of other shapes or of another dtype than x; ``ValueError`` when groups does not divide
    both channel counts.

    >>> layer = conv2d(1, 6, 3)
    >>> layer.apply(layer.init(random.key(0)), torch.ones(4, 1, 32, 32)).shape
    torch.Size([4, 6, 30, 30])
    """
    kernel, dilations = _pair(kernel_size), _pair(dilation)
    if in_channels % groups or out_channels % groups:
        raise ValueError(f"groups={groups} must divide in_channels={in_channels} and out_channels={out_channels}")
    shape = (out_channels, in_channels // groups, *kernel)
    fan_in = math.prod(shape[1:])
    weight_init = weight_init or init.torch_default()
    bias_init = bias_init or init.torch_default_bias(fan_in)
    shapes: dict = {"weight": shape} | ({"bias": (out_channels,)} if bias else {})

    def init_params(key: Tensor) -> dict[str, Tensor]:
        weight_key, bias_key = random.split(key)
        params = {"weight": weight_init(weight_key, shape, dtype)}
        return params | ({"bias": bias_init(bias_key, (out_channels,), dtype)} if bias else {})

    def apply(params: dict[str, Tensor], x: Tensor, *, key: Tensor | None = None) -> Tensor:
        check_channels("conv2d", x, in_channels, ("height", "width"))
        if not isinstance(padding, str):
            reach = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
            room = [size + 2 * p for size, p in zip(x.shape[-2:], _pair(padding), strict=True)]
            if room[0] < reach[0] or room[1] < reach[1]:
                raise ShapeError(
                    f"conv2d with a kernel reaching over {reach} pixels got images of {list(x.shape[-2:])}"
                )
        check_params("conv2d", params, **shapes)
        check_dtype("conv2d", x, params["weight"])
        return F.conv2d(x, params["weight"], params.get("bias"), stride, padding, dilation, groups)

    return Layer(init_params, apply)


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
