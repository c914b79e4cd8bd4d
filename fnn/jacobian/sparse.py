"""Jacobians whose zeros are known beforehand, from few products by colouring (Curtis, Powell and Reid, 1974)."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from fnn import _torch, random
from fnn import tree as _tree
from fnn.jacobian.arguments import check_primals, differentiable_output
from fnn.jacobian.dense import blocks_to_matrix, dense_jacobian
from fnn.jacobian.products import bounds, pull, push
from fnn.linalg.vector_space import VectorSpace
from fnn.tree import Tree


class SparseJacobian(NamedTuple):
    """``values`` (k,) at ``rows`` (k,) and ``columns`` (k,), numbered as ``fnn.tree.ravel`` does, of a ``shape``."""

    values: Tensor
    rows: Tensor
    columns: Tensor
    shape: tuple[int, int]

    def dense(self) -> Tensor:
        """The matrix with its zeros."""
        flat = self.values.new_zeros(self.shape[0] * self.shape[1])
        return flat.index_put((self.rows * self.shape[1] + self.columns,), self.values).reshape(self.shape)

    def to_sparse(self) -> Tensor:
        """A ``torch.sparse_coo`` tensor."""
        return torch.sparse_coo_tensor(
            torch.stack([self.rows, self.columns]), self.values, self.shape, check_invariants=False
        )


def colours(pattern: Tensor) -> Tensor:
    """A number 0, 1, ... for each column such that no row has two entries of one colour: greedy, in order.

    pattern: (rows, columns), dense or sparse, true where an entry may differ from zero -> int64 (columns,). A product
    with the sum of all basis vectors of one colour shows their columns side by side.

    >>> colours(torch.eye(4) + torch.diag(torch.ones(3), 1) + torch.diag(torch.ones(3), -1))
    tensor([0, 1, 2, 0])
    """
    rows, columns = entries_of(pattern)
    return _colours(rows, columns, pattern.shape[0], pattern.shape[1])


def detect_pattern(f: Callable, x: Tree, key: Tensor | None = None, chunk_size: int | None = None) -> Tensor:
    """Where the Jacobian of ``f`` differs from zero, a bool matrix (m, n): the pattern for :func:`sparse_jacobian`.

    It is that of the dense Jacobians at x and at two random points near it (x times 1 + w / 10 and plus w / 10 with
    w from ``key``), so an entry that vanishes at all three is missed: a branch that is not taken, for example. Costs
    three dense Jacobians, once. Raises what ``dense_jacobian`` raises, and ``TypeError`` for complex numbers.

    >>> detect_pattern(lambda x: x[1:] * x[:-1], torch.tensor([0.0, 1.0, 2.0]))
    tensor([[ True,  True, False],
            [False,  True,  True]])
    """
    check_primals((x,), "detect_pattern")
    jacobian = dense_jacobian(differentiable_output(f, "detect_pattern"), chunk_size=chunk_size)
    pattern = None
    points = [x]
    for draw in random.split(random.key(0) if key is None else key, 2):
        points.append(_tree.map(lambda leaf, w: leaf * (1.0 + 0.1 * w) + 0.1 * w, x, random.like(draw, x)))
    for point in points:
        found = blocks_to_matrix(jacobian(point), point) != 0  # true where nan
        pattern = found if pattern is None else pattern | found
    assert pattern is not None
    return pattern


def sparse_jacobian(
    f: Callable,
    pattern: Tensor | Literal["detect"],
    chunk_size: int | None = None,
    check: bool = True,
) -> Callable:
    """The function ``x -> `` :class:`SparseJacobian` of ``f(x)`` for a pattern that holds all non-zero entries.

    pattern: (m, n), dense or sparse, true where J may differ from zero; m and n count the numbers of output and input.
    With ``"detect"`` the first call finds it by :func:`detect_pattern` at its own x, and it is kept; a later x at which
    the check finds it too small adds what is found there. It cannot be combined with ``check=False``.

    The pattern is coloured by columns (forward mode) and by rows (reverse mode), once, and the fewer colours are taken:
    a tridiagonal Jacobian of any size takes three products. Cost one product for each colour, memory chunk_size of
    them. With ``check`` one more product, with a random vector, is compared with that of the sparse matrix, and a
    pattern that is too small for this x raises ``ValueError``; under ``vmap`` and in traced code, where values cannot
    be read, all values become nan instead. Make the function outside of traced code, since colouring runs in Python,
    and call it inside. Raises ``ValueError`` for a pattern that is not a matrix or does not fit the function.

    >>> second = lambda x: x[:-2] - 2.0 * x[1:-1] + x[2:]
    >>> band = torch.ones(3, 5).triu().tril(2)
    >>> sparse_jacobian(second, band)(torch.zeros(5)).dense()
    tensor([[ 1., -2.,  1.,  0.,  0.],
            [ 0.,  1., -2.,  1.,  0.],
            [ 0.,  0.,  1., -2.,  1.]])
    """
    if isinstance(pattern, str):
        if pattern != "detect":
            raise ValueError(f"sparse_jacobian: pattern is a matrix or 'detect', got {pattern!r}")
        return detecting(
            "sparse_jacobian",
            lambda x: detect_pattern(f, x, chunk_size=chunk_size),
            lambda found: sparse_jacobian(f, found, chunk_size),
            check,
        )
    coloured = _Coloured(pattern)
    return lambda x: coloured.jacobian(f, x, chunk_size, check)


class _Coloured:
    """A pattern with the colours of its columns or of its rows, whichever are fewer."""

    def __init__(self, pattern: Tensor) -> None:
        self.rows, self.columns = entries_of(pattern)
        self.shape = (pattern.shape[0], pattern.shape[1])
        by_column = _colours(self.rows, self.columns, *self.shape)
        by_row = _colours(self.columns, self.rows, *reversed(self.shape))
        self.forward = int(by_column.max()) <= int(by_row.max())
        self.colour = by_column if self.forward else by_row
        self.count = int(self.colour.max()) + 1

    def jacobian(self, f: Callable, x: Tree, chunk_size: int | None, check: bool) -> SparseJacobian:
        check_primals((x,), "sparse_jacobian")
        inputs = VectorSpace(x)
        _check_size("input", inputs.size, self.shape[1])
        if self.forward:
            seeds = self._seeds(inputs, chunk_size, check)
            real = differentiable_output(f, "sparse_jacobian")
            output, products = push(real, (x,), [(part,) for part in seeds], "sparse_jacobian")
            outputs = VectorSpace(output)
        else:
            result: tuple = torch.func.vjp(differentiable_output(f, "sparse_jacobian"), x)
            output, pullback = result
            outputs = VectorSpace(output)
            _check_size("output", outputs.size, self.shape[0])
            products = pull(pullback, self._seeds(outputs, chunk_size, check))
        _check_size("output", outputs.size, self.shape[0])
        seen, other = (inputs, outputs) if self.forward else (outputs, inputs)
        flat = torch.func.vmap(other.ravel)(products)  # (colours, numbers of the other side)
        rows, columns, colour = (t.to(flat.device, copy=True) for t in (self.rows, self.columns, self.colour))
        values = flat[colour[columns], rows] if self.forward else flat[colour[rows], columns]
        if check:
            to, along = (rows, columns) if self.forward else (columns, rows)
            side = "row" if self.forward else "column"
            values = checked_values("sparse_jacobian", values, to, along, probe_of(seen), flat[-1], side)
        return SparseJacobian(values, rows, columns, self.shape)

    def _seeds(self, space: VectorSpace, chunk_size: int | None, check: bool) -> list[Tree]:
        """Stacked trees: the sum of the basis vectors of each colour, and the vector to check with."""
        colour = self.colour.to(space.device)
        numbers = torch.arange(self.count, device=space.device)
        vectors = (colour == numbers[:, None]).to(space.dtype)
        if check:
            vectors = torch.cat([vectors, probe_of(space)[None]])
        return [torch.func.vmap(space.unravel)(vectors[a:b]) for a, b in bounds(len(vectors), chunk_size)]


def detecting(name: str, detect: Callable, make: Callable[[Tensor], Callable], check: bool) -> Callable:
    """The function ``x -> make(pattern)(x)`` with the pattern found at the x where it was missing or too small."""
    if not check:
        raise ValueError(
            f"{name}: a pattern that is detected at one x may be too small for another, so pattern='detect' needs the "
            "check; write pattern=detect_pattern(f, x), which you may have looked at, with check=False"
        )
    known: list[Any] = []  # the pattern, and the function made with it

    def found(x: Tree) -> SparseJacobian:
        readable = all(_torch.readable(leaf) for leaf in _tree.leaves(x))
        if known:
            try:
                return known[1](x)
            except PatternError:
                pattern = known[0] | detect(x)
        elif readable:
            pattern = detect(x)
        else:
            raise ValueError(
                f"{name}: a pattern cannot be detected under vmap or in a traced function; call "
                "detect_pattern(f, x) before, and give its result as pattern"
            )
        known[:] = pattern, make(pattern)
        return known[1](x)

    return found


class PatternError(ValueError):
    """A pattern lacks an entry that differs from zero."""


def checked_values(
    name: str, values: Tensor, to: Tensor, along: Tensor, probe: Tensor, product: Tensor, side: str
) -> Tensor:
    """The values, if the sparse matrix times the probe equals the product that the function itself gives.

    ``to`` and ``along`` are the places of the values in the product and in the probe.
    """
    terms = values.detach() * probe.to(values.dtype)[along]
    total = torch.zeros_like(product).index_add(0, to, terms)
    size = torch.zeros_like(product).index_add(0, to, terms.abs()) + product.detach().abs()
    eps = torch.finfo(product.dtype).eps
    right = ((total - product.detach()).abs() <= eps**0.5 * size + 100.0 * eps * size.max()) | ~product.isfinite()
    if not _torch.readable(right):
        return torch.where(right.all(), values, torch.nan)
    if not bool(right.all()):
        place = int((~right).nonzero()[0])
        raise PatternError(
            f"{name}: the pattern is too small for this x: {side} {place} of the matrix has non-zero "
            "entries outside it; write pattern=detect_pattern(f, x), or check=False to leave them out"
        )
    return values


def probe_of(space: VectorSpace) -> Tensor:
    """Numbers of magnitude 0.5 to 1.5 with random signs, the same in every call."""
    draws = random.uniform(random.key(1), (space.size,), minval=-1.0, maxval=1.0).to(space.device)
    return (draws + 0.5 * torch.where(draws < 0, -1.0, 1.0)).to(space.dtype)


def entries_of(pattern: Any) -> tuple[Tensor, Tensor]:
    """Rows and columns of the entries of a pattern that are true."""
    if not isinstance(pattern, Tensor) or pattern.dim() != 2 or pattern.numel() == 0:
        given = f"shape {tuple(pattern.shape)}" if isinstance(pattern, Tensor) else type(pattern).__name__
        raise ValueError(f"a pattern is a tensor of shape (outputs, inputs), got {given}")
    if pattern.layout == torch.strided:
        rows, columns = pattern.nonzero().unbind(1)
        return rows, columns
    entries = pattern.to_sparse_coo().coalesce()
    rows, columns = entries.indices()[:, entries.values() != 0]
    return rows, columns


def _colours(rows: Tensor, columns: Tensor, height: int, width: int) -> Tensor:
    in_column: list[list[int]] = [[] for _ in range(width)]
    for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
        in_column[column].append(row)
    in_row: list[set[int]] = [set() for _ in range(height)]
    chosen = []
    for entries in in_column:
        taken = set().union(*(in_row[row] for row in entries))
        colour = next(number for number in range(len(taken) + 1) if number not in taken)
        for row in entries:
            in_row[row].add(colour)
        chosen.append(colour)
    return torch.tensor(chosen, dtype=torch.int64)


def _check_size(side: str, size: int, expected: int) -> None:
    if size != expected:
        raise ValueError(f"sparse_jacobian: the function's {side} has {size} numbers, the pattern is for {expected}")
