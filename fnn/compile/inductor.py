"""The compiled form of a traced graph: one call of Inductor, the code generator behind ``torch.compile``."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from fnn import _torch
from fnn._tracing import python_call
from fnn.compile.artifacts import compiled
from fnn.compile.donation import hold_interrupts, release_interrupts
from fnn.compile.replay import Run
from fnn.compile.trace import Trace, own_results

aten = torch.ops.aten


def compile_graph(
    trace: Trace, donated: Mapping[int, int], mode: str | None, options: dict[str, Any]
) -> tuple[Run, str]:
    """Like :func:`fnn.compile.replay.replay`, but with code that Inductor generates; and the hash of the graph.

    The new values of donated inputs are copied into them at the end of the graph. The compiler fuses these copies with
    the operations that compute the values.
    """
    if any(node.target is python_call for node in trace.module.graph.nodes):
        raise TypeError(
            'fnn.debug.print works with backend="replay" only; remove it, or use jit without backend="inductor"'
        )
    own_results(trace, donated)
    graph, inputs = trace.module.graph, trace.inputs
    for node in graph.nodes:
        if node.target is aten.view.default:  # the compiler lays out some results otherwise than the kernels do
            node.target = aten.reshape.default
    output = next(node for node in reversed(graph.nodes) if node.op == "output")
    with graph.inserting_before(output):
        for i, j in donated.items():
            if trace.results[j] is not inputs[i]:
                copy = graph.call_function(aten.copy_.default, (inputs[i], trace.results[j]))
                copy.meta["val"] = inputs[i].meta["val"]
    owners = {j: i for i, j in donated.items()}
    made = [j for j, value in enumerate(trace.results) if isinstance(value, fx.Node) and j not in owners]
    output.args = ([trace.results[j] for j in made],)
    trace.module.recompile()
    code, name = compiled(trace.module, [node.meta["val"] for node in inputs], _options(trace, mode, options))
    values = [None if isinstance(value, fx.Node) else value for value in trace.results]
    in_graph_memory = mode == "reduce-overhead"  # a CUDA graph overwrites its results at the next call

    def run(inputs: list[Tensor]) -> list[Any]:
        held = hold_interrupts() if owners else None
        try:
            outputs = code(*inputs)
        finally:
            release_interrupts(held)
        results = list(values)
        for j, i in owners.items():
            results[j] = inputs[i]
        for j, value in zip(made, outputs, strict=True):
            results[j] = value.clone() if in_graph_memory else value
        return results

    return run, name


def _options(trace: Trace, mode: str | None, options: dict[str, Any]) -> dict[str, Any]:
    route = options.get("cpu_matmul")
    if route not in (None, "mkl", "onednn"):
        raise ValueError(f'jit: the option "cpu_matmul" is "mkl" or "onednn", got {route!r}')
    if route == "onednn" and _torch.onednn_linear is None:
        raise ValueError('jit: this torch was built without oneDNN; leave out the option "cpu_matmul"')
    defaults: dict[str, Any] = {}
    if all(node.meta["val"].device.type == "cpu" for node in trace.inputs):
        from fnn.compile.cpu_matmul import Products, onednn_is_faster  # imported here, because it imports the compiler

        onednn = onednn_is_faster() if route is None else route == "onednn"
        defaults = {"layout_optimization": False, "post_grad_custom_pre_pass": Products(onednn)}
    given = {name: value for name, value in options.items() if name != "cpu_matmul"}
    return defaults | (_torch.mode_options(mode) if mode else {}) | given
