"""MobileNetV2 (Sandler et al., 2018)."""

from typing import Any

from fnn import init
from fnn.layers import adaptive_avg_pool2d, batch_norm, connect, conv2d, dropout, flatten, linear, relu6, sequential
from fnn.layers.base import Layer, StatefulLayer, factory

# expansion, output channels, number of blocks, stride of the first
_STAGES = (
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
)  # fmt: skip


@factory
def mobilenet_v2(num_classes: int = 1000, in_channels: int = 3, p: float = 0.2) -> StatefulLayer:
    """MobileNetV2, with the parameter names and initial values of torchvision.

    x: (batch, in_channels, height, width) -> logits (batch, num_classes); 3,504,872 parameters. A key turns on dropout
    with probability ``p``. Raises ``ShapeError`` for other inputs.

    >>> import fnn
    >>> params, state = mobilenet_v2().init(fnn.random.key(0, "meta"))
    >>> fnn.tree.size(params)
    3504872
    """
    features: list[Any] = [_conv_norm(in_channels, 32, 3, stride=2)]
    channels = 32
    for expansion, width, count, first_stride in _STAGES:
        for i in range(count):
            features.append(_inverted_residual(channels, width, first_stride if i == 0 else 1, expansion))
            channels = width
    features.append(_conv_norm(channels, 1280, 1))
    return sequential(
        features=sequential(*features),
        avgpool=adaptive_avg_pool2d(1),
        flatten=flatten,
        classifier=sequential(
            dropout(p), linear(1280, num_classes, weight_init=init.normal(std=0.01), bias_init=init.zeros())
        ),
    )


def _conv(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, groups: int = 1) -> Layer:
    return conv2d(
        in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, groups=groups, bias=False,
        weight_init=init.kaiming_normal(mode="fan_out"),
    )  # fmt: skip


def _conv_norm(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, groups: int = 1) -> Any:
    conv = _conv(in_channels, out_channels, kernel_size, stride, groups)
    return sequential(conv, batch_norm(out_channels), relu6)


def _inverted_residual(in_channels: int, out_channels: int, stride: int, expansion: int) -> StatefulLayer:
    """Widen by 1x1, convolve each channel by 3x3, narrow by 1x1 without an activation."""
    hidden = in_channels * expansion
    widen = [_conv_norm(in_channels, hidden, 1)] if expansion != 1 else []
    conv = sequential(
        *widen, _conv_norm(hidden, hidden, 3, stride, groups=hidden),
        _conv(hidden, out_channels, 1), batch_norm(out_channels),
    )  # fmt: skip
    keeps_shape = stride == 1 and in_channels == out_channels
    return connect(lambda parts, x: x + parts.conv(x) if keeps_shape else parts.conv(x), conv=conv)
