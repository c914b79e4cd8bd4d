"""Whole networks as layers."""

from fnn.models.lenet import lenet, lenet5
from fnn.models.mlp import mlp

__all__ = ["lenet", "lenet5", "mlp"]
