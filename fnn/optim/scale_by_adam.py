"""Adam's direction and those of its relatives.

In the formulas g is a gradient, p its param, and t = 1, 2, ... the number of the update; the left side of an equation
is the new value of a slot. Each transform returns the direction of ascent, which
:func:`fnn.optim.scale_by_learning_rate` turns into a step of descent.
"""

import torch
from torch import Tensor

from fnn.optim import kernels
from fnn.optim.base import Optimizer
from fnn.optim.hyperparams import Number, check_range
from fnn.optim.rules import Filled, from_rule
from fnn.optim.tensor_list import add_product, lerp, root


def unbias(beta: Tensor, t: Tensor) -> Tensor:
    """Return 1 - beta^t, the sum of the weights of a running mean of t values, without cancellation.

    >>> unbias(torch.tensor(0.999, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64))
    tensor(0.0010, dtype=torch.float64)
    """
    return -torch.expm1(t * torch.log(beta))


def check_betas(**betas: Number) -> None:
    for name, beta in betas.items():
        check_range(name, beta, 0.0, 1.0)


def scale_by_adam(
    beta1: Number = 0.9,
    beta2: Number = 0.999,
    eps: Number = 1e-8,
    amsgrad: bool = False,
) -> Optimizer:
    """Adam's direction (Kingma and Ba, 2015): m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps).

    m and v are the running means of g and g^2. With ``amsgrad`` (Reddi et al., 2018) v is replaced by its largest value
    so far.

    >>> opt = scale_by_adam()
    >>> params = {"w": torch.tensor([3.0])}
    >>> opt.update(params, opt.init(params))[0]
    {'w': tensor([1.])}
    """
    check_betas(beta1=beta1, beta2=beta2)

    def rule(t: Tensor, beta1: Tensor, beta2: Tensor, eps: Tensor):
        total1, scale2 = unbias(beta1, t), unbias(beta2, t).sqrt()

        def leaf(g, p, mean, square, *largest):
            mean = lerp(mean, g, 1 - beta1)
            square = add_product(beta2 * square, g, g, 1 - beta2)
            largest = tuple(old.maximum(square) for old in largest)
            bound = largest[0] if largest else square
            return mean / (root(bound) * (total1 / scale2) + eps * total1), mean, square, *largest

        return leaf

    def kernel(t: Tensor, grads: list, mean: list, square: list, *largest: list, **numbers: Tensor) -> list[list]:
        results = kernels.adam(grads, mean, square, largest[0] if largest else [], t, **numbers)
        return list(results if largest else results[:3])

    slots = {"mean": torch.zeros_like, "square": torch.zeros_like} | ({"largest": torch.zeros_like} if amsgrad else {})
    return from_rule(rule, {"beta1": beta1, "beta2": beta2, "eps": eps}, slots, kernel=kernel)


def scale_by_nadam(
    beta1: Number = 0.9,
    beta2: Number = 0.999,
    eps: Number = 1e-8,
    momentum_decay: Number = 4e-3,
) -> Optimizer:
    """Adam with Nesterov momentum (Dozat, 2016), as in ``torch.optim.NAdam``.

    mu_t = beta1 (1 - 0.96^(t momentum_decay) / 2), M_t = mu_1 ... mu_t;
    direction = ((1 - mu_t) / (1 - M_t) g + mu_(t+1) / (1 - M_(t+1)) m) / (sqrt(v / (1 - beta2^t)) + eps).

    >>> opt = scale_by_nadam()
    >>> params = {"w": torch.tensor([3.0])}
    >>> opt.update(params, opt.init(params))[0]["w"].shape
    torch.Size([1])
    """
    check_betas(beta1=beta1, beta2=beta2)

    def rule(t: Tensor, beta1: Tensor, beta2: Tensor, eps: Tensor, momentum_decay: Tensor):
        mu = beta1 * (1 - 0.5 * 0.96 ** (t * momentum_decay))
        mu_next = beta1 * (1 - 0.5 * 0.96 ** ((t + 1) * momentum_decay))
        total2 = unbias(beta2, t)

        def leaf(g, p, mean, square, mu_product):
            mean = lerp(mean, g, 1 - beta1)
            square = add_product(beta2 * square, g, g, 1 - beta2)
            product = mu_product * mu
            ahead = g * ((1 - mu) / (1 - product)) + mean * (mu_next / (1 - product * mu_next))
            return ahead / (root(square / total2) + eps), mean, square, product

        return leaf

    def one(p: Tensor) -> Tensor:  # 0-d, because all elements share it, and in float32 for 16-bit params
        return p.new_ones((), dtype=torch.promote_types(p.real.dtype, torch.float32))

    hyperparams = {"beta1": beta1, "beta2": beta2, "eps": eps, "momentum_decay": momentum_decay}
    return from_rule(rule, hyperparams, {"mean": torch.zeros_like, "square": torch.zeros_like, "mu_product": one})


