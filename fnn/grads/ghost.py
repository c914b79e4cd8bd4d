"""Per-sample gradients as products of two factors, from layer inputs and output gradients.

The gradient of one sample with respect to a matrix that a layer multiplies with is G^T A: G the gradient at
the layer's outputs and A the layer's inputs, both with one row per position (token, pixel). So its squared
norm is ``sum((G G^T) * (A A^T))`` (Goodfellow, 2015; Li et al., 2022, "ghost norm"), and the weighted sum
over samples is one product ``(w G)^T A`` over all positions of all samples (Bu et al., 2023, "book
keeping"): neither forms the gradient of a sample, and the second needs no further backward pass. A
parameter used several times has the rows of all its uses, so the cross terms between uses are counted.

How the factors are found: while the loss runs, a ``torch.overrides.TorchFunctionMode`` recognises the
leaves of ``params`` in calls of linear, convolution, embedding and matrix products, keeps the input, and
adds a zero, the tap, to the output; the derivative with respect to the tap is G. A leaf that is used in any
other way is differentiated per sample as it stands. For biases and the scales and shifts of normalisation
that is the cheap sum over positions already.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fnn import tree as _tree
from fnn.grads.base import scalar_valued
from fnn.grads.per_sample import as_batch_of_one, over_samples
from fnn.layers.base import samples_apart


class LeafPlan(NamedTuple):
    """How the per-sample gradient of one leaf is worked with, and why.

    ``method`` is "gram" (norms from Gram matrices of the factors), "direct" (the factors are multiplied out
    for ``chunk_size`` samples at a time, because that is cheaper) or "exact" (differentiated per sample).
    """

    method: str
    reason: str


class Use(NamedTuple):
    """One use of a leaf as the matrix of a layer."""

    leaf: int
    kind: str
    options: tuple
    shape: tuple[int, ...]  # of the layer's output
    dtype: torch.dtype
    device: torch.device


class Factor(NamedTuple):
    """Rows of positions: dense (samples, groups, positions, width), or one-hot by index (samples, positions)."""

    rows: Tensor
    one_hot: bool


# Recognising a leaf in a call: (place of the matrix, its input, options), or a reason why not


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple:
    return weight, input, "linear", ()


def _matmul(input: Tensor, other: Tensor) -> tuple:
    return other, input, "matmul", ()


def _conv(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> tuple:
    return weight, input, "conv", (stride, padding, dilation, groups)


def _embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> tuple:
    plain = max_norm is None and not scale_grad_by_freq
    return weight, input, "embedding" if plain else "", (padding_idx,)


def _getitem(input: Tensor, index: Any) -> tuple:
    rows = isinstance(index, Tensor) and index.dtype in (torch.int64, torch.int32)
    return input, index, "embedding" if rows else "", (None,)


_READERS = {
    F.linear: _linear,
    F.conv1d: _conv,
    F.conv2d: _conv,
    F.embedding: _embedding,
    torch.Tensor.__getitem__: _getitem,
    torch.Tensor.matmul: _matmul,
    torch.Tensor.__matmul__: _matmul,
    torch.matmul: _matmul,
}

_QUESTIONS = {"shape", "dtype", "device", "ndim", "size", "dim", "numel", "is_floating_point", "is_complex"}


class _Recorder(TorchFunctionMode):
    """Notes every use of the leaves; adds the taps to the outputs where they are given."""

    def __init__(self, leaves: dict[int, Tensor], taps: list[Tensor] | None = None):
        super().__init__()
        self.leaves = leaves
        self.taps = taps
        self.uses: list[Use] = []
        self.inputs: list[Tensor] = []
        self.others: dict[int, str] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        found = self._matrix(func, args, kwargs)
        for value in (*args, *kwargs.values()):
            for part in value if isinstance(value, (list, tuple)) else (value,):
                place = self._place(part)
                if place is not None and (found is None or place != found[0]):
                    self._note_other(place, part, func)
        if found is None:
            return out
        leaf, input, kind, options = found
        self.inputs.append(input)
        self.uses.append(Use(leaf, kind, options, tuple(out.shape), out.dtype, out.device))
        return out if self.taps is None else out + self.taps[len(self.uses) - 1]

    def _place(self, value: Any) -> int | None:
        if isinstance(value, Tensor):
            for i, leaf in self.leaves.items():
                if leaf is value:
                    return i
        return None

    def _matrix(self, func: Any, args: Any, kwargs: Any) -> tuple | None:
        reader = _READERS.get(func)
        if reader is None:
            return None
        weight, input, kind, options = reader(*args, **kwargs)
        place = self._place(weight)
        if place is None or not kind or self._place(input) is not None or not isinstance(input, Tensor):
            return None
        wide = weight.dim() == 2 if kind != "conv" else weight.dim() == input.dim() and weight.dim() in (3, 4)
        if not wide or (kind == "matmul" and input.dim() == 0):
            return None
        return place, input, kind, options

    def _note_other(self, place: int, leaf: Tensor, func: Any) -> None:
        name = getattr(func, "__name__", str(func))
        if name == "__get__":  # an attribute: x.shape asks a question, x.T is a use
            name = getattr(getattr(func, "__self__", None), "__name__", name)
        if name in _QUESTIONS:
            return
        if leaf.dim() < 2:
            self.others[place] = "a vector: its gradient is the sum over positions itself"
        else:
            self.others[place] = f"used by {name}, not only as the matrix of a linear, conv, embedding or matmul"


class Plan(NamedTuple):
    """What one run of the loss on one sample showed."""

    uses: list[Use]
    methods: list[LeafPlan]


def make_plan(loss: Callable, args: tuple, kwargs: dict, in_dims: tuple, batch_argnums: Any) -> Plan:
    """Run the loss on the first sample and decide on a method for each leaf of the first argument."""
    leaves = _tree.leaves(args[0])
    row = [arg if dim is None else _tree.map(lambda x: x[0], arg) for arg, dim in zip(args, in_dims, strict=True)]
    one = {name: value[0] for name, value in kwargs.items()}
    recorder = _Recorder(dict(enumerate(leaves)))
    one_loss = as_batch_of_one(loss, batch_argnums)
    with samples_apart(), recorder:
        one_loss(*row, **one)
    used = [use for use in recorder.uses if use.leaf not in recorder.others]
    methods = []
    for i, leaf in enumerate(leaves):
        if i in recorder.others:
            methods.append(LeafPlan("exact", recorder.others[i]))
        elif any(use.leaf == i for use in used):
            methods.append(_cheaper([use for use in used if use.leaf == i], leaf))
        else:
            methods.append(LeafPlan("exact", "not seen in any call of a torch function"))
    return Plan(used, methods)


def _cheaper(uses: list[Use], leaf: Tensor) -> LeafPlan:
    """Gram matrices cost positions^2 x widths, multiplying out costs positions x rows x columns."""
    positions = sum(_positions(use) for use in uses)
    rows, columns = leaf.shape[0], leaf[0].numel()
    one_hot = all(use.kind == "embedding" for use in uses)
    gram = positions * positions * (columns if one_hot else rows + columns)
    direct = (1 if one_hot else positions) * rows * columns
    kinds = ", ".join(sorted({use.kind for use in uses}))
    reason = f"{kinds}: {positions} positions, {gram} products by Gram matrices, {direct} multiplied out"
    return LeafPlan("gram" if gram <= direct else "direct", reason)


def _positions(use: Use) -> int:
    size = 1
    for length in use.shape:
        size *= length
    channels = use.shape[1] if use.kind == "conv" else use.shape[-1]
    return size // max(channels, 1)


class Gradients(NamedTuple):
    """The gradients of a chunk of samples, factored where the plan says so."""

    values: Tensor  # (samples,)
    leaves: list[Tensor]  # the leaves of params
    exact: dict[int, Tensor]  # leaf: (samples, *shape)
    factors: dict[int, list[tuple[Factor, Factor]]]  # leaf: (left, right) per use; the gradient is left^T right
    plan: Plan

    def square_norms(self) -> list[Tensor]:
        """For each leaf the squared norm of each sample's gradient, (samples,)."""
        norms = []
        for i, leaf in enumerate(self.leaves):
            if i in self.exact:
                norms.append(self.exact[i].flatten(1).square().sum(1))
            elif self.plan.methods[i].method == "direct":
                norms.append(_multiply_out(self.factors[i], leaf).flatten(1).square().sum(1))
            else:
                norms.append(_square_norm(self.factors[i]))
        return norms

    def weighted_sum(self, weights: list[Tensor]) -> list[Tensor]:
        """For each leaf the sum of the samples' gradients, each times its weight; weights: one (samples,) per leaf."""
        sums = []
        for i, leaf in enumerate(self.leaves):
            weight = weights[i].to(leaf.dtype)
            if i in self.exact:
                sums.append((weight @ self.exact[i].flatten(1)).reshape(leaf.shape))
            else:
                sums.append(sum(_weighted_product(weight, *pair, leaf) for pair in self.factors[i]))
        return sums


