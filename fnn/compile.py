"""Compilation of whole pure functions."""

import functools
from collections.abc import Callable
from typing import Any

import torch

from fnn import _torch


def jit(function: Callable | None = None, *, backend: str = "inductor") -> Any:
    """``torch.compile`` of a whole pure function as one graph (``fullgraph=True``).

    Use as ``@jit`` or ``@jit(...)``. The graph is made on the first call and again for new shapes, dtypes or
    Python values; :func:`compile_count` tells how often. ``backend="eager"`` or ``"aot_eager"`` trace
    without generating code.

    >>> square = jit(lambda x: x * x, backend="eager")
    >>> square(torch.tensor(3.0)), compile_count(square)
    (tensor(9.), 1)
    """
    if function is None:
        return functools.partial(jit, backend=backend)
    count = 0
    inner = _torch.lookup_backend(backend)

    def counting(graph: Any, inputs: Any) -> Any:
        nonlocal count
        count += 1
        return inner(graph, inputs)

    compiled = torch.compile(function, fullgraph=True, backend=counting)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            return compiled(*args, **kwargs)

    call.compile_count = lambda: count  # type: ignore[attr-defined]
    return call


def compile_count(jitted: Callable) -> int:
    """How often a function made by :func:`jit` has been compiled so far.

    >>> compile_count(jit(lambda x: x))
    0
    """
    return jitted.compile_count()  # type: ignore[attr-defined]
