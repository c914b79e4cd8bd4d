"""Positions in a sequence: added to the inputs (sinusoidal or learned), or as rotations of queries and keys."""

from typing import Any

import torch
from torch import Tensor

from fnn import init
from fnn.layers.base import (
    ArgumentError,
    Layer,
    ShapeError,
    as_size,
    check_dtype,
    check_last_axis,
    check_mapping,
    check_params,
    check_tensor,
    factory,
)


@factory
def sinusoidal_positions(features: int, base: float = 10000.0) -> Layer:
    """y = x + s, with s(p, 2i) = sin(p / base^(2i / features)) and s(p, 2i + 1) the cosine of the same angle.

    x: (..., sequence, features) -> the same shape (Vaswani et al., 2017). The positions p are 0, 1, 2, ... along the
    sequence; ``apply(params, x, positions=p)`` takes others, integers of shape (sequence,) or (..., sequence), as when
    one token is decoded at a time. No params. Raises ``ShapeError`` for another number of features or of positions.

    >>> sinusoidal_positions(4).apply({}, torch.zeros(2, 4))
    tensor([[0.0000, 1.0000, 0.0000, 1.0000],
            [0.8415, 0.5403, 0.0100, 0.9999]])
    """
    features = as_size("sinusoidal_positions", "features", features)

    def apply(params: dict, x: Tensor, *, positions: Tensor | None = None, key: Tensor | None = None) -> Tensor:
        check_params("sinusoidal_positions", params)
        angles = _angles("sinusoidal_positions", x, positions, features, base)
        waves = torch.stack([angles.sin(), angles.cos()], -1).flatten(-2)
        return x + waves[..., :features].to(x.dtype)

    return Layer(lambda key=None: {}, apply)


@factory
def learned_positions(
    max_length: int,
    features: int,
    weight_init: init.Initializer | None = None,
    dtype: torch.dtype = torch.float32,
) -> Layer:
    """y = x + weight[p]: a learned vector for each of ``max_length`` positions p.

    x: (..., sequence, features), with at most ``max_length`` positions -> the same shape. The positions are 0, 1, 2,
    ... along the sequence; ``apply(params, x, positions=p)`` takes others, integers of shape (sequence,) or (...,
    sequence). Params: ``weight`` (max_length, features), normal with standard deviation 0.02, as in BERT and GPT-2.
    Raises ``ShapeError`` for a longer sequence and for another number of features or of positions.

    >>> from fnn import random
    >>> layer = learned_positions(10, 4)
    >>> layer.apply(layer.init(random.key(0)), torch.zeros(3, 7, 4)).shape
    torch.Size([3, 7, 4])
    """
    max_length = as_size("learned_positions", "max_length", max_length)
    features = as_size("learned_positions", "features", features)
    weight_init = weight_init or init.normal(std=0.02)

    def init_params(key: Any = None) -> dict[str, Tensor]:
        return {"weight": weight_init(key, (max_length, features), dtype)}

    def apply(
        params: dict[str, Tensor], x: Tensor, *, positions: Tensor | None = None, key: Tensor | None = None
    ) -> Tensor:
        check_mapping("learned_positions", params)
        check_params("learned_positions", params, weight=(max_length, features))
        check_last_axis("learned_positions", x, features)
        check_dtype("learned_positions", x, params["weight"])
        _check_positions("learned_positions", x, positions)
        if positions is not None:
            return x + torch.nn.functional.embedding(positions, params["weight"])
        if x.shape[-2] > max_length:
            raise ShapeError(
                f"learned_positions has {max_length} positions and got a sequence of {x.shape[-2]}, in inputs of shape "
                f"{tuple(x.shape)}"
            )
        return x + params["weight"][: x.shape[-2]]

    return Layer(init_params, apply)


def rotary_positions(
    x: Tensor, positions: Tensor | None = None, base: float = 10000.0, interleaved: bool = False
) -> Tensor:
    """Rotate pairs of features by angles p / base^(2i / features), for queries and keys (Su et al., 2021).

    x: (..., sequence, features), with an even number of features -> the same shape. The product of a rotated query and
    a rotated key depends on the difference of their positions p only. These are 0, 1, 2, ... along the sequence, or
    ``positions``, integers of shape (sequence,) or any that broadcasts to x.shape[:-1]. Feature i forms a pair with
    feature i + features / 2, as in GPT-NeoX and Llama; with ``interleaved`` the pairs are (2i, 2i + 1), as in
    the paper. Raises ``ShapeError`` for an odd number of features and for another number of positions.

    >>> rotary_positions(torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    tensor([[1.0000, 0.0000],
            [0.5403, 0.8415]])
    """
    check_tensor("rotary_positions", x)
    if x.dim() < 2 or x.shape[-1] % 2:
        raise ShapeError(
            f"rotary_positions expects inputs of shape (..., sequence, features) with an even number of features, got "
            f"{tuple(x.shape)}"
        )
    angles = _angles("rotary_positions", x, positions, x.shape[-1], base)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = (x[..., 0::2], x[..., 1::2]) if interleaved else x.chunk(2, -1)
    rotated = [first * cos - second * sin, second * cos + first * sin]
    return torch.stack(rotated, -1).flatten(-2) if interleaved else torch.cat(rotated, -1)


def _angles(layer: str, x: Tensor, positions: Tensor | None, features: int, base: float) -> Tensor:
    """Return the angles (..., sequence, features / 2), in float32 or wider because positions may be large."""
    check_last_axis(layer, x, features)
    _check_positions(layer, x, positions)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    if positions is None:
        positions = torch.arange(x.shape[-2], device=x.device)
    exponents = torch.arange(0, features, 2, device=x.device, dtype=dtype) / features
    return positions[..., None].to(dtype) * base**-exponents


def _check_positions(layer: str, x: Tensor, positions: Tensor | None) -> None:
    if x.dim() < 2:
        raise ShapeError(f"{layer} expects inputs of shape (..., sequence, features), got {tuple(x.shape)}")
    if positions is None:
        return
    if not isinstance(positions, Tensor) or positions.dtype not in (torch.int64, torch.int32):
        raise ArgumentError(f"{layer} expects positions as an int64 or int32 tensor, got {positions!r}")
    if positions.dim() == 0 or positions.shape[-1] != x.shape[-2]:
        raise ShapeError(
            f"{layer} expects one position for each of the {x.shape[-2]} places of a sequence, got positions of shape "
            f"{tuple(positions.shape)}"
        )
