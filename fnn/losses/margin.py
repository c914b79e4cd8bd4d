"""Losses with a margin, which are zero for answers that are right by more than the margin.

The derivatives at the margin are torch's.
"""

import torch
from torch import Tensor

from fnn._numerics import widen
from fnn.layers.activations import log_sigmoid
from fnn.losses.base import (
    Reduction,
    check_class_weight,
    check_equal_shapes,
    check_same_shape,
    check_tensors,
    reduced,
    result_dtype,
    widened,
)


def margin_ranking(
    input1: Tensor, input2: Tensor, target: Tensor, margin: float = 0.0, reduction: Reduction = "mean"
) -> Tensor:
    """Return max(0, -target (input1 - input2) + margin). target: 1 if input1 should be larger, -1 if input2 should.

    Raises ``ValueError`` for arguments of different shapes.

    >>> margin_ranking(torch.tensor([2.0]), torch.tensor([1.0]), torch.tensor([-1.0]))
    tensor(1.)
    """
    check_equal_shapes("margin_ranking", input1=input1, input2=input2, target=target)
    dtype = result_dtype(input1, input2)
    losses = (margin - widen(target) * (widen(input1) - widen(input2))).clamp_min(0.0)
    return reduced(losses, reduction).to(dtype)


def hinge_embedding(prediction: Tensor, target: Tensor, margin: float = 1.0, reduction: Reduction = "mean") -> Tensor:
    """Return the prediction, a distance, where the target is 1, and max(0, margin - prediction) where it is -1.

    Raises ``ValueError`` for different shapes.

    >>> hinge_embedding(torch.tensor([0.5, 0.25]), torch.tensor([1.0, -1.0]), reduction="none")
    tensor([0.5000, 0.7500])
    """
    check_same_shape("hinge_embedding", prediction, target)
    dtype = result_dtype(prediction)
    prediction = widen(prediction)
    # two sums, because torch adds both parts for other targets, such as 0
    apart = torch.where(target != 1, (margin - prediction).clamp_min(0.0), 0.0)
    return reduced(apart + torch.where(target != -1, prediction, 0.0), reduction).to(dtype)


def soft_margin(prediction: Tensor, target: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Return log(1 + e^(-target prediction)) for targets 1 and -1. Raises ``ValueError`` for different shapes.

    >>> soft_margin(torch.tensor([0.0, 200.0]), torch.tensor([1.0, -1.0]), reduction="none")
    tensor([  0.6931, 200.0000])
    """
    check_same_shape("soft_margin", prediction, target)
    dtype = result_dtype(prediction, target)
    return reduced(-log_sigmoid(widen(target) * widen(prediction)), reduction).to(dtype)


def multi_margin(
    logits: Tensor,
    targets: Tensor,
    p: int = 1,
    margin: float = 1.0,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Return the sum over classes i != y of weight[y] max(0, margin - logits[y] + logits[i])^p / classes.

    logits: (batch, classes) or (classes,). targets: integers (batch,) or (). weight: (classes,). Raises ``ValueError``
    for other shapes and unless p is 1 or 2.

    >>> multi_margin(torch.tensor([[0.5, 0.0]]), torch.tensor([0]))
    tensor(0.2500)
    """
    check_tensors("multi_margin", logits, targets)
    if p not in (1, 2):
        raise ValueError(f"multi_margin expects p = 1 or 2, got {p}")
    if logits.dim() not in (1, 2) or targets.shape != logits.shape[:-1] or targets.is_floating_point():
        raise ValueError(
            "multi_margin expects logits (batch, classes) and integer targets (batch,), got "
            f"{tuple(logits.shape)} and {targets.dtype} {tuple(targets.shape)}"
        )
    classes = logits.shape[-1]
    check_class_weight("multi_margin", weight, classes)
    dtype = result_dtype(logits)
    logits, weight = widened(logits, weight)
    index = targets.to(torch.int64).unsqueeze(-1)
    others = torch.arange(classes, device=logits.device) != index
    excess = torch.relu(margin - logits.gather(-1, index) + logits)
    losses = torch.where(others, excess**p, 0.0)
    losses = losses if weight is None else losses * weight[index]
    return reduced(losses.sum(-1) / classes, reduction).to(dtype)


def multilabel_margin(logits: Tensor, targets: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Return the sum over targets y and all other classes i of max(0, 1 - logits[y] + logits[i]) / classes.

    logits: (batch, classes) or (classes,). targets: integers of that shape; the first -1 in a row ends its list of
    classes. It takes memory for classes^2 entries per sample. Raises ``ValueError`` for other shapes.

    >>> multilabel_margin(torch.tensor([[0.0, 1.0, 0.5]]), torch.tensor([[1, -1, 0]]))
    tensor(0.1667)
    """
    check_same_shape("multilabel_margin", logits, targets)
    if logits.dim() not in (1, 2) or targets.is_floating_point():
        raise ValueError(
            "multilabel_margin expects logits (batch, classes) and integer targets of that shape, got "
            f"{tuple(logits.shape)} and {targets.dtype}"
        )
    dtype = result_dtype(logits)
    logits, targets = widen(logits), targets.to(torch.int64)
    classes = logits.shape[-1]
    listed = (targets < 0).cumsum(-1) == 0
    index = torch.where(listed, targets, 0)
    chosen = (index.unsqueeze(-1) == torch.arange(classes, device=logits.device)) & listed.unsqueeze(-1)
    other = ~chosen.any(-2)
    excess = torch.relu(1.0 - logits.gather(-1, index).unsqueeze(-1) + logits.unsqueeze(-2))
    losses = torch.where(listed.unsqueeze(-1) & other.unsqueeze(-2), excess, 0.0)  # (..., target, class)
    return reduced(losses.sum((-2, -1)) / classes, reduction).to(dtype)


def multilabel_soft_margin(
    logits: Tensor, targets: Tensor, weight: Tensor | None = None, reduction: Reduction = "mean"
) -> Tensor:
    """Return the mean over classes of -weight [y log s(z) + (1 - y) log(1 - s(z))], with the logistic function s.

    logits, targets: (..., classes) -> (...) before the reduction. ``weight`` broadcasts against the logits. Raises
    ``ValueError`` for different shapes.

    >>> multilabel_soft_margin(torch.zeros(2, 3), torch.ones(2, 3), reduction="none")
    tensor([0.6931, 0.6931])
    """
    check_same_shape("multilabel_soft_margin", logits, targets)
    dtype = result_dtype(logits, targets)
    logits, targets, weight = widened(logits, targets, weight)
    losses = -targets * log_sigmoid(logits) - (1.0 - targets) * log_sigmoid(-logits)
    losses = losses if weight is None else losses * weight
    return reduced(losses.mean(-1), reduction).to(dtype)
