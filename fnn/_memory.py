"""Results that own their memory: no leaf shares it with an argument or with another leaf."""

import torch
from torch import Tensor

from fnn import _torch
from fnn import tree as _tree
from fnn.tree import Tree


def is_outermost() -> bool:
    """Return True if no transform is active and nothing traces operations."""
    if torch.compiler.is_compiling():
        return False
    return _torch.peek_interpreter_stack() is None and not _torch.dispatch_modes()


def own(result: Tree, *given: Tree) -> Tree:
    """Copy the leaves that share memory with a leaf of the given trees or with one another, or are expanded.

    Inside a transform or a trace nothing is copied: the outermost call or the executable of the graph does it.

    >>> x = torch.ones(2)
    >>> y, z = own((x, x.expand(3, 2)), {"x": x})
    >>> y.data_ptr() == x.data_ptr(), z.is_contiguous()
    (False, True)
    """
    if not is_outermost():
        return result
    leaves, treedef = _tree.flatten(result)
    return treedef.unflatten(own_leaves(leaves, [leaf for tree in given for leaf in _tree.leaves(tree)]))


def own_leaves(leaves: list, given: list | tuple = ()) -> list:
    """As :func:`own`, for lists of leaves. Leaves that are not tensors are returned as they are."""
    taken = {_torch.storage_id(leaf) for leaf in given if _has_memory(leaf)}
    owned = []
    for leaf in leaves:
        if _has_memory(leaf):
            place = _torch.storage_id(leaf)
            if place in taken or (not leaf.is_contiguous() and 0 in leaf.stride()):
                leaf = leaf.clone(memory_format=torch.contiguous_format)
            taken.add(place)
        owned.append(leaf)
    return owned


def _has_memory(leaf: object) -> bool:
    return isinstance(leaf, Tensor) and leaf.layout == torch.strided
