"""Normalisation with running statistics, which are state."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from fnn._numerics import widen
from fnn._samples import refuse_samples_apart
from fnn.layers.base import (
    Layer,
    ShapeError,
    StatefulLayer,
    as_size,
    check_channels,
    check_channels_first,
    check_floating,
    check_mapping,
    check_params,
    check_state,
    factory,
)
from fnn.layers.norm import affine_shapes, by_groups, kernel_serves, scale_and_shift
from fnn.random.arguments import device_of


class _Running(threading.local):
    total: Callable[[Tensor], Tensor] | None = None


_running = _Running()


@contextmanager
def statistics_of_all(total: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Within this context :func:`batch_norm` takes its sums over the batches of all processes.

    ``total`` is the sum of a tensor over processes, as a differentiable function.
    """
    before, _running.total = _running.total, total
    try:
        yield
    finally:
        _running.total = before


@factory
def batch_norm(
    num_features: int,
    eps: float = 1e-5,
    momentum: float | None = 0.1,
    affine: bool = True,
    track_running_stats: bool = True,
    bias: bool = True,
    dtype: torch.dtype = torch.float32,
) -> StatefulLayer:
    """(x - mean) / sqrt(var + eps) * weight + bias, with a mean and variance for each channel.

    x: (batch, num_features, ...) -> the same shape (Ioffe and Szegedy, 2015), in one to three dimensions and any other
    number. With ``train=True`` the mean and variance of the batch are used, and the running statistics in the returned
    state become (1 - momentum) running + momentum batch, with the unbiased variance. ``momentum=None`` averages all
    batches. Otherwise the running statistics are used and the state is returned unchanged. Params with ``affine``:
    ``weight`` and, with ``bias``, ``bias`` (num_features,). State: ``running_mean`` and ``running_var``
    (num_features,), and ``num_batches_tracked``, an int64 count; it is not differentiated. Without
    ``track_running_stats`` the state is empty, and the statistics of the batch are used in evaluation too, as in torch.
    Of several processes each takes the statistics of its own part of the batch; see
    :func:`fnn.distributed.sync_batch_norm`.

    Raises ``ShapeError`` for another number of channels and for a training batch with a single value per channel,
    ``TypeError`` for integers and complex numbers, and ``ValueError`` in training inside a per-sample gradient.

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
    channels = as_size("batch_norm", "num_features", num_features)

    def init(key: Any = None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        params = scale_and_shift(key, (channels,), affine, bias, dtype)
        return params, _first_statistics(key, channels, dtype) if track_running_stats else {}

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
        check_floating("batch_norm", x)
        check_params("batch_norm", params, **affine_shapes((channels,), affine, bias))
        check_params("batch_norm", state, **(_shapes(channels) if track_running_stats else {}))
        if not train and track_running_stats:
            return _normalised(x, state["running_mean"], state["running_var"], eps, params), state
        refuse_samples_apart("batch_norm")
        by_kernel = kernel_serves(x, params) and _running.total is None
        mean, var, count = _batch_statistics(x.detach() if by_kernel else x)  # which the kernel does not return exactly
        if track_running_stats:
            batches = state["num_batches_tracked"] + 1
            share = 1.0 / batches.to(state["running_mean"].dtype) if momentum is None else momentum
            state = state | _mixed(state, share, mean, var, count) | {"num_batches_tracked": batches}
        if by_kernel:
            return F.batch_norm(x, None, None, params.get("weight"), params.get("bias"), True, 0.0, eps), state
        return _normalised(x, mean, var, eps, params), state

    return StatefulLayer(init, apply)


@overload
def instance_norm(
    num_features: int,
    eps: float = 1e-5,
    momentum: float = 0.1,
    affine: bool = False,
    track_running_stats: Literal[False] = False,
    bias: bool = True,
    spatial: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> Layer: ...
@overload
def instance_norm(
    num_features: int,
    eps: float = 1e-5,
    momentum: float = 0.1,
    affine: bool = False,
    *,
    track_running_stats: Literal[True],
    bias: bool = True,
    spatial: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> StatefulLayer: ...
@factory
def instance_norm(
    num_features: int,
    eps: float = 1e-5,
    momentum: float = 0.1,
    affine: bool = False,
    track_running_stats: bool = False,
    bias: bool = True,
    spatial: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> Layer | StatefulLayer:
    """(x - mean) / sqrt(var + eps), with the mean and variance of each channel of a sample (Ulyanov et al., 2016).

    This is :func:`group_norm` with one channel per group. x: (batch, num_features, ...) -> the same shape. If
    ``spatial``, the number of axes after the channels, is given, x may also be a single sample (num_features, ...).
    Params with ``affine``: ``weight`` and, with ``bias``, ``bias`` (num_features,).

    With ``track_running_stats`` the result is a ``StatefulLayer``. Its state is that of :func:`batch_norm`, where the
    running statistics are of the averages over the samples of a batch, and num_batches_tracked remains 0 as in torch;
    in evaluation they take the place of the statistics of the sample.

    Raises ``ShapeError`` for another number of channels, and for a single value per channel, whose result would always
    be 0, and ``TypeError`` for integers and complex numbers.

    >>> instance_norm(1).apply({}, torch.tensor([[[1.0, 2.0, 3.0]]]))
    tensor([[[-1.2247,  0.0000,  1.2247]]])
    """
    channels = as_size("instance_norm", "num_features", num_features)
    axes = None if spatial is None else as_size("instance_norm", "spatial", spatial)
    if momentum is None:
        raise ValueError("instance_norm expects momentum as a number, got None; torch would keep the first statistics")
    norm = by_groups("instance_norm", channels, channels, eps, affine, bias, dtype)

    def as_batch(x: Tensor) -> tuple[Tensor, bool]:
        if axes is None:
            check_channels_first("instance_norm", x, channels)
            return x, False
        check_channels("instance_norm", x, channels, tuple(f"axis{i}" for i in range(axes)))
        return (x[None], True) if x.dim() == axes + 1 else (x, False)

    def apply(params: dict[str, Tensor], x: Tensor, *, key: Tensor | None = None) -> Tensor:
        check_mapping("instance_norm", params)
        batch, single = as_batch(x)
        y = norm.apply(params, batch)
        return y[0] if single else y

    def init_with_state(key: Any = None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return norm.init(key), _first_statistics(key, channels, dtype)

    def apply_with_state(
        params: dict[str, Tensor],
        state: dict[str, Tensor],
        x: Any = None,
        *,
        train: bool = False,
        key: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        check_mapping("instance_norm", params)
        check_state("instance_norm", state, x)
        batch, single = as_batch(x)
        check_params("instance_norm", state, **_shapes(channels))
        if train:
            y = norm.apply(params, batch)
            places = widen(batch).flatten(2)
            mean, var = places.mean(2).mean(0), places.var(2, correction=0).mean(0)
            state = state | _mixed(state, momentum, mean, var, places.shape[2])
        else:
            check_floating("instance_norm", x)
            check_params("instance_norm", params, **affine_shapes((channels,), affine, bias))
            y = _normalised(batch, state["running_mean"], state["running_var"], eps, params)
        return y[0] if single else y, state

    return StatefulLayer(init_with_state, apply_with_state) if track_running_stats else Layer(norm.init, apply)


def _shapes(channels: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the state."""
    return {"running_mean": (channels,), "running_var": (channels,), "num_batches_tracked": ()}


