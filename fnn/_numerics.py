"""Numerical helpers shared by several rooms: wide sums, autocast, and a square root differentiable at zero."""

import torch
from torch import Tensor

_NARROW = (torch.float16, torch.bfloat16)


def widen(x: Tensor) -> Tensor:
    """Convert 16-bit floats to float32, in which sums keep their digits. Other dtypes are unchanged.

    >>> widen(torch.ones(2, dtype=torch.bfloat16)).dtype
    torch.float32
    """
    return x.to(torch.float32) if x.dtype in _NARROW else x


def under_autocast(x: Tensor) -> bool:
    """Return True if ``torch.autocast`` is on for the tensor's device. Devices such as ``meta`` have no autocast.

    >>> with torch.autocast("cpu", torch.bfloat16):
    ...     under_autocast(torch.ones(1)), under_autocast(torch.ones(1, device="meta"))
    (True, False)
    """
    kind = x.device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def safe_sqrt(x: Tensor) -> Tensor:
    """Return the square root with derivative 0 at 0, where the infinite derivative of ``torch.sqrt`` would give nan.

    >>> torch.func.grad(lambda x: safe_sqrt(x).sum())(torch.tensor([0.0, 4.0]))
    tensor([0.0000, 0.2500])
    """
    zero = x == 0
    return x.masked_fill(zero, 1.0).sqrt().masked_fill(zero, 0.0)
