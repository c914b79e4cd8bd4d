"""The fully connected layer, the identity, and a product of two inputs."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fnn import init, random
from fnn.layers.base import (
    ArgumentError,
    Layer,
    ShapeError,
    as_size,
    check_dtype,
    check_last_axis,
    check_mapping,
    check_params,
    factory,
)
from fnn.layers.conv import weight_and_bias


@factory
def linear(
    in_features: int,
    out_features: int,
    bias: bool = True,
    weight_init: init.Initializer | None = None,
    bias_init: init.Initializer | None = None,
    dtype: torch.dtype = torch.float32,
) -> Layer:
    """y = x W^T + b.

    x: (..., in_features) -> (..., out_features). Params: ``weight`` (out_features, in_features) and, with ``bias``,
    ``bias`` (out_features,), initialised as in torch. Raises ``ShapeError`` for another number of features, and for
    params of other names, shapes, device or dtype.

    >>> layer = linear(3, 2)
    >>> layer.apply(layer.init(random.key(0)), torch.ones(5, 3)).shape
    torch.Size([5, 2])
    """
    in_features = as_size("linear", "in_features", in_features, 0)
    out_features = as_size("linear", "out_features", out_features, 0)
    weight_init = weight_init or init.torch_default()
    bias_init = bias_init or init.torch_default_bias(in_features)
    shapes = {"weight": (out_features, in_features)} | ({"bias": (out_features,)} if bias else {})

    def init_params(key: Any = None) -> dict[str, Tensor]:
        weight_key, bias_key = random.split(key)
        params = {"weight": weight_init(weight_key, (out_features, in_features), dtype)}
        return params | ({"bias": bias_init(bias_key, (out_features,), dtype)} if bias else {})

    def apply(params: dict[str, Tensor], x: Tensor, *, key: Tensor | None = None) -> Tensor:
        check_mapping("linear", params)
        check_last_axis("linear", x, in_features)
        check_params("linear", params, **shapes)
        check_dtype("linear", x, params["weight"])
        return F.linear(x, params["weight"], params.get("bias"))

    return Layer(init_params, apply)


def identity(x: Tensor) -> Tensor:
    """x itself, where a network expects a layer.

    >>> identity(torch.tensor([1.0, 2.0]))
    tensor([1., 2.])
    """
    return x


@factory
def bilinear(
    in1_features: int,
    in2_features: int,
    out_features: int,
    bias: bool = True,
    weight_init: init.Initializer | None = None,
    bias_init: init.Initializer | None = None,
    dtype: torch.dtype = torch.float32,
) -> Layer:
    """y_k = x1^T W_k x2 + b_k.

    ``apply(params, x1, x2)`` with x1: (..., in1_features) and x2: (..., in2_features) -> (..., out_features). Params:
    ``weight`` (out_features, in1_features, in2_features) and, with ``bias``, ``bias`` (out_features,), initialised as
    in torch. Raises ``ShapeError`` for other numbers of features, for inputs whose other axes differ, and for params of
    other names, shapes, device or dtype.

    >>> layer = bilinear(3, 4, 2)
    >>> layer.apply(layer.init(random.key(0)), torch.ones(5, 3), torch.ones(5, 4)).shape
    torch.Size([5, 2])
    """
    in1_features = as_size("bilinear", "in1_features", in1_features)
    in2_features = as_size("bilinear", "in2_features", in2_features)
    out_features = as_size("bilinear", "out_features", out_features)
    shape = (out_features, in1_features, in2_features)
    weight_init = weight_init or _uniform(in1_features)
    bias_init = bias_init or _uniform(in1_features)
    init_params, shapes = weight_and_bias(shape, out_features if bias else None, weight_init, bias_init, dtype)

    def apply(params: dict[str, Tensor], x1: Tensor, x2: Tensor | None = None, *, key: Tensor | None = None) -> Tensor:
        check_mapping("bilinear", params)
        check_last_axis("bilinear", x1, in1_features)
        if x2 is None:
            raise ArgumentError("bilinear got one input; write apply(params, x1, x2)")
        check_last_axis("bilinear", x2, in2_features)
        if x1.shape[:-1] != x2.shape[:-1]:
            raise ShapeError(
                f"bilinear expects inputs that differ in their last axis only, got {tuple(x1.shape)} and "
                f"{tuple(x2.shape)}"
            )
        check_params("bilinear", params, **shapes)
        check_dtype("bilinear", x1, params["weight"])
        check_dtype("bilinear", x2, params["weight"])
        y = torch.einsum("...i,oij,...j->...o", x1, params["weight"], x2)
        return y + params["bias"] if bias else y

    return Layer(init_params, apply)


def _uniform(features: int) -> init.Initializer:
    """torch's initialiser of a bilinear layer: uniform within 1 / sqrt(features)."""
    bound = features**-0.5
    return init.uniform(-bound, bound)
