"""Draws from continuous distributions: uniform, normal and truncated normal."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fnn import tree as _tree
from fnn.random.arguments import (
    are_numbers,
    as_bound,
    as_constant,
    as_shape,
    check_broadcast,
    check_floating,
    device_of,
    shape_of,
)
from fnn.random.keys import split
from fnn.random.threefry import WORD, hash_counters, long_word, shift_right

_FARTHEST = 37.0  # standard deviations; the normal distribution function underflows beyond -37.5 in float64


def uniform(
    key: Tensor,
    shape: Sequence[int] = (),
    dtype: torch.dtype = torch.float32,
    minval: float | Tensor = 0.0,
    maxval: float | Tensor = 1.0,
) -> Tensor:
    """Draw uniform numbers from [minval, maxval). The result is minval where the bounds are equal.

    Raises ``ValueError`` for bounds that are numbers with minval > maxval or not finite, and for arrays of bounds that
    do not broadcast to ``shape``.

    >>> import fnn
    >>> uniform(fnn.random.key(0), (3,)).shape
    torch.Size([3])
    """
    shape = as_shape(shape)
    if are_numbers(minval, maxval):
        minval, maxval = float(minval), float(maxval)
        check_floating(dtype)
        largest = torch.finfo(dtype).max
        if not (minval <= maxval and -largest <= minval and maxval <= largest and maxval - minval <= largest):
            raise ValueError(
                f"uniform expects minval <= maxval, both and their difference finite in {dtype}, "
                f"got minval={minval}, maxval={maxval}"
            )
        if (minval, maxval) == (0.0, 1.0):
            return unit_draws(key, shape, dtype)
        return unit_draws(key, shape, dtype, lambda unit: _between(unit, minval, maxval))
    minval, maxval = (as_bound(bound, key) for bound in (minval, maxval))
    check_broadcast("uniform", shape, minval, maxval)
    return _between(unit_draws(key, shape, dtype), minval, maxval)


def normal(key: Tensor, shape: Sequence[int] = (), dtype: torch.dtype = torch.float32) -> Tensor:
    """Draw standard normal numbers (Box and Muller, 1958): r cos(2 pi v) and r sin(2 pi v) with r = sqrt(-2 log u).

    u and v are uniform. In float32 the largest possible magnitude is 6.6. Compiled and eager results may differ in the
    last bits, because their logarithms and cosines do.

    >>> import fnn
    >>> normal(fnn.random.key(0), (2, 3)).shape
    torch.Size([2, 3])
    """
    check_floating(dtype)
    shape = as_shape(shape)
    count = math.prod(shape)
    half = (count + 1) // 2
    if dtype == torch.float64:
        radial, angular = split(key)
        pairs = 1.0 - unit_draws(radial, (half,), dtype), unit_draws(angular, (half,), dtype)
        draws = torch.cat(_box_muller(*pairs))
    else:
        draws = torch.cat(hash_counters(key, half, _normal_pair))
    return draws[:count].reshape(shape).to(dtype)


def truncated_normal(
    key: Tensor,
    lower: float | Tensor,
    upper: float | Tensor,
    shape: Sequence[int] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Draw standard normal numbers conditioned on lower < x < upper, by the inverse distribution function.

    ``shape`` defaults to the shape of the bounds. Raises ``ValueError`` for numbers with lower >= upper, for an
    interval beyond 37 standard deviations, whose probability is too small for float64, and for arrays of bounds that do
    not broadcast to ``shape``.

    >>> import fnn
    >>> x = truncated_normal(fnn.random.key(0), -2.0, 2.0, (1000,))
    >>> bool((x.abs() < 2).all())
    True
    """
    check_floating(dtype)
    wide = torch.float64 if device_of(key).type != "mps" else torch.float32
    if are_numbers(lower, upper):
        if not lower < upper or lower > _FARTHEST or upper < -_FARTHEST:
            raise ValueError(
                f"truncated_normal expects lower < upper, with a part of the interval within {_FARTHEST:.0f} standard "
                f"deviations, got {lower} and {upper}"
            )
        finish = lambda unit: _truncated(unit, float(lower), float(upper), dtype)
        return _open_unit(key, () if shape is None else as_shape(shape), dtype, wide, finish)
    lower, upper = (as_bound(bound, key) for bound in (lower, upper))
    shape = torch.broadcast_shapes(*map(shape_of, (lower, upper))) if shape is None else as_shape(shape)
    check_broadcast("truncated_normal", shape, lower, upper)
    return _truncated(_open_unit(key, shape, dtype, wide), lower, upper, dtype)


def like(key: Tensor, tree: _tree.Tree, sampler: Callable[..., Tensor] = normal) -> _tree.Tree:
    """Draw a tree with the structure, shapes, dtypes and devices of ``tree``.

    ``sampler(key, shape, dtype=dtype)`` draws one leaf; it may be :func:`normal` or :func:`uniform`. Each leaf is drawn
    with its own key, so leaves of equal shape differ.

    >>> import fnn
    >>> like(fnn.random.key(0), {"w": torch.zeros(2, 3)})["w"].shape
    torch.Size([2, 3])
    """
    leaves, treedef = _tree.flatten(tree)
    keys = split(key, len(leaves))
    return treedef.unflatten(
        [sampler(k, leaf.shape, dtype=leaf.dtype).to(leaf.device) for k, leaf in zip(keys, leaves, strict=True)]
    )


