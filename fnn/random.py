"""Random numbers as pure functions of a key.

A key is an int32 tensor of shape (2,). Threefry-2x32 with 20 rounds (Salmon et al. 2011, "Parallel
random numbers: as easy as 1, 2, 3") hashes it with a counter, in plain tensor operations: the same key
gives the same bits on every device and torch version, in eager and compiled code, alone or under
``vmap`` over keys. Layout and conversions are those of ``jax.random`` (partitionable Threefry, JAX's
default), so ``key, split, fold_in, bits, uniform, randint, bernoulli, permutation`` give JAX's numbers,
with two exceptions: a uniform draw that rounds up to ``maxval`` becomes the number below it (JAX returns
``maxval``), and probabilities of 16 bits are compared with draws of 32 bits. :func:`normal` uses Box-Muller,
which is far cheaper here than JAX's inverse error function; it has the same distribution and other numbers.

Bounds and probabilities are Python numbers, NumPy arrays or tensors. Arrays of them must broadcast to ``shape``, so
that every number of the result is a draw of its own; ``ValueError`` otherwise, as in JAX.

No function here reads or changes torch's global generator.
"""

import math
import numbers
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fnn import tree as _tree
from fnn._numerics import widen

__all__ = [
    "bernoulli",
    "bits",
    "categorical",
    "fold_in",
    "key",
    "like",
    "normal",
    "permutation",
    "randint",
    "split",
    "truncated_normal",
    "uniform",
]

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_WORD = 0xFFFFFFFF
_LONG = 0xFFFFFFFFFFFFFFFF
_CHUNK = 1 << 16  # counters hashed at once on the CPU in eager mode: the twenty rounds stay in cache
_FARTHEST = 37.0  # standard deviations; the normal distribution function underflows beyond -37.5 in float64


def key(seed: int, device: torch.device | str | None = None) -> Tensor:
    """A key from an integer seed: int32, shape (2,).

    Raises ``TypeError`` for a seed that is not an integer, ``ValueError`` beyond 64 bits.

    >>> key(7)
    tensor([0, 7], dtype=torch.int32)
    """
    number = _as_integer(seed)
    if number is None or isinstance(seed, (bool, Tensor)):
        raise TypeError(f"fnn.random.key expects an integer seed, got {seed!r}; in a loop write fold_in(key, step)")
    if not -(1 << 63) <= number < 1 << 64:
        raise ValueError(f"fnn.random.key expects a seed of at most 64 bits, got {number}")
    high = 0 if -(1 << 31) <= number < 0 else number >> 32 & _WORD
    return torch.tensor([_signed(high), _signed(number & _WORD)], dtype=torch.int32, device=device)


def split(key: Tensor, num: int = 2) -> Tensor:
    """``num`` new, independent keys: int32, shape (num, 2). The old key should not be used again.

    >>> first, second = split(key(0))
    >>> first
    tensor([ 1797259609, -1715843330], dtype=torch.int32)
    """
    return torch.stack(_hash(key, _shape((num,))[0]), dim=-1)


def fold_in(key: Tensor, data: int | Tensor) -> Tensor:
    """A new key from a key and a number (a step, an epoch, a layer's index): int32, shape (2,).

    ``data`` is an integer or a 0-d integer tensor; its low 32 bits are used. Raises ``TypeError`` for anything else.

    >>> fold_in(key(0), 3).shape
    torch.Size([2])
    """
    _check_key(key)
    if isinstance(data, Tensor):
        if data.dim() != 0 or data.is_floating_point() or data.is_complex() or data.dtype == torch.bool:
            raise TypeError(
                f"fold_in expects an integer or a 0-d integer tensor, got {_described(data)}; "
                "for several numbers write vmap(fold_in, (None, 0))(key, numbers)"
            )
        low = data.to(torch.int64).to(torch.int32)
    else:
        number = _as_integer(data)
        if number is None:
            raise TypeError(f"fold_in expects an integer or a 0-d integer tensor, got {data!r}")
        low = torch.full((), _signed(number & _WORD), dtype=torch.int32, device=key.device)
    return torch.stack(_threefry(key[0], key[1], torch.zeros_like(low), low))


