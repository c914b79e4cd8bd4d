"""LeNet, in the versions of PyTorch's tutorial and of LeCun et al. (1998)."""

from torch import Tensor

from fnn._configs import parts_of
from fnn.layers import avg_pool2d, conv2d, flatten, linear, max_pool2d, relu, sequential, tanh
from fnn.layers.base import Layer, ShapeError, check_mapping, check_tensor, factory, with_parts
from fnn.tree import Tree


@factory
def lenet(num_classes: int = 10) -> Layer:
    """The network of PyTorch's "Neural Networks" tutorial: 3x3 kernels, relu, max pooling.

    x: (batch, 1, 32, 32) -> logits (batch, num_classes); 81,194 parameters. 6@30x30 -> 6@15x15 -> 16@13x13
    -> 16@6x6 -> 576 -> 120 -> 84 -> num_classes. Raises ``ShapeError`` for images of another size.

    >>> import fnn, torch
    >>> params = lenet().init(fnn.random.key(0))
    >>> list(params)
    ['conv1', 'conv2', 'fc1', 'fc2', 'fc3']
    >>> lenet().apply(params, torch.ones(1, 1, 32, 32)).shape
    torch.Size([1, 10])
    """
    return _for_images(
        "lenet",
        sequential(
            conv1=conv2d(1, 6, 3), relu1=relu, pool1=max_pool2d(2),
            conv2=conv2d(6, 16, 3), relu2=relu, pool2=max_pool2d(2),
            flatten=flatten,
            fc1=linear(16 * 6 * 6, 120), relu3=relu,
            fc2=linear(120, 84), relu4=relu,
            fc3=linear(84, num_classes),
        ),
    )  # fmt: skip


@factory
def lenet5() -> Layer:
    """LeNet-5 (LeCun et al., 1998): 5x5 kernels, tanh, average pooling, all 6 maps connected to all 16.

    x: (batch, 1, 32, 32) -> logits (batch, 10); 61,706 parameters. 6@28x28 -> 6@14x14 -> 16@10x10 -> 16@5x5 -> 120 ->
    84 -> 10. As is usual today, it leaves out the trained scales of the pooling, the partial connection table and the
    radial-basis output of the paper. Raises ``ShapeError`` for images of another size.

    >>> import fnn, torch
    >>> fnn.tree.size(lenet5().init(fnn.random.key(0)))
    61706
    """
    return _for_images(
        "lenet5",
        sequential(
            conv1=conv2d(1, 6, 5), tanh1=tanh, pool1=avg_pool2d(2),
            conv2=conv2d(6, 16, 5), tanh2=tanh, pool2=avg_pool2d(2),
            flatten=flatten,
            fc1=linear(16 * 5 * 5, 120), tanh3=tanh,
            fc2=linear(120, 84), tanh4=tanh,
            fc3=linear(84, 10),
        ),
    )  # fmt: skip


def _for_images(name: str, stack: Layer) -> Layer:
    def apply(params: Tree, x: Tensor, *, key: Tensor | None = None) -> Tensor:
        check_mapping(name, params)
        check_tensor(name, x)
        if x.dim() != 4 or tuple(x.shape[1:]) != (1, 32, 32):
            raise ShapeError(
                f"{name} expects images of shape (batch, 1, 32, 32), got {tuple(x.shape)}; "
                "images of 28x28 become 32x32 with torch.nn.functional.pad(images, (2, 2, 2, 2)), others with "
                "fnn.data.resize(images, 32)"
            )
        return stack.apply(params, x, key=key)

    return with_parts(Layer(stack.init, apply), parts_of(stack))
