"""The places of gathers and reduce-scatters in a traced graph: next to the layers whose params they move.

A step of :func:`fnn.distributed.fully_sharded` gathers all params, computes gradients, and reduce-scatters these, in
this order, since communication stands outside the differentiated function. In its graph each layer's params are
gathered directly before the layer uses them, once in the forward and once in the backward pass, and each layer's
gradients are reduce-scattered as soon as they are computed. So whole tensors exist for one layer at a time.
"""

import itertools
import operator
from collections.abc import Iterable
from typing import Any

import torch
from torch import fx

from fnn import _torch

aten = torch.ops.aten
_MOVES = (
    operator.getitem, aten.clone.default, aten.cat.default, _torch.to_copy, _torch.unsafe_view,
    aten.split.Tensor, aten.split_with_sizes.default,
)  # fmt: skip


def reorder(graph: fx.Graph) -> None:
    """Move the reduce-scatters of a graph up and its gathers of inputs down; a gather may be made twice."""
    _scatter_early(graph)
    _gather_late(graph)


def _moves_data(node: fx.Node) -> bool:
    return node.target in _MOVES or _torch.returns_view(node.target)


def _abstract_result(node: fx.Node) -> Any:
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda used: used.meta["val"])
    with torch.no_grad():
        return node.target(*args, **kwargs)  # pyright: ignore[reportCallIssue]


def _scatter_early(graph: fx.Graph) -> None:
    nodes = list(graph.nodes)
    early = set()
    for node in nodes:
        if _torch.operation_name(node.target) == "reduce_scatter_tensor":
            early |= {node, *node.users}  # its wait
            todo = list(node.all_input_nodes)
            while todo:
                source = todo.pop()
                if source not in early and _moves_data(source):
                    early.add(source)
                    todo += source.all_input_nodes
    key: dict[fx.Node, tuple[int, int]] = {}
    for place, node in enumerate(nodes):
        inputs = [key[used] for used in node.all_input_nodes]
        key[node] = (max(inputs)[0], place) if node in early and inputs else (place, place)
    first, *others = sorted(nodes, key=key.__getitem__)
    for node in others:
        first.append(node)
        first = node


def _gather_late(graph: fx.Graph) -> None:
    place = {node: i for i, node in enumerate(graph.nodes)}
    found = [_Gather(node) for node in place if _torch.operation_name(node.target) == "all_gather_into_tensor"]
    gathers = [gather for gather in found if gather.is_of_inputs]
    uses = sorted((place[user], number) for number, gather in enumerate(gathers) for user in gather.users)
    for number, gather in enumerate(gathers):
        mine = [at for at, n in uses if n == number]
        others = [at for at, n in uses if n != number]
        gaps = [
            (after - before, after)
            for before, after in itertools.pairwise(mine)
            if any(before < at < after for at in others)
        ]
        again = max(gaps)[1] if gaps else len(place)  # the first use of the second gather
        gather.move([user for user in gather.users if place[user] < again])
        gather.move([user for user in gather.users if place[user] >= again])
        gather.erase()


class _Gather:
    """An all-gather, the nodes that prepare what it sends, and those that only move what it has received."""

    def __init__(self, node: fx.Node) -> None:
        before: dict[fx.Node, None] = {node: None}
        todo = list(node.all_input_nodes)
        self.is_of_inputs = True
        while todo:
            source = todo.pop()
            if source.op != "placeholder":
                self.is_of_inputs = self.is_of_inputs and _moves_data(source)
                before[source] = None
                todo += source.all_input_nodes
        own = dict.fromkeys(node.users)  # its wait
        todo = list(own)
        users: dict[fx.Node, None] = {}
        while todo:
            for user in todo.pop().users:
                if _moves_data(user) and all(used in own for used in user.all_input_nodes):
                    own[user] = None
                    todo.append(user)
                else:
                    users[user] = None
        order = {node: i for i, node in enumerate(node.graph.nodes)}
        self.graph = node.graph
        self.nodes = sorted({**before, **own}, key=order.__getitem__)
        self.users = sorted(users, key=order.__getitem__)

    def move(self, users: list[fx.Node]) -> None:
        """Gather anew before the first of these users, and give all of them the copy."""
        if not users:
            return
        copies: dict[fx.Node, fx.Node] = {}
        wanted = self._needed(users)
        with self.graph.inserting_before(users[0]):
            for node in self.nodes:
                if node in wanted:
                    copy = copies[node] = self.graph.node_copy(node, lambda used: copies.get(used, used))
                    copy.meta["val"] = _abstract_result(copy)  # with memory of its own
        for user in users:
            for node, copy in copies.items():
                user.replace_input_with(node, copy)

    def _needed(self, users: Iterable[fx.Node]) -> set[fx.Node]:
        mine, needed = set(self.nodes), set()
        todo = [used for user in users for used in user.all_input_nodes if used in mine]
        while todo:
            node = todo.pop()
            if node not in needed:
                needed.add(node)
                todo += [used for used in node.all_input_nodes if used in mine]
        return needed

    def erase(self) -> None:
        for node in reversed(self.nodes):
            if not node.users:
                self.graph.erase_node(node)
