"""Backtracking: the length of an optimizer's step is reduced until the loss falls enough."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fnn import _torch
from fnn.optim.base import Optimizer, list_form, needs_params, runs_together
from fnn.optim.hyperparams import as_time, check_range, counter
from fnn.optim.layout import Layout
from fnn.optim.sam import needs_loss
from fnn.optim.wrappers import around
from fnn.tree import Tree, dot


class LineSearchState(NamedTuple):
    step_size: Tensor
    """The factor of the last update; 0 if no finite loss was found."""
    value: Tensor
    """The loss after the last update."""
    evaluations: Tensor
    """int64: how many steps the last search has tried."""
    failures: Tensor
    """int64: the number of searches so far that have not found what they looked for."""
    inner: Tree


def backtracking_line_search(
    optimizer: Optimizer,
    max_backtracking_steps: int = 15,
    slope_rtol: float = 1e-4,
    decrease_factor: float = 0.8,
    increase_factor: float = 1.5,
    max_learning_rate: float = 1.0,
    atol: float = 0.0,
    rtol: float = 0.0,
) -> Optimizer:
    """Scale the updates of an optimizer so that the loss decreases sufficiently (Armijo's condition).

    With the update u of ``optimizer``, the gradient g, and a step size s, the condition is
    loss(p + s u) <= (1 + rtol) loss(p) + s slope_rtol <u, g> + atol. The search starts with s =
    min(increase_factor s, max_learning_rate), s being the step size of the previous update (1 at first), and multiplies
    it by ``decrease_factor`` up to ``max_backtracking_steps`` times. If the condition is never met, the last and
    smallest s is used, or 0 if the loss is not finite there; the search after that starts with max_learning_rate.
    u must go downhill, as that of ``sgd(1.0)`` does.

    ``update(grads, state, params, loss=lambda params: ..., value=value)`` takes the loss as a function of the params
    alone, on the batch of the gradients; ``value``, the loss at the params, is computed if it is not given. In eager
    code the search ends when the condition is met. Compiled and transformed code cannot branch on values: it evaluates
    the loss ``max_backtracking_steps + 1`` times, with the same result.

    >>> import fnn
    >>> opt = backtracking_line_search(fnn.optim.sgd(1.0), decrease_factor=0.5)
    >>> loss = lambda params: 2 * (params["w"] ** 2).sum()
    >>> params = {"w": torch.ones(1)}
    >>> updates, state = opt.update(fnn.grad(loss)(params), opt.init(params), params, loss=loss)
    >>> updates, state.step_size, state.evaluations
    ({'w': tensor([-1.])}, tensor(0.2500, dtype=torch.float64), tensor(3))
    """
    if max_backtracking_steps < 0:
        raise ValueError(f"max_backtracking_steps must not be negative, got {max_backtracking_steps}")
    check_range("decrease_factor", decrease_factor, 0.0, 1.0)
    check_range("slope_rtol", slope_rtol)
    if increase_factor < 1:
        raise ValueError(f"increase_factor must be at least 1, got {increase_factor}")
    update = list_form(optimizer).on_lists

    def init(params: Tree) -> LineSearchState:
        return first_state(params, optimizer.init(params))

    def on_lists(
        layout: Layout,
        grads: list,
        state: LineSearchState,
        params: list,
        *,
        loss: Callable[[Tree], Tensor] | None = None,
        value: Any = None,
        **extra: Any,
    ) -> tuple[list, LineSearchState]:
        loss = needs_loss("backtracking_line_search", loss)
        updates, inner = update(layout, grads, state.inner, params, loss=loss, value=value, **extra)
        before = wide(loss(layout.whole(params)) if value is None else value, state)
        slope = dot(updates, grads)
        stops = may_stop(params, grads)
        size = torch.where(state.step_size > 0, increase_factor * state.step_size, max_learning_rate)
        size = size.clamp(max=max_learning_rate)
        found, count, after = state.evaluations < 0, torch.zeros_like(state.evaluations), before
        for trial in range(max_backtracking_steps + 1):
            size = torch.where(found, size, size * decrease_factor) if trial else size
            new = wide(loss(layout.whole(moved(params, updates, size))), state)
            after = torch.where(found, after, new)
            count = torch.where(found, count, count + 1)
            found = found | (after - (1 + rtol) * before - size * slope_rtol * slope <= atol)
            if stops and found:
                break
        finite = found | (after < torch.inf)  # false for nan
        size = torch.where(finite, size, 0.0)
        failures = state.failures + torch.where(found, 0, 1)
        return scaled(updates, size), LineSearchState(size, after, count, failures, inner)

    named = around("backtracking_line_search", optimizer, init, on_lists)
    return needs_params(named, "backtracking_line_search")


def first_state(params: Tree, inner: Tree) -> LineSearchState:
    count = counter(params)
    one = as_time(count) + 1
    return LineSearchState(one, one * torch.inf, count, count.clone(), inner)


def wide(value: Any, state: LineSearchState) -> Tensor:
    """The value of a loss in the dtype of the state."""
    return torch.as_tensor(value, device=state.value.device).to(state.value.dtype)


def may_stop(params: list[Tensor], grads: list[Tensor]) -> bool:
    """Whether code may depend on values: not in transforms, traced code and on the meta device."""
    return runs_together(params, grads) and not _torch.dispatch_modes() and not any(p.is_meta for p in params)


def moved(params: list[Tensor], updates: list[Tensor], size: Tensor) -> list[Tensor]:
    return [p + u * size.to(u.dtype) for p, u in zip(params, updates, strict=True)]


def scaled(updates: list[Tensor], size: Tensor) -> list[Tensor]:
    return [u * size.to(u.dtype) for u in updates]
