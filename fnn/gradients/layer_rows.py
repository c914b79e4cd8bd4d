"""Layer inputs and output gradients as rows, one for each position (token, pixel).

The rows of linear layers, matrix products and convolutions are (samples, groups, positions, width).
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from fnn.gradients.layer_capture import Use


def gradient_rows(use: Use, gradient: Tensor) -> Tensor:
    """Output gradients (samples, *use.shape) with one row per position."""
    samples = gradient.shape[0]
    if use.kind != "conv":
        return gradient.reshape(samples, 1, -1, gradient.shape[-1])
    images = gradient.reshape(samples, gradient.shape[1], use.options[3], -1, gradient[0, 0, 0].numel())
    return _images_to_positions(images)


def input_rows(use: Use, input: Tensor, leaf: Tensor) -> Tensor:
    """Layer inputs (samples, ...) with one row per position; for a convolution a row is a window of the image."""
    samples = input.shape[0]
    if use.kind != "conv":
        return input.reshape(samples, 1, -1, input.shape[-1])
    stride, padding, dilation, groups = use.options
    space = leaf.dim() - 2
    images = input.flatten(0, 1)  # samples and the images of each
    if space == 1:  # a signal is an image of one row
        images = images.unsqueeze(-2)
    kernel = (1,) * (2 - space) + tuple(leaf.shape[2:])
    stride, dilation = _two(stride, space, 1), _two(dilation, space, 1)
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        margins = [total[1] // 2, total[1] - total[1] // 2, total[0] // 2, total[0] - total[0] // 2]
    else:
        up, side = (0, 0) if padding == "valid" else _two(padding, space, 0)
        margins = [side, side, up, up]
    windows = F.unfold(F.pad(images, margins), kernel, dilation, 0, stride)  # (images, channels * window, positions)
    return _images_to_positions(windows.reshape(samples, input.shape[1], groups, -1, windows.shape[-1]))


def _images_to_positions(images: Tensor) -> Tensor:
    """(samples, images, groups, width, positions) -> (samples, groups, images * positions, width)."""
    return images.permute(0, 2, 1, 4, 3).flatten(2, 3)


def _two(value: Any, space: int, missing: int) -> tuple[int, int]:
    values = (value,) * space if isinstance(value, int) else tuple(value)
    values = values * space if len(values) < space else values
    return (missing, values[0]) if space == 1 else (values[0], values[1])
