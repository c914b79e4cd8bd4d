"""Gated units: one half of the entries multiplied by a function of the other half."""

from collections.abc import Callable

import torch
from torch import Tensor

from fnn._numerics import widen
from fnn.layers.activations import gelu, silu
from fnn.layers.base import ShapeError, check_axis, check_real, check_tensor


def glu(x: Tensor, dim: int = -1) -> Tensor:
    """a sigmoid(b), where a and b are the halves of x along ``dim`` (Dauphin et al., 2017).

    x: (..., 2 n, ...) -> (..., n, ...). Raises ``ShapeError`` unless there is such an axis and its size is even.

    >>> glu(torch.tensor([3.0, 0.0]))
    tensor([1.5000])
    """
    return _gated("glu", x, dim, lambda a, b: a * torch.sigmoid(b))


def swiglu(x: Tensor, dim: int = -1) -> Tensor:
    """silu(a) b, where a and b are the halves of x along ``dim`` (Shazeer, 2020).

    x: (..., 2 n, ...) -> (..., n, ...). Raises ``ShapeError`` unless there is such an axis and its size is even.

    >>> swiglu(torch.tensor([1.0, 2.0]))
    tensor([1.4621])
    """
    return _gated("swiglu", x, dim, lambda a, b: silu(a) * b)


def geglu(x: Tensor, dim: int = -1) -> Tensor:
    """gelu(a) b, where a and b are the halves of x along ``dim`` (Shazeer, 2020).

    x: (..., 2 n, ...) -> (..., n, ...). Raises ``ShapeError`` unless there is such an axis and its size is even.

    >>> geglu(torch.tensor([1.0, 2.0]))
    tensor([1.6827])
    """
    check_real("geglu", x)
    return _gated("geglu", x, dim, lambda a, b: gelu(a) * b)


def _gated(name: str, x: Tensor, dim: int, gate: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    check_tensor(name, x)
    check_axis(name, x, dim)
    if x.dim() == 0 or x.shape[dim] % 2:
        raise ShapeError(f"{name} halves axis {dim}, which must have an even size; got inputs of {tuple(x.shape)}")
    a, b = widen(x).chunk(2, dim)
    return gate(a, b).to(x.dtype)
