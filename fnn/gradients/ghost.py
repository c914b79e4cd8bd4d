"""Per-sample gradients as products of two factors, from layer inputs and output gradients.

The gradient of one sample with respect to a matrix that a layer multiplies with is G^T A: G the gradient at
the layer's outputs and A the layer's inputs, both with one row per position (token, pixel). So its squared
norm is ``sum((G G^T) * (A A^T))`` (Goodfellow, 2015; Li et al., 2022, "ghost norm"), and the weighted sum
over samples is one product ``(w G)^T A`` over all positions of all samples (Bu et al., 2023, "book
keeping"): neither forms the gradient of a sample, and the second needs no further backward pass. A
parameter used several times has the rows of all its uses, so the cross terms between uses are counted.

The factors are found by taps (``fnn.gradients.layer_capture``). A leaf that is used in any other way is differentiated
per sample. For biases and the scales and shifts of normalisation this is already the cheap sum over positions.

16-bit factors and gradients are multiplied and summed in float32.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fnn import tree as _tree
from fnn._numerics import widen
from fnn.gradients.layer_capture import Taps, Use, record, zero_taps
from fnn.gradients.layer_rows import gradient_rows, input_rows
from fnn.gradients.per_sample import Call, as_batch_of_one, over_samples
from fnn.gradients.value_and_grad import scalar_valued


class LeafPlan(NamedTuple):
    """How the per-sample gradient of one leaf is computed, and why.

    ``method`` is "gram" (norms from Gram matrices of the factors), "direct" (the factors are multiplied out
    for ``chunk_size`` samples at a time, because that is cheaper) or "exact" (differentiated per sample).
    """

    method: str
    reason: str


class Factor(NamedTuple):
    """A row for each position: dense (samples, groups, positions, width), or one-hot by index (samples, positions)."""

    rows: Tensor
    one_hot: bool

    def to(self, dtype: torch.dtype) -> "Factor":
        return self if self.one_hot else Factor(self.rows.to(dtype), False)


class Plan(NamedTuple):
    """The uses of leaves as matrices that are factored, and the method for each leaf."""

    uses: list[Use]
    methods: list[LeafPlan]


def make_plan(loss: Callable, args: tuple, call: Call) -> Plan:
    """Run the loss on the first sample and decide on a method for each leaf of the first argument."""
    leaves = _tree.leaves(args[0])
    uses, others = record(loss, args, call.kwargs, call.in_dims, call.batches)
    biases = {use.bias for use in uses}
    methods = []
    for i, leaf in enumerate(leaves):
        own_uses = [use for use in uses if use.leaf == i]
        if leaf.dim() < 2 and (i in others or i in biases):
            methods.append(LeafPlan("exact", "a vector: its gradient is the sum over positions itself"))
        elif i in others:
            methods.append(LeafPlan("exact", others[i]))
        elif leaf.is_complex():
            methods.append(LeafPlan("exact", "complex numbers"))
        elif own_uses:
            methods.append(_gram_or_direct(own_uses, leaf))
        else:
            methods.append(LeafPlan("exact", "not used by the function"))
    return Plan([use for use in uses if methods[use.leaf].method != "exact"], methods)


def _gram_or_direct(uses: list[Use], leaf: Tensor) -> LeafPlan:
    """The cheaper method: Gram matrices cost positions^2 x widths, multiplying out positions x rows x columns."""
    positions = sum(_positions(use) for use in uses)
    rows, columns = leaf.shape[0], leaf[0].numel()
    one_hot = all(use.kind == "embedding" for use in uses)
    gram = positions * positions * (columns if one_hot else rows + columns)
    direct = (1 if one_hot else positions) * rows * columns
    kinds = ", ".join(sorted({use.kind for use in uses}))
    reason = f"{kinds}: {positions} positions, {gram} products by Gram matrices, {direct} multiplied out"
    return LeafPlan("gram" if gram <= direct else "direct", reason)


def _positions(use: Use) -> int:
    channels = use.shape[1] if use.kind == "conv" else use.shape[-1]
    return math.prod(use.shape) // max(channels, 1)


class Gradients(NamedTuple):
    """The gradients of a chunk of samples, factored where the plan says so."""

    leaves: list[Tensor]  # the leaves of params
    exact: dict[int, Tensor]  # leaf: (samples, *shape)
    factors: dict[int, list[tuple[Factor, Factor]]]  # leaf: (left, right) per use; the gradient is left^T right
    plan: Plan

    def to(self, dtype: torch.dtype) -> "Gradients":
        """The same gradients in another dtype."""
        factors = {i: [(left.to(dtype), right.to(dtype)) for left, right in pairs] for i, pairs in self.factors.items()}
        return self._replace(exact={i: leaf.to(dtype) for i, leaf in self.exact.items()}, factors=factors)

    def square_norms(self) -> list[Tensor]:
        """For each leaf the squared norm of each sample's gradient, (samples,)."""
        norms = []
        for i, leaf in enumerate(self.leaves):
            if i in self.exact:
                norms.append(_square(self.exact[i]))
            elif self.plan.methods[i].method == "direct":
                norms.append(_square(_multiply_out(self.factors[i], leaf)))
            else:
                norms.append(_square_norm(self.factors[i]))
        return norms

    def weighted_sum(self, weights: list[Tensor]) -> list[Tensor]:
        """For each leaf the sum of the samples' gradients, each times its weight; weights: one (samples,) per leaf.

        16-bit gradients are summed to float32.
        """
        sums = []
        for i, (leaf, weight) in enumerate(zip(self.leaves, weights, strict=True)):
            if i in self.exact:
                rows = _as_rows(self.exact[i])
                sums.append((weight.to(rows.dtype) @ rows).reshape(leaf.shape))
            else:
                sums.append(sum(_weighted_product(weight, *pair, leaf) for pair in self.factors[i]))
        return sums


