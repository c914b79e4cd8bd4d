"""Draws from discrete distributions: Bernoulli, uniform integers, permutations and categories."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fnn._numerics import widen
from fnn.random.arguments import (
    are_numbers,
    as_integer,
    as_integer_bound,
    as_shape,
    check_broadcast,
    described,
    device_of,
    is_small,
)
from fnn.random.continuous import uniform, unit_draws
from fnn.random.keys import bits, split
from fnn.random.threefry import WORD, hash_counters, long_word, signed

_LONG = 0xFFFFFFFFFFFFFFFF


def bernoulli(key: Tensor, p: float | Tensor = 0.5, shape: Sequence[int] | None = None) -> Tensor:
    """Draw True with probability ``p``: a bool tensor, whose shape defaults to the shape of ``p``.

    Raises ``ValueError`` for a number outside [0, 1] and for an array of probabilities that does not broadcast to
    ``shape``.

    >>> import fnn
    >>> bernoulli(fnn.random.key(0), 0.5, (4,)).dtype
    torch.bool
    """
    if are_numbers(p):
        if not 0.0 <= p <= 1.0:
            raise ValueError(f"bernoulli expects a probability 0 <= p <= 1, got {p}")
        return unit_draws(key, () if shape is None else as_shape(shape), torch.float32) < p
    probability = torch.as_tensor(p, device=None if isinstance(p, Tensor) else device_of(key))
    probability = widen(probability) if probability.is_floating_point() else probability.to(torch.float32)
    shape = tuple(probability.shape) if shape is None else as_shape(shape)
    check_broadcast("bernoulli", shape, probability)
    return unit_draws(key, shape, probability.dtype) < probability


def randint(
    key: Tensor, shape: Sequence[int], minval: int | Tensor, maxval: int | Tensor, dtype: torch.dtype = torch.int64
) -> Tensor:
    """Draw integers from [minval, maxval).

    The numbers are those of ``jax.random.randint`` for int32 where maxval - minval is at most 2^32, and those for int64
    otherwise. Raises ``ValueError`` for integer bounds with minval >= maxval or outside the range of ``dtype``. Bounds
    in tensors are not checked, because reading their values would stop a graph; as in JAX they are clamped to the range
    of the dtype, and the result is minval where minval >= maxval.

    >>> import fnn
    >>> x = randint(fnn.random.key(0), (100,), 0, 10)
    >>> int(x.min()), int(x.max())
    (0, 9)
    """
    if dtype.is_floating_point or dtype.is_complex or dtype == torch.bool:
        raise TypeError(f"randint expects an integer dtype, got {dtype}; write uniform for floating numbers")
    shape = as_shape(shape)
    least, most = torch.iinfo(dtype).min, torch.iinfo(dtype).max
    first, last = as_integer(minval), as_integer(maxval)
    if first is not None and last is not None:
        if not least <= first < last <= most + 1:
            raise ValueError(
                f"randint expects minval < maxval, both within {dtype} ({least} to {most}; maxval may be one more), "
                f"got minval={first}, maxval={last}"
            )
        narrow = last - first <= 1 << 32
        span = torch.full((), signed(last - first & _LONG, 64), dtype=torch.int64, device=device_of(key))
        offset = _below_span(key, shape, span, narrow, not narrow)
        return (offset + first).to(dtype)
    start, stop = (as_integer_bound(bound, key) for bound in (minval, maxval))
    check_broadcast("randint", shape, start, stop)
    small = all(as_integer(bound) is not None or is_small(bound) for bound in (minval, maxval))
    start, end = start.clamp(least, most), stop.clamp(least, most)
    span = torch.where(
        stop > end, end - start + 1, end - start
    )  # maxval may be one more than the largest integer of the dtype
    span = torch.where(start >= stop, 1, span)
    return (start + _below_span(key, shape, span, True, not small)).to(dtype)


def permutation(key: Tensor, x: int | Tensor) -> Tensor:
    """Return 0, ..., x - 1 (int64), or the rows of a tensor ``x``, in random order.

    >>> import fnn
    >>> sorted(permutation(fnn.random.key(0), 4).tolist())
    [0, 1, 2, 3]
    """
    if isinstance(x, Tensor):
        size = x.shape[0] if x.dim() else None
    else:
        size = as_integer(x)
    if size is None or size < 0:
        raise TypeError(f"permutation expects a length or a tensor of at least one axis, got {described(x)}")
    order = torch.arange(size, device=device_of(key))
    if size > 1:
        # 32-bit draws have ties, whose order is not random; sorting repeatedly makes that bias negligible
        for _ in range(math.ceil(3 * math.log(size) / math.log(WORD))):
            key, sub = split(key)
            flip = -(1 << 31)  # with its top bit flipped, int32 sorts like unsigned words
            order = order[torch.sort(bits(sub, (size,)) ^ flip, stable=True).indices]
    return x[order.to(x.device)] if isinstance(x, Tensor) else order


def categorical(key: Tensor, logits: Tensor, dim: int = -1, shape: Sequence[int] | None = None) -> Tensor:
    """Draw int64 indices along ``dim`` with probabilities softmax(logits), by the Gumbel-max trick.

    ``shape`` is the shape of the result: the shape of the logits without ``dim``, behind any number of further axes.
    16-bit logits are converted to float32. Raises ``TypeError`` for logits that are not floating, and ``ValueError``
    for a shape that does not end with the shape of the logits without ``dim``.

    >>> import fnn
    >>> categorical(fnn.random.key(0), torch.tensor([-9.0, 9.0]), shape=(5,))
    tensor([1, 1, 1, 1, 1])
    """
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        raise TypeError(f"categorical expects a tensor of floating logits, got {described(logits)}")
    if not -logits.dim() <= dim < logits.dim() or not logits.shape[dim]:
        raise ValueError(f"categorical: logits of shape {tuple(logits.shape)} have no classes along axis {dim}")
    logits = widen(logits)
    dim = dim - logits.dim() if dim >= 0 else dim
    batch = list(logits.shape)
    del batch[dim]
    shape = tuple(batch) if shape is None else as_shape(shape)
    if shape[len(shape) - len(batch) :] != tuple(batch):
        raise ValueError(
            f"categorical: shape {shape} must end with {tuple(batch)}, the shape of the logits without dim"
        )
    full = list(shape)
    full.insert(len(full) + 1 + dim, logits.shape[dim])
    tiny = torch.finfo(logits.dtype).tiny
    gumbel = -torch.log(-torch.log(uniform(key, full, logits.dtype, tiny, 1.0)))
    return (gumbel + logits).argmax(dim)


def _below_span(key: Tensor, shape: tuple[int, ...], span: Tensor, narrow: bool, wide: bool) -> Tensor:
    """Draw int64 integers from [0, span). ``span`` holds unsigned 64-bit words, of which 0 means 2^64.

    ``narrow`` computes the draws for spans up to 2^32 and ``wide`` those for larger spans. Both are set where the span
    is a tensor, whose value is not known.
    """
    high_key, low_key = split(key)
    count = math.prod(shape)
    (high0, high1), (low0, low1) = (
        [word.reshape(shape) for word in hash_counters(k, count)] for k in (high_key, low_key)
    )
    results = []
    if narrow:
        divisor = torch.where((span > 0) & (span <= 1 << 32), span, 1)
        high, low = ((a ^ b).to(torch.int64) & WORD for a, b in ((high0, high1), (low0, low1)))
        factor = (1 << 16) % divisor
        factor = (factor * factor & WORD) % divisor  # 2**32 modulo span, in the 32-bit arithmetic that JAX uses
        results.append((((high % divisor) * factor & WORD) + low % divisor & WORD) % divisor)
    if wide:
        high, low = (long_word(a, b) for a, b in ((high0, high1), (low0, low1)))
        factor = _remainder(torch.full_like(span, 1 << 32), span)
        factor = _remainder(factor * factor, span)  # likewise in 64 bits
        results.append(_remainder(_remainder(high, span) * factor + _remainder(low, span), span))
    if not (narrow and wide):
        return results[0]
    return torch.where((span > 0) & (span <= 1 << 32), *results)


def _remainder(word: Tensor, divisor: Tensor) -> Tensor:
    """Return word modulo divisor for unsigned 64-bit words in int64 tensors. A divisor of 0 means 2^64."""
    small = torch.where(divisor > 0, divisor, 1)
    half = (word >> 1) & ((1 << 63) - 1)
    rest = word - ((half // small) << 1) * small  # in [0, 2 small), an unsigned word (Hacker's Delight, 9-5)
    rest = torch.where(_unsigned_less(rest, small), rest, rest - small)
    large = torch.where(_unsigned_less(word, divisor), word, word - divisor)  # for divisors of 2^63 and more
    return torch.where(divisor > 0, rest, torch.where(divisor == 0, word, large))


def _unsigned_less(a: Tensor, b: Tensor) -> Tensor:
    flip = -(1 << 63)
    return (a ^ flip) < (b ^ flip)
