"""Replay: a traced graph as straight-line Python code, one line for each operation, run by the kernels of eager mode.

Operations that write a result directly into the memory of a donated leaf, such as the multi-tensor kernel at the end of
an optimizer's step, run last, after everything that does not need their results. Ctrl-C is delayed only during this
last part; before it nothing has been changed.
"""

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from fnn import _torch
from fnn.compile import loops
from fnn.compile.direct_call import direct_call
from fnn.compile.donation import hold_interrupts, release_interrupts
from fnn.compile.in_place import Write, writes_into_donated, writes_into_temporaries
from fnn.compile.trace import Trace, own_results
from fnn.tree.treedef import LEAF

Run = Callable[[list[Tensor]], list[Any]]


def replay(trace: Trace, donated: Mapping[int, int]) -> Run:
    """Make a function that takes the graph's inputs and returns the leaves of the result, each with its own memory.

    ``donated`` maps the index of an input to the index of the result that takes its memory. That result is the input
    tensor itself, with the new value written into it.
    """
    own_results(trace, donated)
    inputs = trace.inputs
    taken_over = {trace.results[j]: inputs[i] for i, j in donated.items() if trace.results[j] is not inputs[i]}
    writes, late = writes_into_donated(trace, taken_over)
    copied = {new: old for new, old in taken_over.items() if not any(new in write.results for write in writes.values())}
    nodes = [node for node in trace.module.graph.nodes if node.op == "call_function"]
    order = [*(node for node in nodes if node not in late), *(node for node in nodes if node in late)]
    writes |= writes_into_temporaries(trace, order, writes)
    source = _Source()
    results = [source.name(value) for value in trace.results]
    for i, j in donated.items():
        results[j] = source.name(inputs[i])
    source.lines += [f"{''.join(f'{source.name(node)}, ' for node in inputs)} = inputs"] * bool(inputs)
    last_use = _last_use(order, {*inputs, *trace.results})
    for node in order[: len(order) - len(late)]:
        source.write(node, writes.get(node), last_use[node])
    if taken_over:
        source.lines += [f"held = {source.constant(hold_interrupts)}()", "try:"]
        source.indent = "    "
        for node in order[len(order) - len(late) :]:
            source.write(node, writes.get(node), last_use[node])
        if copied:
            olds, news = map(source.name, (list(copied.values()), list(copied)))
            source.add(f"{source.constant(_torch.foreach_copy)}({olds}, {news})")
        source.indent = ""
        source.lines += ["finally:", f"    {source.constant(release_interrupts)}(held)"]
    source.add(f"return [{', '.join(results)}]")
    return source.function()


def _step(module: fx.GraphModule) -> Callable[..., list[Any]]:
    """The step of a loop as a function of its carry, its x and the tensors that it closes over."""
    run = replay(Trace(module, [], list(module.graph.find_nodes(op="output")[0].args[0]), LEAF), {})
    return lambda *values: run(list(values))


def _last_use(nodes: list[fx.Node], kept: set[Any]) -> dict[fx.Node, list[fx.Node]]:
    """For each node the values that are not needed after it."""
    last = {
        used: node
        for node in nodes
        for used in (*node.all_input_nodes, node)
        if used not in kept and used.op != "get_attr"
    }
    dying: dict[fx.Node, list[fx.Node]] = {node: [] for node in nodes}
    for used, node in last.items():
        dying[node].append(used)
    return dying


class _Source:
    """The source lines of a function, and the values that they refer to."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.indent = ""
        self.values: dict[str, Any] = {}
        self.names: dict[int, str] = {}

    def add(self, line: str) -> None:
        self.lines.append(self.indent + line)

    def constant(self, value: Any) -> str:
        if value is None or type(value) in (bool, int, str):
            return repr(value)
        if id(value) not in self.names:
            self.names[id(value)] = f"c{len(self.names)}"
            self.values[self.names[id(value)]] = value
        return self.names[id(value)]

    def name(self, value: Any) -> str:
        if isinstance(value, fx.Node):
            if value.op == "get_attr":  # the graph of a loop's step
                module = getattr(value.graph.owning_module, str(value.target))
                if id(module) not in self.names:
                    self.constant(module)
                    self.values[self.names[id(module)]] = _step(module)
                return self.names[id(module)]
            return f"v_{value.name}"
        if isinstance(value, list):
            return f"[{', '.join(map(self.name, value))}]"
        if isinstance(value, tuple) and type(value) is not torch.Size:
            return f"({''.join(f'{self.name(item)}, ' for item in value)})"
        return self.constant(value)

    def write(self, node: fx.Node, write: Write | None, dying: list[fx.Node]) -> None:
        arguments = [*map(self.name, node.args), *(f"{key}={self.name(value)}" for key, value in node.kwargs.items())]
        if node.target is operator.getitem:
            self.add(f"{self.name(node)} = {arguments[0]}[{arguments[1]}]")
        elif node.target is _torch.scan_op:
            self.add(f"{self.name(node)} = {self.constant(loops.replay)}({', '.join(arguments)})")
        else:
            value = node.meta.get("val")
            function = direct_call(write.operation if write else node.target, node.args, node.kwargs, value)
            self.add(f"{self.name(node)} = {self.constant(function)}({', '.join(arguments)})")
        if write:
            values = [*map(self.name, write.arguments)]
            if write.returned:
                values.insert(0, self.name(node) if write.returned == 1 else f"*{self.name(node)}")
            self.add(f"{self.name(node)} = {values[0] if len(values) == 1 else '(' + ', '.join(values) + ')'}")
        if dying:
            self.add(f"del {', '.join(map(self.name, dying))}")

    def function(self) -> Run:
        # parameters with defaults are local variables, which are fast to look up
        parameters = ", ".join(["inputs", *(f"{name}={name}" for name in self.values)])
        scope = dict(self.values)
        exec(f"def replay({parameters}):\n" + "".join(f"    {line}\n" for line in self.lines), scope)
        return scope["replay"]
