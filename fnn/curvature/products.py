"""Products with second derivatives: Hessian, Gauss-Newton and Fisher matrices of functions of trees.

Shaped like ``torch.func.jvp``, with what the product is made from as first result. ``H v`` below is like
``primals[0]``, or a tuple like ``primals`` where there are several.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from fnn import random
from fnn import tree as _tree
from fnn.gradients.value_and_grad import scalar_valued
from fnn.jacobian.arguments import NoForwardRuleError, check_primals, check_tangents, forward_mode
from fnn.jacobian.products import single
from fnn.tree import Tree

Mode = Literal["auto", "forward-over-reverse", "reverse-over-forward", "reverse-over-reverse"]
Likelihood = Literal["categorical", "normal", "bernoulli"]


def hvp(f: Callable, primals: tuple, tangents: tuple, mode: Mode = "auto", has_aux: bool = False) -> tuple[Any, ...]:
    """``(gradient, H v)`` of a scalar function; ``(gradient, H v, aux)`` where ``f`` returns ``(value, aux)``.

    ==================== ============================================ ==============================================
    mode                 what it is                                   every operation needs
    ==================== ============================================ ==============================================
    forward-over-reverse jvp of the gradient (Pearlmutter, 1994)      a backward rule that has a forward rule
    reverse-over-forward gradient of Df[v]                            a forward rule that has a backward rule
    reverse-over-reverse pullback of the gradient                     a backward rule that has a backward rule
    ==================== ============================================ ==============================================

    ``"auto"`` is forward over reverse in eager code, where it needs the least memory, and the first of the others
    that works where an operation lacks a rule; :func:`hvp_mode` tells which. In compiled code, where all three are
    the same number of matrix products (8 for each linear layer) and a missing rule cannot be met halfway, it is
    reverse over reverse, for which the most operations have rules.

    Cost about 8 calls, memory the activations twice. Raises ``ValueError`` for a value that is not a scalar, another
    mode, and tangents that do not fit (with the path); ``TypeError`` for an integer leaf, and for an operation
    without the rule that the mode needs (with its name).

    >>> hvp(lambda x: (x**3).sum(), (torch.tensor([1.0, 2.0]),), (torch.tensor([1.0, 0.0]),))
    (tensor([ 3., 12.]), tensor([6., 0.]))
    """
    tangents = check_tangents(primals, tangents, "hvp")
    f = scalar_valued(f, "hvp", has_aux)
    return in_mode(mode, lambda mode: product_in(mode, f, primals, tangents, has_aux), "hvp")


def hvp_mode(f: Callable, primals: tuple, has_aux: bool = False) -> tuple[str, str]:
    """Which mode ``hvp(mode="auto")`` takes in eager code, and why. Costs one product or more.

    >>> hvp_mode(lambda x: (x**3).sum(), (torch.ones(2),))
    ('forward-over-reverse', 'every operation has a forward rule')
    """
    check_primals(primals, "hvp_mode")
    tangents = tuple(_tree.zeros_like(primal) for primal in primals)
    f = scalar_valued(f, "hvp_mode", has_aux)
    _, mode, lacking = first_that_works(lambda mode: product_in(mode, f, primals, tangents, has_aux))
    reason = "; ".join(f"{name} fails: {operation} has no forward rule" for name, operation in lacking.items())
    return mode, reason or "every operation has a forward rule"


def vhp(f: Callable, primals: tuple, cotangents: tuple, has_aux: bool = False) -> tuple[Any, ...]:
    """``(gradient, v^T H)``, by reverse over reverse: H is symmetric, so this is ``hvp`` without forward rules.

    Cost, memory and errors are those of :func:`hvp`.

    >>> vhp(lambda x: (x**3).sum(), (torch.tensor([1.0, 2.0]),), (torch.tensor([1.0, 0.0]),))[1]
    tensor([6., 0.])
    """
    return hvp(f, primals, cotangents, "reverse-over-reverse", has_aux)


def ggn_product(
    model: Callable, loss: Callable, primals: tuple, tangents: tuple, has_aux: bool = False
) -> tuple[Any, ...]:
    """``(output, J^T H J v)``: the generalized Gauss-Newton matrix times a vector (Schraudolph, 2002).

    J is the Jacobian of ``model(*primals)``, H the Hessian of the scalar ``loss(output)``; positive semidefinite
    where the loss is convex in the output. ``(output, product, aux)`` where ``model`` returns ``(output, aux)``.

    Cost about 5 calls of the model, memory its activations. Raises what :func:`hvp` raises.

    >>> ggn_product(torch.sin, lambda y: (y**2).sum(), (torch.zeros(2),), (torch.ones(2),))[1]
    tensor([2., 2.])
    """
    gradient = torch.func.grad(scalar_valued(loss, "ggn_product"))

    def curvature(output: Tree, u: Tree) -> Tree:
        return torch.func.jvp(gradient, (output,), (u,))[1]

    return _sandwich(model, primals, tangents, curvature, "ggn_product", has_aux)


def fisher_product(
    model: Callable,
    primals: tuple,
    tangents: tuple,
    likelihood: Likelihood = "categorical",
    key: Tensor | None = None,
    samples: int = 1,
    has_aux: bool = False,
) -> tuple[Any, ...]:
    """``(output, F v)``: the Fisher information, a mean over the samples of the output's first axis.

    F = J^T E[g g^T] J with g the gradient of the log-likelihood of one sample's output. Exact without a key: E[g g^T]
    is diag(p) - p p^T, p = softmax(logits) over axis 1, for ``"categorical"``; the identity for ``"normal"`` with
    unit variance; diag(p (1 - p)), p = sigmoid(logits), for ``"bernoulli"``. With a key the expectation is the mean
    over ``samples`` draws of the label from the model's own prediction for each sample: unbiased, semidefinite, of
    rank at most samples times the batch.

    Cost and memory are those of :func:`ggn_product`. Raises ``ValueError`` for another likelihood or samples below 1.

    >>> fisher_product(lambda w: torch.eye(2) @ w, (torch.zeros(2),), (torch.ones(2),), "normal")[1]
    tensor([0.5000, 0.5000])
    """
    check_likelihood(likelihood, samples)

    def curvature(output: Tensor, u: Tensor) -> Tensor:
        check_logits(likelihood, output)
        if key is None:
            return _output_fisher(likelihood, output, u) / output.shape[0]
        g = drawn_gradients(likelihood, output, key, samples)
        axes = tuple(range(2, g.dim()))
        along = (g * u).sum(axes, keepdim=True) if axes else g * u
        return (g * along).mean(0) / output.shape[0]

    return _sandwich(model, primals, tangents, curvature, "fisher_product", has_aux)


def empirical_fisher_product(f: Callable, primals: tuple, tangents: tuple, has_aux: bool = False) -> tuple[Any, ...]:
    """``(losses, E v)`` with E the mean of g g^T over the gradients g of the losses (batch,) that ``f`` returns.

    The labels are the data's, not the model's: this is no Fisher information and no Hessian, though often used as
    one (Kunstner, Balles and Hennig, 2019). E = J^T J / batch with the Jacobian J of the losses, so no gradient of a
    single sample is made. Cost about 5 calls, memory the activations. Raises ``ValueError`` for losses of another
    rank, and what :func:`hvp` raises.

    >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    >>> empirical_fisher_product(lambda w: x @ w, (torch.zeros(2),), (torch.ones(2),))[1]
    tensor([0.5000, 2.0000])
    """

    def curvature(losses: Tensor, u: Tensor) -> Tensor:
        if not isinstance(losses, Tensor) or losses.dim() != 1:
            given = f"shape {tuple(losses.shape)}" if isinstance(losses, Tensor) else type(losses).__name__
            raise ValueError(
                f"empirical_fisher_product needs one loss for each sample, shape (batch,), got {given}; "
                "write reduction='none' in the loss"
            )
        return u / losses.shape[0]

    return _sandwich(f, primals, tangents, curvature, "empirical_fisher_product", has_aux)


def _sandwich(
    model: Callable, primals: tuple, tangents: tuple, middle: Callable, name: str, has_aux: bool
) -> tuple[Any, ...]:
    """``(output, J^T middle(output, J v)[, aux])``."""
    tangents = check_tangents(primals, tangents, name)
    if torch.compiler.is_compiling():
        # compiled forward mode multiplies with the zero tangents of data; the pullback's pullback has none, and what
        # of it nobody uses is not computed
        output, pullback, *aux = torch.func.vjp(model, *primals, has_aux=has_aux)
        tangent = torch.func.vjp(pullback, _tree.zeros_like(output))[1](tangents)[0]
        return (output, single(pullback(middle(output, tangent))), *aux)

    def both(*primals: Tree) -> tuple:  # J v beside the output, so that the pullback needs no second forward pass
        output, *rest = torch.func.jvp(model, primals, tangents, has_aux=has_aux)
        return output, tuple(rest)

    output, pullback, (tangent, *aux) = forward_mode(lambda: torch.func.vjp(both, *primals, has_aux=True), name)
    return (output, single(pullback(middle(output, tangent))), *aux)


def _output_fisher(likelihood: str, output: Tensor, u: Tensor) -> Tensor:
    if likelihood == "normal":
        return u
    if likelihood == "bernoulli":
        p = torch.sigmoid(output)
        return p * (1.0 - p) * u
    p = torch.softmax(output, 1)
    return p * (u - (p * u).sum(1, keepdim=True))


def output_root(likelihood: Likelihood, output: Tensor, u: Tensor) -> Tensor:
    """``R u`` for each sample, where R R^T is the exact Fisher information of its output; u like output or stacked."""
    if likelihood == "normal":
        return u.expand(*u.shape[: -output.dim()], *output.shape)
    if likelihood == "bernoulli":
        p = torch.sigmoid(output)
        return (p * (1.0 - p)).sqrt() * u
    p = torch.softmax(output, 1)
    scaled = p.sqrt() * u
    return scaled - p * scaled.sum(1 - output.dim(), keepdim=True)


def drawn_gradients(likelihood: Likelihood, output: Tensor, key: Tensor, samples: int) -> Tensor:
    """The output's gradient of the log-likelihood of labels drawn from the prediction: (samples, *output.shape)."""
    return torch.stack([_drawn_gradient(likelihood, output, draw) for draw in random.split(key, samples)])