def factored(loss: Callable, plan: Plan, args: tuple, kwargs: dict, in_dims: tuple, batch_argnums: Any) -> Gradients:
    """Run the loss forward and backward once per sample (batched by ``vmap``), keeping factors."""
    params, *rest = args
    leaves = _tree.leaves(params)
    one_loss = scalar_valued(as_batch_of_one(loss, batch_argnums), "a per-sample gradient")
    exact = [i for i, leaf_plan in enumerate(plan.methods) if leaf_plan.method == "exact"]
    taps = [torch.zeros(use.shape, dtype=use.dtype, device=use.device) for use in plan.uses]

    def tapped(taps: list[Tensor], varied: list[Tensor], *rest: Any, **kwargs: Any) -> tuple:
        mine = list(leaves)
        for i, leaf in zip(exact, varied, strict=True):
            mine[i] = leaf
        recorder = _Recorder({use.leaf: leaves[use.leaf] for use in plan.uses}, taps)
        with recorder:
            value = one_loss(_tree.rebuild(params, mine), *rest, **kwargs)
        return value, (value, recorder.inputs)

    transformed = torch.func.grad(tapped, argnums=(0, 1), has_aux=True)
    mapped = over_samples(transformed, (None, None, *in_dims[1:]), None)
    (outputs, exacts), (values, inputs) = mapped(taps, [leaves[i] for i in exact], *rest, **kwargs)
    factors: dict[int, list[tuple[Factor, Factor]]] = {}
    for use, input, output in zip(plan.uses, inputs, outputs, strict=True):
        if use.leaf not in exact:
            factors.setdefault(use.leaf, []).append(_factors(use, input, output, leaves[use.leaf]))
    return Gradients(values, leaves, dict(zip(exact, exacts, strict=True)), factors, plan)


