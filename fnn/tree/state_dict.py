"""Conversion between trees and flat dicts with dotted paths, and access to a tree by such a path."""

from collections.abc import Mapping

from torch import Tensor

from fnn.tree.treedef import Tree, close_node, entries_of, flatten, items, open_node


def to_state_dict(tree: Tree) -> dict[str, Tensor]:
    """Return a flat dict with dotted paths as keys, like the ``state_dict`` of a torch network.

    Raises ``ValueError`` if two leaves have the same dotted path.

    >>> import torch
    >>> to_state_dict({"fc": {"bias": torch.zeros(1), "weight": torch.ones(1)}})
    {'fc.bias': tensor([0.]), 'fc.weight': tensor([1.])}
    """
    flat: dict[str, Tensor] = {}
    for path, leaf in items(tree):
        if path in flat:
            raise ValueError(f"two leaves have the dotted path {path!r}; rename a key that contains a dot")
        flat[path] = leaf
    return flat


def from_state_dict(flat: Mapping[str, Tensor], like: Tree = None) -> Tree:
    """Make a tree from a flat dict: the inverse of :func:`to_state_dict`.

    The result consists of nested dicts, or has the structure of ``like``. Raises ``ValueError`` if the paths of
    ``flat`` and ``like`` differ.

    >>> import torch
    >>> from_state_dict({"fc.bias": torch.zeros(1)})
    {'fc': {'bias': tensor([0.])}}
    """
    if like is not None:
        treedef = flatten(like)[1]
        wanted = dict.fromkeys(treedef.paths)
        missing = [path for path in wanted if path not in flat]
        extra = [path for path in flat if path not in wanted]
        if missing or extra:
            raise ValueError(f"the flat dict does not fit the tree: missing {missing}, not in the tree {extra}")
        return treedef.unflatten([flat[path] for path in treedef.paths])
    nested: dict = {}
    for path, leaf in flat.items():
        *parents, last = path.split(".")
        node = nested
        for name in parents:
            node = node.setdefault(name, {})
            if not isinstance(node, dict):
                raise ValueError(f"{path!r} lies below {name!r}, which is a tensor itself")
        if last in node:
            raise ValueError(f"{path!r} is both a tensor and the start of another path")
        node[last] = leaf
    return nested


def get(tree: Tree, path: str) -> Tree:
    """Return the leaf or subtree at a dotted path. The empty path is the tree itself.

    Raises ``ValueError`` listing the existing paths if there is no such path.

    >>> get({"fc": [1, 2]}, "fc.1")
    2
    """
    for step in _steps_to(tree, path):
        tree = _open(tree)[1][step]
    return tree


def replace(tree: Tree, path: str, value: Tree) -> Tree:
    """Return a new tree with ``value`` at a dotted path. The given tree is unchanged.

    Raises ``ValueError`` listing the existing paths if there is no such path.

    >>> replace({"fc": {"bias": 0}}, "fc.bias", 1)
    {'fc': {'bias': 1}}
    """

    def put(subtree: Tree, steps: list[int]) -> Tree:
        if not steps:
            return value
        node, children = _open(subtree)
        return close_node(node, [put(child, steps[1:]) if i == steps[0] else child for i, child in enumerate(children)])

    return put(tree, _steps_to(tree, path))


def _steps_to(tree: Tree, path: str) -> list[int]:
    steps = _find(tree, path)
    if steps is None:
        raise ValueError(f"no {path!r} in the tree; its leaves are {list(flatten(tree)[1].paths)}")
    return steps


def _find(tree: Tree, path: str) -> list[int] | None:
    """Return the indices of the children along a path, or None if there is no such path. Keys may contain dots."""
    if not path:
        return []
    node, children = open_node(tree) or (None, [])
    for i, entry in enumerate(entries_of(node) if node else []):
        rest = path[len(entry.name) + 1 :]
        if path == entry.name or (rest and path.startswith(f"{entry.name}.")):
            steps = _find(children[i], rest)
            if steps is not None:
                return [i, *steps]
    return None


def _open(tree: Tree) -> tuple:
    opened = open_node(tree)
    assert opened is not None  # _steps_to has found a child here
    return opened
