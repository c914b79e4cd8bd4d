"""The structure of a tree: how it is taken apart into leaves and put together again.

A tree is a nested dict, list, tuple, NamedTuple or container registered with torch's pytree; anything else is a leaf.
:func:`flatten` is the only function that walks a tree of unknown structure. It returns the leaves and a
:class:`TreeDef`, whose own ``flatten`` and ``unflatten`` are Python functions written for that one structure, as
``collections.namedtuple`` writes a class: no recursion, a few bytecodes for each container.
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

Tree = Any
"""A pytree: a dict, list, tuple, NamedTuple or registered container of trees, or a leaf, which is a tensor."""

_DICTS = (dict, collections.OrderedDict, collections.defaultdict)


class TreeDef:
    """The structure of a tree, without its leaves. Made by :func:`flatten` and :func:`structure`.

    Two are equal when the trees have the same containers and keys; the class of a dict, and the order in which it was
    filled, do not count, though :meth:`unflatten` restores both. Structures are interned, so that comparing and hashing
    cost as much as for integers. ``children`` are the structures of the root's entries in the order of the leaves.

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
        self._canonical = canonical  # None where it is this one
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
        """The tree with these leaves, which may be anything. Raises ``ValueError`` for another number of them."""
        if self._unflatten is None:
            self._unflatten = _write_unflatten(self)
        leaves = leaves if isinstance(leaves, (list, tuple)) else list(leaves)
        if len(leaves) != self.num_leaves:
            raise ValueError(f"a tree of {self.num_leaves} leaves cannot be made of {len(leaves)}")
        return self._unflatten(leaves)

    def flatten_up_to(self, tree: Tree, names: tuple[str, str] = ("first tree", "second tree")) -> list:
        """The leaves of another tree of this structure.

        Raises ``ValueError`` naming the first path where that tree differs, in which ``names`` are this and that tree.

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
        """The leaves, or None for a tree that differs in any way, be it in the order of the keys of a dict."""
        if self._flatten is None:
            self._flatten = _write_flatten(self)
        return self._flatten(tree)

    @property
    def entries(self) -> tuple[tuple["Entry", ...], ...]:
        """For each leaf the keys that lead to it."""
        if self._entries is None:
            self._entries = tuple(_entries(self))
        return self._entries

    @property
    def paths(self) -> tuple[str, ...]:
        """The dotted path of each leaf, ``"conv1.bias"``: the keys of the ``state_dict`` of the same torch network."""
        return tuple(".".join(entry.name for entry in path) for path in self.entries)

    @property
    def keystrs(self) -> tuple[str, ...]:
        """The path of each leaf as Python writes it behind the name of the tree, ``"['conv1']['bias']"``."""
        return tuple("".join(entry.bracket for entry in path) for path in self.entries)


class Entry(NamedTuple):
    """One step of a path, in its dotted form and as Python writes it."""

    name: str
    bracket: str


class Node(NamedTuple):
    """A container without its children."""

    style: Literal["dict", "sequence", "namedtuple", "registered"]
    kind: type
    keys: tuple  # in the order of the leaves
    order: tuple = ()  # of a dict: its keys in the order in which it was filled
    context: Any = None  # of a defaultdict its factory, of a registered container what torch's pytree keeps


class _Registered:
    """The context of a container registered with torch's pytree, which need not be hashable, and its entries."""

    def __init__(self, value: Any, entries: tuple[Entry, ...]) -> None:
        self.value = value
        self.entries = entries

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Registered) and self.value == other.value

    def __hash__(self) -> int:
        return 0


class _Star:
    def __repr__(self) -> str:
        return "*"


_STAR = _Star()
LEAF = TreeDef(None, (), None)
"""The structure of a tree that is one leaf."""

_lock = threading.RLock()
_interned: weakref.WeakValueDictionary[tuple, TreeDef] = weakref.WeakValueDictionary()
_leaf_types: set[type] = set()  # seen in a tree and known to be no container
_registered_then = 0  # how many containers torch knew when these were noted
_recent: dict[Any, list[TreeDef]] = {}  # by a mark that is cheap to take: structures to try first


def flatten(tree: Tree) -> tuple[list, TreeDef]:
    """The leaves and the structure.

    The keys of a dict are visited sorted, numbers in them counted as numbers ("2" before "10"), so that nothing depends
    on the order in which a dict was filled. As in torch, None is a leaf.

    >>> import torch
    >>> leaves, treedef = flatten({"b": torch.tensor(2), "a": torch.tensor(1)})
    >>> leaves
    [tensor(1), tensor(2)]
    """
    kind = type(tree)
    if kind is Tensor:
        return [tree], LEAF
    if len(_torch.pytree_containers) != _registered_then:
        _forget()
    mark = (*tree,) if kind is dict else (kind, len(tree)) if kind is tuple or kind is list else kind
    for treedef in _recent.get(mark, ()):
        leaves = treedef.flatten_exact(tree)
        if leaves is not None:
            return leaves, treedef
    leaves = []
    with _lock:
        treedef = _walk(tree, leaves)
        if treedef.node:
            if len(_recent) > 1000:
                _recent.clear()
            known = _recent.get(mark, [])
            _recent[mark] = [treedef, *[other for other in known if other is not treedef][:7]]
    return leaves, treedef


