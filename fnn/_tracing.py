"""The trace that is running in this thread, and what may be called inside it."""

import gc
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, fx

from fnn import _torch


class _Running(threading.local):
    fake_mode: _torch.FakeTensorMode | None = None
    for_replay = False


_running = _Running()
_lock = threading.RLock()  # torch's flag for is_compiling() is shared by all threads


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Pause Python's garbage collector, which would search the many new objects of a trace, all still in use."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@_collector_paused()
def record(
    function: Callable[..., list[Tensor]], layouts: Iterable[tuple], decompositions: Mapping, for_replay: bool
) -> tuple[fx.GraphModule, Callable[[Tensor], Tensor]]:
    """Record the operations of a function of tensors, which runs once on abstract tensors of these layouts.

    A layout is (shape, strides, dtype, device). The first result is the graph. The second is a function that returns
    the abstract tensor for a tensor that the function closed over.

    ``decompositions`` holds functions that are recorded in place of operations. With ``for_replay``,
    :func:`multi_tensor_kernels` is true during the trace. If a Python number is read from a tensor, one of
    :func:`fnn._torch.data_dependent_errors` is raised.
    """
    from torch.fx.experimental.proxy_tensor import make_fx  # imported here, because these take long
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    shapes = ShapeEnv(allow_scalar_outputs=False, allow_dynamic_output_shape_ops=False)
    mode = _torch.FakeTensorMode(allow_non_fake_inputs=True, shape_env=shapes, static_shapes=True)
    with mode:
        abstract = [torch.empty_strided(*sizes, dtype=dtype, device=device) for *sizes, dtype, device in layouts]
    flat = make_fx(function, decompositions, tracing_mode="fake", _allow_non_fake_inputs=True)
    before = _running.fake_mode, _running.for_replay
    with _lock, torch.no_grad(), _torch.compiling():
        _running.fake_mode, _running.for_replay = mode, for_replay
        try:
            return flat(*abstract), mode.from_tensor
        finally:
            _running.fake_mode, _running.for_replay = before


def is_plain_call() -> bool:
    """Whether a trace, a transform or a dispatch mode is active, so that jitted functions run as plain ones."""
    return (
        _running.fake_mode is not None
        or _torch.peek_interpreter_stack() is not None
        or _torch.dispatch_modes()
        or torch.compiler.is_dynamo_compiling()
    )


def is_for_a_compiler() -> bool:
    """Whether a graph is recorded here for a compiler, and not to be replayed operation by operation."""
    return _running.fake_mode is not None and not _running.for_replay


def multi_tensor_kernels() -> bool:
    """Whether multi-tensor and fused kernels may be called here.

    They may be called in ordinary eager code and in a graph that will be replayed operation by operation. They may not
    be called inside a transform of torch.func, nor in a trace for a compiler, which fuses separate leaves better.
    """
    levels = _torch.get_interpreter_stack() or []
    if any(level.key() != _torch.TransformType.Functionalize for level in levels):
        return False
    if _running.fake_mode is not None:
        return _running.for_replay
    return not (levels or torch.compiler.is_dynamo_compiling() or _torch.dispatch_modes())


def is_outermost_in_replay() -> bool:
    """Whether a graph for replay is being recorded here, outside all transforms that differentiate or batch."""
    return _running.fake_mode is not None and multi_tensor_kernels()


# Derivatives


class _Transforms(threading.local):
    reverse = 0  # how many functions are differentiated by torch.autograd.grad, without a level of torch.func
    later: tuple = ()  # the transforms that will be applied to the graph of a function that is recorded apart from them
    own_levels = 0  # the levels that only serve to record this graph
    once = False  # whether the one level of torch.func has a backward pass that is not differentiated


_transforms = _Transforms()


@contextmanager
def differentiated() -> Iterator[None]:
    """Mark that the function that runs here is differentiated by ``torch.autograd.grad``."""
    _transforms.reverse += 1
    try:
        yield
    finally:
        _transforms.reverse -= 1


@contextmanager
def differentiated_once() -> Iterator[None]:
    """Mark that the backward pass of the ``vjp`` that is called here will not be differentiated."""
    before, _transforms.once = _transforms.once, True
    try:
        yield
    finally:
        _transforms.once = before


def is_differentiated_at_most_once() -> bool:
    """Whether no transform is active here but an outermost ``fnn.grad``, in eager code or in a graph for replay."""
    alone = _transforms.once and not _transforms.own_levels and active_transforms() == [_torch.TransformType.Grad]
    return alone or multi_tensor_kernels()


@contextmanager
def recorded_apart(levels: int) -> Iterator[None]:
    """Mark that a function is recorded as a graph of its own, outside the transforms that are active here.

    They are applied to the graph later. The first ``levels`` levels inside this context only serve to record it.
    """
    before = _transforms.later, _transforms.own_levels
    _transforms.later, _transforms.own_levels = tuple(active_transforms()), levels
    try:
        yield
    finally:
        _transforms.later, _transforms.own_levels = before


def active_transforms() -> list:
    """The kinds of the transforms of torch.func that are applied to what is computed here, the outermost first."""
    levels = _torch.get_interpreter_stack() or []
    return [*_transforms.later, *(level.key() for level in levels[_transforms.own_levels :])]


def inside_vmap() -> bool:
    """Whether a ``vmap`` is applied to what is computed here."""
    return _torch.TransformType.Vmap in active_transforms()


def derivatives_of_derivatives() -> bool:
    """Whether a forward derivative, or a derivative of a derivative, may be taken of what is computed here.

    This is also assumed of a function that runs under a dispatch mode other than those of a trace, since such modes
    are how fnn looks at a function before it differentiates it, and under ``torch.compile``, which does not say.
    """
    if torch.compiler.is_dynamo_compiling():
        return True
    kinds = active_transforms()
    watched = _running.fake_mode is None and _torch.dispatch_modes()
    reverse = kinds.count(_torch.TransformType.Grad) + _transforms.reverse
    return watched or _torch.TransformType.Jvp in kinds or reverse > 1


# Calls of Python functions by a graph

_functions: list[Callable[[list[Tensor]], None]] = []
_library = torch.library.Library("fnn", "FRAGMENT")
_library.define("call(int number, Tensor[] values) -> ()")
_library.impl("call", lambda number, values: _functions[number](values), "CompositeExplicitAutograd")
torch.library.register_fake("fnn::call", lambda number, values: None, lib=_library)
python_call = torch.ops.fnn.call.default
fx.node.has_side_effect(python_call)  # pyright: ignore[reportAttributeAccessIssue]


def call_when_run(function: Callable[[list[Tensor]], None], tensors: Iterable[Tensor]) -> None:
    """Call a function of tensors for its side effect: now, or, while a graph is recorded, at each replay of the graph.

    The function receives the plain tensors, without the wrappers of the transforms of torch.func.
    """
    plain = [_torch.without_wrappers(tensor) for tensor in tensors]
    if _running.fake_mode is None:
        function([tensor.detach() for tensor in plain])
    else:
        _functions.append(function)
        python_call(len(_functions) - 1, plain)
