"""A case of the contract tables, and the makers of the common ones."""

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
