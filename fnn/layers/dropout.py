"""Dropout of entries and of whole channels, and alpha dropout, which keeps mean and variance for selu networks."""

import math
import numbers
from collections.abc import Callable

import torch
from torch import Tensor

from fnn import random
from fnn._numerics import widen
from fnn.layers.base import Layer, ShapeError, check_channels, check_params, check_real, check_tensor, factory

_ALPHA = -1.7580993408473766  # the limit of selu at minus infinity


@factory
def dropout(p: float = 0.5) -> Layer:
    """Set each entry to zero with probability ``p``, and divide the others by 1 - p (Srivastava et al., 2014).

    x: any shape -> the same shape. Without a key ``apply`` returns x. Raises ``TypeError`` unless ``p`` is a number,
    and ``ValueError`` unless 0 <= p <= 1.

    >>> dropout(0.5).apply({}, torch.ones(3))
    tensor([1., 1., 1.])
    >>> y = dropout(0.5).apply({}, torch.ones(1000), key=random.key(0))
    >>> y.unique()
    tensor([0., 2.])
    """
    return _layer("dropout", p, _scaled, lambda x: x.shape)


@factory
def dropout1d(p: float = 0.5) -> Layer:
    """Set each channel of a sequence to zero with probability ``p``, and divide the others by 1 - p.

    x: (batch, channels, length) or (channels, length) -> the same shape (Tompson et al., 2015). Arguments and errors
    are those of :func:`dropout`, and ``ShapeError`` for other shapes.

    >>> y = dropout1d().apply({}, torch.ones(4, 8, 3), key=random.key(0))
    >>> bool((y == y[..., :1]).all())
    True
    """
    return _layer("dropout1d", p, _scaled, lambda x: _channels("dropout1d", x, ("length",)))


@factory
def dropout2d(p: float = 0.5) -> Layer:
    """Set each channel of an image to zero with probability ``p``, and divide the others by 1 - p.

    x: (batch, channels, height, width) or (channels, height, width) -> the same shape. torch takes three axes for
    (batch, channels, length), with a warning: that is :func:`dropout1d`. Errors are those of :func:`dropout1d`.

    >>> y = dropout2d().apply({}, torch.ones(4, 8, 3, 3), key=random.key(0))
    >>> bool((y == y[..., :1, :1]).all())
    True
    """
    return _layer("dropout2d", p, _scaled, lambda x: _channels("dropout2d", x, ("height", "width")))


@factory
def dropout3d(p: float = 0.5) -> Layer:
    """Set each channel of a volume to zero with probability ``p``, and divide the others by 1 - p.

    x: (batch, channels, depth, height, width) or (channels, depth, height, width) -> the same shape. Errors are those
    of :func:`dropout1d`.

    >>> y = dropout3d().apply({}, torch.ones(4, 8, 3, 3, 3), key=random.key(0))
    >>> bool((y == y[..., :1, :1, :1]).all())
    True
    """
    return _layer("dropout3d", p, _scaled, lambda x: _channels("dropout3d", x, ("depth", "height", "width")))


@factory
def alpha_dropout(p: float = 0.5) -> Layer:
    """Set each entry to alpha' with probability ``p``, then scale and shift so that mean 0 and variance 1 are kept.

    alpha' = -1.7581 is the limit of selu at minus infinity (Klambauer et al., 2017). x: any shape -> the same shape.
    Arguments and errors are those of :func:`dropout`.

    >>> y = alpha_dropout(0.2).apply({}, random.normal(random.key(0), (10_000,)), key=random.key(1))
    >>> abs(float(y.mean())) < 0.05, abs(float(y.std()) - 1.0) < 0.05
    (True, True)
    """
    return _layer("alpha_dropout", p, _self_normalising, lambda x: x.shape)


@factory
def feature_alpha_dropout(p: float = 0.5) -> Layer:
    """:func:`alpha_dropout` of whole channels. x: (batch, channels, ...) -> the same shape.

    Arguments and errors are those of :func:`dropout`, and ``ShapeError`` for fewer than two axes.

    >>> y = feature_alpha_dropout().apply({}, torch.ones(4, 8, 3), key=random.key(0))
    >>> bool((y == y[..., :1]).all())
    True
    """

    def mask_shape(x: Tensor) -> list[int]:
        if x.dim() < 2:
            shape = tuple(x.shape)
            raise ShapeError(f"feature_alpha_dropout expects inputs of shape (batch, channels, ...), got {shape}")
        return [*x.shape[:2], *[1] * (x.dim() - 2)]

    return _layer("feature_alpha_dropout", p, _self_normalising, mask_shape)


def _layer(name: str, p: float, drop: Callable[[Tensor, Tensor, float], Tensor], mask_shape: Callable) -> Layer:
    if not isinstance(p, numbers.Real):
        raise TypeError(f"{name} expects p, the probability to drop, as a number, got {p!r}; write {name}(0.5)")
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"{name} expects 0 <= p <= 1, got {p}")

    def apply(params: dict, x: Tensor, *, key: Tensor | None = None) -> Tensor:
        check_params(name, params)
        check_tensor(name, x)
        shape = mask_shape(x)  # checks the input without a key, too
        if key is None or p == 0.0:
            return x
        return drop(x, random.bernoulli(key, 1.0 - p, shape), float(p))

    return Layer(lambda key: {}, apply)


def _channels(name: str, x: Tensor, spatial: tuple[str, ...]) -> list[int]:
    check_channels(name, x, None, spatial)
    return [*x.shape[: -len(spatial)], *[1] * len(spatial)]


def _scaled(x: Tensor, keep: Tensor, p: float) -> Tensor:
    if p == 1.0:
        return torch.zeros_like(x)
    return torch.where(keep, x / (1.0 - p), 0.0)


def _self_normalising(x: Tensor, keep: Tensor, p: float) -> Tensor:
    check_real("alpha_dropout", x)
    if p == 1.0:
        return torch.zeros_like(x)
    scale = 1.0 / math.sqrt((1.0 - p) * (1.0 + p * _ALPHA**2))
    return (scale * (torch.where(keep, widen(x), _ALPHA) - p * _ALPHA)).to(x.dtype)
