"""Optimizers made from their formula for one leaf."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fnn.optim.base import Optimizer, from_lists, runs_together
from fnn.optim.hyperparams import Choice, Hyperparams, as_time, carry, counter
from fnn.optim.layout import Layout
from fnn.optim.tensor_list import TensorList
from fnn.tree import Tree, describe

_LIKE_PARAMS = (torch.zeros_like, torch.ones_like, torch.clone)


class State(NamedTuple):
    """The state of one transform. All leaves are tensors."""

    count: Tensor
    """int64: the number of updates so far."""
    hyperparams: dict[str, Tensor]
    """0-d, by name; see :func:`fnn.optim.get_hyperparams`."""
    scheduled: dict[str, Tensor]
    """0-d, by name: the values of the schedules at the last update."""
    slots: dict[str, Tree]
    """By name, trees like the params: momentum, running squares, ..."""


def from_rule(
    rule: Callable,
    hyperparams: Mapping[str, Choice] | None = None,
    slots: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
    *,
    extra: Sequence[str] = (),
    kernel: Callable | None = None,
    real_only: str = "",
) -> Optimizer:
    """Make an optimizer from its formula for one leaf.

    ``rule(t, **hyperparams)`` computes the values that all leaves share. It returns a function ``leaf(g, p, *slots) ->
    (update, *slots)`` of a gradient, its param (None if ``update`` is called without params) and the slots. t is the
    number of this update, starting at 1; t and the hyperparameters are 0-d tensors. A hyperparameter is given as a
    number, a 0-d tensor, a schedule (a function of the count of updates, starting at 0), or a tree of these like the
    params or a prefix of them. Each of ``slots`` is a function that returns the initial value of the slot for a leaf of
    the params. ``extra`` lists keyword arguments of ``update`` that are trees like the params; ``leaf`` gets their
    leaves after the slots, or None for a missing argument.

    Rules compute with real leaves of float32 or float64 that have at least one axis. 16-bit leaves are widened, and the
    results are rounded to the dtypes of params and slots. Complex leaves are pairs of real numbers along a last axis,
    as in ``torch.optim``; with ``real_only="name of the optimizer"`` they raise ``TypeError``.

    In eager code the rule is applied to all leaves at once as a :class:`fnn.optim.tensor_list.TensorList`, whose
    operations are multi-tensor kernels. It is applied leaf by leaf if it depends on values that differ between leaves,
    such as ``g.ndim``. ``kernel(t, grads, *slots, **hyperparams) -> (updates, *slots)`` may compute the same as the
    rule for contiguous lists of leaves of one dtype on the CPU.

    >>> double = from_rule(lambda t, factor: lambda g, p: (factor * g,), {"factor": 2.0})
    >>> params = {"w": torch.ones(1)}
    >>> double.update(params, double.init(params))[0]
    {'w': tensor([2.])}
    """
    numbers, starts = Hyperparams(hyperparams or {}), dict(slots or {})

    def init(params: Tree) -> State:
        layout = Layout.of(params)
        if real_only:
            layout.refuse_complex(real_only)
        count = counter(params)
        trees = {
            name: layout.treedef.unflatten([_fresh(start(p), p) for p in layout.params])
            for name, start in starts.items()
        }
        return State(count, *numbers.init(params, count), trees)

    def on_lists(layout: Layout, grads: list, state: State, params: list | None, **given: Any) -> tuple[list, State]:
        if real_only:
            layout.refuse_complex(real_only)
        values, scheduled = numbers.values(state.count, state.hyperparams, state.scheduled)
        count = state.count + 1
        t = as_time(count)
        trees = [given.get(name) for name in extra]
        more = [
            tree if tree is None else layout.leaves_of_whole(tree, name)
            for tree, name in zip(trees, extra, strict=True)
        ]
        columns = [grads, params, *state.slots.values(), *more]
        together = runs_together(values.values(), *[column for column in columns if column is not None])
        results = []
        groups = numbers.groups(layout.treedef)
        for chosen, names in groups:
            part = columns if chosen is None else [column and [column[i] for i in chosen] for column in columns]
            named = values if chosen is None else {name: values[flat] for name, flat in names.items()}
            if together and kernel and _fits_kernel(part[0], *part[2:]):
                results.append(kernel(t, part[0], *part[2:], **named))
                continue
            apply = _all_at_once if together and part[0] else _leaf_by_leaf
            results.append(apply(rule(t, **named), part, 1 + len(starts)))
        if len(groups) == 1:
            result = results[0]
        else:
            result = _scattered([chosen or () for chosen, _ in groups], results, len(grads))
        after = dict(zip(starts, result[1:], strict=True))
        return result[0], State(count, carry(state.hyperparams), scheduled, after)

    def map_slots(f: Callable, layout: Layout, state: State) -> State:
        if not isinstance(state, State) or state.slots.keys() != starts.keys():
            raise ValueError(
                f"opt_state is {_described(state)}, but this optimizer's is a State with slots {list(starts)}; "
                "make it by optimizer.init(params)"
            )
        trees = {name: f(layout, state.slots[name], name, shape_of(name)) for name in starts}
        return State(state.count, state.hyperparams, state.scheduled, trees)

    def shape_of(name: str) -> Callable[[Tensor], torch.Size] | None:
        start = starts[name]
        like_params = isinstance(start, Filled) or start in _LIKE_PARAMS
        return None if like_params else lambda param: start(param).shape

    return from_lists(init, on_lists, map_slots)


class Filled(NamedTuple):
    """The initial value of a slot that is filled with one number, in the real and imaginary parts of complex leaves.

    >>> Filled(0.5)(torch.zeros(2))
    tensor([0.5000, 0.5000])
    """

    value: float | Tensor

    def __call__(self, p: Tensor) -> Tensor:
        if p.is_complex():
            return torch.complex(self(p.real), self(p.imag))
        return torch.zeros_like(p) + (self.value.to(p.device) if isinstance(self.value, Tensor) else self.value)


def _fresh(value: Tensor, param: Tensor) -> Tensor:
    """Copy the initial value of a slot if it is the param itself."""
    return value.clone() if value is param else value


def _described(state: Any) -> str:
    return f"a State with slots {list(state.slots)}" if isinstance(state, State) else describe(state)


def _all_at_once(leaf: Callable, columns: list, expected: int) -> list[list]:
    """Return the updates and slots of all leaves from one call of the rule, if it takes lists of leaves."""
    try:
        results = leaf(*[None if column is None else TensorList(column) for column in columns])
        lists = [r.tensors if isinstance(r, TensorList) else [r] * len(columns[0]) for r in results]
        return _checked(lists, expected)
    except Exception:  # a list is not a tensor for every library; a mistake in the rule is raised again by one leaf
        return _leaf_by_leaf(leaf, columns, expected)


def _leaf_by_leaf(leaf: Callable, columns: list, expected: int) -> list[list]:
    count = len(columns[0])
    rows = [leaf(*row) for row in zip(*[[None] * count if x is None else x for x in columns], strict=True)]
    lists = [list(column) for column in zip(*rows, strict=True)] if rows else [[] for _ in range(expected)]
    return _checked(lists, expected)


def _checked(columns: list[list], expected: int) -> list[list]:
    """Return the results of a rule. Raises ``ValueError`` or ``TypeError`` unless they are an update and all slots."""
    if len(columns) != expected:
        raise ValueError(
            f"a rule must return a tuple of the update and {expected - 1} slots, got {len(columns)} values"
        )
    for column in columns:
        if not all(isinstance(x, Tensor) for x in column):
            raise TypeError(f"a rule must return tensors, got {next(x for x in column if not isinstance(x, Tensor))!r}")
    return columns


def _scattered(groups: Sequence[Sequence[int]], results: list[list[list]], count: int) -> list[list]:
    """Put the results of groups of leaves into the order of the leaves."""
    columns = [[None] * count for _ in results[0]]
    for chosen, group in zip(groups, results, strict=True):
        for column, values in zip(columns, group, strict=True):
            for i, x in zip(chosen, values, strict=True):
                column[i] = x
    return columns  # type: ignore[return-value]


def _fits_kernel(*lists: Sequence[Tensor]) -> bool:
    """Return True if torch's fused CPU kernels, which require contiguous leaves of one dtype, may be called."""
    first = lists[0][0] if lists[0] else None
    return first is not None and False not in [
        x.is_contiguous() and x.dtype is first.dtype and x.device.type == "cpu" for tensors in lists for x in tensors
    ]
