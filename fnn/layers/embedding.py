"""Embedding."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fnn import init
from fnn.layers.base import Layer, ShapeError


def embedding(
    num_embeddings: int,
    embedding_dim: int,
    weight_init: init.Initializer | None = None,
    dtype: torch.dtype = torch.float32,
) -> Layer:
    """y = weight[x]: a learned vector for each of ``num_embeddings`` numbers.

    x: integers of any shape, from 0 to num_embeddings - 1 -> (*x.shape, embedding_dim). Params: ``weight``
    (num_embeddings, embedding_dim), standard normal at first, as in torch. Raises ``ShapeError`` unless x holds
    integers; a number out of range is an ``IndexError`` of torch on the CPU.

    >>> from fnn import random
    >>> layer = embedding(1000, 16)
    >>> layer.apply(layer.init(random.key(0)), torch.tensor([[3, 999]])).shape
    torch.Size([1, 2, 16])
    """
    weight_init = weight_init or init.normal()

    def init_params(key: Tensor) -> dict[str, Tensor]:
        return {"weight": weight_init(key, (num_embeddings, embedding_dim), dtype)}

    def apply(params: dict[str, Tensor], x: Tensor, *, key: Tensor | None = None) -> Tensor:
        if x.dtype not in (torch.int64, torch.int32):
            raise ShapeError(f"embedding expects int64 or int32 numbers, got {x.dtype} of shape {tuple(x.shape)}")
        return F.embedding(x, params["weight"])

    return Layer(init_params, apply)
