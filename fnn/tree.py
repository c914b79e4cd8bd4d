"""Pytrees: nested dicts, lists, tuples and NamedTuples whose leaves are tensors.

A *path* is written in two forms. The dotted form, ``"conv1.bias"``, is torch's ``state_dict`` key and
is what predicates and :func:`flatten` use. The bracket form, ``"['conv1']['bias']"``, is what
errors use, because it can be pasted behind a variable.

Dicts are visited in the order of their keys, numbers in a key counted as numbers (``"2"`` before
``"10"``), so no result depends on the order in which a dict was filled.
"""

import builtins
import re
from collections.abc import Callable, Mapping, Sequence
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


# Order and paths


def _natural(key: Any) -> tuple:
    pieces = re.split(r"(\d+)", key) if isinstance(key, str) else [key]
    return tuple((0, int(piece), "") if str(piece).isdigit() else (1, 0, str(piece)) for piece in pieces if piece != "")


def _sorted(tree: Tree) -> Tree:
    if isinstance(tree, dict):
        return {key: _sorted(tree[key]) for key in sorted(tree, key=_natural)}
    if isinstance(tree, (list, tuple)):
        return _like_sequence(tree, [_sorted(child) for child in tree])
    return tree  # a leaf, or a container registered with torch, whose order is its own


def _is_namedtuple(node: Tree) -> bool:
    return isinstance(node, tuple) and hasattr(node, "_fields")


def _like_sequence(node: Tree, children: list) -> Tree:
    return type(node)(*children) if _is_namedtuple(node) else type(node)(children)


def _names(path: tuple) -> tuple[str, ...]:
    return tuple(str(getattr(entry, "key", getattr(entry, "idx", getattr(entry, "name", entry)))) for entry in path)


def _bracket(path: tuple) -> str:
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
    return [(".".join(_names(path)), leaf) for path, leaf in _torch.tree_flatten_with_path(_sorted(tree))[0]]


def paths(tree: Tree, dotted: bool = True) -> list[str]:
    """The path of every leaf, dotted (``conv1.bias``) or as Python writes it (``['conv1']['bias']``).

    >>> paths({"conv1": {"bias": torch.zeros(6)}}, dotted=False)
    ["['conv1']['bias']"]
    """
    form = (lambda path: ".".join(_names(path))) if dotted else _bracket
    return [form(path) for path, _ in _torch.tree_flatten_with_path(_sorted(tree))[0]]


def leaves(tree: Tree) -> list[Tensor]:
    """The leaves, in the order of :func:`paths`.

    >>> leaves({"b": torch.tensor(2), "a": torch.tensor(1)})
    [tensor(1), tensor(2)]
    """
    return _torch.tree_leaves(_sorted(tree))


def structure(tree: Tree) -> Any:
    """The tree without its leaves: equal for two trees exactly when :func:`map` accepts both.

    >>> one, two = torch.tensor(1), torch.tensor(2)
    >>> structure({"a": one, "b": two}) == structure({"b": one, "a": two})
    True
    """
    return _torch.tree_flatten(_sorted(tree))[1]


def rebuild(tree: Tree, leaves: Sequence) -> Tree:
    """A tree like the given one with other leaves, in the order of :func:`leaves`; dicts keep their own order.

    >>> rebuild({"b": torch.tensor(2), "a": torch.tensor(1)}, [torch.tensor(3), torch.tensor(4)])
    {'b': tensor(4), 'a': tensor(3)}
    """
    return _torch.tree_map(lambda position: leaves[position], _positions(tree))


def _positions(tree: Tree) -> Tree:
    """The tree with each leaf's place in the order of :func:`leaves`."""
    spec = structure(tree)
    return _torch.tree_map(
        lambda _, position: position, tree, _torch.tree_unflatten(list(range(spec.num_leaves)), spec)
    )


def spec(tree: Tree) -> Tree:
    """The same tree with ``Spec(shape, dtype, device)`` for every leaf.

    >>> spec({"bias": torch.zeros(6)})["bias"].shape
    (6,)
    """
    return map(lambda leaf: Spec(tuple(leaf.shape), leaf.dtype, leaf.device), tree)


