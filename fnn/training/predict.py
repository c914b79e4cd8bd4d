"""Classes and their probabilities."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fnn.data.batches import Stream, batches
from fnn.layers.base import Layer, StatefulLayer
from fnn.tree import Tree


class Prediction(NamedTuple):
    """The most probable classes of each sample, best first: int64 (samples, top), and their probabilities."""

    classes: Tensor
    probabilities: Tensor


def predict(
    model: Layer | Callable[[Tree, Tensor], Tensor],
    params: Tree,
    inputs: Tensor | Stream,
    top: int | None = None,
    batch_size: int = 1000,
) -> Prediction:
    """Return the classes of the samples, most probable first, with their probabilities, softmax(model(params, x)).

    model: a layer, or its ``apply``; a layer with state as ``fnn.layers.frozen(model, state)``. inputs: (samples, ...),
    or a :class:`fnn.data.Stream` of them or of pairs (input, label). ``top`` keeps that many classes; by default all
    are given. The model runs without a key, so dropout is off. Raises ``TypeError`` for a layer with state, and
    ``ValueError`` if the outputs are not logits (samples, classes) or have fewer classes than ``top``.

    >>> import fnn
    >>> model = fnn.models.mlp(4, 3)
    >>> guess = predict(model, model.init(fnn.random.key(0)), torch.ones(5, 4), top=2)
    >>> guess.classes.shape, bool((guess.probabilities[:, 0] >= guess.probabilities[:, 1]).all())
    (torch.Size([5, 2]), True)
    """
    if isinstance(model, StatefulLayer):
        raise TypeError("predict: the model has state; write predict(fnn.layers.frozen(model, state), params, inputs)")
    apply: Callable[..., Any] = model.apply if isinstance(model, Layer) else model
    found = []
    with torch.no_grad():
        for batch in batches(inputs, batch_size):
            found.append(_ranked(apply(params, batch[0] if isinstance(batch, tuple) else batch), top))
    classes, probabilities = zip(*found, strict=True)
    return Prediction(torch.cat(classes), torch.cat(probabilities))


def _ranked(logits: Any, top: int | None) -> tuple[Tensor, Tensor]:
    if not isinstance(logits, Tensor) or logits.dim() != 2 or not logits.is_floating_point():
        shape = f"of shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"of type {type(logits).__name__}"
        raise ValueError(f"predict expects logits of shape (samples, classes), got outputs {shape}")
    if top is not None and not 1 <= top <= logits.shape[1]:
        raise ValueError(f"predict: top={top} of {logits.shape[1]} classes")
    probabilities, classes = logits.float().softmax(-1).topk(logits.shape[1] if top is None else top)
    return classes, probabilities
