"""Zoom: a length of an optimizer's step that satisfies the strong Wolfe conditions, found in compiled code too."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from fnn import tree as _tree
from fnn.optim.backtracking import LineSearchState, first_state, may_stop, moved, scaled, wide
from fnn.optim.base import Optimizer, list_form, needs_params
from fnn.optim.hyperparams import check_range
from fnn.optim.layout import Layout
from fnn.optim.sam import needs_loss
from fnn.optim.wrappers import around
from fnn.tree import Tree, dot


class _Trial(NamedTuple):
    """A step size, the loss there, and the slope of the loss along the update."""

    size: Tensor
    value: Tensor
    slope: Tensor


class _Search(NamedTuple):
    last: _Trial
    low: _Trial
    """The best end of the bracket, and the other one."""
    high: _Trial
    reference: _Trial
    """A third point for the cubic: the end that the bracket had before."""
    safe: _Trial
    """A trial with a sufficient decrease; of size 0 if there is none yet."""
    bracketed: Tensor
    found: Tensor
    ended: Tensor
    count: Tensor


def zoom_line_search(
    optimizer: Optimizer,
    max_linesearch_steps: int = 15,
    max_learning_rate: float | None = None,
    tol: float = 0.0,
    increase_factor: float = 2.0,
    slope_rtol: float = 1e-4,
    curv_rtol: float = 0.9,
    approx_dec_rtol: float | None = 1e-6,
    stepsize_precision: float = 1e-5,
    initial_guess_strategy: Literal["keep", "one"] = "keep",
) -> Optimizer:
    """Scale the updates of an optimizer so that the loss decreases and becomes flat enough (strong Wolfe conditions).

    With the update u of ``optimizer``, the gradient g, and f(s) = loss(p + s u), the step size s is to satisfy
    f(s) <= f(0) + slope_rtol s f'(0) + tol and |f'(s)| <= curv_rtol |f'(0)| + tol. The first condition also holds where
    f(s) <= f(0) + approx_dec_rtol |f(0)| and f'(s) <= (2 slope_rtol - 1) f'(0) (Hager and Zhang, 2006), which is
    reliable near a minimum, where differences of f are rounding errors; None leaves this out.

    The search (Nocedal and Wright, 2006, algorithms 3.5 and 3.6) starts with the step size of the previous update, or
    with 1 for ``initial_guess_strategy="one"``, which is better for Newton's method. It is multiplied by
    ``increase_factor``, up to ``max_learning_rate``, until a bracket holds a solution; the bracket is narrowed by cubic
    and quadratic interpolation and bisection. After ``max_linesearch_steps`` trials, or when the bracket is smaller
    than ``stepsize_precision``, the best step with a sufficient decrease is used; without one, the last step if the
    loss is finite there, and otherwise 0.

    ``update(grads, state, params, loss=lambda params: ..., value=value)`` is as in
    :func:`fnn.optim.backtracking_line_search`. Each trial costs a gradient. In eager code the search ends when it has
    found a step; compiled and transformed code makes all ``max_linesearch_steps`` trials, with the same result.

    >>> import fnn
    >>> opt = zoom_line_search(fnn.optim.sgd(1.0), curv_rtol=0.1)
    >>> loss = lambda params: 2 * (params["w"] ** 2).sum()
    >>> params = {"w": torch.ones(1)}
    >>> updates, state = opt.update(fnn.grad(loss)(params), opt.init(params), params, loss=loss)
    >>> updates, state.step_size, state.evaluations
    ({'w': tensor([-1.])}, tensor(0.2500, dtype=torch.float64), tensor(2))
    """
    if max_linesearch_steps < 1:
        raise ValueError(f"max_linesearch_steps must be at least 1, got {max_linesearch_steps}")
    if initial_guess_strategy not in ("keep", "one"):
        raise ValueError(f'initial_guess_strategy must be "keep" or "one", got {initial_guess_strategy!r}')
    check_range("slope_rtol", slope_rtol)
    check_range("curv_rtol", curv_rtol)
    if not increase_factor > 1:
        raise ValueError(f"increase_factor must be larger than 1, got {increase_factor}")
    update = list_form(optimizer).on_lists

    def init(params: Tree) -> LineSearchState:
        return first_state(params, optimizer.init(params))

    def errors(trial: _Trial, start: _Trial) -> tuple[Tensor, Tensor]:
        """By how much the trial misses the two conditions; infinite for nan."""
        decrease = trial.value - start.value - slope_rtol * trial.size * start.slope
        if approx_dec_rtol is not None:
            steep = trial.slope - (2 * slope_rtol - 1) * start.slope
            higher = trial.value - start.value - approx_dec_rtol * start.value.abs()
            decrease = torch.minimum(decrease, torch.maximum(steep, higher))
        curvature = trial.slope.abs() - curv_rtol * start.slope.abs()
        return _positive(decrease), _positive(curvature)

    def advance(search: _Search, start: _Trial, guess: Tensor, f: Callable[[Tensor], _Trial], last: bool) -> _Search:
        first = search.count == 0
        wider = torch.where(first, guess, increase_factor * search.last.size)
        widest = torch.zeros_like(first) if max_learning_rate is None else wider >= max_learning_rate
        wider = wider if max_learning_rate is None else wider.clamp(max=max_learning_rate)
        trial = f(torch.where(search.bracketed, _between(search), wider))
        decrease, curvature = errors(trial, start)
        found = torch.maximum(decrease, curvature) <= tol

        # before there is a bracket
        is_high = (decrease > 0) | ((trial.value >= search.last.value) & ~first)
        is_low = ~is_high & (trial.slope >= 0)
        low, high = _where(is_low, (trial, search.last), (search.last, trial))
        outside = search._replace(
            low=low, high=high, reference=low, safe=_where(decrease <= tol, trial, search.safe),
            bracketed=is_high | is_low | found,
        )  # fmt: skip
        outside = outside._replace(ended=found | (widest & ~outside.bracketed))

        # inside the bracket
        is_high = (decrease > 0) | (trial.value >= search.low.value)
        turns = ~is_high & (trial.slope * (search.high.size - search.low.size) >= 0)
        narrow = (search.high.size - search.low.size).abs() <= stepsize_precision
        better = (decrease <= tol) & (trial.value < search.safe.value)
        inside = search._replace(
            low=_where(is_high, search.low, trial),
            high=_where(is_high, trial, _where(turns, search.low, search.high)),
            reference=_where(is_high | turns, search.high, search.low),
            safe=_where(better, trial, search.safe),
        )
        inside = inside._replace(ended=found | (narrow & (inside.safe.size > 0)))

        after = _where(search.bracketed, inside, outside)
        unfinished = ~after.ended | (search.bracketed & ~found) if last else search.bracketed & after.ended & ~found
        give_up = unfinished & ((after.safe.size > 0) | decrease.isinf())
        after = after._replace(
            last=_where(give_up, after.safe, trial), found=found, ended=after.ended | last, count=search.count + 1
        )
        return _where(search.ended, search, after)

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
        loss = needs_loss("zoom_line_search", loss)
        updates, inner = update(layout, grads, state.inner, params, loss=loss, value=value, **extra)
        zero = torch.zeros_like(state.value)
        before = wide(loss(layout.whole(params)) if value is None else value, state)
        start = _Trial(zero, before, wide(dot(updates, grads), state))
        keep = (state.step_size > 0) if initial_guess_strategy == "keep" else zero > 0
        guess = torch.where(keep, state.step_size, 1.0)

        def f(size: Tensor) -> _Trial:
            along = lambda size: wide(loss(layout.whole(moved(params, updates, size))), state)
            slope, value = torch.func.grad_and_value(along)(size)
            return _Trial(size, value, slope)

        stops, no = may_stop(params, grads), zero > 0
        search = _Search(start, start, start, start, start, no, no, no, torch.zeros_like(state.evaluations))
        if params:
            for trial in range(1, max_linesearch_steps + 1):
                search = advance(search, start, guess, f, trial == max_linesearch_steps)
                if stops and search.ended:
                    break
        size, failures = search.last.size, state.failures + torch.where(search.found, 0, 1)
        after = LineSearchState(size, search.last.value, search.count, failures, inner)
        return scaled(updates, size), after

    return needs_params(around("zoom_line_search", optimizer, init, on_lists), "zoom_line_search")


def _where(condition: Tensor, first: Any, second: Any) -> Any:
    return _tree.where(condition, first, second)


def _positive(error: Tensor) -> Tensor:
    return torch.where(error.isnan(), torch.inf, error.clamp(min=0.0))


def _between(search: _Search) -> Tensor:
    """A step size inside the bracket: the minimum of a cubic or a parabola if it is not near an end, or the middle."""
    low, high = search.low, search.high
    left, right = torch.minimum(low.size, high.size), torch.maximum(low.size, high.size)
    to_high, to_third = high.size - low.size, search.reference.size - low.size
    rise_high = high.value - low.value - low.slope * to_high
    rise_third = search.reference.value - low.value - low.slope * to_third
    scale, _ = _divisor((to_high * to_third) ** 2 * (to_high - to_third))
    a = (to_third**2 * rise_high - to_high**2 * rise_third) / scale
    b = (to_high**3 * rise_third - to_third**3 * rise_high) / scale
    square = b * b - 3 * a * low.slope
    divisor, has_cubic = _divisor(3 * a)
    cubic = low.size + (torch.where(square > 0, square, 1.0).sqrt() - b) / divisor
    margin = 0.2 * (right - left)
    cubic_fits = has_cubic & (square > 0) & (cubic > left + margin) & (cubic < right - margin)
    divisor, has_parabola = _divisor(2 * rise_high)
    parabola = low.size - low.slope * to_high**2 / divisor
    margin = 0.1 * (right - left)
    parabola_fits = has_parabola & (parabola > left + margin) & (parabola < right - margin)
    middle = (left + right) / 2
    return torch.where(cubic_fits, cubic, torch.where(parabola_fits, parabola, middle))


def _divisor(x: Tensor) -> tuple[Tensor, Tensor]:
    """The number, or 1 in place of 0, so that derivatives are finite; and whether it is not 0."""
    return torch.where(x == 0, 1.0, x), x != 0
