"""The executable of one traced graph: it is replayed, or compiled, or replayed until it has been compiled."""

import os
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from fnn import _torch
from fnn._processes import check_agreement, explained_failures
from fnn.compile import donation
from fnn.compile.inductor import compile_graph
from fnn.compile.replay import Run, replay
from fnn.compile.trace import Layout, Trace, argument_names, layout_of, name_of, trace_function
from fnn.tree import Tree, TreeDef


class Signature:
    """The structure of the non-static arguments, the names of their leaves, and which leaves are donated."""

    def __init__(self, f: Callable, treedef: TreeDef, donated: Sequence[int], static: Sequence[int]) -> None:
        self.treedef = treedef
        self.names = argument_names(f, treedef, static)
        sizes = [argument.num_leaves for argument in treedef.children[0].children]
        arguments = [i - sum(s < i for s in static) for i in donated]
        if any(i >= len(sizes) for i in arguments):
            raise TypeError(f"{name_of(f)}: a donated argument must be given by position")
        self.blocks = [range(sum(sizes[:i]), sum(sizes[: i + 1])) for i in arguments]
        self.donated = [leaf for block in self.blocks for leaf in block]

    def check(self, leaves: Sequence[Any]) -> None:
        """Raise ``TypeError`` if a leaf is not a tensor, ``ValueError`` if it was donated before or appears twice."""
        for name, leaf in zip(self.names, leaves, strict=True):
            if not isinstance(leaf, Tensor):
                raise TypeError(
                    f"{name} is {leaf!r}, a {type(leaf).__name__}, which would be frozen into the graph; pass "
                    f"torch.tensor(...), keep it in a closure, or name the argument in static_argnums"
                )
            if leaf.is_meta:
                raise ValueError(
                    f"{name} holds no data: it was donated to an earlier call, whose result has its memory now. "
                    "Go on with that result, as in params = step(params, ...), or donate a copy (leaf.clone())"
                )
        places: dict[int, str] = {}
        for i in self.donated:
            if id(leaves[i]) in places:
                raise ValueError(
                    f"{places[id(leaves[i])]} and {self.names[i]} are the same tensor, and a donated tensor's memory "
                    "can take only one result; pass leaf.clone() in one of the two places"
                )
            places[id(leaves[i])] = self.names[i]


class Executable:
    """A traced function, called with leaves that have the layouts with which it was traced.

    references: turns the tensors that the function closed over into functions that return them.
    compiled_graphs: the hash of the graph is added to this set when it has been compiled.
    backend, mode, options: as in :func:`fnn.jit`.
    background: a thread, started at the second call, compiles the graph, which is replayed meanwhile; an integer says
        at which call to switch.
    rare: the arguments may not come again, so the graph is compiled at the second call.
    """

    def __init__(
        self,
        f: Callable[..., Tree],
        signature: Signature,
        leaves: Sequence[Tensor],
        references: Callable[[list[Tensor]], list[Callable[[], Tensor]]],
        *,
        compiled_graphs: set[str],
        backend: str,
        mode: str | None,
        options: dict[str, Any],
        background: bool | int = False,
        rare: bool = False,
    ) -> None:
        self.donated = signature.donated
        self.autocast = [kind for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]
        self.handover = donation.Handover()
        self.calls = 0
        self.background = False if rare else background
        self.thread: threading.Thread | None = None
        self.compiled: Run | None = None
        self.trace_again: Callable[[], Trace] | None = None  # until the graph has been compiled
        layouts = [*map(layout_of, leaves)]
        replayed = backend == "replay" or rare or background is not False
        traced = trace_function(f, signature.treedef, layouts, for_replay=replayed)
        self.communicates = any(_torch.is_collective(node.target) for node in _operations(traced))
        if self.communicates:
            _check_processes(f, traced)
        self.treedef, self.constants = traced.treedef, references(traced.constants)
        self.kinds = [*map(layout_of, traced.constants)]
        self.places = _places(signature, layouts, traced)
        donated = dict(zip(self.donated, self.places, strict=True))

        def compile(traced: Trace) -> Run:
            run, name = compile_graph(traced, donated, mode, options)
            compiled_graphs.add(name)
            return run

        self.compile = compile
        self.run = replay(traced, donated) if replayed else compile(traced)
        if replayed and backend != "replay":
            self.trace_again = lambda: trace_function(f, signature.treedef, layouts, for_replay=False)

    def holds(self) -> bool:
        """Whether the tensors that the function closed over still have the layouts with which they were traced."""
        return not self.constants or [layout_of(constant()) for constant in self.constants] == self.kinds

    def constants_require_grad(self) -> bool:
        """Whether a tensor that the function closed over requires gradients."""
        return any(constant().requires_grad for constant in self.constants)

    def call(self, leaves: list[Tensor], given: list[Tensor]) -> Tree:
        """Return the results. ``given`` are the donated tensors, of which ``leaves`` may hold copies.

        This is a method, and not ``__call__``, because Python delivers signals when a call that went through C returns:
        an interrupt after the exchange would lose the results.
        """
        if self.trace_again is not None:
            self._switch(self.trace_again)
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            for kind in self.autocast:  # the graph already contains autocast's conversions
                stack.enter_context(torch.autocast(kind, enabled=False))
            closed_over = [constant() for constant in self.constants]
            if closed_over and given:
                taken = set(map(id, given))
                closed_over = [x.clone() if id(x) in taken else x for x in closed_over]
            if self.communicates:
                stack.enter_context(explained_failures())
            results = self.run([*leaves, *closed_over])
        if not self.donated:
            return self.treedef.unflatten(results)
        return self.handover.exchange(given, [leaves[i] for i in self.donated], self.places, results, self.treedef)

    def _switch(self, trace: Callable[[], Trace]) -> None:
        """Compile from the second call on, as the first may be the only one; switch when the code is ready or due."""
        self.calls += 1
        due = type(self.background) is int and self.calls >= self.background
        if self.calls == 1 and not due:
            return
        if self.background is False:
            self.run, self.trace_again = self.compile(trace()), None
            return
        if self.thread is None:
            thread = threading.Thread(target=self._compile, args=(trace(),), daemon=True)
            thread.start()
            self.thread = thread
        if due:
            self.thread.join()
        if not self.thread.is_alive():
            self.run, self.trace_again = self.compiled or self.run, None

    def _compile(self, traced: Trace) -> None:
        if sys.platform == "linux":  # where a thread has a priority of its own
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)  # inherited by the C++ compilers it starts
        try:
            self.compiled = self.compile(traced)
        except Exception as error:
            warnings.warn(f"Inductor failed in the background; the graph is still replayed: {error}", stacklevel=2)


