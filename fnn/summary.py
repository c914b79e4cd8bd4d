"""Tables of a network: its parts, the shapes that they return, their parameters and what they cost."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fnn import tree as _tree
from fnn._configs import config_of, parts_of
from fnn.layers.base import Layer, StatefulLayer
from fnn.layers.capture import Call, listening
from fnn.layers.structure import call_text
from fnn.tree import Tree


class Row(NamedTuple):
    """One part of a network, or one leaf of its params.

    ``shape`` is that of the part's output, ``()`` if it is not one tensor, or that of the leaf. ``bytes`` are those of
    the parameters. FLOPs are those of products and convolutions, and None in a table of params alone.
    """

    path: str
    layer: str
    shape: tuple[int, ...]
    parameters: int
    bytes: int
    forward_flops: int | None
    backward_flops: int | None


class Summary(NamedTuple):
    """The rows of a table and the totals. ``str(summary)`` is the table."""

    rows: list[Row]
    total: Row

    def __str__(self) -> str:
        header = ("path", "layer", "shape", "parameters", "bytes", "forward", "backward")
        lines = [*map(_cells, self.rows), _cells(self.total)]
        shown = [i for i in range(len(header)) if any(line[i] for line in lines)]
        lines = [header, *lines]
        widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
        pad = lambda i, cell: f"{cell:<{widths[i]}}" if i < 3 else f"{cell:>{widths[i]}}"
        return "\n".join("  ".join(pad(i, line[i]) for i in shown).rstrip() for line in lines)

    __repr__ = __str__


def summary(model: Layer | StatefulLayer | Tree, *arguments: Any) -> Summary:
    """Return a table of the parts of a network: path, layer, output shape, parameters, bytes and FLOPs.

    Write ``summary(model, params, x)``, or ``summary(model, params, state, x)`` for a network with state, which is
    evaluated: the arguments are those of ``model.apply``. Nothing is computed: shapes are found on torch's ``meta``
    device, and params of that device will do, made by ``model.init(fnn.random.key(0, "meta"))``. FLOPs are the
    multiplications and additions of matrix products, convolutions and attention; those of the backward pass are for the
    gradient of all params, with what ``remat`` computes again. What a network has and computes outside of its parts is
    the row "(outside)". ``rows`` and ``total`` of the result are the data of the table.

    ``summary(params)`` is the table of the leaves of any tree of tensors.

    Raises ``TypeError`` for a layer without its params and inputs and for leaves that are not tensors, ``ValueError``
    for donated params, and what ``model.apply`` raises.

    >>> import torch, fnn
    >>> model = fnn.models.mlp(784, 512, 10)
    >>> table = summary(model, model.init(fnn.random.key(0)), torch.ones(64, 784))
    >>> print(table)
    path   layer             shape      parameters      bytes      forward     backward
    0      linear(784, 512)  (64, 512)     401,920  1,607,680   51,380,224   51,380,224
    1      relu              (64, 512)           0          0            0            0
    2      linear(512, 10)   (64, 10)        5,130     20,520      655,360    1,310,720
    total  mlp(784, 512, 10) (64, 10)      407,050  1,628,200   52,035,584   52,690,944
    >>> table.total.parameters
    407050
    """
    if not isinstance(model, (Layer, StatefulLayer)):
        return _of_leaves(model)
    if len(arguments) < 2:
        line = "summary(model, params, x)" if isinstance(model, Layer) else "summary(model, params, state, x)"
        raise TypeError(f"summary expects a layer with its params and inputs; write {line}")
    for path, leaf in _tree.items(arguments[0]):
        _check_leaf(path, leaf)
    on_meta = lambda leaf: leaf.detach().to("meta") if isinstance(leaf, Tensor) else leaf
    params, *inputs = _tree.map(on_meta, arguments)
    params = _tree.map(lambda leaf: leaf.requires_grad_(leaf.is_floating_point()), params)
    rows: list[Row] = []

    def listen(call: Call) -> None:
        if call.leaf and call.args:
            rows.append(_row(call.path, _shown(call.part), call.part.apply, call.args, call.kwargs, call.output))

    with torch.enable_grad(), listening(listen):
        output = model.apply(params, *inputs)
    output = output[0] if isinstance(model, StatefulLayer) else output
    total = _row("total", call_text(model, False), model.apply, (params, *inputs), {}, output)
    if not rows:
        rows = [total._replace(path="")]
    rest = [getattr(total, name) - sum(getattr(row, name) for row in rows) for name in _COUNTS]
    if any(count > 0 for count in rest):
        rows.append(Row("(outside)", "", (), *(max(count, 0) for count in rest)))
    return Summary(rows, total)


def _of_leaves(params: Tree) -> Summary:
    for path, leaf in _tree.items(params):
        _check_leaf(path, leaf)
    size = lambda leaf: leaf.numel() * leaf.element_size()
    rows = [
        Row(path, "", tuple(leaf.shape), leaf.numel(), size(leaf), None, None) for path, leaf in _tree.items(params)
    ]
    return Summary(rows, Row("total", "", (), _tree.size(params), _tree.nbytes(params), None, None))


_COUNTS = ("parameters", "bytes", "forward_flops", "backward_flops")


def _row(path: str, layer: str, apply: Callable[..., Any], args: tuple, kwargs: dict[str, Any], output: Any) -> Row:
    """Count what one part costs. The gradient of an input is counted if the input depends on params."""
    from torch.utils.flop_counter import FlopCounterMode  # imports Triton

    params, *inputs = _tree.map(_detached, args)
    with FlopCounterMode(display=False) as forward:
        result = apply(params, *inputs, **kwargs)
    results = [leaf for leaf in _tree.leaves(result) if isinstance(leaf, Tensor) and leaf.requires_grad]
    wanted = [leaf for leaf in _tree.leaves((params, inputs)) if isinstance(leaf, Tensor) and leaf.requires_grad]
    with FlopCounterMode(display=False) as backward:
        if results:
            torch.autograd.grad(results, wanted, [torch.ones_like(leaf) for leaf in results], allow_unused=True)
    shape = tuple(output.shape) if isinstance(output, Tensor) else ()
    flops = forward.get_total_flops(), backward.get_total_flops()
    return Row(path, layer, shape, _tree.size(params), _tree.nbytes(params), *flops)


def _detached(leaf: Any) -> Any:
    return leaf.detach().requires_grad_(leaf.requires_grad) if isinstance(leaf, Tensor) else leaf


def _shown(part: StatefulLayer) -> str:
    """The call that made a part; combinators hold their parts in layers with state."""
    known = config_of(part)
    inner = parts_of(part)
    return call_text(inner[""] if known and known.maker.__name__ == "with_parts" and "" in inner else part, False)


def _check_leaf(path: str, leaf: Any) -> None:
    if not isinstance(leaf, Tensor):
        place = f"params[{path!r}]" if path else "params"
        line = "write summary(model.init(fnn.random.key(0)))"
        raise TypeError(f"summary: {place} is a {type(leaf).__name__}, not a tensor; {line}")
    if leaf.is_meta and leaf.shape == (0,):
        raise ValueError(
            f"summary: params[{path!r}] was donated to a jitted function; summarise the tree that it returned"
        )


def _cells(row: Row) -> tuple[str, ...]:
    leaf = row.forward_flops is None and row.path != "total"
    shape = str(row.shape) if row.shape or leaf else ""
    return row.path, row.layer, shape, *("" if count is None else f"{count:,}" for count in row[3:])
