"""The Transformer: stacks of encoder and decoder layers, and both together."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fnn import init, random, tree
from fnn.layers.attention import Cache
from fnn.layers.base import ArgumentError, Layer, as_size, factory
from fnn.layers.norm import layer_norm
from fnn.layers.piecewise import relu
from fnn.layers.transformer_layers import (
    Activation,
    init_parts,
    runners,
    split_key,
    transformer_decoder_layer,
    transformer_encoder_layer,
)


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
    stack = _stack("transformer_encoder", encoder_layer, num_layers, norm)

    def apply(
        params: dict,
        src: Tensor,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
        *,
        cache: dict[str, Cache] | None = None,
        key: Tensor | None = None,
    ) -> Any:
        masks = {"src_mask": mask, "src_key_padding_mask": src_key_padding_mask, "is_causal": is_causal}
        return stack.apply(params, src, (), masks, cache, key)

    return Layer(stack.init, apply)


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
    stack = _stack("transformer_decoder", decoder_layer, num_layers, norm)

    def apply(
        params: dict,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        tgt_is_causal: bool = False,
        memory_is_causal: bool = False,
        *,
        cache: dict[str, Cache] | None = None,
        key: Tensor | None = None,
    ) -> Any:
        masks = {
            "tgt_mask": tgt_mask,
            "memory_mask": memory_mask,
            "tgt_key_padding_mask": tgt_key_padding_mask,
            "memory_key_padding_mask": memory_key_padding_mask,
            "tgt_is_causal": tgt_is_causal,
            "memory_is_causal": memory_is_causal,
        }
        return stack.apply(params, tgt, (memory,), masks, cache, key)

    return Layer(stack.init, apply)


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
    parts = {
        "encoder": custom_encoder
        or transformer_encoder(transformer_encoder_layer(*sizes, **options), num_encoder_layers, norm),
        "decoder": custom_decoder
        or transformer_decoder(transformer_decoder_layer(*sizes, **options), num_decoder_layers, norm),
    }

    def init_params(key: Any = None) -> dict:
        params = init_parts(parts, key)
        leaves, treedef = tree.flatten(params)
        keys = random.split(random.fold_in(key, 2), len(leaves))
        redrawn = [
            init.xavier_uniform()(k, leaf.shape, leaf.dtype) if leaf.dim() > 1 else leaf
            for k, leaf in zip(keys, leaves, strict=True)
        ]
        return treedef.unflatten(redrawn)

    def apply(
        params: dict,
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
        *,
        key: Tensor | None = None,
    ) -> Tensor:
        run = runners("transformer", parts, params)[0]
        keys = split_key(key, 2)
        memory = run("encoder", src, src_mask, src_key_padding_mask, src_is_causal, key=keys[0])
        masks = (tgt_mask, memory_mask, tgt_key_padding_mask, memory_key_padding_mask, tgt_is_causal, memory_is_causal)
        return run("decoder", tgt, memory, *masks, key=keys[1])

    return Layer(init_params, apply)


def _stack(name: str, layer: Layer, num_layers: int, norm: Layer | None) -> Layer:
    """Equal layers one after the other, with ``apply(params, x, others, masks, cache, key)``."""
    if not isinstance(layer, Layer) or not isinstance(norm, Layer | None):
        raise TypeError(f"{name} expects a layer and, or None, a norm; write {name}({name}_layer(...), num_layers)")
    layers = {str(i): layer for i in range(as_size(name, "num_layers", num_layers, 0))}

    def apply_layers(
        params: Any, x: Tensor, others: tuple, masks: dict, cache: Any, *, key: Tensor | None
    ) -> tuple[Tensor, dict[str, Cache]]:
        if cache is not None and (not isinstance(cache, Mapping) or set(cache) != set(layers)):
            raise ArgumentError(f"{name} expects a dict with one cache for each of the layers {list(layers)}")
        run, keys, new_cache = runners(name, layers, params)[0], split_key(key, len(layers)), {}
        for i, number in enumerate(layers):
            if cache is None:
                x = run(number, x, *others, key=keys[i], **masks)
            else:
                x, new_cache[number] = run(number, x, *others, cache=cache[number], key=keys[i], **masks)
        return x, new_cache

    stack = Layer(lambda key=None: init_parts(layers, key), apply_layers)
    parts = {"layers": stack} | ({"norm": norm} if norm else {})

    def apply(params: Any, x: Tensor, others: tuple, masks: dict, cache: Any, key: Tensor | None) -> Any:
        run = runners(name, parts, params)[0]
        x, new_cache = run("layers", x, others, masks, cache, key=key)
        x = run("norm", x) if norm else x
        return x if cache is None else (x, new_cache)

    return Layer(lambda key=None: init_parts(parts, key), apply)
