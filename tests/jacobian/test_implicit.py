"""Linear systems, roots and fixed points: every mixture of modes, mapped, traced; failures are reported."""

import functools
import itertools

import pytest
import torch
from torch.func import grad, jvp, vmap

import fnn
from fnn.jacobian import blocks_to_matrix, check_grads, dense_jacobian, fixed_point, linear_solve, root
from fnn.linalg import cg, lsmr, minres, neumann

KEYS = fnn.random.split(fnn.random.key(0), 6)
M = fnn.random.normal(KEYS[0], (4, 4), torch.float64) + 4.0 * torch.eye(4, dtype=torch.float64)
S = M @ M.T + 20.0 * torch.eye(4, dtype=torch.float64)
B, V = (fnn.random.normal(key, (4,), torch.float64) for key in KEYS[1:3])
ZERO = torch.zeros(4, dtype=torch.float64)
A = torch.tensor(2.5, dtype=torch.float64)
AS = torch.tensor([1.0, 2.5, 7.0], dtype=torch.float64)
STEPS = {"fwd": lambda f: lambda x: jvp(f, (x,), (torch.ones_like(x),))[1], "rev": grad}
close = functools.partial(torch.testing.assert_close, rtol=1e-8, atol=1e-10)


def cubic(x, a):
    """x^3 + x = a."""
    return x**3 + x - a


def cardano(a):
    """The real solution of x^3 + x = a in closed form."""
    half, rest = a / 2, (a * a / 4 + 1 / 27).sqrt()
    return (half + rest) ** (1 / 3) - (rest - half) ** (1 / 3)


def tight(x, matrix, b):
    """A contraction of vectors."""
    return torch.tanh(0.2 * (matrix @ x) / 4 + b)


SOLUTIONS = {
    "linear_solve": lambda a: linear_solve(lambda x, m, a: a * (m @ x) + m.T @ x, B * a.sin(), M, a)[0],
    "root": lambda a: root(cubic, torch.ones_like(a), a),
    "fixed_point": lambda a: fixed_point(lambda x, a: 0.5 * torch.cos(x) + a, torch.zeros_like(a), 0.1 * a),
}
REFERENCES = {
    # not torch.linalg.solve, whose reverse derivative over a forward one is wrong in torch 2.13
    "linear_solve": lambda a: torch.linalg.inv(a * M + M.T)[0] @ (B * a.sin()),
    "root": cardano,
    "fixed_point": lambda a: functools.reduce(lambda x, _: 0.5 * torch.cos(x) + 0.1 * a, range(60), 0.0 * a),
}


@pytest.mark.parametrize(
    ("name", "order"), [("linear_solve", 1), ("linear_solve", 2), ("root", 2), ("root", 3), ("fixed_point", 2)]
)
def test_every_mixture_of_modes(name, order):
    theirs = REFERENCES[name]
    close(SOLUTIONS[name](A), theirs(A))
    for _ in range(order):
        theirs = grad(theirs)
    for modes in itertools.product(STEPS, repeat=order):
        ours = SOLUTIONS[name]
        for mode in modes:
            ours = STEPS[mode](ours)
        close(ours(A), theirs(A))


