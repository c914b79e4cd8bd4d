"""What an optimizer is, and how one is made from its formula for a single leaf."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fnn import _torch
from fnn import tree as _tree
from fnn.optim.tensor_list import Many
from fnn.tree import Tree

Number = float | Tensor | Callable[[Tensor], Tensor]
"""A hyperparameter: a number, a 0-d tensor, or a schedule, which is a function of the count of updates."""


class Optimizer(NamedTuple):
    """A pair of pure functions.

    ``init(params) -> opt_state`` and ``update(grads, opt_state, params, **extra) -> (updates, opt_state)``, where
    updates are added to params by :func:`apply_updates`. ``extra`` is what a few optimizers ask for by name, such as
    ``loss``; all others ignore it.
    """

    init: Callable[[Tree], Tree]
    update: Callable[..., tuple[Tree, Tree]]


class State(NamedTuple):
    """The state of one transform. All leaves are tensors."""

    count: Tensor
    """int64: the number of updates so far."""
    hyperparams: dict[str, Tensor]
    """0-d, by name; see :func:`fnn.optim.get_hyperparams`."""
    scheduled: dict[str, Tensor]
    """0-d, by name: the values that schedules gave at the last update."""
    slots: dict[str, Tree]
    """Trees like the params: momentum, running squares, ..."""


class Transform(Optimizer):
    """An optimizer that can also work on lists of leaves, so that a chain takes the trees apart only once."""

    on_leaves: Callable[..., tuple[list, Tree]]


def from_leaves(init: Callable[[Tree], Tree], on_leaves: Callable[..., tuple[list, Tree]]) -> Transform:
    """A transform from ``on_leaves(grads, state, params, like=tree, **extra) -> (updates, state)`` on lists of leaves.

    Where the state is a :class:`State`, its slots are lists too.
    """

    def update(grads: Tree, state: Tree, params: Tree = None, **extra) -> tuple[Tree, Tree]:
        updates, (state,) = run((on_leaves,), grads, (state,), params, extra)
        return updates, state

    transform = Transform(init, update)
    transform.on_leaves = on_leaves
    return transform


def per_leaf(
    rule: Callable,
    hyperparams: Mapping[str, Number] | None = None,
    slots: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
    *,
    together: bool = True,
    kernel: Callable | None = None,
) -> Transform:
    """A transform from its formula for one leaf.

    ``rule(t, **hyperparams)`` computes what all leaves share, and returns ``leaf(g, p, *slots) -> (update, *slots)``.
    t is the number of this update, 1 the first, and is 0-d and floating like the hyperparameters. Each of ``slots`` is
    a function of a param's leaf, its first value; a slot keeps its dtype. Leaves come with at least one axis, so that
    hyperparameters never widen their dtype. With ``together``, eager code passes all leaves at once as
    :class:`fnn.optim.tensor_list.Many`, for which torch has multi-tensor kernels; a formula that looks at shapes says
    False.
    ``kernel(t, grads, *slots, **hyperparams)`` does the same for lists of leaves where :func:`fits_kernel` holds.

    >>> double = per_leaf(lambda t, factor: lambda g, p: (factor * g,), {"factor": 2.0})
    >>> params = {"w": torch.ones(1)}
    >>> double.update(params, double.init(params))[0]
    {'w': tensor([2.])}
    """
    numbers, slots = hyperparams or {}, slots or {}
    schedules = {name: value for name, value in numbers.items() if callable(value) and not isinstance(value, Tensor)}

    def init(params: Tree) -> State:
        leaves = _tree.leaves(params)
        device = leaves[0].device if leaves else torch.device("cpu")
        fixed = {name: as_hyperparam(name, value, device) for name, value in numbers.items() if name not in schedules}
        count = torch.zeros((), dtype=torch.int64, device=device)
        first = {name: as_hyperparam(name, value(as_time(count)), device) for name, value in schedules.items()}
        return State(count, fixed, first, {name: _tree.map(start, params) for name, start in slots.items()})

    def on_leaves(grads: list, state: State, params: list | None, **_) -> tuple[list, State]:
        count = state.count + 1
        scheduled = {name: value(as_time(state.count)).to(state.scheduled[name]) for name, value in schedules.items()}
        numbers = {**state.hyperparams, **scheduled}
        before = list(state.slots.values())
        plain = is_plain(grads, params or [], numbers.values(), *before)
        if plain and kernel and fits_kernel(grads, *before):
            rows = kernel(as_time(count), grads, *before, **numbers)
        else:
            rows = _apply(rule(as_time(count), **numbers), grads, params, before, plain and together)
        after = [in_dtypes(*pair) for pair in zip(rows[1:], before, strict=True)]
        return rows[0], State(count, state.hyperparams, scheduled, dict(zip(state.slots, after, strict=True)))

    return from_leaves(init, on_leaves)


def _apply(leaf: Callable, grads: list, params: list | None, slots: list[list], together: bool) -> list[list]:
    """Columns of ``leaf``'s results: updates and each slot. 0-d leaves get an axis for the time of the formula."""
    columns: list[Any] = [grads, [None] * len(grads) if params is None else params, *slots]
    shapes = [[x.shape for x in column] for column in (grads, *slots)]
    scalars = any(not shape for row in shapes for shape in row)
    if scalars:
        columns = [[x if x is None or x.dim() else x.reshape(1) for x in column] for column in columns]
    if together and grads:
        results = leaf(*[None if column[0] is None else Many(column) for column in columns])
        found = [result.tensors for result in results]
    else:
        rows = [leaf(*row) for row in zip(*columns, strict=True)]
        found = [list(column) for column in zip(*rows, strict=True)] or [[] for _ in shapes]
    if scalars:
        found = [
            [x if x.shape == shape else x.reshape(shape) for x, shape in zip(*pair, strict=True)]
            for pair in zip(found, shapes, strict=True)
        ]
    return found


