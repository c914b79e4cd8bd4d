"""Diagonals of curvature matrices, one for each sample."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fnn import tree as _tree
from fnn._memory import own
from fnn._numerics import widen
from fnn.curvature.dense import ggn_diagonal
from fnn.curvature.products import Likelihood, check_likelihood, check_logits, drawn_gradients, output_root
from fnn.gradients.per_sample import as_batch_of_one, check_chunk_size, count_samples, over_samples
from fnn.jacobian.arguments import check_primals, differentiable_output
from fnn.jacobian.torch_rules import reverse_mode
from fnn.tree import Tree


def per_sample_ggn_diagonal(model: Callable, loss: Callable, chunk_size: int | None = None) -> Callable:
    """The function ``(params, batch)`` that returns the diagonal of each sample's Gauss-Newton matrix.

    It is a tree like params with a leading axis of samples. The functions ``model(params, batch)`` and
    ``loss(output, batch)`` are those that :func:`ggn_diagonal` takes; each sample is shown to them as a batch of one.
    Where the loss is a mean over independent samples, the mean of the result is :func:`ggn_diagonal` of the batch.
    Costs about 4 m calls for m numbers in a sample's output; memory samples x parameters for the result, and for the
    work ``chunk_size`` (default all) samples' m gradients. Raises what :func:`ggn_diagonal` raises, and ``ValueError``
    for leaves that disagree about the number of samples.

    >>> x = torch.tensor([[1.0, 0.0], [1.0, 2.0]])
    >>> per_sample_ggn_diagonal(lambda w, x: x @ w, lambda out, x: (out**2).mean())(torch.zeros(2), x)
    tensor([[2., 0.],
            [2., 8.]])
    """
    check_chunk_size(chunk_size)

    def diagonals_of(params: Tree, batch: Any) -> Tree:
        check_primals((params,), "per_sample_ggn_diagonal")
        count_samples((params, batch), (1,))
        of_one = as_batch_of_one(ggn_diagonal(model, loss), (1,))
        return own(over_samples(of_one, (None, 0), chunk_size)(params, batch), params, batch)

    return diagonals_of


def per_sample_fisher_diagonal(
    model: Callable,
    likelihood: Likelihood = "categorical",
    key: Tensor | None = None,
    draws: int = 1,
    chunk_size: int | None = None,
) -> Callable:
    """The function ``(params, batch)`` that returns the diagonal of each sample's Fisher information.

    It is a tree like params with a leading axis of samples, whose mean is the diagonal of :func:`fisher_operator`.
    ``model(params, batch)`` gives outputs (samples, ...); each sample is shown to it as a batch of one. ``likelihood``
    is "categorical", "normal" or "bernoulli", as in :func:`fisher_product`. Without a key the result is exact: the sum
    of the squared gradients along the columns of a root of the output's Fisher information, m backward passes for m
    numbers in an output. With a key it is the mean of the squared gradients of the log-likelihood over ``draws`` draws
    of the label, those of :func:`fisher_product`: unbiased, and ``draws`` backward passes. Two forward passes; memory
    samples x parameters for the result, and for the work ``chunk_size`` (default all) samples' gradients, m or
    ``draws`` for each. Raises what :func:`fisher_product` raises, and ``ValueError`` for leaves that disagree about the
    number of samples.

    >>> x = torch.tensor([[1.0, 0.0], [1.0, 2.0]])
    >>> per_sample_fisher_diagonal(lambda w, x: x @ w, "normal")(torch.zeros(2), x)
    tensor([[1., 0.],
            [1., 4.]])
    """
    check_chunk_size(chunk_size)
    check_likelihood(likelihood, draws)
    name = "per_sample_fisher_diagonal"

    def of_sample(params: Tree, row: Any, cotangents: Tensor) -> Tree:
        _, pullback, *_ = torch.func.vjp(lambda p: as_batch_of_one(model, (1,))(p, row), params)
        gradients = torch.func.vmap(lambda u: pullback(u)[0])(cotangents.unsqueeze(1))
        return _tree.map(lambda leaf: widen(leaf).square().sum(0).to(leaf.dtype), gradients)

    def diagonals_of(params: Tree, batch: Any) -> Tree:
        check_primals((params,), name)
        count_samples((params, batch), (1,))
        of_one = as_batch_of_one(differentiable_output(model, name), (1,))
        output = over_samples(of_one, (None, 0), chunk_size)(params, batch)
        if isinstance(output, Tensor):
            if output.shape[1:2] != (1,):
                raise ValueError(
                    f"{name} needs a model whose output has the samples as first axis; for a batch of one it gave "
                    f"shape {tuple(output.shape[1:])}"
                )
            output = output.flatten(0, 1)
        check_logits(likelihood, output)
        if key is None:
            basis = torch.eye(output[0].numel(), dtype=output.dtype, device=output.device)
            cotangents = output_root(likelihood, output, basis.reshape(-1, 1, *output.shape[1:]))
        else:
            cotangents = drawn_gradients(likelihood, output, key, draws) / draws**0.5
        mapped = over_samples(of_sample, (None, 0, 0), chunk_size)
        diagonals = reverse_mode(lambda: mapped(params, batch, cotangents.movedim(1, 0)), name)
        return own(diagonals, params, batch)

    return diagonals_of
