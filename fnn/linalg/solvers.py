"""Linear systems A x = b by products with A alone.

Every solver takes a :class:`LinearOperator` or a dense matrix, ``b`` as a tree or a flat vector, and gives a
:class:`Solution` whose ``solution`` has the same form. It has converged when the relative residual is at most
``tolerance``, and stops then, or when rounding allows no progress, or after ``max_iterations`` (default: the number of
unknowns).

The residual that a method carries along drifts from the true one, so it is never believed: when it falls below the
tolerance, or what rounding may have added exceeds it, an iteration is spent on b - A x, and where that is too large the
method starts again from there. b - A x is also looked at after 16, 32, 64, ... iterations and at the end. What is
returned is the best iterate seen, with its residual computed from b - A x.

Stopping early reads one number on the host an iteration. Under ``vmap`` and in traced code, where none can be read, and
with ``early_stop=False`` all ``max_iterations`` run; those after the end change nothing. So every solver passes
``fnn.jit``, ``vmap`` and ``grad``; in traced code choose ``max_iterations``, because each becomes part of the graph.
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
    """What a solver found. All but the solution are 0-d tensors.

    ``solution`` has the form of b. ``residual_norm`` is |b - A x| and ``residual`` the relative figure that is compared
    with the tolerance, |b - A x| / |b| for all solvers but :func:`lsmr`; both are computed from the solution itself.
    ``converged`` is ``residual <= tolerance``. ``iterations`` counts the steps of the method and the looks at the true
    residual that followed from a doubt.
    """

    solution: Tree
    converged: Tensor
    iterations: Tensor
    residual_norm: Tensor
    residual: Tensor


def cg(
    operator: LinearOperator | Tensor,
    b: Tree,
    x0: Tree | None = None,
    preconditioner: LinearOperator | Tensor | Callable[[Tree], Tree] | None = None,
    tolerance: float = 1e-6,
    max_iterations: int | None = None,
    early_stop: bool = True,
) -> Solution:
    """Conjugate gradients (Hestenes and Stiefel, 1952) for a symmetric positive definite A.

    ``preconditioner`` is an approximation of the inverse of A, symmetric positive definite: an operator, a matrix or a
    function of trees. The error falls by (sqrt(k) - 1) / (sqrt(k) + 1) an iteration, k the condition number.
    One product an iteration and a few to check the residual; six vectors. Raises ``ValueError`` for an operator that
    is not known to be symmetric, for a b that does not fit, and for a number of iterations or a tolerance that is not
    positive.
    A direction with p^T A p <= 0 ends the iterations: ``converged`` is then False, and minres is the solver.

    >>> cg(torch.tensor([[4.0, 1.0], [1.0, 3.0]]), torch.tensor([1.0, 2.0])).solution
    tensor([0.0909, 0.6364])
    """
    system = _System(operator, b, "cg", tolerance, max_iterations)
    precondition = system.preconditioner(preconditioner)

    def start(x: Tensor, r: Tensor) -> dict[str, Tensor]:
        z = precondition(r)
        return {"x": x, "r": r, "p": z, "rho": r @ z, "broken": torch.zeros_like(r[0] > 0)}

    def step(s: dict[str, Tensor], product: Tensor) -> dict[str, Tensor]:
        curvature = s["p"] @ product
        broken = curvature <= 0
        alpha = torch.where(broken, 0.0, _ratio(s["rho"], curvature))
        r = s["r"] - alpha * product
        z = precondition(r)
        rho = r @ z
        return {
            "x": s["x"] + alpha * s["p"],
            "r": r,
            "p": z + _ratio(rho, s["rho"]) * s["p"],
            "rho": rho,
            "broken": broken,
        }

    method = _Method(start, lambda s: s["p"], step)
    return system.solve(method, early_stop, x0)


def minres(
    operator: LinearOperator | Tensor,
    b: Tree,
    tolerance: float = 1e-6,
    max_iterations: int | None = None,
    early_stop: bool = True,
) -> Solution:
    """The smallest residual over the Krylov space (Paige and Saunders, 1975) for a symmetric A, indefinite too.

    One product an iteration and a few to check the residual; ten vectors. For a singular system the residual stays
    above the tolerance unless b lies in the range; the solution is then the iterate with the smallest residual. Raises
    what :func:`cg` raises.

    >>> minres(torch.tensor([[1.0, 0.0], [0.0, -2.0]]), torch.tensor([1.0, 4.0])).converged
    tensor(True)
    """
    system = _System(operator, b, "minres", tolerance, max_iterations)

    def start(x: Tensor, r: Tensor) -> dict[str, Tensor]:
        phi, zero = r.norm(), torch.zeros_like(r)
        nought = torch.zeros_like(phi)
        return {
            "x": x,
            "r": r,
            "v_old": zero,
            "v": _ratio(r, phi),
            "d_old": zero,
            "d": zero,
            "image_old": zero,  # A d of the last two directions: the residual is updated as x is, not by a formula
            "image": zero,
            "beta": nought,
            "cosine_old": nought + 1.0,
            "sine_old": nought,
            "cosine": nought + 1.0,
            "sine": nought,
            "phi": phi,
            "broken": torch.zeros_like(phi > 0),
        }

    def step(s: dict[str, Tensor], product: Tensor) -> dict[str, Tensor]:
        w = product - s["beta"] * s["v_old"]
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
        image = _ratio(product - delta * s["image"] - epsilon * s["image_old"], gamma)
        tau = cosine * s["phi"]
        return {
            "x": s["x"] + tau * d,
            "r": s["r"] - tau * image,
            "v_old": s["v"],
            "v": _ratio(w, beta),
            "d_old": s["d"],
            "d": d,
            "image_old": s["image"],
            "image": image,
            "beta": beta,
            "cosine_old": s["cosine"],
            "sine_old": s["sine"],
            "cosine": cosine,
            "sine": sine,
            "phi": -sine * s["phi"],
            "broken": gamma == 0,
        }

    return system.solve(_Method(start, lambda s: s["v"], step), early_stop)


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
    A, 0 < scale < 2 / largest eigenvalue. A need not be symmetric. One product an iteration and a few to check the
    residual; four vectors. Each iteration multiplies the residual by I - scale A. Where it grows, ``converged`` is
    False.

    >>> neumann(torch.diag(torch.tensor([1.0, 0.5])), torch.ones(2), max_iterations=40).converged
    tensor(True)
    """
    system = _System(operator, b, "neumann", tolerance, max_iterations)

    def start(x: Tensor, r: Tensor) -> dict[str, Tensor]:
        return {"x": x, "r": r, "broken": torch.zeros_like(r[0] > 0)}

    def step(s: dict[str, Tensor], product: Tensor) -> dict[str, Tensor]:
        return {"x": s["x"] + scale * s["r"], "r": s["r"] - scale * product, "broken": s["broken"]}

    return system.solve(_Method(start, lambda s: s["r"], step), early_stop)


