"""Norms of per-sample gradients and sums of clipped ones, with a bounded number of gradients alive."""

import numbers
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from fnn import tree as _tree
from fnn._argnums import Argnums, positions
from fnn._numerics import safe_sqrt, widen
from fnn.gradients import ghost as _ghost
from fnn.gradients.per_sample import (
    Call,
    check_chunk_size,
    check_params_are_shared,
    chunks,
    count_samples,
    prepare,
    take_rows,
)
from fnn.tree import Tree

Method = Literal["auto", "exact", "ghost"]


def per_sample_norms(
    loss: Callable,
    chunk_size: int | None = None,
    method: Method = "auto",
    per_leaf: bool = False,
    batch_argnums: Argnums = 1,
) -> Callable:
    """The Euclidean norm of each sample's gradient with respect to the first argument, (samples,).

    ``per_sample_norms(loss)(params, batch, *rest, key=None)``, arguments as in
    :func:`fnn.per_sample_grad`. With ``per_leaf`` a tree like params of the norms of each leaf.

    ``method="exact"`` forms the gradients: ``chunk_size`` x parameters of memory. ``"ghost"`` takes the norms
    from layer inputs and output gradients, without forming a gradient: memory of ``chunk_size`` samples'
    activations, cost of one forward and one backward pass without the products that make weight gradients,
    and for each matrix the smaller of positions^2 (rows + columns) and positions x rows x columns per sample.
    Leaves that are used in any other way, wherever that is in the loss, are differentiated per sample as with
    "exact"; :func:`ghost_plan` says which and why. ``"auto"`` is "ghost". The norms of 16-bit gradients are summed, and
    returned, in float32. Raises ``ValueError`` for another method, and what :func:`fnn.per_sample_grad` raises.

    >>> import fnn
    >>> model = fnn.models.mlp(4, 8, 3)
    >>> params, x = model.init(fnn.random.key(0)), fnn.random.normal(fnn.random.key(1), (5, 4))
    >>> loss = lambda params, x: fnn.losses.cross_entropy(model.apply(params, x), torch.zeros(len(x), dtype=int))
    >>> per_sample_norms(loss)(params, x).shape
    torch.Size([5])
    """
    _check(chunk_size, method)

    def norms_of(*args: Any, **kwargs: Any) -> Tree:
        squares: list[list[Tensor]] = [
            chunk.square_norms() for chunk, _ in _chunks(loss, chunk_size, method, batch_argnums, args, kwargs)
        ]
        leaves = [torch.cat(pieces) for pieces in zip(*squares, strict=True)]
        if per_leaf:
            return _tree.structure(args[0]).unflatten([safe_sqrt(leaf) for leaf in leaves])
        return safe_sqrt(_total(leaves))

    return norms_of


