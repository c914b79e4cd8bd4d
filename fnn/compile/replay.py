"""Replay: a traced graph as straight Python code, one line for each operation, run by eager's own kernels."""

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from fnn import _torch
from fnn.compile.trace import Trace

aten = torch.ops.aten
Executable = Callable[[list[Tensor]], list[Any]]


def replay(trace: Trace, donated: Mapping[int, int]) -> Executable:
    """A function of the graph's inputs: the leaves of the result, each of which owns its memory.

    ``donated`` maps the number of an input to that of the result which takes its memory: that result is the input
    itself, with the new value.
    """
    own_results(trace, donated)
    source = _Source(trace)
    for node in trace.module.graph.nodes:
        source.write(node)
    inputs = trace.inputs
    changed = [(i, j) for i, j in donated.items() if trace.results[j] is not inputs[i]]
    results = [source.name(value) for value in trace.results]
    for i, j in donated.items():
        results[j] = source.name(inputs[i])
    if changed:
        olds = ", ".join(source.name(inputs[i]) for i, _ in changed)
        news = ", ".join(source.name(trace.results[j]) for _, j in changed)
        source.lines.append(f"{source.constant(torch._foreach_copy_)}([{olds}], [{news}])")
    source.lines.append(f"return [{', '.join(results)}]")
    return source.function()


def own_results(trace: Trace, donated: Mapping[int, int]) -> None:
    """Copy each result that shares memory with an input or with another result, or that lies upon itself."""
    graph = trace.module.graph
    inputs = trace.inputs
    output = next(node for node in reversed(graph.nodes) if node.op == "output")
    taken = {_torch.storage_key(node.meta["val"]) for node in inputs if "val" in node.meta}
    passed = {j: inputs[i] for i, j in donated.items()}
    for j, node in enumerate(trace.results):
        if not isinstance(node, fx.Node) or passed.get(j) is node:
            continue
        value = node.meta["val"]
        key = _torch.storage_key(value)
        if node.op == "placeholder" or key in taken or (0 in value.stride() and value.numel() > 1):
            with graph.inserting_before(output):
                copy = graph.call_function(aten.clone.default, (node,))
                copy.meta["val"] = value
                trace.results[j] = copy
        taken.add(key)
    output.args = ([value for value in trace.results if isinstance(value, fx.Node)],)


class _Source:
    """The lines of a function, and the values that they refer to."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.lines: list[str] = []
        self.values: dict[str, Any] = {}
        self.names: dict[int, str] = {}
        self.last_use: dict[fx.Node, fx.Node] = {}
        kept = {value for value in trace.results if isinstance(value, fx.Node)} | set(trace.inputs)
        for node in trace.module.graph.nodes:
            for used in (*node.all_input_nodes, node):
                if used not in kept:
                    self.last_use[used] = node
        self.dying: dict[fx.Node, list[fx.Node]] = {}
        for node, last in self.last_use.items():
            self.dying.setdefault(last, []).append(node)

    def constant(self, value: Any) -> str:
        if value is None or type(value) in (bool, int, str):
            return repr(value)
        if id(value) not in self.names:
            self.names[id(value)] = f"c{len(self.names)}"
            self.values[self.names[id(value)]] = value
        return self.names[id(value)]

    def name(self, value: Any) -> str:
        if isinstance(value, fx.Node):
            return f"v_{value.name}"
        if type(value) in (list, fx.immutable_collections.immutable_list):
            return f"[{', '.join(map(self.name, value))}]"
        if type(value) is tuple:
            return f"({''.join(f'{self.name(item)}, ' for item in value)})"
        return self.constant(value)

    def write(self, node: fx.Node) -> None:
        if node.op != "call_function":
            return
        arguments = [*map(self.name, node.args), *(f"{key}={self.name(value)}" for key, value in node.kwargs.items())]
        if node.target is operator.getitem:
            line = f"{self.name(node)} = {arguments[0]}[{arguments[1]}]"
        else:
            function = node.target._op if isinstance(node.target, torch._ops.OpOverload) else node.target
            line = f"{self.name(node)} = {self.constant(function)}({', '.join(arguments)})"
        self.lines.append(line)
        dead = [self.name(dying) for dying in self.dying.get(node, ()) if dying.op != "output"]
        if dead:
            self.lines.append(f"del {', '.join(dead)}")

    def function(self) -> Executable:
        parameters = ", ".join(["inputs", *(f"{name}={name}" for name in self.values)])  # locals are fast to look up
        unpack = "".join(f"{self.name(node)}, " for node in self.trace.inputs)
        lines = [f"{unpack} = inputs"] * bool(unpack) + self.lines
        scope = dict(self.values)
        exec(f"def replay({parameters}):\n" + "".join(f"    {line}\n" for line in lines), scope)
        return scope["replay"]
