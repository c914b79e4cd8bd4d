"""Eigenvalues at one end of the spectrum of a symmetric operator by LOBPCG (Knyazev, 2001), in traced code too."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fnn import _torch, random
from fnn import tree as _tree
from fnn.linalg.lanczos import Eigenpairs
from fnn.linalg.linear_operator import LinearOperator, as_operator, as_symmetric_operator


class _State(NamedTuple):
    X: Tensor  # the Ritz vectors, (n, k), orthonormal
    AX: Tensor
    P: Tensor  # the directions of the last step, orthonormal to X
    AP: Tensor
    largest: Tensor  # the largest eigenvalue in magnitude that has been seen
    done: Tensor


def lobpcg(
    operator: LinearOperator | Tensor,
    k: int,
    key: Tensor,
    which: Literal["largest", "smallest"] = "largest",
    preconditioner: LinearOperator | Tensor | None = None,
    start: Tensor | None = None,
    tolerance: float = 1e-6,
    max_iterations: int = 100,
    early_stop: bool = True,
) -> Eigenpairs:
    """The k eigenpairs at one end of the spectrum, outermost first, by the locally optimal block conjugate gradients.

    Each iteration takes the best k vectors (Rayleigh and Ritz) in the span of 3 k: the vectors, the directions of the
    last step, and the residuals A x - value x times ``preconditioner``, for the smallest eigenvalues an approximation
    of the inverse of A. The basis is that of Hetmaniuk and Lehoucq (2006), kept orthonormal by QR decompositions.
    ``start`` (n, k) are vectors to begin with, such as those of an earlier step of training, or random ones from
    ``key``. ``converged``, a 0-d tensor, says that all ``residuals``, computed from products with the vectors returned,
    are at most tolerance times the largest eigenvalue in magnitude among those seen.

    Costs k products, k with the preconditioner and about 80 n k^2 operations an iteration, 3 k products more in all,
    and some 15 k vectors of memory. Unlike :func:`eigenpairs` it passes ``fnn.jit`` and ``vmap``: there, and with
    ``early_stop=False``, all ``max_iterations`` run, and those after convergence change nothing. Without a
    preconditioner :func:`eigenpairs` needs fewer products. Raises ``ValueError`` for an operator that is not symmetric,
    for k outside 1 .. n / 3, for a start of another shape, and for a tolerance or a number of iterations that is not
    positive.

    >>> lobpcg(torch.diag(torch.arange(1.0, 10.0)), 1, random.key(0)).values
    tensor([9.])
    """
    A = as_symmetric_operator(operator, "lobpcg", "for singular values write A.T @ A")
    n, dtype = A.shape[0], A.domain.wide_dtype
    if not 1 <= k <= n // 3:
        raise ValueError(f"lobpcg needs 1 <= k <= n / 3 with n = {n}, got k={k}; write torch.linalg.eigh(A.dense())")
    if which not in ("largest", "smallest"):
        raise ValueError(f"which is 'largest' or 'smallest', got {which!r}")
    if max_iterations < 1 or tolerance <= 0:
        raise ValueError(f"lobpcg needs max_iterations and a tolerance above 0, got {max_iterations} and {tolerance}")
    if start is not None and start.shape != (n, k):
        raise ValueError(f"lobpcg needs start vectors of shape ({n}, {k}), got {tuple(start.shape)}")
    M = None if preconditioner is None else as_operator(preconditioner, "lobpcg's preconditioner")
    if M is not None and M.shape != A.shape:
        raise ValueError(f"lobpcg's preconditioner has shape {M.shape}, the operator {A.shape}")

    def best(products: Tensor) -> tuple[Tensor, Tensor]:
        """All Ritz values, the wanted end first, and their vectors as columns."""
        values, vectors = torch.linalg.eigh((products + products.mT) / 2)
        return (values.flip(-1), vectors.flip(-1)) if which == "largest" else (values, vectors)

    def step(s: _State) -> _State:
        residuals = s.AX - s.X * (s.X * s.AX).sum(0)
        steepest = residuals if M is None else M.columns(residuals)
        # where the columns are dependent, QR puts others in their place, which do no harm
        W = torch.linalg.qr(torch.cat([s.X, s.P, steepest], 1)).Q[:, 2 * k :]
        S, AS = torch.cat([s.X, s.P, W], 1), torch.cat([s.AX, s.AP, A.columns(W)], 1)
        values, vectors = best(S.mT @ AS)
        C = vectors[:, :k]
        moved = torch.cat([torch.zeros_like(C[:k]), C[k:]])
        D = torch.linalg.qr(torch.cat([C, moved], 1)).Q[:, k:]
        X, AX = S @ C, AS @ C
        largest = torch.maximum(s.largest, values.abs().max())
        done = (AX - X * values[:k]).norm(dim=0).max() <= tolerance * largest
        return _State(X, AX, S @ D, AS @ D, largest, done)

    drawn = random.normal(key, (n, 2 * k), dtype).to(A.device)
    if start is not None:
        drawn = torch.cat([start.to(dtype), drawn[:, k:]], 1)
    basis = torch.linalg.qr(drawn).Q
    images = A.columns(basis)
    largest = best(basis.mT @ images)[0].abs().max()
    s = _State(basis[:, :k], images[:, :k], basis[:, k:], images[:, k:], largest, torch.zeros_like(largest > 0))
    for _ in range(max_iterations):
        if early_stop and _torch.readable(s.done) and bool(s.done):
            break
        s = _State(*_tree.where(s.done, tuple(s), tuple(step(s))))
    X = torch.linalg.qr(s.X).Q
    AX = A.columns(X)
    values, rotation = best(X.mT @ AX)
    X, AX = X @ rotation, AX @ rotation
    residuals = (AX - X * values).norm(dim=0)
    return Eigenpairs(values, X, residuals, residuals.max() <= tolerance * s.largest)