def bits(key: Tensor, shape: Sequence[int] = ()) -> Tensor:
    """32 random bits per element, int32 (JAX shows the same bits as uint32).

    >>> bits(key(0), (2,)).dtype
    torch.int32
    """
    shape = _shape(shape)
    return _hash(key, math.prod(shape), lambda a, b: (a ^ b,))[0].reshape(shape)


def uniform(
    key: Tensor,
    shape: Sequence[int] = (),
    dtype: torch.dtype = torch.float32,
    minval: float | Tensor = 0.0,
    maxval: float | Tensor = 1.0,
) -> Tensor:
    """Uniform numbers in [minval, maxval), of the given shape and floating dtype; minval where the bounds are equal.

    Raises ``ValueError`` for numbers minval > maxval, bounds that are not finite, and arrays of bounds that do not
    broadcast to ``shape``.

    >>> uniform(key(0), (3,)).shape
    torch.Size([3])
    """
    shape = _shape(shape)
    if _are_numbers(minval, maxval):
        minval, maxval = float(minval), float(maxval)
        _check_floating(dtype)
        largest = torch.finfo(dtype).max
        if not (minval <= maxval and -largest <= minval and maxval <= largest and maxval - minval <= largest):
            raise ValueError(
                f"uniform expects minval <= maxval, both and their difference finite in {dtype}, "
                f"got minval={minval}, maxval={maxval}"
            )
        if (minval, maxval) == (0.0, 1.0):
            return _unit(key, shape, dtype)
        return _unit(key, shape, dtype, lambda unit: _between(unit, minval, maxval))
    minval, maxval = (_as_bound(bound, key) for bound in (minval, maxval))
    _check_broadcast("uniform", shape, minval, maxval)
    return _between(_unit(key, shape, dtype), minval, maxval)


