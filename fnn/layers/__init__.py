"""Layers: pairs of pure functions ``(init, apply)``, and functions without parameters."""

from fnn.layers.activations import (
    elu,
    flatten,
    gelu,
    leaky_relu,
    log_sigmoid,
    log_softmax,
    mish,
    relu,
    relu6,
    selu,
    sigmoid,
    silu,
    softmax,
    softplus,
    tanh,
)
from fnn.layers.attention import multi_head_attention
from fnn.layers.base import ShapeError
from fnn.layers.capture import capture
from fnn.layers.combinators import branch, connect, map_over_time, parallel, residual, sequential
from fnn.layers.conv import conv2d
from fnn.layers.dropout import dropout
from fnn.layers.embedding import embedding
from fnn.layers.linear import linear
from fnn.layers.norm import batch_norm, group_norm, instance_norm, layer_norm, rms_norm
from fnn.layers.pool import avg_pool2d, max_pool2d
from fnn.layers.remat import remat
from fnn.layers.structure import config, from_config
from fnn.layers.wrappers import frozen, mixed_precision, repeat

__all__ = [
    "ShapeError",
    "avg_pool2d",
    "batch_norm",
    "branch",
    "capture",
    "config",
    "connect",
    "conv2d",
    "dropout",
    "elu",
    "embedding",
    "flatten",
    "from_config",
    "frozen",
    "gelu",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "leaky_relu",
    "linear",
    "log_sigmoid",
    "log_softmax",
    "map_over_time",
    "max_pool2d",
    "mish",
    "mixed_precision",
    "multi_head_attention",
    "parallel",
    "relu",
    "relu6",
    "remat",
    "repeat",
    "residual",
    "rms_norm",
    "selu",
    "sequential",
    "sigmoid",
    "silu",
    "softmax",
    "softplus",
    "tanh",
]
