"""EfficientNet (Tan and Le, 2019)."""

from typing import Any

import torch
from torch import Tensor

from fnn import init, random
from fnn.layers import (
    adaptive_avg_pool2d,
    batch_norm,
    connect,
    conv2d,
    dropout,
    flatten,
    linear,
    sequential,
    sigmoid,
    silu,
)
from fnn.layers.base import Layer, StatefulLayer, check_params, factory
from fnn.layers.combinators import Parts

# expansion, kernel, stride of the first block, output channels, number of blocks
_STAGES = (
    (1, 3, 1, 16, 1), (6, 3, 2, 24, 2), (6, 5, 2, 40, 2), (6, 3, 2, 80, 3), (6, 5, 1, 112, 3), (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)  # fmt: skip


@factory
def efficientnet_b0(
    num_classes: int = 1000, in_channels: int = 3, p: float = 0.2, stochastic_depth: float = 0.2
) -> StatefulLayer:
    """EfficientNet-B0, with the parameter names and initial values of torchvision.

    x: (batch, in_channels, height, width) -> logits (batch, num_classes); 5,288,548 parameters. A key turns on dropout
    with probability ``p`` and stochastic depth (Huang et al., 2016): a block is left out for a sample with a
    probability that grows from 0 to ``stochastic_depth`` through the network. Raises ``ShapeError`` for other inputs.

    >>> import fnn
    >>> params, state = efficientnet_b0().init(fnn.random.key(0, "meta"))
    >>> fnn.tree.size(params)
    5288548
    """
    features: list[Any] = [_conv_norm(in_channels, 32, 3, stride=2)]
    channels, number, total = 32, 0, sum(stage[-1] for stage in _STAGES)
    for expansion, kernel, first_stride, width, count in _STAGES:
        blocks = []
        for i in range(count):
            stride = first_stride if i == 0 else 1
            blocks.append(_block(channels, width, kernel, stride, expansion, stochastic_depth * number / total))
            channels, number = width, number + 1
        features.append(sequential(*blocks))
    features.append(_conv_norm(channels, 4 * channels, 1))
    bound = num_classes**-0.5
    head = linear(4 * channels, num_classes, weight_init=init.uniform(-bound, bound), bias_init=init.zeros())
    return sequential(
        features=sequential(*features),
        avgpool=adaptive_avg_pool2d(1),
        flatten=flatten,
        classifier=sequential(dropout(p), head),
    )


def _conv(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1, bias: bool = False
) -> Layer:
    return conv2d(
        in_channels, out_channels, kernel, stride, padding=kernel // 2, groups=groups, bias=bias,
        weight_init=init.kaiming_normal(mode="fan_out"), bias_init=init.zeros(),
    )  # fmt: skip


def _conv_norm(in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> Any:
    return sequential(_conv(in_channels, out_channels, kernel, stride, groups), batch_norm(out_channels), silu)


def _excite(parts: Parts, x: Tensor) -> Tensor:
    """Scale each channel by a function of the means of all channels (Hu et al., 2017)."""
    means = parts.avgpool(x)
    return sigmoid(parts.fc2(silu(parts.fc1(means)))) * x


def _block(in_channels: int, out_channels: int, kernel: int, stride: int, expansion: int, drop: float) -> StatefulLayer:
    hidden, squeezed = in_channels * expansion, max(1, in_channels // 4)
    widen = [_conv_norm(in_channels, hidden, 1)] if expansion != 1 else []
    excite = connect(
        _excite, avgpool=adaptive_avg_pool2d(1),
        fc1=_conv(hidden, squeezed, 1, bias=True), fc2=_conv(squeezed, hidden, 1, bias=True),
    )  # fmt: skip
    block = sequential(
        *widen, _conv_norm(hidden, hidden, kernel, stride, groups=hidden), excite,
        sequential(_conv(hidden, out_channels, 1), batch_norm(out_channels)),
    )  # fmt: skip
    if stride != 1 or in_channels != out_channels:
        return connect(lambda parts, x: parts.block(x), block=block)
    return connect(
        lambda parts, x: x + parts.stochastic_depth(parts.block(x)), block=block, stochastic_depth=_drop_samples(drop)
    )


def _drop_samples(p: float) -> Layer:
    """Set whole samples to zero with probability p, and divide the others by 1 - p."""

    def apply(params: dict, x: Tensor, *, key: Tensor | None = None) -> Tensor:
        check_params("stochastic_depth", params)
        if key is None or p == 0.0:
            return x
        keep = random.bernoulli(key, 1.0 - p, (len(x), *[1] * (x.dim() - 1)))
        return torch.where(keep, x / (1.0 - p), 0.0)

    return Layer(lambda key: {}, apply)
