"""Every private torch name that fnn uses, in one place.

Checked on torch 2.11, 2.13 and the newest release at the time of writing (see docs/decisions.md).
tests/test_torch.py fails by name when one of them moves.
"""

import importlib
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._C import _swap_tensor_impl as swap_tensors
from torch._C._functorch import get_unwrapped, is_batchedtensor, is_functorch_wrapped_tensor, peek_interpreter_stack
from torch._higher_order_ops.scan import scan
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import SUPPORTED_NODES as pytree_containers  # noqa: N811
from torch.utils._pytree import (  # no public pytree module in any supported version
    tree_flatten,
    tree_flatten_with_path,
    tree_leaves,
    tree_map,
    tree_unflatten,
)

# names that bring the compiler with them, which takes as long to import as the rest of torch: when first asked for
_LATER = {
    "CustomGraphPass": ("torch._inductor.custom_graph_pass", "CustomGraphPass"),
    "TorchDynamoException": ("torch._dynamo.exc", "TorchDynamoException"),
    "get_hash_for_files": ("torch._inductor.custom_graph_pass", "get_hash_for_files"),
    "mode_options": ("torch._inductor", "list_mode_options"),
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, original = _LATER[name]
    value = globals()[name] = getattr(importlib.import_module(module), original)
    return value


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


def constant_when_traced(function: Callable) -> Callable:
    """Let the compiler call a function of Python values and not look inside it.

    ``torch.compiler.assume_constant_result`` does this too, and imports the compiler.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def dispatch_modes() -> bool:
    """Whether a mode that sees every operation is active: fake tensors, make_fx, a profiler's flop counter."""
    return torch._C._len_torch_dispatch_stack() > 0


class _Tracing(threading.local):
    for_replay = False


_tracing = _Tracing()


@contextmanager
def tracing_for_replay() -> Iterator[None]:
    """While it lasts, :func:`multi_tensor_kernels` is true: the operations recorded will run as they are recorded."""
    before, _tracing.for_replay = _tracing.for_replay, True
    try:
        yield
    finally:
        _tracing.for_replay = before


def multi_tensor_kernels() -> bool:
    """Whether kernels of lists of tensors may be called here.

    They may in ordinary eager code and in a graph that will be replayed operation by operation; not inside a
    transform of torch.func, nor where a compiler traces, which fuses code written leaf by leaf better.
    """
    if peek_interpreter_stack() is not None:
        return False
    return _tracing.for_replay or not (torch.compiler.is_compiling() or dispatch_modes())


def readable(tensor: Tensor) -> bool:
    """Whether the numbers of a tensor may be looked at here: not under vmap, nor where a function is traced."""
    while is_functorch_wrapped_tensor(tensor):
        if is_batchedtensor(tensor):
            return False
        tensor = get_unwrapped(tensor)
    return not (torch.compiler.is_compiling() or isinstance(tensor, FakeTensor) or tensor.is_meta)


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


def cached_libraries() -> dict[str, Path]:
    """Libraries of this process's CPU graphs, and of the compiler's look at the processor, by place in its cache.

    ``torch.compiler.save_cache_artifacts`` leaves them out, though making them takes longer than the rest.
    """
    from torch._inductor.codecache import CppPythonBindingsCodeCache

    folder = cache_folder()
    files = [file for key in CppPythonBindingsCodeCache.cache for file in folder.glob(f"{key[1:3]}/{key}*.so")]
    files += [file for file in folder.glob("??/*.so*") if ".main." not in file.name]
    return {file.relative_to(folder).as_posix(): file for file in files}


def cache_folder() -> Path:
    """Where torch keeps what it has compiled: TORCHINDUCTOR_CACHE_DIR, or a folder of the user in the temporary one."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    return Path(cache_dir())


def varying(leaf: Any) -> Any:
    """The tensor again, whose leading length the compiler takes to change (``torch._dynamo.maybe_mark_dynamic``)."""
    if not isinstance(leaf, Tensor) or leaf.dim() == 0:
        return leaf
    leaf = leaf.detach()  # another object, so that the caller's is not marked
    torch._dynamo.maybe_mark_dynamic(leaf, 0)  # pyright: ignore[reportAttributeAccessIssue]
    return leaf


def mark_static(tensors: Iterable[Tensor]) -> None:
    """Promise CUDA graphs that these inputs stay where they are (``torch._dynamo.mark_static_address``)."""
    for tensor in tensors:
        tensor._dynamo_static_input_type = "unguarded"  # type: ignore[attr-defined]


__all__ = [
    "CustomGraphPass",  # noqa: F822  # pyright: ignore[reportUnsupportedDunderAll]
    "TorchDynamoException",  # noqa: F822  # pyright: ignore[reportUnsupportedDunderAll]
    "cache_folder",
    "cached_libraries",
    "compiled_modes_see_all",
    "constant_when_traced",
    "dispatch_modes",
    "foreach",
    "fused_adam",
    "get_hash_for_files",  # noqa: F822  # pyright: ignore[reportUnsupportedDunderAll]
    "is_view",
    "mark_static",
    "mode_options",  # noqa: F822  # pyright: ignore[reportUnsupportedDunderAll]
    "multi_tensor_kernels",
    "onednn_linear",
    "peek_interpreter_stack",
    "pytree_containers",
    "readable",
    "scan",
    "size_hint",
    "storage_users",
    "swap_tensors",
    "tracing_for_replay",
    "tree_flatten",
    "tree_flatten_with_path",
    "tree_leaves",
    "tree_map",
    "tree_unflatten",
    "varying",
]
