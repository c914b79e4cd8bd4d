"""Estimators against exact values: bias, rate and calibration of the error bars, with fixed keys."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

import fnn
from fnn.linalg import (
    LinearOperator,
    estimate_diagonal,
    estimate_frobenius_norm,
    estimate_trace,
    identity_operator,
    matrix_operator,
)

N = 60
Q = torch.linalg.qr(fnn.random.normal(fnn.random.key(0), (N, N), torch.float64)).Q
DECAYING = Q @ torch.diag(torch.arange(1.0, N + 1, dtype=torch.float64) ** -2) @ Q.T
GENERAL = fnn.random.normal(fnn.random.key(1), (N, N), torch.float64)
METHODS = ["hutchinson", "hutch++", "xtrace"]


def draws(estimate, count=200):
    keys = fnn.random.split(fnn.random.key(2), count)
    results = [estimate(key) for key in keys]
    return torch.stack([r.value for r in results]), torch.stack([r.error for r in results])


@pytest.mark.parametrize("matrix", [DECAYING, GENERAL], ids=["decaying", "general"])
@pytest.mark.parametrize("method", METHODS)
def test_trace_is_unbiased_with_calibrated_error(method, matrix):
    values, errors = draws(lambda key: estimate_trace(matrix, key, 30, method))
    exact = matrix.trace()
    spread = values.std()
    assert (values.mean() - exact).abs() < 4 * spread / len(values) ** 0.5
    assert 0.7 < (errors**2).mean().sqrt() / spread < 1.4


def test_trace_error_against_probes():
    """Four times the probes: half Hutchinson's error, a quarter or less of the error of the other two."""
    ratio = {}
    for method in METHODS:
        few, many = (
            draws(lambda key, m=m, method=method: estimate_trace(DECAYING, key, m, method), 100)[0].std()
            for m in (12, 48)
        )
        ratio[method] = (few / many).item()
    assert 1.6 < ratio["hutchinson"] < 2.5
    assert ratio["hutch++"] > 4
    assert ratio["xtrace"] > 4


@pytest.mark.parametrize("method", ["hutch++", "xtrace"])
def test_low_rank_trace_is_exact(method):
    low = Q[:, :4] @ torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0]).double()) @ Q[:, :4].T
    estimate = estimate_trace(low, fnn.random.key(0), 30, method)
    torch.testing.assert_close(estimate.value, torch.tensor(10.0).double(), rtol=1e-7, atol=0)


def test_diagonal_is_unbiased_with_calibrated_error_and_rate():
    values, errors = draws(lambda key: estimate_diagonal(GENERAL, key, 50))
    off = GENERAL - torch.diag(GENERAL.diagonal())
    expected = ((off**2).sum(1) / 50).sqrt()
    torch.testing.assert_close(values.std(0), expected, rtol=0.25, atol=0)
    assert ((values.mean(0) - GENERAL.diagonal()).abs() < 4.5 * expected / len(values) ** 0.5).all()
    torch.testing.assert_close((errors**2).mean(0).sqrt(), expected, rtol=0.1, atol=0)


def test_xdiag_is_unbiased_with_calibrated_error_and_better_where_singular_values_decay():
    skewed = GENERAL @ DECAYING
    values, errors = draws(lambda key: estimate_diagonal(skewed, key, 24, "xdiag"))
    spread = values.std(0)
    assert ((values.mean(0) - skewed.diagonal()).abs() < 4.5 * spread / len(values) ** 0.5).all()
    assert 0.7 < ((errors**2).mean().sqrt() / (spread**2).mean().sqrt()) < 1.4
    plain, _ = draws(lambda key: estimate_diagonal(skewed, key, 24))
    assert plain.std(0).norm() > 2 * spread.norm()


def test_xdiag_equals_its_definition():
    """A QR decomposition for each vector left out, as in the paper's definition."""
    count, key = 5, fnn.random.key(3)
    signs = 2.0 * fnn.random.bernoulli(key, 0.5, (N, count)).double() - 1.0
    estimates = []
    for i in range(count):
        others = torch.cat([signs[:, :i], signs[:, i + 1 :]], 1)
        P = torch.linalg.qr(GENERAL @ others).Q
        P = P @ P.T
        estimates.append((P @ GENERAL).diagonal() + signs[:, i] * ((GENERAL - P @ GENERAL) @ signs[:, i]))
    expected = torch.stack(estimates)
    result = estimate_diagonal(GENERAL, key, 2 * count, "xdiag")
    torch.testing.assert_close(result.value, expected.mean(0))
    torch.testing.assert_close(result.error, expected.std(0) / count**0.5)
    chunked = lambda key: estimate_diagonal(GENERAL, key, 2 * count, "xdiag", chunk_size=2)
    torch.testing.assert_close(fnn.jit(chunked, backend="replay")(key), result)


