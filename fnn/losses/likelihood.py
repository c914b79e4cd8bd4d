"""Negative log-likelihoods of real and counted targets, and the Kullback-Leibler divergence."""

import math
from typing import Literal

import torch
from torch import Tensor

from fnn._numerics import widen
from fnn.losses.base import Reduction, check_same_shape, check_tensors, reduced, result_dtype, widened


def kl_div(
    log_probs: Tensor,
    target: Tensor,
    reduction: Reduction | Literal["batchmean"] = "mean",
    log_target: bool = False,
) -> Tensor:
    """Return target (log target - log_probs), whose sum over classes is the divergence of Kullback and Leibler (1951).

    target: probabilities, or their logarithms with ``log_target``, in the shape of ``log_probs``. The loss is 0 where
    the target is 0. "batchmean" divides the sum by the size of the first axis, which gives the mean divergence of
    samples; "mean" divides by the number of entries. Raises ``ValueError`` for different shapes.

    >>> kl_div(torch.log(torch.tensor([[0.5, 0.5]])), torch.tensor([[1.0, 0.0]]), "batchmean")
    tensor(0.6931)
    """
    check_same_shape("kl_div", log_probs, target)
    dtype = result_dtype(log_probs, target)
    log_probs, target = widened(log_probs, target)
    if log_target:
        impossible = target == -math.inf
        log_probability = torch.where(impossible, 0.0, target)
        probability = torch.exp(log_probability)
    else:
        impossible = target == 0
        probability = torch.where(impossible, 1.0, target)
        log_probability = torch.log(probability)
    log_probs = torch.where(impossible, 0.0, log_probs)  # may be minus infinity there
    losses = torch.where(impossible, 0.0, probability * (log_probability - log_probs))
    if reduction == "batchmean":
        return (losses.sum() / (len(losses) if losses.dim() else 1)).to(dtype)
    return reduced(losses, reduction).to(dtype)


def gaussian_nll(
    prediction: Tensor,
    target: Tensor,
    var: Tensor | float,
    full: bool = False,
    eps: float = 1e-6,
    reduction: Reduction = "mean",
) -> Tensor:
    """Return [log v + (target - prediction)^2 / v] / 2 with v = max(var, eps): the density of a normal distribution.

    prediction, target: one shape. var: that shape, that shape with axes of size 1 or without its last axis, or a
    number. ``full`` adds log(2 pi) / 2. As in torch, derivatives go through the maximum as if it were not there. A
    negative variance gives nan, because the numbers are not read (torch raises an error). Raises ``ValueError`` for
    other shapes and unless eps > 0 (Nix and Weigend, 1994).

    >>> gaussian_nll(torch.zeros(2), torch.tensor([0.0, 2.0]), torch.ones(2), reduction="none")
    tensor([0., 2.])
    """
    check_same_shape("gaussian_nll", prediction, target)
    if not eps > 0:
        raise ValueError(f"gaussian_nll expects eps > 0, got {eps}")
    dtype = result_dtype(prediction, target, *([var] if isinstance(var, Tensor) else []))
    prediction, target = widened(prediction, target)
    var = _variance(var, prediction)
    clamped = torch.where(var < 0, math.nan, var.clamp_min(eps))
    var = var + (clamped - var).detach()
    losses = 0.5 * (torch.log(var) + (prediction - target) ** 2 / var)
    if full:
        losses = losses + 0.5 * math.log(2.0 * math.pi)
    return reduced(losses, reduction).to(dtype)


def _variance(var: Tensor | float, prediction: Tensor) -> Tensor:
    if not isinstance(var, Tensor):
        return torch.full_like(prediction, var)
    check_tensors("gaussian_nll", var)
    var = widen(var)
    if var.shape == prediction.shape[:-1] and prediction.dim():
        return var.unsqueeze(-1)
    fits = var.dim() == prediction.dim() and all(
        size in (1, wanted) for size, wanted in zip(var.shape, prediction.shape, strict=True)
    )
    if not fits:
        shapes = f"{tuple(prediction.shape)} and var {tuple(var.shape)}"
        raise ValueError(
            f"gaussian_nll expects one variance for each prediction, or one for each row, got prediction {shapes}"
        )
    return var


def poisson_nll(
    prediction: Tensor,
    target: Tensor,
    log_input: bool = True,
    full: bool = False,
    eps: float = 1e-8,
    reduction: Reduction = "mean",
) -> Tensor:
    """Return e^z - y z for counts y and logarithms z of their rates, or z - y log(z + eps) for rates z.

    ``log_input`` tells which. ``full`` adds Stirling's approximation of log(y!), y log y - y + log(2 pi y) / 2, where
    y > 1. Raises ``ValueError`` for different shapes.

    >>> poisson_nll(torch.zeros(2), torch.tensor([0.0, 3.0]), reduction="none")
    tensor([1., 1.])
    """
    check_same_shape("poisson_nll", prediction, target)
    dtype = result_dtype(prediction, target)
    prediction, target = widened(prediction, target)
    if log_input:
        losses = torch.exp(prediction) - target * prediction
    else:
        losses = prediction - target * torch.log(prediction + eps)
    if full:
        several = target > 1
        count = torch.where(several, target, 1.0)
        stirling = count * torch.log(count) - count + 0.5 * torch.log(2.0 * math.pi * count)
        losses = losses + torch.where(several, stirling, 0.0)
    return reduced(losses, reduction).to(dtype)
