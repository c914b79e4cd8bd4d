"""What every optimizer keeps, over the table in cases.py."""

from pathlib import Path

import pytest
import torch

import fnn
from fnn import optim, tree
from tests.optim.cases_optim import CASES, Case, extra, parabola, rosenbrock, start, step

TABLE = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@TABLE
def test_solves_a_parabola(case: Case) -> None:
    params = start()
    before = float(parabola(params))
    opt = case.make(case.parabola)
    state = opt.init(params)
    for _ in range(200):
        params, state = step(opt, params, state)
    assert float(parabola(case.read(state, params))) < 1e-2 * before


@TABLE
def test_a_rate_of_zero_is_a_rate(case: Case) -> None:
    params = start()
    for rate in (0.0, 0, torch.tensor(0.0)):
        opt = case.make(rate)
        moved, _ = step(opt, params, opt.init(params))
        assert float(tree.max_difference(moved, params)) < 1e-3  # noise, and rprop's smallest step


@pytest.mark.slow
@TABLE
def test_solves_rosenbrock(case: Case) -> None:
    rate, steps = case.rosenbrock
    params = {"x": torch.tensor([-1.0, 0.5], dtype=torch.float64), "y": torch.tensor([1.0, -0.5], dtype=torch.float64)}
    assert float(rosenbrock(params)) > 50
    opt = case.make(rate)
    state = opt.init(params)
    for _ in range(steps):
        grads = fnn.grad(rosenbrock)(params)
        a, b = params["x"], params["y"]
        diagonal = {"x": 2 - 400 * (b - 3 * a**2), "y": torch.full_like(b, 200.0)}
        given = extra(params, rosenbrock) | {"hessian_diagonal": diagonal}
        updates, state = opt.update(grads, state, params, **given)
        params = optim.apply_updates(params, updates)
    assert float(rosenbrock(case.read(state, params))) < case.below


@TABLE
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_is_pure_and_keeps_dtypes_and_structure(case: Case, dtype: torch.dtype) -> None:
    params = tree.cast({"b": [start()["x"], start()["z"]], "a": (start()["w"], {})}, dtype)
    opt = case.make(0.01)
    state = opt.init(params)
    grads = fnn.grad(parabola)(params)
    given = (grads, state, params)
    copies, versions = tree.map(torch.clone, given), [leaf._version for leaf in tree.leaves(given)]
    updates, after = opt.update(grads, state, params, **extra(params))
    new = optim.apply_updates(params, updates)
    assert [leaf._version for leaf in tree.leaves(given)] == versions
    assert all(torch.equal(a, b) for a, b in zip(tree.leaves(given), tree.leaves(copies), strict=True))
    assert list(updates) == list(params)
    assert tree.spec(updates) == tree.spec(new) == tree.spec(params)
    assert tree.structure(state) == tree.structure(after)
    assert tree.spec(state) == tree.spec(after)
    assert all(bool(leaf.isfinite().all()) for leaf in tree.leaves(new))


@TABLE
def test_learning_rates_may_be_vmapped(case: Case) -> None:
    def train(rate: torch.Tensor) -> dict:
        opt, params = case.make(rate), tree.cast(start(), torch.float32)
        state = opt.init(params)
        for _ in range(case.meta_steps):
            params, state = step(opt, params, state)
        return params

    rates = torch.tensor([0.01, 0.1, 0.3], dtype=torch.float64)
    together, alone = fnn.vmap(train)(rates), tree.stack([train(rate) for rate in rates])
    assert tree.spec(together) == tree.spec(alone)
    for one, other in zip(tree.leaves(together), tree.leaves(alone), strict=True):
        torch.testing.assert_close(one, other, rtol=2e-5, atol=2e-6)
    assert not torch.equal(together["w"][0], together["w"][2])


