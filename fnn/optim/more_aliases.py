"""Optimizers that torch.optim lacks, with Optax's formulas.

Arguments follow the conventions of :mod:`fnn.optim.aliases`. Weight decay is decoupled but in ``lars``.
"""

import torch
from torch import Tensor

from fnn import tree as _tree
from fnn.optim import scale_by
from fnn.optim.aliases import descend
from fnn.optim.base import Number, Optimizer, State, Transform, chain, check_range, from_leaves, per_leaf, with_slots
from fnn.optim.transforms import add_decayed_weights, scale_by_trust_ratio
from fnn.tree import Tree


def lion(
    learning_rate: Number = 1e-4,
    betas: tuple[Number, Number] = (0.9, 0.99),
    weight_decay: Number = 1e-3,
    maximize: bool = False,
) -> Optimizer:
    """Lion (Chen et al., 2023): the sign of an interpolated momentum; see :func:`fnn.optim.scale_by_lion`.

    >>> opt = lion(0.1, weight_decay=0.0)
    >>> params = {"w": torch.ones(1)}
    >>> opt.update(params, opt.init(params), params)[0]
    {'w': tensor([-0.1000])}
    """
    direction = scale_by.scale_by_lion(*betas)
    return descend(direction, learning_rate=learning_rate, weight_decay=weight_decay, decoupled=True, maximize=maximize)


def lamb(
    learning_rate: Number = 1e-3,
    betas: tuple[Number, Number] = (0.9, 0.999),
    eps: Number = 1e-6,
    weight_decay: Number = 0.0,
    maximize: bool = False,
) -> Optimizer:
    """LAMB (You et al., 2020): Adam with decay, each leaf's step scaled to the norm of its params.

    >>> opt = lamb(0.1, eps=0.0)
    >>> params = {"w": torch.tensor([3.0, 4.0])}
    >>> _tree.global_norm(opt.update(params, opt.init(params), params)[0])
    tensor(0.5000)
    """
    decay = [add_decayed_weights(weight_decay)]
    parts = [scale_by.scale_by_adam(*betas, eps), *decay, scale_by_trust_ratio()]
    return descend(*parts, learning_rate=learning_rate, maximize=maximize)


def lars(
    learning_rate: Number = 0.1,
    momentum: Number = 0.9,
    nesterov: bool = False,
    weight_decay: Number = 0.0,
    trust_coefficient: Number = 1e-3,
    eps: Number = 0.0,
    maximize: bool = False,
) -> Optimizer:
    """LARS (You et al., 2017): SGD whose gradient, each leaf's, has trust_coefficient times the norm of its params.

    Weight decay is added to the gradient first; momentum comes last, behind the learning rate.

    >>> opt = lars(1.0, trust_coefficient=0.1)
    >>> params = {"w": torch.tensor([3.0, 4.0])}
    >>> _tree.global_norm(opt.update(params, opt.init(params), params)[0])
    tensor(0.5000)
    """
    scaled = descend(
        scale_by_trust_ratio(trust_coefficient, eps),
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        maximize=maximize,
    )
    return chain(scaled, scale_by.trace(momentum, nesterov=nesterov))


def adabelief(
    learning_rate: Number = 1e-3,
    betas: tuple[Number, Number] = (0.9, 0.999),
    eps: Number = 1e-16,
    weight_decay: Number = 0.0,
    maximize: bool = False,
) -> Optimizer:
    """AdaBelief (Zhuang et al., 2020); see :func:`fnn.optim.scale_by_belief`.

    >>> opt = adabelief(0.1)
    >>> params = {"w": torch.ones(1)}
    >>> opt.update(params, opt.init(params), params)[0]
    {'w': tensor([-0.1111])}
    """
    direction = scale_by.scale_by_belief(*betas, eps)
    return descend(direction, learning_rate=learning_rate, weight_decay=weight_decay, decoupled=True, maximize=maximize)


