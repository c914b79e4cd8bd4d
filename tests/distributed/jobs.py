"""What the processes of a group are asked to do. Every function runs in a single process as well."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import fnn
from fnn import distributed

Batch = tuple[Tensor, Tensor]


def network(name: str) -> tuple[Any, Batch]:
    """A small network, and data of 32 rows."""
    key = fnn.random.key(7)
    labels = fnn.random.randint(key, (32,), 0, 4)
    if name == "mlp":
        return fnn.models.mlp(6, 16, 4), (fnn.random.normal(key, (32, 6)), labels)
    if name == "lenet":
        return fnn.models.lenet(), (fnn.random.normal(key, (32, 1, 32, 32)), labels)
    model = fnn.layers.sequential(
        fnn.layers.linear(6, 8),
        fnn.layers.transformer_encoder_layer(8, 2, 16, dropout=0.0),
        lambda x: x.mean(1),
        fnn.layers.linear(8, 4),
    )
    return model, (fnn.random.normal(key, (32, 5, 6)), labels)


def loss_of(model: Any) -> Callable[[Any, Batch], Tensor]:
    return lambda params, batch: fnn.losses.cross_entropy(model.apply(params, batch[0]), batch[1])


def optimizer_of(name: str) -> Any:
    return fnn.optim.sgd(0.1, momentum=0.9) if name == "sgd" else fnn.optim.adam(0.01)


def train_data_parallel(name: str, optimizer_name: str, backend: str, steps: int) -> tuple[list, dict]:
    """The losses and the params of a run, whose batches of 8 rows are drawn from a key."""
    model, data = network(name)
    optimizer = optimizer_of(optimizer_name)
    value_and_grads = distributed.data_parallel(fnn.value_and_grad(loss_of(model)))

    def step(params: Any, opt_state: Any, batch: Batch) -> tuple:
        value, grads = value_and_grads(params, batch)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return fnn.optim.apply_updates(params, updates), opt_state, value

    run = step if backend == "eager" else fnn.jit(step, donate_argnums=(0, 1), backend=backend)
    params = model.init(fnn.random.key(0))
    if optimizer_name == "adam":  # which divides rounding errors by gradients that are as small as they
        params, data = fnn.tree.cast((params, data), torch.float64)
    opt_state = optimizer.init(params)
    losses = []
    for number in range(steps):
        batch = next(distributed.local_batches(data, 8, fnn.random.fold_in(fnn.random.key(1), number)))
        params, opt_state, value = run(params, opt_state, batch)
        losses.append(float(value))
    return losses, fnn.tree.to_state_dict(params)
