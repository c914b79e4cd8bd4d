"""Splitting trees by path, and putting the parts together again."""

from collections.abc import Iterator
from typing import Any

from fnn.tree.maps import leaf_values
from fnn.tree.treedef import Node, Tree, TreeDef, close_node, describe, entries_of, flatten, natural_order, open_node

ABSENT = ()
"""The placeholder for a missing part in a list, tuple or NamedTuple, whose entries cannot be left out."""


def partition(tree: Tree, choice: Any) -> tuple[Tree, Tree]:
    """Split a tree into two: ``(the chosen leaves, the rest)``.

    ``choice`` is a function of the dotted path, or a tree of bools of the same structure or a prefix of it, as in
    :func:`fnn.tree.leaf_values`. Leaves of the other part are absent keys (empty tuples in a list or tuple), so that
    every transform accepts both parts. :func:`combine` puts them together again.

    >>> trained, frozen = partition({"body": 1, "head": 0}, lambda path: path == "head")
    >>> trained, frozen
    ({'head': 0}, {'body': 1})
    >>> partition({"body": 1, "head": 0}, {"body": True, "head": False})[0]
    {'body': 1}
    """
    found, treedef = flatten(tree)
    chosen = [bool(value) for value in leaf_values(choice, tree)]
    return select(treedef, found, chosen), select(treedef, found, [not value for value in chosen])


def select(treedef: TreeDef, leaves: list, chosen: list[bool]) -> Tree:
    """Return the tree of the chosen leaves."""
    return _select(treedef, iter(zip(leaves, chosen, strict=True)))[0]


def _select(treedef: TreeDef, rows: Iterator[tuple]) -> tuple[Tree, bool]:
    """Return the tree of the chosen leaves, and whether to keep it: it has leaves, or the whole tree has none."""
    if treedef.node is None:
        leaf, wanted = next(rows)
        return (leaf, True) if wanted else (ABSENT, False)
    parts = [_select(child, rows) for child in treedef.children]
    node = treedef.node
    keep = treedef.num_leaves == 0 or any(
        kept and child.num_leaves for (_, kept), child in zip(parts, treedef.children, strict=True)
    )
    if node.style != "dict":
        return close_node(node, [part for part, _ in parts]), keep
    by_key = {key: part for key, (part, kept) in zip(node.keys, parts, strict=True) if kept}
    order = tuple(key for key in node.order if key in by_key)
    return close_node(node._replace(keys=tuple(by_key), order=order), by_key.values()), keep


def combine(first: Tree, second: Tree) -> Tree:
    """Put two parts made by :func:`partition` together again.

    Raises ``ValueError`` naming a path at which both parts have something.

    >>> combine({"head": 0}, {"body": 1})
    {'body': 1, 'head': 0}
    """
    return _join(first, second, "")


def _join(first: Tree, second: Tree, path: str) -> Tree:
    one, other = open_node(first), open_node(second)
    if one is not None and other is not None:
        (node, children), (other_node, other_children) = one, other
        if node.style == other_node.style == "dict":
            a, b = dict(zip(node.keys, children, strict=True)), dict(zip(other_node.keys, other_children, strict=True))
            keys = natural_order(a | b)
            joined = [
                _join(a[key], b[key], f"{path}[{key!r}]") if key in a and key in b else a.get(key, b.get(key))
                for key in keys
            ]
            return close_node(Node("dict", node.kind, keys, keys, node.context), joined)
        if node == other_node:
            rows = zip(children, other_children, entries_of(node), strict=True)
            return close_node(node, [_join(x, y, path + entry.bracket) for x, y, entry in rows])
    if type(first) is tuple and first == ABSENT:
        return second
    if type(second) is tuple and second == ABSENT:
        return first
    place = path or "the root"
    raise ValueError(f"combine: both parts have something at {place}: {describe(first)} and {describe(second)}")