def factored(loss: Callable, plan: Plan, args: tuple, call: Call) -> Gradients:
    """Run the loss forward and backward once per sample (batched by ``vmap``), keeping factors."""
    params, *rest = args
    leaves, treedef = _tree.flatten(params)
    # taps recognise leaves by identity, so each becomes an object that occurs nowhere else in params or the loss
    leaves = [leaf.view_as(leaf) for leaf in leaves]
    one_loss = scalar_valued(as_batch_of_one(loss, call.batches), "a per-sample gradient")
    exact = [i for i, leaf_plan in enumerate(plan.methods) if leaf_plan.method == "exact"]

    def tapped(varied: tuple[list[Tensor], list[Tensor]], *rest: Any, **kwargs: Any) -> tuple:
        taps, exact_leaves = varied
        given = list(leaves)
        for i, leaf in zip(exact, exact_leaves, strict=True):
            given[i] = leaf
        with Taps({use.leaf: leaves[use.leaf] for use in plan.uses}, plan.uses, taps) as listener:
            value = one_loss(treedef.unflatten(given), *rest, **kwargs)
        return value, listener.inputs

    mapped = over_samples(torch.func.grad(tapped, has_aux=True), (None, *call.in_dims[1:]))
    varied = zero_taps(plan.uses), [leaves[i] for i in exact]
    (outputs, exacts), inputs = mapped(varied, *rest, **call.kwargs)
    factors: dict[int, list[tuple[Factor, Factor]]] = {}
    for use, input, output in zip(plan.uses, inputs, outputs, strict=True):
        factors.setdefault(use.leaf, []).append(_factors(use, input, output, leaves[use.leaf]))
    return Gradients(leaves, dict(zip(exact, exacts, strict=True)), factors, plan)


# The factors of each kind of layer; inputs and output gradients have a leading axis of samples


def _factors(use: Use, input: Tensor, output: Tensor, leaf: Tensor) -> tuple[Factor, Factor]:
    rows = widen(gradient_rows(use, output))
    if use.kind == "embedding":
        index = input.reshape(input.shape[0], -1).to(torch.int64)
        padding = use.options[0]
        if padding is not None:
            kept = index != padding % leaf.shape[0]
            rows = rows * kept[:, None, :, None].to(rows.dtype)
        return Factor(index % leaf.shape[0], True), Factor(rows, False)
    columns = widen(input_rows(use, input, leaf))
    if use.kind == "matmul":
        rows, columns = columns, rows
    return Factor(rows, False), Factor(columns, False)


# Products of factors


def _as_rows(gradients: Tensor) -> Tensor:
    """The gradients of a leaf, one row for each sample: (samples, *shape) -> (samples, numbers), at least float32."""
    return widen(gradients).reshape(gradients.shape[0], math.prod(gradients.shape[1:]))


def _square(gradients: Tensor) -> Tensor:
    """The squared norm of each sample's gradient."""
    rows = _as_rows(gradients)
    return (rows.real.square() + rows.imag.square() if rows.is_complex() else rows.square()).sum(1)


def _gram(one: Factor, two: Factor) -> Tensor:
    """The inner products of all positions of one use with all of another, (samples, groups, positions, positions)."""
    if one.one_hot and two.one_hot:
        return (one.rows[:, None, :, None] == two.rows[:, None, None, :]).to(torch.get_default_dtype())
    if one.one_hot:
        return _gram(two, one).transpose(-1, -2)
    if two.one_hot:
        index = two.rows[:, None, None, :].expand(-1, -1, one.rows.shape[2], -1)
        return one.rows.gather(-1, index)
    if one.rows.shape[2] == two.rows.shape[2] == 1:
        return (one.rows * two.rows).sum(-1, keepdim=True)
    return one.rows @ two.rows.transpose(-1, -2)


def _square_norm(pairs: list[tuple[Factor, Factor]]) -> Tensor:
    total: Any = 0.0
    for i, (left, right) in enumerate(pairs):
        for other_left, other_right in pairs[: i + 1]:
            lefts, rights = _gram(left, other_left), _gram(right, other_right)
            product = (lefts.to(rights.dtype) * rights).flatten(1).sum(1)
            total = total + (product if other_left is left else 2.0 * product)
    return total.clamp(min=0.0)


def _multiply_out(pairs: list[tuple[Factor, Factor]], leaf: Tensor) -> Tensor:
    """The gradients themselves, (samples, *leaf.shape)."""
    total: Any = 0.0
    for left, right in pairs:
        samples = right.rows.shape[0]
        if left.one_hot:
            rows, columns = leaf.shape
            place = left.rows + rows * torch.arange(samples, device=left.rows.device)[:, None]
            zeros = right.rows.new_zeros(samples * rows, columns)
            total = total + zeros.index_add(0, place.flatten(), right.rows.reshape(-1, columns)).reshape(
                samples, rows, columns
            )
        else:
            total = total + (left.rows.transpose(-1, -2) @ right.rows).reshape(samples, *leaf.shape)
    return total


def _weighted_product(weight: Tensor, left: Factor, right: Factor, leaf: Tensor) -> Tensor:
    weighted = right.rows * weight.to(right.rows.dtype)[:, None, None, None]
    columns = weighted.transpose(0, 1).flatten(1, 2)  # (groups, samples * positions, columns)
    if left.one_hot:
        zeros = columns.new_zeros(leaf.shape)
        return zeros.index_add(0, left.rows.flatten(), columns[0])
    rows = left.rows.transpose(0, 1).flatten(1, 2)
    return (rows.to(columns.dtype).transpose(-1, -2) @ columns).reshape(leaf.shape)