def run(functions: Sequence, grads: Tree, states: Sequence, params: Tree, extra: dict) -> tuple[Tree, tuple]:
    """Apply transforms' ``on_leaves`` in turn to the leaves of the trees; updates get the dtype of the params."""
    like = grads if params is None else params
    names = [list(state.slots) if isinstance(state, State) else [] for state in states]
    trees = [state.slots[name] for state, group in zip(states, names, strict=True) for name in group]
    try:
        found = columns(like, grads, *trees)
    except ValueError:
        check_grads(grads, like)
        raise
    p, g, flat = found[0], found[1], found[2:]
    if any(a.shape != b.shape for a, b in zip(g, p, strict=True)):
        check_grads(grads, like)
    after = []
    for function, state in zip(functions, _with_slots(states, names, flat), strict=True):
        g, state = function(g, state, None if params is None else p, like=like, **extra)
        after.append(state)
    new = [state.slots[name] for state, group in zip(after, names, strict=True) for name in group]
    trees = refill(like, in_dtypes(g, p), *new)
    return trees[0], tuple(_with_slots(after, names, trees[1:]))


def columns(first: Tree, *others: Tree) -> list[list]:
    leaves, treedef = _tree.flatten(first)
    return [leaves, *[treedef.flatten_up_to(other) for other in others]]


def refill(like: Tree, *lists: list) -> list[Tree]:
    treedef = _tree.structure(like)
    return [treedef.unflatten(found) for found in lists]


def with_slots(state: State, slots: dict) -> State:
    return State(state.count, state.hyperparams, state.scheduled, slots)  # torch 2.11 cannot trace _replace


def _with_slots(states: Sequence, names: list[list[str]], slots: list) -> list:
    """The states with these slots, given for all of them one after the other."""
    filled, start = [], 0
    for state, group in zip(states, names, strict=True):
        stop = start + len(group)
        filled.append(with_slots(state, dict(zip(group, slots[start:stop], strict=True))) if group else state)
        start = stop
    return filled


def in_dtypes(tensors: Iterable[Tensor], like: Iterable[Tensor]) -> list[Tensor]:
    return [x if x.dtype is old.dtype else x.to(old.dtype) for x, old in zip(tensors, like, strict=True)]


