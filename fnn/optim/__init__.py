"""Optimizers as pairs of pure functions (init, update)."""

from fnn.optim import projections, schedules
from fnn.optim.adafactor import adafactor
from fnn.optim.adam_variants import (
    ademamix,
    adopt,
    novograd,
    scale_by_ademamix,
    scale_by_adopt,
    scale_by_novograd,
)
from fnn.optim.aliases import (
    adadelta,
    adagrad,
    adam,
    adamax,
    adamw,
    asgd,
    nadam,
    radam,
    rmsprop,
    rprop,
    sgd,
)
from fnn.optim.backtracking import backtracking_line_search
from fnn.optim.base import apply_updates, chain
from fnn.optim.clipping import (
    adaptive_gradient_clip,
    clip,
    clip_by_block,
    clip_by_global_norm,
    zero_nans,
)
from fnn.optim.d_adaptation import dadapt_adamw, prodigy
from fnn.optim.dog import dog, scale_by_dog
from fnn.optim.hyperparams import get_hyperparams, set_hyperparams
from fnn.optim.lbfgs import lbfgs
from fnn.optim.madgrad import madgrad
from fnn.optim.multi_transform import freeze, identity, mask, multi_transform, named_chain, zero
from fnn.optim.muon import muon, orthogonalize, scale_by_muon
from fnn.optim.optax_aliases import adabelief, adan, lamb, lars, lion, sophia, yogi
from fnn.optim.optimistic import optimistic_adam, optimistic_gradient_descent, scale_by_optimistic_gradient
from fnn.optim.polyak import polyak_sgd, scale_by_polyak
from fnn.optim.rules import State, from_rule
from fnn.optim.sam import sam
from fnn.optim.scale_by import (
    ema,
    momentum,
    scale_by_adadelta,
    scale_by_lion,
    scale_by_rms,
    scale_by_rss,
    scale_by_sophia,
)
from fnn.optim.scale_by_adam import (
    scale_by_adam,
    scale_by_adamax,
    scale_by_adan,
    scale_by_belief,
    scale_by_nadam,
    scale_by_radam,
    scale_by_yogi,
)
from fnn.optim.schedule_free import schedule_free, schedule_free_adamw, schedule_free_params, schedule_free_sgd
from fnn.optim.sm3 import scale_by_sm3, sm3
from fnn.optim.transforms import (
    add_decayed_weights,
    add_noise,
    centralize,
    negate,
    scale,
    scale_by_learning_rate,
    scale_by_schedule,
    scale_by_sign,
    scale_by_trust_ratio,
)
from fnn.optim.wrappers import accumulate, apply_if_finite, average_params, ema_params, lookahead, with_state_dtype
from fnn.optim.zoom import zoom_line_search

__all__ = [
    "State",
    "accumulate",
    "adabelief",
    "adadelta",
    "adafactor",
    "adagrad",
    "adam",
    "adamax",
    "adamw",
    "adan",
    "adaptive_gradient_clip",
    "add_decayed_weights",
    "add_noise",
    "ademamix",
    "adopt",
    "apply_if_finite",
    "apply_updates",
    "asgd",
    "average_params",
    "backtracking_line_search",
    "centralize",
    "chain",
    "clip",
    "clip_by_block",
    "clip_by_global_norm",
    "dadapt_adamw",
    "dog",
    "ema",
    "ema_params",
    "freeze",
    "from_rule",
    "get_hyperparams",
    "identity",
    "lamb",
    "lars",
    "lbfgs",
    "lion",
    "lookahead",
    "madgrad",
    "mask",
    "momentum",
    "multi_transform",
    "muon",
    "nadam",
    "named_chain",
    "negate",
    "novograd",
    "optimistic_adam",
    "optimistic_gradient_descent",
    "orthogonalize",
    "polyak_sgd",
    "prodigy",
    "projections",
    "radam",
    "rmsprop",
    "rprop",
    "sam",
    "scale",
    "scale_by_adadelta",
    "scale_by_adam",
    "scale_by_adamax",
    "scale_by_adan",
    "scale_by_ademamix",
    "scale_by_adopt",
    "scale_by_belief",
    "scale_by_dog",
    "scale_by_learning_rate",
    "scale_by_lion",
    "scale_by_muon",
    "scale_by_nadam",
    "scale_by_novograd",
    "scale_by_optimistic_gradient",
    "scale_by_polyak",
    "scale_by_radam",
    "scale_by_rms",
    "scale_by_rss",
    "scale_by_schedule",
    "scale_by_sign",
    "scale_by_sm3",
    "scale_by_sophia",
    "scale_by_trust_ratio",
    "scale_by_yogi",
    "schedule_free",
    "schedule_free_adamw",
    "schedule_free_params",
    "schedule_free_sgd",
    "schedules",
    "set_hyperparams",
    "sgd",
    "sm3",
    "sophia",
    "with_state_dtype",
    "yogi",
    "zero",
    "zero_nans",
    "zoom_line_search",
]
