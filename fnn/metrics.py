"""Metrics of a classifier, as pure functions of logits and integer targets. Results are tensors."""

import torch
from torch import Tensor

__all__ = [
    "accuracy",
    "confusion_matrix",
    "top_k_accuracy",
]


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


def _check(name: str, logits: Tensor, targets: Tensor) -> None:
    for given in (logits, targets):
        if not isinstance(given, Tensor):
            raise TypeError(f"{name} expects tensors, got a {type(given).__name__}; write torch.as_tensor(value)")
    if logits.dim() == 0 or logits.shape[:-1] != targets.shape:
        shapes = f"{tuple(logits.shape)} and {tuple(targets.shape)}"
        raise ValueError(f"{name} expects logits (..., classes) and targets (...), got {shapes}")
