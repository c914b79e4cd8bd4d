"""Every schedule against torch.optim.lr_scheduler over 200 steps, or against numbers counted by hand."""

import math
from collections.abc import Callable

import pytest
import torch
from torch.optim import lr_scheduler as theirs

import fnn
from fnn.optim import schedules as ours

RATE = 0.3
TABLE: dict[str, tuple[Callable, Callable]] = {
    "constant": (ours.constant(RATE), lambda o: theirs.ConstantLR(o, 1.0)),
    "linear": (ours.linear(RATE * 0.2, RATE * 0.9, 30), lambda o: theirs.LinearLR(o, 0.2, 0.9, 30)),
    "polynomial": (ours.polynomial(RATE, 0.0, 150, 1.7), lambda o: theirs.PolynomialLR(o, 150, 1.7)),
    "exponential": (ours.exponential(RATE, 0.97), lambda o: theirs.ExponentialLR(o, 0.97)),
    "step": (ours.step(RATE, 30, 0.4), lambda o: theirs.StepLR(o, 30, 0.4)),
    "multistep": (ours.multistep(RATE, [20, 70, 71], 0.3), lambda o: theirs.MultiStepLR(o, [20, 70, 71], 0.3)),
    "cosine": (ours.cosine(RATE, 60, 0.01), lambda o: theirs.CosineAnnealingLR(o, 60, 0.01)),
    "restarts": (ours.cosine_restarts(RATE, 30, 1, 0.01), lambda o: theirs.CosineAnnealingWarmRestarts(o, 30, 1, 0.01)),
    "longer restarts": (ours.cosine_restarts(RATE, 10, 2), lambda o: theirs.CosineAnnealingWarmRestarts(o, 10, 2)),
    "triple restarts": (ours.cosine_restarts(RATE, 5, 3), lambda o: theirs.CosineAnnealingWarmRestarts(o, 5, 3)),
    "one cycle": (ours.one_cycle(RATE, 201), lambda o: theirs.OneCycleLR(o, RATE, 201)),
    "one cycle, linear": (
        ours.one_cycle(RATE, 220, 0.4, 10.0, 100.0, "linear"),
        lambda o: theirs.OneCycleLR(o, RATE, 220, None, None, 0.4, "linear", div_factor=10, final_div_factor=100),
    ),
    "cyclic": (ours.cyclic(0.1, 0.5, 15, 25), lambda o: theirs.CyclicLR(o, 0.1, 0.5, 15, 25, cycle_momentum=False)),
    "cyclic, halved": (
        ours.cyclic(0.1, 0.5, 15, 25, "triangular2"),
        lambda o: theirs.CyclicLR(o, 0.1, 0.5, 15, 25, "triangular2", cycle_momentum=False),
    ),
    "cyclic, exponential": (
        ours.cyclic(0.1, 0.5, 15, mode="exp_range", gamma=0.98),
        lambda o: theirs.CyclicLR(o, 0.1, 0.5, 15, mode="exp_range", gamma=0.98, cycle_momentum=False),
    ),
    "one cycle, three phases": (
        ours.one_cycle(RATE, 201, three_phase=True),
        lambda o: theirs.OneCycleLR(o, RATE, 201, three_phase=True),
    ),
    "one cycle, three phases, linear": (
        ours.one_cycle(RATE, 220, 0.4, 10.0, 100.0, "linear", True),
        lambda o: theirs.OneCycleLR(
            o, RATE, 220, None, None, 0.4, "linear", div_factor=10, final_div_factor=100, three_phase=True
        ),
    ),
    "join": (
        ours.join([ours.linear(RATE * 0.1, RATE, 20), ours.exponential(RATE, 0.9)], [20]),
        lambda o: theirs.SequentialLR(o, [theirs.LinearLR(o, 0.1, 1.0, 20), theirs.ExponentialLR(o, 0.9)], [20]),
    ),
    "warm-up": (
        ours.warmup(ours.exponential(RATE, 0.98), 25, 0.1),
        lambda o: theirs.ChainedScheduler([theirs.LinearLR(o, 0.1, 1.0, 25), theirs.ExponentialLR(o, 0.98)]),
    ),
    "piecewise": (
        ours.piecewise([RATE, 0.2 * RATE, 0.5 * RATE], [40, 90]),
        lambda o: theirs.LambdaLR(o, lambda t: 1.0 if t < 40 else 0.2 if t < 90 else 0.5),
    ),
    "inverse square root": (
        ours.inverse_sqrt(RATE, 40),
        lambda o: theirs.LambdaLR(o, lambda t: min(t / 40, math.sqrt(40 / max(t, 1)))),
    ),
    "warm-up, stable, decay": (
        ours.warmup_stable_decay(RATE, 20, 100, 40, 0.1 * RATE),
        lambda o: theirs.LambdaLR(o, lambda t: t / 20 if t < 20 else 1 - 0.9 * min(max(t - 120, 0) / 40, 1.0)),
    ),
}


