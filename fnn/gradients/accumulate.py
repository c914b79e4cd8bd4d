"""Statistics of a batch taken in pieces: the full-batch gradient, and moments of per-sample gradients."""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from fnn import random
from fnn import tree as _tree
from fnn.gradients.per_sample import Argnums, as_numbers, check_chunk_size, count_samples, per_sample_grad
from fnn.gradients.value_and_grad import value_and_grad
from fnn.tree import Tree


def accumulate_grad(loss: Callable, steps: int, batch_argnums: Argnums = 1) -> Callable:
    """``grad(loss)`` of a batch, worked out in ``steps`` parts of almost equal size, one after the other.

    ``accumulate_grad(loss, steps)(params, batch, *rest)``. Equals the full-batch gradient for a loss that is
    a mean over independent samples (:func:`fnn.gradients.check_per_sample` tells); parts of different size are
    weighted by it. Memory: the activations of one part and two trees of gradients. Raises ``ValueError``
    unless 1 <= steps <= samples.

    >>> import torch
    >>> loss = lambda w, x: (w * x).mean()
    >>> accumulate_grad(loss, 2)(torch.tensor(1.0), torch.tensor([1.0, 2.0, 6.0]))
    tensor(3.)
    """
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps is the number of parts of a batch, got {steps!r}; write a positive integer")

    def accumulate_grad_of(*args: Any) -> Tree:
        numbers = as_numbers(batch_argnums)
        count = count_samples(*(args[number] for number in numbers))
        if steps > count:
            raise ValueError(f"a batch of {count} samples cannot be taken in steps={steps} parts")
        total: Tree = None
        edges = [count * step // steps for step in range(steps + 1)]
        for start, stop in itertools.pairwise(edges):
            _, grads = value_and_grad(loss)(*_rows(args, numbers, slice(start, stop)))
            part = _tree.scale((stop - start) / count, grads)
            total = part if total is None else _tree.add(total, part)
        return total

    return accumulate_grad_of


class Moments(NamedTuple):
    """Trees like params: the mean of the samples' gradients, of their squares, and their unbiased variance."""

    mean: Tree
    second: Tree
    variance: Tree


def per_sample_moments(
    loss: Callable, chunk_size: int | None = None, batch_argnums: Argnums = 1
) -> Callable[..., Moments]:
    """Mean, second moment and variance of each parameter's gradient over samples, entry by entry.

    ``per_sample_moments(loss)(params, batch, *rest, key=None)`` as in :func:`fnn.gradients.per_sample_grad`.
    Never more than ``chunk_size`` gradients alive beside four trees; chunks are merged by the formula of
    Chan et al. (1979), so that no digits cancel. Raises ``ValueError`` for fewer than two samples.

    >>> import torch
    >>> loss = lambda w, x: (w * x).sum()
    >>> per_sample_moments(loss)(torch.tensor(0.0), torch.tensor([1.0, 3.0]))
    Moments(mean=tensor(2.), second=tensor(5.), variance=tensor(2.))
    """
    check_chunk_size(chunk_size)
    each = per_sample_grad(loss, batch_argnums=batch_argnums)

    def moments_of(*args: Any, key: Tensor | None = None) -> Moments:
        numbers = as_numbers(batch_argnums)
        count = count_samples(*(args[number] for number in numbers))
        if count < 2:
            raise ValueError("a variance compares samples and needs at least two, got one")
        keys = random.split(key, count) if key is not None and key.dim() == 1 else key
        mean: Tree = None
        scatter: Tree = None
        done = 0
        for start in range(0, count, chunk_size or count):
            rows = slice(start, min(start + (chunk_size or count), count))
            given = {} if keys is None else {"key": keys[rows]}
            grads = each(*_rows(args, numbers, rows), **given)
            size = rows.stop - rows.start
            part_mean = _tree.map(lambda g: g.mean(0), grads)
            part_scatter = _tree.map(lambda g, m: (g - m).square().sum(0), grads, part_mean)
            if mean is None:
                mean, scatter = part_mean, part_scatter
            else:
                step = _tree.sub(part_mean, mean)
                share, cross = size / (done + size), done * size / (done + size)
                mean = _tree.map(lambda m, d, s=share: m + s * d, mean, step)
                scatter = _tree.map(lambda a, b, d, c=cross: a + b + c * d * d, scatter, part_scatter, step)
            done += size
        second = _tree.map(lambda s, m: s / count + m * m, scatter, mean)
        return Moments(mean, second, _tree.scale(1.0 / (count - 1), scatter))

    return moments_of


def _rows(args: tuple, numbers: tuple[int, ...], rows: slice) -> tuple:
    return tuple(_tree.map(lambda x: x[rows], arg) if i in numbers else arg for i, arg in enumerate(args))
