"""Source code of functions that flatten and unflatten trees of one structure.

The functions are straight-line code without recursion: a few bytecodes for each container, as in the classes that
``collections.namedtuple`` makes.
"""

import collections
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from fnn import _torch

if TYPE_CHECKING:
    from fnn.tree.treedef import Tree, TreeDef


class _Source:
    """The lines of a function, and the objects that they refer to."""

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


def write_flatten(treedef: "TreeDef", leaf_types: set[type]) -> "Callable[[Tree], list | None]":
    """Write a function that returns the leaves of a tree of this structure, and None for any other tree.

    ``leaf_types`` are the types that are known not to be containers; it may grow later.
    """
    source = _Source()
    variables: list[str] = []
    _write_checks(treedef, "tree", source, variables)
    known = source.constant(leaf_types)
    source.lines.append(f"leaves = [{', '.join(variables)}]")
    source.lines.append(f"return leaves if {known}.issuperset(map(type, leaves)) else None")
    return source.function("tree")


def _write_checks(treedef: "TreeDef", name: str, source: _Source, leaves: list[str]) -> None:
    """Write the lines that compare the container called ``name`` with the structure, and collect the leaves."""
    node = treedef.node
    if node is None:
        leaves.append(name)
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
        _write_checks(child, names[key], source, leaves)


def write_unflatten(treedef: "TreeDef") -> "Callable[[Iterable], Tree]":
    """Write a function that makes a tree of this structure from its leaves."""
    source = _Source()
    leaves: list[str] = []
    result = _write_container(treedef, source, leaves)
    if leaves:
        source.lines.insert(0, f"{', '.join(leaves)}, = leaves")
    source.lines.append(f"return {result}")
    return source.function("leaves")


def _write_container(treedef: "TreeDef", source: _Source, leaves: list[str]) -> str:
    """Write the lines that make a tree, and return the name of the variable that holds it."""
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
