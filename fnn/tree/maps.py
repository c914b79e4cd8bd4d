"""Functions of the leaves: maps, reductions, and trees of the same structure as another."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fnn._numerics import safe_sqrt, widen
from fnn.tree.treedef import Tree, flatten, leaves

_map = map  # the builtin, whose name the function below takes


def map(f: Callable, tree: Tree, *others: Tree) -> Tree:
    """Apply ``f`` to the leaves at each path. The result has the structure of the first tree.

    Raises ``ValueError`` naming the first path at which the structures differ.

    >>> map(lambda p, g: p - 0.5 * g, {"w": torch.ones(2)}, {"w": torch.ones(2)})
    {'w': tensor([0.5000, 0.5000])}
    """
    found, treedef = flatten(tree)
    return treedef.unflatten(list(_map(f, found, *[treedef.flatten_up_to(other) for other in others])))


def map_with_path(f: Callable, tree: Tree, *others: Tree) -> Tree:
    """Apply ``f`` as in :func:`map`, with the dotted path as its first argument.

    >>> map_with_path(lambda path, leaf: path, {"a": {"w": torch.ones(2)}})
    {'a': {'w': 'a.w'}}
    """
    found, treedef = flatten(tree)
    columns = [treedef.flatten_up_to(other) for other in others]
    return treedef.unflatten(list(_map(f, treedef.paths, found, *columns)))


def leaf_values(choice: Any, tree: Tree, name: str = "choice") -> list:
    """Return the value that is chosen for each leaf of a tree, in the order of the leaves.

    ``choice`` is a function of the dotted path, or a tree of the same structure, or a *prefix* of that structure: a
    leaf of the prefix is the value for all leaves of the tree below its path. A single value is the shortest prefix.
    Raises ``ValueError`` for a leaf without a value and for a value without a leaf; the message calls the choice
    ``name``.

    >>> params = {"body": {"weight": 0, "bias": 0}, "head": 0}
    >>> leaf_values(lambda path: path.endswith("bias"), params)
    [True, False, False]
    >>> leaf_values({"body": 0.1, "head": 1.0}, params)
    [0.1, 0.1, 1.0]
    """
    treedef = flatten(tree)[1]
    if callable(choice) and not isinstance(choice, (Tensor, Mapping)):
        return [choice(path) for path in treedef.paths]
    chosen, prefix = flatten(choice)
    by_path = dict(zip(prefix.entries, chosen, strict=True))
    unused = dict.fromkeys(prefix.entries)
    values = []
    for path, keystr in zip(treedef.entries, treedef.keystrs, strict=True):
        start = next((path[:i] for i in range(len(path) + 1) if path[:i] in by_path), None)
        if start is None:
            raise ValueError(f"{name} has no value for the leaf {keystr or 'at the root'}")
        unused.pop(start, None)
        values.append(by_path[start])
    if unused:
        place = "".join(entry.bracket for entry in next(iter(unused)))
        raise ValueError(f"{name}{place} is a value for no leaf of the tree, whose leaves are {list(treedef.keystrs)}")
    return values


@dataclass(frozen=True)
class Spec:
    """The shape, dtype and device of a leaf."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


def spec(tree: Tree) -> Tree:
    """Return the tree with ``Spec(shape, dtype, device)`` in place of every leaf.

    >>> spec({"bias": torch.zeros(6)})["bias"].shape
    (6,)
    """
    return map(lambda leaf: Spec(tuple(leaf.shape), leaf.dtype, leaf.device), tree)


def size(tree: Tree) -> int:
    """Return the number of elements in all leaves.

    >>> size({"weight": torch.zeros(10, 20), "bias": torch.zeros(10)})
    210
    """
    return sum(leaf.numel() for leaf in leaves(tree))


def nbytes(tree: Tree) -> int:
    """Return the number of bytes that the elements of all leaves occupy.

    >>> nbytes({"bias": torch.zeros(10)})
    40
    """
    return sum(leaf.numel() * leaf.element_size() for leaf in leaves(tree))


def dot(first: Tree, second: Tree) -> Tensor:
    """Return the inner product of two trees, the sum of conj(a) b over all entries, as a 0-d tensor.

    16-bit leaves are multiplied and summed in float32.

    >>> dot({"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([3.0, 4.0])})
    tensor(11.)
    """
    a, treedef = flatten(first)
    products = [(widen(x).conj() * widen(y)).sum() for x, y in zip(a, treedef.flatten_up_to(second), strict=True)]
    return sum(products[1:], products[0]) if products else torch.zeros(())


def global_norm(tree: Tree) -> Tensor:
    """Return the Euclidean norm of all leaves as one vector, a real 0-d tensor. Its gradient at zero is zero.

    16-bit leaves are squared and summed in float32.

    >>> global_norm({"a": torch.tensor([3.0]), "b": torch.tensor([4.0])})
    tensor(5.)
    """
    square = dot(tree, tree)
    return safe_sqrt(square.real if square.is_complex() else square)


def allclose(first: Tree, second: Tree, *, rtol: float | None = None, atol: float | None = None) -> bool:
    """Return True if all leaves have equal shapes and |a - b| <= atol + rtol |b| for all entries.

    Leaves of different dtypes are compared in the dtype to which both promote.

    The default tolerances are torch's, rtol 1e-5 and atol 1e-8. If only one of them is given, the other is 0.

    >>> allclose({"w": torch.ones(2)}, {"w": torch.ones(2) + 1e-7})
    True
    >>> allclose({"w": torch.ones(2)}, {"w": torch.ones(2) + 1e-6}, atol=1e-8)
    False
    """
    if rtol is None and atol is None:
        rtol, atol = 1e-5, 1e-8
    a, treedef = flatten(first)

    def close(x: Tensor, y: Tensor) -> bool:
        dtype = torch.promote_types(x.dtype, y.dtype)
        return x.shape == y.shape and torch.allclose(x.to(dtype), y.to(dtype), rtol=rtol or 0.0, atol=atol or 0.0)

    return all(close(x, y) for x, y in zip(a, treedef.flatten_up_to(second), strict=True))


