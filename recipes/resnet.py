"""Train a ResNet on images: ``python -m recipes.resnet``, or ``--dataset fashion_mnist`` for more than the digits.

A network with BatchNorm has params, which are trained, and a state, the running statistics, which the train step takes
and returns. Each step moves its images by up to two pixels at random, and mirrors half of those of Fashion-MNIST; its
random numbers come from a key, so that a resumed run sees the same images as an unbroken one.
"""

import time
from dataclasses import dataclass

import torch
from torch import Tensor

import fnn
from fnn.data import transforms
from recipes import command_line, plots, resume, training
from recipes.training import Batch


@dataclass
class Flags(command_line.ImageFlags):
    """Train ResNet-18 on images."""

    epochs: command_line.Count = 4
    batch_size: command_line.Count = 64
    size: command_line.Count = 28
    """Images are resized to this many pixels a side."""
    learning_rate: command_line.Positive = 1e-3
    """Learning rate of Adam."""
    augment: bool = True
    """Move and mirror the training images at random; --no-augment takes them as they are."""
    resume: bool = False
    """Resume from the checkpoint in the output folder."""


def train(flags: Flags) -> dict[str, float]:
    """Train, write the files, and return the metrics of the last epoch."""
    device = command_line.begin(flags)
    data = command_line.load_images(flags, device, flags.size)
    model = fnn.models.resnet18(len(data.classes), in_channels=1)
    init_key, order_key, augment_key = fnn.random.split(fnn.random.key(flags.seed), 3).to(device)
    params, state = fnn.tree.to(model.init(init_key), device)
    optimizer = fnn.optim.adam(flags.learning_rate)
    augment = make_augmentation(flags)

    def loss(params: fnn.tree.Tree, state: fnn.tree.Tree, batch: Batch) -> tuple[Tensor, fnn.tree.Tree]:
        images, labels = batch
        logits, state = model.apply(params, state, images, train=True)
        return fnn.losses.cross_entropy(logits, labels), state

    def train_step(
        params: fnn.tree.Tree, state: fnn.tree.Tree, opt_state: fnn.tree.Tree, batch: Batch, key: Tensor
    ) -> tuple:
        images, labels = batch
        batch = augment(images, key=key), labels
        (value, state), grads = fnn.value_and_grad(loss, has_aux=True)(params, state, batch)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return fnn.optim.apply_updates(params, updates), state, opt_state, value

    def predict(trained: tuple, images: Tensor) -> Tensor:
        params, state = trained
        return model.apply(params, state, images, train=False)[0]

    step = command_line.jit(train_step, flags, donate_argnums=(0, 1, 2))
    samples = fnn.data.length(data.train)
    steps = -(-samples // flags.batch_size)
    everything = params, state, optimizer.init(params)
    output, (params, state, opt_state), history = resume.begin(everything, flags, f"resnet-{flags.dataset}", device)

    print(f"device {device}, ResNet-18 with {fnn.tree.size(params):,} parameters")
    with resume.resumable(output):
        for epoch in range(len(history) + 1, flags.epochs + 1):
            start, total = time.perf_counter(), torch.zeros((), device=device)
            keys = fnn.random.split(fnn.random.fold_in(augment_key, epoch), steps)
            batches = fnn.data.batches(data.train, flags.batch_size, fnn.random.fold_in(order_key, epoch))
            for key, batch in zip(keys, command_line.progress(batches, f"epoch {epoch}", steps), strict=True):
                params, state, opt_state, value = step(params, state, opt_state, batch, key)
                total = total + value * len(batch[1])
            scores = training.evaluate(predict, (params, state), data.test)
            history.append({"epoch": epoch, "train_loss": float(total) / samples, **scores})
            resume.keep(output, (params, state, opt_state), flags, history)
            print(training.describe(history[-1]), f"{time.perf_counter() - start:.1f} s", flush=True)
    plots.curves(output / "curves.png", history)
    images, labels = data.test[0][:25], data.test[1][:25]
    logits = predict((params, state), images)
    plots.predictions(output / "predictions.png", images.cpu(), labels.cpu(), logits.cpu(), data.classes)
    print(f"wrote {output}")
    return history[-1]


def make_augmentation(flags: Flags) -> transforms.Transform:
    """The random changes of the training images. Only clothes are mirrored: a mirrored digit is another sign."""
    if not flags.augment:
        return transforms.compose()
    parts = [transforms.random_crop(flags.size, padding=2)]
    if flags.dataset == "fashion_mnist":
        parts.append(transforms.random_flip())
    return transforms.compose(*parts)


if __name__ == "__main__":
    command_line.main(train, Flags())
