"""Train with differential privacy by DP-SGD (Abadi et al., 2016): ``python -m recipes.dp_sgd``.

Each step draws every sample with the same probability, clips the gradient of each drawn sample, adds noise to the sum,
and updates the parameters. The noise is the least for which the accountant of ``dp-accounting`` certifies epsilon at
delta after all steps.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

import fnn
from recipes import command_line, files, plots
from recipes.training import evaluate


@dataclass
class Flags(command_line.ImageFlags):
    """Train a small convolutional network with a differential privacy guarantee for each training sample."""

    dataset: Literal["digits", "mnist", "fashion_mnist"] = "mnist"
    epsilon: command_line.Positive = 3.0
    """The guarantee is (epsilon, delta)-differential privacy."""
    delta: command_line.Share = 1e-5
    epochs: command_line.Count = 15
    batch_size: command_line.Count = 1024
    """Expected batch size; the number of samples that are drawn differs from step to step."""
    max_norm: command_line.Positive = 0.1
    """Norm to which the gradient of each sample is clipped."""
    learning_rate: command_line.Positive = 0.5
    """Learning rate for the mean of the clipped gradients, divided by max_norm."""
    momentum: command_line.Momentum = 0.9
    chunk_size: command_line.Count = 256
    """Number of samples whose gradients are computed at a time; it limits memory."""


def network() -> fnn.Layer:
    """Two convolutions and two linear layers with tanh, 26,010 parameters, for 28x28 images."""
    return fnn.layers.sequential(
        fnn.layers.conv2d(1, 16, 8, stride=2, padding=2), fnn.layers.tanh, fnn.layers.max_pool2d(2, 1),
        fnn.layers.conv2d(16, 32, 4, stride=2), fnn.layers.tanh, fnn.layers.max_pool2d(2, 1),
        fnn.layers.flatten, fnn.layers.linear(512, 32), fnn.layers.tanh, fnn.layers.linear(32, 10),
    )  # fmt: skip


def train(flags: Flags) -> dict[str, Any]:
    """Train, draw the accuracy against epsilon, and return what is written to metrics.json."""
    device = command_line.begin(flags)
    (images, labels), test, _ = command_line.load_images(flags, device, size=28)
    count = len(labels)
    command_line.check_batch_size(flags.batch_size, count)
    rate = flags.batch_size / count
    per_epoch = round(1 / rate)
    try:
        noise = fnn.gradients.noise_for_epsilon(flags.epsilon, rate, per_epoch * flags.epochs, flags.delta)
    except (ImportError, ValueError) as error:
        raise SystemExit(str(error)) from None
    output = files.open_output(flags, "dp_sgd")
    largest = min(count, math.ceil(count * rate + 6 * math.sqrt(count * rate)))
    print(f"{per_epoch * flags.epochs} steps of about {flags.batch_size} samples, noise multiplier {noise:.3f}")

    model = network()
    init_key, draw_key, noise_key = fnn.random.split(fnn.random.key(flags.seed), 3).to(device)
    params = fnn.tree.to(model.init(init_key), device)
    optimizer = fnn.optim.sgd(flags.learning_rate, momentum=flags.momentum)
    opt_state = optimizer.init(params)

    def loss(params: fnn.tree.Tree, batch: tuple[Tensor, Tensor]) -> Tensor:
        return fnn.losses.cross_entropy(model.apply(params, batch[0]), batch[1])

    clipped = fnn.clipped_grad(loss, flags.max_norm, chunk_size=flags.chunk_size, method="ghost")

    def train_step(params: fnn.tree.Tree, opt_state: fnn.tree.Tree, number: Tensor) -> tuple:
        drawn = fnn.gradients.poisson_sample(fnn.random.fold_in(draw_key, number), count, rate, largest)
        batch = images[drawn.indices], labels[drawn.indices]
        total = clipped(params, batch, weights=drawn.weights)
        private = fnn.gradients.noise_like(fnn.random.fold_in(noise_key, number), total, noise * flags.max_norm)
        grads = fnn.tree.scale(1 / (flags.batch_size * flags.max_norm), fnn.tree.add(total, private))
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return fnn.optim.apply_updates(params, updates), opt_state, drawn.dropped

    step = command_line.jit(train_step, flags, donate_argnums=(0, 1))
    rows: list[dict[str, float]] = []
    for epoch in range(1, flags.epochs + 1):
        dropped = torch.zeros((), dtype=torch.int64, device=device)
        numbers = range((epoch - 1) * per_epoch, epoch * per_epoch)
        for number in command_line.progress(numbers, f"epoch {epoch}", per_epoch):
            params, opt_state, over = step(params, opt_state, torch.tensor(number, dtype=torch.int32, device=device))
            dropped = dropped + over
        if int(dropped):
            raise SystemExit(f"{int(dropped)} drawn samples did not fit into the batch, so the guarantee does not hold")
        epsilon = fnn.gradients.epsilon_spent(noise, rate, epoch * per_epoch, flags.delta)
        rows.append({"epoch": epoch, "epsilon": epsilon, **evaluate(model.apply, params, test)})
        print("epoch {epoch:3d}  epsilon {epsilon:.3f}  accuracy {test_accuracy:.2%}".format(**rows[-1]), flush=True)
    result = {"noise_multiplier": noise, "delta": flags.delta, "rate": rate, "epochs": rows}
    files.write_metrics(output, result)
    fnn.checkpoint.save(output / "params.safetensors", params)
    plots.privacy(output / "privacy.png", rows, flags.delta)
    print(f"wrote {output}")
    return result


if __name__ == "__main__":
    command_line.main(train, Flags())
