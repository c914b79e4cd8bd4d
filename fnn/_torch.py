"""The private names of torch that fnn uses, and nothing else: names, and functions of a few lines made of them.

They were checked on torch 2.11.0, 2.13.0 and 2.15.0 (see docs/decisions.md). If torch moves one of them,
tests/test_torch.py fails and names it.
"""
# torch does not declare the types of private names
# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false, reportArgumentType=false
# pyright: reportCallIssue=false

import importlib
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C import DisableTorchFunction
from torch._C import _swap_tensor_impl as swap_tensors
from torch._C._functorch import (
    TransformType,
    _add_batch_dim,
    get_interpreter_stack,
    get_unwrapped,
    is_batchedtensor,
    is_functionaltensor,
    is_functorch_wrapped_tensor,
    is_gradtrackingtensor,
    maybe_get_bdim,
    maybe_get_level,
    peek_interpreter_stack,
    unwrap_if_dead,
)
from torch._C._functorch import _unwrap_for_grad as unwrap_for_grad
from torch._higher_order_ops.scan import scan_op
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import SUPPORTED_NODES as pytree_containers  # noqa: N811
from torch.utils._pytree import tree_leaves, tree_map  # no public pytree module in any supported version

# these names are imported at first use, because their modules import the compiler or take long for another reason
_LATER = {
    "CustomGraphPass": ("torch._inductor.custom_graph_pass", "CustomGraphPass"),
    "cache_folder": ("torch._inductor.runtime.cache_dir_utils", "cache_dir"),
    "custom_function_call": ("torch._functorch.autograd_function", "custom_function_call"),
    "get_hash_for_files": ("torch._inductor.custom_graph_pass", "get_hash_for_files"),
    "mode_options": ("torch._inductor", "list_mode_options"),
    "new_grad_level": ("torch._functorch.eager_transforms", "grad_increment_nesting"),
    "not_recorded": ("torch.fx.experimental.proxy_tensor", "disable_proxy_modes_tracing"),
    "outside_transforms": ("torch._functorch.pyfunctorch", "temporarily_clear_interpreter_stack"),
    "track_tensor_tree": ("torch.fx.experimental.proxy_tensor", "track_tensor_tree"),
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, original = _LATER[name]
    value = globals()[name] = getattr(importlib.import_module(module), original)
    return value


# Operations

foreach_copy = torch._foreach_copy_

# multi-tensor kernels, by the name of the method of a tensor
foreach = {
    name: getattr(torch, f"_foreach_{name}")
    for name in (
        "abs", "add", "add_", "addcmul", "addcmul_", "div", "exp", "lerp", "lerp_", "log", "maximum", "minimum", "mul",
        "neg", "norm", "pow", "reciprocal", "sign", "sqrt", "sub",
    )
}  # fmt: skip
foreach_add_scalar = torch.ops.aten._foreach_add.Tensor  # torch._foreach_add reads the value of a 0-d tensor
fused_adam = torch._fused_adam_
to_copy = torch.ops.aten._to_copy.default
unsafe_view = torch.ops.aten._unsafe_view.default
zero_symbol = torch.ops.aten._efficientzerotensor.default

# oneDNN's product of rows and a transposed weight; None in a torch that was built without it
onednn_linear = getattr(torch.ops.mkldnn, "_linear_pointwise", None)


def is_operation(target: Any) -> bool:
    """Whether the target of a node is one of torch's operations, such as ``aten.add.Tensor``."""
    return isinstance(target, torch._ops.OpOverload)


def operation_name(target: Any) -> str:
    """The name of an operation, such as "add" of ``aten.add.Tensor``; of another function, its own name."""
    return target._opname if is_operation(target) else getattr(target, "__name__", str(target))


def schema(operation: Any) -> Any:
    """The arguments and results that an operation declares."""
    return operation._schema


def writes(target: Any) -> bool:
    """Whether the target of a node is an operation that changes one of its arguments."""
    return is_operation(target) and target._schema.is_mutable


def returns_view(target: Any) -> bool:
    """Whether the target of a node is an operation that returns a view of its argument."""
    return is_operation(target) and target.is_view


def is_random(operation: Any) -> bool:
    """Whether an operation, in one of its forms or in any, draws from torch's global generator."""
    if isinstance(operation, torch._ops.OpOverloadPacket):
        return any(is_random(getattr(operation, name)) for name in operation.overloads())
    return is_operation(operation) and torch.Tag.nondeterministic_seeded in operation.tags


def is_elementwise(target: Any) -> bool:
    """Whether the target of a node is an operation of corresponding elements, such as ``aten.add.Tensor``."""
    return is_operation(target) and (torch.Tag.pointwise in target.tags or target._opname.startswith("_foreach_"))


def in_place_form(operation: Any) -> Any:
    """The in-place form of an operation, such as ``aten.add_.Tensor`` of ``aten.add.Tensor``; None if it has none."""
    if not is_operation(operation):
        return None
    packet = getattr(getattr(torch.ops, operation.namespace), f"{operation._opname}_", None)
    return getattr(packet, operation._overloadname, None)


def functions_of(operation: Any) -> list[Callable]:
    """The functions that call an operation: its own, and after it torch's functions of this name, which are faster."""
    name = operation._opname
    places = (torch._C._VariableFunctions, torch._C._nn, torch._C.TensorBase) if operation.namespace == "aten" else ()
    return [operation._op, *(getattr(place, name) for place in places if hasattr(place, name))]


# Tensors


AccumulateGrad = torch._C._functions.AccumulateGrad  # the node of a leaf in autograd's graph

# a number that is equal for two living tensors if and only if they share a storage
storage_id = torch._C._storage_address


def storage_users(tensor: Tensor) -> int:
    """How many tensors share the memory of this one, itself included."""
    return torch._C._storage_Use_Count(storage_id(tensor))


def version(tensor: Tensor) -> int:
    """A number that grows when the tensor is changed in place."""
    return 0 if tensor.is_inference() else tensor._version


def is_view(tensor: Tensor) -> bool:
    """Whether the tensor is a view of another one."""
    return tensor._is_view()


def is_zero(tensor: Tensor) -> bool:
    """Whether the tensor is a symbol for zeros, which torch uses as a tangent."""
    return tensor._is_zerotensor()


def without_wrappers(tensor: Tensor) -> Tensor:
    """The tensor that is below the wrappers of all transforms of torch.func."""
    while is_functorch_wrapped_tensor(tensor):
        if is_functionaltensor(tensor):
            torch._sync(tensor)
        tensor = get_unwrapped(tensor)
    return tensor


def levels_of(tensor: Tensor) -> set[int]:
    """The levels of the transforms of torch.func that have wrapped the tensor."""
    levels = set()
    while is_functorch_wrapped_tensor(tensor):
        levels.add(maybe_get_level(tensor))
        tensor = get_unwrapped(tensor)
    return levels


def readable(tensor: Tensor) -> bool:
    """Whether Python may read the values of this tensor: it may not under vmap, nor in a trace."""
    while is_functorch_wrapped_tensor(tensor):
        if is_batchedtensor(tensor):
            return False
        tensor = get_unwrapped(tensor)
    return not (torch.compiler.is_compiling() or isinstance(tensor, FakeTensor) or tensor.is_meta)


def is_abstract(tensor: Tensor) -> bool:
    """Whether the tensor is a fake tensor or is wrapped by a transform, so that its value may not be known."""
    return isinstance(tensor, FakeTensor) or is_functorch_wrapped_tensor(tensor)


# Modules


NormWithStatistics = torch.nn.modules.batchnorm._NormBase


class Slot(NamedTuple):
    """The place of a parameter or a buffer in a module: the module's own dict, and the name in it."""

    path: str
    owner: dict[str, Any]
    name: str
    kind: str  # "parameter" or "buffer"


def slots(module: torch.nn.Module) -> list[Slot]:
    """The places of all parameters and buffers, those that share a tensor included, in the order of the modules."""
    found = []
    for prefix, part in module.named_modules(remove_duplicate=False):
        for kind, owner in (("parameter", part._parameters), ("buffer", part._buffers)):
            names = [name for name, value in owner.items() if value is not None]
            found += [Slot(f"{prefix}.{name}" if prefix else name, owner, name, kind) for name in names]
    return found


def refresh_recurrent(module: torch.nn.RNNBase) -> None:
    """Let a recurrent module, which keeps its weights in a list as well, find them again."""
    module._flat_weights = [getattr(module, name, None) for name in module._flat_weights_names]


def without_overrides(function: Any) -> Callable:
    """A copy of a Python function of torch that does not look for overrides, so that a mode sees what it calls."""
    unseen = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")
    names = function.__globals__ | dict.fromkeys(unseen, lambda *arguments: False)
    copy = types.FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


# Active transforms and modes


def dispatch_modes() -> bool:
    """Whether a mode that sees every operation is active: fake tensors, make_fx, a profiler's flop counter."""
    return torch._C._len_torch_dispatch_stack() > 0


def inside_vmap() -> bool:
    """Whether a ``vmap`` is among the transforms of torch.func that are active."""
    return any(level.key() == TransformType.Vmap for level in get_interpreter_stack() or ())


def inside_derivative() -> bool:
    """Whether a ``grad``, ``vjp`` or ``jvp`` is among the transforms of torch.func that are active."""
    kinds = (TransformType.Grad, TransformType.Jvp)
    return any(level.key() in kinds for level in get_interpreter_stack() or ())


def values_can_be_read() -> bool:
    """Whether Python may read the value of a tensor here: it may not in a trace, nor under ``vmap``."""
    return not (inside_vmap() or torch.compiler.is_compiling() or dispatch_modes())


def is_of_outer_transform(tensor: Tensor) -> bool:
    """Whether the tensor belongs to a transform of torch.func that is not active here."""
    tensor = unwrap_if_dead(tensor)  # what a pullback keeps of its own transform, which has ended
    if not is_functorch_wrapped_tensor(tensor):
        return False
    active = {level.level(): level.key() for level in get_interpreter_stack() or ()}
    kind = active.get(maybe_get_level(tensor))  # another transform may have taken the number of an outer one
    return kind is None or (kind == TransformType.Vmap) != is_batchedtensor(tensor)


def is_differentiated(tensor: Tensor) -> bool:
    """Whether the tensor belongs to an active ``grad``, ``vjp`` or ``jvp`` of torch.func, perhaps below a ``vmap``."""
    tensor = unwrap_if_dead(tensor)
    while is_batchedtensor(tensor):
        tensor = unwrap_if_dead(get_unwrapped(tensor))
    return is_gradtrackingtensor(tensor)


def forward_mode_inside_jvp() -> Any:
    """Enable forward mode in the ``jvp`` of a ``torch.autograd.Function``, so that it can be differentiated."""
    return torch.autograd.forward_ad._set_fwd_grad_enabled(True)


def without_tangent(tensor: Tensor) -> Tensor:
    """The tensor as a constant to the innermost forward mode."""
    if not tensor.is_floating_point() and not tensor.is_complex():
        return tensor
    if is_batchedtensor(tensor):  # the function was mapped, and the tangent is that of the whole batch
        inside = without_tangent(get_unwrapped(tensor))
        return _add_batch_dim(inside, maybe_get_bdim(tensor), maybe_get_level(tensor))
    return torch.autograd.forward_ad.unpack_dual(tensor, level=0).primal


class Level:
    """The innermost active transform of torch.func, with the operations that a loop needs of it.

    ``kind`` is "vmap", "grad", "jvp" or "functionalize". ``unwrap`` removes this transform's wrapper from a tensor and
    ``wrap`` adds it. Within the context ``below()`` this transform is not active.
    """

    def __init__(self) -> None:
        from torch._functorch.pyfunctorch import retrieve_current_functorch_interpreter

        self._interpreter = retrieve_current_functorch_interpreter()
        self.kind = self._interpreter.key().name.lower()
        self.number = self._interpreter.level()

    def below(self) -> Any:
        return self._interpreter.lower()

    def unwrap(self, tensor: Tensor) -> Tensor:
        if self.kind == "functionalize":
            return self._functional().unwrap_tensors((tensor,))[0]
        return unwrap_for_grad(tensor, self.number)

    def wrap(self, tensor: Tensor) -> Tensor:
        if self.kind == "functionalize":
            return self._functional().wrap_tensors((tensor,))[0]
        return torch._C._functorch._wrap_for_grad(tensor, self.number)

    def _functional(self) -> Any:
        from torch._subclasses.functional_tensor import FunctorchFunctionalizeAPI

        return FunctorchFunctionalizeAPI(self._interpreter)

    def unwrap_batched(self, tensor: Tensor) -> tuple[Tensor, int | None]:
        """The unwrapped tensor and the position of the dimension that vmap hides; None if it has no such dimension."""
        return torch._C._functorch._unwrap_batched(tensor, self.number)

    def wrap_batched(self, tensor: Tensor, position: int) -> Tensor:
        return torch._C._functorch._add_batch_dim(tensor, position, self.number)

    @property
    def batch_size(self) -> int:
        return self._interpreter.batch_size()

    @property
    def randomness(self) -> str:
        return self._interpreter.randomness()

    def is_innermost(self, wrapped: Tensor) -> bool:
        """Whether this transform is still active and the innermost one. ``wrapped`` is one of its tensors."""
        current = peek_interpreter_stack()
        alive = unwrap_if_dead(wrapped) is wrapped
        return alive and current is not None and current.level() == self.number

    def requires_grad(self, tensor: Tensor) -> bool:
        """Whether the tensor is differentiated at this level."""
        return maybe_get_level(tensor) == self.number and tensor.requires_grad


def single_level_function(name: str, forward: Callable, setup_context: Callable, backward: Callable) -> Callable:
    """``apply`` of an autograd.Function that acts on the innermost transform of torch.func only."""
    from torch._functorch.utils import enable_single_level_autograd_function

    methods = {"forward": forward, "setup_context": setup_context, "backward": backward}
    methods = {key: staticmethod(method) for key, method in methods.items()}
    made = type(name, (torch.autograd.function._SingleLevelFunction,), methods)

    def apply(*arguments: Tensor) -> Any:
        with enable_single_level_autograd_function():
            return made.apply(*arguments)

    return apply


@contextmanager
def derivatives_enabled() -> Iterator[None]:
    """Enable reverse and forward mode, both of which an autograd.Function disables while its ``forward`` runs."""
    with torch.enable_grad(), torch.autograd.forward_ad._set_fwd_grad_enabled(True):
        yield


@contextmanager
def before_wrapping(function: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Within this context grad and vmap wrap ``function(tensor)`` in place of each tensor."""
    vmap = importlib.import_module("torch._functorch.vmap")
    eager_transforms = importlib.import_module("torch._functorch.eager_transforms")
    originals = eager_transforms._wrap_for_grad, vmap._add_batch_dim
    wrap_for_grad, add_batch_dim = originals
    eager_transforms._wrap_for_grad = lambda tensor, level: wrap_for_grad(function(tensor), level)
    vmap._add_batch_dim = lambda tensor, dim, level: add_batch_dim(function(tensor), dim, level)
    try:
        yield
    finally:
        eager_transforms._wrap_for_grad, vmap._add_batch_dim = originals


# Traces


class _Compilers:
    count = 0  # how many callers of compiling(), in all threads, torch's flag is set for
    before = False
    lock = threading.Lock()


@contextmanager
def compiling() -> Iterator[None]:
    """Make ``torch.compiler.is_compiling()`` true, so that code of other libraries takes its traceable path."""
    with _Compilers.lock:
        if _Compilers.count == 0:
            _Compilers.before = torch.compiler._is_compiling_flag
            torch.compiler._is_compiling_flag = True
        _Compilers.count += 1
    try:
        yield
    finally:
        with _Compilers.lock:
            _Compilers.count -= 1
            if _Compilers.count == 0:
                torch.compiler._is_compiling_flag = _Compilers.before


def data_dependent_errors() -> tuple[type[Exception], ...]:
    """What torch raises if Python asks for the value of a traced tensor, or for a size that depends on values."""
    from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

    return DataDependentOutputException, DynamicOutputShapeException, GuardOnDataDependentSymNode


def recording() -> Any:
    """The tracer of make_fx that is recording the operations that run here; None if there is none."""
    mode = torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY)
    return None if mode is None else mode.tracer


def is_recorded(tensor: Tensor) -> bool:
    """Whether the tensor is the result of an operation that the active make_fx has recorded, or an argument."""
    from torch.fx.experimental.proxy_tensor import get_proxy_slot

    return get_proxy_slot(tensor, recording(), None) is not None


def node_of(tensor: Tensor) -> torch.fx.Node:
    """The node of the active make_fx that stands for the tensor."""
    from torch.fx.experimental.proxy_tensor import get_proxy_slot

    return get_proxy_slot(tensor, recording()).proxy.node


# Communication between processes


def _collectives() -> Any:
    importlib.import_module("torch.distributed._functional_collectives")  # registers what abstract tensors need
    return torch.ops._c10d_functional


def is_collective(target: Any) -> bool:
    """Whether the target of a node is an operation in which several processes take part."""
    return is_operation(target) and target.namespace == "_c10d_functional"


def default_group() -> str:
    """The name of the group of all processes."""
    return torch.distributed.distributed_c10d._get_default_group().group_name


def shared_store(prefix: str) -> Any:
    """The key-value store through which the processes have found each other; the keys get this prefix."""
    return torch.distributed.PrefixStore(prefix, torch.distributed.distributed_c10d._get_default_store())


def part_of_a_tensor(part: Tensor, axis: int, group: str) -> Tensor:
    """A DTensor made of the equal parts along an axis that the processes of a group hold."""
    from torch.distributed.tensor import DeviceMesh, DTensor, Shard

    mesh = DeviceMesh.from_group(torch.distributed.distributed_c10d._resolve_process_group(group), part.device.type)
    return DTensor.from_local(part, mesh, [Shard(axis)], run_check=False)


def all_reduce(tensor: Tensor, group: str) -> Tensor:
    """The sum of the tensors of all processes of a group."""
    operations = _collectives()
    return operations.wait_tensor(operations.all_reduce(tensor, "sum", group))


def all_gather(tensor: Tensor, size: int, group: str) -> Tensor:
    """The tensors of the ``size`` processes of a group, concatenated along the first axis."""
    operations = _collectives()
    return operations.wait_tensor(operations.all_gather_into_tensor(tensor, size, group))


def reduce_scatter(tensor: Tensor, size: int, group: str) -> Tensor:
    """This process's part, of ``size`` equal ones along the first axis, of the sum of the tensors of a group."""
    operations = _collectives()
    return operations.wait_tensor(operations.reduce_scatter_tensor(tensor, "sum", size, group))


# The compiler


def size_hint(size: int | torch.SymInt) -> int | None:
    """A size in a compiler's graph: the number itself, or the hint of a symbolic size; None if there is no hint."""
    known = size if isinstance(size, int) else size.node.hint
    return known if isinstance(known, int) else None


def inductor(module: torch.fx.GraphModule, inputs: list[Tensor], options: dict[str, Any]) -> Callable[..., Any]:
    """Compile a flat graph with Inductor for inputs like these, without the guards of torch.compile."""
    from torch._inductor import standalone_compile

    mode = getattr(inputs[0], "fake_mode", None) if inputs else None
    if mode is not None:
        mode.allow_scalar_outputs = True  # loops in the generated code read the value of their counter
    with torch.no_grad():
        return standalone_compile(module, inputs, options={"config_patches": options})


_loading = threading.RLock()


@contextmanager
def libraries_loaded_here() -> Iterator[set[str]]:
    """The keys of the shared libraries that Inductor loads within this context; complete when it has ended."""
    from torch._inductor.codecache import CppPythonBindingsCodeCache

    keys: set[str] = set()
    with _loading:
        before, CppPythonBindingsCodeCache.cache = CppPythonBindingsCodeCache.cache, {}
        try:
            yield keys
        finally:
            keys.update(CppPythonBindingsCodeCache.cache)
            CppPythonBindingsCodeCache.cache = before | CppPythonBindingsCodeCache.cache


def load_inductor(file: Path, options: dict[str, Any]) -> Callable[..., Any]:
    """Load compiled code from a file that the ``save`` method of a result of :func:`inductor` wrote."""
    from torch._inductor import CompiledArtifact, config

    with config.patch(options):
        return CompiledArtifact.load(path=str(file), format="binary")


# pyright: reportUnsupportedDunderAll=false
__all__ = [
    "AccumulateGrad",
    "CustomGraphPass",  # noqa: F822
    "DisableTorchFunction",
    "FakeTensorMode",
    "Level",
    "NormWithStatistics",
    "Slot",
    "TorchDispatchMode",
    "TransformType",
    "all_gather",
    "all_reduce",
    "before_wrapping",
    "cache_folder",  # noqa: F822
    "compiling",
    "custom_function_call",  # noqa: F822
    "data_dependent_errors",
    "default_group",
    "derivatives_enabled",
    "dispatch_modes",
    "foreach",
    "foreach_add_scalar",
    "foreach_copy",
    "forward_mode_inside_jvp",
    "functions_of",
    "fused_adam",
    "get_hash_for_files",  # noqa: F822
    "get_interpreter_stack",
    "in_place_form",
    "inductor",
    "inside_derivative",
    "inside_vmap",
    "is_abstract",
    "is_collective",
    "is_differentiated",
    "is_elementwise",
    "is_of_outer_transform",
    "is_operation",
    "is_random",
    "is_recorded",
    "is_view",
    "is_zero",
    "levels_of",
    "libraries_loaded_here",
    "load_inductor",
    "mode_options",  # noqa: F822
    "new_grad_level",  # noqa: F822
    "node_of",
    "not_recorded",  # noqa: F822
    "onednn_linear",
    "operation_name",
    "outside_transforms",  # noqa: F822
    "part_of_a_tensor",
    "peek_interpreter_stack",
    "pytree_containers",
    "readable",
    "recording",
    "reduce_scatter",
    "refresh_recurrent",
    "returns_view",
    "scan_op",
    "schema",
    "shared_store",
    "single_level_function",
    "size_hint",
    "slots",
    "storage_id",
    "storage_users",
    "swap_tensors",
    "to_copy",
    "track_tensor_tree",  # noqa: F822
    "tree_leaves",
    "tree_map",
    "unsafe_view",
    "unwrap_for_grad",
    "unwrap_if_dead",
    "values_can_be_read",
    "version",
    "without_overrides",
    "without_tangent",
    "without_wrappers",
    "writes",
    "zero_symbol",
]