def _first_statistics(key: Any, channels: int, dtype: torch.dtype) -> dict[str, Tensor]:
    device = device_of(key)
    wide = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype  # means lose digits in 16 bits
    return {
        "running_mean": torch.zeros(channels, dtype=wide, device=device),
        "running_var": torch.ones(channels, dtype=wide, device=device),
        "num_batches_tracked": torch.zeros((), dtype=torch.int64, device=device),
    }


def _batch_statistics(x: Tensor) -> tuple[Tensor, Tensor, float | Tensor]:
    """Return the mean and the biased variance of each channel, and of how many values they are."""
    dims = [dim for dim in range(x.dim()) if dim != 1]
    wide = widen(x)
    if (total := _running.total) is not None:
        count = torch.full((1,), x.numel() // x.shape[1], dtype=wide.dtype, device=x.device)
        sums = total(torch.cat([wide.sum(dims), count]))
        mean, count = sums[:-1] / sums[-1], sums[-1].detach()
        centred = wide - mean.view(1, -1, *[1] * (x.dim() - 2))
        return mean, total(centred.square().sum(dims)) / count, count
    if x.numel() <= x.shape[1]:
        raise ShapeError(
            f"batch_norm in training mode needs more than one value per channel, got inputs of {tuple(x.shape)}; "
            "train on larger batches (batches(..., drop_last=True)) or apply with train=False"
        )
    mean = wide.mean(dims, keepdim=True)
    return mean.flatten(), (wide - mean).square().mean(dims), x.numel() // x.shape[1]


def _mixed(
    state: dict[str, Tensor], share: float | Tensor, mean: Tensor, var: Tensor, count: float | Tensor
) -> dict[str, Tensor]:
    """Return the running statistics after one more batch, of which each variance is of ``count`` values."""

    def mix(old: Tensor, new: Tensor) -> Tensor:
        # the state is not differentiated
        return old + share * (new.detach().to(old.dtype) - old)

    return {
        "running_mean": mix(state["running_mean"], mean),
        "running_var": mix(state["running_var"], var * (count / (count - 1))),
    }


def _normalised(x: Tensor, mean: Tensor, var: Tensor, eps: float, params: dict[str, Tensor]) -> Tensor:
    along = (1, len(mean), *[1] * (x.dim() - 2))
    scale = torch.rsqrt(var + eps)
    if "weight" in params:
        scale = scale * params["weight"]
    y = (x - mean.view(along)) * scale.view(along)
    return (y + params["bias"].view(along) if "bias" in params else y).to(x.dtype)
