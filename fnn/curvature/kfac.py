"""Kronecker-factored curvature: KFAC and EKFAC of any pure function made of linear layers and convolutions.

The gradient of one sample with respect to a layer's joint matrix [weight, bias] is the sum over positions (tokens,
pixels) of g a^T: a the layer's input with a one appended, g the gradient at its output. KFAC (Martens and Grosse,
2015; for convolutions Grosse and Martens, 2016) takes a and g for independent, so that the layer's block of the
Fisher information is B kron A with

    A = mean of a a^T over samples and positions,  B = mean over samples of the sum over positions of g g^T,

which for positions is KFAC-expand (Eschenhagen et al., 2023). KFAC-reduce takes the sum over positions of g a^T for
(sum of g) (mean of a)^T, and these two for independent:

    A = mean over samples of abar abar^T,  B = mean over samples of gsum gsum^T.

EKFAC (George et al., 2018) keeps the eigenvectors of
A and B and takes the true second moments of the gradient along them for eigenvalues.
"""

from collections.abc import Callable, Iterable
from typing import Any, Literal

from torch import Tensor

from fnn.curvature.kronecker import Block, KroneckerEigen, KroneckerFactors, KroneckerOperator
from fnn.curvature.layer_factors import KroneckerLikelihood, LayerSweep
from fnn.curvature.operators import NO_BATCH
from fnn.tree import Tree

WeightSharing = Literal["expand", "reduce"]


def kfac(
    function: Callable,
    params: Tree,
    batch: Any = NO_BATCH,
    *,
    batches: Iterable | None = None,
    likelihood: KroneckerLikelihood = "categorical",
    key: Tensor | None = None,
    draws: int = 1,
    chunk_size: int | None = None,
    weight_sharing: WeightSharing = "expand",
) -> KroneckerOperator:
    """The KFAC approximation of :func:`fisher_operator`, with the same arguments and the same scale.

    ``function(params, batch)`` gives the outputs (batch, ...) of the samples, which are the first axis of every leaf
    of the batch; ``likelihood`` as in :func:`fisher_operator`, exact without a key, and with one by ``draws`` draws
    of the label, the same ones. ``"empirical"`` stands for :func:`empirical_fisher_operator`: the function gives
    the losses (batch,) of the samples. ``batches`` are weighted by their sizes; each is read once.

    Layers are found in calls of ``linear``, ``conv1d``, ``conv2d`` and ``x @ weight`` with leaves of params, in any
    function. A weight and its bias are one block; a matrix used several times has the positions of all its uses; a
    grouped convolution has factors for each group. Exact for one sample and for a linear network with squared error,
    where a layer has one position. Where it has several, ``weight_sharing="expand"`` treats each as a sample of its
    own, which is exact for such networks where each position has an output of its own, as in a language model;
    ``"reduce"`` sums gradients and averages inputs over positions first, which is exact where the output is of their
    mean, as in a classifier with pooling (the two settings of Eschenhagen et al., 2023).

    Costs a forward pass and one backward pass for each number in a sample's output, or each draw, or one if
    empirical; ``chunk_size`` of them at once (default all), so the memory is that of ``chunk_size`` backward passes
    and of the activations, for a convolution those of every window. The factors take in^2 + out^2 numbers a layer.

    Raises ``ValueError`` naming the path of a leaf that is neither weight nor bias of such a layer (embeddings, the
    scales of normalisation) or is used in two ways, with the line that leaves it out: part, rest =
    fnn.tree.partition(params, ...); for samples that see each other (BatchNorm in training mode); and what
    :func:`fisher_operator` raises.

    >>> import torch, fnn
    >>> model = fnn.models.lenet()
    >>> params, x = model.init(fnn.random.key(0)), torch.ones(4, 1, 32, 32)
    >>> K = kfac(model.apply, params, x, key=fnn.random.key(1))
    >>> K
    <symmetric KroneckerOperator 81194 x 81194, torch.float32>
    >>> K.factors["conv1.weight"].input.shape, K.factors["conv1.weight"].output.shape
    (torch.Size([10, 10]), torch.Size([6, 6]))
    >>> list((K.inverse(1e-3) @ params)["conv1"])
    ['weight', 'bias']
    """
    return _kfac(LayerSweep(function, params, batch, batches, likelihood, key, draws, chunk_size), weight_sharing)


