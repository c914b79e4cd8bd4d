"""Products with the Jacobian of a function of trees: many at once, linearised once, and of higher order.

Shaped like ``torch.func.jvp``: a function, a tuple of primals and a tuple of tangents. Costs are counted in calls of
the function; memory in activations, the numbers that its backward pass keeps.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fnn import tree as _tree
from fnn._memory import own
from fnn.jacobian.arguments import (
    check_cotangent_stack,
    check_primals,
    check_tangent_stack,
    check_tangents,
    differentiable_output,
    irregular_like,
    mapped,
)
from fnn.jacobian.torch_rules import (
    NoForwardRuleError,
    call_and_listen,
    check_surroundings,
    check_third,
    forward_mode,
    reverse_mode,
)
from fnn.tree import Tree


def jmp(
    f: Callable, primals: tuple, tangents: tuple, chunk_size: int | None = None, has_aux: bool = False
) -> tuple[Any, ...]:
    """J V: the output and the derivatives along many tangents at once, by forward mode.

    Each leaf of ``tangents`` is a leaf of ``primals`` with a new first axis (k, ...); so is the result,
    ``(output, products)``, or ``(output, products, aux)`` where ``f`` returns ``(output, aux)``. Complex numbers
    are taken as pairs of real ones, as in ``jax.jvp``: V may be complex where the primals are.

    Cost 2 + 2 k calls, memory k times the largest activation and the products; ``chunk_size`` tangents at a time
    replace k by chunk_size. Where an operation has no forward rule in torch, or a wrong one, the products come from
    reverse mode as in :func:`linearize_by_vjp`, 4 + 2 k calls with twice the activations kept. Raises ``TypeError``
    for an integer leaf and an operation without either rule, ``ValueError`` for tangents that do not fit, naming the
    path.

    >>> jmp(lambda x: x**2, (torch.tensor([1.0, 2.0]),), (torch.eye(2),))[1]
    tensor([[2., 0.],
            [0., 4.]])
    """
    tangents, count = check_tangent_stack(primals, tangents, "jmp", complex_too=True)
    return own(push(f, primals, chunks(tangents, count, chunk_size), "jmp", has_aux), primals, tangents)


def mjp(
    f: Callable, primals: tuple, cotangents: Tree, chunk_size: int | None = None, has_aux: bool = False
) -> tuple[Any, ...]:
    """U^T J: the output and the pullbacks of many cotangents at once, by reverse mode.

    Each leaf of ``cotangents`` is a leaf of the output with a new first axis (k, ...). Gives
    ``(output, products)`` with products like ``primals[0]``, or a tuple like ``primals`` where there are several,
    and each leaf (k, ...); ``(output, products, aux)`` where ``f`` returns ``(output, aux)``. For complex numbers
    U^T is the transpose without conjugation, as in ``jax.vjp``; ``torch.func.vjp`` conjugates.

    Cost 2 + 2 k calls; memory the activations and k times the largest of them; ``chunk_size`` cotangents at a time
    replace k by chunk_size. Raises what :func:`jmp` raises.

    >>> mjp(lambda x: x**2, (torch.tensor([1.0, 2.0]),), torch.ones(1, 2))[1]
    tensor([[2., 4.]])
    """
    check_primals(primals, "mjp", complex_too=True)
    checked = differentiable_output(f, "mjp", has_aux, complex_too=True)
    check_surroundings(f, primals, "mjp")
    loop = call_and_listen(f, primals, nested=False)[1].vmap is not None
    output, pullback, *aux = reverse_mode(lambda: torch.func.vjp(checked, *primals, has_aux=has_aux), "mjp")
    cotangents, count = check_cotangent_stack(output, cotangents, "mjp")
    return own((output, pull(pullback, chunks(cotangents, count, chunk_size), loop), *aux), primals, cotangents)


def linearize_by_vjp(f: Callable, *primals: Tree) -> tuple[Any, Callable]:
    """The output, and the function ``tangents -> J tangents`` with the activations kept.

    Unlike ``torch.func.linearize`` it passes ``fnn.jit``, ``grad`` and ``vmap``, and needs only backward rules:
    the pullback is linear in its cotangent, and its own pullback is J. Cost three calls of ``f`` once and two for each
    product (four and two for convolutions); memory twice the activations, as long as the function is kept. Raises
    ``TypeError`` for an integer leaf and for an operation without a second derivative, ``ValueError`` for tangents that
    do not fit.

    >>> output, derivative = linearize_by_vjp(torch.sin, torch.tensor(0.0))
    >>> derivative(torch.tensor(2.0))
    tensor(2.)
    """
    check_primals(primals, "linearize_by_vjp", complex_too=True)
    checked = differentiable_output(f, "linearize_by_vjp", complex_too=True)
    output, transposed, *_ = linearized(checked, primals, "linearize_by_vjp")

    def derivative(*tangents: Tree) -> Tree:
        fitting = check_tangents(primals, tangents, "linearize_by_vjp", complex_too=True)
        return own(transposed(fitting), primals, tangents)

    return own(output, primals), derivative


def linearized(f: Callable, primals: tuple, name: str, has_aux: bool = False) -> tuple[Any, ...]:
    """``(output, tangents -> J tangents, cotangent -> J^T cotangent[, aux])``, by reverse mode alone."""

    check_surroundings(f, primals, name)

    def twice() -> tuple:
        output, pullback, *aux = torch.func.vjp(f, *primals, has_aux=has_aux)
        transposed = torch.func.vjp(pullback, irregular_like(output))[1]
        return (output, transposed, pullback, *aux)

    output, transposed, pullback, *aux = reverse_mode(twice, name)
    return (output, lambda tangents: reverse_mode(lambda: transposed(tangents)[0], name), pullback, *aux)


def directional_derivatives(f: Callable, primals: tuple, tangents: tuple, order: int = 2) -> tuple:
    """``(f, Df[v], D^2 f[v, v], ...)`` up to ``order``: the derivatives of t -> f(primals + t tangents) at 0.

    Forward mode nested ``order`` times: cost 1 + 3^order calls, memory 2^order activations of the largest layer, none
    kept. Where an operation has no forward rule in torch, or one that is wrong when nested
    (``torch.nn.functional.layer_norm`` and ``batch_norm``; ``fnn.layers`` writes them out), it is reverse
    mode: three nested pullbacks for the second order, about 20 calls with all activations, and six or more above it,
    where ``layer_norm`` and ``batch_norm`` of torch are refused. Raises ``ValueError`` for an order below 1 and
    tangents that do not fit, ``TypeError`` as :func:`jmp`.

    >>> directional_derivatives(lambda x: x**3, (torch.tensor(2.0),), (torch.tensor(1.0),), order=3)
    (tensor(8.), tensor(12.), tensor(12.), tensor(6.))
    """
    name = "directional_derivatives"
    if order < 1:
        raise ValueError(f"{name} needs an order of at least 1, got {order}")
    tangents = check_tangents(primals, tangents, name)
    checked = differentiable_output(f, name)
    # nested forward mode on a view fails to trace: torch 2.11 to 2.15 assert that its tangent is laid out alike
    primals = _tree.map(torch.clone, tuple(primals))

    def nested(levels: int, forward: bool) -> Callable:
        if levels == 0:
            return lambda *p: (checked(*p),)
        inner = nested(levels - 1, forward)

        def outer(*p: Tree) -> tuple:
            values, slopes = along(inner, p, tangents, forward, name)
            return (*values, slopes[-1])

        return outer

    def derivatives(forward: bool) -> tuple:
        if forward or order == 1:
            return nested(order, forward)(*primals)
        if order == 2:
            return second_by_reverse(checked, primals, tangents, name)
        wrong = call_and_listen(checked, primals, nested=True)[1].forward
        if wrong is not None:
            check_third(wrong, name)
        return nested(order, False)(*primals)

    return own(forward_or_reverse(checked, primals, derivatives, name), primals, tangents)


def second_by_reverse(f: Callable, primals: tuple, tangents: tuple, name: str) -> tuple[Any, Any, Any]:
    """The output, Df[v] and D^2 f[v, v] by reverse mode, without third derivatives of any operation.

    <u, D^2 f[v, v]> is linear in u, so its gradient with respect to u is the second derivative.
    """
    output, derivative, *_ = linearized(f, primals, name)

    def curved(u: Tree) -> Tensor:
        slope = lambda p: _tree.dot(torch.func.vjp(f, *p)[1](u), tangents)  # type: ignore[index]
        return _tree.dot(torch.func.grad(slope)(primals), tangents)

    return output, derivative(tangents), torch.func.grad(curved)(irregular_like(output))


def along(f: Callable, primals: tuple, tangents: tuple, forward: bool, name: str) -> tuple[Any, Any]:
    """The output and the derivative along the tangents, by forward mode or by reverse mode alone."""
    if forward:
        output, slope, *_ = torch.func.jvp(f, primals, tangents)
        return output, slope
    output, derivative, *_ = linearized(f, primals, name)
    return output, derivative(tangents)


def forward_or_reverse(f: Callable, primals: tuple, call: Callable[[bool], Any], name: str, nested: bool = True) -> Any:
    """``call(True)``, forward mode, unless an operation of ``f`` has no right forward rule; then ``call(False)``."""
    faults = call_and_listen(f, primals, nested)[1]
    return forward_else_reverse(faults.forward is None, call, name)


def forward_else_reverse(forward_is_right: bool, call: Callable[[bool], Any], name: str) -> Any:
    """As :func:`forward_or_reverse`, where the caller knows whether the forward rules that exist are right."""
    if forward_is_right:
        try:
            return forward_mode(lambda: call(True), name)
        except NoForwardRuleError:
            pass
    return reverse_mode(lambda: call(False), name)


def push(f: Callable, primals: tuple, parts: Sequence[tuple], name: str, has_aux: bool = False) -> tuple[Any, ...]:
    """``(output, products[, aux])`` of the tangents in all parts, those of one part at once."""
    f = differentiable_output(f, name, has_aux, complex_too=True)

    def either(forward: bool) -> tuple:
        return (push_forward if forward else _push_reverse)(f, primals, parts, name, has_aux)

    return forward_or_reverse(f, primals, either, name, nested=False)


def push_forward(f: Callable, primals: tuple, parts: Sequence[tuple], name: str, has_aux: bool) -> tuple[Any, ...]:
    """As :func:`push`, by forward mode alone."""

    def slope(*tangents: Tree) -> tuple:
        return torch.func.jvp(f, primals, tangents, has_aux=has_aux)

    # the output is the same for all tangents, but out_dims=None is refused where an outer vmap has mapped it
    results = [mapped(slope, part, (0, 0, None) if has_aux else (0, 0)) for part in parts]
    output = _tree.map(lambda leaf: leaf[0], results[0][0])
    return (output, join([result[1] for result in results]), *results[0][2:])


def _push_reverse(f: Callable, primals: tuple, parts: Sequence[tuple], name: str, has_aux: bool) -> tuple[Any, ...]:
    output, derivative, _, *aux = linearized(f, primals, name, has_aux)
    return (output, join([mapped(lambda *v: derivative(v), part) for part in parts]), *aux)


def pull(pullback: Callable, parts: Sequence[Tree], loop: bool = False) -> Tree:
    """The pullbacks of the cotangents in all parts, those of one part at once; transposed without conjugation."""

    def one(u: Tree) -> Tree:
        return _conjugate(single(pullback(_conjugate(u))))

    return join([mapped(one, (part,), loop=loop) for part in parts])


def _conjugate(tree: Tree) -> Tree:
    return _tree.map(lambda leaf: leaf.conj_physical() if leaf.is_complex() else leaf, tree)


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
