"""All leaves at once in eager code: a list of tensors that computes like one tensor, by multi-tensor kernels.

A formula for one leaf then serves both worlds: compiled or transformed it is applied to each tensor, and eager to all
of them in one call for each operation, which is what makes ``torch.optim``'s ``foreach`` fast.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from fnn import _torch


class Many:
    """A list of tensors with the arithmetic and the methods of one.

    Operators, and the methods that torch has multi-tensor kernels for, call those; every other method of a tensor is
    called on each. 0-d tensors and numbers act on all.

    >>> import torch
    >>> (2 * Many([torch.ones(1), torch.ones(2)]) + 1).sqrt().tensors
    [tensor([1.7321]), tensor([1.7321, 1.7321])]
    """

    __slots__ = ("tensors",)

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = list(tensors)

    def __getattr__(self, name: str) -> Callable:
        if name.startswith("__"):
            raise AttributeError(name)
        kernel = _torch.foreach.get(name)

        def together(*arguments: Any) -> "Many":
            return Many(_torch.foreach[name](self.tensors, *[operand(a) for a in arguments]))

        def one_by_one(*arguments: Any, **keywords: Any) -> "Many":
            columns = [a.tensors if isinstance(a, Many) else [a] * len(self.tensors) for a in arguments]
            rows = zip(self.tensors, *columns, strict=True)
            return Many([getattr(x, name)(*rest, **keywords) for x, *rest in rows])

        return together if kernel is not None else one_by_one

    def __add__(self, other: Any) -> "Many":
        return self.add(other)

    def __sub__(self, other: Any) -> "Many":
        return self.add(-other) if isinstance(other, Tensor) else self.sub(other)  # no kernel subtracts a 0-d tensor

    def __mul__(self, other: Any) -> "Many":
        return self.mul(other)

    def __truediv__(self, other: Any) -> "Many":
        return self.div(other)

    def __neg__(self) -> "Many":
        return self.neg()

    def __rsub__(self, other: Any) -> "Many":
        return self.neg().add(other)

    def __rtruediv__(self, other: Any) -> "Many":
        return self.reciprocal().mul(other)

    __radd__, __rmul__ = __add__, __mul__


def operand(value: Any) -> Any:
    """What a multi-tensor kernel takes: the list of a Many, and a plain number where reading it is free."""
    if isinstance(value, Many):
        return value.tensors
    return value.item() if isinstance(value, Tensor) and value.device.type == "cpu" else value


def lerp(start: Any, end: Any, weight: Tensor) -> Any:
    """start + weight (end - start), for a tensor or Many.

    >>> import torch
    >>> lerp(torch.zeros(2), torch.ones(2), torch.tensor(0.25))
    tensor([0.2500, 0.2500])
    """
    if isinstance(start, Many) and not isinstance(operand(weight), Tensor):
        return start.lerp(end, weight)
    return start + (end - start) * weight


def add_scaled(start: Any, tensor: Any, factor: Tensor) -> Any:
    """start + factor tensor, for a tensor or Many.

    >>> import torch
    >>> add_scaled(torch.zeros(2), torch.ones(2), torch.tensor(0.5))
    tensor([0.5000, 0.5000])
    """
    if isinstance(start, Many) and not isinstance(operand(factor), Tensor):
        return Many(_torch.foreach["add"](start.tensors, tensor.tensors, alpha=operand(factor)))
    return start + tensor * factor


def add_product(start: Any, first: Any, second: Any, factor: Tensor) -> Any:
    """start + factor first second, for a tensor or Many.

    >>> import torch
    >>> add_product(torch.zeros(2), torch.ones(2), torch.ones(2), torch.tensor(0.5))
    tensor([0.5000, 0.5000])
    """
    if isinstance(start, Many):
        value = operand(factor)
        return start.addcmul(first, second, value) if not isinstance(value, Tensor) else start + first * second * factor
    return start + first * second * factor


def root(x: Any) -> Any:
    """The square root of a tensor or Many, with slope 0 at 0, so that meta-gradients pass gradients that are zero.

    >>> import torch
    >>> torch.func.grad(lambda x: root(x).sum())(torch.tensor([0.0, 4.0]))
    tensor([0.0000, 0.2500])
    """
    if isinstance(x, Many):
        return x.sqrt()
    zero = x == 0
    return x.masked_fill(zero, 1.0).sqrt().masked_fill(zero, 0.0)
