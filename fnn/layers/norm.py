"""Normalisation layers. Only :func:`batch_norm` has state and mixes the samples of a batch."""

import math
from typing import Any

import torch
from torch import Tensor

from fnn import init
from fnn._numerics import widen
from fnn._samples import refuse_samples_apart
from fnn.layers.base import (
    Layer,
    ShapeError,
    StatefulLayer,
    as_size,
    check_channels,
    check_channels_first,
    check_mapping,
    check_params,
    check_state,
    check_tensor,
    factory,
)
from fnn.random.arguments import device_of


@factory
def layer_norm(
    shape: int | tuple[int, ...],
    eps: float = 1e-5,
    affine: bool = True,
    bias: bool = True,
    dtype: torch.dtype = torch.float32,
) -> Layer:
    """(x - mean) / sqrt(var + eps) * weight + bias, with the mean and variance over the last axes.

    x: (..., *shape) -> the same shape (Ba et al., 2016). Params with ``affine``: ``weight`` (ones) and, with ``bias``,
    ``bias`` (zeros), both of ``shape``. Raises ``ShapeError`` if the last axes of x are not ``shape``.

    >>> from fnn import random
    >>> layer = layer_norm(3)
    >>> layer.apply(layer.init(random.key(0)), torch.tensor([[1.0, 2.0, 3.0]]))
    tensor([[-1.2247,  0.0000,  1.2247]])
    """
    axes = _axes(shape)

    def apply(params: dict[str, Tensor], x: Tensor, *, key: Tensor | None = None) -> Tensor:
        check_mapping("layer_norm", params)
        _check_last_axes("layer_norm", x, axes)
        check_params("layer_norm", params, **_shapes(axes, affine, bias))
        # written out, because derivatives of the forward-mode derivative of torch's layer_norm are wrong
        wide, dims = widen(x), tuple(range(-len(axes), 0))
        centred = wide - wide.mean(dims, keepdim=True)
        y = (centred * torch.rsqrt(centred.square().mean(dims, keepdim=True) + eps)).to(x.dtype)
        return _scaled(y, params, axes)

    return Layer(lambda key=None: _scale_and_shift(key, axes, affine, bias, dtype), apply)


@factory
def rms_norm(
    shape: int | tuple[int, ...],
    eps: float | None = None,
    affine: bool = True,
    dtype: torch.dtype = torch.float32,
) -> Layer:
    """x / sqrt(mean(x^2) + eps) * weight, with the mean over the last axes.

    x: (..., *shape) -> the same shape (Zhang and Sennrich, 2019). ``eps`` defaults to the machine epsilon of x's dtype,
    as in torch. Params with ``affine``: ``weight`` (ones) of ``shape``. Raises ``ShapeError`` if the last axes of x are
    not ``shape``.

    >>> from fnn import random
    >>> layer = rms_norm(2)
    >>> layer.apply(layer.init(random.key(0)), torch.tensor([[3.0, 4.0]]))
    tensor([[0.8485, 1.1314]])
    """
    axes = _axes(shape)

    def apply(params: dict[str, Tensor], x: Tensor, *, key: Tensor | None = None) -> Tensor:
        check_mapping("rms_norm", params)
        _check_last_axes("rms_norm", x, axes)
        check_params("rms_norm", params, **_shapes(axes, affine, False))
        wide = widen(x)
        mean_square = (wide * wide).mean(tuple(range(-len(axes), 0)), keepdim=True)
        y = (wide * torch.rsqrt(mean_square + (torch.finfo(x.dtype).eps if eps is None else eps))).to(x.dtype)
        return _scaled(y, params, axes)

    return Layer(lambda key=None: _scale_and_shift(key, axes, affine, False, dtype), apply)


@factory
def group_norm(
    groups: int,
    channels: int,
    eps: float = 1e-5,
    affine: bool = True,
    bias: bool = True,
    dtype: torch.dtype = torch.float32,
) -> Layer:
    """(x - mean) / sqrt(var + eps) * weight + bias, with the mean and variance of each group of channels of a sample.

    x: (batch, channels, ...) -> the same shape (Wu and He, 2018). Params with ``affine``: ``weight`` (ones) and, with
    ``bias``, ``bias`` (zeros), both (channels,). Raises ``ValueError`` if groups does not divide channels, and
    ``ShapeError`` for another number of channels.

    >>> from fnn import random
    >>> layer = group_norm(2, 6)
    >>> layer.apply(layer.init(random.key(0)), torch.ones(4, 6, 8, 8)).shape
    torch.Size([4, 6, 8, 8])
    """
    groups, channels = as_size("group_norm", "groups", groups), as_size("group_norm", "channels", channels)
    if channels % groups:
        raise ValueError(f"group_norm: groups={groups} must divide channels={channels}")
    return _by_groups("group_norm", groups, channels, eps, affine, bias, dtype)


