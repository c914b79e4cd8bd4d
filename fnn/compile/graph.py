"""``trace``: the graph of a function, which can be printed, measured and drawn."""

import html
import math
import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx

from fnn import _torch
from fnn import tree as _tree
from fnn.compile.trace import Trace, argument_names, layout_of, producer, trace_function
from fnn.tree import Tree

_SHORT = {
    torch.float32: "f32", torch.float64: "f64", torch.float16: "f16", torch.bfloat16: "bf16", torch.int64: "i64",
    torch.int32: "i32", torch.int16: "i16", torch.int8: "i8", torch.uint8: "u8", torch.bool: "bool",
    torch.complex64: "c64", torch.complex128: "c128",
}  # fmt: skip


_HIDDEN = ("layout", "device", "pin_memory", "memory_format")


def trace(f: Callable[..., Tree]) -> Callable[..., "Graph"]:
    """``trace(f)(*args)`` runs f on abstract tensors like those in args, and returns its :class:`Graph`.

    Raises what :func:`fnn.jit` raises for a function that cannot be traced.

    >>> print(trace(lambda params, x: x @ params["w"])({"w": torch.ones(3, 2)}, torch.ones(4, 3)))
    { lambda a:f32[3,2] b:f32[4,3] .       # a = params['w'], b = x
      let c:f32[4,2] = mm b a
      in (c) }
    """

    def traced(*args: Any, **kwargs: Any) -> Graph:
        leaves, treedef = _tree.flatten((args, kwargs))
        names = argument_names(f, treedef)
        for name, leaf in zip(names, leaves, strict=True):
            if not isinstance(leaf, Tensor):
                raise TypeError(f"{name} is {leaf!r}, a {type(leaf).__name__}; fnn.trace takes trees of tensors")
        return Graph(trace_function(f, treedef, [*map(layout_of, leaves)], for_replay=False), names)

    return traced


class Graph:
    """The operations of a function and its derivatives, in the order in which they run.

    Made by :func:`trace`. ``str(graph)`` has one line for each operation, with shapes and dtypes; ``nodes`` are
    ``torch.fx.Node`` objects.
    """

    def __init__(self, traced: Trace, names: list[str]) -> None:
        self._trace = traced
        self.module = traced.module
        """The graph as a ``torch.fx.GraphModule``, whose inputs are the leaves and then the tensors closed over."""
        closed = [f"closed over {i}" for i in range(len(traced.constants))]
        self.inputs = dict(zip(traced.inputs, [*names, *closed], strict=True))
        """The path of each input, by its node."""

    @property
    def nodes(self) -> list[fx.Node]:
        """The operations."""
        return [node for node in self.module.graph.nodes if node.op == "call_function" and _operation(node)]

    @property
    def flops(self) -> int:
        """The number of multiplications and additions in matrix products, convolutions and attention.

        Other operations are not counted. The step of a loop counts as often as it runs.

        >>> trace(torch.mm)(torch.ones(2, 3), torch.ones(3, 4)).flops
        48
        """
        return sum(_over_steps(node, _flops) for node in self.nodes)

    @property
    def bytes(self) -> int:
        """The number of bytes that the operations read and write if nothing is fused. Views count as zero.

        >>> trace(torch.sin)(torch.ones(100)).bytes
        800
        """
        return sum(_over_steps(node, _traffic) for node in self.nodes)

    @property
    def memory(self) -> list[int]:
        """The bytes in use during each of ``nodes``, inputs included, if each value is freed after its last use.

        What the step of a loop holds within one step is not counted.

        >>> trace(lambda x: x.sin().cos().tan().sum())(torch.ones(100)).memory
        [800, 1200, 1200, 804]
        """
        order = [node for node in self.module.graph.nodes if node.op == "call_function"]
        last: dict[int, int] = {}
        for i, node in enumerate(order):
            for value in (*_tensors(node.args), *_tensors(node)):
                last[_torch.storage_id(value)] = i
        for value in _tensors([*self._trace.results, *self.inputs]):
            last[_torch.storage_id(value)] = len(order)
        held = {_torch.storage_id(value): _size(value) for value in _tensors(list(self.inputs))}
        in_use = []
        for i, node in enumerate(order):
            held.update({_torch.storage_id(value): _size(value) for value in _made(node)})
            if _operation(node):
                in_use.append(sum(held.values()))
            held = {key: size for key, size in held.items() if last[key] > i}
        return in_use

    @property
    def peak_memory(self) -> int:
        """The largest number of bytes in use at once, as in ``memory``.

        >>> trace(lambda x: x.sin().cos().tan())(torch.ones(100)).peak_memory
        1200
        """
        given = {_torch.storage_id(value): _size(value) for value in _tensors(list(self.inputs))}
        return max(self.memory, default=sum(given.values()))

    def __str__(self) -> str:
        steps = [(node.target, _step_of(node)) for node in self.module.graph.nodes if node.op == "get_attr"]
        whole = _text(self.module.graph, self.inputs, self._trace.results)
        return "\n".join([whole, *(f"where {name} = {_text(step, {}, _results(step))}" for name, step in steps)])

    __repr__ = __str__

    def svg(self) -> str:
        """Draw the graph, as the text of an SVG file: each operation is below everything that it needs.

        >>> trace(torch.sin)(torch.ones(3)).svg()[:4]
        '<svg'
        """
        return _draw(self)


