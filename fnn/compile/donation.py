"""Donation: the results of a step take over the memory of its arguments.

Inside the graph every result is computed from the old values and then written over a donated leaf of the
same shape and dtype; the compiler fuses that write into the update. Outside, the results get tensor objects
of their own and the donated objects lose their memory, so that an old tree cannot show new values.
"""

import operator
import sys
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fnn import _torch
from fnn import tree as _tree
from fnn.tree import Tree


def write(donated: Sequence[Tree], out: Tree) -> Tree:
    """Write results over donated leaves: ``out`` with those leaves in the results' places.

    Copies of all results are made before the first write, so swapped leaves, an old leaf among the results
    and one result in two places come out right; compiled, they cost nothing.
    """
    olds = [leaves(tree) for tree in donated]
    flat = leaves(out)
    places = _assign(olds, out, flat)
    if places is None:
        raise ValueError("a donated leaf has no result")  # check_results says which
    copies = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in flat]
    taken = [leaf for tree in olds for leaf in tree]
    for old, place in zip(taken, places, strict=True):
        if flat[place] is not old:
            old.copy_(copies[place])
        copies[place] = old
    return _like(out, iter(copies))


def _assign(olds: list[list[Tensor]], out: Tree, flat: list) -> list[int] | None:
    """For each donated leaf the number of the result that takes its memory, or None if one has no result.

    Each donated argument takes the first element of the result (or the whole result) with its shapes and
    dtypes in order; a leaf without such a place takes the first free result of its shape, dtype and device.
    Any choice is exact; this one lets each update be fused with its write.
    """
    parts = list(out) if type(out) in (tuple, list) else [out]
    counts = [len(leaves(part)) for part in parts]
    starts = [sum(counts[:i]) for i in range(len(counts))]
    free = set(range(len(flat)))
    places: list[int] = []
    for tree in olds:
        block = None
        for start, count in zip(starts, counts, strict=True):
            places_here = range(start, start + count)
            if (
                block is None
                and count == len(tree)
                and all(
                    place in free and _fits(flat[place], leaf) for place, leaf in zip(places_here, tree, strict=True)
                )
            ):
                block = list(places_here)
        if block is None:
            block = []
            for leaf in tree:
                candidates = [i for i in range(len(flat)) if i in free and i not in block and _fits(flat[i], leaf)]
                if not candidates:
                    return None
                block.append(candidates[0])
        places.extend(block)
        free -= set(block)
    return places


def check_results(donated: dict[str, Tree], out: Tree) -> None:
    """Raise ``ValueError`` naming a donated leaf for which no result has its shape, dtype and device."""
    flat = leaves(out)
    if _assign([leaves(tree) for tree in donated.values()], out, flat) is not None:
        return
    free = list(flat)
    for name, tree in donated.items():
        for path, leaf in _named(tree):
            place = next((i for i, new in enumerate(free) if _fits(new, leaf)), None)
            if place is None:
                left = ", ".join(f"{tuple(x.shape)} {x.dtype}" for x in free if isinstance(x, Tensor)) or "nothing"
                raise ValueError(
                    f"{name}{path} is donated, but no result is left with its shape {tuple(leaf.shape)} and dtype "
                    f"{leaf.dtype} to take its memory; left are: {left}. Return its new value in the same shape and "
                    "dtype, or leave the argument out of donate_argnums"
                )
            del free[place]
    raise ValueError("results do not cover the donated leaves")


def _fits(new: Any, old: Tensor) -> bool:
    return isinstance(new, Tensor) and new.shape == old.shape and new.dtype == old.dtype and new.device == old.device


# Short flatten and unflatten: the general ones take the compiler seconds to trace for a large tree


def leaves(tree: Tree) -> list:
    """All leaves, in the containers' own order."""
    found: list = []
    _collect(tree, found)
    return found


def _collect(tree: Tree, found: list) -> None:
    if isinstance(tree, Tensor):
        found.append(tree)
    elif isinstance(tree, dict):
        for child in tree.values():
            _collect(child, found)
    elif isinstance(tree, (list, tuple)):
        for child in tree:
            _collect(child, found)
    else:
        found.extend(_torch.tree_leaves(tree))


def _like(tree: Tree, values: Iterator) -> Tree:
    if type(tree) is dict:
        return {key: _like(child, values) for key, child in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*[_like(child, values) for child in tree])
    if type(tree) in (list, tuple):
        children = [_like(child, values) for child in tree]
        return children if type(tree) is list else tuple(children)
    return next(values) if isinstance(tree, Tensor) else _torch.tree_map(lambda _: next(values), tree)


def _named(tree: Tree) -> list[tuple[str, Any]]:
    return list(zip(_tree.keystrs(tree), _tree.leaves(tree), strict=True))


def check_leaves(trees: dict[str, Tree]) -> None:
    """Raise ``TypeError`` naming a leaf that is no tensor, ``ValueError`` naming one that was donated before."""
    for name, tree in trees.items():
        for path, leaf in _named(tree):
            if not isinstance(leaf, Tensor):
                raise TypeError(
                    f"{name}{path} is {leaf!r}, a {type(leaf).__name__}, which would be frozen into the graph; pass "
                    f"torch.tensor(...), keep it in a closure, or name the argument {name} in static_argnums"
                )
            if leaf.is_meta:
                raise ValueError(
                    f"{name}{path} holds no data: it was donated to an earlier call, whose result has its memory now. "
                    "Go on with that result, as in params = step(params, ...), or donate a copy (leaf.clone())"
                )