# Comparing two trees


def _describe(node: Tree) -> str:
    if isinstance(node, Tensor):
        return f"a tensor of shape {tuple(node.shape)}"
    if isinstance(node, dict):
        return f"a dict with keys {sorted(node, key=_natural)}"
    if _is_namedtuple(node):
        return f"a {type(node).__name__}"
    if isinstance(node, (list, tuple)):
        return f"a {type(node).__name__} of length {len(node)}"
    return f"{node!r} ({type(node).__name__})"


def _children(node: Tree) -> dict[str, Tree] | None:
    if isinstance(node, dict):
        return {f"[{key!r}]": node[key] for key in sorted(node, key=_natural)}
    if _is_namedtuple(node):
        return {f".{name}": getattr(node, name) for name in node._fields}
    if isinstance(node, (list, tuple)):
        return {f"[{i}]": child for i, child in enumerate(node)}
    return None


def _first_difference(first: Tree, second: Tree, path: str = "") -> tuple[str, str, str] | None:
    mine, other = _children(first), _children(second)
    if mine is None and other is None:
        return None
    same_kind = (isinstance(first, dict) and isinstance(second, dict)) or type(first) is type(second)
    if mine is None or other is None or not same_kind:
        return path, _describe(first), _describe(second)
    for key in [*mine, *other]:
        if key not in other:
            return path + key, _describe(mine[key]), "nothing"
        if key not in mine:
            return path + key, "nothing", _describe(other[key])
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
    difference = _first_difference(first, second)
    if difference:
        path, mine, other = difference
        place = path or "the root"
        raise ValueError(f"{names[0]} and {names[1]} differ at {place}: {names[0]} has {mine}, {names[1]} has {other}")


# Maps and reductions


def map(function: Callable, tree: Tree, *others: Tree) -> Tree:
    """``function`` of the leaves at each path, as a tree like the first.

    Raises ``ValueError`` when the trees differ, naming the path and both sides.

    >>> map(lambda p, g: p - 0.5 * g, {"w": torch.ones(2)}, {"w": torch.ones(2)})
    {'w': tensor([0.5000, 0.5000])}
    """
    for other in others:
        check_same_structure(tree, other)
    return _torch.tree_map(function, tree, *others)


def map_with_path(function: Callable, tree: Tree, *others: Tree) -> Tree:
    """Like :func:`map`, with the dotted path as the first argument of ``function``.

    >>> map_with_path(lambda path, leaf: path, {"a": {"w": torch.ones(2)}})
    {'a': {'w': 'a.w'}}
    """
    for other in others:
        check_same_structure(tree, other)
    return map(function, rebuild(tree, paths(tree)), tree, *others)


def size(tree: Tree) -> int:
    """The number of scalars in all leaves.

    >>> size({"weight": torch.zeros(10, 20), "bias": torch.zeros(10)})
    210
    """
    return sum(leaf.numel() for leaf in leaves(tree))


def bytes(tree: Tree) -> int:
    """The number of bytes that the leaves' elements take.

    >>> bytes({"bias": torch.zeros(10)})
    40
    """
    return sum(leaf.numel() * leaf.element_size() for leaf in leaves(tree))


def dot(first: Tree, second: Tree) -> Tensor:
    """The inner product of two trees, a 0-d tensor: sum over leaves of sum(a * b).

    >>> dot({"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([3.0, 4.0])})
    tensor(11.)
    """
    products = leaves(map(lambda a, b: (a * b).sum(), first, second))
    return sum(products[1:], products[0]) if products else torch.zeros(())


def global_norm(tree: Tree) -> Tensor:
    """The Euclidean norm of all leaves as one vector, a 0-d tensor. Its gradient at zero is zero.

    >>> global_norm({"a": torch.tensor([3.0]), "b": torch.tensor([4.0])})
    tensor(5.)
    """
    square = dot(tree, tree)
    zero = square == 0  # sqrt has an infinite slope at zero, which would turn a zero cotangent into nan
    return torch.where(zero, 0.0, torch.where(zero, 1.0, square).sqrt())


