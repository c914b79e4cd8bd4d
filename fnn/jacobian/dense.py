"""Whole Jacobians and Hessians, their diagonals and traces: products with the vectors of a basis.

The basis is made ``chunk_size`` (default all) vectors at a time, which bounds memory. A matrix between trees is a tree
of blocks: at each path of the output stands a tree like the input, and its leaf has the shape of the output's leaf
followed by that of the input's. :func:`blocks_to_matrix` puts the blocks together.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from fnn import tree as _tree
from fnn.jacobian.arguments import NoForwardRuleError, check_primals, differentiable_output, forward_mode
from fnn.jacobian.products import bounds, pull, push, single
from fnn.linalg.vector_space import one_hot
from fnn.tree import Tree

Argnums = int | Sequence[int]


def dense_jacobian(
    f: Callable,
    argnums: Argnums = 0,
    mode: Literal["auto", "forward", "reverse"] = "auto",
    chunk_size: int | None = None,
    has_aux: bool = False,
) -> Callable:
    """The function ``*args -> J``, a tree of blocks; ``(J, aux)`` where ``f`` returns ``(output, aux)``.

    For an output with m numbers and an input with n, ``"forward"`` takes n products of forward mode, ``"reverse"`` m of
    reverse mode, and ``"auto"`` the fewer: forward for n < m unless an operation has no forward rule. With a sequence
    of ``argnums`` each block is a tuple over these arguments.

    Cost n + 1 or 2 m + 1 calls; memory m n numbers, and chunk_size times the largest activation (forward) or the
    activations and chunk_size times the largest (reverse). Raises ``TypeError`` for an integer leaf (naming it) and
    for an operation without a forward rule under ``"forward"``, ``ValueError`` for another mode.

    >>> dense_jacobian(lambda p: p["w"] * p["b"])({"w": torch.tensor([1.0, 2.0]), "b": torch.tensor(3.0)})
    {'w': tensor([[3., 0.],
            [0., 3.]]), 'b': tensor([1., 2.])}
    """
    if mode not in ("auto", "forward", "reverse"):
        raise ValueError(f"jacobian: mode is 'auto', 'forward' or 'reverse', got {mode!r}")

    def jacobian_of(*args: Any, **kwargs: Any) -> Any:
        g, primals, choose = differentiated(differentiable_output(f, has_aux), args, kwargs, argnums, "jacobian")

        def forward() -> tuple:
            parts = [one_hot(primals, *rows) for rows in bounds(_tree.size(primals), chunk_size)]
            output, columns, *aux = push(g, primals, parts, "jacobian", has_aux)
            return (blocks_of_columns(output, primals, columns, choose), *aux)

        def reverse() -> tuple:
            output, pullback, *aux = torch.func.vjp(g, *primals, has_aux=has_aux)
            parts = [one_hot(output, *rows) for rows in bounds(_tree.size(output), chunk_size)]
            rows = pull(lambda u: (pullback(u),), parts)
            return (blocks_of_rows(output, primals, rows, choose), *aux)

        backward = mode == "reverse"
        if mode == "auto":
            output = g(*primals)
            backward = _tree.size(primals) >= _tree.size(output[0] if has_aux else output)
        if backward:
            return single(reverse())
        try:
            return single(forward())
        except NoForwardRuleError:
            if mode == "forward":
                raise
            return single(reverse())

    return jacobian_of


def laplacian(f: Callable, argnums: Argnums = 0, chunk_size: int | None = None) -> Callable:
    """The function ``*args -> `` sum of the second derivatives along each axis of the input, like the output.

    Forward mode twice: n products of 4 calls, chunk_size at once; memory 4 chunk_size times the largest activation,
    none kept. Raises what ``jmp`` raises.

    >>> laplacian(lambda x: (x**3).sum())(torch.tensor([1.0, 2.0]))
    tensor(18.)
    """

    def laplacian_of(*args: Any, **kwargs: Any) -> Tree:
        g, primals, _ = differentiated(differentiable_output(f), args, kwargs, argnums, "laplacian")
        primals = _tree.map(torch.clone, primals)  # as in directional_derivatives

        def second(*basis: Tree) -> Tree:
            slope = lambda *p: torch.func.jvp(g, p, basis)[1]
            return torch.func.jvp(slope, primals, basis)[1]

        mapped = torch.func.vmap(second)
        total = None
        for rows in bounds(_tree.size(primals), chunk_size):
            basis = one_hot(primals, *rows)
            part = _tree.map(lambda leaf: leaf.sum(0), forward_mode(lambda b=basis: mapped(*b), "laplacian"))
            total = part if total is None else _tree.add(total, part)
        return total

    return laplacian_of


def blocks_to_matrix(blocks: Tree, input: Tree) -> Tensor:
    """The blocks of :func:`dense_jacobian` or :func:`fnn.curvature.dense_hessian` as one matrix,
    numbered as ``fnn.tree.ravel`` does.

    ``input`` is what was differentiated: the argument, or a tuple of them for a sequence of ``argnums``. Raises
    ``ValueError`` where the blocks are not those of the input.

    >>> params = {"w": torch.ones(2), "b": torch.ones(1)}
    >>> blocks_to_matrix(dense_jacobian(lambda p: p["w"] * p["b"])(params), params)
    tensor([[1., 1., 0.],
            [1., 0., 1.]])
    """
    columns = _tree.leaves(input)
    parts = _tree.leaves(blocks)
    if not columns or len(parts) % len(columns):
        raise ValueError(
            f"blocks_to_matrix: the {len(parts)} blocks are no whole number of rows over the {len(columns)} leaves "
            "of the input"
        )
    rows = []
    for start in range(0, len(parts), len(columns)):
        row = parts[start : start + len(columns)]
        for block, leaf in zip(row, columns, strict=True):
            if block.shape[block.dim() - leaf.dim() :] != leaf.shape:
                raise ValueError(
                    f"blocks_to_matrix: a block of shape {tuple(block.shape)} does not end with {tuple(leaf.shape)}, "
                    "the shape of the input's leaf; give the tree that was differentiated"
                )
        rows.append(torch.cat([b.reshape(-1, leaf.numel()) for b, leaf in zip(row, columns, strict=True)], 1))
    return torch.cat(rows)


def differentiated(f: Callable, args: tuple, kwargs: dict, argnums: Argnums, name: str) -> tuple:
    """The function of the chosen arguments alone, these arguments, and ``tuple of them -> what the user sees``."""
    numbers = (argnums,) if isinstance(argnums, int) else tuple(argnums)
    for number in numbers:
        if not -len(args) <= number < len(args):
            raise ValueError(f"{name}: argnums={argnums}, but the function got {len(args)} positional arguments")
    places = [number % len(args) for number in numbers]
    primals = tuple(args[place] for place in places)
    check_primals(primals, name)

    def g(*chosen: Tree) -> Any:
        given = list(args)
        for place, primal in zip(places, chosen, strict=True):
            given[place] = primal
        return f(*given, **kwargs)

    return g, primals, (lambda trees: trees[0]) if isinstance(argnums, int) else (lambda trees: trees)


def blocks_of_columns(output: Tree, primals: tuple, columns: Tree, choose: Callable) -> Tree:
    """Blocks from J's columns: leaves (n, *output leaf)."""

    def row(leaf: Tensor) -> Tree:
        pieces = leaf.split([part.numel() for part in _tree.leaves(primals)])
        blocks = [
            piece.movedim(0, -1).reshape((*leaf.shape[1:], *part.shape))
            for piece, part in zip(pieces, _tree.leaves(primals), strict=True)
        ]
        return choose(_tree.structure(primals).unflatten(blocks))

    return _tree.structure(output).unflatten([row(leaf) for leaf in _tree.leaves(columns)])


def blocks_of_rows(output: Tree, primals: tuple, rows: tuple, choose: Callable) -> Tree:
    """Blocks from J's rows: leaves (m, *input leaf)."""
    sizes = [leaf.numel() for leaf in _tree.leaves(output)]
    pieces = [leaf.split(sizes) for leaf in _tree.leaves(rows)]

    def row(number: int, like: Tensor) -> Tree:
        blocks = [piece[number].reshape((*like.shape, *piece[number].shape[1:])) for piece in pieces]
        return choose(_tree.structure(primals).unflatten(blocks))

    return _tree.structure(output).unflatten([row(i, leaf) for i, leaf in enumerate(_tree.leaves(output))])
