"""Norms of per-sample gradients and sums of clipped ones, with a bounded number of gradients alive."""

from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from fnn import _torch
from fnn import tree as _tree
from fnn.gradients import ghost as _ghost
from fnn.gradients.per_sample import Argnums, as_numbers, check_chunk_size, count_samples, prepare
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
    :func:`fnn.gradients.per_sample_grad`. With ``per_leaf`` a tree like params of the norms of each leaf.

    ``method="exact"`` forms the gradients: ``chunk_size`` x parameters of memory. ``"ghost"`` takes the norms
    from layer inputs and output gradients, without forming a gradient: memory of ``chunk_size`` samples'
    activations, cost of one forward and one backward pass without the products that make weight gradients,
    and for each matrix the smaller of positions^2 (rows + columns) and positions x rows x columns per sample.
    Leaves which that cannot do are differentiated per sample; :func:`ghost_plan` says which and why. One
    limit: a loss that itself differentiates with respect to params hides uses from it; take "exact" there.
    ``"auto"`` is "ghost" where :func:`ghost_plan` finds a matrix, else "exact"; compiled before torch 2.15, where
    "ghost" is refused, it is "exact". Raises ``ValueError`` for another method, and what
    :func:`fnn.gradients.per_sample_grad` raises.

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
        leaves = [_root(torch.cat(pieces)) for pieces in zip(*squares, strict=True)]
        if per_leaf:
            return _tree.structure(args[0]).unflatten(leaves)
        return _root(_total([leaf.square() for leaf in leaves]))

    return norms_of


def clipped_grad(
    loss: Callable,
    max_norm: float | Tensor | Tree,
    chunk_size: int | None = None,
    method: Method = "auto",
    reduction: Literal["sum", "mean"] = "sum",
    per_leaf: bool = False,
    batch_argnums: Argnums = 1,
) -> Callable:
    """The sum (or mean) of the samples' gradients g_i, each clipped: sum_i w_i g_i min(1, max_norm / |g_i|).

    ``clipped_grad(loss, 1.0)(params, batch, *rest, key=None, weights=None)``: arguments as in
    :func:`fnn.gradients.per_sample_grad`; ``weights`` (samples,) multiplies each clipped gradient (0 for the
    padding of :func:`fnn.gradients.poisson_sample`). ``reduction="mean"`` divides by the number of rows. With
    ``per_leaf`` each leaf is clipped by its own norm, to ``max_norm`` or to its entry where that is a tree
    like params; the sum then changes by at most sqrt(sum of max_norm^2) when one sample is added.

    Never more than ``chunk_size`` samples' gradients (or, with "ghost", activations) are alive beside the
    sum. ``method`` as in :func:`per_sample_norms`; "ghost" takes the sum from the same layer inputs and
    output gradients, one product a layer, so that it costs less than two passes. Compiled, the chunks are
    written out one after the other: keep their number small. Raises ``ValueError`` for a ``max_norm`` that is
    not positive.

    >>> loss = lambda w, x: (w * x).sum()
    >>> clipped_grad(loss, 1.0)(torch.tensor([0.0]), torch.tensor([[0.5], [4.0]]))
    tensor([1.5000])
    """
    _check(chunk_size, method)
    if reduction not in ("sum", "mean"):
        raise ValueError(f"reduction is 'sum' or 'mean', got {reduction!r}")
    if isinstance(max_norm, (int, float)) and not max_norm > 0:
        raise ValueError(f"max_norm is the largest norm a gradient keeps, got {max_norm}; write a positive number")

    def clipped_grad_of(*args: Any, weights: Tensor | None = None, **kwargs: Any) -> Tree:
        count = count_samples(*(args[i] for i in as_numbers(batch_argnums) if i < len(args)))
        if weights is not None and tuple(weights.shape) != (count,):
            raise ValueError(f"weights has shape {tuple(weights.shape)}, expected one for each of {count} samples")
        limits = _limits(max_norm, args[0], per_leaf)
        total: list[Tensor] | None = None
        for chunk, rows in _chunks(loss, chunk_size, method, batch_argnums, args, kwargs):
            squares = chunk.square_norms()
            norms = [_root(square) for square in squares] if per_leaf else [_root(_total(squares))] * len(squares)
            factors = [_clip(norm, limit) for norm, limit in zip(norms, limits, strict=True)]
            if weights is not None:
                factors = [factor * weights[rows] for factor in factors]
            sums = chunk.weighted_sum(factors)
            total = sums if total is None else [a + b for a, b in zip(total, sums, strict=True)]
        assert total is not None
        leaves = [leaf / count for leaf in total] if reduction == "mean" else total
        return _tree.structure(args[0]).unflatten(leaves)

    return clipped_grad_of