def allclose(first: Tree, second: Tree, rtol: float = 1e-5, atol: float = 1e-8) -> bool:
    """Whether every leaf is close to the other's, by ``torch.allclose``'s rule.

    >>> allclose({"w": torch.ones(2)}, {"w": torch.ones(2) + 1e-7})
    True
    """
    close = map(lambda a, b: a.shape == b.shape and torch.allclose(a, b, rtol=rtol, atol=atol), first, second)
    return all(leaves(close))


def add(first: Tree, second: Tree) -> Tree:
    """Leaf by leaf sum.

    >>> add({"w": torch.ones(1)}, {"w": torch.ones(1)})
    {'w': tensor([2.])}
    """
    return map(lambda a, b: a + b, first, second)


def sub(first: Tree, second: Tree) -> Tree:
    """Leaf by leaf difference.

    >>> sub({"w": torch.ones(1)}, {"w": torch.ones(1)})
    {'w': tensor([0.])}
    """
    return map(lambda a, b: a - b, first, second)


def scale(factor: float | Tensor, tree: Tree) -> Tree:
    """Every leaf times one number.

    >>> scale(2.0, {"w": torch.ones(1)})
    {'w': tensor([2.])}
    """
    return map(lambda leaf: factor * leaf, tree)


# Trees like another


def zeros_like(tree: Tree, dtype: torch.dtype | None = None) -> Tree:
    """Zeros of the same shapes, dtypes (or ``dtype``) and devices.

    >>> zeros_like({"w": torch.ones(2)})
    {'w': tensor([0., 0.])}
    """
    return map(lambda leaf: torch.zeros_like(leaf, dtype=dtype), tree)


def ones_like(tree: Tree, dtype: torch.dtype | None = None) -> Tree:
    """Ones of the same shapes, dtypes (or ``dtype``) and devices.

    >>> ones_like({"w": torch.zeros(2)})
    {'w': tensor([1., 1.])}
    """
    return map(lambda leaf: torch.ones_like(leaf, dtype=dtype), tree)


def cast(tree: Tree, dtype: torch.dtype) -> Tree:
    """Floating leaves in another dtype; integer leaves (labels, keys, counts) stay as they are.

    >>> cast({"w": torch.ones(1), "count": torch.tensor(3)}, torch.float64)
    {'w': tensor([1.], dtype=torch.float64), 'count': tensor(3)}
    """
    return map(lambda leaf: leaf.to(dtype) if leaf.is_floating_point() else leaf, tree)


def to(tree: Tree, device: torch.device | str) -> Tree:
    """Every leaf on a device.

    >>> to({"w": torch.ones(1)}, "cpu")["w"].device
    device(type='cpu')
    """
    return map(lambda leaf: leaf.to(device), tree)


# Dotted dicts and vectors


def flatten(tree: Tree) -> dict[str, Tensor]:
    """A flat dict with dotted paths as keys: the ``state_dict`` of the same torch network.

    Raises ``ValueError`` where two paths have the same dotted form.

    >>> flatten({"fc": {"bias": torch.zeros(1), "weight": torch.ones(1)}})
    {'fc.bias': tensor([0.]), 'fc.weight': tensor([1.])}
    """
    flat: dict[str, Tensor] = {}
    for path, leaf in items(tree):
        if path in flat:
            raise ValueError(f"two leaves have the dotted path {path!r}; rename a key that contains a dot")
        flat[path] = leaf
    return flat


def unflatten(flat: Mapping[str, Tensor], like: Tree = None) -> Tree:
    """The inverse of :func:`flatten`: nested dicts, or the containers of ``like`` where it is given.

    Raises ``ValueError`` when ``flat`` lacks a path of ``like`` or has one more.

    >>> unflatten({"fc.bias": torch.zeros(1)})
    {'fc': {'bias': tensor([0.])}}
    """
    if like is not None:
        wanted = paths(like)
        missing = [path for path in wanted if path not in flat]
        extra = [path for path in flat if path not in builtins.set(wanted)]
        if missing or extra:
            raise ValueError(f"the flat dict does not fit the tree: missing {missing}, not in the tree {extra}")
        return rebuild(like, [flat[path] for path in wanted])
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


