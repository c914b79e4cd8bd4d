"""Every private torch name that fnn uses, in one place.

Checked on torch 2.11, 2.13 and the newest release at the time of writing (see docs/decisions.md).
tests/test_torch.py fails by name when one of them moves.
"""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch._C import _swap_tensor_impl as swap_tensors
from torch._C._functorch import peek_interpreter_stack
from torch._dynamo.exc import TorchDynamoException
from torch._higher_order_ops.scan import scan
from torch._inductor import list_mode_options as mode_options
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch.utils._pytree import (  # no public pytree module in any supported version
    tree_flatten,
    tree_flatten_with_path,
    tree_leaves,
    tree_map,
    tree_unflatten,
)

# multi-tensor and fused kernels, by the name of the tensor's method or of the optimizer
foreach = {
    name: getattr(torch, f"_foreach_{name}")
    for name in (
        "abs", "add", "addcdiv", "addcmul", "div", "exp", "lerp", "maximum", "minimum", "mul", "neg", "pow",
        "reciprocal", "rsqrt", "sign", "sqrt", "sub",
    )
}  # fmt: skip
fused_adam = torch._fused_adam_  # pyright: ignore[reportPrivateImportUsage]

# oneDNN's product of rows and a transposed weight; None in a torch that was built without it
onednn_linear = getattr(torch.ops.mkldnn, "_linear_pointwise", None)

# before 2.15 compiled code does not show leaf.T, leaf.mT and iteration over a leaf to a TorchFunctionMode
compiled_modes_see_all = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 15)


def dispatch_modes() -> bool:
    """Whether a mode that sees every operation is active: fake tensors, make_fx, a profiler's flop counter."""
    return torch._C._len_torch_dispatch_stack() > 0


def storage_users(tensor: Tensor) -> int:
    """How many tensors share the memory of this one, itself included."""
    handle = tensor.untyped_storage()  # counts itself
    return torch._C._storage_Use_Count(handle._cdata) - 1


def is_view(tensor: Tensor) -> bool:
    """Whether the tensor is a view of another one."""
    return tensor._is_view()


def size_hint(size: int | torch.SymInt) -> int | None:
    """A size in a traced graph: the number itself, or the one that a symbolic size was traced with; None if unknown."""
    known = size if isinstance(size, int) else size.node.hint
    return known if isinstance(known, int) else None


def mark_static(tensors: Iterable[Tensor]) -> None:
    """Promise CUDA graphs that these inputs stay where they are (``torch._dynamo.mark_static_address``)."""
    for tensor in tensors:
        tensor._dynamo_static_input_type = "unguarded"  # type: ignore[attr-defined]


__all__ = [
    "CustomGraphPass",
    "TorchDynamoException",
    "compiled_modes_see_all",
    "dispatch_modes",
    "foreach",
    "fused_adam",
    "get_hash_for_files",
    "is_view",
    "mark_static",
    "mode_options",
    "onednn_linear",
    "peek_interpreter_stack",
    "scan",
    "size_hint",
    "storage_users",
    "swap_tensors",
    "tree_flatten",
    "tree_flatten_with_path",
    "tree_leaves",
    "tree_map",
    "tree_unflatten",
]