def owned(donated: dict[str, Tree]) -> dict[str, Tree]:
    """The donated trees with a copy of each leaf whose memory somebody else sees (a view, its base, an alias).

    Raises ``ValueError`` for one tensor in two places: its memory could take only one of the two results.
    """
    places: dict[int, str] = {}
    for name, tree in donated.items():
        for path, leaf in _named(tree):
            if id(leaf) in places:
                raise ValueError(
                    f"{places[id(leaf)]} and {name}{path} are the same tensor, and a donated tensor's memory can take "
                    "only one result; pass leaf.clone() in one of the two places"
                )
            places[id(leaf)] = name + path
    return {name: _torch.tree_map(_own, tree) for name, tree in donated.items()}


def _own(leaf: Tensor) -> Tensor:
    # a fresh tensor has one tensor object on its storage, besides the handle that the question itself makes
    return leaf if _torch.storage_users(leaf) == 1 and not _torch.is_view(leaf) else leaf.clone()


def identities(tree: Tree, into: list[int]) -> None:
    """Append the ``id`` of every leaf: a flatten cheap enough for every call."""
    for child in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, (list, tuple)) else (tree,):
        if isinstance(child, (dict, list, tuple)):
            identities(child, into)
        else:
            into.append(id(child))


def signature(leaf: Tensor) -> tuple:
    """What a graph takes for granted of a donated leaf."""
    kind = (type(leaf), leaf.dtype, leaf.device, leaf.requires_grad, leaf.is_conj(), leaf.is_neg())
    return leaf.shape, leaf.stride(), *kind


class Hands:
    """Hands the memory of donated tensors to tensor objects of its own.

    The old objects become empty, so that an old tree cannot show new values. They are kept, as they hold no data, and
    serve as the next call's new objects unless the caller still holds them: making tensors anew costs more.
    """

    def __init__(self) -> None:
        # by the id of the first tensor: what kind of set it is, and references to its tensors
        self.sets: dict[int, tuple[Any, list[weakref.ref]]] = {}
        self.spare: list[Tensor] = []
        self.spare_references: list[weakref.ref] = []

    def gave(self, tensors: Sequence[Tensor], kind: Any) -> bool:
        """Whether they are, in order, a set of this kind that was handed out, and hold their memory still."""
        known, references = self.sets.get(id(tensors[0]), (None, [])) if tensors else (kind, [])
        objects = [reference() for reference in references]
        same = known is kind and len(tensors) == len(objects) and all(map(operator.is_, tensors, objects))
        return same and not any(map(_is_empty, tensors))

    def gave_each(self, tensors: Sequence[Tensor]) -> bool:
        """Whether they are different tensors, each of which was handed out and holds its memory still."""
        if any(map(_is_empty, tensors)):
            return False
        ids = {id(reference()) for _, references in self.sets.values() for reference in references}
        return len(set(map(id, tensors))) == len(tensors) and ids.issuperset(map(id, tensors))

    def keep(self, tensors: Sequence[Tensor], kind: Any) -> None:
        """Note that these are handed out as they are."""
        self._note(tensors, kind, [weakref.ref(tensor) for tensor in tensors])

    def over(self, olds: list[Tensor], kind: Any, mine: bool) -> tuple[list[Tensor], bool]:
        """Tensor objects with the memory of the old ones, and whether they were made for this call.

        mine: the old ones are a set of this kind that was handed out.
        """
        news, references = self.spare, self.spare_references
        fresh = len(news) != len(olds) or max(_users(news), default=0) > ALONE
        if fresh:
            news = [*torch.empty((len(olds), 0), device="meta").unbind()]
            references = [weakref.ref(tensor) for tensor in news]
        for old, new in zip(olds, news, strict=True):
            _torch.swap_tensors(old, new)
        if mine and olds:
            self.spare, self.spare_references = olds, self.sets.pop(id(olds[0]))[1]
        else:
            self.spare, self.spare_references = [], []
            gone = set(map(id, olds))
            self.sets = {key: s for key, s in self.sets.items() if gone.isdisjoint(id(ref()) for ref in s[1])}
        self._note(news, kind, references)
        return news, fresh

    def _note(self, tensors: Sequence[Tensor], kind: Any, references: list[weakref.ref]) -> None:
        if tensors:
            self.sets[id(tensors[0])] = kind, references
        if len(self.sets) > 100:
            self.sets = {key: held for key, held in self.sets.items() if held[1][0]() is not None}


_is_empty = operator.attrgetter("is_meta")  # another function may have been given a tensor that this one handed out


def _users(objects: list) -> list[int]:
    return list(map(sys.getrefcount, objects))


ALONE = _users([object()])[0]  # the count of an object that nothing but one list holds


def empty(tensors: Sequence[Tensor]) -> None:
    """Take the memory from tensor objects."""
    for tensor in tensors:
        _torch.swap_tensors(tensor, torch.empty(0, device="meta"))
