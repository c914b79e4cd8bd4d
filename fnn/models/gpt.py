"""A decoder-only Transformer, after GPT-2 (Radford et al., 2019)."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fnn import init, random, tree
from fnn.layers import (
    attention_cache,
    connect,
    dropout,
    embedding,
    gelu,
    layer_norm,
    learned_positions,
    linear,
    multi_head_attention,
    remat,
    repeat,
    sequential,
)
from fnn.layers.base import Layer, as_size, factory, with_parts
from fnn.layers.combinators import Parts


@factory
def gpt(
    vocabulary: int,
    max_length: int = 1024,
    embed_dim: int = 768,
    num_heads: int = 12,
    num_layers: int = 12,
    *,
    p: float = 0.0,
    positions: Literal["learned", "rotary"] = "learned",
    tied: bool = True,
    stacked: bool = False,
    recompute: bool = False,
) -> Layer:
    """A Transformer that predicts each next token from those before it, with the structure of GPT-2.

    tokens: integers (batch, sequence), at most ``max_length`` of them with learned positions -> logits (batch,
    sequence, vocabulary). Each block is x = x + attention(norm(x)), x = x + network(norm(x)), and a norm follows the
    last one. ``positions`` are learned vectors, or rotations of queries and keys. With ``tied`` the logits are products
    with the embeddings. A key turns on dropout with probability ``p``. With ``recompute`` the backward pass computes
    the inside of each block again (:func:`fnn.layers.remat`). With ``stacked`` the params of all blocks are stacked and
    a compiled model is a loop over one block (:func:`fnn.layers.repeat`).

    ``apply(params, tokens, cache=cache)`` decodes: it takes the next tokens alone and returns ``(logits, cache)``; see
    :func:`gpt_cache`. Params are named as in GPT-2: ``wte``, ``wpe``, ``h`` with "0", "1", ..., ``ln_f``, and
    ``lm_head`` unless tied; they are normal with standard deviation 0.02, and 0.02 / sqrt(2 num_layers) where a result
    is added to x. Raises ``ValueError`` for other ``positions`` and if num_heads does not divide embed_dim.

    >>> import fnn
    >>> model = gpt(vocabulary=65, max_length=16, embed_dim=8, num_heads=2, num_layers=2)
    >>> params = model.init(fnn.random.key(0))
    >>> model.apply(params, torch.tensor([[1, 5, 60], [2, 0, 7]])).shape
    torch.Size([2, 3, 65])
    >>> fnn.tree.size(gpt(50257).init(fnn.random.key(0, "meta")))  # GPT-2
    124439808
    """
    if positions not in ("learned", "rotary"):
        raise ValueError(f"gpt: positions is 'learned' or 'rotary', got {positions!r}")
    count = as_size("gpt", "num_layers", num_layers)
    block = _block(embed_dim, num_heads, p, positions == "rotary")
    if stacked:
        blocks = repeat(block, count, remat=recompute)
    else:
        each = remat(block) if recompute else block
        blocks = connect(_in_a_row, **{str(i): each for i in range(count)})
    parts: dict[str, Layer] = {"wte": _embedding(vocabulary, embed_dim)}
    if positions == "learned":
        parts["wpe"] = learned_positions(max_length, embed_dim)
    parts |= {"drop": dropout(p), "h": blocks, "ln_f": layer_norm(embed_dim)}
    if not tied:
        parts["lm_head"] = linear(embed_dim, vocabulary, bias=False)

    def forward(parts: Parts, tokens: Any, cache: dict | None = None) -> Any:
        x = parts.wte(tokens)
        if "wpe" in parts:
            places = None
            if cache is not None:
                places = cache["0"]["length"] + torch.arange(tokens.shape[-1], device=tokens.device)
            x = parts.wpe(x, positions=places)
        x = parts.drop(x)
        x, cache = (parts.h(x), None) if cache is None else parts.h(x, cache=cache)
        x = parts.ln_f(x)
        logits = parts.lm_head(x) if "lm_head" in parts else parts.wte(x, logits=True)
        return logits if cache is None else (logits, cache)

    model = connect(forward, **parts)

    def init_params(key: Any = None) -> tree.Tree:
        params = model.init(key)
        leaves = tree.items(params)
        keys = dict(zip(tree.paths(params), random.split(key, len(leaves)), strict=True))

        def draw(path: str, leaf: Tensor) -> Tensor:
            if path.endswith("bias") or ".ln_" in path or path.startswith("ln_"):
                return leaf if path.endswith("weight") else torch.zeros_like(leaf)
            added = path.endswith(("out_proj.weight", "c_proj.weight"))
            return init.normal(std=0.02 / (2 * count) ** 0.5 if added else 0.02)(keys[path], leaf.shape, leaf.dtype)

        return tree.map_with_path(draw, params)

    return with_parts(Layer(init_params, model.apply), parts)


def gpt_cache(
    batch_size: int,
    max_length: int,
    embed_dim: int = 768,
    num_heads: int = 12,
    num_layers: int = 12,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> dict[str, dict[str, Tensor]]:
    """Return an empty cache for decoding with :func:`gpt` of these sizes: one of each block, by its number.

    >>> import fnn
    >>> sizes = {"max_length": 16, "embed_dim": 8, "num_heads": 2, "num_layers": 2}
    >>> model = gpt(65, **sizes)
    >>> params, tokens = model.init(fnn.random.key(0)), torch.tensor([[1, 5, 60]])
    >>> cache, logits = gpt_cache(1, **sizes), []
    >>> for token in tokens.split(1, dim=1):
    ...     y, cache = model.apply(params, token, cache=cache)
    ...     logits.append(y)
    >>> torch.allclose(torch.cat(logits, 1), model.apply(params, tokens), atol=1e-6)
    True
    """
    return {
        str(i): attention_cache(batch_size, max_length, embed_dim, num_heads, dtype, device)
        for i in range(as_size("gpt_cache", "num_layers", num_layers))
    }


def _block(embed_dim: int, num_heads: int, p: float, rotary: bool) -> Layer:
    attention = multi_head_attention(embed_dim, num_heads, p, causal=True, rotary_base=10000.0 if rotary else None)
    return connect(
        _block_forward,
        ln_1=layer_norm(embed_dim), attn=attention, drop=dropout(p), ln_2=layer_norm(embed_dim),
        mlp=sequential(
            c_fc=linear(embed_dim, 4 * embed_dim), act=_gelu, c_proj=linear(4 * embed_dim, embed_dim), drop=dropout(p)
        ),
    )  # fmt: skip


def _gelu(x: Tensor) -> Tensor:
    return gelu(x, "tanh")


def _block_forward(parts: Parts, x: Tensor, cache: dict | None = None) -> Any:
    y = parts.ln_1(x)
    y, cache = (parts.attn(y), None) if cache is None else parts.attn(y, cache=cache)
    x = x + parts.drop(y)
    x = x + parts.mlp(parts.ln_2(x))
    return x if cache is None else (x, cache)


def _in_a_row(parts: Parts, x: Tensor, cache: dict | None = None) -> Any:
    if cache is None:
        for name in parts.names:
            x = parts[name](x)
        return x
    after = {}
    for name in parts.names:
        x, after[name] = parts[name](x, cache=cache[name])
    return x, after


def _embedding(vocabulary: int, embed_dim: int) -> Layer:
    """An embedding that also gives the products of its input with all embeddings."""
    layer = embedding(vocabulary, embed_dim)

    def apply(params: dict[str, Tensor], x: Tensor, *, logits: bool = False, key: Tensor | None = None) -> Tensor:
        return F.linear(x, params["weight"]) if logits else layer.apply(params, x)

    return Layer(layer.init, apply)
