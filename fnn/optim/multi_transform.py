"""Different optimizers, or none, for different parts of the params."""

import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fnn import tree as _tree
from fnn.optim.base import Optimizer, chain, check_optimizers, from_lists, list_form
from fnn.optim.layout import Layout
from fnn.tree import Tree, TreeDef, describe
from fnn.tree.partition import select

Labels = Tree | Callable[..., Any]
"""A label for each leaf: a function of (path) or of (path, leaf), or a tree of labels like the params or a prefix."""


class MultiTransformState(NamedTuple):
    parts: dict[str, Tree]
    """The state of each optimizer, by label, for its leaves alone."""


def multi_transform(optimizers: Mapping[str, Optimizer], labels: Labels) -> Optimizer:
    """Update each leaf with the optimizer of its label.

    Each optimizer gets only its own leaves, so a global norm, for example, is the norm of its part. ``labels`` is a
    function of the dotted path, ``lambda path: "head" if path.startswith("fc3") else "body"``, or of path and leaf, or
    a tree of labels like the params or a prefix of them, ``{"body": "slow", "head": "fast"}``. Labels may depend on the
    shape and dtype of a leaf, not on its values. Raises ``ValueError`` for a label without an optimizer and for a leaf
    without a label.

    >>> import fnn
    >>> opt = multi_transform({"w": fnn.optim.sgd(0.1), "b": fnn.optim.sgd(0.5)}, lambda path: path)
    >>> params = {"w": torch.ones(1), "b": torch.ones(1)}
    >>> opt.update(params, opt.init(params), params)[0]
    {'w': tensor([-0.1000]), 'b': tensor([-0.5000])}
    """
    check_optimizers("multi_transform", *optimizers.values())
    return _by_label(optimizers, lambda layout: _labels_of(labels, layout, optimizers))


def _by_label(optimizers: Mapping[str, Optimizer], labels: Callable[[Layout], list]) -> Optimizer:
    updates = {label: list_form(optimizer) for label, optimizer in optimizers.items()}

    def split(layout: Layout) -> dict[str, Layout]:
        if split in layout.memo:
            return layout.memo[split]
        found = labels(layout)
        parts = layout.memo[split] = {}
        for label in optimizers:
            chosen = tuple([i for i, other in enumerate(found) if other == label])
            parts[label] = layout.part(chosen, _part_of(layout.treedef, chosen))
        return parts

    def init(params: Tree) -> MultiTransformState:
        parts = split(Layout.of(params))
        return MultiTransformState(
            {label: optimizer.init(parts[label].as_given()) for label, optimizer in optimizers.items()}
        )

    def on_lists(
        layout: Layout, grads: list, state: MultiTransformState, params: list | None, **extra: Any
    ) -> tuple[list, MultiTransformState]:
        whole, after = list(grads), {}
        for label, part in split(layout).items():
            g, p = ([leaves[i] for i in part.chosen] if leaves else leaves for leaves in (grads, params))
            found, after[label] = updates[label].on_lists(part, g, state.parts[label], p, **extra)
            for i, x in zip(part.chosen, found, strict=True):
                whole[i] = x
        return whole, MultiTransformState(after)

    def map_slots(f: Callable, layout: Layout, state: MultiTransformState) -> MultiTransformState:
        if not isinstance(state, MultiTransformState) or state.parts.keys() != updates.keys():
            raise ValueError(
                f"multi_transform of {list(updates)} got a state that is {describe(state)}; make it by "
                "optimizer.init(params)"
            )
        parts = split(layout).items()
        return MultiTransformState(
            {label: updates[label].map_slots(f, part, state.parts[label]) for label, part in parts}
        )

    return from_lists(init, on_lists, map_slots)


@lru_cache(maxsize=64)
def _part_of(treedef: TreeDef, chosen: tuple[int, ...]) -> TreeDef:
    """Return the structure of the tree of the chosen leaves."""
    indices = range(treedef.num_leaves)
    return _tree.structure(select(treedef, list(indices), [i in chosen for i in indices]))


def _labels_of(labels: Labels, layout: Layout, optimizers: Mapping[str, Optimizer]) -> list:
    """Return the label of every leaf. Raises ``ValueError`` for a label without an optimizer."""
    found = _values(labels, layout, "labels")
    for path, label in zip(layout.treedef.paths, found, strict=True):
        if label not in optimizers:
            raise ValueError(f"{path!r} has the label {label!r}, but the optimizers are {sorted(optimizers)}")
    return found


def _values(choice: Any, layout: Layout, name: str) -> list:
    """Return the value for each leaf, chosen by a function of the path, or of path and leaf, or by a tree."""
    if callable(choice) and not isinstance(choice, (Tensor, Mapping)) and _takes_two(choice):
        return [choice(path, leaf) for path, leaf in zip(layout.treedef.paths, layout.params, strict=True)]
    return _tree.leaf_values(choice, layout.as_given(), name)


def _takes_two(function: Callable) -> bool:
    code = getattr(function, "__code__", None)
    return code is not None and code.co_argcount - len(getattr(function, "__defaults__", None) or ()) == 2


