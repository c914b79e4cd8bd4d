"""Linear systems A x = b by products with A alone.

Every solver takes a :class:`LinearOperator` or a dense matrix, ``b`` as a tree or a flat vector, and gives a
:class:`Solution` whose ``solution`` has the same form. It has converged when the relative residual is at most
``tolerance``, and stops then, or when rounding allows no progress, or after ``max_iterations`` (default: the number of
unknowns).

How the residual is checked, and when a solver stops, is in :mod:`fnn.linalg.iteration`.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
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


def gmres(
    operator: LinearOperator | Tensor,
    b: Tree,
    x0: Tree | None = None,
    preconditioner: LinearOperator | Tensor | Callable[[Tree], Tree] | None = None,
    restart: int = 20,
    tolerance: float = 1e-6,
    max_iterations: int | None = None,
    early_stop: bool = True,
) -> Solution:
    """The smallest residual over the Krylov space (Saad and Schultz, 1986) for a square A, symmetric or not.

    Starts again from its iterate after every ``restart`` iterations (default 20, at most n), because it keeps an
    orthonormal basis of the space: ``restart`` vectors and about six more. Without restarts, ``restart=n``, it ends
    after n iterations in exact arithmetic. With fewer it may stagnate where A is indefinite; ``converged`` is then
    False. ``preconditioner`` is a linear approximation M of the inverse of A, an operator, a matrix or a function of
    trees, applied from the right, A M u = b and x = M u, so that the residual is that of A x = b. An iteration takes
    one product with A, two with M and 4 n ``restart`` operations or more. Raises ``ValueError`` for a ``restart``
    below 1, and what :func:`neumann` raises.

    >>> gmres(torch.tensor([[1.0, 2.0], [0.0, 4.0]]), torch.tensor([3.0, 4.0])).converged
    tensor(True)
    """
    if restart < 1:
        raise ValueError(f"gmres needs restart of at least 1, the size of its basis, got {restart}")
    system = System(operator, b, "gmres", tolerance, max_iterations)
    precondition = system.preconditioner(preconditioner)
    size = min(restart, system.operator.shape[0])
    places = torch.arange(size, device=system.b.device)

    def start(x: Tensor, r: Tensor) -> dict[str, Tensor]:
        phi, eye = r.norm(), torch.eye(size + 1, dtype=r.dtype, device=r.device)
        v = ratio(r, phi)
        return {
            "x": x,
            "r": r,
            "start": x,
            "v": v,
            "basis": torch.where(places[:, None] == 0, v, 0.0),  # a row for each vector, zero where there is none yet
            "count": torch.zeros_like(places[0]),
            "rotations": eye,  # Q of Q H = (R, 0), where A V_k = V_(k+1) H
            "triangle": eye[:size, :size],  # R
            "side": torch.zeros_like(eye[0, :size]),  # Q |r| e_1 without its last entry phi
            "phi": phi,
            "broken": torch.zeros_like(phi > 0),
        }

    def step(s: dict[str, Tensor], product: Tensor) -> dict[str, Tensor]:
        rounding = 10 * torch.finfo(product.dtype).eps * product.norm()
        overlap, w = torch.zeros_like(s["side"]), product
        for _ in range(2):  # once leaves a remainder of rounding error
            part = s["basis"] @ w
            overlap, w = overlap + part, w - part @ s["basis"]
        beta = torch.where(w.norm() <= rounding, 0.0, w.norm())  # zero where the space holds A v
        v = torch.where(beta == 0, 0.0, ratio(w, beta))

        here = places == s["count"]
        unit = torch.cat([torch.zeros_like(here[:1]), here]).to(w.dtype)  # e_(k+1)
        column = s["rotations"][:size, :size] @ overlap
        row = here.to(w.dtype) @ s["rotations"][:size]
        alpha = column[:size] @ here.to(w.dtype)
        gamma = torch.hypot(alpha, beta)
        broken = gamma <= rounding
        gamma = torch.where(broken, 0.0, gamma)
        cosine, sine = ratio(alpha, gamma), ratio(beta, gamma)
        rotations = torch.where(F.pad(here, (0, 1))[:, None], cosine * row + sine * unit, s["rotations"])
        rotations = torch.where(unit[:, None] > 0, cosine * unit - sine * row, rotations)
        diagonal = torch.where(broken, 1.0, gamma)
        triangle = torch.where(here, torch.where(here, diagonal, column)[:, None], s["triangle"])
        side = torch.where(here, cosine * s["phi"], s["side"])

        y = torch.linalg.solve_triangular(triangle, side[:, None], upper=True)[:, 0]
        x = s["start"] + precondition(y @ s["basis"])
        r = sine**2 * s["r"] - sine * cosine * s["phi"] * v
        going_on = s | {
            "x": x,
            "r": r,
            "v": v,
            "basis": torch.where((places == s["count"] + 1)[:, None], v, s["basis"]),
            "count": s["count"] + 1,
            "rotations": rotations,
            "triangle": triangle,
            "side": side,
            "phi": -sine * s["phi"],
            "broken": broken,
        }
        full, again = s["count"] + 1 == size, start(x, r) | {"broken": broken}
        return {name: torch.where(full, again[name], going_on[name]) for name in again}

    return system.solve(Method(start, lambda s: precondition(s["v"]), step), early_stop, x0)


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