def scale_by_radam(beta1: Number = 0.9, beta2: Number = 0.999, eps: Number = 1e-8) -> Optimizer:
    """Rectified Adam (Liu et al., 2020): momentum alone until the variance of Adam's step is known to be finite.

    r_inf = 2 / (1 - beta2) - 1, r = r_inf - 2 t beta2^t / (1 - beta2^t). While r <= 5 the direction is
    m / (1 - beta1^t); then it is Adam's, with eps added before the correction as in ``torch.optim.RAdam``, times
    sqrt((r - 4)(r - 2) r_inf / ((r_inf - 4)(r_inf - 2) r)).

    >>> opt = scale_by_radam()
    >>> params = {"w": torch.tensor([3.0])}
    >>> opt.update(params, opt.init(params))[0]
    {'w': tensor([3.])}
    """
    check_betas(beta1=beta1, beta2=beta2)

    def rule(t: Tensor, beta1: Tensor, beta2: Tensor, eps: Tensor):
        total1, total2 = unbias(beta1, t), unbias(beta2, t)
        r_inf = 2 / (1 - beta2) - 1
        r = r_inf - 2 * t * (1 - total2) / total2
        sure = r > 5
        r = torch.where(sure, r, 6.0)  # any value with a finite root and slope
        rectified = ((r - 4) * (r - 2) * r_inf / ((r_inf - 4) * (r_inf - 2) * r)).sqrt() * total2.sqrt()
        adaptive, plain = torch.where(sure, rectified, 0.0) / total1, torch.where(sure, 0.0, 1 / total1)

        def leaf(g, p, mean, square):
            mean = lerp(mean, g, 1 - beta1)
            square = add_product(beta2 * square, g, g, 1 - beta2)
            return mean / (root(square) + eps) * adaptive + mean * plain, mean, square

        return leaf

    hyperparams = {"beta1": beta1, "beta2": beta2, "eps": eps}
    return from_rule(rule, hyperparams, {"mean": torch.zeros_like, "square": torch.zeros_like})


def scale_by_adamax(beta1: Number = 0.9, beta2: Number = 0.999, eps: Number = 1e-8) -> Optimizer:
    """Adam with the largest gradient in place of the mean square (Kingma and Ba, 2015, section 7).

    u = max(beta2 u, |g| + eps); direction = m / (1 - beta1^t) / u.

    >>> opt = scale_by_adamax()
    >>> params = {"w": torch.tensor([3.0])}
    >>> opt.update(params, opt.init(params))[0]
    {'w': tensor([1.])}
    """
    check_betas(beta1=beta1, beta2=beta2)

    def rule(t: Tensor, beta1: Tensor, beta2: Tensor, eps: Tensor):
        total = unbias(beta1, t)

        def leaf(g, p, mean, largest):
            mean = lerp(mean, g, 1 - beta1)
            largest = (beta2 * largest).maximum(g.abs() + eps)
            return mean / largest / total, mean, largest

        return leaf

    return from_rule(
        rule, {"beta1": beta1, "beta2": beta2, "eps": eps}, {"mean": torch.zeros_like, "largest": torch.zeros_like}
    )


