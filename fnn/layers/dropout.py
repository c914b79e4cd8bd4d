"""Dropout."""

import numbers

import torch
from torch import Tensor

from fnn import random
from fnn.layers.base import Layer, check_params, check_tensor, factory


@factory
def dropout(rate: float = 0.5) -> Layer:
    """Set each entry to zero with probability ``rate``, and divide the others by 1 - rate (Srivastava et al., 2014).

    x: any shape -> the same shape. Without a key ``apply`` returns x. Raises ``TypeError`` unless ``rate`` is a number,
    and ``ValueError`` unless 0 <= rate < 1.

    >>> dropout(0.5).apply({}, torch.ones(3))
    tensor([1., 1., 1.])
    >>> y = dropout(0.5).apply({}, torch.ones(1000), key=random.key(0))
    >>> y.unique()
    tensor([0., 2.])
    """
    if not isinstance(rate, numbers.Real):
        raise TypeError(f"dropout expects its rate as a number, got {rate!r}; write dropout(0.5)")
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"dropout expects 0 <= rate < 1, got {rate}")

    def apply(params: dict, x: Tensor, *, key: Tensor | None = None) -> Tensor:
        check_params("dropout", params)
        check_tensor("dropout", x)
        if key is None or rate == 0.0:
            return x
        keep = random.bernoulli(key, 1.0 - rate, x.shape)
        return torch.where(keep, x / (1.0 - rate), 0.0)

    return Layer(lambda key: {}, apply)
