"""D-Adaptation and Prodigy: Adam with a learning rate that is estimated from the gradients.

Both estimate d, the distance from the initial params to the solution, by a lower bound that grows, and use it as the
learning rate. ``learning_rate`` multiplies d and is usually a schedule with the peak 1. In the formulas g is a
gradient, p its param, <., .> the inner product and |.| the sum of absolute values over all leaves. The slots are kept
in float32 for 16-bit params, because they hold numbers of the size d g with a small d.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fnn._numerics import safe_sqrt, widen
from fnn.optim.base import Optimizer, chain, list_form, needs_params
from fnn.optim.hyperparams import Number, as_time, check_range, counter, one_number
from fnn.optim.layout import Layout
from fnn.optim.rules import State, from_rule
from fnn.optim.scale_by_adam import check_betas, unbias
from fnn.optim.transforms import negate
from fnn.optim.wrappers import around
from fnn.tree import Tree, dot


class DistanceState(NamedTuple):
    distance: Tensor
    """d, the estimate of the distance to the solution."""
    numerator: Tensor
    inner: State


def dadapt_adamw(
    learning_rate: Number = 1.0,
    betas: tuple[Number, Number] = (0.9, 0.999),
    eps: Number = 1e-8,
    estim_lr0: float = 1e-6,
    weight_decay: Number = 0.0,
    maximize: bool = False,
) -> Optimizer:
    """AdamW without a learning rate to tune, by D-Adaptation (Defazio and Mishchenko, 2023). Needs params.

    With a = d learning_rate sqrt(1 - beta2^t) / (1 - beta1^t) and b = sqrt(beta2), d starting at ``estim_lr0``:
    r = b r + (1 - b) a <g, s / (sqrt(v) + eps)>; m = beta1 m + (1 - beta1) a g; v = beta2 v + (1 - beta2) g^2;
    s = b s + (1 - b) a g; d = max(d, r / ((1 - b) |s|)); update = -m / (sqrt(v) + eps) - weight_decay a p.

    >>> opt = dadapt_adamw(estim_lr0=0.1)
    >>> params = {"w": torch.ones(1)}
    >>> opt.update(params, opt.init(params), params)[0]
    {'w': tensor([-0.1000])}
    """
    numbers, advance, init = _parts(learning_rate, betas, eps, estim_lr0, weight_decay, ("mean", "square", "total"))

    def on_lists(
        layout: Layout, grads: list, state: DistanceState, params: list, **_: Any
    ) -> tuple[list, DistanceState]:
        grads, inner = advance(layout, grads, state.inner, params)
        mean, square, total = inner.slots.values()
        now = inner.hyperparams | inner.scheduled
        beta1, beta2, eps, weight_decay = now["beta1"], now["beta2"], now["eps"], now["weight_decay"]
        b, rate = beta2.sqrt(), _rate(state, inner)
        along = dot(grads, [s / (safe_sqrt(v) + eps) for s, v in zip(total, square, strict=True)])
        mean = [beta1 * m + ((1 - beta1) * rate) * g for m, g in zip(mean, grads, strict=True)]
        square = [beta2 * v + (1 - beta2) * g * g for v, g in zip(square, grads, strict=True)]
        total = [b * s + ((1 - b) * rate) * g for s, g in zip(total, grads, strict=True)]
        numerator = b * state.numerator + (1 - b) * rate * along
        distance = _larger(state.distance, numerator, (1 - b) * _sum_of_absolute_values(total))
        rows = zip(mean, square, params, strict=True)
        updates = [-m / (safe_sqrt(v) + eps) - (weight_decay * rate) * p for m, v, p in rows]
        slots = dict(zip(inner.slots, (mean, square, total), strict=True))
        return updates, DistanceState(distance, numerator, inner._replace(slots=slots))

    steps = needs_params(around("dadapt_adamw", numbers, init, on_lists), "dadapt_adamw")
    return chain(negate(), steps) if maximize else steps


def prodigy(
    learning_rate: Number = 1.0,
    betas: tuple[Number, Number] = (0.9, 0.999),
    beta3: Number | None = None,
    eps: Number = 1e-8,
    estim_lr0: float = 1e-6,
    estim_lr_coef: Number = 1.0,
    weight_decay: Number = 0.0,
    safeguard_warmup: bool = False,
    maximize: bool = False,
) -> Optimizer:
    """Prodigy (Mishchenko and Defazio, 2023), a D-Adaptation that finds the learning rate faster. Needs params.

    With a = d learning_rate sqrt(1 - beta2^t) / (1 - beta1^t), d starting at d0 = ``estim_lr0``, x0 the initial params
    and beta3 = sqrt(beta2) if it is None:
    m = beta1 m + (1 - beta1) d g; v = beta2 v + (1 - beta2) d^2 g^2; r = beta3 r + (d / d0) a <g, x0 - p>;
    s = beta3 s + (d / d0) a g, or (d / d0) d g with ``safeguard_warmup``, for long warm-ups;
    d = max(d, estim_lr_coef r / |s|); update = -a m / (sqrt(v) + d eps) - weight_decay a p, with the new d.

    >>> opt = prodigy(estim_lr0=0.1)
    >>> params = {"w": torch.ones(1)}
    >>> opt.update(params, opt.init(params), params)[0]
    {'w': tensor([-0.1000])}
    """
    more = {"estim_lr_coef": estim_lr_coef} | ({} if beta3 is None else {"beta3": beta3})
    names = "mean", "square", "total", "start"
    numbers, advance, init = _parts(learning_rate, betas, eps, estim_lr0, weight_decay, names, **more)

    def on_lists(
        layout: Layout, grads: list, state: DistanceState, params: list, **_: Any
    ) -> tuple[list, DistanceState]:
        grads, inner = advance(layout, grads, state.inner, params)
        mean, square, total, start = inner.slots.values()
        now = inner.hyperparams | inner.scheduled
        beta1, beta2, eps, weight_decay = now["beta1"], now["beta2"], now["eps"], now["weight_decay"]
        beta3 = now["beta3"] if "beta3" in now else beta2.sqrt()
        d, rate = state.distance, _rate(state, inner)
        weight = d / estim_lr0 * (d if safeguard_warmup else rate)
        along = dot(grads, [x0 - p for x0, p in zip(start, params, strict=True)])
        mean = [beta1 * m + ((1 - beta1) * d) * g for m, g in zip(mean, grads, strict=True)]
        square = [beta2 * v + (1 - beta2) * (d * g) ** 2 for v, g in zip(square, grads, strict=True)]
        total = [beta3 * s + weight * g for s, g in zip(total, grads, strict=True)]
        numerator = beta3 * state.numerator + d / estim_lr0 * rate * along
        distance = _larger(d, now["estim_lr_coef"] * numerator, _sum_of_absolute_values(total))
        rows = zip(mean, square, params, strict=True)
        tiny = distance * eps
        updates = [-rate * m / (safe_sqrt(v) + tiny) - (weight_decay * rate) * p for m, v, p in rows]
        slots = dict(zip(inner.slots, (mean, square, total, start), strict=True))
        return updates, DistanceState(distance, numerator, inner._replace(slots=slots))

    steps = needs_params(around("prodigy", numbers, init, on_lists), "prodigy")
    return chain(negate(), steps) if maximize else steps


def _parts(
    learning_rate: Number,
    betas: tuple[Number, Number],
    eps: Number,
    estim_lr0: float,
    weight_decay: Number,
    slots: tuple[str, ...],
    **more: Number,
) -> tuple[Optimizer, Any, Any]:
    """Return an optimizer that holds hyperparameters and slots, its update for lists, and the function ``init``."""
    given = {"learning_rate": learning_rate, "beta1": betas[0], "beta2": betas[1], "eps": eps}
    given |= {"weight_decay": weight_decay, **more}
    check_betas(**{name: value for name, value in given.items() if name.startswith("beta")})
    for name, value in given.items():
        check_range(name, one_number(name, value))
    if not estim_lr0 > 0:
        raise ValueError(f"estim_lr0 must be positive, got {estim_lr0}")

    def zeros(p: Tensor) -> Tensor:
        return torch.zeros_like(widen(p))

    starts = {name: torch.clone if name == "start" else zeros for name in slots}
    numbers = from_rule(lambda t, **_: lambda g, p, *slots: (g, *slots), given, starts)

    def init(params: Tree) -> DistanceState:
        zero = as_time(counter(params))
        return DistanceState(zero + estim_lr0, zero.clone(), numbers.init(params))

    return numbers, list_form(numbers).on_lists, init


def _rate(state: DistanceState, inner: State) -> Tensor:
    """The learning rate times d and Adam's corrections of the bias."""
    now, t = inner.hyperparams | inner.scheduled, as_time(inner.count)
    return state.distance * now["learning_rate"] * unbias(now["beta2"], t).sqrt() / unbias(now["beta1"], t)


def _larger(distance: Tensor, numerator: Tensor, denominator: Tensor) -> Tensor:
    """max(distance, numerator / denominator), and the distance where the denominator is 0: nothing has moved yet."""
    moved = denominator > 0
    estimate = numerator / torch.where(moved, denominator, 1.0)
    return torch.maximum(distance, torch.where(moved, estimate, distance))


def _sum_of_absolute_values(leaves: list[Tensor]) -> Tensor:
    sums = [x.abs().sum() for x in leaves]
    return sum(sums[1:], sums[0]) if sums else torch.zeros(())