def scale_by_belief(
    beta1: Number = 0.9, beta2: Number = 0.999, eps: Number = 1e-16, eps_root: Number = 1e-16
) -> Optimizer:
    """AdaBelief's direction (Zhuang et al., 2020): Adam with s, the running mean of (g - m)^2, for v.

    s = beta2 s + (1 - beta2) (g - m)^2 + eps_root; m / (1 - beta1^t) / (sqrt(s / (1 - beta2^t)) + eps).

    >>> opt = scale_by_belief()
    >>> params = {"w": torch.tensor([3.0])}
    >>> opt.update(params, opt.init(params))[0]
    {'w': tensor([1.1111])}
    """
    check_betas(beta1=beta1, beta2=beta2)

    def rule(t: Tensor, beta1: Tensor, beta2: Tensor, eps: Tensor, eps_root: Tensor):
        total1, total2 = unbias(beta1, t), unbias(beta2, t)

        def leaf(g, p, mean, surprise):
            mean = lerp(mean, g, 1 - beta1)
            error = g - mean
            surprise = add_product(beta2 * surprise, error, error, 1 - beta2) + eps_root
            return mean / total1 / (root(surprise / total2) + eps), mean, surprise

        return leaf

    hyperparams = {"beta1": beta1, "beta2": beta2, "eps": eps, "eps_root": eps_root}
    return from_rule(rule, hyperparams, {"mean": torch.zeros_like, "surprise": torch.zeros_like})


def scale_by_yogi(
    beta1: Number = 0.9, beta2: Number = 0.999, eps: Number = 1e-3, initial_accumulator_value: float = 1e-6
) -> Optimizer:
    """Yogi's direction (Zaheer et al., 2018): Adam with v = v - (1 - beta2) sign(v - g^2) g^2.

    Both means start at ``initial_accumulator_value``.

    >>> opt = scale_by_yogi(eps=0.0, initial_accumulator_value=0.0)
    >>> params = {"w": torch.tensor([3.0])}
    >>> opt.update(params, opt.init(params))[0]
    {'w': tensor([1.])}
    """
    check_betas(beta1=beta1, beta2=beta2)

    def rule(t: Tensor, beta1: Tensor, beta2: Tensor, eps: Tensor):
        total1, total2 = unbias(beta1, t), unbias(beta2, t)

        def leaf(g, p, mean, square):
            mean = lerp(mean, g, 1 - beta1)
            square = square - (square - g * g).sign() * g * g * (1 - beta2)
            return mean / total1 / (root(square / total2) + eps), mean, square

        return leaf

    start = Filled(initial_accumulator_value)
    return from_rule(rule, {"beta1": beta1, "beta2": beta2, "eps": eps}, {"mean": start, "square": start})


def scale_by_adan(
    beta1: Number = 0.98, beta2: Number = 0.92, beta3: Number = 0.99, eps: Number = 1e-8, eps_root: Number = 1e-8
) -> Optimizer:
    """Adan's direction (Xie et al., 2022): Adam with Nesterov momentum from differences d of successive gradients.

    m, v, n are the running means (beta1, beta2, beta3) of g, d and (g + (1 - beta2) d)^2, each divided by
    1 - beta^t: (m + (1 - beta2) v) / (sqrt(n + eps_root) + eps). d = 0 at the first update.

    >>> opt = scale_by_adan(eps_root=0.0)
    >>> params = {"w": torch.tensor([3.0])}
    >>> opt.update(params, opt.init(params))[0]
    {'w': tensor([1.])}
    """
    check_betas(beta1=beta1, beta2=beta2, beta3=beta3)

    def rule(t: Tensor, beta1: Tensor, beta2: Tensor, beta3: Tensor, eps: Tensor, eps_root: Tensor):
        total1, total2, total3 = unbias(beta1, t), unbias(beta2, t), unbias(beta3, t)
        later = torch.where(t == 1, 0.0, 1.0)

        def leaf(g, p, mean, change, square, previous):
            difference = (g - previous) * later
            mean, change = lerp(mean, g, 1 - beta1), lerp(change, difference, 1 - beta2)
            ahead = g + difference * (1 - beta2)
            square = add_product(beta3 * square, ahead, ahead, 1 - beta3)
            direction = mean / total1 + change * ((1 - beta2) / total2)
            return direction / (root(square / total3 + eps_root) + eps), mean, change, square, g

        return leaf

    zeros = torch.zeros_like
    slots = {"mean": zeros, "change": zeros, "square": zeros, "previous": zeros}
    hyperparams = {"beta1": beta1, "beta2": beta2, "beta3": beta3, "eps": eps, "eps_root": eps_root}
    return from_rule(rule, hyperparams, slots)
