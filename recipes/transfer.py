"""Use the layers of a trained network for another task: ``python -m recipes.transfer``.

A network learns the classes of one half of the training images, and the weights of its layers, without the head, are
written to ``backbone.pt``, a file as torch writes it. They are read again and given a new head, which has to tell
whether the number of the class is even or odd, from a few images of the other half. This is trained with the backbone
frozen, in two ways that take the same steps, with all layers, and from new weights.

- ``fnn.tree.partition`` splits the params, and the gradient is taken of one part: the frozen part costs nothing.
- ``fnn.optim.freeze`` gives the frozen leaves updates of zero, though their gradients are computed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from torch import Tensor

import fnn
from fnn import layers
from recipes import command_line, files, plots

Batch = tuple[Tensor, Tensor]


@dataclass
class Flags(command_line.ImageFlags):
    """Train a new head on the layers of a trained network."""

    weights: Annotated[
        Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: trained on half of the images)")
    ] = None
    """File with the weights of the backbone, such as the backbone.pt of an earlier run."""
    epochs: command_line.Count = 30
    """Epochs of the training on all classes."""
    batch_size: command_line.Count = 64
    labelled: command_line.Count = 2
    """Number of images of each class for the new task."""
    steps: command_line.Count = 100
    """Steps on these images, all in one batch."""
    learning_rate: command_line.Positive = 3e-3
    """Learning rate of Adam."""


def make_backbone(side: int) -> fnn.Layer:
    """x: (batch, 1, side, side) -> features (batch, 64)."""
    return layers.sequential(
        conv1=layers.conv2d(1, 16, 3, padding=1), relu1=layers.relu, pool=layers.max_pool2d(2),
        conv2=layers.conv2d(16, 32, 3, padding=1), relu2=layers.relu, flat=layers.flatten,
        fc=layers.linear(32 * (side // 2) ** 2, 64), relu3=layers.relu,
    )  # fmt: skip


def some_of_each(key: Tensor, data: Batch, count: int, classes: int) -> Batch:
    """``count`` random samples of each class, or all where there are fewer."""
    images, labels = data
    order = fnn.random.permutation(key, len(labels))
    rows = torch.cat([order[labels[order] == label][:count] for label in range(classes)])
    return images[rows], labels[rows]


def accuracy(model: fnn.Layer, params: fnn.tree.Tree, data: Batch) -> float:
    return float(fnn.metrics.accuracy(model.apply(params, data[0]), data[1]))


def pretrain(flags: Flags, model: fnn.Layer, params: fnn.tree.Tree, data: Batch, key: Tensor) -> fnn.tree.Tree:
    """Train on all classes."""
    optimizer = fnn.optim.adam(1e-3)
    opt_state = optimizer.init(params)

    def train_step(params: fnn.tree.Tree, opt_state: fnn.tree.Tree, batch: Batch) -> tuple:
        loss = lambda params: fnn.losses.cross_entropy(model.apply(params, batch[0]), batch[1])
        updates, opt_state = optimizer.update(fnn.grad(loss)(params), opt_state, params)
        return fnn.optim.apply_updates(params, updates), opt_state

    step = command_line.jit(train_step, flags, donate_argnums=(0, 1))
    steps = -(-len(data[1]) // flags.batch_size)
    for epoch in range(flags.epochs):
        batches = fnn.data.batches(data, flags.batch_size, fnn.random.fold_in(key, epoch))
        for batch in command_line.progress(batches, f"epoch {epoch + 1}", steps):
            params, opt_state = step(params, opt_state, batch)
    return params


def train(
    flags: Flags,
    trained: fnn.tree.Tree,
    apply: Callable[[fnn.tree.Tree, Tensor], Tensor],
    optimizer: fnn.Optimizer,
    few: Batch,
    test: Batch,
) -> tuple[fnn.tree.Tree, list[float]]:
    """Train what ``apply`` takes as params, and return it with the test accuracy before and after each step."""

    def train_step(trained: fnn.tree.Tree, opt_state: fnn.tree.Tree, few: Batch, test: Batch) -> tuple:
        loss = lambda trained: fnn.losses.cross_entropy(apply(trained, few[0]), few[1])
        before = fnn.metrics.accuracy(apply(trained, test[0]), test[1])
        updates, opt_state = optimizer.update(fnn.grad(loss)(trained), opt_state, trained)
        return fnn.optim.apply_updates(trained, updates), opt_state, before

    step = command_line.jit(train_step, flags)
    opt_state, seen = optimizer.init(trained), []
    for _ in range(flags.steps):
        trained, opt_state, before = step(trained, opt_state, few, test)
        seen.append(float(before))
    return trained, [*seen, float(fnn.metrics.accuracy(apply(trained, test[0]), test[1]))]


def read_backbone(path: Path, like: fnn.tree.Tree) -> fnn.tree.Tree:
    """The params of the backbone from a file. Raises ``SystemExit`` if it cannot be read or does not fit."""
    try:
        return fnn.interop.load_state_dict(like, {}, fnn.interop.read_state_dict(path)).params
    except (OSError, ValueError, TypeError) as error:
        raise SystemExit(f"--weights {path}: {error}") from error


def transfer(flags: Flags) -> dict[str, list[float]]:
    """Train all variants, draw their accuracies, and return what is written to metrics.json."""
    device = command_line.begin(flags)
    data = command_line.load_images(flags, device)
    backbone, classes = make_backbone(data.train[0].shape[-1]), len(data.classes)
    model = layers.sequential(backbone=backbone, head=layers.linear(64, 2))
    first_key, order_key, few_key, head_key = fnn.random.split(fnn.random.key(flags.seed, device=device), 4)
    new = fnn.tree.to(model.init(head_key), device)
    if flags.weights is not None:
        read_backbone(flags.weights, new["backbone"])
    output = files.open_output(flags, "transfer")

    weights = flags.weights
    if weights is None:
        weights = output / "backbone.pt"
        whole = layers.sequential(backbone=backbone, head=layers.linear(64, classes))
        params = fnn.tree.to(whole.init(first_key), device)
        params = pretrain(flags, whole, params, fnn.tree.map(lambda x: x[: len(x) // 2], data.train), order_key)
        torch.save(fnn.interop.state_dict(params["backbone"]), weights)
        print(f"{classes} classes: accuracy {accuracy(whole, params, data.test):.2%}; wrote {weights}", flush=True)
    params = {"backbone": read_backbone(weights, new["backbone"]), "head": new["head"]}
    few = some_of_each(few_key, fnn.tree.map(lambda x: x[len(x) // 2 :], data.train), flags.labelled, classes)
    few, test = ((images, labels % 2) for images, labels in (few, data.test))

    adam = fnn.optim.adam(flags.learning_rate)
    head, body = fnn.tree.partition(params, lambda path: path.startswith("head"))
    with_body = lambda head, x: model.apply(fnn.tree.combine(head, body), x)
    frozen = fnn.optim.freeze(adam, lambda path: path.startswith("backbone"))
    rows: dict[str, list[float]] = {}
    one, rows["frozen, by partition"] = train(flags, head, with_body, adam, few, test)
    two, rows["frozen, by the optimizer"] = train(flags, params, model.apply, frozen, few, test)
    rows["all layers"] = train(flags, params, model.apply, adam, few, test)[1]
    rows["from new weights"] = train(flags, new, model.apply, adam, few, test)[1]

    print(f"even or odd, from {len(few[1])} images, after {flags.steps} steps:")
    for name, row in rows.items():
        print(f"{name:26s} accuracy {row[-1]:7.2%}")
    difference = float(fnn.tree.max_difference(one["head"], two["head"]))
    print(f"the heads of both ways of freezing differ by {difference:.1e}")
    files.write_metrics(output, rows)
    plots.accuracies(output / "accuracy.png", rows)
    print(f"wrote {output}")
    return rows


if __name__ == "__main__":
    command_line.main(transfer, Flags())
