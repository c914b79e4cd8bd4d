"""LOBPCG against dense eigenvalues, SciPy, and itself in compiled and mapped functions, in float64."""

import warnings

import pytest
import torch

import fnn
from fnn.linalg import LinearOperator, lobpcg, matrix_operator

N, K = 30, 3
KEY = fnn.random.key(0)
Q = torch.linalg.qr(fnn.random.normal(fnn.random.key(1), (N, N), torch.float64)).Q


def symmetric(values):
    matrix = Q @ torch.diag(values) @ Q.T
    return (matrix + matrix.T) / 2


SPREAD = torch.linspace(1.0, 10.0, N, dtype=torch.float64)
MATRICES = {
    "positive": symmetric(SPREAD),
    "indefinite": symmetric(torch.linspace(-4.0, 3.0, N, dtype=torch.float64)),
    "multiple": symmetric(SPREAD.clamp(2.0, 9.0).round()),
    "decaying": symmetric(torch.logspace(-4, 0, N, dtype=torch.float64)),
    "a multiple of the identity": 2.0 * torch.eye(N, dtype=torch.float64),
    "zero": torch.zeros(N, N, dtype=torch.float64),
}


@pytest.mark.parametrize("which", ["largest", "smallest"])
@pytest.mark.parametrize("name", MATRICES)
def test_pairs_equal_the_dense_ones_and_figures_are_true(name, which):
    matrix = MATRICES[name]
    exact = torch.linalg.eigvalsh(matrix)
    exact = exact.flip(0)[:K] if which == "largest" else exact[:K]
    for iterations in (1, 5, 20, 300):
        pairs = lobpcg(matrix, K, KEY, which, tolerance=1e-7, max_iterations=iterations)
        true = (matrix @ pairs.vectors - pairs.vectors * pairs.values).norm(dim=0)
        torch.testing.assert_close(pairs.residuals, true, rtol=1e-6, atol=1e-13)
        torch.testing.assert_close(
            pairs.vectors.T @ pairs.vectors, torch.eye(K, dtype=torch.float64), rtol=0, atol=1e-12
        )
        small = 1e-7 * torch.linalg.eigvalsh(matrix).abs().max()
        assert not pairs.converged or true.max() <= small + 1e-14
    if (name, which) == ("decaying", "smallest"):  # 3e-5 of the spectrum apart: slow, and said to be
        assert not pairs.converged
    else:
        assert pairs.converged
        torch.testing.assert_close(pairs.values, exact, rtol=1e-7, atol=1e-8)


def test_a_preconditioner_and_a_start_save_iterations():
    matrix = symmetric(torch.logspace(0, 5, N, dtype=torch.float64))
    solve = torch.linalg.inv(matrix + torch.eye(N))
    options = {"which": "smallest", "tolerance": 1e-9}
    assert not lobpcg(matrix, K, KEY, **options, max_iterations=15).converged
    for preconditioner in (solve, matrix_operator(solve)):
        pairs = lobpcg(matrix, K, KEY, **options, preconditioner=preconditioner, max_iterations=15)
        assert pairs.converged
        torch.testing.assert_close(pairs.values, torch.linalg.eigvalsh(matrix)[:K], rtol=1e-7, atol=0)
    near = torch.linalg.qr(Q[:, :K] + 1e-5 * fnn.random.normal(KEY, (N, K), torch.float64)).Q
    few = {"which": "smallest", "tolerance": 1e-4, "max_iterations": 3}
    assert lobpcg(MATRICES["positive"], K, KEY, start=near, **few).converged
    assert not lobpcg(MATRICES["positive"], K, KEY, **few).converged


def test_equals_scipy():
    linalg = pytest.importorskip("scipy.sparse.linalg", reason="SciPy is the reference")
    start = fnn.random.normal(fnn.random.key(4), (N, K), torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        values, vectors = linalg.lobpcg(MATRICES["positive"].numpy(), start.numpy(), tol=1e-10, maxiter=300)
    pairs = lobpcg(MATRICES["positive"], K, KEY, start=start, tolerance=1e-11, max_iterations=300)
    torch.testing.assert_close(pairs.values, torch.as_tensor(values), rtol=1e-10, atol=0)
    overlap = (pairs.vectors.T @ torch.as_tensor(vectors)).abs()
    torch.testing.assert_close(overlap, torch.eye(K, dtype=torch.float64), rtol=0, atol=1e-6)


def test_compiled_and_mapped_runs_equal_the_eager_one():
    matrix = MATRICES["decaying"]
    run = lambda m, key, early_stop=True: lobpcg(
        matrix_operator(m, symmetric=True), 2, key, tolerance=1e-2, max_iterations=6, early_stop=early_stop
    )
    eager = run(matrix, KEY)
    assert eager.converged
    for other in (run(matrix, KEY, False), fnn.jit(run, backend="replay")(matrix, KEY)):
        for part, expected in zip(other, eager, strict=True):
            assert torch.equal(part, expected)
    mapped = torch.func.vmap(lambda m: run(m, KEY))(torch.stack([2.0 * matrix, matrix]))
    torch.testing.assert_close(mapped.values[1], eager.values)
    torch.testing.assert_close(mapped.values[0], 2.0 * eager.values)


def test_operators_of_trees_and_of_sixteen_bits():
    like = {"w": torch.zeros(4, 5), "b": torch.zeros(10)}
    matrix = MATRICES["positive"].float()
    unravel = fnn.tree.ravel(like)[1]
    A = LinearOperator(lambda v: unravel(matrix @ fnn.tree.ravel(v)[0]), like, symmetric=True)
    pairs = lobpcg(A, K, KEY, tolerance=1e-4)
    assert pairs.converged
    torch.testing.assert_close(pairs.values, SPREAD.flip(0)[:K].float(), rtol=1e-4, atol=0)
    half = lobpcg(torch.diag(SPREAD).bfloat16(), K, KEY, tolerance=1e-2)
    assert half.values.dtype == torch.float32
    torch.testing.assert_close(
        half.values, torch.linalg.eigvalsh(torch.diag(SPREAD).bfloat16().float()).flip(0)[:K], rtol=1e-2, atol=0
    )


EYE = torch.eye(9)
ERRORS = {
    "not symmetric": (lambda: lobpcg(torch.ones(9, 9).triu(), 1, KEY), r"lobpcg needs a symmetric operator.*A\.T @ A"),
    "no pairs": (lambda: lobpcg(EYE, 0, KEY), "got k=0"),
    "too many pairs": (lambda: lobpcg(EYE, 4, KEY), r"n = 9, got k=4; write torch\.linalg\.eigh"),
    "which": (lambda: lobpcg(EYE, 1, KEY, "magnitude"), "'largest' or 'smallest', got 'magnitude'"),
    "iterations": (lambda: lobpcg(EYE, 1, KEY, max_iterations=0), "got 0 and"),
    "tolerance": (lambda: lobpcg(EYE, 1, KEY, tolerance=0.0), r"and 0\.0"),
    "start": (lambda: lobpcg(EYE, 2, KEY, start=torch.ones(9)), r"shape \(9, 2\), got \(9,\)"),
    "preconditioner": (lambda: lobpcg(EYE, 1, KEY, preconditioner=torch.eye(3)), r"shape \(3, 3\)"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_sentences(name):
    call, words = ERRORS[name]
    with pytest.raises(ValueError, match=words):
        call()
