"""The neural tangent kernel of a model."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from fnn import tree as _tree
from fnn.jacobian.arguments import check_floating, check_not_empty
from fnn.jacobian.products import bounds
from fnn.linalg.vector_space import one_hot
from fnn.tree import Tree


def ntk(
    apply: Callable,
    params: Tree,
    x1: Tensor,
    x2: Tensor | None = None,
    mode: Literal["full", "trace", "diagonal"] = "full",
    method: Literal["contraction", "product"] = "contraction",
    chunk_size: int | None = None,
) -> Tensor:
    """J(x1) J(x2)^T, the empirical neural tangent kernel (Jacot, Gabriel and Hongler, 2018; Novak et al., 2022).

    J(x) is the Jacobian of ``apply(params, x)``, (batch, outputs), with respect to params, without any coupling
    between samples. x1: (n, ...), x2: (m, ...), x1 itself unless given -> ``"full"``: (n, m, outputs, outputs);
    ``"trace"`` over the outputs: (n, m); ``"diagonal"``, each output with itself: (n, m, outputs).

    ``"contraction"`` makes both Jacobians and multiplies them: (n + m) outputs backward passes of one sample, n m
    outputs^2 P multiplications and (n + m) outputs P numbers for P params. ``"product"`` applies J(x1) to one row of
    J(x2) after the other: m outputs forward passes of x1, ``chunk_size`` (default all) at once, memory chunk_size
    (P + activations); for large networks and few samples. Chunks of the contraction are samples of x2.
    Raises ``ValueError`` for another mode or method and for outputs that are not (batch, outputs), ``TypeError`` for
    complex or integer params and outputs.

    >>> x = torch.tensor([[1.0, 0.0], [1.0, 2.0]])
    >>> ntk(lambda w, x: x @ w[:, None], torch.zeros(2), x, mode="trace")
    tensor([[1., 1.],
            [1., 5.]])
    """
    check_floating(params, "params", "ntk")
    check_not_empty(params, "ntk")
    if mode not in _SUMS:
        raise ValueError(f"ntk: mode is one of {list(_SUMS)}, got {mode!r}")
    if method not in ("contraction", "product"):
        raise ValueError(f"ntk: method is 'contraction' or 'product', got {method!r}")
    return (_contraction if method == "contraction" else _product)(apply, params, x1, x2, mode, chunk_size)


_SUMS = {"full": "nap,mbp->nmab", "trace": "nap,map->nm", "diagonal": "nap,map->nma"}


def _contraction(
    apply: Callable, params: Tree, x1: Tensor, x2: Tensor | None, mode: str, chunk_size: int | None
) -> Tensor:
    def rows(x: Tensor) -> list[Tensor]:
        def one(sample: Tensor) -> Tree:
            output, pullback, *_ = torch.func.vjp(lambda p: _outputs(apply, p, sample[None])[0], params)
            return torch.func.vmap(pullback)(one_hot(output, 0, len(output)))[0]

        stacks = _tree.leaves(torch.func.vmap(one)(x))
        return [leaf.reshape(*leaf.shape[:2], leaf.shape[2:].numel()) for leaf in stacks]  # (batch, outputs, numbers)

    left = rows(x1)
    parts = []
    for start, stop in bounds(len(x1 if x2 is None else x2), chunk_size):
        right = [leaf[start:stop] for leaf in left] if x2 is None else rows(x2[start:stop])
        parts.append(sum(torch.einsum(_SUMS[mode], a, b) for a, b in zip(left, right, strict=True)))
    return torch.cat(parts, 1)


def _product(apply: Callable, params: Tree, x1: Tensor, x2: Tensor | None, mode: str, chunk_size: int | None) -> Tensor:
    x2 = x1 if x2 is None else x2
    output, pullback, *_ = torch.func.vjp(lambda p: _outputs(apply, p, x2), params)
    samples, outputs = output.shape

    def column(number: Tensor) -> Tensor:
        places = torch.arange(samples * outputs, device=output.device)
        row = pullback((places == number).to(output.dtype).reshape(output.shape))[0]
        pushed = torch.func.jvp(lambda p: _outputs(apply, p, x1), (params,), (row,))[1]  # (n, outputs)
        if mode == "full":
            return pushed
        return (pushed * (places[:outputs] == number % outputs)).sum(1)  # its own output alone

    numbers = torch.arange(samples * outputs, device=output.device)
    columns = torch.cat(
        [torch.func.vmap(column)(numbers[start:stop]) for start, stop in bounds(len(numbers), chunk_size)]
    ).unflatten(0, (samples, outputs))
    if mode == "full":
        return columns.permute(2, 0, 3, 1)  # (m, b, n, a) -> (n, m, a, b)
    return columns.sum(1).T if mode == "trace" else columns.permute(2, 0, 1)


def _outputs(apply: Callable, params: Tree, x: Tensor) -> Tensor:
    output = apply(params, x)
    if not isinstance(output, Tensor) or output.dim() != 2 or len(output) != len(x):
        given = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(
            f"ntk needs a model with outputs of shape ({len(x)}, outputs), got {given}; write "
            "lambda params, x: apply(params, x).flatten(1)"
        )
    check_floating(output, "the model's output", "ntk")
    return output
