"""Layers: pairs of pure functions ``(init, apply)``, and functions without parameters."""

from fnn.layers.activations import (
    celu,
    elu,
    flatten,
    gelu,
    gumbel_softmax,
    log_sigmoid,
    log_softmax,
    mish,
    selu,
    sigmoid,
    silu,
    softmax,
    softmax2d,
    softmin,
    softplus,
    softsign,
    tanh,
    tanhshrink,
)
from fnn.layers.adaptive_softmax import adaptive_log_softmax
from fnn.layers.attention import multi_head_attention
from fnn.layers.base import ShapeError
from fnn.layers.combinators import residual, sequential
from fnn.layers.conv import conv2d
from fnn.layers.distance import cosine_similarity, pairwise_distance
from fnn.layers.dropout import (
    alpha_dropout,
    dropout,
    dropout1d,
    dropout2d,
    dropout3d,
    feature_alpha_dropout,
)
from fnn.layers.embedding import embedding
from fnn.layers.gated import (
    geglu,
    glu,
    swiglu,
)
from fnn.layers.linear import linear
from fnn.layers.norm import batch_norm, group_norm, instance_norm, layer_norm, rms_norm
from fnn.layers.piecewise import (
    hardshrink,
    hardsigmoid,
    hardswish,
    hardtanh,
    leaky_relu,
    prelu,
    relu,
    relu6,
    rrelu,
    softshrink,
    threshold,
)
from fnn.layers.pool import avg_pool2d, max_pool2d
from fnn.layers.structure import config, from_config

__all__ = [
    "ShapeError",
    "adaptive_log_softmax",
    "alpha_dropout",
    "avg_pool2d",
    "batch_norm",
    "celu",
    "config",
    "conv2d",
    "cosine_similarity",
    "dropout",
    "dropout1d",
    "dropout2d",
    "dropout3d",
    "elu",
    "embedding",
    "feature_alpha_dropout",
    "flatten",
    "from_config",
    "geglu",
    "gelu",
    "glu",
    "group_norm",
    "gumbel_softmax",
    "hardshrink",
    "hardsigmoid",
    "hardswish",
    "hardtanh",
    "instance_norm",
    "layer_norm",
    "leaky_relu",
    "linear",
    "log_sigmoid",
    "log_softmax",
    "max_pool2d",
    "mish",
    "multi_head_attention",
    "pairwise_distance",
    "prelu",
    "relu",
    "relu6",
    "residual",
    "rms_norm",
    "rrelu",
    "selu",
    "sequential",
    "sigmoid",
    "silu",
    "softmax",
    "softmax2d",
    "softmin",
    "softplus",
    "softshrink",
    "softsign",
    "swiglu",
    "tanh",
    "tanhshrink",
    "threshold",
]