def _text(graph: fx.Graph, paths: dict[fx.Node, str], results: list[Any]) -> str:
    """The lines of a graph, or of the step of a loop in it."""
    given = [node for node in graph.nodes if node.op == "placeholder"]
    operations = [node for node in graph.nodes if node.op == "call_function" and _operation(node)]
    names = dict(zip([*given, *operations], _letters(), strict=False))

    def text(value: Any) -> str:
        if isinstance(value, fx.Node):
            if value.op == "get_attr":
                return str(value.target)
            if value.target is operator.getitem:
                return f"{text(value.args[0])}.{value.args[1]}"
            return names[value]
        if isinstance(value, (list, tuple)):
            return "[" + " ".join(map(text, value)) + "]"
        return str(value)

    inputs = " ".join(f"{names[node]}:{_type(node)}" for node in given)
    places = ", ".join(f"{names[node]} = {path}" for node, path in paths.items())
    lines = [f"{{ lambda {inputs} ." + f"       # {places}" * bool(places)]
    for i, node in enumerate(operations):
        arguments = [
            *map(text, node.args),
            *(f"{key}={text(v)}" for key, v in node.kwargs.items() if key not in _HIDDEN),
        ]
        start = "  let " if i == 0 else "      "
        lines.append(f"{start}{names[node]}:{_type(node)} = {' '.join([_operation(node), *arguments])}")
    return "\n".join([*lines, f"  in ({', '.join(map(text, results))}) }}"])


def _step_of(node: fx.Node) -> fx.Graph:
    """The graph of the step of a loop, which a node refers to."""
    return getattr(node.graph.owning_module, str(node.target)).graph


def _results(graph: fx.Graph) -> list[Any]:
    return list(next(iter(graph.find_nodes(op="output"))).args[0])


def _is_loop(node: fx.Node) -> bool:
    return bool(node.args) and isinstance(node.args[0], fx.Node) and node.args[0].op == "get_attr"


def _over_steps(node: fx.Node, count: Callable[[fx.Node], int]) -> int:
    """A count of one operation, or the sum over all steps of a loop."""
    if not _is_loop(node):
        return count(node)
    steps = len(_tensors(node.args[2])[0])  # a loop has at least one stacked input
    step = [inner for inner in _step_of(node.all_input_nodes[0]).nodes if inner.op == "call_function"]
    return steps * sum(_over_steps(inner, count) for inner in step)


def _operation(node: fx.Node) -> str:
    """The name of a node's operation; empty if the node only selects one of several results."""
    if node.target is operator.getitem:
        return ""
    return _torch.operation_name(node.target)


def _letters() -> Iterator[str]:
    """Yield a, b, ..., z, aa, ab, ..."""
    number = 0
    while True:
        number += 1
        name, rest = "", number
        while rest:
            rest, digit = divmod(rest - 1, 26)
            name = chr(97 + digit) + name
        yield name


def _tensors(value: Any) -> list[Tensor]:
    """The abstract tensors of a node, or of a list of nodes."""
    if isinstance(value, fx.Node):
        value = value.meta.get("val")
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in _tensors(item)]
    return [value] if isinstance(value, Tensor) else []


