"""Tracing by running: a function runs once on abstract tensors, and the operations that it calls become its graph."""

import functools
import inspect
import linecache
import operator
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.overrides import TorchFunctionMode

from fnn import _torch
from fnn import tree as _tree
from fnn._tracing import record
from fnn.compile import loops
from fnn.compile.functional_graph import DECOMPOSITIONS, hoist_constants, without_writes, without_zero_tangents
from fnn.compile.gather_order import reorder
from fnn.tree import Tree, TreeDef

aten = torch.ops.aten
_LIBRARIES = tuple(os.path.dirname(os.path.abspath(str(module.__file__))) + os.sep for module in (torch, _torch))
_VIEWS_OF_ALL = (aten.detach.default, aten.alias.default)


class Layout(NamedTuple):
    """The properties of a tensor that are known while a function is traced."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


def layout_of(tensor: Tensor) -> Layout:
    """The shape, strides, dtype and device of a tensor."""
    return Layout(tensor.shape, tensor.stride(), tensor.dtype, tensor.device)


class Trace(NamedTuple):
    """A flat graph. Its inputs are the leaves of the arguments, then the tensors that the function closed over."""

    module: fx.GraphModule
    constants: list[Tensor]
    results: list[Any]  # the leaves of the result: nodes of the graph, and Python values
    treedef: TreeDef  # of the result

    @property
    def inputs(self) -> list[fx.Node]:
        """The graph's placeholders."""
        return _placeholders(self.module.graph)


def trace_function(
    function: Callable[..., Tree], treedef: TreeDef, layouts: Sequence[Layout], *, for_replay: bool
) -> Trace:
    """Run ``function(*args, **kwargs)`` on abstract leaves. ``treedef`` is the structure of ``(args, kwargs)``.

    for_replay: the graph will be replayed, so multi-tensor kernels may be recorded. Raises what the function raises,
    and ``TypeError`` naming the user's line if Python asks for the value of a tensor, or if a result is a function.
    """
    results: list[Any] = []
    out_treedef: list[TreeDef] = []

    def flat(*xs: Tensor) -> list[Tensor]:
        args, kwargs = treedef.unflatten(xs)
        found, structure = _tree.flatten(function(*args, **kwargs))
        for path, leaf in zip(structure.keystrs, found, strict=True):
            if callable(leaf):
                raise TypeError(
                    f"{name_of(function)} returns a function in result{path}, which would hold tensors without values; "
                    "return the tensors that it needs, or call it inside"
                )
        results[:], out_treedef[:] = found, [structure]
        return [leaf for leaf in found if isinstance(leaf, Tensor)]

    try:
        with _NoValues():
            module, abstract = record(flat, layouts, DECOMPOSITIONS, for_replay)
    except _torch.data_dependent_errors() as error:
        frames = [(frame.f_code.co_filename, number) for frame, number in traceback.walk_tb(error.__traceback__)]
        raise _value_error(frames, name_of(function)) from error
    without_zero_tangents(module.graph)
    constants = hoist_constants(module)
    for node, tensor in zip(_placeholders(module.graph)[len(layouts) :], constants, strict=True):
        node.meta["val"] = abstract(tensor)
    with torch.no_grad():
        module = without_writes(module, loops.run)
    graph = module.graph
    for node in [*graph.nodes]:
        if node.target in _VIEWS_OF_ALL:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    graph.eliminate_dead_code()
    if any(_torch.is_collective(node.target) for node in graph.nodes):
        reorder(graph)
    results_in_graph: Any = _output(graph).args[0]
    nodes = iter(results_in_graph)
    return Trace(
        module, constants, [next(nodes) if isinstance(leaf, Tensor) else leaf for leaf in results], out_treedef[0]
    )


def producer(node: fx.Node) -> fx.Node:
    """The operation that computed a value, which may be one of its several results."""
    while node.target is operator.getitem:
        node = node.args[0]  # type: ignore[assignment]
    return node


def argument_names(function: Callable, treedef: TreeDef, static: Sequence[int] = ()) -> list[str]:
    """The path of each leaf, such as ``params['w']``. ``treedef`` is the structure of ``(args, kwargs)``."""
    positional, keywords = treedef.children
    names = [name for i, name in enumerate(parameters(function)) if i not in static]
    names = [names[i] if i < len(names) else f"argument {i}" for i in range(len(positional.children))]
    keyword_names = keywords.node.keys if keywords.node else ()
    parts = zip([*names, *keyword_names], [*positional.children, *keywords.children], strict=True)
    return [f"{name}{path}" for name, part in parts for path in part.keystrs]


