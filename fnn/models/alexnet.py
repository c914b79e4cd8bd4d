"""AlexNet (Krizhevsky, 2014)."""

from fnn.layers import adaptive_avg_pool2d, conv2d, dropout, flatten, linear, max_pool2d, relu, sequential
from fnn.layers.base import Layer, factory


# p is torch's name for the probability to drop
@factory
def alexnet(num_classes: int = 1000, in_channels: int = 3, p: float = 0.5) -> Layer:
    """AlexNet in the version "One weird trick", with the parameter names and initial values of torchvision.

    x: (batch, in_channels, height, width), at least 63 x 63 pixels -> logits (batch, num_classes); 61,100,840
    parameters. A key turns on dropout with probability ``p``. Raises ``ShapeError`` for other inputs.

    >>> import fnn
    >>> fnn.tree.size(alexnet().init(fnn.random.key(0, "meta")))
    61100840
    """
    return sequential(
        features=sequential(
            conv2d(in_channels, 64, 11, stride=4, padding=2), relu, max_pool2d(3, 2),
            conv2d(64, 192, 5, padding=2), relu, max_pool2d(3, 2),
            conv2d(192, 384, 3, padding=1), relu,
            conv2d(384, 256, 3, padding=1), relu,
            conv2d(256, 256, 3, padding=1), relu, max_pool2d(3, 2),
        ),
        avgpool=adaptive_avg_pool2d(6),
        flatten=flatten,
        classifier=sequential(
            dropout(p), linear(256 * 6 * 6, 4096), relu,
            dropout(p), linear(4096, 4096), relu,
            linear(4096, num_classes),
        ),
    )  # fmt: skip
