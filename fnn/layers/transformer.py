"""The Transformer: stacks of encoder and decoder layers, and both together."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fnn import init, random, tree
from fnn._configs import parts_of, with_parts
from fnn.layers.attention import Cache
from fnn.layers.base import ArgumentError, Layer, as_size, factory
from fnn.layers.combinators import Parts
from fnn.layers.norm import layer_norm
from fnn.layers.piecewise import relu
from fnn.layers.transformer_layers import Activation, connected, transformer_decoder_layer, transformer_encoder_layer

Caches = dict[str, Cache]


@factory
def transformer_encoder(encoder_layer: Layer, num_layers: int, norm: Layer | None = None) -> Layer:
    """``num_layers`` layers one after the other, each with its own params, and at the end a ``norm`` if one is given.

    ``apply(params, src, mask=None, src_key_padding_mask=None, is_causal=False)`` hands masks to every layer; see
    :func:`transformer_encoder_layer`. ``cache`` is a dict with one cache of :func:`attention_cache` for each layer,
    under its number ``"0"``, ``"1"``, ...; given one, the result is ``(y, cache)``. Params: ``layers`` with ``"0"``,
    ``"1"``, ..., and ``norm``, the names of ``torch.nn.TransformerEncoder``.

    >>> layer = transformer_encoder(transformer_encoder_layer(8, 2, 16), 2, norm=layer_norm(8))
    >>> params = layer.init(random.key(0))
    >>> list(params), list(params["layers"])
    (['layers', 'norm'], ['0', '1'])
    >>> layer.apply(params, torch.ones(4, 5, 8)).shape
    torch.Size([4, 5, 8])
    """
    layers = _layers("transformer_encoder", encoder_layer, num_layers)

    def forward(
        parts: Parts,
        src: Tensor,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
        *,
        cache: Caches | None = None,
    ) -> Any:
        masks = {"src_mask": mask, "src_key_padding_mask": src_key_padding_mask, "is_causal": is_causal}
        return _run_stack(parts, src, (), masks, cache, norm)

    return connected("transformer_encoder", forward, layers=layers, **({} if norm is None else {"norm": norm}))


@factory
def transformer_decoder(decoder_layer: Layer, num_layers: int, norm: Layer | None = None) -> Layer:
    """``num_layers`` layers one after the other, each with its own params, and at the end a ``norm`` if one is given.

    ``apply(params, tgt, memory, tgt_mask=None, memory_mask=None, tgt_key_padding_mask=None,
    memory_key_padding_mask=None, tgt_is_causal=False, memory_is_causal=False)`` hands ``memory`` and masks to every
    layer; see :func:`transformer_decoder_layer`. ``cache`` and params are as in :func:`transformer_encoder`.

    >>> layer = transformer_decoder(transformer_decoder_layer(8, 2, 16), 2)
    >>> params = layer.init(random.key(0))
    >>> layer.apply(params, torch.ones(4, 5, 8), torch.ones(4, 3, 8)).shape
    torch.Size([4, 5, 8])
    """
    layers = _layers("transformer_decoder", decoder_layer, num_layers)

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
        cache: Caches | None = None,
    ) -> Any:
        masks = {
            "tgt_mask": tgt_mask,
            "memory_mask": memory_mask,
            "tgt_key_padding_mask": tgt_key_padding_mask,
            "memory_key_padding_mask": memory_key_padding_mask,
            "tgt_is_causal": tgt_is_causal,
            "memory_is_causal": memory_is_causal,
        }
        return _run_stack(parts, tgt, (memory,), masks, cache, norm)

    return connected("transformer_decoder", forward, layers=layers, **({} if norm is None else {"norm": norm}))


@factory
def transformer(
    d_model: int = 512,
    nhead: int = 8,
    num_encoder_layers: int = 6,
    num_decoder_layers: int = 6,
    dim_feedforward: int = 2048,
    dropout: float = 0.1,
    activation: Activation = relu,
    custom_encoder: Layer | None = None,
    custom_decoder: Layer | None = None,
    layer_norm_eps: float = 1e-5,
    *,
    norm_first: bool = False,
    bias: bool = True,
    fused: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Layer:
    """The encoder and decoder of "Attention is all you need" (Vaswani et al., 2017), without embeddings and head.

    ``apply(params, src, tgt, src_mask=None, tgt_mask=None, memory_mask=None, src_key_padding_mask=None,
    tgt_key_padding_mask=None, memory_key_padding_mask=None, src_is_causal=False, tgt_is_causal=False,
    memory_is_causal=False)``. src: (batch, S, d_model), tgt: (batch, L, d_model) -> (batch, L, d_model); the batch
    comes first, as ``batch_first=True`` in torch. Unlike in torch ``tgt_is_causal=True`` needs no mask beside it. For
    decoding with a cache call the two parts, ``transformer_encoder`` once and ``transformer_decoder`` for each token,
    with ``params["encoder"]`` and ``params["decoder"]``.

    Params: ``encoder`` and ``decoder``, with the names of ``torch.nn.Transformer``. As there, all matrices start as
    Xavier's uniform values.

    >>> layer = transformer(8, 2, 1, 1, 16)
    >>> params = layer.init(random.key(0))
    >>> layer.apply(params, torch.ones(4, 3, 8), torch.ones(4, 5, 8), tgt_is_causal=True).shape
    torch.Size([4, 5, 8])
    """
    sizes = (d_model, nhead, dim_feedforward, dropout, activation, layer_norm_eps)
    options: dict = {"norm_first": norm_first, "bias": bias, "fused": fused, "dtype": dtype}
    norm = layer_norm(d_model, layer_norm_eps, bias=bias, dtype=dtype)

    def forward(
        parts: Parts,
        src: Tensor,
        tgt: Tensor,
        src_mask: Tensor | None = None,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        src_is_causal: bool = False,
        tgt_is_causal: bool = False,
        memory_is_causal: bool = False,
    ) -> Tensor:
        memory = parts.encoder(src, src_mask, src_key_padding_mask, src_is_causal)
        masks = (tgt_mask, memory_mask, tgt_key_padding_mask, memory_key_padding_mask, tgt_is_causal, memory_is_causal)
        return parts.decoder(tgt, memory, *masks)

    encoder = custom_encoder
    if encoder is None:
        encoder = transformer_encoder(transformer_encoder_layer(*sizes, **options), num_encoder_layers, norm)
    decoder = custom_decoder
    if decoder is None:
        decoder = transformer_decoder(transformer_decoder_layer(*sizes, **options), num_decoder_layers, norm)
    whole = connected("transformer", forward, encoder=encoder, decoder=decoder)

    def init_params(key: Any = None) -> dict:
        params = whole.init(key)
        leaves, treedef = tree.flatten(params)
        keys = random.split(random.fold_in(key, 2), len(leaves))
        redrawn = [
            init.xavier_uniform()(k, leaf.shape, leaf.dtype) if leaf.dim() > 1 else leaf
            for k, leaf in zip(keys, leaves, strict=True)
        ]
        return treedef.unflatten(redrawn)

    return with_parts(Layer(init_params, whole.apply), parts_of(whole))


def _layers(name: str, layer: Layer, num_layers: int) -> Layer:
    """``num_layers`` equal layers one after the other, with one cache for each if there are caches."""
    if not isinstance(layer, Layer):
        raise TypeError(f"{name} expects a layer, got {layer!r}; write {name}({name}_layer(...), num_layers)")
    numbers = [str(i) for i in range(as_size(name, "num_layers", num_layers, 0))]

    def forward(parts: Parts, x: Tensor, others: tuple, masks: dict, cache: Caches | None) -> tuple[Tensor, Caches]:
        if cache is not None and (not isinstance(cache, Mapping) or set(cache) != set(numbers)):
            raise ArgumentError(f"{name} expects a dict with one cache for each of the layers {numbers}")
        after: Caches = {}
        for number in numbers:
            if cache is None:
                x = parts[number](x, *others, **masks)
            else:
                x, after[number] = parts[number](x, *others, cache=cache[number], **masks)
        return x, after

    return connected(f"the layers of {name}", forward, **dict.fromkeys(numbers, layer))


def _run_stack(
    parts: Parts, x: Tensor, others: tuple, masks: dict, cache: Caches | None, norm: Layer | None
) -> Tensor | tuple[Tensor, Caches]:
    x, after = parts.layers(x, others, masks, cache)
    x = x if norm is None else parts.norm(x)
    return x if cache is None else (x, after)