def _drawn_gradient(likelihood: Likelihood, output: Tensor, key: Tensor) -> Tensor:
    if likelihood == "normal":
        return random.normal(key, tuple(output.shape), output.dtype).to(output.device)
    if likelihood == "bernoulli":
        p = torch.sigmoid(output)
        return (random.uniform(key, tuple(output.shape), dtype=output.dtype).to(output.device) < p).to(output.dtype) - p
    logits = output.movedim(1, -1)
    drawn = random.categorical(key, logits)
    classes = torch.arange(logits.shape[-1], device=output.device)
    return ((drawn[..., None] == classes).to(output.dtype) - torch.softmax(logits, -1)).movedim(-1, 1)


def check_likelihood(likelihood: str, samples: int, *others: str) -> None:
    """Raise ``ValueError`` unless the likelihood is one of three (or of others) and samples is positive."""
    known = ("categorical", "normal", "bernoulli", *others)
    if likelihood not in known:
        names = ", ".join(repr(name) for name in known[:-1])
        raise ValueError(f"likelihood is {names} or {known[-1]!r}, got {likelihood!r}")
    if samples < 1:
        raise ValueError(f"a Monte-Carlo Fisher needs at least one sample, got samples={samples}")


def check_logits(likelihood: str, output: Tensor) -> None:
    """Raise ``ValueError`` for a categorical output without an axis of classes."""
    if likelihood == "categorical" and output.dim() < 2:
        raise ValueError(f"likelihood='categorical' needs logits (batch, classes, ...), got {tuple(output.shape)}")


