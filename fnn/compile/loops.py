"""One loop in a traced graph. Its gradients, tangents and batches are loops, too.

All tensors that the body of a loop refers to are inputs of its graph (:mod:`fnn.compile.loop_body`). Therefore the
active transforms of torch.func can be applied to the loop one at a time, starting with the innermost. Each of them
makes a new body: see :mod:`fnn.compile.loop_vmap`, :mod:`fnn.compile.loop_jvp` and :mod:`fnn.compile.loop_grad`. When
no transform is left, the loop is recorded as one node of the graph.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from fnn import _torch
from fnn.compile import loop_grad, loop_jvp, loop_vmap  # they call loop() in this file
from fnn.compile.closed_graph import as_seen_inside, closed_graph
from fnn.compile.loop_body import Body, Result, example, inputs_of, results_of, subgraph

aten = torch.ops.aten


def loop(body: Body, carry: Sequence[Tensor], xs: Sequence[Tensor], closed: Sequence[Tensor], length: int) -> Result:
    """Run the body ``length`` times; each of ``xs`` is (length, ...)."""
    unchanged = [i for i, result in enumerate(body.results[: body.carries]) if result is body.inputs[i]]
    if unchanged:
        return _without_unchanged(body, carry, xs, closed, length, unchanged)
    flat = [as_seen_inside(_torch.unwrap_if_dead(value)) for value in (*carry, *xs, *closed)]
    if _torch.peek_interpreter_stack() is None:
        return _record(body, flat, length)
    level = _torch.Level()
    rules = {"vmap": loop_vmap.batched, "jvp": loop_jvp.with_tangents, "grad": loop_grad.with_gradients}
    return rules.get(level.kind, plain)(body, flat, length, level)


def plain(body: Body, flat: Sequence[Tensor], length: int, level: _torch.Level) -> Result:
    """The loop below a transform that does not change the body."""
    values = [level.unwrap(value) for value in flat]
    with level.below():
        result = loop(body, *body.split(values), length)
    return Result(*([level.wrap(value) for value in part] for part in result))


def make_body(
    function: Callable[..., Iterable[Tensor]],
    carry: Sequence[Tensor],
    xs: Sequence[Tensor],
    closed: Sequence[Tensor] = (),
    remat: bool = False,
) -> tuple[Body, list[Tensor]]:
    """The body of ``function(*carry, *x, *closed)``, and the other tensors that the function closes over."""
    differentiable = torch.is_grad_enabled() or _torch.peek_interpreter_stack() is not None
    examples = [*map(example, carry), *(example(x, leading_axes=1) for x in xs), *map(example, closed)]
    graph, more = closed_graph(lambda *values: list(function(*values)), examples, differentiable, run)
    return Body(graph, len(carry), len(xs), remat), more


def run(graph: GraphModule, values: Iterable[Tensor]) -> list[Tensor]:
    """Run a graph, which may contain loops, under the active transforms."""
    return list(_Run(graph).run(*values))


class _Run(Interpreter):
    def call_function(self, target: Any, args: tuple, kwargs: dict) -> Any:
        if target is _torch.scan_op:
            graph, carry, xs, closed = args
            body = Body(graph, len(carry), len(xs), graph.meta.get("remat", False))
            result = loop(body, carry, xs, closed, xs[0].shape[0])
            return (*result.carry, *result.ys)
        return super().call_function(_UNDER_TRANSFORMS.get(target, target), args, kwargs)


def _copy(old: Tensor, new: Tensor) -> Tensor:
    return new.to(old.dtype).expand_as(old)


def _slice_scatter(
    old: Tensor, part: Tensor, dim: int = 0, start: int = 0, end: int | None = None, *step: int
) -> Tensor:
    size = old.shape[dim]
    return aten.slice_scatter.default(old, part, dim, start, size if end is None else min(end, size), *step)


_UNDER_TRANSFORMS = {  # operations that torch records and whose rules have gaps
    aten.view.default: aten.reshape.default,  # under vmap the strides may be different
    _torch.unsafe_view: aten.reshape.default,
    aten.copy.default: _copy,  # has no derivative
    aten.slice_scatter.default: _slice_scatter,  # under vmap the largest integer is no end
}


def replay(
    body: Callable[..., Sequence[Tensor]], carry: Sequence[Tensor], xs: Sequence[Tensor], closed: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Run a recorded loop as a Python loop on real tensors."""
    ys: list[Tensor] = []
    carries, count = len(carry), xs[0].shape[0]
    for i, x in enumerate(zip(*(leaf.unbind(0) for leaf in xs), strict=True)):
        results = body(*carry, *x, *closed)
        carry = results[:carries]
        if not ys:
            ys = [y.new_empty((count, *y.shape)) for y in results[carries:]]
            rows = [y.unbind(0) for y in ys]
        for row, y in zip(rows, results[carries:], strict=True):
            row[i].copy_(y)
    return (*carry, *ys)


