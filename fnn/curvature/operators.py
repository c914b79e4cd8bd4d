"""Curvature matrices of functions of a tree as linear operators.

With ``batch`` the function is called as ``function(params, batch)``, with ``batches`` (a list, a loader:
anything that can be iterated again and again) once for each; without either as ``function(params)``.
Losses are means over the samples of a batch, and several batches give the mean over all samples, whatever
their sizes. A product keeps the graph of one batch at a time.
"""

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from fnn import random
from fnn import tree as _tree
from fnn.curvature.products import (
    Likelihood,
    check_likelihood,
    empirical_fisher_product,
    fisher_product,
    ggn_product,
    hvp,
)
from fnn.jacobian.arguments import check_floating
from fnn.jacobian.operator import NO_BATCH, Calls
from fnn.linalg.linear_operator import LinearOperator
from fnn.tree import Tree


def hessian_operator(
    loss: Callable, params: Tree, batch: Any = NO_BATCH, *, batches: Iterable | None = None
) -> LinearOperator:
    """The Hessian of a scalar loss, symmetric; its products are those of ``hvp``, by reverse mode twice.

    A product costs about eight calls of the loss; memory twice that of a gradient. Raises
    ``ValueError`` for a loss that is not a scalar, and what :func:`jacobian_operator` raises.

    >>> import torch
    >>> H = hessian_operator(lambda p: (p["w"] ** 3).sum(), {"w": torch.tensor([1.0, 2.0])})
    >>> H @ torch.ones(2)
    tensor([ 6., 12.])
    """
    check_floating(params, "params", "hessian_operator")

    def product(v: Tree, number: int, *args: Any) -> Tree:
        return hvp(lambda p: loss(p, *args), (params,), (v,))[1]

    return _mean_operator(product, params, Calls(batch, batches))


def ggn_operator(
    model: Callable, loss: Callable, params: Tree, batch: Any = NO_BATCH, *, batches: Iterable | None = None
) -> LinearOperator:
    """The generalized Gauss-Newton matrix J^T H J (Schraudolph, 2002), symmetric.

    J is the Jacobian of ``model(params, batch)``, H the Hessian of the scalar ``loss(output, batch)``;
    positive semidefinite where the loss is convex in the output. A product is one of ``ggn_product``: reverse
    mode alone, about six calls of the model (eight for convolutions); memory twice that of a gradient.

    >>> import torch
    >>> x, y = torch.ones(3, 2), torch.zeros(3)
    >>> model, loss = (lambda w, batch: batch[0] @ w), (lambda out, batch: ((out - batch[1]) ** 2).mean())
    >>> ggn_operator(model, loss, torch.zeros(2), (x, y)).dense()
    tensor([[2., 2.],
            [2., 2.]])
    """
    check_floating(params, "params", "ggn_operator")

    def product(v: Tree, number: int, *args: Any) -> Tree:
        return ggn_product(model, loss, (params,), (v,), *args)[1]

    return _mean_operator(product, params, Calls(batch, batches))


def fisher_operator(
    model: Callable,
    params: Tree,
    batch: Any = NO_BATCH,
    *,
    batches: Iterable | None = None,
    likelihood: Likelihood = "categorical",
    key: Tensor | None = None,
    draws: int = 1,
) -> LinearOperator:
    """The Fisher information, mean over the samples of the output's first axis, symmetric and semidefinite.

    J^T F J with the exact F of one sample's output: diag(p) - p p^T, p = softmax(logits) over axis 1, for
    ``"categorical"``; the identity for ``"normal"`` with unit variance; diag(p (1 - p)), p = sigmoid(logits),
    for ``"bernoulli"``. With a key F is the mean of g g^T over ``draws`` draws of the label from the model's own
    prediction, g the gradient of its log-likelihood: batch number i takes the draws of ``fold_in(key, i)``, the same
    in every product, so that the operator is one matrix. Cost and memory are those of :func:`ggn_operator`. Raises
    ``ValueError`` for another likelihood or draws below 1.

    >>> import torch
    >>> fisher_operator(lambda w, x: x @ w, torch.zeros(2), torch.eye(2), likelihood="normal").dense()
    tensor([[0.5000, 0.0000],
            [0.0000, 0.5000]])
    """
    check_floating(params, "params", "fisher_operator")
    check_likelihood(likelihood, draws)

    def product(v: Tree, number: int, *args: Any) -> Tree:
        of_batch = None if key is None else random.fold_in(key, number)
        return fisher_product(lambda p: model(p, *args), (params,), (v,), likelihood, of_batch, draws)[1]

    return _mean_operator(product, params, Calls(batch, batches))


def empirical_fisher_operator(
    losses: Callable, params: Tree, batch: Any = NO_BATCH, *, batches: Iterable | None = None
) -> LinearOperator:
    """The mean of g g^T over the gradients g of the samples' losses, symmetric and semidefinite.

    ``losses(params, batch)`` gives one loss for each sample, (batch,). The labels are those of the data, so this is not
    a Fisher information (Kunstner, Balles and Hennig, 2019). Cost and memory are those of :func:`ggn_operator`. Raises
    ``ValueError`` for losses of another rank.

    >>> import torch
    >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    >>> empirical_fisher_operator(lambda w, x: x @ w, torch.zeros(2), x).dense()
    tensor([[0.5000, 0.0000],
            [0.0000, 2.0000]])
    """
    check_floating(params, "params", "empirical_fisher_operator")

    def product(v: Tree, number: int, *args: Any) -> Tree:
        return empirical_fisher_product(lambda p: losses(p, *args), (params,), (v,))[1]

    return _mean_operator(product, params, Calls(batch, batches))


def _mean_operator(product: Callable, params: Tree, calls: Calls) -> LinearOperator:
    """The mean of ``product(v, number, *args)`` over all calls, weighted by their numbers of samples."""
    total = sum(size for size, _ in calls)

    def mean(v: Tree) -> Tree:
        result = None
        for number, (size, args) in enumerate(calls):
            part = product(v, number, *args)
            part = part if size == total else _tree.scale(size / total, part)
            result = part if result is None else _tree.add(result, part)
        return result

    return LinearOperator(mean, params, symmetric=True)
