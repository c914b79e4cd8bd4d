"""Losses with torch's names, arguments and defaults, which work under every transform.

torch's own ``mse_loss``, ``huber_loss`` and ``cross_entropy`` fail under forward-over-reverse derivatives or under
compiled ``vmap(hessian)``. These functions compute the same numbers from primitives. ``reduction`` is "mean", "sum" or
"none". 16-bit values are computed and summed in float32. The result has the dtype of the arguments, or float32 under
autocast, as in torch.
"""

import functools
from typing import Literal

import torch
from torch import Tensor

from fnn._numerics import under_autocast, widen
from fnn.layers.activations import log_softmax, softplus

__all__ = [
    "bce_with_logits",
    "cross_entropy",
    "huber",
    "l1",
    "mse",
    "nll",
    "smooth_l1",
]

Reduction = Literal["mean", "sum", "none"]


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
    _check_reduction(reduction)
    dim = 0 if logits.dim() == 1 else 1
    _check_classes("cross_entropy", logits, targets, weight, dim)
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"cross_entropy expects 0 <= label_smoothing <= 1, got {label_smoothing}")
    dtype = _result_dtype(logits, targets)
    logits, targets, weight = _widened(logits, targets, weight)
    log_probs = log_softmax(logits, dim)
    if targets.is_floating_point():
        classes = logits.shape[dim]
        mixed = targets * (1.0 - label_smoothing) + label_smoothing / classes
        weighted = log_probs if weight is None else log_probs * _along(weight, logits, dim)
        losses = -(mixed * weighted).sum(dim)
        return _reduce(losses, reduction).to(dtype)
    losses, weights = _negative_log_likelihood(log_probs, targets, weight, ignore_index, dim)
    if label_smoothing:
        weighted = log_probs if weight is None else log_probs * _along(weight, logits, dim)
        uniform = torch.where(targets == ignore_index, 0.0, -weighted.mean(dim))
        losses = (1.0 - label_smoothing) * losses + label_smoothing * uniform
    return _weighted_mean(losses, weights, reduction).to(dtype)


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
    _check_reduction(reduction)
    dim = 0 if log_probs.dim() == 1 else 1
    _check_classes("nll", log_probs, targets, weight, dim)
    if targets.is_floating_point():
        raise ValueError(
            "nll expects integer targets; write targets.long() for class labels, and cross_entropy(logits, targets) "
            "for probabilities"
        )
    dtype = _result_dtype(log_probs)
    log_probs, weight = _widened(log_probs, weight)
    losses, weights = _negative_log_likelihood(log_probs, targets, weight, ignore_index, dim)
    return _weighted_mean(losses, weights, reduction).to(dtype)


def mse(prediction: Tensor, target: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Return (prediction - target)^2.

    Raises ``ValueError`` for arguments of different shapes, which torch would broadcast.

    >>> mse(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 1.0]))
    tensor(2.)
    """
    _check_same_shape("mse", prediction, target)
    dtype = _result_dtype(prediction, target)
    difference = widen(prediction) - widen(target)
    return _reduce(difference * difference, reduction).to(dtype)


def l1(prediction: Tensor, target: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Return |prediction - target|. Its derivative is 0 where the two are equal.

    >>> l1(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 1.0]))
    tensor(1.)
    """
    _check_same_shape("l1", prediction, target)
    return _reduce((widen(prediction) - widen(target)).abs(), reduction).to(_result_dtype(prediction, target))


def huber(prediction: Tensor, target: Tensor, reduction: Reduction = "mean", delta: float = 1.0) -> Tensor:
    """Return d^2 / 2 where |d| <= delta and delta (|d| - delta / 2) elsewhere, d = prediction - target (Huber, 1964).

    >>> huber(torch.tensor([0.5, 3.0]), torch.tensor([0.0, 0.0]), reduction="none")
    tensor([0.1250, 2.5000])
    """
    _check_same_shape("huber", prediction, target)
    if delta <= 0:
        raise ValueError(f"huber expects delta > 0, got {delta}")
    difference = widen(prediction) - widen(target)
    size = difference.abs()
    losses = torch.where(size <= delta, 0.5 * difference * difference, delta * (size - 0.5 * delta))
    return _reduce(losses, reduction).to(_result_dtype(prediction, target))


