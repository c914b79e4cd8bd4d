"""Adafactor: second moments of a matrix factored into the means of its rows and columns."""

import torch
from torch import Tensor

from fnn.optim.base import Optimizer, chain, needs_params
from fnn.optim.hyperparams import Choice, Number, check_range, is_set
from fnn.optim.rules import from_rule
from fnn.optim.transforms import negate


def adafactor(
    learning_rate: Choice = 1e-2,
    beta2_decay: Number = -0.8,
    eps: tuple[float | None, float] = (None, 1e-3),
    d: Number = 1.0,
    weight_decay: Choice = 0.0,
    maximize: bool = False,
) -> Optimizer:
    """Adafactor (Shazeer and Stern, 2018), ``torch.optim.Adafactor``: Adam with a factored second moment.

    For leaves of two or more axes, r and c are the running means of g^2 over the columns and rows of the last two axes,
    in which the new value has the weight t^beta2_decay, and v = r c / mean(r). For vectors v is the running mean of
    g^2. u = g / max(sqrt(v), eps[0]), divided by max(1, rms(u) / d); update = -a u - learning_rate weight_decay p with
    a = max(eps[1], rms(p)) min(learning_rate, 1 / sqrt(t)). ``eps[0] = None`` means the machine epsilon of the dtype.
    The state has n + m numbers for an n by m matrix.

    >>> opt = adafactor(0.1)
    >>> params = {"w": torch.ones(3, 2)}
    >>> {name: tree["w"].shape for name, tree in opt.init(params).slots.items()}
    {'row': torch.Size([3, 1]), 'column': torch.Size([1, 2])}
    """
    check_range("learning_rate", learning_rate)
    floor, smallest = eps

    def rule(t: Tensor, learning_rate: Tensor, beta2_decay: Tensor, d: Tensor, weight_decay: Tensor | None = None):
        share = t**beta2_decay
        rate = torch.minimum(learning_rate, t.rsqrt())

        def leaf(g, p, row, column):
            tiny = torch.finfo(p.dtype).eps if floor is None else floor
            square = g * g
            if g.dim() > 1:
                row = row + (square.mean(-1, keepdim=True) - row) * share
                column = column + (square.mean(-2, keepdim=True) - column) * share
                v = row * column / row.mean(-2, keepdim=True).clamp(min=tiny)
            else:
                row = row + (square - row) * share
                v = row
            u = g * v.clamp(min=tiny * tiny).rsqrt()
            u = u / ((u * u).mean().sqrt() / d).clamp(min=1.0)
            update = u * -((p * p).mean().sqrt().clamp(min=smallest) * rate)
            return update if weight_decay is None else update - p * (learning_rate * weight_decay), row, column

        return leaf

    hyperparams = {"learning_rate": learning_rate, "beta2_decay": beta2_decay, "d": d}
    hyperparams |= {"weight_decay": weight_decay} if is_set(weight_decay) else {}
    slots = {
        "row": lambda p: p.new_zeros((*p.shape[:-1], 1) if p.dim() > 1 else p.shape),
        "column": lambda p: p.new_zeros((*p.shape[:-2], 1, p.shape[-1]) if p.dim() > 1 else ()),
    }
    steps = needs_params(from_rule(rule, hyperparams, slots, real_only="adafactor"), "adafactor")
    return chain(negate(), steps) if maximize else steps
