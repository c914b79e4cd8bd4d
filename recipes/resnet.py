"""Train a ResNet on images: ``python -m recipes.resnet``, or ``--dataset fashion_mnist`` for more than the digits.

A network with BatchNorm has params, which are trained, and a state, the running statistics, which the train step takes
and returns. The files of a run hold both in one tree, under the names of torchvision's ResNet.
"""

import json
from dataclasses import dataclass

from torch import Tensor

import fnn
from recipes import command_line, resume, training
from recipes.training import Batch


@dataclass
class Flags(training.TrainFlags):
    """Train ResNet-18 on images."""

    epochs: command_line.Count = 4
    size: command_line.Count = 28
    """Images are resized to this many pixels a side."""
    augment: bool = True
    """Move the training images by up to two pixels at random, and mirror half of those of Fashion-MNIST."""


def train(flags: Flags) -> dict[str, float]:
    """Train, write the files, and return the metrics of the last epoch."""
    device = command_line.begin(flags, many=True)
    data = command_line.load_images(flags, device, flags.size)
    flags = resume.restarted(flags, f"resnet-{flags.dataset}")
    output = resume.open_run(flags, f"resnet-{flags.dataset}")
    model = fnn.models.resnet18(len(data.classes), in_channels=1)
    init_key, order_key = fnn.random.split(fnn.random.key(flags.seed))
    params, state = fnn.tree.to(model.init(init_key), device)
    optimizer = fnn.optim.adam(flags.learning_rate)
    network = fnn.tree.combine(params, state)  # in one tree, as the files of a run have them
    split = lambda network: fnn.tree.partition(network, lambda path: path.endswith(("weight", "bias")))

    def loss(params: fnn.tree.Tree, state: fnn.tree.Tree, batch: Batch) -> tuple[Tensor, fnn.tree.Tree]:
        images, labels = batch
        logits, state = model.apply(params, state, images, train=True)
        return fnn.losses.cross_entropy(logits, labels), state

    # of all processes, if there are several, and with the statistics of the whole batch
    value_and_grads = fnn.value_and_grad(fnn.distributed.sync_batch_norm(loss), has_aux=True)
    value_and_grads = fnn.distributed.data_parallel(value_and_grads, (("mean", "state"), "mean"))

    def train_step(network: fnn.tree.Tree, opt_state: fnn.tree.Tree, batch: Batch) -> tuple:
        params, state = split(network)
        (value, state), grads = value_and_grads(params, state, batch)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return fnn.tree.combine(fnn.optim.apply_updates(params, updates), state), opt_state, value

    def predict(network: fnn.tree.Tree, images: Tensor) -> Tensor:
        params, state = split(network)
        return model.apply(params, state, images, train=False)[0]

    step = command_line.jit(train_step, flags, donate_argnums=(0, 1))
    batches = training.augmented(data.train, flags.size, flags, order_key)
    start, samples = (network, optimizer.init(params)), fnn.data.length(data.train)
    metadata = {"recipe": "resnet", "classes": json.dumps(data.classes), "size": str(flags.size)}
    test = lambda network, opt_state: training.evaluate(predict, network, data.test)
    print(f"device {device}, ResNet-18 with {fnn.tree.size(params):,} parameters")
    rows = []
    with resume.resumable(output):
        for row in resume.fit(flags, output, step, start, batches, samples, test, metadata):
            rows.append(row)
    if fnn.distributed.rank() == 0:
        network, rows = resume.finished(output, device)
        training.draw(output, rows, data, lambda images: predict(network, images))
    return rows[-1]


if __name__ == "__main__":
    command_line.main(train, Flags())
