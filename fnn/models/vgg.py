"""VGG (Simonyan and Zisserman, 2014), with and without batch normalisation."""

from collections.abc import Sequence
from typing import Any, Literal

from fnn import init
from fnn.layers import adaptive_avg_pool2d, batch_norm, conv2d, dropout, flatten, linear, max_pool2d, relu, sequential
from fnn.layers.base import Layer, StatefulLayer, factory

Plan = Sequence[int | Literal["pool"]]

_PLANS: dict[str, Plan] = {
    "vgg11": (64, "pool", 128, "pool", *[256] * 2, "pool", *[512] * 2, "pool", *[512] * 2, "pool"),
    "vgg13": (*[64] * 2, "pool", *[128] * 2, "pool", *[256] * 2, "pool", *[512] * 2, "pool", *[512] * 2, "pool"),
    "vgg16": (*[64] * 2, "pool", *[128] * 2, "pool", *[256] * 3, "pool", *[512] * 3, "pool", *[512] * 3, "pool"),
    "vgg19": (*[64] * 2, "pool", *[128] * 2, "pool", *[256] * 4, "pool", *[512] * 4, "pool", *[512] * 4, "pool"),
}


def _vgg(name: str, norm: bool, num_classes: int, in_channels: int, p: float) -> Any:
    features: list[Any] = []
    for width in _PLANS[name]:
        if width == "pool":
            features.append(max_pool2d(2))
            continue
        weight_init = init.kaiming_normal(mode="fan_out", nonlinearity="relu")
        features.append(conv2d(in_channels, width, 3, padding=1, weight_init=weight_init, bias_init=init.zeros()))
        features += [batch_norm(width), relu] if norm else [relu]
        in_channels = width
    small: dict[str, Any] = {"weight_init": init.normal(std=0.01), "bias_init": init.zeros()}
    return sequential(
        features=sequential(*features),
        avgpool=adaptive_avg_pool2d(7),
        flatten=flatten,
        classifier=sequential(
            linear(512 * 7 * 7, 4096, **small), relu, dropout(p),
            linear(4096, 4096, **small), relu, dropout(p),
            linear(4096, num_classes, **small),
        ),
    )  # fmt: skip


@factory
def vgg11(num_classes: int = 1000, in_channels: int = 3, p: float = 0.5) -> Layer:
    """VGG with 11 layers; see :func:`vgg16`. 132,863,336 parameters.

    >>> import fnn
    >>> params = vgg11().init(fnn.random.key(0, "meta"))
    >>> fnn.tree.size(params)
    132863336
    """
    return _vgg("vgg11", False, num_classes, in_channels, p)


@factory
def vgg13(num_classes: int = 1000, in_channels: int = 3, p: float = 0.5) -> Layer:
    """VGG with 13 layers; see :func:`vgg16`. 133,047,848 parameters.

    >>> import fnn
    >>> params = vgg13().init(fnn.random.key(0, "meta"))
    >>> fnn.tree.size(params)
    133047848
    """
    return _vgg("vgg13", False, num_classes, in_channels, p)


@factory
def vgg16(num_classes: int = 1000, in_channels: int = 3, p: float = 0.5) -> Layer:
    """VGG with 16 layers, with the parameter names and initial values of torchvision.

    x: (batch, in_channels, height, width), at least 32 x 32 pixels -> logits (batch, num_classes); 138,357,544
    parameters. A key turns on dropout with probability ``p``. Raises ``ShapeError`` for other inputs.

    >>> import fnn, torch
    >>> params = vgg16().init(fnn.random.key(0, "meta"))
    >>> fnn.tree.size(params)
    138357544
    >>> fnn.summary(vgg16(), params, torch.zeros(1, 3, 224, 224)).total.forward_flops
    30940528640
    """
    return _vgg("vgg16", False, num_classes, in_channels, p)


@factory
def vgg19(num_classes: int = 1000, in_channels: int = 3, p: float = 0.5) -> Layer:
    """VGG with 19 layers; see :func:`vgg16`. 143,667,240 parameters.

    >>> import fnn
    >>> params = vgg19().init(fnn.random.key(0, "meta"))
    >>> fnn.tree.size(params)
    143667240
    """
    return _vgg("vgg19", False, num_classes, in_channels, p)


@factory
def vgg11_bn(num_classes: int = 1000, in_channels: int = 3, p: float = 0.5) -> StatefulLayer:
    """VGG with 11 layers and batch normalisation; see :func:`vgg16_bn`. 132,868,840 parameters.

    >>> import fnn
    >>> params, state = vgg11_bn().init(fnn.random.key(0, "meta"))
    >>> fnn.tree.size(params)
    132868840
    """
    return _vgg("vgg11", True, num_classes, in_channels, p)


@factory
def vgg13_bn(num_classes: int = 1000, in_channels: int = 3, p: float = 0.5) -> StatefulLayer:
    """VGG with 13 layers and batch normalisation; see :func:`vgg16_bn`. 133,053,736 parameters.

    >>> import fnn
    >>> params, state = vgg13_bn().init(fnn.random.key(0, "meta"))
    >>> fnn.tree.size(params)
    133053736
    """
    return _vgg("vgg13", True, num_classes, in_channels, p)


@factory
def vgg16_bn(num_classes: int = 1000, in_channels: int = 3, p: float = 0.5) -> StatefulLayer:
    """VGG with 16 layers and batch normalisation after each convolution; see :func:`vgg16`. 138,365,992 parameters.

    >>> import fnn
    >>> params, state = vgg16_bn().init(fnn.random.key(0, "meta"))
    >>> fnn.tree.size(params)
    138365992
    """
    return _vgg("vgg16", True, num_classes, in_channels, p)


@factory
def vgg19_bn(num_classes: int = 1000, in_channels: int = 3, p: float = 0.5) -> StatefulLayer:
    """VGG with 19 layers and batch normalisation; see :func:`vgg16_bn`. 143,678,248 parameters.

    >>> import fnn
    >>> params, state = vgg19_bn().init(fnn.random.key(0, "meta"))
    >>> fnn.tree.size(params)
    143678248
    """
    return _vgg("vgg19", True, num_classes, in_channels, p)
