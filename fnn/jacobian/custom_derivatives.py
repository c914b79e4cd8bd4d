"""Functions with a derivative of their own, as ``jax.custom_jvp`` and ``jax.custom_vjp`` make them.

They are made of one ``torch.autograd.Function``, because only that hands a rule the tangent or cotangent itself, which
a rule that runs a solver, or that is not linear, needs. It can be nested, mapped and traced.
"""

import functools
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fnn import _torch
from fnn import tree as _tree
from fnn._memory import own
from fnn.jacobian.arguments import irregular_like
from fnn.linalg.vector_space import check_like
from fnn.tree import Tree


def stop_gradient(tree: Tree) -> Tree:
    """The same values, constant to every derivative of every order and mode.

    >>> import torch
    >>> torch.func.grad(lambda x: x * stop_gradient(x))(torch.tensor(3.0))
    tensor(3.)
    """
    return own(_tree.map(lambda leaf: leaf.detach(), tree), tree)


def straight_through(f: Callable, surrogate: Callable = lambda x: x) -> Callable:
    """A function with the values of ``f`` and the derivatives, of every order, of ``surrogate`` (Bengio et al., 2013).

    ``surrogate`` is the identity by default; both functions map a tree to trees of the same shapes. Costs one call of
    each. Raises ``ValueError`` naming the path where their outputs differ.

    >>> import torch
    >>> rounded = straight_through(torch.round)
    >>> rounded(torch.tensor(1.7)), torch.func.grad(lambda x: rounded(x) ** 2)(torch.tensor(1.7))
    (tensor(2.), tensor(4.))
    """

    def estimated(x: Tree) -> Tree:
        values, differentiated = stop_gradient(f(stop_gradient(x))), surrogate(x)
        check_like(values, differentiated, "output of the function", "output of the surrogate")
        return _tree.map(lambda value, leaf: value + (leaf - leaf.detach()), values, differentiated)

    return estimated


def custom_jvp(f: Callable, rule: Callable, check: bool = True) -> Callable:
    """The function ``f`` with a derivative of its own, ``rule(primals, tangents) -> (output, tangent of the output)``.

    The arguments are those of ``jax.custom_jvp``: ``primals`` and ``tangents`` are tuples, one tree for each argument
    of ``f``; the tangent of an integer leaf is zeros of its shape and of the default dtype. The rule is J v: linear in
    the tangents, and differentiable itself where higher derivatives are taken. It may call the function that is made
    here, or a solver such as ``fnn.linalg.cg``.

    Forward mode calls the rule. Reverse mode transposes it: it differentiates the rule with respect to the tangents at
    a point other than zero, where a solver would stop at once. The transpose of a solver is as exact as its tolerance.

    ``check`` tests the rule at every derivative with two more calls of it: a rule that is not linear in the tangents to
    within one per cent raises ``ValueError``; where values cannot be read (in a trace, under vmap) the derivative
    becomes nan instead. Costs one call of f, and what the mode of differentiation costs for the rule. Raises
    ``ValueError`` for a rule whose results do not fit those of f, and for an f that closes over a tensor that is
    differentiated or mapped: give it as an argument.

    >>> softplus = custom_jvp(
    ...     lambda x: (1 + x.exp()).log(), lambda p, t: ((1 + p[0].exp()).log(), torch.sigmoid(p[0]) * t[0])
    ... )
    >>> torch.func.grad(torch.func.grad(softplus))(torch.tensor(0.0))
    tensor(0.2500)
    """

    def pushforward(primals: tuple, tangents: tuple, output: Tree) -> Tree:
        slope = _tangent(rule, primals, tangents, output)
        if not check:
            return slope
        other = _tree.map(lambda p, t: p.to(t.dtype), irregular_like(primals), tangents)
        other_slope = _tangent(rule, primals, other, output)
        combined = _tangent(rule, primals, _tree.map(lambda a, b: a - 100.0 * b, other, tangents), output)
        expected = _tree.map(lambda a, b: a - 100.0 * b, other_slope, slope)
        error = _tree.global_norm(_tree.sub(combined, expected))
        return _checked(slope, error, _tree.global_norm(expected), _NOT_LINEAR)

    def pullback(primals: tuple, cotangent: Tree, output: Tree) -> tuple:
        point = irregular_like(_tangent_like(primals))
        _, transposed, *_ = torch.func.vjp(lambda t: _tangent(rule, primals, t, output), point)
        (result,) = transposed(cotangent)
        if not check:
            return result
        # compare <u, J v> with <J^T u, v> for a long and a short v along J^T u, where no terms cancel
        size = _tree.global_norm(result)
        size = torch.where(size > 0, size, 1.0)
        long = _tree.map(lambda a, b: 100.0 * a / size + torch.flip(b, tuple(range(b.dim()))), result, point)
        for v in (long, _tree.scale(-0.01, long)):
            slope = _tangent(rule, primals, v, output)
            # of complex numbers the real parts are equal, those of pairs of real numbers
            error = (_tree.dot(cotangent, slope) - _tree.dot(result, v)).real.abs()
            norms = [_tree.global_norm(tree) for tree in (cotangent, slope, result, v)]
            result = _checked(result, error, norms[0] * norms[1] + norms[2] * norms[3], _NOT_LINEAR)
        return result

    return with_rules(f, pushforward, pullback)


