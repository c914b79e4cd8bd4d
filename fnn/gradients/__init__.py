"""Gradients of scalar losses with respect to trees: of a batch, of each sample, clipped, noisy, accumulated."""

from fnn.gradients.accumulate import Moments, accumulate_grad, per_sample_moments
from fnn.gradients.adaptive_clipping import adapt_max_norm, noise_beside_count
from fnn.gradients.clipping import NoiseScale, ghost_plan, gradient_noise_scale, per_sample_norms
from fnn.gradients.ghost import LeafPlan
from fnn.gradients.noise import PoissonSample, noise_like, poisson_sample
from fnn.gradients.per_sample import check_per_sample, per_sample_value_and_grad
from fnn.gradients.privacy import epsilon_spent, noise_for_epsilon

__all__ = [
    "LeafPlan",
    "Moments",
    "NoiseScale",
    "PoissonSample",
    "accumulate_grad",
    "adapt_max_norm",
    "check_per_sample",
    "epsilon_spent",
    "ghost_plan",
    "gradient_noise_scale",
    "noise_beside_count",
    "noise_for_epsilon",
    "noise_like",
    "per_sample_moments",
    "per_sample_norms",
    "per_sample_value_and_grad",
    "poisson_sample",
]
