"""Normalisation. Only :func:`batch_norm` has state and mixes the samples of a batch."""

import math

import torch
from torch import Tensor

from fnn.layers.base import Layer, ShapeError, StatefulLayer, check_channels_first, check_params, refuse_samples_apart


def layer_norm(
    shape: int | tuple[int, ...], eps: float = 1e-5, affine: bool = True, dtype: torch.dtype = torch.float32
) -> Layer:
    """(x - mean) / sqrt(var + eps) * weight + bias, over the last axes, for each sample and position alone.

    x: (..., *shape) -> the same shape (Ba et al., 2016). Params with ``affine``: ``weight`` and ``bias``, both of
    ``shape``, ones and zeros at first. Raises ``ShapeError`` when the last axes of x are not ``shape``.

    >>> from fnn import random
    >>> layer = layer_norm(3)
    >>> layer.apply(layer.init(random.key(0)), torch.tensor([[1.0, 2.0, 3.0]]))
    tensor([[-1.2247,  0.0000,  1.2247]])
    """
    axes = _axes(shape)

    def apply(params: dict[str, Tensor], x: Tensor, *, key: Tensor | None = None) -> Tensor:
        _check_last_axes("layer_norm", x, axes)
        check_params("layer_norm", params, **({"weight": axes, "bias": axes} if affine else {}))
        # written out: the derivative of torch's layer_norm in forward mode has a wrong derivative of its own
        wide, dims = _wide(x), tuple(range(-len(axes), 0))
        centred = wide - wide.mean(dims, keepdim=True)
        y = (centred * torch.rsqrt(centred.square().mean(dims, keepdim=True) + eps)).to(x.dtype)
        return y * params["weight"] + params["bias"] if affine else y

    return Layer(lambda key: _scale_and_shift(key, axes, affine, dtype), apply)


def rms_norm(
    shape: int | tuple[int, ...],
    eps: float | None = None,
    affine: bool = True,
    dtype: torch.dtype = torch.float32,
) -> Layer:
    """x / sqrt(mean(x^2) + eps) * weight, over the last axes.

    x: (..., *shape) -> the same shape (Zhang and Sennrich, 2019). ``eps`` is the smallest step of x's dtype unless
    given, as in torch. Params with ``affine``: ``weight`` of ``shape``, ones at first. Raises ``ShapeError`` when the
    last axes of x are not ``shape``.

    >>> from fnn import random
    >>> layer = rms_norm(2)
    >>> layer.apply(layer.init(random.key(0)), torch.tensor([[3.0, 4.0]]))
    tensor([[0.8485, 1.1314]])
    """
    axes = _axes(shape)

    def init(key: Tensor) -> dict[str, Tensor]:
        return {"weight": torch.ones(axes, dtype=dtype, device=key.device)} if affine else {}

    def apply(params: dict[str, Tensor], x: Tensor, *, key: Tensor | None = None) -> Tensor:
        _check_last_axes("rms_norm", x, axes)
        check_params("rms_norm", params, **({"weight": axes} if affine else {}))
        wide = _wide(x)
        mean_square = (wide * wide).mean(tuple(range(-len(axes), 0)), keepdim=True)
        y = (wide * torch.rsqrt(mean_square + (torch.finfo(x.dtype).eps if eps is None else eps))).to(x.dtype)
        return y * params["weight"] if affine else y

    return Layer(init, apply)


def group_norm(
    groups: int, channels: int, eps: float = 1e-5, affine: bool = True, dtype: torch.dtype = torch.float32
) -> Layer:
    """(x - mean) / sqrt(var + eps) * weight + bias, over each group of channels of each sample.

    x: (batch, channels, ...) -> the same shape (Wu and He, 2018). Params with ``affine``: ``weight`` and ``bias``
    (channels,), ones and zeros at first. Raises ``ValueError`` when groups does not divide channels, ``ShapeError``
    for another number of channels.

    >>> from fnn import random
    >>> layer = group_norm(2, 6)
    >>> layer.apply(layer.init(random.key(0)), torch.ones(4, 6, 8, 8)).shape
    torch.Size([4, 6, 8, 8])
    """
    if groups < 1 or channels % groups:
        raise ValueError(f"group_norm: groups={groups} must divide channels={channels}")
    return _by_groups("group_norm", groups, channels, eps, affine, dtype)


def instance_norm(channels: int, eps: float = 1e-5, affine: bool = False, dtype: torch.dtype = torch.float32) -> Layer:
    """(x - mean) / sqrt(var + eps), over each channel of each sample: :func:`group_norm` with a group per channel.

    x: (batch, channels, ...) -> the same shape (Ulyanov et al., 2016). Params with ``affine``: ``weight`` and
    ``bias`` (channels,). Raises ``ShapeError`` for another number of channels.

    >>> instance_norm(1).apply({}, torch.tensor([[[1.0, 2.0, 3.0]]]))
    tensor([[[-1.2247,  0.0000,  1.2247]]])
    """
    return _by_groups("instance_norm", channels, channels, eps, affine, dtype)


