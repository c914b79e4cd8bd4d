"""Hessian matrices and diagonals: products with the vectors of a basis, as in :mod:`fnn.jacobian.dense`."""

from collections.abc import Callable
from typing import Any

import torch

from fnn import tree as _tree
from fnn._argnums import Argnums
from fnn._memory import own
from fnn.curvature.products import Mode, hessian_map, output_hessian
from fnn.jacobian.arguments import check_primals, differentiable_output, mapped, real_scalar
from fnn.jacobian.dense import blocks_of_rows, differentiated
from fnn.jacobian.operator import NO_BATCH
from fnn.jacobian.products import bounds, join, single
from fnn.jacobian.torch_rules import call_and_listen, check_surroundings, reverse_mode
from fnn.linalg.vector_space import VectorSpace, one_hot
from fnn.tree import Tree


def dense_hessian(
    f: Callable, argnums: Argnums = 0, mode: Mode = "auto", chunk_size: int | None = None, has_aux: bool = False
) -> Callable:
    """The function ``*args -> H`` of a scalar function, a tree of blocks; ``(H, aux)`` with ``has_aux``.

    The modes are those of ``hvp``. The gradient is linearised once: cost 3 + 5.5 n calls for n params of eight equal
    layers (3 + 5 n for four, towards 3 + 6 n for more), 3 + 2 n for an input of n numbers; memory n^2 numbers, the
    activations twice, and chunk_size times the largest of them, twice.
    Raises what ``hvp`` raises. For the second derivatives of a function that is not scalar write
    ``dense_jacobian(dense_jacobian(f))``.

    >>> dense_hessian(lambda p: p["w"] ** 2 * p["b"])({"w": torch.tensor(2.0), "b": torch.tensor(3.0)})["w"]
    {'w': tensor(6.), 'b': tensor(4.)}
    """

    def hessian_of(*args: Any, **kwargs: Any) -> Any:
        name = "dense_hessian"
        g, primals, choose = differentiated(real_scalar(f, name, has_aux), args, kwargs, argnums, name)
        _, product, *aux = hessian_map(mode, g, primals, name, has_aux)
        loop = call_and_listen(g, primals, nested=False)[1].vmap is not None
        chunks = bounds(_tree.size(primals), chunk_size)
        rows = join([mapped(lambda *v: product(v), one_hot(primals, *chunk), loop=loop) for chunk in chunks])
        return own(single((choose(blocks_of_rows(primals, primals, rows, choose)), *aux)), args)

    return hessian_of


def hessian_diagonal(f: Callable, argnums: Argnums = 0, mode: Mode = "auto", chunk_size: int | None = None) -> Callable:
    """The function of ``*args`` that returns the exact diagonal of the Hessian, a tree like the input.

    Costs what :func:`dense_hessian` costs, and n numbers in place of n^2; for an estimate from a few products write
    ``estimate_diagonal(hessian_operator(...), key)``.

    >>> hessian_diagonal(lambda x: (x**3).sum())(torch.tensor([1.0, 2.0]))
    tensor([ 6., 12.])
    """

    def diagonal_of(*args: Any, **kwargs: Any) -> Tree:
        name = "hessian_diagonal"
        g, primals, choose = differentiated(real_scalar(f, name), args, kwargs, argnums, name)
        _, product, *_ = hessian_map(mode, g, primals, name)
        loop = call_and_listen(g, primals, nested=False)[1].vmap is not None
        diagonal_entry = lambda *v: _tree.dot(v, product(v))
        chunks = bounds(_tree.size(primals), chunk_size)
        entries = join([mapped(diagonal_entry, one_hot(primals, *chunk), loop=loop) for chunk in chunks])
        return choose(VectorSpace(primals).tree(entries))

    return diagonal_of


def ggn_diagonal(model: Callable, loss: Callable, chunk_size: int | None = None) -> Callable:
    """The function ``(params[, batch])`` that returns the exact diagonal of the Gauss-Newton matrix J^T H J.

    It is a tree like params. J is the Jacobian of ``model(params[, batch])``, H the Hessian of the scalar
    ``loss(output[, batch])``, the functions that ``ggn_product`` and ``ggn_operator`` take. The entry i is the sum over
    the m numbers k of the output of J_ki (H J)_ki: 2 m pullbacks, about 4 m calls; memory the activations, chunk_size
    times twice the largest of them and of n. Raises what ``ggn_product`` raises.

    >>> ggn_diagonal(lambda w: 2.0 * w, lambda y: (y**2).sum())(torch.ones(2))
    tensor([8., 8.])
    """

    def diagonal_of(params: Tree, batch: Any = NO_BATCH) -> Tree:
        name = "ggn_diagonal"
        check_primals((params,), name)
        rest = () if batch is NO_BATCH else (batch,)
        checked = differentiable_output(model, name)
        output, pullback, *_ = reverse_mode(lambda: torch.func.vjp(lambda p: checked(p, *rest), params), name)
        composed = lambda p: loss(checked(p, *rest), *rest)
        curvature = output_hessian(lambda out: loss(out, *rest), name)

        def entry(u: Tree) -> Tree:
            (row,), (curved,) = reverse_mode(lambda: (pullback(u), pullback(curvature(output, u))), name)
            return _tree.map(torch.mul, row, curved)

        check_surroundings(composed, (params,), name)
        loop = call_and_listen(composed, (params,), nested=False)[1].vmap is not None
        total = None
        for rows in bounds(_tree.size(output), chunk_size):
            part = _tree.map(lambda leaf: leaf.sum(0), mapped(entry, (one_hot(output, *rows),), loop=loop))
            total = part if total is None else _tree.add(total, part)
        return total

    return diagonal_of
