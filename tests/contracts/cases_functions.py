"""Activations, functions of two tensors, and layers that draw, as cases of the contract."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fnn
from fnn import layers
from tests.contracts.case import Case, function, module

KEY = fnn.random.key(11)


def same(name: str, *shape: int, scale: float = 1.0, **options: Any) -> Callable[[], Case]:
    """A function of torch.nn.functional and its namesake, with the same options."""
    ours, theirs = getattr(layers, name), getattr(F, name)
    return lambda: function(
        lambda x: ours(scale * x, **options), lambda x: theirs(scale * x, **options), *(shape or (4, 6))
    )


def gumbel(x: Tensor) -> Tensor:
    tiny = torch.finfo(x.dtype).tiny
    return -torch.log(-torch.log(fnn.random.uniform(KEY.to(x.device), x.shape, x.dtype, tiny, 1.0)))


def kept(shape: tuple[int, ...] | torch.Size, p: float) -> Tensor:
    return fnn.random.uniform(KEY, shape) < 1 - p  # bernoulli's definition


def drop(layer: fnn.Layer, reference: Callable[[Tensor], Tensor], *shape: int) -> Callable[[], Case]:
    return lambda: function(lambda x: layer.apply({}, x, key=KEY), reference, *shape)


def channels(x: Tensor, axes: int) -> tuple[int, ...]:
    return (*x.shape[: x.dim() - axes], *[1] * axes)


def alpha_dropped(x: Tensor, keep: Tensor, p: float) -> Tensor:
    """The formulas of the paper (Klambauer et al., 2017, section 3), with selu's own constants."""
    low = float(F.selu(torch.tensor(-1e9, dtype=torch.float64)))
    q = 1 - p
    a = (q + low**2 * q * (1 - q)) ** -0.5
    b = -a * (1 - q) * low
    return a * torch.where(keep, x, low) + b


def adaptive(bias: bool) -> Case:
    layer, net = (
        layers.adaptive_log_softmax(5, 7, [2, 4], 2.0, bias),
        nn.AdaptiveLogSoftmaxWithLoss(5, 7, [2, 4], 2.0, bias),
    )
    case = module(layer, net, 3, 5)

    def reference(params: Any, x: Tensor) -> Tensor:
        net.forward = net.log_prob  # type: ignore[method-assign]
        return torch.func.functional_call(net, fnn.tree.to_state_dict(params), (x,))

    return case._replace(reference=reference)


