"""Optimizers that wrap another: accumulation, finite updates, averages, lookahead, and the dtype of the state."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fnn import tree as _tree
from fnn._numerics import widen
from fnn.optim.base import Optimizer, check_optimizers, from_lists, list_form, needs_params
from fnn.optim.hyperparams import as_hyperparam, as_time, carry, check_range, counter
from fnn.optim.layout import Layout
from fnn.tree import Tree, describe


def around(
    name: str, optimizer: Optimizer, init: Callable[[Tree], Tree], on_lists: Callable, slots: tuple[str, ...] = ()
) -> Optimizer:
    """Make an optimizer that wraps another one.

    Its state is a NamedTuple. The field ``inner`` is the state of the wrapped optimizer, and ``slots`` lists the fields
    that are trees like the params. ``on_lists`` is as in :class:`fnn.optim.base.ListForm`.
    """
    check_optimizers(name, optimizer)
    inner = list_form(optimizer)

    def map_slots(f: Callable, layout: Layout, state: Any) -> Any:
        if not {"inner", *slots}.issubset(getattr(state, "_fields", ())):
            raise ValueError(f"{name} got a state that is {describe(state)}; make it by optimizer.init(params)")
        new = {slot: f(layout, getattr(state, slot), slot) for slot in slots}
        return state._replace(**new, inner=inner.map_slots(f, layout, state.inner))

    return from_lists(init, on_lists, map_slots)


def lerp_leaves(start: list[Tensor], end: list[Tensor], weight: Tensor) -> list[Tensor]:
    """Return start + weight (end - start) for each leaf."""
    return [a + (b - a) * weight.to(a.dtype) for a, b in zip(start, end, strict=True)]


def _check_at_least_one(value: int, name: str) -> None:
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")


class AccumulateState(NamedTuple):
    count: Tensor
    total: Tree
    """The sum of the gradients so far, in float32 for 16-bit params."""
    inner: Tree


def accumulate(optimizer: Optimizer, every: int) -> Optimizer:
    """Update once every ``every`` calls, with the mean of their gradients. The other calls return updates of zero.

    If all micro-batches have one size and the loss is a mean, the update equals that of the whole batch. The optimizer
    is computed at every call, and its result is used at the last one. So the code does not depend on values and
    compiles.

    >>> import fnn
    >>> opt = accumulate(fnn.optim.sgd(1.0), 2)
    >>> params = {"w": torch.zeros(1)}
    >>> first, state = opt.update({"w": torch.tensor([1.0])}, opt.init(params), params)
    >>> first, opt.update({"w": torch.tensor([3.0])}, state, params)[0]
    ({'w': tensor([0.])}, {'w': tensor([-2.])})
    """
    _check_at_least_one(every, "accumulate: every")
    update = list_form(optimizer).on_lists

    def init(params: Tree) -> AccumulateState:
        total = _tree.map(lambda p: torch.zeros_like(widen(p)), params)
        return AccumulateState(counter(params), total, optimizer.init(params))

    def on_lists(
        layout: Layout, grads: list, state: AccumulateState, params: list | None, **extra: Any
    ) -> tuple[list, AccumulateState]:
        count = state.count + 1
        total = [x + g for x, g in zip(state.total, grads, strict=True)]
        last = count % every == 0
        updates, inner = update(layout, [x / every for x in total], state.inner, params, **extra)
        updates = [torch.where(last, x, 0.0) for x in updates]
        total = [torch.where(last, 0.0, x) for x in total]
        return updates, AccumulateState(count, total, _tree.where(last, inner, state.inner))

    return around("accumulate", optimizer, init, on_lists, ("total",))


class FiniteState(NamedTuple):
    skipped: Tensor
    """int64: the number of skipped updates."""
    in_a_row: Tensor
    inner: Tree


def apply_if_finite(optimizer: Optimizer, max_in_a_row: int = 5) -> Optimizer:
    """Skip updates whose gradients are not all finite: the update is zero and the state stays unchanged.

    After ``max_in_a_row`` consecutive skipped updates the next one is applied, so that a diverged run is noticed.
    ``state.skipped`` is the number of skipped updates.

    >>> import fnn
    >>> opt = apply_if_finite(fnn.optim.sgd(1.0))
    >>> params = {"w": torch.zeros(1)}
    >>> updates, state = opt.update({"w": torch.tensor([float("nan")])}, opt.init(params), params)
    >>> updates, state.skipped
    ({'w': tensor([0.])}, tensor(1))
    """
    update = list_form(optimizer).on_lists

    def init(params: Tree) -> FiniteState:
        return FiniteState(counter(params), counter(params), optimizer.init(params))

    def on_lists(
        layout: Layout, grads: list, state: FiniteState, params: list | None, **extra: Any
    ) -> tuple[list, FiniteState]:
        finite = torch.ones_like(state.skipped, dtype=torch.bool)
        for g in grads:
            finite = finite & g.isfinite().all()
        in_a_row = torch.where(finite, 0, state.in_a_row + 1)
        let_through = finite | (in_a_row > max_in_a_row)
        updates, inner = update(layout, grads, state.inner, params, **extra)
        updates = [torch.where(let_through, x, 0.0) for x in updates]
        skipped = state.skipped + torch.where(let_through, 0, 1)
        return updates, FiniteState(skipped, in_a_row, _tree.where(let_through, inner, state.inner))

    return around("apply_if_finite", optimizer, init, on_lists)


class AverageState(NamedTuple):
    count: Tensor
    hyperparams: dict[str, Tensor]
    average: Tree
    """In float32 for 16-bit params, whose spacing is too coarse for a running mean."""
    inner: Tree


def ema_params(optimizer: Optimizer, decay: float | Tensor = 0.999) -> Optimizer:
    """Keep a running mean of the params in ``state.average``: decay average + (1 - decay) params.

    The first update sets the average to the updated params, as ``torch.optim.swa_utils.AveragedModel`` does
    with ``get_ema_multi_avg_fn``. Use the average to predict.

    >>> import fnn
    >>> opt = ema_params(fnn.optim.sgd(1.0), decay=0.5)
    >>> params = {"w": torch.ones(1)}
    >>> updates, state = opt.update(params, opt.init(params), params)
    >>> state.average
    {'w': tensor([0.])}
    >>> opt.update({"w": -torch.ones(1)}, state, {"w": torch.zeros(1)})[1].average
    {'w': tensor([0.5000])}
    """
    check_range("decay", decay, 0.0, 1.0)
    update = list_form(optimizer).on_lists

    def init(params: Tree) -> AverageState:
        count = counter(params)
        average = _tree.map(lambda p: widen(p).clone(), params)
        return AverageState(count, {"decay": as_hyperparam("decay", decay, count)}, average, optimizer.init(params))

    def on_lists(
        layout: Layout, grads: list, state: AverageState, params: list, **extra: Any
    ) -> tuple[list, AverageState]:
        updates, inner = update(layout, grads, state.inner, params, **extra)
        share = torch.where(state.count == 0, 1.0, 1 - state.hyperparams["decay"])
        after = [p + u for p, u in zip(params, updates, strict=True)]
        average = lerp_leaves(state.average, after, share)
        return updates, AverageState(state.count + 1, carry(state.hyperparams), average, inner)

    return needs_params(around("ema_params", optimizer, init, on_lists, ("average",)), "ema_params")


def average_params(optimizer: Optimizer, start: int = 0, every: int = 1) -> Optimizer:
    """Keep the mean of the params of many updates in ``state.average`` (Izmailov et al., 2018): SWA's equal average.

    After ``start`` updates, the params of every ``every``-th update are averaged with equal weights, as
    ``torch.optim.swa_utils.AveragedModel`` does; until the first of them the average is the params. Use the average to
    predict. :func:`fnn.optim.ema_params` weighs late params more.

    >>> import fnn
    >>> opt = average_params(fnn.optim.sgd(1.0))
    >>> params = {"w": torch.ones(1)}
    >>> updates, state = opt.update(params, opt.init(params), params)
    >>> state.average
    {'w': tensor([0.])}
    >>> opt.update({"w": -torch.ones(1)}, state, {"w": torch.zeros(1)})[1].average
    {'w': tensor([0.5000])}
    """
    _check_at_least_one(every, "average_params: every")
    check_range("average_params: start", start)
    update = list_form(optimizer).on_lists

    def init(params: Tree) -> AverageState:
        average = _tree.map(lambda p: widen(p).clone(), params)
        return AverageState(counter(params), {}, average, optimizer.init(params))

    def on_lists(
        layout: Layout, grads: list, state: AverageState, params: list, **extra: Any
    ) -> tuple[list, AverageState]:
        updates, inner = update(layout, grads, state.inner, params, **extra)
        count = state.count + 1
        counted = (count - start).clamp(min=0)
        taken = counted // every  # how many params are in the average, this one included if it is chosen
        chosen = (counted % every == 0) | (taken == 0)
        share = torch.where(chosen, 1.0 / as_time(taken.clamp(min=1)), 0.0)
        after = [p + u for p, u in zip(params, updates, strict=True)]
        return updates, AverageState(count, {}, lerp_leaves(state.average, after, share), inner)

    return needs_params(around("average_params", optimizer, init, on_lists, ("average",)), "average_params")


class LookaheadState(NamedTuple):
    count: Tensor
    hyperparams: dict[str, Tensor]
    slow: Tree
    inner: Tree


def lookahead(optimizer: Optimizer, every: int = 5, slow_rate: float | Tensor = 0.5) -> Optimizer:
    """Lookahead (Zhang et al., 2019): every ``every`` steps, set the params to slow + slow_rate (params - slow).

    That point becomes the new value of the slow params, ``state.slow``.

    >>> import fnn
    >>> opt = lookahead(fnn.optim.sgd(1.0), every=1, slow_rate=0.5)
    >>> params = {"w": torch.ones(1)}
    >>> opt.update(params, opt.init(params), params)[0]
    {'w': tensor([-0.5000])}
    """
    _check_at_least_one(every, "lookahead: every")
    update = list_form(optimizer).on_lists

    def init(params: Tree) -> LookaheadState:
        count = counter(params)
        hyperparams = {"slow_rate": as_hyperparam("slow_rate", slow_rate, count)}
        return LookaheadState(count, hyperparams, _tree.map(torch.clone, params), optimizer.init(params))

    def on_lists(
        layout: Layout, grads: list, state: LookaheadState, params: list, **extra: Any
    ) -> tuple[list, LookaheadState]:
        count = state.count + 1
        last = count % every == 0
        updates, inner = update(layout, grads, state.inner, params, **extra)
        fast = [p + u for p, u in zip(params, updates, strict=True)]
        slow = lerp_leaves(state.slow, fast, state.hyperparams["slow_rate"])
        rows = zip(slow, params, updates, strict=True)
        updates = [torch.where(last, s - p, u) for s, p, u in rows]
        slow = [torch.where(last, new, old) for new, old in zip(slow, state.slow, strict=True)]
        return updates, LookaheadState(count, carry(state.hyperparams), slow, inner)

    return needs_params(around("lookahead", optimizer, init, on_lists, ("slow",)), "lookahead")


def with_state_dtype(optimizer: Optimizer, dtype: torch.dtype) -> Optimizer:
    """Keep the state of an optimizer in one dtype. The arithmetic is in the wider of this dtype and that of the params.

    For bfloat16 params, ``with_state_dtype(adam(), torch.float32)`` keeps the moments in float32, because in bfloat16
    small additions are lost. For float32 params, ``torch.bfloat16`` halves the memory of the state. Updates have the
    dtype of the params. Hyperparameters and counts keep their dtypes. Raises ``ValueError`` for an integer dtype.

    >>> import fnn
    >>> opt = with_state_dtype(fnn.optim.sgd(0.1, momentum=0.9), torch.float32)
    >>> params = {"w": torch.ones(1, dtype=torch.bfloat16)}
    >>> updates, state = opt.update(params, opt.init(params), params)
    >>> updates["w"].dtype, state[0].slots["momentum_buffer"]["w"].dtype
    (torch.bfloat16, torch.float32)
    """
    check_optimizers("with_state_dtype", optimizer)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"with_state_dtype needs a floating dtype, got {dtype}")
    inner = list_form(optimizer)

    def stored(x: Tensor) -> Tensor:
        return x.to(_as_complex(x, dtype)) if x.is_floating_point() or x.is_complex() else x

    def wide(x: Tensor) -> Tensor:
        return widen(x.to(torch.promote_types(x.dtype, dtype))) if x.is_floating_point() else x

    def init(params: Tree) -> Tree:
        state = _tree.map(lambda x: stored(x) if x.dim() else x, optimizer.init(params))
        to_dtype = lambda layout, slot, name, shape_of=None: _tree.map(stored, slot)
        return inner.map_slots(to_dtype, Layout.of(params), state)

    def on_lists(layout: Layout, grads: list, state: Tree, params: list | None, **extra: Any) -> tuple[list, Tree]:
        widest = [wide(x) for x in (grads if params is None else params)]
        common = max((x.dtype for x in widest), key=lambda found: found.itemsize, default=dtype)
        state = _tree.map(lambda x: x.to(common) if x.is_floating_point() and x.dim() else x, state)
        updates, state = inner.on_lists(
            layout, [wide(g) for g in grads], state, None if params is None else widest, **extra
        )
        return updates, _tree.map(lambda x: x.to(dtype) if x.is_floating_point() and x.dim() else x, state)

    return from_lists(init, on_lists, inner.map_slots)


def _as_complex(x: Tensor, dtype: torch.dtype) -> torch.dtype:
    return dtype.to_complex() if x.is_complex() else dtype
