"""Schedule-free learning: averaging the iterates replaces a decaying learning rate."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fnn import tree as _tree
from fnn.optim.aliases import descend, sgd
from fnn.optim.base import Optimizer, list_form, needs_params
from fnn.optim.hyperparams import Choice, Number, as_hyperparam, carry, check_range, counter, get_hyperparams
from fnn.optim.layout import Layout
from fnn.optim.scale_by import scale_by_rms
from fnn.optim.wrappers import around, lerp_leaves
from fnn.tree import Tree


class ScheduleFreeState(NamedTuple):
    hyperparams: dict[str, Tensor]
    largest_rate: Tensor
    weights: Tensor
    base: Tree
    """z, the iterates of the wrapped optimizer."""
    inner: Tree


def schedule_free(optimizer: Optimizer, beta1: float | Tensor = 0.9, weight_power: float = 2.0) -> Optimizer:
    """Schedule-free learning (Defazio et al., 2024): an average x of the iterates z replaces a decaying rate.

    The params, at which gradients are computed, are y = beta1 x + (1 - beta1) z. Predict with x, which
    :func:`schedule_free_params` returns. z follows ``optimizer``, which must have a hyperparameter ``learning_rate``
    and no momentum; x = (1 - c) x + c z with c = w / (sum of all w), w = (largest learning rate so far)^weight_power.

    >>> import fnn
    >>> opt = schedule_free(fnn.optim.sgd(1.0), beta1=0.5)
    >>> params = {"w": torch.ones(1)}
    >>> opt.update(params, opt.init(params), params)[0]
    {'w': tensor([-1.])}
    """
    check_range("beta1", beta1, 0.0, 1.0)
    if not isinstance(beta1, Tensor) and beta1 == 0:
        raise ValueError("schedule_free needs beta1 > 0, got 0; with 0 the params do not depend on the average")

    update = list_form(optimizer).on_lists

    def init(params: Tree) -> ScheduleFreeState:
        inner = optimizer.init(params)
        if _tree.leaves(params):
            _learning_rate(inner)
        count = counter(params)
        numbers = {"interpolation": as_hyperparam("beta1", beta1, count)}
        zero = torch.zeros_like(numbers["interpolation"])
        return ScheduleFreeState(numbers, zero, zero.clone(), _tree.map(torch.clone, params), inner)

    def on_lists(
        layout: Layout, grads: list, state: ScheduleFreeState, params: list, **extra: Any
    ) -> tuple[list, ScheduleFreeState]:
        updates, inner = update(layout, grads, state.inner, params, **extra)
        rate = torch.maximum(state.largest_rate, _learning_rate(inner)) if params else state.largest_rate.clone()
        weights = state.weights + rate**weight_power
        share = torch.where(weights > 0, rate**weight_power / torch.where(weights > 0, weights, 1.0), 0.0)
        mixture = state.hyperparams["interpolation"]
        base = [z + u for z, u in zip(state.base, updates, strict=True)]
        x = lerp_leaves(_average(params, state.base, mixture), base, share)
        y = lerp_leaves(base, x, mixture)
        updates = [new - old for new, old in zip(y, params, strict=True)]
        return updates, ScheduleFreeState(carry(state.hyperparams), rate, weights, base, inner)

    return needs_params(around("schedule_free", optimizer, init, on_lists, ("base",)), "schedule_free")


def _learning_rate(state: Tree) -> Tensor:
    values = get_hyperparams(state)
    if "learning_rate" not in values:
        raise ValueError(
            "schedule_free needs an optimizer with one hyperparameter learning_rate for all leaves, "
            f"but this one has {list(values)}"
        )
    return values["learning_rate"]


def schedule_free_params(state: ScheduleFreeState, params: Tree) -> Tree:
    """Return the average x = (y - (1 - beta1) z) / beta1, with which to predict, from the state and the params y.

    >>> import fnn
    >>> opt = schedule_free(fnn.optim.sgd(1.0))
    >>> params = {"w": torch.ones(1)}
    >>> schedule_free_params(opt.init(params), params)
    {'w': tensor([1.])}
    """
    layout = Layout.of(params)
    y, z = layout.leaves(params, "params"), layout.leaves(state.base, "opt_state's base")
    return layout.tree(_average(y, z, state.hyperparams["interpolation"]))


def _average(y: list[Tensor], z: list[Tensor], beta1: Tensor) -> list[Tensor]:
    return [b + (a - b) / beta1.to(b.dtype) for a, b in zip(y, z, strict=True)]


def schedule_free_sgd(
    learning_rate: Number = 1.0, beta1: float | Tensor = 0.9, weight_decay: Choice = 0.0, weight_power: float = 2.0
) -> Optimizer:
    """SGD without a schedule; see :func:`schedule_free`. A warm-up may be given as the learning rate.

    >>> opt = schedule_free_sgd(1.0)
    >>> params = {"w": torch.ones(1)}
    >>> opt.update(params, opt.init(params), params)[0]
    {'w': tensor([-1.])}
    """
    return schedule_free(sgd(learning_rate, weight_decay=weight_decay), beta1, weight_power)


def schedule_free_adamw(
    learning_rate: Number = 2.5e-3,
    betas: tuple[float, Number] = (0.9, 0.999),
    eps: Number = 1e-8,
    weight_decay: Choice = 0.0,
    weight_power: float = 2.0,
) -> Optimizer:
    """AdamW without a schedule; see :func:`schedule_free`. The average replaces Adam's momentum.

    >>> opt = schedule_free_adamw(0.1)
    >>> params = {"w": torch.ones(1)}
    >>> opt.update(params, opt.init(params), params)[0]
    {'w': tensor([-0.1000])}
    """
    direction = scale_by_rms(betas[1], eps, debias=True)
    inner = descend(direction, learning_rate=learning_rate, weight_decay=weight_decay, decoupled=True)
    return schedule_free(inner, betas[0], weight_power)
