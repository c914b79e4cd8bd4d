"""The training loop of the image recipes."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from torch import Tensor

import fnn
from recipes import command_line, plots, resume

Batch = tuple[Tensor, Tensor]  # images and labels


@dataclass
class Flags(command_line.ImageFlags):
    """Train an image classifier."""

    epochs: command_line.Count = 20
    batch_size: command_line.Count = 64
    optimizer: Literal["sgd", "adam"] = "sgd"
    learning_rate: command_line.Positive = 0.02
    momentum: command_line.Momentum = 0.9
    """Momentum of SGD; Adam does not use it."""
    shuffle: bool = True
    """Take the samples in a new order every epoch; --no-shuffle takes them in stored order."""
    images: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="(default: the data set)")] = None
    """Your own images in place of the data set: a folder for each class, at most ten. Every fifth image is a test."""
    resume: bool = False
    """Resume from the checkpoint in the output folder."""


def run(name: str, model: fnn.Layer, size: int, flags: Flags) -> dict[str, float]:
    """Train on images of ``size`` x ``size`` pixels, write the files, and return the metrics of the last epoch."""
    device = command_line.begin(flags)
    data = own_images(flags.images, size, device) if flags.images else command_line.load_images(flags, device, size)
    init_key, order_key = fnn.random.split(fnn.random.key(flags.seed))
    params = fnn.tree.to(model.init(init_key), device)
    optimizer = make_optimizer(flags)
    opt_state = optimizer.init(params)

    def loss(params: fnn.tree.Tree, batch: Batch) -> Tensor:
        images, labels = batch
        return fnn.losses.cross_entropy(model.apply(params, images), labels)

    def train_step(params: fnn.tree.Tree, opt_state: fnn.tree.Tree, batch: Batch) -> tuple:
        value, grads = fnn.value_and_grad(loss)(params, batch)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return fnn.optim.apply_updates(params, updates), opt_state, value

    step = command_line.jit(train_step, flags, donate_argnums=(0, 1))
    samples = fnn.data.length(data.train)
    state = params, opt_state
    label = flags.images.name if flags.images else flags.dataset
    output, (params, opt_state), history = resume.begin(state, flags, f"{name}-{label}", device)
    described = {
        "config": json.dumps(fnn.layers.config(model)),
        "classes": json.dumps(data.classes),
        "size": str(size),
    }

    print(f"device {device}\n{model}\n{fnn.summary(model, params, data.test[0][:1])}")
    with resume.resumable(output):
        for epoch in range(len(history) + 1, flags.epochs + 1):
            start, total = time.perf_counter(), torch.zeros((), device=device)
            key = fnn.random.fold_in(order_key, epoch - 1) if flags.shuffle else None
            batches = fnn.data.batches(data.train, flags.batch_size, key)
            for batch in command_line.progress(batches, f"epoch {epoch}", -(-samples // flags.batch_size)):
                params, opt_state, value = step(params, opt_state, batch)
                total = total + value * len(batch[1])
            row = {"epoch": epoch, "train_loss": float(total) / samples, **evaluate(model.apply, params, data.test)}
            history.append(row)
            resume.keep(output, (params, opt_state), flags, history)
            fnn.checkpoint.save(output / "params.safetensors", params, described)
            print(describe(row), f"{time.perf_counter() - start:.1f} s", flush=True)
    draw(output, history, data, model, params)
    print(f"wrote {output}")
    return history[-1]


def own_images(folder: Path, size: int, device: torch.device) -> fnn.data.Images:
    """Images from a folder with one folder for each class. Raises ``SystemExit`` if they cannot be read."""
    try:
        (images, labels), classes, _ = fnn.data.from_folder(folder, size=size, channels=1)
    except (ImportError, OSError, ValueError) as error:
        raise SystemExit(f"--images {folder}: {error}") from error
    if len(classes) > 10:
        raise SystemExit(f"--images {folder}: the network tells 10 classes apart, and there are {len(classes)}")
    test = torch.arange(len(labels)) % 5 == 4
    if not test.any():
        raise SystemExit(f"--images {folder}: at least five images are needed, and there are {len(labels)}")
    images, labels = images.to(device), labels.to(device)
    return fnn.data.Images((images[~test], labels[~test]), (images[test], labels[test]), classes)


def make_optimizer(flags: Flags) -> fnn.Optimizer:
    if flags.optimizer == "adam":
        return fnn.optim.adam(flags.learning_rate)
    return fnn.optim.sgd(flags.learning_rate, momentum=flags.momentum)


def evaluate(apply: Callable, params: fnn.tree.Tree, data: Batch) -> dict[str, float]:
    """Mean loss and accuracy over all samples, computed on a thousand images at a time."""

    def metrics(params: fnn.tree.Tree, batch: Batch) -> dict[str, Tensor]:
        logits = apply(params, batch[0])
        return {
            "test_loss": fnn.losses.cross_entropy(logits, batch[1]),
            "test_accuracy": fnn.metrics.accuracy(logits, batch[1]),
        }

    return fnn.training.evaluate(metrics, params, data, batch_size=1000)


def describe(row: dict[str, float]) -> str:
    """The line that is printed for an epoch."""
    line = "epoch {epoch:3d}  train loss {train_loss:.4f}  test loss {test_loss:.4f}  accuracy {test_accuracy:6.2%}  "
    return line.format(**row)


def draw(output: Path, history: list[dict], data: fnn.data.Images, model: fnn.Layer, params: fnn.tree.Tree) -> None:
    """Write pictures of the learning curves and of some predictions."""
    plots.curves(output / "curves.png", history)
    images, labels = data.test[0][:25], data.test[1][:25]
    logits = model.apply(params, images)
    plots.predictions(output / "predictions.png", images.cpu(), labels.cpu(), logits.cpu(), data.classes)
