"""The network, the batch and the loss that every chapter of the Jacobian book uses."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

import fnn


class RunningModel(NamedTuple):
    model: fnn.Layer
    params: fnn.tree.Tree  # 1,210 numbers
    batch: tuple[Tensor, Tensor]  # images (32, 64), labels (32,)
    loss: Callable[[fnn.tree.Tree, tuple[Tensor, Tensor]], Tensor]


def running_model(dtype: torch.dtype = torch.float64) -> RunningModel:
    images, labels = fnn.data.load_dataset("digits").train
    batch = images[:32].flatten(1).to(dtype), labels[:32]
    model = fnn.models.mlp(64, 16, 10, activation=fnn.layers.tanh)
    params = fnn.tree.cast(model.init(fnn.random.key(0)), dtype)

    def loss(params: fnn.tree.Tree, batch: tuple[Tensor, Tensor]) -> Tensor:
        return fnn.losses.cross_entropy(model.apply(params, batch[0]), batch[1])

    return RunningModel(model, params, batch, loss)
