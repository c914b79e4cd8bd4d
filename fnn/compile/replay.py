"""Replay: a traced graph as straight-line Python code, one line for each operation, run by the kernels of eager mode.

Operations that write a result directly into the memory of a donated leaf, such as the multi-tensor kernel at the end of
an optimizer's step, run last, after everything that does not need their results. Ctrl-C is delayed only during this
last part; before it nothing has been changed.
"""

import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from fnn import _torch
from fnn.compile import loops
from fnn.compile.direct_call import direct_call
from fnn.compile.donation import hold_interrupts, release_interrupts
from fnn.compile.trace import Trace, own_results, producer
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
    writes, late = _writes(trace, taken_over)
    copied = {new: old for new, old in taken_over.items() if not any(new in write.results for write in writes.values())}
    nodes = [node for node in trace.module.graph.nodes if node.op == "call_function"]
    source = _Source()
    early = [node for node in nodes if node not in late]
    results = [source.name(value) for value in trace.results]
    for i, j in donated.items():
        results[j] = source.name(inputs[i])
    source.lines += [f"{''.join(f'{source.name(node)}, ' for node in inputs)} = inputs"] * bool(inputs)
    last_use = _last_use([*early, *(node for node in nodes if node in late)], {*inputs, *trace.results})
    for node in early:
        source.write(node, None, last_use[node])
    if taken_over:
        source.lines += [f"held = {source.constant(hold_interrupts)}()", "try:"]
        source.indent = "    "
        for node in nodes:
            if node in late:
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


class _Write(NamedTuple):
    """An in-place operation that replaces a node and writes its results into the memory of some arguments."""

    operation: Any
    returned: int  # how many of the node's results the operation returns; the others are in the arguments
    arguments: list[fx.Node | list[fx.Node]]
    results: set[fx.Node]


def _writes(trace: Trace, taken_over: Mapping[fx.Node, fx.Node]) -> tuple[dict[fx.Node, _Write], set[fx.Node]]:
    """The nodes that can write into donated leaves, and all nodes that must run late because they depend on these."""
    nodes = [node for node in trace.module.graph.nodes if node.op == "call_function"]
    writes = {}
    for last in {producer(new): None for new in taken_over}:
        write = _in_place(last, taken_over)
        if write is not None:
            writes[last] = write
    while True:
        late: set[fx.Node] = set()
        for node in nodes:
            if node in writes or any(used in late for used in node.all_input_nodes):
                late.add(node)
        order = [node for node in nodes if node in late]
        refused = [
            node
            for at, node in enumerate(order)
            if node in writes
            and any(memory in _read(reader) for memory in _memory(writes[node]) for reader in order[at + 1 :])
        ]
        if any(node.is_impure() or _torch.is_random(node.target) for node in late):
            refused = list(writes)
        if not refused:
            return writes, late
        for node in refused:
            del writes[node]


def _in_place(node: fx.Node, taken_over: Mapping[fx.Node, fx.Node]) -> _Write | None:
    """The in-place form of a node that writes only into donated leaves; None if there is none."""
    operation = _torch.in_place_form(node.target)
    if operation is None or node.kwargs.keys() - {argument.name for argument in _torch.schema(operation).arguments}:
        return None
    written = [
        i
        for i, a in enumerate(_torch.schema(operation).arguments)
        if a.alias_info is not None and a.alias_info.is_write
    ]
    if any(i >= len(node.args) for i in written):
        return None
    target: Any = node.target  # an operation, as it has an in-place form
    values = len(_torch.schema(target).returns)
    returned = values - len(written)
    results: set[fx.Node] = set()
    for place, i in enumerate(written, returned):
        value = _select(node, place) if values > 1 else [node]
        given: Any = node.args[i]
        arguments = given if isinstance(given, (list, tuple)) else None
        pairs = [] if arguments is None else [(argument, _select_all(value, k)) for k, argument in enumerate(arguments)]
        if arguments is None:
            pairs = [(given, value)]
        for argument, news in pairs:
            if not any(taken_over.get(new) is argument for new in news):
                return None
            results |= set(news)
    targets: list[Any] = [node.args[i] for i in written]
    return _Write(operation, returned, targets, results)


def _select(node: fx.Node, k: int) -> list[fx.Node]:
    return [user for user in node.users if user.target is operator.getitem and user.args[1] == k]


def _select_all(nodes: list[fx.Node], k: int) -> list[fx.Node]:
    return [found for node in nodes for found in _select(node, k)]


def _memory(write: _Write) -> set[int]:
    arguments = [node for item in write.arguments for node in (item if isinstance(item, (list, tuple)) else [item])]
    return {_torch.storage_id(node.meta["val"]) for node in arguments}


def _read(node: fx.Node) -> set[int]:
    """The memory that a node reads, identified by the storages of the abstract tensors."""
    values = [used.meta.get("val") for used in node.all_input_nodes]
    return {_torch.storage_id(value) for value in values if isinstance(value, Tensor)}


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

    def write(self, node: fx.Node, write: _Write | None, dying: list[fx.Node]) -> None:
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
