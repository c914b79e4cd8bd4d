"""Residual networks (He et al., 2015), and wide ones (Zagoruyko and Komodakis, 2016)."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from fnn import init
from fnn.layers import adaptive_avg_pool2d, batch_norm, connect, conv2d, flatten, linear, max_pool2d, relu, sequential
from fnn.layers.base import Layer, StatefulLayer, factory
from fnn.layers.combinators import Parts


def _conv(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> Layer:
    return conv2d(
        in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False,
        weight_init=init.kaiming_normal(mode="fan_out", nonlinearity="relu"),
    )  # fmt: skip


def _basic(in_channels: int, width: int, stride: int, base_width: int) -> dict[str, Any]:
    """Two 3x3 convolutions."""
    return {
        "conv1": _conv(in_channels, width, 3, stride), "bn1": batch_norm(width),
        "conv2": _conv(width, width, 3), "bn2": batch_norm(width),
    }  # fmt: skip


def _bottleneck(in_channels: int, width: int, stride: int, base_width: int) -> dict[str, Any]:
    """A 3x3 convolution of fewer channels between two 1x1 convolutions. The stride is that of the middle one."""
    inner = width * base_width // 64
    return {
        "conv1": _conv(in_channels, inner, 1), "bn1": batch_norm(inner),
        "conv2": _conv(inner, inner, 3, stride), "bn2": batch_norm(inner),
        "conv3": _conv(inner, 4 * width, 1), "bn3": batch_norm(4 * width),
    }  # fmt: skip


def _basic_forward(parts: Parts, x: Tensor) -> Tensor:
    y = relu(parts.bn1(parts.conv1(x)))
    y = parts.bn2(parts.conv2(y))
    return relu(y + (parts.downsample(x) if "downsample" in parts else x))


def _bottleneck_forward(parts: Parts, x: Tensor) -> Tensor:
    y = relu(parts.bn1(parts.conv1(x)))
    y = relu(parts.bn2(parts.conv2(y)))
    y = parts.bn3(parts.conv3(y))
    return relu(y + (parts.downsample(x) if "downsample" in parts else x))


_KINDS: dict[str, tuple[Callable[..., dict[str, Any]], Callable[..., Tensor], int]] = {
    "basic": (_basic, _basic_forward, 1),
    "bottleneck": (_bottleneck, _bottleneck_forward, 4),
}


def _resnet(
    kind: str, depths: Sequence[int], num_classes: int, in_channels: int, base_width: int = 64
) -> StatefulLayer:
    make, forward, expansion = _KINDS[kind]
    channels = 64
    stages: dict[str, Any] = {}
    for i, depth in enumerate(depths):
        width = 64 * 2**i
        blocks = []
        for j in range(depth):
            stride = 2 if i > 0 and j == 0 else 1
            parts = make(channels, width, stride, base_width)
            if stride > 1 or channels != expansion * width:
                out_channels = expansion * width
                parts["downsample"] = sequential(_conv(channels, out_channels, 1, stride), batch_norm(out_channels))
            blocks.append(connect(forward, **parts))
            channels = expansion * width
        stages[f"layer{i + 1}"] = sequential(*blocks)
    return sequential(
        conv1=_conv(in_channels, 64, 7, 2), bn1=batch_norm(64), relu=relu, maxpool=max_pool2d(3, 2, 1),
        **stages,
        avgpool=adaptive_avg_pool2d(1), flatten=flatten, fc=linear(channels, num_classes),
    )  # fmt: skip


@factory
def resnet18(num_classes: int = 1000, in_channels: int = 3) -> StatefulLayer:
    """ResNet with 18 layers, with the parameter names and initial values of torchvision.

    x: (batch, in_channels, height, width) -> logits (batch, num_classes); 11,689,512 parameters. The state is that of
    its :func:`fnn.layers.batch_norm` layers. Raises ``ShapeError`` for other inputs.

    >>> import fnn
    >>> params, state = resnet18().init(fnn.random.key(0, "meta"))
    >>> fnn.tree.size(params), list(params)
    (11689512, ['conv1', 'bn1', 'layer1', 'layer2', 'layer3', 'layer4', 'fc'])
    """
    return _resnet("basic", (2, 2, 2, 2), num_classes, in_channels)


@factory
def resnet34(num_classes: int = 1000, in_channels: int = 3) -> StatefulLayer:
    """ResNet with 34 layers; see :func:`resnet18`. 21,797,672 parameters.

    >>> import fnn
    >>> params, state = resnet34().init(fnn.random.key(0, "meta"))
    >>> fnn.tree.size(params)
    21797672
    """
    return _resnet("basic", (3, 4, 6, 3), num_classes, in_channels)


@factory
def resnet50(num_classes: int = 1000, in_channels: int = 3) -> StatefulLayer:
    """ResNet with 50 layers, in blocks of three convolutions whose middle one is narrow; see :func:`resnet18`.

    25,557,032 parameters. The stride is in the middle convolution, as in torchvision ("ResNet V1.5").

    >>> import fnn
    >>> params, state = resnet50().init(fnn.random.key(0, "meta"))
    >>> fnn.tree.size(params)
    25557032
    """
    return _resnet("bottleneck", (3, 4, 6, 3), num_classes, in_channels)


@factory
def resnet101(num_classes: int = 1000, in_channels: int = 3) -> StatefulLayer:
    """ResNet with 101 layers; see :func:`resnet50`. 44,549,160 parameters.

    >>> import fnn
    >>> params, state = resnet101().init(fnn.random.key(0, "meta"))
    >>> fnn.tree.size(params)
    44549160
    """
    return _resnet("bottleneck", (3, 4, 23, 3), num_classes, in_channels)


@factory
def resnet152(num_classes: int = 1000, in_channels: int = 3) -> StatefulLayer:
    """ResNet with 152 layers; see :func:`resnet50`. 60,192,808 parameters.

    >>> import fnn
    >>> params, state = resnet152().init(fnn.random.key(0, "meta"))
    >>> fnn.tree.size(params)
    60192808
    """
    return _resnet("bottleneck", (3, 8, 36, 3), num_classes, in_channels)


@factory
def wide_resnet50_2(num_classes: int = 1000, in_channels: int = 3) -> StatefulLayer:
    """:func:`resnet50` with twice as many channels in the middle of each block. 68,883,240 parameters.

    >>> import fnn
    >>> params, state = wide_resnet50_2().init(fnn.random.key(0, "meta"))
    >>> fnn.tree.size(params)
    68883240
    """
    return _resnet("bottleneck", (3, 4, 6, 3), num_classes, in_channels, base_width=128)


@factory
def wide_resnet101_2(num_classes: int = 1000, in_channels: int = 3) -> StatefulLayer:
    """:func:`resnet101` with twice as many channels in the middle of each block. 126,886,696 parameters.

    >>> import fnn
    >>> params, state = wide_resnet101_2().init(fnn.random.key(0, "meta"))
    >>> fnn.tree.size(params)
    126886696
    """
    return _resnet("bottleneck", (3, 4, 23, 3), num_classes, in_channels, base_width=128)
