"""Metrics of a classifier, as pure functions of logits and integer targets. Results are tensors.

Counts add over batches and ratios do not: :func:`confusion_matrix` of the parts of a data set can be summed, and
:func:`scores` of the sum are those of the whole.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

__all__ = [
    "Scores",
    "accuracy",
    "confusion_matrix",
    "f1",
    "precision",
    "recall",
    "roc_auc",
    "scores",
    "top_k_accuracy",
]

Average = Literal["macro", "micro", "weighted", "none"]


class Scores(NamedTuple):
    """Precision, recall and F1 score, float32, and how often each class is a target (``support``, int64)."""

    precision: Tensor
    recall: Tensor
    f1: Tensor
    support: Tensor


def accuracy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the fraction of rows whose largest logit is at the target, as a 0-d float tensor.

    logits: (..., classes), targets: (...,). Raises ``ValueError`` for other shapes.

    >>> accuracy(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([1, 1]))
    tensor(0.5000)
    """
    _check("accuracy", logits, targets)
    return (logits.argmax(-1) == targets).to(torch.float32).mean()


def top_k_accuracy(logits: Tensor, targets: Tensor, k: int = 5) -> Tensor:
    """Return the fraction of rows whose target is among the k largest logits, as a 0-d float tensor.

    logits: (..., classes), targets: (...,). Raises ``ValueError`` for other shapes and unless 1 <= k <= classes.

    >>> top_k_accuracy(torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([1]), k=2)
    tensor(1.)
    """
    _check("top_k_accuracy", logits, targets)
    if not 1 <= k <= logits.shape[-1]:
        raise ValueError(f"top_k_accuracy expects 1 <= k <= {logits.shape[-1]} classes, got {k}")
    return (logits.topk(k, -1).indices == targets[..., None]).any(-1).to(torch.float32).mean()


def confusion_matrix(logits: Tensor, targets: Tensor) -> Tensor:
    """Count how often each class (row) was predicted as each class (column): int64, shape (classes, classes).

    logits: (..., classes), targets: (...,). Raises ``ValueError`` for other shapes and for targets that are not from 0
    to classes - 1; on an accelerator such targets raise torch's own error.

    >>> confusion_matrix(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([1, 1]))
    tensor([[0, 0],
            [1, 1]])
    """
    _check("confusion_matrix", logits, targets)
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        raise ValueError(f"confusion_matrix expects integer targets, got {targets.dtype}; write targets.long()")
    classes = logits.shape[-1]
    cells = (targets.to(torch.int64) * classes + logits.argmax(-1)).flatten()
    counts = torch.zeros(classes * classes, dtype=torch.int64, device=logits.device)
    try:
        counts = counts.scatter_add(0, cells, torch.ones_like(cells))
    except (RuntimeError, IndexError) as error:
        raise ValueError(
            f"confusion_matrix expects targets from 0 to {classes - 1}; leave out rows without a class, as in "
            "kept = targets >= 0; confusion_matrix(logits[kept], targets[kept])"
        ) from error
    return counts.reshape(classes, classes)


def scores(confusion: Tensor, average: Average = "macro") -> Scores:
    """Return precision, recall and F1 score from counts, targets in rows and predictions in columns.

    confusion: integers (classes, classes), from :func:`confusion_matrix` or a sum of several. For each class, precision
    is the part of its predictions that is right, recall is the part of its targets that is found, and F1 is 2 right /
    (predictions + targets), their harmonic mean. A ratio of nothing to nothing is 0, as in scikit-learn.

    ``average``: "none" gives one number for each class. "macro" is their mean and "weighted" their mean weighted by the
    number of targets, over the classes that occur as a target or as a prediction. "micro" takes the ratios of the sums
    over classes, which are all equal to the accuracy. Raises ``ValueError`` for other shapes and averages.

    >>> scores(torch.tensor([[3, 1], [0, 4]]), average="none").recall
    tensor([0.7500, 1.0000])
    """
    if average not in ("macro", "micro", "weighted", "none"):
        raise ValueError(f"average is 'macro', 'micro', 'weighted' or 'none', got {average!r}")
    if confusion.dim() != 2 or confusion.shape[0] != confusion.shape[1] or confusion.is_floating_point():
        raise ValueError(
            f"scores expects integer counts (classes, classes), got {confusion.dtype} of shape "
            f"{tuple(confusion.shape)}; write scores(confusion_matrix(logits, targets))"
        )
    right, predicted, support = confusion.diagonal(), confusion.sum(0), confusion.sum(1)
    if average == "micro":
        ratios = _ratios(right.sum(), predicted.sum(), support.sum())
        return Scores(*ratios, support)
    ratios = _ratios(right, predicted, support)
    if average == "none":
        return Scores(*ratios, support)
    weight = support if average == "weighted" else ((predicted + support) > 0).to(torch.int64)
    mean = lambda ratio: _ratio((ratio * weight).sum(), weight.sum())
    return Scores(mean(ratios[0]), mean(ratios[1]), mean(ratios[2]), support)


