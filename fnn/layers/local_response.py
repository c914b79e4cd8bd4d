"""Normalisation of each place by the channels beside it."""

import torch.nn.functional as F
from torch import Tensor

from fnn._numerics import widen
from fnn.layers.base import Layer, ShapeError, as_size, check_floating, check_params, factory


@factory
def local_response_norm(size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Layer:
    """x / (k + alpha m)^beta, where m is the mean of x^2 over ``size`` neighbouring channels (Krizhevsky et al., 2012).

    x: (batch, channels, ...) -> the same shape. Channels beyond the first and the last count as 0; of an even number of
    channels one more is taken from before than from after. ``torch.nn.CrossMapLRN2d`` means the same for an odd
    ``size``, but by mistake keeps the first channel in every sum. Raises ``ShapeError`` for fewer than three axes, and
    ``TypeError`` for integers and complex numbers.

    >>> import torch
    >>> local_response_norm(1, alpha=1.0, beta=1.0).apply({}, torch.tensor([[[2.0], [3.0]]]))
    tensor([[[0.4000],
             [0.3000]]])
    """
    size = as_size("local_response_norm", "size", size)

    def apply(params: dict, x: Tensor, *, key: Tensor | None = None) -> Tensor:
        check_params("local_response_norm", params)
        check_floating("local_response_norm", x)
        if x.dim() < 3:
            raise ShapeError(
                f"local_response_norm expects inputs of shape (batch, channels, ...) with at least three axes, "
                f"got {tuple(x.shape)}"
            )
        wide = widen(x)
        squares = F.pad(wide.square().flatten(2), (0, 0, size // 2, (size - 1) // 2))
        total = squares[:, : x.shape[1]]
        for i in range(1, size):
            total = total + squares[:, i : i + x.shape[1]]
        return (wide / (k + alpha / size * total.reshape(x.shape)).pow(beta)).to(x.dtype)

    return Layer(lambda key=None: {}, apply)
