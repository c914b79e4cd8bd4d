"""Measures of a classifier, as pure functions of logits and integer targets. Results are tensors."""

import torch
from torch import Tensor


def accuracy(logits: Tensor, targets: Tensor) -> Tensor:
    """The fraction of rows whose largest logit is the target, a 0-d float tensor.

    logits: (..., classes), targets: (...,). Raises ``ValueError`` for other shapes.

    >>> accuracy(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([1, 1]))
    tensor(0.5000)
    """
    _check("accuracy", logits, targets)
    return (logits.argmax(-1) == targets).to(torch.float32).mean()


def top_k_accuracy(logits: Tensor, targets: Tensor, k: int = 5) -> Tensor:
    """The fraction of rows whose target is among the k largest logits, a 0-d float tensor.

    Raises ``ValueError`` for other shapes and unless 1 <= k <= classes.

    >>> top_k_accuracy(torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([1]), k=2)
    tensor(1.)
    """
    _check("top_k_accuracy", logits, targets)
    if not 1 <= k <= logits.shape[-1]:
        raise ValueError(f"top_k_accuracy expects 1 <= k <= {logits.shape[-1]} classes, got {k}")
    return (logits.topk(k, -1).indices == targets[..., None]).any(-1).to(torch.float32).mean()


def confusion_matrix(logits: Tensor, targets: Tensor) -> Tensor:
    """Counts, int64 (classes, classes): row = target, column = prediction.

    logits: (batch, classes), targets: (batch,). Raises ``ValueError`` for other shapes.

    >>> confusion_matrix(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([1, 1]))
    tensor([[0, 0],
            [1, 1]])
    """
    _check("confusion_matrix", logits, targets)
    classes = torch.arange(logits.shape[-1], device=logits.device)
    true = (targets.reshape(-1, 1) == classes).to(torch.int64)
    predicted = (logits.argmax(-1).reshape(-1, 1) == classes).to(torch.int64)
    return (true[:, :, None] * predicted[:, None, :]).sum(0)


def _check(name: str, logits: Tensor, targets: Tensor) -> None:
    if logits.dim() == 0 or logits.shape[:-1] != targets.shape:
        shapes = f"{tuple(logits.shape)} and {tuple(targets.shape)}"
        raise ValueError(f"{name} expects logits (..., classes) and targets (...), got {shapes}")
