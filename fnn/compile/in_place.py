"""Operations of a replayed graph that write into memory that is there already: of donated leaves, and of temporaries.

The results are those of the operation itself, bit for bit. Writing an optimizer's update over the gradient that it was
computed from, which nothing needs any more, takes less memory traffic than writing it somewhere else.
"""

import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, fx

from fnn import _torch
from fnn.compile.trace import Trace, producer


class Write(NamedTuple):
    """An in-place operation that replaces a node and writes its results into the memory of some arguments."""

    operation: Any
    returned: int  # how many of the node's results the operation returns; the others are in the arguments
    arguments: list[fx.Node | list[fx.Node]]
    results: set[fx.Node]


def writes_into_donated(
    trace: Trace, taken_over: Mapping[fx.Node, fx.Node]
) -> tuple[dict[fx.Node, Write], set[fx.Node]]:
    """The nodes that can write into donated leaves, and all nodes that must run late because they depend on these."""
    nodes = [node for node in trace.module.graph.nodes if node.op == "call_function"]
    writes = {}
    for last in {producer(new): None for new in taken_over}:
        write = _in_place(last, lambda argument, new: taken_over.get(new) is argument)
        if write is not None:
            writes[last] = write
    while True:
        late: set[fx.Node] = set()
        for node in nodes:
            if node in writes or any(used in late for used in node.all_input_nodes):
                late.add(node)
        order = [node for node in nodes if node in late]
        last = {memory: at for at, node in enumerate(order) for memory in _read(node)}
        refused = [
            node
            for at, node in enumerate(order)
            if node in writes and any(last.get(memory, at) > at for memory in _memory(writes[node]))
        ]
        if any(node.is_impure() or _torch.is_random(node.target) for node in late):
            refused = list(writes)
        if not refused:
            return writes, late
        for node in refused:
            del writes[node]


def writes_into_temporaries(
    trace: Trace, order: Sequence[fx.Node], others: Collection[fx.Node]
) -> dict[fx.Node, Write]:
    """The elementwise operations that can write into an argument that no later operation needs.

    ``order`` is the order in which the operations run; ``others`` are written in another way.
    """
    last = {memory: i for i, node in enumerate(order) for memory in _read(node)}
    kept = {*map(_storage, trace.inputs), *(_storage(value) for value in trace.results if isinstance(value, fx.Node))}
    # the abstract value of a tensor that was closed over is not the one whose views were recorded
    values = [(node, node.meta.get("val")) for node in order]
    kept |= {_storage(node) for node, value in values if isinstance(value, Tensor) and _is_view_of_input(node)}
    writes = {}
    for i, node in enumerate(order):
        if node in others or not _torch.is_elementwise(node.target):
            continue
        given = [_storage(used) for used in node.all_input_nodes if isinstance(used.meta.get("val"), Tensor)]

        def may_write(argument: fx.Node, new: fx.Node, i: int = i, given: list[int] = given) -> bool:
            memory, old, value = _storage(argument), argument.meta["val"], new.meta["val"]
            return (
                memory not in kept
                and last[memory] == i
                and given.count(memory) == 1
                and (old.shape, old.stride(), old.dtype) == (value.shape, value.stride(), value.dtype)
            )

        write = _in_place(node, may_write)
        if write is not None and len(_memory(write)) == len(_arguments(write)):
            writes[node] = write
    return writes


def _is_view_of_input(node: fx.Node) -> bool:
    while _torch.returns_view(node.target) or node.target in (operator.getitem, _torch.unsafe_view):
        node = node.args[0]  # type: ignore[assignment]
        if node.op == "placeholder":
            return True
    return False


def _in_place(node: fx.Node, may_write: Callable[[fx.Node, fx.Node], bool]) -> Write | None:
    """The in-place form of a node; None if there is none, or if one of its results may not be written.

    ``may_write(argument, result)`` says whether the result may be written into the memory of the argument.
    """
    operation = _torch.in_place_form(node.target)
    if (
        operation is None
        or _torch.returns_view(node.target)
        or node.kwargs.keys() - {argument.name for argument in _torch.schema(operation).arguments}
    ):
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
        pairs: list[tuple[fx.Node, list[fx.Node]]] = [(given, value)]
        if isinstance(given, (list, tuple)):
            pairs = [(argument, _select_all(value, k)) for k, argument in enumerate(given)]
        for argument, news in pairs:
            # a number, as in 2.0 ** x, has no memory
            if not isinstance(argument, fx.Node) or not any(may_write(argument, new) for new in news):
                return None
            results |= set(news)
    targets: list[Any] = [node.args[i] for i in written]
    return Write(operation, returned, targets, results)


def _select(node: fx.Node, k: int) -> list[fx.Node]:
    return [user for user in node.users if user.target is operator.getitem and user.args[1] == k]


def _select_all(nodes: list[fx.Node], k: int) -> list[fx.Node]:
    return [found for node in nodes for found in _select(node, k)]


def _arguments(write: Write) -> list[fx.Node]:
    items = [item if isinstance(item, (list, tuple)) else [item] for item in write.arguments]
    return [node for item in items for node in item]


def _memory(write: Write) -> set[int]:
    return set(map(_storage, _arguments(write)))


def _storage(node: fx.Node) -> int:
    return _torch.storage_id(node.meta["val"])


def _read(node: fx.Node) -> set[int]:
    """The memory that a node reads, identified by the storages of the abstract tensors."""
    values = _torch.tree_leaves([used.meta.get("val") for used in node.all_input_nodes])
    return {_torch.storage_id(value) for value in values if isinstance(value, Tensor)}
