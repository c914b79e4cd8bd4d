"""Pytrees: nested dicts, lists, tuples, NamedTuples and registered containers whose leaves are tensors.

``leaves, treedef = flatten(tree)`` takes a tree apart and ``treedef.unflatten(leaves)`` puts it together, as in JAX.
A *path* is written in two forms. The dotted form, ``"conv1.bias"``, is the key of torch's ``state_dict`` and what
predicates are given. The other, ``"['conv1']['bias']"``, is what errors use, as it can be pasted behind a variable.

Dicts are visited in the order of their keys, numbers in a key counted as numbers (``"2"`` before
``"10"``), so no result depends on the order in which a dict was filled; a dict of any class comes back as it was.
"""

from fnn.tree.maps import (
    Spec,
    add,
    allclose,
    cast,
    dot,
    global_norm,
    leading_length,
    leaf_values,
    lerp,
    map,
    map_with_path,
    max_difference,
    nbytes,
    ones_like,
    scale,
    size,
    spec,
    sub,
    to,
    where,
    zeros_like,
)
from fnn.tree.partition import combine, partition
from fnn.tree.stack import concat, ravel, result_type, stack, unstack
from fnn.tree.state_dict import from_state_dict, get, replace, to_state_dict
from fnn.tree.treedef import (
    Tree,
    TreeDef,
    check_same_structure,
    describe,
    flatten,
    items,
    keystrs,
    leaves,
    paths,
    structure,
)

__all__ = [
    "Spec",
    "Tree",
    "TreeDef",
    "add",
    "allclose",
    "cast",
    "check_same_structure",
    "combine",
    "concat",
    "describe",
    "dot",
    "flatten",
    "from_state_dict",
    "get",
    "global_norm",
    "items",
    "keystrs",
    "leading_length",
    "leaf_values",
    "leaves",
    "lerp",
    "map",
    "map_with_path",
    "max_difference",
    "nbytes",
    "ones_like",
    "partition",
    "paths",
    "ravel",
    "replace",
    "result_type",
    "scale",
    "size",
    "spec",
    "stack",
    "structure",
    "sub",
    "to",
    "to_state_dict",
    "unstack",
    "where",
    "zeros_like",
]
