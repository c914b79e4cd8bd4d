"""Losses of embeddings: what belongs together is pulled together, what does not is pushed apart."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fnn._numerics import safe_sqrt, widen
from fnn.layers.distance import pairwise_distance
from fnn.losses.base import Reduction, check_equal_shapes, check_tensors, reduced, result_dtype, widened
from fnn.losses.classification import cross_entropy


def cosine_embedding(
    input1: Tensor, input2: Tensor, target: Tensor, margin: float = 0.0, reduction: Reduction = "mean"
) -> Tensor:
    """Return 1 - cos(input1, input2) where the target is 1, and max(0, cos(input1, input2) - margin) where it is -1.

    input1, input2: (batch, features) or (features,). target: (batch,) or (). Raises ``ValueError`` for other shapes.

    >>> cosine_embedding(torch.tensor([[3.0, 4.0]]), torch.tensor([[4.0, 3.0]]), torch.tensor([1.0]))
    tensor(0.0400)
    """
    check_equal_shapes("cosine_embedding", input1=input1, input2=input2)
    check_tensors("cosine_embedding", target)
    if input1.dim() not in (1, 2) or target.shape != input1.shape[:-1]:
        raise ValueError(
            "cosine_embedding expects inputs (batch, features) and targets (batch,), got "
            f"{tuple(input1.shape)} and {tuple(target.shape)}"
        )
    dtype = result_dtype(input1, input2)
    input1, input2 = widened(input1, input2)
    length = lambda x: (x * x).sum(-1) + 1e-12  # torch's constant, which makes the cosine of zeros 0
    cosine = (input1 * input2).sum(-1) / torch.sqrt(length(input1) * length(input2))
    losses = torch.where(target == 1, 1.0 - cosine, 0.0)
    losses = losses + torch.where(target == -1, (cosine - margin).clamp_min(0.0), 0.0)
    return reduced(losses, reduction).to(dtype)


def triplet_margin(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    margin: float = 1.0,
    p: float = 2.0,
    eps: float = 1e-6,
    swap: bool = False,
    reduction: Reduction = "mean",
) -> Tensor:
    """Return max(0, d(anchor, positive) - d(anchor, negative) + margin) with d = ``layers.pairwise_distance``.

    anchor, positive, negative: (batch, features) or (features,). With ``swap`` d(positive, negative) takes the place of
    d(anchor, negative) where it is smaller (Balntas et al., 2016). Raises ``ValueError`` for different shapes and
    unless margin > 0.

    >>> triplet_margin(torch.zeros(1, 1), torch.ones(1, 1), torch.full((1, 1), 1.5))
    tensor(0.5000)
    """
    distance = lambda x, y: pairwise_distance(x, y, p, eps)
    return _triplet("triplet_margin", anchor, positive, negative, distance, margin, swap, reduction)


def triplet_margin_with_distance(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    *,
    distance_function: Callable[[Tensor, Tensor], Tensor] | None = None,
    margin: float = 1.0,
    swap: bool = False,
    reduction: Reduction = "mean",
) -> Tensor:
    """:func:`triplet_margin` with another distance, ``distance_function(x, y)``, of two batches.

    >>> far = lambda x, y: (x - y).abs().amax(-1)
    >>> x = torch.zeros(1, 2)
    >>> triplet_margin_with_distance(x, x + 0.5, x + 1.0, distance_function=far)
    tensor(0.5000)
    """
    name = "triplet_margin_with_distance"
    return _triplet(name, anchor, positive, negative, distance_function or pairwise_distance, margin, swap, reduction)


def _triplet(
    name: str,
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    distance: Callable[[Tensor, Tensor], Tensor],
    margin: float,
    swap: bool,
    reduction: Reduction,
) -> Tensor:
    check_equal_shapes(name, anchor=anchor, positive=positive, negative=negative)
    if not margin > 0:
        raise ValueError(f"{name} expects margin > 0, got {margin}")
    dtype = result_dtype(anchor, positive, negative)
    anchor, positive, negative = widened(anchor, positive, negative)
    near, far = distance(anchor, positive), distance(anchor, negative)
    if swap:
        far = torch.minimum(far, distance(positive, negative))
    return reduced((margin + near - far).clamp_min(0.0), reduction).to(dtype)


def info_nce(queries: Tensor, keys: Tensor, temperature: float = 0.1, reduction: Reduction = "mean") -> Tensor:
    """Return the cross-entropy of finding each query's own key among the keys of the batch (van den Oord et al., 2018).

    queries, keys: (batch, features). Row i of the logits is the cosines of query i with all keys, divided by
    ``temperature``, and its target is i. Raises ``ValueError`` for other shapes and unless temperature > 0.

    >>> info_nce(torch.eye(2), torch.eye(2), temperature=1.0)
    tensor(0.3133)
    """
    _check_pairs("info_nce", temperature, queries=queries, keys=keys)
    dtype = result_dtype(queries, keys)
    logits = _unit(queries) @ _unit(keys).T / temperature
    own = torch.arange(len(queries), device=queries.device)
    return cross_entropy(logits, own, reduction=reduction).to(dtype)


def nt_xent(first: Tensor, second: Tensor, temperature: float = 0.5, reduction: Reduction = "mean") -> Tensor:
    """Return the normalised, temperature-scaled cross-entropy of two views of a batch (SimCLR; Chen et al., 2020).

    first, second: (batch, features). Each of the 2 batch views has to find its partner among all others, by cosines
    divided by ``temperature``; with reduction "none" the losses are (2 batch,). Raises ``ValueError`` for other shapes
    and unless temperature > 0.

    >>> nt_xent(torch.eye(2), torch.eye(2), temperature=1.0)
    tensor(0.5514)
    """
    _check_pairs("nt_xent", temperature, first=first, second=second)
    dtype = result_dtype(first, second)
    views = torch.cat([_unit(first), _unit(second)])
    itself = torch.eye(len(views), dtype=torch.bool, device=views.device)
    logits = torch.where(itself, -math.inf, views @ views.T / temperature)
    partner = torch.arange(len(views), device=views.device).roll(len(first))
    return cross_entropy(logits, partner, reduction=reduction).to(dtype)


def _check_pairs(name: str, temperature: float, **tensors: Tensor) -> None:
    check_equal_shapes(name, **tensors)
    shape = tuple(next(iter(tensors.values())).shape)
    if len(shape) != 2:
        raise ValueError(f"{name} expects tensors of shape (batch, features), got {shape}")
    if not temperature > 0:
        raise ValueError(f"{name} expects temperature > 0, got {temperature}")


def _unit(x: Tensor) -> Tensor:
    x = widen(x)
    return x / safe_sqrt((x * x).sum(-1, keepdim=True)).clamp_min(1e-8)
