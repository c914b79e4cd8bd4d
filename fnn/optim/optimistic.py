"""Optimistic gradients, which converge in games between two players, where plain gradients circle."""

import torch
from torch import Tensor

from fnn.optim.aliases import descend
from fnn.optim.base import Optimizer
from fnn.optim.hyperparams import Choice, Number
from fnn.optim.rules import from_rule
from fnn.optim.scale_by_adam import scale_by_adam


def scale_by_optimistic_gradient(alpha: Number = 1.0, beta: Number = 1.0) -> Optimizer:
    """Extrapolate the gradient: (alpha + beta) g - beta (the previous g). At the first update it is alpha g.

    >>> opt = scale_by_optimistic_gradient()
    >>> params = {"w": torch.tensor([1.0])}
    >>> direction, state = opt.update(params, opt.init(params))
    >>> opt.update({"w": torch.tensor([3.0])}, state)[0]
    {'w': tensor([5.])}
    """

    def rule(t: Tensor, alpha: Tensor, beta: Tensor):
        first = t == 1

        def leaf(g, p, previous):
            previous = torch.where(first, g, previous)
            return g * alpha + (g - previous) * beta, g

        return leaf

    return from_rule(rule, {"alpha": alpha, "beta": beta}, {"previous": torch.zeros_like})


def optimistic_gradient_descent(
    learning_rate: Choice = 1e-3, alpha: Number = 1.0, beta: Number = 1.0, maximize: bool = False
) -> Optimizer:
    """Optimistic gradient descent (Mokhtari et al., 2019): -learning_rate ((alpha + beta) g - beta (the previous g)).

    It approximates the extra-gradient method with one gradient for each update, and so solves problems of the form
    min over x, max over y, on which gradient descent circles or diverges.

    >>> opt = optimistic_gradient_descent(0.1)
    >>> params = {"w": torch.ones(1)}
    >>> opt.update(params, opt.init(params), params)[0]
    {'w': tensor([-0.1000])}
    """
    return descend(scale_by_optimistic_gradient(alpha, beta), learning_rate=learning_rate, maximize=maximize)


def optimistic_adam(
    learning_rate: Choice = 1e-3,
    betas: tuple[Number, Number] = (0.9, 0.999),
    eps: Number = 1e-8,
    alpha: Number = 1.0,
    beta: Number = 1.0,
    weight_decay: Choice = 0.0,
    maximize: bool = False,
) -> Optimizer:
    """Optimistic Adam (Daskalakis et al., 2018) for games such as those of generative adversarial networks.

    The direction is Adam's, extrapolated by :func:`fnn.optim.scale_by_optimistic_gradient`. The decay is decoupled.

    >>> opt = optimistic_adam(0.1)
    >>> params = {"w": torch.ones(1)}
    >>> opt.update(params, opt.init(params), params)[0]
    {'w': tensor([-0.1000])}
    """
    direction = scale_by_adam(*betas, eps), scale_by_optimistic_gradient(alpha, beta)
    return descend(
        *direction, learning_rate=learning_rate, weight_decay=weight_decay, decoupled=True, maximize=maximize
    )
