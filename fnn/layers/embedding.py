"""Embedding: rows of a learned table, one for each integer or one for each bag of integers."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fnn import init
from fnn._numerics import widen
from fnn.layers.base import (
    ArgumentError,
    Layer,
    ShapeError,
    as_size,
    check_dtype,
    check_mapping,
    check_params,
    check_tensor,
    factory,
)


@factory
def embedding(
    num_embeddings: int,
    embedding_dim: int,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    weight_init: init.Initializer | None = None,
    dtype: torch.dtype = torch.float32,
) -> Layer:
    """y = weight[x]: a learned vector for each of ``num_embeddings`` integers.

    x: integers of any shape, from 0 to num_embeddings - 1 -> (*x.shape, embedding_dim). Params: ``weight``
    (num_embeddings, embedding_dim), initialised to standard normal values as in torch. The row ``padding_idx`` is
    initialised to zero and has gradient zero; negative indices count from the end.

    Rows whose ``norm_type``-norm is larger than ``max_norm`` are scaled to it. torch overwrites these rows in its
    weight and differentiates at the new ones; here the params stay as they are, and the derivative is that of the whole
    function, the scale included. ``{"weight": torch.renorm(weight, norm_type, 0, max_norm)}`` before each step is
    training as in torch. With ``scale_grad_by_freq`` derivatives are divided by how often their integer is in x, as in
    torch (in forward mode, too).

    Raises ``ShapeError`` unless x holds integers. An integer out of range is torch's ``IndexError`` on the CPU.

    >>> from fnn import random
    >>> layer = embedding(1000, 16)
    >>> layer.apply(layer.init(random.key(0)), torch.tensor([[3, 999]])).shape
    torch.Size([1, 2, 16])
    """
    rows, columns, padding_idx = _sizes("embedding", num_embeddings, embedding_dim, padding_idx)
    _check_norm("embedding", max_norm, norm_type)

    def apply(params: dict[str, Tensor], x: Tensor, *, key: Tensor | None = None) -> Tensor:
        check_mapping("embedding", params)
        _check_integers("embedding", x)
        check_params("embedding", params, weight=(rows, columns))
        y = _look_up(params["weight"], x, padding_idx)
        y = y if max_norm is None else _clip_norms(y, max_norm, norm_type)
        return _divided_by_counts(y, x, rows) if scale_grad_by_freq else y

    return Layer(lambda key=None: _init_weight(key, rows, columns, padding_idx, weight_init, dtype), apply)


@factory
def embedding_bag(
    num_embeddings: int,
    embedding_dim: int,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    mode: Literal["sum", "mean", "max"] = "mean",
    include_last_offset: bool = False,
    padding_idx: int | None = None,
    weight_init: init.Initializer | None = None,
    dtype: torch.dtype = torch.float32,
) -> Layer:
    """The sum, mean or maximum of the rows of each bag of integers.

    ``apply(params, x, offsets=None, per_sample_weights=None)``. x: integers (bags, size), or all bags one after the
    other, (total,), with ``offsets`` (bags,): where each begins -> (bags, embedding_dim). With ``include_last_offset``
    the last offset is where the last bag ends, total. ``per_sample_weights``, of the shape of x, multiply the rows of a
    sum. Integers equal to ``padding_idx`` do not count, and an empty bag gives zeros. ``max_norm``, ``norm_type``,
    ``scale_grad_by_freq`` and params are those of :func:`embedding`. Raises ``ValueError`` for another mode, and
    ``ShapeError`` or ``ArgumentError`` for inputs that do not fit; offsets must begin with 0 and not decrease, which is
    not checked, because reading them would stop a graph.

    >>> layer = embedding_bag(3, 2, mode="sum")
    >>> weight = torch.tensor([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]])
    >>> layer.apply({"weight": weight}, torch.tensor([0, 1, 2]), torch.tensor([0, 2]))
    tensor([[3., 3.],
            [3., 3.]])
    """
    rows, columns, padding_idx = _sizes("embedding_bag", num_embeddings, embedding_dim, padding_idx)
    _check_norm("embedding_bag", max_norm, norm_type)
    if mode not in ("sum", "mean", "max"):
        raise ValueError(f"embedding_bag expects mode as 'sum', 'mean' or 'max', got {mode!r}")

    def apply(
        params: dict[str, Tensor],
        x: Tensor,
        offsets: Tensor | None = None,
        per_sample_weights: Tensor | None = None,
        *,
        key: Tensor | None = None,
    ) -> Tensor:
        check_mapping("embedding_bag", params)
        _check_integers("embedding_bag", x)
        check_params("embedding_bag", params, weight=(rows, columns))
        _check_bags(x, offsets, per_sample_weights, mode, params["weight"])
        y = _look_up(params["weight"], x, padding_idx)
        y = y if max_norm is None else _clip_norms(y, max_norm, norm_type)
        y = _divided_by_counts(y, x, rows) if scale_grad_by_freq else y
        y = y if per_sample_weights is None else y * per_sample_weights[..., None]
        counted = torch.ones_like(x, dtype=torch.bool) if padding_idx is None else x != padding_idx
        if offsets is None:
            return _reduce_axis(y, counted, mode)
        bags = offsets.shape[0] - include_last_offset
        return _reduce_segments(y, counted, _bag_numbers(offsets[:bags], x), bags, mode)

    return Layer(lambda key=None: _init_weight(key, rows, columns, padding_idx, weight_init, dtype), apply)


def _sizes(layer: str, num_embeddings: Any, embedding_dim: Any, padding_idx: Any) -> tuple[int, int, int | None]:
    rows = as_size(layer, "num_embeddings", num_embeddings)
    columns = as_size(layer, "embedding_dim", embedding_dim, 0)
    if padding_idx is None:
        return rows, columns, None
    padding_idx = as_size(layer, "padding_idx", padding_idx, -num_embeddings)
    if padding_idx >= rows:
        raise ValueError(f"{layer}: padding_idx={padding_idx} is not one of the {rows} rows")
    return rows, columns, padding_idx % rows


def _check_norm(layer: str, max_norm: float | None, norm_type: float) -> None:
    if max_norm is not None and not (max_norm > 0 and norm_type > 0):
        raise ValueError(f"{layer} expects max_norm > 0 and norm_type > 0, got {max_norm} and {norm_type}")


def _init_weight(
    key: Any, rows: int, columns: int, padding_idx: int | None, weight_init: init.Initializer | None, dtype: torch.dtype
) -> dict[str, Tensor]:
    weight = (weight_init or init.normal())(key, (rows, columns), dtype)
    if padding_idx is not None:
        numbers = torch.arange(rows, device=weight.device)
        weight = torch.where((numbers == padding_idx)[:, None], 0.0, weight)
    return {"weight": weight}


def _check_integers(layer: str, x: Tensor) -> None:
    check_tensor(layer, x)
    if x.dtype not in (torch.int64, torch.int32):
        raise ShapeError(
            f"{layer} expects int64 or int32 numbers, got {x.dtype} of shape {tuple(x.shape)}; write x.long()"
        )


def _check_bags(x: Tensor, offsets: Tensor | None, weights: Tensor | None, mode: str, table: Tensor) -> None:
    if x.dim() != (2 if offsets is None else 1):
        given = "no offsets" if offsets is None else "offsets"
        raise ShapeError(
            "embedding_bag expects numbers of shape (bags, size) without offsets, and (total,) with offsets, got "
            f"{tuple(x.shape)} with {given}"
        )
    if offsets is not None:
        _check_integers("embedding_bag's offsets", offsets)
        if offsets.dim() != 1:
            raise ShapeError(f"embedding_bag expects offsets of shape (bags,), got {tuple(offsets.shape)}")
    if weights is not None:
        check_tensor("embedding_bag's per_sample_weights", weights)
        if mode != "sum":
            raise ArgumentError(
                f"embedding_bag takes per_sample_weights with mode='sum' only, and its mode is {mode!r}"
            )
        if weights.shape != x.shape:
            raise ShapeError(
                f"embedding_bag expects per_sample_weights of shape {tuple(x.shape)}, got {tuple(weights.shape)}"
            )
        check_dtype("embedding_bag", weights, table)


def _look_up(weight: Tensor, x: Tensor, padding_idx: int | None) -> Tensor:
    y = F.embedding(x, weight, padding_idx)
    if padding_idx is None:
        return y
    return torch.where((x == padding_idx)[..., None], y.detach(), y)  # torch's forward mode ignores padding_idx


def _clip_norms(rows: Tensor, max_norm: float, norm_type: float) -> Tensor:
    """Scale rows whose norm is too large; the norms of the others are not differentiated, so that 0 has a slope."""
    wide = widen(rows)
    large = torch.linalg.vector_norm(wide, norm_type, -1, keepdim=True).detach() > max_norm
    norms = torch.linalg.vector_norm(torch.where(large, wide, 1.0), norm_type, -1, keepdim=True)
    return torch.where(large, wide * (max_norm / (norms + 1e-7)), wide).to(rows.dtype)  # 1e-7 as in torch


def _divided_by_counts(y: Tensor, x: Tensor, rows: int) -> Tensor:
    """Return y with derivatives divided by the number of times that the integer of each row is in x."""
    flat = x.flatten()
    counts = y.new_zeros(rows).index_add(0, flat, y.new_ones(flat.shape))
    scaled = y / counts[x][..., None]
    return y.detach() + (scaled - scaled.detach())


def _bag_numbers(offsets: Tensor, x: Tensor) -> Tensor:
    """Return the number of the bag that each of the integers is in."""
    starts = torch.zeros(x.shape[0] + 1, dtype=torch.int64, device=x.device)
    ones = torch.ones(offsets.shape, dtype=torch.int64, device=x.device)
    return starts.index_add(0, offsets, ones).cumsum(0)[:-1] - 1


def _reduce_axis(y: Tensor, counted: Tensor, mode: str) -> Tensor:
    """Reduce y (bags, size, columns) over what is counted in each bag."""
    counted = counted[..., None]
    if mode == "max":
        if y.shape[1] == 0:
            return y.sum(1)
        return torch.where(counted.any(1), torch.where(counted, y, -torch.inf).max(1).values, 0.0)
    total = torch.where(counted, widen(y), 0.0).sum(1)
    return (total / counted.sum(1).clamp(min=1) if mode == "mean" else total).to(y.dtype)


def _reduce_segments(y: Tensor, counted: Tensor, numbers: Tensor, bags: int, mode: str) -> Tensor:
    """Reduce y (total, columns) over what is counted, into bag ``numbers[i]`` for row i."""
    sums = lambda rows: rows.new_zeros(bags, *rows.shape[1:]).index_add(0, numbers, rows)
    if mode == "max":
        # the place of each maximum needs no derivative, and taking the entry there has all of them
        fixed = torch.where(counted[:, None], y.detach(), -torch.inf)
        index = numbers[:, None].expand(y.shape)
        top = fixed.new_full((bags, y.shape[1]), -torch.inf).scatter_reduce(0, index, fixed, "amax")
        places = torch.arange(len(y), device=y.device)[:, None].expand(y.shape)
        found = torch.where((fixed == top[numbers]) & counted[:, None], places, len(y))
        first = places.new_full((bags, y.shape[1]), len(y)).scatter_reduce(0, index, found, "amin")
        return F.pad(y, (0, 0, 0, 1)).gather(0, first)  # an empty bag takes the row of zeros at the end
    total = sums(torch.where(counted[:, None], widen(y), 0.0))
    count = sums(counted.to(total.dtype)).clamp(min=1)
    return (total / count[:, None] if mode == "mean" else total).to(y.dtype)
