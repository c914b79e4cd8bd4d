"""Adapt a ``torch.nn`` network with low-rank matrices: ``python -m recipes.lora``.

A network of torch.nn is trained on images, through ``fnn.interop.from_module``. Then it has to classify the same images
turned by 90 degrees, with few of them to learn from. Its weights stay as they are, and each matrix W gets a sum W + B A
with two thin matrices (Hu et al., 2021, "LoRA"). That is a function from params and adapters to params, and only the
adapters are differentiated. The adapted weights are written into the module in the end, so that nothing of this is
needed to use it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import fnn
from recipes import command_line, files, plots

Batch = tuple[Tensor, Tensor]


@dataclass
class Flags(command_line.ImageFlags):
    """Adapt a network with low-rank matrices."""

    width: command_line.Count = 128
    """Width of the two hidden layers."""
    epochs: command_line.Count = 10
    """Epochs of the training on upright images."""
    batch_size: command_line.Count = 64
    labelled: command_line.Count = 200
    """Number of turned images to learn from."""
    steps: command_line.Count = 150
    """Steps on these images, all in one batch."""
    learning_rate: command_line.Positive = 3e-3
    """Learning rate of Adam."""


RANKS = (1, 4, 16)


def make_module(pixels: int, width: int, classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(pixels, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, classes)
    )


def init_adapters(key: Tensor, params: fnn.tree.Tree, rank: int) -> fnn.tree.Tree:
    """For each matrix (out, in) a pair: A (rank, in), normally distributed, and B (out, rank), zeros."""
    matrices = {path: leaf for path, leaf in fnn.tree.items(params) if leaf.ndim == 2}
    keys = fnn.random.split(key, len(matrices))
    return {
        path: {
            "A": fnn.random.normal(each, (rank, leaf.shape[1]), leaf.dtype) / leaf.shape[1] ** 0.5,
            "B": torch.zeros_like(leaf[:, :1]).repeat(1, rank),
        }
        for each, (path, leaf) in zip(keys, matrices.items(), strict=True)
    }


def adapted(params: fnn.tree.Tree, adapters: fnn.tree.Tree) -> fnn.tree.Tree:
    """The params with B A added to each matrix."""

    def add(path: str, leaf: Tensor) -> Tensor:
        return leaf + adapters[path]["B"] @ adapters[path]["A"] if path in adapters else leaf

    return fnn.tree.map_with_path(add, params)


def minimize(
    flags: Flags, loss: Callable[..., Tensor], trained: fnn.tree.Tree, batches: list[Batch], rate: float
) -> fnn.tree.Tree:
    """One step of Adam for each batch."""
    optimizer = fnn.optim.adam(rate)
    opt_state = optimizer.init(trained)

    def train_step(trained: fnn.tree.Tree, opt_state: fnn.tree.Tree, batch: Batch) -> tuple:
        updates, opt_state = optimizer.update(fnn.grad(loss)(trained, batch), opt_state, trained)
        return fnn.optim.apply_updates(trained, updates), opt_state

    step = command_line.jit(train_step, flags)
    for batch in command_line.progress(batches, "steps", len(batches)):
        trained, opt_state = step(trained, opt_state, batch)
    return trained


def adapt(flags: Flags) -> dict[str, dict[str, float]]:
    """Train, adapt, write the files, and return what is written to metrics.json."""
    device = command_line.begin(flags)
    data = command_line.load_images(flags, device)
    command_line.check_batch_size(flags.labelled, len(data.train[1]))
    output = files.open_output(flags, "lora")
    order_key, few_key, adapter_key = fnn.random.split(fnn.random.key(flags.seed, device=device), 3)
    with torch.random.fork_rng():
        torch.manual_seed(flags.seed)
        module = make_module(data.train[0][0].numel(), flags.width, len(data.classes)).to(device)
    layer, params, _ = fnn.interop.from_module(module)
    apply: Callable[..., Any] = layer.apply

    def loss(params: fnn.tree.Tree, batch: Batch) -> Tensor:
        return fnn.losses.cross_entropy(apply(params, batch[0]), batch[1])

    def accuracy(params: fnn.tree.Tree, data: Batch) -> float:
        return float(fnn.metrics.accuracy(apply(params, data[0]), data[1]))

    batches: list[Batch] = []
    for epoch in range(flags.epochs):
        batches += fnn.data.batches(data.train, flags.batch_size, fnn.random.fold_in(order_key, epoch))
    params = minimize(flags, loss, params, batches, 1e-3)
    print(f"upright images: accuracy {accuracy(params, data.test):.2%}", flush=True)

    turned = [(images.rot90(1, (2, 3)), labels) for images, labels in (data.train, data.test)]
    rows = fnn.random.permutation(few_key, len(turned[0][1]))[: flags.labelled]
    few = turned[0][0][rows], turned[0][1][rows]
    result = {"as it was": {"trained": 0, "accuracy": accuracy(params, turned[1])}}
    found = params
    for rank in RANKS:
        adapters = init_adapters(fnn.random.fold_in(adapter_key, rank), params, rank)
        of_adapters = lambda adapters, batch: loss(adapted(params, adapters), batch)
        adapters = minimize(flags, of_adapters, adapters, [few] * flags.steps, flags.learning_rate)
        found = adapted(params, adapters)
        result[f"rank {rank}"] = {"trained": fnn.tree.size(adapters), "accuracy": accuracy(found, turned[1])}
    whole = minimize(flags, loss, params, [few] * flags.steps, flags.learning_rate)
    result["all weights"] = {"trained": fnn.tree.size(params), "accuracy": accuracy(whole, turned[1])}

    print(f"images turned by 90 degrees, {flags.labelled} of them to learn from:")
    for name, row in result.items():
        print("{:12s} {trained:8,d} numbers trained   accuracy {accuracy:7.2%}".format(name, **row))
    module.load_state_dict(fnn.interop.state_dict(found))
    torch.save(module.state_dict(), output / "adapted.pt")
    files.write_metrics(output, result)
    plots.adapters(output / "accuracy.png", result)
    print(f"wrote {output}")
    return result


if __name__ == "__main__":
    command_line.main(adapt, Flags())