def yogi(
    learning_rate: Number = 1e-2,
    betas: tuple[Number, Number] = (0.9, 0.999),
    eps: Number = 1e-3,
    weight_decay: Number = 0.0,
    maximize: bool = False,
) -> Optimizer:
    """Yogi (Zaheer et al., 2018); see :func:`fnn.optim.scale_by_yogi`.

    >>> opt = yogi(0.1, eps=0.0)
    >>> params = {"w": torch.ones(1)}
    >>> opt.update(params, opt.init(params), params)[0]
    {'w': tensor([-0.1000])}
    """
    direction = scale_by.scale_by_yogi(*betas, eps)
    return descend(direction, learning_rate=learning_rate, weight_decay=weight_decay, decoupled=True, maximize=maximize)


def adan(
    learning_rate: Number = 1e-3,
    betas: tuple[Number, Number, Number] = (0.98, 0.92, 0.99),
    eps: Number = 1e-8,
    weight_decay: Number = 0.0,
    maximize: bool = False,
) -> Optimizer:
    """Adan (Xie et al., 2022); see :func:`fnn.optim.scale_by_adan`.

    >>> opt = adan(0.1)
    >>> params = {"w": torch.ones(1)}
    >>> opt.update(params, opt.init(params), params)[0]
    {'w': tensor([-0.1000])}
    """
    direction = scale_by.scale_by_adan(*betas, eps)
    return descend(direction, learning_rate=learning_rate, weight_decay=weight_decay, decoupled=True, maximize=maximize)


def scale_by_sophia(
    beta1: Number = 0.965, beta2: Number = 0.99, gamma: Number = 0.01, eps: Number = 1e-8, limit: Number = 1.0
) -> Transform:
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
    scale_by.check_betas(beta1=beta1, beta2=beta2)

    def rule(t: Tensor, beta1: Tensor, beta2: Tensor, gamma: Tensor, eps: Tensor, limit: Tensor):
        total = scale_by.unbias(beta1, t)

        def leaf(g, p, mean, curvature):
            mean = mean + (g - mean) * (1 - beta1)
            bound = limit.to(g.dtype)
            step = mean / total / (curvature * gamma).clamp(min=eps.to(g.dtype))
            return step.clamp(-bound, bound), mean, curvature

        return leaf

    hyperparams = {"beta1": beta1, "beta2": beta2, "gamma": gamma, "eps": eps, "limit": limit}
    inner = per_leaf(rule, hyperparams, {"mean": torch.zeros_like, "curvature": torch.zeros_like}, together=False)

    step = inner.on_leaves

    def on_leaves(
        grads: list, state: State, params: list | None, *, like: Tree, hessian_diagonal: Tree = None, **extra
    ) -> tuple[list, State]:
        if hessian_diagonal is not None:
            share = 1 - (state.hyperparams | state.scheduled)["beta2"]
            pairs = zip(state.slots["curvature"], _tree.structure(like).flatten_up_to(hessian_diagonal), strict=True)
            mixed = [h + (new - h) * share.to(h.dtype) for h, new in pairs]
            state = with_slots(state, {**state.slots, "curvature": mixed})
        return step(grads, state, params, **extra)

    return from_leaves(inner.init, on_leaves)


def sophia(
    learning_rate: Number = 1e-4,
    betas: tuple[Number, Number] = (0.965, 0.99),
    gamma: Number = 0.01,
    eps: Number = 1e-8,
    weight_decay: Number = 1e-4,
    limit: Number = 1.0,
    maximize: bool = False,
) -> Optimizer:
    """Sophia (Liu et al., 2023): give ``hessian_diagonal=`` to some updates; see :func:`fnn.optim.scale_by_sophia`.

    With ``maximize`` the estimate is that of the function to maximize, less its sign.

    >>> opt = sophia(0.1, weight_decay=0.0)
    >>> params = {"w": torch.ones(1)}
    >>> opt.update(params, opt.init(params), params, hessian_diagonal=params)[0]
    {'w': tensor([-0.1000])}
    """
    check_range("learning_rate", learning_rate)
    direction = scale_by_sophia(*betas, gamma, eps, limit)
    return descend(direction, learning_rate=learning_rate, weight_decay=weight_decay, decoupled=True, maximize=maximize)
