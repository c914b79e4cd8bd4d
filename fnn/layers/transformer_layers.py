"""One layer of a Transformer's encoder, and one of its decoder."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from fnn.layers.activations import gelu
from fnn.layers.attention import Cache, multi_head_attention
from fnn.layers.base import Layer, factory
from fnn.layers.combinators import Parts, combined
from fnn.layers.dropout import dropout as dropout_layer
from fnn.layers.linear import linear
from fnn.layers.norm import layer_norm
from fnn.layers.piecewise import relu

Activation = str | Callable[[Tensor], Tensor]


@factory
def transformer_encoder_layer(
    d_model: int,
    nhead: int,
    dim_feedforward: int = 2048,
    dropout: float = 0.1,
    activation: Activation = relu,
    layer_norm_eps: float = 1e-5,
    *,
    norm_first: bool = False,
    bias: bool = True,
    causal: bool = False,
    rotary_base: float | None = None,
    fused: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Layer:
    """x = norm1(x + attention(x)); y = norm2(x + linear2(activation(linear1(x)))) (Vaswani et al., 2017).

    With ``norm_first`` the norms stand before the parts: x = x + attention(norm1(x)), and y = x + network(norm2(x)).
    ``apply(params, src, src_mask=None, src_key_padding_mask=None, is_causal=False)``, src: (batch, sequence, d_model)
    or (sequence, d_model) -> the same shape; the batch comes first, as ``batch_first=True`` in torch. Masks, ``cache``,
    and the options ``causal``, ``rotary_base`` and ``fused`` are those of :func:`multi_head_attention`; given a cache,
    the result is ``(y, cache)``. ``activation`` is "relu", "gelu" or a function. A ``key`` turns on dropout: of the
    attention weights, of the hidden units, and of what each part adds.

    Params have the names and initial values of ``torch.nn.TransformerEncoderLayer``: ``self_attn``, ``linear1``,
    ``linear2``, ``norm1`` and ``norm2``. Raises what these raise, with their path.

    >>> from fnn import random
    >>> layer = transformer_encoder_layer(8, 2, 16, norm_first=True, causal=True)
    >>> params = layer.init(random.key(0))
    >>> layer.apply(params, torch.ones(4, 5, 8), key=random.key(1)).shape
    torch.Size([4, 5, 8])
    """
    act = _activation("transformer_encoder_layer", activation)
    attention: dict = {"bias": bias, "causal": causal, "rotary_base": rotary_base, "fused": fused, "dtype": dtype}

    def forward(
        parts: Parts,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
        *,
        cache: Cache | None = None,
    ) -> Any:
        before, after = _norms(parts, norm_first)
        masks = {"attn_mask": src_mask, "key_padding_mask": src_key_padding_mask, "is_causal": is_causal}
        y = parts.self_attn(before("norm1", src), cache=cache, **masks)
        y, new_cache = (y, None) if cache is None else y
        x = after("norm1", src + parts.dropout1(y))
        hidden = parts.dropout(act(parts.linear1(before("norm2", x))))
        x = after("norm2", x + parts.dropout2(parts.linear2(hidden)))
        return x if cache is None else (x, new_cache)

    return connected(
        "transformer_encoder_layer",
        forward,
        self_attn=multi_head_attention(d_model, nhead, dropout, **attention),
        linear1=linear(d_model, dim_feedforward, bias, dtype=dtype),
        dropout=dropout_layer(dropout),
        linear2=linear(dim_feedforward, d_model, bias, dtype=dtype),
        norm1=layer_norm(d_model, layer_norm_eps, bias=bias, dtype=dtype),
        norm2=layer_norm(d_model, layer_norm_eps, bias=bias, dtype=dtype),
        dropout1=dropout_layer(dropout),
        dropout2=dropout_layer(dropout),
    )


@factory
def transformer_decoder_layer(
    d_model: int,
    nhead: int,
    dim_feedforward: int = 2048,
    dropout: float = 0.1,
    activation: Activation = relu,
    layer_norm_eps: float = 1e-5,
    *,
    norm_first: bool = False,
    bias: bool = True,
    fused: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Layer:
    """Self-attention, attention to ``memory``, and a network for each position, each added to its input and normed.

    ``apply(params, tgt, memory, tgt_mask=None, memory_mask=None, tgt_key_padding_mask=None,
    memory_key_padding_mask=None, tgt_is_causal=False, memory_is_causal=False)``. tgt: (batch, L, d_model), memory:
    (batch, S, d_model), as the encoder gives it -> the shape of tgt; the batch comes first, as ``batch_first=True`` in
    torch. The arguments are those of :func:`transformer_encoder_layer`, and the masks those of
    :func:`multi_head_attention`. A ``cache`` holds the self-attention of the positions before; it needs
    ``tgt_is_causal=True``, and the result is ``(y, cache)``. The keys and values of
    ``memory`` are computed in each call.

    Params have the names and initial values of ``torch.nn.TransformerDecoderLayer``: ``self_attn``,
    ``multihead_attn``, ``linear1``, ``linear2``, ``norm1``, ``norm2`` and ``norm3``.

    >>> from fnn import random
    >>> layer = transformer_decoder_layer(8, 2, 16)
    >>> params = layer.init(random.key(0))
    >>> layer.apply(params, torch.ones(4, 5, 8), torch.ones(4, 3, 8), tgt_is_causal=True).shape
    torch.Size([4, 5, 8])
    """
    act = _activation("transformer_decoder_layer", activation)

    def forward(
        parts: Parts,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        tgt_is_causal: bool = False,
        memory_is_causal: bool = False,
        *,
        cache: Cache | None = None,
    ) -> Any:
        before, after = _norms(parts, norm_first)
        masks = {"attn_mask": tgt_mask, "key_padding_mask": tgt_key_padding_mask, "is_causal": tgt_is_causal}
        y = parts.self_attn(before("norm1", tgt), cache=cache, **masks)
        y, new_cache = (y, None) if cache is None else y
        x = after("norm1", tgt + parts.dropout1(y))
        masks = {"attn_mask": memory_mask, "key_padding_mask": memory_key_padding_mask, "is_causal": memory_is_causal}
        y = parts.multihead_attn(before("norm2", x), memory, **masks)
        x = after("norm2", x + parts.dropout2(y))
        hidden = parts.dropout(act(parts.linear1(before("norm3", x))))
        x = after("norm3", x + parts.dropout3(parts.linear2(hidden)))
        return x if cache is None else (x, new_cache)

    return connected(
        "transformer_decoder_layer",
        forward,
        self_attn=multi_head_attention(d_model, nhead, dropout, bias, fused=fused, dtype=dtype),
        multihead_attn=multi_head_attention(d_model, nhead, dropout, bias, fused=fused, dtype=dtype),
        linear1=linear(d_model, dim_feedforward, bias, dtype=dtype),
        dropout=dropout_layer(dropout),
        linear2=linear(dim_feedforward, d_model, bias, dtype=dtype),
        norm1=layer_norm(d_model, layer_norm_eps, bias=bias, dtype=dtype),
        norm2=layer_norm(d_model, layer_norm_eps, bias=bias, dtype=dtype),
        norm3=layer_norm(d_model, layer_norm_eps, bias=bias, dtype=dtype),
        dropout1=dropout_layer(dropout),
        dropout2=dropout_layer(dropout),
        dropout3=dropout_layer(dropout),
    )


def connected(name: str, forward: Callable[..., Any], **parts: Layer) -> Layer:
    """A layer of these parts whose ``apply`` is ``forward(parts, *inputs)``; its errors call it ``name``."""
    return cast(Layer, combined(name, {**parts}, forward))


def _norms(parts: Parts, norm_first: bool) -> tuple[Callable[[str, Tensor], Tensor], Callable[[str, Tensor], Tensor]]:
    """Return the functions that apply a norm before a part, and after its sum, of which one does nothing."""
    norm, keep = lambda name, x: parts[name](x), lambda name, x: x
    return (norm, keep) if norm_first else (keep, norm)


def _activation(layer: str, activation: Activation) -> Callable[[Tensor], Tensor]:
    known = {"relu": relu, "gelu": gelu}
    if isinstance(activation, str):
        if activation in known:
            return known[activation]
    elif callable(activation):
        return activation
    raise ValueError(f"{layer} expects activation as 'relu', 'gelu' or a function, got {activation!r}")
