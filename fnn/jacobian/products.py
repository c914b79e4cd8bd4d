"""Products with the Jacobian of a function of trees: many at once, linearised once, and of higher order.

Shaped like ``torch.func.jvp``: a function, a tuple of primals and a tuple of tangents. Costs are counted in calls of
the function; memory in activations, the numbers that its backward pass keeps.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from fnn import tree as _tree
from fnn.jacobian.arguments import (
    check_cotangent_stack,
    check_primals,
    check_tangent_stack,
    check_tangents,
    differentiable_output,
    forward_mode,
)
from fnn.tree import Tree


def jmp(
    f: Callable, primals: tuple, tangents: tuple, chunk_size: int | None = None, has_aux: bool = False
) -> tuple[Any, ...]:
    """J V: the output and the derivatives along many tangents at once, by forward mode.

    Each leaf of ``tangents`` is a leaf of ``primals`` with a new first axis (k, ...); so is the result,
    ``(output, products)``, or ``(output, products, aux)`` where ``f`` returns ``(output, aux)``.

    Cost 1 + k calls, memory k times the largest activation and the products; ``chunk_size`` tangents at a time
    replace k by chunk_size. Raises ``TypeError`` for an integer leaf and an operation without a forward rule,
    ``ValueError`` for tangents that do not fit, naming the path.

    >>> jmp(lambda x: x**2, (torch.tensor([1.0, 2.0]),), (torch.eye(2),))[1]
    tensor([[2., 0.],
            [0., 4.]])
    """
    tangents, count = check_tangent_stack(primals, tangents, "jmp")
    return push(f, primals, chunks(tangents, count, chunk_size), "jmp", has_aux)


def mjp(
    f: Callable, primals: tuple, cotangents: Tree, chunk_size: int | None = None, has_aux: bool = False
) -> tuple[Any, ...]:
    """U^T J: the output and the pullbacks of many cotangents at once, by reverse mode.

    Each leaf of ``cotangents`` is a leaf of the output with a new first axis (k, ...). Gives
    ``(output, products)`` with products like ``primals[0]``, or a tuple like ``primals`` where there are several,
    and each leaf (k, ...); ``(output, products, aux)`` where ``f`` returns ``(output, aux)``.

    Cost 1 + 2 k calls; memory the activations and k times the largest of them; ``chunk_size`` cotangents at a time
    replace k by chunk_size. Raises what :func:`jmp` raises.

    >>> mjp(lambda x: x**2, (torch.tensor([1.0, 2.0]),), torch.ones(1, 2))[1]
    tensor([[2., 4.]])
    """
    check_primals(primals, "mjp")
    output, pullback, *aux = torch.func.vjp(differentiable_output(f, has_aux), *primals, has_aux=has_aux)
    cotangents, count = check_cotangent_stack(output, cotangents, "mjp")
    return (output, pull(pullback, chunks(cotangents, count, chunk_size)), *aux)


def linearize_by_vjp(f: Callable, *primals: Tree) -> tuple[Any, Callable]:
    """The output, and the function ``tangents -> J tangents`` with the activations kept.

    Unlike ``torch.func.linearize`` it passes ``fnn.jit``, ``grad`` and ``vmap``, and needs backward rules alone:
    the pullback is linear in its cotangent, and its own pullback is J. Cost three calls of ``f`` once and two for each
    product; memory twice the activations, as long as the function is kept. Raises ``TypeError`` for an integer leaf,
    ``ValueError`` for tangents that do not fit.

    >>> output, derivative = linearize_by_vjp(torch.sin, torch.tensor(0.0))
    >>> derivative(torch.tensor(2.0))
    tensor(2.)
    """
    check_primals(primals, "linearize_by_vjp")
    output, pullback, *_ = torch.func.vjp(differentiable_output(f), *primals)
    transposed = torch.func.vjp(pullback, _tree.zeros_like(output))[1]

    def derivative(*tangents: Tree) -> Tree:
        return transposed(check_tangents(primals, tangents, "linearize_by_vjp"))[0]

    return output, derivative


def directional_derivatives(f: Callable, primals: tuple, tangents: tuple, order: int = 2) -> tuple:
    """``(f, Df[v], D^2 f[v, v], ...)`` up to ``order``: the derivatives of t -> f(primals + t tangents) at 0.

    Forward mode nested ``order`` times: cost 2^order calls, memory 2^order activations of the largest layer, none
    kept. Raises ``ValueError`` for an order below 1 and tangents that do not fit, ``TypeError`` as :func:`jmp`.

    >>> directional_derivatives(lambda x: x**3, (torch.tensor(2.0),), (torch.tensor(1.0),), order=3)
    (tensor(8.), tensor(12.), tensor(12.), tensor(6.))
    """
    if order < 1:
        raise ValueError(f"directional_derivatives needs an order of at least 1, got {order}")
    tangents = check_tangents(primals, tangents, "directional_derivatives")
    # nested forward mode on a view fails to compile: torch 2.11 to 2.15 assert that its tangent is laid out alike
    primals = _tree.map(torch.clone, tuple(primals))

    def nested(levels: int) -> Callable:
        if levels == 0:
            return lambda *p: (f(*p),)
        inner = nested(levels - 1)

        def outer(*p: Tree) -> tuple:
            values, slopes, *_ = torch.func.jvp(inner, p, tangents)
            return (*values, slopes[-1])

        return outer

    return forward_mode(lambda: nested(order)(*primals), "directional_derivatives")


def push(f: Callable, primals: tuple, parts: Sequence[tuple], name: str, has_aux: bool = False) -> tuple[Any, ...]:
    """``(output, products[, aux])`` of the tangents in all parts, those of one part at once."""

    def along(*tangents: Tree) -> tuple:
        return torch.func.jvp(f, primals, tangents, has_aux=has_aux)

    # the output is the same for all tangents, but out_dims=None is refused where an outer vmap has mapped it
    out_dims: Any = (0, 0, None) if has_aux else (0, 0)
    mapped = torch.func.vmap(along, out_dims=out_dims)
    results = [forward_mode(lambda part=part: mapped(*part), name) for part in parts]
    output = _tree.map(lambda leaf: leaf[0], results[0][0])
    return (output, join([result[1] for result in results]), *results[0][2:])


def pull(pullback: Callable, parts: Sequence[Tree]) -> Tree:
    """The pullbacks of the cotangents in all parts, those of one part at once."""
    mapped = torch.func.vmap(lambda u: single(pullback(u)))
    return join([mapped(part) for part in parts])


def chunks(stacks: Tree, count: int, chunk_size: int | None) -> list:
    """The rows of stacked trees, ``chunk_size`` at a time."""
    return [_tree.map(lambda leaf, a=a, b=b: leaf[a:b], stacks) for a, b in bounds(count, chunk_size)]


def bounds(count: int, chunk_size: int | None) -> list[tuple[int, int]]:
    """First and last row of each chunk."""
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size is a positive number of products at once, got {chunk_size}")
    size = chunk_size or max(count, 1)
    return [(start, min(start + size, count)) for start in range(0, max(count, 1), size)]


def single(trees: tuple) -> Tree:
    """The tree itself where there is one primal, the tuple where there are several."""
    return trees[0] if len(trees) == 1 else trees


def join(parts: list) -> Tree:
    """The rows of all chunks."""
    return parts[0] if len(parts) == 1 else _tree.concat(parts)