def ravel(tree: Tree) -> tuple[Tensor, Callable[[Tensor], Tree]]:
    """All leaves as one vector (their promoted dtype), and the function that turns it back.

    ``unravel(vector)`` gives each leaf its shape and dtype and raises ``ValueError`` for a vector of
    another length. Both are differentiable and may be vmapped.

    >>> vector, unravel = ravel({"w": torch.ones(2, 2), "b": torch.zeros(1)})
    >>> vector
    tensor([0., 1., 1., 1., 1.])
    >>> unravel(vector)["w"].shape
    torch.Size([2, 2])
    """
    parts = leaves(tree)
    positions = _positions(tree)
    shapes = [(leaf.shape, leaf.dtype, leaf.numel()) for leaf in parts]
    total = sum(count for _, _, count in shapes)
    if parts:
        common = parts[0].dtype
        for leaf in parts:
            common = torch.promote_types(common, leaf.dtype)
        vector = torch.cat([leaf.reshape(-1).to(common) for leaf in parts])
    else:
        vector = torch.zeros(0)

    def unravel(vector: Tensor) -> Tree:
        if vector.shape != (total,):
            raise ValueError(f"unravel expects a vector of shape ({total},), got {tuple(vector.shape)}")
        pieces = vector.split([count for _, _, count in shapes]) if shapes else []
        rebuilt = [piece.reshape(shape).to(dtype) for piece, (shape, dtype, _) in zip(pieces, shapes, strict=True)]
        return _torch.tree_map(lambda position: rebuilt[position], positions)

    return vector, unravel


# Parts of a tree


_ABSENT = ()  # what stands for a missing leaf where a key cannot be left out (lists, tuples)


def partition(tree: Tree, predicate: Callable[[str], bool]) -> tuple[Tree, Tree]:
    """Split a tree in two by dotted path: ``(where predicate holds, the rest)``.

    A leaf that belongs to the other part is an absent key (in a list or tuple: an empty tuple), so both
    parts are trees that every transform accepts. :func:`combine` puts them together again.

    >>> trained, frozen = partition({"body": torch.ones(1), "head": torch.zeros(1)}, lambda p: p == "head")
    >>> trained, frozen
    ({'head': tensor([0.])}, {'body': tensor([1.])})
    """

    def part(node: Tree, path: tuple[str, ...], wanted: bool) -> Tree:
        if isinstance(node, Tensor):
            return node if bool(predicate(".".join(path))) is wanted else _ABSENT
        if isinstance(node, dict):
            parts = {key: part(child, (*path, str(key)), wanted) for key, child in node.items()}
            return {
                key: child for key, child in parts.items() if not (child is _ABSENT and isinstance(node[key], Tensor))
            }
        if _is_namedtuple(node):
            return type(node)(*[part(getattr(node, name), (*path, name), wanted) for name in node._fields])
        if isinstance(node, (list, tuple)):
            return type(node)([part(child, (*path, str(i)), wanted) for i, child in enumerate(node)])
        raise TypeError(f"partition expects tensors as leaves; at {'.'.join(path)!r} is {_describe(node)}")

    return part(tree, (), True), part(tree, (), False)


def combine(first: Tree, second: Tree) -> Tree:
    """Put two parts made by :func:`partition` together again.

    Raises ``ValueError`` naming a path that both parts have.

    >>> combine({"head": torch.zeros(1)}, {"body": torch.ones(1)})
    {'body': tensor([1.]), 'head': tensor([0.])}
    """

    def join(a: Tree, b: Tree, path: str) -> Tree:
        if isinstance(a, dict) and isinstance(b, dict):
            keys = sorted([*a, *[key for key in b if key not in a]], key=_natural)
            return {
                key: join(a[key], b[key], f"{path}[{key!r}]")
                if key in a and key in b
                else a[key]
                if key in a
                else b[key]
                for key in keys
            }
        if isinstance(a, (list, tuple)) and type(a) is type(b) and len(a) == len(b):
            parts = [join(x, y, f"{path}[{i}]") for i, (x, y) in enumerate(zip(a, b, strict=True))]
            return _like_sequence(a, parts)
        if isinstance(a, tuple) and a == _ABSENT:
            return b
        if isinstance(b, tuple) and b == _ABSENT:
            return a
        raise ValueError(
            f"combine: both parts have something at {path or 'the root'}: {_describe(a)} and {_describe(b)}"
        )

    return join(first, second, "")


