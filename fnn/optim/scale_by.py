"""Directions from running means of gradients and of their squares.

In the formulas g is a gradient, p its param, and t = 1, 2, ... the number of the update; the left side of an equation
is the new value of a slot. Each transform returns the direction of ascent, which
:func:`fnn.optim.scale_by_learning_rate` turns into a step of descent.
"""

import torch
from torch import Tensor

from fnn.optim.base import Optimizer
from fnn.optim.hyperparams import Number, is_set
from fnn.optim.rules import Filled, from_rule
from fnn.optim.scale_by_adam import check_betas, unbias
from fnn.optim.tensor_list import add_product, add_scaled, lerp, root


def momentum(momentum: Number = 0.9, dampening: Number = 0.0, nesterov: bool = False) -> Optimizer:
    """Momentum as in ``torch.optim.SGD``: b = momentum b + (1 - dampening) g, starting with b = g.

    The direction is b, or g + momentum b with ``nesterov``. Optax calls it ``trace``.

    >>> import fnn
    >>> opt = fnn.optim.momentum(0.5)
    >>> params = {"w": torch.ones(1)}
    >>> direction, state = opt.update(params, opt.init(params))
    >>> opt.update(params, state)[0]
    {'w': tensor([1.5000])}
    """

    def rule(t: Tensor, momentum: Tensor, dampening: Tensor | None = None):
        share = None if dampening is None else torch.where(t == 1, 1.0, 1 - dampening)

        def leaf(g, p, momentum_buffer):
            b = add_scaled(g if share is None else share * g, momentum_buffer, momentum)
            return (add_scaled(g, b, momentum) if nesterov else b), b

        return leaf

    hyperparams = {"momentum": momentum} | ({"dampening": dampening} if is_set(dampening) else {})
    return from_rule(rule, hyperparams, {"momentum_buffer": torch.zeros_like})


def ema(decay: Number = 0.9, debias: bool = True) -> Optimizer:
    """The running mean of the gradients: m = decay m + (1 - decay) g, divided by 1 - decay^t with ``debias``.

    >>> opt = ema(0.9)
    >>> params = {"w": torch.ones(1)}
    >>> opt.update(params, opt.init(params))[0]
    {'w': tensor([1.])}
    """
    check_betas(decay=decay)

    def rule(t: Tensor, decay: Tensor):
        total = unbias(decay, t)

        def leaf(g, p, mean):
            mean = lerp(mean, g, 1 - decay)
            return (mean / total if debias else mean), mean

        return leaf

    return from_rule(rule, {"decay": decay}, {"mean": torch.zeros_like})


def scale_by_lion(beta1: Number = 0.9, beta2: Number = 0.99) -> Optimizer:
    """Lion's direction (Chen et al., 2023): sign(beta1 m + (1 - beta1) g), then m = beta2 m + (1 - beta2) g.

    >>> opt = scale_by_lion()
    >>> params = {"w": torch.tensor([-3.0])}
    >>> opt.update(params, opt.init(params))[0]
    {'w': tensor([-1.])}
    """
    check_betas(beta1=beta1, beta2=beta2)

    def rule(t: Tensor, beta1: Tensor, beta2: Tensor):
        return lambda g, p, mean: (lerp(mean, g, 1 - beta1).sign(), lerp(mean, g, 1 - beta2))

    return from_rule(rule, {"beta1": beta1, "beta2": beta2}, {"mean": torch.zeros_like})


def scale_by_rms(decay: Number = 0.99, eps: Number = 1e-8, centered: bool = False, debias: bool = False) -> Optimizer:
    """g / (sqrt(v) + eps), v the running mean of g^2 (RMSprop: Tieleman and Hinton, 2012).

    With ``centered`` v is less the square of the running mean of g: a variance. With ``debias`` v is divided by
    1 - decay^t.

    >>> opt = scale_by_rms(debias=True)
    >>> params = {"w": torch.tensor([3.0])}
    >>> opt.update(params, opt.init(params))[0]
    {'w': tensor([1.])}
    """
    check_betas(decay=decay)

    def rule(t: Tensor, decay: Tensor, eps: Tensor):
        total = unbias(decay, t)

        def leaf(g, p, square, *mean):
            square = add_product(decay * square, g, g, 1 - decay)
            mean = tuple(lerp(old, g, 1 - decay) for old in mean)
            spread = square - mean[0] * mean[0] if mean else square
            return g / (root(spread / total if debias else spread) + eps), square, *mean

        return leaf

    slots = {"square": torch.zeros_like} | ({"mean": torch.zeros_like} if centered else {})
    return from_rule(rule, {"decay": decay, "eps": eps}, slots)


