"""Sharpness-aware minimisation."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fnn.optim.base import Optimizer, list_form, needs_params
from fnn.optim.hyperparams import as_hyperparam, carry, check_range, counter
from fnn.optim.layout import Layout
from fnn.optim.wrappers import around
from fnn.tree import Tree, global_norm


class SAMState(NamedTuple):
    hyperparams: dict[str, Tensor]
    inner: Tree


def sam(optimizer: Optimizer, rho: float | Tensor = 0.05, adaptive: bool = False) -> Optimizer:
    """Sharpness-aware minimisation (Foret et al., 2021): the gradient at the worst point within a radius of rho.

    ``update(grads, state, params, loss=lambda params: ...)`` takes the loss as a function of the params alone, on the
    same batch: g' = grad loss(params + rho g / norm(g)) goes into the optimizer. With ``adaptive`` (Kwon et al., 2021)
    the point is params + rho p^2 g / norm(p g). Cost: one more gradient.

    >>> import fnn
    >>> opt = sam(fnn.optim.sgd(1.0), rho=1.0)
    >>> params = {"w": torch.ones(1)}
    >>> loss = lambda params: (params["w"] ** 2).sum()
    >>> opt.update(torch.func.grad(loss)(params), opt.init(params), params, loss=loss)[0]
    {'w': tensor([-4.])}
    """
    check_range("rho", rho)
    update = list_form(optimizer).on_lists

    def init(params: Tree) -> SAMState:
        return SAMState({"rho": as_hyperparam("rho", rho, counter(params))}, optimizer.init(params))

    def on_lists(
        layout: Layout,
        grads: list,
        state: SAMState,
        params: list,
        *,
        loss: Callable[[Tree], Tensor] | None = None,
        **extra: Any,
    ) -> tuple[list, SAMState]:
        loss = needs_loss("sam", loss)
        sizes = [p.abs() if adaptive else torch.ones_like(p) for p in params]
        weighted = [g * size for g, size in zip(grads, sizes, strict=True)]
        norm = global_norm(weighted)
        factor = torch.where(norm > 0, state.hyperparams["rho"] / torch.where(norm > 0, norm, 1.0), 0.0)
        rows = zip(params, weighted, sizes, strict=True)
        worst = [p + g * size * factor.to(p.dtype) for p, g, size in rows]
        slopes = torch.func.grad(lambda leaves: loss(layout.whole(leaves)))(worst) if worst else []
        updates, inner = update(layout, slopes, state.inner, params, loss=loss, **extra)
        return updates, SAMState(carry(state.hyperparams), inner)

    return needs_params(around("sam", optimizer, init, on_lists), "sam")


def needs_loss(name: str, loss: Callable | None) -> Callable:
    if loss is None:
        raise ValueError(
            f"{name} evaluates the loss at other params; write update(grads, opt_state, params, "
            "loss=lambda params: loss(params, batch))"
        )
    return loss
