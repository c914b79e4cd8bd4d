"""The order of a tree's leaves, their paths, and what differs between two trees."""

import collections
import functools
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fnn import _torch

Tree = Any
"""A pytree: dict, list, tuple or NamedTuple of trees, or a tensor."""


class Spec(NamedTuple):
    """What a leaf is, without its numbers."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


def natural(key: Any) -> tuple:
    pieces = re.split(r"(\d+)", key) if isinstance(key, str) else [key]
    return tuple((0, int(piece), "") if str(piece).isdigit() else (1, 0, str(piece)) for piece in pieces if piece != "")


@functools.lru_cache(maxsize=4096)
def _sorted_keys(keys: tuple) -> tuple:
    return tuple(sorted(keys, key=natural))


_traced_keys = _torch.constant_when_traced(lambda *keys: _sorted_keys(keys))


def keys_in_order(node: dict) -> Sequence:
    """The keys sorted, once for each set of keys."""
    return _traced_keys(*node) if torch.compiler.is_compiling() else _sorted_keys(tuple(node))


def in_order(tree: Tree) -> Tree:
    if isinstance(tree, dict):
        return {key: in_order(tree[key]) for key in keys_in_order(tree)}
    if isinstance(tree, (list, tuple)):
        return like_sequence(tree, [in_order(child) for child in tree])
    return tree  # a leaf, or a container registered with torch, whose order is its own


def is_namedtuple(node: Tree) -> bool:
    return isinstance(node, tuple) and hasattr(node, "_fields")


def like_sequence(node: Tree, children: list) -> Tree:
    return type(node)(*children) if is_namedtuple(node) else type(node)(children)


def names_of(path: tuple) -> tuple[str, ...]:
    return tuple(str(getattr(entry, "key", getattr(entry, "idx", getattr(entry, "name", entry)))) for entry in path)


def bracket(path: tuple) -> str:
    pieces = []
    for entry in path:
        if hasattr(entry, "key"):
            pieces.append(f"[{entry.key!r}]")
        elif hasattr(entry, "idx"):
            pieces.append(f"[{entry.idx}]")
        else:
            pieces.append(f".{entry.name}")
    return "".join(pieces)


def items(tree: Tree) -> list[tuple[str, Tensor]]:
    """The leaves with their dotted paths.

    >>> items({"b": torch.ones(2), "a": [torch.zeros(1)]})
    [('a.0', tensor([0.])), ('b', tensor([1., 1.]))]
    """
    return [(".".join(names_of(path)), leaf) for path, leaf in _torch.tree_flatten_with_path(in_order(tree))[0]]


def paths(tree: Tree, dotted: bool = True) -> list[str]:
    """The path of every leaf, dotted (``conv1.bias``) or as Python writes it (``['conv1']['bias']``).

    >>> paths({"conv1": {"bias": torch.zeros(6)}}, dotted=False)
    ["['conv1']['bias']"]
    """
    form = (lambda path: ".".join(names_of(path))) if dotted else bracket
    return [form(path) for path, _ in _torch.tree_flatten_with_path(in_order(tree))[0]]


def leaves(tree: Tree) -> list[Tensor]:
    """The leaves, in the order of :func:`paths`.

    >>> leaves({"b": torch.tensor(2), "a": torch.tensor(1)})
    [tensor(1), tensor(2)]
    """
    found: list = []
    _collect(tree, found)
    return found


def _collect(node: Tree, found: list) -> None:
    if isinstance(node, Tensor):
        found.append(node)
    elif isinstance(node, dict):
        for key in keys_in_order(node):
            _collect(node[key], found)
    elif isinstance(node, (list, tuple)):
        for child in node:
            _collect(child, found)
    else:
        found.extend(_torch.tree_leaves(node))  # a leaf, or a container registered with torch


def structure(tree: Tree) -> Any:
    """The tree without its leaves: equal for two trees exactly when :func:`map` accepts both.

    >>> one, two = torch.tensor(1), torch.tensor(2)
    >>> structure({"a": one, "b": two}) == structure({"b": one, "a": two})
    True
    """
    return _torch.tree_flatten(in_order(tree))[1]


def rebuild(tree: Tree, leaves: Sequence) -> Tree:
    """A tree like the given one with other leaves, in the order of :func:`leaves`; dicts keep their own order.

    >>> rebuild({"b": torch.tensor(2), "a": torch.tensor(1)}, [torch.tensor(3), torch.tensor(4)])
    {'b': tensor(4), 'a': tensor(3)}
    """
    queue = list(leaves)[::-1]
    return _fill(tree, lambda _: queue.pop())


def _fill(node: Tree, function: Callable) -> Tree:
    """``function`` of every leaf, called in the order of :func:`leaves`; dicts keep their own order."""
    if isinstance(node, Tensor):
        return function(node)
    if isinstance(node, dict) and type(node) in (dict, collections.OrderedDict):
        filled = {key: _fill(node[key], function) for key in keys_in_order(node)}
        return type(node)((key, filled[key]) for key in node)
    if isinstance(node, (list, tuple)):
        return like_sequence(node, [_fill(child, function) for child in node])
    return _torch.tree_map(function, node)


def columns(*trees: Tree) -> list[list]:
    """The leaves of each of several trees of one structure, by one walk; the order is that of :func:`leaves`.

    Raises ``ValueError`` where the trees differ.

    >>> columns({"b": torch.tensor(2), "a": torch.tensor(1)}, {"a": torch.tensor(3), "b": torch.tensor(4)})
    [[tensor(1), tensor(2)], [tensor(3), tensor(4)]]
    """
    rows: list = []
    _gather(trees, rows)
    return [list(column) for column in zip(*rows, strict=True)] or [[] for _ in trees]


def _gather(nodes: Sequence[Tree], rows: list) -> None:
    first = nodes[0]
    if isinstance(first, Tensor):
        for node in nodes[1:]:
            if not isinstance(node, Tensor):
                _differ(nodes)
        rows.append(nodes)
    elif isinstance(first, dict):
        keys = first.keys()
        for node in nodes[1:]:
            if not isinstance(node, dict) or node.keys() != keys:
                _differ(nodes)
        for key in keys_in_order(first):
            _gather([node[key] for node in nodes], rows)
    elif isinstance(first, (list, tuple)):
        if not all(type(node) is type(first) and len(node) == len(first) for node in nodes):
            _differ(nodes)
        for children in zip(*nodes, strict=True):
            _gather(children, rows)
    else:  # a leaf that is no tensor, or a container registered with torch
        rows.extend(zip(*(_torch.tree_leaves(node) for node in nodes), strict=True))


def _differ(nodes: Sequence[Tree]) -> None:
    for other in nodes[1:]:
        check_same_structure(nodes[0], other)
    raise ValueError("the trees differ")


def refill(tree: Tree, *columns: Sequence) -> list[Tree]:
    """For each column of leaves, in the order of :func:`leaves`, a tree like the given one, by one walk.

    >>> refill({"b": torch.tensor(2), "a": torch.tensor(1)}, [3, 4], [5, 6])
    [{'b': 4, 'a': 3}, {'b': 6, 'a': 5}]
    """
    rows = list(zip(*columns, strict=True))
    rows.reverse()  # taken from the end: torch 2.11 cannot trace an iterator that is passed on
    return list(_refill(tree, rows, range(len(columns))))


def _refill(node: Tree, rows: list, places: Sequence[int]) -> Sequence[Tree]:
    if isinstance(node, Tensor):
        return rows.pop()
    if type(node) is dict:
        made: list[dict] = [dict.fromkeys(node) for _ in places]  # in the order of the given dict
        for key in keys_in_order(node):
            for new, child in zip(made, _refill(node[key], rows, places), strict=True):
                new[key] = child
        return made
    if isinstance(node, (list, tuple)):
        children = [_refill(child, rows, places) for child in node]
        return [like_sequence(node, [child[i] for child in children]) for i in places]
    taken = [rows.pop() for _ in _torch.tree_leaves(node)]
    return [rebuild(node, [row[i] for row in taken]) for i in places]


def same(first: Tree, second: Tree) -> bool:
    """Whether :func:`check_same_structure` has nothing to say."""
    if isinstance(first, Tensor):
        return isinstance(second, Tensor) or children_of(second) is None
    if isinstance(first, dict):
        return (
            isinstance(second, dict)
            and first.keys() == second.keys()
            and all(same(child, second[key]) for key, child in first.items())
        )
    if isinstance(first, (list, tuple)):
        return type(first) is type(second) and len(first) == len(second) and all(map(same, first, second))
    return children_of(second) is None


def spec(tree: Tree) -> Tree:
    """The same tree with ``Spec(shape, dtype, device)`` for every leaf.

    >>> spec({"bias": torch.zeros(6)})["bias"].shape
    (6,)
    """
    return _torch.tree_map(lambda leaf: Spec(tuple(leaf.shape), leaf.dtype, leaf.device), tree)


def describe(node: Tree) -> str:
    if isinstance(node, Tensor):
        return f"a tensor of shape {tuple(node.shape)}"
    if isinstance(node, dict):
        return f"a dict with keys {sorted(node, key=natural)}"
    if is_namedtuple(node):
        return f"a {type(node).__name__}"
    if isinstance(node, (list, tuple)):
        return f"a {type(node).__name__} of length {len(node)}"
    return f"{node!r} ({type(node).__name__})"


def children_of(node: Tree) -> dict[str, Tree] | None:
    if isinstance(node, dict):
        return {f"[{key!r}]": node[key] for key in keys_in_order(node)}
    if is_namedtuple(node):
        return {f".{name}": getattr(node, name) for name in node._fields}
    if isinstance(node, (list, tuple)):
        return {f"[{i}]": child for i, child in enumerate(node)}
    return None


def _first_difference(first: Tree, second: Tree, path: str = "") -> tuple[str, str, str] | None:
    mine, other = children_of(first), children_of(second)
    if mine is None and other is None:
        return None
    same_kind = (isinstance(first, dict) and isinstance(second, dict)) or type(first) is type(second)
    if mine is None or other is None or not same_kind:
        return path, describe(first), describe(second)
    for key in [*mine, *other]:
        if key not in other:
            return path + key, describe(mine[key]), "nothing"
        if key not in mine:
            return path + key, "nothing", describe(other[key])
        difference = _first_difference(mine[key], other[key], path + key)
        if difference:
            return difference
    return None


def check_same_structure(first: Tree, second: Tree, names: tuple[str, str] = ("first tree", "second tree")) -> None:
    """Raise ``ValueError`` naming the first path at which two trees differ, and what each has there.

    >>> check_same_structure({"w": torch.ones(1)}, {"v": torch.ones(1)}, ("params", "grads"))
    Traceback (most recent call last):
    ValueError: params and grads differ at ['w']: params has a tensor of shape (1,), grads has nothing
    """
    difference = None if same(first, second) else _first_difference(first, second)
    if difference:
        path, mine, other = difference
        place = path or "the root"
        raise ValueError(f"{names[0]} and {names[1]} differ at {place}: {names[0]} has {mine}, {names[1]} has {other}")
