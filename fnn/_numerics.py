"""Arithmetic that several rooms share: sums that do not lose digits, roots that may be differentiated at zero."""

import torch
from torch import Tensor

_NARROW = (torch.float16, torch.bfloat16)


def widen(x: Tensor) -> Tensor:
    """The tensor in a dtype that may be summed: float32 for 16-bit floats, its own otherwise.

    >>> widen(torch.ones(2, dtype=torch.bfloat16)).dtype
    torch.float32
    """
    return x.to(torch.float32) if x.dtype in _NARROW else x


def under_autocast(x: Tensor) -> bool:
    """Whether ``torch.autocast`` is on for the tensor's device; False on devices that have none, such as ``meta``.

    >>> with torch.autocast("cpu", torch.bfloat16):
    ...     under_autocast(torch.ones(1)), under_autocast(torch.ones(1, device="meta"))
    (True, False)
    """
    kind = x.device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def safe_sqrt(x: Tensor) -> Tensor:
    """The square root, with slope 0 at 0, where that of ``torch.sqrt`` is infinite and turns gradients into nan.

    >>> torch.func.grad(lambda x: safe_sqrt(x).sum())(torch.tensor([0.0, 4.0]))
    tensor([0.0000, 0.2500])
    """
    zero = x == 0
    return x.masked_fill(zero, 1.0).sqrt().masked_fill(zero, 0.0)
