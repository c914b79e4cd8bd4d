"""Layer inputs and output gradients of a network, one row per position, batch after batch."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fnn import random
from fnn import tree as _tree
from fnn._numerics import widen
from fnn.curvature.kronecker import Block
from fnn.curvature.operators import NO_BATCH, Calls
from fnn.curvature.products import check_likelihood, check_logits, drawn_gradients, output_root
from fnn.gradients.layer_capture import Record, Taps, record, zero_taps
from fnn.gradients.layer_rows import gradient_rows, input_rows
from fnn.gradients.per_sample import as_batch_of_one, check_chunk_size, count_samples, over_samples
from fnn.gradients.value_and_grad import check_differentiable
from fnn.jacobian.arguments import check_not_empty
from fnn.tree import Tree

KroneckerLikelihood = Literal["categorical", "normal", "bernoulli", "empirical"]


class LayerRows(NamedTuple):
    """One batch, by the dotted path of each layer's weight.

    ``inputs``: (samples, groups, positions, in), with a one appended where the layer has a bias. ``gradients`` runs
    over parts of the columns of a root of the Fisher information of the outputs, pulled back to the layers:
    (columns, samples, groups, positions, out). Both are float32 where params have 16 bits.
    """

    samples: int
    blocks: dict[str, Block]
    inputs: dict[str, Tensor]
    gradients: Iterator[dict[str, Tensor]]


class LayerSweep:
    """Iterates over the rows of all batches, anew each time; the arguments are those of :func:`fnn.curvature.kfac`."""

    def __init__(
        self,
        function: Callable,
        params: Tree,
        batch: Any,
        batches: Iterable | None,
        likelihood: KroneckerLikelihood,
        key: Tensor | None,
        draws: int,
        chunk_size: int | None,
    ) -> None:
        check_differentiable(params)
        check_not_empty(params, "kfac")
        check_likelihood(likelihood, draws, "empirical")
        check_chunk_size(chunk_size)
        if likelihood == "empirical" and key is not None:
            raise ValueError("the empirical Fisher takes the data's labels and draws none; leave key out")
        if batch is NO_BATCH and batches is None:
            raise ValueError("Kronecker factors are means over samples: give a batch, or batches=[...]")
        self.function = function
        self.params = params
        self.calls = Calls(batch, batches)
        self.likelihood: KroneckerLikelihood = likelihood
        self.key = key
        self.draws = draws
        self.chunk_size = chunk_size

    def __iter__(self) -> Iterator[LayerRows]:
        for number, (_, (batch,)) in enumerate(self.calls):
            key = None if self.key is None else random.fold_in(self.key, number)
            yield self._rows(batch, key)

    def _rows(self, batch: Any, key: Tensor | None) -> LayerRows:
        count = count_samples((self.params, batch), (1,))
        leaves, treedef = _tree.flatten(self.params)
        leaves = [leaf.view_as(leaf) for leaf in leaves]  # taps recognise leaves by identity
        recorded = record(self.function, (self.params, batch), {}, (None, 0), (1,))
        blocks = find_blocks(recorded, self.params)
        uses, paths = recorded.uses, treedef.paths

        def of_sample(taps: list[Tensor], row: Any) -> tuple[Tensor, list[Tensor]]:
            with Taps(dict(enumerate(leaves)), uses, taps) as listener:
                output = as_batch_of_one(self.function, (1,))(treedef.unflatten(leaves), row)
            return _check_output(output), listener.inputs

        mapped = over_samples(of_sample, (0, 0))
        output, pullback, *aux = torch.func.vjp(
            lambda taps: mapped(taps, batch), zero_taps(uses, (count,)), has_aux=True
        )
        inputs: dict[str, list[Tensor]] = {path: [] for path in blocks}
        for use, input in zip(uses, aux[0], strict=True):
            rows = widen(input_rows(use, input, leaves[use.leaf]))
            inputs[paths[use.leaf]].append(rows if use.bias is None else F.pad(rows, (0, 1), value=1.0))

        def gradients() -> Iterator[dict[str, Tensor]]:
            for cotangents in self._cotangents(output.flatten(0, 1), key):
                (pulled,) = torch.func.vmap(pullback)(cotangents.unsqueeze(2))
                rows: dict[str, list[Tensor]] = {path: [] for path in blocks}
                for use, gradient in zip(uses, pulled, strict=True):
                    part = widen(gradient_rows(use, gradient.flatten(0, 1)))  # columns count as further samples
                    rows[paths[use.leaf]].append(part.unflatten(0, (len(cotangents), count)))
                yield {path: torch.cat(parts, -2) for path, parts in rows.items()}

        joined = {path: torch.cat(parts, -2) for path, parts in inputs.items()}
        return LayerRows(count, blocks, joined, gradients())

    def _cotangents(self, output: Tensor, key: Tensor | None) -> Iterator[Tensor]:
        """Parts of the columns of R, where R R^T is the Fisher information of each output: (columns, *output.shape)."""
        if self.likelihood == "empirical":
            if output.dim() != 1:
                raise ValueError(
                    "likelihood='empirical' needs one loss for each sample, shape (batch,), got "
                    f"{tuple(output.shape)}; write reduction='none' in the loss"
                )
            yield torch.ones_like(output)[None]
            return
        check_logits(self.likelihood, output)
        if key is not None:
            drawn = drawn_gradients(self.likelihood, output, key, self.draws) / self.draws**0.5
            yield from drawn.split(self.chunk_size or self.draws)
            return
        columns = output[0].numel()
        basis = torch.eye(columns, dtype=output.dtype, device=output.device)
        for part in basis.split(self.chunk_size or columns):
            yield output_root(self.likelihood, output, part.reshape(-1, 1, *output.shape[1:]))


def find_blocks(recorded: Record, params: Tree) -> dict[str, Block]:
    """The block of each layer by the path of its weight. ``ValueError`` for a leaf that is in none, or in two."""
    treedef = _tree.structure(params)
    paths, brackets = treedef.paths, treedef.keystrs
    reasons = dict(recorded.others)
    blocks: dict[int, Block] = {}
    layer_of: dict[int, int] = {}
    for use in recorded.uses:
        groups = use.options[3] if use.kind == "conv" else 1
        block = Block(use.leaf, use.bias, use.kind == "matmul", groups)
        if use.kind == "embedding":
            reasons[use.leaf] = "the table of an embedding"
        elif blocks.setdefault(use.leaf, block) != block:
            reasons[use.leaf] = "used by layers with different biases, or both as W x and as x W"
        elif use.bias is not None and layer_of.setdefault(use.bias, use.leaf) != use.leaf:
            reasons[use.bias] = "the bias of two layers with different weights"
    for place in range(len(paths)):
        if place not in blocks and place not in layer_of:
            reasons.setdefault(place, "not used by the function")
    if reasons:
        place = min(reasons)
        left_out = [paths[place] for place in sorted(reasons)]
        raise ValueError(
            f"params{brackets[place]} is {reasons[place]}; Kronecker factors are those of weights and biases of linear "
            f"layers and convolutions. Leave it out: part, rest = fnn.tree.partition(params, lambda path: path not in "
            f"{left_out}), and give lambda part, batch: function(fnn.tree.combine(part, rest), batch) and part"
        )
    return {paths[place]: block for place, block in blocks.items()}


def _check_output(output: Any) -> Tensor:
    if not isinstance(output, Tensor) or output.shape[:1] != (1,):
        given = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(
            "Kronecker factors need a function whose output is a tensor with the samples as first axis; for a batch of "
            f"one it gave {given}"
        )
    return output
