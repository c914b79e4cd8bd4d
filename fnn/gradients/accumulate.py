"""Statistics of a batch taken in pieces: the full-batch gradient, and moments of per-sample gradients."""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from fnn import tree as _tree
from fnn._argnums import Argnums, positions
from fnn._numerics import widen
from fnn.gradients.per_sample import (
    check_chunk_size,
    check_no_key,
    check_params_are_shared,
    chunks,
    count_samples,
    per_sample_grad,
    prepare,
    split_key,
    take_rows,
)
from fnn.gradients.value_and_grad import grad
from fnn.tree import Tree


def accumulate_grad(loss: Callable, steps: int, batch_argnums: Argnums = 1) -> Callable:
    """The gradient of a batch, computed in ``steps`` parts of almost equal size, one after the other.

    ``accumulate_grad(loss, steps)(params, batch, *rest, key=None)``. It equals ``grad(loss)`` of the batch for a loss
    that is a mean over independent samples, which :func:`fnn.gradients.check_per_sample` checks; each part is weighted
    by its size. ``key`` is split into one key per part, which the loss gets as its keyword ``key``. 16-bit
    gradients are added up in float32; the result has the dtypes of params. Memory: the activations of one part and
    two trees of gradients. Raises ``ValueError`` unless 1 <= steps <= samples, and for a random key by position,
    which would give all parts the same random numbers.

    >>> import torch
    >>> loss = lambda w, x: (w * x).mean()
    >>> accumulate_grad(loss, 2)(torch.tensor(1.0), torch.tensor([1.0, 2.0, 6.0]))
    tensor(3.)
    """
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps is the number of parts of a batch, got {steps!r}; write a positive integer")

    def accumulate_grad_of(*args: Any, **kwargs: Any) -> Tree:
        batches = positions(batch_argnums, len(args), "batch_argnums")
        check_params_are_shared(batches)
        count = count_samples(args, batches)
        if steps > count:
            raise ValueError(f"a batch of {count} samples cannot be taken in steps={steps} parts")
        for number, arg in enumerate(args):
            if number not in batches:
                check_no_key(arg, number, f"would give all {steps} parts the same random numbers", "per part")
        keys = split_key(kwargs, steps, "parts")
        leaves, treedef = _tree.flatten(args[0])
        total: list[Tensor] | None = None
        edges = [count * step // steps for step in range(steps + 1)]
        for step, (start, stop) in enumerate(itertools.pairwise(edges)):
            key = {name: value[step] for name, value in keys.items()}
            grads = grad(loss)(*take_rows(args, batches, slice(start, stop)), **key)
            part = [(stop - start) / count * widen(leaf) for leaf in _tree.leaves(grads)]
            total = part if total is None else [a + b for a, b in zip(total, part, strict=True)]
        assert total is not None
        return treedef.unflatten([leaf.to(like.dtype) for leaf, like in zip(total, leaves, strict=True)])

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

    ``per_sample_moments(loss)(params, batch, *rest, key=None)`` as in :func:`fnn.per_sample_grad`.
    At most ``chunk_size`` gradients are alive at a time, beside four trees; chunks are merged by the formula of
    Chan et al. (1979), which avoids cancellation. 16-bit gradients are summed in float32; the results have the dtypes
    of params. Raises ``ValueError`` for fewer than two samples, and for complex params.

    >>> import torch
    >>> loss = lambda w, x: (w * x).sum()
    >>> per_sample_moments(loss)(torch.tensor(0.0), torch.tensor([1.0, 3.0]))
    Moments(mean=tensor(2.), second=tensor(5.), variance=tensor(2.))
    """
    check_chunk_size(chunk_size)
    each = per_sample_grad(loss, batch_argnums=batch_argnums)

    def moments_of(*args: Any, **kwargs: Any) -> Moments:
        call = prepare(args, kwargs, 0, batch_argnums)
        check_params_are_shared(call.batches)
        leaves, treedef = _tree.flatten(args[0])
        count = call.count
        if count < 2:
            raise ValueError("a variance compares samples and needs at least two, got one")
        if any(leaf.is_complex() for leaf in leaves):
            raise ValueError("moments of complex gradients are not defined entry by entry; write params as real leaves")
        mean: list[Tensor] = []
        scatter: list[Tensor] = []  # the sum of squared differences from the mean
        done = 0
        for rows in chunks(count, chunk_size):
            keys = {name: value[rows] for name, value in call.kwargs.items()}
            grads = [widen(g) for g in _tree.leaves(each(*take_rows(args, call.batches, rows), **keys))]
            size = rows.stop - rows.start
            part_mean = [g.mean(0) for g in grads]
            part_scatter = [(g - m).square().sum(0) for g, m in zip(grads, part_mean, strict=True)]
            if done:
                share, cross = size / (done + size), done * size / (done + size)
                steps = [new - old for new, old in zip(part_mean, mean, strict=True)]
                mean = [m + share * d for m, d in zip(mean, steps, strict=True)]
                merged = zip(scatter, part_scatter, steps, strict=True)
                scatter = [a + b + cross * d * d for a, b, d in merged]
            else:
                mean, scatter = part_mean, part_scatter
            done += size
        second = [s / count + m * m for s, m in zip(scatter, mean, strict=True)]
        variance = [s / (count - 1) for s in scatter]

        def like_params(values: list[Tensor]) -> Tree:
            return treedef.unflatten([value.to(leaf.dtype) for value, leaf in zip(values, leaves, strict=True)])

        return Moments(like_params(mean), like_params(second), like_params(variance))

    return moments_of
