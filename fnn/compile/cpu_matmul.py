"""Matrix products on the CPU, each by one of three routes.

torch sends every float32 product to one library, and each call costs microseconds before the first multiplication. A
product of less than 32,768 multiplications takes longer to call than to compute: it is written out as loops, which the
compiler then merges with the bias, the activation and the update around it, so that a whole step of a narrow network
is one kernel. A larger one goes to oneDNN on processors of AMD, where it is never slower than torch's own choice, MKL,
and up to twice as fast; on Intel's MKL is faster. The maker decides, and no measurement, so that the bits of a result
do not depend on what else the machine is doing. All routes agree to float32 rounding.
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
    """A pass over the compiler's graph: Inductor's ``post_grad_custom_pre_pass``."""

    def __init__(self, onednn: bool) -> None:
        self.onednn = onednn

    def uuid(self) -> bytes:
        """What torch's compile cache tells this pass from others by."""
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
    assert _torch.onednn_linear is not None  # or it would not have been chosen
    node = _call(graph, _torch.onednn_linear.default, a, transposed, None, "none", [], "")
    node.meta["should_fallback"] = True  # called as it is; Inductor's own form of it is for frozen weights only
    return node


def _call(graph: torch.fx.Graph, op: Callable, *args: Any) -> torch.fx.Node:
    node = graph.call_function(op, args)
    node.meta["val"] = op(*[_value(arg) if isinstance(arg, torch.fx.Node) else arg for arg in args])
    return node


def _value(node: Any) -> torch.Tensor:
    return node.meta["val"]


@functools.cache
def onednn_is_faster() -> bool:
    """Whether this is a processor of AMD, and torch has oneDNN."""
    if _torch.onednn_linear is None or not torch.backends.mkldnn.is_available():
        return False
    try:
        maker = Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux
        maker = platform.processor()
    return "AuthenticAMD" in maker
