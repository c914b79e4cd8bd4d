"""Line searches: their conditions, how many losses they evaluate, and what they do when no step is good."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import fnn
from fnn import optim, tree

SEARCHES = {
    "backtracking": lambda opt, steps, **given: optim.backtracking_line_search(opt, steps, **given),
    "zoom": lambda opt, steps, **given: optim.zoom_line_search(opt, steps, **given),
}
BOTH = pytest.mark.parametrize("make", SEARCHES.values(), ids=SEARCHES)
PARAMS = {"w": torch.tensor([1.5, -0.7], dtype=torch.float64), "z": torch.tensor(0.4, dtype=torch.float64)}


def loss(params: dict[str, Tensor]) -> Tensor:
    w, z = params["w"], params["z"]
    return (w**4).sum() + 3 * (w[0] - z) ** 2 + (z * w).sin().sum()


@pytest.mark.parametrize("rate", [0.01, 1.0, 30.0])
def test_a_step_satisfies_its_conditions(rate: float) -> None:
    """Armijo's condition for backtracking, and both strong Wolfe conditions for zoom."""
    zoom = optim.zoom_line_search(optim.sgd(rate), 40, slope_rtol=0.2, curv_rtol=0.3, approx_dec_rtol=None)
    for opt in (optim.backtracking_line_search(optim.sgd(rate), 40, 0.2), zoom):
        params, state = PARAMS, opt.init(PARAMS)
        for _ in range(5):
            grads = fnn.grad(loss)(params)
            updates, state = opt.update(grads, state, params, loss=loss)
            after = optim.apply_updates(params, updates)
            slope = float(tree.dot(grads, updates))
            assert slope < 0
            assert float(loss(after)) <= float(loss(params)) + 0.2 * slope + 1e-14
            assert float(state.value) == pytest.approx(float(loss(after)), rel=1e-14)
            if opt is zoom:
                assert abs(float(tree.dot(fnn.grad(loss)(after), updates))) <= 0.3 * abs(slope)
            assert int(state.failures) == 0
            params = after


@BOTH
def test_eager_code_stops_early_and_compiled_code_does_not(make: Callable) -> None:
    opt = make(optim.sgd(0.1), 4)
    calls = []

    def counted(params: dict) -> Tensor:
        calls.append(1)
        return loss(params)

    def step(params: dict, state: optim.State) -> tuple:
        updates, state = opt.update(fnn.grad(loss)(params), state, params, loss=counted, value=loss(params))
        return optim.apply_updates(params, updates), state

    expected = step(PARAMS, opt.init(PARAMS))
    assert len(calls) == int(expected[1].evaluations) < 4
    calls.clear()
    jitted = fnn.jit(step)
    given = jitted(PARAMS, opt.init(PARAMS))
    assert len(calls) >= 4
    for _ in range(2):
        assert tree.max_difference(given, expected) == 0
        given, expected = jitted(*given), step(*expected)


@BOTH
def test_a_loss_that_is_not_finite_gives_no_step_and_the_next_search_starts_anew(make: Callable) -> None:
    params = {"w": torch.ones(2)}
    opt = make(optim.sgd(1.0), 3)
    state = opt.init(params)
    broken = lambda p: torch.where(p["w"].sum() == 2, p["w"].sum(), math.nan)
    updates, state = opt.update({"w": torch.ones(2)}, state, params, loss=broken)
    assert not bool(updates["w"].any())
    assert float(state.step_size) == 0
    assert int(state.failures) == 1
    whole = lambda p: (p["w"] ** 2).sum() / 4
    updates, state = opt.update(fnn.grad(whole)(params), state, params, loss=whole)
    assert bool((updates["w"] < 0).all())
    assert int(state.failures) == 1


def test_the_best_safe_step_is_used_when_the_trials_are_used_up() -> None:
    """A narrow curvature condition fails in three trials; the loss still falls, and the failure is counted."""
    opt = optim.zoom_line_search(optim.sgd(1e-3), 3, curv_rtol=1e-6)
    updates, state = opt.update(fnn.grad(loss)(PARAMS), opt.init(PARAMS), PARAMS, loss=loss)
    assert int(state.failures) == 1
    assert int(state.evaluations) == 3
    assert float(state.step_size) == 4.0
    assert float(loss(optim.apply_updates(PARAMS, updates))) < float(loss(PARAMS))


@BOTH
def test_any_optimizer_may_give_the_direction(make: Callable) -> None:
    opt, params = make(optim.chain(optim.clip_by_global_norm(1.0), optim.adam(0.5)), 15), PARAMS
    state, values = opt.init(params), [float(loss(PARAMS))]
    for _ in range(60):
        value, grads = fnn.value_and_grad(loss)(params)
        updates, state = opt.update(grads, state, params, loss=loss, value=value)
        params = optim.apply_updates(params, updates)
        values.append(float(loss(params)))
    assert values[-1] < values[0] - 5
    assert float(tree.global_norm(fnn.grad(loss)(params))) < 0.2


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda sgd: optim.backtracking_line_search(sgd, -1), "max_backtracking_steps must not be negative, got -1"),
        (lambda sgd: optim.backtracking_line_search(sgd, decrease_factor=1.0), r"decrease_factor must be in \[0, 1\)"),
        (lambda sgd: optim.backtracking_line_search(sgd, increase_factor=0.5), "increase_factor must be at least 1"),
        (lambda sgd: optim.zoom_line_search(sgd, 0), "max_linesearch_steps must be at least 1, got 0"),
        (lambda sgd: optim.zoom_line_search(sgd, increase_factor=1.0), "increase_factor must be larger than 1"),
        (lambda sgd: optim.zoom_line_search(sgd, initial_guess_strategy="two"), "initial_guess_strategy must be"),
    ],
)  # fmt: skip
def test_bad_arguments_are_sentences(call: Callable, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call(optim.sgd())


@BOTH
def test_the_loss_is_asked_for(make: Callable) -> None:
    opt = make(optim.sgd(), 3)
    with pytest.raises(ValueError, match=r"evaluates the loss at other params; write update\(.*loss=lambda params"):
        opt.update(PARAMS, opt.init(PARAMS), PARAMS)
    with pytest.raises(ValueError, match="line_search needs the params"):
        opt.update(PARAMS, opt.init(PARAMS), loss=loss)
