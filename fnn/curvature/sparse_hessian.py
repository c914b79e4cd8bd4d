"""Hessians whose zeros are known, from few products by star colouring (Coleman and Moré, 1984)."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from fnn.curvature.products import Mode, hessian_map
from fnn.jacobian.arguments import check_primals, mapped, real_scalar
from fnn.jacobian.products import bounds, join
from fnn.jacobian.sparse import SparseJacobian, checked_values, detect_pattern, detecting, entries_of, probe_of
from fnn.jacobian.torch_rules import call_and_listen
from fnn.linalg.vector_space import VectorSpace
from fnn.tree import Tree


def sparse_hessian(
    f: Callable,
    pattern: Tensor | Literal["detect"],
    mode: Mode = "auto",
    chunk_size: int | None = None,
    check: bool = True,
) -> Callable:
    """The function ``x -> H``, a :class:`fnn.jacobian.SparseJacobian`, of a scalar ``f(x)``.

    pattern: (n, n), symmetric, dense or sparse, true where H may differ from zero; or ``"detect"``, as in
    :func:`fnn.jacobian.sparse_jacobian`. ``mode`` is that of :func:`hvp`.

    H is symmetric, so that an entry may be read at (i, j) or at (j, i), and columns may share a product that a Jacobian
    with the same pattern could not: an arrow (one number coupled to all others) takes two products whatever its size,
    a tridiagonal Hessian three. Cost a product for each colour, memory chunk_size of them; ``check`` takes one more.
    Raises what ``sparse_jacobian`` and ``hvp`` raise, and ``ValueError`` for a pattern that is not symmetric.

    >>> energy = lambda x: (x[0] * x[1:] ** 2).sum()
    >>> sparse_hessian(energy, "detect")(torch.tensor([1.0, 2.0, 3.0])).dense()
    tensor([[0., 4., 6.],
            [4., 2., 0.],
            [6., 0., 2.]])
    """
    name = "sparse_hessian"
    if isinstance(pattern, str):
        if pattern != "detect":
            raise ValueError(f"{name}: pattern is a matrix or 'detect', got {pattern!r}")
        gradient = torch.func.grad(real_scalar(f, name))
        return detecting(
            name,
            lambda x: _symmetric(detect_pattern(gradient, x, chunk_size=chunk_size)),
            lambda found: sparse_hessian(f, found, mode, chunk_size),
            check,
        )
    rows, columns = entries_of(pattern)
    n = pattern.shape[0]
    entries = set(zip(rows.tolist(), columns.tolist(), strict=True))
    if pattern.shape[1] != n or entries != {(column, row) for row, column in entries}:
        raise ValueError(f"{name}: the pattern {tuple(pattern.shape)} is not symmetric; write pattern | pattern.T")
    colour = star_colours(rows, columns, n)
    colours = int(colour.max()) + 1
    first = _read_from_own_column(rows, columns, colour)
    which, place = colour[torch.where(first, columns, rows)], torch.where(first, rows, columns)

    def hessian_of(x: Tree) -> SparseJacobian:
        check_primals((x,), name)
        space = VectorSpace(x)
        if space.size != n:
            raise ValueError(f"{name}: the function's input has {space.size} numbers, the pattern is for {n}")
        scalar = real_scalar(f, name)
        _, product, *_ = hessian_map(mode, scalar, (x,), name)
        numbers = torch.arange(colours, device=space.device)
        vectors = (colour.to(space.device) == numbers[:, None]).to(space.dtype)
        if check:
            vectors = torch.cat([vectors, probe_of(space)[None]])
        one = lambda v: space.ravel(product((space.unravel(v),))[0])
        loop = call_and_listen(scalar, (x,), nested=False)[1].vmap is not None
        flat = join([mapped(one, (vectors[a:b],), loop=loop) for a, b in bounds(len(vectors), chunk_size)])
        at_rows, at_columns = (index.to(flat.device, copy=True) for index in (rows, columns))
        values = flat[which.to(flat.device), place.to(flat.device)]
        if check:
            values = checked_values(name, values, at_rows, at_columns, probe_of(space), flat[-1], "row")
        return SparseJacobian(values, at_rows, at_columns, (n, n))

    return hessian_of


def star_colours(rows: Tensor, columns: Tensor, n: int) -> Tensor:
    """A colour for each vertex of the graph: neighbours differ, and so do two of any four vertices on a path.

    Greedy, from the vertex with the most neighbours to the one with the fewest.
    """
    near: list[list[int]] = [[] for _ in range(n)]
    for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
        if row != column:
            near[row].append(column)
    colour: dict[int, int] = {}
    for v in sorted(range(n), key=lambda v: -len(near[v])):
        taken = {colour[w] for w in near[v] if w in colour}
        for w in near[v]:
            for x in near[w]:
                if x not in colour:
                    continue
                # with v in the colour of x, the path v, w, x, y must have a third colour at w or at y
                if w not in colour or any(colour.get(y) == colour[w] for y in near[x] if y != w):
                    taken.add(colour[x])
        colour[v] = next(number for number in range(len(taken) + 1) if number not in taken)
    return torch.tensor([colour[v] for v in range(n)], dtype=torch.int64)


def _read_from_own_column(rows: Tensor, columns: Tensor, colour: Tensor) -> Tensor:
    """True for an entry (i, j) whose column j is the only one of its colour in row i; the others are read at (j, i)."""
    key = rows * (int(colour.max()) + 1) + colour[columns]
    _, inverse, counts = key.unique(return_inverse=True, return_counts=True)
    return counts[inverse] == 1


def _symmetric(pattern: Tensor) -> Tensor:
    return pattern | pattern.T