def _ratios(right: Tensor, predicted: Tensor, support: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _ratio(right, predicted), _ratio(right, support), _ratio(2 * right, predicted + support)


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    return torch.where(whole == 0, 0.0, part / torch.where(whole == 0, 1, whole)).to(torch.float32)


def precision(logits: Tensor, targets: Tensor, average: Average = "macro") -> Tensor:
    """Return the part of the predictions of a class that is right. See :func:`scores`.

    logits: (..., classes), targets: (...,).

    >>> precision(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([1, 1]), average="none")
    tensor([0., 1.])
    """
    return scores(confusion_matrix(logits, targets), average).precision


def recall(logits: Tensor, targets: Tensor, average: Average = "macro") -> Tensor:
    """Return the part of the targets of a class that is found. See :func:`scores`.

    logits: (..., classes), targets: (...,).

    >>> recall(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([1, 1]), average="none")
    tensor([0.0000, 0.5000])
    """
    return scores(confusion_matrix(logits, targets), average).recall


def f1(logits: Tensor, targets: Tensor, average: Average = "macro") -> Tensor:
    """Return the harmonic mean of precision and recall of a class. See :func:`scores`.

    logits: (..., classes), targets: (...,).

    >>> f1(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([1, 1]), average="none")
    tensor([0.0000, 0.6667])
    """
    return scores(confusion_matrix(logits, targets), average).f1


def roc_auc(scores: Tensor, targets: Tensor) -> Tensor:
    """Return the area under the ROC curve: the probability that a positive has a larger score than a negative.

    Equal scores count one half (Hanley and McNeil, 1982). scores: (n,). targets: (n,), 0 or False for negatives and
    anything else for positives. The result is nan if there are no positives or no negatives, or if a score is nan. For
    several classes, each against the rest, write ``vmap(roc_auc, (1, 1))(logits, one_hot(targets, classes))``. The area
    of a whole data set is not a mean over batches: concatenate the scores. Raises ``ValueError`` for other shapes.

    >>> roc_auc(torch.tensor([0.1, 0.4, 0.35, 0.8]), torch.tensor([0, 0, 1, 1]))
    tensor(0.7500)
    """
    for given in (scores, targets):
        if not isinstance(given, Tensor):
            raise TypeError(f"roc_auc expects tensors, got a {type(given).__name__}; write torch.as_tensor(value)")
    if scores.dim() != 1 or scores.shape != targets.shape:
        shapes = f"{tuple(scores.shape)} and {tuple(targets.shape)}"
        raise ValueError(f"roc_auc expects scores (n,) and targets (n,), got {shapes}")
    ordered, order = scores.sort()
    positive = (targets != 0)[order].to(torch.int64)
    # equal scores are one group; all of a group's negatives below it count whole, those inside count half
    begins = torch.ones_like(positive)
    begins[1:] = (ordered[1:] != ordered[:-1]).to(torch.int64)
    group = begins.cumsum(0) - 1
    positives = torch.zeros_like(positive).scatter_add(0, group, positive)
    negatives = torch.zeros_like(positive).scatter_add(0, group, 1 - positive)
    twice = (positives * (2 * (negatives.cumsum(0) - negatives) + negatives)).sum()
    area = twice / (2 * positives.sum() * negatives.sum())
    return torch.where(scores.isnan().any(), torch.nan, area).to(torch.float32)


def _check(name: str, logits: Tensor, targets: Tensor) -> None:
    for given in (logits, targets):
        if not isinstance(given, Tensor):
            raise TypeError(f"{name} expects tensors, got a {type(given).__name__}; write torch.as_tensor(value)")
    if logits.dim() == 0 or logits.shape[:-1] != targets.shape:
        shapes = f"{tuple(logits.shape)} and {tuple(targets.shape)}"
        raise ValueError(f"{name} expects logits (..., classes) and targets (...), got {shapes}")