def smooth_l1(prediction: Tensor, target: Tensor, reduction: Reduction = "mean", beta: float = 1.0) -> Tensor:
    """Return d^2 / (2 beta) where |d| < beta and |d| - beta / 2 elsewhere: ``huber / beta``, or ``l1`` for beta = 0.

    >>> smooth_l1(torch.tensor([0.5, 3.0]), torch.tensor([0.0, 0.0]), reduction="none")
    tensor([0.1250, 2.5000])
    """
    if beta < 0:
        raise ValueError(f"smooth_l1 expects beta >= 0, got {beta}")
    if beta == 0:
        return l1(prediction, target, reduction)
    dtype = _result_dtype(prediction, target)
    return (huber(widen(prediction), widen(target), reduction, delta=beta) / beta).to(dtype)


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
    _check_same_shape("bce_with_logits", logits, targets)
    dtype = _result_dtype(logits, targets)
    logits, targets, weight, pos_weight = _widened(logits, targets, weight, pos_weight)
    positive = targets if pos_weight is None else pos_weight * targets
    losses = positive * softplus(-logits) + (1.0 - targets) * softplus(logits)
    return _reduce(losses if weight is None else losses * weight, reduction).to(dtype)


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


def _weighted_mean(losses: Tensor, weights: Tensor, reduction: Reduction) -> Tensor:
    return losses.sum() / weights.sum() if reduction == "mean" else _reduce(losses, reduction)


def _widened(*tensors: Tensor | None) -> tuple:
    return tuple(None if tensor is None else widen(tensor) for tensor in tensors)


def _result_dtype(*tensors: Tensor) -> torch.dtype:
    """Return the floating dtype to which the tensors promote, or float32 in place of 16 bits under autocast."""
    dtypes = [tensor.dtype for tensor in tensors if tensor.is_floating_point()] or [torch.get_default_dtype()]
    dtype = functools.reduce(torch.promote_types, dtypes)
    if under_autocast(tensors[0]) and dtype.itemsize == 2:
        return torch.float32
    return dtype


def _along(weight: Tensor, like: Tensor, dim: int) -> Tensor:
    """Reshape a vector so that it broadcasts along axis ``dim`` of another tensor."""
    return weight.reshape([-1] + [1] * (like.dim() - dim - 1))


def _reduce(losses: Tensor, reduction: Reduction) -> Tensor:
    _check_reduction(reduction)
    if reduction == "mean":
        return losses.mean()
    return losses.sum() if reduction == "sum" else losses


def _check_reduction(reduction: str) -> None:
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction is 'mean', 'sum' or 'none', got {reduction!r}")


def _check_tensors(loss: str, *values: Tensor) -> None:
    for value in values:
        if not isinstance(value, Tensor):
            raise TypeError(f"{loss} expects tensors, got a {type(value).__name__}; write torch.as_tensor(value)")


def _check_same_shape(loss: str, prediction: Tensor, target: Tensor) -> None:
    _check_tensors(loss, prediction, target)
    if prediction.shape != target.shape:
        shapes = f"{tuple(prediction.shape)} and {tuple(target.shape)}"
        hint = ""
        if prediction.dim() == target.dim() + 1 and prediction.shape[:-1] == target.shape:
            hint = "; write prediction.squeeze(-1)" if prediction.shape[-1] == 1 else ""
            one_hot = f"torch.nn.functional.one_hot(target, {prediction.shape[-1]}).float()"
            hint = hint or f"; for class labels write cross_entropy, or {one_hot}"
        raise ValueError(f"{loss} expects prediction and target of one shape, got {shapes}{hint}")


def _check_classes(loss: str, logits: Tensor, targets: Tensor, weight: Tensor | None, dim: int) -> None:
    _check_tensors(loss, logits, targets)
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
    if weight is not None and tuple(weight.shape) != (logits.shape[dim],):
        raise ValueError(
            f"{loss}: weight needs one entry per class, shape ({logits.shape[dim]},), got {tuple(weight.shape)}"
        )
