"""Stacking several trees into one, and flattening a tree into a vector."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fnn.tree.maps import leading_length
from fnn.tree.treedef import Tree, flatten


def stack(trees: Sequence[Tree]) -> Tree:
    """Stack trees of equal structure along a new leading axis, for example into an ensemble for ``vmap``.

    Raises ``ValueError`` for an empty sequence, for different structures, and for different shapes at a path.

    >>> stack([{"w": torch.ones(2)}, {"w": torch.zeros(2)}])["w"].shape
    torch.Size([2, 2])
    """
    return _join(trees, torch.stack, "stack")


def concat(trees: Sequence[Tree], dim: int = 0) -> Tree:
    """Concatenate trees of equal structure along an existing axis, for example batches into one batch.

    Raises the same errors as :func:`stack`.

    >>> concat([{"x": torch.ones(2, 3)}, {"x": torch.ones(1, 3)}])["x"].shape
    torch.Size([3, 3])
    """
    return _join(trees, lambda leaves: torch.cat(leaves, dim), "concat")


def _join(trees: Sequence[Tree], join: Callable, name: str) -> Tree:
    trees = list(trees)
    if not trees:
        raise ValueError(f"{name} needs at least one tree, got none")
    treedef = flatten(trees[0])[1]
    columns = zip(
        *[treedef.flatten_up_to(tree, ("trees[0]", f"trees[{i}]")) for i, tree in enumerate(trees)], strict=True
    )
    joined = []
    for path, column in zip(treedef.paths, columns, strict=True):
        try:
            joined.append(join(column))
        except RuntimeError as error:
            shapes = [tuple(leaf.shape) for leaf in column]
            raise ValueError(f"cannot {name} the leaves at {path!r}: their shapes are {shapes}") from error
    return treedef.unflatten(joined)


def unstack(tree: Tree) -> list[Tree]:
    """Return one tree for each entry of the leading axis: the inverse of :func:`stack`.

    Raises ``ValueError`` for leaves of different lengths.

    >>> len(unstack({"w": torch.ones(3, 2)}))
    3
    """
    leading_length(tree, "tree", "entries")
    found, treedef = flatten(tree)
    rows = zip(*[leaf.unbind(0) for leaf in found], strict=True)
    return [treedef.unflatten([leaf.clone() for leaf in row]) for row in rows]


def ravel(tree: Tree) -> tuple[Tensor, Callable[[Tensor], Tree]]:
    """Concatenate all leaves into one vector, and return it with the function ``unravel`` that makes trees of vectors.

    The vector has the dtype to which the dtypes of the leaves promote. ``unravel(vector)`` restores the shape and dtype
    of each leaf, and raises ``ValueError`` for a vector of another length. Both directions are differentiable and may
    be vmapped.

    >>> vector, unravel = ravel({"w": torch.ones(2, 2), "b": torch.zeros(1)})
    >>> vector
    tensor([0., 1., 1., 1., 1.])
    >>> unravel(vector)["w"].shape
    torch.Size([2, 2])
    """
    found, treedef = flatten(tree)
    shapes = [(leaf.shape, leaf.dtype, leaf.numel()) for leaf in found]
    total = sum(count for _, _, count in shapes)
    dtype = result_type(tree)
    vector = torch.cat([leaf.reshape(-1).to(dtype) for leaf in found]) if found else torch.zeros(0)

    def unravel(vector: Tensor) -> Tree:
        if vector.shape != (total,):
            raise ValueError(f"unravel expects a vector of shape ({total},), got {tuple(vector.shape)}")
        pieces = vector.split([count for _, _, count in shapes]) if shapes else ()
        found = [x.reshape(shape).to(dtype, copy=True) for x, (shape, dtype, _) in zip(pieces, shapes, strict=True)]
        return treedef.unflatten(found)

    return vector, unravel


def result_type(tree: Tree) -> torch.dtype:
    """Return the dtype to which the leaves of a tree promote. Without leaves it is torch's default dtype.

    >>> result_type({"w": torch.ones(1), "b": torch.ones(1, dtype=torch.float64)})
    torch.float64
    """
    dtypes = [leaf.dtype for leaf in flatten(tree)[0]]
    dtype = dtypes[0] if dtypes else torch.get_default_dtype()
    for other in dtypes:
        dtype = torch.promote_types(dtype, other)
    return dtype
