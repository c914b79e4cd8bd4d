"""Activations made of pieces: rectifiers, clipped functions and shrinkage.

Each is one ``where`` per piece, so that every derivative is that of the piece. At a kink the derivative is torch's.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fnn import random
from fnn._numerics import widen
from fnn.init import constant
from fnn.layers.base import Layer, as_size, check_channels_first, check_dtype, check_params, check_real, factory


def relu(x: Tensor) -> Tensor:
    """max(x, 0), entry by entry. The derivative at 0 is 0.

    >>> relu(torch.tensor([-1.0, 2.0]))
    tensor([0., 2.])
    """
    check_real("relu", x)
    return F.relu(x)


def relu6(x: Tensor) -> Tensor:
    """min(max(x, 0), 6). The derivatives at 0 and 6 are 0.

    >>> relu6(torch.tensor([-1.0, 9.0]))
    tensor([0., 6.])
    """
    check_real("relu6", x)
    return F.relu6(x)


def leaky_relu(x: Tensor, negative_slope: float = 0.01) -> Tensor:
    """x where x > 0, negative_slope * x elsewhere.

    >>> leaky_relu(torch.tensor([-1.0, 2.0]))
    tensor([-0.0100,  2.0000])
    """
    check_real("leaky_relu", x)
    return F.leaky_relu(x, negative_slope)


@factory
def prelu(num_parameters: int = 1, init: float = 0.25, dtype: torch.dtype = torch.float32) -> Layer:
    """x where x > 0, weight * x elsewhere, with one learned slope, or one for each channel (He et al., 2015).

    x: any shape, or (batch, num_parameters, ...) if there are several slopes. Params: ``weight`` (num_parameters,),
    which starts as ``init``. Raises ``ShapeError`` for another number of channels.

    >>> layer = prelu()
    >>> layer.apply(layer.init(random.key(0)), torch.tensor([-1.0, 2.0]))
    tensor([-0.2500,  2.0000])
    """
    num_parameters = as_size("prelu", "num_parameters", num_parameters)

    def init_params(key: Tensor) -> dict[str, Tensor]:
        return {"weight": constant(init)(key, (num_parameters,), dtype)}

    def apply(params: dict[str, Tensor], x: Tensor, *, key: Tensor | None = None) -> Tensor:
        check_params("prelu", params, weight=(num_parameters,))
        check_real("prelu", x)
        check_dtype("prelu", x, params["weight"])
        if num_parameters == 1:
            return _leaky(x, params["weight"].squeeze(0))
        check_channels_first("prelu", x, num_parameters)
        return _leaky(x, params["weight"].reshape(-1, *[1] * (x.dim() - 2)))

    return Layer(init_params, apply)


@factory
def rrelu(lower: float = 1 / 8, upper: float = 1 / 3) -> Layer:
    """x where x > 0, a x elsewhere. Each a is drawn from the uniform distribution between ``lower`` and ``upper``.

    x: any shape -> the same shape. Without a key a is (lower + upper) / 2 (Xu et al., 2015). Raises ``ValueError``
    unless lower <= upper.

    >>> rrelu(0.1, 0.3).apply({}, torch.tensor([-1.0, 2.0]))
    tensor([-0.2000,  2.0000])
    """
    if not lower <= upper:
        raise ValueError(f"rrelu expects lower <= upper, got {lower} and {upper}")

    def apply(params: dict, x: Tensor, *, key: Tensor | None = None) -> Tensor:
        check_params("rrelu", params)
        check_real("rrelu", x)
        if key is None:
            return _leaky(x, (lower + upper) / 2)
        return _leaky(x, random.uniform(key, x.shape, x.dtype, lower, upper))

    return Layer(lambda key: {}, apply)


def _leaky(x: Tensor, slope: Tensor | float) -> Tensor:
    # no product with the positive entries: the derivative of slope * inf is nan even where it is not chosen
    return F.relu(x) + slope * torch.where(x > 0, 0.0, x)


def hardtanh(x: Tensor, min_val: float = -1.0, max_val: float = 1.0) -> Tensor:
    """min(max(x, min_val), max_val). The derivatives at ``min_val`` and ``max_val`` are 0.

    Raises ``ValueError`` unless min_val <= max_val.

    >>> hardtanh(torch.tensor([-3.0, 0.5, 3.0]))
    tensor([-1.0000,  0.5000,  1.0000])
    """
    check_real("hardtanh", x)
    if not min_val <= max_val:
        raise ValueError(f"hardtanh expects min_val <= max_val, got {min_val} and {max_val}")
    return torch.where(x <= min_val, min_val, torch.where(x >= max_val, max_val, x))


def hardsigmoid(x: Tensor) -> Tensor:
    """0 where x <= -3, 1 where x >= 3, x / 6 + 1 / 2 between.

    >>> hardsigmoid(torch.tensor([-4.0, 0.0, 4.0]))
    tensor([0.0000, 0.5000, 1.0000])
    """
    check_real("hardsigmoid", x)
    line = (widen(x) / 6.0 + 0.5).to(x.dtype)
    return torch.where(x <= -3.0, 0.0, torch.where(x >= 3.0, 1.0, line))


def hardswish(x: Tensor) -> Tensor:
    """0 where x <= -3, x where x >= 3, x (x + 3) / 6 between (Howard et al., 2019).

    >>> hardswish(torch.tensor([-4.0, 1.0, 4.0]))
    tensor([0.0000, 0.6667, 4.0000])
    """
    check_real("hardswish", x)
    between = (x > -3.0) & (x < 3.0)
    inner = widen(torch.where(between, x, 0.0))  # the square of an infinite entry would make the derivative nan
    return torch.where(between, (inner * (inner + 3.0) / 6.0).to(x.dtype), torch.where(x <= -3.0, 0.0, x))


def hardshrink(x: Tensor, lambd: float = 0.5) -> Tensor:
    """0 where |x| <= lambd, x elsewhere.

    >>> hardshrink(torch.tensor([-1.0, 0.5, 2.0]))
    tensor([-1.,  0.,  2.])
    """
    check_real("hardshrink", x)
    return torch.where((x >= -lambd) & (x <= lambd), 0.0, x)


def softshrink(x: Tensor, lambd: float = 0.5) -> Tensor:
    """x - lambd where x > lambd, x + lambd where x < -lambd, 0 elsewhere.

    Raises ``ValueError`` unless lambd >= 0.

    >>> softshrink(torch.tensor([-1.0, 0.25, 2.0]))
    tensor([-0.5000,  0.0000,  1.5000])
    """
    check_real("softshrink", x)
    if not lambd >= 0:
        raise ValueError(f"softshrink expects lambd >= 0, got {lambd}")
    moved = torch.where(x > lambd, x - lambd, x + lambd)
    return torch.where((x >= -lambd) & (x <= lambd), 0.0, moved)


def threshold(x: Tensor, threshold: float, value: float) -> Tensor:
    """x where x > threshold, ``value`` elsewhere.

    >>> threshold(torch.tensor([0.0, 2.0]), 1.0, 20.0)
    tensor([20.,  2.])
    """
    check_real("threshold", x)
    return torch.where(x <= threshold, value, x)