def ghost_plan(loss: Callable, batch_argnums: Argnums = 1) -> Callable[..., dict[str, _ghost.LeafPlan]]:
    """For each leaf of params, by dotted path, how ``method="ghost"`` works with it and why.

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
        kwargs, in_dims = prepare(args, kwargs, (0,), batch_argnums)
        plan = _ghost.make_plan(loss, args, kwargs, in_dims, batch_argnums)
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
    |mean g_i|^2 - tr(C) / B, which may be negative where noise is all there is. Memory and cost are those of
    :func:`clipped_grad`. Raises ``ValueError`` for fewer than two samples.

    >>> loss = lambda w, x: (w * x).sum()
    >>> gradient_noise_scale(loss)(torch.tensor([0.0]), torch.tensor([[1.0], [3.0]])).trace
    tensor(2.)
    """
    _check(chunk_size, method)

    def scale_of(*args: Any, **kwargs: Any) -> NoiseScale:
        count = count_samples(*(args[i] for i in as_numbers(batch_argnums) if i < len(args)))
        if count < 2:
            raise ValueError("the noise scale compares samples and needs at least two, got one")
        total: list[Tensor] = []
        squares: list[Tensor] = []
        for chunk, _ in _chunks(loss, chunk_size, method, batch_argnums, args, kwargs):
            leaf_squares = chunk.square_norms()
            squares.append(_total(leaf_squares).sum())
            sums = chunk.weighted_sum([torch.ones_like(square) for square in leaf_squares])
            total = [a + b for a, b in zip(total, sums, strict=True)] if total else sums
        mean_square = _total(squares) / count
        square_mean = _total([(leaf / count).square().sum() for leaf in total])
        trace = (mean_square - square_mean) * (count / (count - 1))
        square_norm = square_mean - trace / count
        return NoiseScale(trace / square_norm, trace, square_norm)

    return scale_of


def _chunks(
    loss: Callable, chunk_size: int | None, method: Method, batch_argnums: Argnums, args: tuple, kwargs: dict
) -> Iterator[tuple[_ghost.Gradients, slice]]:
    """The gradients of one chunk of samples after the other, as they are needed."""
    kwargs, in_dims = prepare(args, kwargs, (0,), batch_argnums)
    numbers = as_numbers(batch_argnums)
    if 0 in numbers:
        raise ValueError("batch_argnums contains 0, the argument that is differentiated; put params first")
    count = count_samples(*(args[number] for number in numbers))
    if method == "auto" and torch.compiler.is_compiling() and not _torch.compiled_modes_see_all:
        method = "exact"
    if method == "exact":
        leaves = _tree.leaves(args[0])
        plan = _ghost.Plan([], [_ghost.LeafPlan("exact", "asked for")] * len(leaves))
    else:
        plan = _ghost.make_plan(loss, args, kwargs, in_dims, batch_argnums)
    for start in range(0, count, chunk_size or count):
        rows = slice(start, min(start + (chunk_size or count), count))
        part = tuple(
            _tree.map(lambda x: x[rows], arg) if i in numbers else arg  # noqa: B023 (used at once)
            for i, arg in enumerate(args)
        )
        keys = {name: value[rows] for name, value in kwargs.items()}
        yield _ghost.factored(loss, plan, part, keys, in_dims, batch_argnums), rows


def _root(square: Tensor) -> Tensor:
    zero = square == 0  # sqrt has an infinite slope at zero
    return torch.where(zero, 0.0, torch.where(zero, 1.0, square).sqrt())


def _total(pieces: list[Tensor]) -> Tensor:
    return sum(pieces[1:], pieces[0])


def _clip(norm: Tensor, limit: float | Tensor) -> Tensor:
    return torch.where(norm > limit, limit / norm, torch.ones_like(norm))


def _limits(max_norm: Any, params: Tree, per_leaf: bool) -> list:
    number = isinstance(max_norm, (int, float)) or (isinstance(max_norm, Tensor) and max_norm.dim() == 0)
    if number:
        return [max_norm] * len(_tree.leaves(params))
    if not per_leaf:
        raise ValueError("max_norm is a tree, one limit per leaf; write per_leaf=True with it, or one number")
    _tree.check_same_structure(max_norm, params, ("max_norm", "params"))
    return _tree.leaves(max_norm)


def _check(chunk_size: int | None, method: str) -> None:
    check_chunk_size(chunk_size)
    if method not in ("auto", "exact", "ghost"):
        raise ValueError(f"method is 'auto', 'exact' or 'ghost', got {method!r}")
