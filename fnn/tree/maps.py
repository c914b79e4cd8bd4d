"""Functions of the leaves: maps, reductions, trees like another."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fnn import _torch
from fnn.tree.order import Tree, check_same_structure, leaves, like_sequence, paths, rebuild


def map(function: Callable, tree: Tree, *others: Tree) -> Tree:
    """``function`` of the leaves at each path, as a tree like the first.

    Raises ``ValueError`` when the trees differ, naming the path and both sides.

    >>> map(lambda p, g: p - 0.5 * g, {"w": torch.ones(2)}, {"w": torch.ones(2)})
    {'w': tensor([0.5000, 0.5000])}
    """
    for other in others:
        check_same_structure(tree, other)
    return _map(function, tree, others)


def _map(function: Callable, node: Tree, others: Sequence[Tree]) -> Tree:
    if isinstance(node, Tensor):
        return function(node, *others)
    if type(node) is dict:
        return {key: _map(function, child, [other[key] for other in others]) for key, child in node.items()}
    if isinstance(node, (list, tuple)):
        rows = zip(node, *others, strict=True)
        return like_sequence(node, [_map(function, child, rest) for child, *rest in rows])
    return _torch.tree_map(function, node, *others)  # a leaf that is no tensor, or a container registered with torch


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
