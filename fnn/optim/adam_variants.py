"""AdEMAMix, ADOPT and NovoGrad, which are variants of Adam."""

import torch
from torch import Tensor

from fnn.optim.aliases import descend
from fnn.optim.base import Optimizer, needs_params
from fnn.optim.hyperparams import Choice, Number, check_range
from fnn.optim.rules import from_rule
from fnn.optim.scale_by_adam import check_betas, unbias
from fnn.optim.tensor_list import add_product, lerp, root


def scale_by_ademamix(
    beta1: Number = 0.9, beta2: Number = 0.999, beta3: Number = 0.9999, alpha: Number = 5.0, eps: Number = 1e-8
) -> Optimizer:
    """AdEMAMix's direction (Pagliardini et al., 2024): Adam with a second, slow running mean of the gradients.

    m, s and v are the running means of g (beta1), g (beta3) and g^2 (beta2);
    (m / (1 - beta1^t) + alpha s) / (sqrt(v / (1 - beta2^t)) + eps). The paper raises alpha from 0 and beta3 from beta1
    in the first steps, for which schedules may be given.

    >>> opt = scale_by_ademamix(alpha=0.0)
    >>> params = {"w": torch.tensor([3.0])}
    >>> opt.update(params, opt.init(params))[0]
    {'w': tensor([1.0000])}
    """
    check_betas(beta1=beta1, beta2=beta2, beta3=beta3)

    def rule(t: Tensor, beta1: Tensor, beta2: Tensor, beta3: Tensor, alpha: Tensor, eps: Tensor):
        total1, total2 = unbias(beta1, t), unbias(beta2, t)

        def leaf(g, p, mean, slow_mean, square):
            mean, slow_mean = lerp(mean, g, 1 - beta1), lerp(slow_mean, g, 1 - beta3)
            square = add_product(beta2 * square, g, g, 1 - beta2)
            direction = (mean / total1 + slow_mean * alpha) / (root(square / total2) + eps)
            return direction, mean, slow_mean, square

        return leaf

    hyperparams = {"beta1": beta1, "beta2": beta2, "beta3": beta3, "alpha": alpha, "eps": eps}
    zeros = torch.zeros_like
    return from_rule(rule, hyperparams, {"mean": zeros, "slow_mean": zeros, "square": zeros})


def scale_by_adopt(
    beta1: Number = 0.9, beta2: Number = 0.9999, eps: Number = 1e-6, use_clipping: bool = True, nesterov: bool = False
) -> Optimizer:
    """ADOPT's direction (Taniguchi et al., 2024): Adam that divides by v before the gradient enters it.

    u = g / max(sqrt(v), eps), held within (t - 1)^(1/4) with ``use_clipping``; m = beta1 m + (1 - beta1) u; then
    v = beta2 v + (1 - beta2) g^2. The first update is zero and sets v = g^2. With ``nesterov`` the direction is
    beta1 m + (1 - beta1) u.

    >>> opt = scale_by_adopt(beta1=0.0)
    >>> params = {"w": torch.tensor([3.0])}
    >>> first, state = opt.update(params, opt.init(params))
    >>> first, opt.update(params, state)[0]
    ({'w': tensor([0.])}, {'w': tensor([1.])})
    """
    check_betas(beta1=beta1, beta2=beta2)

    def rule(t: Tensor, beta1: Tensor, beta2: Tensor, eps: Tensor):
        first = t == 1
        share, kept = torch.where(first, 0.0, 1 - beta1), torch.where(first, 0.0, beta2)
        limit = (t - 1) ** 0.25

        def leaf(g, p, mean, square):
            step = g / root(square).clamp(min=eps.to(g.dtype))
            if use_clipping:
                step = step.clamp(-limit.to(g.dtype), limit.to(g.dtype))
            mean = lerp(mean, step, share)
            square = add_product(kept * square, g, g, 1 - kept)
            return (lerp(mean, step, share) if nesterov else mean), mean, square

        return leaf

    hyperparams = {"beta1": beta1, "beta2": beta2, "eps": eps}
    return from_rule(rule, hyperparams, {"mean": torch.zeros_like, "square": torch.zeros_like})


