"""Learning rates as functions of the count of updates, which is 0 at the first update.

A schedule takes the count as a 0-d tensor or a number and returns a 0-d tensor (float64 where the device has it), so it
is traced, vmapped and differentiated like everything else; give it to an optimizer as its ``learning_rate``, or as any
other hyperparameter. Where ``torch.optim.lr_scheduler`` has the schedule, the values are its own after ``count`` calls
of ``scheduler.step()``.
"""

import bisect
import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from fnn.optim.hyperparams import as_time
from fnn.optim.plateau import Plateau, PlateauState, reduce_on_plateau

__all__ = [
    "Count", "Plateau", "PlateauState", "Schedule", "constant", "cosine", "cosine_restarts", "cyclic", "exponential",
    "inverse_sqrt", "join", "linear", "multistep", "one_cycle", "piecewise", "polynomial", "reduce_on_plateau", "step",
    "warmup", "warmup_stable_decay",
]  # fmt: skip

Count = int | float | Tensor
Schedule = Callable[[Count], Tensor]


def _time(count: Count) -> Tensor:
    return as_time(count) if isinstance(count, Tensor) else torch.tensor(float(count), dtype=torch.float64)


def _at_least(name: str, value: float, least: float) -> None:
    if value < least:
        raise ValueError(f"{name} must be at least {least:g}, got {value}")


def constant(value: float) -> Schedule:
    """The same value at every update.

    >>> constant(0.1)(7)
    tensor(0.1000, dtype=torch.float64)
    """
    return lambda count: torch.zeros_like(_time(count)) + value


def polynomial(start: float, end: float, steps: int, power: float = 1.0) -> Schedule:
    """end + (start - end) (1 - count / steps)^power, and end from ``steps`` on.

    With end 0 it is ``PolynomialLR``.

    >>> polynomial(1.0, 0.0, 10, power=2.0)(5)
    tensor(0.2500, dtype=torch.float64)
    """
    _at_least("steps", steps, 1)
    return lambda count: end + (start - end) * (1 - _time(count) / steps).clamp(min=0.0) ** power


def linear(start: float, end: float, steps: int) -> Schedule:
    """From start to end in a straight line over ``steps`` updates, then end. ``LinearLR``.

    >>> linear(0.0, 1.0, 4)(1)
    tensor(0.2500, dtype=torch.float64)
    """
    return polynomial(start, end, steps)


def exponential(start: float, gamma: float, every: int = 1, staircase: bool = False) -> Schedule:
    """start gamma^(count / every), the exponent rounded down with ``staircase``. ``ExponentialLR``, with every = 1.

    >>> exponential(1.0, 0.5)(2)
    tensor(0.2500, dtype=torch.float64)
    """
    _at_least("every", every, 1)

    def schedule(count: Count) -> Tensor:
        exponent = _time(count) / every
        return start * gamma ** (exponent.floor() if staircase else exponent)

    return schedule


def step(start: float, every: int, gamma: float = 0.1) -> Schedule:
    """start, times gamma after each ``every`` updates. ``StepLR``.

    >>> step(1.0, 10)(25)
    tensor(0.0100, dtype=torch.float64)
    """
    return exponential(start, gamma, every, staircase=True)


def multistep(start: float, milestones: Sequence[int], gamma: float = 0.1) -> Schedule:
    """start, times gamma at each milestone. ``MultiStepLR``.

    >>> multistep(1.0, [10, 20])(15)
    tensor(0.1000, dtype=torch.float64)
    """
    return lambda count: start * gamma ** _passed(_time(count), milestones)


def _passed(time: Tensor, milestones: Sequence[float]) -> Tensor:
    """How many milestones lie at or before this time."""
    passed = torch.zeros_like(time)
    for milestone in milestones:
        passed = passed + torch.where(time >= milestone, 1.0, 0.0)
    return passed