def _chosen(choice: Any, layout: Layout, name: str) -> list[bool]:
    """Return whether each leaf is chosen. Raises ``TypeError`` for a tree of other values than bools."""
    found = _values(choice, layout, name)
    if not callable(choice):
        for place, value in zip(layout.treedef.keystrs, found, strict=True):
            of_bools = isinstance(value, bool) or getattr(value, "dtype", None) in (torch.bool, bool)
            if not of_bools or math.prod(getattr(value, "shape", ())) != 1:
                raise TypeError(f"{name} must be a tree of True and False, but for the leaf {place} it is {value!r}")
    return [bool(value) for value in found]


def zero() -> Optimizer:
    """Replace updates by zeros. It has no state. Optax calls it ``set_to_zero``.

    >>> zero().update({"w": torch.ones(1)}, zero().init({"w": torch.ones(1)}))[0]
    {'w': tensor([0.])}
    """
    return _without_state(lambda grads: [torch.zeros_like(g) for g in grads])


def identity() -> Optimizer:
    """Return the gradients unchanged. It has no state.

    >>> identity().update({"w": torch.ones(1)}, identity().init({"w": torch.ones(1)}))[0]
    {'w': tensor([1.])}
    """
    return _without_state(lambda grads: grads)


def _without_state(f: Callable[[list[Tensor]], list[Tensor]]) -> Optimizer:
    on_lists = lambda layout, grads, state, params, **_: (f(grads), {})
    return from_lists(lambda params: {}, on_lists, lambda f, layout, state: state)


def mask(optimizer: Optimizer, choice: Any, rest: str) -> Optimizer:
    """Apply an optimizer to some of the leaves.

    ``choice`` is a function of the dotted path, or of path and leaf, or a tree of bools like the params or a prefix of
    them. ``rest`` is "zero" for updates of zero for the other leaves, or "pass" for their unchanged gradients, which is
    meant for transforms inside a chain.

    >>> import fnn
    >>> decay = mask(fnn.optim.add_decayed_weights(0.1), lambda path: path.endswith("weight"), rest="pass")
    >>> params = {"weight": torch.ones(1), "bias": torch.ones(1)}
    >>> decay.update(params, decay.init(params), params)[0]
    {'weight': tensor([1.1000]), 'bias': tensor([1.])}
    >>> same = mask(fnn.optim.add_decayed_weights(0.1), {"weight": True, "bias": False}, rest="pass")
    >>> same.update(params, same.init(params), params)[0]
    {'weight': tensor([1.1000]), 'bias': tensor([1.])}
    """
    check_optimizers("mask", optimizer)
    others = {"zero": zero(), "pass": identity()}
    if rest not in others:
        raise ValueError(f'rest must be "zero" (no update) or "pass" (the gradient as it is), got {rest!r}')
    labels = lambda layout: ["in" if wanted else "out" for wanted in _chosen(choice, layout, "mask")]
    return _by_label({"in": optimizer, "out": others[rest]}, labels)


def freeze(optimizer: Optimizer, choice: Any) -> Optimizer:
    """Apply an optimizer to all leaves except the chosen ones, which stay unchanged.

    ``choice`` is a function of the dotted path, or of path and leaf, or a tree of bools like the params or a prefix of
    them: ``freeze(optimizer, {"body": True, "head": False})``. Frozen leaves get updates of zero: no step, no decay, no
    state, and no share in a global norm. Their gradients are still computed; ``fnn.tree.partition`` on the params saves
    that too. Raises ``ValueError`` if no leaf is chosen.

    >>> import fnn
    >>> opt = freeze(fnn.optim.adamw(0.1), lambda path: path.startswith("body"))
    >>> params = {"body": torch.ones(1), "head": torch.ones(1)}
    >>> opt.update(params, opt.init(params), params)[0]["body"]
    tensor([0.])
    """
    check_optimizers("freeze", optimizer)

    def labels(layout: Layout) -> list[str]:
        frozen = _chosen(choice, layout, "freeze")
        if frozen and not any(frozen):
            raise ValueError(f"freeze: no leaf is chosen; the paths of the params are {list(layout.treedef.paths)}")
        return ["frozen" if x else "trained" for x in frozen]

    return _by_label({"trained": optimizer, "frozen": zero()}, labels)


class NamedChainState(NamedTuple):
    parts: dict[str, Tree]


def named_chain(**parts: Optimizer) -> Optimizer:
    """Chain optimizers as :func:`fnn.optim.chain` does, with a name for the state of each part.

    >>> import fnn
    >>> opt = named_chain(clip=fnn.optim.clip(1.0), descend=fnn.optim.sgd(0.1))
    >>> list(opt.init({"w": torch.ones(1)}).parts)
    ['clip', 'descend']
    """
    whole = chain(*parts.values())
    inner = list_form(whole)

    def named(state: tuple) -> NamedChainState:
        return NamedChainState(dict(zip(parts, state, strict=True)))

    def states(state: NamedChainState) -> tuple:
        if not isinstance(state, NamedChainState) or state.parts.keys() != parts.keys():
            raise ValueError(
                f"named_chain of {list(parts)} got a state that is {describe(state)}; make it by optimizer.init(params)"
            )
        return tuple([state.parts[name] for name in parts])

    def on_lists(
        layout: Layout, grads: list, state: NamedChainState, params: list | None, **extra: Any
    ) -> tuple[list, NamedChainState]:
        updates, after = inner.on_lists(layout, grads, states(state), params, **extra)
        return updates, named(after)

    map_slots = lambda f, layout, state: named(inner.map_slots(f, layout, states(state)))
    return from_lists(lambda params: named(whole.init(params)), on_lists, map_slots)