def clipped_grad(
    loss: Callable,
    max_norm: float | Tensor | Tree,
    chunk_size: int | None = None,
    method: Method = "auto",
    reduction: Literal["sum", "mean"] = "sum",
    per_leaf: bool = False,
    batch_argnums: Argnums = 1,
    return_norms: bool = False,
) -> Callable:
    """The sum (or mean) of the samples' gradients g_i, each clipped: sum_i w_i g_i min(1, max_norm / |g_i|).

    ``clipped_grad(loss, 1.0)(params, batch, *rest, key=None, weights=None)``: arguments as in
    :func:`fnn.per_sample_grad`; ``weights`` (samples,) multiplies each clipped gradient (0 for the
    padding of :func:`fnn.gradients.poisson_sample`). ``reduction="mean"`` divides by the number of rows. With
    ``per_leaf`` each leaf is clipped by its own norm, to ``max_norm`` or to its entry where that is a tree
    like params; the sum then changes by at most sqrt(sum of max_norm^2) when one sample is added. With ``return_norms``
    the result is ``(grads, norms)``, the norms those of :func:`fnn.gradients.per_sample_norms` at no further cost.

    At most ``chunk_size`` samples' gradients (or, with "ghost", activations) are alive at a time beside the
    sum. ``method`` as in :func:`per_sample_norms`; "ghost" takes the sum from the same layer inputs and
    output gradients, one product a layer, so that it costs less than two passes. Compiled, the chunks are
    written out one after the other: keep their number small. Norms and sums of 16-bit gradients are taken in
    float32; the result has the dtypes of params. Raises ``ValueError`` for a ``max_norm`` that is not positive; one
    given as a tensor, whose value is not looked at, gives zeros where it is negative.

    >>> loss = lambda w, x: (w * x).sum()
    >>> clipped_grad(loss, 1.0)(torch.tensor([0.0]), torch.tensor([[0.5], [4.0]]))
    tensor([1.5000])
    """
    _check(chunk_size, method)
    if reduction not in ("sum", "mean"):
        raise ValueError(f"reduction is 'sum' or 'mean', got {reduction!r}")
    if callable(max_norm):
        raise TypeError("max_norm is a number, or a tree like params of numbers, got a function")
    for limit in _tree.leaves(max_norm):
        if isinstance(limit, numbers.Real) and not float(limit) > 0:
            raise ValueError(f"max_norm is the largest norm a gradient keeps, got {limit}; write a positive number")

    def clipped_grad_of(*args: Any, weights: Tensor | None = None, **kwargs: Any) -> Tree:
        count = count_samples(args, positions(batch_argnums, len(args), "batch_argnums"))
        if weights is not None and tuple(weights.shape) != (count,):
            raise ValueError(f"weights has shape {tuple(weights.shape)}, expected one for each of {count} samples")
        leaves, treedef = _tree.flatten(args[0])
        limits = _limits(max_norm, args[0], per_leaf)
        total: list[Tensor] | None = None
        all_norms: list[list[Tensor]] = []
        for chunk, rows in _chunks(loss, chunk_size, method, batch_argnums, args, kwargs):
            squares = chunk.square_norms()
            norms = [safe_sqrt(s) for s in squares] if per_leaf else [safe_sqrt(_total(squares))] * len(squares)
            factors = [_clip(norm, limit) for norm, limit in zip(norms, limits, strict=True)]
            if weights is not None:
                factors = [factor * weights[rows] for factor in factors]
            all_norms.append(norms if per_leaf else norms[:1])
            sums = chunk.weighted_sum(factors)
            total = sums if total is None else [a + b for a, b in zip(total, sums, strict=True)]
        assert total is not None
        if reduction == "mean":
            total = [leaf / count for leaf in total]
        grads = treedef.unflatten([leaf.to(like.dtype) for leaf, like in zip(total, leaves, strict=True)])
        if not return_norms:
            return grads
        joined = [torch.cat(pieces) for pieces in zip(*all_norms, strict=True)]
        return grads, treedef.unflatten(joined) if per_leaf else joined[0]

    return clipped_grad_of


def ghost_plan(loss: Callable, batch_argnums: Argnums = 1) -> Callable[..., dict[str, _ghost.LeafPlan]]:
    """For each leaf of params, by dotted path, which method ``method="ghost"`` uses for it and why.

    ``ghost_plan(loss)(params, batch, *rest, key=None)``; runs the loss forward on one sample.

    >>> import fnn
    >>> model = fnn.models.mlp(4, 8, 3)
    >>> loss = lambda params, x: model.apply(params, x).sum()
    >>> plan = ghost_plan(loss)(model.init(fnn.random.key(0)), torch.ones(2, 4))
    >>> plan["0.weight"].method, plan["0.bias"].method
    ('gram', 'exact')
    >>> plan["0.bias"].reason
    'a vector: its gradient is the sum over positions itself'
    """

    def plan_of(*args: Any, **kwargs: Any) -> dict[str, _ghost.LeafPlan]:
        plan = _ghost.make_plan(loss, args, _prepare(args, kwargs, batch_argnums))
        return dict(zip(_tree.paths(args[0]), plan.methods, strict=True))

    return plan_of


class NoiseScale(NamedTuple):
    """The simple noise scale of a batch: ``scale`` = ``trace`` / ``square_norm`` (McCandlish et al., 2018)."""

    scale: Tensor
    trace: Tensor
    square_norm: Tensor


