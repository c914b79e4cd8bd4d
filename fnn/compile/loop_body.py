"""The body of a loop: one step as a graph that closes over nothing, and what can be read off this graph."""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from fnn import _torch


class Body(NamedTuple):
    """One step as a graph: ``(*carry, *x, *closed_over) -> (*carry, *y)``, all of them tensors."""

    graph: GraphModule
    carries: int
    xs: int
    remat: bool = False

    @property
    def inputs(self) -> list[Node]:
        return inputs_of(self.graph)

    @property
    def results(self) -> list[Node]:
        return results_of(self.graph)

    def split(self, values: Sequence[Any], where: Sequence[bool] | None = None) -> tuple[list, list, list]:
        """Split values into carry, xs and closed-over tensors, keeping only those for which ``where`` is true."""
        where = [True] * len(values) if where is None else where
        ends = (0, self.carries, self.carries + self.xs, len(values))
        carry, xs, closed = (select(values[i:j], where[i:j]) for i, j in itertools.pairwise(ends))
        return carry, xs, closed

    def is_x(self, i: int) -> bool:
        return self.carries <= i < self.carries + self.xs

    def dependent(self, inputs: Sequence[bool], differentiable: bool = False) -> tuple[list[bool], list[bool]]:
        """Which inputs and results of the body depend on the given inputs after any number of steps.

        With ``differentiable`` only floating and complex values count.
        """
        nodes, results = self.inputs, self.results

        def counts(node: Node) -> bool:
            return not differentiable or node.meta["val"].is_floating_point() or node.meta["val"].is_complex()

        active = [each and counts(node) for each, node in zip(inputs, nodes, strict=True)]
        while True:
            reached = descendants(self.graph, [node for node, each in zip(nodes, active, strict=True) if each])
            found = [node in reached and counts(node) for node in results]
            after = [a or (i < self.carries and found[i]) for i, a in enumerate(active)]
            if after == active:
                return active, [*active[: self.carries], *found[self.carries :]]
            active = after


class Result(NamedTuple):
    """The last carries, and each y stacked along a new leading axis."""

    carry: list[Tensor]
    ys: list[Tensor]


def example(value: Tensor, leading_axes: int = 0) -> Tensor:
    """A plain contiguous tensor with the shape that the active transforms show, without the leading axes."""
    with _torch.not_recorded(), _torch.outside_transforms():
        return torch.zeros(value.shape[leading_axes:], dtype=value.dtype, device=value.device)


# Graphs


def inputs_of(graph: GraphModule) -> list[Node]:
    """The placeholders of a graph."""
    return list(graph.graph.find_nodes(op="placeholder"))


def results_of(graph: GraphModule) -> list[Node]:
    """What a graph returns."""
    return list(graph.graph.find_nodes(op="output")[0].args[0])


def subgraph(graph: GraphModule, inputs: Sequence[Node], results: Sequence[Node]) -> GraphModule:
    """The part of a graph that computes these results from these inputs, in the given order."""
    made = Graph()
    environment = {node: new_input(made, node) for node in inputs}
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


def new_input(made: Graph, node: Node) -> Node:
    """Add an input to the graph ``made`` that stands for the value of a node of another graph."""
    placeholder = made.placeholder(f"input_{len(made.nodes)}")
    placeholder.meta["val"] = node.meta["val"]
    return placeholder


def descendants(graph: GraphModule, sources: Iterable[Node]) -> set[Node]:
    """The given nodes and all nodes whose values depend on them."""
    found = set(sources)
    for node in graph.graph.nodes:
        if any(argument in found for argument in node.all_input_nodes):
            found.add(node)
    return found


# Lists


def select(values: Sequence[Any], where: Sequence[bool]) -> list[Any]:
    """The values for which ``where`` is true."""
    return [value for value, each in zip(values, where, strict=True) if each]


def replace(values: Sequence[Any], which: Sequence[int], by: Sequence[Any]) -> list[Any]:
    """The values, with those at the positions ``which`` replaced."""
    new = list(values)
    for i, value in zip(which, by, strict=True):
        new[i] = value
    return new
