"""Lanczos against dense eigenvalues in float64."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

import fnn
from fnn.curvature import hessian_operator
from fnn.linalg import eigenpairs, log_determinant, spectral_density

N = 80
Q = torch.linalg.qr(fnn.random.normal(fnn.random.key(0), (N, N), torch.float64)).Q
VALUES = torch.cat([torch.linspace(-4.0, 3.0, N - 2, dtype=torch.float64), torch.tensor([7.0, 7.0]).double()])
KEY = fnn.random.key(1)


def symmetric(values):
    matrix = Q @ torch.diag(values) @ Q.T
    return (matrix + matrix.T) / 2


MATRIX = symmetric(VALUES)
POSITIVE = symmetric(torch.linspace(0.5, 20.0, N, dtype=torch.float64))
ORDERS = {"largest": -VALUES, "smallest": VALUES, "magnitude": -VALUES.abs()}


@pytest.mark.parametrize("which", ORDERS)
def test_top_eigenpairs(which):
    result = eigenpairs(MATRIX, 4, KEY, which, tolerance=1e-9, max_restarts=200)
    assert result.converged
    torch.testing.assert_close(result.values, VALUES[ORDERS[which].argsort()][:4], rtol=1e-8, atol=0)
    torch.testing.assert_close(MATRIX @ result.vectors, result.vectors * result.values, rtol=0, atol=1e-7)
    torch.testing.assert_close(result.vectors.T @ result.vectors, torch.eye(4).double(), rtol=0, atol=1e-10)


def test_few_restarts_are_reported():
    result = eigenpairs(POSITIVE, 2, KEY, tolerance=1e-12, max_restarts=1, subspace=4)
    assert not result.converged
    actual = (POSITIVE @ result.vectors - result.vectors * result.values).norm(dim=0)
    torch.testing.assert_close(result.residuals, actual)


def test_whole_space_and_low_rank():
    torch.testing.assert_close(eigenpairs(MATRIX, N, KEY).values, VALUES.flip(0), rtol=1e-8, atol=1e-8)
    low = symmetric(torch.cat([torch.zeros(N - 2), torch.tensor([2.0, 3.0])]).double())
    torch.testing.assert_close(eigenpairs(low, 3, KEY).values, torch.tensor([3.0, 2.0, 0.0]).double())


def test_hessian_of_a_network():
    model = fnn.models.mlp(4, 6, 3, activation=fnn.layers.tanh)
    params = fnn.tree.cast(model.init(fnn.random.key(2)), torch.float64)
    x, y = fnn.random.normal(KEY, (9, 4), torch.float64), fnn.random.randint(KEY, (9,), 0, 3)
    H = hessian_operator(lambda p, b: fnn.losses.cross_entropy(model.apply(p, b[0]), b[1]), params, (x, y))
    vector, unravel = fnn.tree.ravel(params)
    dense = torch.func.hessian(lambda v: fnn.losses.cross_entropy(model.apply(unravel(v), x), y))(vector)
    expected = torch.linalg.eigvalsh(dense).flip(0)[:3]
    torch.testing.assert_close(eigenpairs(H, 3, KEY, tolerance=1e-8).values, expected, rtol=1e-4, atol=0)


def test_density_has_the_moments_of_the_spectrum():
    density = spectral_density(MATRIX, KEY, probes=200, steps=8)
    torch.testing.assert_close(density.weights.sum(), torch.ones(()).double())
    for power in (1, 2, 4):
        spread = (VALUES**power).std() * (2 / N / 200) ** 0.5
        assert ((density.weights * density.nodes**power).sum() - (VALUES**power).mean()).abs() < 4 * spread
    grid = torch.linspace(-12, 12, 2001, dtype=torch.float64)
    assert torch.trapezoid(density.smooth(grid, 0.3), grid) == pytest.approx(1.0, abs=1e-6)


def test_density_traces():
    density = lambda key: spectral_density(POSITIVE_OPERATOR, key, 2, 5)
    graph = make_fx(density, tracing_mode="fake", _allow_non_fake_inputs=True)(KEY)
    torch.testing.assert_close(tuple(graph(KEY)), tuple(density(KEY)))


POSITIVE_OPERATOR = fnn.linalg.matrix_operator(POSITIVE)


def test_log_determinant_is_unbiased_with_calibrated_error():
    results = [log_determinant(POSITIVE, key, 6, 30) for key in fnn.random.split(KEY, 60)]
    values, errors = (torch.stack([getattr(r, name) for r in results]) for name in ("value", "error"))
    assert (values.mean() - torch.logdet(POSITIVE)).abs() < 4 * values.std() / 60**0.5
    assert 0.6 < (errors**2).mean().sqrt() / values.std() < 1.6


ERRORS = {
    "not symmetric": (lambda: eigenpairs(Q, 1, KEY), "eigenpairs needs a symmetric operator"),
    "k": (lambda: eigenpairs(MATRIX, 0, KEY), "k=0"),
    "subspace": (lambda: eigenpairs(MATRIX, 5, KEY, subspace=5), "subspace > k"),
    "which": (lambda: eigenpairs(MATRIX, 5, KEY, "middle"), "middle"),
    "steps": (lambda: spectral_density(MATRIX, KEY, steps=0), "at least 1"),
    "indefinite": (lambda: log_determinant(MATRIX, KEY), "damped"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_sentences(name):
    call, words = ERRORS[name]
    with pytest.raises(ValueError, match=words):
        call()


def with_top(values, low=-4.0, high=3.0, n=N):
    rest = torch.linspace(low, high, n - len(values), dtype=torch.float64)
    return symmetric(torch.cat([rest, torch.tensor(values, dtype=torch.float64)])), rest


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("which", ["largest", "smallest", "magnitude"])
@pytest.mark.parametrize("top", [[7.0] * 12, [9.0, 8.0, 8.0, 8.0, 7.5], [5.0, 5.0]], ids=len)
def test_all_copies_of_multiple_eigenvalues_are_found(top, which, dtype):
    sign = -1.0 if which == "smallest" else 1.0
    matrix = (sign * with_top(top)[0]).to(dtype)
    k = len(top)
    result = eigenpairs(matrix, k, KEY, which, tolerance=1e-5)
    expected = sign * torch.tensor(top, dtype=dtype)
    assert result.converged
    torch.testing.assert_close(result.values, expected, rtol=2e-5, atol=0)
    torch.testing.assert_close(result.vectors.T @ result.vectors, torch.eye(k, dtype=dtype), rtol=0, atol=1e-5)
    true = (matrix @ result.vectors - result.vectors * result.values).norm(dim=0)
    assert (true <= 2e-5 * 9).all()


@pytest.mark.parametrize("max_restarts", [1, 2, 3, 5, 8, 13, 21])
def test_missing_copies_are_never_called_converged(max_restarts):
    result = eigenpairs(with_top([7.0] * 12)[0], 12, KEY, max_restarts=max_restarts)
    complete = torch.allclose(result.values, torch.full((12,), 7.0, dtype=torch.float64))
    assert complete or not result.converged


def test_eigenpairs_refuses_where_numbers_cannot_be_read():
    with pytest.raises(ValueError, match="cannot run under vmap"):
        torch.func.vmap(lambda key: eigenpairs(POSITIVE_OPERATOR, 1, key).values)(fnn.random.split(KEY, 2))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_quadrature_of_repeated_eigenvalues(dtype):
    """A start vector sees diag(1, 1, 3, 3, 3) as two numbers: further steps add nothing and break nothing."""
    matrix = torch.diag(torch.tensor([1.0, 1.0, 3.0, 3.0, 3.0], dtype=dtype))
    for key in fnn.random.split(KEY, 5):
        density = spectral_density(matrix, key, probes=1, steps=5)
        assert density.nodes.isfinite().all()
        torch.testing.assert_close(density.weights.sum(), torch.ones((), dtype=dtype))
        for value in (1.0, 3.0):
            start = fnn.random.normal(fnn.random.split(key, 1)[0], (5,), dtype)
            seen = (start**2)[matrix.diagonal() == value].sum() / (start**2).sum()
            near = (density.nodes - value).abs() < 1e-3
            torch.testing.assert_close(density.weights[near].sum(), seen, rtol=1e-4, atol=1e-5)
    results = torch.stack([log_determinant(matrix, key, 20, 5).value for key in fnn.random.split(KEY, 20)])
    assert results.isfinite().all()
    assert (results.mean() - torch.logdet(matrix)).abs() < 4 * results.std() / 20**0.5


def test_log_determinant_is_nan_where_it_cannot_raise():
    keys = fnn.random.split(KEY, 2)
    assert torch.func.vmap(lambda key: log_determinant(-POSITIVE_OPERATOR, key).value)(keys).isnan().all()
    mapped = torch.func.vmap(lambda key: log_determinant(POSITIVE_OPERATOR, key).value)(keys)
    torch.testing.assert_close(mapped, torch.stack([log_determinant(POSITIVE_OPERATOR, key).value for key in keys]))
