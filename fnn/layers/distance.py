"""Distances and similarities of vectors: functions of two tensors."""

import math

import torch
from torch import Tensor

from fnn._numerics import safe_sqrt, widen
from fnn.layers.base import check_axis, check_real


def cosine_similarity(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """x1 x2 / (max(|x1|, eps) max(|x2|, eps)) along ``dim``. The shapes broadcast.

    16-bit values are summed in float32.

    >>> cosine_similarity(torch.tensor([[3.0, 4.0]]), torch.tensor([[4.0, 3.0]]))
    tensor([0.9600])
    """
    check_real("cosine_similarity", x1)
    check_real("cosine_similarity", x2)
    dtype = torch.promote_types(x1.dtype, x2.dtype)
    x1, x2 = torch.broadcast_tensors(widen(x1), widen(x2))
    check_axis("cosine_similarity", x1, dim)
    length = lambda x: safe_sqrt((x * x).sum(dim, keepdim=True)).clamp_min(eps)
    return ((x1 / length(x1)) * (x2 / length(x2))).sum(dim).to(dtype)


def pairwise_distance(x1: Tensor, x2: Tensor, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False) -> Tensor:
    """The p-norm of x1 - x2 + eps along the last axis. The shapes broadcast.

    ``p`` may be 0, which counts entries that differ, and ``math.inf``. 16-bit values are summed in float32. Raises
    ``ValueError`` for a negative p.

    >>> pairwise_distance(torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0]]))
    tensor([5.0000])
    """
    if not p >= 0:
        raise ValueError(f"pairwise_distance expects p >= 0, got {p}")
    check_real("pairwise_distance", x1)
    check_real("pairwise_distance", x2)
    dtype = torch.promote_types(x1.dtype, x2.dtype)
    difference = widen(x1) - widen(x2) + eps
    return _norm(difference, p, keepdim).to(dtype)


def _norm(x: Tensor, p: float, keepdim: bool) -> Tensor:
    zero = x == 0
    if p == 0:
        return (~zero).to(x.dtype).sum(-1, keepdim=keepdim)
    if p == 1:
        return x.abs().sum(-1, keepdim=keepdim)
    if p == 2:
        return safe_sqrt((x * x).sum(-1, keepdim=keepdim))
    if p == math.inf:
        return x.abs().amax(-1, keepdim=keepdim)
    # powers have infinite or undefined derivatives at 0
    powers = torch.where(zero, 0.0, torch.where(zero, 1.0, x).abs() ** p)
    total = powers.sum(-1, keepdim=keepdim)
    nothing = total == 0
    return torch.where(nothing, 0.0, torch.where(nothing, 1.0, total) ** (1.0 / p))
