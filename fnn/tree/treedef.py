"""The structure of a tree: how it is taken apart into leaves and put together again.

Dicts, lists, tuples, NamedTuples and the containers registered with torch's pytree are containers. Anything else is a
leaf. :func:`flatten` is the only function that walks a tree of unknown structure. It returns the leaves and a
:class:`TreeDef`, which flattens and unflattens further trees of the same structure with generated functions
(:mod:`fnn.tree.codegen`).
"""

import collections
import operator
import re
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from torch import Tensor

from fnn import _torch
from fnn.tree.codegen import write_flatten, write_unflatten

Tree = Any
"""A pytree: a leaf, usually a tensor, or a dict, list, tuple, NamedTuple or registered container of trees."""

_DICTS = (dict, collections.OrderedDict, collections.defaultdict)


class TreeDef:
    """The structure of a tree, as returned by :func:`flatten` and :func:`structure`.

    Two structures are equal if the trees have the same containers and keys. The classes and the insertion orders of
    dicts are not compared, though :meth:`unflatten` restores both. Structures are interned, so comparing and hashing
    them costs as much as for integers. ``children`` are the structures of the entries of the root, in the order of the
    leaves.

    >>> import torch
    >>> leaves, treedef = flatten({"b": torch.tensor(2), "a": [torch.tensor(1)]})
    >>> treedef
    TreeDef({'b': *, 'a': [*]})
    >>> treedef.paths, treedef.num_leaves
    (('a.0', 'b'), 2)
    >>> treedef.unflatten(leaves)
    {'b': tensor(2), 'a': [tensor(1)]}
    """

    __slots__ = ("__weakref__", "_canonical", "_entries", "_flatten", "_unflatten", "children", "node", "num_leaves")

    def __init__(self, node: "Node | None", children: tuple["TreeDef", ...], canonical: "TreeDef | None") -> None:
        self.node = node
        self.children = children
        self.num_leaves = sum(child.num_leaves for child in children) if node else 1
        self._canonical = canonical  # the equal structure with plain dicts, or None if it is this one
        self._entries: tuple[tuple[Entry, ...], ...] | None = None
        self._flatten: Callable[[Tree], list | None] | None = None
        self._unflatten: Callable[[Iterable], Tree] | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TreeDef) and (self._canonical or self) is (other._canonical or other)

    def __hash__(self) -> int:
        return id(self._canonical or self)

    def __repr__(self) -> str:
        return f"TreeDef({self.unflatten([_STAR] * self.num_leaves)})"

    def __reduce__(self) -> tuple:  # for copy and pickle
        return structure, (self.unflatten([None] * self.num_leaves),)

    def unflatten(self, leaves: Iterable) -> Tree:
        """Make a tree of these leaves, which may be any objects. Raises ``ValueError`` for a wrong number of leaves."""
        if self._unflatten is None:
            self._unflatten = write_unflatten(self)
        leaves = leaves if isinstance(leaves, (list, tuple)) else list(leaves)
        if len(leaves) != self.num_leaves:
            raise ValueError(f"a tree of {self.num_leaves} leaves cannot be made of {len(leaves)}")
        return self._unflatten(leaves)

    def flatten_up_to(self, tree: Tree, names: tuple[str, str] = ("first tree", "second tree")) -> list:
        """Return the leaves of another tree of this structure.

        Raises ``ValueError`` naming the first path at which the trees differ. The message calls this tree ``names[0]``
        and the other one ``names[1]``.

        >>> structure({"a": 0, "b": 0}).flatten_up_to({"b": 2, "a": 1})
        [1, 2]
        """
        leaves = self.flatten_exact(tree)
        if leaves is None:
            leaves, treedef = flatten(tree)
            if treedef != self:
                raise _difference(self.unflatten([_STAR] * self.num_leaves), tree, names)
        return leaves

    def flatten_exact(self, tree: Tree) -> list | None:
        """Return the leaves, or None for a tree that differs in any way, even in the insertion order of a dict."""
        if self._flatten is None:
            self._flatten = write_flatten(self, _leaf_types)
        return self._flatten(tree)

    @property
    def entries(self) -> tuple[tuple["Entry", ...], ...]:
        """The path of each leaf: the entries that lead to it from the root."""
        if self._entries is None:
            self._entries = tuple(_entries(self))
        return self._entries

    @property
    def paths(self) -> tuple[str, ...]:
        """The dotted path of each leaf, such as ``"conv1.bias"``: its key in the ``state_dict`` of a torch network."""
        return tuple(".".join(entry.name for entry in path) for path in self.entries)

    @property
    def keystrs(self) -> tuple[str, ...]:
        """The path of each leaf as a Python expression behind the tree, such as ``"['conv1']['bias']"``."""
        return tuple("".join(entry.bracket for entry in path) for path in self.entries)


