"""Loops over steps on the device: ``scan``, ``fori_loop`` and ``epoch``."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fnn import _torch, random
from fnn import tree as _tree
from fnn.tree import Tree


def scan(step: Callable[[Tree, Tree], tuple[Tree, Tree]], carry: Tree, xs: Tree, unroll: int = 1) -> tuple[Tree, Tree]:
    """``carry, y = step(carry, x)`` for every x along the leading axis of ``xs``: ``(carry, ys)``.

    ``jax.lax.scan``'s meaning: ``ys`` are the y's stacked along a new leading axis, and carry keeps its
    structure, shapes and dtypes. In eager mode this is a Python loop. Inside :func:`fnn.jit` it is one loop in
    the graph, whose compile time does not grow with its length; ``unroll`` steps are written out per turn
    (write ``unroll=length`` for no loop at all). The step may contain ``grad``; but no gradient can be taken
    *through* a compiled scan, which torch does not support: there write ``unroll=length``. The y's of a compiled scan
    are dicts, lists and tuples, no NamedTuples; a carry may be anything.

    Raises ``ValueError`` for xs of different leading lengths or of length 0, and for a carry that changes.

    >>> scan(lambda total, x: (total + x, total), torch.tensor(0), torch.arange(5))
    (tensor(10), tensor([0, 0, 1, 3, 6]))
    """
    leaves = _tree.leaves(xs)
    lengths = {leaf.shape[0] if leaf.dim() else None for leaf in leaves}
    if len(lengths) != 1 or None in lengths or 0 in lengths:
        raise ValueError(
            f"scan needs xs with one leading length of at least 1, got shapes {[tuple(x.shape) for x in leaves]}"
        )
    if not isinstance(unroll, int) or unroll < 1:
        raise ValueError(f"scan expects unroll >= 1, got {unroll}")
    length = leaves[0].shape[0]

    def checked(carry: Tree, x: Tree) -> tuple[Tree, Tree]:
        new, y = step(carry, x)
        _tree.check_same_structure(carry, new, ("the carry", "the step's new carry"))
        for path, old, leaf in zip(_tree.keystrs(carry), _tree.leaves(carry), _tree.leaves(new), strict=True):
            if leaf.shape != old.shape or leaf.dtype != old.dtype:
                raise ValueError(
                    f"scan: carry{path} is {tuple(old.shape)} {old.dtype} and becomes {tuple(leaf.shape)} "
                    f"{leaf.dtype}; a carry keeps its shapes and dtypes"
                )
        return _tree.map(lambda _, leaf: leaf, carry, new), y  # the carry's own order of keys

    if not torch.compiler.is_compiling() or unroll >= length:
        return _loop(checked, carry, xs, length)
    turns = length // unroll
    ys = []
    if turns:
        head = _tree.map(lambda x: x[: turns * unroll].reshape(turns, unroll, *x.shape[1:]), xs)

        # torch's scan takes no NamedTuple, such as an optimizer state, and forbids aliases
        def turn(flat: list, flat_x: list) -> tuple[list, Tree]:
            new, y = _loop(
                checked, _tree.structure(carry).unflatten(flat), _tree.structure(head).unflatten(flat_x), unroll
            )
            return _tree.leaves(_tree.map(torch.clone, new)), _tree.map(torch.clone, y)

        flat, y = _torch.scan(turn, _tree.leaves(_tree.map(torch.clone, carry)), _tree.leaves(head))
        carry = _tree.structure(carry).unflatten(flat)
        ys.append(_tree.map(lambda leaf: leaf.reshape(turns * unroll, *leaf.shape[2:]), y))
    if length % unroll:
        tail = _tree.map(lambda x: x[turns * unroll :], xs)
        carry, y = _loop(checked, carry, tail, length % unroll)
        ys.append(y)
    return carry, _tree.concat(ys) if len(ys) > 1 else ys[0]


def _loop(step: Callable, carry: Tree, xs: Tree, length: int) -> tuple[Tree, Tree]:
    ys = []
    for i in range(length):
        carry, y = step(carry, _tree.map(lambda x, i=i: x[i], xs))
        ys.append(y)
    return carry, _tree.map(lambda *leaves: torch.stack(leaves), *ys)


def fori_loop(lower: int, upper: int, body: Callable[[Tensor, Tree], Tree], carry: Tree, unroll: int = 1) -> Tree:
    """``carry = body(i, carry)`` for i = lower, ..., upper - 1, where i is a 0-d int64 tensor.

    ``jax.lax.fori_loop``'s meaning; a :func:`scan` without results. ``lower >= upper`` gives ``carry``.

    >>> fori_loop(0, 5, lambda i, total: total + i, torch.tensor(0))
    tensor(10)
    """
    if lower >= upper:
        return carry
    leaves = _tree.leaves(carry)
    numbers = torch.arange(lower, upper, device=leaves[0].device if leaves else None)
    return scan(lambda carry, i: (body(i, carry), {}), carry, numbers, unroll)[0]


def epoch(
    step: Callable[[Tree, Tree], tuple[Tree, Any]],
    carry: Tree,
    data: Tree,
    key: Tensor,
    batch_size: int,
    unroll: int = 1,
) -> tuple[Tree, Tree]:
    """One pass over ``data`` in an order drawn from ``key``: a :func:`scan` of ``step(carry, batch)``.

    data: a tree of tensors with one leading length n. The last n % batch_size samples of the order are left
    out. Inside :func:`fnn.jit` the order, the batches and all steps are one call; the second result holds
    what each step returned (losses: shape (n // batch_size,)), so one synchronisation shows a whole epoch.
    Raises ``ValueError`` for a batch larger than the data.

    >>> step = lambda total, batch: (total + batch.sum(), batch.sum())
    >>> total, sums = epoch(step, torch.tensor(0), torch.arange(6), random.key(0), 2)
    >>> total, sums.shape
    (tensor(15), torch.Size([3]))
    """
    size = _tree.leaves(data)[0].shape[0]
    if not 1 <= batch_size <= size:
        raise ValueError(f"epoch: batch_size is between 1 and the {size} samples, got {batch_size}")
    steps = size // batch_size
    order = random.permutation(key, size)[: steps * batch_size].reshape(steps, batch_size)
    return scan(lambda carry, index: step(carry, _tree.map(lambda x: x[index], data)), carry, order, unroll)