def _made(node: fx.Node) -> list[Tensor]:
    """The results of a node that are not views of its arguments."""
    if node.target is operator.getitem:
        return []
    given = {_torch.storage_id(value) for value in _tensors(node.args)}
    return [value for value in _tensors(node) if _torch.storage_id(value) not in given]


def _size(value: Tensor) -> int:
    return value.numel() * value.element_size()


def _traffic(node: fx.Node) -> int:
    """The bytes that an operation reads and writes; 0 for a view."""
    made = _made(node)
    return sum(map(_size, _tensors(node.args))) + sum(map(_size, made)) if made else 0


def _flops(node: fx.Node) -> int:
    from torch.utils.flop_counter import flop_registry  # imported here, because it imports Triton

    count = flop_registry.get(getattr(node.target, "overloadpacket", None))
    if count is None:
        return 0
    args, kwargs = (_values(given) for given in (node.args, node.kwargs))
    return int(count(*args, **kwargs, out_val=node.meta["val"]))


def _values(arguments: Any) -> Any:
    """The arguments of a node, with each node among them replaced by its abstract value."""
    return fx.map_arg(arguments, lambda used: used.meta["val"])


def _type(node: fx.Node) -> str:
    value = node.meta.get("val")
    kinds = [f"{_SHORT.get(x.dtype, x.dtype)}[{','.join(map(str, x.shape))}]" for x in _tensors(node)]
    return kinds[0] if len(kinds) == 1 and isinstance(value, Tensor) else f"({', '.join(kinds)})"


_WIDTH, _HEIGHT, _GAP = 170, 36, 26


def _draw(graph: Graph) -> str:
    level: dict[fx.Node, int] = {}
    sources: dict[fx.Node, list[fx.Node]] = {}
    for node in [*graph.inputs, *graph.nodes]:
        sources[node] = [producer(used) for used in node.all_input_nodes if used.op != "get_attr"]
        level[node] = 1 + max((level[used] for used in sources[node]), default=-1)
    for node in graph.inputs:  # directly above the first operation that needs it
        below = [level[other] for other, used in sources.items() if node in used]
        level[node] = min(below, default=1) - 1
    rows: dict[int, list[fx.Node]] = {}
    for node in level:
        rows.setdefault(level[node], []).append(node)
    widest = max(map(len, rows.values()))
    x = {
        n: (widest - len(row)) * (_WIDTH + _GAP) / 2 + i * (_WIDTH + _GAP)
        for row in rows.values()
        for i, n in enumerate(row)
    }
    y = {node: level[node] * (_HEIGHT + _GAP) for node in level}
    shapes = []
    for node, used in sources.items():
        for other in used:
            left, top, right, bottom = x[other] + _WIDTH / 2, y[other] + _HEIGHT, x[node] + _WIDTH / 2, y[node]
            middle = math.ceil((top + bottom) / 2)
            curve = f"M{left:g},{top:g} C{left:g},{middle} {right:g},{middle} {right:g},{bottom:g}"
            shapes.append(f'<path d="{curve}"/>')
    outputs = {producer(value) for value in graph._trace.results if isinstance(value, fx.Node)}
    for node in level:
        name, kind = graph.inputs.get(node) or _operation(node), _type(node)
        colour = "#d6e8d4" if node in graph.inputs else "#f6d8ae" if node in outputs else "#dde7f5"
        shapes.append(
            f'<g transform="translate({x[node]:g},{y[node]:g})"><rect width="{_WIDTH}" height="{_HEIGHT}" rx="5" '
            f'fill="{colour}"/><text x="{_WIDTH / 2:g}" y="15">{html.escape(name)}</text>'
            f'<text x="{_WIDTH / 2:g}" y="29" class="type">{html.escape(kind)}</text></g>'
        )
    width, height = widest * (_WIDTH + _GAP), (max(rows) + 1) * (_HEIGHT + _GAP)
    style = (
        "text{font:12px sans-serif;text-anchor:middle}.type{font-size:10px;fill:#555}"
        "path{fill:none;stroke:#888}rect{stroke:#888}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}"><style>{style}</style>{"".join(shapes)}</svg>'
    )
