"""Jacobians whose zeros are known beforehand, from few products by colouring (Curtis, Powell and Reid, 1974)."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fnn import tree as _tree
from fnn.jacobian.arguments import check_primals, differentiable_output
from fnn.jacobian.products import bounds, pull, push
from fnn.linalg.linear_operator import ravel, unravel
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
        return torch.sparse_coo_tensor(torch.stack([self.rows, self.columns]), self.values, self.shape)


def colours(pattern: Tensor) -> Tensor:
    """A number 0, 1, ... for each column such that no row has two entries of one colour: greedy, in order.

    pattern: (rows, columns), true where an entry may differ from zero -> int64 (columns,). A product with the sum of
    all basis vectors of one colour shows their columns side by side.

    >>> colours(torch.eye(4) + torch.diag(torch.ones(3), 1) + torch.diag(torch.ones(3), -1))
    tensor([0, 1, 2, 0])
    """
    _check_pattern(pattern)
    in_row: list[set[int]] = [set() for _ in range(pattern.shape[0])]
    chosen = []
    for column in range(pattern.shape[1]):
        rows = pattern[:, column].nonzero().flatten().tolist()
        taken = set().union(*(in_row[row] for row in rows))
        colour = next(number for number in range(len(taken) + 1) if number not in taken)
        for row in rows:
            in_row[row].add(colour)
        chosen.append(colour)
    return torch.tensor(chosen, dtype=torch.int64)


def sparse_jacobian(f: Callable, pattern: Tensor, chunk_size: int | None = None) -> Callable:
    """The function ``x -> `` :class:`SparseJacobian` of ``f(x)``, right where the pattern holds all non-zero entries.

    pattern: (m, n), true where J may differ from zero; m and n count the numbers of output and input. The pattern is
    coloured by columns (forward mode) and by rows (reverse mode), once, and the fewer colours are taken: a tridiagonal
    Jacobian of any size takes three products. Cost one product for each colour, memory chunk_size of them.
    Colouring is for Python: make the function outside compiled code, and call it inside.
    Raises ``ValueError`` for a pattern that is no matrix or does not fit the function.

    >>> second = lambda x: x[:-2] - 2.0 * x[1:-1] + x[2:]
    >>> band = torch.ones(3, 5).triu().tril(2)
    >>> sparse_jacobian(second, band)(torch.zeros(5)).dense()
    tensor([[ 1., -2.,  1.,  0.,  0.],
            [ 0.,  1., -2.,  1.,  0.],
            [ 0.,  0.,  1., -2.,  1.]])
    """
    _check_pattern(pattern)
    by_column, by_row = colours(pattern), colours(pattern.T)
    forward = int(by_column.max()) <= int(by_row.max())
    colour = by_column if forward else by_row
    count = int(colour.max()) + 1
    rows, columns = pattern.nonzero().unbind(1)
    shape = (pattern.shape[0], pattern.shape[1])

    def jacobian_of(x: Tree) -> SparseJacobian:
        check_primals((x,), "sparse_jacobian")

        def seeds(like: Tree) -> list[Tree]:
            vector = ravel(like)
            places = colour.to(vector.device)
            return [
                torch.func.vmap(lambda v: unravel(v, like))(
                    (places == torch.arange(start, stop, device=vector.device)[:, None]).to(vector.dtype)
                )
                for start, stop in bounds(count, chunk_size)
            ]

        if forward:
            _check_size("input", x, shape[1])
            output, products = push(f, (x,), [(s,) for s in seeds(x)], "sparse_jacobian")
            _check_size("output", output, shape[0])
        else:
            result: tuple = torch.func.vjp(differentiable_output(f, "sparse_jacobian"), x)
            output, pullback = result
            _check_size("output", output, shape[0])
            _check_size("input", x, shape[1])
            products = pull(pullback, seeds(output))
        flat = torch.func.vmap(ravel)(products)  # (colours, numbers of the other side)
        i, j = rows.to(flat.device), columns.to(flat.device)
        kept = colour.to(flat.device)
        values = flat[kept[j], i] if forward else flat[kept[i], j]
        return SparseJacobian(values, i, j, shape)

    return jacobian_of


def _check_pattern(pattern: Tensor) -> None:
    if not isinstance(pattern, Tensor) or pattern.dim() != 2 or pattern.numel() == 0:
        given = f"shape {tuple(pattern.shape)}" if isinstance(pattern, Tensor) else type(pattern).__name__
        raise ValueError(f"a pattern is a tensor of shape (outputs, inputs), got {given}")


def _check_size(side: str, tree: Tree, expected: int) -> None:
    if _tree.size(tree) != expected:
        raise ValueError(
            f"sparse_jacobian: the function's {side} has {_tree.size(tree)} numbers, the pattern is for {expected}"
        )
