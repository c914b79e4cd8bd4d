"""Matrix products on the CPU, each computed in one of three ways.

torch sends every float32 product to one library, and each call has an overhead of some microseconds. For a product of
fewer than 32,768 multiplications the call takes longer than the computation. Such a product is written as loops, which
the compiler fuses with the bias, the activation and the update around it, so that a whole step of a narrow network is
one kernel. A larger product goes to oneDNN on AMD processors, where oneDNN is never slower than torch's default, MKL,
and up to twice as fast; on Intel processors MKL is faster. The choice depends on the vendor of the processor and not on
a measurement, so that the bits of a result do not depend on what else the machine is doing. The results agree up to
float32 rounding.
"""

import functools
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fnn import _torch

LOOPS_BELOW = 32_768
aten = torch.ops.aten


class Products(_torch.CustomGraphPass):
    """A pass over the compiler's graph, to be used as Inductor's option ``post_grad_custom_pre_pass``."""

    def __init__(self, onednn: bool) -> None:
        self.onednn = onednn

    def uuid(self) -> bytes:
        """The key of this pass in torch's compile cache."""
        return _torch.get_hash_for_files((__file__,), str(self.onednn))

    def __call__(self, graph: torch.fx.Graph) -> None:
        for node in [*graph.nodes]:
            if node.target in (aten.mm.default, aten.addmm.default) and not node.kwargs:
                *bias, a, b = node.args
                rewrite = self._route(_value(a), _value(b))
                if rewrite is not None:
                    with graph.inserting_before(node):
                        product = rewrite(graph, a, b)
                        new = _call(graph, aten.add.Tensor, product, bias[0]) if bias else product
                    node.replace_all_uses_with(new)
                    graph.erase_node(node)

    def _route(self, a: torch.Tensor, b: torch.Tensor) -> Callable | None:
        if a.dtype != torch.float32 or a.device.type != "cpu":
            return None
        rows, inner, columns = [_torch.size_hint(size) for size in (*a.shape, b.shape[1])]
        if rows is None or inner is None or columns is None:
            return None
        if rows * inner * columns < LOOPS_BELOW:
            return _loops
        return _onednn if self.onednn else None


def _loops(graph: torch.fx.Graph, a: torch.fx.Node, b: torch.fx.Node) -> torch.fx.Node:
    pairs = _call(graph, aten.unsqueeze.default, a, 2), _call(graph, aten.unsqueeze.default, b, 0)
    return _call(graph, aten.sum.dim_IntList, _call(graph, aten.mul.Tensor, *pairs), [1])


def _onednn(graph: torch.fx.Graph, a: torch.fx.Node, b: torch.fx.Node) -> torch.fx.Node:
    transposed = _call(graph, aten.permute.default, b, [1, 0])
    assert _torch.onednn_linear is not None  # onednn_is_faster() has checked this
    node = _call(graph, _torch.onednn_linear.default, a, transposed, None, "none", [], "")
    node.meta["should_fallback"] = True  # call the operation itself: Inductor's lowering of it needs frozen weights
    return node


def _call(graph: torch.fx.Graph, op: Callable, *args: Any) -> torch.fx.Node:
    node = graph.call_function(op, args)
    node.meta["val"] = op(*[_value(arg) if isinstance(arg, torch.fx.Node) else arg for arg in args])
    return node


def _value(node: Any) -> torch.Tensor:
    return node.meta["val"]


@functools.cache
def onednn_is_faster() -> bool:
    """Whether the processor was made by AMD and torch was built with oneDNN."""
    if _torch.onednn_linear is None or not torch.backends.mkldnn.is_available():
        return False
    try:
        maker = Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux
        maker = platform.processor()
    return "AuthenticAMD" in maker