def _forget() -> None:
    """Start again after a class was registered with torch's pytree, whose objects may have been leaves before."""
    global _registered_then
    with _lock:
        _leaf_types.clear()
        _recent.clear()
        _registered_then = len(_torch.pytree_containers)


def structure(tree: Tree) -> TreeDef:
    """The tree without its leaves: equal for two trees exactly when :func:`fnn.tree.map` accepts both.

    >>> structure({"a": 1, "b": 2}) == structure({"b": 1, "a": 2})
    True
    """
    return flatten(tree)[1]


def leaves(tree: Tree) -> list:
    """The leaves, in the order of :func:`paths`.

    >>> leaves({"b": 2, "a": 1})
    [1, 2]
    """
    return flatten(tree)[0]


def paths(tree: Tree) -> tuple[str, ...]:
    """The dotted path of every leaf; that of a tree which is one leaf is empty.

    >>> paths({"conv1": {"bias": 0, "weight": 0}})
    ('conv1.bias', 'conv1.weight')
    """
    return flatten(tree)[1].paths


def keystrs(tree: Tree) -> tuple[str, ...]:
    """The path of every leaf as Python writes it, for error messages.

    >>> keystrs({"conv1": {"bias": 0}})
    ("['conv1']['bias']",)
    """
    return flatten(tree)[1].keystrs


def items(tree: Tree) -> list[tuple[str, Any]]:
    """The leaves with their dotted paths.

    >>> items({"b": 2, "a": [1]})
    [('a.0', 1), ('b', 2)]
    """
    found, treedef = flatten(tree)
    return list(zip(treedef.paths, found, strict=True))


def check_same_structure(first: Tree, second: Tree, names: tuple[str, str] = ("first tree", "second tree")) -> None:
    """Raise ``ValueError`` naming the first path at which two trees differ, and what each has there.

    >>> check_same_structure({"w": 0}, {"v": 0}, ("params", "grads"))
    Traceback (most recent call last):
    ValueError: params and grads differ at ['w']: params has 0 (int), grads has nothing
    """
    if flatten(first)[1] != flatten(second)[1]:
        raise _difference(first, second, names)


# One container at a time


def open_node(tree: Tree) -> tuple[Node, Sequence[Tree]] | None:
    """The container at the root of a tree and its children in the order of the leaves; None for a leaf."""
    kind = type(tree)
    registered = _torch.pytree_containers.get(kind)
    if kind in _DICTS or (registered is None and isinstance(tree, Mapping)):
        keys = natural_order(tree)
        context = tree.default_factory if kind is collections.defaultdict else None
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
    """The container with these children, given in the order of the leaves: the inverse of :func:`open_node`."""
    children = list(children)
    return _intern(node, (LEAF,) * len(children)).unflatten(children)


def entries_of(node: Node) -> Sequence[Entry]:
    """The steps from a container to its children."""
    if node.style == "registered":
        return node.context.entries
    form = ".{}" if node.style == "namedtuple" else "[{!r}]"
    return [Entry(str(key), form.format(key)) for key in node.keys]


def _as_entry(key: Any) -> Entry:
    """From a key of torch's pytree: of a mapping, a sequence, or an attribute."""
    if hasattr(key, "key"):
        return Entry(str(key.key), f"[{key.key!r}]")
    if hasattr(key, "idx"):
        return Entry(str(key.idx), f"[{key.idx}]")
    return Entry(str(key.name), f".{key.name}")


def natural_order(keys: Iterable) -> tuple:
    """Keys sorted, numbers within them counted as numbers. Raises ``ValueError`` for two that cannot be told apart.

    >>> natural_order(["w10", "w2", "w02", "bias"])
    ('bias', 'w02', 'w2', 'w10')
    """
    marks = {key: _natural(key) for key in keys}
    if len(set(marks.values())) < len(marks):
        raise ValueError(f"keys of a dict in a tree must differ in how they print, got {list(marks)}")
    return tuple(sorted(marks, key=marks.__getitem__))


def _natural(key: Any) -> tuple:
    text = str(key)
    pieces = re.split(r"([0-9]+)", text)
    order = tuple((0, int(piece), "") if i % 2 else (1, 0, piece) for i, piece in enumerate(pieces) if piece)
    return order, text, type(key).__name__


# The walk, and what is written for each structure


def _walk(tree: Tree, leaves: list) -> TreeDef:
    opened = open_node(tree)
    if opened is None:
        _leaf_types.add(type(tree))
        leaves.append(tree)
        return LEAF
    node, children = opened
    return _intern(node, tuple([_walk(child, leaves) for child in children]))


def _intern(node: Node, children: tuple[TreeDef, ...]) -> TreeDef:
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