def piecewise(values: Sequence[float], milestones: Sequence[int]) -> Schedule:
    """values[0] before the first milestone, values[1] from it on, and so forth.

    >>> piecewise([1.0, 0.3, 0.1], [10, 20])(10)
    tensor(0.3000, dtype=torch.float64)
    """
    return join([constant(value) for value in values], milestones)


def cosine(start: float, steps: int, end: float = 0.0) -> Schedule:
    """end + (start - end) (1 + cos(pi count / steps)) / 2. ``CosineAnnealingLR``: beyond ``steps`` it rises again.

    To stay at the end, ``join([cosine(start, steps, end), constant(end)], [steps])``.

    >>> cosine(1.0, 10)(5)
    tensor(0.5000, dtype=torch.float64)
    """
    _at_least("steps", steps, 1)
    return lambda count: end + (start - end) * (1 + torch.cos(math.pi * _time(count) / steps)) / 2


def cosine_restarts(start: float, steps: int, multiply: int = 1, end: float = 0.0) -> Schedule:
    """Cosines one after the other, each ``multiply`` times longer than the last (Loshchilov and Hutter, 2017).

    ``CosineAnnealingWarmRestarts``.

    >>> cosine_restarts(1.0, 10)(15)
    tensor(0.5000, dtype=torch.float64)
    """
    _at_least("steps", steps, 1)
    _at_least("multiply", multiply, 1)

    def schedule(count: Count) -> Tensor:
        time = _time(count)
        if multiply == 1:
            inside, length = time % steps, torch.zeros_like(time) + steps
        else:
            # the index of the cycle is a rounded-down logarithm; 1e-9 makes it exact at the start of a cycle
            cycle = torch.floor(torch.log(time / steps * (multiply - 1) + 1) / math.log(multiply) + 1e-9)
            length = steps * multiply**cycle
            inside = time - steps * (multiply**cycle - 1) / (multiply - 1)
        return end + (start - end) * (1 + torch.cos(math.pi * inside / length)) / 2

    return schedule


def one_cycle(
    peak: float,
    steps: int,
    rise: float = 0.3,
    start_factor: float = 25.0,
    end_factor: float = 1e4,
    shape: Literal["cosine", "linear"] = "cosine",
    three_phase: bool = False,
) -> Schedule:
    """Up to the peak for a share ``rise`` of the steps, then down (Smith and Topin, 2018). ``OneCycleLR``.

    It starts at peak / start_factor and ends at peak / start_factor / end_factor. With ``three_phase`` it falls to its
    start as fast as it rose, and then to its end in the steps that are left.

    >>> one_cycle(1.0, 10, rise=0.5)(4)
    tensor(1., dtype=torch.float64)
    """
    _at_least("steps", steps, 1)
    first, last, top = peak / start_factor, peak / start_factor / end_factor, rise * steps - 1
    if three_phase and not 1 <= top <= steps / 2 - 1:
        raise ValueError(f"one_cycle with three phases needs 2 / steps <= rise <= 0.5, got {rise} for {steps} steps")

    def between(a: float, b: float, share: Tensor) -> Tensor:
        share = share.clamp(0.0, 1.0)
        return b + (a - b) * (1 + torch.cos(math.pi * share)) / 2 if shape == "cosine" else a + (b - a) * share

    def schedule(count: Count) -> Tensor:
        time = _time(count)
        if three_phase:
            back = between(peak, first, (time - top) / top)
            falling = torch.where(time <= 2 * top, back, between(first, last, (time - 2 * top) / (steps - 1 - 2 * top)))
        else:
            falling = between(peak, last, (time - top) / (steps - 1 - top))
        return torch.where(time <= top, between(first, peak, time / top) if top > 0 else falling, falling)

    return schedule


