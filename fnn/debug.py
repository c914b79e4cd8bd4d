"""Debugging: printing inside jitted functions, and finding the first operation that produces a nan."""

import builtins
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fnn import _torch
from fnn import tree as _tree
from fnn._tracing import call_when_run
from fnn.compile.trace import stack, user_line

__all__ = ["nans", "print"]


def print(template: str, *values: Any) -> None:
    """Print ``template.format(*values)``; in a function jitted by :func:`fnn.jit`, each time that the function runs.

    The values are tensors or trees of tensors. Inside ``vmap`` the tensors of all samples are printed at once, and
    inside ``grad`` and other derivatives the plain values. With ``backend="inductor"`` it raises ``TypeError``.

    >>> print("x = {}", torch.ones(2))
    x = tensor([1., 1.])
    """
    leaves, treedef = _tree.flatten(values)
    call_when_run(
        lambda tensors: builtins.print(template.format(*treedef.unflatten(tensors))),
        [leaf if isinstance(leaf, Tensor) else torch.as_tensor(leaf) for leaf in leaves],
    )


@contextmanager
def nans() -> Iterator[None]:
    """Within this context, an operation that produces a nan from arguments without one raises ``FloatingPointError``.

    The message names the operation and the user's line. Jitted functions run as plain functions within the context.
    For an operation of a backward pass, the line is the one that calls for the derivative.

    >>> with nans():
    ...     torch.tensor(-1.0).log()
    Traceback (most recent call last):
    FloatingPointError: log made a nan of shape () from arguments without one ...
    """
    with _Nans():
        yield


class _Nans(_torch.TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        given_nan = any(map(_has_nan, _torch.tree_leaves((args, kwargs))))  # before an operation in place changes them
        results = func(*args, **(kwargs or {}))
        bad = next((result for result in _torch.tree_leaves(results) if _has_nan(result)), None)
        if bad is not None and not given_nan:
            name, shape = _torch.operation_name(func), tuple(bad.shape)
            line = user_line(stack(sys._getframe()))
            raise FloatingPointError(f"{name} made a nan of shape {shape} from arguments without one{line}")
        return results


def _has_nan(value: Any) -> bool:
    floating = isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())
    return floating and bool(value.isnan().any())
