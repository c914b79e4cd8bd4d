"""The structure, shapes and dtypes of params, and the form of the leaves with which optimizers compute."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fnn import _torch
from fnn._numerics import widen
from fnn.tree import Tree, TreeDef, flatten

_WIDE = {torch.float32, torch.float64}


class Layout:
    """The structure, shapes and dtypes of the params, or of the part of them that an optimizer updates.

    Optimizers compute with flat lists of *working leaves*, which are real, of float32 or float64, and have at least one
    axis. 16-bit numbers are widened to float32, so that sums, squares and running means do not lose digits. Complex
    numbers become pairs of real numbers along a last axis of length 2, as in ``torch.optim``. A 0-d leaf gets the shape
    (1,), so that 0-d hyperparameters do not affect its dtype. :meth:`leaves` converts a tree to working leaves, and
    :meth:`tree` converts working leaves to a tree with the dtypes and shapes of the params.

    >>> layout = Layout.of({"w": torch.ones(2, dtype=torch.bfloat16)})
    >>> layout.leaves({"w": torch.zeros(2, dtype=torch.bfloat16)}, "grads")
    [tensor([0., 0.])]
    >>> layout.tree([torch.ones(2)])
    {'w': tensor([1., 1.], dtype=torch.bfloat16)}
    """

    __slots__ = ("chosen", "memo", "params", "parent", "plain", "shapes", "treedef")

    def __init__(
        self, treedef: TreeDef, params: list[Tensor], parent: "Layout | None" = None, chosen: Sequence[int] = ()
    ) -> None:
        self.treedef = treedef
        self.params = params
        """The leaves as they are in the tree."""
        self.shapes = [x.shape for x in params]
        self.plain = _WIDE.issuperset([x.dtype for x in params]) and () not in self.shapes
        """Whether the leaves of the params are working leaves without conversion."""
        self.parent = parent
        self.chosen = chosen
        """The indices of these leaves among those of the parent."""
        self.memo: dict = {}
        """A cache for optimizers."""

    @classmethod
    def of(cls, params: Tree, name: str = "params") -> "Layout":
        leaves, treedef = flatten(params)
        if not _are_tensors(leaves):
            place, leaf = next(
                pair for pair in zip(treedef.keystrs, leaves, strict=True) if not isinstance(pair[1], Tensor)
            )
            raise TypeError(f"{name}{place} is {leaf!r}, not a tensor; keep configuration in a closure")
        return cls(treedef, leaves)

    def part(self, chosen: Sequence[int], treedef: TreeDef) -> "Layout":
        """Return the layout of the chosen leaves, which form a tree of the structure ``treedef``."""
        return Layout(treedef, [self.params[i] for i in chosen], self, chosen)

    def leaves(self, tree: Tree, name: str) -> list[Tensor]:
        """Return the working leaves of a tree like the params, which errors call ``name``.

        Raises ``ValueError`` naming the first path at which the structure or a shape differs, and ``TypeError`` for a
        leaf that is not a tensor, or is complex where the param is real.
        """
        leaves = self.stored(tree, name)
        if self.plain and _WIDE.issuperset([x.dtype for x in leaves]):
            return leaves
        for keystr, x, param in zip(self.treedef.keystrs, leaves, self.params, strict=True):
            if x.is_complex() and not param.is_complex():
                raise TypeError(f"{name}{keystr} has dtype {x.dtype}, but params{keystr} has {param.dtype}")
        return [_working(x.to(p.dtype) if p.is_complex() else x) for x, p in zip(leaves, self.params, strict=True)]

    def stored(self, tree: Tree, name: str, shape_of: Callable[[Tensor], torch.Size] | None = None) -> list[Tensor]:
        """Return the leaves of a tree like the params without conversion, checked as in :meth:`leaves`.

        The shapes must be those of the params, or ``shape_of(param)`` for each param.
        """
        leaves = self.treedef.flatten_up_to(tree, ("params", name))
        shapes = self.shapes if shape_of is None else [shape_of(param) for param in self.params]
        if not _are_tensors(leaves) or [x.shape for x in leaves] != shapes:
            for keystr, x, param, expected in zip(self.treedef.keystrs, leaves, self.params, shapes, strict=True):
                if not isinstance(x, Tensor):
                    raise TypeError(f"{name}{keystr} is {x!r}, not a tensor")
                if x.shape != expected:
                    raise ValueError(
                        f"{name}{keystr} has shape {tuple(x.shape)}, but params{keystr} has {tuple(param.shape)}"
                        + ("" if expected == param.shape else f", for which it would be {tuple(expected)}")
                    )
        return leaves

    def tree(self, leaves: list[Tensor]) -> Tree:
        """Return the tree of these working leaves, in the dtypes and shapes of the params."""
        return self.treedef.unflatten(stored_like(leaves, self.params))

    def as_given(self) -> Tree:
        """Return the tree of the params, or of this part of them, as they were given."""
        return self.treedef.unflatten(self.params)

    def whole(self, leaves: list[Tensor]) -> Tree:
        """Return all params, in which these working leaves replace those that the optimizer updates."""
        return self._whole(stored_like(leaves, self.params))

    def _whole(self, leaves: list[Tensor]) -> Tree:
        if self.parent is None:
            return self.treedef.unflatten(leaves)
        full = list(self.parent.params)
        for i, leaf in zip(self.chosen, leaves, strict=True):
            full[i] = leaf
        return self.parent._whole(full)

    def leaves_of_whole(self, tree: Tree, name: str) -> list[Tensor]:
        """Return the working leaves, for the params that the optimizer updates, from a tree like all params."""
        if self.parent is None:
            return self.leaves(tree, name)
        leaves = self.parent.leaves_of_whole(tree, name)
        return [leaves[i] for i in self.chosen]

    def refuse_complex(self, name: str) -> None:
        """Raise ``TypeError`` naming a complex leaf, if there is one."""
        if self.plain:
            return
        for keystr, leaf in zip(self.treedef.keystrs, self.params, strict=True):
            if leaf.is_complex():
                raise TypeError(f"{name} is for real numbers, but params{keystr} has dtype {leaf.dtype}")


def _are_tensors(leaves: list) -> bool:
    return {Tensor}.issuperset(map(type, leaves)) or all(isinstance(x, Tensor) for x in leaves)


def working(leaves: list[Tensor]) -> list[Tensor]:
    """Convert leaves to working leaves; see :class:`Layout`.

    >>> working([torch.ones((), dtype=torch.float16)])
    [tensor([1.])]
    """
    if _WIDE.issuperset([x.dtype for x in leaves]) and 0 not in [x.dim() for x in leaves]:
        return leaves
    return [_working(x) for x in leaves]


def _working(x: Tensor) -> Tensor:
    x = widen(torch.view_as_real(x.resolve_conj()) if x.is_complex() else x)
    return x if x.dim() else x.reshape(1)


def stored_like(leaves: list[Tensor], old: list[Tensor]) -> list[Tensor]:
    """Convert working leaves to the dtypes and shapes of the old leaves. Raises ``ValueError`` for another shape.

    >>> stored_like([torch.ones(1)], [torch.zeros((), dtype=torch.bfloat16)])
    [tensor(1., dtype=torch.bfloat16)]
    """
    return [
        x if x.dtype is like.dtype and x.shape == like.shape else _stored(x, like)
        for x, like in zip(leaves, old, strict=True)
    ]


def _stored(x: Tensor, like: Tensor) -> Tensor:
    shape = (*like.shape, 2) if like.is_complex() else tuple(like.shape)
    if tuple(x.shape) != (shape or (1,)):
        raise ValueError(
            f"the rule of an optimizer gave shape {tuple(x.shape)} for a leaf of shape {tuple(like.shape)}"
        )
    if _torch.is_view(x):  # it may share memory with an argument
        x = x.clone()
    if like.is_complex():
        return torch.view_as_complex(x.to(like.real.dtype).contiguous())
    return x.reshape(shape).to(like.dtype)
