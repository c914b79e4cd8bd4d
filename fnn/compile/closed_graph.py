"""The graph of a function that closes over nothing, such as the step of a loop.

A function that is traced inside transforms of torch.func may use tensors that belong to these transforms. In the graph
of the function each of them is an input. The transforms outside the function are not part of the graph; those inside it
are.
"""

import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.overrides import TorchFunctionMode

from fnn import _torch
from fnn._tracing import recorded_apart
from fnn.compile.functional_graph import DECOMPOSITIONS, hoist_constants, without_writes, without_zero_tangents

aten = torch.ops.aten


_WITHOUT_HISTORY = (Tensor.detach_, Tensor.data.__get__)  # pyright: ignore[reportAttributeAccessIssue]


class NotClosedError(Exception):
    """A function cannot be made a graph of its own, because its result depends on the transforms around it."""


class _Closing(threading.local):
    def __init__(self) -> None:
        self.functions: list[_OuterTensors] = []  # those that are being traced, the innermost last


def closed_graph(
    function: Callable, examples: Sequence[Tensor], differentiable: bool, run: Callable
) -> tuple[GraphModule, list[Tensor]]:
    """The graph of a function of tensors that returns a list of tensors, and the tensors that it closes over.

    The inputs of the graph are the arguments and then these tensors. With ``differentiable`` the transforms inside the
    function are traced as if inside another transform, so that the graph can be differentiated again. No operation of
    the graph changes a tensor. ``run(graph, values)`` is called to run a graph that contains loops.

    Raises :class:`NotClosedError` if the function uses something that a graph cannot represent: a custom
    ``torch.autograd.Function``, or a region in which gradients are disabled.
    """
    from torch.fx.experimental.proxy_tensor import make_fx  # imported here, because it takes long

    originals: dict[int, Tensor] = {}

    def traced(*arguments: Tensor) -> list[Tensor]:
        if not differentiable:
            return function(*arguments)
        outer = _OuterTensors(_torch.recording())
        _closing.functions.append(outer)
        try:
            with _torch.before_wrapping(outer.wrapped), torch.enable_grad(), _torch.new_grad_level() as level, outer:
                results = [outer.inside(result) for result in function(*arguments)]
                results = [_torch.unwrap_for_grad(result, level) for result in results]
            originals.update(outer.originals)
            alive.extend(outer.stand_ins.values())
            return results
        finally:
            _closing.functions.pop()

    def detach(tensor: Tensor) -> Tensor:
        """Keep a detach that the function calls. Autograd detaches the tensors that it saves; that becomes an alias."""
        if _closing.functions and _closing.functions[-1].detaching:
            return NotImplemented
        return aten.alias.default(tensor)

    alive: list[Any] = []  # keeps tensors alive, so that no id is used twice
    fake = nullcontext() if _torch.recording() else _torch.FakeTensorMode(allow_non_fake_inputs=True)
    with recorded_apart(int(differentiable)), _torch.not_recorded(), _torch.outside_transforms(), fake as mode:
        if mode is not None:  # in eager code, so that tracing computes nothing
            examples = [mode.from_tensor(example) for example in examples]
        table = {**DECOMPOSITIONS, aten.detach.default: detach}
        graph = make_fx(traced, table, _allow_non_fake_inputs=True)(*examples)
        without_zero_tangents(graph.graph)
        constants = [originals.get(id(value), value) for value in hoist_constants(graph)]
        graph = without_writes(graph, run)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph, constants


def as_seen_inside(tensor: Tensor) -> Tensor:
    """The tensor as seen by the function that :func:`closed_graph` is tracing; itself if there is none."""
    return _closing.functions[-1].inside(tensor) if _closing.functions else tensor


class _OuterTensors(TorchFunctionMode):
    """Replaces each tensor that belongs to a torch.func transform outside the function by a plain tensor."""

    def __init__(self, tracer: Any) -> None:
        super().__init__()
        self.tracer = tracer
        self.detaching = False
        self.stand_ins: dict[int, tuple[Tensor, Tensor]] = {}  # by the id of the outer tensor: (outer tensor, stand-in)
        self.originals: dict[int, Tensor] = {}  # the outer tensor, by the id of the stand-in

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if not self.is_recording():  # the step of a loop inside the function is being traced
            return func(*args, **(kwargs or {}))
        if func is _torch.custom_function_call:
            raise NotClosedError("a custom torch.autograd.Function")
        if func in _WITHOUT_HISTORY:
            raise NotClosedError("a tensor without its history")
        wrapping = getattr(func, "__name__", "") == "_make_dual"  # of torch.func.jvp
        args = _torch.tree_map(lambda value: self.inside(value, wrapping), args)
        kwargs = {key: _torch.tree_map(self.inside, value) for key, value in (kwargs or {}).items()}
        self.detaching = func in (Tensor.detach, torch.detach, aten.detach.default)
        try:
            results = func(*args, **kwargs)
        finally:
            self.detaching = False
        if not torch.is_grad_enabled() and self.at_function_level():
            leaves = _torch.tree_leaves(results)
            if any(isinstance(leaf, Tensor) and leaf.is_floating_point() for leaf in leaves):
                raise NotClosedError("a region without gradients")
        return results

    def is_recording(self) -> bool:
        """Whether operations are recorded in the function's own graph here; in other threads they are not."""
        return _torch.recording() is self.tracer

    @staticmethod
    def at_function_level() -> bool:
        """Whether no transform inside the function is active."""
        innermost = _torch.peek_interpreter_stack()
        return innermost is not None and innermost.level() == 1

    def wrapped(self, tensor: Tensor) -> Tensor:
        """What a transform inside the function wraps in place of this tensor; the mode does not see the wrapping."""
        return self.inside(tensor, wrapping=True)

    def inside(self, value: Any, wrapping: bool = False) -> Any:
        """Return the tensor itself if it was made inside the function, otherwise its stand-in.

        A tensor that no transform has wrapped needs a stand-in only if a transform inside the function will wrap it.
        """
        if not isinstance(value, Tensor) or not self.is_recording():
            return value
        bottom = _torch.without_wrappers(value)
        if (bottom is value and not wrapping) or id(bottom) in self.originals or _torch.is_recorded(bottom):
            return value
        if id(value) not in self.stand_ins:
            with _torch.DisableTorchFunction(), _torch.not_recorded(), _torch.outside_transforms():
                stand_in = torch.zeros(value.shape, dtype=value.dtype, device=value.device)
            self.stand_ins[id(value)] = value, stand_in
            self.originals[id(stand_in)] = value
        return self.stand_ins[id(value)][1]


_closing = _Closing()
