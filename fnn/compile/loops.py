"""One loop in a traced graph. Its gradients, tangents and batches are loops, too.

A :class:`Body` is the graph of one step. All tensors that the step refers to are inputs of this graph. Therefore the
active transforms of torch.func can be applied to the loop one at a time, starting with the innermost. Each of them
makes a new body:

- vmap: a body for all samples at once, in which the carries that depend on a sample get a batch dimension;
- jvp: a body for values and tangents;
- grad: a body that also returns the values that the backward pass needs of each step (with ``remat``, only the carry),
  and for the backward pass the step's vector-Jacobian product, which runs from the last step to the first.

When no transform is left, the loop is recorded as one node of the graph.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.fx import Graph, GraphModule, Interpreter, Node

from fnn import _torch

aten = torch.ops.aten


class Body(NamedTuple):
    """One step as a graph: ``(*carry, *x, *closed_over) -> (*carry, *y)``, all of them tensors."""

    graph: GraphModule
    carries: int
    xs: int
    remat: bool = False


class Result(NamedTuple):
    """The last carries, and each y stacked along a new leading axis."""

    carry: list[Tensor]
    ys: list[Tensor]


def loop(body: Body, carry: Sequence[Tensor], xs: Sequence[Tensor], closed: Sequence[Tensor], length: int) -> Result:
    """Run the body ``length`` times; each of ``xs`` is (length, ...)."""
    unchanged = [i for i, result in enumerate(_results(body.graph)[: body.carries]) if result is _inputs(body.graph)[i]]
    if unchanged:
        return _without_unchanged(body, carry, xs, closed, length, unchanged)
    flat = [_torch.inside(_torch.unwrap_if_dead(value)) for value in (*carry, *xs, *closed)]
    if _torch.peek_interpreter_stack() is None:
        if torch.is_grad_enabled() and any(value.requires_grad for value in flat):
            return _with_gradients(body, flat, length, None)
        return _record(body, flat, length)
    level = _torch.Level()
    if level.kind == "vmap":
        return _batched(body, flat, length, level)
    if level.kind == "grad":
        return _with_gradients(body, flat, length, level)
    if level.kind == "jvp":
        return _with_tangents(body, flat, length, level)
    values = [level.unwrap(value) for value in flat]
    with level.below():
        result = loop(body, *_split(body, values), length)
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
    examples = [*map(_example, carry), *(_example(x, leading_axes=1) for x in xs), *map(_example, closed)]
    graph, more = _torch.closed_graph(lambda *values: list(function(*values)), examples, differentiable, run)
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
        if target in (aten.view.default, aten._unsafe_view.default):  # under vmap the strides may be different
            target = aten.reshape.default
        return super().call_function(target, args, kwargs)


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


# No transform is left


def _record(body: Body, flat: list[Tensor], length: int) -> Result:
    graph = _subgraph(body.graph, _inputs(body.graph), _results(body.graph))
    carry, xs, closed = _split(body, _with_own_memory(graph, body, [value.contiguous() for value in flat]))
    _copy_shared_results(graph)
    if not xs:
        xs = [torch.arange(length, device=next((value.device for value in (*carry, *closed)), None))]
        nodes = _inputs(graph)
        with graph.graph.inserting_before(nodes[body.carries] if nodes[body.carries :] else _first_operation(graph)):
            graph.graph.placeholder("turn").meta["val"] = _example(xs[0], leading_axes=1)
    graph.recompile()
    graph.meta["remat"] = body.remat
    with torch.no_grad():
        results = (_torch.record_scan if _torch.recording() else replay)(graph, carry, xs, closed)
    return Result(list(results[: body.carries]), list(results[body.carries :]))


def _with_own_memory(graph: GraphModule, body: Body, values: list[Tensor]) -> list[Tensor]:
    """The inputs of a loop, copied where two share memory: the compiler does not accept shared memory."""
    found: list[Tensor] = []
    first: dict[int, Node] = {}  # by the identity of a closed-over tensor
    taken: set[int] = set()
    for i, (value, node) in enumerate(zip(values, _inputs(graph), strict=True)):
        if _is_x(body, i):
            found.append(value)
            continue
        if i >= body.carries and id(value) in first:
            node.replace_all_uses_with(first[id(value)])
            graph.graph.erase_node(node)
            continue
        storage = value.untyped_storage()._cdata
        found.append(value.clone() if storage in taken else value)
        taken.add(storage)
        if i >= body.carries:
            first[id(value)] = node
    return found


def _copy_shared_results(graph: GraphModule) -> None:
    """Copy each result that is not contiguous or shares memory with an input or another result."""
    output = graph.graph.find_nodes(op="output")[0]
    taken = {_storage(node) for node in _inputs(graph)}
    results = []
    for result in output.args[0]:
        value = result.meta["val"]
        if _storage(result) in taken or not value.is_contiguous():
            with graph.graph.inserting_before(output):
                clone = graph.graph.call_function(
                    aten.clone.default, (result,), {"memory_format": torch.contiguous_format}
                )
            clone.meta["val"] = _example(value)
            result = clone
        taken.add(_storage(result))
        results.append(result)
    output.args = (results,)


def _storage(node: Node) -> int:
    return node.meta["val"].untyped_storage()._cdata


def _without_unchanged(body: Body, carry: Any, xs: Any, closed: Any, length: int, unchanged: list[int]) -> Result:
    """Run the loop with the carries that the step returns unchanged as closed-over tensors instead of carries."""
    inputs = _inputs(body.graph)
    changing = [i for i in range(body.carries) if i not in unchanged]
    order = [inputs[i] for i in (*changing, *range(body.carries, len(inputs)), *unchanged)]
    results = _results(body.graph)
    graph = _subgraph(body.graph, order, [results[i] for i in (*changing, *range(body.carries, len(results)))])
    smaller = Body(graph, len(changing), body.xs, body.remat)
    result = loop(smaller, [carry[i] for i in changing], xs, [*closed, *(carry[i] for i in unchanged)], length)
    last = dict(zip(changing, result.carry, strict=True)) | {i: carry[i].clone() for i in unchanged}
    return Result([last[i] for i in range(body.carries)], result.ys)


# vmap


def _batched(body: Body, flat: list[Tensor], length: int, level: _torch.Level) -> Result:
    pairs = [level.unwrap_batched(value) for value in flat]
    depends = _dependent(body, [position is not None for _, position in pairs])
    batched, results_batched = depends
    values = []
    for i, (value, position) in enumerate(pairs):
        place = 1 if _is_x(body, i) else 0
        if position is not None:
            value = value.movedim(position, place)
        elif batched[i]:  # a carry that depends on the sample after a step
            value = value.unsqueeze(0).expand(level.batch_size, *value.shape)
        values.append(value)
    with level.below():
        if any(batched):
            step = torch.func.vmap(
                lambda *inputs: tuple(run(body.graph, inputs)),  # pyright: ignore[reportArgumentType]
                in_dims=tuple(0 if each else None for each in batched),
                out_dims=tuple(0 if each else None for each in results_batched),  # pyright: ignore[reportArgumentType]
                randomness=level.randomness,
            )
            wider, more = make_body(step, *_split(body, values), body.remat)
            values += more
        else:
            wider = body
        result = loop(wider, *_split(body, values), length)

    def wrap(value: Tensor, is_batched: bool, position: int) -> Tensor:
        return level.wrap_batched(value, position) if is_batched else value

    return Result(
        [wrap(value, each, 0) for value, each in zip(result.carry, results_batched[: body.carries], strict=True)],
        [wrap(value, each, 1) for value, each in zip(result.ys, results_batched[body.carries :], strict=True)],
    )


# Forward mode


def _with_tangents(body: Body, flat: list[Tensor], length: int, level: _torch.Level) -> Result:
    duals = [forward_ad.unpack_dual(value) for value in flat]
    primals = [level.unwrap(dual.primal) for dual in duals]
    tangents = [None if dual.tangent is None else level.unwrap(dual.tangent) for dual in duals]
    active, results_active = _dependent(body, [tangent is not None for tangent in tangents], differentiable=True)
    if not any(active):
        with level.below():
            result = loop(body, *_split(body, primals), length)
        return Result(*([level.wrap(value) for value in part] for part in result))
    with level.below():
        tangents = [
            torch.zeros_like(primal) if tangent is None or tangent._is_zerotensor() else tangent
            for primal, tangent in zip(primals, tangents, strict=True)
        ]
        parts = _split(body, primals)
        moving = _split(body, tangents, active)
        counts = [len(part) for part in parts]
        which = [i for i, each in enumerate(active) if each]

        def step(*inputs: Tensor) -> list[Tensor]:
            values, directions = [], []
            rest = list(inputs)
            for count, part in zip(counts, moving, strict=True):
                values += rest[:count]
                directions += rest[count : count + len(part)]
                rest = rest[count + len(part) :]

            def function(*chosen: Tensor) -> tuple[tuple[Tensor, ...], list[Tensor]]:
                results = run(body.graph, _replace(values, which, chosen))
                return tuple(_select(results, results_active)), results

            _, derivatives, results = torch.func.jvp(  # pyright: ignore[reportAssignmentType]
                function, tuple(_select(values, active)), tuple(directions), has_aux=True
            )
            derivatives = list(derivatives)
            carries = sum(results_active[: body.carries])
            return [
                *results[: body.carries],
                *derivatives[:carries],
                *results[body.carries :],
                *derivatives[carries:],
            ]

        carry, xs, closed = ([*part, *part_moving] for part, part_moving in zip(parts, moving, strict=True))
        wider, more = make_body(step, carry, xs, closed, body.remat)
        result = loop(wider, carry, xs, [*closed, *more], length)

    def pair(values: list[Tensor], each_active: Sequence[bool]) -> list[Tensor]:
        count = len(each_active)
        derivatives = iter(values[count:])
        return [
            forward_ad.make_dual(level.wrap(value), level.wrap(next(derivatives))) if is_active else level.wrap(value)
            for value, is_active in zip(values[:count], each_active, strict=True)
        ]

    return Result(pair(result.carry, results_active[: body.carries]), pair(result.ys, results_active[body.carries :]))


# Reverse mode


class _Split(NamedTuple):
    """The forward step, which also returns the saved values, and a function that makes the backward step."""

    forward: Body
    closed: list[Tensor]  # the tensors that the graphs close over besides the inputs
    saved: int  # how many of the forward step's last results are saved
    backward: Callable[[Sequence[bool]], tuple[Body, list[int]]]


def _with_gradients(body: Body, flat: list[Tensor], length: int, level: _torch.Level | None) -> Result:
    """The loop as one autograd.Function at this level; None means ordinary autograd, outside torch.func."""
    below = level.below if level else nullcontext
    unwrap = level.unwrap if level else _identity
    wrap = level.wrap if level else _identity
    needs = level.requires_grad if level else _requires_grad
    values = [unwrap(value) for value in flat]
    wanted = [torch.is_grad_enabled() and needs(value) for value in flat]
    active, results_active = _dependent(body, wanted, differentiable=True)
    if not any(results_active):
        with below():
            result = loop(body, *_split(body, [v.detach() for v in values] if level is None else values), length)
        return Result(*([wrap(value) for value in part] for part in result))

    with below():
        split = _split_joint(body, values, active, results_active)
    kept: dict[str, Any] = {}

    def forward(*operands: Tensor) -> tuple[Tensor, ...]:
        given = [unwrap(value) for value in operands]
        with _torch.derivatives_enabled() if level else nullcontext(), below():
            carry, xs, closed = _split(body, given)
            result = loop(split.forward, carry, xs, [*closed, *split.closed], length)
        count = len(result.ys) - split.saved
        kept["inputs"], kept["saved"] = given, result.ys[count:]
        wrapped = tuple(wrap(value) for value in (*result.carry, *result.ys[:count]))
        kept["probe"] = wrapped[0]
        return wrapped

    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        ctx.set_materialize_grads(False)
        if level is None:
            ctx.save_for_backward(*inputs)
        ctx.mark_non_differentiable(*(value for value, each in zip(output, results_active, strict=True) if not each))

    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        cotangents = tuple(_select(cotangents, results_active))
        if level is None and torch.is_grad_enabled():
            return again(ctx.saved_tensors, cotangents)
        if level is None or not level.is_innermost(kept["probe"]):
            return gradients(cotangents)
        given = [None if value is None else level.unwrap(value) for value in cotangents]
        with level.below():
            found = gradients(given)
        return tuple(None if value is None else level.wrap(value) for value in found)

    def again(inputs: Sequence[Tensor], cotangents: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
        """Compute the gradients in a way that ordinary autograd can differentiate."""
        which = [i for i, each in enumerate(active) if each and inputs[i].is_floating_point()]

        def function(*chosen: Tensor) -> tuple[Tensor, ...]:
            result = loop(body, *_split(body, _replace(list(inputs), which, chosen)), length)
            return tuple(_select([*result.carry, *result.ys], results_active))

        results, pullback = torch.func.vjp(function, *(inputs[i] for i in which))  # pyright: ignore[reportAssignmentType]
        found = pullback(
            tuple(
                torch.zeros_like(result) if value is None else value
                for result, value in zip(results, cotangents, strict=True)
            )
        )
        return tuple(_scatter(found, which, len(inputs)))

    def gradients(cotangents: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
        carry, xs, closed = _split(body, kept["inputs"])
        carries = sum(results_active[: body.carries])
        last = [
            torch.zeros_like(value) if cotangent is None else cotangent
            for value, cotangent in zip(_select(carry, active[: body.carries]), cotangents[:carries], strict=True)
        ]
        from_ys = cotangents[carries:]
        backward_body, used = split.backward([cotangent is not None for cotangent in from_ys])
        closed_active = active[body.carries + body.xs :]
        sums = [torch.zeros_like(value) for value in _select(closed, closed_active)]
        stacks = [*(c for c in from_ys if c is not None), *kept["saved"], *(xs[i] for i in used)]
        result = loop(
            backward_body, [*last, *sums], [stack.flip(0) for stack in stacks], [*closed, *split.closed], length
        )
        found = [*result.carry[:carries], *(y.flip(0) for y in result.ys), *result.carry[carries:]]
        return tuple(_scatter(found, [i for i, each in enumerate(active) if each], len(active)))

    methods = {"forward": forward, "setup_context": setup_context, "backward": backward}
    results = list(_torch.single_level_function("Loop", methods, level is not None)(*flat))
    return Result(results[: body.carries], results[body.carries :])


def _split_joint(body: Body, values: list[Tensor], active: list[bool], results_active: list[bool]) -> _Split:
    """Trace the step with its vector-Jacobian product, and split the graph into forward and backward."""
    count, carries = len(active), body.carries
    which = [i for i, each in enumerate(active) if each]

    def joint(*inputs: Tensor) -> list[Tensor]:
        values, cotangents = list(inputs[:count]), inputs[count:]

        def function(*chosen: Tensor) -> tuple[tuple[Tensor, ...], list[Tensor]]:
            results = run(body.graph, _replace(values, which, chosen))
            return tuple(_select(results, results_active)), results

        _, pullback, results = torch.func.vjp(function, *_select(values, active), has_aux=True)  # pyright: ignore[reportAssignmentType]
        return [*results, *pullback(cotangents)]

    inputs = [node.meta["val"] for node in _inputs(body.graph)]
    results = [node.meta["val"] for node in _results(body.graph)]
    examples = [_example(value) for value in (*inputs, *_select(results, results_active))]
    graph, more = _torch.closed_graph(joint, examples, True, run)
    nodes = _inputs(graph)
    own, cotangents, further = nodes[:count], nodes[count : len(examples)], nodes[len(examples) :]
    of_results, of_inputs = _results(graph)[: len(results)], _results(graph)[len(results) :]
    after = _descendants(graph, cotangents)
    changing = _descendants(graph, own[: carries + body.xs])
    saved: list[Node] = []
    used: list[int] = []
    inner: set[Node] = set()  # what the backward step computes

    def need(node: Node) -> None:
        if node in inner or node in saved:
            return
        if node.op == "placeholder":
            if node in own and own.index(node) < carries:
                saved.append(node)
            elif node in own and own.index(node) < carries + body.xs and own.index(node) - carries not in used:
                used.append(own.index(node) - carries)
        elif body.remat or node in after or node not in changing or _is_view(node) or node.op == "get_attr":
            inner.add(node)
            for argument in node.all_input_nodes:
                need(argument)
        else:
            saved.append(node)

    for node in of_inputs:
        need(node)
    forward = _subgraph(graph, [*own, *further], [*of_results, *saved])

    def backward(given: Sequence[bool]) -> tuple[Body, list[int]]:
        made = Graph()
        active_carries = sum(results_active[:carries])
        from_carry, from_ys = cotangents[:active_carries], cotangents[active_carries:]
        closed = own[carries + body.xs :]
        sums = _select(closed, active[carries + body.xs :])
        environment: dict[Node, Node] = {}

        for node in from_carry:
            environment[node] = _new_input(made, node)
        totals = [_new_input(made, node) for node in sums]
        arriving = [node for node, each in zip(from_ys, given, strict=True) if each]
        xs = [*arriving, *saved, *(own[carries + i] for i in used)]
        for node in (*xs, *closed, *further):
            environment[node] = _new_input(made, node)
        for node, each in zip(from_ys, given, strict=True):
            if not each:
                value = node.meta["val"]
                environment[node] = made.call_function(
                    aten.zeros.default, (list(value.shape),), {"dtype": value.dtype, "device": value.device}
                )
                environment[node].meta["val"] = value
        for node in graph.graph.nodes:
            if node in inner:
                environment[node] = made.node_copy(node, environment.__getitem__)
        found = [environment[node] for node in of_inputs]
        active_xs = sum(active[carries : carries + body.xs])
        added = []
        for total, node in zip(totals, found[active_carries + active_xs :], strict=True):
            added.append(made.call_function(aten.add.Tensor, (total, node)))
            added[-1].meta["val"] = _example(total.meta["val"])
        of_xs = found[active_carries : active_carries + active_xs]
        made.output([*found[:active_carries], *added, *of_xs])
        return Body(GraphModule(graph, made), active_carries + len(totals), len(xs), body.remat), used

    return _Split(Body(forward, carries, body.xs, body.remat), more, len(saved), backward)


# Graphs


def _inputs(graph: GraphModule) -> list[Node]:
    return [node for node in graph.graph.nodes if node.op == "placeholder"]


def _results(graph: GraphModule) -> list[Node]:
    return list(graph.graph.find_nodes(op="output")[0].args[0])


def _first_operation(graph: GraphModule) -> Node:
    return next(node for node in graph.graph.nodes if node.op != "placeholder")


def _subgraph(graph: GraphModule, inputs: Sequence[Node], results: Sequence[Node]) -> GraphModule:
    """The part of a graph that computes these results from these inputs, in the given order."""
    made = Graph()
    environment = {node: _new_input(made, node) for node in inputs}
    needed: set[Node] = set()
    waiting = [node for node in results if node not in environment]
    while waiting:
        node = waiting.pop()
        if node not in needed and node not in environment:
            needed.add(node)
            waiting += node.all_input_nodes
    for node in graph.graph.nodes:
        if node in needed:
            environment[node] = made.node_copy(node, environment.__getitem__)
    made.output([environment[node] for node in results])
    return GraphModule(graph, made)


def _new_input(made: Graph, node: Node) -> Node:
    """Add an input to the graph ``made`` that stands for the value of a node of another graph."""
    placeholder = made.placeholder(f"input_{len(made.nodes)}")
    placeholder.meta["val"] = node.meta["val"]
    return placeholder


def _descendants(graph: GraphModule, sources: Iterable[Node]) -> set[Node]:
    """The given nodes and all nodes whose values depend on them."""
    found = set(sources)
    for node in graph.graph.nodes:
        if any(argument in found for argument in node.all_input_nodes):
            found.add(node)
    return found


def _dependent(body: Body, inputs: Sequence[bool], differentiable: bool = False) -> tuple[list[bool], list[bool]]:
    """Which inputs and results of the body depend on the given inputs after any number of steps."""
    nodes, results = _inputs(body.graph), _results(body.graph)

    def counts(node: Node) -> bool:
        return not differentiable or node.meta["val"].is_floating_point() or node.meta["val"].is_complex()

    active = [each and counts(node) for each, node in zip(inputs, nodes, strict=True)]
    while True:
        reached = _descendants(body.graph, [node for node, each in zip(nodes, active, strict=True) if each])
        found = [node in reached and counts(node) for node in results]
        after = [a or (i < body.carries and found[i]) for i, a in enumerate(active)]
        if after == active:
            for i in range(body.carries):
                found[i] = active[i]
            return active, found
        active = after


def _is_view(node: Node) -> bool:
    """Whether the operation returns a view of its argument."""
    if not _torch.is_operation(node.target):
        return False
    operation: Any = node.target
    return operation.is_view


# Lists of inputs


def _split(
    body: Body, values: Sequence[Any], where: Sequence[bool] | None = None
) -> tuple[list[Any], list[Any], list[Any]]:
    """Split values into carry, xs and closed-over tensors, keeping only those for which ``where`` is true."""
    where = [True] * len(values) if where is None else where
    ends = (0, body.carries, body.carries + body.xs, len(values))
    carry, xs, closed = (_select(values[i:j], where[i:j]) for i, j in itertools.pairwise(ends))
    return carry, xs, closed


def _is_x(body: Body, i: int) -> bool:
    return body.carries <= i < body.carries + body.xs


def _select(values: Sequence[Any], where: Sequence[bool]) -> list[Any]:
    return [value for value, each in zip(values, where, strict=True) if each]


def _replace(values: Sequence[Any], which: Sequence[int], by: Sequence[Any]) -> list[Any]:
    new = list(values)
    for i, value in zip(which, by, strict=True):
        new[i] = value
    return new


def _scatter(values: Sequence[Any], which: Sequence[int], count: int) -> list[Any]:
    return _replace([None] * count, which, values)


def _example(value: Tensor, leading_axes: int = 0) -> Tensor:
    """A plain contiguous tensor with the shape that the active transforms show, without the leading axes."""
    with _torch.not_recorded(), _torch.outside_transforms():
        return torch.zeros(value.shape[leading_axes:], dtype=value.dtype, device=value.device)


def _identity(value: Tensor) -> Tensor:
    return value


def _requires_grad(value: Tensor) -> bool:
    return value.requires_grad
