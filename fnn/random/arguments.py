"""Checks and conversions of the arguments of random functions."""

import numbers
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def as_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """Return a shape as a tuple. Raises ``ValueError`` unless it is a sequence of integers that are not negative."""
    sizes = [_as_size(n) for n in shape] if isinstance(shape, Sequence) and not isinstance(shape, str) else [None]
    if any(size is None for size in sizes):
        line = f"; write ({shape},)" if as_integer(shape) is not None else ""
        raise ValueError(f"a shape is a tuple of integers that are not negative, got {shape!r}{line}")
    return tuple(sizes)  # type: ignore[arg-type]


def _as_size(value: Any) -> int | None:
    if isinstance(value, torch.SymInt):
        return value  # type: ignore[return-value]
    number = as_integer(value)
    return None if number is None or number < 0 else number


def as_integer(value: Any) -> int | None:
    """Return a Python or NumPy integer as a Python integer, and None for anything else, including tensors."""
    if isinstance(value, Tensor) or getattr(value, "ndim", 0) != 0:
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def are_numbers(*values: Any) -> bool:
    """Return True if all values are real numbers, not tensors or arrays."""
    return all(isinstance(value, numbers.Real) for value in values)


def as_bound(bound: Any, key: Tensor) -> float | Tensor:
    """Return a number as a float and an array as a tensor on the device of the key."""
    if isinstance(bound, numbers.Real):
        return float(bound)
    return bound if isinstance(bound, Tensor) else torch.as_tensor(bound, device=device_of(key))


def as_integer_bound(bound: Any, key: Tensor) -> Tensor:
    """Return a bound of integers as an int64 tensor on the device of the key. Raises ``TypeError`` for other dtypes."""
    number = as_integer(bound)
    if number is not None:
        if not -(1 << 63) <= number < 1 << 63:
            raise ValueError(f"randint expects bounds of at most 64 bits, got {number}")
        return torch.full((), number, dtype=torch.int64, device=device_of(key))
    if not isinstance(bound, (Tensor, float)):
        bound = torch.as_tensor(bound)
    if not isinstance(bound, Tensor) or bound.dtype not in _INTEGERS:
        raise TypeError(f"randint expects integer bounds, got {described(bound)}; write int(bound) or bound.long()")
    return bound.to(device=device_of(key), dtype=torch.int64)


def is_small(bound: Any) -> bool:
    """Return True if every integer of the bound's dtype fits into 32 bits."""
    return torch.as_tensor(bound).dtype != torch.int64


def as_constant(value: float | Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a number or a tensor as a tensor of this dtype on this device."""
    if isinstance(value, Tensor):
        return value.to(device=device, dtype=dtype)
    return torch.full((), value, dtype=dtype, device=device)


def shape_of(bound: float | Tensor) -> tuple[int, ...]:
    """Return the shape of a tensor, and () for a number."""
    return tuple(bound.shape) if isinstance(bound, Tensor) else ()


def check_broadcast(name: str, shape: tuple[int, ...], *bounds: float | Tensor) -> None:
    """Raise ``ValueError`` unless the bounds broadcast to the shape of the result."""
    given = [shape_of(bound) for bound in bounds]
    try:
        fits = torch.broadcast_shapes(shape, *given) == torch.Size(shape)
    except RuntimeError:
        fits = False
    if not fits:
        listed = " and ".join(map(str, given))
        line = f"; write {name}(key, ..., shape={max(given, key=len)}) for one draw each" if shape == () else ""
        raise ValueError(f"{name}: bounds of shape {listed} do not broadcast to the shape {shape} of the result{line}")


def check_key(key: Any) -> None:
    """Raise ``TypeError`` unless the argument is one key."""
    if isinstance(key, Tensor) and key.dtype == torch.int32 and key.shape == (2,):
        return
    hint = ""
    if isinstance(key, Tensor):
        if key.dtype == torch.int32 and key.shape[-1:] == (2,):
            hint = "; several keys go through vmap, as in vmap(draw)(keys)"
    else:
        number = as_integer(key)
        hint = f"; write fnn.random.key({0 if number is None else number})"
    raise TypeError(
        f"expected a key, an int32 tensor of shape (2,) from fnn.random.key(seed), got {described(key)}{hint}"
    )


def device_of(key: Any) -> torch.device:
    """Return the device of a key. Raises ``TypeError`` for anything else.

    >>> import fnn
    >>> device_of(fnn.random.key(0))
    device(type='cpu')
    """
    check_key(key)
    return key.device


def described(value: Any) -> str:
    """Describe a value for an error message: a tensor by its shape and dtype, anything else as it prints."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}, {value.dtype}"
    return repr(value)


def check_floating(dtype: torch.dtype) -> None:
    """Raise ``TypeError`` unless draws can be made in this dtype."""
    if dtype not in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        hint = "" if isinstance(dtype, torch.dtype) else "; uniform(key, shape, dtype, minval, maxval)"
        raise TypeError(f"expected a floating dtype (float64, float32, float16, bfloat16), got {dtype}{hint}")
