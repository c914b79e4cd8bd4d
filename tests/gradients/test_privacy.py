"""Noise for a budget of privacy, and clipping norms that follow a quantile, against Opacus and loops."""

import math
import sys

import pytest
import torch

import fnn
from fnn.gradients import adapt_max_norm, epsilon_spent, noise_beside_count, noise_for_epsilon

key = fnn.random.key


def accountant():
    pytest.importorskip("dp_accounting", reason="the accountant is an extra")


def opacus_epsilon(multipliers, rate, delta):
    accountants = pytest.importorskip("opacus.accountants", reason="Opacus is the reference")
    other = accountants.RDPAccountant()
    for multiplier in multipliers:
        other.step(noise_multiplier=multiplier, sample_rate=rate)
    return other.get_epsilon(delta)


@pytest.mark.parametrize(("multiplier", "rate", "steps"), [(1.1, 0.01, 1000), (0.7, 0.004, 300), (3.0, 1.0, 20)])
def test_epsilon_equals_opacus(multiplier, rate, steps):
    accountant()
    expected = opacus_epsilon([multiplier] * steps, rate, 1e-5)
    assert epsilon_spent(multiplier, rate, steps, 1e-5) == pytest.approx(expected, rel=5e-3)


def test_a_schedule_of_the_noise():
    accountant()
    schedule = [2.0 * 0.95**step for step in range(20)]
    expected = opacus_epsilon(schedule, 0.02, 1e-5)
    assert epsilon_spent(schedule, 0.02, 20, 1e-5) == pytest.approx(expected, rel=5e-3)
    assert epsilon_spent([1.5] * 40, 0.02, 40, 1e-5) == epsilon_spent(1.5, 0.02, 40, 1e-5)


def test_the_least_noise():
    accountant()
    epsilon = 3.0
    noise = noise_for_epsilon(epsilon, 0.02, 500, 1e-5)
    assert epsilon_spent(noise, 0.02, 500, 1e-5) <= epsilon < epsilon_spent(noise - 2e-3, 0.02, 500, 1e-5)
    utils = pytest.importorskip("opacus.accountants.utils", reason="Opacus is the reference")
    theirs = utils.get_noise_multiplier(
        target_epsilon=epsilon, target_delta=1e-5, sample_rate=0.02, steps=500, accountant="rdp"
    )
    assert noise == pytest.approx(theirs, rel=1e-2)
    assert noise_for_epsilon(3.0, rate=0.02, steps=500, delta=1e-5) == 1.023  # the docstring and the guide
    assert noise_for_epsilon(3.0, rate=0.25, steps=200, delta=1e-3) == 4.172
    assert noise_for_epsilon(1e6, 0.02, 5, 1e-5) == 0.301


def test_without_the_accountant(monkeypatch):
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(ImportError, match=r"pip install 'fnn\[privacy\]'"):
        epsilon_spent(1.0, 0.1, 10, 1e-5)
    assert epsilon_spent(1.0, 0.1, 0, 1e-5) == 0.0


NORMS = torch.tensor([0.2, 0.5, 1.0, 2.0, 3.0], dtype=torch.float64)
ONE = torch.tensor(1.0, dtype=torch.float64)


def test_one_step_is_that_of_the_paper():
    """b is the share that is not clipped, and the norm is multiplied by exp(-rate (b - quantile))."""
    for quantile, rate in ((0.5, 0.2), (0.9, 1.0)):
        result = adapt_max_norm(ONE, NORMS, 5, quantile, rate)
        assert float(result) == pytest.approx(math.exp(-rate * (3 / 5 - quantile)), rel=1e-14)
    weights = torch.tensor([1.0, 1.0, 0.0, 1.0, 0.0]).double()  # of an expected batch of 4, three are there
    weighted = adapt_max_norm(ONE, NORMS, 4, 0.5, 1.0, weights)
    share = 0.5 + (0.5 + 0.5 - 0.5) / 4
    assert float(weighted) == pytest.approx(math.exp(-(share - 0.5)), rel=1e-14)


def test_the_noise_of_the_count():
    keys = fnn.random.split(key(0), 2000)
    noisy = torch.func.vmap(lambda key: adapt_max_norm(ONE, NORMS, 5, 0.5, 1.0, None, 2.0, key))(keys)
    exponents = -noisy.log()
    assert exponents.mean() == pytest.approx(3 / 5 - 0.5, abs=4 * 0.4 / 2000**0.5)
    assert exponents.std() == pytest.approx(2.0 / 5, rel=0.08)


def test_one_sample_changes_the_count_by_at_most_half():
    count = lambda weights: -5 * adapt_max_norm(ONE, NORMS, 5, 0.5, 1.0, weights).log()
    ones = torch.ones(5, dtype=torch.float64)
    for sample in range(5):
        without = ones.clone()
        without[sample] = 0.0
        assert abs(float(count(ones) - count(without))) == pytest.approx(0.5)


@pytest.mark.parametrize("quantile", [0.25, 0.75])
def test_the_norm_settles_at_the_quantile(quantile):
    loss = lambda w, x: (x @ w).sum()
    x = fnn.random.normal(key(1), (60, 3), torch.float64)
    w = torch.zeros(3, dtype=torch.float64)

    def step(max_norm, key):
        total, norms = fnn.clipped_grad(loss, max_norm, return_norms=True)(w, x)
        return total, adapt_max_norm(max_norm, norms, 60, quantile, 0.5, count_std=0.5, key=key)

    compiled = fnn.jit(step, backend="replay")
    for start in (0.01, 100.0):
        max_norm = torch.tensor(start, dtype=torch.float64)
        assert torch.equal(compiled(max_norm, key(3))[1], step(max_norm, key(3))[1])
        for draw in fnn.random.split(key(2), 60):
            max_norm = compiled(max_norm, draw)[1]
        below = (x.norm(dim=1) <= max_norm).double().mean()
        assert float(below) == pytest.approx(quantile, abs=0.05)


