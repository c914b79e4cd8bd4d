"""Optimizers with ``torch.optim``'s names, arguments, defaults and formulas.

Each optimizer is a chain of transforms. ``learning_rate`` and all other hyperparameters may be floats, 0-d tensors,
schedules (functions of the count of updates), or trees of these like the params or prefixes of them: ``sgd({"body":
0.01, "head": 0.1})``. ``maximize`` maximizes the loss. ``weight_decay`` is added to the gradient, or is decoupled (it
shrinks the params by learning_rate weight_decay) where the docstring says so. A weight decay or momentum of exactly 0
leaves out its transform and its hyperparameter.
"""

import torch
from torch import Tensor

from fnn._numerics import widen
from fnn.optim import scale_by, scale_by_adam
from fnn.optim.base import Optimizer, chain, needs_params
from fnn.optim.hyperparams import Choice, Number, check_range, is_set
from fnn.optim.rules import Filled, from_rule
from fnn.optim.transforms import add_decayed_weights, negate, scale_by_learning_rate


def descend(
    *direction: Optimizer,
    learning_rate: Choice,
    weight_decay: Choice = 0.0,
    decoupled: bool = False,
    maximize: bool = False,
) -> Optimizer:
    """Chain the sign of the gradient, coupled decay, ``direction``, decoupled decay and the learning rate."""
    decay = [add_decayed_weights(weight_decay)] if is_set(weight_decay) else []
    return chain(
        *([negate()] if maximize else []),
        *([] if decoupled else decay),
        *direction,
        *(decay if decoupled else []),
        scale_by_learning_rate(learning_rate),
    )


def sgd(
    learning_rate: Choice = 1e-3,
    momentum: Number = 0.0,
    dampening: Number = 0.0,
    nesterov: bool = False,
    weight_decay: Choice = 0.0,
    maximize: bool = False,
) -> Optimizer:
    """Stochastic gradient descent, ``torch.optim.SGD``.

    g = grad + weight_decay p; b = momentum b + (1 - dampening) g, starting with b = g at the first step;
    update = -learning_rate (b, or g + momentum b with nesterov).

    >>> opt = sgd(0.1)
    >>> params = {"w": torch.ones(1)}
    >>> opt.update(params, opt.init(params), params)[0]
    {'w': tensor([-0.1000])}
    """
    if nesterov and (not is_set(momentum) or is_set(dampening)):
        raise ValueError(f"nesterov needs momentum > 0 and dampening 0, got {momentum} and {dampening}")
    check_range("momentum", momentum)
    inertia = [scale_by.momentum(momentum, dampening, nesterov)] if is_set(momentum) else []
    return descend(*inertia, learning_rate=learning_rate, weight_decay=weight_decay, maximize=maximize)


def adam(
    learning_rate: Choice = 1e-3,
    betas: tuple[Number, Number] = (0.9, 0.999),
    eps: Number = 1e-8,
    weight_decay: Choice = 0.0,
    amsgrad: bool = False,
    maximize: bool = False,
) -> Optimizer:
    """Adam (Kingma and Ba, 2015), ``torch.optim.Adam``; see :func:`fnn.optim.scale_by_adam`.

    >>> opt = adam(0.1)
    >>> params = {"w": torch.ones(1)}
    >>> opt.update(params, opt.init(params), params)[0]
    {'w': tensor([-0.1000])}
    """
    direction = scale_by_adam.scale_by_adam(*betas, eps, amsgrad)
    return descend(direction, learning_rate=learning_rate, weight_decay=weight_decay, maximize=maximize)


