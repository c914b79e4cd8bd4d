"""Linear systems that are differentiated by their own equation, and not through the iterations of a solver.

A ``linear_solver`` is a function ``(operator, b) -> x``. It is given a :class:`fnn.linalg.LinearOperator` and a tree,
and returns a tree or a :class:`fnn.linalg.Solution`: ``fnn.linalg.cg``, ``minres``, ``lsmr``, ``neumann``, or a partial
of one. The default makes the matrix, which is right for every square system and takes n products for n unknowns.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fnn import _torch
from fnn import tree as _tree
from fnn._numerics import widen
from fnn.jacobian.arguments import check_floating, check_not_empty, irregular_like
from fnn.jacobian.custom_derivatives import with_rules
from fnn.jacobian.products import along, forward_or_reverse
from fnn.linalg.iteration import Solution
from fnn.linalg.linear_operator import LinearOperator
from fnn.tree import Tree

LinearSolver = Callable[[LinearOperator, Any], Any]


def linear_solve(
    matvec: Callable, b: Tree, *args: Tree, linear_solver: LinearSolver | None = None, symmetric: bool = False
) -> Tree:
    """The x with ``matvec(x, *args) = b``, differentiable in b and in ``args``, as ``jax.lax.custom_linear_solve``.

    ``matvec`` is linear in its first argument and maps trees like b to trees like b. What the matrix depends on, and
    is differentiated or mapped, stands in ``args``: a function that closes over it raises ``ValueError``.
    ``symmetric`` states that the matrix is symmetric, which ``fnn.linalg.cg`` and ``minres`` ask for. The derivative of
    A x = b is x' = A^-1 (b' - A' x), and in reverse mode w = A^-T u for b and -(w, dA x) for ``args``.

    Cost one solution, and for each product with a derivative one more and a product of matvec's. Raises ``TypeError``
    for leaves that are not real floating tensors, ``ValueError`` where the shapes do not fit, and ``RuntimeError`` for
    a singular matrix or a solver that has not converged.

    >>> matrix, b = torch.tensor([[2.0, 1.0], [0.0, 4.0]]), torch.tensor([4.0, 8.0])
    >>> linear_solve(lambda x, matrix: matrix @ x, b, matrix)
    tensor([1., 2.])
    >>> torch.func.grad(lambda matrix: linear_solve(lambda x, m: m @ x, b, matrix).sum())(matrix)
    tensor([[-0.5000, -1.0000],
            [-0.1250, -0.2500]])
    """
    check_floating(b, "b", "linear_solve")
    check_not_empty(b, "linear_solve")
    check_args("linear_solve", args)
    rmatvec = matvec if symmetric else _transposed(matvec)
    return linear_solve_with(matvec, rmatvec, linear_solver, symmetric)(b, *args)


def linear_solve_with(
    matvec: Callable, rmatvec: Callable, linear_solver: LinearSolver | None, symmetric: bool
) -> Callable:
    """``(b, *args) -> x`` with ``matvec(x, *args) = b``."""

    def forward(b: Tree, *args: Tree) -> Tree:
        x, converged = try_solve(operator_of(matvec, rmatvec, b, args, symmetric), b, linear_solver)
        how = "the matrix is singular" if linear_solver is None else "linear_solver has not converged"
        instead = "give it a larger tolerance or max_iterations, or leave it out for a dense solution"
        message = f"linear_solve: {how}" if linear_solver is None else f"linear_solve: {how}; {instead}"
        return or_nan(x, converged, message)

    def pushforward(primals: tuple, tangents: tuple, x: Tree) -> Tree:
        slope = along_args(lambda *args: matvec(x, *args), primals[1:], tangents[1:])
        return again(_tree.sub(tangents[0], slope), *primals[1:])

    def pullback(primals: tuple, cotangent: Tree, x: Tree) -> tuple:
        adjoint = again if symmetric else linear_solve_with(rmatvec, matvec, linear_solver, symmetric)
        w = adjoint(cotangent, *primals[1:])
        return (w, *args_pulled(lambda *args: matvec(x, *args), primals[1:], _tree.scale(-1.0, w)))

    again = with_rules(forward, pushforward, pullback)
    return again


def operator_of(matvec: Callable, rmatvec: Callable, like: Tree, args: tuple, symmetric: bool) -> LinearOperator:
    back = None if symmetric else lambda u: rmatvec(u, *args)
    return LinearOperator(lambda v: matvec(v, *args), like, None, back, symmetric)


def try_solve(operator: LinearOperator, b: Tree, linear_solver: LinearSolver | None) -> tuple[Tree, Tensor]:
    """The solution, and whether it is one."""
    if linear_solver is None:
        space = operator.domain
        x, info = torch.linalg.solve_ex(widen(operator.dense()), widen(space.ravel(b)))
        return space.tree(x.to(space.dtype)), (info == 0) & x.isfinite().all()
    result = linear_solver(operator, b)
    if isinstance(result, Solution):
        return result.solution, result.converged
    x = operator.domain.fit(result, ("b", "the result of linear_solver"))
    return x, operator.domain.ravel(x).isfinite().all()


def _transposed(matvec: Callable) -> Callable:
    """The product with the transpose, as a function of the same arguments."""

    def rmatvec(u: Tree, *args: Tree) -> Tree:
        return torch.func.vjp(lambda x: matvec(x, *args), irregular_like(u))[1](u)[0]

    return rmatvec


def along_args(f: Callable, args: tuple, tangents: tuple) -> Tree:
    """The derivative of f(*args) along the tangents of its floating leaves."""
    of_floats, floats = _of_floats(f, args)
    slopes = _of_floats(f, args, tangents)[1]
    if not floats:
        return _tree.zeros_like(f(*args))
    return forward_or_reverse(
        of_floats, (floats,), lambda forward: along(of_floats, (floats,), (slopes,), forward, "root")[1], "root"
    )


def args_pulled(f: Callable, args: tuple, cotangent: Tree) -> tuple:
    """The cotangents of the arguments, zero for leaves of integers."""
    of_floats, floats = _of_floats(f, args)
    leaves, treedef = _tree.flatten(args)
    if not floats:
        return treedef.unflatten([torch.zeros(leaf.shape, device=leaf.device) for leaf in leaves])
    given = iter(torch.func.vjp(of_floats, floats)[1](cotangent)[0])
    return treedef.unflatten(
        [next(given) if leaf.is_floating_point() else torch.zeros(leaf.shape, device=leaf.device) for leaf in leaves]
    )


def _of_floats(f: Callable, args: tuple, values: tuple | None = None) -> tuple[Callable, list[Tensor]]:
    """f as a function of the floating leaves of its arguments, and these leaves of ``values`` (default args)."""
    leaves, treedef = _tree.flatten(args)

    def of_floats(floats: list[Tensor]) -> Tree:
        given = iter(floats)
        return f(*treedef.unflatten([next(given) if leaf.is_floating_point() else leaf for leaf in leaves]))

    chosen = leaves if values is None else treedef.flatten_up_to(values)
    return of_floats, [value for value, leaf in zip(chosen, leaves, strict=True) if leaf.is_floating_point()]


def or_nan(x: Tree, converged: Tensor, message: str) -> Tree:
    """x; ``RuntimeError``, or nan where values cannot be read, unless it has converged."""
    if not (_torch.values_can_be_read() and _torch.readable(converged)):
        return _tree.map(lambda leaf: torch.where(converged, leaf, torch.nan), x)
    if not bool(converged):
        raise RuntimeError(message)
    return x


def check_args(name: str, args: tuple) -> None:
    for path, leaf in zip(_tree.keystrs(args), _tree.leaves(args), strict=True):
        if not isinstance(leaf, Tensor):
            raise TypeError(
                f"{name}: args{path} is {leaf!r}, not a tensor; write torch.tensor({leaf!r}), or close over it"
            )
        if leaf.is_complex():
            raise TypeError(f"{name} takes real numbers, and args{path} is a {leaf.dtype} tensor")
