"""Means over a data set, taken sample by sample."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from fnn import tree as _tree
from fnn.data.batches import Stream, batches
from fnn.layers.base import Layer, StatefulLayer, as_size
from fnn.tree import Tree

Metrics = Callable[[Tree, Any], Mapping[str, Any]]


def evaluate(metrics: Metrics, params: Tree, data: Tree | Stream | Iterator[Tree], batch_size: int = 1000) -> dict:
    """Return the mean of each metric over all samples of a data set, as Python numbers.

    ``metrics(params, batch)`` returns a dict of tensors: means over the batch (0-d), or one value for each sample
    (batch,). Means of batches are weighted by the sizes of the batches, so a short last batch counts for what it is.
    data: a tree of tensors or a :class:`fnn.data.Stream`, cut into batches of ``batch_size``, or an iterator of
    batches. Nothing is differentiated. Raises ``ValueError`` for a data set without samples and for metrics of other
    shapes.

    >>> import fnn
    >>> model = fnn.models.mlp(4, 3)
    >>> def metrics(params, batch):
    ...     images, labels = batch
    ...     logits = model.apply(params, images)
    ...     return {"loss": fnn.losses.cross_entropy(logits, labels), "accuracy": fnn.metrics.accuracy(logits, labels)}
    >>> data = torch.ones(5, 4), torch.tensor([0, 1, 2, 0, 1])
    >>> sorted(evaluate(metrics, model.init(fnn.random.key(0)), data, batch_size=2))
    ['accuracy', 'loss']
    """
    if isinstance(metrics, (Layer, StatefulLayer)):
        raise TypeError("evaluate takes a function metrics(params, batch) that returns a dict of tensors, got a layer")
    batch_size = as_size("evaluate", "batch_size", batch_size)
    totals: dict[str, Tensor] = {}
    samples = 0
    with torch.no_grad():
        for batch in data if isinstance(data, Iterator) else batches(data, batch_size):
            count = _tree.leaves(batch)[0].shape[0]
            totals = add(totals, metrics(params, batch), count)
            samples += count
    if not samples:
        raise ValueError("evaluate: the data set has no samples")
    return {name: float(total) / samples for name, total in totals.items()}


def add(totals: dict[str, Tensor], metrics: Mapping[str, Any], count: int) -> dict[str, Tensor]:
    """Add the sums over one batch of ``count`` samples to the sums so far, in float64 where the device has it."""
    if not isinstance(metrics, Mapping):
        raise TypeError(f"metrics must be a dict of tensors, such as {{'loss': value}}, got {_tree.describe(metrics)}")
    after = dict(totals)
    for name, value in metrics.items():
        value = torch.as_tensor(value).detach()
        if value.shape not in ((), (count,)):
            raise ValueError(
                f"metric {name!r} has shape {tuple(value.shape)}; return a mean of the batch, (), or a value for each "
                f"sample, ({count},)"
            )
        wide = value.to(torch.float32 if value.device.type == "mps" else torch.float64)
        total = wide.sum() if wide.dim() else wide * count
        after[name] = totals[name] + total if name in totals else total
    return after