@functools.lru_cache(maxsize=1000)
def parameters(function: Callable) -> list[str]:
    """The names of a function's parameters; empty if ``inspect.signature`` cannot find them."""
    try:
        found = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return []
    return [
        parameter.name for parameter in found if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]


def own_results(trace: Trace, donated: Mapping[int, int]) -> None:
    """Copy each result that shares memory with an input or another result, or whose elements share memory.

    A donated input that is returned unchanged and keeps its own memory, according to ``donated``, is not copied.
    """
    graph, inputs = trace.module.graph, trace.inputs
    output = _output(graph)
    taken = {_torch.storage_id(node.meta["val"]) for node in inputs}
    passed = {j: inputs[i] for i, j in donated.items()}
    for j, node in enumerate(trace.results):
        if not isinstance(node, fx.Node) or passed.get(j) is node:
            continue
        value = node.meta["val"]
        key = _torch.storage_id(value)
        if key in taken or (0 in value.stride() and value.numel() > 1):
            with graph.inserting_before(output):
                trace.results[j] = graph.call_function(torch.ops.aten.clone.default, (node,))
                trace.results[j].meta["val"] = value.clone()
        taken.add(key)
    output.args = ([value for value in trace.results if isinstance(value, fx.Node)],)


def _placeholders(graph: fx.Graph) -> list[fx.Node]:
    return list(graph.find_nodes(op="placeholder"))


def _output(graph: fx.Graph) -> fx.Node:
    return graph.find_nodes(op="output")[0]


class _NoValues(TorchFunctionMode):
    """Refuses to read the value of a tensor.

    The value of a tensor that was closed over could be read, but would be frozen into the graph. A tensor that was
    closed over and is on the device "meta" has been donated.
    """

    def __torch_function__(self, func: Callable, types: Iterable, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func in _READING and (func in _READING_MANY or not _torch.is_abstract(args[0])):
            raise _value_error(stack(sys._getframe(1)), "the function")
        mine = not sys._getframe(1).f_code.co_filename.startswith(
            _LIBRARIES[0]
        )  # torch itself creates and uses meta tensors
        if mine and any(isinstance(arg, Tensor) and arg.is_meta and not _torch.is_abstract(arg) for arg in args):
            raise ValueError(
                f"a tensor that the function closes over holds no data{user_line(stack(sys._getframe(1)))}: it was "
                "donated to an earlier call. Pass it as an argument, or close over a copy (tensor.clone())"
            )
        return func(*args, **(kwargs or {}))


_READING_MANY = {Tensor.tolist, Tensor.numpy, Tensor.__array__}
_READING = _READING_MANY | {
    Tensor.item, Tensor.__bool__, Tensor.__float__, Tensor.__int__, Tensor.__index__, Tensor.__complex__,
}  # fmt: skip


def stack(frame: FrameType | None) -> list[tuple[str, int]]:
    """The files and lines of a frame and its callers, the outermost first."""
    places = []
    while frame is not None:
        places.append((frame.f_code.co_filename, frame.f_lineno))
        frame = frame.f_back
    return places[::-1]


def user_line(places: Sequence[tuple[str, int]]) -> str:
    """`` at FILE:LINE: `code``` for the innermost of these places that is outside torch and fnn."""
    mine = [place for place in places if not place[0].startswith(_LIBRARIES)]
    return f" at {mine[-1][0]}:{mine[-1][1]}: `{linecache.getline(*mine[-1]).strip()}`" if mine else ""


def _value_error(places: Sequence[tuple[str, int]], name: str) -> TypeError:
    return TypeError(
        f"{name} asks for the value of a tensor{user_line(places)}, and while fnn.jit traces a function tensors have "
        "shapes but no values. Use torch.where instead of `if` and instead of tensor[mask], "
        "and move printing, .item(), .numpy() and other code that reads values out of the function"
    )


def name_of(function: Callable) -> str:
    """The name of a function in messages."""
    return getattr(function, "__name__", type(function).__name__)