class Entry(NamedTuple):
    """One step of a path, in the dotted form and as a Python expression."""

    name: str
    bracket: str


class Node(NamedTuple):
    """A container without its children."""

    style: Literal["dict", "sequence", "namedtuple", "registered"]
    kind: type
    keys: tuple  # in the order of the leaves
    order: tuple = ()  # for a dict, its keys in insertion order
    context: Any = None  # for a defaultdict, its factory; for a registered container, the context of torch's pytree


class _Registered:
    """The context and the entries of a container registered with torch's pytree.

    The context need not be hashable, so all objects of this class have one hash.
    """

    def __init__(self, value: Any, entries: tuple[Entry, ...]) -> None:
        self.value = value
        self.entries = entries

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Registered) and self.value == other.value

    def __hash__(self) -> int:
        return 0


class _Star:
    """The leaf of a printed structure."""

    def __repr__(self) -> str:
        return "*"


_STAR = _Star()
LEAF = TreeDef(None, (), None)
"""The structure of a tree that is a single leaf."""

_lock = threading.RLock()
_interned: weakref.WeakValueDictionary[tuple, TreeDef] = weakref.WeakValueDictionary()
_leaf_types: set[type] = set()  # types that are known not to be containers
_registered_count = 0  # the number of classes registered with torch's pytree when _leaf_types was filled
_recent: dict[Any, list[TreeDef]] = {}  # recently used structures, by a key that is cheap to compute from a tree


def flatten(tree: Tree) -> tuple[list, TreeDef]:
    """Return the leaves and the structure of a tree.

    The keys of a dict are sorted, and numbers within keys are compared as numbers ("2" comes before "10"), so the order
    of the leaves does not depend on the insertion order. As in torch, None is a leaf.

    >>> import torch
    >>> leaves, treedef = flatten({"b": torch.tensor(2), "a": torch.tensor(1)})
    >>> leaves
    [tensor(1), tensor(2)]
    """
    kind = type(tree)
    if kind is Tensor or tree is None:
        return [tree], LEAF
    if len(_torch.pytree_containers) != _registered_count:
        _forget()
    if kind is dict:
        cache_key = tuple(tree)
    elif kind is tuple or kind is list:
        cache_key = kind, len(tree)
    else:
        cache_key = kind
    for treedef in _recent.get(cache_key, ()):
        leaves = treedef.flatten_exact(tree)
        if leaves is not None:
            return leaves, treedef
    leaves = []
    with _lock:
        treedef = _walk(tree, leaves)
        if treedef.node:
            if len(_recent) > 1000:
                _recent.clear()
            known = _recent.get(cache_key, [])
            _recent[cache_key] = [treedef, *[other for other in known if other is not treedef][:7]]
    return leaves, treedef


def _forget() -> None:
    """Empty the caches after a class was registered with torch's pytree: its objects may have been leaves before."""
    global _registered_count
    with _lock:
        _leaf_types.clear()
        _recent.clear()
        _registered_count = len(_torch.pytree_containers)


def structure(tree: Tree) -> TreeDef:
    """Return the structure of a tree. Trees of equal structures can be mapped together by :func:`fnn.tree.map`.

    >>> structure({"a": 1, "b": 2}) == structure({"b": 1, "a": 2})
    True
    """
    return flatten(tree)[1]