def unit_draws(
    key: Tensor, shape: tuple[int, ...], dtype: torch.dtype, then: Callable[[Tensor], Tensor] = lambda unit: unit
) -> Tensor:
    """Draw multiples of the spacing of floating numbers below 1, from [0, 1), and apply ``then`` to each piece."""
    check_floating(dtype)
    convert = {
        torch.float64: _unit_from_64_bits,
        torch.float32: lambda a, b: shift_right(a ^ b, 9).to(torch.float32) * 2.0**-23,
        torch.float16: lambda a, b: (((a ^ b) & 0xFFFF) >> 6).to(torch.float16) * 2.0**-10,
        torch.bfloat16: lambda a, b: (((a ^ b) & 0xFF) >> 1).to(torch.bfloat16) * 2.0**-7,
    }[dtype]
    return hash_counters(key, math.prod(shape), lambda a, b: (then(convert(a, b)),))[0].reshape(shape)


def _unit_from_64_bits(high: Tensor, low: Tensor) -> Tensor:
    return (long_word(high, low) >> 12 & (1 << 52) - 1).to(torch.float64) * 2.0**-52


def _open_unit(
    key: Tensor,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    wide: torch.dtype,
    then: Callable[[Tensor], Tensor] = lambda unit: unit,
) -> Tensor:
    """Draw numbers of dtype ``wide`` from the open interval (0, 1), and apply ``then`` to each piece.

    64 bits are used for results of float64, and 32 bits for others.
    """
    finish = lambda a, b: (then(_open_unit_of(a, b, dtype, wide)),)
    return hash_counters(key, math.prod(shape), finish)[0].reshape(shape)


def _open_unit_of(a: Tensor, b: Tensor, dtype: torch.dtype, wide: torch.dtype) -> Tensor:
    if dtype == torch.float64:
        return _unit_from_64_bits(a, b) + 2.0**-53
    if wide == torch.float32:
        return (shift_right(a ^ b, 9).to(wide) + 0.5) * 2.0**-23
    return (((a ^ b).to(torch.int64) & WORD).to(wide) + 0.5) * 2.0**-32


def _between(unit: Tensor, minval: float | Tensor, maxval: float | Tensor) -> Tensor:
    dtype = unit.dtype
    low, high = (as_constant(bound, dtype, unit.device) for bound in (minval, maxval))
    span = high - low
    if dtype in (torch.float32, torch.float16) and unit.device.type != "mps":
        # round once, as JAX does, so that eager code, compiled code and CUDA agree
        scaled = (unit.to(torch.float64) * span.to(torch.float64) + low.to(torch.float64)).to(dtype)
    else:
        scaled = unit * span + low
    step = next_up(-high).detach() + high.detach()  # the distance from high to the next smaller number
    return torch.maximum(torch.where(scaled >= high, high - step, scaled), low)


def _truncated(unit: Tensor, lower: float | Tensor, upper: float | Tensor, dtype: torch.dtype) -> Tensor:
    """Return the normal numbers below which the share ``unit`` of the probability between the bounds lies."""
    low, high = (as_constant(bound, unit.dtype, unit.device) for bound in (lower, upper))
    # the distribution function is precise in the lower tail only, so draw -x where both bounds are positive
    positive = low > 0
    first, last = torch.where(positive, -high, low), torch.where(positive, -low, high)
    below, above = (
        0.5 * torch.erfc(-bound / math.sqrt(2.0)) for bound in (first, last)
    )  # torch.special.ndtr underflows in the tail
    share = torch.where(positive, 1.0 - unit, unit)
    draws = torch.special.ndtri(below + share * (above - below))
    draws = torch.where(positive, -draws, draws).to(dtype)
    return inside(draws, lower, upper)


def inside(x: Tensor, lower: float | Tensor, upper: float | Tensor) -> Tensor:
    """Move numbers that rounding has taken out of the open interval (lower, upper) back into it.

    >>> inside(torch.tensor([-2.0, 0.0]), -2.0, 2.0) > -2
    tensor([True, True])
    """
    low, high = (as_constant(bound, x.dtype, x.device).detach() for bound in (lower, upper))
    return torch.minimum(torch.maximum(x, next_up(low)), -next_up(-high))


def next_up(x: Tensor) -> Tensor:
    """Return the next larger number of the dtype."""
    if x.dtype not in (torch.float16, torch.bfloat16):
        return torch.nextafter(x, torch.full_like(x, math.inf))
    bits = x.detach().view(torch.int16)  # torch.nextafter does not take 16 bits on every version and device
    following = torch.where(x > 0, bits + 1, bits - 1)
    return torch.where(x == 0, torch.ones_like(bits), following).to(torch.int16).view(x.dtype)


def _normal_pair(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    u = (shift_right(a, 1).to(torch.float32) + 1.0) * 2.0**-31  # in (0, 1]: its logarithm is finite
    return _box_muller(u, b.to(torch.float32) * 2.0**-32)


def _box_muller(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    radius = torch.sqrt(-2.0 * torch.log(u))
    angle = 2.0 * math.pi * v
    return radius * torch.cos(angle), radius * torch.sin(angle)
