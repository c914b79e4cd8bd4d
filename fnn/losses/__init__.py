"""Losses with torch's names, arguments and defaults, which work under every transform.

torch's own ``mse_loss``, ``huber_loss`` and ``cross_entropy`` fail under forward-over-reverse derivatives or under
compiled ``vmap(hessian)``. These functions compute the same numbers from primitives. ``reduction`` is "mean", "sum" or
"none". 16-bit values are computed and summed in float32. The result has the dtype of the arguments, or float32 under
autocast, as in torch.
"""

from fnn.losses.base import Reduction as Reduction
from fnn.losses.classification import bce, bce_with_logits, cross_entropy, focal, nll
from fnn.losses.ctc import ctc
from fnn.losses.likelihood import gaussian_nll, kl_div, poisson_nll
from fnn.losses.margin import (
    hinge_embedding,
    margin_ranking,
    multi_margin,
    multilabel_margin,
    multilabel_soft_margin,
    soft_margin,
)
from fnn.losses.overlap import dice
from fnn.losses.regression import huber, l1, mse, smooth_l1
from fnn.losses.similarity import (
    cosine_embedding,
    info_nce,
    nt_xent,
    triplet_margin,
    triplet_margin_with_distance,
)

__all__ = [
    "bce",
    "bce_with_logits",
    "cosine_embedding",
    "cross_entropy",
    "ctc",
    "dice",
    "focal",
    "gaussian_nll",
    "hinge_embedding",
    "huber",
    "info_nce",
    "kl_div",
    "l1",
    "margin_ranking",
    "mse",
    "multi_margin",
    "multilabel_margin",
    "multilabel_soft_margin",
    "nll",
    "nt_xent",
    "poisson_nll",
    "smooth_l1",
    "soft_margin",
    "triplet_margin",
    "triplet_margin_with_distance",
]
