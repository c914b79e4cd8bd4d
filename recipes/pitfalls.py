"""What common mistakes cost: ``python -m recipes.pitfalls``.

The same small network is trained with each mistake and without it, from several seeds, on images that are sorted by
class: with a softmax before the cross-entropy, which takes one itself; with a ReLU after the last layer, through which
no gradient passes where a logit is below zero; in stored order; and in torch without ``zero_grad``, where each gradient
is added to all before. The last two mistakes divide the test loss wrongly: the sum of the means of the batches by the
number of samples, or by the number of batches, of which the last is short.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fnn
from recipes import command_line, files, plots
from recipes.plots import plt

Batch = tuple[Tensor, Tensor]


@dataclass
class Flags(command_line.ImageFlags):
    """Train with common mistakes and without them."""

    epochs: command_line.Count = 3
    batch_size: command_line.Count = 16
    width: command_line.Count = 64
    """Width of the hidden layer."""
    learning_rate: command_line.Positive = 0.1
    """Learning rate of SGD."""
    seeds: command_line.Count = 5
    """Networks that are trained with each mistake."""


def compare(flags: Flags) -> dict[str, Any]:
    """Train, write the files, and return what is written to metrics.json."""
    device = command_line.begin(flags)
    data = command_line.load_images(flags, device)
    command_line.check_batch_size(flags.batch_size, len(data.train[1]))
    output = files.open_output(flags, "pitfalls")
    order = data.train[1].argsort(stable=True)
    train = fnn.tree.map(lambda leaf: leaf[order], data.train)
    model = fnn.models.mlp(train[0][0].numel(), flags.width, len(data.classes))
    keys = [fnn.random.fold_in(fnn.random.key(flags.seed, device=device), seed) for seed in range(flags.seeds)]

    same, softmax, relu = (lambda logits: logits), fnn.layers.softmax, fnn.layers.relu
    right = make_trainer(flags, model, train, same)
    ways: dict[str, tuple[Callable[[Tensor], fnn.tree.Tree], Callable[[Tensor], Tensor]]] = {
        "no mistake": (partial(right, shuffle=True), same),
        "a softmax before the cross-entropy": (
            partial(make_trainer(flags, model, train, softmax), shuffle=True),
            softmax,
        ),
        "a ReLU after the last layer": (partial(make_trainer(flags, model, train, relu), shuffle=True), relu),
        "not shuffled, sorted by class": (partial(right, shuffle=False), same),
        "torch, with zero_grad": (partial(train_with_torch, flags, model, train, zero_grad=True), same),
        "torch, without zero_grad": (partial(train_with_torch, flags, model, train, zero_grad=False), same),
    }
    accuracies: dict[str, list[float]] = {}
    trained = []
    for name, (way, outputs) in ways.items():
        networks = [way(key) for key in command_line.progress(keys, name, len(keys))]
        predicted = [outputs(model.apply(params, data.test[0])) for params in networks]
        accuracies[name] = [float(fnn.metrics.accuracy(outputs, data.test[1])) for outputs in predicted]
        trained = trained or networks
    losses = divided_losses(model, trained[0], data.test, flags.batch_size)
    print(f"test accuracy after {flags.epochs} epochs, {flags.seeds} seeds: mean (lowest to highest)")
    for name, row in accuracies.items():
        print(f"{name:36s} {sum(row) / len(row):6.1%} ({min(row):.1%} to {max(row):.1%})")
    print(f"test loss of one network, from batches of {flags.batch_size}")
    for name, loss in losses.items():
        print(f"{name:36s} {loss:.4f}, {loss / losses['over samples']:.3f} of the right one")
    result = {"accuracies": accuracies, "losses": losses}
    files.write_metrics(output, result)
    draw(output / "pitfalls.png", accuracies, losses)
    print(f"wrote {output}")
    return result


def make_trainer(
    flags: Flags, model: fnn.Layer, train: Batch, outputs: Callable[[Tensor], Tensor]
) -> Callable[..., fnn.tree.Tree]:
    """A function (key, shuffle) -> params. The loss is the cross-entropy of ``outputs`` of the logits."""
    optimizer = fnn.optim.sgd(flags.learning_rate)

    def loss(params: fnn.tree.Tree, batch: Batch) -> Tensor:
        return fnn.losses.cross_entropy(outputs(model.apply(params, batch[0])), batch[1])

    def train_step(params: fnn.tree.Tree, opt_state: fnn.tree.Tree, batch: Batch) -> tuple:
        updates, opt_state = optimizer.update(fnn.grad(loss)(params, batch), opt_state, params)
        return fnn.optim.apply_updates(params, updates), opt_state

    step = command_line.jit(train_step, flags, donate_argnums=(0, 1))

    def run(key: Tensor, shuffle: bool) -> fnn.tree.Tree:
        params = model.init(key)
        opt_state = optimizer.init(params)
        for epoch in range(flags.epochs):
            order_key = fnn.random.fold_in(key, epoch) if shuffle else None
            for batch in fnn.data.batches(train, flags.batch_size, order_key):
                params, opt_state = step(params, opt_state, batch)
        return params

    return run


def train_with_torch(flags: Flags, model: fnn.Layer, train: Batch, key: Tensor, zero_grad: bool) -> fnn.tree.Tree:
    """Train the same network with torch.nn, from the same params and on the same batches, and return its params."""
    params = model.init(key)
    sizes = params["0"]["weight"].shape[1], flags.width, params["2"]["weight"].shape[0]
    module = nn.Sequential(nn.Linear(sizes[0], sizes[1]), nn.ReLU(), nn.Linear(sizes[1], sizes[2])).to(key.device)
    module.load_state_dict(fnn.tree.to_state_dict(params))
    optimizer = torch.optim.SGD(module.parameters(), flags.learning_rate)
    for epoch in range(flags.epochs):
        for images, labels in fnn.data.batches(train, flags.batch_size, fnn.random.fold_in(key, epoch)):
            if zero_grad:
                optimizer.zero_grad()
            nn.functional.cross_entropy(module(images.flatten(1)), labels).backward()
            optimizer.step()
    return fnn.tree.from_state_dict({name: leaf.detach() for name, leaf in module.state_dict().items()})


def divided_losses(model: fnn.Layer, params: fnn.tree.Tree, test: Batch, batch_size: int) -> dict[str, float]:
    """The test loss as the mean over samples, and as the sum of the means of batches, divided in two wrong ways."""

    def metrics(params: fnn.tree.Tree, batch: Batch) -> dict[str, Tensor]:
        return {"loss": fnn.losses.cross_entropy(model.apply(params, batch[0]), batch[1])}

    means = [float(metrics(params, batch)["loss"]) for batch in fnn.data.batches(test, batch_size)]
    return {
        "over samples": fnn.training.evaluate(metrics, params, test, batch_size)["loss"],
        "means over the number of batches": sum(means) / len(means),
        "means over the number of samples": sum(means) / len(test[1]),
    }


def draw(path: Path, accuracies: dict[str, list[float]], losses: dict[str, float]) -> None:
    """The accuracy of each network, as a point, with the mean as a bar; and the test losses."""
    figure, (left, right) = plt.subplots(
        2, 1, figsize=(8, 5), layout="constrained", height_ratios=(len(accuracies), len(losses))
    )
    for place, (name, row) in enumerate(accuracies.items()):
        colour = "tab:green" if name in ("no mistake", "torch, with zero_grad") else "tab:red"
        left.barh(place, 100 * sum(row) / len(row), color=colour, alpha=0.3)
        left.plot([100 * value for value in row], [place] * len(row), "o", color=colour, markersize=5, alpha=0.7)
    left.set_yticks(range(len(accuracies)), list(accuracies))
    left.set(xlabel="test accuracy (%): a point for each seed, and their mean", xlim=(0, 101))
    colours = ["tab:green", *["tab:red"] * (len(losses) - 1)]
    right.barh(list(losses), list(losses.values()), color=colours, alpha=0.3)
    for place, value in enumerate(losses.values()):
        right.text(value, place, f" {value:.4f}", va="center")
    right.set(xlabel="test loss of one network (nats)")
    right.margins(x=0.15)
    for axes in (left, right):
        axes.invert_yaxis()
        axes.spines[["top", "right"]].set_visible(False)
    plots.save(figure, path)


if __name__ == "__main__":
    command_line.main(compare, Flags())