def scale_by_rss(initial_accumulator_value: float = 0.0, eps: Number = 1e-10) -> Optimizer:
    """Adagrad's direction (Duchi et al., 2011): g / (sqrt(s) + eps), s the sum of g^2 so far.

    >>> opt = scale_by_rss()
    >>> params = {"w": torch.tensor([3.0])}
    >>> opt.update(params, opt.init(params))[0]
    {'w': tensor([1.])}
    """

    def rule(t: Tensor, eps: Tensor):
        def leaf(g, p, total):
            total = total + g * g
            return g / (root(total) + eps), total

        return leaf

    return from_rule(rule, {"eps": eps}, {"total": Filled(initial_accumulator_value)})


def scale_by_adadelta(rho: Number = 0.9, eps: Number = 1e-6) -> Optimizer:
    """Adadelta's direction (Zeiler, 2012): g sqrt(d + eps) / sqrt(v + eps), v and d the means of g^2 and direction^2.

    >>> opt = scale_by_adadelta(eps=1.0)
    >>> params = {"w": torch.tensor([0.0])}
    >>> opt.update(params, opt.init(params))[0]
    {'w': tensor([0.])}
    """
    check_betas(rho=rho)

    def rule(t: Tensor, rho: Tensor, eps: Tensor):
        def leaf(g, p, square, step_square):
            square = add_product(rho * square, g, g, 1 - rho)
            step = g * root((step_square + eps) / (square + eps))
            return step, square, add_product(rho * step_square, step, step, 1 - rho)

        return leaf

    return from_rule(rule, {"rho": rho, "eps": eps}, {"square": torch.zeros_like, "step_square": torch.zeros_like})


def scale_by_sophia(
    beta1: Number = 0.965, beta2: Number = 0.99, gamma: Number = 0.01, eps: Number = 1e-8, limit: Number = 1.0
) -> Optimizer:
    """Sophia's direction (Liu et al., 2023): momentum over curvature, each element held within [-limit, limit].

    ``update(..., hessian_diagonal=tree)`` takes an estimate of the Hessian's diagonal into h, its running mean of
    weight beta2; without one h stays as it is, and the paper gives one every tenth update:
    ``fnn.jvp(fnn.grad(loss), (params,), (u,))[1]`` times u, for u of random signs. Direction:
    m / (1 - beta1^t) / max(gamma h, eps).

    >>> opt = scale_by_sophia(gamma=1.0, beta2=0.0)
    >>> params = {"w": torch.tensor([2.0])}
    >>> opt.update(params, opt.init(params), params, hessian_diagonal={"w": torch.tensor([4.0])})[0]
    {'w': tensor([0.5000])}
    """
    check_betas(beta1=beta1, beta2=beta2)

    def rule(t: Tensor, beta1: Tensor, beta2: Tensor, gamma: Tensor, eps: Tensor, limit: Tensor):
        total = unbias(beta1, t)

        def leaf(g, p, mean, curvature, hessian_diagonal):
            mean = lerp(mean, g, 1 - beta1)
            curvature = curvature if hessian_diagonal is None else lerp(curvature, hessian_diagonal, 1 - beta2)
            bound = limit.to(g.dtype).clamp(min=0.0)
            step = mean / total / (curvature * gamma).clamp(min=eps.to(g.dtype))
            return step.clamp(-bound, bound), mean, curvature

        return leaf

    hyperparams = {"beta1": beta1, "beta2": beta2, "gamma": gamma, "eps": eps, "limit": limit}
    slots = {"mean": torch.zeros_like, "curvature": torch.zeros_like}
    return from_rule(rule, hyperparams, slots, extra=["hessian_diagonal"])
