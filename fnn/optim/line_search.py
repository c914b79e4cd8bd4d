"""A step length that satisfies the strong Wolfe conditions (Nocedal and Wright, 2006, algorithm 3.5)."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor


class _Trial(NamedTuple):
    t: Any
    loss: Any
    slope: Any
    """Along the direction."""
    point: Any


def strong_wolfe(
    evaluate: Callable[[Tensor], Any],
    start: Any,
    t: Tensor,
    direction: Tensor,
    slope: Tensor,
    max_evaluations: int,
    c1: float = 1e-4,
    c2: float = 0.9,
    tolerance: float = 1e-9,
) -> tuple[Any, Tensor, int]:
    """``(point, t, evaluations)`` with loss(t) <= loss(0) + c1 t slope and abs(slope(t)) <= c2 abs(slope).

    ``evaluate(x)`` gives a point with ``loss`` and ``gradient``; ``start`` is the point at t = 0, ``slope`` its
    gradient along ``direction``. A bracket is grown from the first t by cubic extrapolation, then narrowed by cubic
    interpolation, as in Schmidt's minFunc, which torch follows; when the evaluations are used up the best end of the
    bracket is returned. The search depends on values, so it runs in eager code only.

    >>> import torch
    >>> square = lambda x: _Point(x, (x**2).sum(), 2 * x)
    >>> _Point = NamedTuple("_Point", [("x", Tensor), ("loss", Tensor), ("gradient", Tensor)])
    >>> one, back = torch.ones(1), -torch.ones(1)
    >>> strong_wolfe(square, square(one), torch.tensor(0.5), back, torch.tensor(-2.0), 20)[1]
    tensor(0.5000)
    """
    calls = 0

    def attempt(t: Any) -> _Trial:
        nonlocal calls
        calls += 1
        point = evaluate(start.x + t * direction)
        return _Trial(t, float(point.loss), point.gradient @ direction, point)

    def too_high(trial: _Trial) -> bool:
        return bool(trial.loss > origin.loss + c1 * trial.t * slope)

    def flat(trial: _Trial) -> bool:
        return bool(abs(trial.slope) <= -c2 * slope)

    origin = _Trial(0.0, float(start.loss), slope, start)
    before, trial = origin, attempt(t)
    rounds = 0
    ends: list[_Trial] | None = None
    while rounds < max_evaluations:
        if too_high(trial) or (rounds > 1 and trial.loss >= before.loss):
            ends = [before, trial]
            break
        if flat(trial):
            return trial.point, trial.t, calls
        if trial.slope >= 0:
            ends = [before, trial]
            break
        reach = trial.t + 0.01 * (trial.t - before.t), trial.t * 10
        before, trial = trial, attempt(cubic_minimum(before, trial, *reach))
        rounds += 1
    if ends is None:
        ends = [origin, trial]

    stuck = False
    low, high = (0, 1) if ends[0].loss <= ends[1].loss else (1, 0)
    size = direction.abs().max()
    while rounds < max_evaluations and abs(ends[1].t - ends[0].t) * size >= tolerance:
        left, right = min(ends[0].t, ends[1].t), max(ends[0].t, ends[1].t)
        t = cubic_minimum(ends[0], ends[1], left, right)
        margin = 0.1 * (right - left)
        if min(right - t, t - left) < margin:  # too near to an end, which is allowed once
            if stuck or t >= right or t <= left:
                t = right - margin if abs(t - right) < abs(t - left) else left + margin
                stuck = False
            else:
                stuck = True
        else:
            stuck = False
        trial = attempt(t)
        rounds += 1
        if too_high(trial) or trial.loss >= ends[low].loss:
            ends[high] = trial
            low, high = (0, 1) if ends[0].loss <= ends[1].loss else (1, 0)
            continue
        done = flat(trial)
        if not done and trial.slope * (ends[high].t - ends[low].t) >= 0:
            ends[high] = ends[low]
        ends[low] = trial
        if done:
            break
    return ends[low].point, ends[low].t, calls


def cubic_minimum(first: _Trial, second: _Trial, low: Any, high: Any) -> Any:
    """Return the minimum in [low, high] of the cubic with these two values and slopes, or the middle if it has none."""
    if first.t > second.t:
        first, second = second, first
    d1 = first.slope + second.slope - 3 * (first.loss - second.loss) / (first.t - second.t)
    square = d1**2 - first.slope * second.slope
    if square < 0:
        return (low + high) / 2
    d2 = square.sqrt()
    share = (second.slope + d2 - d1) / (second.slope - first.slope + 2 * d2)
    return min(max(second.t - (second.t - first.t) * share, low), high)
