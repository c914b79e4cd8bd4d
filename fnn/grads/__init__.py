"""Gradients of scalar losses with respect to trees: of a batch, of each sample, clipped, noisy, accumulated."""

from fnn.grads.base import check_differentiable, value_and_grad
from fnn.grads.per_sample import check_per_sample, per_sample_grad, per_sample_value_and_grad

__all__ = ["check_differentiable", "check_per_sample", "per_sample_grad", "per_sample_value_and_grad", "value_and_grad"]