def custom_vjp(f: Callable, forward: Callable, backward: Callable, check: bool = True) -> Callable:
    """The function ``f`` with a pullback of its own, as ``jax.custom_vjp``.

    ``forward(*args) -> (output, residuals)`` and ``backward(residuals, cotangent) -> `` a tuple with one cotangent for
    each argument; None stands for zeros. ``backward`` need not be linear (it may clip the cotangent).

    Reverse mode calls ``forward`` again when it needs the residuals, so that they depend on the arguments in higher
    derivatives: one call of f, and of forward and backward. Forward mode, which JAX refuses, transposes ``backward``;
    with ``check`` a backward rule that is not linear in the cotangent raises ``ValueError`` there, or gives nan where
    values cannot be read. Raises ``ValueError`` for rules whose results do not fit, and for an f that closes over a
    tensor that is differentiated or mapped.

    >>> clipped = custom_vjp(lambda x: x, lambda x: (x, ()), lambda residuals, u: (u.clamp(-1.0, 1.0),))
    >>> torch.func.grad(lambda x: (5.0 * clipped(x)).sum())(torch.tensor([2.0]))
    tensor([1.])
    """

    def pullback(primals: tuple, cotangent: Tree, output: Tree) -> tuple:
        value, residuals = forward(*primals)
        check_like(output, value, "output of the function", "output of its forward rule")
        result = backward(residuals, cotangent)
        if not isinstance(result, (tuple, list)) or len(result) != len(primals):
            raise ValueError(
                "custom_vjp: the backward rule returns a tuple with one cotangent for each of "
                f"{len(primals)} arguments, got {_tree.describe(result)}; write (cotangent,) for one"
            )
        like = _tangent_like(primals)
        found = tuple(_tree.zeros_like(a) if b is None else b for a, b in zip(like, result, strict=True))
        check_like(like, found, "arguments", "cotangents of the backward rule")
        return found

    def pushforward(primals: tuple, tangents: tuple, output: Tree) -> Tree:
        point = irregular_like(output)
        pulled, transposed, *_ = torch.func.vjp(lambda u: pullback(primals, u, output), point)
        (slope,) = transposed(tangents)
        if not check:
            return slope
        other = _tree.map(lambda a: 100.0 * torch.flip(a, tuple(range(a.dim()))) - a, point)
        combined = pullback(primals, _tree.map(lambda a, b: a - 3.0 * b, point, other), output)
        expected = _tree.map(lambda a, b: a - 3.0 * b, pulled, pullback(primals, other, output))
        error = _tree.global_norm(_tree.sub(combined, expected))
        return _checked(slope, error, _tree.global_norm(expected), _NOT_LINEAR_BACK)

    return with_rules(f, pushforward, pullback)


_NOT_LINEAR = (
    "custom_jvp: the rule is not linear in its tangents, so it is not a derivative (or a solver in it does not "
    "converge); write one that is linear, or custom_vjp(f, forward, backward), whose backward rule may be any function"
)
_NOT_LINEAR_BACK = (
    "custom_vjp: the backward rule is not linear in the cotangent, so forward mode has no derivative to take from it; "
    "use reverse mode"
)


def _checked(result: Tree, error: Tensor, scale: Tensor, message: str) -> Tree:
    """The result; ``ValueError``, or nan where values cannot be read, where the error is not small."""
    wrong = ~(error <= 1e-2 * scale) & error.isfinite() & scale.isfinite()
    if not _torch.values_can_be_read():
        return _tree.map(lambda leaf: torch.where(wrong, torch.nan, leaf), result)
    if bool(wrong):
        raise ValueError(message)
    return result


def _tangent(rule: Callable, primals: tuple, tangents: tuple, output: Tree) -> Tree:
    result = rule(primals, tangents)
    if not isinstance(result, (tuple, list)) or len(result) != 2:
        raise ValueError(
            "custom_jvp: the rule returns a pair (output, tangent of the output), got "
            f"{_tree.describe(result)}; write return f(*primals), tangent"
        )
    check_like(_tangent_like(output), result[1], "output of the function", "tangent that its rule returns")
    return result[1]


def _tangent_like(tree: Tree) -> Tree:
    """The tree with zeros of the default dtype in the place of integers and bools."""
    return _tree.map(lambda leaf: leaf if _has_tangent(leaf) else torch.zeros(leaf.shape, device=leaf.device), tree)


def _has_tangent(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex())


