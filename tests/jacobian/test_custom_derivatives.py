"""Derivatives of one's own: every mixture of modes, mapped, traced, with solvers inside; wrong rules are refused."""

import functools
import itertools

import pytest
import torch
from torch.func import grad, hessian, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx

import fnn
from fnn.jacobian import check_grads, custom_jvp, custom_vjp
from fnn.linalg import LinearOperator, cg, lsmr, minres, neumann

SCALAR = torch.tensor(0.4, dtype=torch.float64)
X = torch.tensor([0.3, -1.2, 2.0], dtype=torch.float64)
STEPS = {"fwd": lambda f: lambda x: jvp(f, (x,), (torch.ones_like(x),))[1], "rev": grad}
# the values of exp and the derivative of sin: values of exp, then cos, -sin, -cos, ...
MAKERS = {
    "custom_jvp": lambda: custom_jvp(torch.exp, lambda p, t: (torch.exp(p[0]), torch.cos(p[0]) * t[0])),
    "custom_vjp": lambda: custom_vjp(torch.exp, lambda x: (torch.exp(x), x), lambda x, u: (torch.cos(x) * u,)),
}


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_every_mixture_of_modes(maker, order):
    own = MAKERS[maker]()
    assert torch.equal(own(SCALAR), torch.exp(SCALAR))
    for modes in itertools.product(STEPS, repeat=order):
        ours, theirs = own, torch.sin
        for mode in modes:
            ours, theirs = STEPS[mode](ours), grad(theirs)
        torch.testing.assert_close(ours(SCALAR), theirs(SCALAR))


@pytest.mark.parametrize("maker", MAKERS)
def test_mapped_and_traced(maker):
    own = MAKERS[maker]()
    energy = lambda f: lambda x: (f(x) * torch.cos(x)).sum()
    plain = lambda x: torch.exp(x.detach()) + torch.sin(x) - torch.sin(x.detach())
    for transform in (
        lambda f: vmap(grad(f)),
        lambda f: vmap(lambda x: jvp(f, (x,), (2.0 * x,))[1]),
        lambda f: hessian(energy(f)),
        lambda f: lambda x: fnn.value_and_grad(energy(f))(x)[1],
    ):
        expected = transform(plain)(X)
        torch.testing.assert_close(transform(own)(X), expected)
        for mode in ("fake", "real"):
            torch.testing.assert_close(make_fx(transform(own), tracing_mode=mode)(X)(X), expected)


def test_ordinary_backward():
    x = X.clone().requires_grad_()
    MAKERS["custom_vjp"]()(x).sum().backward()
    torch.testing.assert_close(x.grad, X.cos())


def test_trees_and_integers():
    """x / |x| with the rule written out, against torch's own derivative of the plain form."""
    plain = lambda p, s, n: {"y": s * p["x"] / p["x"].norm() + n, "n": n}

    def rule(primals, tangents):
        (p, s, _), (dp, ds, _) = primals, tangents
        length = p["x"].norm()
        unit = p["x"] / length
        slope = ds * unit + s * (dp["x"] - unit * (unit * dp["x"]).sum()) / length
        return plain(*primals), {"y": slope, "n": torch.zeros(())}

    own = custom_jvp(plain, rule)
    three = torch.tensor(3)
    check_grads(lambda p, s: own(p, s, three)["y"], ({"x": X}, SCALAR), order=2)
    energy = lambda f: lambda x, s: f({"x": x}, s, three)["y"].pow(2).dot(X)
    torch.testing.assert_close(hessian(energy(own), (0, 1))(X, SCALAR), hessian(energy(plain), (0, 1))(X, SCALAR))


