"""Trace, diagonal and Frobenius norm of an operator from products with random vectors, the probes.

The probes come from a key, so an estimate is a pure function. ``chunk_size`` of them (default all) are multiplied at
once: memory is chunk_size times that of one product, and the probes themselves. Operators of 16-bit leaves are
estimated in float32.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fnn import random
from fnn.linalg.linear_operator import LinearOperator, as_operator, check_square
from fnn.tree import Tree


class Estimate(NamedTuple):
    """An estimate and its standard error, both 0-d tensors (for a diagonal: trees like the input)."""

    value: Tree
    error: Tree


def estimate_trace(
    operator: LinearOperator | Tensor,
    key: Tensor,
    probes: int = 30,
    method: Literal["hutchinson", "hutch++", "xtrace"] = "xtrace",
    chunk_size: int | None = None,
) -> Estimate:
    """The trace of a square operator from ``probes`` products, unbiased, with its standard error.

    ``"hutchinson"`` (1990): the mean of w^T A w over random signs w; error about 1 / sqrt(probes).
    ``"hutch++"`` (Meyer, Musco, Musco and Woodruff, 2021): a third of the products finds the range Q, a third
    takes its trace exactly, a third estimates the rest; error about 1 / probes for semidefinite A, exact for a
    rank up to probes / 3. ``"xtrace"`` (Epperly, Tropp and Webber, 2024): the mean of leave-one-out
    estimates, each with every other vector in Q; probes / 2 vectors and two products each; the smallest error
    where the spectrum decays. Memory: as many vectors as probes. The error of the last two is itself an estimate from
    few numbers. Raises ``ValueError`` for fewer probes than the method needs (2, 6, 4), and for more than n.

    >>> estimate_trace(torch.diag(torch.tensor([1.0, 2.0, 3.0])), random.key(0), 4, "hutchinson")
    Estimate(value=tensor(6.), error=tensor(0.))
    """
    A = _square(operator, "trace")
    least = {"hutchinson": 2, "hutch++": 6, "xtrace": 4}
    if method not in least:
        raise ValueError(f"method is one of {list(least)}, got {method!r}")
    if probes < least[method]:
        raise ValueError(f"estimate_trace with method={method!r} needs at least {least[method]} probes, got {probes}")
    if method == "hutchinson":
        signs = _signs(A, key, probes)
        return _mean((signs * A.columns(signs, chunk_size)).sum(0))
    vectors = probes // 3 if method == "hutch++" else probes // 2
    if vectors >= A.shape[0]:
        raise ValueError(f"{vectors} vectors span the whole space of {A.shape[0]}; write operator.dense().trace()")
    return (_hutch_plus_plus if method == "hutch++" else _xtrace)(A, key, vectors, chunk_size)


def _hutch_plus_plus(A: LinearOperator, key: Tensor, count: int, chunk_size: int | None) -> Estimate:
    sketch_key, rest_key = random.split(key)
    basis = torch.linalg.qr(A.columns(_signs(A, sketch_key, count), chunk_size)).Q
    signs = _signs(A, rest_key, count)
    rest = signs - basis @ (basis.T @ signs)
    products = A.columns(torch.cat([basis, rest], 1), chunk_size)
    exact = (basis * products[:, :count]).sum()
    mean = _mean((rest * products[:, count:]).sum(0))
    return Estimate(exact + mean.value, mean.error)


def _xtrace(A: LinearOperator, key: Tensor, count: int, chunk_size: int | None) -> Estimate:
    n, dtype = A.shape[0], A.domain.wide_dtype
    w = random.normal(key, (n, count), dtype).to(A.device)
    image = A.columns(w, chunk_size)
    basis, R = torch.linalg.qr(image)
    products = A.columns(basis, chunk_size)
    left_out = _own_directions(R)
    H = basis.T @ products
    coordinates = basis.T @ w
    x = coordinates - left_out * (left_out * coordinates).sum(0)  # w_i in the basis without its own direction
    inside = H.trace() - (left_out * (H @ left_out)).sum(0)
    outside = (w * image).sum(0) - ((w.T @ products).T * x).sum(0) - (x * R).sum(0) + (x * (H @ x)).sum(0)
    length = (w * w).sum(0) - (x * x).sum(0)
    return _mean(inside + outside * (n - count + 1) / length)  # as if w were uniform on the sphere of the rest


def _own_directions(R: Tensor) -> Tensor:
    """Column i is the direction, in the basis Q of Y = Q R, that only column i of Y contributes: (count, count)."""
    finfo = torch.finfo(R.dtype)
    smallest = finfo.eps * R.diagonal().abs().max()
    diagonal = torch.where(R.diagonal().abs() <= smallest, smallest + finfo.tiny, R.diagonal())
    upper = R.triu(1) + torch.diag(diagonal)
    inverse = torch.linalg.solve_triangular(upper.T, torch.eye(len(R), dtype=R.dtype, device=R.device), upper=False)
    return inverse / inverse.norm(dim=0)


def estimate_diagonal(
    operator: LinearOperator | Tensor,
    key: Tensor,
    probes: int = 100,
    method: Literal["hutchinson", "xdiag"] = "hutchinson",
    chunk_size: int | None = None,
) -> Estimate:
    """The diagonal of a square operator, a tree like the input, from ``probes`` products, with its standard error.

    ``"hutchinson"``: the mean of w * A w over random signs w (Bekas, Kokiopoulou and Saad, 2007). The squared error of
    entry i is the sum of its row's other entries squared, over probes. Exact for a diagonal matrix. ``"xdiag"``
    (Epperly, Tropp and Webber, 2024): the mean of leave-one-out estimates, each with the range Q of A times every
    other vector, diag(Q Q^T A) exactly and the rest of A from the vector left out; probes / 2 vectors, each with a
    product with A and one with its transpose. The smaller error where the singular values decay, exact for a rank below
    probes / 2; its error bar is itself an estimate from few numbers. Both are unbiased. Memory: as many vectors as
    probes.

    Raises ``ValueError`` for fewer probes than the method needs (2, 4), for an operator without a transpose, and, with
    ``"xdiag"``, for 2 n probes or more.

    >>> estimate_diagonal(torch.diag(torch.tensor([1.0, 2.0])), random.key(0), 2).value
    tensor([1., 2.])
    """
    A = _square(operator, "estimate_diagonal")
    least = {"hutchinson": 2, "xdiag": 4}
    if method not in least:
        raise ValueError(f"method is one of {list(least)}, got {method!r}")
    _check_probes("estimate_diagonal", probes, least[method])
    if method == "xdiag":
        mean = _mean(_xdiag(A, key, probes // 2, chunk_size))
    else:
        signs = _signs(A, key, probes)
        mean = _mean(signs * A.columns(signs, chunk_size))
    return Estimate(A.domain.tree(mean.value), A.domain.tree(mean.error))


def _xdiag(A: LinearOperator, key: Tensor, count: int, chunk_size: int | None) -> Tensor:
    """The leave-one-out estimates, (n, count)."""
    if count >= A.shape[0]:
        raise ValueError(f"{count} vectors span the whole space of {A.shape[0]}; write operator.dense().diagonal()")
    signs = _signs(A, key, count)
    basis, R = torch.linalg.qr(A.columns(signs, chunk_size))
    rows = A.T.columns(basis, chunk_size)  # A^T Q
    left_out = _own_directions(R)
    own = basis @ left_out
    inside = (basis * rows).sum(1, keepdim=True) - own * (rows @ left_out)
    outside = signs * own * (left_out * R).sum(0)  # w_i * (A w_i without its part in the other images)
    return inside + outside


def estimate_frobenius_norm(
    operator: LinearOperator | Tensor, key: Tensor, probes: int = 30, chunk_size: int | None = None
) -> Estimate:
    """sqrt(sum of squared entries) of an operator of any shape: the square root of the mean of |A w|^2.

    The standard error follows from that of the mean by the square root's slope; relative error about
    1 / sqrt(2 probes) or less. Memory: as many vectors as probes. Raises ``ValueError`` for fewer than two probes.

    >>> estimate_frobenius_norm(3.0 * torch.eye(4), random.key(0), 2).value
    tensor(6.)
    """
    A = as_operator(operator, "estimate_frobenius_norm")
    _check_probes("estimate_frobenius_norm", probes)
    square = _mean((A.columns(_signs(A, key, probes), chunk_size) ** 2).sum(0))
    value = square.value.sqrt()
    return Estimate(value, torch.where(value > 0, square.error / (2.0 * value), 0.0))


def _mean(draws: Tensor) -> Estimate:
    return Estimate(draws.mean(-1), draws.std(-1) / draws.shape[-1] ** 0.5)


def _signs(A: LinearOperator, key: Tensor, count: int) -> Tensor:
    heads = random.bernoulli(key, 0.5, (A.shape[1], count)).to(A.device)
    return 2.0 * heads.to(A.domain.wide_dtype) - 1.0


def _square(operator: LinearOperator | Tensor, name: str) -> LinearOperator:
    A = as_operator(operator, name)
    check_square(A, name)
    return A


def _check_probes(name: str, probes: int, least: int = 2) -> None:
    if probes < least:
        raise ValueError(f"{name} needs at least {least} probes for its error bar, got {probes}")