class _Call:
    """One call of a function: its rules, and the structures of its arguments and its output."""

    def __init__(self, f: Callable, pushforward: Callable, pullback: Callable, primals: tuple) -> None:
        self.f, self.pushforward, self.pullback = f, pushforward, pullback
        self.treedef = _tree.structure(primals)
        self.output: _tree.TreeDef | None = None

    def __deepcopy__(self, memo: dict) -> "_Call":
        return self


_CLOSURE = (
    "a function with a derivative of its own closes over a tensor that is differentiated or mapped here, and would "
    "lose that; give the tensor as an argument"
)


def _closed_over(f: Any, seen: set[int]) -> Iterator[Tensor]:
    """The tensors in the closure of a function, and in those of the functions in it.

    A derivative inside f would take a tensor of an outer derivative for its own, so that :class:`_Closure` misses it.
    """
    if id(f) in seen:
        return
    seen.add(id(f))
    if isinstance(f, functools.partial):
        values = [f.func, f.args, f.keywords]
    else:
        cells = getattr(f, "__closure__", None) or ()
        values = [cell.cell_contents for cell in cells if cell != types.CellType()]
    for leaf in _torch.tree_leaves(values):
        if isinstance(leaf, Tensor):
            yield leaf
        elif isinstance(leaf, (types.FunctionType, functools.partial)):
            yield from _closed_over(leaf, seen)


class _Closure(TorchFunctionMode):
    """Raises ``ValueError`` where a function uses a tensor of a transform that its arguments have left.

    Its shape, and what else a loop inside the function reads without computing with it, may be used.
    """

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        given = [] if getattr(func, "__name__", "") == "__get__" else _torch.tree_leaves((args, kwargs))
        if any(isinstance(leaf, Tensor) and _torch.is_of_outer_transform(leaf) for leaf in given):
            raise ValueError(_CLOSURE)
        return func(*args, **(kwargs or {}))


class _Custom(torch.autograd.Function):
    """The function on leaves. ``backward`` calls the pullback, and ``jvp`` the pushforward."""

    generate_vmap_rule = True

    @staticmethod
    def forward(call: _Call, *leaves: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        with torch.enable_grad(), _Closure():  # to notice gradients through the closure, which would be lost
            constants = [leaf.detach() for leaf in leaves]
            results, call.output = _tree.flatten(call.f(*call.treedef.unflatten(constants)))
        if any(result.requires_grad for result in results):
            raise ValueError(_CLOSURE)
        # torch would take a result that shares memory with an argument for a view of it
        return tuple(result.detach().clone() for result in results)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        call, *leaves = inputs
        ctx.call = call
        ctx.count = len(leaves)
        ctx.mark_non_differentiable(*[leaf for leaf in output if not _has_tangent(leaf)])
        ctx.save_for_backward(*leaves, *output)
        ctx.save_for_forward(*leaves, *output)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple:  # type: ignore[override]
        call, leaves, output = _Custom.saved(ctx)
        primals = call.treedef.unflatten(leaves)
        assert call.output is not None  # forward has run
        found = _tree.leaves(call.pullback(primals, call.output.unflatten(list(cotangents)), output))
        return (None, *[g if _has_tangent(leaf) else None for leaf, g in zip(leaves, found, strict=True)])

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Tensor | None) -> tuple:  # type: ignore[override]
        call, leaves, output = _Custom.saved(ctx)
        filled = [
            torch.zeros_like(like) if tangent is None else tangent
            for tangent, like in zip(tangents, _tree.leaves(_tangent_like(leaves)), strict=True)
        ]
        with _torch.forward_mode_inside_jvp():  # torch has switched it off for all levels, the outer ones too
            primals = call.treedef.unflatten([_torch.without_tangent(leaf) for leaf in leaves])
            output = _tree.map(_torch.without_tangent, output)
            slopes = _tree.leaves(call.pushforward(primals, call.treedef.unflatten(filled), output))
        return tuple(
            slope if _has_tangent(leaf) else None for leaf, slope in zip(_tree.leaves(output), slopes, strict=True)
        )

    @staticmethod
    def saved(ctx: Any) -> tuple[_Call, list[Tensor], Tree]:
        tensors = list(ctx.saved_tensors)
        return ctx.call, tensors[: ctx.count], ctx.call.output.unflatten(tensors[ctx.count :])


def with_rules(f: Callable, pushforward: Callable, pullback: Callable) -> Callable:
    """The function ``f(*primals)`` with both rules written out.

    ``pushforward(primals, tangents, output)`` is the tangent of the output, ``pullback(primals, cotangent, output)``
    the cotangents of the primals. ``output`` depends on the primals, so that a rule made of it can be differentiated.
    """

    def function(*primals: Tree) -> Tree:
        if _torch.inside_derivative() and any(map(_torch.is_differentiated, _closed_over(f, set()))):
            raise ValueError(_CLOSURE)
        call = _Call(f, pushforward, pullback, primals)
        leaves = call.treedef.flatten_up_to(primals)
        results = _Custom.apply(call, *leaves)
        assert call.output is not None
        return call.output.unflatten(list(results))

    return function