def check_grads(grads: Tree, params: Tree) -> None:
    """Raise ``ValueError``, naming the path, unless the trees have the same structure and shapes."""
    _tree.check_same_structure(params, grads, ("params", "grads"))
    for i, (g, p) in enumerate(zip(*columns(grads, params), strict=True)):
        if g.shape != p.shape:
            path = _tree.keystrs(params)[i]
            raise ValueError(f"grads{path} has shape {tuple(g.shape)}, but params{path} has {tuple(p.shape)}")


def chain(*parts: Optimizer) -> Optimizer:
    """The parts one after the other, each working on the updates of the one before; the state is a tuple.

    Raises ``ValueError`` for a state of another length.

    >>> from fnn.optim import clip_by_global_norm, sgd
    >>> opt = chain(clip_by_global_norm(1.0), sgd(0.1))
    >>> params = {"w": torch.zeros(2)}
    >>> opt.update({"w": torch.tensor([3.0, 4.0])}, opt.init(params), params)[0]
    {'w': tensor([-0.0600, -0.0800])}
    """
    functions = [part.on_leaves for part in parts if isinstance(part, Transform)]

    def init(params: Tree) -> tuple:
        return tuple(part.init(params) for part in parts)

    def update(grads: Tree, state: tuple, params: Tree = None, **extra) -> tuple[Tree, tuple]:
        if len(state) != len(parts):
            raise ValueError(f"chain of {len(parts)} parts got a state of {len(state)}; make it with init(params)")
        if len(functions) == len(parts):
            return run(functions, grads, state, params, extra)
        new = []
        for part, part_state in zip(parts, state, strict=True):
            grads, part_state = part.update(grads, part_state, params, **extra)
            new.append(part_state)
        return grads, tuple(new)

    return Optimizer(init, update)


def apply_updates(params: Tree, updates: Tree) -> Tree:
    """params + updates, each leaf in the dtype of the param.

    >>> apply_updates({"w": torch.ones(1)}, {"w": torch.ones(1)})
    {'w': tensor([2.])}
    """
    p, u = columns(params, updates)
    added = (Many(p) + Many(u)).tensors if p and is_plain(p, u) else [a + b for a, b in zip(p, u, strict=True)]
    return refill(params, in_dtypes(added, p))[0]


def is_plain(*columns: Iterable[Tensor]) -> bool:
    """Whether this is ordinary eager code: nothing traces, transforms or records what happens to these tensors."""
    return not (
        torch.compiler.is_compiling()
        or _torch.peek_interpreter_stack() is not None
        or _torch.dispatch_modes()
        or any(x.requires_grad for column in columns for x in column)
    )


def fits_kernel(*columns: Sequence[Tensor]) -> bool:
    """Whether torch's fused kernels, which see only addresses and counts, may be given these lists of leaves.

    They read their numbers on the host, which a GPU would have to wait for.
    """
    return bool(columns[0]) and all(
        x.is_contiguous() and x.dtype is columns[0][0].dtype and x.device.type == "cpu" for row in columns for x in row
    )


def as_hyperparam(name: str, value: Any, device: torch.device) -> Tensor:
    """A 0-d tensor: float64 where the device has it, so that float64 params get the number that was given.

    >>> as_hyperparam("learning_rate", 0.1, torch.device("cpu"))
    tensor(0.1000, dtype=torch.float64)
    """
    if isinstance(value, Tensor):
        if value.dim():
            raise ValueError(
                f"{name} must be a number or a 0-d tensor, got one of shape {tuple(value.shape)}; "
                f"for several values at once write vmap(lambda {name}: ...)"
            )
        return value.to(device)
    return torch.tensor(value, dtype=_wide(device), device=device)


def as_time(count: Tensor) -> Tensor:
    """A count as a floating number for formulas."""
    return count.to(_wide(count.device))


def _wide(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


def check_range(name: str, value: Number, low: float = 0.0, high: float = float("inf")) -> None:
    """Raise ``ValueError`` for a plain number outside [low, high); tensors and schedules are not looked at.

    >>> check_range("learning_rate", -1.0)
    Traceback (most recent call last):
    ValueError: learning_rate must not be negative, got -1.0
    """
    if isinstance(value, (int, float)) and not low <= value < high:
        wanted = "must not be negative" if high == float("inf") and low == 0 else f"must be in [{low:g}, {high:g})"
        raise ValueError(f"{name} {wanted}, got {value}")
