"""The fastest Python function for an operation of a graph."""

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from fnn import _torch

_found: dict[tuple, Callable] = {}


def direct_call(operation: Any, args: tuple, kwargs: dict, value: Any) -> Callable:
    """The fastest function that calls this operation with arguments like these, in which nodes stand for tensors.

    torch's own functions, such as ``torch.add``, call a kernel with less overhead than those of ``torch.ops``. Each
    function of the operation's name is tried on the abstract values, and taken if it calls exactly this operation.

    value: the abstract result of the operation.
    """
    if not _torch.is_operation(operation):
        return operation
    value = value if _torch.schema(operation).returns else None
    values = [fx.map_arg(list(given), lambda node: node.meta["val"]) for given in (args, kwargs.values())]
    key = operation, *[tuple(map(_kind, given)) for given in values], tuple(kwargs)
    if key not in _found:
        general, *candidates = _torch.functions_of(operation)
        named = dict(zip(kwargs, values[1], strict=True))
        calls = (function for function in candidates if _calls(function, operation, values[0], named, value))
        _found[key] = next(calls, general)
    return _found[key]


def _calls(function: Callable, operation: Any, args: list, kwargs: dict, value: Any) -> bool:
    """Whether the function calls this operation, whose result is ``value``, and no other one before it."""
    try:
        with torch.no_grad(), _Seen(operation, value) as seen:
            function(*args, **kwargs)
    except (TypeError, RuntimeError, ValueError):
        return False
    return seen.first is operation


class _Seen(_torch.TorchDispatchMode):
    """Records the first operation that is called, and returns ``value`` instead of running the expected operation."""

    def __init__(self, expected: Any, value: Any) -> None:
        super().__init__()
        self.first: Any = None
        self.expected = expected
        self.value = value

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        self.first = self.first or func
        return self.value if func is self.expected else func(*args, **(kwargs or {}))


def _kind(value: Any) -> Any:
    return tuple(map(_kind, value)) if isinstance(value, (list, tuple)) else (type(value), getattr(value, "ndim", None))
