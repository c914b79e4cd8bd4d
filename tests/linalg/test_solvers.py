"""Solvers against dense solutions and SciPy in float64."""

import pytest
import torch

import fnn
from fnn.linalg import LinearOperator, cg, lsmr, matrix_operator, minres, neumann

N = 20
Q = torch.linalg.qr(fnn.random.normal(fnn.random.key(0), (N, N), torch.float64)).Q
B = fnn.random.normal(fnn.random.key(1), (N,), torch.float64)
TALL = fnn.random.normal(fnn.random.key(2), (30, N), torch.float64)


def symmetric(values):
    matrix = Q @ torch.diag(values) @ Q.T
    return (matrix + matrix.T) / 2


POSITIVE = symmetric(torch.linspace(1.0, 10.0, N, dtype=torch.float64))
INDEFINITE = symmetric(torch.linspace(-3.1, 5.0, N, dtype=torch.float64))
CASES = {
    "cg": (cg, POSITIVE, {}),
    "minres": (minres, INDEFINITE, {"max_iterations": 60}),
    "lsmr": (lsmr, INDEFINITE, {"max_iterations": 200}),
    "neumann": (neumann, POSITIVE, {"scale": 0.15, "max_iterations": 400}),
}


@pytest.mark.parametrize("name", CASES)
def test_solution_equals_dense(name):
    solve, matrix, options = CASES[name]
    result = solve(matrix, B, tolerance=1e-10, **options)
    expected = torch.linalg.solve(matrix, B)
    assert result.converged
    torch.testing.assert_close(result.solution, expected, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(result.residual_norm, (B - matrix @ result.solution).norm())


@pytest.mark.parametrize("name", CASES)
def test_fixed_iterations_compile_and_change_nothing(name):
    solve, matrix, options = CASES[name]
    options = options | {"tolerance": 1e-3, "max_iterations": 12}
    early, fixed = solve(matrix, B, **options), solve(matrix, B, early_stop=False, **options)
    compiled = fnn.jit(lambda b: solve(matrix_operator_of(matrix), b, early_stop=False, **options), backend="aot_eager")
    for other in (fixed, compiled(B)):
        torch.testing.assert_close(other, early, rtol=1e-9, atol=1e-11)


def matrix_operator_of(matrix):
    return LinearOperator(lambda v: matrix @ v, matrix[0], symmetric=True)


def test_the_limit_is_kept_and_reported():
    result = cg(POSITIVE, B, tolerance=1e-12, max_iterations=3)
    assert not result.converged
    assert result.iterations == 3
    assert not cg(INDEFINITE, B, tolerance=1e-12, max_iterations=5).converged
    assert not neumann(POSITIVE, B, scale=1.0, max_iterations=5).converged


def test_preconditioner_and_start_save_iterations():
    matrix = POSITIVE + torch.diag(torch.logspace(0, 4, N, dtype=torch.float64))
    plain = cg(matrix, B, tolerance=1e-8, max_iterations=500)
    inverse = matrix_operator(torch.diag(1.0 / matrix.diagonal()))
    for preconditioner in (inverse, lambda r: r / matrix.diagonal()):
        better = cg(matrix, B, preconditioner=preconditioner, tolerance=1e-8, max_iterations=500)
        assert better.converged
        assert better.iterations < plain.iterations
        torch.testing.assert_close(better.solution, torch.linalg.solve(matrix, B), rtol=1e-6, atol=1e-8)
    assert cg(matrix, B, x0=torch.linalg.solve(matrix, B)).iterations == 0


@pytest.mark.parametrize("damping", [0.0, 0.7])
def test_lsmr_is_least_squares(damping):
    b = fnn.random.normal(fnn.random.key(3), (30,), torch.float64)
    result = lsmr(TALL, b, damping=damping, tolerance=1e-12, max_iterations=100)
    expected = torch.linalg.solve(TALL.T @ TALL + damping**2 * torch.eye(N), TALL.T @ b)
    assert result.converged
    torch.testing.assert_close(result.solution, expected, rtol=1e-6, atol=1e-8)
    linalg = pytest.importorskip("scipy.sparse.linalg", reason="SciPy is the reference")
    peer = linalg.lsmr(TALL.numpy(), b.numpy(), damp=damping, maxiter=7, atol=0, btol=0, conlim=0)[0]
    mine = lsmr(TALL, b, damping=damping, tolerance=1e-15, max_iterations=7).solution
    torch.testing.assert_close(mine, torch.as_tensor(peer), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["cg", "minres"])
def test_iterates_equal_scipy(name):
    linalg = pytest.importorskip("scipy.sparse.linalg", reason="SciPy is the reference")
    solve, matrix, _ = CASES[name]
    peer = getattr(linalg, name)(matrix.numpy(), B.numpy(), rtol=1e-14, maxiter=6)[0]
    mine = solve(matrix, B, tolerance=1e-14, max_iterations=6).solution
    torch.testing.assert_close(mine, torch.as_tensor(peer), rtol=1e-9, atol=1e-11)


def test_trees_in_trees_out_and_zero():
    like = {"w": torch.zeros(4, 4).double(), "b": torch.zeros(4).double()}
    b = fnn.tree.ravel(like)[1](B)
    A = LinearOperator(lambda t: fnn.tree.ravel(like)[1](POSITIVE @ fnn.tree.ravel(t)[0]), like, symmetric=True)
    for solve in (cg, minres, lsmr):
        result = solve(A, b, tolerance=1e-10, max_iterations=200)
        torch.testing.assert_close(fnn.tree.ravel(result.solution)[0], torch.linalg.solve(POSITIVE, B))
        nothing = solve(A, fnn.tree.zeros_like(b))
        assert nothing.converged
        assert fnn.tree.global_norm(nothing.solution) == 0


def test_gradient_through_fixed_iterations():
    solve = lambda b: cg(matrix_operator_of(POSITIVE), b, tolerance=1e-14, early_stop=False).solution.sum()
    expected = torch.linalg.solve(POSITIVE, torch.ones_like(B))
    torch.testing.assert_close(torch.func.grad(solve)(B), expected, rtol=1e-5, atol=1e-7)


ERRORS = {
    "cg not symmetric": (lambda: cg(TALL[:N], B), ValueError, "cg needs a symmetric operator"),
    "minres not symmetric": (lambda: minres(TALL[:N], B), ValueError, "lsmr"),
    "not square": (lambda: cg(TALL, B), ValueError, r"square operator.*lsmr"),
    "iterations": (lambda: cg(POSITIVE, B, max_iterations=0), ValueError, "at least 1, got 0"),
    "tolerance": (lambda: cg(POSITIVE, B, tolerance=0.0), ValueError, "positive tolerance"),
    "length": (lambda: cg(POSITIVE, B[:3]), ValueError, r"shape \(3,\)"),
    "no operator": (lambda: cg(lambda v: v, B), TypeError, "LinearOperator"),
    "preconditioner": (lambda: cg(POSITIVE, B, preconditioner=torch.eye(3)), ValueError, "preconditioner"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_sentences(name):
    call, kind, words = ERRORS[name]
    with pytest.raises(kind, match=words):
        call()