def scale_by_novograd(
    beta1: Number = 0.9, beta2: Number = 0.25, eps: Number = 1e-6, weight_decay: Choice = 0.0
) -> Optimizer:
    """NovoGrad's direction (Ginsburg et al., 2019): one second moment for each leaf. Needs params.

    v = beta2 v + (1 - beta2) norm(g)^2, starting with v = norm(g)^2;
    m = beta1 m + g / (sqrt(v) + eps) + weight_decay p.

    >>> opt = scale_by_novograd(eps=0.0)
    >>> params = {"w": torch.tensor([3.0, 4.0])}
    >>> opt.update(params, opt.init(params), params)[0]
    {'w': tensor([0.6000, 0.8000])}
    """
    check_betas(beta1=beta1, beta2=beta2)
    check_range("weight_decay", weight_decay)

    def rule(t: Tensor, beta1: Tensor, beta2: Tensor, eps: Tensor, weight_decay: Tensor):
        kept = torch.where(t == 1, 0.0, beta2)

        def leaf(g, p, mean, square):
            square = kept * square + (1 - kept) * (g * g).sum()
            mean = beta1 * mean + g / (root(square) + eps) + weight_decay * p
            return mean, mean, square

        return leaf

    hyperparams = {"beta1": beta1, "beta2": beta2, "eps": eps, "weight_decay": weight_decay}
    slots = {"mean": torch.zeros_like, "square": lambda p: p.real.new_zeros(())}
    return needs_params(from_rule(rule, hyperparams, slots), "novograd")


def ademamix(
    learning_rate: Choice = 1e-3,
    betas: tuple[Number, Number, Number] = (0.9, 0.999, 0.9999),
    alpha: Number = 5.0,
    eps: Number = 1e-8,
    weight_decay: Choice = 0.0,
    maximize: bool = False,
) -> Optimizer:
    """AdEMAMix (Pagliardini et al., 2024) with decoupled decay; see :func:`fnn.optim.scale_by_ademamix`.

    >>> opt = ademamix(0.1, alpha=0.0)
    >>> params = {"w": torch.ones(1)}
    >>> opt.update(params, opt.init(params), params)[0]
    {'w': tensor([-0.1000])}
    """
    direction = scale_by_ademamix(*betas, alpha, eps)
    return descend(direction, learning_rate=learning_rate, weight_decay=weight_decay, decoupled=True, maximize=maximize)


def adopt(
    learning_rate: Choice = 1e-3,
    betas: tuple[Number, Number] = (0.9, 0.9999),
    eps: Number = 1e-6,
    weight_decay: Choice = 0.0,
    use_clipping: bool = True,
    nesterov: bool = False,
    maximize: bool = False,
) -> Optimizer:
    """ADOPT (Taniguchi et al., 2024) with decoupled decay; see :func:`fnn.optim.scale_by_adopt`.

    >>> opt = adopt(0.1)
    >>> params = {"w": torch.ones(1)}
    >>> opt.update(params, opt.init(params), params)[0]
    {'w': tensor([-0.])}
    """
    direction = scale_by_adopt(*betas, eps, use_clipping, nesterov)
    return descend(direction, learning_rate=learning_rate, weight_decay=weight_decay, decoupled=True, maximize=maximize)


def novograd(
    learning_rate: Choice = 1e-2,
    betas: tuple[Number, Number] = (0.9, 0.25),
    eps: Number = 1e-6,
    weight_decay: Choice = 0.0,
    maximize: bool = False,
) -> Optimizer:
    """NovoGrad (Ginsburg et al., 2019); see :func:`fnn.optim.scale_by_novograd`, which applies the weight decay.

    >>> opt = novograd(0.1, eps=0.0)
    >>> params = {"w": torch.tensor([3.0, 4.0])}
    >>> opt.update(params, opt.init(params), params)[0]
    {'w': tensor([-0.0600, -0.0800])}
    """
    direction = scale_by_novograd(*betas, eps, weight_decay)
    return descend(direction, learning_rate=learning_rate, maximize=maximize)
