"""Keys: making, splitting and hashing them."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fnn.random.arguments import as_integer, as_shape, check_key, described
from fnn.random.threefry import WORD, hash_counters, signed, threefry


def key(seed: int, device: torch.device | str | None = None) -> Tensor:
    """A key from an integer seed: int32, shape (2,).

    Raises ``TypeError`` for a seed that is not an integer and ``ValueError`` for one of more than 64 bits.

    >>> key(7)
    tensor([0, 7], dtype=torch.int32)
    """
    number = as_integer(seed)
    if number is None or isinstance(seed, (bool, Tensor)):
        raise TypeError(f"fnn.random.key expects an integer seed, got {seed!r}; in a loop write fold_in(key, step)")
    if not -(1 << 63) <= number < 1 << 64:
        raise ValueError(f"fnn.random.key expects a seed of at most 64 bits, got {number}")
    high = 0 if -(1 << 31) <= number < 0 else number >> 32 & WORD
    return torch.tensor([signed(high), signed(number & WORD)], dtype=torch.int32, device=device)


def split(key: Tensor, num: int = 2) -> Tensor:
    """Split a key into ``num`` independent keys: int32, shape (num, 2). The old key should not be used again.

    >>> first, second = split(key(0))
    >>> first
    tensor([ 1797259609, -1715843330], dtype=torch.int32)
    """
    return torch.stack(hash_counters(key, as_shape((num,))[0]), dim=-1)


def fold_in(key: Tensor, data: int | Tensor) -> Tensor:
    """Make a new key from a key and a number, such as a step or an epoch: int32, shape (2,).

    ``data`` is an integer or a 0-d integer tensor, of which the low 32 bits are used. Raises ``TypeError`` for anything
    else.

    >>> fold_in(key(0), 3).shape
    torch.Size([2])
    """
    check_key(key)
    if isinstance(data, Tensor):
        if data.dim() != 0 or data.is_floating_point() or data.is_complex() or data.dtype == torch.bool:
            raise TypeError(
                f"fold_in expects an integer or a 0-d integer tensor, got {described(data)}; "
                "for several numbers write vmap(fold_in, (None, 0))(key, numbers)"
            )
        low = data.to(torch.int64).to(torch.int32)
    else:
        number = as_integer(data)
        if number is None:
            raise TypeError(f"fold_in expects an integer or a 0-d integer tensor, got {data!r}")
        low = torch.full((), signed(number & WORD), dtype=torch.int32, device=key.device)
    return torch.stack(threefry(key[0], key[1], torch.zeros_like(low), low))


def bits(key: Tensor, shape: Sequence[int] = ()) -> Tensor:
    """Draw 32 random bits for each element, as int32. JAX shows the same bits as uint32.

    >>> bits(key(0), (2,)).dtype
    torch.int32
    """
    shape = as_shape(shape)
    return hash_counters(key, math.prod(shape), lambda a, b: (a ^ b,))[0].reshape(shape)