@TABLE
def test_meta_gradient_of_the_rate_equals_differences(case: Case) -> None:
    def final(rate: torch.Tensor) -> torch.Tensor:
        opt, params = case.make(rate), start()
        state = opt.init(params)
        for _ in range(case.meta_steps):
            params, state = step(opt, params, state)
        return parabola(params)

    rate = torch.tensor(0.05, dtype=torch.float64)
    h = 1e-5
    expected = (final(rate + h) - final(rate - h)) / (2 * h)
    assert abs(float(expected)) > 1e-4
    torch.testing.assert_close(torch.func.grad(final)(rate), expected, rtol=1e-5, atol=1e-7)


QUICK = {"sgd, momentum", "adam", "rmsprop, all", "adafactor", "lookahead", "multi_transform"}


@pytest.mark.parametrize(
    "case", [pytest.param(CASES[n], id=n, marks=[] if n in QUICK else [pytest.mark.slow]) for n in CASES]
)
def test_one_graph_for_all_rates_and_counts(case: Case) -> None:
    params = tree.cast(start(), torch.float32)
    opt = case.make(0.05)
    jitted = fnn.jit(lambda params, state: step(opt, params, state))
    state = expected_state = opt.init(params)
    expected = params
    for i in range(3):
        params, state = jitted(params, state)
        expected, expected_state = step(opt, expected, expected_state)
        if "learning_rate" in optim.get_hyperparams(state):
            state = optim.set_hyperparams(state, learning_rate=0.05 / (i + 2))
            expected_state = optim.set_hyperparams(expected_state, learning_rate=0.05 / (i + 2))
    assert fnn.compile_count(jitted) == 1
    for one, other in zip(tree.leaves(params), tree.leaves(expected), strict=True):
        torch.testing.assert_close(one, other, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(
    "case",
    [pytest.param(CASES[n], id=n, marks=[] if n in ("adam", "multi_transform") else [pytest.mark.slow]) for n in CASES],
)
def test_two_donated_steps_equal_eager_ones(case: Case) -> None:
    opt = case.make(0.05)
    jitted = fnn.jit(lambda params, state: step(opt, params, state), donate_argnums=(0, 1))
    params = tree.cast(start(), torch.float32)
    state = opt.init(params)
    expected, expected_state = tree.map(torch.clone, (params, state))
    for _ in range(2):
        given = params, state
        params, state = jitted(params, state)
        expected, expected_state = step(opt, expected, expected_state)
    assert all(leaf.is_meta for leaf in tree.leaves(given))
    assert fnn.compile_count(jitted) == 1
    assert tree.structure((params, state)) == tree.structure((expected, expected_state))
    pairs = zip(tree.leaves((params, state)), tree.leaves((expected, expected_state)), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=2e-5, atol=2e-6)


@TABLE
def test_empty_trees_and_saved_states(case: Case, tmp_path: Path) -> None:
    opt = case.make(0.05)
    updates, _ = opt.update({}, opt.init({}), {}, loss=lambda params: torch.zeros(()), value=torch.zeros(()))
    assert updates == {}
    params = start()
    state = opt.init(params)
    params, state = step(opt, params, state)
    fnn.checkpoint.save(tmp_path / "state.safetensors", state)
    loaded = fnn.checkpoint.load(tmp_path / "state.safetensors", like=opt.init(params))
    again, same = step(opt, params, loaded), step(opt, params, state)
    assert all(torch.equal(a, b) for a, b in zip(tree.leaves(again), tree.leaves(same), strict=True))


@TABLE
def test_other_trees_are_refused(case: Case) -> None:
    opt, params = case.make(0.05), start()
    state = opt.init(params)
    wrong = dict(params) | {"w": torch.zeros(2, 2, dtype=torch.float64)}
    given = extra(params)
    with pytest.raises(ValueError, match=r"grads differ at \['[vw]'\]"):
        opt.update({"v": params["w"], "x": params["x"], "z": params["z"]}, state, params, **given)
    with pytest.raises(ValueError, match=r"grads.*\['w'\].*\(2, 2\)"):
        opt.update(wrong, state, params, **given)