def leaves(tree: Tree) -> list:
    """Return the leaves, in the order of :func:`paths`.

    >>> leaves({"b": 2, "a": 1})
    [1, 2]
    """
    return flatten(tree)[0]


def paths(tree: Tree) -> tuple[str, ...]:
    """Return the dotted path of every leaf. The path of a tree that is a single leaf is empty.

    >>> paths({"conv1": {"bias": 0, "weight": 0}})
    ('conv1.bias', 'conv1.weight')
    """
    return flatten(tree)[1].paths


def keystrs(tree: Tree) -> tuple[str, ...]:
    """Return the path of every leaf as a Python expression, for error messages.

    >>> keystrs({"conv1": {"bias": 0}})
    ("['conv1']['bias']",)
    """
    return flatten(tree)[1].keystrs


def items(tree: Tree) -> list[tuple[str, Any]]:
    """Return pairs of the dotted path and the leaf.

    >>> items({"b": 2, "a": [1]})
    [('a.0', 1), ('b', 2)]
    """
    values, treedef = flatten(tree)
    return list(zip(treedef.paths, values, strict=True))


def check_same_structure(first: Tree, second: Tree, names: tuple[str, str] = ("first tree", "second tree")) -> None:
    """Raise ``ValueError`` naming the first path at which two trees differ, and what each tree has there.

    >>> check_same_structure({"w": 0}, {"v": 0}, ("params", "grads"))
    Traceback (most recent call last):
    ValueError: params and grads differ at ['w']: params has 0 (int), grads has nothing
    """
    if flatten(first)[1] != flatten(second)[1]:
        raise _difference(first, second, names)


# One container at a time


def open_node(tree: Tree) -> tuple[Node, Sequence[Tree]] | None:
    """Return the container at the root of a tree and its children, in the order of the leaves, or None for a leaf."""
    kind = type(tree)
    registered = _torch.pytree_containers.get(kind)
    if kind in _DICTS or (registered is None and isinstance(tree, Mapping)):
        keys = natural_order(tree)
        context = tree.default_factory if isinstance(tree, collections.defaultdict) else None
        return Node("dict", kind, keys, tuple(tree), context), [tree[key] for key in keys]
    if kind is list or kind is tuple:
        return Node("sequence", kind, tuple(range(len(tree)))), tree
    if registered is not None:
        children, context = registered.flatten_fn(tree)
        entries = [Entry(str(i), f"[{i}]") for i in range(len(children))]
        if registered.flatten_with_keys_fn is not None:
            entries = [_as_entry(key) for key, _ in registered.flatten_with_keys_fn(tree)[0]]
        keys = tuple(range(len(children)))
        return Node("registered", kind, keys, (), _Registered(context, tuple(entries))), list(children)
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return Node("namedtuple", kind, kind._fields), tree
    return None


def close_node(node: Node, children: Iterable[Tree]) -> Tree:
    """Make the container with these children, in the order of the leaves: the inverse of :func:`open_node`."""
    children = list(children)
    return _intern(node, (LEAF,) * len(children)).unflatten(children)


def entries_of(node: Node) -> Sequence[Entry]:
    """Return the entries of the paths from a container to its children."""
    if node.style == "registered":
        return node.context.entries
    form = ".{}" if node.style == "namedtuple" else "[{!r}]"
    return [Entry(str(key), form.format(key)) for key in node.keys]


def _as_entry(key: Any) -> Entry:
    """Convert a key of torch's pytree, which is of a mapping, a sequence or an attribute."""
    if hasattr(key, "key"):
        return Entry(str(key.key), f"[{key.key!r}]")
    if hasattr(key, "idx"):
        return Entry(str(key.idx), f"[{key.idx}]")
    return Entry(str(key.name), f".{key.name}")


