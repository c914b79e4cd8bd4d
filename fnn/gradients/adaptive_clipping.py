"""A clipping norm that follows a quantile of the norms of per-sample gradients."""

import torch
from torch import Tensor

from fnn import random


def adapt_max_norm(
    max_norm: Tensor,
    norms: Tensor,
    batch_size: float,
    quantile: float = 0.5,
    rate: float = 0.2,
    weights: Tensor | None = None,
    count_std: float = 0.0,
    key: Tensor | None = None,
) -> Tensor:
    """The next clipping norm (Andrew, Thakkar, McMahan and Ramaswamy, 2021), a 0-d tensor like ``max_norm``.

    C exp(-rate (b - quantile)), with C = ``max_norm`` and b the share of the samples whose gradients are not longer
    than C. It grows where too many are clipped, shrinks where too few are, and settles where ``quantile`` of the
    ``norms`` (samples,) are below it. ``clipped_grad(loss, C, return_norms=True)`` gives the norms. ``weights``
    (samples,) are those of :func:`poisson_sample`, 0 for padding, and ``batch_size`` is the expected number of samples,
    which tells nothing about a single one.

    For private training the count needs noise too, of standard deviation ``count_std`` and drawn from ``key``; the
    paper takes batch_size / 20. b is 1/2 + (sum of w_i (b_i - 1/2) + noise) / batch_size, with b_i = 1 for a sample
    that is not clipped and 0 for another, so that one sample changes the sum by at most 1/2. Gradients and count
    together have a given noise multiplier when that of the gradients is :func:`noise_beside_count`.

    Raises ``ValueError`` for norms or weights of another shape, a quantile outside (0, 1), a rate, batch_size or
    count_std that is out of range, and for a count_std without a key.

    >>> adapt_max_norm(torch.tensor(1.0), torch.tensor([0.5, 3.0, 4.0, 5.0]), 4, rate=1.0)
    tensor(1.2840)
    """
    if norms.dim() != 1 or max_norm.dim() != 0:
        raise ValueError(
            f"adapt_max_norm takes one norm, a 0-d tensor, and the norms (samples,), got {tuple(max_norm.shape)} and "
            f"{tuple(norms.shape)}"
        )
    if weights is not None and weights.shape != norms.shape:
        raise ValueError(f"weights has shape {tuple(weights.shape)}, expected one for each of {len(norms)} samples")
    if not 0.0 < quantile < 1.0:
        raise ValueError(f"quantile is the share of gradients that are not clipped, between 0 and 1, got {quantile}")
    if not (rate > 0 and batch_size > 0 and count_std >= 0):
        raise ValueError(
            f"rate and batch_size are positive and count_std is not negative, got {rate}, {batch_size} and {count_std}"
        )
    if count_std > 0 and key is None:
        raise ValueError("count_std is the size of noise that is drawn from a key; write key=key")
    centred = torch.where(norms <= max_norm, 0.5, -0.5).to(norms.dtype)
    total = (centred if weights is None else weights * centred).sum()
    if key is not None:
        total = total + count_std * random.normal(key, (), total.dtype).to(total.device)
    share = 0.5 + total / batch_size
    return (max_norm * torch.exp(-rate * (share - quantile))).to(max_norm.dtype)


def noise_beside_count(noise_multiplier: float, count_std: float) -> float:
    """The noise multiplier of the gradients where a noisy count is published too (Andrew et al., 2021, theorem 1).

    (z^-2 - (2 s)^-2)^(-1/2) for z = ``noise_multiplier``, that of both together, which an accountant is told, and s =
    ``count_std``, the noise of the count of :func:`adapt_max_norm`. Raises ``ValueError`` unless 0 < z < 2 s.

    >>> round(noise_beside_count(1.0, 5.0), 4)
    1.005
    """
    if not 0 < noise_multiplier < 2 * count_std:
        raise ValueError(
            f"the noise multiplier lies between 0 and twice the noise of the count, got {noise_multiplier} and "
            f"{count_std}; write a larger count_std"
        )
    return (noise_multiplier**-2 - (2 * count_std) ** -2) ** -0.5
