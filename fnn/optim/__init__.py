"""Optimizers as pairs of pure functions (init, update)."""

from fnn.optim.base import Optimizer, apply_updates, chain
from fnn.optim.optimizers import adam, sgd

__all__ = ["Optimizer", "adam", "apply_updates", "chain", "sgd"]