def cyclic(
    low: float,
    high: float,
    up: int,
    down: int | None = None,
    mode: Literal["triangular", "triangular2", "exp_range"] = "triangular",
    gamma: float = 1.0,
) -> Schedule:
    """A triangle wave: ``up`` updates from low to high, ``down`` back (Smith, 2017). ``CyclicLR``.

    The height of a triangle is high - low; with mode "triangular2" it is halved after each cycle, and with "exp_range"
    it is multiplied by gamma^count.

    >>> cyclic(0.0, 1.0, 10)(25)
    tensor(0.5000, dtype=torch.float64)
    >>> cyclic(0.0, 1.0, 10, mode="triangular2")(30)
    tensor(0.5000, dtype=torch.float64)
    """
    down = up if down is None else down
    _at_least("up", up, 1)
    _at_least("down", down, 1)
    factors = {
        "triangular": lambda time: 1.0,
        "triangular2": lambda time: 0.5 ** (time / (up + down)).floor(),
        "exp_range": lambda time: gamma**time,
    }
    if mode not in factors:
        raise ValueError(f"mode must be one of {list(factors)}, got {mode!r}")

    def schedule(count: Count) -> Tensor:
        time = _time(count)
        inside = time % (up + down)
        height = (high - low) * factors[mode](time)
        return low + height * torch.where(inside <= up, inside / up, (up + down - inside) / down)

    return schedule


def warmup(schedule: Schedule, steps: int, start_factor: float = 0.0) -> Schedule:
    """The schedule, times a factor that rises from ``start_factor`` to 1 over the first ``steps`` updates.

    The schedule starts at the first update. To start it after the rise, write
    ``join([linear(0.0, rate, steps), schedule], [steps])``.

    >>> warmup(constant(0.1), 10)(5)
    tensor(0.0500, dtype=torch.float64)
    """
    rise = linear(start_factor, 1.0, steps)
    return lambda count: schedule(count) * rise(count)


def inverse_sqrt(peak: float, warmup_steps: int) -> Schedule:
    """peak min(count / warmup_steps, sqrt(warmup_steps / count)) (Vaswani et al., 2017).

    >>> inverse_sqrt(1.0, 100)(400)
    tensor(0.5000, dtype=torch.float64)
    """
    _at_least("warmup_steps", warmup_steps, 1)

    def schedule(count: Count) -> Tensor:
        time = _time(count)
        return peak * torch.minimum(time / warmup_steps, (warmup_steps / time.clamp(min=1.0)).sqrt())

    return schedule


def warmup_stable_decay(
    peak: float, warmup_steps: int, stable_steps: int, decay_steps: int, end: float = 0.0
) -> Schedule:
    """A rise from 0, a plateau, and a straight fall to ``end`` (Hu et al., 2024).

    >>> warmup_stable_decay(1.0, 10, 80, 10)(95)
    tensor(0.5000, dtype=torch.float64)
    """
    parts = [linear(0.0, peak, warmup_steps), constant(peak), linear(peak, end, decay_steps)]
    return join(parts, [warmup_steps, warmup_steps + stable_steps])


def join(schedules: Sequence[Schedule], milestones: Sequence[int]) -> Schedule:
    """schedules[0] until the first milestone, then schedules[1], whose count starts at 0 there, and so on.

    ``SequentialLR``. Raises ``ValueError`` unless there is one milestone less than schedules, in rising order.

    >>> join([constant(1.0), linear(1.0, 0.0, 10)], [100])(105)
    tensor(0.5000, dtype=torch.float64)
    """
    milestones = list(milestones)
    if len(milestones) != len(schedules) - 1 or milestones != sorted(set(milestones)):
        raise ValueError(
            f"{len(schedules)} schedules are joined at {len(schedules) - 1} rising milestones, got {milestones}"
        )

    def schedule(count: Count) -> Tensor:
        if not isinstance(count, Tensor):
            place = bisect.bisect_right(milestones, count)
            return schedules[place](count - ([0, *milestones])[place])
        value = schedules[0](count)
        for milestone, later in zip(milestones, schedules[1:], strict=True):
            value = torch.where(count >= milestone, later((count - milestone).clamp(min=0)), value)
        return value

    return schedule
