"""Optimizers around optimizers: averages, look-ahead, sharpness, accumulation, guards, and the dtype of the state."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fnn import tree as _tree
from fnn.optim.aliases import descend, sgd
from fnn.optim.base import Number, Optimizer, apply_updates, as_hyperparam, check_grads, check_range
from fnn.optim.hyperparams import get_hyperparams
from fnn.optim.scale_by import scale_by_rms
from fnn.tree import Tree


def _choose(condition: Tensor, first: Tree, second: Tree) -> Tree:
    return _tree.map(lambda a, b: torch.where(condition, a, b), first, second)


def _device(params: Tree) -> torch.device:
    leaves = _tree.leaves(params)
    return leaves[0].device if leaves else torch.device("cpu")


def _count(params: Tree) -> Tensor:
    return torch.zeros((), dtype=torch.int64, device=_device(params))


def _mix(first: Tree, second: Tree, share: Tensor) -> Tree:
    """first + share (second - first)."""
    return _tree.map(lambda a, b: a + (b - a) * share.to(a.dtype), first, second)


class AccumulateState(NamedTuple):
    count: Tensor
    total: Tree
    inner: Tree


def accumulate(optimizer: Optimizer, every: int) -> Optimizer:
    """One step of the optimizer with the mean gradient of each ``every`` calls; the calls between update by zero.

    Equal to a step on the whole batch where micro-batches are of one size and the loss is a mean. The formula of the
    optimizer runs at every call, its result is taken at the last: nothing depends on a value, so it compiles.

    >>> opt = accumulate(sgd(1.0), 2)
    >>> params = {"w": torch.zeros(1)}
    >>> first, state = opt.update({"w": torch.tensor([1.0])}, opt.init(params), params)
    >>> first, opt.update({"w": torch.tensor([3.0])}, state, params)[0]
    ({'w': tensor([0.])}, {'w': tensor([-2.])})
    """
    if every < 1:
        raise ValueError(f"accumulate: every must be at least 1, got {every}")

    def init(params: Tree) -> AccumulateState:
        return AccumulateState(_count(params), _tree.zeros_like(params), optimizer.init(params))

    def update(grads: Tree, state: AccumulateState, params: Tree = None, **extra) -> tuple[Tree, AccumulateState]:
        check_grads(grads, state.total)
        count = state.count + 1
        total = _tree.add(state.total, grads)
        last = count % every == 0
        updates, inner = optimizer.update(_tree.scale(1 / every, total), state.inner, params, **extra)
        updates = _choose(last, updates, _tree.zeros_like(updates))
        total = _choose(last, _tree.zeros_like(total), total)
        return updates, AccumulateState(count, total, _choose(last, inner, state.inner))

    return Optimizer(init, update)


class FiniteState(NamedTuple):
    skipped: Tensor
    """int64: updates left out so far."""
    in_a_row: Tensor
    inner: Tree


def apply_if_finite(optimizer: Optimizer, max_in_a_row: int = 5) -> Optimizer:
    """The optimizer's update where all gradients are finite; otherwise zero, and its state as it was.

    After ``max_in_a_row`` such calls one after the other the next is let through, so that a run that is lost is seen to
    be lost. ``state.skipped`` counts.

    >>> opt = apply_if_finite(sgd(1.0))
    >>> params = {"w": torch.zeros(1)}
    >>> updates, state = opt.update({"w": torch.tensor([float("nan")])}, opt.init(params), params)
    >>> updates, state.skipped
    ({'w': tensor([0.])}, tensor(1))
    """

    def init(params: Tree) -> FiniteState:
        return FiniteState(_count(params), _count(params), optimizer.init(params))

    def update(grads: Tree, state: FiniteState, params: Tree = None, **extra) -> tuple[Tree, FiniteState]:
        finite = torch.ones((), dtype=torch.bool, device=_device(grads))
        for leaf in _tree.leaves(grads):
            finite = finite & leaf.isfinite().all()
        in_a_row = torch.where(finite, 0, state.in_a_row + 1)
        let_through = finite | (in_a_row > max_in_a_row)
        updates, inner = optimizer.update(grads, state.inner, params, **extra)
        updates = _choose(let_through, updates, _tree.zeros_like(updates))
        skipped = state.skipped + torch.where(let_through, 0, 1)
        return updates, FiniteState(skipped, in_a_row, _choose(let_through, inner, state.inner))

    return Optimizer(init, update)


class AverageState(NamedTuple):
    hyperparams: dict[str, Tensor]
    average: Tree
    inner: Tree


def ema_params(optimizer: Optimizer, decay: float | Tensor = 0.999) -> Optimizer:
    """The optimizer, with a running mean of the params in ``state.average``: decay average + (1 - decay) params.

    It starts at the first params, like ``torch.optim.swa_utils.AveragedModel``; use it to predict.

    >>> opt = ema_params(sgd(1.0), decay=0.5)
    >>> params = {"w": torch.ones(1)}
    >>> opt.update(params, opt.init(params), params)[1].average
    {'w': tensor([0.5000])}
    """
    check_range("decay", decay, 0.0, 1.0)

    def init(params: Tree) -> AverageState:
        hyperparams = {"decay": as_hyperparam("decay", decay, _device(params))}
        return AverageState(hyperparams, _tree.map(torch.clone, params), optimizer.init(params))

    def update(grads: Tree, state: AverageState, params: Tree, **extra) -> tuple[Tree, AverageState]:
        updates, inner = optimizer.update(grads, state.inner, params, **extra)
        average = _mix(state.average, apply_updates(params, updates), 1 - state.hyperparams["decay"])
        return updates, AverageState(state.hyperparams, average, inner)

    return Optimizer(init, update)


class LookaheadState(NamedTuple):
    count: Tensor
    hyperparams: dict[str, Tensor]
    slow: Tree
    inner: Tree


def lookahead(optimizer: Optimizer, every: int = 5, slow_rate: float | Tensor = 0.5) -> Optimizer:
    """Lookahead (Zhang et al., 2019): after each ``every`` steps, go back to slow + slow_rate (params - slow).

    ``state.slow`` are the slow params, which that point becomes.

    >>> opt = lookahead(sgd(1.0), every=1, slow_rate=0.5)
    >>> params = {"w": torch.ones(1)}
    >>> opt.update(params, opt.init(params), params)[0]
    {'w': tensor([-0.5000])}
    """
    if every < 1:
        raise ValueError(f"lookahead: every must be at least 1, got {every}")

    def init(params: Tree) -> LookaheadState:
        hyperparams = {"slow_rate": as_hyperparam("slow_rate", slow_rate, _device(params))}
        return LookaheadState(_count(params), hyperparams, _tree.map(torch.clone, params), optimizer.init(params))

    def update(grads: Tree, state: LookaheadState, params: Tree, **extra) -> tuple[Tree, LookaheadState]:
        count = state.count + 1
        last = count % every == 0
        updates, inner = optimizer.update(grads, state.inner, params, **extra)
        slow = _mix(state.slow, apply_updates(params, updates), state.hyperparams["slow_rate"])
        updates = _choose(last, _tree.sub(slow, params), updates)
        return updates, LookaheadState(count, state.hyperparams, _choose(last, slow, state.slow), inner)

    return Optimizer(init, update)


class SAMState(NamedTuple):
    hyperparams: dict[str, Tensor]
    inner: Tree


def sam(optimizer: Optimizer, rho: float | Tensor = 0.05, adaptive: bool = False) -> Optimizer:
    """Sharpness-aware minimisation (Foret et al., 2021): the gradient at the worst point within a radius of rho.

    ``update(grads, state, params, loss=lambda params: ...)`` takes the loss as a function of the params alone, on the
    same batch: g' = grad loss(params + rho g / norm(g)) goes into the optimizer. With ``adaptive`` (Kwon et al., 2021)
    the point is params + rho p^2 g / norm(p g). Cost: one more gradient.

    >>> opt = sam(sgd(1.0), rho=1.0)
    >>> params = {"w": torch.ones(1)}
    >>> loss = lambda params: (params["w"] ** 2).sum()
    >>> opt.update(torch.func.grad(loss)(params), opt.init(params), params, loss=loss)[0]
    {'w': tensor([-4.])}
    """
    check_range("rho", rho)

    def init(params: Tree) -> SAMState:
        return SAMState({"rho": as_hyperparam("rho", rho, _device(params))}, optimizer.init(params))

    def update(
        grads: Tree, state: SAMState, params: Tree, *, loss: Callable[[Tree], Tensor] | None = None, **extra: Any
    ) -> tuple[Tree, SAMState]:
        loss = needs_loss("sam", loss)
        check_grads(grads, params)
        weighted = _tree.map(lambda g, p: g * p.abs() if adaptive else g, grads, params)
        norm = _tree.global_norm(weighted)
        factor = torch.where(norm > 0, state.hyperparams["rho"] / torch.where(norm > 0, norm, 1.0), 0.0)
        up = _tree.map(lambda g, p: (g * p.abs() if adaptive else g) * factor.to(g.dtype), weighted, params)
        worst = torch.func.grad(loss)(_tree.add(params, up))
        updates, inner = optimizer.update(worst, state.inner, params, loss=loss, **extra)
        return updates, SAMState(state.hyperparams, inner)

    return Optimizer(init, update)


def needs_loss(name: str, loss: Callable | None) -> Callable:
    if loss is None:
        raise ValueError(
            f"{name} looks at the loss at other params; write update(grads, opt_state, params, "
            "loss=lambda params: loss(params, batch))"
        )
    return loss


class ScheduleFreeState(NamedTuple):
    hyperparams: dict[str, Tensor]
    largest_rate: Tensor
    weights: Tensor
    base: Tree
    """z, the iterates of the optimizer within."""
    inner: Tree


def schedule_free(optimizer: Optimizer, beta1: float | Tensor = 0.9, weight_power: float = 2.0) -> Optimizer:
    """Schedule-free learning (Defazio et al., 2024): an average x of the iterates z takes the place of a decaying rate.

    The params that are trained, and that gradients are taken at, are y = beta1 x + (1 - beta1) z; predict with x, from
    :func:`schedule_free_params`. z follows ``optimizer``, which must have a hyperparameter ``learning_rate`` and no
    momentum; x = (1 - c) x + c z with c = w / (sum of all w), w = (largest learning rate so far)^weight_power.

    >>> opt = schedule_free(sgd(1.0), beta1=0.5)
    >>> params = {"w": torch.ones(1)}
    >>> opt.update(params, opt.init(params), params)[0]
    {'w': tensor([-1.])}
    """
    check_range("beta1", beta1, 0.0, 1.0)
    if not isinstance(beta1, Tensor) and beta1 == 0:
        raise ValueError("schedule_free needs beta1 > 0, got 0; with 0 the params hold nothing of the average")

    def init(params: Tree) -> ScheduleFreeState:
        numbers = {"interpolation": as_hyperparam("beta1", beta1, _device(params))}
        zero = torch.zeros_like(numbers["interpolation"])
        return ScheduleFreeState(numbers, zero, zero.clone(), _tree.map(torch.clone, params), optimizer.init(params))

    def update(grads: Tree, state: ScheduleFreeState, params: Tree, **extra) -> tuple[Tree, ScheduleFreeState]:
        updates, inner = optimizer.update(grads, state.inner, params, **extra)
        rate = torch.maximum(state.largest_rate, get_hyperparams(inner)["learning_rate"])
        weights = state.weights + rate**weight_power
        share = torch.where(weights > 0, rate**weight_power / torch.where(weights > 0, weights, 1.0), 0.0)
        base = apply_updates(state.base, updates)
        x = _mix(schedule_free_params(state, params), base, share)
        y = _mix(base, x, state.hyperparams["interpolation"])
        return _tree.sub(y, params), ScheduleFreeState(state.hyperparams, rate, weights, base, inner)

    return Optimizer(init, update)


def schedule_free_params(state: ScheduleFreeState, params: Tree) -> Tree:
    """The average x, which predicts: (y - (1 - beta1) z) / beta1, from the state and the params y.

    >>> opt = schedule_free(sgd(1.0))
    >>> params = {"w": torch.ones(1)}
    >>> schedule_free_params(opt.init(params), params)
    {'w': tensor([1.])}
    """
    beta1 = state.hyperparams["interpolation"]
    return _tree.map(lambda y, z: z + (y - z) / beta1.to(z.dtype), params, state.base)


def schedule_free_sgd(
    learning_rate: Number = 1.0, beta1: float | Tensor = 0.9, weight_decay: Number = 0.0, weight_power: float = 2.0
) -> Optimizer:
    """SGD without a schedule; see :func:`schedule_free`. A warm-up may be given as the learning rate.

    >>> opt = schedule_free_sgd(1.0)
    >>> params = {"w": torch.ones(1)}
    >>> opt.update(params, opt.init(params), params)[0]
    {'w': tensor([-1.])}
    """
    return schedule_free(sgd(learning_rate, weight_decay=weight_decay), beta1, weight_power)


def schedule_free_adamw(
    learning_rate: Number = 2.5e-3,
    betas: tuple[float, Number] = (0.9, 0.999),
    eps: Number = 1e-8,
    weight_decay: Number = 0.0,
    weight_power: float = 2.0,
) -> Optimizer:
    """AdamW without a schedule, and without Adam's momentum, whose part the average plays; see :func:`schedule_free`.

    >>> opt = schedule_free_adamw(0.1)
    >>> params = {"w": torch.ones(1)}
    >>> opt.update(params, opt.init(params), params)[0]
    {'w': tensor([-0.1000])}
    """
    direction = scale_by_rms(betas[1], eps, debias=True)
    inner = descend(direction, learning_rate=learning_rate, weight_decay=weight_decay, decoupled=True)
    return schedule_free(inner, betas[0], weight_power)


def with_state_dtype(optimizer: Optimizer, dtype: torch.dtype) -> Optimizer:
    """The optimizer with the trees of its state in one dtype, and its arithmetic in that or the params', the wider.

    ``with_state_dtype(adam(), torch.float32)`` for bfloat16 params keeps the moments, which bfloat16 cannot add small
    numbers to, in float32; ``torch.bfloat16`` for float32 params halves the state's memory. Updates have the dtype of
    the params. Hyperparameters and other 0-d leaves stay as they are. Raises ``ValueError`` for an integer dtype.

    >>> opt = with_state_dtype(sgd(0.1, momentum=0.9), torch.float32)
    >>> params = {"w": torch.ones(1, dtype=torch.bfloat16)}
    >>> updates, state = opt.update(params, opt.init(params), params)
    >>> updates["w"].dtype, state[0].slots["momentum_buffer"]["w"].dtype
    (torch.bfloat16, torch.float32)
    """
    if not dtype.is_floating_point:
        raise ValueError(f"with_state_dtype needs a floating dtype, got {dtype}")

    def widen(tree: Tree) -> Tree:
        return _tree.map(lambda x: x.to(torch.promote_types(x.dtype, dtype)) if x.is_floating_point() else x, tree)

    def stored(state: Tree, kept: torch.dtype) -> Tree:
        return _tree.map(lambda x: x.to(kept) if x.is_floating_point() and x.dim() else x, state)

    def init(params: Tree) -> Tree:
        return stored(optimizer.init(widen(params)), dtype)

    def update(grads: Tree, state: Tree, params: Tree, **extra) -> tuple[Tree, Tree]:
        check_grads(grads, params)
        wide = widen(params)
        common = _tree.leaves(wide)[0].dtype if _tree.leaves(wide) else dtype
        like = _tree.map(lambda g, p: g.to(p.dtype), grads, wide)
        updates, state = optimizer.update(like, stored(state, common), wide, **extra)
        return _tree.map(lambda u, p: u.to(p.dtype), updates, params), stored(state, dtype)

    return Optimizer(init, update)
