"""Eigenvalues of a symmetric operator by Lanczos (1950), with full reorthogonalisation.

Rounding makes plain Lanczos find the same eigenvalue again and again; here every new vector is made orthogonal
to all earlier ones, twice, which costs memory for all of them and n * steps^2 operations.
"""

import itertools
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fnn import _torch, random
from fnn.linalg.estimators import Estimate
from fnn.linalg.linear_operator import LinearOperator, as_symmetric_operator


class Eigenpairs(NamedTuple):
    """``values`` (k,), ``vectors`` (n, k), ``residuals`` |A v - value v| (k,), and whether the search has converged.

    ``converged`` of :func:`eigenpairs` is True when all residuals are small and a search from a random vector outside
    the span of the vectors has met nothing further out, such as another copy of a multiple eigenvalue. That of
    :func:`lobpcg`, a 0-d tensor, is about the residuals alone.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    converged: bool | Tensor


class Density(NamedTuple):
    """Eigenvalues ``nodes`` (probes * steps,) with ``weights`` that sum to 1: a discrete spectral density."""

    nodes: Tensor
    weights: Tensor

    def smooth(self, grid: Tensor, width: float | Tensor) -> Tensor:
        """The density at the points of ``grid`` (m,), every node a normal distribution of standard deviation width."""
        z = (grid[:, None] - self.nodes) / width
        return (self.weights * torch.exp(-0.5 * z * z)).sum(1) / (width * (2 * torch.pi) ** 0.5)


def eigenpairs(
    operator: LinearOperator | Tensor,
    k: int,
    key: Tensor,
    which: Literal["largest", "smallest", "magnitude"] = "largest",
    tolerance: float = 1e-6,
    max_restarts: int = 50,
    subspace: int | None = None,
) -> Eigenpairs:
    """The k eigenpairs at one end of the spectrum, outermost first, by thick-restart Lanczos (Wu and Simon, 2000).

    The basis grows to ``subspace`` vectors (default max(2 k + 10, 20), at most n), the best half of its Ritz vectors
    starts the next round. Residuals count as small at tolerance times the largest eigenvalue seen.

    A Krylov space holds one vector of each eigenspace, so the first k pairs found may lack copies of a multiple
    eigenvalue. They are therefore kept, and the search goes on from a random vector orthogonal to them, until what it
    finds outside settles below them; a copy found joins the k, and the search starts once more. ``converged`` is False
    where ``max_restarts`` rounds were not enough for this: a 12-fold eigenvalue takes about three rounds a copy.

    Memory: subspace vectors; cost: subspace products at first, about half as many a round. Eager only: the
    number of rounds depends on the numbers. Raises ``ValueError`` for an operator that is not symmetric, k
    outside 1 .. n, a subspace that is not larger than k, no restarts, and under ``vmap`` or in traced code.

    >>> eigenpairs(torch.diag(torch.tensor([1.0, 5.0, 3.0])), 1, random.key(0)).values
    tensor([5.])
    """
    A = _symmetric(operator, "eigenpairs")
    n, dtype = A.shape[0], A.domain.wide_dtype
    size = min(max(2 * k + 10, 20) if subspace is None else subspace, n)
    if not 1 <= k <= n:
        raise ValueError(f"eigenpairs needs 1 <= k <= {n}, got k={k}")
    if size <= k < n or max_restarts < 1:
        raise ValueError(f"eigenpairs needs subspace > k and max_restarts >= 1, got {subspace}, {k}, {max_restarts}")
    if which not in ("largest", "smallest", "magnitude"):
        raise ValueError(f"which is 'largest', 'smallest' or 'magnitude', got {which!r}")
    draws = itertools.count()

    def draw() -> Tensor:
        return random.normal(random.fold_in(key, next(draws)), (n,), dtype).to(A.device)

    following = draw()
    if not _torch.readable(A.times_vector(following)):
        raise ValueError(
            "eigenpairs reads values of tensors and cannot run under vmap or in a traced function; call it outside"
        )
    basis, images = following.new_zeros((n, 0)), following.new_zeros((n, 0))
    searching, before, converged, worst = False, following, False, torch.full_like(following[0], torch.inf)
    for restart in range(max_restarts):
        while basis.shape[1] < size:
            v = _orthogonal(following, basis)
            if v.norm() <= 10 * torch.finfo(dtype).eps * following.norm():  # an invariant subspace: start at random
                v = _orthogonal(draw(), basis)
            v = v / v.norm()
            following = A.times_vector(v)
            basis, images = torch.cat([basis, v[:, None]], 1), torch.cat([images, following[:, None]], 1)
        projected = basis.T @ images
        ritz, rotation = torch.linalg.eigh((projected + projected.T) / 2)
        order = {"largest": -ritz, "smallest": ritz, "magnitude": -ritz.abs()}[which].argsort()
        ritz, rotation = ritz[order], rotation[:, order]
        vectors, products = basis @ rotation, images @ rotation
        remainders = products - vectors * ritz
        residuals = remainders.norm(dim=0)
        small = tolerance * ritz.abs().max()
        settled = bool((residuals[:k] <= small).all())
        if size == n or restart == max_restarts - 1:
            converged = settled and size == n
        if settled and searching and size < n:
            unchanged = bool(((ritz[:k] - before).abs() <= small).all())
            # the next pair cannot be one of the k once its distance to them exceeds its residual
            gap = (ritz[k - 1].abs() - ritz[k].abs()) if which == "magnitude" else (ritz[k - 1] - ritz[k])
            converged = unchanged and bool(residuals[k] <= torch.maximum(10.0 * small, 0.1 * gap.abs()))
            searching = unchanged
        if converged or size == n or restart == max_restarts - 1:
            break
        worst, stagnant = residuals[:k].max(), bool(residuals[:k].max() > 0.5 * worst)
        if settled and not searching:  # the k pairs stay, the search starts anew outside them
            searching, before, kept, following = True, ritz[:k], k, draw()
        else:
            kept = min(max(k + 1, size // 2), size - 1)
            following = remainders[:, residuals[: k + searching].argmax()]
        basis, images = vectors[:, :kept], products[:, :kept]
        if settled or stagnant:  # the rotations have accumulated rounding errors: multiply anew
            basis = torch.linalg.qr(basis).Q
            images = A.columns(basis, 1)
    return Eigenpairs(ritz[:k].clone(), vectors[:, :k].clone(), residuals[:k].clone(), converged)


def spectral_density(operator: LinearOperator | Tensor, key: Tensor, probes: int = 10, steps: int = 40) -> Density:
    """Stochastic Lanczos quadrature (Ubaru, Chen and Saad, 2017; Ghorbani et al., 2019).

    Each random vector gives ``steps`` eigenvalues and weights whose moments up to 2 steps - 1 are those of the
    spectrum as the vector sees it; probes average over vectors. probes * steps products one after the other, memory
    steps vectors. Passes ``fnn.jit``. Raises ``ValueError`` for an operator that is not symmetric or counts
    that are not positive.

    >>> density = spectral_density(torch.diag(torch.tensor([1.0, 3.0])), random.key(0), probes=1, steps=2)
    >>> density.nodes
    tensor([1.0000, 3.0000])
    """
    A = _symmetric(operator, "spectral_density")
    if probes < 1 or steps < 1:
        raise ValueError(f"spectral_density needs probes and steps of at least 1, got {probes} and {steps}")
    pairs = [_quadrature(A, probe, min(steps, A.shape[0])) for probe in random.split(key, probes)]
    return Density(torch.cat([nodes for nodes, _ in pairs]), torch.cat([w for _, w in pairs]) / probes)


def log_determinant(operator: LinearOperator | Tensor, key: Tensor, probes: int = 10, steps: int = 40) -> Estimate:
    """log det A of a symmetric positive definite A, n times the mean of log over :func:`spectral_density`.

    The standard error is that over the probes; the bias of too few steps, which is not in it, falls
    geometrically at a rate set by the square root of the condition number. Raises ``ValueError`` for an eigenvalue that
    is not positive (under ``vmap`` and in traced code the result is nan), for fewer than two probes, and what
    :func:`spectral_density` raises.

    >>> log_determinant(2.0 * torch.eye(3), random.key(0)).value
    tensor(2.0794)
    """
    if probes < 2:
        raise ValueError(f"log_determinant needs at least 2 probes for its error bar, got {probes}")
    A = _symmetric(operator, "log_determinant")
    density = spectral_density(A, key, probes, steps)
    seen = density.weights > torch.finfo(density.weights.dtype).eps ** 2  # ended recurrences leave nodes of no weight
    lowest = torch.where(seen, density.nodes, torch.inf).min()
    if _torch.readable(lowest) and bool(lowest <= 0):
        raise ValueError(f"log_determinant needs positive eigenvalues, met {lowest.item():.3g}; add A.damped(...)")
    nodes = torch.where(density.nodes > 0, density.nodes, torch.nan)
    logs = torch.where(seen, density.weights * torch.where(seen, nodes, 1.0).log(), 0.0)
    draws = A.shape[0] * probes * logs.reshape(probes, -1).sum(1)
    return Estimate(draws.mean(), draws.std() / probes**0.5)


def _quadrature(A: LinearOperator, key: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    dtype = A.domain.wide_dtype
    start = random.normal(key, (A.shape[0],), dtype).to(A.device)
    v = start / start.norm()
    basis, diagonal, off = v[:, None], [], []
    for step in range(steps):
        image = A.times_vector(v)
        diagonal.append(v @ image)
        if step == steps - 1:
            break
        w = _orthogonal(image, basis)
        beta = w.norm()
        ended = beta <= 10 * torch.finfo(dtype).eps * image.norm()  # the rest is zero and has no weight
        beta = torch.where(ended, 0.0, beta)
        v = torch.where(ended, 0.0, w / torch.where(ended, 1.0, beta))
        off.append(beta)
        basis = torch.cat([basis, v[:, None]], 1)
    tridiagonal = torch.diag(torch.stack(diagonal))
    if off:
        tridiagonal = tridiagonal + torch.diag(torch.stack(off), 1) + torch.diag(torch.stack(off), -1)
    nodes, vectors = torch.linalg.eigh(tridiagonal)
    return nodes, vectors[0] ** 2


def _orthogonal(vector: Tensor, basis: Tensor) -> Tensor:
    for _ in range(2):  # once leaves a remainder of rounding error; twice is enough (Parlett)
        vector = vector - basis @ (basis.T @ vector)
    return vector


def _symmetric(operator: LinearOperator | Tensor, name: str) -> LinearOperator:
    return as_symmetric_operator(operator, name, "for singular values write A.T @ A")