def lsmr(
    operator: LinearOperator | Tensor,
    b: Tree,
    damping: float | Tensor = 0.0,
    tolerance: float = 1e-6,
    max_iterations: int | None = None,
    early_stop: bool = True,
) -> Solution:
    """Least squares, min |A x - b|^2 + damping^2 |x|^2, for an A of any shape (Fong and Saunders, 2011).

    The iterates are those of minres on the normal equations, computed by conjugate residuals (Stiefel, 1955). With R
    the residual (b - A x, -damping x) and s = A^T (b - A x) - damping^2 x its image under the transpose, zero at the
    solution, ``residual`` is the smaller one of |R| / |b|, for systems that can be solved, and
    (|s| / |R|) / (|A^T b| / |b|), for those that cannot. ``residual_norm`` is |b - A x|, which need not be small. b is
    like the operator's output, the solution like its input. A product with A and one with its transpose an iteration;
    ten vectors. Raises ``ValueError`` for an operator without a transpose, and what :func:`cg` raises.

    >>> lsmr(torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]]), torch.tensor([1.0, 2.0, 5.0])).residual_norm
    tensor(5.)
    """
    system = _LeastSquares(operator, b, damping, tolerance, max_iterations)

    def start(x: Tensor, r: Tensor, s: Tensor) -> dict[str, Tensor]:
        zero, nought = torch.zeros_like(x), torch.zeros_like(x[0])
        return {
            "x": x,
            "s": s,
            "r": r,
            "p": zero,
            "normal_image": zero,  # (A^T A + damping^2) p
            "image": torch.zeros_like(r),  # A p
            "rho": nought,
            "broken": torch.zeros_like(nought > 0),
        }

    def step(state: dict[str, Tensor], product: Tensor, normal_product: Tensor) -> dict[str, Tensor]:
        s = state["s"]
        rho = product @ product + damping**2 * (s @ s)
        beta = _ratio(rho, state["rho"])
        p = s + beta * state["p"]
        normal_image = normal_product + beta * state["normal_image"]
        image = product + beta * state["image"]
        length = normal_image @ normal_image
        alpha = _ratio(rho, length)
        return {
            "x": state["x"] + alpha * p,
            "s": s - alpha * normal_image,
            "r": state["r"] - alpha * image,
            "p": p,
            "normal_image": normal_image,
            "image": image,
            "rho": rho,
            "broken": length == 0,
        }

    return system.solve(_Method(start, lambda state: state["s"], step, ("r", "s")), early_stop)


