"""The fully connected layer."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fnn import init, random
from fnn.layers.base import Layer, as_size, check_dtype, check_last_axis, check_mapping, check_params, factory


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
