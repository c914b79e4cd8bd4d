"""Predictive variances of a network whose parameters are normally distributed around the given ones.

The linearised Laplace approximation (Immer, Korzepa and Bauer, 2021): with parameters drawn from N(params, S), the
linearised outputs of one sample have the covariance J S J^T, J their Jacobian. S is the inverse of a curvature matrix
and a prior precision, such as ``kfac(...).inverse(damping)``.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fnn._memory import own
from fnn.gradients.per_sample import as_batch_of_one, check_chunk_size, count_samples, over_samples
from fnn.jacobian.arguments import check_floating, differentiable_output
from fnn.jacobian.torch_rules import reverse_mode
from fnn.linalg.linear_operator import LinearOperator, as_operator, check_square
from fnn.linalg.vector_space import check_like
from fnn.tree import Tree


def predictive_covariance(
    model: Callable, params: Tree, batch: Any, covariance: LinearOperator, chunk_size: int | None = None
) -> Tensor:
    """J S J^T for each sample: (samples, m, m) for a ``model(params, batch)`` with outputs (samples, ...) of m numbers.

    ``covariance`` is S, an operator on trees like params. Each sample is shown to the model as a batch of one. Costs a
    forward pass, m backward passes and m products with S for each sample; memory ``chunk_size`` (default all) samples'
    activations and m trees like params for each. The variances are its diagonal, ``.diagonal(dim1=1, dim2=2)``. Raises
    ``ValueError`` for an operator that does not fit params, and for outputs that are not a tensor.

    >>> import fnn
    >>> from fnn.linalg import identity_operator
    >>> params = {"weight": torch.zeros(1, 2)}
    >>> model = lambda p, x: x @ p["weight"].T
    >>> predictive_covariance(model, params, torch.tensor([[1.0, 2.0], [3.0, 0.0]]), identity_operator(params))
    tensor([[[5.]],
    <BLANKLINE>
            [[9.]]])
    """
    name = "predictive_covariance"
    check_chunk_size(chunk_size)
    check_floating(params, "params", name)
    S = as_operator(covariance, name)
    check_square(S, name)
    check_like(S.input, params, "covariance.input", "params")
    count_samples((params, batch), (1,))
    of_one = differentiable_output(as_batch_of_one(model, (1,)), name)

    def of_sample(params: Tree, row: Any) -> Tensor:
        output, pullback, *_ = torch.func.vjp(lambda p: of_one(p, row), params)
        if not isinstance(output, Tensor):
            raise ValueError(f"{name} needs a model whose output is one tensor, got {type(output).__name__}")
        basis = torch.eye(output.numel(), dtype=output.dtype, device=output.device)
        pull = lambda u: S.domain.ravel(pullback(u.reshape(output.shape))[0])
        J = torch.func.vmap(pull)(basis).to(S.domain.wide_dtype)
        return J @ S.columns(J.T)

    mapped = over_samples(of_sample, (None, 0), chunk_size)
    return own(reverse_mode(lambda: mapped(params, batch), name), params, batch)
