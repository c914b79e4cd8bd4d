"""The training loop of the image recipes."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from torch import Tensor

import fnn
from fnn.data import transforms
from fnn.data.batches import Batches
from recipes import command_line, plots, resume

Batch = tuple[Tensor, Tensor]  # images and labels


@dataclass
class TrainFlags(command_line.ImageFlags):
    """The flags of recipes that train an image classifier and can be resumed."""

    epochs: command_line.Count = 20
    batch_size: command_line.Count = 64
    learning_rate: command_line.Positive = 1e-3
    """Learning rate of Adam."""
    augment: bool = False
    """Move the training images by up to two pixels at random, and mirror half of those of Fashion-MNIST."""
    resume: bool = False
    """Resume from the last checkpoint in the output folder."""
    tensorboard: bool = False
    """Also write the metrics for TensorBoard (pip install tensorboard)."""


@dataclass
class Flags(TrainFlags):
    """Train an image classifier."""

    optimizer: Literal["sgd", "adam"] = "sgd"
    learning_rate: command_line.Positive = 0.02
    momentum: command_line.Momentum = 0.9
    """Momentum of SGD; Adam does not use it."""
    schedule: Literal["constant", "cosine"] = "constant"
    """With cosine the learning rate falls to zero along a cosine over all epochs."""
    shuffle: bool = True
    """Take the samples in a new order every epoch; --no-shuffle takes them in stored order."""
    images: Annotated[Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="(default: the data set)")] = None
    """Your own images in place of the data set: a folder that has one folder for each class, or a table (.csv) of file
    names and labels beside the images. Every fifth image is a test."""


def run(name: str, make_model: Callable[[int], fnn.Layer], size: int, flags: Flags) -> dict[str, float]:
    """Train on images of ``size`` x ``size`` pixels, write the files, and return the metrics of the last epoch.

    ``make_model(classes)`` returns the network for a number of classes.
    """
    device = command_line.begin(flags, many=True)
    data = own_images(flags.images, size, device) if flags.images else command_line.load_images(flags, device, size)
    model = make_model(len(data.classes))
    label = flags.images.stem if flags.images else flags.dataset
    flags = resume.restarted(flags, f"{name}-{label}")
    output = resume.open_run(flags, f"{name}-{label}")
    init_key, order_key = fnn.random.split(fnn.random.key(flags.seed))
    params = fnn.tree.to(model.init(init_key), device)
    samples = fnn.data.length(data.train)
    optimizer = make_optimizer(flags, -(-samples // flags.batch_size))

    def loss(params: fnn.tree.Tree, batch: Batch) -> Tensor:
        images, labels = batch
        return fnn.losses.cross_entropy(model.apply(params, images), labels)

    value_and_grads = fnn.distributed.data_parallel(fnn.value_and_grad(loss))  # of all processes, if there are several

    def train_step(params: fnn.tree.Tree, opt_state: fnn.tree.Tree, batch: Batch) -> tuple:
        value, grads = value_and_grads(params, batch)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return fnn.optim.apply_updates(params, updates), opt_state, value

    step = command_line.jit(train_step, flags, donate_argnums=(0, 1))
    batches = augmented(data.train, size, flags, order_key if flags.shuffle else None)
    metadata = {
        "recipe": name,
        "config": json.dumps(fnn.layers.config(model)),
        "classes": json.dumps(data.classes),
        "size": str(size),
    }
    test = lambda params, opt_state: evaluate(model.apply, params, data.test)
    print(f"device {device}\n{model}\n{fnn.summary(model, params, data.test[0][:1])}")
    rows = []
    with resume.resumable(output):
        for row in resume.fit(flags, output, step, (params, optimizer.init(params)), batches, samples, test, metadata):
            rows.append(row)
    if fnn.distributed.rank() == 0:
        params, rows = resume.finished(output, device)
        draw(output, rows, data, lambda images: model.apply(params, images))
    return rows[-1]


def own_images(path: Path, size: int, device: torch.device) -> fnn.data.Images:
    """Images from a folder with one folder for each class, or from a table beside them.

    Raises ``SystemExit`` if they cannot be read.
    """
    try:
        if path.suffix.lower() == ".csv":
            (images, labels), classes, _ = fnn.data.from_csv(path, path.parent, size=size, channels=1)
        else:
            (images, labels), classes, _ = fnn.data.from_folder(path, size=size, channels=1)
    except (ImportError, OSError, ValueError) as error:
        raise SystemExit(f"--images {path}: {error}") from error
    test = torch.arange(len(labels)) % 5 == 4
    if not test.any():
        raise SystemExit(f"--images {path}: at least five images are needed, and there are {len(labels)}")
    images, labels = images.to(device), labels.to(device)
    return fnn.data.Images((images[~test], labels[~test]), (images[test], labels[test]), classes)


def make_optimizer(flags: Flags, steps: int) -> fnn.Optimizer:
    """The optimizer of the flags; ``steps`` is the number of steps in an epoch."""
    rate: Any = flags.learning_rate
    if flags.schedule == "cosine":
        rate = fnn.optim.schedules.cosine(rate, steps * flags.epochs)
    return fnn.optim.adam(rate) if flags.optimizer == "adam" else fnn.optim.sgd(rate, momentum=flags.momentum)


def make_augmentation(size: int, flags: TrainFlags) -> transforms.Transform:
    """The random changes of the training images. Only clothes are mirrored: a mirrored digit is another sign."""
    if not flags.augment:
        return transforms.compose()
    parts = [transforms.random_crop(size, padding=2)]
    if flags.dataset == "fashion_mnist" and getattr(flags, "images", None) is None:
        parts.append(transforms.random_flip())
    return transforms.compose(*parts)


def augmented(data: Batch, size: int, flags: TrainFlags, order_key: Tensor | None) -> Callable[[int], Batches]:
    """Return the function from the number of an epoch to its batches, whose images are augmented by the flags.

    All random numbers come from keys, so that a resumed run sees the same images as an unbroken one. Without a key for
    the order, samples come in stored order. Several processes share each batch; a last, short one that they cannot
    share is left out. Raises ``SystemExit`` if they cannot share the others.
    """
    augment = command_line.jit(make_augmentation(size, flags), flags)
    augment_key = fnn.random.fold_in(fnn.random.key(flags.seed), 1)
    count = fnn.distributed.world_size()
    if flags.batch_size % count:
        raise SystemExit(f"--batch-size {flags.batch_size}: give a multiple of {count}, the number of processes")
    uneven = fnn.data.length(data) % flags.batch_size % count > 0

    def batches(epoch: int) -> Batches:
        key = None if order_key is None else fnn.random.fold_in(order_key, epoch)
        if not flags.augment:
            return fnn.distributed.local_batches(data, flags.batch_size, key, drop_last=uneven)
        taken = fnn.data.batches(data, flags.batch_size, key, drop_last=uneven)
        keys = fnn.random.split(fnn.random.fold_in(augment_key, epoch), len(taken)).to(data[0].device)
        changed = ((augment(images, key=key), labels) for key, (images, labels) in zip(keys, taken, strict=True))
        return Batches(map(fnn.distributed.local, changed), len(taken))

    return batches


def evaluate(apply: Callable, params: fnn.tree.Tree, data: Batch) -> dict[str, float]:
    """Mean loss and accuracy over all samples, computed on a thousand images at a time."""

    def metrics(params: fnn.tree.Tree, batch: Batch) -> dict[str, Tensor]:
        logits = apply(params, batch[0])
        return {
            "test_loss": fnn.losses.cross_entropy(logits, batch[1]),
            "test_accuracy": fnn.metrics.accuracy(logits, batch[1]),
        }

    return fnn.training.evaluate(metrics, params, data, batch_size=1000)


def draw(output: Path, history: list[dict], data: fnn.data.Images, apply: Callable[[Tensor], Tensor]) -> None:
    """Write pictures of the learning curves and of some predictions."""
    plots.curves(output / "curves.png", history)
    images, labels = data.test[0][:25], data.test[1][:25]
    plots.predictions(output / "predictions.png", images.cpu(), labels.cpu(), apply(images).cpu(), data.classes)
    print(f"wrote {output}")
