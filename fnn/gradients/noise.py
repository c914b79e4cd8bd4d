"""Noise in the shape of a tree, and Poisson samples of fixed shape: the random parts of private training."""

from typing import NamedTuple

import torch
from torch import Tensor

from fnn import random
from fnn import tree as _tree
from fnn.tree import Tree


def noise_like(key: Tensor, tree: Tree, std: float | Tensor) -> Tree:
    """Independent normal noise of standard deviation ``std`` in the shapes, dtypes and devices of a tree.

    DP-SGD (Abadi et al., 2016) adds ``noise_like(key, grads, noise_multiplier * max_norm)`` to the sum of
    clipped gradients. The generator is Threefry, whose output is not meant to resist an attacker who knows
    the key: keep the key secret.

    >>> noise_like(random.key(0), {"w": torch.zeros(2, 3)}, 0.5)["w"].shape
    torch.Size([2, 3])
    """
    leaves, treedef = _tree.flatten(tree)
    keys = random.split(key, max(len(leaves), 1)).unbind()
    noise = [
        std * random.normal(key.to(leaf.device), tuple(leaf.shape), leaf.dtype)
        for key, leaf in zip(keys, leaves, strict=False)
    ]
    return treedef.unflatten(noise)


class PoissonSample(NamedTuple):
    """``indices`` (max_batch,) int64, ``weights`` (max_batch,): 1 for a drawn sample, 0 for padding; ``dropped``."""

    indices: Tensor
    weights: Tensor
    dropped: Tensor


def poisson_sample(key: Tensor, count: int, rate: float, max_batch: int) -> PoissonSample:
    """Draw each of ``count`` samples with probability ``rate``, into a batch of fixed shape, so that jit traces once.

    ``clipped_grad(loss, c)(params, batch_at(indices), weights=weights)`` leaves the padding out. Draws
    beyond ``max_batch`` are dropped, a random choice of them; ``dropped`` counts them. An accountant assumes
    that there are none: choose ``max_batch`` some six standard deviations, sqrt(count * rate), above
    ``count * rate``. Probabilities are multiples of 2^-23. Raises ``ValueError`` unless 0 < rate <= 1 and
    1 <= max_batch <= count.

    >>> drawn = poisson_sample(random.key(0), 1000, 0.1, 160)
    >>> drawn.indices.shape, bool(80 < drawn.weights.sum() < 120)
    (torch.Size([160]), True)
    """
    if not 0.0 < rate <= 1.0:
        raise ValueError(f"rate is the probability of each sample, got {rate}; write a number in (0, 1]")
    if not 1 <= max_batch <= count:
        raise ValueError(f"max_batch lies between 1 and the number of samples {count}, got {max_batch}")
    draws = random.uniform(key, (count,))
    smallest, indices = torch.topk(draws, max_batch, largest=False)
    weights = (smallest < rate).to(torch.float32)
    return PoissonSample(indices, weights, (draws < rate).sum() - (smallest < rate).sum())
