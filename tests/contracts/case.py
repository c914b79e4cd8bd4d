"""What one row of the tables of cases is, and functions that make rows."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import fnn


class Case(NamedTuple):
    function: Callable[[Any, Tensor], Tensor]
    reference: Callable[[Any, Tensor], Tensor]
    params: Any
    x: Tensor


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def module(layer: fnn.Layer, net: nn.Module, *shape: int) -> Case:
    """A layer against a torch module; the params' dotted paths are the module's own names."""
    params = fnn.tree.cast(layer.init(fnn.random.key(5)), torch.float64)
    net = net.double()

    def reference(params: Any, x: Tensor) -> Tensor:
        return torch.func.functional_call(net, fnn.tree.to_state_dict(params), (x,))

    return Case(layer.apply, reference, params, numbers(1, *shape))


def function(ours: Callable, theirs: Callable, *shape: int) -> Case:
    """A function without parameters; a scale stands in for them so that every transform has something to act on."""
    params = {"scale": numbers(3, *shape[1:])}
    return Case(lambda p, x: ours(p["scale"] * x), lambda p, x: theirs(p["scale"] * x), params, numbers(2, *shape))


def normed(layer: fnn.StatefulLayer, net: nn.Module, train: bool, *shape: int) -> Case:
    """Batch normalisation against torch's, with running statistics that are neither 0 nor 1."""
    params, state = fnn.tree.cast(layer.init(fnn.random.key(5)), torch.float64)
    params = fnn.tree.map(lambda leaf: leaf + 0.3 * numbers(6, *leaf.shape), params)
    state = fnn.tree.map(lambda leaf: leaf + numbers(7, *leaf.shape).abs() if leaf.is_floating_point() else leaf, state)
    net = net.double().train(train)

    def reference(params: Any, x: Tensor) -> Tensor:
        buffers = {name: leaf.clone() for name, leaf in fnn.tree.to_state_dict(state).items()}
        return torch.func.functional_call(net, fnn.tree.to_state_dict(params) | buffers, (x,))

    return Case(lambda p, x: layer.apply(p, state, x, train=train)[0], reference, params, numbers(1, *shape))
