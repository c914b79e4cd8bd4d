"""Nearest-neighbour upsampling in graphs for the compiler, whose own code for it differs from eager code.

Eager code finds the source of an output by the scale that the user gave. Inductor's gradient takes the ratio of the two
sizes instead, and its forward pass does not know that the kernel for images on the CPU keeps the index where the size
stays, and halves it where the size doubles. Where the scale is not the ratio, what eager code computes is recorded as a
selection along each axis, with the gradient that belongs to it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fnn._tracing import is_for_a_compiler

aten = torch.ops.aten


def upsample(x: Tensor, output_size: Sequence[int], *scales: float | None) -> Tensor:
    """What is recorded in place of ``aten.upsample_nearest2d`` and its neighbours; NotImplemented keeps them."""
    sizes = x.shape[-len(output_size) :]
    if not _differs(sizes, output_size, scales):
        return NotImplemented
    for axis, (size, out, scale) in enumerate(zip(sizes, output_size, scales, strict=True), -len(sizes)):
        x = x.index_select(axis, _sources(size, out, scale, x.device, len(sizes)))
    return x


def gradient(grad: Tensor, output_size: Sequence[int], input_size: Sequence[int], *scales: float | None) -> Tensor:
    """What is recorded in place of ``aten.upsample_nearest2d_backward`` and its neighbours."""
    sizes = input_size[-len(output_size) :]
    if not _differs(sizes, output_size, scales):
        return NotImplemented
    for axis, (size, out, scale) in enumerate(zip(sizes, output_size, scales, strict=True), -len(sizes)):
        shape = list(grad.shape)
        shape[axis] = size
        grad = grad.new_zeros(shape).index_add(axis, _sources(size, out, scale, grad.device, len(sizes)), grad)
    return grad


def _differs(sizes: Sequence[int], output_size: Sequence[int], scales: Sequence[float | None]) -> bool:
    """Whether this is recorded for a compiler, and a scale is not the ratio of the sizes."""
    rows = zip(sizes, output_size, scales, strict=False)  # there are no scales where a size was given
    return is_for_a_compiler() and any(scale is not None and size * scale != out for size, out, scale in rows)


def _sources(size: int, out: int, scale: float | None, device: torch.device, dims: int) -> Tensor:
    """The index from which each output takes its value, in the float32 numbers of the kernels."""
    places = torch.arange(out, device=device)
    if dims == 2 and device.type == "cpu" and out in (size, 2 * size):
        return places // (out // size)
    factor = torch.tensor(1.0 / scale if scale else size / out, dtype=torch.float32, device=device)
    return (places * factor).floor().long().clamp(max=size - 1)


NEAREST = {
    aten.upsample_nearest1d.default: upsample,
    aten.upsample_nearest2d.default: upsample,
    aten.upsample_nearest3d.default: upsample,
    aten.upsample_nearest1d_backward.default: gradient,
    aten.upsample_nearest2d_backward.default: gradient,
    aten.upsample_nearest3d_backward.default: gradient,
}
