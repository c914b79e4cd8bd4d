"""Optimizers around optimizers: accumulation, guards, averages, look-ahead, and the dtype of the state."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fnn import tree as _tree
from fnn._numerics import widen
from fnn.optim.base import Optimizer, check_optimizers, from_lists, list_form, needs_params
from fnn.optim.hyperparams import as_hyperparam, carry, check_range, counter
from fnn.optim.layout import Layout
from fnn.tree import Tree, describe


def around(
    name: str, optimizer: Optimizer, init: Callable[[Tree], Tree], on_lists: Callable, slots: tuple[str, ...] = ()
) -> Optimizer:
    """An optimizer around another one.

    Its state is a NamedTuple whose field ``inner`` is the other's state, and in which ``slots`` are the fields that are
    trees like the params; ``on_lists`` is as in :class:`fnn.optim.base.ListForm`.
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
    """start + weight (end - start)."""
    return [a + (b - a) * weight.to(a.dtype) for a, b in zip(start, end, strict=True)]


def _count_of(value: Any, name: str) -> int:
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return value


class AccumulateState(NamedTuple):
    count: Tensor
    total: Tree
    """The sum of the gradients so far, in float32 for 16-bit params."""
    inner: Tree


def accumulate(optimizer: Optimizer, every: int) -> Optimizer:
    """One step of the optimizer with the mean gradient of each ``every`` calls; the calls between update by zero.

    It equals a step on the whole batch where micro-batches are of one size and the loss is a mean. The formula of the
    optimizer runs at every call and its result is used at the last: nothing depends on a value, so it compiles.

    >>> import fnn
    >>> opt = accumulate(fnn.optim.sgd(1.0), 2)
    >>> params = {"w": torch.zeros(1)}
    >>> first, state = opt.update({"w": torch.tensor([1.0])}, opt.init(params), params)
    >>> first, opt.update({"w": torch.tensor([3.0])}, state, params)[0]
    ({'w': tensor([0.])}, {'w': tensor([-2.])})
    """
    _count_of(every, "accumulate: every")
    update = list_form(optimizer).on_lists

    def init(params: Tree) -> AccumulateState:
        total = _tree.map(lambda p: torch.zeros_like(widen(p)), params)
        return AccumulateState(counter(params), total, optimizer.init(params))

    def on_lists(
        layout: Layout, grads: list, state: AccumulateState, params: list | None, **extra: Any
    ) -> tuple[list, AccumulateState]:
        count = state.count + 1
        total = [sum_ + g for sum_, g in zip(state.total, grads, strict=True)]
        last = count % every == 0
        updates, inner = update(layout, [x / every for x in total], state.inner, params, **extra)
        updates = [torch.where(last, x, 0.0) for x in updates]
        total = [torch.where(last, 0.0, x) for x in total]
        return updates, AccumulateState(count, total, _tree.where(last, inner, state.inner))

    return around("accumulate", optimizer, init, on_lists, ("total",))


class FiniteState(NamedTuple):
    skipped: Tensor
    """int64: updates left out so far."""
    in_a_row: Tensor
    inner: Tree


def apply_if_finite(optimizer: Optimizer, max_in_a_row: int = 5) -> Optimizer:
    """The optimizer's update where all gradients are finite; otherwise zero, with its state as it was.

    After ``max_in_a_row`` such calls one after the other the next is let through, so that a run that is lost is seen to
    be lost. ``state.skipped`` counts.

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
    """In float32 for 16-bit params, whose steps are too coarse for a running mean."""
    inner: Tree


def ema_params(optimizer: Optimizer, decay: float | Tensor = 0.999) -> Optimizer:
    """The optimizer, with a running mean of the params in ``state.average``: decay average + (1 - decay) params.

    The first update sets the average to the params that it leads to, as ``torch.optim.swa_utils.AveragedModel`` does
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


class LookaheadState(NamedTuple):
    count: Tensor
    hyperparams: dict[str, Tensor]
    slow: Tree
    inner: Tree


def lookahead(optimizer: Optimizer, every: int = 5, slow_rate: float | Tensor = 0.5) -> Optimizer:
    """Lookahead (Zhang et al., 2019): after each ``every`` steps, go back to slow + slow_rate (params - slow).

    ``state.slow`` are the slow params, which that point becomes.

    >>> import fnn
    >>> opt = lookahead(fnn.optim.sgd(1.0), every=1, slow_rate=0.5)
    >>> params = {"w": torch.ones(1)}
    >>> opt.update(params, opt.init(params), params)[0]
    {'w': tensor([-0.5000])}
    """
    _count_of(every, "lookahead: every")
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
    """The optimizer with the trees of its state in one dtype, and its arithmetic in that or the params', the wider.

    ``with_state_dtype(adam(), torch.float32)`` for bfloat16 params keeps the moments, which bfloat16 cannot add small
    numbers to, in float32; ``torch.bfloat16`` for float32 params halves the state's memory. Updates have the dtype of
    the params. Hyperparameters and counts stay as they are. Raises ``ValueError`` for an integer dtype.

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

    def kept(x: Tensor) -> Tensor:
        return x.to(_as_complex(x, dtype)) if x.is_floating_point() or x.is_complex() else x

    def wide(x: Tensor) -> Tensor:
        return widen(x.to(torch.promote_types(x.dtype, dtype))) if x.is_floating_point() else x

    def init(params: Tree) -> Tree:
        state = _tree.map(lambda x: kept(x) if x.dim() else x, optimizer.init(params))
        to_dtype = lambda layout, slot, name, shape_of=None: _tree.map(kept, slot)
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
