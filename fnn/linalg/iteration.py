"""How an iterative solver checks its residual, stops, and starts again.

The residual that a method carries along drifts from the true one by rounding. When it falls below the tolerance, or
below what rounding may have added to it, one iteration computes b - A x instead; where that is too large, the method
starts again from there. b - A x is also computed after 16, 32, 64, ... iterations and at the end. A solver returns the
best iterate, with its residual computed from b - A x.

Stopping early reads one number per iteration. Under ``vmap`` and in traced code, where no number can be read, and with
``early_stop=False``, all ``max_iterations`` run, and those after convergence change nothing. Every solver therefore
passes ``fnn.jit``, ``vmap`` and ``grad``. In traced code choose ``max_iterations``, because each becomes part of the
graph.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fnn import _torch
from fnn import tree as _tree
from fnn.linalg.linear_operator import LinearOperator, as_operator, as_symmetric_operator
from fnn.linalg.vector_space import check_like
from fnn.tree import Tree


class Solution(NamedTuple):
    """The result of a solver. All fields but the solution are 0-d tensors.

    ``solution`` has the form of b. ``residual_norm`` is |b - A x| and ``residual`` the relative residual that is
    compared with the tolerance, |b - A x| / |b| for all solvers but :func:`lsmr`; both are computed from the solution
    itself. ``converged`` is ``residual <= tolerance``. ``iterations`` counts the steps of the method, and the
    computations of the true residual that were made because the carried one was in doubt.
    """

    solution: Tree
    converged: Tensor
    iterations: Tensor
    residual_norm: Tensor
    residual: Tensor


class Method(NamedTuple):
    """An iteration that may be started from any x. Its state holds x, the residuals, and whether it has broken down."""

    start: Callable[..., dict[str, Tensor]]  # of x and its residuals
    direction: Callable[[dict[str, Tensor]], Tensor]  # the vector that is multiplied next
    step: Callable[..., dict[str, Tensor]]  # of the state and the products
    residuals: tuple[str, ...] = ("r",)  # their names in the state


class Progress(NamedTuple):
    """The state of a method with what is known of its residuals, which are relative."""

    state: dict[str, Tensor]
    moved: Tensor  # the lengths of all steps since the last start: rounding makes residuals drift in proportion to it
    sizes: tuple[Tensor, ...]  # lower bounds for the norms of what x is multiplied with
    best: Tensor  # the iterate with the smallest residual by the method's own account
    best_residual: Tensor
    verified: Tensor  # the iterate with the smallest true residual among those that were checked
    verified_residual: Tensor
    start_residual: Tensor  # the true residual where the method was last started
    doubt: Tensor  # whether the next product is spent on the true residual of the best iterate
    done: Tensor
    stuck: Tensor


class System:
    """A x = b in flat vectors of a wide dtype, with b divided by its largest entry to avoid underflow."""

    def __init__(self, operator: Any, b: Tree, name: str, tolerance: float, max_iterations: int | None) -> None:
        if max_iterations is not None and max_iterations < 1:
            raise ValueError(f"{name} needs max_iterations of at least 1, got {max_iterations}")
        if tolerance <= 0:
            raise ValueError(f"{name} needs a positive tolerance, relative to the norm of b, got {tolerance}")
        self.name = name
        self.operator = self.checked(operator)
        self.tolerance = tolerance
        self.max_iterations = max_iterations or min(self.operator.shape)
        self.flat, b = self.flat_side(b)
        largest = b.abs().max()
        self.scale = torch.where(largest > 0, largest, 1.0)
        self.b = b / self.scale
        self.norm = self.b.norm()

    def checked(self, operator: Any) -> LinearOperator:
        instead = "for a system of any shape write lsmr(A, b)"
        A = as_operator(operator, self.name)
        if A.shape[0] != A.shape[1]:
            raise ValueError(f"{self.name} needs a square operator, got {A!r}; {instead}")
        check_like(A.input, A.output, f"{self.name}: operator.input", "operator.output")
        return A if self.name in ("gmres", "neumann") else as_symmetric_operator(operator, self.name, instead)

    def flat_side(self, b: Tree) -> tuple[bool, Tensor]:
        space = self.operator.codomain
        wide = torch.promote_types(space.wide_dtype, self.operator.domain.wide_dtype)
        if isinstance(b, Tensor) and not (isinstance(self.operator.output, Tensor) and b.shape == space.like[0].shape):
            if b.shape != (space.size,) or b.dtype != space.dtype:
                raise ValueError(
                    f"{self.name} needs a right-hand side ({space.size},) of {space.dtype} or a tree, got shape "
                    f"{tuple(b.shape)} and {b.dtype}"
                )
            return True, b.to(wide)
        return False, space.ravel(space.fit(b, ("operator.output", "b"))).to(wide)

    def start_at(self, x0: Tree | None) -> Tensor:
        space = self.operator.domain
        if x0 is None:
            return torch.zeros(space.size, dtype=self.b.dtype, device=space.device)
        if not (isinstance(x0, Tensor) and x0.shape == (space.size,) and x0.dtype == space.dtype):
            x0 = space.ravel(space.fit(x0, ("operator.input", "x0")))
        return x0.to(self.b.dtype) / self.scale

    def preconditioner(self, given: Any) -> Callable[[Tensor], Tensor]:
        if given is None:
            return lambda r: r
        space = self.operator.domain
        if isinstance(given, (LinearOperator, Tensor)):
            M = as_operator(given, f"{self.name}'s preconditioner")
            if M.shape != self.operator.shape:
                raise ValueError(
                    f"{self.name}'s preconditioner has shape {M.shape}, the operator {self.operator.shape}"
                )
            return M.times_vector
        names = "operator.input", "what the preconditioner returned"
        return lambda r: space.ravel(space.fit(given(space.unravel(r)), names)).to(r.dtype)

    def products(self, v: Tensor, checks: Tensor, choose: Callable) -> tuple[Tensor, ...]:
        """A v, or b - A v where ``checks`` is true."""
        product = self.operator.times_vector(v)
        return (choose(checks, lambda: self.b - product, lambda: product),)

    def residuals(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.products(x, self.norm, lambda _, first, second: first())

    def relative(self, x: Tensor, *norms: Tensor) -> Tensor:
        """The relative residual that is compared with the tolerance, from the norms of the residuals."""
        return ratio(norms[0], self.norm)

    def solve(self, method: Method, early_stop: bool, x0: Tree | None = None) -> Solution:
        x = self.start_at(x0)
        residuals = self.first_residuals() if x0 is None else self.residuals(x)
        first = self.relative(x, *map(torch.linalg.vector_norm, residuals))

        def readable(condition: Tensor) -> bool:
            return early_stop and _torch.readable(condition)

        def choose(condition: Tensor, first: Callable[[], Any], second: Callable[[], Any]) -> Any:
            if readable(condition):
                return first() if bool(condition) else second()
            return _tree.where(condition, first(), second())

        state, zero = method.start(x, *residuals), torch.zeros_like(first)
        done = first <= self.tolerance
        false = torch.zeros_like(done)
        s = Progress(state, zero, (zero,) * len(residuals), x, first, x, first, first, false, done, false)
        count = torch.zeros((), dtype=torch.int64, device=x.device)
        for routine in _schedule(self.max_iterations):
            ended = s.done | s.stuck
            if readable(ended) and bool(ended):
                break
            checks = s.doubt | routine
            vector = choose(checks, lambda s=s: s.best, lambda s=s: method.direction(s.state))
            products = self.products(vector, checks, choose)
            new = choose(
                checks,
                lambda s=s, products=products: self.check(method, s, products),
                lambda s=s, v=vector, products=products: self.advance(method, s, v, products),
            )
            s = new if readable(ended) else _tree.where(ended, s, new)
            if not routine:
                count = count + torch.where(ended, 0, 1)
        return self.finish(s, count)

    def first_residuals(self) -> tuple[Tensor, ...]:
        """The residuals of x = 0."""
        return (self.b,)

    def check(self, method: Method, s: Progress, residuals: tuple[Tensor, ...]) -> Progress:
        """Record the true residual of the best iterate, and start again from there if the carried one was in doubt."""
        true = self.relative(s.best, *map(torch.linalg.vector_norm, residuals))
        better = true < s.verified_residual
        restart = s.doubt | ~(true <= 2.0 * s.best_residual)
        state = method.start(s.best, *residuals)
        return s._replace(
            state={name: torch.where(restart, state[name], s.state[name]) for name in state},
            moved=torch.where(restart, 0.0, s.moved),
            best_residual=true,
            verified=torch.where(better, s.best, s.verified),
            verified_residual=torch.where(better, true, s.verified_residual),
            start_residual=torch.where(restart, true, s.start_residual),
            doubt=torch.zeros_like(s.doubt),
            done=true <= self.tolerance,
            stuck=s.stuck | (restart & ~(better & (true < 0.9 * s.start_residual))),
        )

    def advance(self, method: Method, s: Progress, vector: Tensor, products: tuple[Tensor, ...]) -> Progress:
        """Take a step. The best iterate is the one with the smallest sum of residual and possible rounding error."""
        state = method.step(s.state, *products)
        sizes = tuple(
            torch.maximum(size, ratio(product.norm(), vector.norm()))
            for size, product in zip(s.sizes, products, strict=True)
        )
        moved = s.moved + (state["x"] - s.state["x"]).norm()
        norms = [state[name].norm() for name in method.residuals]
        eps = torch.finfo(moved.dtype).eps
        drifted = [norm + eps * size * moved for norm, size in zip(norms, sizes, strict=True)]
        claimed, cautious = self.relative(state["x"], *norms), self.relative(state["x"], *drifted)
        better = (cautious < s.best_residual) | (claimed <= self.tolerance)
        return s._replace(
            state=state,
            moved=moved,
            sizes=sizes,
            best=torch.where(better, state["x"], s.best),
            best_residual=torch.where(better, cautious, s.best_residual),
            doubt=(claimed <= self.tolerance) | (cautious > 2.0 * claimed),
            stuck=state["broken"] | ~torch.isfinite(claimed),
        )

    def finish(self, s: Progress, count: Tensor) -> Solution:
        """The better one of the best iterate and the best verified one, with its true residual."""
        space = self.operator.domain
        true = self.relative(s.best, *map(torch.linalg.vector_norm, self.residuals(s.best)))
        x = (torch.where(true <= s.verified_residual, s.best, s.verified) * self.scale).to(space.dtype)
        scaled = x.to(self.b.dtype) / self.scale
        norms = [residual.norm() for residual in self.residuals(scaled)]
        residual = self.relative(scaled, *norms)
        return Solution(
            x if self.flat else space.tree(x), residual <= self.tolerance, count, norms[0] * self.scale, residual
        )


class LeastSquares(System):
    """The normal equations (A^T A + damping^2) x = A^T b, and b - A x beside their residual."""

    def __init__(
        self, operator: Any, b: Tree, damping: float | Tensor, tolerance: float, max_iterations: int | None
    ) -> None:
        super().__init__(operator, b, "lsmr", tolerance, max_iterations)
        self.damping = damping
        self.transpose = self.operator.T
        self.normal_side = self.transpose.times_vector(self.b)
        self.normal_norm = self.normal_side.norm()

    def checked(self, operator: Any) -> LinearOperator:
        return as_operator(operator, "lsmr")

    def products(self, v: Tensor, checks: Tensor, choose: Callable) -> tuple[Tensor, ...]:
        """A v and (A^T A + damping^2) v, or b - A v and A^T (b - A v) - damping^2 v where ``checks`` is true."""
        product = self.operator.times_vector(v)
        product = choose(checks, lambda: self.b - product, lambda: product)
        back = self.transpose.times_vector(product)
        part = self.damping**2 * v
        return product, choose(checks, lambda: back - part, lambda: back + part)

    def first_residuals(self) -> tuple[Tensor, ...]:
        return self.b, self.normal_side

    def relative(self, x: Tensor, *norms: Tensor) -> Tensor:
        r, s = norms
        length = torch.hypot(r, self.damping * x.norm())
        stationary = ratio(ratio(s, length), ratio(self.normal_norm, self.norm))
        return torch.minimum(ratio(length, self.norm), stationary)


def _schedule(iterations: int) -> Iterator[bool]:
    """False for each iteration, and True after 16, 32, 64, ... of them, where the residual is computed in any case."""
    for number in range(iterations):
        if number >= 16 and number.bit_count() == 1:
            yield True
        yield False


def ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """The quotient, or 0 where the denominator is 0, because the recurrence has ended there."""
    zero = denominator == 0
    return torch.where(zero, 0.0, numerator / torch.where(zero, 1.0, denominator))
