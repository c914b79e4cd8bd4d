"""Tables of the parameters of a network."""

from torch import Tensor

from fnn import tree as _tree
from fnn.layers.base import Layer, StatefulLayer
from fnn.tree import Tree


def summary(params: Tree) -> str:
    """Return a text table with the path, shape, number of parameters and bytes of each leaf, and the totals.

    Raises ``TypeError`` for a layer in place of its params and for leaves that are not tensors, and ``ValueError`` for
    a donated tree.

    >>> import fnn
    >>> print(summary(fnn.layers.linear(20, 10).init(fnn.random.key(0))))
    path    shape     parameters  bytes
    bias    (10,)             10     40
    weight  (10, 20)         200    800
    total                    210    840
    """
    if isinstance(params, (Layer, StatefulLayer)):
        raise TypeError("summary expects params, got a layer; write summary(model.init(fnn.random.key(0)))")
    for path, leaf in _tree.items(params):
        if not isinstance(leaf, Tensor):
            place = f"params[{path!r}]" if path else "params"
            line = "write summary(model.init(fnn.random.key(0)))"
            raise TypeError(f"summary: {place} is a {type(leaf).__name__}, not a tensor; {line}")
        if leaf.is_meta and leaf.shape == (0,):
            raise ValueError(
                f"summary: params[{path!r}] was donated to a jitted function; summarise the tree that it returned"
            )
    rows = [("path", "shape", "parameters", "bytes")]
    for path, leaf in _tree.items(params):
        rows.append((path, str(tuple(leaf.shape)), f"{leaf.numel():,}", f"{leaf.numel() * leaf.element_size():,}"))
    rows.append(("total", "", f"{_tree.size(params):,}", f"{_tree.nbytes(params):,}"))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return "\n".join(
        f"{path:<{widths[0]}}  {shape:<{widths[1]}}  {count:>{widths[2]}}  {size:>{widths[3]}}"
        for path, shape, count, size in rows
    )