def get(tree: Tree, path: str) -> Tree:
    """The leaf or subtree at a dotted path. Raises ``ValueError`` that lists what is there instead.

    >>> get({"fc": [torch.tensor(1), torch.tensor(2)]}, "fc.1")
    tensor(2)
    """
    node = tree
    walked = ""
    for name in path.split("."):
        children = {_strip(key): child for key, child in (_children(node) or {}).items()}
        if name not in children:
            raise ValueError(f"no {path!r} in the tree: at {walked or 'the root'} is {_describe(node)}")
        node = children[name]
        walked = f"{walked}.{name}".lstrip(".")
    return node


def _strip(bracketed: str) -> str:
    return bracketed.lstrip(".").strip("[]").strip("'\"")


def replace(tree: Tree, path: str, value: Tree) -> Tree:
    """A new tree with ``value`` at a dotted path; the given tree is unchanged.

    Raises ``ValueError`` when there is no such path.

    >>> replace({"fc": {"bias": torch.zeros(1)}}, "fc.bias", torch.ones(1))
    {'fc': {'bias': tensor([1.])}}
    """
    get(tree, path)

    def put(node: Tree, names: list[str]) -> Tree:
        if not names:
            return value
        head, *rest = names
        if isinstance(node, dict):
            return {key: put(child, rest) if str(key) == head else child for key, child in node.items()}
        if _is_namedtuple(node):
            return node._replace(**{head: put(getattr(node, head), rest)})
        return type(node)([put(child, rest) if str(i) == head else child for i, child in enumerate(node)])

    return put(tree, path.split("."))


# Many trees as one


def stack(trees: list[Tree]) -> Tree:
    """Trees of equal structure as one tree with a new leading axis: an ensemble for ``vmap``.

    Raises ``ValueError`` for no trees, for different structures, and for different shapes at a path.

    >>> stack([{"w": torch.ones(2)}, {"w": torch.zeros(2)}])["w"].shape
    torch.Size([2, 2])
    """
    return _join(trees, torch.stack, "stack")


def concat(trees: list[Tree], dim: int = 0) -> Tree:
    """Trees of equal structure joined along an existing axis: batches into one batch.

    >>> concat([{"x": torch.ones(2, 3)}, {"x": torch.ones(1, 3)}])["x"].shape
    torch.Size([3, 3])
    """
    return _join(trees, lambda leaves: torch.cat(leaves, dim), "concat")


def _join(trees: list[Tree], function: Callable, name: str) -> Tree:
    trees = list(trees)
    if not trees:
        raise ValueError(f"{name} needs at least one tree, got none")

    def join(path: str, *leaves: Tensor) -> Tensor:
        try:
            return function(leaves)
        except RuntimeError as error:
            shapes = [tuple(leaf.shape) for leaf in leaves]
            raise ValueError(f"cannot {name} the leaves at {path!r}: their shapes are {shapes}") from error

    return map_with_path(join, *trees)


def unstack(tree: Tree) -> list[Tree]:
    """The inverse of :func:`stack`: one tree per entry of the leading axis.

    Raises ``ValueError`` when leaves disagree about its length.

    >>> len(unstack({"w": torch.ones(3, 2)}))
    3
    """
    shapes = {path: tuple(leaf.shape) for path, leaf in items(tree)}
    if len({shape[:1] for shape in shapes.values()}) != 1 or () in shapes.values():
        raise ValueError(f"unstack needs one leading length in all leaves, got shapes {shapes}")
    length = leaves(tree)[0].shape[0]
    return [map(lambda leaf, i=i: leaf[i], tree) for i in range(length)]
