"""Multi-head attention, and its cache for decoding."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fnn import init, random
from fnn.layers.base import (
    ArgumentError,
    Layer,
    ShapeError,
    as_size,
    check_dtype,
    check_mapping,
    check_params,
    check_real,
    check_tensor,
    factory,
)
from fnn.layers.dot_product import as_mask, attend, both_masks, causal_mask, check_broadcasts
from fnn.layers.dropout import dropout as dropout_layer
from fnn.layers.positions import rotary_positions

Cache = dict[str, Tensor]


def attention_cache(
    batch_size: int,
    max_length: int,
    embed_dim: int,
    num_heads: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Cache:
    """Return an empty cache of the keys and values of causal self-attention, for decoding.

    ``key`` and ``value`` are zeros of shape (batch_size, num_heads, max_length, embed_dim / num_heads), and ``length``
    is a 0-d int64 tensor, the number of positions that are filled. The shapes never change, so that a jitted step
    traces once. See :func:`multi_head_attention`. Raises ``ValueError`` if num_heads does not divide embed_dim.

    >>> {name: tuple(leaf.shape) for name, leaf in attention_cache(2, 16, 8, 4).items()}
    {'key': (2, 4, 16, 2), 'value': (2, 4, 16, 2), 'length': ()}
    """
    name = "attention_cache"
    embed_dim, num_heads = _heads(name, embed_dim, num_heads)
    batch_size, max_length = as_size(name, "batch_size", batch_size, 0), as_size(name, "max_length", max_length)
    shape = (batch_size, num_heads, max_length, embed_dim // num_heads)
    return {
        "key": torch.zeros(shape, dtype=dtype, device=device),
        "value": torch.zeros(shape, dtype=dtype, device=device),
        "length": torch.zeros((), dtype=torch.int64, device=device),
    }


def _heads(layer: str, embed_dim: Any, num_heads: Any) -> tuple[int, int]:
    embed_dim, num_heads = as_size(layer, "embed_dim", embed_dim), as_size(layer, "num_heads", num_heads)
    if embed_dim % num_heads:
        raise ValueError(f"{layer}: num_heads={num_heads} must divide embed_dim={embed_dim}")
    return embed_dim, num_heads


@factory
def multi_head_attention(
    embed_dim: int,
    num_heads: int,
    dropout: float = 0.0,
    bias: bool = True,
    add_bias_kv: bool = False,
    add_zero_attn: bool = False,
    kdim: int | None = None,
    vdim: int | None = None,
    *,
    causal: bool = False,
    rotary_base: float | None = None,
    fused: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Layer:
    """softmax(Q K^T / sqrt(d)) V in ``num_heads`` heads of size d = embed_dim / num_heads (Vaswani et al., 2017).

    ``apply(params, query, keys=None, values=None, ...) -> y``. query: (batch, L, embed_dim) or (L, embed_dim) -> y of
    the same shape; the batch comes first, as ``batch_first=True`` in torch. ``keys``: (batch, S, kdim), by default the
    query (self-attention); ``values``: (batch, S, vdim), by default the keys. Further arguments of ``apply``, by name:

    - ``attn_mask``: (L, S), (batch * num_heads, L, S), or four axes that broadcast to (batch, num_heads, L, S).
      ``key_padding_mask``: (batch, S). Boolean masks are True where attention is *forbidden*, as in torch's module (and
      unlike :func:`scaled_dot_product_attention`); floating ones are added to the products. A query that may attend to
      no key gives zeros before the last projection, where torch's module gives nan.
    - ``is_causal``: a position attends to itself and to those before it, as with ``causal=True`` at making.
    - ``need_weights``: return ``(y, weights)``, with weights (batch, L, S), the mean over heads, or (batch, num_heads,
      L, S) with ``average_attn_weights=False``. The default is False, so that a layer gives one tensor.
    - ``cache``: for decoding, see below. The result ends with the new cache.
    - ``key``: turns on dropout of the weights.

    ``rotary_base`` rotates queries and keys by their positions, as :func:`rotary_positions` with this base does
    (usually 10,000). ``add_bias_kv`` adds a learned key and value to the sequence, ``add_zero_attn`` a zero one. The
    products, batch x num_heads x L x S numbers, are held in memory; ``fused=True`` calls torch's kernels, which do not
    hold them, and gives up ``jvp``, second derivatives, returned weights and dropout.

    Params have the names and initial values of ``torch.nn.MultiheadAttention``: ``in_proj_weight`` (3 embed_dim,
    embed_dim), or ``q_proj_weight``, ``k_proj_weight`` and ``v_proj_weight`` where kdim or vdim differs from embed_dim;
    ``in_proj_bias`` (3 embed_dim,); ``bias_k`` and ``bias_v`` (1, 1, embed_dim) with ``add_bias_kv``; ``out_proj`` with
    ``weight`` and ``bias``. Raises ``ValueError`` if num_heads does not divide embed_dim, and ``ShapeError`` or
    ``ArgumentError`` for inputs and masks that do not fit.

    With a cache of :func:`attention_cache`, causal self-attention takes the next positions alone: it stores their keys
    and values, and attends to all that are stored. The results are those of the full pass, position by position. S is
    then the size of the cache, and a position beyond it is torch's ``IndexError``.

    >>> layer = multi_head_attention(8, 2, causal=True)
    >>> params, x = layer.init(random.key(0)), random.normal(random.key(1), (4, 5, 8))
    >>> layer.apply(params, x).shape
    torch.Size([4, 5, 8])
    >>> cache, outputs = attention_cache(4, 5, 8, 2), []
    >>> for token in x.split(1, dim=1):
    ...     y, cache = layer.apply(params, token, cache=cache)
    ...     outputs.append(y)
    >>> torch.allclose(torch.cat(outputs, 1), layer.apply(params, x), atol=1e-6)
    True
    """
    name = "multi_head_attention"
    embed_dim, num_heads = _heads(name, embed_dim, num_heads)
    kdim = embed_dim if kdim is None else as_size(name, "kdim", kdim)
    vdim = embed_dim if vdim is None else as_size(name, "vdim", vdim)
    if isinstance(dropout, bool):
        raise TypeError(f"{name} expects dropout as a number, got {dropout}; write causal={dropout} by name")
    dropout_layer(dropout)  # raises for what is not a rate
    if rotary_base is not None and (embed_dim // num_heads) % 2:
        raise ValueError(f"{name}: rotary positions need heads of an even size, got {embed_dim // num_heads}")
    if kdim == vdim == embed_dim:
        matrices = {"in_proj_weight": (3 * embed_dim, embed_dim)}
    else:
        columns = {"q": embed_dim, "k": kdim, "v": vdim}
        matrices = {f"{letter}_proj_weight": (embed_dim, size) for letter, size in columns.items()}
    biases = {"in_proj_bias": (3 * embed_dim,)} if bias else {}
    extra = {"bias_k": (1, 1, embed_dim), "bias_v": (1, 1, embed_dim)} if add_bias_kv else {}
    out_shapes = {"weight": (embed_dim, embed_dim)} | ({"bias": (embed_dim,)} if bias else {})

    def init_params(key: Any = None) -> dict:
        in_key, out_key = random.split(key)
        in_keys = [in_key] if len(matrices) == 1 else random.split(in_key, 3)
        made = zip(in_keys, matrices.items(), strict=True)
        params: dict = {name: init.xavier_uniform()(k, shape, dtype) for k, (name, shape) in made}
        extra_keys = random.split(random.fold_in(key, 2))
        for k, (leaf, shape) in zip(extra_keys, extra.items(), strict=False):
            params[leaf] = init.xavier_normal()(k, shape, dtype)
        params |= {leaf: init.zeros()(key, shape, dtype) for leaf, shape in biases.items()}
        out_proj = {"weight": init.torch_default()(out_key, (embed_dim, embed_dim), dtype)}
        return params | {"out_proj": out_proj | ({"bias": init.zeros()(key, (embed_dim,), dtype)} if bias else {})}

    def apply(
        params: dict,
        query: Tensor,
        keys: Tensor | None = None,
        values: Tensor | None = None,
        *,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
        cache: Cache | None = None,
        key: Tensor | None = None,
    ) -> Any:
        check_mapping(name, params)
        check_tensor(name, query)
        check_params(name, {k: leaf for k, leaf in params.items() if k != "out_proj"}, **matrices, **biases, **extra)
        check_params(f"{name}'s out_proj", params.get("out_proj", {}), **out_shapes)
        keys = query if keys is None else keys
        values = keys if values is None else values
        _check_inputs(query, keys, values, embed_dim, kdim, vdim)
        check_dtype(name, query, params["out_proj"]["weight"])
        if need_weights and fused:
            raise ArgumentError(f"{name} with fused=True has no weights to return; write fused=False")
        if cache is not None and (values is not query or not (causal or is_causal)):
            raise ArgumentError(f"{name} takes a cache in causal self-attention only; write causal=True, and no keys")

        # reshape, because torch before 2.15 cannot trace unflatten under a TorchFunctionMode
        split = lambda x: x.reshape(*x.shape[:-1], num_heads, embed_dim // num_heads).transpose(-3, -2)
        q, k, v = (split(x) for x in _project(params, query, keys, values))  # (batch, heads, L or S, d)
        if cache is not None:
            _check_cache(cache, k)
        start = 0 if cache is None else cache["length"]
        if rotary_base is not None:
            q = rotary_positions(q, start + torch.arange(q.shape[-2], device=q.device), rotary_base)
            k = rotary_positions(k, start + torch.arange(k.shape[-2], device=k.device), rotary_base)
        if cache is not None:
            cache, visible = _store(cache, k, v)
            k, v = cache["key"], cache["value"]
        else:
            visible = causal_mask(q.shape[-2], k.shape[-2], q.device) if causal or is_causal else None
        mask = _merged_masks(attn_mask, key_padding_mask, (*q.shape[:-1], k.shape[-2]))
        # torch's kernels are faster if they are told that attention is causal than if they are given the mask
        told = fused and visible is not None and mask is None and cache is None and not (extra or add_zero_attn)
        mask = None if told else both_masks(visible, mask)
        k, v, mask = _extended(k, v, mask, params, num_heads, add_zero_attn)
        mixed, weights = attend(q, k, v, mask, dropout, told, None, fused, key)
        mixed = mixed.transpose(-3, -2).flatten(-2)  # (batch, L, embed_dim)
        results: list = [F.linear(mixed, params["out_proj"]["weight"], params["out_proj"].get("bias"))]
        if weights is not None and need_weights:
            results.append(weights.mean(-3) if average_attn_weights else weights)
        if cache is not None:
            results.append(cache)
        return results[0] if len(results) == 1 else tuple(results)

    return Layer(init_params, apply)


def _check_inputs(query: Tensor, keys: Tensor, values: Tensor, embed_dim: int, kdim: int, vdim: int) -> None:
    layer = "multi_head_attention"
    for x, size, name in ((query, embed_dim, "inputs"), (keys, kdim, "keys"), (values, vdim, "values")):
        check_real(layer, x)
        if x.dim() not in (2, 3) or x.shape[-1] != size:
            raise ShapeError(f"{layer} expects {name} of shape (batch, sequence, {size}), got {tuple(x.shape)}")
    if query.shape[:-2] != keys.shape[:-2] or keys.shape[:-1] != values.shape[:-1]:
        raise ShapeError(
            f"{layer} expects one batch size, and one value for each key, got a query of shape {tuple(query.shape)}, "
            f"keys of shape {tuple(keys.shape)} and values of shape {tuple(values.shape)}"
        )


def _project(params: dict, query: Tensor, keys: Tensor, values: Tensor) -> Any:
    """Return Q, K and V: one product in self-attention, which is faster, and three otherwise."""
    weight, bias = params.get("in_proj_weight"), params.get("in_proj_bias")
    if weight is not None and keys is query and values is query:
        return F.linear(query, weight, bias).chunk(3, -1)
    weights = [params[f"{x}_proj_weight"] for x in "qkv"] if weight is None else weight.chunk(3)
    biases = (None, None, None) if bias is None else bias.chunk(3)
    return [F.linear(x, w, b) for x, w, b in zip((query, keys, values), weights, biases, strict=True)]


def _merged_masks(attn_mask: Tensor | None, padding: Tensor | None, shape: tuple[int, ...]) -> Tensor | None:
    """Return one mask that broadcasts to ``shape`` = (batch, heads, L, S), True where attention is allowed."""
    layer = "multi_head_attention"
    attn_mask, padding = as_mask(layer, "attn_mask", attn_mask), as_mask(layer, "key_padding_mask", padding)
    if attn_mask is not None:
        if len(shape) == 4 and attn_mask.dim() == 3:
            if attn_mask.shape[0] != shape[0] * shape[1]:
                raise ShapeError(
                    f"{layer} expects attn_mask of shape {shape[2:]}, {(shape[0] * shape[1], *shape[2:])} (batch * "
                    f"heads first) or one that broadcasts to {shape}, got {tuple(attn_mask.shape)}"
                )
            attn_mask = attn_mask.reshape(*shape[:2], *attn_mask.shape[1:])
        check_broadcasts(layer, "attn_mask", attn_mask, shape)
    if padding is not None:
        wanted = (*shape[:-3], shape[-1])
        if tuple(padding.shape) != wanted:
            raise ShapeError(f"{layer} expects key_padding_mask of shape {wanted}, got {tuple(padding.shape)}")
        padding = padding[..., None, None, :]
    allowed = (None if m is None else ~m if m.dtype == torch.bool else m for m in (attn_mask, padding))
    return both_masks(*allowed)


def _extended(
    k: Tensor, v: Tensor, mask: Tensor | None, params: dict, num_heads: int, add_zero_attn: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Add the learned and the zero key and value, to which every query may attend."""
    size = k.shape[-2]
    if "bias_k" in params:
        row = lambda bias: bias.reshape(num_heads, 1, -1).expand(*k.shape[:-2], 1, k.shape[-1])
        k, v = torch.cat([k, row(params["bias_k"])], -2), torch.cat([v, row(params["bias_v"])], -2)
    if add_zero_attn:
        k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
    if mask is not None and k.shape[-2] > size:
        free = (*mask.shape[:-1], k.shape[-2] - size)
        allowed = mask.new_ones(free) if mask.dtype == torch.bool else mask.new_zeros(free)
        mask = torch.cat([mask.expand(*mask.shape[:-1], size), allowed], -1)
    return k, v, mask


def _check_cache(cache: Cache, k: Tensor) -> None:
    if not isinstance(cache, dict) or set(cache) != {"key", "value", "length"}:
        raise ArgumentError("multi_head_attention expects a cache of attention_cache(...), with key, value and length")
    shape, given = (*k.shape[:-2], cache["key"].shape[-2], k.shape[-1]), tuple(cache["key"].shape)
    if given != shape or cache["key"].dtype != k.dtype:
        raise ShapeError(
            f"multi_head_attention expects a cache of shape {shape} and {k.dtype}, got {given} and "
            f"{cache['key'].dtype}; attention_cache takes batch_size, max_length, embed_dim, num_heads and dtype"
        )


def _store(cache: Cache, k: Tensor, v: Tensor) -> tuple[Cache, Tensor]:
    """Store the next keys and values, and return the new cache and the mask (L, S) of what each query may see."""
    places = cache["length"] + torch.arange(k.shape[-2], device=k.device)
    visible = places[:, None] >= torch.arange(cache["key"].shape[-2], device=k.device)
    new = {
        "key": cache["key"].index_copy(-2, places, k),
        "value": cache["value"].index_copy(-2, places, v),
        "length": cache["length"] + k.shape[-2],
    }
    return new, visible
