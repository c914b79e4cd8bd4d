"""Python expressions written for one structure, as ``collections.namedtuple`` does.

A general flatten and unflatten on every call costs more than the compiled step of a small network; an expression such
as ``[args[0]['w'], args[0]['b']]`` costs next to nothing.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from fnn import _torch
from fnn.tree import Tree


class _Constants(list):
    """Values that an expression refers to."""

    def name(self, value: Any) -> str:
        if type(value) in (str, int):
            return repr(value)
        self.append(value)
        return f"c[{len(self) - 1}]"


def taker(trees: dict[int, Tree]) -> Callable[[tuple], list | None]:
    """``take(args)``: the leaves of ``args[i]`` for each i in order; None where it is not built like ``trees[i]``."""
    constants = _Constants()
    tests: list[str] = []

    def access(node: Tree, place: str) -> list[str]:
        if isinstance(node, Tensor):
            return [place]
        if type(node) in (list, tuple, dict) or (isinstance(node, tuple) and hasattr(node, "_fields")):
            tests.append(f"type({place}) is {constants.name(type(node))} and len({place}) == {len(node)}")
            keys = node if isinstance(node, dict) else range(len(node))
            return [item for key in keys for item in access(node[key], f"{place}[{constants.name(key)}]")]
        spec = _torch.tree_flatten(node)[1]
        tests.append(f"{constants.name(_torch.tree_flatten)}({place})[1] == {constants.name(spec)}")
        return [f"*{constants.name(_torch.tree_leaves)}({place})"]

    items = [item for i, tree in trees.items() for item in access(tree, f"args[{i}]")]
    expression = eval(f"lambda args: [{', '.join(items)}] if {' and '.join(tests) or True} else None", {"c": constants})

    def take(args: tuple) -> list | None:
        try:
            return expression(args)
        except (KeyError, IndexError):  # other keys, fewer arguments
            return None

    return take


def rebuilder(out: Tree, olds: Sequence[Tensor]) -> Callable[[Tree, Sequence[Tensor]], Tree]:
    """``rebuild(out, new)``: a result like ``out`` with ``new[i]`` in the place of ``olds[i]``."""
    number = {id(old): i for i, old in enumerate(olds)}
    constants = _Constants()

    def expression(node: Tree, place: str) -> str:
        if isinstance(node, Tensor) and id(node) in number:
            return f"new[{number[id(node)]}]"
        if not any(isinstance(leaf, Tensor) and id(leaf) in number for leaf in _torch.tree_leaves(node)):
            return place
        if type(node) is dict:
            keys = {key: constants.name(key) for key in node}
            return "{" + ", ".join(f"{keys[k]}: {expression(v, f'{place}[{keys[k]}]')}" for k, v in node.items()) + "}"
        if isinstance(node, tuple) and hasattr(node, "_fields"):
            fields = [expression(child, f"{place}[{i}]") for i, child in enumerate(node)]
            return f"{constants.name(type(node))}({', '.join(fields)})"
        if type(node) in (list, tuple):
            items = "".join(f"{expression(child, f'{place}[{i}]')}, " for i, child in enumerate(node))
            return f"[{items}]" if type(node) is list else f"({items})"
        flat, spec = _torch.tree_flatten(node)
        positions = [number.get(id(leaf)) for leaf in flat]

        def general(node: Tree, new: Sequence[Tensor]) -> Tree:
            mixed = [
                leaf if position is None else new[position]
                for leaf, position in zip(_torch.tree_leaves(node), positions, strict=True)
            ]
            return _torch.tree_unflatten(mixed, spec)

        return f"{constants.name(general)}({place}, new)"

    return eval(f"lambda out, new: {expression(out, 'out')}", {"c": constants})
