"""Unpooling: maxima back at their places."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fnn.layers.base import (
    SPATIAL,
    ArgumentError,
    Layer,
    ShapeError,
    as_sizes,
    check_channels,
    check_params,
    check_tensor,
    factory,
)
from fnn.layers.pool import Sizes, window


@factory
def max_unpool1d(kernel_size: Sizes, stride: Sizes | None = None, padding: Sizes = 0) -> Layer:
    """The partial inverse of ``max_pool1d(..., return_indices=True)``; see :func:`max_unpool2d`.

    >>> import torch
    >>> from fnn.layers import max_pool1d
    >>> y, indices = max_pool1d(2, return_indices=True).apply({}, torch.tensor([[[1.0, 3.0, 2.0, 0.0]]]))
    >>> max_unpool1d(2).apply({}, y, indices)
    tensor([[[0., 3., 2., 0.]]])
    """
    return _max_unpool(1, kernel_size, stride, padding)


@factory
def max_unpool2d(kernel_size: Sizes, stride: Sizes | None = None, padding: Sizes = 0) -> Layer:
    """The partial inverse of ``max_pool2d(..., return_indices=True)``: zero except at the maxima.

    ``apply(params, x, indices, output_size=None)`` with x and int64 ``indices`` (batch, channels, height, width) ->
    (batch, channels, height', width'), or a single image without the batch axis. The indices count the pixels of
    height' x width'; those of one channel must differ, because one of two numbers at a place is lost. Several input
    sizes are pooled to one size; ``output_size``, (height', width') or a whole shape, tells which one it was, and the
    default is (height - 1) stride - 2 padding + kernel_size. Raises ``ShapeError`` for another rank, for indices of
    another shape and for a size that pooling would not have made this one, and ``TypeError`` for indices that are not
    int64.

    >>> import torch
    >>> x = torch.tensor([[[1.0, 2.0], [4.0, 0.0]]])
    >>> max_unpool2d(2).apply({}, torch.tensor([[[4.0]]]), torch.tensor([[[2]]]))
    tensor([[[0., 0.],
             [4., 0.]]])
    """
    return _max_unpool(2, kernel_size, stride, padding)


@factory
def max_unpool3d(kernel_size: Sizes, stride: Sizes | None = None, padding: Sizes = 0) -> Layer:
    """The partial inverse of ``max_pool3d(..., return_indices=True)``; see :func:`max_unpool2d`.

    >>> import torch
    >>> max_unpool3d(2).apply({}, torch.ones(1, 1, 1, 1, 1), torch.tensor([[[[[5]]]]])).flatten()
    tensor([0., 0., 0., 0., 0., 1., 0., 0.])
    """
    return _max_unpool(3, kernel_size, stride, padding)


def _max_unpool(dims: int, kernel_size: Sizes, stride: Sizes | None, padding: Sizes) -> Layer:
    layer = f"max_unpool{dims}d"
    kernel, strides, margin = window(layer, dims, kernel_size, stride, padding)

    def apply(
        params: dict,
        x: Tensor,
        indices: Tensor | None = None,
        output_size: Sequence[int] | None = None,
        *,
        key: Tensor | None = None,
    ) -> Tensor:
        check_params(layer, params)
        check_channels(layer, x, None, SPATIAL[dims])
        if indices is None:
            raise ArgumentError(f"{layer} got no indices; write apply(params, x, indices)")
        check_tensor(layer, indices)
        if indices.dtype != torch.int64:
            raise ArgumentError(f"{layer} expects indices of torch.int64, got {indices.dtype}")
        if indices.shape != x.shape:
            raise ShapeError(f"{layer} expects indices of shape {tuple(x.shape)}, got {tuple(indices.shape)}")
        sizes = _output_size(layer, x, kernel, strides, margin, output_size)
        flat = x.new_zeros(*x.shape[:-dims], math.prod(sizes))
        places = indices.flatten(-dims), x.flatten(-dims)
        return flat.scatter(-1, *places).unflatten(-1, sizes)

    return Layer(lambda key=None: {}, apply)


def _output_size(
    layer: str,
    x: Tensor,
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    margin: tuple[int, ...],
    output_size: Sequence[int] | None,
) -> tuple[int, ...]:
    dims = len(kernel)
    rows = zip(x.shape[-dims:], kernel, strides, margin, strict=True)
    default = tuple((size - 1) * s + k - 2 * m for size, k, s, m in rows)
    sizes = default
    if output_size is not None:
        whole = len(output_size) == x.dim()
        sizes = as_sizes(layer, "output_size", tuple(output_size)[-dims:] if whole else tuple(output_size), dims)
    if any(abs(size - usual) >= s for size, usual, s in zip(sizes, default, strides, strict=True)) or min(sizes) < 1:
        raise ShapeError(
            f"{layer} can make an output of size {default}, give or take less than the stride {strides}, got {sizes}"
        )
    return sizes
