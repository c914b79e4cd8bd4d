"""Eigenvalues of a symmetric operator by Lanczos (1950), with full reorthogonalisation.

Rounding makes plain Lanczos find the same eigenvalue again and again; here every new vector is made orthogonal
to all earlier ones, twice, which costs memory for all of them and n * steps^2 operations.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fnn import random
from fnn.linalg.estimators import Estimate
from fnn.linalg.linear_operator import LinearOperator, as_operator, check_symmetric


class Eigenpairs(NamedTuple):
    """``values`` (k,), ``vectors`` (n, k) with |A v - value v| = ``residuals`` (k,), and whether all are small."""

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    converged: bool


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
    starts the next round. Converged when every residual is at most tolerance times the largest eigenvalue seen.
    Memory: subspace vectors; cost: subspace products at first, about half as many a restart. Eager only: the
    number of restarts depends on the numbers. Raises ``ValueError`` for an operator that is not symmetric, k
    outside 1 .. n, a subspace that is not larger than k, or no restarts.

    >>> eigenpairs(torch.diag(torch.tensor([1.0, 5.0, 3.0])), 1, random.key(0)).values
    tensor([5.])
    """
    A = _symmetric(operator, "eigenpairs")
    n = A.shape[0]
    size = min(max(2 * k + 10, 20) if subspace is None else subspace, n)
    if not 1 <= k <= n:
        raise ValueError(f"eigenpairs needs 1 <= k <= {n}, got k={k}")
    if size <= k < n or max_restarts < 1:
        raise ValueError(f"eigenpairs needs subspace > k and max_restarts >= 1, got {subspace}, {k}, {max_restarts}")
    if which not in ("largest", "smallest", "magnitude"):
        raise ValueError(f"which is 'largest', 'smallest' or 'magnitude', got {which!r}")
    draw, key = random.split(key)
    start = random.normal(draw, (n,), A.dtype).to(A.device)
    basis, images, following = start.new_zeros((n, 0)), start.new_zeros((n, 0)), start
    for restart in range(max_restarts):
        while basis.shape[1] < size:
            v = _orthogonal(following, basis)
            if v.norm() <= 10 * torch.finfo(A.dtype).eps * following.norm():  # an invariant subspace: go elsewhere
                draw, key = random.split(key)
                v = _orthogonal(random.normal(draw, (n,), A.dtype).to(A.device), basis)
            v = v / v.norm()
            image = A(v)
            basis, images = torch.cat([basis, v[:, None]], 1), torch.cat([images, image[:, None]], 1)
            following = image
        projected = basis.T @ images
        ritz, rotation = torch.linalg.eigh((projected + projected.T) / 2)
        order = {"largest": -ritz, "smallest": ritz, "magnitude": -ritz.abs()}[which].argsort()
        ritz, rotation = ritz[order], rotation[:, order]
        vectors, products = basis @ rotation, images @ rotation
        remainder = products[:, :k] - vectors[:, :k] * ritz[:k]
        residuals = remainder.norm(dim=0)
        converged = bool((residuals <= tolerance * ritz.abs().max()).all())
        if converged or size == n or restart == max_restarts - 1:
            break
        keep = min(max(k + 1, size // 2), size - 1)
        basis, images, following = vectors[:, :keep], products[:, :keep], remainder[:, residuals.argmax()]
    return Eigenpairs(ritz[:k], vectors[:, :k], residuals, converged)


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
    geometrically at a rate set by the square root of the condition number. Eager only: raises ``ValueError``
    for an eigenvalue that is not positive, for fewer than two probes, and what :func:`spectral_density` raises.

    >>> log_determinant(2.0 * torch.eye(3), random.key(0)).value
    tensor(2.0794)
    """
    if probes < 2:
        raise ValueError(f"log_determinant needs at least 2 probes for its error bar, got {probes}")
    A = _symmetric(operator, "log_determinant")
    density = spectral_density(A, key, probes, steps)
    seen = density.weights > torch.finfo(A.dtype).eps ** 2  # ended recurrences leave nodes of no weight
    lowest = torch.where(seen, density.nodes, torch.inf).min()
    if bool(lowest <= 0):
        raise ValueError(f"log_determinant needs positive eigenvalues, met {lowest.item():.3g}; add A.damped(...)")
    logs = torch.where(seen, density.weights * torch.where(seen, density.nodes, 1.0).log(), 0.0)
    draws = A.shape[0] * probes * logs.reshape(probes, -1).sum(1)
    return Estimate(draws.mean(), draws.std() / probes**0.5)


def _quadrature(A: LinearOperator, key: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    start = random.normal(key, (A.shape[0],), A.dtype).to(A.device)
    v = start / start.norm()
    basis, diagonal, off = v[:, None], [], []
    for step in range(steps):
        image = A(v)
        diagonal.append(v @ image)
        if step == steps - 1:
            break
        w = _orthogonal(image, basis)
        beta = w.norm()
        ended = beta <= 10 * torch.finfo(A.dtype).eps * image.norm()  # the rest is zero and has no weight
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
    A = as_operator(operator, name)
    check_symmetric(A, name, "for singular values write A.T @ A")
    return A