def natural_order(keys: Iterable) -> tuple:
    """Sort keys, comparing numbers within keys as numbers. Raises ``ValueError`` for keys that print alike.

    >>> natural_order(["w10", "w2", "w02", "bias"])
    ('bias', 'w02', 'w2', 'w10')
    """
    ranks = {key: _natural_rank(key) for key in keys}
    if len(set(ranks.values())) < len(ranks):
        raise ValueError(f"keys of a dict in a tree must differ in how they print, got {list(ranks)}")
    return tuple(sorted(ranks, key=ranks.__getitem__))


def _natural_rank(key: Any) -> tuple:
    text = str(key)
    pieces = re.split(r"([0-9]+)", text)
    order = tuple((0, int(piece), "") if i % 2 else (1, 0, piece) for i, piece in enumerate(pieces) if piece)
    return order, text, type(key).__name__


# Trees of unknown structure


def _walk(tree: Tree, leaves: list) -> TreeDef:
    """Append the leaves of a tree to a list and return its structure."""
    opened = open_node(tree)
    if opened is None:
        _leaf_types.add(type(tree))
        leaves.append(tree)
        return LEAF
    node, children = opened
    return _intern(node, tuple([_walk(child, leaves) for child in children]))


def _intern(node: Node, children: tuple[TreeDef, ...]) -> TreeDef:
    """Return the one structure with this root and these children, making it if there is none yet."""
    key = node, tuple(map(id, children))
    treedef = _interned.get(key)
    if treedef is None:
        plain = Node("dict", dict, node.keys, node.keys) if node.style == "dict" else node
        canonical_children = tuple([child._canonical or child for child in children])
        same = plain == node and all(map(operator.is_, canonical_children, children))
        treedef = TreeDef(node, children, None if same else _intern(plain, canonical_children))
        _interned[key] = treedef
    return treedef


def _entries(treedef: TreeDef) -> list[tuple[Entry, ...]]:
    if treedef.node is None:
        return [()]
    steps = zip(entries_of(treedef.node), treedef.children, strict=True)
    return [(entry, *rest) for entry, child in steps for rest in _entries(child)]


# Differences between trees


def describe(tree: Tree) -> str:
    """Describe the root of a tree, for error messages.

    >>> describe({"w": 1})
    "a dict with keys ['w']"
    """
    if isinstance(tree, Tensor):
        return f"a tensor of shape {tuple(tree.shape)}"
    if tree is _STAR:
        return "a tensor"
    if isinstance(tree, Mapping):
        return f"a {type(tree).__name__} with keys {list(natural_order(tree))}"
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return f"a {type(tree).__name__}"
    if isinstance(tree, (list, tuple)):
        return f"a {type(tree).__name__} of length {len(tree)}"
    return f"{tree!r} ({type(tree).__name__})"


def _difference(first: Tree, second: Tree, names: tuple[str, str]) -> ValueError:
    path, in_first, in_second = _first_difference(first, second, "") or ("", "one structure", "another")
    place = path or "the root"
    return ValueError(
        f"{names[0]} and {names[1]} differ at {place}: {names[0]} has {in_first}, {names[1]} has {in_second}"
    )


def _first_difference(first: Tree, second: Tree, path: str) -> tuple[str, str, str] | None:
    """Return the path of the first difference and the descriptions of both sides, or None if there is none."""
    one, other = open_node(first), open_node(second)
    if one is None and other is None:
        return None
    if one is None or other is None:
        return path, describe(first), describe(second)
    children = [
        dict(zip([entry.bracket for entry in entries_of(node)], subtrees, strict=True))
        for node, subtrees in (one, other)
    ]
    kinds = [dict if node.style == "dict" else (node.kind, node.context) for node, _ in (one, other)]
    if kinds[0] != kinds[1]:
        return path, describe(first), describe(second)
    for step in dict.fromkeys((*children[0], *children[1])):
        if step not in children[1]:
            return path + step, describe(children[0][step]), "nothing"
        if step not in children[0]:
            return path + step, "nothing", describe(children[1][step])
        difference = _first_difference(children[0][step], children[1][step], path + step)
        if difference:
            return difference
    return None
