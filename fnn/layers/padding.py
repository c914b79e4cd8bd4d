"""Padding: layers that add rows around an image, or cut them off where the padding is negative."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from fnn.layers.base import SPATIAL, Layer, ShapeError, as_size, check_channels, check_params, factory

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")

Padding = int | Sequence[int]


@factory
def zero_pad1d(padding: Padding) -> Layer:
    """Add zeros on both sides: ``padding`` is one number or a pair (left, right).

    x: (batch, channels, length) -> (batch, channels, left + length + right), or a single sample without the batch axis.
    A negative number removes entries. Raises ``ShapeError`` for another rank and if nothing would be left.

    >>> import torch
    >>> zero_pad1d((1, 2)).apply({}, torch.ones(1, 1, 2))
    tensor([[[0., 1., 1., 0., 0.]]])
    """
    return _padding("zero_pad1d", 1, "zeros", padding)


@factory
def zero_pad2d(padding: Padding) -> Layer:
    """Add zeros around images: ``padding`` is one number or (left, right, top, bottom).

    x: (batch, channels, height, width) -> (batch, channels, height', width'), or a single image without the batch axis.
    A negative number removes entries. Raises ``ShapeError`` for another rank and if nothing would be left.

    >>> import torch
    >>> zero_pad2d((1, 1, 0, 1)).apply({}, torch.ones(1, 1, 2))
    tensor([[[0., 1., 1., 0.],
             [0., 0., 0., 0.]]])
    """
    return _padding("zero_pad2d", 2, "zeros", padding)


@factory
def zero_pad3d(padding: Padding) -> Layer:
    """:func:`zero_pad2d` for volumes: ``padding`` is one number or (left, right, top, bottom, front, back).

    >>> import torch
    >>> zero_pad3d(1).apply({}, torch.ones(1, 1, 2, 3, 4)).shape
    torch.Size([1, 1, 4, 5, 6])
    """
    return _padding("zero_pad3d", 3, "zeros", padding)


@factory
def constant_pad1d(padding: Padding, value: float) -> Layer:
    """:func:`zero_pad1d` with another value.

    >>> import torch
    >>> constant_pad1d(1, 5.0).apply({}, torch.ones(1, 1, 2))
    tensor([[[5., 1., 1., 5.]]])
    """
    return _padding("constant_pad1d", 1, "zeros", padding, value)


@factory
def constant_pad2d(padding: Padding, value: float) -> Layer:
    """:func:`zero_pad2d` with another value.

    >>> import torch
    >>> constant_pad2d((1, 0, 0, 1), 5.0).apply({}, torch.ones(1, 1, 2))
    tensor([[[5., 1., 1.],
             [5., 5., 5.]]])
    """
    return _padding("constant_pad2d", 2, "zeros", padding, value)


@factory
def constant_pad3d(padding: Padding, value: float) -> Layer:
    """:func:`zero_pad3d` with another value.

    >>> import torch
    >>> constant_pad3d(1, 5.0).apply({}, torch.ones(1, 1, 2, 3, 4)).shape
    torch.Size([1, 1, 4, 5, 6])
    """
    return _padding("constant_pad3d", 3, "zeros", padding, value)


@factory
def reflection_pad1d(padding: Padding) -> Layer:
    """Continue x by its mirror image, in which the outermost entry is not repeated; arguments of :func:`zero_pad1d`.

    Raises ``ShapeError`` for another rank and unless ``padding`` is less than the length.

    >>> import torch
    >>> reflection_pad1d(2).apply({}, torch.tensor([[[1.0, 2.0, 3.0]]]))
    tensor([[[3., 2., 1., 2., 3., 2., 1.]]])
    """
    return _padding("reflection_pad1d", 1, "reflect", padding)


@factory
def reflection_pad2d(padding: Padding) -> Layer:
    """:func:`reflection_pad1d` for images, with the arguments of :func:`zero_pad2d`.

    >>> import torch
    >>> reflection_pad2d((1, 0, 1, 0)).apply({}, torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]))
    tensor([[[4., 3., 4.],
             [2., 1., 2.],
             [4., 3., 4.]]])
    """
    return _padding("reflection_pad2d", 2, "reflect", padding)


@factory
def reflection_pad3d(padding: Padding) -> Layer:
    """:func:`reflection_pad1d` for volumes, with the arguments of :func:`zero_pad3d`.

    >>> import torch
    >>> reflection_pad3d(1).apply({}, torch.ones(1, 1, 2, 3, 4)).shape
    torch.Size([1, 1, 4, 5, 6])
    """
    return _padding("reflection_pad3d", 3, "reflect", padding)


@factory
def replication_pad1d(padding: Padding) -> Layer:
    """Repeat the outermost entries; arguments of :func:`zero_pad1d`. Raises ``ShapeError`` for another rank.

    >>> import torch
    >>> replication_pad1d(2).apply({}, torch.tensor([[[1.0, 2.0, 3.0]]]))
    tensor([[[1., 1., 1., 2., 3., 3., 3.]]])
    """
    return _padding("replication_pad1d", 1, "replicate", padding)


@factory
def replication_pad2d(padding: Padding) -> Layer:
    """:func:`replication_pad1d` for images, with the arguments of :func:`zero_pad2d`.

    >>> import torch
    >>> replication_pad2d((1, 0, 1, 0)).apply({}, torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]))
    tensor([[[1., 1., 2.],
             [1., 1., 2.],
             [3., 3., 4.]]])
    """
    return _padding("replication_pad2d", 2, "replicate", padding)


@factory
def replication_pad3d(padding: Padding) -> Layer:
    """:func:`replication_pad1d` for volumes, with the arguments of :func:`zero_pad3d`.

    >>> import torch
    >>> replication_pad3d(1).apply({}, torch.ones(1, 1, 2, 3, 4)).shape
    torch.Size([1, 1, 4, 5, 6])
    """
    return _padding("replication_pad3d", 3, "replicate", padding)


@factory
def circular_pad1d(padding: Padding) -> Layer:
    """Continue x periodically; arguments of :func:`zero_pad1d`.

    Raises ``ShapeError`` for another rank and if ``padding`` is more than the length.

    >>> import torch
    >>> circular_pad1d(2).apply({}, torch.tensor([[[1.0, 2.0, 3.0]]]))
    tensor([[[2., 3., 1., 2., 3., 1., 2.]]])
    """
    return _padding("circular_pad1d", 1, "circular", padding)


@factory
def circular_pad2d(padding: Padding) -> Layer:
    """:func:`circular_pad1d` for images, with the arguments of :func:`zero_pad2d`.

    >>> import torch
    >>> circular_pad2d((1, 0, 1, 0)).apply({}, torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]))
    tensor([[[4., 3., 4.],
             [2., 1., 2.],
             [4., 3., 4.]]])
    """
    return _padding("circular_pad2d", 2, "circular", padding)


@factory
def circular_pad3d(padding: Padding) -> Layer:
    """:func:`circular_pad1d` for volumes, with the arguments of :func:`zero_pad3d`.

    >>> import torch
    >>> circular_pad3d(1).apply({}, torch.ones(1, 1, 2, 3, 4)).shape
    torch.Size([1, 1, 4, 5, 6])
    """
    return _padding("circular_pad3d", 3, "circular", padding)


def _padding(layer: str, dims: int, mode: str, padding: Padding, value: float = 0.0) -> Layer:
    given = tuple(padding) if isinstance(padding, (tuple, list)) else (padding,) * (2 * dims)
    if len(given) != 2 * dims:
        sides = ("left", "right", "top", "bottom", "front", "back")[: 2 * dims]
        raise ValueError(f"{layer} expects padding as one integer or ({', '.join(sides)}), got {padding}")
    margins = tuple(as_size(layer, "padding", margin, least=-(2**62)) for margin in given)

    def apply(params: dict, x: Tensor, *, key: Tensor | None = None) -> Tensor:
        check_params(layer, params)
        check_channels(layer, x, None, SPATIAL[dims])
        return pad(layer, x, margins, mode, value)

    return Layer(lambda key=None: {}, apply)


def pad(layer: str, x: Tensor, margins: tuple[int, ...], mode: str, value: float = 0.0) -> Tensor:
    """Pad the last axes of x by ``margins``, which are ordered (left, right, top, bottom, ...) as in ``F.pad``.

    Raises ``ShapeError`` if nothing would be left and for a margin that the mode does not allow.
    """
    for axis, size in enumerate(reversed(x.shape[-len(margins) // 2 :])):
        before, after = margins[2 * axis : 2 * axis + 2]
        most = {"reflect": size - 1, "circular": size}.get(mode)
        if most is not None and max(before, after) > most:
            raise ShapeError(
                f"{layer} can pad {size} entries by at most {most} with mode {mode!r}, got {(before, after)}"
            )
        if size + before + after < 1 or size + min(before, 0) + min(after, 0) < 1:
            raise ShapeError(f"{layer} leaves nothing of {size} entries with padding {(before, after)}")
    if mode == "zeros":
        return F.pad(x, margins, "constant", value)
    return F.pad(x, margins, mode)
