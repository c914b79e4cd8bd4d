"""Scaled dot-product attention, and the masks that attention takes."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fnn.layers.activations import softmax
from fnn.layers.base import ArgumentError, ShapeError, check_tensor
from fnn.layers.dropout import dropout


def scaled_dot_product_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    fused: bool = False,
    key: Tensor | None = None,
) -> Tensor:
    """softmax(Q K^T scale + mask) V.

    query: (..., L, d), keys: (..., S, d), values: (..., S, e) -> (..., L, e). These are the arguments of
    ``torch.nn.functional.scaled_dot_product_attention``, with ``keys`` and ``values`` for its key and value, because
    ``key`` is the key of random numbers here. ``scale`` is 1 / sqrt(d) by default. A boolean ``attn_mask``, which
    broadcasts to (..., L, S), is True where a query may attend to a key; a floating one is added to the products. With
    ``is_causal``, query i attends to keys 0 to i only. A query that may attend to no key gives zeros, and its
    derivatives are zero. Weights are dropped with probability ``dropout_p`` if a ``key`` is given. With ``enable_gqa``
    several heads of queries, axis -3, share a head of keys and values.

    The L x S products are held in memory. ``fused=True`` calls torch's kernels, which do not hold them, and gives up
    forward derivatives (``jvp``, ``jacfwd``), second derivatives and dropout: torch raises an error for the first two,
    and fnn for a ``key`` with ``dropout_p > 0``. ``vmap`` then computes one sample after the other on the CPU.

    Raises ``ShapeError`` for shapes that do not fit together, and ``ArgumentError`` for masks of integers and complex
    numbers.

    >>> x = torch.eye(3)
    >>> scaled_dot_product_attention(x, x, x, is_causal=True)[0]
    tensor([1., 0., 0.])
    >>> scaled_dot_product_attention(x, x, x, torch.zeros(3, 3, dtype=torch.bool))[0]
    tensor([0., 0., 0.])
    """
    name = "scaled_dot_product_attention"
    for tensor in (query, keys, values):
        check_tensor(name, tensor)
        if tensor.is_complex():
            raise ArgumentError(f"{name} expects real numbers, got {tensor.dtype}")
    if min(query.dim(), keys.dim(), values.dim()) < 2 or query.shape[-1] != keys.shape[-1]:
        raise ShapeError(
            f"{name} expects a query of shape (..., L, d) and keys of shape (..., S, d), got {tuple(query.shape)} and "
            f"{tuple(keys.shape)}"
        )
    if keys.shape[-2] != values.shape[-2]:
        raise ShapeError(
            f"{name} expects one value for each key, got keys of shape {tuple(keys.shape)} and values of shape "
            f"{tuple(values.shape)}"
        )
    if enable_gqa:
        keys, values = _repeat_heads(name, query, keys), _repeat_heads(name, query, values)
    mask = as_mask(name, "attn_mask", attn_mask)
    if mask is not None:
        check_broadcasts(name, "attn_mask", mask, (*query.shape[:-1], keys.shape[-2]))
    return attend(query, keys, values, mask, dropout_p, is_causal, scale, fused, key)[0]


def attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
    fused: bool,
    key: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """Return the mixed values (..., L, e), and the weights (..., L, S) unless they are ``fused``."""
    if is_causal and (mask is not None or not fused):
        mask = both_masks(causal_mask(query.shape[-2], keys.shape[-2], query.device), mask)
    if fused:
        if key is not None and dropout_p > 0:
            raise ArgumentError(
                "fused attention draws its dropout from torch's global generator; write fused=False, or dropout 0"
            )
        mask = mask.to(query.dtype) if mask is not None and mask.dtype != torch.bool else mask
        causal = is_causal and mask is None
        return F.scaled_dot_product_attention(query, keys, values, mask, is_causal=causal, scale=scale), None
    scores = query @ keys.transpose(-2, -1) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    weights = _masked_softmax(scores, mask).to(values.dtype)
    if key is not None and dropout_p > 0:
        weights = dropout(dropout_p).apply({}, weights, key=key)
    return weights @ values, weights


def _masked_softmax(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax over the keys that the mask leaves; zeros where it leaves none, for which softmax would be nan."""
    if mask is None or scores.shape[-1] == 0:
        return softmax(scores)
    scores = torch.where(mask, scores, -torch.inf) if mask.dtype == torch.bool else scores + mask.to(scores.dtype)
    some = scores.amax(-1, keepdim=True) > -torch.inf
    return torch.where(some, softmax(torch.where(some, scores, 0.0)), 0.0)


def causal_mask(queries: int, keys: int, device: torch.device) -> Tensor:
    return torch.arange(queries, device=device)[:, None] >= torch.arange(keys, device=device)


def both_masks(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    """Return a mask that hides what either hides: boolean (True attends) if both are, and else a sum of biases."""
    if first is None or second is None:
        return second if first is None else first
    if first.dtype == second.dtype == torch.bool:
        return first & second
    return _as_bias(first) + _as_bias(second)


def _as_bias(mask: Tensor) -> Tensor:
    return torch.where(mask, 0.0, -torch.inf) if mask.dtype == torch.bool else mask


def as_mask(layer: str, name: str, mask: Tensor | None) -> Tensor | None:
    if mask is None:
        return None
    check_tensor(layer, mask)
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise ArgumentError(f"{layer} expects {name} to be boolean or floating, got {mask.dtype}; write {name}.bool()")
    return mask


def check_broadcasts(layer: str, name: str, mask: Tensor, shape: tuple[int, ...]) -> None:
    given = tuple(mask.shape)
    padded = (1,) * (len(shape) - len(given)) + given
    if len(given) > len(shape) or any(size not in (1, wanted) for size, wanted in zip(padded, shape, strict=True)):
        raise ShapeError(f"{layer} expects {name} of a shape that broadcasts to {shape}, got {given}")


def _repeat_heads(layer: str, query: Tensor, x: Tensor) -> Tensor:
    if min(query.dim(), x.dim()) < 3 or query.shape[-3] % x.shape[-3]:
        raise ShapeError(
            f"{layer} with enable_gqa expects the heads of the query, axis -3, to be a multiple of those of keys and "
            f"values, got {tuple(query.shape)} and {tuple(x.shape)}"
        )
    return x.repeat_interleave(query.shape[-3] // x.shape[-3], -3)
