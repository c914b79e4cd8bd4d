"""Trees of one structure as vectors: the spaces that a linear operator maps between."""

import torch
from torch import Tensor

from fnn import tree as _tree
from fnn._numerics import widen
from fnn.tree import Tree


class VectorSpace:
    """The trees that have the structure of a given one and the shapes and dtypes of its leaves.

    The structure is read once. A tree is numbered as :func:`fnn.tree.ravel` numbers it; its vector has the ``dtype``
    that the leaves promote to.

    >>> space = VectorSpace({"w": torch.zeros(2), "b": torch.zeros(1)})
    >>> space.ravel({"w": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0])})
    tensor([3., 1., 2.])
    """

    def __init__(self, like: Tree) -> None:
        self.like, self.treedef = _tree.flatten(like)
        self.sizes = [leaf.numel() for leaf in self.like]
        self.size = sum(self.sizes)
        self.dtype = _tree.result_type(self.like)
        self.device = self.like[0].device if self.like else torch.device("cpu")

    @property
    def wide_dtype(self) -> torch.dtype:
        """The dtype in which sums over these vectors are taken: float32 where :attr:`dtype` has 16 bits."""
        return widen(torch.zeros((), dtype=self.dtype)).dtype

    def ravel(self, tree: Tree) -> Tensor:
        """The entries of a tree as one vector (size,)."""
        return torch.cat([leaf.reshape(-1).to(self.dtype) for leaf in self.treedef.flatten_up_to(tree)])

    def unravel(self, vector: Tensor) -> Tree:
        """A vector (size,) as a tree, whose leaves are views of it where they have its dtype."""
        pieces = zip(vector.split(self.sizes), self.like, strict=True)
        return self.treedef.unflatten([piece.reshape(leaf.shape).to(leaf.dtype) for piece, leaf in pieces])

    def tree(self, vector: Tensor) -> Tree:
        """A vector (size,) as a tree whose leaves have memory of their own: what a user gets."""
        return _tree.map(torch.clone, self.unravel(vector))

    def fit(self, tree: Tree, names: tuple[str, str]) -> Tree:
        """A tree of this space, its dicts in this space's order.

        Raises ``ValueError`` where structure, shape or dtype differ; ``names`` are those of the space and the tree.
        """
        return self.treedef.unflatten(_fitting_leaves(self.treedef, self.like, tree, names))


def check_like(expected: Tree, given: Tree, expected_name: str, given_name: str) -> None:
    """``ValueError`` naming the path where structure, shape or dtype of two trees differ."""
    leaves, treedef = _tree.flatten(expected)
    _fitting_leaves(treedef, leaves, given, (expected_name, given_name))


def _fitting_leaves(treedef: _tree.TreeDef, expected: list, given: Tree, names: tuple[str, str]) -> list:
    leaves = treedef.flatten_up_to(given, names)
    for i, (want, have) in enumerate(zip(expected, leaves, strict=True)):
        if not isinstance(have, Tensor):
            raise ValueError(f"{names[1]}{treedef.keystrs[i]} is {have!r}, not a tensor as in {names[0]}")
        if want.shape != have.shape or want.dtype != have.dtype:
            raise ValueError(
                f"{names[1]}{treedef.keystrs[i]} has shape {tuple(have.shape)} and {have.dtype}, expected "
                f"{tuple(want.shape)} and {want.dtype} as in {names[0]}"
            )
    return leaves


def one_hot(like: Tree, start: int, stop: int) -> Tree:
    """Rows ``start`` to ``stop`` of the identity matrix as one stacked tree, each row a tree like the given one.

    >>> one_hot({"w": torch.zeros(2), "b": torch.zeros(1)}, 0, 2)
    {'w': tensor([[0., 0.],
            [1., 0.]]), 'b': tensor([[1.],
            [0.]])}
    """
    leaves, treedef = _tree.flatten(like)
    rows = torch.arange(start, stop, device=leaves[0].device)
    stacks, first = [], 0
    for leaf in leaves:
        places = torch.arange(first, first + leaf.numel(), device=leaf.device)
        stacks.append((rows[:, None] == places).to(leaf.dtype).reshape(len(rows), *leaf.shape))
        first += leaf.numel()
    return treedef.unflatten(stacks)
