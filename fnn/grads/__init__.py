"""Gradients of scalar losses with respect to trees: of a batch, of each sample, clipped, noisy, accumulated."""

from fnn.grads.accumulate import Moments, accumulate_grad, per_sample_moments
from fnn.grads.base import check_differentiable, value_and_grad
from fnn.grads.clipped import NoiseScale, clipped_grad, ghost_plan, gradient_noise_scale, per_sample_norms
from fnn.grads.ghost import LeafPlan
from fnn.grads.noise import PoissonSample, noise_like, poisson_sample
from fnn.grads.per_sample import check_per_sample, per_sample_grad, per_sample_value_and_grad

__all__ = [
    "LeafPlan",
    "Moments",
    "NoiseScale",
    "PoissonSample",
    "accumulate_grad",
    "check_differentiable",
    "check_per_sample",
    "clipped_grad",
    "ghost_plan",
    "gradient_noise_scale",
    "noise_like",
    "per_sample_grad",
    "per_sample_moments",
    "per_sample_norms",
    "per_sample_value_and_grad",
    "poisson_sample",
    "value_and_grad",
]
