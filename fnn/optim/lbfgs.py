"""L-BFGS: quasi-Newton steps from the last differences of params and gradients."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from fnn import _torch
from fnn import tree as _tree
from fnn.optim.base import Optimizer, from_lists, needs_params, runs_together
from fnn.optim.hyperparams import as_hyperparam, check_range, counter
from fnn.optim.layout import Layout, working
from fnn.optim.line_search import strong_wolfe
from fnn.optim.sam import needs_loss
from fnn.tree import Tree, describe


class LBFGSState(NamedTuple):
    count: Tensor
    """int64: inner iterations so far."""
    hyperparams: dict[str, Tensor]
    filled: Tensor
    """int64: how many pairs the memory holds."""
    steps: tuple[Tensor, ...]
    """The last differences of params, flat, newest last; zeros where there are none yet."""
    changes: tuple[Tensor, ...]
    """Of gradients."""
    scale: Tensor
    """The initial inverse Hessian is this times the identity."""
    direction: Tensor
    step_size: Tensor
    gradient: Tensor


class _Point(NamedTuple):
    x: Tensor
    loss: Tensor
    gradient: Tensor


def lbfgs(
    learning_rate: float | Tensor = 1.0,
    max_iter: int = 20,
    max_eval: int | None = None,
    tolerance_grad: float = 1e-7,
    tolerance_change: float = 1e-9,
    history_size: int = 100,
    line_search_fn: Literal["strong_wolfe"] | None = None,
    maximize: bool = False,
) -> Optimizer:
    """L-BFGS (Liu and Nocedal, 1989), ``torch.optim.LBFGS``: one update is up to ``max_iter`` iterations.

    ``update(grads, state, params, loss=lambda params: ...)`` takes the loss as a function of the params alone. Each
    iteration goes along -H g, H the inverse Hessian of the two-loop recursion over the last ``history_size`` pairs
    s = difference of params, y = of gradients, with y's > 1e-10; by learning_rate, or by a step that satisfies the
    strong Wolfe conditions. It ends early when max |g| <= tolerance_grad, when nothing changes by more than
    tolerance_change, or after ``max_eval`` evaluations (default 1.25 max_iter).

    Memory: 2 history_size + 3 vectors of all params. Without a line search it compiles, with ``max_iter`` iterations
    unrolled; the line search looks at values and is refused inside ``fnn.jit`` and ``vmap``. The loss itself may be
    compiled in both cases.

    >>> opt = lbfgs(line_search_fn="strong_wolfe")
    >>> loss = lambda p: (p["x"] - 3.0).square().sum()
    >>> params = {"x": torch.zeros(2)}
    >>> updates, state = opt.update(torch.func.grad(loss)(params), opt.init(params), params, loss=loss)
    >>> updates
    {'x': tensor([3., 3.])}
    """
    if line_search_fn not in (None, "strong_wolfe"):
        raise ValueError(f'line_search_fn must be "strong_wolfe" or None, got {line_search_fn!r}')
    if max_iter < 1 or history_size < 1:
        raise ValueError(f"max_iter and history_size must be at least 1, got {max_iter} and {history_size}")
    check_range("learning_rate", learning_rate)
    evaluations = max_iter * 5 // 4 if max_eval is None else max_eval

    def init(params: Tree) -> LBFGSState:
        layout, count = Layout.of(params), counter(params)
        zero = torch.zeros_like(_flat(working(layout.params)))
        number = count.new_zeros((), dtype=zero.dtype)
        rate = as_hyperparam("learning_rate", learning_rate, count)
        empty = lambda: tuple([torch.zeros_like(zero) for _ in range(history_size)])
        memory = count.clone(), empty(), empty()
        return LBFGSState(count, {"learning_rate": rate}, *memory, number + 1, zero, number, zero.clone())

    def on_lists(
        layout: Layout,
        grads: list,
        state: LBFGSState,
        params: list,
        *,
        loss: Callable[[Tree], Tensor] | None = None,
        **_: Any,
    ) -> tuple[list, LBFGSState]:
        loss = needs_loss("lbfgs", loss)
        x = _flat(params)
        if not isinstance(state, LBFGSState) or state.direction.shape != x.shape:
            found = f"of {state.direction.numel()} numbers" if isinstance(state, LBFGSState) else describe(state)
            raise ValueError(
                f"opt_state is {found}, but the params have {x.numel()} numbers; make it by optimizer.init(params)"
            )
        given = set(map(id, _tree.leaves(state)))
        if not x.numel():
            return params, _own(state, given)
        plain = runs_together(params, grads) and not _torch.dispatch_modes()
        if line_search_fn and not plain:
            raise ValueError(
                "lbfgs: the line search looks at values, which tracing cannot; call update outside fnn.jit and vmap "
                "(loss may be compiled), or write line_search_fn=None"
            )
        sign = -1.0 if maximize else 1.0
        unravel = lambda x: _leaves(x, params)

        def evaluate(x: Tensor) -> _Point:
            slope, value = torch.func.grad_and_value(lambda x: sign * loss(layout.whole(unravel(x))))(x)
            return _Point(x, value, slope)

        slope = sign * _flat(grads)
        value = sign * loss(layout.whole(params))
        point, used = _Point(x, value, slope), 1
        active = slope.abs().max() > tolerance_grad
        for iteration in range(1, max_iter + 1):
            if plain and not active:
                break
            new = _prepare(state, point, plain)
            rate = state.hyperparams["learning_rate"].to(x.dtype)
            first = (1 / point.gradient.abs().sum()).clamp(max=1.0) * rate
            step = torch.where(new.count == 1, first, rate)
            along = point.gradient @ new.direction
            downhill = along <= -tolerance_change
            if line_search_fn and bool(downhill):
                after, step, calls = strong_wolfe(evaluate, point, step, new.direction, along, evaluations - used)
                after = after._replace(x=point.x + step * new.direction)
                used += calls
            elif iteration < max_iter:
                after = evaluate(point.x + step * new.direction)
                used += 1
            else:  # nothing uses the loss after the last iteration
                after = point._replace(x=point.x + step * new.direction)
            new = new._replace(step_size=step)
            state = _where(active, new, state, plain)
            moved = active & downhill
            going = (
                (after.gradient.abs().max() > tolerance_grad)
                & ((step * new.direction).abs().max() > tolerance_change)
                & ((after.loss - point.loss).abs() >= tolerance_change)
            )
            point = _where(moved, after, point, plain)
            active = moved & going
            if used >= evaluations:
                break
        return unravel(point.x - x), _own(state, given)

    return needs_params(from_lists(init, on_lists, lambda f, layout, state: state), "lbfgs")


def _own(state: LBFGSState, given: set[int]) -> LBFGSState:
    """Copy the leaves that the previous state holds too. Traced code does not copy: the executable does."""
    if torch.compiler.is_compiling():
        return state
    return _tree.map(lambda x: x.clone() if id(x) in given else x, state)


def _flat(leaves: list[Tensor]) -> Tensor:
    return torch.cat([x.reshape(-1) for x in leaves]) if leaves else torch.zeros(0)


def _leaves(x: Tensor, like: list[Tensor]) -> list[Tensor]:
    parts = x.split([leaf.numel() for leaf in like])
    return [part.reshape(leaf.shape).to(leaf.dtype) for part, leaf in zip(parts, like, strict=True)]


def _where(condition: Tensor, first: Any, second: Any, plain: bool) -> Any:
    if plain:
        return first if condition else second
    return _tree.map(lambda a, b: torch.where(condition, a, b), first, second)


def _prepare(state: LBFGSState, point: _Point, plain: bool) -> LBFGSState:
    """The state with the last step in its memory and the next direction."""
    gradient = point.gradient
    y, s = gradient - state.gradient, state.direction * state.step_size
    curvature = y @ s
    useful = (state.count > 0) & (curvature > 1e-10)
    pushed = state._replace(
        filled=(state.filled + 1).clamp(max=len(state.steps)),
        steps=(*state.steps[1:], s),
        changes=(*state.changes[1:], y),
        scale=curvature / torch.where(useful, y @ y, 1.0),
    )
    state = _where(useful, pushed, state, plain)
    q, weights = -gradient, []
    pairs = list(
        zip(state.steps, state.changes, strict=True)
    )  # pairs that are not filled yet are zeros and have no effect
    pairs = pairs[len(pairs) - int(state.filled) :] if plain else pairs
    for s, y in reversed(pairs):
        ys = y @ s
        weight = torch.where(ys > 0, (s @ q) / torch.where(ys > 0, ys, 1.0), 0.0)
        weights.append((weight, ys))
        q = q - weight * y
    r = q * state.scale
    for (s, y), (weight, ys) in zip(pairs, reversed(weights), strict=True):
        r = r + s * torch.where(ys > 0, weight - (y @ r) / torch.where(ys > 0, ys, 1.0), 0.0)
    return state._replace(count=state.count + 1, direction=r, gradient=gradient)
