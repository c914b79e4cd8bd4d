"""Trees in other forms: dotted dicts, vectors, parts, and many trees as one."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from fnn.tree.maps import map, map_with_path
from fnn.tree.order import (
    Tree,
    children_of,
    describe,
    is_namedtuple,
    items,
    leaves,
    like_sequence,
    natural,
    paths,
    rebuild,
)


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
        extra = [path for path in flat if path not in set(wanted)]
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
        return rebuild(tree, rebuilt)

    return vector, unravel


_ABSENT = ()  # what stands for a missing leaf where a key cannot be left out (lists, tuples)


def partition(tree: Tree, predicate: Callable[[str], bool]) -> tuple[Tree, Tree]:
    """Split a tree in two by dotted path: ``(where predicate holds, the rest)``.

    What belongs to the other part is an absent key (in a list or tuple: an empty tuple), so both parts are
    trees that every transform accepts. :func:`combine` puts them together again.

    >>> trained, frozen = partition({"body": torch.ones(1), "head": torch.zeros(1)}, lambda p: p == "head")
    >>> trained, frozen
    ({'head': tensor([0.])}, {'body': tensor([1.])})
    """

    def part(node: Tree, path: tuple[str, ...], wanted: bool) -> Tree:
        if isinstance(node, Tensor):
            return node if bool(predicate(".".join(path))) is wanted else _ABSENT
        if isinstance(node, dict):
            parts = {key: part(child, (*path, str(key)), wanted) for key, child in node.items()}
            return {key: child for key, child in parts.items() if leaves(child) or not leaves(node[key])}
        if is_namedtuple(node):
            return type(node)(*[part(getattr(node, name), (*path, name), wanted) for name in node._fields])
        if isinstance(node, (list, tuple)):
            return type(node)([part(child, (*path, str(i)), wanted) for i, child in enumerate(node)])
        raise TypeError(f"partition expects tensors as leaves; at {'.'.join(path)!r} is {describe(node)}")

    return part(tree, (), True), part(tree, (), False)


def combine(first: Tree, second: Tree) -> Tree:
    """Put two parts made by :func:`partition` together again.

    Raises ``ValueError`` naming a path that both parts have.

    >>> combine({"head": torch.zeros(1)}, {"body": torch.ones(1)})
    {'body': tensor([1.]), 'head': tensor([0.])}
    """

    def join(a: Tree, b: Tree, path: str) -> Tree:
        if isinstance(a, dict) and isinstance(b, dict):
            keys = sorted([*a, *[key for key in b if key not in a]], key=natural)
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
            return like_sequence(a, parts)
        if isinstance(a, tuple) and a == _ABSENT:
            return b
        if isinstance(b, tuple) and b == _ABSENT:
            return a
        raise ValueError(f"combine: both parts have something at {path or 'the root'}: {describe(a)} and {describe(b)}")

    return join(first, second, "")


def get(tree: Tree, path: str) -> Tree:
    """The leaf or subtree at a dotted path. Raises ``ValueError`` that lists what is there instead.

    >>> get({"fc": [torch.tensor(1), torch.tensor(2)]}, "fc.1")
    tensor(2)
    """
    node = tree
    walked = ""
    for name in path.split("."):
        children = {_strip(key): child for key, child in (children_of(node) or {}).items()}
        if name not in children:
            raise ValueError(f"no {path!r} in the tree: at {walked or 'the root'} is {describe(node)}")
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
        if is_namedtuple(node):
            return node._replace(**{head: put(getattr(node, head), rest)})
        return type(node)([put(child, rest) if str(i) == head else child for i, child in enumerate(node)])

    return put(tree, path.split("."))


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
