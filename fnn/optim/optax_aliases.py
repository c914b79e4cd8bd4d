"""Optimizers that torch.optim lacks, with Optax's formulas.

Arguments follow the conventions of :mod:`fnn.optim.aliases`. Weight decay is decoupled except in ``lars``.
"""

from fnn.optim import scale_by, scale_by_adam
from fnn.optim.aliases import descend
from fnn.optim.base import Optimizer, chain
from fnn.optim.hyperparams import Choice, Number, check_range
from fnn.optim.transforms import add_decayed_weights, scale_by_trust_ratio


def lion(
    learning_rate: Choice = 1e-4,
    betas: tuple[Number, Number] = (0.9, 0.99),
    weight_decay: Choice = 1e-3,
    maximize: bool = False,
) -> Optimizer:
    """Lion (Chen et al., 2023): the sign of an interpolated momentum; see :func:`fnn.optim.scale_by_lion`.

    >>> import torch
    >>> opt = lion(0.1, weight_decay=0.0)
    >>> params = {"w": torch.ones(1)}
    >>> opt.update(params, opt.init(params), params)[0]
    {'w': tensor([-0.1000])}
    """
    direction = scale_by.scale_by_lion(*betas)
    return descend(direction, learning_rate=learning_rate, weight_decay=weight_decay, decoupled=True, maximize=maximize)


def lamb(
    learning_rate: Choice = 1e-3,
    betas: tuple[Number, Number] = (0.9, 0.999),
    eps: Number = 1e-6,
    weight_decay: Choice = 0.0,
    maximize: bool = False,
) -> Optimizer:
    """LAMB (You et al., 2020): Adam with decay, each leaf's step scaled to the norm of its params.

    >>> import torch, fnn
    >>> opt = lamb(0.1, eps=0.0)
    >>> params = {"w": torch.tensor([3.0, 4.0])}
    >>> fnn.tree.global_norm(opt.update(params, opt.init(params), params)[0])
    tensor(0.5000)
    """
    decay = [add_decayed_weights(weight_decay)]
    parts = [scale_by_adam.scale_by_adam(*betas, eps), *decay, scale_by_trust_ratio()]
    return descend(*parts, learning_rate=learning_rate, maximize=maximize)


def lars(
    learning_rate: Choice = 0.1,
    momentum: Number = 0.9,
    nesterov: bool = False,
    weight_decay: Choice = 0.0,
    trust_coefficient: Number = 1e-3,
    eps: Number = 0.0,
    maximize: bool = False,
) -> Optimizer:
    """LARS (You et al., 2017): SGD in which each gradient is scaled to trust_coefficient times the norm of its params.

    Weight decay is added to the gradient first. Momentum is applied last, after the learning rate.

    >>> import torch, fnn
    >>> opt = lars(1.0, trust_coefficient=0.1)
    >>> params = {"w": torch.tensor([3.0, 4.0])}
    >>> fnn.tree.global_norm(opt.update(params, opt.init(params), params)[0])
    tensor(0.5000)
    """
    scaled = descend(
        scale_by_trust_ratio(trust_coefficient, eps),
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        maximize=maximize,
    )
    return chain(scaled, scale_by.momentum(momentum, nesterov=nesterov))


def adabelief(
    learning_rate: Choice = 1e-3,
    betas: tuple[Number, Number] = (0.9, 0.999),
    eps: Number = 1e-16,
    weight_decay: Choice = 0.0,
    maximize: bool = False,
) -> Optimizer:
    """AdaBelief (Zhuang et al., 2020); see :func:`fnn.optim.scale_by_belief`.

    >>> import torch
    >>> opt = adabelief(0.1)
    >>> params = {"w": torch.ones(1)}
    >>> opt.update(params, opt.init(params), params)[0]
    {'w': tensor([-0.1111])}
    """
    direction = scale_by_adam.scale_by_belief(*betas, eps)
    return descend(direction, learning_rate=learning_rate, weight_decay=weight_decay, decoupled=True, maximize=maximize)


def yogi(
    learning_rate: Choice = 1e-2,
    betas: tuple[Number, Number] = (0.9, 0.999),
    eps: Number = 1e-3,
    weight_decay: Choice = 0.0,
    maximize: bool = False,
) -> Optimizer:
    """Yogi (Zaheer et al., 2018); see :func:`fnn.optim.scale_by_yogi`.

    >>> import torch
    >>> opt = yogi(0.1, eps=0.0)
    >>> params = {"w": torch.ones(1)}
    >>> opt.update(params, opt.init(params), params)[0]
    {'w': tensor([-0.1000])}
    """
    direction = scale_by_adam.scale_by_yogi(*betas, eps)
    return descend(direction, learning_rate=learning_rate, weight_decay=weight_decay, decoupled=True, maximize=maximize)


def adan(
    learning_rate: Choice = 1e-3,
    betas: tuple[Number, Number, Number] = (0.98, 0.92, 0.99),
    eps: Number = 1e-8,
    weight_decay: Choice = 0.0,
    maximize: bool = False,
) -> Optimizer:
    """Adan (Xie et al., 2022); see :func:`fnn.optim.scale_by_adan`.

    >>> import torch
    >>> opt = adan(0.1)
    >>> params = {"w": torch.ones(1)}
    >>> opt.update(params, opt.init(params), params)[0]
    {'w': tensor([-0.1000])}
    """
    direction = scale_by_adam.scale_by_adan(*betas, eps)
    return descend(direction, learning_rate=learning_rate, weight_decay=weight_decay, decoupled=True, maximize=maximize)


def sophia(
    learning_rate: Choice = 1e-4,
    betas: tuple[Number, Number] = (0.965, 0.99),
    gamma: Number = 0.01,
    eps: Number = 1e-8,
    weight_decay: Choice = 1e-4,
    limit: Number = 1.0,
    maximize: bool = False,
) -> Optimizer:
    """Sophia (Liu et al., 2023): give ``hessian_diagonal=`` to some updates; see :func:`fnn.optim.scale_by_sophia`.

    With ``maximize`` give the negative of the estimate for the function to maximize.

    >>> import torch
    >>> opt = sophia(0.1, weight_decay=0.0)
    >>> params = {"w": torch.ones(1)}
    >>> opt.update(params, opt.init(params), params, hessian_diagonal=params)[0]
    {'w': tensor([-0.1000])}
    """
    check_range("learning_rate", learning_rate)
    direction = scale_by.scale_by_sophia(*betas, gamma, eps, limit)
    return descend(direction, learning_rate=learning_rate, weight_decay=weight_decay, decoupled=True, maximize=maximize)
