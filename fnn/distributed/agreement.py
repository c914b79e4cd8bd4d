"""Whether all processes hold the same trees."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fnn import tree as _tree
from fnn._processes import check_agreement, digests
from fnn.tree import Tree

_agreed: set[tuple] = set()  # what all processes have agreed on


def check_equal(tree: Tree) -> None:
    """Raise ``ValueError`` on every process unless all processes hold the same tree, bit by bit.

    For what all processes hold whole: write ``check_equal((params, opt_state))`` before a loop of one's own, so that a
    process with another seed or another learning rate is found. ``fnn.training.fit`` does this with its state. Every
    leaf is copied to the CPU, and its digest is compared; the message names the first leaf that differs. All processes
    must call this together. Raises ``TypeError`` for a leaf that is not a tensor.

    >>> import torch
    >>> check_equal({"w": torch.ones(2)})
    """
    leaves, treedef = _tree.flatten(tree)
    for path, leaf in zip(treedef.keystrs, leaves, strict=True):
        if not isinstance(leaf, Tensor):
            raise TypeError(f"check_equal: tree{path} is {leaf!r}, not a tensor; keep configuration in a closure")
    check_agreement("the tree of check_equal", digests([f"tree{path}" for path in treedef.keystrs], leaves))


def agree(name: str, treedef: _tree.TreeDef, leaves: Sequence[Tensor], words: Sequence[Any]) -> None:
    """Compare the structure and shapes of a tree over all processes, when this process first has such a tree."""
    dtypes = [str(leaf.dtype).removeprefix("torch.") for leaf in leaves]
    rows = list(zip([tuple(leaf.shape) for leaf in leaves], dtypes, map(str, words), strict=True))
    key = name, treedef, *rows
    if key not in _agreed:
        described = zip(treedef.keystrs, rows, strict=True)
        check_agreement(
            f"the tree that {name} takes",
            [f"result{path} of shape {shape}, {dtype} ({word})" for path, (shape, dtype, word) in described],
        )
        _agreed.add(key)
