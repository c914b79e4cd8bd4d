"""Donation: the results of a step take over the memory of its arguments.

Inside the graph every result is computed from the old values and then written over a donated leaf of the
same shape and dtype; the compiler fuses that write into the update. Outside, the results get tensor objects
of their own and the donated objects lose their memory, so that an old tree cannot show new values.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fnn import _torch
from fnn import tree as _tree
from fnn.tree import Tree


def write(donated: Sequence[tuple[str, Tree]], out: Tree) -> tuple[Tree, tuple[Tensor, ...]]:
    """Write results over donated leaves: ``out`` with those leaves in the results' places, and the leaves.

    ``donated`` holds (name, tree). Copies of all results are made before the first write, so swapped leaves,
    an old leaf among the results and one result in two places come out right; compiled, they cost nothing.
    """
    olds = [(name, path, leaf) for name, tree in donated for path, leaf in _named(tree)]
    flat, spec = _torch.tree_flatten(out)
    places = _assign(olds, out, flat)
    copies = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in flat]
    for (_, _, old), place in zip(olds, places, strict=True):
        if flat[place] is not old:
            old.copy_(copies[place])
        copies[place] = old
    return _torch.tree_unflatten(copies, spec), tuple([old for _, _, old in olds])


def _named(tree: Tree) -> list[tuple[str, Tensor]]:
    return [(_tree._bracket(path), leaf) for path, leaf in _torch.tree_flatten_with_path(tree)[0]]


def _assign(olds: list[tuple[str, str, Tensor]], out: Tree, flat: list) -> list[int]:
    """For each donated leaf the number of the result that takes its memory.

    Each donated argument takes the first element of the result (or the whole result) that has its paths,
    shapes and dtypes; a leaf without such a place takes the first free result of its shape, dtype and device.
    Any choice is exact; this one lets each update be fused with its write.
    """
    parts = list(out) if type(out) in (tuple, list) else [out]
    spans, start = [], 0
    for part in parts:
        named = _named(part)
        spans.append({path: start + i for i, (path, _) in enumerate(named)})
        start += len(named)
    taken: set[int] = set()
    places: dict[int, int] = {}
    names = [name for name, _, _ in olds]
    for name in dict.fromkeys(names):
        mine = [(i, path, leaf) for i, (argument, path, leaf) in enumerate(olds) if argument == name]
        for span in spans:
            fits = len(span) == len(mine) and all(
                path in span and span[path] not in taken and _fits(flat[span[path]], leaf) for _, path, leaf in mine
            )
            if fits:
                places |= {i: span[path] for i, path, _ in mine}
                taken |= {span[path] for _, path, _ in mine}
                break
    for i, (name, path, leaf) in enumerate(olds):
        if i not in places:
            free = [place for place, new in enumerate(flat) if place not in taken and _fits(new, leaf)]
            if not free:
                raise ValueError(
                    f"{name}{path} is donated, but no result is left with its shape {tuple(leaf.shape)} and dtype "
                    f"{leaf.dtype} to take its memory; results have {_specs(flat, taken)}. Return its new value in "
                    "the same shape and dtype, or leave the argument out of donate_argnums"
                )
            places[i] = free[0]
            taken.add(free[0])
    return [places[i] for i in range(len(olds))]


def _fits(new: Any, old: Tensor) -> bool:
    return isinstance(new, Tensor) and new.shape == old.shape and new.dtype == old.dtype and new.device == old.device


def _specs(flat: list, taken: set[int]) -> str:
    free = [leaf for place, leaf in enumerate(flat) if place not in taken and isinstance(leaf, Tensor)]
    return ", ".join(f"{tuple(leaf.shape)} {leaf.dtype}" for leaf in free) or "nothing of the kind"


def check_leaves(trees: dict[str, Tree]) -> None:
    """Raise ``TypeError`` naming a leaf that is no tensor, ``ValueError`` naming one that was donated before."""
    for name, tree in trees.items():
        if all(isinstance(leaf, Tensor) and not leaf.is_meta for leaf in _torch.tree_leaves(tree)):
            continue
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
    return leaf if _torch.storage_users(leaf) == 1 and not leaf._is_view() else leaf.clone()


def identities(tree: Tree, into: list[int]) -> None:
    """Append the ``id`` of every leaf: a flatten cheap enough for every call."""
    for child in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, (list, tuple)) else (tree,):
        if isinstance(child, (dict, list, tuple)):
            identities(child, into)
        else:
            into.append(id(child))


def rebuilder(out: Tree, olds: Sequence[Tensor]) -> Callable[[Tree, Sequence[Tensor]], Tree]:
    """``rebuild(out, new)``: a result like ``out`` with ``new[i]`` in the place of ``olds[i]``.

    One Python expression is written for the structure, as ``collections.namedtuple`` does, because a
    general flatten and unflatten costs more than the compiled step of a small network.
    """
    number = {id(old): i for i, old in enumerate(olds)}
    constants: list[Any] = []

    def constant(value: Any) -> str:
        constants.append(value)
        return f"c[{len(constants) - 1}]"

    def expression(node: Tree, access: str) -> str:
        if isinstance(node, Tensor) and id(node) in number:
            return f"new[{number[id(node)]}]"
        if not any(isinstance(leaf, Tensor) and id(leaf) in number for leaf in _torch.tree_leaves(node)):
            return access
        if type(node) is dict:
            keys = {key: constant(key) for key in node}
            return "{" + ", ".join(f"{keys[k]}: {expression(v, f'{access}[{keys[k]}]')}" for k, v in node.items()) + "}"
        if isinstance(node, tuple) and hasattr(node, "_fields"):
            fields = [expression(child, f"{access}[{i}]") for i, child in enumerate(node)]
            return f"{constant(type(node))}({', '.join(fields)})"
        if type(node) in (list, tuple):
            items = "".join(f"{expression(child, f'{access}[{i}]')}, " for i, child in enumerate(node))
            return f"[{items}]" if type(node) is list else f"({items})"
        flat, spec = _torch.tree_flatten(node)
        positions = [number.get(id(leaf)) for leaf in flat]

        def general(node: Tree, new: Sequence[Tensor]) -> Tree:
            mixed = [
                leaf if position is None else new[position]
                for leaf, position in zip(_torch.tree_leaves(node), positions, strict=True)
            ]
            return _torch.tree_unflatten(mixed, spec)

        return f"{constant(general)}({access}, new)"

    body = expression(out, "out")
    return eval(f"lambda out, new: {body}", {"c": constants})


def hand_over(olds: Sequence[Tensor], empty: Tensor) -> tuple[Tensor, ...]:
    """New tensor objects with the memory of the old ones; the old ones become empty tensors without data.

    ``empty``: a meta tensor of shape (len(olds), 0), whose rows the old objects become.
    """
    news = empty.unbind()
    for old, new in zip(olds, news, strict=True):
        _torch.swap_tensors(old, new)
    return news


def no_data(count: int) -> Tensor:
    return torch.empty((count, 0), device="meta")
