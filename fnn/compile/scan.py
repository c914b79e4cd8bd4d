"""Loops over steps: ``scan``, ``fori_loop`` and ``epoch``."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fnn import _torch, random
from fnn import tree as _tree
from fnn.compile import loops
from fnn.compile.closed_graph import NotClosedError
from fnn.tree import Tree, TreeDef


def scan(
    step: Callable[[Tree, Tree], tuple[Tree, Tree]],
    carry: Tree,
    xs: Tree,
    length: int | None = None,
    unroll: int = 1,
    remat: bool = False,
) -> tuple[Tree, Tree]:
    """Run ``carry, y = step(carry, x)`` for every x along the leading axis of ``xs``, and return ``(carry, ys)``.

    This is ``jax.lax.scan``: ``ys`` are the y's stacked along a new leading axis, and the carry keeps its structure,
    shapes and dtypes. All leaves are tensors or None; ``xs`` and ``y`` may also be None as a whole. ``length`` is the
    number of steps and must be given if ``xs`` has no tensor. If it is 0, the step runs once on zeros, to find the
    structure and the shapes of the y's.

    In eager mode this is a Python loop. Inside :func:`fnn.jit` it is one loop in the graph, so that the time to trace
    and to compile does not grow with the length; each iteration of that loop runs ``unroll`` steps. All transforms of
    ``torch.func`` can be applied: derivatives and batches of the loop are loops in the graph, too. The forward pass
    saves the values of each step that the backward pass needs. With ``remat=True`` it saves only the carries, and the
    backward pass computes each step again; eager code ignores ``remat``. If the step contains a
    ``torch.autograd.Function`` or disables gradients, the loop is unrolled completely.

    Raises ``TypeError`` for a leaf that is not a tensor, and ``ValueError`` for xs of different leading lengths, for a
    length that does not fit or is missing, and for a carry or y that changes its structure, shape or dtype.

    >>> scan(lambda total, x: (total + x, total), torch.tensor(0), torch.arange(5))
    (tensor(10), tensor([0, 0, 1, 3, 6]))
    """
    x_leaves, x_def = _tensors(xs, "xs")
    length = _length(x_leaves, x_def, length)
    if not isinstance(unroll, int) or isinstance(unroll, bool) or unroll < 1:
        raise ValueError(f"scan expects unroll to be an integer of at least 1, got {unroll!r}")
    loop = _Steps(step, carry, x_def)
    values = loop.first
    if length == 0:
        # zeros_like and new_zeros give the shapes that the active transforms show
        _, y = loop([torch.zeros_like(value) for value in values], [x.new_zeros(x.shape[1:]) for x in x_leaves])
        return loop.result([value.clone() for value in values], [leaf.new_zeros((0, *leaf.shape)) for leaf in y])
    turns = length // unroll if _torch.recording() and length > unroll else 0
    stacks: list[list[Tensor]] = []
    if turns > 1:
        head = [x[: turns * unroll] for x in x_leaves]
        found = _one_loop(loop, values, head, turns, unroll, remat)
        if found is None:  # the step cannot be a graph of its own, so the loop is unrolled
            turns = 0
        else:
            values, ys = found
            stacks.append(ys)
    else:
        turns = 0
    if turns * unroll < length:
        values, ys = _written_out(loop, values, [x[turns * unroll :] for x in x_leaves], length - turns * unroll)
        stacks.append(ys)
    ys = stacks[0] if len(stacks) == 1 else [torch.cat(parts) for parts in zip(*stacks, strict=True)]
    return loop.result([value.clone() for value in values], ys)


class _Steps:
    """The step as a function of lists of tensors, which checks that the carry and the y's keep their structure."""

    def __init__(self, step: Callable, carry: Tree, x_def: "_Structure") -> None:
        self.step = step
        self.first, self.carry = _tensors(carry, "carry")
        self.kinds = [(value.shape, value.dtype) for value in self.first]
        self.xs = x_def
        self.ys: _Structure | None = None

    def __call__(self, values: list[Tensor], x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        results = self.step(self.carry.unflatten(values), self.xs.unflatten(x))
        if not isinstance(results, tuple) or len(results) != 2:
            kind = "a tensor" if isinstance(results, Tensor) else f"a {type(results).__name__}"
            raise TypeError(f"scan expects a step that returns (carry, y), got {kind}")
        new = self.carry.flatten(results[0], "carry", ("the carry", "the step's new carry"))
        for i, (value, (shape, dtype)) in enumerate(zip(new, self.kinds, strict=True)):
            if value.shape != shape or value.dtype != dtype:
                raise ValueError(
                    f"scan: carry{self.carry.names[i]} is {tuple(shape)} {dtype} and becomes {tuple(value.shape)} "
                    f"{value.dtype}; a carry keeps its shapes and dtypes"
                )
        if self.ys is None:
            y, self.ys = _tensors(results[1], "y")
        else:
            y = self.ys.flatten(results[1], "y", ("the first y", "a later y"))
        return new, y

    def result(self, values: list[Tensor], ys: list[Tensor]) -> tuple[Tree, Tree]:
        assert self.ys is not None
        return self.carry.unflatten(values), self.ys.unflatten(ys)


class _Structure:
    """A tree in which some leaves are None and the others tensors."""

    def __init__(self, treedef: TreeDef, present: list[bool]) -> None:
        self.treedef = treedef
        self.present = present
        self.whole = all(present)
        self.names = [name for name, each in zip(treedef.keystrs, present, strict=True) if each]

    def flatten(self, tree: Tree, name: str, names: tuple[str, str]) -> list[Tensor]:
        leaves = self.treedef.flatten_up_to(tree, names)
        for i, (leaf, each) in enumerate(zip(leaves, self.present, strict=True)):
            if isinstance(leaf, Tensor) != each:
                path = self.treedef.keystrs[i]
                if leaf is not None and not isinstance(leaf, Tensor):
                    raise _not_a_tensor(name, path, leaf)
                absent, there = names if leaf is not None else names[::-1]
                raise ValueError(f"scan: {name}{path} is None in {absent} and a tensor in {there}")
        return leaves if self.whole else [leaf for leaf in leaves if leaf is not None]

    def unflatten(self, tensors: list[Tensor]) -> Tree:
        if self.whole:
            return self.treedef.unflatten(tensors)
        remaining = iter(tensors)
        return self.treedef.unflatten([next(remaining) if each else None for each in self.present])


def _tensors(tree: Tree, name: str) -> tuple[list[Tensor], _Structure]:
    leaves, treedef = _tree.flatten(tree)
    for path, leaf in zip(treedef.keystrs, leaves, strict=True):
        if leaf is not None and not isinstance(leaf, Tensor):
            raise _not_a_tensor(name, path, leaf)
    tensors = [leaf for leaf in leaves if leaf is not None]
    return tensors, _Structure(treedef, [leaf is not None for leaf in leaves])


def _not_a_tensor(name: str, path: str, leaf: Any) -> TypeError:
    advice = f"; write torch.tensor({leaf!r})" if isinstance(leaf, (bool, int, float, complex)) else ""
    return TypeError(f"scan: {name}{path} is {leaf!r} ({type(leaf).__name__}), not a tensor{advice}")


def _length(xs: list[Tensor], structure: _Structure, length: int | None) -> int:
    if length is not None and (not isinstance(length, int) or isinstance(length, bool) or length < 0):
        raise ValueError(f"scan expects length to be a non-negative integer, got {length!r}")
    if not xs:
        if length is None:
            raise ValueError("scan has no tensor in xs to take the number of steps from; write length=...")
        return length
    sizes = {x.shape[0] if x.dim() else None for x in xs}
    if len(sizes) != 1 or None in sizes:
        shapes = {f"xs{name}": tuple(x.shape) for name, x in zip(structure.names, xs, strict=True)}
        raise ValueError(f"scan needs xs with one leading length, got shapes {shapes}")
    if length is not None and length != xs[0].shape[0]:
        raise ValueError(f"scan: length is {length}, but the leading length of xs is {xs[0].shape[0]}")
    return xs[0].shape[0]


def _written_out(
    step: Callable, values: list[Tensor], xs: list[Tensor], length: int
) -> tuple[list[Tensor], list[Tensor]]:
    """The Python loop. It unbinds xs once, because the derivative of each ``xs[i]`` would be as large as xs."""
    rows = zip(*(x.unbind(0) for x in xs), strict=True) if xs else [()] * length
    ys: list[list[Tensor]] = []
    for row in rows:
        values, y = step(values, list(row))
        ys.append(y)
    return values, [torch.stack(leaves) for leaves in zip(*ys, strict=True)]


def _one_loop(
    step: _Steps, values: list[Tensor], xs: list[Tensor], turns: int, unroll: int, remat: bool
) -> tuple[list[Tensor], list[Tensor]] | None:
    """Record one loop with ``unroll`` steps per iteration; None if the step cannot be a graph of its own."""
    count = len(values)

    def turn(*inputs: Tensor) -> list[Tensor]:
        carry, x = list(inputs[:count]), list(inputs[count:])
        new, y = step(carry, x) if unroll == 1 else _written_out(step, carry, x, unroll)
        return [*new, *y]

    if unroll > 1:
        xs = [x.reshape(turns, unroll, *x.shape[1:]) for x in xs]
    try:
        body, closed = loops.make_body(turn, values, xs, remat=remat)
    except NotClosedError:
        return None
    outside = _torch.peek_interpreter_stack() is None
    if outside and torch.is_grad_enabled() and any(value.requires_grad for value in (*values, *xs, *closed)):
        return None  # a loop in the graph has no backward pass for ordinary autograd
    carry, ys = loops.loop(body, values, xs, closed, turns)
    return carry, [y.reshape(turns * unroll, *y.shape[2:]) for y in ys] if unroll > 1 else ys


def fori_loop(lower: int, upper: int, body: Callable[[Tensor, Tree], Tree], carry: Tree, unroll: int = 1) -> Tree:
    """``carry = body(i, carry)`` for i = lower, ..., upper - 1, where i is a 0-d int64 tensor.

    This is ``jax.lax.fori_loop``, a :func:`scan` without ys. If ``lower >= upper``, it returns a copy of ``carry``.

    >>> fori_loop(0, 5, lambda i, total: total + i, torch.tensor(0))
    tensor(10)
    """
    leaves, _ = _tensors(carry, "carry")
    numbers = torch.arange(lower, max(lower, upper), device=leaves[0].device if leaves else None)
    return scan(lambda carry, i: (body(i, carry), None), carry, numbers, unroll=unroll)[0]


def epoch(
    step: Callable[[Tree, Tree], tuple[Tree, Any]],
    carry: Tree,
    data: Tree,
    key: Tensor,
    batch_size: int,
    unroll: int = 1,
) -> tuple[Tree, Tree]:
    """One pass over ``data`` in an order drawn from ``key``: a :func:`scan` of ``step(carry, batch)``.

    data: a tree of tensors with the same leading length n. The last n % batch_size samples of the order are left out.
    Inside :func:`fnn.jit` the whole epoch is one call. The second result holds what the steps returned, stacked: losses
    have the shape (n // batch_size,). Raises ``ValueError`` if the batch is larger than the data.

    >>> step = lambda total, batch: (total + batch.sum(), batch.sum())
    >>> total, sums = epoch(step, torch.tensor(0), torch.arange(6), random.key(0), 2)
    >>> total, sums.shape
    (tensor(15), torch.Size([3]))
    """
    size = _tree.leading_length(data)
    if not 1 <= batch_size <= size:
        raise ValueError(f"epoch: batch_size is between 1 and the {size} samples, got {batch_size}")
    steps = size // batch_size
    order = random.permutation(key, size)[: steps * batch_size].reshape(steps, batch_size)
    return scan(lambda carry, index: step(carry, _tree.map(lambda x: x[index], data)), carry, order, unroll=unroll)