def ekfac(
    function: Callable,
    params: Tree,
    batch: Any = NO_BATCH,
    *,
    batches: Iterable | None = None,
    likelihood: KroneckerLikelihood = "categorical",
    key: Tensor | None = None,
    draws: int = 1,
    chunk_size: int | None = None,
    weight_sharing: WeightSharing = "expand",
) -> KroneckerOperator:
    """The EKFAC approximation of :func:`fisher_operator` (George et al., 2018): :func:`kfac` with true eigenvalues.

    Each block is diagonal in the eigenvectors of KFAC's factors, and its diagonal there is that of the Fisher
    information itself: of all matrices diagonal in that basis the nearest in the Frobenius norm, so never further
    away than KFAC. Arguments and errors are those of :func:`kfac`. Reads the batches twice and costs twice as much,
    and an eigendecomposition of the factors; a layer with positions takes ``chunk_size`` x samples gradients of its
    weight for memory. The factors hold in^2 + out^2 + in out numbers a layer.

    >>> import torch, fnn
    >>> model = fnn.models.mlp(2, 4, 3)
    >>> params, x = model.init(fnn.random.key(0)), fnn.random.normal(fnn.random.key(1), (8, 2))
    >>> ekfac(model.apply, params, x).factors["0.weight"].eigenvalues.shape
    torch.Size([4, 3])
    """
    return _ekfac(LayerSweep(function, params, batch, batches, likelihood, key, draws, chunk_size), weight_sharing)


def _kfac(sweep: LayerSweep, weight_sharing: WeightSharing) -> KroneckerOperator:
    if weight_sharing not in ("expand", "reduce"):
        raise ValueError(f"weight_sharing is 'expand' or 'reduce', got {weight_sharing!r}")
    reduce = weight_sharing == "reduce"
    blocks: dict[str, Block] = {}
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    positions: dict[str, int] = {}
    count = 0
    for seen in sweep:
        blocks, count = seen.blocks, count + seen.samples
        for path, rows in seen.inputs.items():
            rows = rows.mean(2, keepdim=True) if reduce else rows
            positions[path] = positions.get(path, 0) + rows.shape[0] * rows.shape[2]
            _add(inputs, path, _gram(rows))
        for gradients in seen.gradients:
            for path, rows in gradients.items():
                rows = rows.sum(3, keepdim=True) if reduce else rows
                _add(outputs, path, _gram(rows.flatten(0, 1)))
    factors = {path: KroneckerFactors(inputs[path] / positions[path], outputs[path] / count) for path in blocks}
    return KroneckerOperator(sweep.params, blocks, factors)


def _ekfac(sweep: LayerSweep, weight_sharing: WeightSharing) -> KroneckerOperator:
    kronecker = _kfac(sweep, weight_sharing).decomposed()
    bases = kronecker.factors
    squares: dict[str, Tensor] = {}
    count = 0
    for seen in sweep:
        count += seen.samples
        inputs = {path: rows @ bases[path].input for path, rows in seen.inputs.items()}
        for gradients in seen.gradients:
            for path, rows in gradients.items():
                _add(squares, path, _second_moments(rows @ bases[path].output, inputs[path]))
    return kronecker.with_factors(
        {path: KroneckerEigen(basis.input, basis.output, squares[path] / count) for path, basis in bases.items()}
    )


def _gram(rows: Tensor) -> Tensor:
    """The sum of r r^T over samples and positions: (samples, groups, positions, width) -> (groups, width, width).

    The axis of groups is left out where there is only one.
    """
    joined = rows.transpose(0, 1).flatten(1, 2)
    gram = joined.mT @ joined
    return gram[0] if len(gram) == 1 else gram


def _second_moments(gradients: Tensor, inputs: Tensor) -> Tensor:
    """The sum over columns and samples of the squared entries of the samples' gradients: (groups, out, in)."""
    if inputs.shape[2] == 1:  # with one position, the square of the product is the product of squares
        outer = gradients.square().sum(0)[:, :, 0].transpose(0, 1)  # (groups, samples, out)
        moments = outer.mT @ inputs[:, :, 0].square().transpose(0, 1)
    else:
        moments = (gradients.mT @ inputs).square().sum((0, 1))
    return moments[0] if len(moments) == 1 else moments


def _add(totals: dict[str, Tensor], path: str, value: Tensor) -> None:
    totals[path] = totals[path] + value if path in totals else value
