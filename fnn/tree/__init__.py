"""Pytrees: nested dicts, lists, tuples, NamedTuples and registered containers whose leaves are tensors.

``leaves, treedef = flatten(tree)`` takes a tree apart and ``treedef.unflatten(leaves)`` puts it together, as in JAX.
Paths are written in two forms. The dotted form, ``"conv1.bias"``, is the key in torch's ``state_dict``, and predicates
are called with it. Errors use the other form, ``"['conv1']['bias']"``, which can be pasted behind a variable.

The keys of a dict are sorted, and numbers within keys are compared as numbers (``"2"`` comes before ``"10"``), so no
result depends on the insertion order of a dict. Dicts of every class are restored with their class and their order.
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
