"""Embedding."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fnn import init
from fnn.layers.base import Layer, ShapeError, as_size, check_mapping, check_params, check_tensor, factory


@factory
def embedding(
    num_embeddings: int,
    embedding_dim: int,
    padding_idx: int | None = None,
    weight_init: init.Initializer | None = None,
    dtype: torch.dtype = torch.float32,
) -> Layer:
    """y = weight[x]: a learned vector for each of ``num_embeddings`` integers.

    x: integers of any shape, from 0 to num_embeddings - 1 -> (*x.shape, embedding_dim). Params: ``weight``
    (num_embeddings, embedding_dim), initialised to standard normal values as in torch. The row ``padding_idx`` is
    initialised to zero and has gradient zero; negative indices count from the end. Raises ``ShapeError`` unless x holds
    integers. An integer out of range is torch's ``IndexError`` on the CPU. torch's ``max_norm`` is left out, because it
    changes the weight in place: scale the rows in the loss or after the update.

    >>> from fnn import random
    >>> layer = embedding(1000, 16)
    >>> layer.apply(layer.init(random.key(0)), torch.tensor([[3, 999]])).shape
    torch.Size([1, 2, 16])
    """
    num_embeddings = as_size("embedding", "num_embeddings", num_embeddings)
    embedding_dim = as_size("embedding", "embedding_dim", embedding_dim, 0)
    if padding_idx is not None:
        if not -num_embeddings <= padding_idx < num_embeddings:
            raise ValueError(f"embedding: padding_idx={padding_idx} is not one of the {num_embeddings} rows")
        padding_idx = padding_idx % num_embeddings
    weight_init = weight_init or init.normal()

    def init_params(key: Any = None) -> dict[str, Tensor]:
        weight = weight_init(key, (num_embeddings, embedding_dim), dtype)
        if padding_idx is not None:
            rows = torch.arange(num_embeddings, device=weight.device)
            weight = torch.where((rows == padding_idx)[:, None], 0.0, weight)
        return {"weight": weight}

    def apply(params: dict[str, Tensor], x: Tensor, *, key: Tensor | None = None) -> Tensor:
        check_mapping("embedding", params)
        check_tensor("embedding", x)
        if x.dtype not in (torch.int64, torch.int32):
            raise ShapeError(
                f"embedding expects int64 or int32 numbers, got {x.dtype} of shape {tuple(x.shape)}; write x.long()"
            )
        check_params("embedding", params, weight=(num_embeddings, embedding_dim))
        return F.embedding(x, params["weight"], padding_idx)

    return Layer(init_params, apply)