TRANSFORMS = {
    "call": lambda f: f,
    "grad": grad,
    "jvp(grad)": lambda f: lambda a: jvp(grad(f), (a,), (2.0 * a,))[1],
    "grad(jvp)": lambda f: grad(lambda a: jvp(f, (a,), (a,))[1]),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", SOLUTIONS)
def test_mapped_and_traced(name, transform):
    # a short iteration: under vmap and in a trace it makes all of its steps
    function, apply = SOLUTIONS[name], TRANSFORMS[transform]
    if name == "fixed_point":
        function = lambda a: fixed_point(
            lambda x, a: 0.5 * torch.cos(x) + a, torch.zeros_like(a), 0.1 * a, max_iterations=60
        )
    one = apply(REFERENCES[name])
    expected = torch.stack([one(a) for a in AS])
    close(vmap(apply(function))(AS), expected)
    close(fnn.jit(apply(function))(AS[0]), expected[0])
    close(fnn.jit(vmap(apply(function)))(AS), expected)


def test_ordinary_backward():
    a = A.clone().requires_grad_()
    root(cubic, torch.ones_like(A), a).backward()
    close(a.grad, grad(cardano)(A))


LINEAR_SOLVERS = {
    "dense": None,
    "cg": functools.partial(cg, tolerance=1e-12),
    "minres": functools.partial(minres, tolerance=1e-12),
    "lsmr": functools.partial(lsmr, tolerance=1e-12, max_iterations=100),
    "neumann": functools.partial(neumann, scale=1.5 / float(S.norm()), tolerance=1e-9, max_iterations=3_000),
    "own": lambda operator, b: torch.linalg.inv(operator.dense()) @ b,
}


@pytest.mark.parametrize("solver", LINEAR_SOLVERS)
@pytest.mark.parametrize("symmetric", [True, False])
def test_every_solver(solver, symmetric):
    if solver in ("cg", "minres") and not symmetric:
        with pytest.raises(ValueError, match=f"{solver} needs a symmetric operator"):
            linear_solve(torch.mv, B, S, linear_solver=LINEAR_SOLVERS[solver])
        return
    matrix = S if symmetric or solver == "neumann" else M
    product = lambda x, m: m @ x
    ours = lambda m, b: linear_solve(product, b, m, linear_solver=LINEAR_SOLVERS[solver], symmetric=symmetric) ** 3 @ V
    theirs = lambda m, b: torch.linalg.solve(m, b) ** 3 @ V
    near = functools.partial(torch.testing.assert_close, rtol=1e-6, atol=1e-9)
    # a symmetric solver is told that the matrix is symmetric and need not know the other half of the derivative
    found, expected = grad(ours, (0, 1))(matrix, B), grad(theirs, (0, 1))(matrix, B)
    near(found[1], expected[1])
    near(found[0] + found[0].T, expected[0] + expected[0].T)
    near(jvp(ours, (matrix, B), (S, V))[1], jvp(theirs, (matrix, B), (S, V))[1])


def test_trees_integers_and_matrices():
    """Two leaves and an integer among the arguments, against finite differences and the dense formula."""
    power = torch.tensor(3)

    def f(x, p, n):
        return {
            "u": x["u"] + 0.1 * n * x["v"].sum() ** 2 - p["b"],
            "v": x["v"] * (2.0 + p["c"]) + 0.3 * x["u"][:1].sin(),
        }

    x0 = {"u": ZERO[:2], "v": ZERO[:1]}
    p = {"b": B[:2], "c": V[:1].abs()}
    solution = lambda p: root(f, x0, p, power)
    x = solution(p)
    assert all(float(leaf.abs().max()) < 1e-12 for leaf in fnn.tree.leaves(f(x, p, power)))
    check_grads(solution, (p,))
    by_x = blocks_to_matrix(dense_jacobian(lambda x: f(x, p, power))(x), x)
    by_p = blocks_to_matrix(dense_jacobian(lambda p: f(x, p, power))(p), p)
    for mode in ("forward", "reverse"):
        found = blocks_to_matrix(dense_jacobian(solution, mode=mode)(p), p)
        close(found, -torch.linalg.solve(by_x, by_p))


def test_a_fixed_point_of_vectors_with_each_linear_solver():
    x = fixed_point(tight, ZERO, M, B)
    close(x, tight(x, M, B))
    loop = lambda m, b: functools.reduce(lambda x, _: tight(x, m, b), range(40), ZERO)
    by_b = lambda b: fixed_point(tight, ZERO, M, b) @ V
    close(jvp(grad(by_b), (B,), (V,))[1], jvp(grad(lambda b: loop(M, b) @ V), (B,), (V,))[1])
    for solver in (None, functools.partial(neumann, tolerance=1e-12, max_iterations=50), LINEAR_SOLVERS["lsmr"]):
        energy = lambda m, b, s=solver: fixed_point(tight, ZERO, m, b, linear_solver=s) @ V
        for ours, theirs in zip(
            grad(energy, (0, 1))(M, B), grad(lambda m, b: loop(m, b) @ V, (0, 1))(M, B), strict=True
        ):
            close(ours, theirs)


def test_a_method_of_ones_own_is_differentiated_by_its_equation():
    """Three hundred steps of gradient descent on ridge regression, solved by cg, against the normal equations."""
    slope = lambda w, decay: M.T @ (M @ w - B) + decay * w
    descend = lambda g, w: functools.reduce(lambda w, _: w - 0.02 * g(w), range(3000), w)
    ours = lambda decay: root(
        slope, ZERO, decay, solve=descend, symmetric=True, linear_solver=LINEAR_SOLVERS["cg"], tolerance=1e-6
    ).pow(2)
    theirs = lambda decay: torch.linalg.solve(M.T @ M + decay * torch.eye(4, dtype=torch.float64), M.T @ B).pow(2)
    close(jvp(ours, (A,), (A,))[1], jvp(theirs, (A,), (A,))[1], rtol=1e-5)
    close(grad(lambda a: ours(a).sum())(A), grad(lambda a: theirs(a).sum())(A), rtol=1e-5)


def test_the_derivative_by_the_starting_point_is_zero():
    assert grad(lambda x0: root(cubic, x0, A))(A) == 0.0
    assert jvp(lambda x0: fixed_point(lambda x, a: x / 2 + a, x0, A), (A,), (A,))[1] == 0.0


def test_solutions_own_their_memory():
    b = B.clone()
    same = linear_solve(lambda x: x, b, linear_solver=lambda operator, b: b)
    assert same.data_ptr() != b.data_ptr()
    x0 = ZERO.clone()
    assert root(lambda x: x, x0, solve=lambda g, x: x).data_ptr() != x0.data_ptr()


NO_ROOT = lambda x, a: x**2 + a
FAILURES = {
    "newton": (lambda a: root(NO_ROOT, 1.1 * torch.ones_like(a), a), "Newton's method has not converged in 20 iter"),
    "singular": (lambda a: root(lambda x, a: 0.0 * x + a, a, a), "Newton's method has not converged"),
    "not a root": (lambda a: root(cubic, a, a, solve=lambda g, x: x), "root: solve has not converged"),
    "iteration": (
        lambda a: fixed_point(lambda x, a: 2.0 * x + a, a, a, max_iterations=9),
        r"the iteration has not converged in 9 iterations.*jacobian\.root",
    ),
    "not fixed": (lambda a: fixed_point(lambda x, a: x / 2 + a, a, a, solve=lambda g, x: x), "fixed_point: solve"),
    "matrix": (lambda a: linear_solve(lambda x, a: 0.0 * x, a, a), "the matrix is singular"),
    "solver": (
        lambda a: linear_solve(
            lambda x, a: x * torch.arange(1, 5, device=x.device) * a,
            a.expand(4),
            a,
            linear_solver=functools.partial(lsmr, max_iterations=1),
        ).sum(),
        "linear_solver has not converged; give it a larger tolerance",
    ),
}


@pytest.mark.parametrize("name", FAILURES)
def test_failures_are_reported(name):
    function, message = FAILURES[name]
    for call in (function, grad(function), lambda a: jvp(function, (a,), (a,))[1]):
        with pytest.raises(RuntimeError, match=message):
            call(A)
    assert vmap(function)(AS).isnan().all()
    assert fnn.jit(grad(function))(A).isnan().all()


def test_one_failure_under_vmap_leaves_the_others_right():
    found = vmap(lambda a: root(lambda x, a: x**2 - a, torch.ones_like(a), a))(torch.stack([A, -A, 4.0 * A]))
    assert found[1].isnan()
    close(found[[0, 2]], torch.stack([A, 4.0 * A]).sqrt())


def test_a_wrong_derivative_is_not_handed_out_where_only_the_adjoint_system_fails():
    once = functools.partial(lsmr, max_iterations=1)
    solve = lambda g, x: torch.linalg.solve(M, B)
    function = lambda b: root(lambda x, b: M @ x - b, ZERO, b, solve=solve, linear_solver=once)
    with pytest.raises(RuntimeError, match="has not converged"):
        grad(lambda b: function(b).sum())(B)


def test_errors_are_sentences():
    scalar = torch.tensor(1.0)
    for call, message in {
        lambda: root(lambda x, a: x.to(torch.complex64), scalar.to(torch.complex64), scalar): "root takes real numbers",
        lambda: fixed_point(lambda x: x, torch.tensor(1)): r"x0 is a torch\.int64 tensor",
        lambda: linear_solve(lambda x: x, B.to(torch.complex128)): "linear_solve takes real numbers",
        lambda: root(cubic, scalar, 2.0): r"root: args\[0\] is 2\.0, not a tensor; write torch\.tensor\(2\.0\)",
        lambda: root(cubic, scalar, A.to(torch.complex128)): r"root takes real numbers, and args\[0\] is a",
    }.items():
        with pytest.raises(TypeError, match=message):
            call()
    for call, message in {
        lambda: root(lambda x: x.sum(), ZERO): r"f\(x0, \*args\) has shape \(\)",
        lambda: root(cubic, scalar, scalar, max_iterations=0): "max_iterations of at least 1",
        lambda: fixed_point(cubic, scalar, scalar, tolerance=0.0): "positive tolerance",
        lambda: root(lambda x: x, ZERO, solve=lambda g, x: x[0]): r"the result of solve has shape \(\)",
        lambda: linear_solve(lambda x: x, ZERO, linear_solver=lambda A, b: b[0]): "the result of linear_solver has",
        lambda: linear_solve(lambda x: x[0], ZERO): "what matvec returned",
        lambda: grad(lambda a: root(lambda x: cubic(x, a), scalar))(scalar): "closes over a tensor that is diff",
        lambda: grad(lambda a: linear_solve(lambda x: a * x, scalar))(scalar): "closes over a tensor that is diff",
    }.items():
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_default_tolerance_gives_the_digits_of_the_dtype(dtype):
    for a in AS.to(dtype):
        x = root(cubic, torch.ones_like(a), a)
        assert float((x - cardano(a.double())).abs()) <= 4.0 * torch.finfo(dtype).eps * float(x)


def test_jax_gives_the_same():
    jax = pytest.importorskip("jax")
    with jax.enable_x64(True):
        jnp = jax.numpy
        newton = lambda g, x: functools.reduce(lambda x, _: x - g(x) / jax.grad(g)(x), range(20), x)
        tangent = lambda g, y: y / g(1.0)
        theirs = lambda a: jax.lax.custom_root(lambda x: x**3 + x - a, 1.0, newton, tangent)
        for ours, other in ((SOLUTIONS["root"], theirs), (grad(SOLUTIONS["root"]), jax.grad(theirs))):
            assert float(ours(A)) == pytest.approx(float(other(2.5)), rel=1e-10)
        assert float(grad(grad(SOLUTIONS["root"]))(A)) == pytest.approx(
            float(jax.grad(jax.grad(theirs))(2.5)), rel=1e-10
        )
        dense = lambda matvec, b: jnp.linalg.solve(jax.jacobian(matvec)(b), b)
        solve = lambda m, b: jax.lax.custom_linear_solve(lambda x: m @ x, b, dense, dense)
        theirs = jax.grad(lambda m, b: (solve(m, b) ** 3).sum(), (0, 1))(M.numpy(), B.numpy())
        ours = grad(lambda m, b: (linear_solve(lambda x, m: m @ x, b, m) ** 3).sum(), (0, 1))(M, B)
        for one, other in zip(ours, theirs, strict=True):
            close(one, torch.tensor(other.tolist(), dtype=torch.float64))
