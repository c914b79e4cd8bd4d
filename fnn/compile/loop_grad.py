"""``grad`` of a loop: a loop that saves what the backward pass needs, and a loop from the last step to the first.

The first body also returns the values that the backward pass needs of each step (with ``remat``, only the carry). The
second is the step's vector-Jacobian product. Values that are the same in all steps are computed again and not saved.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from fnn import _torch
from fnn.compile import loops
from fnn.compile.closed_graph import closed_graph
from fnn.compile.loop_body import (
    Body,
    Result,
    descendants,
    example,
    inputs_of,
    new_input,
    replace,
    results_of,
    select,
    subgraph,
)

aten = torch.ops.aten


def with_gradients(body: Body, flat: list[Tensor], length: int, level: _torch.Level) -> Result:
    """The loop as one ``torch.autograd.Function``, which acts on this ``grad`` only."""
    wanted = [torch.is_grad_enabled() and level.requires_grad(value) for value in flat]
    active, results_active = body.dependent(wanted, differentiable=True)
    if not any(results_active):
        return loops.plain(body, flat, length, level)
    with level.below():
        split = _split_joint(body, [level.unwrap(value) for value in flat], active, results_active)
    kept: dict[str, Any] = {}

    def forward(*operands: Tensor) -> tuple[Tensor, ...]:
        given = [level.unwrap(value) for value in operands]
        with _torch.derivatives_enabled(), level.below():
            carry, xs, closed = body.split(given)
            result = loops.loop(split.forward, carry, xs, [*closed, *split.closed], length)
        count = len(result.ys) - split.saved
        kept["inputs"], kept["saved"] = given, result.ys[count:]
        wrapped = tuple(level.wrap(value) for value in (*result.carry, *result.ys[:count]))
        kept["probe"] = wrapped[0]
        return wrapped

    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*(value for value, each in zip(output, results_active, strict=True) if not each))

    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        cotangents = tuple(select(cotangents, results_active))
        if not level.is_innermost(kept["probe"]):  # a pullback that is called when the transform has ended
            return gradients(cotangents)
        given = [None if value is None else level.unwrap(value) for value in cotangents]
        with level.below():
            found = gradients(given)
        return tuple(None if value is None else level.wrap(value) for value in found)

    def gradients(cotangents: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
        """Run the loop from the last step to the first. Its carries are cotangents of carries, and sums."""
        carry, xs, closed = body.split(kept["inputs"])
        carries = sum(results_active[: body.carries])
        last = [
            torch.zeros_like(value) if cotangent is None else cotangent
            for value, cotangent in zip(select(carry, active[: body.carries]), cotangents[:carries], strict=True)
        ]
        from_ys = cotangents[carries:]
        backward_body, used = split.backward([cotangent is not None for cotangent in from_ys])
        sums = [torch.zeros_like(value) for value in select(closed, active[body.carries + body.xs :])]
        stacks = [*(c for c in from_ys if c is not None), *kept["saved"], *(xs[i] for i in used)]
        result = loops.loop(
            backward_body, [*last, *sums], [stack.flip(0) for stack in stacks], [*closed, *split.closed], length
        )
        found = [*result.carry[:carries], *(y.flip(0) for y in result.ys), *result.carry[carries:]]
        return tuple(replace([None] * len(active), [i for i, each in enumerate(active) if each], found))

    results = list(_torch.single_level_function("Loop", forward, setup_context, backward)(*flat))
    return Result(results[: body.carries], results[body.carries :])


class _Split(NamedTuple):
    """The forward step, which also returns the saved values, and a function that makes the backward step."""

    forward: Body
    closed: list[Tensor]  # the tensors that the graphs close over besides the inputs
    saved: int  # how many of the forward step's last results are saved
    backward: Callable[[Sequence[bool]], tuple[Body, list[int]]]


def _split_joint(body: Body, values: list[Tensor], active: list[bool], results_active: list[bool]) -> _Split:
    """Trace the step with its vector-Jacobian product, and split the graph into forward and backward."""
    count, carries = len(active), body.carries
    which = [i for i, each in enumerate(active) if each]

    def joint(*inputs: Tensor) -> list[Tensor]:
        values, cotangents = list(inputs[:count]), inputs[count:]

        def function(*chosen: Tensor) -> tuple[tuple[Tensor, ...], list[Tensor]]:
            results = loops.run(body.graph, replace(values, which, chosen))
            return tuple(select(results, results_active)), results

        _, pullback, results = torch.func.vjp(function, *select(values, active), has_aux=True)  # pyright: ignore[reportAssignmentType]
        return [*results, *pullback(cotangents)]

    inputs = [node.meta["val"] for node in body.inputs]
    results = [node.meta["val"] for node in body.results]
    examples = [example(value) for value in (*inputs, *select(results, results_active))]
    graph, more = closed_graph(joint, examples, True, loops.run)
    nodes = inputs_of(graph)
    own, cotangents, further = nodes[:count], nodes[count : len(examples)], nodes[len(examples) :]
    of_results, of_inputs = results_of(graph)[: len(results)], results_of(graph)[len(results) :]
    after = descendants(graph, cotangents)
    changing = descendants(graph, own[: carries + body.xs])
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
        elif (
            body.remat
            or node in after
            or node not in changing
            or _torch.returns_view(node.target)
            or node.op == "get_attr"
        ):
            inner.add(node)
            for argument in node.all_input_nodes:
                need(argument)
        else:
            saved.append(node)

    for node in of_inputs:
        need(node)
    forward = subgraph(graph, [*own, *further], [*of_results, *saved])

    def backward(given: Sequence[bool]) -> tuple[Body, list[int]]:
        made = Graph()
        active_carries = sum(results_active[:carries])
        from_carry, from_ys = cotangents[:active_carries], cotangents[active_carries:]
        closed = own[carries + body.xs :]
        sums = select(closed, active[carries + body.xs :])
        environment: dict[Node, Node] = {}

        for node in from_carry:
            environment[node] = new_input(made, node)
        totals = [new_input(made, node) for node in sums]
        arriving = [node for node, each in zip(from_ys, given, strict=True) if each]
        xs = [*arriving, *saved, *(own[carries + i] for i in used)]
        for node in (*xs, *closed, *further):
            environment[node] = new_input(made, node)
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
            added[-1].meta["val"] = example(total.meta["val"])
        of_xs = found[active_carries : active_carries + active_xs]
        made.output([*found[:active_carries], *added, *of_xs])
        return Body(GraphModule(graph, made), active_carries + len(totals), len(xs), body.remat), used

    return _Split(Body(forward, carries, body.xs, body.remat), more, len(saved), backward)
