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
from fnn.layers.attention import attention_cache, multi_head_attention
from fnn.layers.base import ShapeError
from fnn.layers.combinators import residual, sequential
from fnn.layers.conv import conv2d
from fnn.layers.dot_product import scaled_dot_product_attention
from fnn.layers.dropout import dropout
from fnn.layers.embedding import embedding, embedding_bag
from fnn.layers.linear import linear
from fnn.layers.norm import batch_norm, group_norm, instance_norm, layer_norm, rms_norm
from fnn.layers.pool import avg_pool2d, max_pool2d
from fnn.layers.positions import learned_positions, rotary_positions, sinusoidal_positions
from fnn.layers.recurrent import gru, lstm, rnn
from fnn.layers.recurrent_cells import gru_cell, lstm_cell, rnn_cell
from fnn.layers.structure import config, from_config
from fnn.layers.transformer import transformer, transformer_decoder, transformer_encoder
from fnn.layers.transformer_layers import transformer_decoder_layer, transformer_encoder_layer

__all__ = [
    "ShapeError",
    "attention_cache",
    "avg_pool2d",
    "batch_norm",
    "config",
    "conv2d",
    "dropout",
    "elu",
    "embedding",
    "embedding_bag",
    "flatten",
    "from_config",
    "gelu",
    "group_norm",
    "gru",
    "gru_cell",
    "instance_norm",
    "layer_norm",
    "leaky_relu",
    "learned_positions",
    "linear",
    "log_sigmoid",
    "log_softmax",
    "lstm",
    "lstm_cell",
    "max_pool2d",
    "mish",
    "multi_head_attention",
    "relu",
    "relu6",
    "residual",
    "rms_norm",
    "rnn",
    "rnn_cell",
    "rotary_positions",
    "scaled_dot_product_attention",
    "selu",
    "sequential",
    "sigmoid",
    "silu",
    "sinusoidal_positions",
    "softmax",
    "softplus",
    "tanh",
    "transformer",
    "transformer_decoder",
    "transformer_decoder_layer",
    "transformer_encoder",
    "transformer_encoder_layer",
]
