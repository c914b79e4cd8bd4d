"""Linear systems A x = b by products with A alone.

Every solver takes a :class:`LinearOperator` or a dense matrix, ``b`` as a tree or a flat vector, and gives a
:class:`Solution` whose ``solution`` has the same form. It stops when the residual is at most ``tolerance``
times the norm of b, or after ``max_iterations`` (default: the number of unknowns). Reading the residual
takes one comparison on the host an iteration; with ``early_stop=False`` all iterations run, those after
convergence change nothing, and the solver passes ``fnn.jit``, ``vmap`` and ``grad``.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fnn.linalg.linear_operator import LinearOperator, as_operator, check_like, check_symmetric, ravel, unravel
from fnn.tree import Tree


class Solution(NamedTuple):
    """What a solver found.

    ``solution`` has the form of b; ``converged`` is a bool, ``iterations`` an int64 and ``residual_norm``, the
    norm of b - A x computed from the solution itself, a floating 0-d tensor.
    """

    solution: Tree
    converged: Tensor
    iterations: Tensor
    residual_norm: Tensor


def cg(
    operator: LinearOperator | Tensor,
    b: Tree,
    x0: Tree | None = None,
    preconditioner: LinearOperator | Callable[[Tree], Tree] | None = None,
    tolerance: float = 1e-6,
    max_iterations: int | None = None,
    early_stop: bool = True,
) -> Solution:
    """Conjugate gradients (Hestenes and Stiefel, 1952) for a symmetric positive definite A.

    ``preconditioner`` is an approximation of the inverse of A, symmetric positive definite: an operator or a
    function of trees. The error falls by (sqrt(k) - 1) / (sqrt(k) + 1) an iteration, k the condition number.
    One product an iteration and two more; five vectors. Raises ``ValueError`` for an operator that is not
    symmetric, for a b that does not fit, and for a number of iterations or a tolerance that is not positive.
    A direction with p^T A p <= 0 ends the iterations: ``converged`` is then False, and minres is the solver.

    >>> cg(torch.tensor([[4.0, 1.0], [1.0, 3.0]]), torch.tensor([1.0, 2.0])).solution
    tensor([0.0909, 0.6364])
    """
    A, b, form = _problem(operator, b, "cg", tolerance, max_iterations)
    check_symmetric(A, "cg", "for a system of any shape write lsmr(A, b)")
    precondition = _flat_function(preconditioner, A)
    x = torch.zeros_like(b) if x0 is None else _flat_start(x0, A)
    r = b if x0 is None else b - A(x)
    z = precondition(r)
    state = {"x": x, "r": r, "p": z, "rho": r @ z, "residual": r.norm(), "stuck": torch.zeros_like(r.norm() > 0)}

    def step(s: dict[str, Tensor]) -> dict[str, Tensor]:
        product = A(s["p"])
        curvature = s["p"] @ product
        stuck = curvature <= 0
        alpha = torch.where(stuck, 0.0, s["rho"] / torch.where(stuck, 1.0, curvature))
        r = s["r"] - alpha * product
        z = precondition(r)
        rho = r @ z
        return {
            "x": s["x"] + alpha * s["p"],
            "r": r,
            "p": z + _ratio(rho, s["rho"]) * s["p"],
            "rho": rho,
            "residual": r.norm(),
            "stuck": stuck,
        }

    limit = tolerance * b.norm()
    return _finish(A, b, form, limit, *_iterate(step, state, limit, max_iterations or len(b), early_stop))


def minres(
    operator: LinearOperator | Tensor,
    b: Tree,
    tolerance: float = 1e-6,
    max_iterations: int | None = None,
    early_stop: bool = True,
) -> Solution:
    """The smallest residual over the Krylov space (Paige and Saunders, 1975) for a symmetric A, indefinite too.

    One product an iteration and one more; seven vectors. For a singular system the residual stays above the
    tolerance unless b lies in the range. Raises what :func:`cg` raises.

    >>> minres(torch.tensor([[1.0, 0.0], [0.0, -2.0]]), torch.tensor([1.0, 4.0])).converged
    tensor(True)
    """
    A, b, form = _problem(operator, b, "minres", tolerance, max_iterations)
    check_symmetric(A, "minres", "for a system of any shape write lsmr(A, b)")
    beta, zero = b.norm(), torch.zeros_like(b)
    nought = torch.zeros_like(beta)
    state = {
        "x": zero,
        "v_old": zero,
        "v": _ratio(b, beta),
        "d_old": zero,
        "d": zero,
        "beta": nought,
        "cosine_old": nought + 1.0,
        "sine_old": nought,
        "cosine": nought + 1.0,
        "sine": nought,
        "phi": beta,  # the rotated right-hand side, whose magnitude is the residual norm
        "residual": beta,
        "stuck": torch.zeros_like(beta > 0),
    }

    def step(s: dict[str, Tensor]) -> dict[str, Tensor]:
        w = A(s["v"]) - s["beta"] * s["v_old"]
        alpha = s["v"] @ w
        w = w - alpha * s["v"]
        beta = w.norm()
        epsilon = s["sine_old"] * s["beta"]
        delta_bar = s["cosine_old"] * s["beta"]
        delta = s["cosine"] * delta_bar + s["sine"] * alpha
        gamma_bar = s["cosine"] * alpha - s["sine"] * delta_bar
        gamma = torch.hypot(gamma_bar, beta)
        cosine, sine = _ratio(gamma_bar, gamma), _ratio(beta, gamma)
        d = _ratio(s["v"] - delta * s["d"] - epsilon * s["d_old"], gamma)
        phi = -sine * s["phi"]
        return {
            "x": s["x"] + cosine * s["phi"] * d,
            "v_old": s["v"],
            "v": _ratio(w, beta),
            "d_old": s["d"],
            "d": d,
            "beta": beta,
            "cosine_old": s["cosine"],
            "sine_old": s["sine"],
            "cosine": cosine,
            "sine": sine,
            "phi": phi,
            "residual": phi.abs(),
            "stuck": gamma == 0,
        }

    limit = tolerance * b.norm()
    return _finish(A, b, form, limit, *_iterate(step, state, limit, max_iterations or len(b), early_stop))


def lsmr(
    operator: LinearOperator | Tensor,
    b: Tree,
    damping: float = 0.0,
    tolerance: float = 1e-6,
    max_iterations: int | None = None,
    early_stop: bool = True,
) -> Solution:
    """Least squares, min |A x - b|^2 + damping^2 |x|^2, for an A of any shape (Fong and Saunders, 2011).

    Equals minres on the normal equations, more stably. ``converged`` says that the residual of the normal
    equations, |A^T (b - A x) - damping^2 x|, is at most tolerance |A^T b|; ``residual_norm`` is |b - A x|, which
    need not be small. b is like the operator's output, the solution like its input. A product with A and one
    with its transpose an iteration; six vectors. Raises ``ValueError`` for an operator without a transpose.

    >>> lsmr(torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]]), torch.tensor([1.0, 2.0, 5.0])).residual_norm
    tensor(5.)
    """
    A, b, form = _problem(operator, b, "lsmr", tolerance, max_iterations)
    transpose = A.T
    beta = b.norm()
    u = _ratio(b, beta)
    v = transpose(u)
    alpha = v.norm()
    v = _ratio(v, alpha)
    one, nought = torch.ones_like(beta), torch.zeros_like(beta)
    state = {
        "x": torch.zeros_like(v),
        "u": u,
        "v": v,
        "h": v,
        "h_bar": torch.zeros_like(v),
        "alpha": alpha,
        "alpha_bar": alpha,
        "rho": one,
        "rho_bar": one,
        "cosine_bar": one,
        "sine_bar": nought,
        "zeta_bar": alpha * beta,  # its magnitude is the residual norm of the normal equations
        "residual": (alpha * beta).abs(),
        "stuck": torch.zeros_like(beta > 0),
    }

    def step(s: dict[str, Tensor]) -> dict[str, Tensor]:
        u = A(s["v"]) - s["alpha"] * s["u"]
        beta = u.norm()
        u = _ratio(u, beta)
        v = transpose(u) - beta * s["v"]
        alpha = v.norm()
        v = _ratio(v, alpha)
        alpha_hat = torch.hypot(s["alpha_bar"], torch.full_like(beta, damping))
        rho = torch.hypot(alpha_hat, beta)
        cosine, sine = _ratio(alpha_hat, rho), _ratio(beta, rho)
        theta = sine * alpha
        theta_bar = s["sine_bar"] * rho
        rho_bar = torch.hypot(s["cosine_bar"] * rho, theta)
        cosine_bar, sine_bar = _ratio(s["cosine_bar"] * rho, rho_bar), _ratio(theta, rho_bar)
        zeta = cosine_bar * s["zeta_bar"]
        h_bar = s["h"] - _ratio(theta_bar * rho, s["rho"] * s["rho_bar"]) * s["h_bar"]
        zeta_bar = -sine_bar * s["zeta_bar"]
        return {
            "x": s["x"] + _ratio(zeta, rho * rho_bar) * h_bar,
            "u": u,
            "v": v,
            "h": v - _ratio(theta, rho) * s["h"],
            "h_bar": h_bar,
            "alpha": alpha,
            "alpha_bar": cosine * alpha,
            "rho": rho,
            "rho_bar": rho_bar,
            "cosine_bar": cosine_bar,
            "sine_bar": sine_bar,
            "zeta_bar": zeta_bar,
            "residual": zeta_bar.abs(),
            "stuck": rho_bar == 0,
        }

    limit = tolerance * (alpha * beta).abs()
    steps = max_iterations or min(A.shape)
    x, done, iterations = _iterate(step, state, limit, steps, early_stop)
    solution = unravel(x, A.input) if form == "tree" else x
    return Solution(solution, done, iterations, (b - A(x)).norm())


def neumann(
    operator: LinearOperator | Tensor,
    b: Tree,
    scale: float | Tensor = 1.0,
    tolerance: float = 1e-6,
    max_iterations: int | None = None,
    early_stop: bool = True,
) -> Solution:
    """The truncated Neumann series x = scale * sum_k (I - scale A)^k b (as in Lorraine et al., 2020).

    Converges when all eigenvalues of I - scale A lie inside the unit circle: for a symmetric positive definite
    A, 0 < scale < 2 / largest eigenvalue. A need not be symmetric. One product an iteration and one more; three
    vectors. Each iteration multiplies the residual by I - scale A. Where it grows, ``converged`` is False.

    >>> neumann(torch.diag(torch.tensor([1.0, 0.5])), torch.ones(2), max_iterations=40).converged
    tensor(True)
    """
    A, b, form = _problem(operator, b, "neumann", tolerance, max_iterations)
    never = torch.zeros_like(b.norm() > 0)
    state = {"x": torch.zeros_like(b), "r": b, "residual": b.norm(), "stuck": never}

    def step(s: dict[str, Tensor]) -> dict[str, Tensor]:
        r = s["r"] - scale * A(s["r"])
        return {"x": s["x"] + scale * s["r"], "r": r, "residual": r.norm(), "stuck": never}

    limit = tolerance * b.norm()
    return _finish(A, b, form, limit, *_iterate(step, state, limit, max_iterations or len(b), early_stop))


def _iterate(
    step: Callable, state: dict[str, Tensor], limit: Tensor, max_iterations: int, early_stop: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """``(x, converged, iterations)`` of a recurrence whose state holds x, residual and stuck."""
    count = torch.zeros((), dtype=torch.int64, device=limit.device)
    done = state["residual"] <= limit
    for _ in range(max_iterations):
        if early_stop and bool(done | state["stuck"]):
            break
        new = step(state)
        over = done | state["stuck"]
        state = {name: torch.where(over, state[name], new[name]) for name in state}
        count = count + torch.where(over, 0, 1)
        done = state["residual"] <= limit
    return state["x"], done, count


def _finish(A: LinearOperator, b: Tensor, form: str, limit: Tensor, x: Tensor, done: Tensor, count: Tensor) -> Solution:
    residual = (b - A(x)).norm()
    # rounding lets the recurrence's residual drift from the true one; ten times the limit is not converged
    return Solution(unravel(x, A.input) if form == "tree" else x, done & (residual <= 10 * limit), count, residual)


def _problem(
    operator: Any, b: Tree, name: str, tolerance: float, max_iterations: int | None
) -> tuple[LinearOperator, Tensor, str]:
    A = as_operator(operator, name)
    if max_iterations is not None and max_iterations < 1:
        raise ValueError(f"{name} needs max_iterations of at least 1, got {max_iterations}")
    if tolerance <= 0:
        raise ValueError(f"{name} needs a positive tolerance, relative to the norm of b, got {tolerance}")
    if name != "lsmr":
        if A.shape[0] != A.shape[1]:
            raise ValueError(f"{name} needs a square operator, got {A!r}; for a system of any shape write lsmr(A, b)")
        check_like(A.input, A.output, f"{name}: operator.input", "operator.output")
    if isinstance(b, Tensor) and not (isinstance(A.output, Tensor) and b.shape == A.output.shape):
        if b.shape != (A.shape[0],):
            raise ValueError(f"{name} needs a right-hand side ({A.shape[0]},) or a tree, got shape {tuple(b.shape)}")
        return A, b, "flat"
    check_like(A.output, b, "operator.output", "b")
    return A, ravel(b), "tree"


def _flat_start(x0: Tree, A: LinearOperator) -> Tensor:
    if isinstance(x0, Tensor) and x0.shape == (A.shape[1],):
        return x0
    check_like(A.input, x0, "operator.input", "x0")
    return ravel(x0)


def _flat_function(function: Any, A: LinearOperator) -> Callable[[Tensor], Tensor]:
    if function is None:
        return lambda r: r
    if isinstance(function, (LinearOperator, Tensor)):
        M = as_operator(function, "cg's preconditioner")
        if M.shape != A.shape:
            raise ValueError(f"cg's preconditioner has shape {M.shape}, the operator {A.shape}")
        return lambda r: M(r)
    return lambda r: ravel(function(unravel(r, A.input)))


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """0 where the denominator is 0: the recurrence has ended there."""
    zero = denominator == 0
    return torch.where(zero, 0.0, numerator / torch.where(zero, 1.0, denominator))
