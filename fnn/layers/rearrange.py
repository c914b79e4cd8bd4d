"""Layers that move entries to other places."""

from collections.abc import Sequence

from torch import Tensor

from fnn.layers.base import Layer, ShapeError, as_size, check_params, check_tensor, factory


@factory
def pixel_shuffle(upscale_factor: int) -> Layer:
    """Turn r^2 channels into squares of r x r pixels (Shi et al., 2016), where r is ``upscale_factor``.

    x: (..., channels r^2, height, width) -> (..., channels, height r, width r). Raises ``ShapeError`` for fewer than
    three axes and unless r^2 divides the number of channels.

    >>> import torch
    >>> pixel_shuffle(2).apply({}, torch.arange(4.0).reshape(4, 1, 1))
    tensor([[[0., 1.],
             [2., 3.]]])
    """
    factor = as_size("pixel_shuffle", "upscale_factor", upscale_factor)

    def apply(params: dict, x: Tensor, *, key: Tensor | None = None) -> Tensor:
        check_params("pixel_shuffle", params)
        check_tensor("pixel_shuffle", x)
        if x.dim() < 3 or x.shape[-3] % factor**2:
            raise ShapeError(
                f"pixel_shuffle expects inputs of shape (..., channels, height, width) with a multiple of {factor**2} "
                f"channels, got {tuple(x.shape)}"
            )
        squares = x.unflatten(-3, (x.shape[-3] // factor**2, factor, factor))  # (..., channels, r, r, height, width)
        return squares.movedim((-4, -3), (-3, -1)).flatten(-2).flatten(-3, -2)

    return Layer(lambda key=None: {}, apply)


@factory
def pixel_unshuffle(downscale_factor: int) -> Layer:
    """Turn squares of r x r pixels into r^2 channels: the inverse of :func:`pixel_shuffle`.

    x: (..., channels, height r, width r) -> (..., channels r^2, height, width). Raises ``ShapeError`` for fewer than
    three axes and unless r divides height and width.

    >>> import torch
    >>> pixel_unshuffle(2).apply({}, torch.arange(4.0).reshape(1, 2, 2)).flatten()
    tensor([0., 1., 2., 3.])
    """
    factor = as_size("pixel_unshuffle", "downscale_factor", downscale_factor)

    def apply(params: dict, x: Tensor, *, key: Tensor | None = None) -> Tensor:
        check_params("pixel_unshuffle", params)
        check_tensor("pixel_unshuffle", x)
        if x.dim() < 3 or x.shape[-1] % factor or x.shape[-2] % factor:
            raise ShapeError(
                f"pixel_unshuffle expects inputs of shape (..., channels, height, width) with height and width "
                f"multiples of {factor}, got {tuple(x.shape)}"
            )
        rows, columns = x.shape[-2] // factor, x.shape[-1] // factor
        squares = x.unflatten(-1, (columns, factor)).unflatten(-3, (rows, factor))
        return squares.movedim((-3, -1), (-4, -3)).flatten(-5, -3)  # (..., channels r^2, height, width)

    return Layer(lambda key=None: {}, apply)


@factory
def channel_shuffle(groups: int) -> Layer:
    """Take one channel of each group in turn (Zhang et al., 2018).

    x: (batch, channels, ...) -> the same shape. Raises ``ShapeError`` unless ``groups`` divides the number of channels.

    >>> import torch
    >>> channel_shuffle(2).apply({}, torch.arange(6.0).reshape(1, 6, 1)).flatten()
    tensor([0., 3., 1., 4., 2., 5.])
    """
    groups = as_size("channel_shuffle", "groups", groups)

    def apply(params: dict, x: Tensor, *, key: Tensor | None = None) -> Tensor:
        check_params("channel_shuffle", params)
        check_tensor("channel_shuffle", x)
        if x.dim() < 2 or x.shape[1] % groups:
            raise ShapeError(
                f"channel_shuffle expects inputs of shape (batch, channels, ...) with a multiple of {groups} channels, "
                f"got {tuple(x.shape)}"
            )
        return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)

    return Layer(lambda key=None: {}, apply)


@factory
def unflatten(dim: int, unflattened_size: Sequence[int]) -> Layer:
    """Split the axis ``dim`` into axes of ``unflattened_size``, of which one may be -1: the inverse of `flatten`.

    Raises ``ShapeError`` for an axis of another size.

    >>> import torch
    >>> unflatten(1, (2, 3)).apply({}, torch.ones(4, 6)).shape
    torch.Size([4, 2, 3])
    """
    dim = as_size("unflatten", "dim", dim, -(2**31))
    sizes = tuple(as_size("unflatten", "unflattened_size", size, -1) for size in unflattened_size)

    def apply(params: dict, x: Tensor, *, key: Tensor | None = None) -> Tensor:
        check_params("unflatten", params)
        check_tensor("unflatten", x)
        try:
            return x.unflatten(dim, sizes)
        except (RuntimeError, IndexError):
            raise ShapeError(f"unflatten cannot split axis {dim} of {tuple(x.shape)} into {sizes}") from None

    return Layer(lambda key=None: {}, apply)
