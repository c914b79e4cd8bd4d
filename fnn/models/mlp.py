"""The multilayer perceptron."""

import itertools
from collections.abc import Callable

from torch import Tensor

from fnn._configs import parts_of
from fnn.layers import linear, relu, sequential
from fnn.layers.base import Layer, check_mapping, check_tensor, factory, with_parts
from fnn.tree import Tree


@factory
def mlp(*sizes: int, activation: Callable[[Tensor], Tensor] = relu) -> Layer:
    """Linear layers of the given sizes with an activation between them.

    x: (batch, ...) -> (batch, sizes[-1]), where the axes after the first, such as those of an image, have sizes[0]
    entries in total; or (sizes[0],) -> (sizes[-1],). Params are named as in ``torch.nn.Sequential(Linear, ReLU, Linear,
    ...)``: "0", "2", "4". Raises ``ValueError`` for fewer than two sizes and ``ShapeError`` for other inputs.

    >>> import fnn, torch
    >>> model = mlp(784, 512, 512, 10)
    >>> params = model.init(fnn.random.key(0))
    >>> fnn.tree.size(params)
    669706
    >>> model.apply(params, torch.ones(64, 1, 28, 28)).shape
    torch.Size([64, 10])
    """
    if len(sizes) == 1 and isinstance(sizes[0], (list, tuple)):
        raise TypeError(f"mlp takes its sizes one by one, got {sizes[0]}; write mlp(*sizes)")
    if len(sizes) < 2:
        raise ValueError(f"mlp needs at least an input and an output size, got {sizes}; write mlp(784, 512, 10)")
    parts: list = []
    for fan_in, fan_out in itertools.pairwise(sizes):
        parts += [linear(fan_in, fan_out), activation]
    stack = sequential(*parts[:-1])

    def apply(params: Tree, x: Tensor, *, key: Tensor | None = None) -> Tensor:
        check_mapping("mlp", params)
        check_tensor("mlp", x)
        return stack.apply(params, x.flatten(1) if x.dim() > 2 else x, key=key)

    return with_parts(Layer(stack.init, apply), parts_of(stack))
