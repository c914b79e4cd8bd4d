"""MADGRAD: dual averaging with the cube root of a sum of squares."""

import torch
from torch import Tensor

from fnn._numerics import widen
from fnn.optim.base import Optimizer, chain, needs_params
from fnn.optim.hyperparams import Choice, Number, check_range, is_set
from fnn.optim.rules import from_rule
from fnn.optim.transforms import add_decayed_weights, negate


def madgrad(
    learning_rate: Choice = 1e-2,
    momentum: Number = 0.9,
    weight_decay: Choice = 0.0,
    eps: Number = 1e-6,
    maximize: bool = False,
) -> Optimizer:
    """MADGRAD (Defazio and Jelassi, 2021): each step starts from the initial params x0. Needs params.

    With r = (learning_rate + eps) sqrt(t): s = s + r g; v = v + r g^2; z = x0 - s / (cbrt(v) + eps);
    update = (1 - momentum) (z - p). ``weight_decay`` is added to the gradient. The sums are kept in float32 for 16-bit
    params.

    >>> opt = madgrad(0.001, momentum=0.0, eps=0.0)
    >>> params = {"w": torch.ones(1)}
    >>> opt.update(params, opt.init(params), params)[0]
    {'w': tensor([-0.0100])}
    """
    check_range("learning_rate", learning_rate)
    check_range("momentum", momentum, 0.0, 1.0)
    check_range("eps", eps)

    def rule(t: Tensor, learning_rate: Tensor, momentum: Tensor, eps: Tensor):
        rate = (learning_rate + eps) * t.sqrt()

        def leaf(g, p, start, total, square):
            total, square = total + g * rate, square + g * g * rate
            seen = square > 0
            root = torch.where(seen, torch.where(seen, square, 1.0) ** (1 / 3), 0.0) + eps
            z = start - torch.where(seen, total / torch.where(seen, root, 1.0), 0.0)
            return (z - p) * (1 - momentum), start, total, square

        return leaf

    def zeros(p: Tensor) -> Tensor:
        return torch.zeros_like(widen(p))

    hyperparams = {"learning_rate": learning_rate, "momentum": momentum, "eps": eps}
    slots = {"start": torch.clone, "total": zeros, "square": zeros}
    steps = needs_params(from_rule(rule, hyperparams, slots), "madgrad")
    decay = [add_decayed_weights(weight_decay)] if is_set(weight_decay) else []
    parts = [*([negate()] if maximize else []), *decay, steps]
    return chain(*parts) if len(parts) > 1 else steps
