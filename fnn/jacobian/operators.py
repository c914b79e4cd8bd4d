"""Jacobians and curvature matrices of functions of a tree as linear operators.

With ``batch`` the function is called as ``function(params, batch)``, with ``batches`` (a list, a loader:
anything that can be iterated again and again) once for each; without either as ``function(params)``.
Losses are means over the samples of a batch, and several batches give the mean over all samples, whatever
their sizes. A product keeps the graph of one batch at a time.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from fnn import random
from fnn import tree as _tree
from fnn.grads import check_differentiable
from fnn.jacobian.linear_operator import LinearOperator
from fnn.jacobian.second_order import (
    Likelihood,
    check_likelihood,
    empirical_fisher_product,
    fisher_product,
    ggn_product,
    hvp,
)
from fnn.tree import Tree

NO_BATCH: Any = object()


def jacobian_operator(
    function: Callable, params: Tree, batch: Any = NO_BATCH, *, batches: Iterable | None = None
) -> LinearOperator:
    """J of ``function``, rows numbered by its output: ``J @ v`` by forward mode, ``J.T @ u`` by reverse mode.

    With ``batches`` the outputs are joined along their first axis. Each product costs about two (``@``) or
    three (``.T @``) calls of the function. Memory: forward mode that of one call, reverse mode all activations
    of one batch. Raises ``TypeError`` naming a leaf of params that has no derivative, ``ValueError`` for no
    batches or an iterator that can be read only once.

    >>> J = jacobian_operator(lambda x: x * x, torch.tensor([1.0, 2.0]))
    >>> J.dense()
    tensor([[2., 0.],
            [0., 4.]])
    """
    check_differentiable(params)
    calls = Calls(batch, batches)
    with torch.no_grad():
        outputs = [function(params, *args) for _, args in calls]
    output = outputs[0] if len(outputs) == 1 else _tree.concat(outputs)
    lengths = [_tree.leaves(out)[0].shape[:1] for out in outputs]
    check_differentiable(output, "the function's output")

    def product(v: Tree) -> Tree:
        parts = [torch.func.jvp(lambda p, args=args: function(p, *args), (params,), (v,))[1] for _, args in calls]
        return parts[0] if len(parts) == 1 else _tree.concat(parts)

    def transposed(u: Tree) -> Tree:
        total, start = None, 0
        for (_, args), length in zip(calls, lengths, strict=True):
            part = u
            if len(lengths) > 1:
                stop = start + length[0]
                part = _tree.map(lambda leaf, start=start, stop=stop: leaf[start:stop], u)
                start = stop
            (back,) = torch.func.vjp(lambda p, args=args: function(p, *args), params)[1](part)
            total = back if total is None else _tree.add(total, back)
        return total

    return LinearOperator(product, params, output, transposed)


def hessian_operator(
    loss: Callable, params: Tree, batch: Any = NO_BATCH, *, batches: Iterable | None = None
) -> LinearOperator:
    """The Hessian of a scalar loss, forward over reverse (Pearlmutter, 1994), symmetric.

    A product costs about two gradients, six calls of the loss; memory twice that of a gradient. Raises
    ``ValueError`` for a loss that is not a scalar, and what :func:`jacobian_operator` raises.

    >>> H = hessian_operator(lambda p: (p["w"] ** 3).sum(), {"w": torch.tensor([1.0, 2.0])})
    >>> H @ torch.ones(2)
    tensor([ 6., 12.])
    """
    check_differentiable(params)

    def product(v: Tree, number: int, *args: Any) -> Tree:
        return hvp(lambda p: loss(p, *args), (params,), (v,))[1]

    return _mean_operator(product, params, Calls(batch, batches))


def ggn_operator(
    model_fn: Callable, loss_fn: Callable, params: Tree, batch: Any = NO_BATCH, *, batches: Iterable | None = None
) -> LinearOperator:
    """The generalized Gauss-Newton matrix J^T H J (Schraudolph, 2002), symmetric.

    J is the Jacobian of ``model_fn(params, batch)``, H the Hessian of the scalar ``loss_fn(output, batch)``;
    positive semidefinite where the loss is convex in the output. A product costs a forward-mode and a
    reverse-mode pass, about five calls of the model; memory that of a gradient and its tangents.

    >>> x, y = torch.ones(3, 2), torch.zeros(3)
    >>> model, loss = (lambda w, batch: batch[0] @ w), (lambda out, batch: ((out - batch[1]) ** 2).mean())
    >>> ggn_operator(model, loss, torch.zeros(2), (x, y)).dense()
    tensor([[2., 2.],
            [2., 2.]])
    """
    check_differentiable(params)

    def product(v: Tree, number: int, *args: Any) -> Tree:
        return ggn_product(lambda p: model_fn(p, *args), lambda out: loss_fn(out, *args), (params,), (v,))[1]

    return _mean_operator(product, params, Calls(batch, batches))


def fisher_operator(
    model_fn: Callable,
    params: Tree,
    batch: Any = NO_BATCH,
    *,
    batches: Iterable | None = None,
    likelihood: Likelihood = "categorical",
    key: Tensor | None = None,
    samples: int = 1,
) -> LinearOperator:
    """The Fisher information, mean over the samples of the output's first axis, symmetric and semidefinite.

    J^T F J with the exact F of one sample's output: diag(p) - p p^T, p = softmax(logits) over axis 1, for
    ``"categorical"``; the identity for ``"normal"`` with unit variance; diag(p (1 - p)), p = sigmoid(logits),
    for ``"bernoulli"``. With a key F is the mean of g g^T over ``samples`` draws of the label from the model's own
    prediction, g the gradient of its log-likelihood: batch number i takes the draws of ``fold_in(key, i)``, the same
    in every product, so that the operator is one matrix. Cost and memory are those of :func:`ggn_operator`. Raises
    ``ValueError`` for another likelihood or samples below 1.

    >>> fisher_operator(lambda w, x: x @ w, torch.zeros(2), torch.eye(2), likelihood="normal").dense()
    tensor([[0.5000, 0.0000],
            [0.0000, 0.5000]])
    """
    check_differentiable(params)
    check_likelihood(likelihood, samples)

    def product(v: Tree, number: int, *args: Any) -> Tree:
        draws = None if key is None else random.fold_in(key, number)
        return fisher_product(lambda p: model_fn(p, *args), (params,), (v,), likelihood, draws, samples)[1]

    return _mean_operator(product, params, Calls(batch, batches))


def empirical_fisher_operator(
    losses_fn: Callable, params: Tree, batch: Any = NO_BATCH, *, batches: Iterable | None = None
) -> LinearOperator:
    """The mean of g g^T over the gradients g of the samples' losses, symmetric and semidefinite.

    ``losses_fn(params, batch)`` gives one loss for each sample, (batch,). The labels are the data's: no Fisher
    information (Kunstner, Balles and Hennig, 2019). Cost and memory are those of :func:`ggn_operator`. Raises
    ``ValueError`` for losses of another rank.

    >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    >>> empirical_fisher_operator(lambda w, x: x @ w, torch.zeros(2), x).dense()
    tensor([[0.5000, 0.0000],
            [0.0000, 2.0000]])
    """
    check_differentiable(params)

    def product(v: Tree, number: int, *args: Any) -> Tree:
        return empirical_fisher_product(lambda p: losses_fn(p, *args), (params,), (v,))[1]

    return _mean_operator(product, params, Calls(batch, batches))


def _mean_operator(product: Callable, params: Tree, calls: "Calls") -> LinearOperator:
    total = sum(size for size, _ in calls)

    def mean(v: Tree) -> Tree:
        result = None
        for number, (size, args) in enumerate(calls):
            part = product(v, number, *args)
            part = part if size == total else _tree.scale(size / total, part)
            result = part if result is None else _tree.add(result, part)
        return result

    return LinearOperator(mean, params, symmetric=True)


class Calls:
    """The extra arguments of each call of the function, with the number of samples in them."""

    def __init__(self, batch: Any, batches: Iterable | None) -> None:
        if batches is None:
            self.batches = None
            self.single = [(1, () if batch is NO_BATCH else (batch,))]
            return
        if batch is not NO_BATCH:
            raise ValueError("give either one batch or batches=[...], not both")
        if iter(batches) is batches:
            raise ValueError(
                "batches is an iterator and can be read once, but every product reads it; write batches=list(batches)"
            )
        self.batches = batches
        if next(iter(self), None) is None:
            raise ValueError("batches is empty; an operator needs at least one batch")

    def __iter__(self) -> Any:
        if self.batches is None:
            return iter(self.single)
        return ((_batch_size(batch), (batch,)) for batch in self.batches)


def _batch_size(batch: Any) -> int:
    lengths = {path: leaf.shape[:1] for path, leaf in _tree.items(batch)}
    if len(set(lengths.values())) != 1 or () in lengths.values():
        raise ValueError(
            "the leaves of a batch must share their first axis, the samples, so that batches are weighted by their "
            f"sizes; got first axes { {path: tuple(length) for path, length in lengths.items()} }"
        )
    return next(iter(lengths.values()))[0]
