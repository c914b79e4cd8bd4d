"""Every private torch name that fnn uses, in one place.

Checked on torch 2.11, 2.13 and the newest release at the time of writing (see docs/decisions.md).
tests/test_torch.py fails by name when one of them moves.
"""

import functools
import importlib
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._C import _swap_tensor_impl as swap_tensors
from torch._C._functorch import (
    TransformType,
    get_interpreter_stack,
    is_functorch_wrapped_tensor,
    maybe_get_level,
    peek_interpreter_stack,
)
from torch._higher_order_ops.scan import scan
from torch.utils._python_dispatch import TorchDispatchMode
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
        "abs", "add", "add_", "addcmul", "addcmul_", "div", "exp", "lerp", "lerp_", "log", "maximum", "minimum", "mul",
        "neg", "norm", "pow", "reciprocal", "sign", "sqrt", "sub",
    )
}  # fmt: skip
foreach_add_scalar = torch.ops.aten._foreach_add.Tensor  # torch._foreach_add reads the value of a 0-d tensor
fused_adam = torch._fused_adam_  # pyright: ignore[reportPrivateImportUsage]

# oneDNN's product of rows and a transposed weight; None in a torch that was built without it
onednn_linear = getattr(torch.ops.mkldnn, "_linear_pointwise", None)


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
    fake_mode: Any = None
    for_replay = False


_tracing = _Tracing()
_trace_lock = threading.RLock()  # torch keeps the flag that something is compiled once for all threads


def data_dependent_errors() -> tuple[type[Exception], ...]:
    """What torch raises where Python asks for the value of a traced tensor, or for a size that depends on one."""
    from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
    from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

    return DataDependentOutputException, DynamicOutputShapeException, GuardOnDataDependentSymNode


def record(function: Callable[..., list[Tensor]], layouts: Iterable[tuple], for_replay: bool) -> torch.fx.GraphModule:
    """The operations of a function of tensors, run once on abstract tensors of these shapes, strides, dtypes, devices.

    Operations that change a tensor become operations that make one; a change of an argument is copied into it at the
    end of the graph. With ``for_replay``, :func:`multi_tensor_kernels` is true meanwhile. A Python number that is read
    from a tensor raises one of :func:`data_dependent_errors`.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    shapes = ShapeEnv(allow_scalar_outputs=False, allow_dynamic_output_shape_ops=False)
    mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=shapes, static_shapes=True)
    with mode:
        abstract = [torch.empty_strided(*sizes, dtype=dtype, device=device) for *sizes, dtype, device in layouts]
    pure = torch.func.functionalize(function, remove="mutations")
    flat = make_fx(pure, tracing_mode="fake", _allow_non_fake_inputs=True)
    before = _tracing.fake_mode, _tracing.for_replay
    with _trace_lock, torch.no_grad(), _compiling():
        _tracing.fake_mode, _tracing.for_replay = mode, for_replay
        try:
            return flat(*abstract)
        finally:
            _tracing.fake_mode, _tracing.for_replay = before


def inductor(module: torch.fx.GraphModule, inputs: list[Tensor], options: dict[str, Any]) -> Callable[..., Any]:
    """A flat graph compiled by Inductor for inputs like these, called without torch.compile's guards."""
    from torch._inductor import standalone_compile

    with torch.no_grad():
        return standalone_compile(module, inputs, options={"config_patches": options})


@contextmanager
def _compiling() -> Iterator[None]:
    """While it lasts ``torch.compiler.is_compiling()`` is true, so that foreign code takes its traceable path."""
    before = torch.compiler._is_compiling_flag
    torch.compiler._is_compiling_flag = True
    try:
        yield
    finally:
        torch.compiler._is_compiling_flag = before


def is_abstract(tensor: Tensor) -> bool:
    """Whether a tensor stands for a value that is not known while a function is traced."""
    from torch._subclasses.fake_tensor import FakeTensor

    return isinstance(tensor, FakeTensor) or is_functorch_wrapped_tensor(tensor)