def test_the_noise_beside_the_count_equals_opacus():
    for z, s in ((0.5, 3.0), (1.1, 0.6)):
        gradients = noise_beside_count(z, s)
        assert 1 / z**2 == pytest.approx(1 / gradients**2 + 1 / (2 * s) ** 2)
    optimizers = pytest.importorskip("opacus.optimizers", reason="Opacus is the reference")
    w = torch.nn.Parameter(torch.zeros(20000))
    theirs = optimizers.AdaClipDPOptimizer(
        torch.optim.SGD([w], 1.0), noise_multiplier=1.1, target_unclipped_quantile=0.5, clipbound_learning_rate=0.2,
        max_clipbound=1e9, min_clipbound=1e-9, unclipped_num_std=0.6, max_grad_norm=2.0, expected_batch_size=1,
    )  # fmt: skip
    w.grad_sample = torch.zeros(1, 20000)
    theirs.clip_and_accumulate()
    theirs.add_noise()
    assert float(w.grad.std()) == pytest.approx(2.0 * noise_beside_count(1.1, 0.6), rel=0.03)


@pytest.mark.parametrize("method", ["exact", "ghost"])
@pytest.mark.parametrize("per_leaf", [False, True])
def test_clipped_grad_returns_the_norms(per_leaf, method):
    model = fnn.models.mlp(3, 4, 2)
    params = fnn.tree.cast(model.init(key(0)), torch.float64)
    x = fnn.random.normal(key(1), (5, 3), torch.float64)
    loss = lambda p, x: model.apply(p, x).square().mean()
    norms = fnn.gradients.per_sample_norms(loss, per_leaf=per_leaf)(params, x)
    for chunk_size in (None, 2):
        options = {"chunk_size": chunk_size, "method": method, "per_leaf": per_leaf}
        grads, found = fnn.clipped_grad(loss, 0.1, **options, return_norms=True)(params, x)
        assert fnn.tree.allclose(found, norms, rtol=1e-12, atol=1e-14)
        assert fnn.tree.allclose(grads, fnn.clipped_grad(loss, 0.1, **options)(params, x), rtol=0, atol=0)


def test_schedules_of_the_norm_and_of_the_noise_do_not_retrace():
    loss = lambda w, x: (x @ w).sum()
    w, x = torch.zeros(2), torch.tensor([[3.0, 4.0], [0.3, 0.4]])
    max_norm = fnn.optim.schedules.exponential(2.0, 0.5)
    multiplier = fnn.optim.schedules.linear(1.0, 0.0, 2)
    traces = [[]]  # the items of a list that a function refers to are part of the key

    @fnn.jit(backend="replay")
    def step(count, key):
        traces[0].append(1)
        total = fnn.clipped_grad(loss, max_norm(count))(w, x)
        return total, fnn.gradients.noise_like(key, total, multiplier(count) * max_norm(count))

    noises = []
    for count in range(3):
        total, noise = step(torch.tensor(count), key(0))
        limit = 2.0 * 0.5**count
        torch.testing.assert_close(total, sum(row * min(1.0, limit / row.norm().item()) for row in x))
        noises.append(noise)
    assert len(traces[0]) == 1
    torch.testing.assert_close(noises[1], noises[0] * 0.25)
    assert noises[2].abs().max() == 0


ERRORS = {
    "rate": (lambda: epsilon_spent(1.0, 0.0, 10, 1e-5), r"got 0\.0; write a number in \(0, 1\]"),
    "delta": (lambda: epsilon_spent(1.0, 0.1, 10, 1.0), r"between 0 and 1.*got 1\.0"),
    "steps": (lambda: epsilon_spent(1.0, 0.1, -1, 1e-5), "not negative, got -1"),
    "no noise": (lambda: epsilon_spent(0.0, 0.1, 10, 1e-5), "epsilon is infinite"),
    "schedule": (lambda: epsilon_spent([1.0, 2.0], 0.1, 10, 1e-5), "2 entries, expected one for each of 10"),
    "epsilon": (lambda: noise_for_epsilon(0.0, 0.1, 10, 1e-5), r"positive, got 0\.0"),
    "norms": (lambda: adapt_max_norm(ONE, ONE, 4), r"got \(\) and \(\)"),
    "norm of each leaf": (lambda: adapt_max_norm(NORMS, NORMS, 4), r"got \(5,\) and \(5,\)"),
    "weights": (lambda: adapt_max_norm(ONE, NORMS, 4, weights=ONE), r"shape \(\), expected one for each of 5"),
    "quantile": (lambda: adapt_max_norm(ONE, NORMS, 4, quantile=1.0), r"between 0 and 1, got 1\.0"),
    "batch size": (lambda: adapt_max_norm(ONE, NORMS, 0), "got 0.2, 0 and 0.0"),
    "no key": (lambda: adapt_max_norm(ONE, NORMS, 5, count_std=1.0), "write key=key"),
    "count": (lambda: noise_beside_count(2.0, 1.0), r"got 2\.0 and 1\.0; write a larger count_std"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_sentences(name):
    call, words = ERRORS[name]
    with pytest.raises(ValueError, match=words):
        call()


def test_out_of_reach():
    accountant()
    with pytest.raises(ValueError, match="out of reach in 100000 steps"):
        noise_for_epsilon(1e-4, 1.0, 100000, 1e-5)
