"""Normalisation of each sample by itself, without state."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fnn import init
from fnn._numerics import widen
from fnn._tracing import derivatives_of_derivatives, inside_vmap
from fnn.layers.base import (
    Layer,
    ShapeError,
    as_size,
    check_channels_first,
    check_floating,
    check_mapping,
    check_params,
    factory,
)


@factory
def layer_norm(
    normalized_shape: int | Sequence[int],
    eps: float = 1e-5,
    elementwise_affine: bool = True,
    bias: bool = True,
    dtype: torch.dtype = torch.float32,
) -> Layer:
    """(x - mean) / sqrt(var + eps) * weight + bias, with the mean and variance over the last axes.

    x: (..., *normalized_shape) -> the same shape (Ba et al., 2016). Params with ``elementwise_affine``: ``weight``
    (ones) and, with ``bias``, ``bias`` (zeros), both of ``normalized_shape``. Raises ``ShapeError`` if the last axes of
    x are not ``normalized_shape``, and ``TypeError`` for integers and complex numbers.

    >>> from fnn import random
    >>> layer = layer_norm(3)
    >>> layer.apply(layer.init(random.key(0)), torch.tensor([[1.0, 2.0, 3.0]]))
    tensor([[-1.2247,  0.0000,  1.2247]])
    """
    axes = _axes("layer_norm", normalized_shape)

    def apply(params: dict[str, Tensor], x: Tensor, *, key: Tensor | None = None) -> Tensor:
        check_mapping("layer_norm", params)
        _check_last_axes("layer_norm", x, axes)
        check_params("layer_norm", params, **affine_shapes(axes, elementwise_affine, bias))
        if kernel_serves(x, params):
            return F.layer_norm(x, axes, params.get("weight"), params.get("bias"), eps)
        wide, dims = widen(x), tuple(range(-len(axes), 0))
        centred = wide - wide.mean(dims, keepdim=True)
        y = (centred * torch.rsqrt(centred.square().mean(dims, keepdim=True) + eps)).to(x.dtype)
        return scaled(y, params, axes)

    return Layer(lambda key=None: scale_and_shift(key, axes, elementwise_affine, bias, dtype), apply)


@factory
def rms_norm(
    normalized_shape: int | Sequence[int],
    eps: float | None = None,
    elementwise_affine: bool = True,
    dtype: torch.dtype = torch.float32,
) -> Layer:
    """x / sqrt(mean(x^2) + eps) * weight, with the mean over the last axes.

    x: (..., *normalized_shape) -> the same shape (Zhang and Sennrich, 2019). ``eps`` defaults to the machine epsilon of
    x's dtype, as in torch. Params with ``elementwise_affine``: ``weight`` (ones) of ``normalized_shape``. Raises
    ``ShapeError`` if the last axes of x are not ``normalized_shape``, and ``TypeError`` for integers and complex
    numbers.

    >>> from fnn import random
    >>> layer = rms_norm(2)
    >>> layer.apply(layer.init(random.key(0)), torch.tensor([[3.0, 4.0]]))
    tensor([[0.8485, 1.1314]])
    """
    axes = _axes("rms_norm", normalized_shape)

    def apply(params: dict[str, Tensor], x: Tensor, *, key: Tensor | None = None) -> Tensor:
        check_mapping("rms_norm", params)
        _check_last_axes("rms_norm", x, axes)
        check_params("rms_norm", params, **affine_shapes(axes, elementwise_affine, False))
        wide = widen(x)
        mean_square = (wide * wide).mean(tuple(range(-len(axes), 0)), keepdim=True)
        y = (wide * torch.rsqrt(mean_square + (torch.finfo(x.dtype).eps if eps is None else eps))).to(x.dtype)
        return scaled(y, params, axes)

    return Layer(lambda key=None: scale_and_shift(key, axes, elementwise_affine, False, dtype), apply)


@factory
def group_norm(
    num_groups: int,
    num_channels: int,
    eps: float = 1e-5,
    affine: bool = True,
    bias: bool = True,
    dtype: torch.dtype = torch.float32,
) -> Layer:
    """(x - mean) / sqrt(var + eps) * weight + bias, with the mean and variance of each group of channels of a sample.

    x: (batch, num_channels, ...) -> the same shape (Wu and He, 2018). Params with ``affine``: ``weight`` (ones) and,
    with ``bias``, ``bias`` (zeros), both (num_channels,). Raises ``ValueError`` if num_groups does not divide
    num_channels, ``ShapeError`` for another number of channels, and ``TypeError`` for integers and complex numbers.

    >>> from fnn import random
    >>> layer = group_norm(2, 6)
    >>> layer.apply(layer.init(random.key(0)), torch.ones(4, 6, 8, 8)).shape
    torch.Size([4, 6, 8, 8])
    """
    groups = as_size("group_norm", "num_groups", num_groups)
    channels = as_size("group_norm", "num_channels", num_channels)
    if channels % groups:
        raise ValueError(f"group_norm: num_groups={groups} must divide num_channels={channels}")
    return by_groups("group_norm", groups, channels, eps, affine, bias, dtype)


def by_groups(
    layer: str, groups: int, channels: int, eps: float, affine: bool, bias: bool, dtype: torch.dtype
) -> Layer:
    """Return a layer that normalises each group of channels of a sample."""

    def apply(params: dict[str, Tensor], x: Tensor, *, key: Tensor | None = None) -> Tensor:
        check_mapping(layer, params)
        check_channels_first(layer, x, channels)
        check_floating(layer, x)
        check_params(layer, params, **affine_shapes((channels,), affine, bias))
        if layer == "instance_norm" and math.prod(x.shape[2:]) == 1:
            raise ShapeError(f"instance_norm needs more than one value per channel, got inputs of {tuple(x.shape)}")
        if kernel_serves(x, params):
            return torch.group_norm(x, groups, params.get("weight"), params.get("bias"), eps)
        grouped = widen(x).unflatten(1, (groups, -1))
        dims = tuple(range(2, grouped.dim()))
        centred = grouped - grouped.mean(dims, keepdim=True)
        y = centred * torch.rsqrt(centred.square().mean(dims, keepdim=True) + eps)
        return scaled(y.flatten(1, 2).to(x.dtype), params, (channels, *[1] * (x.dim() - 2)))

    return Layer(lambda key=None: scale_and_shift(key, (channels,), affine, bias, dtype), apply)


def kernel_serves(x: Tensor, params: dict[str, Tensor]) -> bool:
    """Whether torch's own kernel computes a normalisation here, in fewer passes over x than the formula.

    Forward derivatives and derivatives of derivatives need the formula: torch's rules for them are wrong or missing.
    """
    if derivatives_of_derivatives() or inside_vmap():
        return False
    leaves = [params[name] for name in ("weight", "bias") if name in params]
    return x.dtype in (torch.float32, torch.float64) and all(leaf.dtype == x.dtype for leaf in leaves)


def affine_shapes(shape: tuple[int, ...], affine: bool, bias: bool) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the params of a normalisation."""
    return ({"weight": shape} if affine else {}) | ({"bias": shape} if affine and bias else {})