@pytest.mark.filterwarnings("ignore:Detected call of")
@pytest.mark.parametrize("name", TABLE)
def test_two_hundred_steps_equal_torch(name: str) -> None:
    schedule, make = TABLE[name]
    optimizer = torch.optim.SGD([torch.zeros(1)], RATE)
    scheduler = make(optimizer)
    for count in range(200):
        expected = optimizer.param_groups[0]["lr"]
        for given in (count, torch.tensor(count)):
            value = schedule(given)
            assert value.shape == ()
            assert value.dtype == torch.float64
            assert float(value) == pytest.approx(expected, rel=1e-9, abs=1e-12), count
        scheduler.step()


@pytest.mark.parametrize("name", TABLE)
def test_a_schedule_is_a_function_of_tensors(name: str) -> None:
    schedule, _ = TABLE[name]
    counts = torch.arange(0, 200, 7)
    alone = torch.stack([schedule(count) for count in counts])
    torch.testing.assert_close(fnn.vmap(schedule)(counts), alone)
    step = fnn.jit(schedule)
    assert [float(step(count)) for count in counts] == pytest.approx(alone.tolist(), rel=1e-12)
    assert fnn.compile_count(step) == 1


@pytest.mark.parametrize(
    "settings",
    [{}, {"patience": 2, "cooldown": 3}, {"threshold_mode": "abs", "threshold": 0.05}, {"min_lr": 0.05, "patience": 1},
     {"mode": "max", "patience": 3}, {"mode": "max", "threshold_mode": "abs", "patience": 1, "factor": 0.7},
     *[{"mode": mode, "threshold_mode": kind, "threshold": 0.3, "patience": patience, "cooldown": patience}
       for mode in ("min", "max") for kind in ("rel", "abs") for patience in (0, 4)]],
)  # fmt: skip
def test_reduce_on_plateau_equals_torch(settings: dict) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1)], RATE)
    scheduler = theirs.ReduceLROnPlateau(optimizer, **settings)
    plateau = ours.reduce_on_plateau(RATE, **settings)
    state = plateau.init()
    generator = torch.Generator().manual_seed(0)
    sign = -1 if settings.get("mode") == "max" else 1
    rates = set()
    for i in range(200):
        value = sign * (1 / (1 + 0.1 * i)) + 0.05 * float(torch.rand((), generator=generator))
        scheduler.step(value)
        rate, state = plateau.update(value, state)
        assert float(rate) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
        rates.add(float(rate))
    assert len(rates) > 1


def test_a_schedule_drives_an_optimizer_and_is_logged() -> None:
    params = {"w": torch.ones(2, dtype=torch.float64)}
    opt = fnn.optim.chain(fnn.optim.clip(10.0), fnn.optim.sgd(ours.linear(1.0, 0.0, 4), momentum=0.5))
    state = opt.init(params)
    seen = []
    for _ in range(5):
        updates, state = opt.update({"w": torch.ones(2, dtype=torch.float64)}, state, params)
        seen.append(float(fnn.optim.get_hyperparams(state)["learning_rate"]))
    assert seen == pytest.approx([1.0, 0.75, 0.5, 0.25, 0.0])
    assert float(updates["w"][0]) == 0.0
    with pytest.raises(ValueError, match="decided by a schedule"):
        fnn.optim.set_hyperparams(state, learning_rate=0.1)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: ours.join([ours.constant(1.0)], [3]), "1 schedules are joined at 0 rising milestones"),
        (lambda: ours.join([ours.constant(1.0)] * 3, [5, 3]), "rising"),
        (lambda: ours.linear(1.0, 0.0, 0), "steps must be at least 1, got 0"),
        (lambda: ours.reduce_on_plateau(0.1, factor=2.0), r"factor must be in \(0, 1\), got 2"),
        (lambda: ours.reduce_on_plateau(0.1, mode="best"), "mode"),
    ],
)
def test_bad_schedules_are_sentences(call: Callable, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call()
