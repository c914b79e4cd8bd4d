"""Trees split by path, and put together again."""

from collections.abc import Iterator
from typing import Any

from fnn.tree.maps import leaf_values
from fnn.tree.treedef import Node, Tree, TreeDef, close_node, describe, entries_of, flatten, natural_order, open_node

ABSENT = ()
"""What stands for a missing part where a key cannot be left out: in a list, a tuple, a NamedTuple."""


def partition(tree: Tree, choice: Any) -> tuple[Tree, Tree]:
    """Split a tree in two: ``(the chosen leaves, the rest)``.

    ``choice`` is a function of the dotted path, or a tree of bools like the given one or a prefix of it, as in
    :func:`fnn.tree.leaf_values`. What belongs to the other part is an absent key (in a list or tuple: an empty tuple),
    so that both parts are trees which every transform accepts. :func:`combine` puts them together again.

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
    """The tree with the chosen leaves alone."""
    return _select(treedef, iter(zip(leaves, chosen, strict=True)))[0]


def _select(treedef: TreeDef, rows: Iterator[tuple]) -> tuple[Tree, bool]:
    """What is left of a tree, and whether it stays: a part with chosen leaves, or one that had no leaves anyway."""
    if treedef.node is None:
        leaf, wanted = next(rows)
        return (leaf, True) if wanted else (ABSENT, False)
    parts = [_select(child, rows) for child in treedef.children]
    node = treedef.node
    stays = treedef.num_leaves == 0 or any(
        kept and child.num_leaves for (_, kept), child in zip(parts, treedef.children, strict=True)
    )
    if node.style != "dict":
        return close_node(node, [part for part, _ in parts]), stays
    by_key = {key: part for key, (part, kept) in zip(node.keys, parts, strict=True) if kept}
    order = tuple(key for key in node.order if key in by_key)
    return close_node(node._replace(keys=tuple(by_key), order=order), by_key.values()), stays


def combine(first: Tree, second: Tree) -> Tree:
    """Put two parts made by :func:`partition` together again.

    Raises ``ValueError`` naming a path that both parts have.

    >>> combine({"head": 0}, {"body": 1})
    {'body': 1, 'head': 0}
    """
    return _join(first, second, "")


def _join(first: Tree, second: Tree, path: str) -> Tree:
    one, two = open_node(first), open_node(second)
    if one and two and one[0].style == two[0].style == "dict":
        pairs = [dict(zip(node.keys, children, strict=True)) for node, children in (one, two)]
        steps = dict(zip((*one[0].keys, *two[0].keys), (*entries_of(one[0]), *entries_of(two[0])), strict=True))
        keys = natural_order(steps)
        joined = [
            _join(pairs[0][key], pairs[1][key], path + steps[key].bracket)
            if key in pairs[0] and key in pairs[1]
            else pairs[0].get(key, pairs[1].get(key))
            for key in keys
        ]
        return close_node(Node("dict", one[0].kind, keys, keys, one[0].context), joined)
    if one and two and one[0] == two[0]:
        rows = zip(one[1], two[1], entries_of(one[0]), strict=True)
        return close_node(one[0], [_join(a, b, path + entry.bracket) for a, b, entry in rows])
    if type(first) is tuple and first == ABSENT:
        return second
    if type(second) is tuple and second == ABSENT:
        return first
    place = path or "the root"
    raise ValueError(f"combine: both parts have something at {place}: {describe(first)} and {describe(second)}")