class _Source:
    """Lines of a function, and the values that they refer to."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.values: dict[str, Any] = {}
        self.variables = 0

    def variable(self) -> str:
        self.variables += 1
        return f"v{self.variables}"

    def constant(self, value: Any) -> str:
        if type(value) in (str, int, bool, type(None)):
            return repr(value)
        name = f"c{len(self.values)}"
        self.values[name] = value
        return name

    def function(self, argument: str) -> Callable:
        parameters = ", ".join([argument, *(f"{name}={name}" for name in self.values)])  # locals are fast to look up
        body = "".join(f"    {line}\n" for line in self.lines)
        scope = dict(self.values)
        exec(f"def written({parameters}):\n{body}", scope)
        return scope["written"]


def _write_flatten(treedef: TreeDef) -> Callable[[Tree], list | None]:
    source = _Source()
    found: list[str] = []
    _write_checks(treedef, "tree", source, found)
    known = source.constant(_leaf_types)
    source.lines.append(f"leaves = [{', '.join(found)}]")
    source.lines.append(f"return leaves if {known}.issuperset(map(type, leaves)) else None")
    return source.function("tree")


def _write_checks(treedef: TreeDef, name: str, source: _Source, found: list[str]) -> None:
    node = treedef.node
    if node is None:
        found.append(name)
        return
    kind, values = source.constant(node.kind), name
    names = {key: source.variable() for key in node.keys}
    if node.style == "dict":
        source.lines.append(
            f"if type({name}) is not {kind} or [*{name}] != {source.constant([*node.order])}: return None"
        )
        if node.kind is collections.defaultdict:
            source.lines.append(f"if {name}.default_factory is not {source.constant(node.context)}: return None")
        values = f"{name}.values()"
    elif node.style == "registered":
        values, context = source.variable(), source.variable()
        flatten_fn = source.constant(_torch.pytree_containers[node.kind].flatten_fn)
        source.lines.append(f"if type({name}) is not {kind}: return None")
        source.lines.append(f"{values}, {context} = {flatten_fn}({name})")
        wanted = source.constant(node.context.value)
        source.lines.append(f"if {context} != {wanted} or len({values}) != {len(names)}: return None")
    else:
        source.lines.append(f"if type({name}) is not {kind} or len({name}) != {len(names)}: return None")
    if names:
        source.lines.append(f"{', '.join(names[key] for key in node.order or node.keys)}, = {values}")
    for key, child in zip(node.keys, treedef.children, strict=True):
        _write_checks(child, names[key], source, found)


def _write_unflatten(treedef: TreeDef) -> Callable[[Iterable], Tree]:
    source = _Source()
    leaves: list[str] = []
    result = _write_container(treedef, source, leaves)
    if leaves:
        source.lines.insert(0, f"{', '.join(leaves)}, = leaves")
    source.lines.append(f"return {result}")
    return source.function("leaves")


def _write_container(treedef: TreeDef, source: _Source, leaves: list[str]) -> str:
    """Write the lines that make a tree, and return the variable that holds it."""
    name, node = source.variable(), treedef.node
    if node is None:
        leaves.append(name)
        return name
    children = [_write_container(child, source, leaves) for child in treedef.children]
    kind, items = source.constant(node.kind), ", ".join(children)
    if node.style == "dict":
        by_key = dict(zip(node.keys, children, strict=True))
        made = "{" + ", ".join(f"{source.constant(key)}: {by_key[key]}" for key in node.order) + "}"
        if node.kind is collections.defaultdict:
            made = f"{kind}({source.constant(node.context)}, {made})"
        elif node.kind is not dict:
            made = f"{kind}({made})"
    elif node.style == "registered":
        unflatten_fn = source.constant(_torch.pytree_containers[node.kind].unflatten_fn)
        made = f"{unflatten_fn}([{items}], {source.constant(node.context.value)})"
    elif node.kind is list:
        made = f"[{items}]"
    elif node.kind is tuple:
        made = f"({items},)" if items else "()"
    else:
        made = f"{kind}({items})"
    source.lines.append(f"{name} = {made}")
    return name


# What differs between two trees


def describe(tree: Tree) -> str:
    """What stands at the root of a tree, for error messages.

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
    path, mine, other = _first_difference(first, second, "") or ("", "one structure", "another")
    place = path or "the root"
    return ValueError(f"{names[0]} and {names[1]} differ at {place}: {names[0]} has {mine}, {names[1]} has {other}")


def _first_difference(first: Tree, second: Tree, path: str) -> tuple[str, str, str] | None:
    mine, other = open_node(first), open_node(second)
    if mine is None and other is None:
        return None
    if mine is None or other is None:
        return path, describe(first), describe(second)
    children = [dict(zip((e.bracket for e in entries_of(node)), kids, strict=True)) for node, kids in (mine, other)]
    kinds = [dict if node.style == "dict" else (node.kind, node.context) for node, _ in (mine, other)]
    if kinds[0] != kinds[1]:
        return path, describe(first), describe(second)
    for step in dict.fromkeys((*children[0], *children[1])):
        if step not in children[1]:
            return path + step, describe(children[0][step]), "nothing"
        if step not in children[0]:
            return path + step, "nothing", describe(children[1][step])
        found = _first_difference(children[0][step], children[1][step], path + step)
        if found:
            return found
    return None