def normal(key: Tensor, shape: Sequence[int] = (), dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal numbers by Box and Muller (1958): r = sqrt(-2 log u), r cos(2 pi v), r sin(2 pi v).

    In float32 the largest possible magnitude is 6.6. Compiled and eager results may differ in the last
    bits, because the logarithms and cosines do.

    >>> normal(key(0), (2, 3)).shape
    torch.Size([2, 3])
    """
    _check_floating(dtype)
    shape = _shape(shape)
    count = math.prod(shape)
    half = (count + 1) // 2
    if dtype == torch.float64:
        radial, angular = split(key)
        pairs = 1.0 - _unit(radial, (half,), dtype), _unit(angular, (half,), dtype)
        draws = torch.cat(_box_muller(*pairs))
    else:
        draws = torch.cat(_hash(key, half, _normal_pair))
    return draws[:count].reshape(shape).to(dtype)


def truncated_normal(
    key: Tensor,
    lower: float | Tensor,
    upper: float | Tensor,
    shape: Sequence[int] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Standard normal numbers conditioned on lower < x < upper, by the inverse distribution function.

    ``shape`` is that of the bounds unless given. Raises ``ValueError`` for numbers lower >= upper, for an interval
    beyond 37 standard deviations, whose probability is too small for float64, and for arrays of bounds that do not
    broadcast to ``shape``.

    >>> x = truncated_normal(key(0), -2.0, 2.0, (1000,))
    >>> bool((x.abs() < 2).all())
    True
    """
    _check_floating(dtype)
    wide = torch.float64 if device_of(key).type != "mps" else torch.float32
    if _are_numbers(lower, upper):
        if not lower < upper or lower > _FARTHEST or upper < -_FARTHEST:
            raise ValueError(
                f"truncated_normal expects lower < upper, with a part of the interval within {_FARTHEST:.0f} standard "
                f"deviations, got {lower} and {upper}"
            )
        draw = lambda unit: _truncated(unit, float(lower), float(upper), dtype)
        return _open_unit(key, () if shape is None else _shape(shape), dtype, wide, draw)
    lower, upper = (_as_bound(bound, key) for bound in (lower, upper))
    shape = torch.broadcast_shapes(*map(_shape_of, (lower, upper))) if shape is None else _shape(shape)
    _check_broadcast("truncated_normal", shape, lower, upper)
    return _truncated(_open_unit(key, shape, dtype, wide), lower, upper, dtype)


def bernoulli(key: Tensor, p: float | Tensor = 0.5, shape: Sequence[int] | None = None) -> Tensor:
    """True with probability ``p``: bool, of the given shape (default: the shape of ``p``).

    Raises ``ValueError`` for a number outside [0, 1] and for an array of probabilities that does not broadcast to
    ``shape``.

    >>> bernoulli(key(0), 0.5, (4,)).dtype
    torch.bool
    """
    if _are_numbers(p):
        if not 0.0 <= p <= 1.0:
            raise ValueError(f"bernoulli expects a probability 0 <= p <= 1, got {p}")
        return _unit(key, () if shape is None else _shape(shape), torch.float32) < p
    probability = torch.as_tensor(p, device=None if isinstance(p, Tensor) else device_of(key))
    probability = widen(probability) if probability.is_floating_point() else probability.to(torch.float32)
    shape = tuple(probability.shape) if shape is None else _shape(shape)
    _check_broadcast("bernoulli", shape, probability)
    return _unit(key, shape, probability.dtype) < probability


def randint(
    key: Tensor, shape: Sequence[int], minval: int | Tensor, maxval: int | Tensor, dtype: torch.dtype = torch.int64
) -> Tensor:
    """Integers in [minval, maxval).

    The numbers are those that ``jax.random.randint`` gives for int32 where maxval - minval is at most 2^32, and
    those that it gives for int64 beyond. Raises ``ValueError`` for integers that leave nothing to draw or do not fit
    ``dtype``. Bounds in tensors are not looked at, and are treated as JAX treats them: they are moved into the
    dtype's range, and minval is the result where nothing is left.

    >>> x = randint(key(0), (100,), 0, 10)
    >>> int(x.min()), int(x.max())
    (0, 9)
    """
    if dtype.is_floating_point or dtype.is_complex or dtype == torch.bool:
        raise TypeError(f"randint expects an integer dtype, got {dtype}; write uniform for floating numbers")
    shape = _shape(shape)
    least, most = torch.iinfo(dtype).min, torch.iinfo(dtype).max
    first, last = _as_integer(minval), _as_integer(maxval)
    if first is not None and last is not None:
        if not least <= first < last <= most + 1:
            raise ValueError(
                f"randint expects minval < maxval, both within {dtype} ({least} to {most}; maxval may be one more), "
                f"got minval={first}, maxval={last}"
            )
        narrow = last - first <= 1 << 32
        span = torch.full((), _signed(last - first & _LONG, 64), dtype=torch.int64, device=device_of(key))
        offset = _below_span(key, shape, span, narrow, not narrow)
        return (offset + first).to(dtype)
    start, stop = (_as_integer_bound(bound, key) for bound in (minval, maxval))
    _check_broadcast("randint", shape, start, stop)
    small = all(_as_integer(bound) is not None or _is_small(bound) for bound in (minval, maxval))
    start, end = start.clamp(least, most), stop.clamp(least, most)
    span = torch.where(stop > end, end - start + 1, end - start)  # maxval may be one more than the largest number
    span = torch.where(start >= stop, 1, span)
    return (start + _below_span(key, shape, span, True, not small)).to(dtype)


def permutation(key: Tensor, x: int | Tensor) -> Tensor:
    """A random order of ``0 .. x - 1`` (int64), or of the rows of a tensor ``x``.

    >>> sorted(permutation(key(0), 4).tolist())
    [0, 1, 2, 3]
    """
    given = x.shape[0] if isinstance(x, Tensor) and x.dim() else None if isinstance(x, Tensor) else _as_integer(x)
    if given is None or given < 0:
        raise TypeError(f"permutation expects a length or a tensor of at least one axis, got {_described(x)}")
    size = given
    order = torch.arange(size, device=device_of(key))
    if size > 1:
        # sorting by 32-bit draws meets ties; repeating makes the leftover bias negligible
        for _ in range(math.ceil(3 * math.log(size) / math.log(_WORD))):
            key, sub = split(key)
            flip = -(1 << 31)  # int32 sorts as unsigned once its top bit is flipped
            order = order[torch.sort(bits(sub, (size,)) ^ flip, stable=True).indices]
    return x[order.to(x.device)] if isinstance(x, Tensor) else order


def categorical(key: Tensor, logits: Tensor, dim: int = -1, shape: Sequence[int] | None = None) -> Tensor:
    """Indices along ``dim`` drawn with probability softmax(logits), by the Gumbel maximum: int64.

    ``shape`` is the shape of the result: the logits' shape without ``dim``, with any axes before it. Logits of 16
    bits are drawn for in float32. Raises ``TypeError`` unless the logits are floating, ``ValueError`` for a shape that
    does not end with the logits' own.

    >>> categorical(key(0), torch.tensor([-9.0, 9.0]), shape=(5,))
    tensor([1, 1, 1, 1, 1])
    """
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        raise TypeError(f"categorical expects a tensor of floating logits, got {_described(logits)}")
    if not -logits.dim() <= dim < logits.dim() or not logits.shape[dim]:
        raise ValueError(f"categorical: logits of shape {tuple(logits.shape)} offer no choice along axis {dim}")
    logits = widen(logits)
    dim = dim - logits.dim() if dim >= 0 else dim
    batch = list(logits.shape)
    del batch[dim]
    shape = tuple(batch) if shape is None else _shape(shape)
    if shape[len(shape) - len(batch) :] != tuple(batch):
        raise ValueError(f"categorical: shape {shape} does not end with the logits' own {tuple(batch)}")
    full = list(shape)
    full.insert(len(full) + 1 + dim, logits.shape[dim])
    tiny = torch.finfo(logits.dtype).tiny
    gumbel = -torch.log(-torch.log(uniform(key, full, logits.dtype, tiny, 1.0)))
    return (gumbel + logits).argmax(dim)


def like(key: Tensor, tree: _tree.Tree, sampler: Callable[..., Tensor] = normal) -> _tree.Tree:
    """A tree of the same structure, shapes, dtypes and device with draws of ``sampler`` (normal, uniform).

    Each leaf has a key of its own, so leaves of one shape differ.

    >>> like(key(0), {"w": torch.zeros(2, 3)})["w"].shape
    torch.Size([2, 3])
    """
    leaves, treedef = _tree.flatten(tree)
    keys = split(key, len(leaves))
    return treedef.unflatten(
        [sampler(k, leaf.shape, dtype=leaf.dtype).to(leaf.device) for k, leaf in zip(keys, leaves, strict=True)]
    )


# The hash and the conversions of its words


def _signed(word: int, bits: int = 32) -> int:
    return word - (1 << bits) if word >= 1 << bits - 1 else word


def _shift_right(x: Tensor, places: int) -> Tensor:
    return (x >> places) & ((1 << (32 - places)) - 1)  # int32 shifts copy the sign; the mask drops the copies


def _threefry(key0: Tensor, key1: Tensor, x0: Tensor, x1: Tensor) -> tuple[Tensor, Tensor]:
    keys = (key0, key1, key0 ^ key1 ^ 0x1BD11BDA)
    x0, x1 = x0 + keys[0], x1 + keys[1]
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            x0 = x0 + x1
            x1 = (x1 << rotation) | _shift_right(x1, 32 - rotation)
            x1 = x1 ^ x0
        x0 = x0 + keys[(group + 1) % 3]
        x1 = x1 + keys[(group + 2) % 3] + (group + 1)
    return x0, x1


def _hash(
    key: Tensor, count: int, finish: Callable[[Tensor, Tensor], tuple[Tensor, ...]] = lambda x0, x1: (x0, x1)
) -> tuple[Tensor, ...]:
    """Both words of the hash of the counters 0 .. count - 1, passed through ``finish`` piece by piece."""
    _check_key(key)
    if count >= 1 << 31:
        raise ValueError(
            f"one draw gives fewer than 2**31 numbers, {count} were asked for; split the key and draw parts"
        )
    counters = torch.arange(count, dtype=torch.int32, device=key.device)
    whole = count <= _CHUNK or key.device.type != "cpu" or torch.compiler.is_compiling()
    pieces = [
        finish(*_threefry(key[0], key[1], torch.zeros_like(piece), piece))
        for piece in ([counters] if whole else counters.split(_CHUNK))
    ]
    return tuple(torch.cat(words) for words in zip(*pieces, strict=True)) if len(pieces) > 1 else pieces[0]


def _unit(
    key: Tensor, shape: tuple[int, ...], dtype: torch.dtype, then: Callable[[Tensor], Tensor] = lambda unit: unit
) -> Tensor:
    """Numbers in [0, 1), multiples of the dtype's step below 1, passed through ``then`` piece by piece."""
    _check_floating(dtype)
    convert = {
        torch.float64: _from_64_bits,
        torch.float32: lambda a, b: _shift_right(a ^ b, 9).to(torch.float32) * 2.0**-23,
        torch.float16: lambda a, b: (((a ^ b) & 0xFFFF) >> 6).to(torch.float16) * 2.0**-10,
        torch.bfloat16: lambda a, b: (((a ^ b) & 0xFF) >> 1).to(torch.bfloat16) * 2.0**-7,
    }[dtype]
    return _hash(key, math.prod(shape), lambda a, b: (then(convert(a, b)),))[0].reshape(shape)


def _open_unit(
    key: Tensor,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    wide: torch.dtype,
    then: Callable[[Tensor], Tensor] = lambda unit: unit,
) -> Tensor:
    """Numbers in the open interval (0, 1) of dtype ``wide``: from 64 bits for float64 results, from 32 for others."""

    finish = lambda a, b: (then(_open_unit_of(a, b, dtype, wide)),)
    return _hash(key, math.prod(shape), finish)[0].reshape(shape)


def _open_unit_of(a: Tensor, b: Tensor, dtype: torch.dtype, wide: torch.dtype) -> Tensor:
    if dtype == torch.float64:
        return _from_64_bits(a, b) + 2.0**-53
    if wide == torch.float32:
        return (_shift_right(a ^ b, 9).to(wide) + 0.5) * 2.0**-23
    return (((a ^ b).to(torch.int64) & _WORD).to(wide) + 0.5) * 2.0**-32


def _between(unit: Tensor, minval: float | Tensor, maxval: float | Tensor) -> Tensor:
    dtype = unit.dtype
    low, high = (_constant(bound, dtype, unit.device) for bound in (minval, maxval))
    span = high - low
    if dtype in (torch.float32, torch.float16) and unit.device.type != "mps":
        # one rounding, as in JAX: eager, compiled and CUDA then agree
        scaled = (unit.to(torch.float64) * span.to(torch.float64) + low.to(torch.float64)).to(dtype)
    else:
        scaled = unit * span + low
    step = _next_up(-high).detach() + high.detach()  # down to the next smaller number
    return torch.maximum(torch.where(scaled >= high, high - step, scaled), low)


def _truncated(unit: Tensor, lower: float | Tensor, upper: float | Tensor, dtype: torch.dtype) -> Tensor:
    """The normal number at the given share of the probability between the bounds."""
    low, high = (_constant(bound, unit.dtype, unit.device) for bound in (lower, upper))
    # the distribution function has all its digits in the lower tail only: draw for -x where both bounds are positive
    positive = low > 0
    first, last = torch.where(positive, -high, low), torch.where(positive, -low, high)
    below, above = (0.5 * torch.erfc(-bound / math.sqrt(2.0)) for bound in (first, last))  # ndtr loses the tail
    share = torch.where(positive, 1.0 - unit, unit)
    draws = torch.special.ndtri(below + share * (above - below))
    draws = torch.where(positive, -draws, draws).to(dtype)
    return inside(draws, lower, upper)


def inside(x: Tensor, lower: float | Tensor, upper: float | Tensor) -> Tensor:
    """The numbers moved into the open interval (lower, upper), which rounding may have taken them out of.

    >>> inside(torch.tensor([-2.0, 0.0]), -2.0, 2.0) > -2
    tensor([True, True])
    """
    low, high = (_constant(bound, x.dtype, x.device).detach() for bound in (lower, upper))
    return torch.minimum(torch.maximum(x, _next_up(low)), -_next_up(-high))


def _next_up(x: Tensor) -> Tensor:
    """The next larger number of the dtype."""
    if x.dtype not in (torch.float16, torch.bfloat16):
        return torch.nextafter(x, torch.full_like(x, math.inf))
    bits = x.detach().view(torch.int16)  # not every version and device has nextafter in 16 bits
    following = torch.where(x > 0, bits + 1, bits - 1)
    return torch.where(x == 0, torch.ones_like(bits), following).to(torch.int16).view(x.dtype)


def _below_span(key: Tensor, shape: tuple[int, ...], span: Tensor, narrow: bool, wide: bool) -> Tensor:
    """Integers in [0, span), int64. ``span`` holds unsigned 64-bit words; 0 stands for 2^64.

    ``narrow`` is for spans up to 2^32, ``wide`` for larger ones; both where the span is not known beforehand.
    """
    high_key, low_key = split(key)
    count = math.prod(shape)
    (high0, high1), (low0, low1) = ([word.reshape(shape) for word in _hash(k, count)] for k in (high_key, low_key))
    results = []
    if narrow:
        divisor = torch.where((span > 0) & (span <= 1 << 32), span, 1)
        high, low = ((a ^ b).to(torch.int64) & _WORD for a, b in ((high0, high1), (low0, low1)))
        factor = (1 << 16) % divisor
        factor = (factor * factor & _WORD) % divisor  # 2**32 modulo span, in the 32-bit arithmetic that JAX uses
        results.append((((high % divisor) * factor & _WORD) + low % divisor & _WORD) % divisor)
    if wide:
        high, low = (_long_word(a, b) for a, b in ((high0, high1), (low0, low1)))
        factor = _remainder(torch.full_like(span, 1 << 32), span)
        factor = _remainder(factor * factor, span)  # likewise in 64 bits
        results.append(_remainder(_remainder(high, span) * factor + _remainder(low, span), span))
    if not (narrow and wide):
        return results[0]
    return torch.where((span > 0) & (span <= 1 << 32), *results)


def _remainder(word: Tensor, divisor: Tensor) -> Tensor:
    """word modulo divisor, both unsigned 64-bit words in int64; a divisor of 0 stands for 2^64."""
    small = torch.where(divisor > 0, divisor, 1)
    half = (word >> 1) & ((1 << 63) - 1)
    rest = word - ((half // small) << 1) * small  # in [0, 2 small), an unsigned word (Hacker's Delight, 9-5)
    rest = torch.where(_unsigned_less(rest, small), rest, rest - small)
    large = torch.where(_unsigned_less(word, divisor), word, word - divisor)  # divisors from 2^63
    return torch.where(divisor > 0, rest, torch.where(divisor == 0, word, large))


def _unsigned_less(a: Tensor, b: Tensor) -> Tensor:
    flip = -(1 << 63)
    return (a ^ flip) < (b ^ flip)


def _long_word(high: Tensor, low: Tensor) -> Tensor:
    return (high.to(torch.int64) & _WORD) << 32 | (low.to(torch.int64) & _WORD)


def _from_64_bits(high: Tensor, low: Tensor) -> Tensor:
    return (_long_word(high, low) >> 12 & (1 << 52) - 1).to(torch.float64) * 2.0**-52


def _normal_pair(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    u = (_shift_right(a, 1).to(torch.float32) + 1.0) * 2.0**-31  # in (0, 1]: its logarithm is finite
    return _box_muller(u, b.to(torch.float32) * 2.0**-32)


def _box_muller(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    radius = torch.sqrt(-2.0 * torch.log(u))
    angle = 2.0 * math.pi * v
    return radius * torch.cos(angle), radius * torch.sin(angle)


# What users hand in


def _shape(shape: Sequence[int]) -> tuple[int, ...]:
    sizes = [_as_size(n) for n in shape] if isinstance(shape, Sequence) and not isinstance(shape, str) else [None]
    if any(size is None for size in sizes):
        line = f"; write ({shape},)" if _as_integer(shape) is not None else ""
        raise ValueError(f"a shape is a tuple of integers that are not negative, got {shape!r}{line}")
    return tuple(sizes)  # type: ignore[arg-type]


def _as_size(value: Any) -> int | None:
    if isinstance(value, torch.SymInt):
        return value  # type: ignore[return-value]
    number = _as_integer(value)
    return None if number is None or number < 0 else number


def _as_integer(value: Any) -> int | None:
    """A Python or NumPy integer as a Python integer; None for anything else, tensors included."""
    if isinstance(value, Tensor) or getattr(value, "ndim", 0) != 0:
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def _are_numbers(*values: Any) -> bool:
    return all(isinstance(value, numbers.Real) for value in values)


def _as_bound(bound: Any, key: Tensor) -> float | Tensor:
    if isinstance(bound, numbers.Real):
        return float(bound)
    return bound if isinstance(bound, Tensor) else torch.as_tensor(bound, device=device_of(key))


def _as_integer_bound(bound: Any, key: Tensor) -> Tensor:
    number = _as_integer(bound)
    if number is not None:
        if not -(1 << 63) <= number < 1 << 63:
            raise ValueError(f"randint expects bounds of at most 64 bits, got {number}")
        return torch.full((), number, dtype=torch.int64, device=device_of(key))
    given = bound if isinstance(bound, (Tensor, float)) else torch.as_tensor(bound)
    if not isinstance(given, Tensor) or given.dtype not in _INTEGERS:
        raise TypeError(f"randint expects integer bounds, got {_described(given)}; write int(bound) or bound.long()")
    return given.to(device=device_of(key), dtype=torch.int64)


_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def _is_small(bound: Any) -> bool:
    """Whether a bound's dtype alone says that it has at most 31 bits."""
    return torch.as_tensor(bound).dtype != torch.int64


def _constant(value: float | Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    if isinstance(value, Tensor):
        return value.to(device=device, dtype=dtype)
    return torch.full((), value, dtype=dtype, device=device)


def _shape_of(bound: float | Tensor) -> tuple[int, ...]:
    return tuple(bound.shape) if isinstance(bound, Tensor) else ()


def _check_broadcast(name: str, shape: tuple[int, ...], *bounds: float | Tensor) -> None:
    given = [_shape_of(bound) for bound in bounds]
    try:
        fits = torch.broadcast_shapes(shape, *given) == torch.Size(shape)
    except RuntimeError:
        fits = False
    if not fits:
        listed = " and ".join(str(one) for one in given)
        line = f"; write {name}(key, ..., shape={max(given, key=len)}) for one draw each" if shape == () else ""
        raise ValueError(f"{name}: bounds of shape {listed} do not broadcast to the shape {shape} of the result{line}")


def _check_key(key: Any) -> None:
    if isinstance(key, Tensor) and key.dtype == torch.int32 and key.shape == (2,):
        return
    hint = ""
    if isinstance(key, Tensor):
        if key.dtype == torch.int32 and key.shape[-1:] == (2,):
            hint = "; several keys go through vmap, as in vmap(draw)(keys)"
    else:
        number = _as_integer(key)
        hint = f"; write fnn.random.key({0 if number is None else number})"
    raise TypeError(
        f"expected a key, an int32 tensor of shape (2,) from fnn.random.key(seed), got {_described(key)}{hint}"
    )


def device_of(key: Any) -> torch.device:
    """The device of a key. Raises ``TypeError`` for anything else.

    >>> device_of(key(0))
    device(type='cpu')
    """
    _check_key(key)
    return key.device


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}, {value.dtype}"
    return repr(value)


def _check_floating(dtype: torch.dtype) -> None:
    if dtype not in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        hint = "" if isinstance(dtype, torch.dtype) else "; uniform(key, shape, dtype, minval, maxval)"
        raise TypeError(f"expected a floating dtype (float64, float32, float16, bfloat16), got {dtype}{hint}")