def _forward_over_reverse(f: Callable, primals: tuple, tangents: tuple, has_aux: bool) -> tuple[Any, ...]:
    gradient = torch.func.grad(f, argnums=tuple(range(len(primals))), has_aux=has_aux)
    grads, product, *aux = torch.func.jvp(gradient, primals, tangents, has_aux=has_aux)
    return (single(grads), single(product), *aux)


def _reverse_over_forward(f: Callable, primals: tuple, tangents: tuple, has_aux: bool) -> tuple[Any, ...]:
    def slope(*primals: Tree) -> tuple:
        value, derivative, *aux = torch.func.jvp(f, primals, tangents, has_aux=has_aux)
        return ((value, derivative), *aux) if has_aux else (value, derivative)

    (value, _), pullback, *aux = torch.func.vjp(slope, *primals, has_aux=has_aux)
    one, zero = torch.ones_like(value), torch.zeros_like(value)
    return (single(pullback((one, zero))), single(pullback((zero, one))), *aux)


def _reverse_over_reverse(f: Callable, primals: tuple, tangents: tuple, has_aux: bool) -> tuple[Any, ...]:
    gradient = torch.func.grad(f, argnums=tuple(range(len(primals))), has_aux=has_aux)
    grads, pullback, *aux = torch.func.vjp(gradient, *primals, has_aux=has_aux)
    return (single(grads), single(pullback(tangents)), *aux)


_MODES: dict[str, Callable] = {
    "forward-over-reverse": _forward_over_reverse,
    "reverse-over-forward": _reverse_over_forward,
    "reverse-over-reverse": _reverse_over_reverse,
}


def product_in(mode: str, f: Callable, primals: tuple, tangents: tuple, has_aux: bool = False) -> tuple[Any, ...]:
    """``(gradient, H v[, aux])`` in one mode."""
    return forward_mode(lambda: _MODES[mode](f, primals, tangents, has_aux), "hvp")


def in_mode(mode: str, call: Callable[[str], Any], name: str) -> Any:
    """``call`` of the mode, or of the first that works for ``"auto"``. Raises ``ValueError`` for another mode."""
    if mode == "auto":
        return first_that_works(call)[0]
    if mode not in _MODES:
        raise ValueError(f"{name}: mode is 'auto' or one of {list(_MODES)}, got {mode!r}")
    return call(mode)


def first_that_works(call: Callable[[str], Any]) -> tuple[Any, str, dict[str, str]]:
    """The result of ``call(mode)`` for the first mode that works, the mode, and what failed the modes before it."""
    lacking: dict[str, str] = {}
    if not torch.compiler.is_compiling():  # tracing ends at the first error
        for mode in ("forward-over-reverse", "reverse-over-forward"):
            try:
                return call(mode), mode, lacking
            except NoForwardRuleError as error:
                lacking[mode] = error.operation
    return call("reverse-over-reverse"), "reverse-over-reverse", lacking
