"""The type of optimizers, chains of optimizers, and applying updates."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fnn import _torch
from fnn._tracing import multi_tensor_kernels
from fnn.optim.layout import Layout, stored_like, working
from fnn.optim.tensor_list import TensorList
from fnn.tree import Tree, describe


class Optimizer(NamedTuple):
    """A pair of pure functions.

    ``init(params) -> opt_state`` and ``update(grads, opt_state, params, **extra) -> (updates, opt_state)``, where
    :func:`apply_updates` adds the updates to the params. A few optimizers need ``extra`` values, such as ``loss``; all
    others ignore them.
    """

    init: Callable[[Tree], Tree]
    update: Callable[..., tuple[Tree, Tree]]


class ListForm:
    """The update of an optimizer, written for flat lists of leaves. Calling it updates trees.

    ``on_lists(layout, grads, state, params, **extra) -> (updates, state)`` is the update for lists of working leaves
    (see :class:`fnn.optim.layout.Layout`). In its state, lists replace the slots, which are trees like the params.
    ``map_slots(f, layout, state)`` returns the state with ``f(layout, slot, name, shape_of)`` in place of each slot,
    and visits the slots always in the same order. Optimizers made of others call ``on_lists`` and ``map_slots`` of
    their parts, so trees are flattened only once, however deeply optimizers are nested.
    """

    __slots__ = ("map_slots", "on_lists")

    def __init__(self, on_lists: Callable[..., tuple[list, Tree]], map_slots: Callable[[Callable, Layout, Tree], Tree]):
        self.on_lists = on_lists
        self.map_slots = map_slots

    def __call__(self, grads: Tree, opt_state: Tree, params: Tree = None, **extra: Any) -> tuple[Tree, Tree]:
        layout = Layout.of(grads, "grads") if params is None else Layout.of(params)
        g = layout.leaves(grads, "grads")
        p = None if params is None else g if params is grads else layout.leaves(params, "params")
        slots: list[list[Tensor]] = []

        def open_slot(layout: Layout, slot: Tree, name: str, shape_of: Callable | None = None) -> list[Tensor]:
            try:
                slots.append(layout.stored(slot, name, shape_of))
            except ValueError as error:
                raise ValueError(
                    f"opt_state does not fit the params: {error}; make it by optimizer.init(params)"
                ) from None
            return working(slots[-1])

        state = self.map_slots(open_slot, layout, opt_state)
        given = {id(x) for leaves in (layout.params, g, *slots) for x in leaves}
        updates, state = self.on_lists(layout, g, state, p, **extra)
        before = iter(slots)

        def close_slot(layout: Layout, slot: list[Tensor], name: str, shape_of: Callable | None = None) -> Tree:
            return layout.treedef.unflatten(_owned(stored_like(slot, next(before)), given))

        updates = layout.treedef.unflatten(_owned(stored_like(updates, layout.params), given))
        return updates, self.map_slots(close_slot, layout, state)


def from_lists(
    init: Callable[[Tree], Tree],
    on_lists: Callable[..., tuple[list, Tree]],
    map_slots: Callable[[Callable, Layout, Tree], Tree],
) -> Optimizer:
    """An optimizer whose update is written for lists; see :class:`ListForm`."""
    lists = ListForm(on_lists, map_slots)

    def update(grads: Tree, opt_state: Tree, params: Tree = None, **extra: Any) -> tuple[Tree, Tree]:
        return lists(grads, opt_state, params, **extra)

    update.lists = lists  # pyright: ignore[reportFunctionMemberAccess]
    return Optimizer(init, update)


def _owned(leaves: list[Tensor], given: set[int]) -> list[Tensor]:
    """Copy the leaves that are, or may share memory with, one of the given leaves, and add all leaves to these.

    Traced code does not copy: the executable of the graph gives each result its own memory.
    """
    if torch.compiler.is_compiling():
        return leaves
    new = set(map(id, leaves))
    if len(new) < len(leaves) or not given.isdisjoint(new) or any(map(_torch.is_view, leaves)):
        owned = []
        for x in leaves:
            owned.append(x.clone() if id(x) in given or _torch.is_view(x) else x)
            given.add(id(owned[-1]))
        return owned
    given |= new
    return leaves


def list_form(optimizer: Optimizer) -> ListForm:
    """Return the update of an optimizer for lists. If it has none, the result calls its update for trees."""
    update = optimizer.update
    if hasattr(update, "lists"):
        return update.lists  # pyright: ignore[reportFunctionMemberAccess]

    def on_lists(layout: Layout, grads: list, state: Tree, params: list | None, **extra: Any) -> tuple[list, Tree]:
        p = None if params is None else layout.tree(params)
        updates, state = update(layout.tree(grads), state, p, **extra)
        return layout.leaves(updates, "updates"), state

    return ListForm(on_lists, lambda f, layout, state: state)


def chain(*parts: Optimizer) -> Optimizer:
    """Apply optimizers one after the other, each to the updates of the previous one. The state is a tuple.

    Parts may be chains and any other pairs ``Optimizer(init, update)``. Raises ``TypeError`` for a part that is not an
    optimizer, and ``ValueError`` for a state of another length.

    >>> from fnn.optim import clip_by_global_norm, sgd
    >>> opt = chain(clip_by_global_norm(1.0), sgd(0.1))
    >>> params = {"w": torch.zeros(2)}
    >>> opt.update({"w": torch.tensor([3.0, 4.0])}, opt.init(params), params)[0]
    {'w': tensor([-0.0600, -0.0800])}
    """
    check_optimizers("chain", *parts)
    updates = tuple([list_form(part) for part in parts])

    def init(params: Tree) -> tuple:
        return tuple(part.init(params) for part in parts)

    def on_lists(layout: Layout, grads: list, state: tuple, params: list | None, **extra: Any) -> tuple[list, tuple]:
        after = []
        for update, part_state in zip(updates, state, strict=True):
            grads, part_state = update.on_lists(layout, grads, part_state, params, **extra)
            after.append(part_state)
        return grads, tuple(after)

    def map_slots(f: Callable, layout: Layout, state: tuple) -> tuple:
        if not isinstance(state, tuple) or len(state) != len(parts):
            raise ValueError(
                f"chain of {len(parts)} parts got a state that is {describe(state)}; make it by optimizer.init(params)"
            )
        return tuple(update.map_slots(f, layout, part_state) for update, part_state in zip(updates, state, strict=True))

    return from_lists(init, on_lists, map_slots)


def check_optimizers(name: str, *parts: Any) -> None:
    """Raise ``TypeError`` unless all arguments of the function ``name`` are optimizers."""
    for part in parts:
        if not isinstance(part, Optimizer):
            hint = f"; call it: {part.__name__}(...)" if hasattr(part, "__name__") else ""
            raise TypeError(f"{name} takes optimizers, got {part!r}{hint}")


def needs_params(optimizer: Optimizer, what: str) -> Optimizer:
    """Return the optimizer with an update that raises ``ValueError`` if it is called without params."""
    inner = list_form(optimizer)

    def on_lists(layout: Layout, grads: list, state: Tree, params: list | None, **extra: Any) -> tuple[list, Tree]:
        if params is None:
            raise ValueError(f"{what} needs the params; write optimizer.update(grads, opt_state, params)")
        return inner.on_lists(layout, grads, state, params, **extra)

    return from_lists(optimizer.init, on_lists, inner.map_slots)


def apply_updates(params: Tree, updates: Tree) -> Tree:
    """Return params + updates, with each leaf in the dtype of the param.

    Raises ``ValueError`` naming the first path at which the structures or shapes differ.

    >>> apply_updates({"w": torch.ones(1)}, {"w": torch.ones(1)})
    {'w': tensor([2.])}
    """
    layout = Layout.of(params)
    p, u = layout.params, layout.stored(updates, "updates")
    if p and runs_together(p, u):
        added = (TensorList(p) + TensorList(u)).tensors
    else:
        added = [a + b for a, b in zip(p, u, strict=True)]
    return layout.treedef.unflatten([x.to(old.dtype) for x, old in zip(added, p, strict=True)])


def runs_together(*lists: Iterable[Tensor]) -> bool:
    """Return True if multi-tensor kernels may be called: no transform, autograd graph or compiler is involved."""
    return multi_tensor_kernels() and True not in [x.requires_grad for tensors in lists for x in tensors]
