"""Losses of real predictions: squared, absolute, and those between (Huber, 1964)."""

import torch
from torch import Tensor

from fnn._numerics import widen
from fnn.losses.base import (
    Reduction,
    check_reduction,
    check_same_shape,
    check_weight,
    reduced,
    result_dtype,
    weighted_mean,
)


def mse(prediction: Tensor, target: Tensor, reduction: Reduction = "mean", weight: Tensor | None = None) -> Tensor:
    """Return weight (prediction - target)^2. The mean is divided by the sum of the weights.

    Raises ``ValueError`` for arguments of different shapes, which torch would broadcast.

    >>> mse(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 1.0]))
    tensor(2.)
    """
    check_same_shape("mse", prediction, target)
    difference = widen(prediction) - widen(target)
    return _weighted("mse", difference * difference, weight, reduction).to(result_dtype(prediction, target))


def l1(prediction: Tensor, target: Tensor, reduction: Reduction = "mean", weight: Tensor | None = None) -> Tensor:
    """Return weight |prediction - target|. The mean is divided by the sum of the weights.

    The derivative is 0 where prediction and target are equal.

    >>> l1(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 1.0]))
    tensor(1.)
    """
    check_same_shape("l1", prediction, target)
    size = (widen(prediction) - widen(target)).abs()
    return _weighted("l1", size, weight, reduction).to(result_dtype(prediction, target))


def huber(
    prediction: Tensor,
    target: Tensor,
    reduction: Reduction = "mean",
    delta: float = 1.0,
    weight: Tensor | None = None,
) -> Tensor:
    """Return d^2 / 2 where |d| <= delta and delta (|d| - delta / 2) elsewhere, d = prediction - target (Huber, 1964).

    The losses are multiplied by ``weight``; as in torch, the mean of this loss is divided by the number of entries.

    >>> huber(torch.tensor([0.5, 3.0]), torch.tensor([0.0, 0.0]), reduction="none")
    tensor([0.1250, 2.5000])
    """
    check_same_shape("huber", prediction, target)
    check_weight("huber", weight, prediction)
    if delta <= 0:
        raise ValueError(f"huber expects delta > 0, got {delta}")
    difference = widen(prediction) - widen(target)
    size = difference.abs()
    losses = torch.where(size <= delta, 0.5 * difference * difference, delta * (size - 0.5 * delta))
    losses = losses if weight is None else losses * widen(weight)
    return reduced(losses, reduction).to(result_dtype(prediction, target))


def smooth_l1(prediction: Tensor, target: Tensor, reduction: Reduction = "mean", beta: float = 1.0) -> Tensor:
    """Return d^2 / (2 beta) where |d| < beta and |d| - beta / 2 elsewhere: ``huber / beta``, or ``l1`` for beta = 0.

    >>> smooth_l1(torch.tensor([0.5, 3.0]), torch.tensor([0.0, 0.0]), reduction="none")
    tensor([0.1250, 2.5000])
    """
    check_same_shape("smooth_l1", prediction, target)
    if beta < 0:
        raise ValueError(f"smooth_l1 expects beta >= 0, got {beta}")
    if beta == 0:
        return l1(prediction, target, reduction)
    dtype = result_dtype(prediction, target)
    return (huber(widen(prediction), widen(target), reduction, delta=beta) / beta).to(dtype)


def _weighted(loss: str, losses: Tensor, weight: Tensor | None, reduction: Reduction) -> Tensor:
    check_reduction(reduction)
    check_weight(loss, weight, losses)
    if weight is None:
        return reduced(losses, reduction)
    weight = widen(weight)
    return weighted_mean(losses * weight, weight, reduction)