def plain_call() -> bool:
    """Whether a jitted function is called inside a trace, a transform or a mode, where it is the plain function."""
    return (
        _tracing.fake_mode is not None
        or peek_interpreter_stack() is not None
        or torch._C._len_torch_dispatch_stack() > 0
        or torch.compiler.is_dynamo_compiling()
    )


def multi_tensor_kernels() -> bool:
    """Whether kernels of lists of tensors may be called here.

    They may in ordinary eager code and in a graph that will be replayed operation by operation; not inside a
    transform of torch.func, nor where a compiler traces, which fuses code written leaf by leaf better.
    """
    levels = get_interpreter_stack() or []
    if any(level.key() != TransformType.Functionalize for level in levels):
        return False
    if _tracing.fake_mode is not None:
        return _tracing.for_replay
    return not (levels or torch.compiler.is_dynamo_compiling() or dispatch_modes())


def in_place_form(operation: Any) -> Any:
    """The operation that writes the same into its arguments: ``aten.add_.Tensor`` for ``aten.add.Tensor``."""
    if not isinstance(operation, torch._ops.OpOverload):
        return None
    packet = getattr(getattr(torch.ops, operation.namespace), f"{operation._opname}_", None)
    return getattr(packet, operation._overloadname, None)


def is_random(operation: Any) -> bool:
    """Whether an operation draws from torch's global generator."""
    return isinstance(operation, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in operation.tags


class _ReachedError(Exception):
    """Says which operation a call came to."""


class _FirstOperation(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        raise _ReachedError(func)


@functools.cache
def _functions_of(name: str) -> list[Callable]:
    """torch's own functions of this name, whose way to the kernel is shorter than that of ``torch.ops``."""
    places = torch._C._VariableFunctions, torch._C._nn, torch._C.TensorBase
    return [getattr(place, name) for place in places if hasattr(place, name)]


_direct: dict[tuple, Callable] = {}


def direct_call(operation: Any, args: tuple, kwargs: dict) -> Callable:
    """The fastest function that calls this operation with arguments like these, whose tensors are nodes of a graph."""
    if not isinstance(operation, torch._ops.OpOverload):
        return operation
    values = [torch.fx.map_arg(list(given), lambda node: node.meta["val"]) for given in (args, kwargs.values())]
    key = operation, *[tuple(map(_kind, given)) for given in values], tuple(kwargs)
    if key not in _direct:
        _direct[key] = operation._op
        for function in _functions_of(operation._opname) if operation.namespace == "aten" else ():
            try:
                with _FirstOperation():
                    function(*values[0], **dict(zip(kwargs, values[1], strict=True)))
            except _ReachedError as reached:
                if reached.args[0] is operation:
                    _direct[key] = function
                    break
            except (TypeError, RuntimeError, ValueError):
                pass
    return _direct[key]


def _kind(value: Any) -> Any:
    return tuple(map(_kind, value)) if isinstance(value, (list, tuple)) else (type(value), getattr(value, "ndim", None))


_calls: list[Callable[[list[Tensor]], None]] = []
_library = torch.library.Library("fnn", "FRAGMENT")
_library.define("call(int number, Tensor[] values) -> ()")
_library.impl("call", lambda number, values: _calls[number](values), "CompositeExplicitAutograd")
torch.library.register_fake("fnn::call", lambda number, values: None, lib=_library)
python_call = torch.ops.fnn.call.default
torch.fx.node.has_side_effect(python_call)


def call_when_run(function: Callable[[list[Tensor]], None], tensors: Iterable[Tensor]) -> None:
    """Call a function of tensors for its effect: now, or where a graph is recorded, whenever that is replayed.

    It is given the plain tensors below all transforms of torch.func.
    """
    plain = []
    for tensor in tensors:
        while is_functorch_wrapped_tensor(tensor):
            if torch._C._functorch.is_functionaltensor(tensor):
                torch._sync(tensor)
            tensor = torch._C._functorch.get_unwrapped(tensor)
        plain.append(tensor)
    if _tracing.fake_mode is None:
        function(plain)
    else:
        _calls.append(function)
        python_call(len(_calls) - 1, plain)


class after_each_operation(TorchDispatchMode):  # noqa: N801  (it is used as a context manager)
    """Call ``check(name, arguments, results)`` after each operation that runs, with the tensors among them."""

    def __init__(self, check: Callable[[str, list[Tensor], list[Tensor]], None]) -> None:
        super().__init__()
        self.check = check

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        results = func(*args, **(kwargs or {}))
        self.check(func._opname, given, [leaf for leaf in tree_leaves(results) if isinstance(leaf, Tensor)])
        return results


def storage_key(tensor: Tensor) -> int:
    """Equal for two living tensors exactly where they share their memory."""
    return tensor.untyped_storage()._cdata


def inside_vmap() -> bool:
    """Whether a ``vmap`` is among the transforms of torch.func that are active."""
    return any(level.key() == TransformType.Vmap for level in get_interpreter_stack() or ())


def inside_derivative() -> bool:
    """Whether a ``grad``, ``vjp`` or ``jvp`` is among the transforms of torch.func that are active."""
    kinds = (TransformType.Grad, TransformType.Jvp)
    return any(level.key() in kinds for level in get_interpreter_stack() or ())


def values_can_be_read() -> bool:
    """Whether a number may be taken out of a tensor here: not in a trace, nor under ``vmap``."""
    return not (inside_vmap() or torch.compiler.is_compiling() or dispatch_modes())


def is_of_outer_transform(tensor: Tensor) -> bool:
    """Whether the tensor belongs to a transform of torch.func that is not active here."""
    if not is_functorch_wrapped_tensor(tensor):
        return False
    innermost = peek_interpreter_stack()
    return not 0 < maybe_get_level(tensor) <= (0 if innermost is None else innermost.level())


def forward_mode_inside_jvp() -> Any:
    """Forward mode for what the ``jvp`` of a ``torch.autograd.Function`` computes, so that it can be differentiated."""
    return torch.autograd.forward_ad._set_fwd_grad_enabled(True)


def without_tangent(tensor: Tensor) -> Tensor:
    """The tensor as a constant to the innermost forward mode."""
    if not tensor.is_floating_point() and not tensor.is_complex():
        return tensor
    return torch.autograd.forward_ad.unpack_dual(tensor, level=0).primal


def storage_users(tensor: Tensor) -> int:
    """How many tensors share the memory of this one, itself included."""
    handle = tensor.untyped_storage()  # counts itself
    return torch._C._storage_Use_Count(handle._cdata) - 1


def storage_id(tensor: Tensor) -> int:
    """A number that two tensors share exactly when they share memory, while both are alive."""
    return tensor.untyped_storage()._cdata


def version(tensor: Tensor) -> int:
    """A number that grows when the tensor is changed in place."""
    return 0 if tensor.is_inference() else tensor._version


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
    "TorchDispatchMode",
    "TorchDynamoException",  # noqa: F822  # pyright: ignore[reportUnsupportedDunderAll]
    "cache_folder",
    "cached_libraries",
    "constant_when_traced",
    "dispatch_modes",
    "foreach",
    "foreach_add_scalar",
    "forward_mode_inside_jvp",
    "fused_adam",
    "get_hash_for_files",  # noqa: F822  # pyright: ignore[reportUnsupportedDunderAll]
    "inside_derivative",
    "inside_vmap",
    "is_of_outer_transform",
    "is_view",
    "mark_static",
    "mode_options",  # noqa: F822  # pyright: ignore[reportUnsupportedDunderAll]
    "multi_tensor_kernels",
    "onednn_linear",
    "peek_interpreter_stack",
    "pytree_containers",
    "scan",
    "size_hint",
    "storage_id",
    "storage_users",
    "swap_tensors",
    "tree_flatten",
    "tree_flatten_with_path",
    "tree_leaves",
    "tree_map",
    "tree_unflatten",
    "values_can_be_read",
    "varying",
    "version",
    "without_tangent",
]
