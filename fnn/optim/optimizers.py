"""Optimizers with torch.optim's names, arguments and formulas."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fnn import tree as _tree
from fnn.optim.base import Optimizer
from fnn.tree import Tree


class SGDState(NamedTuple):
    learning_rate: Tensor
    count: Tensor
    momentum: Tree  # {} without momentum


def sgd(
    learning_rate: float,
    momentum: float = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
) -> Optimizer:
    """Stochastic gradient descent, ``torch.optim.SGD``'s formulas.

    g = grad + weight_decay p; b = momentum b + (1 - dampening) g, starting with b = g at the first step;
    update = -learning_rate (b, or g + momentum b with nesterov).

    >>> opt = sgd(0.1)
    >>> params = {"w": torch.ones(1)}
    >>> opt.update(params, opt.init(params), params)[0]
    {'w': tensor([-0.1000])}
    """
    if nesterov and (momentum <= 0 or dampening != 0):
        raise ValueError(f"nesterov needs momentum > 0 and dampening 0, got {momentum} and {dampening}")

    def init(params: Tree) -> SGDState:
        return SGDState(
            *_start(learning_rate, params),
            _tree.zeros_like(params) if momentum else {},
        )

    def update(grads: Tree, state: SGDState, params: Tree) -> tuple[Tree, SGDState]:
        if weight_decay:
            grads = _tree.map(lambda g, p: g + weight_decay * p, grads, params)
        buffers = state.momentum
        if momentum:
            factor = torch.where(state.count == 0, 1.0, 1.0 - dampening)
            buffers = _tree.map(lambda b, g: momentum * b + factor.to(g.dtype) * g, buffers, grads)
            grads = _tree.map(lambda g, b: g + momentum * b, grads, buffers) if nesterov else buffers
        updates = _tree.map(lambda g: -state.learning_rate.to(g.dtype) * g, grads)
        return updates, SGDState(state.learning_rate, state.count + 1, buffers)

    return Optimizer(init, update)


class AdamState(NamedTuple):
    learning_rate: Tensor
    count: Tensor
    mean: Tree
    square: Tree


def adam(
    learning_rate: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> Optimizer:
    """Adam (Kingma and Ba, 2015), ``torch.optim.Adam``'s formulas.

    >>> opt = adam(0.1)
    >>> params = {"w": torch.ones(1)}
    >>> opt.update(params, opt.init(params), params)[0]
    {'w': tensor([-0.1000])}
    """
    b1, b2 = betas

    def init(params: Tree) -> AdamState:
        return AdamState(
            *_start(learning_rate, params),
            _tree.zeros_like(params),
            _tree.zeros_like(params),
        )

    def update(grads: Tree, state: AdamState, params: Tree) -> tuple[Tree, AdamState]:
        if weight_decay:
            grads = _tree.map(lambda g, p: g + weight_decay * p, grads, params)
        count = state.count + 1
        mean = _tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mean, grads)
        square = _tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, state.square, grads)

        def step(m: Tensor, v: Tensor) -> Tensor:
            t = count.to(m.dtype)
            corrected1 = -torch.expm1(t * math.log(b1))
            corrected2 = -torch.expm1(t * math.log(b2))
            return -state.learning_rate.to(m.dtype) / corrected1 * m / (torch.sqrt(v / corrected2) + eps)

        return _tree.map(step, mean, square), AdamState(state.learning_rate, count, mean, square)

    return Optimizer(init, update)


def _start(learning_rate: float, params: Tree) -> tuple[Tensor, Tensor]:
    """The learning rate and the count as 0-d tensors beside the params.

    The rate is float64 where the device has it, so that float64 params get the number that was given; a 0-d
    tensor does not promote others.
    """
    if learning_rate < 0:
        raise ValueError(f"learning_rate must not be negative, got {learning_rate}")
    leaves = _tree.leaves(params)
    device = leaves[0].device if leaves else torch.device("cpu")
    dtype = torch.float32 if device.type == "mps" else torch.float64
    return torch.tensor(learning_rate, dtype=dtype, device=device), torch.zeros((), dtype=torch.int64, device=device)
