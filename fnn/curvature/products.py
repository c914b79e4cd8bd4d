"""Products with second derivatives: Hessian, Gauss-Newton and Fisher matrices of functions of trees.

Shaped like ``torch.func.jvp``, with what the product is made from as first result. ``H v`` below is like
``primals[0]``, or a tuple like ``primals`` where there are several.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from fnn import random
from fnn._memory import own
from fnn.jacobian.arguments import check_primals, check_tangents, differentiable_output, irregular_like, real_scalar
from fnn.jacobian.operator import NO_BATCH
from fnn.jacobian.products import linearized, single
from fnn.jacobian.torch_rules import (
    MissingRuleError,
    NoForwardRuleError,
    call_and_listen,
    check_surroundings,
    forward_mode,
    reverse_mode,
)
from fnn.tree import Tree

Mode = Literal["auto", "forward-over-reverse", "reverse-over-forward", "reverse-over-reverse"]
Likelihood = Literal["categorical", "normal", "bernoulli"]


def hvp(f: Callable, primals: tuple, tangents: tuple, mode: Mode = "auto", has_aux: bool = False) -> tuple[Any, ...]:
    """``(gradient, H v)`` of a scalar function; ``(gradient, H v, aux)`` where ``f`` returns ``(value, aux)``.

    ==================== ============================================ ==============================================
    mode                 what it is                                   every operation needs
    ==================== ============================================ ==============================================
    reverse-over-reverse pullback of the gradient                     a backward rule that has a backward rule
    forward-over-reverse jvp of the gradient (Pearlmutter, 1994)      a backward rule that has a forward rule
    reverse-over-forward gradient of Df[v]                            a forward rule that has a backward rule
    ==================== ============================================ ==============================================

    ``"auto"`` is reverse over reverse. The three are equal in exact arithmetic, but in torch it takes the fewest
    operations and the least memory, nearly every operation has its rules, and they are right, where those of the
    other two modes are missing for ``torch.nn.functional.mse_loss`` and others and wrong for its ``layer_norm`` and
    ``batch_norm``. The other modes refuse such operations by name. The derivative of a ``torch.autograd.Function``
    that is marked ``once_differentiable`` counts as a constant, as in all of ``torch.func``.

    Cost about 8 calls (12 in the other modes), memory twice that of a gradient.
    Raises ``ValueError`` for a value that is not a scalar, another mode, and tangents that do not fit (with the path);
    ``TypeError`` for an integer or complex leaf, and for an operation without the rule that the mode needs (with its
    name).

    >>> hvp(lambda x: (x**3).sum(), (torch.tensor([1.0, 2.0]),), (torch.tensor([1.0, 0.0]),))
    (tensor([ 3., 12.]), tensor([6., 0.]))
    """
    tangents = check_tangents(primals, tangents, "hvp")
    f = real_scalar(f, "hvp", has_aux)
    gradient, product, *aux = hessian_map(mode, f, primals, "hvp", has_aux)
    return own((single(gradient), single(product(tangents)), *aux), primals, tangents)


def hvp_mode(f: Callable, primals: tuple, has_aux: bool = False) -> tuple[str, str]:
    """Which mode ``hvp(mode="auto")`` takes, and why the others are not better. Costs a product in each mode.

    Raises ``TypeError`` where an operation has no second derivative.

    >>> hvp_mode(lambda x: (x**3).sum(), (torch.ones(2),))
    ('reverse-over-reverse', 'all modes work, and it takes the fewest operations and the least memory')
    """
    check_primals(primals, "hvp_mode")
    tangents = tuple(irregular_like(primal) for primal in primals)
    f = real_scalar(f, "hvp_mode", has_aux)
    hessian_map("reverse-over-reverse", f, primals, "hvp_mode", has_aux)[1](tangents)
    reasons = []
    for mode in ("forward-over-reverse", "reverse-over-forward"):
        try:
            hessian_map(mode, f, primals, "hvp_mode", has_aux)[1](tangents)
        except MissingRuleError as error:
            reasons.append(f"{mode} fails at {error.operation}")
    reason = "; ".join(reasons) or "all modes work, and it takes the fewest operations and the least memory"
    return "reverse-over-reverse", reason


def vhp(f: Callable, primals: tuple, cotangents: tuple, has_aux: bool = False) -> tuple[Any, ...]:
    """``(gradient, v^T H)``, by reverse over reverse. H is symmetric, so this equals :func:`hvp`.

    Cost, memory and errors are those of :func:`hvp`.

    >>> vhp(lambda x: (x**3).sum(), (torch.tensor([1.0, 2.0]),), (torch.tensor([1.0, 0.0]),))[1]
    tensor([6., 0.])
    """
    return hvp(f, primals, cotangents, "reverse-over-reverse", has_aux)


def ggn_product(
    model: Callable, loss: Callable, primals: tuple, tangents: tuple, batch: Any = NO_BATCH, has_aux: bool = False
) -> tuple[Any, ...]:
    """``(output, J^T H J v)``: the generalized Gauss-Newton matrix times a vector (Schraudolph, 2002).

    J is the Jacobian of ``model(*primals)``, H the Hessian of the scalar ``loss(output)``; with a batch they are
    ``model(*primals, batch)`` and ``loss(output, batch)``, the functions that ``ggn_operator`` and ``ggn_diagonal``
    take. Positive semidefinite where the loss is convex in the output. ``(output, product, aux)`` where ``model``
    returns ``(output, aux)``.

    Reverse mode alone, as in :func:`hvp`: cost about 7 calls of the model (8 for convolutions), memory twice its
    activations. Raises what :func:`hvp` raises.

    >>> ggn_product(torch.sin, lambda y: (y**2).sum(), (torch.zeros(2),), (torch.ones(2),))[1]
    tensor([2., 2.])
    """
    rest = () if batch is NO_BATCH else (batch,)
    curvature = output_hessian(lambda output: loss(output, *rest), "ggn_product")
    return _sandwich(lambda *p: model(*p, *rest), primals, tangents, curvature, "ggn_product", has_aux)


def output_hessian(loss: Callable, name: str) -> Callable:
    """``(output, u) -> H u`` for the Hessian of a scalar loss of the output."""
    gradient = torch.func.grad(real_scalar(loss, name))

    def curvature(output: Tree, u: Tree) -> Tree:
        return reverse_mode(lambda: torch.func.vjp(gradient, output)[1](u)[0], name)

    return curvature


def fisher_product(
    model: Callable,
    primals: tuple,
    tangents: tuple,
    likelihood: Likelihood = "categorical",
    key: Tensor | None = None,
    draws: int = 1,
    has_aux: bool = False,
) -> tuple[Any, ...]:
    """``(output, F v)``: the Fisher information, a mean over the samples of the output's first axis.

    F = J^T E[g g^T] J with g the gradient of the log-likelihood of one sample's output. Exact without a key: E[g g^T]
    is diag(p) - p p^T, p = softmax(logits) over axis 1, for ``"categorical"``; the identity for ``"normal"`` with
    unit variance; diag(p (1 - p)), p = sigmoid(logits), for ``"bernoulli"``. With a key the expectation is the mean
    over ``draws`` draws of the label from the model's own prediction for each sample: unbiased, semidefinite, of
    rank at most draws times the batch.

    Cost and memory are those of :func:`ggn_product`. Raises ``ValueError`` for another likelihood or draws below 1.

    >>> fisher_product(lambda w: torch.eye(2) @ w, (torch.zeros(2),), (torch.ones(2),), "normal")[1]
    tensor([0.5000, 0.5000])
    """
    check_likelihood(likelihood, draws)

    def curvature(output: Tensor, u: Tensor) -> Tensor:
        check_logits(likelihood, output)
        if key is None:
            return _output_fisher(likelihood, output, u) / output.shape[0]
        g = drawn_gradients(likelihood, output, key, draws)
        axes = tuple(range(2, g.dim()))
        along = (g * u).sum(axes, keepdim=True) if axes else g * u
        return (g * along).mean(0) / output.shape[0]

    return _sandwich(model, primals, tangents, curvature, "fisher_product", has_aux)


def empirical_fisher_product(f: Callable, primals: tuple, tangents: tuple, has_aux: bool = False) -> tuple[Any, ...]:
    """``(losses, E v)`` with E the mean of g g^T over the gradients g of the losses (batch,) that ``f`` returns.

    The labels are those of the data, not of the model: E is neither a Fisher information nor a Hessian, though it is
    often used as one (Kunstner, Balles and Hennig, 2019). E = J^T J / batch with the Jacobian J of the losses, so no
    gradient of a single sample is made. Cost about 5 calls, memory the activations. Raises ``ValueError`` for losses of
    another rank, and what :func:`hvp` raises.

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
    checked = differentiable_output(model, name, has_aux)
    output, derivative, pullback, *aux = linearized(checked, primals, name, has_aux)
    curved = middle(output, derivative(tangents))
    del derivative  # and with it a value as large as the primals
    return own((output, single(reverse_mode(lambda: pullback(curved), name)), *aux), primals, tangents)


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


