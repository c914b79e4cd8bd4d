"""Transforms that keep running means of gradients: momentum and the relatives of Adam.

Each returns the direction of ascent; :func:`fnn.optim.scale_by_learning_rate` behind it makes a step of descent.
In the formulas g is a gradient, p its param, t = 1, 2, ... the number of the update; a slot's new value stands left.
"""

import torch
from torch import Tensor

from fnn import _torch
from fnn.optim.base import Number, Transform, check_range, per_leaf
from fnn.optim.tensor_list import add_product, add_scaled, lerp, root


def unbias(beta: Tensor, t: Tensor) -> Tensor:
    """1 - beta^t without cancellation: what the weights of a running mean of t values sum to.

    >>> unbias(torch.tensor(0.999, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64))
    tensor(0.0010, dtype=torch.float64)
    """
    return -torch.expm1(t * torch.log(beta))


def check_betas(**betas: Number) -> None:
    for name, beta in betas.items():
        check_range(name, beta, 0.0, 1.0)


def trace(momentum: Number = 0.9, dampening: Number = 0.0, nesterov: bool = False) -> Transform:
    """Momentum as in ``torch.optim.SGD``: b = momentum b + (1 - dampening) g, starting with b = g.

    The direction is b, or g + momentum b with ``nesterov``.

    >>> opt = trace(0.5)
    >>> params = {"w": torch.ones(1)}
    >>> direction, state = opt.update(params, opt.init(params))
    >>> opt.update(params, state)[0]
    {'w': tensor([1.5000])}
    """
    damped = not (isinstance(dampening, (int, float)) and dampening == 0)

    def rule(t: Tensor, momentum: Tensor, dampening: Tensor | None = None):
        share = None if dampening is None else torch.where(t == 1, 1.0, 1 - dampening)

        def leaf(g, p, momentum_buffer):
            b = add_scaled(g if share is None else share * g, momentum_buffer, momentum)
            return (add_scaled(g, b, momentum) if nesterov else b), b

        return leaf

    hyperparams = {"momentum": momentum} | ({"dampening": dampening} if damped else {})
    return per_leaf(rule, hyperparams, {"momentum_buffer": torch.zeros_like})


def ema(decay: Number = 0.9, debias: bool = True) -> Transform:
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

    return per_leaf(rule, {"decay": decay}, {"mean": torch.zeros_like})


def scale_by_adam(
    beta1: Number = 0.9,
    beta2: Number = 0.999,
    eps: Number = 1e-8,
    amsgrad: bool = False,
) -> Transform:
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
        # works in place: zeros for params and a rate of -1 leave the direction itself
        directions = [torch.zeros_like(g) for g in grads]
        after = [_torch.foreach["add"](slot, 0) for slot in (mean, square, *largest)]  # copies
        options = {name: float(value) for name, value in numbers.items()}
        steps = [t.float()] * len(grads)
        _torch.fused_adam(  # pyright: ignore[reportCallIssue]
            directions, grads, *after[:2], after[2] if largest else [], steps,
            lr=-1.0, weight_decay=0.0, amsgrad=amsgrad, maximize=False, **options,
        )  # fmt: skip
        return [directions, *after]

    slots = {"mean": torch.zeros_like, "square": torch.zeros_like} | ({"largest": torch.zeros_like} if amsgrad else {})
    return per_leaf(rule, {"beta1": beta1, "beta2": beta2, "eps": eps}, slots, kernel=kernel)


def scale_by_nadam(
    beta1: Number = 0.9,
    beta2: Number = 0.999,
    eps: Number = 1e-8,
    momentum_decay: Number = 4e-3,
) -> Transform:
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

    def one(p: Tensor) -> Tensor:  # 0-d, and wide like every number that all elements share
        return torch.ones((), dtype=torch.promote_types(p.dtype, torch.float32), device=p.device)

    hyperparams = {"beta1": beta1, "beta2": beta2, "eps": eps, "momentum_decay": momentum_decay}
    return per_leaf(rule, hyperparams, {"mean": torch.zeros_like, "square": torch.zeros_like, "mu_product": one})


def scale_by_radam(beta1: Number = 0.9, beta2: Number = 0.999, eps: Number = 1e-8) -> Transform:
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
    return per_leaf(rule, hyperparams, {"mean": torch.zeros_like, "square": torch.zeros_like})


def scale_by_adamax(beta1: Number = 0.9, beta2: Number = 0.999, eps: Number = 1e-8) -> Transform:
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

    return per_leaf(
        rule, {"beta1": beta1, "beta2": beta2, "eps": eps}, {"mean": torch.zeros_like, "largest": torch.zeros_like}
    )


def scale_by_belief(
    beta1: Number = 0.9, beta2: Number = 0.999, eps: Number = 1e-16, eps_root: Number = 1e-16
) -> Transform:
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
    return per_leaf(rule, hyperparams, {"mean": torch.zeros_like, "surprise": torch.zeros_like})


def scale_by_yogi(
    beta1: Number = 0.9, beta2: Number = 0.999, eps: Number = 1e-3, initial_accumulator_value: float = 1e-6
) -> Transform:
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

    start = lambda p: torch.full_like(p, initial_accumulator_value)
    return per_leaf(rule, {"beta1": beta1, "beta2": beta2, "eps": eps}, {"mean": start, "square": start})


def scale_by_adan(
    beta1: Number = 0.98, beta2: Number = 0.92, beta3: Number = 0.99, eps: Number = 1e-8, eps_root: Number = 1e-8
) -> Transform:
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
    return per_leaf(rule, hyperparams, slots)


def scale_by_lion(beta1: Number = 0.9, beta2: Number = 0.99) -> Transform:
    """Lion's direction (Chen et al., 2023): sign(beta1 m + (1 - beta1) g), then m = beta2 m + (1 - beta2) g.

    >>> opt = scale_by_lion()
    >>> params = {"w": torch.tensor([-3.0])}
    >>> opt.update(params, opt.init(params))[0]
    {'w': tensor([-1.])}
    """
    check_betas(beta1=beta1, beta2=beta2)

    def rule(t: Tensor, beta1: Tensor, beta2: Tensor):
        return lambda g, p, mean: (lerp(mean, g, 1 - beta1).sign(), lerp(mean, g, 1 - beta2))

    return per_leaf(rule, {"beta1": beta1, "beta2": beta2}, {"mean": torch.zeros_like})


def scale_by_rms(decay: Number = 0.99, eps: Number = 1e-8, centered: bool = False, debias: bool = False) -> Transform:
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
    return per_leaf(rule, {"decay": decay, "eps": eps}, slots)


def scale_by_rss(initial_accumulator_value: float = 0.0, eps: Number = 1e-10) -> Transform:
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

    return per_leaf(rule, {"eps": eps}, {"total": lambda p: torch.full_like(p, initial_accumulator_value)})


def scale_by_adadelta(rho: Number = 0.9, eps: Number = 1e-6) -> Transform:
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

    return per_leaf(rule, {"rho": rho, "eps": eps}, {"square": torch.zeros_like, "step_square": torch.zeros_like})