def _operations(traced: Trace) -> list[torch.fx.Node]:
    """The operations of the graph and of the steps of its loops."""
    graphs = [module.graph for module in traced.module.modules() if isinstance(module, torch.fx.GraphModule)]
    return [node for graph in graphs for node in graph.nodes if node.op == "call_function"]


def _check_processes(f: Callable, traced: Trace) -> None:
    """Raise ``ValueError`` unless all processes, which communicate in this graph, have traced the same operations."""
    check_agreement(f"the graph of {name_of(f)}", [_describe(node) for node in _operations(traced)])


def _describe(node: torch.fx.Node) -> str:
    """An operation with the shapes of its results and the numbers that these are computed from.

    Other integers may differ between processes: the places of a process's rows, or its number in a key.
    """
    shapes = _shapes(node)
    is_floating = any(dtype.startswith(("float", "bfloat", "complex")) for _, dtype in shapes)
    kinds = (int, float, complex) if is_floating and _torch.is_elementwise(node.target) else (float, complex)
    numbers = [x for x in _torch.tree_leaves((node.args, node.kwargs)) if type(x) in kinds]
    return f"{node.target}: {shapes}" + (f" with {', '.join(map(repr, numbers))}" if numbers else "")


def _shapes(node: torch.fx.Node) -> list:
    values = [value for value in _torch.tree_leaves(node.meta.get("val")) if isinstance(value, Tensor)]
    return [(tuple(value.shape), str(value.dtype).removeprefix("torch.")) for value in values]


def _kind(layout: Layout) -> tuple:
    """What a result must have in common with a donated leaf whose memory it takes."""
    return layout.shape, layout.dtype, layout.device


def _places(signature: Signature, layouts: Sequence[Layout], traced: Trace) -> list[int]:
    """Find for each donated leaf the index of the result that takes its memory; ``ValueError`` if there is none."""
    results = [_kind(v.meta["val"]) if isinstance(v, torch.fx.Node) else None for v in traced.results]
    node = traced.treedef.node
    parts = traced.treedef.children if node and node.kind in (tuple, list) else (traced.treedef,)
    given = [[_kind(layouts[i]) for i in block] for block in signature.blocks]
    places = donation.assign(given, results, [part.num_leaves for part in parts])
    for i, place in zip(signature.donated, places, strict=True):
        if place is None:
            left = [kind for j, kind in enumerate(results) if kind and j not in places]
            shown = ", ".join(f"{tuple(shape)} {dtype}" for shape, dtype, _ in left) or "nothing"
            raise ValueError(
                f"{signature.names[i]} is donated, but no result is left with its shape {tuple(layouts[i].shape)} and "
                f"dtype {layouts[i].dtype} to take its memory; the results left are: {shown}. Return its new value in "
                "the same shape and dtype, or leave the argument out of donate_argnums"
            )
    return [place for place in places if place is not None]