ACTIVATIONS: dict[str, Callable[[], Case]] = {
    "relu": lambda: function(layers.relu, F.relu, 4, 6),
    "relu6": lambda: function(lambda x: layers.relu6(4 * x), lambda x: F.relu6(4 * x), 4, 6),
    "leaky_relu": lambda: function(lambda x: layers.leaky_relu(x, 0.2), lambda x: F.leaky_relu(x, 0.2), 4, 6),
    "elu": lambda: function(lambda x: layers.elu(x, 1.5), lambda x: F.elu(x, 1.5), 4, 6),
    "selu": lambda: function(layers.selu, F.selu, 4, 6),
    "gelu": lambda: function(layers.gelu, F.gelu, 4, 6),
    "gelu, tanh": lambda: function(lambda x: layers.gelu(x, "tanh"), lambda x: F.gelu(x, approximate="tanh"), 4, 6),
    "silu": lambda: function(layers.silu, F.silu, 4, 6),
    "mish": lambda: function(layers.mish, F.mish, 4, 6),
    "softplus": lambda: function(layers.softplus, F.softplus, 4, 6),
    "softplus, beyond the threshold": lambda: function(
        lambda x: layers.softplus(30 * x), lambda x: F.softplus(30 * x), 4, 6
    ),
    "softplus, no threshold": lambda: function(lambda x: layers.softplus(x, threshold=math.inf), F.softplus, 4, 6),
    "softplus, beta, threshold": lambda: function(
        lambda x: layers.softplus(x, 2.0, 1.5), lambda x: F.softplus(x, 2.0, 1.5), 4, 6
    ),
    "sigmoid": lambda: function(layers.sigmoid, torch.sigmoid, 4, 6),
    "log_sigmoid": lambda: function(layers.log_sigmoid, F.logsigmoid, 4, 6),
    "tanh": lambda: function(layers.tanh, torch.tanh, 4, 6),
    "softmax": lambda: function(layers.softmax, lambda x: F.softmax(x, -1), 4, 6),
    "log_softmax": lambda: function(layers.log_softmax, lambda x: F.log_softmax(x, -1), 4, 6),
    "flatten": lambda: function(layers.flatten, lambda x: x.flatten(1), 4, 2, 3),
    "celu": same("celu", alpha=1.5),
    "softsign": same("softsign"),
    "tanhshrink": same("tanhshrink"),
    "hardtanh": same("hardtanh", min_val=-0.5, max_val=0.7),
    "hardsigmoid": lambda: function(lambda x: layers.hardsigmoid(4 * x), lambda x: F.relu6(4 * x + 3) / 6, 4, 6),
    "hardswish": same("hardswish", scale=4.0),
    "hardshrink": same("hardshrink", lambd=0.3),
    "softshrink": same("softshrink", lambd=0.3),
    "threshold": same("threshold", threshold=0.1, value=2.0),
    "softmin": lambda: function(lambda x: layers.softmin(x, 0), lambda x: F.softmin(x, 0), 4, 6),
    "softmax2d": lambda: function(layers.softmax2d, nn.Softmax2d(), 2, 3, 2, 2),
    "gumbel_softmax": lambda: function(
        lambda x: layers.gumbel_softmax(x, 0.7, key=KEY.to(x.device)),
        lambda x: F.softmax((x + gumbel(x)) / 0.7, -1),
        4,
        6,
    ),
    "glu": lambda: function(lambda x: layers.glu(x, 1), lambda x: F.glu(x, 1), 4, 6, 2),
    "swiglu": lambda: function(layers.swiglu, lambda x: F.silu(x[:, :3]) * x[:, 3:], 4, 6),
    "geglu": lambda: function(layers.geglu, lambda x: F.gelu(x[:, :3]) * x[:, 3:], 4, 6),
    "cosine_similarity": lambda: function(
        lambda x: layers.cosine_similarity(x, x.flip(1) ** 2), lambda x: F.cosine_similarity(x, x.flip(1) ** 2), 4, 6
    ),
    **{
        f"pairwise_distance, p={p}": lambda p=p: function(
            lambda x: layers.pairwise_distance(x, x.flip(1) ** 2, p),
            lambda x: F.pairwise_distance(x, x.flip(1) ** 2, p),
            4,
            6,
        )
        for p in (1.0, 2.0, 3.5, math.inf)
    },
}

DROPOUTS: dict[str, Callable[[], Case]] = {
    "dropout": drop(layers.dropout(0.4), lambda x: x * kept(x.shape, 0.4) / 0.6, 4, 6),
    "dropout1d": drop(layers.dropout1d(0.4), lambda x: x * kept(channels(x, 1), 0.4) / 0.6, 3, 4, 2),
    "dropout2d": drop(layers.dropout2d(0.4), lambda x: x * kept(channels(x, 2), 0.4) / 0.6, 3, 4, 2, 2),
    "dropout3d": drop(layers.dropout3d(0.4), lambda x: x * kept(channels(x, 3), 0.4) / 0.6, 3, 4, 1, 2, 2),
    "alpha_dropout": drop(layers.alpha_dropout(0.4), lambda x: alpha_dropped(x, kept(x.shape, 0.4), 0.4), 4, 6),
    "feature_alpha_dropout": drop(
        layers.feature_alpha_dropout(0.4), lambda x: alpha_dropped(x, kept(channels(x, 2), 0.4), 0.4), 3, 4, 2, 2
    ),
    "rrelu": drop(
        layers.rrelu(0.1, 0.6),
        lambda x: torch.where(x > 0, x, x * fnn.random.uniform(KEY, x.shape, x.dtype, 0.1, 0.6)), 4, 6,
    ),
}  # fmt: skip

FUNCTIONS_WITH_PARAMS: dict[str, Callable[[], Case]] = {
    "prelu": lambda: module(layers.prelu(), nn.PReLU(), 4, 6),
    **{f"adaptive_log_softmax{', bias' * bias}": lambda bias=bias: adaptive(bias) for bias in (False, True)},
    "prelu, channels": lambda: module(layers.prelu(3, 0.1), nn.PReLU(3, 0.1), 4, 3, 2),
}