@factory
def instance_norm(
    channels: int,
    eps: float = 1e-5,
    affine: bool = False,
    bias: bool = True,
    spatial: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> Layer:
    """(x - mean) / sqrt(var + eps), with the mean and variance of each channel of a sample (Ulyanov et al., 2016).

    This is :func:`group_norm` with one channel per group. x: (batch, channels, ...) -> the same shape. If ``spatial``,
    the number of axes after the channels, is given, x may also be a single sample (channels, ...). Params with
    ``affine``: ``weight`` and, with ``bias``, ``bias`` (channels,). Raises ``ShapeError`` for another number of
    channels, and for a single value per channel, whose result would always be 0.

    >>> instance_norm(1).apply({}, torch.tensor([[[1.0, 2.0, 3.0]]]))
    tensor([[[-1.2247,  0.0000,  1.2247]]])
    """
    channels = as_size("instance_norm", "channels", channels)
    layer = _by_groups("instance_norm", channels, channels, eps, affine, bias, dtype)
    if spatial is None:
        return layer
    axes = as_size("instance_norm", "spatial", spatial)

    def apply(params: dict[str, Tensor], x: Tensor, *, key: Tensor | None = None) -> Tensor:
        check_channels("instance_norm", x, channels, tuple(f"axis{i}" for i in range(axes)))
        return layer.apply(params, x) if x.dim() == axes + 2 else layer.apply(params, x[None])[0]

    return Layer(layer.init, apply)


@factory
def batch_norm(
    channels: int,
    eps: float = 1e-5,
    momentum: float | None = 0.1,
    affine: bool = True,
    track_running_stats: bool = True,
    bias: bool = True,
    dtype: torch.dtype = torch.float32,
) -> StatefulLayer:
    """(x - mean) / sqrt(var + eps) * weight + bias, with a mean and variance for each channel.

    x: (batch, channels, ...) -> the same shape (Ioffe and Szegedy, 2015). With ``train=True`` the mean and variance of
    the batch are used, and the running statistics in the returned state become (1 - momentum) running + momentum batch,
    with the unbiased variance. ``momentum=None`` averages all batches. Otherwise the running statistics are used and
    the state is returned unchanged. Params with ``affine``: ``weight`` and, with ``bias``, ``bias`` (channels,). State:
    ``running_mean`` and ``running_var`` (channels,), and ``num_batches_tracked``, an int64 count; it is not
    differentiated. Without ``track_running_stats`` the state is empty, and the statistics of the batch are used in
    evaluation too, as in torch. Raises ``ShapeError`` for another number of channels and for a training batch with a
    single value per channel, and ``ValueError`` in training inside a per-sample gradient.

    >>> from fnn import random
    >>> layer = batch_norm(2)
    >>> params, state = layer.init(random.key(0))
    >>> y, state = layer.apply(params, state, torch.tensor([[0.0, 4.0], [2.0, 8.0]]), train=True)
    >>> y
    tensor([[-1.0000, -1.0000],
            [ 1.0000,  1.0000]])
    >>> state["running_mean"]
    tensor([0.1000, 0.6000])
    """

    channels = as_size("batch_norm", "channels", channels)
    shapes = {"running_mean": (channels,), "running_var": (channels,), "num_batches_tracked": ()}

    def init_params(key: Any = None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        params = _scale_and_shift(key, (channels,), affine, bias, dtype)
        if not track_running_stats:
            return params, {}
        device = device_of(key)
        # running means lose digits in 16 bits
        wide = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
        state = {
            "running_mean": torch.zeros(channels, dtype=wide, device=device),
            "running_var": torch.ones(channels, dtype=wide, device=device),
            "num_batches_tracked": torch.zeros((), dtype=torch.int64, device=device),
        }
        return params, state

    def apply(
        params: dict[str, Tensor],
        state: dict[str, Tensor],
        x: Any = None,
        *,
        train: bool = False,
        key: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        check_mapping("batch_norm", params)
        check_state("batch_norm", state, x)
        check_channels_first("batch_norm", x, channels)
        check_params("batch_norm", params, **_shapes((channels,), affine, bias))
        check_params("batch_norm", state, **(shapes if track_running_stats else {}))
        if train or not track_running_stats:
            refuse_samples_apart("batch_norm")
            mean, var = _batch_statistics(x)
            if track_running_stats:
                state = state | _updated(state, mean.detach(), var.detach(), x.numel() // channels, momentum)
        else:
            mean, var = state["running_mean"], state["running_var"]
        along = (1, channels, *[1] * (x.dim() - 2))
        y = (x - mean.view(along)) * torch.rsqrt(var + eps).view(along)
        return _scaled(y, params, along).to(x.dtype), state

    return StatefulLayer(init_params, apply)


def _batch_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and the biased variance of each channel."""
    if x.numel() <= x.shape[1]:
        raise ShapeError(
            f"batch_norm in training mode needs more than one value per channel, got inputs of {tuple(x.shape)}; "
            "train on larger batches (batches(..., drop_last=True)) or apply with train=False"
        )
    dims = [dim for dim in range(x.dim()) if dim != 1]
    wide = widen(x)
    mean = wide.mean(dims, keepdim=True)
    return mean.flatten(), (wide - mean).square().mean(dims)


def _updated(
    state: dict[str, Tensor], mean: Tensor, var: Tensor, count: int, momentum: float | None
) -> dict[str, Tensor]:
    """Return the running statistics after one more batch with ``count`` values per channel."""
    batches = state["num_batches_tracked"] + 1

    def mix(old: Tensor, new: Tensor) -> Tensor:
        share = 1.0 / batches.to(old.dtype) if momentum is None else momentum
        return old + share * (new.to(old.dtype) - old)

    return {
        "running_mean": mix(state["running_mean"], mean),
        "running_var": mix(state["running_var"], var * (count / (count - 1))),
        "num_batches_tracked": batches,
    }


def _by_groups(
    layer: str, groups: int, channels: int, eps: float, affine: bool, bias: bool, dtype: torch.dtype
) -> Layer:
    def apply(params: dict[str, Tensor], x: Tensor, *, key: Tensor | None = None) -> Tensor:
        check_mapping(layer, params)
        check_channels_first(layer, x, channels)
        check_params(layer, params, **_shapes((channels,), affine, bias))
        if layer == "instance_norm" and math.prod(x.shape[2:]) == 1:
            raise ShapeError(f"instance_norm needs more than one value per channel, got inputs of {tuple(x.shape)}")
        # written out, because torch's group_norm fails under compiled jvp
        grouped = widen(x).unflatten(1, (groups, -1))
        dims = tuple(range(2, grouped.dim()))
        centred = grouped - grouped.mean(dims, keepdim=True)
        y = centred * torch.rsqrt(centred.square().mean(dims, keepdim=True) + eps)
        return _scaled(y.flatten(1, 2).to(x.dtype), params, (channels, *[1] * (x.dim() - 2)))

    return Layer(lambda key=None: _scale_and_shift(key, (channels,), affine, bias, dtype), apply)


def _shapes(shape: tuple[int, ...], affine: bool, bias: bool) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the params."""
    return ({"weight": shape} if affine else {}) | ({"bias": shape} if affine and bias else {})


def _scale_and_shift(
    key: Any, shape: tuple[int, ...], affine: bool, bias: bool, dtype: torch.dtype
) -> dict[str, Tensor]:
    names = _shapes(shape, affine, bias)
    values = {"weight": init.ones(), "bias": init.zeros()}
    return {name: values[name](key, shape, dtype) for name in names}


def _scaled(y: Tensor, params: dict[str, Tensor], along: tuple[int, ...]) -> Tensor:
    """Return y * weight + bias, without those that are not in the params."""
    if "weight" in params:
        y = y * params["weight"].view(along)
    return y + params["bias"].view(along) if "bias" in params else y


def _axes(shape: int | tuple[int, ...]) -> tuple[int, ...]:
    sizes = tuple(shape) if isinstance(shape, (tuple, list)) else (shape,)
    axes = tuple(as_size("a normalisation", "its shape", size, 0) for size in sizes)
    if not axes or math.prod(axes) < 1:
        raise ValueError(f"a normalised shape has at least one axis and no empty one, got {shape}")
    return axes


def _check_last_axes(layer: str, x: Tensor, axes: tuple[int, ...]) -> None:
    check_tensor(layer, x)
    if tuple(x.shape[-len(axes) :]) != axes:
        wanted = ", ".join(["...", *map(str, axes)])
        raise ShapeError(f"{layer} expects inputs of shape ({wanted}), got {tuple(x.shape)}")