def drawn_gradients(likelihood: Likelihood, output: Tensor, key: Tensor, draws: int) -> Tensor:
    """The output's gradient of the log-likelihood of labels drawn from the prediction: (draws, *output.shape)."""
    return torch.stack([_drawn_gradient(likelihood, output, draw) for draw in random.split(key, draws)])


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


def check_likelihood(likelihood: str, draws: int, *others: str) -> None:
    """Raise ``ValueError`` unless the likelihood is one of three (or of others) and draws is positive."""
    known = ("categorical", "normal", "bernoulli", *others)
    if likelihood not in known:
        names = ", ".join(repr(name) for name in known[:-1])
        raise ValueError(f"likelihood is {names} or {known[-1]!r}, got {likelihood!r}")
    if draws < 1:
        raise ValueError(f"a Monte Carlo Fisher needs at least one draw of the labels, got draws={draws}")


def check_logits(likelihood: str, output: Tensor) -> None:
    """Raise ``ValueError`` unless the output is a tensor with an axis of samples, and of classes if categorical."""
    if not isinstance(output, Tensor) or output.dim() == 0:
        given = "a 0-d tensor" if isinstance(output, Tensor) else f"a {type(output).__name__}"
        raise ValueError(f"a Fisher matrix needs outputs (batch, ...) of a model in one tensor, got {given}")
    if likelihood == "categorical" and output.dim() < 2:
        raise ValueError(f"likelihood='categorical' needs logits (batch, classes, ...), got {tuple(output.shape)}")


