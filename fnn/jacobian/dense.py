"""Whole Jacobians, and the Laplacian: products with the vectors of a basis.

The basis is made ``chunk_size`` (default all) vectors at a time, which bounds memory. A matrix between trees is a tree
of blocks: at each path of the output stands a tree like the input, and its leaf has the shape of the output's leaf
followed by that of the input's. :func:`blocks_to_matrix` puts the blocks together.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from fnn import tree as _tree
from fnn._argnums import Argnums, positions
from fnn._memory import own
from fnn.jacobian.arguments import check_primals, differentiable_output, mapped
from fnn.jacobian.products import bounds, forward_or_reverse, pull, push_forward, second_by_reverse, single
from fnn.jacobian.torch_rules import NoForwardRuleError, call_and_listen, check_surroundings, forward_mode, reverse_mode
from fnn.linalg.vector_space import one_hot
from fnn.tree import Tree


def dense_jacobian(
    f: Callable,
    argnums: Argnums = 0,
    mode: Literal["auto", "forward", "reverse"] = "auto",
    chunk_size: int | None = None,
    has_aux: bool = False,
    holomorphic: bool = False,
) -> Callable:
    """The function ``*args -> J``, a tree of blocks; ``(J, aux)`` where ``f`` returns ``(output, aux)``.

    For an output with m numbers and an input with n, ``"forward"`` takes n products of forward mode, ``"reverse"`` m of
    reverse mode, and ``"auto"`` the fewer: forward for n < m unless an operation has no forward rule in torch, or a
    wrong one. With a sequence of ``argnums`` each block is a tuple over these arguments.

    Complex numbers are as in ``jax.jacfwd`` and ``jax.jacrev``: with ``holomorphic=True`` all inputs and outputs are
    complex and J is the complex derivative df/dz; a real input may have a complex output in forward mode.

    Cost 2 + 2 n or 1 + 2 m calls, and one more for the choice of mode; memory m n numbers, and chunk_size times the
    largest activation (forward) or the activations and chunk_size times the largest (reverse). Raises ``TypeError`` for
    an integer or complex leaf (naming it) and for an operation without a right forward rule under ``"forward"``,
    ``ValueError`` for another mode.

    >>> dense_jacobian(lambda p: p["w"] * p["b"])({"w": torch.tensor([1.0, 2.0]), "b": torch.tensor(3.0)})
    {'w': tensor([[3., 0.],
            [0., 3.]]), 'b': tensor([1., 2.])}
    """
    name = "dense_jacobian"
    if mode not in ("auto", "forward", "reverse"):
        raise ValueError(f"{name}: mode is 'auto', 'forward' or 'reverse', got {mode!r}")

    def jacobian_of(*args: Any, **kwargs: Any) -> Any:
        checked = differentiable_output(f, name, has_aux, complex_too=True)
        g, primals, choose = differentiated(checked, args, kwargs, argnums, name, complex_too=holomorphic)

        def forward() -> tuple:
            parts = [one_hot(primals, *rows) for rows in bounds(_tree.size(primals), chunk_size)]
            output, columns, *aux = push_forward(g, primals, parts, name, has_aux)
            return (blocks_of_columns(output, primals, columns, choose), *aux)

        def reverse() -> tuple:
            output, pullback, *aux = torch.func.vjp(g, *primals, has_aux=has_aux)
            parts = [one_hot(output, *rows) for rows in bounds(_tree.size(output), chunk_size)]
            rows = pull(lambda u: (pullback(u),), parts, faults.vmap is not None)
            return (blocks_of_rows(output, primals, rows, choose), *aux)

        check_surroundings(g, primals, name)
        result, faults = call_and_listen(g, primals, nested=False)
        output = result[0] if has_aux else result
        complex_output = _check_complex(primals, output, holomorphic)
        if complex_output and not holomorphic and mode == "reverse":
            raise TypeError(
                f"{name}: the output is complex and the input is real, where mode='reverse' has only half of the "
                "derivative; write mode='forward'"
            )
        needs_forward = mode == "forward" or (complex_output and not holomorphic)
        if mode == "reverse" or (not needs_forward and _tree.size(primals) >= _tree.size(output)):
            return own(single(reverse_mode(reverse, name)), args)
        if faults.forward is None:
            try:
                return own(single(forward_mode(forward, name)), args)
            except NoForwardRuleError:
                if needs_forward:
                    raise
        elif needs_forward:
            raise NoForwardRuleError(name, faults.forward, wrong=True)
        return own(single(reverse_mode(reverse, name)), args)

    return jacobian_of


def _check_complex(primals: tuple, output: Tree, holomorphic: bool) -> bool:
    """True if a leaf of the output is complex. Raises ``TypeError`` where a holomorphic function has real numbers."""
    if holomorphic:
        for what, tree in {"primals": primals, "the function's output": output}.items():
            for path, leaf in zip(_tree.keystrs(tree), _tree.leaves(tree), strict=True):
                if not leaf.is_complex():
                    raise TypeError(
                        "dense_jacobian with holomorphic=True needs complex inputs and outputs, and "
                        f"{what}{path} is a {leaf.dtype} tensor"
                    )
    return any(leaf.is_complex() for leaf in _tree.leaves(output))


def laplacian(f: Callable, argnums: Argnums = 0, chunk_size: int | None = None) -> Callable:
    """The function of ``*args`` that returns the sum of the second derivatives along each axis, like the output.

    Forward mode twice: n products of about 5 calls, chunk_size at once; memory 4 chunk_size times the largest
    activation, none kept. Where an operation has no forward rule in torch, or one that is wrong when nested
    (``torch.nn.functional.layer_norm`` and ``batch_norm``; ``fnn.layers`` writes them out), it is reverse mode nested
    three times, which takes about twice as long and keeps the activations of each product. Raises what ``jmp``
    raises.

    >>> laplacian(lambda x: (x**3).sum())(torch.tensor([1.0, 2.0]))
    tensor(18.)
    """

    def laplacian_of(*args: Any, **kwargs: Any) -> Tree:
        checked = differentiable_output(f, "laplacian")
        g, primals, _ = differentiated(checked, args, kwargs, argnums, "laplacian")
        primals = _tree.map(torch.clone, primals)  # as in directional_derivatives

        def total(forward: bool) -> Tree:
            def second(*basis: Tree) -> Tree:
                if not forward:
                    return second_by_reverse(g, primals, basis, "laplacian")[2]
                slope = lambda *p: torch.func.jvp(g, p, basis)[1]
                return torch.func.jvp(slope, primals, basis)[1]

            loop = call_and_listen(g, primals, nested=False)[1].vmap is not None
            parts = [
                _tree.map(lambda leaf: leaf.sum(0), mapped(second, one_hot(primals, *rows), loop=loop))
                for rows in bounds(_tree.size(primals), chunk_size)
            ]
            return functools.reduce(_tree.add, parts)

        return forward_or_reverse(g, primals, total, "laplacian")

    return laplacian_of


def blocks_to_matrix(blocks: Tree, input: Tree) -> Tensor:
    """The blocks of :func:`dense_jacobian` or :func:`fnn.curvature.dense_hessian` as one matrix.

    Rows and columns are numbered as ``fnn.tree.ravel`` numbers entries. ``input`` is what was differentiated: the
    argument, or a tuple of them for a sequence of ``argnums``. Raises ``ValueError`` where the blocks are not those of
    the input.

    >>> params = {"w": torch.ones(2), "b": torch.ones(1)}
    >>> blocks_to_matrix(dense_jacobian(lambda p: p["w"] * p["b"])(params), params)
    tensor([[1., 1., 0.],
            [1., 0., 1.]])
    """
    columns = _tree.leaves(input)
    parts = _tree.leaves(blocks)
    if not columns or len(parts) % len(columns):
        raise ValueError(
            f"blocks_to_matrix: the {len(parts)} blocks are not a whole number of rows over the {len(columns)} leaves "
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
        flat = [
            b.reshape(b.shape[: b.dim() - leaf.dim()].numel(), leaf.numel())
            for b, leaf in zip(row, columns, strict=True)
        ]
        rows.append(torch.cat(flat, 1))
    return torch.cat(rows)


def differentiated(
    f: Callable, args: tuple, kwargs: dict, argnums: Argnums, name: str, complex_too: bool = False
) -> tuple:
    """The function of the chosen arguments alone, these arguments, and what turns a tuple of trees into the result."""
    places = positions(argnums, len(args), name)
    primals = tuple(args[place] for place in places)
    check_primals(primals, name, complex_too)

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