SOLVERS = {
    "cg": lambda A, b: cg(A, b, tolerance=1e-9),
    "minres": lambda A, b: minres(A, b, tolerance=1e-9),
    "lsmr": lambda A, b: lsmr(A, b, tolerance=1e-9),
    "neumann": lambda A, b: neumann(A, b, scale=1.0 / MATRIX.norm(), tolerance=1e-9, max_iterations=300),
}
ROOT = fnn.random.normal(fnn.random.key(0), (5, 5), torch.float64)
MATRIX = ROOT @ ROOT.T + 4.0 * torch.eye(5, dtype=torch.float64)
SIDE = fnn.random.normal(fnn.random.key(1), (5,), torch.float64)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_rule_may_run_a_solver(solver):
    """The implicit derivative of x = A^-1 b, whose linear system is solved by iterations."""

    def rule(primals, tangents):
        (A, b), (dA, db) = primals, tangents
        x = torch.linalg.solve(A, b)
        operator = LinearOperator(lambda v: A @ v, SIDE, rmatvec=lambda v: A.T @ v, symmetric=True)
        return x, SOLVERS[solver](operator, db - dA @ x).solution

    own = custom_jvp(torch.linalg.solve, rule)
    cube = lambda f: lambda A, b: (f(A, b) ** 3).sum()
    close = lambda a, b: torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)
    plain = cube(torch.linalg.solve)
    fnn.tree.map(close, grad(cube(own), (0, 1))(MATRIX, SIDE), grad(plain, (0, 1))(MATRIX, SIDE))
    tangents = ROOT, torch.ones_like(SIDE)
    close(jvp(cube(own), (MATRIX, SIDE), tangents)[1], jvp(plain, (MATRIX, SIDE), tangents)[1])


