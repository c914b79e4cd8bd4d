"""Hessian matrices and diagonals: products with the vectors of a basis, as in :mod:`fnn.jacobian.dense`."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fnn import tree as _tree
from fnn.curvature.products import Mode, in_mode, product_in
from fnn.gradients.value_and_grad import scalar_valued
from fnn.jacobian.arguments import differentiable_output, forward_mode
from fnn.jacobian.dense import Argnums, blocks_of_rows, differentiated
from fnn.jacobian.products import bounds, join, single
from fnn.linalg.vector_space import VectorSpace, one_hot
from fnn.tree import Tree


def dense_hessian(
    f: Callable, argnums: Argnums = 0, mode: Mode = "auto", chunk_size: int | None = None, has_aux: bool = False
) -> Callable:
    """The function ``*args -> H`` of a scalar function, a tree of blocks; ``(H, aux)`` with ``has_aux``.

    The modes are those of ``hvp``. Cost n products for an input of n numbers, 8 n calls; memory n^2 numbers, the
    activations, and chunk_size times the largest of them, twice. Raises what ``hvp`` raises. For the second derivatives
    of a function that is not scalar write ``dense_jacobian(dense_jacobian(f))``.

    >>> dense_hessian(lambda p: p["w"] ** 2 * p["b"])({"w": torch.tensor(2.0), "b": torch.tensor(3.0)})["w"]
    {'w': tensor(6.), 'b': tensor(4.)}
    """

    def hessian_of(*args: Any, **kwargs: Any) -> Any:
        g, primals, choose = differentiated(scalar_valued(f, "hessian", has_aux), args, kwargs, argnums, "hessian")

        def rows_in(mode: str) -> tuple:
            def row(*basis: Tree) -> tuple:
                _, product, *aux = product_in(mode, g, primals, basis, has_aux)
                return (product if len(primals) > 1 else (product,), *aux)

            out_dims: Any = (0, None) if has_aux else (0,)
            mapped = torch.func.vmap(row, out_dims=out_dims)
            parts = [mapped(*one_hot(primals, *rows)) for rows in bounds(_tree.size(primals), chunk_size)]
            return (join([part[0] for part in parts]), *parts[0][1:])

        rows, *aux = in_mode(mode, rows_in, "hessian")
        return single((choose(blocks_of_rows(primals, primals, rows, choose)), *aux))

    return hessian_of


def hessian_diagonal(f: Callable, argnums: Argnums = 0, mode: Mode = "auto", chunk_size: int | None = None) -> Callable:
    """The function ``*args -> `` diagonal of the Hessian, a tree like the input, exact.

    Costs what :func:`dense_hessian` costs, and n numbers in place of n^2; for an estimate from a few products write
    ``estimate_diagonal(hessian_operator(...), key)``.

    >>> hessian_diagonal(lambda x: (x**3).sum())(torch.tensor([1.0, 2.0]))
    tensor([ 6., 12.])
    """

    def diagonal_of(*args: Any, **kwargs: Any) -> Tree:
        g, primals, choose = differentiated(
            scalar_valued(f, "hessian_diagonal"), args, kwargs, argnums, "hessian_diagonal"
        )

        def entries_in(mode: str) -> Tensor:
            def entry(*basis: Tree) -> Tensor:
                product = product_in(mode, g, primals, basis)[1]
                return _tree.dot(single(basis), product)

            mapped = torch.func.vmap(entry)
            return join([mapped(*one_hot(primals, *rows)) for rows in bounds(_tree.size(primals), chunk_size)])

        return choose(VectorSpace(primals).tree(in_mode(mode, entries_in, "hessian_diagonal")))

    return diagonal_of


def ggn_diagonal(model: Callable, loss: Callable, argnums: Argnums = 0, chunk_size: int | None = None) -> Callable:
    """The function ``*args -> `` diagonal of the Gauss-Newton matrix J^T H J, a tree like the input, exact.

    J is the Jacobian of ``model(*args)``, H the Hessian of the scalar ``loss(output)``. The entry i is the sum over the
    m numbers k of the output of J_ki (H J)_ki: 2 m pullbacks, about 4 m calls; memory the activations, chunk_size times
    twice the largest of them and of n. Raises what ``ggn_product`` raises.

    >>> ggn_diagonal(lambda w: 2.0 * w, lambda y: (y**2).sum())(torch.ones(2))
    tensor([8., 8.])
    """

    def diagonal_of(*args: Any, **kwargs: Any) -> Tree:
        g, primals, choose = differentiated(differentiable_output(model), args, kwargs, argnums, "ggn_diagonal")
        output, pullback, *_ = torch.func.vjp(g, *primals)
        gradient = torch.func.grad(scalar_valued(loss, "ggn_diagonal"))

        def entry(u: Tree) -> tuple:
            curved = forward_mode(lambda: torch.func.jvp(gradient, (output,), (u,))[1], "ggn_diagonal")
            return _tree.map(lambda row, other: row * other, pullback(u), pullback(curved))

        mapped = torch.func.vmap(entry)
        total = None
        for rows in bounds(_tree.size(output), chunk_size):
            part = _tree.map(lambda leaf: leaf.sum(0), mapped(one_hot(output, *rows)))
            total = part if total is None else _tree.add(total, part)
        return choose(total)

    return diagonal_of
