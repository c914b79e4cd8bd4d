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
    _torch.call_when_run(
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
    with _torch.after_each_operation(_check):
        yield


def _check(operation: str, arguments: list[Tensor], results: list[Tensor]) -> None:
    bad = next((result for result in results if _has_nan(result)), None)
    if bad is None or any(map(_has_nan, arguments)):
        return
    line = user_line(stack(sys._getframe()))
    raise FloatingPointError(f"{operation} made a nan of shape {tuple(bad.shape)} from arguments without one{line}")


def _has_nan(tensor: Tensor) -> bool:
    return (tensor.is_floating_point() or tensor.is_complex()) and bool(tensor.isnan().any())