def test_a_backward_rule_may_run_a_solver():
    operator = LinearOperator(lambda v: MATRIX @ v, SIDE, symmetric=True)
    own = custom_vjp(
        lambda b: torch.linalg.solve(MATRIX, b),
        lambda b: (torch.linalg.solve(MATRIX, b), ()),
        lambda _, u: (cg(operator, u, tolerance=1e-10).solution,),
    )
    inverse = torch.linalg.inv(MATRIX)
    torch.testing.assert_close(jvp(own, (SIDE,), (ROOT[0],))[1], inverse @ ROOT[0], rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(fnn.jacobian.dense_jacobian(own)(SIDE), inverse, rtol=1e-6, atol=1e-9)


def test_a_rule_may_call_the_function_that_is_made():
    own = custom_jvp(torch.exp, lambda p, t: (own(p[0]), own(p[0]) * t[0]))
    torch.testing.assert_close(grad(grad(own))(SCALAR), SCALAR.exp())
    torch.testing.assert_close(jvp(grad(own), (SCALAR,), (SCALAR,))[1], SCALAR.exp() * SCALAR)


NOT_LINEAR = {
    "clipped": lambda p, t: (p[0], t[0].clamp(-1.0, 1.0)),
    "squared": lambda p, t: (p[0], t[0] ** 2),
    "shifted": lambda p, t: (p[0], t[0] + 1.0),
    "absolute": lambda p, t: (p[0], t[0].abs()),
    "nonzero": lambda p, t: (p[0], (t[0] != 0).double()),
}


@pytest.mark.parametrize("name", NOT_LINEAR)
def test_rules_that_are_not_linear_are_refused(name):
    own = custom_jvp(lambda x: x, NOT_LINEAR[name])
    with pytest.raises(ValueError, match="not linear in its tangents"):
        grad(lambda x: own(x).sum())(X)
    with pytest.raises(ValueError, match="not linear in its tangents"):
        jvp(own, (X,), (X,))
    assert vmap(grad(own))(X).isnan().all()
    traced = make_fx(grad(lambda x: own(x).sum()), tracing_mode="fake")(X)
    assert traced(X).isnan().all()


def test_a_backward_rule_need_not_be_linear_but_has_no_forward_mode_then():
    clipped = custom_vjp(lambda x: x, lambda x: (x, ()), lambda _, u: (u.clamp(-1.0, 1.0),))
    assert torch.equal(grad(lambda x: (5.0 * clipped(x)).sum())(X), torch.ones_like(X))
    with pytest.raises(ValueError, match="not linear in the cotangent"):
        jvp(clipped, (X,), (X,))


def test_errors_are_sentences():
    with pytest.raises(ValueError, match="closes over a tensor that is differentiated"):
        grad(lambda w: custom_jvp(lambda x: x * w, lambda p, t: (p[0] * w, t[0] * w))(X).sum())(SCALAR)
    with pytest.raises(ValueError, match="closes over a tensor that is differentiated"):
        fnn.value_and_grad(lambda w: custom_jvp(lambda x: x * w, lambda p, t: (p[0] * w, t[0] * w))(X).sum())(SCALAR)
    with pytest.raises(ValueError, match=r"returns a pair \(output, tangent of the output\)"):
        grad(custom_jvp(torch.sin, lambda p, t: t[0]))(SCALAR)
    with pytest.raises(ValueError, match=r"tangent that its rule returns has shape \(\)"):
        jvp(custom_jvp(torch.sin, lambda p, t: (p[0], t[0].sum())), (X,), (X,))
    with pytest.raises(ValueError, match=r"write \(cotangent,\) for one"):
        grad(custom_vjp(torch.sin, lambda x: (torch.sin(x), x), lambda x, u: u))(SCALAR)
    with pytest.raises(ValueError, match="output of its forward rule"):
        grad(custom_vjp(torch.sin, lambda x: ((x, x), x), lambda x, u: (u,)))(SCALAR)


INSIDE = {
    "grad": lambda a: lambda x: grad(lambda y: (y * a) ** 2)(x),
    "jvp": lambda a: lambda x: jvp(lambda y: (y * a) ** 2, (x,), (torch.ones_like(x),))[1],
    "vmap": lambda a: lambda x: vmap(lambda y: 2.0 * y * a * a)(x[None])[0],
    "partial": lambda a: functools.partial(lambda a, x: grad(lambda y: (y * a) ** 2)(x), a),
}


@pytest.mark.parametrize("inner", INSIDE)
@pytest.mark.parametrize("outer", STEPS)
def test_a_transform_inside_the_function_hides_no_closure(inner, outer):
    """An inner transform has the number of the outer one, which the function has left."""
    rule = lambda a: lambda p, t: (2.0 * a * a * p[0], 2.0 * a * a * t[0])
    make = INSIDE[inner]
    with pytest.raises(ValueError, match="closes over a tensor that is differentiated"):
        STEPS[outer](lambda a: custom_jvp(make(a), rule(a))(SCALAR))(SCALAR)
    constant = torch.tensor(3.0, dtype=torch.float64)
    own = custom_jvp(make(constant), rule(constant))
    torch.testing.assert_close(STEPS[outer](own)(SCALAR), torch.tensor(18.0, dtype=torch.float64))
    mapped = vmap(lambda a: custom_jvp(make(a), rule(a))(SCALAR))(X)
    torch.testing.assert_close(mapped, 2.0 * X * X * SCALAR)


def test_a_function_may_keep_a_pullback():
    own = custom_jvp(
        lambda x: torch.func.vjp(torch.sin, x)[1](torch.ones_like(x))[0],
        lambda p, t: (p[0].cos(), -p[0].sin() * t[0]),
    )
    torch.testing.assert_close(own(X), X.cos())
    torch.testing.assert_close(vmap(grad(own))(X), -X.sin())


@pytest.mark.parametrize("traced", [False, True])
def test_a_rule_may_give_zero(traced):
    """A constant function has the derivative zero, and so has every function along zero."""
    rules = {
        "custom_jvp": custom_jvp(torch.sign, lambda p, t: (torch.sign(p[0]), 0.0 * t[0])),
        "custom_vjp": custom_vjp(torch.sign, lambda x: (torch.sign(x), None), lambda _, u: (0.0 * u,)),
    }
    for name, own in (*rules.items(), *((name, make()) for name, make in MAKERS.items())):
        along = X if name in rules and own is rules[name] else torch.zeros_like(X)
        forward = lambda x, v, own=own: jvp(own, (x,), (v,))[1]
        backward = lambda x, v, own=own: torch.func.vjp(own, x)[1](v)[0]
        for function in (forward, backward):
            found = (fnn.jit(function) if traced else function)(X, along)
            assert torch.equal(found, torch.zeros_like(X)), name
