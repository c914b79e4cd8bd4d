"""Transforms without a running mean: scaling, signs, decay, noise."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fnn import random
from fnn.optim.base import Optimizer, from_lists, list_form, needs_params
from fnn.optim.hyperparams import Number, as_time, check_range, one_number
from fnn.optim.layout import Layout
from fnn.optim.rules import State, from_rule
from fnn.optim.tensor_list import add_scaled, root
from fnn.tree import Tree


def scale(factor: Number) -> Optimizer:
    """g factor.

    >>> scale(2.0).update({"w": torch.ones(1)}, scale(2.0).init({"w": torch.ones(1)}))[0]
    {'w': tensor([2.])}
    """
    return from_rule(lambda t, factor: lambda g, p: (g * factor,), {"factor": factor})


def negate() -> Optimizer:
    """-g, which turns descent into ascent, as ``maximize`` does.

    >>> negate().update({"w": torch.ones(1)}, negate().init({"w": torch.ones(1)}))[0]
    {'w': tensor([-1.])}
    """
    return from_rule(lambda t: lambda g, p: (-g,))


def scale_by_learning_rate(learning_rate: Number) -> Optimizer:
    """-learning_rate g, the step of gradient descent. A function is a schedule of the count, which starts at 0.

    >>> opt = scale_by_learning_rate(0.5)
    >>> opt.update({"w": torch.ones(1)}, opt.init({"w": torch.ones(1)}))[0]
    {'w': tensor([-0.5000])}
    """
    check_range("learning_rate", learning_rate)
    return from_rule(lambda t, learning_rate: lambda g, p: (g * -learning_rate,), {"learning_rate": learning_rate})


def scale_by_schedule(schedule: Callable[[Tensor], Any]) -> Optimizer:
    """g schedule(count), count = 0 at the first update.

    >>> opt = scale_by_schedule(lambda count: 1 / (2 + count))
    >>> opt.update({"w": torch.ones(1)}, opt.init({"w": torch.ones(1)}))[0]
    {'w': tensor([0.5000])}
    """
    return from_rule(lambda t, factor: lambda g, p: (g * factor,), {"factor": schedule})


def scale_by_sign() -> Optimizer:
    """sign(g) (Bernstein et al., 2018).

    >>> scale_by_sign().update({"w": torch.tensor([-3.0])}, scale_by_sign().init({"w": torch.ones(1)}))[0]
    {'w': tensor([-1.])}
    """
    return from_rule(lambda t: lambda g, p: (g.sign(),))


def scale_by_trust_ratio(coefficient: Number = 1.0, eps: Number = 0.0) -> Optimizer:
    """Each leaf times coefficient norm(p) / (norm(g) + eps), or times 1 where a norm is 0 (You et al., 2017).

    >>> opt = scale_by_trust_ratio()
    >>> params = {"w": torch.tensor([3.0, 4.0])}
    >>> opt.update({"w": torch.tensor([0.0, 1.0])}, opt.init(params), params)[0]
    {'w': tensor([0., 5.])}
    """

    def rule(t: Tensor, coefficient: Tensor, eps: Tensor):
        def leaf(g, p):
            p_norm, g_norm = root((p * p).sum()), root((g * g).sum())
            usable = (p_norm > 0) & (g_norm > 0)
            ratio = coefficient * p_norm / (torch.where(usable, g_norm, 1.0) + eps)
            return (g * torch.where(usable, ratio, 1.0).to(g.dtype),)

        return leaf

    return needs_params(from_rule(rule, {"coefficient": coefficient, "eps": eps}), "the trust ratio")


def add_decayed_weights(weight_decay: Number) -> Optimizer:
    """g + weight_decay p: an L2 penalty before a preconditioner, decoupled weight decay after it. Needs params.

    >>> opt = add_decayed_weights(0.1)
    >>> params = {"w": torch.ones(1)}
    >>> opt.update({"w": torch.zeros(1)}, opt.init(params), params)[0]
    {'w': tensor([0.1000])}
    """
    check_range("weight_decay", weight_decay)

    def rule(t: Tensor, weight_decay: Tensor):
        return lambda g, p: (add_scaled(g, p, weight_decay),)

    return needs_params(from_rule(rule, {"weight_decay": weight_decay}), "weight decay")


def centralize() -> Optimizer:
    """Subtract from the gradient of each leaf its mean over all axes but the first (Yong et al., 2020).

    Leaves with fewer than two axes are unchanged.

    >>> opt = centralize()
    >>> opt.update({"w": torch.tensor([[1.0, 3.0]])}, opt.init({"w": torch.ones(1, 2)}))[0]
    {'w': tensor([[-1.,  1.]])}
    """

    def leaf(g, p):
        return (g - g.mean(tuple(range(1, g.dim())), keepdim=True) if g.dim() > 1 else g,)

    return from_rule(lambda t: leaf, real_only="centralize")


class NoiseState(NamedTuple):
    numbers: State
    key: Tensor
    """The key of the next draws."""


def add_noise(key: Tensor, eta: Number, gamma: Number = 0.55) -> Optimizer:
    """Add normal noise of variance eta / t^gamma (Neelakantan et al., 2015). The state holds the key of the next draws.

    >>> opt = add_noise(random.key(0), eta=0.0)
    >>> opt.update({"w": torch.ones(1)}, opt.init({"w": torch.ones(1)}))[0]
    {'w': tensor([1.])}
    """
    check_range("eta", eta)
    numbers = from_rule(
        lambda t, **_: lambda g, p: (g,), {"eta": one_number("eta", eta), "gamma": one_number("gamma", gamma)}
    )
    advance = list_form(numbers)

    def init(params: Tree) -> NoiseState:
        state = numbers.init(params)
        return NoiseState(state, state.count.new_zeros((), dtype=key.dtype) + key.to(state.count.device))

    def on_lists(
        layout: Layout, grads: list, state: NoiseState, params: list | None, **_: Any
    ) -> tuple[list, NoiseState]:
        inner = advance.on_lists(layout, [], state.numbers, None)[1]
        values = inner.hyperparams | inner.scheduled
        std = (values["eta"] / as_time(inner.count) ** values["gamma"]).sqrt()
        after, *keys = random.split(state.key, len(grads) + 1)
        draws = [random.normal(k, tuple(g.shape), g.dtype) for g, k in zip(grads, keys, strict=True)]
        noisy = [g + std.to(g.dtype) * draw for g, draw in zip(grads, draws, strict=True)]
        return noisy, NoiseState(inner, after.clone())

    return from_lists(init, on_lists, lambda f, layout, state: state)
