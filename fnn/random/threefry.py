"""Threefry-2x32 with 20 rounds (Salmon et al., 2011) in tensor operations.

Words are int32 tensors, whose additions wrap around like those of unsigned words.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from fnn.random.arguments import check_key

WORD = 0xFFFFFFFF
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
CHUNK = 1 << 16  # counters hashed at once on the CPU in eager mode, so that the twenty rounds stay in the cache


def signed(word: int, bits: int = 32) -> int:
    """Return the signed integer that has the bits of an unsigned word.

    >>> signed(0xFFFFFFFF)
    -1
    """
    return word - (1 << bits) if word >= 1 << bits - 1 else word


def shift_right(x: Tensor, places: int) -> Tensor:
    """Shift int32 words to the right as if they were unsigned.

    >>> shift_right(torch.tensor([-1], dtype=torch.int32), 28)
    tensor([15], dtype=torch.int32)
    """
    return (x >> places) & ((1 << (32 - places)) - 1)  # >> fills up with the sign bit, which the mask removes


def threefry(key0: Tensor, key1: Tensor, x0: Tensor, x1: Tensor) -> tuple[Tensor, Tensor]:
    """Encrypt the words x0 and x1 of a counter with the words of a key."""
    keys = (key0, key1, key0 ^ key1 ^ 0x1BD11BDA)
    x0, x1 = x0 + keys[0], x1 + keys[1]
    if x0.is_meta:  # the rounds change numbers and not shapes
        return x0, x1
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            x0 = x0 + x1
            x1 = (x1 << rotation) | shift_right(x1, 32 - rotation)
            x1 = x1 ^ x0
        x0 = x0 + keys[(group + 1) % 3]
        x1 = x1 + keys[(group + 2) % 3] + (group + 1)
    return x0, x1


def hash_counters(
    key: Tensor, count: int, finish: Callable[[Tensor, Tensor], tuple[Tensor, ...]] = lambda x0, x1: (x0, x1)
) -> tuple[Tensor, ...]:
    """Hash the counters 0, ..., count - 1 and return ``finish(x0, x1)`` of the two words of each hash.

    On the CPU, long draws are computed in pieces, and ``finish`` is called for each piece.
    """
    check_key(key)
    if count >= 1 << 31:
        raise ValueError(
            f"one draw gives fewer than 2**31 numbers, got a shape of {count} numbers; split the key and draw in parts"
        )
    counters = torch.arange(count, dtype=torch.int32, device=key.device)
    whole = count <= CHUNK or key.device.type != "cpu" or torch.compiler.is_compiling()
    pieces = [
        finish(*threefry(key[0], key[1], torch.zeros_like(piece), piece))
        for piece in ([counters] if whole else counters.split(CHUNK))
    ]
    return tuple(torch.cat(words) for words in zip(*pieces, strict=True)) if len(pieces) > 1 else pieces[0]


def long_word(high: Tensor, low: Tensor) -> Tensor:
    """Join two 32-bit words into one 64-bit word, an int64 tensor."""
    return (high.to(torch.int64) & WORD) << 32 | (low.to(torch.int64) & WORD)
