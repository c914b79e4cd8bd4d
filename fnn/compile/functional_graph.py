"""Recorded operations made into a functional graph: no hidden inputs, no changes in place, no zero tangents.

Changes in place are removed from the graph after it was recorded and not while the function runs, because torch's
``functionalize`` refuses a ``torch.autograd.Function``.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from fnn import _torch
from fnn.compile.nearest import NEAREST

aten = torch.ops.aten


def hoist_constants(module: fx.GraphModule) -> list[Tensor]:
    """Turn the tensors that a graph holds as attributes into inputs after the others, and return them."""
    graph = module.graph
    constants: dict[int, Tensor] = {}
    inputs: dict[int, fx.Node] = {}
    for node in [node for node in graph.nodes if node.op == "get_attr"]:
        tensor = getattr(module, str(node.target))
        if not isinstance(tensor, Tensor):  # the graph of a loop's step
            continue
        if id(tensor) not in inputs:
            first = next(node for node in graph.nodes if node.op != "placeholder")
            with graph.inserting_before(first):
                inputs[id(tensor)] = graph.placeholder(f"closed_over_{len(constants)}")
            inputs[id(tensor)].meta["val"] = constants[id(tensor)] = tensor
        node.replace_all_uses_with(inputs[id(tensor)])
        graph.erase_node(node)
    return list(constants.values())


def without_writes(module: fx.GraphModule, run: Callable[[fx.GraphModule, Sequence[Tensor]], Any]) -> fx.GraphModule:
    """The graph without operations in place; a changed input gets its new value at the end of the graph.

    ``run(module, values)`` runs a graph, which may contain loops.
    """
    from torch.fx.experimental.proxy_tensor import make_fx  # imported here, because it takes long

    if not any(_torch.writes(node.target) for node in module.graph.nodes):
        return module
    values = [node.meta["val"] for node in module.graph.find_nodes(op="placeholder")]
    functional = torch.func.functionalize(lambda *values: run(module, values), remove="mutations")
    kept = {aten.detach.default: lambda tensor: NotImplemented}  # and not recorded as an alias
    return make_fx(functional, kept, tracing_mode="fake", _allow_non_fake_inputs=True)(*values)


# Zero tangents. A value without a tangent has torch's symbol for zeros as its tangent, whose products and sums are not
# computed. On abstract tensors torch loses the device of such a symbol. Therefore plain zeros are recorded, and what is
# computed from them is removed from the graph.


def zero_tangent(size: Sequence[int], **settings: Any) -> Tensor:
    """What is recorded in place of ``aten._efficientzerotensor``."""
    zeros = torch.zeros(size, **{name: value for name, value in settings.items() if value is not None})
    _torch.node_of(zeros).meta["zero_tangent"] = True
    return zeros


DECOMPOSITIONS = {_torch.zero_symbol: zero_tangent, **NEAREST}
_LINEAR = (aten.mul.Tensor, aten.mul.Scalar, aten.neg.default, aten.sum.default, aten.sum.dim_IntList)
_SUMS = (aten.add.Tensor, aten.sub.Tensor)


def without_zero_tangents(graph: fx.Graph) -> None:
    """Remove linear functions of zero tangents and additions of them, as torch does outside a trace."""
    zeros = set()
    for node in graph.nodes:
        used = [each in zeros for each in node.all_input_nodes]
        if node.meta.get("zero_tangent"):
            zeros.add(node)
        elif any(used) and (node.target in _LINEAR or _torch.returns_view(node.target)):
            value = node.meta["val"]
            node.target, node.args = aten.zeros.default, (list(value.shape),)
            node.kwargs = {"dtype": value.dtype, "device": value.device}
            zeros.add(node)
        elif node.target in _SUMS and not node.kwargs and used.count(True) == 1:
            first, second = node.args
            other = first if second in zeros else second
            if _kind(node) == _kind(other) and (other is first or node.target is aten.add.Tensor):
                node.replace_all_uses_with(other)


def _kind(node: Any) -> Any:
    value = node.meta["val"]
    return value.shape, value.dtype