def run_as_python_loops(graph: GraphModule) -> None:
    """Make :func:`replay` run the loops of a graph and the loops nested in them."""
    for node in graph.graph.find_nodes(op="call_function", target=_torch.scan_op):
        run_as_python_loops(getattr(graph, node.args[0].target))
        node.target = replay
    graph.recompile()


def _record(body: Body, flat: list[Tensor], length: int) -> Result:
    graph = subgraph(body.graph, body.inputs, body.results)
    carry, xs, closed = body.split(_with_own_memory(graph, body, [value.contiguous() for value in flat]))
    _copy_shared_results(graph)
    if not xs:
        xs = [torch.arange(length, device=next((value.device for value in (*carry, *closed)), None))]
        with graph.graph.inserting_before([*graph.graph.nodes][body.carries]):  # behind the carries
            graph.graph.placeholder("turn").meta["val"] = example(xs[0], leading_axes=1)
    graph.recompile()
    graph.meta["remat"] = body.remat
    with torch.no_grad():
        results = (_record_scan if _torch.recording() else replay)(graph, carry, xs, closed)
    return Result(list(results[: body.carries]), list(results[body.carries :]))


def _with_own_memory(graph: GraphModule, body: Body, values: list[Tensor]) -> list[Tensor]:
    """The inputs of a loop, copied where two share memory: the compiler does not accept shared memory."""
    found: list[Tensor] = []
    first: dict[int, Node] = {}  # by the identity of a closed-over tensor
    taken: set[int] = set()
    for i, (value, node) in enumerate(zip(values, inputs_of(graph), strict=True)):
        if body.is_x(i):
            found.append(value)
            continue
        if i >= body.carries and id(value) in first:
            node.replace_all_uses_with(first[id(value)])
            graph.graph.erase_node(node)
            continue
        storage = _torch.storage_id(value)
        found.append(value.clone() if storage in taken else value)
        taken.add(storage)
        if i >= body.carries:
            first[id(value)] = node
    return found


def _copy_shared_results(graph: GraphModule) -> None:
    """Copy each result that is not contiguous or shares memory with an input or another result."""
    output = graph.graph.find_nodes(op="output")[0]
    taken = {_torch.storage_id(node.meta["val"]) for node in inputs_of(graph)}
    results = []
    for result in output.args[0]:
        value = result.meta["val"]
        if _torch.storage_id(value) in taken or not value.is_contiguous():
            with graph.graph.inserting_before(output):
                clone = graph.graph.call_function(
                    aten.clone.default, (result,), {"memory_format": torch.contiguous_format}
                )
            clone.meta["val"] = example(value)
            result = clone
        taken.add(_torch.storage_id(result.meta["val"]))
        results.append(result)
    output.args = (results,)


def _without_unchanged(body: Body, carry: Any, xs: Any, closed: Any, length: int, unchanged: list[int]) -> Result:
    """Run the loop with the carries that the step returns unchanged as closed-over tensors instead of carries."""
    inputs, results = body.inputs, body.results
    changing = [i for i in range(body.carries) if i not in unchanged]
    order = [inputs[i] for i in (*changing, *range(body.carries, len(inputs)), *unchanged)]
    graph = subgraph(body.graph, order, [results[i] for i in (*changing, *range(body.carries, len(results)))])
    smaller = Body(graph, len(changing), body.xs, body.remat)
    result = loop(smaller, [carry[i] for i in changing], xs, [*closed, *(carry[i] for i in unchanged)], length)
    last = dict(zip(changing, result.carry, strict=True)) | {i: carry[i].clone() for i in unchanged}
    return Result([last[i] for i in range(body.carries)], result.ys)


def _record_scan(graph: GraphModule, carry: list[Tensor], xs: list[Tensor], closed: list[Tensor]) -> tuple[Tensor, ...]:
    """Record one loop as torch's scan operator.

    ``torch._higher_order_ops.scan.trace_scan`` does the same, but imports the compiler.
    """
    tracer = _torch.recording()
    length = xs[0].shape[0]
    results = [node.meta["val"] for node in results_of(graph)]
    shapes = [x.shape for x in results[: len(carry)]] + [(length, *x.shape) for x in results[len(carry) :]]
    with _torch.not_recorded():
        out = tuple(
            torch.empty(shape, dtype=result.dtype, device=result.device)
            for shape, result in zip(shapes, results, strict=True)
        )
    number = 0
    while hasattr(tracer.root, f"scan_body_{number}"):
        number += 1
    tracer.root.register_module(f"scan_body_{number}", graph)
    arguments = _torch.tree_map(tracer.unwrap_proxy, (graph, carry, xs, tuple(closed)))
    proxy = tracer.create_proxy("call_function", _torch.scan_op, arguments, {}, name="scan")
    return _torch.track_tensor_tree(out, proxy, constant=None, tracer=tracer)
