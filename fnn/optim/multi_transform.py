"""Different optimizers, or none, for different parts of the params."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from fnn import tree as _tree
from fnn.optim.base import Optimizer, chain
from fnn.tree import Tree

Labels = Tree | Callable[..., str]
"""The label of every leaf: a tree of strings like the params, or a function of (path) or (path, leaf)."""


class PartitionState(NamedTuple):
    parts: dict[str, Tree]
    """The state of each optimizer, by label, for its leaves alone."""


def partition(optimizers: Mapping[str, Optimizer], labels: Labels) -> Optimizer:
    """Each leaf's optimizer by its label.

    An optimizer sees a tree of its own leaves alone, so that a global norm, for example, is that of its part.
    ``labels`` is a function of the dotted path, ``lambda path: "head" if path.startswith("fc3") else "body"``, or of
    path and leaf, or a tree like the params with a label for each leaf. Raises ``ValueError`` for a label without an
    optimizer and, with a tree, for params of another structure.

    >>> import torch, fnn
    >>> opt = partition({"w": fnn.optim.sgd(0.1), "b": fnn.optim.sgd(0.5)}, lambda path: path)
    >>> params = {"w": torch.ones(1), "b": torch.ones(1)}
    >>> opt.update(params, opt.init(params), params)[0]
    {'w': tensor([-0.1000]), 'b': tensor([-0.5000])}
    """

    def split(params: Tree, like: Tree) -> dict[str, Tree]:
        """One tree for each label, all with the structure that the labels of ``like`` give."""
        by_path = labels_of(labels, like)
        for path, label in by_path.items():
            if label not in optimizers:
                raise ValueError(f"{path!r} has the label {label!r}, but the optimizers are {sorted(optimizers)}")
        return {
            label: _tree.partition(params, lambda path, label=label: by_path[path] == label)[0] for label in optimizers
        }

    def init(params: Tree) -> PartitionState:
        parts = split(params, params)
        return PartitionState({label: optimizer.init(parts[label]) for label, optimizer in optimizers.items()})

    def update(grads: Tree, state: PartitionState, params: Tree = None, **extra) -> tuple[Tree, PartitionState]:
        like = grads if params is None else params
        _tree.check_same_structure(like, grads, ("params", "grads"))
        g, p = split(grads, like), None if params is None else split(params, like)
        whole, after = None, {}
        for label, optimizer in optimizers.items():
            updates, after[label] = optimizer.update(g[label], state.parts[label], p and p[label], **extra)
            whole = updates if whole is None else _tree.combine(whole, updates)
        return _tree.structure(like).unflatten(_tree.leaves(whole)), PartitionState(after)

    return Optimizer(init, update)


def labels_of(labels: Labels, params: Tree) -> dict[str, Any]:
    """The label of every dotted path."""
    if not callable(labels):
        _tree.check_same_structure(params, labels, ("params", "labels"))
        return dict(zip(_tree.paths(params), _tree.leaves(labels), strict=True))
    two = _takes_two(labels)
    return {path: (labels(path, leaf) if two else labels(path)) for path, leaf in _tree.items(params)}


def _takes_two(function: Callable) -> bool:
    code = getattr(function, "__code__", None)
    return code is not None and code.co_argcount == 2


def zero() -> Optimizer:
    """No update at all, and no state.

    >>> import torch
    >>> zero().update({"w": torch.ones(1)}, zero().init({"w": torch.ones(1)}))[0]
    {'w': tensor([0.])}
    """
    return Optimizer(lambda params: {}, lambda grads, state, params=None, **extra: (_tree.zeros_like(grads), state))


def identity() -> Optimizer:
    """Gradients passed on as they are, and no state.

    >>> import torch
    >>> identity().update({"w": torch.ones(1)}, identity().init({"w": torch.ones(1)}))[0]
    {'w': tensor([1.])}
    """
    return Optimizer(lambda params: {}, lambda grads, state, params=None, **extra: (grads, state))


def mask(optimizer: Optimizer, predicate: Callable[..., bool], rest: str) -> Optimizer:
    """The optimizer for the leaves whose path satisfies ``predicate`` alone.

    ``rest`` says what the others get: "zero" updates, or "pass" for their gradients as they are, for a transform
    inside a chain. ``predicate`` takes the dotted path, or path and leaf.

    >>> import torch, fnn
    >>> decay = mask(fnn.optim.add_decayed_weights(0.1), lambda path: path.endswith("weight"), rest="pass")
    >>> params = {"weight": torch.ones(1), "bias": torch.ones(1)}
    >>> decay.update(params, decay.init(params), params)[0]
    {'weight': tensor([1.1000]), 'bias': tensor([1.])}
    """
    others = {"zero": zero(), "pass": identity()}
    if rest not in others:
        raise ValueError(f'rest must be "zero" (no update) or "pass" (the gradient as it is), got {rest!r}')
    two = _takes_two(predicate)
    chosen = lambda path, leaf: "in" if (predicate(path, leaf) if two else predicate(path)) else "out"
    return partition({"in": optimizer, "out": others[rest]}, chosen)


def freeze(optimizer: Optimizer, predicate: Callable[..., bool]) -> Optimizer:
    """The optimizer for all leaves but those whose path satisfies ``predicate``.

    Frozen leaves get updates of zero: no step, no decay, no state, and no share in a global norm. Their gradients are
    still computed; ``fnn.tree.partition`` on the params saves that too.

    >>> import torch, fnn
    >>> opt = freeze(fnn.optim.adamw(0.1), lambda path: path.startswith("body"))
    >>> params = {"body": torch.ones(1), "head": torch.ones(1)}
    >>> opt.update(params, opt.init(params), params)[0]["body"]
    tensor([0.])
    """
    two = _takes_two(predicate)
    return mask(optimizer, lambda path, leaf: not (predicate(path, leaf) if two else predicate(path)), rest="zero")


class NamedChainState(NamedTuple):
    parts: dict[str, Tree]


def named_chain(**parts: Optimizer) -> Optimizer:
    """Like :func:`fnn.optim.chain`, with a name for each part's state.

    >>> import torch, fnn
    >>> opt = named_chain(clip=fnn.optim.clip(1.0), descend=fnn.optim.sgd(0.1))
    >>> list(opt.init({"w": torch.ones(1)}).parts)
    ['clip', 'descend']
    """
    whole = chain(*parts.values())

    def init(params: Tree) -> NamedChainState:
        return NamedChainState(dict(zip(parts, whole.init(params), strict=True)))

    def update(grads: Tree, state: NamedChainState, params: Tree = None, **extra) -> tuple[Tree, NamedChainState]:
        updates, after = whole.update(grads, tuple(state.parts[name] for name in parts), params, **extra)
        return updates, NamedChainState(dict(zip(parts, after, strict=True)))

    return Optimizer(init, update)