def hessian_map(mode: str, f: Callable, primals: tuple, name: str, has_aux: bool = False) -> tuple[Any, ...]:
    """``(gradient, tangents -> H v[, aux])`` of a real scalar function: tuples like the primals.

    Raises ``ValueError`` for another mode and ``TypeError`` for one whose rules torch has wrong for an operation of f.
    """
    if mode not in ("auto", *_MODES):
        raise ValueError(f"{name}: mode is 'auto' or one of {list(_MODES)}, got {mode!r}")
    check_surroundings(f, primals, name)
    gradient = torch.func.grad(f, argnums=tuple(range(len(primals))), has_aux=has_aux)
    if mode in ("auto", "reverse-over-reverse"):
        grads, pullback, *aux = reverse_mode(lambda: torch.func.vjp(gradient, *primals, has_aux=has_aux), name)
        return (grads, lambda tangents: reverse_mode(lambda: pullback(tangents), name), *aux)
    wrong = call_and_listen(f, primals, nested=True)[1].forward
    if wrong is not None:
        raise NoForwardRuleError(name, wrong, wrong=True)
    result = forward_mode(lambda: gradient(*primals), name)
    grads, *aux = result if has_aux else (result,)
    along = _MODES[mode]
    assert along is not None  # reverse mode was taken above
    value = (lambda *p: f(*p)[0]) if has_aux else f
    return (grads, lambda tangents: forward_mode(lambda: along(value, primals, tangents), name), *aux)


def _forward_over_reverse(f: Callable, primals: tuple, tangents: tuple) -> tuple:
    return torch.func.jvp(torch.func.grad(f, argnums=tuple(range(len(primals)))), primals, tangents)[1]


def _reverse_over_forward(f: Callable, primals: tuple, tangents: tuple) -> tuple:
    slope = lambda *p: torch.func.jvp(f, p, tangents)[1]
    return torch.func.grad(slope, argnums=tuple(range(len(primals))))(*primals)


_MODES: dict[str, Callable | None] = {
    "reverse-over-reverse": None,
    "forward-over-reverse": _forward_over_reverse,
    "reverse-over-forward": _reverse_over_forward,
}