def adamw(
    learning_rate: Choice = 1e-3,
    betas: tuple[Number, Number] = (0.9, 0.999),
    eps: Number = 1e-8,
    weight_decay: Choice = 0.01,
    amsgrad: bool = False,
    maximize: bool = False,
) -> Optimizer:
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019), ``torch.optim.AdamW``.

    >>> opt = adamw(0.1, weight_decay=0.5)
    >>> params = {"w": torch.ones(1)}
    >>> opt.update(params, opt.init(params), params)[0]
    {'w': tensor([-0.1500])}
    """
    direction = scale_by_adam.scale_by_adam(*betas, eps, amsgrad)
    return descend(direction, learning_rate=learning_rate, weight_decay=weight_decay, decoupled=True, maximize=maximize)


def nadam(
    learning_rate: Choice = 2e-3,
    betas: tuple[Number, Number] = (0.9, 0.999),
    eps: Number = 1e-8,
    weight_decay: Choice = 0.0,
    momentum_decay: Number = 4e-3,
    decoupled_weight_decay: bool = False,
    maximize: bool = False,
) -> Optimizer:
    """Adam with Nesterov momentum (Dozat, 2016), ``torch.optim.NAdam``; see :func:`fnn.optim.scale_by_nadam`.

    >>> opt = nadam(0.1)
    >>> params = {"w": torch.ones(1)}
    >>> opt.update(params, opt.init(params), params)[0]["w"].shape
    torch.Size([1])
    """
    direction = scale_by_adam.scale_by_nadam(*betas, eps, momentum_decay)
    return descend(
        direction,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        decoupled=decoupled_weight_decay,
        maximize=maximize,
    )


def radam(
    learning_rate: Choice = 1e-3,
    betas: tuple[Number, Number] = (0.9, 0.999),
    eps: Number = 1e-8,
    weight_decay: Choice = 0.0,
    decoupled_weight_decay: bool = False,
    maximize: bool = False,
) -> Optimizer:
    """Rectified Adam (Liu et al., 2020), ``torch.optim.RAdam``; see :func:`fnn.optim.scale_by_radam`.

    >>> opt = radam(0.1)
    >>> params = {"w": torch.ones(1)}
    >>> opt.update(params, opt.init(params), params)[0]
    {'w': tensor([-0.1000])}
    """
    direction = scale_by_adam.scale_by_radam(*betas, eps)
    return descend(
        direction,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        decoupled=decoupled_weight_decay,
        maximize=maximize,
    )


def adamax(
    learning_rate: Choice = 2e-3,
    betas: tuple[Number, Number] = (0.9, 0.999),
    eps: Number = 1e-8,
    weight_decay: Choice = 0.0,
    maximize: bool = False,
) -> Optimizer:
    """Adam in the maximum norm (Kingma and Ba, 2015), ``torch.optim.Adamax``; see :func:`fnn.optim.scale_by_adamax`.

    >>> opt = adamax(0.1)
    >>> params = {"w": torch.ones(1)}
    >>> opt.update(params, opt.init(params), params)[0]
    {'w': tensor([-0.1000])}
    """
    direction = scale_by_adam.scale_by_adamax(*betas, eps)
    return descend(direction, learning_rate=learning_rate, weight_decay=weight_decay, maximize=maximize)


def adagrad(
    learning_rate: Choice = 1e-2,
    lr_decay: Number = 0.0,
    weight_decay: Choice = 0.0,
    initial_accumulator_value: float = 0.0,
    eps: Number = 1e-10,
    maximize: bool = False,
) -> Optimizer:
    """Adagrad (Duchi et al., 2011), ``torch.optim.Adagrad``: a step of learning_rate / (1 + (t - 1) lr_decay).

    >>> opt = adagrad(0.1)
    >>> params = {"w": torch.ones(1)}
    >>> opt.update(params, opt.init(params), params)[0]
    {'w': tensor([-0.1000])}
    """
    check_range("lr_decay", lr_decay)
    direction = scale_by.scale_by_rss(initial_accumulator_value, eps)
    slower = from_rule(lambda t, lr_decay: lambda g, p: (g / (1 + (t - 1) * lr_decay),), {"lr_decay": lr_decay})
    parts = [direction, slower] if is_set(lr_decay) else [direction]
    return descend(*parts, learning_rate=learning_rate, weight_decay=weight_decay, maximize=maximize)


def adadelta(
    learning_rate: Choice = 1.0,
    rho: Number = 0.9,
    eps: Number = 1e-6,
    weight_decay: Choice = 0.0,
    maximize: bool = False,
) -> Optimizer:
    """Adadelta (Zeiler, 2012), ``torch.optim.Adadelta``; see :func:`fnn.optim.scale_by_adadelta`.

    >>> opt = adadelta()
    >>> params = {"w": torch.ones(1)}
    >>> opt.update(params, opt.init(params), params)[0]
    {'w': tensor([-0.0032])}
    """
    direction = scale_by.scale_by_adadelta(rho, eps)
    return descend(direction, learning_rate=learning_rate, weight_decay=weight_decay, maximize=maximize)


def rmsprop(
    learning_rate: Choice = 1e-2,
    alpha: Number = 0.99,
    eps: Number = 1e-8,
    weight_decay: Choice = 0.0,
    momentum: Number = 0.0,
    centered: bool = False,
    maximize: bool = False,
) -> Optimizer:
    """RMSprop (Tieleman and Hinton, 2012), ``torch.optim.RMSprop``; ``alpha`` is the state's ``decay``.

    The direction is :func:`fnn.optim.scale_by_rms`'s, then b = momentum b + direction.

    >>> opt = rmsprop(0.1, alpha=0.0)
    >>> params = {"w": torch.ones(1)}
    >>> opt.update(params, opt.init(params), params)[0]
    {'w': tensor([-0.1000])}
    """
    check_range("momentum", momentum)
    inertia = [scale_by.momentum(momentum)] if is_set(momentum) else []
    direction = scale_by.scale_by_rms(alpha, eps, centered)
    return descend(direction, *inertia, learning_rate=learning_rate, weight_decay=weight_decay, maximize=maximize)


def rprop(
    learning_rate: float | Tensor = 1e-2,
    etas: tuple[Number, Number] = (0.5, 1.2),
    step_sizes: tuple[Number, Number] = (1e-6, 50.0),
    maximize: bool = False,
) -> Optimizer:
    """Resilient backpropagation (Riedmiller and Braun, 1993), ``torch.optim.Rprop``: for full batches.

    Each element has its own step: times etas[1] where the gradient keeps its sign, times etas[0] where it changes, and
    then this gradient counts as 0; update = -sign(g) step. ``learning_rate`` is the first step, not a hyperparameter.

    >>> opt = rprop(0.1)
    >>> params = {"w": torch.ones(1)}
    >>> opt.update(params, opt.init(params), params)[0]
    {'w': tensor([-0.1000])}
    """
    check_range("learning_rate", learning_rate)

    def rule(t: Tensor, eta_minus: Tensor, eta_plus: Tensor, smallest: Tensor, largest: Tensor):
        def leaf(g, p, previous, step_size):
            turn = g * previous
            factor = torch.where(turn > 0, eta_plus, torch.where(turn < 0, eta_minus, 1.0)).to(g.dtype)
            step_size = (step_size * factor).clamp(smallest.to(g.dtype), largest.to(g.dtype))
            g = torch.where(turn < 0, 0.0, g)
            return -g.sign() * step_size, g, step_size

        return leaf

    hyperparams = {"eta_minus": etas[0], "eta_plus": etas[1], "smallest": step_sizes[0], "largest": step_sizes[1]}
    steps = from_rule(rule, hyperparams, {"previous": torch.zeros_like, "step_size": Filled(learning_rate)})
    return chain(negate(), steps) if maximize else steps


def asgd(
    learning_rate: Choice = 1e-2,
    lambd: Number = 1e-4,
    alpha: Number = 0.75,
    t0: Number = 1e6,
    weight_decay: Choice = 0.0,
    maximize: bool = False,
) -> Optimizer:
    """Averaged stochastic gradient descent (Polyak and Juditsky, 1992), ``torch.optim.ASGD``.

    eta_t = learning_rate / (1 + lambd learning_rate (t - 1))^alpha, and learning_rate at t = 1;
    update = -eta_t (g + lambd p). The slot ``average`` is the mean of the params from step t0 on; use it to predict.

    >>> opt = asgd(0.1, lambd=0.0)
    >>> params = {"w": torch.ones(1)}
    >>> updates, state = opt.update(params, opt.init(params), params)
    >>> updates, state.slots["average"]
    ({'w': tensor([-0.1000])}, {'w': tensor([0.9000])})
    """
    check_range("learning_rate", learning_rate)

    def rule(t: Tensor, learning_rate: Tensor, lambd: Tensor, alpha: Tensor, t0: Tensor):
        eta = learning_rate / (1 + lambd * learning_rate * (t - 1)) ** alpha
        mu = 1 / (t - 1 - t0).clamp(min=1.0)

        def leaf(g, p, average):
            update = -(p * (eta * lambd) + g * eta)
            return update, average + (p + update - average) * mu

        return leaf

    hyperparams = {"learning_rate": learning_rate, "lambd": lambd, "alpha": alpha, "t0": t0}
    steps = needs_params(from_rule(rule, hyperparams, {"average": lambda p: torch.zeros_like(widen(p))}), "asgd")
    decay = [add_decayed_weights(weight_decay)] if is_set(weight_decay) else []
    parts = [*([negate()] if maximize else []), *decay, steps]
    return chain(*parts) if len(parts) > 1 else steps
