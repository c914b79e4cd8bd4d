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


def train_fully_sharded(name: str, optimizer_name: str, backend: str, steps: int) -> tuple[list, dict, float]:
    """As :func:`train_data_parallel`, with params in parts; and the share of their memory that this process holds."""
    model, data = network(name)
    optimizer = optimizer_of(optimizer_name)
    params = model.init(fnn.random.key(0))
    if optimizer_name == "adam":
        params, data = fnn.tree.cast((params, data), torch.float64)
    whole = fnn.tree.nbytes((params, optimizer.init(params)))
    params, sharding = distributed.shard(params)
    opt_state = optimizer.init(params)
    share = storage_bytes((params, opt_state)) / whole
    value_and_grads = distributed.fully_sharded(fnn.value_and_grad(loss_of(model)), sharding)

    def step(params: Any, opt_state: Any, batch: Batch) -> tuple:
        value, grads = value_and_grads(params, batch)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return fnn.optim.apply_updates(params, updates), opt_state, value

    run = step if backend == "eager" else fnn.jit(step, donate_argnums=(0, 1), backend=backend)
    losses = []
    for number in range(steps):
        batch = next(distributed.local_batches(data, 8, fnn.random.fold_in(fnn.random.key(1), number)))
        params, opt_state, value = run(params, opt_state, batch)
        losses.append(float(value))
    return losses, fnn.tree.to_state_dict(distributed.gather(params, sharding)), share


def storage_bytes(tree: Any) -> int:
    """The bytes of all storages that the leaves of a tree keep alive."""
    storages = {leaf.untyped_storage().data_ptr(): leaf.untyped_storage().nbytes() for leaf in fnn.tree.leaves(tree)}
    return sum(storages.values())


def batch_norm_network() -> tuple[Any, Batch]:
    layers = fnn.layers
    model = layers.sequential(
        layers.conv2d(1, 3, 3), layers.batch_norm(3), layers.relu, layers.flatten, layers.linear(12, 4),
        layers.batch_norm(4),
    )  # fmt: skip
    key = fnn.random.key(3)
    return model, (fnn.random.normal(key, (8, 1, 4, 4), torch.float64), fnn.random.randint(key, (8,), 0, 4))


def batch_norm_gradient(backend: str) -> tuple:
    """The loss, the new state and the gradient of a network with BatchNorm over the batches of all processes."""
    model, batch = batch_norm_network()
    params, state = fnn.tree.cast(model.init(fnn.random.key(0)), torch.float64)

    def loss(params: Any, state: Any, batch: Batch) -> tuple:
        logits, state = model.apply(params, state, batch[0], train=True)
        return fnn.losses.cross_entropy(logits, batch[1]), state

    f = fnn.value_and_grad(distributed.sync_batch_norm(loss), has_aux=True)
    step = distributed.data_parallel(f, (("mean", "state"), "mean"))
    step = step if backend == "eager" else fnn.jit(step, backend=backend)
    return step(params, state, distributed.local(batch))


def batch_norm_under_vmap() -> str:
    layer = fnn.layers.batch_norm(2)
    params, state = layer.init(fnn.random.key(0))
    apply = distributed.sync_batch_norm(lambda x: layer.apply(params, state, x, train=True)[0])
    return message(lambda: fnn.vmap(apply)(torch.ones(2, 3, 2)))


def message(f: Callable) -> str:
    """The message of the error that a call raises."""
    try:
        f()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"
