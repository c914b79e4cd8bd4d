"""Losses of overlapping regions, for segmentation."""

from torch import Tensor

from fnn.losses.base import Reduction, check_same_shape, reduced, result_dtype, widened


def dice(probs: Tensor, target: Tensor, smooth: float = 1.0, reduction: Reduction = "mean") -> Tensor:
    """Return 1 - (2 sum(p y) + smooth) / (sum(p) + sum(y) + smooth), one minus the coefficient of Dice (1945).

    probs, target: (batch, classes, ...) with any number of further axes, over which the sums are taken; the losses
    before the reduction are (batch, classes). ``smooth`` makes the loss of an empty region, correctly found, 0. Raises
    ``ValueError`` for different shapes, and for fewer than three axes.

    >>> import torch
    >>> dice(torch.tensor([[[0.0, 1.0, 1.0]]]), torch.tensor([[[0.0, 0.0, 1.0]]]), smooth=0.0)
    tensor(0.3333)
    """
    check_same_shape("dice", probs, target)
    if probs.dim() < 3:
        raise ValueError(
            f"dice expects probabilities of shape (batch, classes, ...), got {tuple(probs.shape)}; for one class write "
            "probs[:, None]"
        )
    dtype = result_dtype(probs, target)
    probs, target = widened(probs.flatten(2), target.flatten(2))
    both = (probs * target).sum(-1)
    return reduced(1.0 - (2.0 * both + smooth) / (probs.sum(-1) + target.sum(-1) + smooth), reduction).to(dtype)