@pytest.mark.parametrize("rank", [0, 4])
def test_xdiag_of_low_rank_is_exact(rank):
    low = Q[:, :rank] @ GENERAL[:rank]
    estimate = estimate_diagonal(low, fnn.random.key(0), 12, "xdiag")
    torch.testing.assert_close(estimate.value, low.diagonal(), rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("probes", [2, 3])
@pytest.mark.parametrize("kind", ["trace", "diagonal", "square of the Frobenius norm"])
def test_the_error_bar_of_few_probes_is_unbiased(kind, probes):
    def estimate(key):
        if kind == "trace":
            return estimate_trace(GENERAL, key, probes, "hutchinson")
        if kind == "diagonal":
            result = estimate_diagonal(GENERAL, key, probes)
            return type(result)(result.value[0], result.error[0])
        result = estimate_frobenius_norm(GENERAL[:20], key, probes)
        return type(result)(result.value**2, 2.0 * result.value * result.error)

    values, errors = torch.func.vmap(estimate)(fnn.random.split(fnn.random.key(2), 2000))
    assert (errors**2).mean() / values.var() == pytest.approx(
        1.0, abs=0.15
    )  # over n in place of n - 1 it is 1/2 or 2/3


def test_frobenius_norm():
    values, errors = draws(lambda key: estimate_frobenius_norm(GENERAL[:20], key, 40))
    assert values.mean() == pytest.approx(GENERAL[:20].norm().item(), rel=0.01)
    assert 0.8 < (errors.mean() / values.std()) < 1.25


@pytest.mark.parametrize("method", METHODS)
def test_chunks_and_traces_change_nothing(method):
    A = matrix_operator((GENERAL + GENERAL.T) / 2)
    key = fnn.random.key(5)
    whole = estimate_trace(A, key, 12, method)
    torch.testing.assert_close(estimate_trace(A, key, 12, method, chunk_size=3), whole)
    graph = make_fx(lambda key: estimate_trace(A, key, 12, method), tracing_mode="fake", _allow_non_fake_inputs=True)(
        key
    )
    torch.testing.assert_close(graph(key), whole)


ERRORS = {
    "probes": (lambda key: estimate_trace(GENERAL, key, 3, "xtrace"), "at least 4"),
    "method": (lambda key: estimate_trace(GENERAL, key, 9, "girard"), "girard"),
    "too many": (lambda key: estimate_trace(GENERAL, key, 3 * N, "hutch++"), "whole space"),
    "not square": (lambda key: estimate_trace(GENERAL[:3], key), "operator.output"),
    "probes for xdiag": (lambda key: estimate_diagonal(GENERAL, key, 3, "xdiag"), "at least 4 probes .* got 3"),
    "too many for xdiag": (lambda key: estimate_diagonal(GENERAL, key, 2 * N, "xdiag"), "whole space"),
    "method of the diagonal": (lambda key: estimate_diagonal(GENERAL, key, 9, "hutch++"), "got 'hutch\\+\\+'"),
    "no transpose": (
        lambda key: estimate_diagonal(LinearOperator(lambda v: 2.0 * v, torch.zeros(9)), key, 4, "xdiag"),
        "no transpose",
    ),
    "one probe": (lambda key: estimate_diagonal(GENERAL, key, 1), "error bar"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_sentences(name):
    call, words = ERRORS[name]
    with pytest.raises(ValueError, match=words):
        call(fnn.random.key(0))


@pytest.mark.parametrize("n", [8, 50])
@pytest.mark.parametrize("scale", [1.0, -3.0])
def test_xtrace_of_a_multiple_of_the_identity_is_exact(n, scale):
    """Each left-out vector is as if uniform on the sphere of the rest, whose dimension is n - probes / 2 + 1."""
    for probes in (4, 6):
        estimate = estimate_trace(scale * torch.eye(n, dtype=torch.float64), fnn.random.key(probes), probes)
        torch.testing.assert_close(estimate.value, torch.tensor(scale * n, dtype=torch.float64), rtol=1e-12, atol=0)


@pytest.mark.parametrize("method", METHODS)
def test_sixteen_bit_operators_are_estimated_in_float32(method):
    matrix = torch.diag(torch.arange(1.0, 61.0)).to(torch.bfloat16)
    estimate = estimate_trace(matrix, fnn.random.key(0), 30, method)
    assert estimate.value.dtype == torch.float32
    assert (estimate.value - 1830).abs() < 4 * estimate.error + 20
    assert (estimate_frobenius_norm(matrix, fnn.random.key(1), 30).value / matrix.float().norm() - 1).abs() < 0.1
    for name in ("hutchinson", "xdiag"):
        diagonal = estimate_diagonal(matrix, fnn.random.key(1), 40, name)
        assert diagonal.value.dtype == torch.bfloat16
        assert (diagonal.value.float() - matrix.diagonal().float()).norm() < 0.6 * matrix.float().norm()


def test_estimates_of_trees_own_their_leaves():
    like = {"w": torch.zeros(2, 2), "b": torch.zeros(2)}
    value = estimate_diagonal(identity_operator(like), fnn.random.key(0), 4).value
    assert len({leaf.untyped_storage().data_ptr() for leaf in fnn.tree.leaves(value)}) == 2
