"""Every private torch name that fnn uses, in one place.

Checked on torch 2.11, 2.13 and the newest release at the time of writing (see docs/decisions.md).
tests/test_torch.py fails by name when one of them moves.
"""

from torch._dynamo import lookup_backend
from torch.utils._pytree import (  # no public pytree module in any supported version
    tree_flatten,
    tree_flatten_with_path,
    tree_leaves,
    tree_map,
    tree_unflatten,
)

__all__ = ["lookup_backend", "tree_flatten", "tree_flatten_with_path", "tree_leaves", "tree_map", "tree_unflatten"]
