"""All private torch names that fnn uses.

They were checked on torch 2.11, 2.13 and the newest release at the time of writing (see docs/decisions.md). If torch
moves one of them, tests/test_torch.py fails and names it.
"""
# torch does not declare the types of private names
# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false, reportArgumentType=false
# pyright: reportCallIssue=false

import functools
import importlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._C import _swap_tensor_impl as swap_tensors
from torch._C._functorch import (
    TransformType,
    get_interpreter_stack,
    get_unwrapped,
    is_batchedtensor,
    is_functorch_wrapped_tensor,
    maybe_get_level,
    peek_interpreter_stack,
    unwrap_if_dead,
)
from torch._higher_order_ops.scan import scan_op
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import SUPPORTED_NODES as pytree_containers  # noqa: N811
from torch.utils._pytree import (  # no public pytree module in any supported version
    tree_leaves,
    tree_map,
)

# these names are imported at first use, because their modules import the compiler, which takes as long as torch itself
_LATER = {
    "CustomGraphPass": ("torch._inductor.custom_graph_pass", "CustomGraphPass"),
    "get_hash_for_files": ("torch._inductor.custom_graph_pass", "get_hash_for_files"),
    "mode_options": ("torch._inductor", "list_mode_options"),
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, original = _LATER[name]
    value = globals()[name] = getattr(importlib.import_module(module), original)
    return value


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
fused_adam = torch._fused_adam_  # pyright: ignore[reportPrivateImportUsage]

# oneDNN's product of rows and a transposed weight; None in a torch that was built without it
onednn_linear = getattr(torch.ops.mkldnn, "_linear_pointwise", None)


def dispatch_modes() -> bool:
    """Whether a mode that sees every operation is active: fake tensors, make_fx, a profiler's flop counter."""
    return torch._C._len_torch_dispatch_stack() > 0


class _Tracing(threading.local):
    fake_mode: Any = None
    for_replay = False


_tracing = _Tracing()
_trace_lock = threading.RLock()  # torch's flag for is_compiling() is shared by all threads


def data_dependent_errors() -> tuple[type[Exception], ...]:
    """What torch raises if Python asks for the value of a traced tensor, or for a size that depends on values."""
    from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
    from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

    return DataDependentOutputException, DynamicOutputShapeException, GuardOnDataDependentSymNode


def record(
    function: Callable[..., list[Tensor]], layouts: Iterable[tuple], for_replay: bool
) -> tuple[torch.fx.GraphModule, Callable[[Tensor], Tensor]]:
    """Record the operations of a function of tensors, which runs once on abstract tensors of these layouts.

    A layout is (shape, strides, dtype, device). The first result is the graph. The second is a function that returns
    the abstract tensor for a tensor that the function closed over.

    In-place operations are replaced by operations that return a new tensor; if an argument was changed, its new value
    is copied into it at the end of the graph. With ``for_replay``, :func:`multi_tensor_kernels` is true during the
    trace. If a Python number is read from a tensor, one of :func:`data_dependent_errors` is raised.
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
            return flat(*abstract), mode.from_tensor
        finally:
            _tracing.fake_mode, _tracing.for_replay = before


def inductor(module: torch.fx.GraphModule, inputs: list[Tensor], options: dict[str, Any]) -> Callable[..., Any]:
    """Compile a flat graph with Inductor for inputs like these, without the guards of torch.compile."""
    from torch._inductor import standalone_compile

    mode = getattr(inputs[0], "fake_mode", None) if inputs else None
    if mode is not None:
        mode.allow_scalar_outputs = True  # loops in the generated code read the value of their counter
    with torch.no_grad():
        return standalone_compile(module, inputs, options={"config_patches": options})


def load_inductor(file: Path, options: dict[str, Any]) -> Callable[..., Any]:
    """Load compiled code from a file that the ``save`` method of a result of :func:`inductor` wrote."""
    from torch._inductor import CompiledArtifact, config

    with config.patch(options):
        return CompiledArtifact.load(path=str(file), format="binary")


@contextmanager
def _compiling() -> Iterator[None]:
    """Make ``torch.compiler.is_compiling()`` true, so that code of other libraries takes its traceable path."""
    before = torch.compiler._is_compiling_flag
    torch.compiler._is_compiling_flag = True
    try:
        yield
    finally:
        torch.compiler._is_compiling_flag = before


def is_abstract(tensor: Tensor) -> bool:
    """Whether the tensor is a fake tensor or is wrapped by a transform, so that its value may not be known."""
    from torch._subclasses.fake_tensor import FakeTensor

    return isinstance(tensor, FakeTensor) or is_functorch_wrapped_tensor(tensor)


def plain_call() -> bool:
    """Whether a trace, a transform or a dispatch mode is active, so that jitted functions run as plain ones."""
    return (
        _tracing.fake_mode is not None
        or peek_interpreter_stack() is not None
        or torch._C._len_torch_dispatch_stack() > 0
        or torch.compiler.is_dynamo_compiling()
    )


def multi_tensor_kernels() -> bool:
    """Whether multi-tensor and fused kernels may be called here.

    They may be called in ordinary eager code and in a graph that will be replayed operation by operation. They may not
    be called inside a transform of torch.func, nor in a trace for a compiler, which fuses separate leaves better.
    """
    levels = get_interpreter_stack() or []
    if any(level.key() != TransformType.Functionalize for level in levels):
        return False
    if _tracing.fake_mode is not None:
        return _tracing.for_replay
    return not (levels or torch.compiler.is_dynamo_compiling() or dispatch_modes())


def outermost_in_trace() -> bool:
    """Whether a function is traced for replay, outside all transforms, into a graph that will not be differentiated."""
    if _tracing.fake_mode is None or not _tracing.for_replay or _closing.functions:
        return False
    return all(level.key() == TransformType.Functionalize for level in get_interpreter_stack() or ())


def in_place_form(operation: Any) -> Any:
    """The in-place form of an operation, such as ``aten.add_.Tensor`` of ``aten.add.Tensor``; None if it has none."""
    if not is_operation(operation):
        return None
    packet = getattr(getattr(torch.ops, operation.namespace), f"{operation._opname}_", None)
    return getattr(packet, operation._overloadname, None)


def is_operation(target: Any) -> bool:
    """Whether the target of a node is one of torch's operations, such as ``aten.add.Tensor``."""
    return isinstance(target, torch._ops.OpOverload)


def is_random(operation: Any) -> bool:
    """Whether an operation draws from torch's global generator."""
    return is_operation(operation) and torch.Tag.nondeterministic_seeded in operation.tags


class _Seen(TorchDispatchMode):
    """Records the first call of an operation, and returns ``value`` instead of running the expected operation."""

    def __init__(self, expected: Any, value: Any) -> None:
        super().__init__()
        self.first: Any = None
        self.expected = expected
        self.value = value

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        self.first = self.first or [func, args, kwargs or {}]
        return self.value if func is self.expected else func(*args, **(kwargs or {}))


@functools.cache
def _functions_of(name: str) -> list[Callable]:
    """torch's own functions of this name, which call the kernel with less overhead than those of ``torch.ops``."""
    places = torch._C._VariableFunctions, torch._C._nn, torch._C.TensorBase
    return [getattr(place, name) for place in places if hasattr(place, name)]


def _mkldnn_rnn_layer(*args: Any) -> Any:
    """A layer of oneDNN's LSTM, which keeps what its backward pass needs only while gradients are enabled."""
    with torch.enable_grad():
        return torch.ops.aten.mkldnn_rnn_layer.default(*args)


_direct: dict[tuple, Callable] = {}


def direct_call(operation: Any, args: tuple, kwargs: dict, value: Any) -> Callable:
    """The fastest function that calls this operation with arguments like these, in which nodes stand for tensors.

    value: the abstract result of the operation.
    """
    if not is_operation(operation):
        return operation
    if operation is torch.ops.aten.mkldnn_rnn_layer.default:
        return _mkldnn_rnn_layer
    value = value if operation._schema.returns else None
    given, named = (torch.fx.map_arg(part, lambda node: node.meta["val"]) for part in (list(args), dict(kwargs)))
    key = operation, _kind(given), _kind(list(named.values())), tuple(named)
    if key not in _direct:
        _direct[key] = operation._op
        for function in _functions_of(operation._opname) if operation.namespace == "aten" else ():
            try:
                with torch.no_grad(), _Seen(operation, value) as seen:
                    function(*given, **named)
            except (TypeError, RuntimeError, ValueError):
                continue
            # the arguments are compared, too, because defaults may differ, as those of torch._C._nn.mse_loss do
            if seen.first is not None and _same(seen.first, [operation, given, named]):
                _direct[key] = function
                break
    return _direct[key]


def _kind(value: Any) -> Any:
    return tuple(map(_kind, value)) if isinstance(value, (list, tuple)) else (type(value), getattr(value, "ndim", None))


def _same(first: Any, second: Any) -> bool:
    """Whether two arguments of operations are equal; tensors are equal only to themselves."""
    if isinstance(first, dict):
        names = (first.keys() | second.keys()) - {"pin_memory"}  # some write its default out
        return names <= first.keys() & second.keys() and all(_same(first[name], second[name]) for name in names)
    if isinstance(first, (list, tuple)) and isinstance(second, (list, tuple)):
        return len(first) == len(second) and all(map(_same, first, second))
    return first is second or (not isinstance(first, Tensor) and type(first) is type(second) and first == second)


_calls: list[Callable[[list[Tensor]], None]] = []
_library = torch.library.Library("fnn", "FRAGMENT")
_library.define("call(int number, Tensor[] values) -> ()")
_library.impl("call", lambda number, values: _calls[number](values), "CompositeExplicitAutograd")
torch.library.register_fake("fnn::call", lambda number, values: None, lib=_library)
python_call = torch.ops.fnn.call.default
torch.fx.node.has_side_effect(python_call)


def call_when_run(function: Callable[[list[Tensor]], None], tensors: Iterable[Tensor]) -> None:
    """Call a function of tensors for its side effect: now, or, while a graph is recorded, at each replay of the graph.

    The function receives the plain tensors, without the wrappers of the transforms of torch.func.
    """
    plain = []
    for tensor in tensors:
        while is_functorch_wrapped_tensor(tensor):
            if torch._C._functorch.is_functionaltensor(tensor):
                torch._sync(tensor)
            tensor = torch._C._functorch.get_unwrapped(tensor)
        plain.append(tensor)
    if _tracing.fake_mode is None:
        function([tensor.detach() for tensor in plain])
    else:
        _calls.append(function)
        python_call(len(_calls) - 1, plain)


class after_each_operation(TorchDispatchMode):  # noqa: N801  (it is used as a context manager)
    """Call ``check(name, arguments, results)`` after each operation, with lists of the tensors."""

    def __init__(self, check: Callable[[str, list[Tensor], list[Tensor]], None]) -> None:
        super().__init__()
        self.check = check

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        results = func(*args, **(kwargs or {}))
        self.check(func._opname, given, [leaf for leaf in tree_leaves(results) if isinstance(leaf, Tensor)])
        return results


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
    if not is_functorch_wrapped_tensor(tensor):
        return False
    innermost = peek_interpreter_stack()
    return not 0 < maybe_get_level(tensor) <= (0 if innermost is None else innermost.level())


def forward_mode_inside_jvp() -> Any:
    """Enable forward mode in the ``jvp`` of a ``torch.autograd.Function``, so that it can be differentiated."""
    return torch.autograd.forward_ad._set_fwd_grad_enabled(True)


def without_tangent(tensor: Tensor) -> Tensor:
    """The tensor as a constant to the innermost forward mode."""
    if not tensor.is_floating_point() and not tensor.is_complex():
        return tensor
    return torch.autograd.forward_ad.unpack_dual(tensor, level=0).primal


def readable(tensor: Tensor) -> bool:
    """Whether Python may read the values of this tensor: it may not under vmap, nor in a trace."""
    while is_functorch_wrapped_tensor(tensor):
        if is_batchedtensor(tensor):
            return False
        tensor = get_unwrapped(tensor)
    return not (torch.compiler.is_compiling() or isinstance(tensor, FakeTensor) or tensor.is_meta)


def storage_users(tensor: Tensor) -> int:
    """How many tensors share the memory of this one, itself included."""
    handle = tensor.untyped_storage()  # the handle is counted, too
    return torch._C._storage_Use_Count(handle._cdata) - 1


def storage_id(tensor: Tensor) -> int:
    """A number that is equal for two living tensors if and only if they share a storage."""
    return tensor.untyped_storage()._cdata


def version(tensor: Tensor) -> int:
    """A number that grows when the tensor is changed in place."""
    return 0 if tensor.is_inference() else tensor._version


def is_view(tensor: Tensor) -> bool:
    """Whether the tensor is a view of another one."""
    return tensor._is_view()


def size_hint(size: int | torch.SymInt) -> int | None:
    """A size in a compiler's graph: the number itself, or the hint of a symbolic size; None if there is no hint."""
    known = size if isinstance(size, int) else size.node.hint
    return known if isinstance(known, int) else None


def cached_libraries() -> dict[str, Path]:
    """The shared libraries that Inductor built for this process's CPU graphs and for detecting the processor.

    The keys are their paths in Inductor's cache. ``torch.compiler.save_cache_artifacts`` does not save these libraries,
    although compiling them takes longer than everything else.
    """
    from torch._inductor.codecache import CppPythonBindingsCodeCache

    folder = cache_folder()
    files = [file for key in CppPythonBindingsCodeCache.cache for file in folder.glob(f"{key[1:3]}/{key}*.so")]
    files += [file for file in folder.glob("??/*.so*") if ".main." not in file.name]
    return {file.relative_to(folder).as_posix(): file for file in files}


def cache_folder() -> Path:
    """The folder of Inductor's cache: TORCHINDUCTOR_CACHE_DIR, or a folder of the user in the temporary folder."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    return Path(cache_dir())


# Loops in traced graphs (fnn.compile.loops). Modules of the compiler are imported when a loop is first traced.


def recording() -> bool:
    """Whether make_fx is recording the operations that run here."""
    return _proxy_mode() is not None


def _proxy_mode() -> Any:
    return torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY)


def not_recorded() -> Any:
    """A context in which make_fx does not record what runs."""
    from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing

    return disable_proxy_modes_tracing()


def outside_transforms() -> Any:
    """A context in which no transform of torch.func is active."""
    from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

    return temporarily_clear_interpreter_stack()


class NotClosedError(Exception):
    """A function cannot be made a graph of its own, because its result depends on the transforms around it."""


class _OuterTensors(TorchFunctionMode):
    """Replaces each tensor that belongs to a torch.func transform outside the function by a plain tensor.

    Raises :class:`NotClosedError` if the function uses something that a graph cannot represent: a custom
    ``autograd.Function``, or a region in which gradients are disabled.
    """

    def __init__(self, tracer: Any) -> None:
        super().__init__()
        self.tracer = tracer
        self.detaching = False
        self.stand_ins: dict[int, tuple[Tensor, Tensor]] = {}  # by the id of the outer tensor: (outer tensor, stand-in)
        self.originals: dict[int, Tensor] = {}  # the outer tensor, by the id of the stand-in

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        from torch._functorch.autograd_function import custom_function_call

        if not self.is_recording():  # the step of a loop inside the function is being traced
            return func(*args, **(kwargs or {}))
        if func is custom_function_call:
            raise NotClosedError("a custom torch.autograd.Function")
        if func in (torch.Tensor.data.__get__, torch.Tensor.detach_):
            raise NotClosedError("a tensor without its history")
        wrapping = getattr(func, "__name__", "") == "_make_dual"  # of torch.func.jvp
        args, kwargs = tree_map(lambda value: self.inside(value, wrapping), (args, kwargs or {}))
        self.detaching = func in (torch.Tensor.detach, torch.detach, torch.ops.aten.detach.default)
        try:
            results = func(*args, **kwargs)
        finally:
            self.detaching = False
        floating = any(isinstance(leaf, Tensor) and leaf.is_floating_point() for leaf in tree_leaves(results))
        if floating and not torch.is_grad_enabled() and self.at_function_level():
            raise NotClosedError("a region without gradients")
        return results

    def is_recording(self) -> bool:
        """Whether operations are recorded in the function's own graph here; in other threads they are not."""
        mode = _proxy_mode()
        return mode is not None and mode.tracer is self.tracer

    @staticmethod
    def at_function_level() -> bool:
        """Whether no transform inside the function is active."""
        innermost = peek_interpreter_stack()
        return innermost is not None and innermost.level() == 1

    def inside(self, value: Any, wrapping: bool = False) -> Any:
        """Return the tensor itself if it was made inside the function, otherwise its stand-in.

        A tensor that no transform has wrapped needs a stand-in only if a transform inside the function will wrap it.
        """
        if not isinstance(value, Tensor) or not self.is_recording():
            return value
        bottom = value
        while is_functorch_wrapped_tensor(bottom):
            bottom = torch._C._functorch.get_unwrapped(bottom)
        if (bottom is value and not wrapping) or id(bottom) in self.originals or _is_recorded(bottom, self.tracer):
            return value
        if id(value) not in self.stand_ins:
            with torch._C.DisableTorchFunction(), not_recorded(), outside_transforms():
                stand_in = torch.zeros(value.shape, dtype=value.dtype, device=value.device)
            self.stand_ins[id(value)] = value, stand_in
            self.originals[id(stand_in)] = value
        return self.stand_ins[id(value)][1]


@contextmanager
def _wrapping(outer: _OuterTensors) -> Iterator[None]:
    """Replace the tensors that inner transforms wrap, too; the mode does not see the wrapping."""
    vmap = importlib.import_module("torch._functorch.vmap")
    eager_transforms = importlib.import_module("torch._functorch.eager_transforms")
    originals = eager_transforms._wrap_for_grad, vmap._add_batch_dim
    wrap_for_grad, add_batch_dim = originals
    eager_transforms._wrap_for_grad = lambda tensor, level: wrap_for_grad(outer.inside(tensor, True), level)
    vmap._add_batch_dim = lambda tensor, dim, level: add_batch_dim(outer.inside(tensor, True), dim, level)
    try:
        yield
    finally:
        eager_transforms._wrap_for_grad, vmap._add_batch_dim = originals


class _Closing(threading.local):
    def __init__(self) -> None:
        self.functions: list[_OuterTensors] = []


_closing = _Closing()


def inside(tensor: Tensor) -> Tensor:
    """The tensor as seen by the function that :func:`closed_graph` is tracing; itself if there is none."""
    return _closing.functions[-1].inside(tensor) if _closing.functions else tensor


def _is_recorded(tensor: Tensor, tracer: Any) -> bool:
    from torch.fx.experimental.proxy_tensor import get_proxy_slot

    return get_proxy_slot(tensor, tracer, None) is not None


def closed_graph(
    function: Callable, examples: Sequence[Tensor], differentiable: bool, run: Callable
) -> tuple[torch.fx.GraphModule, list[Tensor]]:
    """The graph of a function of tensors that returns a list of tensors, and the tensors that it closes over.

    The inputs of the graph are the arguments and then these tensors. The transforms of torch.func that are active here
    are not part of the graph; those inside the function are. With ``differentiable`` the latter are traced as if inside
    another transform, so that the graph can be differentiated again. No operation of the graph changes a tensor.
    ``run(graph, values)`` is called to run a graph that contains loops.
    """
    from torch._functorch import eager_transforms
    from torch.fx.experimental.proxy_tensor import make_fx

    originals: dict[int, Tensor] = {}

    def traced(*arguments: Tensor) -> list[Tensor]:
        if not differentiable:
            return function(*arguments)
        outer = _OuterTensors(_proxy_mode().tracer)
        _closing.functions.append(outer)
        try:
            with _wrapping(outer), torch.enable_grad(), eager_transforms.grad_increment_nesting() as level, outer:
                results = [outer.inside(result) for result in function(*arguments)]
                results = [torch._C._functorch._unwrap_for_grad(result, level) for result in results]
            originals.update(outer.originals)
            alive.extend(outer.stand_ins.values())
            return results
        finally:
            _closing.functions.pop()

    def detach(tensor: Tensor) -> Tensor:
        """Keep a detach that the function calls. Autograd detaches the tensors that it saves; that becomes an alias."""
        if _closing.functions and _closing.functions[-1].detaching:
            return NotImplemented
        return torch.ops.aten.alias.default(tensor)

    alive: list[Any] = []  # keeps tensors alive, so that no id is used twice
    with not_recorded(), outside_transforms():
        graph = make_fx(traced, {torch.ops.aten.detach.default: detach}, _allow_non_fake_inputs=True)(*examples)
        constants = _hoist_constants(graph, originals)
        if any(_writes(node) for node in graph.graph.nodes):
            values = [node.meta["val"] for node in graph.graph.nodes if node.op == "placeholder"]
            functional = torch.func.functionalize(lambda *values: run(graph, values))
            kept = {torch.ops.aten.detach.default: lambda tensor: NotImplemented}
            graph = make_fx(functional, kept, _allow_non_fake_inputs=True)(*values)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph, constants


def _writes(node: torch.fx.Node) -> bool:
    """Whether the operation changes one of its arguments."""
    return is_operation(node.target) and node.target._schema.is_mutable


def _hoist_constants(graph: torch.fx.GraphModule, originals: dict[int, Tensor]) -> list[Tensor]:
    """Turn the tensors that a graph holds as attributes into additional inputs, and return them."""
    placeholders: dict[int, torch.fx.Node] = {}
    constants: list[Tensor] = []
    last = [node for node in graph.graph.nodes if node.op == "placeholder"][-1:]
    for node in list(graph.graph.nodes):
        value = getattr(graph, str(node.target), None) if node.op == "get_attr" else None
        if not isinstance(value, Tensor):
            continue
        if id(value) not in placeholders:
            place = graph.graph.inserting_after(last[-1]) if last else graph.graph.inserting_before(None)
            with place:
                placeholders[id(value)] = graph.graph.placeholder(f"closed_over_{len(constants)}")
            last.append(placeholders[id(value)])
            placeholders[id(value)].meta["val"] = value
            constants.append(originals.get(id(value), value))
        node.replace_all_uses_with(placeholders[id(value)])
        graph.graph.erase_node(node)
    graph.recompile()
    return constants


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
        return torch._C._functorch._unwrap_for_grad(tensor, self.number)

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
        alive = torch._C._functorch.unwrap_if_dead(wrapped) is wrapped
        return alive and current is not None and current.level() == self.number

    def requires_grad(self, tensor: Tensor) -> bool:
        """Whether the tensor is differentiated at this level."""
        return torch._C._functorch.maybe_get_level(tensor) == self.number and tensor.requires_grad


def single_level_function(name: str, methods: dict[str, Callable], inside_transform: bool) -> Callable[..., Any]:
    """``apply`` of an autograd.Function, which inside transforms acts only on the innermost one."""
    from torch._functorch.utils import enable_single_level_autograd_function

    function = torch.autograd.function._SingleLevelFunction if inside_transform else torch.autograd.Function
    made = type(name, (function,), {key: staticmethod(method) for key, method in methods.items()})

    def apply(*arguments: Tensor) -> Any:
        with enable_single_level_autograd_function() if inside_transform else nullcontext():
            return made.apply(*arguments)

    return apply


@contextmanager
def derivatives_enabled() -> Iterator[None]:
    """Enable reverse and forward mode, both of which an autograd.Function disables while its ``forward`` runs."""
    with torch.enable_grad(), torch.autograd.forward_ad._set_fwd_grad_enabled(True):
        yield


def record_scan(
    body: torch.fx.GraphModule, carry: list[Tensor], xs: list[Tensor], closed_over: list[Tensor]
) -> tuple[Tensor, ...]:
    """Record one loop as torch's scan operator, whose body takes carry, x and closed_over and returns carry and y.

    ``torch._higher_order_ops.scan.trace_scan`` does the same, but imports the compiler.
    """
    from torch.fx.experimental.proxy_tensor import track_tensor_tree

    tracer = _proxy_mode().tracer
    length = xs[0].shape[0]
    results = [node.meta["val"] for node in body.graph.find_nodes(op="output")[0].args[0]]
    with not_recorded():
        shapes = [result.shape for result in results[: len(carry)]]
        shapes += [(length, *result.shape) for result in results[len(carry) :]]
        out = tuple(
            torch.empty(shape, dtype=result.dtype, device=result.device)
            for shape, result in zip(shapes, results, strict=True)
        )
    number = 0
    while hasattr(tracer.root, f"scan_body_{number}"):
        number += 1
    tracer.root.register_module(f"scan_body_{number}", body)
    arguments = tree_map(tracer.unwrap_proxy, (body, carry, xs, tuple(closed_over)))
    proxy = tracer.create_proxy("call_function", scan_op, arguments, {}, name="scan")
    return track_tensor_tree(out, proxy, constant=None, tracer=tracer)


__all__ = [
    "CustomGraphPass",  # noqa: F822  # pyright: ignore[reportUnsupportedDunderAll]
    "Level",
    "NotClosedError",
    "TorchDispatchMode",
    "cache_folder",
    "cached_libraries",
    "closed_graph",
    "derivatives_enabled",
    "dispatch_modes",
    "foreach",
    "foreach_add_scalar",
    "forward_mode_inside_jvp",
    "fused_adam",
    "get_hash_for_files",  # noqa: F822  # pyright: ignore[reportUnsupportedDunderAll]
    "inside",
    "inside_derivative",
    "inside_vmap",
    "is_of_outer_transform",
    "is_operation",
    "is_view",
    "mode_options",  # noqa: F822  # pyright: ignore[reportUnsupportedDunderAll]
    "multi_tensor_kernels",
    "not_recorded",
    "onednn_linear",
    "outside_transforms",
    "peek_interpreter_stack",
    "pytree_containers",
    "readable",
    "record_scan",
    "recording",
    "scan_op",
    "single_level_function",
    "size_hint",
    "storage_id",
    "storage_users",
    "swap_tensors",
    "tree_leaves",
    "tree_map",
    "unwrap_if_dead",
    "values_can_be_read",
    "version",
    "without_tangent",
]
