"""Derivatives of solutions by the implicit function theorem: roots and fixed points.

Where f(x, a) = 0 defines x as a function of a, its derivative is dx/da = -(df/dx)^-1 df/da, whatever iteration found x.
So nothing of the iteration is kept or differentiated: a product with dx/da costs a product with df/da and one linear
system, and forward and reverse mode of any order are made of these two (Griewank and Walther, 2008, chapter 15;
Blondel et al., 2022).

What does not converge raises ``RuntimeError`` where values can be read, and gives nan in a trace and under ``vmap``.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fnn import _torch
from fnn import tree as _tree
from fnn.compile.scan import fori_loop
from fnn.jacobian.arguments import check_floating, check_not_empty
from fnn.jacobian.custom_derivatives import with_rules
from fnn.jacobian.linear_solve import (
    LinearSolver,
    along_args,
    args_pulled,
    check_args,
    linear_solve_with,
    operator_of,
    or_nan,
    try_solve,
)
from fnn.jacobian.products import along, forward_or_reverse
from fnn.linalg.vector_space import VectorSpace, check_like
from fnn.tree import Tree


def root(
    f: Callable,
    x0: Tree,
    *args: Tree,
    solve: Callable[[Callable, Tree], Tree] | None = None,
    linear_solver: LinearSolver | None = None,
    symmetric: bool = False,
    tolerance: float | None = None,
    max_iterations: int = 20,
) -> Tree:
    """An x with ``f(x, *args) = 0``, differentiable in ``args``, as ``jax.lax.custom_root``.

    f maps x and ``args`` to a tree like x. Put into ``args`` what x is to be differentiated by; its derivative by the
    starting point ``x0`` is zero. The minimum of an energy is a root of its gradient, whose matrix is ``symmetric``.

    Newton's method from ``x0`` by default: it ends when no entry of the step is larger than ``tolerance`` (1 + the
    largest entry of x), and since it converges quadratically the error is then about the square of that; the default is
    the square root of the dtype's eps. ``solve(g, x0)`` replaces it by a method of your own, which is given
    g(x) = f(x, *args) and returns x; one Newton step from that x must be as small as ``tolerance`` asks.

    A Newton step costs one linear system, and a product with a derivative what :func:`linear_solve` says: with the
    dense solver a step and a pullback n + 4 calls of f for n numbers x, a pushforward n + 7. In a trace
    and under ``vmap`` all ``max_iterations`` are made, in a trace as one loop. Raises what :func:`linear_solve`
    raises, and ``RuntimeError`` where the steps do not become small.

    >>> root(lambda x, a: x**2 - a, torch.tensor(1.0), torch.tensor(2.0))
    tensor(1.4142)
    >>> torch.func.grad(lambda a: root(lambda x, a: x**2 - a, torch.tensor(1.0), a))(torch.tensor(4.0))
    tensor(0.2500)
    """
    _check_iterations("root", tolerance, max_iterations)

    def found(x0: Tree, args: tuple) -> Tree:
        within = _tolerance(x0) if tolerance is None else tolerance

        def step(x: Tree) -> tuple[Tree, Tensor]:
            operator = operator_of(matvec, rmatvec, x, (x, *args), symmetric)
            change, solved = try_solve(operator, f(x, *args), linear_solver)
            return _tree.sub(x, change), solved & _small(change, x, within)

        if solve is None:
            x, converged = _iterated(step, x0, args, max_iterations)
            return _converged("root: Newton's method", x, converged, max_iterations, _NEWTON)
        x = solve(lambda x: f(x, *args), x0)
        check_like(x0, x, "x0", "the result of solve")
        return _converged("root: solve", x, step(x)[1], None, _OWN)

    matvec, rmatvec = _jacobian_products(f, symmetric)
    return _implicit("root", f, found, matvec, rmatvec, linear_solver, symmetric)(x0, *args)


def fixed_point(
    f: Callable,
    x0: Tree,
    *args: Tree,
    solve: Callable[[Callable, Tree], Tree] | None = None,
    linear_solver: LinearSolver | None = None,
    symmetric: bool = False,
    tolerance: float | None = None,
    max_iterations: int = 1000,
) -> Tree:
    """An x with ``f(x, *args) = x``, differentiable in ``args``: the root of x - f(x, *args).

    x, f(x), f(f(x)), ... from ``x0`` by default, until no entry changes by more than ``tolerance`` (1 + the largest
    entry of x); the default is eps^(3/4) of the dtype. Where each step multiplies the error by q < 1 the error is then
    at most q / (1 - q) times that. ``solve(g, x0)`` replaces the iteration by a method of your own, such as Anderson's,
    which is given g(x) = f(x, *args); its result is compared with g of it in the same way.

    The matrix of the derivative's linear system is I - df/dx. Where f is a contraction, ``fnn.linalg.neumann`` solves
    the system by products alone. Everything else is as for :func:`root`.

    >>> fixed_point(lambda x, a: torch.cos(a * x), torch.tensor(1.0), torch.tensor(1.0))
    tensor(0.7391)
    """
    _check_iterations("fixed_point", tolerance, max_iterations)

    def residual(x: Tree, *args: Tree) -> Tree:
        return _tree.sub(x, f(x, *args))

    def found(x0: Tree, args: tuple) -> Tree:
        within = _tolerance(x0) ** 1.5 if tolerance is None else tolerance

        def step(x: Tree) -> tuple[Tree, Tensor]:
            new = f(x, *args)
            return new, _small(_tree.sub(x, new), x, within)

        if solve is None:
            x, converged = _iterated(step, x0, args, max_iterations)
            return _converged("fixed_point: the iteration", x, converged, max_iterations, _CONTRACTION)
        x = solve(lambda x: f(x, *args), x0)
        check_like(x0, x, "x0", "the result of solve")
        return _converged("fixed_point: solve", x, step(x)[1], None, _OWN)

    matvec, rmatvec = _jacobian_products(residual, symmetric)
    return _implicit("fixed_point", residual, found, matvec, rmatvec, linear_solver, symmetric)(x0, *args)


_NEWTON = "start closer to the solution, raise max_iterations or tolerance, or write solve=..., a method of your own"
_CONTRACTION = (
    "the function may not be a contraction there; raise max_iterations or tolerance, damp it, "
    "x / 2 + f(x) / 2, or write fnn.jacobian.root(lambda x, *args: fnn.tree.sub(x, f(x, *args)), x0, *args)"
)
_OWN = "iterate longer, or raise tolerance"


def _implicit(
    name: str,
    f: Callable,
    found: Callable[[Tree, tuple], Tree],
    matvec: Callable,
    rmatvec: Callable,
    linear_solver: LinearSolver | None,
    symmetric: bool,
) -> Callable:
    """``(x0, *args) -> x``, which ``found(x0, args)`` computes and f(x, *args) = 0 defines."""
    solver = linear_solve_with(matvec, rmatvec, linear_solver, symmetric)
    adjoint = solver if symmetric else linear_solve_with(rmatvec, matvec, linear_solver, symmetric)

    def forward(x0: Tree, *args: Tree) -> Tree:
        check_like(x0, f(x0, *args), "x0", "f(x0, *args)")
        return found(x0, args)

    def pushforward(primals: tuple, tangents: tuple, x: Tree) -> Tree:
        slope = along_args(lambda *args: f(x, *args), primals[1:], tangents[1:])
        return _known(_tree.scale(-1.0, solver(slope, x, *primals[1:])), x)

    def pullback(primals: tuple, cotangent: Tree, x: Tree) -> tuple:
        w = adjoint(cotangent, x, *primals[1:])
        back = args_pulled(lambda *args: f(x, *args), primals[1:], _tree.scale(-1.0, w))
        return (_tree.zeros_like(primals[0]), *_known(back, x))

    differentiable = with_rules(forward, pushforward, pullback)

    def checked(x0: Tree, *args: Tree) -> Tree:
        check_floating(x0, "x0", name)
        check_not_empty(x0, name)
        check_args(name, args)
        return differentiable(x0, *args)

    return checked


def _jacobian_products(f: Callable, symmetric: bool) -> tuple[Callable, Callable]:
    """``(v, x, *args) -> df/dx v``, and the same for the transpose."""

    def matvec(v: Tree, x: Tree, *args: Tree) -> Tree:
        of_x = lambda x: f(x, *args)
        return forward_or_reverse(of_x, (x,), lambda forward: along(of_x, (x,), (v,), forward, "root")[1], "root")

    def rmatvec(u: Tree, x: Tree, *args: Tree) -> Tree:
        return torch.func.vjp(lambda x: f(x, *args), x)[1](u)[0]

    return matvec, matvec if symmetric else rmatvec


def _iterated(step: Callable, x0: Tree, args: tuple, max_iterations: int) -> tuple[Tree, Tensor]:
    """x after steps until one is small; a loop of all steps where values cannot be read."""
    done = torch.zeros((), dtype=torch.bool, device=_tree.leaves(x0)[0].device)

    def advance(_: Any, carry: tuple[Tree, Tensor]) -> tuple[Tree, Tensor]:
        x, done = carry
        new, small = step(x)
        return _tree.where(done, x, new), done | small

    if not _can_be_read((x0, args)):
        return fori_loop(0, max_iterations, advance, (x0, done))
    x = x0
    for i in range(max_iterations):
        x, done = advance(i, (x, done))
        if bool(done):
            break
    return x, done


def _known(derivative: Tree, x: Tree) -> Tree:
    """The derivative; nan where x is nan, also where f is linear, so that its derivative does not depend on x."""
    found = VectorSpace(x).ravel(x).isfinite().all()
    return _tree.map(lambda leaf: torch.where(found, leaf, torch.nan), derivative)


def _can_be_read(tree: Tree) -> bool:
    return _torch.values_can_be_read() and all(_torch.readable(leaf) for leaf in _tree.leaves(tree))


def _small(change: Tree, x: Tree, tolerance: float) -> Tensor:
    space = VectorSpace(x)
    return space.ravel(change).abs().max() <= tolerance * (1.0 + space.ravel(x).abs().max())


def _tolerance(x: Tree) -> float:
    return torch.finfo(_tree.result_type(_tree.leaves(x))).eps ** 0.5


def _converged(what: str, x: Tree, converged: Tensor, iterations: int | None, instead: str) -> Tree:
    after = "" if iterations is None else f" in {iterations} iterations"
    return or_nan(x, converged, f"{what} has not converged{after}; {instead}")


def _check_iterations(name: str, tolerance: float | None, max_iterations: int) -> None:
    if max_iterations < 1:
        raise ValueError(f"{name} needs max_iterations of at least 1, got {max_iterations}")
    if tolerance is not None and not tolerance > 0:
        raise ValueError(f"{name} needs a positive tolerance, got {tolerance}")
