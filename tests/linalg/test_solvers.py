"""Solvers against dense solutions and SciPy in float64."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

import fnn
from fnn.linalg import LinearOperator, Solution, cg, gmres, lsmr, matrix_operator, minres, neumann

N = 20
Q = torch.linalg.qr(fnn.random.normal(fnn.random.key(0), (N, N), torch.float64)).Q
B = fnn.random.normal(fnn.random.key(1), (N,), torch.float64)
TALL = fnn.random.normal(fnn.random.key(2), (30, N), torch.float64)


def symmetric(values):
    matrix = Q @ torch.diag(values) @ Q.T
    return (matrix + matrix.T) / 2


POSITIVE = symmetric(torch.linspace(1.0, 10.0, N, dtype=torch.float64))
INDEFINITE = symmetric(torch.linspace(-3.1, 5.0, N, dtype=torch.float64))
GENERAL = POSITIVE + 0.5 * TALL[:N]
CASES = {
    "cg": (cg, POSITIVE, {}),
    "minres": (minres, INDEFINITE, {"max_iterations": 60}),
    "lsmr": (lsmr, INDEFINITE, {"max_iterations": 200}),
    "neumann": (neumann, POSITIVE, {"scale": 0.15, "max_iterations": 400}),
    "gmres": (gmres, GENERAL, {"restart": 5, "max_iterations": 200}),
    "gmres without restarts": (gmres, GENERAL, {"max_iterations": 40}),
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
def test_fixed_iterations_trace_map_and_change_nothing(name):
    solve, matrix, options = CASES[name]
    options = options | {"tolerance": 1e-3, "max_iterations": 12}
    early, fixed = solve(matrix, B, **options), solve(matrix, B, early_stop=False, **options)
    traced = make_fx(
        lambda b: solve(matrix_operator_of(matrix), b, **options), tracing_mode="fake", _allow_non_fake_inputs=True
    )(B)
    mapped = torch.func.vmap(lambda b: solve(matrix_operator_of(matrix), b, **options))(torch.stack([0.0 * B, B]))
    for other in (fixed, traced(B), Solution(*(part[1] for part in mapped))):
        torch.testing.assert_close(tuple(other), tuple(early), rtol=1e-9, atol=1e-11)
    assert mapped.converged[0]
    assert mapped.iterations[0] == 0


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
    general = matrix + 0.5 * TALL[:N]
    plain = gmres(general, B, tolerance=1e-8, max_iterations=500)
    better = gmres(general, B, preconditioner=inverse, tolerance=1e-8, max_iterations=500)
    assert better.converged
    assert better.iterations < plain.iterations
    assert gmres(general, B, x0=better.solution, tolerance=1e-7).iterations == 0


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


@pytest.mark.parametrize("preconditioned", [False, True])
@pytest.mark.parametrize(("restart", "iterations"), [(N, 6), (N, 15), (4, 12)])
def test_gmres_iterates_equal_scipy(restart, iterations, preconditioned):
    linalg = pytest.importorskip("scipy.sparse.linalg", reason="SciPy is the reference")
    M = torch.linalg.inv(POSITIVE) if preconditioned else torch.eye(N, dtype=torch.float64)
    options = {"rtol": 1e-15, "restart": min(restart, iterations), "maxiter": max(iterations // restart, 1)}
    peer = M.numpy() @ linalg.gmres((GENERAL @ M).numpy(), B.numpy(), **options)[0]
    given = M if preconditioned else None
    mine = gmres(GENERAL, B, preconditioner=given, restart=restart, tolerance=1e-14, max_iterations=iterations)
    torch.testing.assert_close(mine.solution, torch.as_tensor(peer), rtol=1e-9, atol=1e-11)
    if preconditioned and restart == N:
        as_function = gmres(
            GENERAL, B, preconditioner=lambda r: M @ r, restart=N, tolerance=1e-14, max_iterations=iterations
        )
        torch.testing.assert_close(as_function.solution, mine.solution)


def test_gmres_of_a_cyclic_shift_ends_after_n_iterations_and_stagnates_with_restarts():
    shift, b = torch.roll(torch.eye(6), 1, 0), torch.eye(6)[0]
    whole = gmres(shift, b)
    assert whole.converged
    assert whole.iterations == 6
    torch.testing.assert_close(whole.solution, torch.eye(6)[5])
    again = gmres(shift, b, restart=5, max_iterations=60)
    assert not again.converged
    assert again.residual == 1


def test_gmres_in_a_compiled_function():
    step = lambda matrix, b: gmres(matrix, b, restart=2, tolerance=1e-14, max_iterations=3)
    replayed = fnn.jit(step, backend="replay")(GENERAL, B)
    for actual, expected in zip(replayed, step(GENERAL, B), strict=True):
        assert torch.equal(actual, expected)


def test_trees_in_trees_out_and_zero():
    like = {"w": torch.zeros(4, 4).double(), "b": torch.zeros(4).double()}
    b = fnn.tree.ravel(like)[1](B)
    A = LinearOperator(lambda t: fnn.tree.ravel(like)[1](POSITIVE @ fnn.tree.ravel(t)[0]), like, symmetric=True)
    for solve in (cg, minres, lsmr, gmres):
        result = solve(A, b, tolerance=1e-10, max_iterations=200)
        torch.testing.assert_close(fnn.tree.ravel(result.solution)[0], torch.linalg.solve(POSITIVE, B))
        nothing = solve(A, fnn.tree.zeros_like(b))
        assert nothing.converged
        assert fnn.tree.global_norm(nothing.solution) == 0


def test_gradient_through_fixed_iterations():
    solve = lambda b: cg(matrix_operator_of(POSITIVE), b, tolerance=1e-14, early_stop=False).solution.sum()
    expected = torch.linalg.solve(POSITIVE, torch.ones_like(B))
    torch.testing.assert_close(torch.func.grad(solve)(B), expected, rtol=1e-5, atol=1e-7)
    of_matrix = lambda A: gmres(A, B, tolerance=1e-14, early_stop=False).solution.sum()
    expected = torch.func.grad(lambda A: torch.linalg.solve(A, B).sum())(GENERAL)
    torch.testing.assert_close(torch.func.grad(of_matrix)(GENERAL), expected, rtol=1e-5, atol=1e-7)


ERRORS = {
    "cg not symmetric": (lambda: cg(TALL[:N], B), ValueError, "cg needs a symmetric operator"),
    "minres not symmetric": (lambda: minres(TALL[:N], B), ValueError, "lsmr"),
    "not square": (lambda: cg(TALL, B), ValueError, r"square operator.*lsmr"),
    "gmres not square": (lambda: gmres(TALL, B), ValueError, r"gmres needs a square operator.*lsmr"),
    "restart": (lambda: gmres(GENERAL, B, restart=0), ValueError, "restart of at least 1, .* got 0"),
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


def ill_conditioned(condition, n=40, symmetric=True, indefinite=False):
    left = torch.linalg.qr(fnn.random.normal(fnn.random.key(7), (n, n), torch.float64)).Q
    right = left if symmetric else torch.linalg.qr(fnn.random.normal(fnn.random.key(8), (n, n), torch.float64)).Q
    values = condition ** -torch.linspace(0, 1, n, dtype=torch.float64)
    if indefinite:
        values = values * (-1.0) ** torch.arange(n)
    return left @ torch.diag(values) @ right.T


def hilbert(n):
    index = torch.arange(n, dtype=torch.float64)
    return 1.0 / (index[:, None] + index + 1.0)


HARD = {
    "hilbert": (hilbert(6), True),
    "hilbert 12": (hilbert(12), True),
    "condition 1e2": (ill_conditioned(1e2), True),
    "condition 1e4": (ill_conditioned(1e4), True),
    "condition 1e6": (ill_conditioned(1e6), True),
    "indefinite": (ill_conditioned(1e4, indefinite=True), True),
    "not symmetric": (ill_conditioned(1e4, symmetric=False), False),
    "singular": (torch.diag(torch.tensor([1.0, 0.5, 0.0]).double()), True),
}


def true_residual(solve, matrix, b, x):
    """In float64, what `converged` is about."""
    matrix, b, x = matrix.double(), b.double(), x.double()
    r = b - matrix @ x
    solved = r.norm() / b.norm()
    if solve is not lsmr:
        return solved
    stationary = (matrix.T @ r).norm() / r.norm() / ((matrix.T @ b).norm() / b.norm())
    return torch.minimum(solved, stationary).nan_to_num(0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("side", ["in the range", "anywhere"])
@pytest.mark.parametrize("solve", [cg, minres, lsmr, neumann, gmres])
@pytest.mark.parametrize("name", HARD)
def test_figures_are_true_and_the_best_iterate_is_returned(name, solve, side, dtype):
    matrix, symmetric = HARD[name]
    if not symmetric and solve in (cg, minres):
        pytest.skip("for symmetric operators")
    matrix = matrix.to(dtype)
    b = fnn.random.normal(fnn.random.key(9), (len(matrix),), dtype)
    b = matrix @ b if side == "in the range" else b
    A = LinearOperator(lambda v: matrix @ v, b, rmatvec=lambda u: matrix.T @ u, symmetric=symmetric)
    best = 1.0
    for iterations in (1, 2, 3, 5, 8, 15, 30, 60, 300):
        result = solve(A, b, max_iterations=iterations)
        true = true_residual(solve, matrix, b, result.solution)
        noise = 20 * torch.finfo(dtype).eps * (1 + matrix.norm() * result.solution.norm() / b.norm())
        assert result.converged == (result.residual <= 1e-6)
        if solve is not lsmr or dtype == torch.float64:  # |s| / |R| is itself rounded in float32
            assert abs(true - result.residual) <= noise + 0.05 * true
        assert true <= (1.05e-6 + noise if result.converged else max(1.3 * best, 1e-6) + noise)
        torch.testing.assert_close(
            result.residual_norm.double(),
            (b.double() - matrix.double() @ result.solution.double()).norm(),
            rtol=0.05,
            atol=float(noise * b.norm()),
        )
        best = min(best, float(true))


def test_what_can_be_solved_is_solved():
    """Where float32 suffices for the tolerance, restarts reach it."""
    for condition in (1e2, 1e4):
        matrix = ill_conditioned(condition).to(torch.float32)
        matrix = (matrix + matrix.T) / 2
        b = matrix @ torch.ones(len(matrix))
        for solve in (cg, minres):
            assert solve(matrix, b, max_iterations=1000).converged
    H = hilbert(6).to(torch.float32)
    for solve in (cg, minres, lsmr, gmres):
        assert solve(H, H @ torch.ones(6), max_iterations=100).converged


@pytest.mark.parametrize("early_stop", [True, False])
def test_a_residual_that_equals_the_tolerance_has_converged(early_stop):
    """In these numbers a step halves the residual without rounding, and below the tolerance another step is taken."""
    ones, options = torch.ones(4, dtype=torch.float64), {"max_iterations": 5, "early_stop": early_stop}
    for solve, matrix in (
        (cg, torch.diag(torch.tensor([1.0, 3.0] * 2).double())),
        (neumann, 0.5 * torch.eye(4).double()),
    ):
        equal, below = (solve(matrix, ones, tolerance=tolerance, **options) for tolerance in (0.5, 0.499))
        assert equal.converged
        assert equal.residual == 0.5
        assert below.residual < 0.499
        assert below.iterations == equal.iterations + 1
    for solve in (cg, minres, lsmr, neumann):  # of x = 0 the residual is b
        equal, below = (
            solve(torch.eye(4).double(), ones, tolerance=tolerance, **options) for tolerance in (1.0, 0.999)
        )
        assert equal.converged
        assert (equal.iterations, equal.residual) == (0, 1.0)
        assert below.residual < 0.999


@pytest.mark.parametrize("solve", [cg, minres, gmres])
def test_singular_systems(solve):
    matrix = torch.diag(torch.tensor([1.0, 0.0]))
    outside = solve(matrix, torch.tensor([0.0, 1.0]))
    assert not outside.converged
    assert outside.residual_norm == 1
    assert outside.solution.isfinite().all()
    inside = solve(matrix, torch.tensor([2.0, 0.0]))
    assert inside.converged
    torch.testing.assert_close(inside.solution, torch.tensor([2.0, 0.0]))


def test_matrices_symmetric_up_to_rounding_are_accepted():
    for dtype in (torch.float32, torch.float64):
        for n in (3, 50, 400):
            wide = fnn.random.normal(fnn.random.key(n), (n, n + 5), dtype)
            gram = wide @ wide.T + n * torch.eye(n, dtype=dtype)
            gram[0, 1] = gram[0, 1] * (1 + 3 * torch.finfo(dtype).eps)
            assert matrix_operator(gram).symmetric
            assert cg(gram, torch.ones(n, dtype=dtype), tolerance=1e-4, max_iterations=5 * n).converged
            bent = gram.clone()
            bent[0, 1] += 1e-3 * gram.abs().max()
            with pytest.raises(ValueError, match="cg needs a symmetric operator"):
                cg(bent, torch.ones(n, dtype=dtype))
    model = fnn.models.mlp(4, 6, 3, activation=fnn.layers.tanh)
    x, y = fnn.random.normal(fnn.random.key(1), (9, 4)), fnn.random.randint(fnn.random.key(2), (9,), 0, 3)
    params = model.init(fnn.random.key(0))
    loss = lambda p: fnn.losses.cross_entropy(model.apply(p, x), y)
    hessian = fnn.jacobian.blocks_to_matrix(fnn.curvature.dense_hessian(loss)(params), params)
    assert not torch.equal(hessian, hessian.T)
    assert cg(hessian + 5.0 * torch.eye(len(hessian)), torch.ones(len(hessian)), tolerance=1e-4).converged
    with pytest.raises(ValueError, match="symmetric"):
        minres(torch.tensor([[1.0, float("nan")], [float("nan"), 1.0]]), torch.ones(2))


def test_solvers_under_vmap_over_matrices():
    matrices = torch.stack([POSITIVE, 2.0 * POSITIVE])
    bs = torch.stack([B, 3.0 * B])
    result = torch.func.vmap(lambda m, b: cg(matrix_operator(m, symmetric=True), b, tolerance=1e-9))(matrices, bs)
    assert result.converged.all()
    torch.testing.assert_close(result.solution, torch.linalg.solve(matrices, bs), rtol=1e-6, atol=1e-8)
    for name, call in {"cg": cg, "minres": minres}.items():
        with pytest.raises(ValueError, match=rf"{name} needs.*under vmap.*matrix_operator\(matrix, symmetric=True\)"):
            torch.func.vmap(call)(matrices, bs)
    least = torch.func.vmap(lambda m, b: lsmr(m, b, tolerance=1e-9, max_iterations=100))(matrices, bs)
    torch.testing.assert_close(least.solution, result.solution, rtol=1e-5, atol=1e-7)


def test_magnitudes_beyond_squares():
    """b of 1e-25 in float32, whose squares underflow, and of 1e25, whose squares overflow."""
    matrix = POSITIVE.to(torch.float32)
    matrix = (matrix + matrix.T) / 2
    for scale in (1e-25, 1e25):
        b = scale * B.to(torch.float32)
        for solve in (cg, minres, gmres):
            result = solve(matrix, b, tolerance=1e-5, max_iterations=60)
            assert result.converged
            torch.testing.assert_close(
                result.solution / scale, torch.linalg.solve(POSITIVE, B).float(), rtol=1e-3, atol=1e-5
            )


def test_sixteen_bit_systems_iterate_in_float32():
    matrix = torch.diag(torch.linspace(1.0, 10.0, 30)).to(torch.bfloat16)
    result = cg(matrix, torch.ones(30, dtype=torch.bfloat16), tolerance=1e-2)
    assert result.solution.dtype == torch.bfloat16
    assert result.converged
    torch.testing.assert_close(result.solution.float(), 1 / matrix.diagonal().float(), rtol=5e-2, atol=0)


def test_a_start_at_the_solution_is_not_handed_back():
    x0 = torch.linalg.solve(POSITIVE, B)
    result = cg(POSITIVE, B, x0=x0)
    assert result.iterations == 0
    assert result.solution.data_ptr() != x0.data_ptr()
