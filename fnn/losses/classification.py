"""Losses of classifiers: cross-entropy and its relatives, from logits, log-probabilities or probabilities."""

import torch
from torch import Tensor

from fnn.layers.activations import log_sigmoid, log_softmax
from fnn.losses.base import (
    Reduction,
    along,
    check_class_weight,
    check_reduction,
    check_same_shape,
    check_tensors,
    reduced,
    result_dtype,
    weighted_mean,
    widened,
)


def cross_entropy(
    logits: Tensor,
    targets: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Return -log softmax(logits)[target], the negative log-likelihood of the target class.

    logits: (batch, classes, ...) or (classes,). targets: integer classes of shape (batch, ...), or probabilities in a
    floating tensor of the shape of the logits. weight: (classes,). The mean over integer targets is divided by the sum
    of the weights of the targets that are not ``ignore_index``; the mean over probabilities is divided by the number of
    samples. ``label_smoothing`` mixes the targets with the uniform distribution. Raises ``ValueError`` for shapes that
    do not fit.

    >>> cross_entropy(torch.zeros(2, 10), torch.tensor([3, 7]))
    tensor(2.3026)
    """
    check_reduction(reduction)
    dim = 0 if logits.dim() == 1 else 1
    _check_classes("cross_entropy", logits, targets, weight, dim)
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"cross_entropy expects 0 <= label_smoothing <= 1, got {label_smoothing}")
    dtype = result_dtype(logits, targets)
    logits, targets, weight = widened(logits, targets, weight)
    log_probs = log_softmax(logits, dim)
    if targets.is_floating_point():
        classes = logits.shape[dim]
        mixed = targets * (1.0 - label_smoothing) + label_smoothing / classes
        weighted = log_probs if weight is None else log_probs * along(weight, logits, dim)
        losses = -(mixed * weighted).sum(dim)
        return reduced(losses, reduction).to(dtype)
    losses, weights = _negative_log_likelihood(log_probs, targets, weight, ignore_index, dim)
    if label_smoothing:
        weighted = log_probs if weight is None else log_probs * along(weight, logits, dim)
        uniform = torch.where(targets == ignore_index, 0.0, -weighted.mean(dim))
        losses = (1.0 - label_smoothing) * losses + label_smoothing * uniform
    return weighted_mean(losses, weights, reduction).to(dtype)


def nll(
    log_probs: Tensor,
    targets: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> Tensor:
    """Return -log_probs[target], torch's ``nll_loss``. Shapes and weights are as in :func:`cross_entropy`.

    >>> nll(torch.tensor([[-1.0, -2.0]]), torch.tensor([1]))
    tensor(2.)
    """
    check_reduction(reduction)
    dim = 0 if log_probs.dim() == 1 else 1
    _check_classes("nll", log_probs, targets, weight, dim)
    if targets.is_floating_point():
        raise ValueError(
            "nll expects integer targets; write targets.long() for class labels, and cross_entropy(logits, targets) "
            "for probabilities"
        )
    dtype = result_dtype(log_probs)
    log_probs, weight = widened(log_probs, weight)
    losses, weights = _negative_log_likelihood(log_probs, targets, weight, ignore_index, dim)
    return weighted_mean(losses, weights, reduction).to(dtype)


def bce_with_logits(
    logits: Tensor,
    targets: Tensor,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
    pos_weight: Tensor | None = None,
) -> Tensor:
    """Return -[pos_weight y log s(z) + (1 - y) log(1 - s(z))] for logits z and targets y in [0, 1].

    s is the logistic function. ``weight`` and ``pos_weight`` broadcast against the logits. This is torch's
    ``binary_cross_entropy_with_logits``. Raises ``ValueError`` if the shapes of logits and targets differ.

    >>> bce_with_logits(torch.zeros(3), torch.tensor([0.0, 1.0, 1.0]))
    tensor(0.6931)
    """
    check_same_shape("bce_with_logits", logits, targets)
    dtype = result_dtype(logits, targets)
    logits, targets, weight, pos_weight = widened(logits, targets, weight, pos_weight)
    positive = targets if pos_weight is None else pos_weight * targets
    losses = -positive * log_sigmoid(logits) - (1.0 - targets) * log_sigmoid(-logits)
    return reduced(losses if weight is None else losses * weight, reduction).to(dtype)


def bce(prediction: Tensor, target: Tensor, weight: Tensor | None = None, reduction: Reduction = "mean") -> Tensor:
    """Return -weight [y log p + (1 - y) log(1 - p)] for probabilities p and targets y in [0, 1].

    This is torch's ``binary_cross_entropy``: the logarithms are at least -100, and their derivative is 0 where they are
    clamped. ``weight`` broadcasts against the prediction. A probability outside [0, 1] gives nan, because the numbers
    are not read (torch raises an error). :func:`bce_with_logits` keeps more digits.

    >>> bce(torch.tensor([0.5, 0.0]), torch.tensor([1.0, 1.0]), reduction="none")
    tensor([  0.6931, 100.0000])
    """
    check_same_shape("bce", prediction, target)
    dtype = result_dtype(prediction, target)
    prediction, target, weight = widened(prediction, target, weight)
    zero, one = prediction == 0, prediction == 1
    log_p = torch.where(zero, -100.0, torch.log(torch.where(zero, 0.5, prediction)).clamp_min(-100.0))
    log_not_p = torch.where(one, -100.0, torch.log1p(-torch.where(one, 0.5, prediction)))
    losses = -target * log_p - (1.0 - target) * log_not_p
    return reduced(losses if weight is None else losses * weight, reduction).to(dtype)


def focal(
    logits: Tensor,
    targets: Tensor,
    alpha: float = 0.25,
    gamma: float = 2.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Return -a (1 - p)^gamma log p, where p is the probability of the true answer to a yes-or-no question.

    That is s(z) for y = 1 and 1 - s(z) for y = 0, with the logistic function s; a is ``alpha`` for y = 1 and 1 - alpha
    for y = 0, or 1 if ``alpha`` is negative (Lin et al., 2017; torchvision's ``sigmoid_focal_loss``, whose default
    reduction is "none"). logits and targets in [0, 1]: one shape. Raises ``ValueError`` for different shapes and unless
    gamma >= 0.

    >>> focal(torch.zeros(2), torch.tensor([0.0, 1.0]), reduction="none")
    tensor([0.1300, 0.0433])
    """
    check_same_shape("focal", logits, targets)
    if not gamma >= 0:
        raise ValueError(f"focal expects gamma >= 0, got {gamma}")
    dtype = result_dtype(logits, targets)
    logits, targets = widened(logits, targets)
    losses = -targets * log_sigmoid(logits) - (1.0 - targets) * log_sigmoid(-logits)
    wrong = targets * torch.sigmoid(-logits) + (1.0 - targets) * torch.sigmoid(logits)
    if gamma > 0:
        sure = wrong == 0  # a power between 0 and 2 has an infinite derivative there
        losses = losses * torch.where(sure, 0.0, torch.where(sure, 1.0, wrong) ** gamma)
    if alpha >= 0:
        losses = losses * (alpha * targets + (1.0 - alpha) * (1.0 - targets))
    return reduced(losses, reduction).to(dtype)


def _negative_log_likelihood(
    log_probs: Tensor, targets: Tensor, weight: Tensor | None, ignore_index: int, dim: int
) -> tuple[Tensor, Tensor]:
    """Return the loss and the weight of each target. Both are 0 where the target is ``ignore_index``."""
    counted = targets != ignore_index
    index = torch.where(counted, targets, 0).to(torch.int64)
    picked = log_probs.gather(dim, index.unsqueeze(dim)).squeeze(dim)
    if weight is None:
        return torch.where(counted, -picked, 0.0), counted.to(picked.dtype)
    return torch.where(counted, -picked * weight[index], 0.0), torch.where(counted, weight[index], 0.0)


def _check_classes(loss: str, logits: Tensor, targets: Tensor, weight: Tensor | None, dim: int) -> None:
    check_tensors(loss, logits, targets)
    if logits.dim() == 0:
        raise ValueError(f"{loss} expects an axis of classes: (batch, classes, ...) or (classes,), got a 0-d tensor")
    if targets.is_complex() or targets.dtype == torch.bool:
        raise ValueError(f"{loss} expects integer classes or probabilities, got {targets.dtype}; write targets.long()")
    without_classes = tuple(logits.shape[:dim] + logits.shape[dim + 1 :])
    wanted = tuple(logits.shape) if targets.is_floating_point() else without_classes
    if tuple(targets.shape) != wanted:
        floating_labels = targets.is_floating_point() and tuple(targets.shape) == without_classes
        hint = ""
        if floating_labels:
            hint = f"; these are {targets.dtype}: class labels are integers, write targets.long()"
        if tuple(targets.shape) == (*without_classes, 1):
            hint = "; write targets.squeeze(-1)"
        raise ValueError(
            f"{loss}: logits {tuple(logits.shape)} need targets of shape {wanted}, got {tuple(targets.shape)}{hint}"
        )
    check_class_weight(loss, weight, logits.shape[dim])
