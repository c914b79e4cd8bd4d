"""A list of tensors that behaves like one tensor, computed by torch's multi-tensor kernels.

Optimizers are written as rules for one leaf. In compiled or transformed code a rule is applied to each leaf, and the
compiler fuses the operations. In eager code it is applied once to the list of all leaves, so each operation is one call
for all leaves, as in the ``foreach`` implementations of ``torch.optim``.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fnn import _torch
from fnn._numerics import safe_sqrt
from fnn.optim import kernels


class LeafwiseError(TypeError):
    """The result of an operation is not a tensor and differs between the tensors of a list.

    A rule that raises this error is run leaf by leaf.
    """


class TensorList:
    """A list of tensors that behaves like one tensor: each operation is applied to every tensor of the list.

    All operators, methods and attributes of a tensor and all functions of torch work. Tensors and numbers in the same
    expression are combined with every tensor of the list. A result that is not a tensor, such as ``x.ndim``,
    ``x.dtype`` or ``bool(x.any())``, is returned if it is equal for all tensors; otherwise :class:`LeafwiseError` is
    raised. ``isinstance(x, torch.Tensor)`` is false.

    >>> (2 * TensorList([torch.ones(1), torch.ones(2)]) + 1).sqrt().tensors
    [tensor([1.7321]), tensor([1.7321, 1.7321])]
    >>> torch.where(TensorList([torch.ones(1), torch.ones(2)]) != 0, 3.0, 0.0).tensors
    [tensor([3.]), tensor([3., 3.])]
    >>> TensorList([torch.ones(1), torch.ones(2, 2)]).ndim
    Traceback (most recent call last):
    fnn.optim.tensor_list.LeafwiseError: .ndim differs between the tensors of a list: [1, 2]
    """

    __slots__ = ("tensors",)
    __array_ufunc__ = None  # makes NumPy numbers on the left defer to the operators of this class

    if TYPE_CHECKING:  # all operators are set below

        def __add__(self, other: Any) -> "TensorList": ...
        def __mul__(self, other: Any) -> "TensorList": ...

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = list(tensors)

    @classmethod
    def __torch_function__(cls, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kernel = _KERNELS.get(function)
        if kernel is not None and not kwargs:
            result = kernel(*args)
            if result is not NotImplemented:
                return result
        return _each(function, args, kwargs or {})

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        attribute = getattr(Tensor, name)
        if callable(attribute):
            return lambda *args, **kwargs: self.__torch_function__(attribute, (), (self, *args), kwargs)
        return _gather([getattr(x, name) for x in self.tensors], f".{name}")

    def __iter__(self) -> Iterator["TensorList"]:
        length = len(self)
        return iter([TensorList([x[i] for x in self.tensors]) for i in range(length)])

    def __len__(self) -> int:
        return _each(len, (self,), {})

    def __bool__(self) -> bool:
        return _each(bool, (self,), {})

    def __int__(self) -> int:
        return _each(int, (self,), {})

    __index__ = __int__

    def __float__(self) -> float:
        return _each(float, (self,), {})

    def __array__(self, *_: Any) -> Any:
        raise LeafwiseError("a list of tensors is not one array")

    def __repr__(self) -> str:
        return f"TensorList({self.tensors})"

    __hash__ = object.__hash__


def _each(function: Callable, args: Sequence, kwargs: dict) -> Any:
    """Call a function once for each tensor of the lists among its arguments, and gather the results."""
    lengths = {len(x.tensors) for x in _lists((args, kwargs))}
    if len(lengths) != 1:
        raise LeafwiseError(f"lists of {sorted(lengths)} tensors in one call of {function}")
    rows = [
        function(*[_pick(x, i) for x in args], **{name: _pick(x, i) for name, x in kwargs.items()})
        for i in range(lengths.pop())
    ]
    return _gather(rows, getattr(function, "__name__", "a result"))


def _lists(value: Any) -> list[TensorList]:
    if isinstance(value, TensorList):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [tensors for x in value for tensors in _lists(x)] if isinstance(value, (list, tuple)) else []


def _pick(value: Any, i: int) -> Any:
    """Replace the lists in an argument by their tensors at index i."""
    if isinstance(value, TensorList):
        return value.tensors[i]
    if type(value) in (list, tuple):
        return type(value)([_pick(x, i) for x in value])
    if type(value) is dict:
        return {key: _pick(x, i) for key, x in value.items()}
    return value


def _gather(rows: list, name: str) -> Any:
    """Combine the results for each tensor into a list of tensors, or into the one value that all of them have."""
    first = rows[0] if rows else None
    if isinstance(first, Tensor):
        return TensorList(rows)
    if isinstance(first, (tuple, list)) and any(isinstance(x, Tensor) for x in first):
        if len({len(row) for row in rows}) > 1:
            raise LeafwiseError(f"{name} has results of different lengths for the tensors of a list")
        columns = [_gather(list(column), name) for column in zip(*rows, strict=True)]
        return columns if isinstance(first, list) else _as_tuple(type(first), columns)
    if any(row != first for row in rows):
        raise LeafwiseError(f"{name} differs between the tensors of a list: {rows}")
    return first


def _as_tuple(kind: type, values: list) -> Any:
    return kind(*values) if hasattr(kind, "_fields") else kind(values)


def _unary(name: str) -> Callable:
    kernel = _torch.foreach[name]
    return lambda x: TensorList(kernel(x.tensors))


def _binary(name: str, commutes: bool = False) -> Callable:
    kernel = _torch.foreach[name]

    def call(a: Any, b: Any) -> Any:
        if not isinstance(a, TensorList):
            if not commutes:
                return NotImplemented
            a, b = b, a
        if isinstance(b, TensorList):
            return TensorList(kernel(a.tensors, b.tensors)) if len(a.tensors) == len(b.tensors) else NotImplemented
        if type(b) is float or type(b) is int:
            return TensorList(kernel(a.tensors, b))
        if not isinstance(b, Tensor) or b.dim():
            return NotImplemented
        if name == "add":
            return TensorList(_torch.foreach_add_scalar(a.tensors, b))
        if name == "sub":
            return TensorList(_torch.foreach_add_scalar(a.tensors, b, alpha=-1))
        return TensorList(kernel(a.tensors, b)) if name in ("mul", "div") else NotImplemented

    return call


# the functions of torch that have a multi-tensor kernel; all others are called for each tensor
_KERNELS: dict[Callable, Callable] = {}
for _name in ("abs", "exp", "log", "neg", "reciprocal", "sign", "sqrt"):
    _KERNELS |= dict.fromkeys((getattr(torch, _name), getattr(Tensor, _name)), _unary(_name))
for _name, _function in (("add", _binary("add", True)), ("mul", _binary("mul", True))):
    _KERNELS |= dict.fromkeys((getattr(torch, _name), getattr(Tensor, _name)), _function)
for _name in ("sub", "div", "maximum", "minimum", "pow"):
    _KERNELS |= dict.fromkeys((getattr(torch, _name), getattr(Tensor, _name)), _binary(_name))


def _operator(name: str) -> Callable:
    function = getattr(Tensor, name)

    def operator(self: TensorList, *args: Any) -> Any:
        return TensorList.__torch_function__(function, (), (self, *args))

    operator.__name__ = name
    return operator


_OPERATORS = (
    "add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "floordiv", "rfloordiv", "mod", "rmod",
    "pow", "rpow", "matmul", "rmatmul", "and", "rand", "or", "ror", "xor", "rxor", "lshift", "rlshift", "rshift",
    "rrshift", "eq", "ne", "lt", "le", "gt", "ge", "neg", "pos", "abs", "invert", "getitem", "contains",
)  # fmt: skip
for _name in _OPERATORS:
    setattr(TensorList, f"__{_name}__", _operator(f"__{_name}__"))


def _in_place(name: str) -> Callable:
    function = getattr(Tensor, name)

    def operator(self: TensorList, *args: Any) -> TensorList | None:
        _each(function, (self, *args), {})
        return self if name != "__setitem__" else None

    operator.__name__ = name
    return operator


for _name in ("iadd", "isub", "imul", "itruediv", "ipow", "iand", "ior", "ixor", "setitem"):
    setattr(TensorList, f"__{_name}__", _in_place(f"__{_name}__"))

for _name, _function in (
    ("__add__", _KERNELS[torch.add]),
    ("__radd__", _KERNELS[torch.add]),
    ("__mul__", _KERNELS[torch.mul]),
    ("__rmul__", _KERNELS[torch.mul]),
    ("__sub__", _KERNELS[torch.sub]),
    ("__truediv__", _KERNELS[torch.div]),
    ("__pow__", _KERNELS[torch.pow]),
    ("__neg__", _KERNELS[torch.neg]),
    ("__abs__", _KERNELS[torch.abs]),
):
    _KERNELS[getattr(Tensor, _name)] = _function


def lerp(start: Any, end: Any, weight: Tensor) -> Any:
    """start + weight (end - start), for tensors or lists of them.

    >>> lerp(torch.zeros(2), torch.ones(2), torch.tensor(0.25))
    tensor([0.2500, 0.2500])
    """
    if isinstance(start, TensorList):
        return TensorList(kernels.lerp(start.tensors, end.tensors, weight))
    return start + (end - start) * weight


def add_scaled(start: Any, other: Any, factor: Tensor) -> Any:
    """start + factor other, for tensors or lists of them.

    >>> add_scaled(torch.zeros(2), torch.ones(2), torch.tensor(0.5))
    tensor([0.5000, 0.5000])
    """
    if isinstance(start, TensorList):
        return TensorList(kernels.add_scaled(start.tensors, other.tensors, factor))
    return start + other * factor


def add_product(start: Any, first: Any, second: Any, factor: Tensor) -> Any:
    """start + factor first second, for tensors or lists of them.

    >>> add_product(torch.zeros(2), torch.ones(2), torch.ones(2), torch.tensor(0.5))
    tensor([0.5000, 0.5000])
    """
    if isinstance(start, TensorList):
        return TensorList(kernels.add_product(start.tensors, first.tensors, second.tensors, factor))
    return start + first * second * factor


def root(x: Any) -> Any:
    """The square root of a tensor or a list of them, with slope 0 at 0, so that meta-gradients pass zero gradients.

    >>> torch.func.grad(lambda x: root(x).sum())(torch.tensor([0.0, 4.0]))
    tensor([0.0000, 0.2500])
    """
    return x.sqrt() if isinstance(x, TensorList) else safe_sqrt(x)