class _Method(NamedTuple):
    """An iteration that may be started anywhere. Its state holds x, the residuals, and whether it has broken down."""

    start: Callable[..., dict[str, Tensor]]  # of x and its residuals
    direction: Callable[[dict[str, Tensor]], Tensor]  # the vector that is multiplied next
    step: Callable[..., dict[str, Tensor]]  # of the state and the products
    residuals: tuple[str, ...] = ("r",)  # their names in the state


class _Search(NamedTuple):
    """Where a search stands. Residuals are relative figures."""

    state: dict[str, Tensor]
    moved: Tensor  # the lengths of all steps since the last start: rounding makes residuals drift in proportion to it
    sizes: tuple[Tensor, ...]  # lower bounds for the norms of what x is multiplied with
    best: Tensor  # the iterate with the smallest residual, as far as the method knows
    best_residual: Tensor
    verified: Tensor  # the iterate with the smallest true residual among those that were checked
    verified_residual: Tensor
    start_residual: Tensor  # the true residual where the method was last started
    doubt: Tensor  # whether the next product is spent on the true residual of the best iterate
    done: Tensor
    stuck: Tensor


class _System:
    """A x = b with everything as flat vectors of a wide dtype, b divided by its largest entry against underflow."""

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
        return A if self.name == "neumann" else as_symmetric_operator(operator, self.name, instead)

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
        """The figure that is compared with the tolerance, from the norms of the residuals."""
        return _ratio(norms[0], self.norm)

    def solve(self, method: _Method, early_stop: bool, x0: Tree | None = None) -> Solution:
        x = self.start_at(x0)
        residuals = self.first_residuals() if x0 is None else self.residuals(x)
        first = self.relative(x, *map(torch.linalg.vector_norm, residuals))

        def known(condition: Tensor) -> bool:
            return early_stop and _torch.readable(condition)

        def choose(condition: Tensor, first: Callable[[], Any], second: Callable[[], Any]) -> Any:
            if known(condition):
                return first() if bool(condition) else second()
            return _tree.where(condition, first(), second())

        state, nought = method.start(x, *residuals), torch.zeros_like(first)
        never = state["broken"]
        done = first <= self.tolerance
        s = _Search(state, nought, (nought,) * len(residuals), x, first, x, first, first, never, done, never)
        count = torch.zeros((), dtype=torch.int64, device=x.device)
        for routine in _schedule(self.max_iterations):
            over = s.done | s.stuck
            if known(over) and bool(over):
                break
            checks = s.doubt | routine
            vector = choose(checks, lambda s=s: s.best, lambda s=s: method.direction(s.state))
            products = self.products(vector, checks, choose)
            new = choose(
                checks,
                lambda s=s, products=products: self.check(method, s, products),
                lambda s=s, v=vector, products=products: self.advance(method, s, v, products),
            )
            s = new if known(over) else _tree.where(over, s, new)
            if not routine:
                count = count + torch.where(over, 0, 1)
        return self.finish(s, count)

    def first_residuals(self) -> tuple[Tensor, ...]:
        """Those of x = 0."""
        return (self.b,)

    def check(self, method: _Method, s: _Search, residuals: tuple[Tensor, ...]) -> _Search:
        """Note the true residual of the best iterate, and start again from there if there was reason to doubt it."""
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

    def advance(self, method: _Method, s: _Search, vector: Tensor, products: tuple[Tensor, ...]) -> _Search:
        """The next iterate. It is kept as the best one by its residual and what rounding may have added to that."""
        state = method.step(s.state, *products)
        sizes = tuple(
            torch.maximum(size, _ratio(product.norm(), vector.norm()))
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

    def finish(self, s: _Search, count: Tensor) -> Solution:
        """The better one of the best iterate and the best checked one, with figures computed from what is returned."""
        space = self.operator.domain
        true = self.relative(s.best, *map(torch.linalg.vector_norm, self.residuals(s.best)))
        x = (torch.where(true <= s.verified_residual, s.best, s.verified) * self.scale).to(space.dtype)
        scaled = x.to(self.b.dtype) / self.scale
        norms = [residual.norm() for residual in self.residuals(scaled)]
        residual = self.relative(scaled, *norms)
        return Solution(
            x if self.flat else space.tree(x), residual <= self.tolerance, count, norms[0] * self.scale, residual
        )


class _LeastSquares(_System):
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
        stationary = _ratio(_ratio(s, length), _ratio(self.normal_norm, self.norm))
        return torch.minimum(_ratio(length, self.norm), stationary)


def _schedule(iterations: int) -> Iterator[bool]:
    """False for each iteration, and after 16, 32, 64, ... of them True for a look at the true residual in any case."""
    for number in range(iterations):
        if number >= 16 and number.bit_count() == 1:
            yield True
        yield False


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """0 where the denominator is 0: the recurrence has ended there."""
    zero = denominator == 0
    return torch.where(zero, 0.0, numerator / torch.where(zero, 1.0, denominator))