def max_difference(first: Tree, second: Tree) -> Tensor:
    """Return the largest |a - b| over all entries as a 0-d tensor, which is nan if an entry is nan.

    >>> max_difference({"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([1.0, 5.0])})
    tensor(3.)
    """
    differences = [widen(leaf).abs().max() for leaf in leaves(sub(first, second)) if leaf.numel()]
    return torch.stack(differences).max() if differences else torch.zeros(())


def add(first: Tree, second: Tree) -> Tree:
    """Add two trees leaf by leaf.

    >>> add({"w": torch.ones(1)}, {"w": torch.ones(1)})
    {'w': tensor([2.])}
    """
    return map(lambda a, b: a + b, first, second)


def sub(first: Tree, second: Tree) -> Tree:
    """Subtract the second tree from the first, leaf by leaf.

    >>> sub({"w": torch.ones(1)}, {"w": torch.ones(1)})
    {'w': tensor([0.])}
    """
    return map(lambda a, b: a - b, first, second)


def scale(factor: float | Tensor, tree: Tree) -> Tree:
    """Multiply every leaf by one number.

    >>> scale(2.0, {"w": torch.ones(1)})
    {'w': tensor([2.])}
    """
    return map(lambda leaf: factor * leaf, tree)


def lerp(first: Tree, second: Tree, weight: float | Tensor) -> Tree:
    """Return first + weight (second - first), leaf by leaf, in the dtypes of the first tree.

    Leaves of integers are rounded towards zero.

    >>> lerp({"w": torch.zeros(1)}, {"w": torch.ones(1)}, 0.25)
    {'w': tensor([0.2500])}
    """

    return map(lambda a, b: (a + (b - a) * weight).to(a.dtype), first, second)


def where(condition: Tensor, first: Tree, second: Tree) -> Tree:
    """Select the leaves of the first tree where a bool tensor is true, and those of the second elsewhere.

    >>> where(torch.tensor(True), {"w": torch.zeros(1)}, {"w": torch.ones(1)})
    {'w': tensor([0.])}
    """
    return map(lambda a, b: torch.where(condition, a, b), first, second)


def zeros_like(tree: Tree, dtype: torch.dtype | None = None) -> Tree:
    """Return zeros of the same shapes, dtypes (or ``dtype``) and devices.

    >>> zeros_like({"w": torch.ones(2)})
    {'w': tensor([0., 0.])}
    """
    return map(lambda leaf: torch.zeros_like(leaf, dtype=dtype), tree)


def ones_like(tree: Tree, dtype: torch.dtype | None = None) -> Tree:
    """Return ones of the same shapes, dtypes (or ``dtype``) and devices.

    >>> ones_like({"w": torch.zeros(2)})
    {'w': tensor([1., 1.])}
    """
    return map(lambda leaf: torch.ones_like(leaf, dtype=dtype), tree)


def cast(tree: Tree, dtype: torch.dtype) -> Tree:
    """Copy a tree, with floating leaves in another dtype. Integer leaves (labels, keys, counts) keep their dtypes.

    Raises ``TypeError`` unless ``dtype`` is a floating ``torch.dtype``.

    >>> cast({"w": torch.ones(1), "count": torch.tensor(3)}, torch.float64)
    {'w': tensor([1.], dtype=torch.float64), 'count': tensor(3)}
    """
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"cast expects a floating dtype such as torch.float64, got {dtype!r}")
    return map(lambda leaf: leaf.to(dtype, copy=True) if leaf.is_floating_point() else leaf.clone(), tree)


def to(tree: Tree, device: torch.device | str) -> Tree:
    """Copy every leaf to a device.

    >>> to({"w": torch.ones(1)}, "cpu")["w"].device
    device(type='cpu')
    """
    return map(lambda leaf: leaf.to(device, copy=True), tree)


def leading_length(tree: Tree, name: str = "batch", what: str = "samples") -> int:
    """Return the common length of the first axis of all leaves, such as the number of samples of a batch.

    Raises ``TypeError`` for a leaf that is not a tensor, and ``ValueError`` for a 0-d leaf, for leaves of different
    lengths and for a tree without leaves. The messages call the tree ``name`` and its entries ``what``.

    >>> leading_length({"image": torch.zeros(3, 2), "label": torch.zeros(4)})
    Traceback (most recent call last):
    ValueError: batch['label'] has 4 samples, but batch['image'] has 3; all leaves need one leading length ...
    """
    first: tuple[str, int] | None = None
    found, treedef = flatten(tree)
    for path, leaf in zip(treedef.keystrs, found, strict=True):
        if not isinstance(leaf, Tensor):
            raise TypeError(f"{name}{path} is {leaf!r}, not a tensor; keep configuration in a closure")
        if leaf.dim() == 0:
            raise ValueError(f"{name}{path} is a 0-d tensor and has no axis of {what}")
        if first is None:
            first = f"{name}{path}", leaf.shape[0]
        elif leaf.shape[0] != first[1]:
            raise ValueError(
                f"{name}{path} has {leaf.shape[0]} {what}, but {first[0]} has {first[1]}; all leaves need one "
                f"leading length, so move the axis of {what} to the front: x.movedim(axis, 0)"
            )
    if first is None:
        raise ValueError(f"{name} has no leaves")
    return first[1]
