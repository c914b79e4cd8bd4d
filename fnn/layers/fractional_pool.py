"""Fractional max pooling: windows at random distances, so that the output can be of any smaller size."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fnn import random
from fnn._numerics import widen
from fnn.layers.base import (
    SPATIAL,
    Layer,
    ShapeError,
    as_sizes,
    check_channels,
    check_floating,
    check_params,
    factory,
)
from fnn.layers.pool import Sizes


@factory
def fractional_max_pool2d(
    kernel_size: Sizes,
    output_size: Sizes | None = None,
    output_ratio: float | Sequence[float] | None = None,
    return_indices: bool = False,
) -> Layer:
    """The maxima of windows that are placed at random (Graham, 2014).

    x: (batch, channels, height, width) -> (batch, channels, height', width'), or a single image without the batch axis.
    The output is of ``output_size``, or of ``output_ratio`` times the size of the input. The distances between
    neighbouring windows of a channel are about height / height', rounded up or down at random by the key. Without a key
    the windows are always the same: those of the random number 1/2. With ``return_indices`` the result is a pair: the
    maxima and their int64 indices into height x width. Raises ``ShapeError`` for another rank and unless output_size +
    kernel_size - 1 is at most the size of the input, ``TypeError`` for integers, and ``ValueError`` unless exactly one
    of output_size and output_ratio is given.

    >>> layer = fractional_max_pool2d(2, output_ratio=0.7)
    >>> layer.apply({}, torch.ones(1, 3, 10, 20), key=random.key(0)).shape
    torch.Size([1, 3, 7, 14])
    """
    return _fractional(2, kernel_size, output_size, output_ratio, return_indices)


@factory
def fractional_max_pool3d(
    kernel_size: Sizes,
    output_size: Sizes | None = None,
    output_ratio: float | Sequence[float] | None = None,
    return_indices: bool = False,
) -> Layer:
    """:func:`fractional_max_pool2d` for volumes (batch, channels, depth, height, width).

    >>> fractional_max_pool3d(2, output_size=(2, 3, 4)).apply({}, torch.ones(1, 3, 5, 6, 7)).shape
    torch.Size([1, 3, 2, 3, 4])
    """
    return _fractional(3, kernel_size, output_size, output_ratio, return_indices)


def _fractional(
    dims: int,
    kernel_size: Sizes,
    output_size: Sizes | None,
    output_ratio: float | Sequence[float] | None,
    return_indices: bool,
) -> Layer:
    layer = f"fractional_max_pool{dims}d"
    kernel = as_sizes(layer, "kernel_size", kernel_size, dims)
    if (output_size is None) == (output_ratio is None):
        raise ValueError(f"{layer} expects either output_size or output_ratio")
    wanted = None if output_size is None else as_sizes(layer, "output_size", output_size, dims)
    ratios: tuple = tuple(output_ratio) if isinstance(output_ratio, (tuple, list)) else (output_ratio,) * dims
    if wanted is None and (len(ratios) != dims or not all(0 < ratio < 1 for ratio in ratios)):
        raise ValueError(f"{layer} expects output_ratio between 0 and 1, or one for each axis, got {output_ratio}")

    def apply(params: dict, x: Tensor, *, key: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        check_params(layer, params)
        check_channels(layer, x, None, SPATIAL[dims])
        check_floating(layer, x)
        given = tuple(x.shape[-dims:])
        sizes = wanted or tuple(int(size * ratio) for size, ratio in zip(given, ratios, strict=True))
        if any(n < 1 or n + k - 1 > size for n, k, size in zip(sizes, kernel, given, strict=True)):
            raise ShapeError(f"{layer} with a window of {kernel} cannot pool an input of size {given} to {sizes}")
        channels = x.shape[:-dims]
        wide = widen(x).dtype
        if key is None:
            samples = torch.full((*channels, dims), 0.5, dtype=wide, device=x.device)
        else:
            samples = random.uniform(key, (*channels, dims), wide)
        places = _places(samples, given, sizes, kernel)  # (batch, channels, outputs, pixels of a window)
        values = x.flatten(-dims).gather(-1, places.flatten(-2)).view(places.shape)
        largest = values.argmax(-1, keepdim=True)
        y, indices = (numbers.gather(-1, largest).view(*channels, *sizes) for numbers in (values, places))
        return (y, indices) if return_indices else y

    return Layer(lambda key=None: {}, apply)


def _places(samples: Tensor, given: tuple[int, ...], sizes: tuple[int, ...], kernel: tuple[int, ...]) -> Tensor:
    """Return the flat indices of the pixels of each window: (batch, channels, outputs, pixels of a window)."""
    outputs = pixels = torch.zeros(1, 1, dtype=torch.int64, device=samples.device)
    for axis, (size, n, k) in enumerate(zip(given, sizes, kernel, strict=True)):
        # torch takes the numbers for an image in the order (width, height)
        sample = samples[..., [1, 0][axis] if len(given) == 2 else axis, None]
        count = torch.arange(n, device=samples.device)
        step = (size - k) / max(n - 1, 1)
        first = ((count + sample) * step).long() - (sample * step).long()
        first = torch.where(count == n - 1, size - k, first)  # (batch, channels, n)
        outputs = (outputs[..., None] * size + first[..., None, :]).flatten(-2)
        pixels = (pixels[..., None] * size + torch.arange(k, device=samples.device)).flatten(-2)
    return outputs[..., None] + pixels[..., None, :]
