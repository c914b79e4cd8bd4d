"""A learning rate that is reduced when a metric stops improving."""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor


class PlateauState(NamedTuple):
    learning_rate: Tensor
    best: Tensor
    bad: Tensor
    """int64: calls without improvement in a row."""
    cooldown: Tensor


class Plateau(NamedTuple):
    init: Callable[[], PlateauState]
    update: Callable[[Any, PlateauState], tuple[Tensor, PlateauState]]


def reduce_on_plateau(
    learning_rate: float,
    factor: float = 0.1,
    patience: int = 10,
    threshold: float = 1e-4,
    threshold_mode: Literal["rel", "abs"] = "rel",
    cooldown: int = 0,
    min_lr: float = 0.0,
    eps: float = 1e-8,
    mode: Literal["min", "max"] = "min",
) -> Plateau:
    """Reduce a learning rate when a metric stops improving: ``ReduceLROnPlateau`` as a pair of pure functions.

    ``state = plateau.init()``; then, usually once an epoch, ``learning_rate, state = plateau.update(value, state)`` and
    ``opt_state = fnn.optim.set_hyperparams(opt_state, learning_rate=learning_rate)``. After more than ``patience``
    consecutive values that are not better than the best by ``threshold`` (relative or absolute), the rate is multiplied
    by ``factor``, down to ``min_lr``, and the next ``cooldown`` values are not counted. Changes below ``eps`` are not
    made.

    >>> plateau = reduce_on_plateau(1.0, factor=0.5, patience=0)
    >>> _, state = plateau.update(3.0, plateau.init())
    >>> plateau.update(3.0, state)[0]
    tensor(0.5000, dtype=torch.float64)
    """
    if not 0 < factor < 1:
        raise ValueError(f"factor must be in (0, 1), got {factor}")
    if mode not in ("min", "max") or threshold_mode not in ("rel", "abs"):
        raise ValueError(f'mode is "min" or "max" and threshold_mode "rel" or "abs", got {mode!r}, {threshold_mode!r}')
    sign = 1.0 if mode == "min" else -1.0

    def init() -> PlateauState:
        rate = torch.as_tensor(learning_rate, dtype=torch.float64).clone()
        worst = torch.tensor(sign * math.inf, dtype=torch.float64)
        return PlateauState(rate, worst, torch.zeros((), dtype=torch.int64), torch.zeros((), dtype=torch.int64))

    def update(value: float | Tensor, state: PlateauState) -> tuple[Tensor, PlateauState]:
        value = torch.as_tensor(value).to(state.best)
        bound = state.best * (1 - sign * threshold) if threshold_mode == "rel" else state.best - sign * threshold
        better = sign * value < sign * bound
        bad = torch.where(better, 0, state.bad + 1)
        bad = torch.where(state.cooldown > 0, 0, bad)
        cooling = (state.cooldown - 1).clamp(min=0)
        fall = bad > patience
        lower = (state.learning_rate * factor).clamp(min=min_lr)
        rate = torch.where(fall & (state.learning_rate - lower > eps), lower, state.learning_rate)
        best = torch.where(better, value, state.best)
        return rate.clone(), PlateauState(rate, best, torch.where(fall, 0, bad), torch.where(fall, cooldown, cooling))

    return Plateau(init, update)
