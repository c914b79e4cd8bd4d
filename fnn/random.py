"""Random numbers as pure functions of a key.

A key is an int32 tensor of shape (2,). Threefry-2x32 with 20 rounds (Salmon et al. 2011, "Parallel
random numbers: as easy as 1, 2, 3") hashes it with a counter, in plain tensor operations: the same key
gives the same bits on every device and torch version, in eager and compiled code, alone or under
``vmap`` over keys. Layout and conversions are those of ``jax.random`` (partitionable Threefry, JAX's
default), so ``key, split, fold_in, bits, uniform, randint, bernoulli, permutation`` give JAX's numbers.
:func:`normal` uses Box-Muller, which is far cheaper here than JAX's inverse error function; it has the
same distribution and other numbers.

No function here reads or changes torch's global generator.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fnn import tree as _tree

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_WORD = 0xFFFFFFFF
_CHUNK = 1 << 16  # counters hashed at once on the CPU in eager mode: the twenty rounds stay in cache


def key(seed: int, device: torch.device | str | None = None) -> Tensor:
    """A key from an integer seed: int32, shape (2,).

    Raises ``TypeError`` for a seed that is not a Python integer, ``ValueError`` beyond 64 bits.

    >>> key(7)
    tensor([0, 7], dtype=torch.int32)
    """
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise TypeError(f"fnn.random.key expects an integer seed, got {seed!r}; in a loop write fold_in(key, step)")
    if not -(1 << 63) <= seed < 1 << 64:
        raise ValueError(f"fnn.random.key expects a seed of at most 64 bits, got {seed}")
    high = 0 if -(1 << 31) <= seed < 0 else seed >> 32 & _WORD
    return torch.tensor([_signed(high), _signed(seed & _WORD)], dtype=torch.int32, device=device)


def split(key: Tensor, num: int = 2) -> Tensor:
    """``num`` new, independent keys: int32, shape (num, 2). The old key should not be used again.

    >>> first, second = split(key(0))
    >>> first
    tensor([ 1797259609, -1715843330], dtype=torch.int32)
    """
    return torch.stack(_hash(key, num), dim=-1)


def fold_in(key: Tensor, data: int | Tensor) -> Tensor:
    """A new key from a key and a number (a step, an epoch, a layer's index): int32, shape (2,).

    ``data`` is a Python integer or a 0-d integer tensor; its low 32 bits are used.

    >>> fold_in(key(0), 3).shape
    torch.Size([2])
    """
    _check_key(key)
    if isinstance(data, Tensor):
        low = data.to(torch.int64).to(torch.int32)
    else:
        low = torch.full((), _signed(data & _WORD), dtype=torch.int32, device=key.device)
    return torch.stack(_threefry(key[0], key[1], torch.zeros_like(low), low))


def bits(key: Tensor, shape: Sequence[int] = ()) -> Tensor:
    """32 random bits per element, int32 (JAX shows the same bits as uint32).

    >>> bits(key(0), (2,)).dtype
    torch.int32
    """
    return _hash(key, _count(shape), lambda a, b: (a ^ b,))[0].reshape(tuple(shape))


def uniform(
    key: Tensor,
    shape: Sequence[int] = (),
    minval: float | Tensor = 0.0,
    maxval: float | Tensor = 1.0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Uniform numbers in [minval, maxval), of the given shape and floating dtype.

    >>> uniform(key(0), (3,)).shape
    torch.Size([3])
    """
    if isinstance(minval, Tensor) or isinstance(maxval, Tensor):
        return _between(_unit(key, shape, dtype), minval, maxval)
    if (minval, maxval) == (0.0, 1.0):
        return _unit(key, shape, dtype)
    return _unit(key, shape, dtype, lambda unit: _between(unit, minval, maxval))


def normal(key: Tensor, shape: Sequence[int] = (), dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal numbers by Box and Muller (1958): r = sqrt(-2 log u), r cos(2 pi v), r sin(2 pi v).

    In float32 the largest possible magnitude is 6.6. Compiled and eager results may differ in the last
    bits, because the logarithms and cosines do.

    >>> normal(key(0), (2, 3)).shape
    torch.Size([2, 3])
    """
    _check_floating(dtype)
    count = _count(shape)
    half = (count + 1) // 2
    if dtype == torch.float64:
        radial, angular = split(key)
        pairs = 1.0 - _unit(radial, (half,), dtype), _unit(angular, (half,), dtype)
        draws = torch.cat(_box_muller(*pairs))
    else:
        draws = torch.cat(_hash(key, half, _normal_pair))
    return draws[:count].reshape(tuple(shape)).to(dtype)


def truncated_normal(
    key: Tensor,
    lower: float | Tensor,
    upper: float | Tensor,
    shape: Sequence[int] = (),
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Standard normal numbers conditioned on lower < x < upper, by the inverse distribution function.

    >>> x = truncated_normal(key(0), -2.0, 2.0, (1000,))
    >>> bool((x.abs() < 2).all())
    True
    """
    _check_floating(dtype)
    low = torch.as_tensor(lower, dtype=dtype, device=key.device)
    high = torch.as_tensor(upper, dtype=dtype, device=key.device)
    root = math.sqrt(2.0)
    draws = root * torch.erfinv(uniform(key, shape, torch.erf(low / root), torch.erf(high / root), dtype))
    infinity = torch.full((), math.inf, dtype=dtype, device=key.device)
    return torch.clamp(draws, torch.nextafter(low, infinity), torch.nextafter(high, -infinity))


def bernoulli(key: Tensor, p: float | Tensor = 0.5, shape: Sequence[int] | None = None) -> Tensor:
    """True with probability ``p``: bool, of the given shape (default: the shape of ``p``).

    >>> bernoulli(key(0), 0.5, (4,)).dtype
    torch.bool
    """
    probability = torch.as_tensor(p, device=key.device)
    if not probability.is_floating_point():
        probability = probability.to(torch.float32)
    shape = tuple(probability.shape) if shape is None else tuple(shape)
    return _unit(key, shape, probability.dtype) < probability


def randint(
    key: Tensor, shape: Sequence[int], minval: int | Tensor, maxval: int | Tensor, dtype: torch.dtype = torch.int64
) -> Tensor:
    """Integers in [minval, maxval), from 32-bit draws (both bounds fit 32 bits).

    Raises ``ValueError`` when Python bounds are empty or beyond 32 bits.

    >>> x = randint(key(0), (100,), 0, 10)
    >>> int(x.min()), int(x.max())
    (0, 9)
    """
    fixed = isinstance(minval, int) and isinstance(maxval, int)
    if fixed and not -(1 << 31) <= minval < maxval <= 1 << 31:
        raise ValueError(f"randint expects -2**31 <= minval < maxval <= 2**31, got minval={minval}, maxval={maxval}")
    high_key, low_key = split(key)
    high = bits(high_key, shape).to(torch.int64) & _WORD
    low = bits(low_key, shape).to(torch.int64) & _WORD
    start = torch.as_tensor(minval, dtype=torch.int64, device=key.device)
    span = torch.as_tensor(maxval, dtype=torch.int64, device=key.device) - start
    factor = (1 << 16) % span
    factor = (factor * factor & _WORD) % span  # 2**32 modulo span, in the 32-bit arithmetic that JAX uses
    offset = (((high % span) * factor & _WORD) + low % span & _WORD) % span
    return (start + offset).to(dtype)


def permutation(key: Tensor, x: int | Tensor) -> Tensor:
    """A random order of ``0 .. x - 1`` (int64), or of the rows of a tensor ``x``.

    >>> sorted(permutation(key(0), 4).tolist())
    [0, 1, 2, 3]
    """
    size = x if isinstance(x, int) else x.shape[0]
    order = torch.arange(size, device=key.device)
    if size > 1:
        # sorting by 32-bit draws meets ties; repeating makes the leftover bias negligible
        for _ in range(math.ceil(3 * math.log(size) / math.log(_WORD))):
            key, sub = split(key)
            flip = -(1 << 31)  # int32 sorts as unsigned once its top bit is flipped
            order = order[torch.sort(bits(sub, (size,)) ^ flip, stable=True).indices]
    return order if isinstance(x, int) else x[order]


def categorical(key: Tensor, logits: Tensor, dim: int = -1, shape: Sequence[int] | None = None) -> Tensor:
    """Indices along ``dim`` drawn with probability softmax(logits), by the Gumbel maximum: int64.

    ``shape`` is the shape of the result: the logits' shape without ``dim``, with any axes before it.

    >>> categorical(key(0), torch.tensor([-9.0, 9.0]), shape=(5,))
    tensor([1, 1, 1, 1, 1])
    """
    dim = dim - logits.dim() if dim >= 0 else dim
    batch = list(logits.shape)
    del batch[dim]
    shape = tuple(batch) if shape is None else tuple(shape)
    if shape[len(shape) - len(batch) :] != tuple(batch):
        raise ValueError(f"categorical: shape {shape} does not end with the logits' own {tuple(batch)}")
    full = list(shape)
    full.insert(len(full) + 1 + dim, logits.shape[dim])
    tiny = torch.finfo(logits.dtype).tiny
    gumbel = -torch.log(-torch.log(uniform(key, full, tiny, 1.0, logits.dtype)))
    return (gumbel + logits).argmax(dim)


def like(key: Tensor, tree: _tree.Tree, sampler: Callable[..., Tensor] = normal) -> _tree.Tree:
    """A tree of the same structure, shapes, dtypes and device with draws of ``sampler`` (normal, uniform).

    >>> like(key(0), {"w": torch.zeros(2, 3)})["w"].shape
    torch.Size([2, 3])
    """
    parts = _tree.leaves(tree)
    keys = split(key, len(parts))
    draws = [sampler(k, leaf.shape, dtype=leaf.dtype).to(leaf.device) for k, leaf in zip(keys, parts, strict=True)]
    return _tree.structure(tree).unflatten(draws)


# The hash and the conversions of its words


def _signed(word: int) -> int:
    return word - (1 << 32) if word >= 1 << 31 else word


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


def _unit(key: Tensor, shape: Sequence[int], dtype: torch.dtype, then: Callable = lambda unit: unit) -> Tensor:
    _check_floating(dtype)
    convert = {
        torch.float64: _from_64_bits,
        torch.float32: lambda a, b: _shift_right(a ^ b, 9).to(torch.float32) * 2.0**-23,
        torch.float16: lambda a, b: (((a ^ b) & 0xFFFF) >> 6).to(torch.float16) * 2.0**-10,
        torch.bfloat16: lambda a, b: (((a ^ b) & 0xFF) >> 1).to(torch.bfloat16) * 2.0**-7,
    }[dtype]
    return _hash(key, _count(shape), lambda a, b: (then(convert(a, b)),))[0].reshape(tuple(shape))


def _between(unit: Tensor, minval: float | Tensor, maxval: float | Tensor) -> Tensor:
    dtype = unit.dtype
    low = torch.as_tensor(minval, dtype=dtype, device=unit.device)
    span = torch.as_tensor(maxval, dtype=dtype, device=unit.device) - low
    if dtype == torch.float32 and unit.device.type != "mps":
        # one rounding, as in the fused multiply-add of JAX: eager, compiled and CUDA then agree
        scaled = (unit.to(torch.float64) * span.to(torch.float64) + low.to(torch.float64)).to(dtype)
    else:
        scaled = unit * span + low
    return torch.maximum(scaled, low)


def _from_64_bits(high: Tensor, low: Tensor) -> Tensor:
    word = (high.to(torch.int64) & _WORD) << 32 | (low.to(torch.int64) & _WORD)
    return (word >> 12 & (1 << 52) - 1).to(torch.float64) * 2.0**-52


def _normal_pair(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    u = (_shift_right(a, 1).to(torch.float32) + 1.0) * 2.0**-31  # in (0, 1]: its logarithm is finite
    return _box_muller(u, b.to(torch.float32) * 2.0**-32)


def _box_muller(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    radius = torch.sqrt(-2.0 * torch.log(u))
    angle = 2.0 * math.pi * v
    return radius * torch.cos(angle), radius * torch.sin(angle)


def _count(shape: Sequence[int]) -> int:
    if isinstance(shape, int) or any(not isinstance(n, (int, torch.SymInt)) or n < 0 for n in shape):
        raise ValueError(f"a shape is a tuple of integers that are not negative, got {shape!r}")
    return math.prod(shape)


def _check_key(key: Tensor) -> None:
    if not isinstance(key, Tensor) or key.dtype != torch.int32 or key.shape != (2,):
        given = f"a tensor of shape {tuple(key.shape)}, {key.dtype}" if isinstance(key, Tensor) else repr(key)
        raise TypeError(f"expected a key, an int32 tensor of shape (2,) from fnn.random.key(seed), got {given}")


def _check_floating(dtype: torch.dtype) -> None:
    if dtype not in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        raise TypeError(f"expected a floating dtype (float64, float32, float16, bfloat16), got {dtype}")
