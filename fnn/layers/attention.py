"""Attention."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fnn import init, random
from fnn.layers.activations import softmax
from fnn.layers.base import Layer, ShapeError, as_size, check_dtype, check_mapping, check_params, check_tensor, factory


@factory
def multi_head_attention(
    embed_dim: int,
    num_heads: int,
    causal: bool = False,
    bias: bool = True,
    dtype: torch.dtype = torch.float32,
) -> Layer:
    """Self-attention: softmax(Q K^T / sqrt(d)) V in ``num_heads`` heads of size d = embed_dim / num_heads.

    x: (batch, sequence, embed_dim) or (sequence, embed_dim) -> the same shape (Vaswani et al., 2017). With ``causal`` a
    position attends only to itself and to those before it. Params have the names and initial values of
    ``torch.nn.MultiheadAttention``: ``in_proj_weight`` (3 embed_dim, embed_dim) and ``in_proj_bias`` (3 embed_dim,) for
    Q, K and V, and ``out_proj`` with ``weight`` (embed_dim, embed_dim) and ``bias`` (embed_dim,). The scores, batch x
    num_heads x sequence^2 numbers, are held in memory, because torch's fused attention has no forward derivative.
    Raises ``ValueError`` if num_heads does not divide embed_dim, and ``ShapeError`` for other inputs.

    >>> layer = multi_head_attention(8, 2, causal=True)
    >>> params = layer.init(random.key(0))
    >>> layer.apply(params, torch.ones(4, 5, 8)).shape
    torch.Size([4, 5, 8])
    """
    embed_dim = as_size("multi_head_attention", "embed_dim", embed_dim)
    num_heads = as_size("multi_head_attention", "num_heads", num_heads)
    if embed_dim % num_heads:
        raise ValueError(f"multi_head_attention: num_heads={num_heads} must divide embed_dim={embed_dim}")

    shapes: dict = {"in_proj_weight": (3 * embed_dim, embed_dim)} | ({"in_proj_bias": (3 * embed_dim,)} if bias else {})
    out_shapes: dict = {"weight": (embed_dim, embed_dim)} | ({"bias": (embed_dim,)} if bias else {})

    def init_params(key: Any = None) -> dict:
        in_key, out_key = random.split(key)
        params: dict = {"in_proj_weight": init.xavier_uniform()(in_key, (3 * embed_dim, embed_dim), dtype)}
        out_proj = {"weight": init.torch_default()(out_key, (embed_dim, embed_dim), dtype)}
        if bias:
            params["in_proj_bias"] = init.zeros()(key, (3 * embed_dim,), dtype)
            out_proj["bias"] = init.zeros()(key, (embed_dim,), dtype)
        return params | {"out_proj": out_proj}

    def apply(params: dict, x: Tensor, *, key: Tensor | None = None) -> Tensor:
        check_mapping("multi_head_attention", params)
        check_tensor("multi_head_attention", x)
        if x.dim() not in (2, 3) or x.shape[-1] != embed_dim:
            raise ShapeError(
                f"multi_head_attention expects inputs of shape (batch, sequence, {embed_dim}), got {tuple(x.shape)}"
            )
        own = {name: leaf for name, leaf in params.items() if name != "out_proj"}
        check_params("multi_head_attention", own, **shapes)
        check_params("multi_head_attention's out_proj", params.get("out_proj", {}), **out_shapes)
        check_dtype("multi_head_attention", x, params["in_proj_weight"])
        projected = F.linear(x, params["in_proj_weight"], params.get("in_proj_bias"))
        # reshape, because torch before 2.15 cannot trace unflatten under a TorchFunctionMode
        heads = (*x.shape[:-1], num_heads, embed_dim // num_heads)
        q, k, v = (part.reshape(heads).transpose(-3, -2) for part in projected.chunk(3, -1))
        scores = q @ k.transpose(-2, -1) / math.sqrt(embed_dim // num_heads)  # (batch, heads, sequence, sequence)
        if causal:
            place = torch.arange(x.shape[-2], device=x.device)
            scores = torch.where(place[:, None] >= place, scores, -torch.inf)
        mixed = (softmax(scores) @ v).transpose(-3, -2).flatten(-2)  # (batch, sequence, embed_dim)
        return F.linear(mixed, params["out_proj"]["weight"], params["out_proj"].get("bias"))

    return Layer(init_params, apply)
