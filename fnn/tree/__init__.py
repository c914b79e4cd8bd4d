"""Pytrees: nested dicts, lists, tuples and NamedTuples whose leaves are tensors.

A *path* is written in two forms. The dotted form, ``"conv1.bias"``, is torch's ``state_dict`` key and
is what predicates and :func:`flatten` use. The bracket form, ``"['conv1']['bias']"``, is what
errors use, because it can be pasted behind a variable.

Dicts are visited in the order of their keys, numbers in a key counted as numbers (``"2"`` before
``"10"``), so no result depends on the order in which a dict was filled.
"""

from fnn.tree.maps import (
    add,
    allclose,
    bytes,
    cast,
    dot,
    global_norm,
    map,
    map_with_path,
    ones_like,
    scale,
    size,
    sub,
    to,
    zeros_like,
)
from fnn.tree.order import (
    Spec,
    Tree,
    check_same_structure,
    columns,
    items,
    leaves,
    paths,
    rebuild,
    refill,
    spec,
    structure,
)
from fnn.tree.parts import (
    combine,
    concat,
    flatten,
    get,
    partition,
    ravel,
    replace,
    stack,
    unflatten,
    unstack,
)

__all__ = [
    "Spec",
    "Tree",
    "add",
    "allclose",
    "bytes",
    "cast",
    "check_same_structure",
    "columns",
    "combine",
    "concat",
    "dot",
    "flatten",
    "get",
    "global_norm",
    "items",
    "leaves",
    "map",
    "map_with_path",
    "ones_like",
    "partition",
    "paths",
    "ravel",
    "rebuild",
    "refill",
    "replace",
    "scale",
    "size",
    "spec",
    "stack",
    "structure",
    "sub",
    "to",
    "unflatten",
    "unstack",
    "zeros_like",
]
