"""The adaptive softmax, an output layer for many classes of which few are frequent (Grave et al., 2017)."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from fnn import random
from fnn.layers.activations import log_softmax
from fnn.layers.base import Layer, as_size, check_last_axis, check_mapping, check_names, factory
from fnn.layers.combinators import sequential
from fnn.layers.linear import linear


@factory
def adaptive_log_softmax(
    in_features: int,
    n_classes: int,
    cutoffs: Sequence[int],
    div_value: float = 4.0,
    head_bias: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Layer:
    """Logarithms of the probabilities of classes that are numbered from the most frequent to the rarest.

    The head is a softmax over the first ``cutoffs[0]`` classes and one entry for each tail cluster, the classes between
    two cutoffs. A tail is a softmax of a product of two matrices with in_features / div_value^i entries in between,
    i = 1, 2, .... The logarithm of a rare class is that of its cluster plus that inside the cluster.

    x: (..., in_features) -> (..., n_classes). torch's module returns those of the targets and their loss; here they are
    ``losses.nll(y, targets)``. Params, with torch's names: ``head`` (weight, and bias with ``head_bias``) and ``tail``
    (for each cluster ``0.weight`` and ``1.weight``). Raises ``ValueError`` unless the cutoffs are increasing and lie
    between 1 and n_classes - 1.

    >>> layer = adaptive_log_softmax(8, 20, [5, 10])
    >>> y = layer.apply(layer.init(random.key(0)), torch.ones(3, 8))
    >>> torch.allclose(y.exp().sum(-1), torch.ones(3))
    True
    """
    name = "adaptive_log_softmax"
    in_features = as_size(name, "in_features", in_features)
    n_classes = as_size(name, "n_classes", n_classes)
    ends = [*[as_size(name, "cutoffs", cutoff) for cutoff in cutoffs], n_classes]
    clusters = list(itertools.pairwise(ends))
    if not clusters or any(low >= high for low, high in clusters):
        raise ValueError(f"{name} expects increasing cutoffs from 1 to {n_classes - 1}, got {list(cutoffs)}")
    head = linear(in_features, ends[0] + len(clusters), head_bias, dtype=dtype)
    tails: dict[str, Layer] = {}
    for i, (low, high) in enumerate(clusters):
        between = int(in_features // div_value ** (i + 1))
        tails[str(i)] = sequential(
            linear(in_features, between, bias=False, dtype=dtype), linear(between, high - low, bias=False, dtype=dtype)
        )

    def init(key: Tensor) -> dict:
        head_key, *keys = random.split(key, 1 + len(tails)).unbind(0)
        inits = zip(tails.items(), keys, strict=True)
        return {"head": head.init(head_key), "tail": {i: tail.init(tail_key) for (i, tail), tail_key in inits}}

    def apply(params: dict, x: Tensor, *, key: Tensor | None = None) -> Tensor:
        check_last_axis(name, x, in_features)
        check_mapping(name, params)
        check_names(name, params, ["head", "tail"])
        log_probs = log_softmax(head.apply(params.get("head", {}), x))
        parts = [log_probs[..., : ends[0]]]
        weights = params.get("tail", {})
        check_names(f"{name}: tail", weights, tails)
        for i, tail in tails.items():
            of_cluster = log_probs[..., ends[0] + int(i), None]
            parts.append(of_cluster + log_softmax(tail.apply(weights.get(i, {}), x)))
        return torch.cat(parts, -1)

    return Layer(init, apply)
