"""Linear systems A x = b by products with A alone.

Every solver takes a :class:`LinearOperator` or a dense matrix, ``b`` as a tree or a flat vector, and gives a
:class:`Solution` whose ``solution`` has the same form. It has converged when the relative residual is at most
``tolerance``, and stops then, or when rounding allows no progress, or after ``max_iterations`` (default: the number of
unknowns).

How the residual is checked, and when a solver stops, is in :mod:`fnn.linalg.iteration`.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from fnn.linalg.iteration import LeastSquares, Method, Solution, System, ratio
from fnn.linalg.linear_operator import LinearOperator
from fnn.tree import Tree


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
    positive. A direction with p^T A p <= 0 ends the iterations: ``converged`` is then False; use :func:`minres`.

    >>> cg(torch.tensor([[4.0, 1.0], [1.0, 3.0]]), torch.tensor([1.0, 2.0])).solution
    tensor([0.0909, 0.6364])
    """
    system = System(operator, b, "cg", tolerance, max_iterations)
    precondition = system.preconditioner(preconditioner)

    def start(x: Tensor, r: Tensor) -> dict[str, Tensor]:
        z = precondition(r)
        return {"x": x, "r": r, "p": z, "rho": r @ z, "broken": torch.zeros_like(r[0] > 0)}

    def step(s: dict[str, Tensor], product: Tensor) -> dict[str, Tensor]:
        curvature = s["p"] @ product
        broken = curvature <= 0
        alpha = torch.where(broken, 0.0, ratio(s["rho"], curvature))
        r = s["r"] - alpha * product
        z = precondition(r)
        rho = r @ z
        return {
            "x": s["x"] + alpha * s["p"],
            "r": r,
            "p": z + ratio(rho, s["rho"]) * s["p"],
            "rho": rho,
            "broken": broken,
        }

    method = Method(start, lambda s: s["p"], step)
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
    system = System(operator, b, "minres", tolerance, max_iterations)

    def start(x: Tensor, r: Tensor) -> dict[str, Tensor]:
        phi, zeros = r.norm(), torch.zeros_like(r)
        zero = torch.zeros_like(phi)
        return {
            "x": x,
            "r": r,
            "v_old": zeros,
            "v": ratio(r, phi),
            "d_old": zeros,
            "d": zeros,
            "image_old": zeros,  # A d of the last two directions, by which the residual is updated as x is by d
            "image": zeros,
            "beta": zero,
            "cosine_old": zero + 1.0,
            "sine_old": zero,
            "cosine": zero + 1.0,
            "sine": zero,
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
        cosine, sine = ratio(gamma_bar, gamma), ratio(beta, gamma)
        d = ratio(s["v"] - delta * s["d"] - epsilon * s["d_old"], gamma)
        image = ratio(product - delta * s["image"] - epsilon * s["image_old"], gamma)
        tau = cosine * s["phi"]
        return {
            "x": s["x"] + tau * d,
            "r": s["r"] - tau * image,
            "v_old": s["v"],
            "v": ratio(w, beta),
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

    return system.solve(Method(start, lambda s: s["v"], step), early_stop)


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
    system = System(operator, b, "neumann", tolerance, max_iterations)

    def start(x: Tensor, r: Tensor) -> dict[str, Tensor]:
        return {"x": x, "r": r, "broken": torch.zeros_like(r[0] > 0)}

    def step(s: dict[str, Tensor], product: Tensor) -> dict[str, Tensor]:
        return {"x": s["x"] + scale * s["r"], "r": s["r"] - scale * product, "broken": s["broken"]}

    return system.solve(Method(start, lambda s: s["r"], step), early_stop)


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
    system = LeastSquares(operator, b, damping, tolerance, max_iterations)

    def start(x: Tensor, r: Tensor, s: Tensor) -> dict[str, Tensor]:
        zeros, zero = torch.zeros_like(x), torch.zeros_like(x[0])
        return {
            "x": x,
            "s": s,
            "r": r,
            "p": zeros,
            "normal_image": zeros,  # (A^T A + damping^2) p
            "image": torch.zeros_like(r),  # A p
            "rho": zero,
            "broken": torch.zeros_like(zero > 0),
        }

    def step(state: dict[str, Tensor], product: Tensor, normal_product: Tensor) -> dict[str, Tensor]:
        s = state["s"]
        rho = product @ product + damping**2 * (s @ s)
        beta = ratio(rho, state["rho"])
        p = s + beta * state["p"]
        normal_image = normal_product + beta * state["normal_image"]
        image = product + beta * state["image"]
        length = normal_image @ normal_image
        alpha = ratio(rho, length)
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

    return system.solve(Method(start, lambda state: state["s"], step, ("r", "s")), early_stop)