# The factors of each kind of layer; inputs and output gradients have a leading axis of samples


def _factors(use: Use, input: Tensor, output: Tensor, leaf: Tensor) -> tuple[Factor, Factor]:
    samples = output.shape[0]
    if use.kind == "conv":
        return _conv_factors(use, input, output, leaf)
    right = output.reshape(samples, 1, -1, output.shape[-1])
    if use.kind == "embedding":
        index = input.reshape(samples, -1).to(torch.int64)
        padding = use.options[0]
        if padding is not None:
            kept = index != padding % leaf.shape[0]
            right = right * kept[:, None, :, None].to(right.dtype)
        return Factor(index % leaf.shape[0], True), Factor(right, False)
    left = input.reshape(samples, 1, -1, input.shape[-1])
    if use.kind == "linear":
        left, right = right, left
    return Factor(left, False), Factor(right, False)


def _conv_factors(use: Use, input: Tensor, output: Tensor, leaf: Tensor) -> tuple[Factor, Factor]:
    """A convolution is a linear layer on the windows of its input: rows are output pixels, columns a window."""
    stride, padding, dilation, groups = use.options
    space = leaf.dim() - 2
    images = input.flatten(0, 1)  # samples and the batch of one
    if space == 1:  # a signal is an image of one row
        images, output = images.unsqueeze(-2), output.unsqueeze(-2)
    kernel = (1,) * (2 - space) + tuple(leaf.shape[2:])
    stride, dilation = _two(stride, space, 1), _two(dilation, space, 1)
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        margins = [total[1] // 2, total[1] - total[1] // 2, total[0] // 2, total[0] - total[0] // 2]
    else:
        up, side = (0, 0) if padding == "valid" else _two(padding, space, 0)
        margins = [side, side, up, up]
    windows = F.unfold(F.pad(images, margins), kernel, dilation, 0, stride)  # (samples, channels * window, positions)
    samples, _, positions = windows.shape
    columns = windows.reshape(samples, groups, -1, positions).transpose(2, 3)
    rows = output.reshape(samples, groups, -1, positions).transpose(2, 3)
    return Factor(rows, False), Factor(columns, False)


def _two(value: Any, space: int, missing: int) -> tuple[int, int]:
    values = (value,) * space if isinstance(value, int) else tuple(value)
    values = values * space if len(values) < space else values
    return (missing, values[0]) if space == 1 else (values[0], values[1])


# Products of factors


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
    weighted = right.rows * weight[:, None, None, None]
    columns = weighted.transpose(0, 1).flatten(1, 2)  # (groups, samples * positions, columns)
    if left.one_hot:
        zeros = columns.new_zeros(leaf.shape)
        return zeros.index_add(0, left.rows.flatten(), columns[0])
    rows = left.rows.transpose(0, 1).flatten(1, 2)
    return (rows.transpose(-1, -2) @ columns).reshape(leaf.shape)
