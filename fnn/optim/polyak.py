"""Polyak's step size, which is computed from the value of the loss."""

from typing import Any, Literal

import torch

from fnn.optim.base import Optimizer, chain, from_lists, list_form
from fnn.optim.hyperparams import Choice, Number, check_range, one_number
from fnn.optim.layout import Layout
from fnn.optim.rules import State, from_rule
from fnn.optim.transforms import scale_by_learning_rate
from fnn.tree import dot


def scale_by_polyak(
    f_min: Number = 0.0, max_learning_rate: Number = 1.0, eps: Number = 0.0, variant: Literal["sps", "sps+"] = "sps"
) -> Optimizer:
    """Polyak's step (Loizou et al., 2021): g min((value - f_min) / (norm(g)^2 + eps), max_learning_rate).

    The norm is that of all leaves as one vector. ``update(grads, state, params, value=value)`` takes the value of the
    loss at the params as a 0-d tensor. ``f_min`` is a lower bound of the loss; it is 0 for a model that can fit all
    data. With ``variant="sps+"`` (Garrigos et al., 2023) a value below ``f_min`` counts as ``f_min``; with "sps" the
    step then goes uphill. Where all gradients are 0, the result is 0. Raises ``ValueError`` if the value is missing.

    >>> opt = scale_by_polyak()
    >>> params = {"w": torch.tensor([2.0])}
    >>> opt.update({"w": torch.tensor([4.0])}, opt.init(params), params, value=torch.tensor(4.0))[0]
    {'w': tensor([1.])}
    """
    if variant not in ("sps", "sps+"):
        raise ValueError(f'variant must be "sps" or "sps+", got {variant!r}')
    check_range("max_learning_rate", max_learning_rate)
    check_range("eps", eps)
    given = {"f_min": f_min, "max_learning_rate": max_learning_rate, "eps": eps}
    numbers = from_rule(lambda t, **_: lambda g, p: (g,), {name: one_number(name, x) for name, x in given.items()})
    advance = list_form(numbers)

    def on_lists(
        layout: Layout, grads: list, state: State, params: list | None, *, value: Any = None, **_: Any
    ) -> tuple[list, State]:
        if value is None:
            raise ValueError(
                "scale_by_polyak needs the value of the loss; write update(grads, opt_state, params, value=value)"
            )
        state = advance.on_lists(layout, [], state, None)[1]
        if not grads:
            return grads, state
        now = state.hyperparams | state.scheduled
        gap = torch.as_tensor(value, device=state.count.device) - now["f_min"]
        gap = gap.clamp(min=0.0) if variant == "sps+" else gap
        square = dot(grads, grads) + now["eps"]
        step = torch.minimum(gap / torch.where(square > 0, square, 1.0), now["max_learning_rate"])
        step = torch.where(square > 0, step, 0.0)
        return [g * step.to(g.dtype) for g in grads], state

    return from_lists(numbers.init, on_lists, advance.map_slots)


def polyak_sgd(
    max_learning_rate: Number = 1.0,
    scaling: Choice = 1.0,
    f_min: Number = 0.0,
    eps: Number = 0.0,
    variant: Literal["sps", "sps+"] = "sps",
) -> Optimizer:
    """Gradient descent with Polyak's step size (Loizou et al., 2021); see :func:`fnn.optim.scale_by_polyak`.

    update = -scaling min((value - f_min) / (norm(g)^2 + eps), max_learning_rate) g. In the state ``scaling`` is the
    hyperparameter ``learning_rate``. Optax divides by scaling instead of multiplying by it, unless the step is
    max_learning_rate.

    >>> opt = polyak_sgd()
    >>> params = {"w": torch.tensor([2.0])}
    >>> opt.update({"w": torch.tensor([4.0])}, opt.init(params), params, value=torch.tensor(4.0))[0]
    {'w': tensor([-1.])}
    """
    return chain(scale_by_polyak(f_min, max_learning_rate, eps, variant), scale_by_learning_rate(scaling))