def gradient_noise_scale(
    loss: Callable, chunk_size: int | None = None, method: Method = "auto", batch_argnums: Argnums = 1
) -> Callable[..., NoiseScale]:
    """How large a batch must be for its gradient to be as large as its noise: tr(C) / |g|^2, in samples.

    ``gradient_noise_scale(loss)(params, batch, *rest, key=None)``; McCandlish et al. (2018), "An empirical
    model of large-batch training". C is the covariance of per-sample gradients and g their expectation, both
    by the unbiased estimates from the B samples: tr(C) = (mean |g_i|^2 - |mean g_i|^2) B / (B - 1) and |g|^2 =
    |mean g_i|^2 - tr(C) / B, which may be negative where the noise dominates. Both are differences of large numbers
    where the noise is small, so all sums are taken in float64. Memory and cost are those of :func:`clipped_grad`, in
    float64. Raises ``ValueError`` for fewer than two samples.

    >>> loss = lambda w, x: (w * x).sum()
    >>> gradient_noise_scale(loss)(torch.tensor([0.0]), torch.tensor([[1.0], [3.0]])).trace
    tensor(2.)
    """
    _check(chunk_size, method)

    def scale_of(*args: Any, **kwargs: Any) -> NoiseScale:
        count = count_samples(args, positions(batch_argnums, len(args), "batch_argnums"))
        if count < 2:
            raise ValueError("the noise scale compares samples and needs at least two, got one")
        total: list[Tensor] | None = None
        squares: list[Tensor] = []
        for chunk, _ in _chunks(loss, chunk_size, method, batch_argnums, args, kwargs):
            wide = chunk.to(torch.float64)
            leaf_squares = wide.square_norms()
            squares.append(_total(leaf_squares).sum())
            sums = wide.weighted_sum([torch.ones_like(square) for square in leaf_squares])
            total = [a + b for a, b in zip(total, sums, strict=True)] if total else sums
        mean_square = _total(squares) / count
        square_mean = _total([((leaf / count).abs() ** 2).sum() for leaf in total or []])
        trace = (mean_square - square_mean) * (count / (count - 1))
        square_norm = square_mean - trace / count
        dtype = widen(torch.zeros((), dtype=_tree.result_type(args[0]), device=trace.device)).abs().dtype
        return NoiseScale(*(x.to(dtype) for x in (trace / square_norm, trace, square_norm)))

    return scale_of


def _prepare(args: tuple, kwargs: dict, batch_argnums: Argnums) -> Call:
    call = prepare(args, kwargs, 0, batch_argnums)
    check_params_are_shared(call.batches)
    if not _tree.leaves(args[0]):
        raise ValueError(f"params has no leaves, only {args[0]!r}, so the samples have no gradients with a norm")
    return call


def _chunks(
    loss: Callable, chunk_size: int | None, method: Method, batch_argnums: Argnums, args: tuple, kwargs: dict
) -> Iterator[tuple[_ghost.Gradients, slice]]:
    """The gradients of the samples, one chunk at a time, with the rows of each chunk."""
    call = _prepare(args, kwargs, batch_argnums)
    if method == "exact":
        plan = _ghost.Plan([], [_ghost.LeafPlan("exact", "asked for") for _ in _tree.leaves(args[0])])
    else:
        plan = _ghost.make_plan(loss, args, call)
    for rows in chunks(call.count, chunk_size):
        keys = {name: value[rows] for name, value in call.kwargs.items()}
        part = take_rows(args, call.batches, rows)
        yield _ghost.factored(loss, plan, part, call._replace(kwargs=keys)), rows


def _total(pieces: list[Tensor]) -> Tensor:
    return sum(pieces[1:], pieces[0])


def _clip(norm: Tensor, limit: float | Tensor) -> Tensor:
    """The factor min(1, limit / norm) of a clipped gradient; nan where the norm or the limit is nan."""
    if isinstance(limit, Tensor):
        limit = limit.to(norm.dtype).clamp(min=0)
    unclipped = norm <= limit
    return torch.where(unclipped, 1.0, limit / norm.masked_fill(unclipped, 1.0))


def _limits(max_norm: Any, params: Tree, per_leaf: bool) -> list:
    treedef = _tree.structure(params)
    if isinstance(max_norm, numbers.Real) or (isinstance(max_norm, Tensor) and max_norm.dim() == 0):
        return [max_norm] * treedef.num_leaves
    if not per_leaf:
        raise ValueError("max_norm is a tree, one limit per leaf; write per_leaf=True with it, or one number")
    return treedef.flatten_up_to(max_norm, ("params", "max_norm"))


def _check(chunk_size: int | None, method: str) -> None:
    check_chunk_size(chunk_size)
    if method not in ("auto", "exact", "ghost"):
        raise ValueError(f"method is 'auto', 'exact' or 'ghost', got {method!r}")
