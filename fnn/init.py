"""Initialisers. Each function here returns an initialiser, ``init(key, shape, dtype=torch.float32) -> tensor``.

Shapes are torch's weight shapes, (out, in, *kernel): fan_in = in * prod(kernel), fan_out = out * prod(kernel).
Layers take initialisers as ``weight_init`` and ``bias_init``, whose defaults are torch's. 16-bit values are computed in
float32 and rounded once.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from fnn import random
from fnn._configs import factory
from fnn.random.arguments import device_of
from fnn.random.continuous import inside

__all__ = [
    "constant",
    "fans",
    "gain",
    "glorot_normal",
    "glorot_uniform",
    "he_normal",
    "he_uniform",
    "kaiming_normal",
    "kaiming_uniform",
    "lecun_normal",
    "lecun_uniform",
    "normal",
    "ones",
    "orthogonal",
    "torch_default",
    "torch_default_bias",
    "truncated_normal",
    "uniform",
    "variance_scaling",
    "xavier_normal",
    "xavier_uniform",
    "zeros",
]

Initializer = Callable[..., Tensor]
Nonlinearity = Literal["linear", "sigmoid", "tanh", "relu", "leaky_relu", "selu"]


@factory
def constant(value: float) -> Initializer:
    """Every entry equals ``value``.

    >>> constant(0.5)(random.key(0), (2,))
    tensor([0.5000, 0.5000])
    """

    def init(key: Tensor, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.full(tuple(shape), value, dtype=dtype, device=device_of(key))

    return init


@factory
def zeros() -> Initializer:
    """Every entry is 0.

    >>> zeros()(random.key(0), (2,))
    tensor([0., 0.])
    """
    return constant(0.0)


@factory
def ones() -> Initializer:
    """Every entry is 1.

    >>> ones()(random.key(0), (2,))
    tensor([1., 1.])
    """
    return constant(1.0)


@factory
def uniform(low: float = 0.0, high: float = 1.0) -> Initializer:
    """Uniform in [low, high).

    >>> uniform(-1.0, 1.0)(random.key(0), (3, 2)).shape
    torch.Size([3, 2])
    """

    def init(key: Tensor, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        wide = _wide(dtype)
        draws = random.uniform(key, shape, wide, low, high)
        # rounding to 16 bits must not leave the interval
        return draws if wide == dtype or low == high else inside(draws.to(dtype), low, high)

    return init


@factory
def normal(mean: float = 0.0, std: float = 1.0) -> Initializer:
    """Normal with the given mean and standard deviation.

    >>> normal(std=0.02)(random.key(0), (3, 2)).shape
    torch.Size([3, 2])
    """

    def init(key: Tensor, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        return (random.normal(key, shape, _wide(dtype)) * std + mean).to(dtype)

    return init


@factory
def truncated_normal(mean: float = 0.0, std: float = 1.0, a: float = -2.0, b: float = 2.0) -> Initializer:
    """Normal conditioned on a < x < b, with bounds in units of x as in ``torch.nn.init.trunc_normal_``.

    Raises ``ValueError`` for std <= 0 and for a >= b.

    >>> truncated_normal(std=0.02)(random.key(0), (3, 2)).shape
    torch.Size([3, 2])
    """
    if not (std > 0 and a < b):
        raise ValueError(f"truncated_normal expects std > 0 and a < b, got std={std}, a={a}, b={b}")

    def init(key: Tensor, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        draws = random.truncated_normal(key, (a - mean) / std, (b - mean) / std, shape, _wide(dtype))
        return inside((draws * std + mean).to(dtype), a, b)

    return init


@factory
def variance_scaling(
    scale: float = 1.0,
    mode: Literal["fan_in", "fan_out", "fan_avg"] = "fan_in",
    distribution: Literal["uniform", "normal", "truncated_normal"] = "uniform",
) -> Initializer:
    """Zero mean and variance ``scale / fan``, of which the initialisers of Glorot, He and LeCun are special cases.

    The truncated normal is cut at two standard deviations and rescaled to the same variance.
    Raises ``ValueError`` for an unknown mode or distribution and for shapes of fewer than two axes.

    >>> w = variance_scaling(2.0, "fan_in", "normal")(random.key(0), (64, 128))
    >>> round(float(w.var() * 128), 1)
    2.0
    """
    if mode not in ("fan_in", "fan_out", "fan_avg"):
        raise ValueError(f"mode is 'fan_in', 'fan_out' or 'fan_avg', got {mode!r}")
    if distribution not in ("uniform", "normal", "truncated_normal"):
        raise ValueError(f"distribution is 'uniform', 'normal' or 'truncated_normal', got {distribution!r}")

    def init(key: Tensor, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        fan_in, fan_out = fans(shape)
        fan = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}[mode]
        std = math.sqrt(scale / max(1.0, fan))
        if distribution == "uniform":
            return uniform(-math.sqrt(3) * std, math.sqrt(3) * std)(key, shape, dtype)
        if distribution == "normal":
            return normal(0.0, std)(key, shape, dtype)
        truncated_std = 0.87962566103423978  # the standard deviation of a standard normal cut at -2 and 2
        return (random.truncated_normal(key, -2.0, 2.0, shape, _wide(dtype)) * (std / truncated_std)).to(dtype)

    return init


@factory
def xavier_uniform(gain: float = 1.0) -> Initializer:
    """Uniform with variance gain^2 * 2 / (fan_in + fan_out) (Glorot and Bengio, 2010).

    >>> xavier_uniform()(random.key(0), (3, 2)).shape
    torch.Size([3, 2])
    """
    return variance_scaling(gain**2, "fan_avg", "uniform")


@factory
def xavier_normal(gain: float = 1.0) -> Initializer:
    """Normal with variance gain^2 * 2 / (fan_in + fan_out) (Glorot and Bengio, 2010).

    >>> xavier_normal()(random.key(0), (3, 2)).shape
    torch.Size([3, 2])
    """
    return variance_scaling(gain**2, "fan_avg", "normal")


glorot_uniform = xavier_uniform
glorot_normal = xavier_normal


@factory
def kaiming_uniform(
    a: float = 0.0, mode: Literal["fan_in", "fan_out"] = "fan_in", nonlinearity: Nonlinearity = "leaky_relu"
) -> Initializer:
    """Uniform with variance gain^2 / fan (He et al., 2015); ``a`` is the leaky slope.

    >>> kaiming_uniform(nonlinearity="relu")(random.key(0), (3, 2)).shape
    torch.Size([3, 2])
    """
    return variance_scaling(gain(nonlinearity, a) ** 2, mode, "uniform")


@factory
def kaiming_normal(
    a: float = 0.0, mode: Literal["fan_in", "fan_out"] = "fan_in", nonlinearity: Nonlinearity = "leaky_relu"
) -> Initializer:
    """Normal with variance gain^2 / fan (He et al., 2015); ``a`` is the leaky slope.

    >>> kaiming_normal(nonlinearity="relu")(random.key(0), (3, 2)).shape
    torch.Size([3, 2])
    """
    return variance_scaling(gain(nonlinearity, a) ** 2, mode, "normal")


he_uniform = kaiming_uniform
he_normal = kaiming_normal


@factory
def lecun_uniform() -> Initializer:
    """Uniform with variance 1 / fan_in (LeCun et al., 1998).

    >>> lecun_uniform()(random.key(0), (3, 2)).shape
    torch.Size([3, 2])
    """
    return variance_scaling(1.0, "fan_in", "uniform")


@factory
def lecun_normal() -> Initializer:
    """Truncated normal with variance 1 / fan_in (LeCun et al., 1998; Klambauer et al., 2017).

    >>> lecun_normal()(random.key(0), (3, 2)).shape
    torch.Size([3, 2])
    """
    return variance_scaling(1.0, "fan_in", "truncated_normal")


@factory
def orthogonal(gain: float = 1.0) -> Initializer:
    """A (semi-)orthogonal matrix times ``gain`` (Saxe et al., 2014). All axes after the first count as columns.

    >>> w = orthogonal()(random.key(0), (3, 5))
    >>> torch.allclose(w @ w.T, torch.eye(3), atol=1e-6)
    True
    """

    def init(key: Tensor, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        fans(shape)
        rows, columns = shape[0], math.prod(shape[1:])
        gaussian = random.normal(key, (max(rows, columns), min(rows, columns)), _wide(dtype))
        q, r = torch.linalg.qr(gaussian)
        q = q * torch.where(r.diagonal() < 0, -1.0, 1.0)  # makes the distribution uniform (Mezzadri, 2007)
        return (gain * (q if rows >= columns else q.T)).reshape(tuple(shape)).to(dtype)

    return init


@factory
def torch_default() -> Initializer:
    """Uniform in +-1/sqrt(fan_in), the default of ``torch.nn.Linear`` and ``torch.nn.Conv2d`` for weights.

    >>> w = torch_default()(random.key(0), (64, 100))
    >>> bool(w.abs().max() <= 0.1)
    True
    """
    return variance_scaling(1.0 / 3.0, "fan_in", "uniform")


@factory
def torch_default_bias(fan_in: int) -> Initializer:
    """Uniform in +-1/sqrt(fan_in), the default of torch's layers for biases. ``fan_in`` is that of the weight.

    >>> b = torch_default_bias(100)(random.key(0), (64,))
    >>> bool(b.abs().max() <= 0.1)
    True
    """
    bound = 1.0 / math.sqrt(fan_in) if fan_in > 0 else 0.0
    return uniform(-bound, bound)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def gain(nonlinearity: Nonlinearity, slope: float = 0.01) -> float:
    """Return the factor that preserves the scale of activations, as in torch's ``calculate_gain``.

    Raises ``ValueError`` for an unknown name.

    >>> gain("tanh")
    1.6666666666666667
    """
    table = {
        "linear": 1.0,
        "sigmoid": 1.0,
        "tanh": 5.0 / 3.0,
        "relu": math.sqrt(2.0),
        "leaky_relu": math.sqrt(2.0 / (1.0 + slope**2)),
        "selu": 3.0 / 4.0,
    }
    if nonlinearity not in table:
        raise ValueError(f"nonlinearity is one of {sorted(table)}, got {nonlinearity!r}")
    return table[nonlinearity]


def fans(shape: Sequence[int]) -> tuple[int, int]:
    """Return ``(fan_in, fan_out)`` of a weight of shape (out, in, *kernel).

    Raises ``ValueError`` for fewer than two axes.

    >>> fans((6, 1, 3, 3))
    (9, 54)
    """
    if len(shape) < 2:
        raise ValueError(f"fans need a weight of at least two axes (out, in, ...), got shape {tuple(shape)}")
    kernel_size = math.prod(shape[2:])
    return shape[1] * kernel_size, shape[0] * kernel_size