def scale_and_shift(
    key: Any, shape: tuple[int, ...], affine: bool, bias: bool, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Return the first params: a weight of ones and a bias of zeros."""
    names = affine_shapes(shape, affine, bias)
    values = {"weight": init.ones(), "bias": init.zeros()}
    return {name: values[name](key, shape, dtype) for name in names}


def scaled(y: Tensor, params: dict[str, Tensor], along: tuple[int, ...]) -> Tensor:
    """Return y * weight + bias, without those that are not in the params."""
    if "weight" in params:
        y = y * params["weight"].view(along)
    return y + params["bias"].view(along) if "bias" in params else y


def _axes(layer: str, shape: int | Sequence[int]) -> tuple[int, ...]:
    sizes = tuple(shape) if isinstance(shape, (tuple, list)) else (shape,)
    axes = tuple(as_size(layer, "normalized_shape", size, 0) for size in sizes)
    if not axes or math.prod(axes) < 1:
        raise ValueError(f"{layer} expects a normalized_shape with at least one axis and no empty one, got {shape}")
    return axes


def _check_last_axes(layer: str, x: Tensor, axes: tuple[int, ...]) -> None:
    check_floating(layer, x)
    if tuple(x.shape[-len(axes) :]) != axes:
        wanted = ", ".join(["...", *map(str, axes)])
        raise ShapeError(f"{layer} expects inputs of shape ({wanted}), got {tuple(x.shape)}")
