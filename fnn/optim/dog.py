"""DoG: the distance from the initial params over the norm of all gradients, as a learning rate."""

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from fnn.optim.aliases import descend
from fnn.optim.base import Optimizer, list_form, needs_params
from fnn.optim.hyperparams import Choice, Number, as_time, check_range, counter, one_number
from fnn.optim.layout import Layout
from fnn.optim.rules import State, from_rule
from fnn.optim.wrappers import around
from fnn.tree import Tree, dot, global_norm


class DoGState(NamedTuple):
    distance: Tensor
    """The largest distance from the initial params so far."""
    squares: Tensor
    """The sum of the squares of all gradients so far."""
    inner: State
    """The slot ``start`` holds the initial params."""


InitStep = tuple[Literal["distance", "learning_rate", "heuristic"], float]


def scale_by_dog(init_step: InitStep = ("heuristic", 1e-6), eps: Number = 1e-8) -> Optimizer:
    """Distance over gradients (Ivgi et al., 2023): g r / sqrt(G + eps). Needs params.

    r is the largest distance norm(p - x0) from the initial params x0 so far, and G the sum of norm(g)^2 so far, all
    leaves taken as one vector. ``init_step`` says how large the first step is: ("distance", r0) sets the first r,
    ("heuristic", a) sets it to a (1 + norm(x0)), and ("learning_rate", rate) makes the first result rate g.

    >>> opt = scale_by_dog(("distance", 1.0), eps=0.0)
    >>> params = {"w": torch.tensor([3.0, 4.0])}
    >>> opt.update(params, opt.init(params), params)[0]
    {'w': tensor([0.6000, 0.8000])}
    """
    kind, size = init_step
    if kind not in ("distance", "learning_rate", "heuristic"):
        raise ValueError(f'init_step must be a pair ("distance", "learning_rate" or "heuristic", number), got {kind!r}')
    check_range("init_step", size)
    check_range("eps", eps)
    numbers = from_rule(
        lambda t, eps: lambda g, p, start: (g, start), {"eps": one_number("eps", eps)}, {"start": torch.clone}
    )
    advance = list_form(numbers).on_lists

    def init(params: Tree) -> DoGState:
        zero = as_time(counter(params))
        first = {"distance": size, "learning_rate": 0.0, "heuristic": size * (1 + global_norm(params))}[kind]
        return DoGState(zero + first, zero.clone(), numbers.init(params))

    def on_lists(layout: Layout, grads: list, state: DoGState, params: list, **_: Any) -> tuple[list, DoGState]:
        grads, inner = advance(layout, grads, state.inner, params)
        moved = [p - start for p, start in zip(params, inner.slots["start"], strict=True)]
        distance = torch.maximum(state.distance, global_norm(moved))
        squares = state.squares + dot(grads, grads)
        rate = distance / (squares + (inner.hyperparams | inner.scheduled)["eps"]).sqrt()
        if kind == "learning_rate":
            rate = torch.where(inner.count == 1, size, rate)
        return [g * rate.to(g.dtype) for g in grads], DoGState(distance, squares, inner)

    return needs_params(around("scale_by_dog", numbers, init, on_lists), "dog")


def dog(
    learning_rate: Choice = 1.0,
    init_step: InitStep = ("heuristic", 1e-6),
    eps: Number = 1e-8,
    weight_decay: Choice = 0.0,
    maximize: bool = False,
) -> Optimizer:
    """Gradient descent without a learning rate to tune (Ivgi et al., 2023); see :func:`fnn.optim.scale_by_dog`.

    The paper sets init_step to ("heuristic", 1e-4) for models with batch norm, and predicts with an average of the
    params (:func:`fnn.optim.ema_params`). ``learning_rate`` multiplies the step. ``weight_decay`` is added to the
    gradient.

    >>> opt = dog(init_step=("learning_rate", 0.1))
    >>> params = {"w": torch.ones(1)}
    >>> opt.update(params, opt.init(params), params)[0]
    {'w': tensor([-0.1000])}
    """
    direction = scale_by_dog(init_step, eps)
    return descend(direction, learning_rate=learning_rate, weight_decay=weight_decay, maximize=maximize)