def batch_norm(
    channels: int,
    eps: float = 1e-5,
    momentum: float | None = 0.1,
    affine: bool = True,
    dtype: torch.dtype = torch.float32,
) -> StatefulLayer:
    """(x - mean) / sqrt(var + eps) * weight + bias, over the batch and all positions of each channel.

    x: (batch, channels, ...) -> the same shape (Ioffe and Szegedy, 2015). With ``train=True`` the mean and variance
    are the batch's, and the returned state holds running = (1 - momentum) running + momentum batch (with the
    unbiased variance; ``momentum=None`` is the plain average of all batches). Otherwise the running ones are used
    and the state is returned as it is. Params with ``affine``: ``weight`` and ``bias`` (channels,). State:
    ``running_mean`` and ``running_var`` (channels,), ``num_batches_tracked`` an int64 count. The state is not
    differentiated. Raises ``ShapeError`` for another number of channels and for a training batch with a single
    value per channel, ``ValueError`` in training inside a per-sample gradient.

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

    def init(key: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        kept = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype  # averages need the digits
        state = {
            "running_mean": torch.zeros(channels, dtype=kept, device=key.device),
            "running_var": torch.ones(channels, dtype=kept, device=key.device),
            "num_batches_tracked": torch.zeros((), dtype=torch.int64, device=key.device),
        }
        return _scale_and_shift(key, (channels,), affine, dtype), state

    def apply(
        params: dict[str, Tensor],
        state: dict[str, Tensor],
        x: Tensor,
        *,
        train: bool = False,
        key: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        check_channels_first("batch_norm", x, channels)
        check_params("batch_norm", params, **({"weight": (channels,), "bias": (channels,)} if affine else {}))
        check_params("batch_norm", state, running_mean=(channels,), running_var=(channels,), num_batches_tracked=())
        mean, var = state["running_mean"], state["running_var"]
        if train:
            refuse_samples_apart("batch_norm")
            mean, var = _batch_statistics(x)
            state = state | _moved(state, mean.detach(), var.detach(), x.numel() // channels, momentum)
        along = (1, channels, *[1] * (x.dim() - 2))
        y = (x - mean.view(along)) * torch.rsqrt(var + eps).view(along)
        if affine:
            y = y * params["weight"].view(along) + params["bias"].view(along)
        return y.to(x.dtype), state

    return StatefulLayer(init, apply)


def _batch_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel."""
    if x.numel() <= x.shape[1]:
        raise ShapeError(
            f"batch_norm in training mode needs more than one value per channel, got inputs of {tuple(x.shape)}; "
            "train on larger batches (batches(..., drop_last=True)) or apply with train=False"
        )
    dims = [dim for dim in range(x.dim()) if dim != 1]
    wide = _wide(x)
    mean = wide.mean(dims, keepdim=True)
    return mean.flatten(), (wide - mean).square().mean(dims)


def _moved(
    state: dict[str, Tensor], mean: Tensor, var: Tensor, count: int, momentum: float | None
) -> dict[str, Tensor]:
    """The running statistics after one more batch of ``count`` values per channel."""
    batches = state["num_batches_tracked"] + 1

    def mix(old: Tensor, new: Tensor) -> Tensor:
        share = 1.0 / batches.to(old.dtype) if momentum is None else momentum
        return old + share * (new.to(old.dtype) - old)

    return {
        "running_mean": mix(state["running_mean"], mean),
        "running_var": mix(state["running_var"], var * (count / (count - 1))),
        "num_batches_tracked": batches,
    }


def _by_groups(layer: str, groups: int, channels: int, eps: float, affine: bool, dtype: torch.dtype) -> Layer:
    def apply(params: dict[str, Tensor], x: Tensor, *, key: Tensor | None = None) -> Tensor:
        check_channels_first(layer, x, channels)
        check_params(layer, params, **({"weight": (channels,), "bias": (channels,)} if affine else {}))
        # written out: torch's group_norm fails under compiled jvp
        grouped = _wide(x).unflatten(1, (groups, -1))
        dims = tuple(range(2, grouped.dim()))
        centred = grouped - grouped.mean(dims, keepdim=True)
        y = centred * torch.rsqrt(centred.square().mean(dims, keepdim=True) + eps)
        y = y.flatten(1, 2).to(x.dtype)
        if not affine:
            return y
        along = (channels, *[1] * (x.dim() - 2))
        return y * params["weight"].view(along) + params["bias"].view(along)

    return Layer(lambda key: _scale_and_shift(key, (channels,), affine, dtype), apply)


def _scale_and_shift(key: Tensor, shape: tuple[int, ...], affine: bool, dtype: torch.dtype) -> dict[str, Tensor]:
    if not affine:
        return {}
    make = {"dtype": dtype, "device": key.device}
    return {"weight": torch.ones(shape, **make), "bias": torch.zeros(shape, **make)}


def _wide(x: Tensor) -> Tensor:
    """Sums of squares of 16-bit numbers are taken in 32 bits."""
    return x.to(torch.float32) if x.dtype in (torch.float16, torch.bfloat16) else x


def _axes(shape: int | tuple[int, ...]) -> tuple[int, ...]:
    axes = (shape,) if isinstance(shape, int) else tuple(shape)
    if not axes or math.prod(axes) < 1:
        raise ValueError(f"a normalised shape has at least one axis and no empty one, got {shape}")
    return axes


def _check_last_axes(layer: str, x: Tensor, axes: tuple[int, ...]) -> None:
    if tuple(x.shape[-len(axes) :]) != axes:
        wanted = ", ".join(["...", *map(str, axes)])
        raise ShapeError(f"{layer} expects inputs of shape ({wanted}), got {tuple(x.shape)}")
