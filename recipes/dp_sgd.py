"""Private training: ``python -m recipes.dp_sgd`` trains on MNIST with DP-SGD (Abadi et al., 2016).

Each step draws every sample with the same probability, clips each sample's gradient, adds noise to the sum, and moves.
The noise is the least for which the accountant of ``dp-accounting`` certifies epsilon at delta after all steps.
"""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from torch import Tensor

import fnn
from recipes import plots
from recipes.training import choose_device, evaluate


@dataclass
class Flags:
    """Train a small convolution network with a differential privacy guarantee for each training sample."""

    dataset: Literal["digits", "mnist", "fashion_mnist"] = "mnist"
    data_root: Path | None = None
    """Folder of the data sets (default: the environment variable FNN_DATA, else ~/.cache/fnn)."""
    epsilon: float = 3.0
    delta: float = 1e-5
    epochs: int = 15
    batch_size: int = 1024
    """Expected; the number drawn differs from step to step."""
    max_norm: float = 0.1
    """To which each sample's gradient is clipped."""
    learning_rate: float = 0.5
    """Of the mean clipped gradient divided by max_norm."""
    momentum: float = 0.9
    chunk_size: int = 256
    """Samples whose activations are alive at a time."""
    seed: int = 0
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    compile: bool = False
    output: Path = Path("runs/dp_sgd")


def network() -> fnn.Layer:
    """Two convolutions and two linear layers with tanh, 26,010 parameters, for 28x28 images."""
    return fnn.layers.sequential(
        fnn.layers.conv2d(1, 16, 8, stride=2, padding=2), fnn.layers.tanh, fnn.layers.max_pool2d(2, 1),
        fnn.layers.conv2d(16, 32, 4, stride=2), fnn.layers.tanh, fnn.layers.max_pool2d(2, 1),
        fnn.layers.flatten, fnn.layers.linear(512, 32), fnn.layers.tanh, fnn.layers.linear(32, 10),
    )  # fmt: skip


def spent(noise: float, rate: float, steps: int, delta: float) -> float:
    """Epsilon at delta after ``steps`` Poisson samples of this rate, by Renyi accounting (Mironov et al., 2019)."""
    try:
        import dp_accounting as accounting  # pyright: ignore[reportMissingImports]
        from dp_accounting import rdp  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise SystemExit("the privacy accountant is a library: pip install 'fnn[privacy]'") from None
    if not steps:
        return 0.0
    step = accounting.PoissonSampledDpEvent(rate, accounting.GaussianDpEvent(noise))
    accountant = rdp.RdpAccountant()
    accountant.compose(accounting.SelfComposedDpEvent(step, steps))
    return float(accountant.get_epsilon(delta))


def least_noise(epsilon: float, rate: float, steps: int, delta: float) -> float:
    """The noise multiplier, to three decimals from above, at which ``spent`` is at most epsilon."""
    low, high = 0.3, 100.0
    if spent(high, rate, steps, delta) > epsilon:
        raise SystemExit(f"epsilon {epsilon} at delta {delta} is out of reach in {steps} steps; take fewer epochs")
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (low, middle) if spent(middle, rate, steps, delta) <= epsilon else (middle, high)
    return math.ceil(high * 1000) / 1000


def train(flags: Flags) -> dict[str, Any]:
    """Train, draw accuracy against epsilon, and return what metrics.json holds."""
    device = choose_device(flags.device)
    data = fnn.data.load_dataset(flags.dataset, flags.data_root, size=28)
    (images, labels), test = fnn.tree.to(data.train, device), fnn.tree.to(data.test, device)
    count = len(labels)
    rate = flags.batch_size / count
    if rate > 1:
        raise SystemExit(f"--batch-size {flags.batch_size} is more than the {count} samples")
    per_epoch = round(1 / rate)
    noise = least_noise(flags.epsilon, rate, per_epoch * flags.epochs, flags.delta)
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

    def step(params: fnn.tree.Tree, opt_state: fnn.tree.Tree, number: Tensor) -> tuple:
        drawn = fnn.gradients.poisson_sample(fnn.random.fold_in(draw_key, number), count, rate, largest)
        batch = images[drawn.indices], labels[drawn.indices]
        total = clipped(params, batch, weights=drawn.weights)
        private = fnn.gradients.noise_like(fnn.random.fold_in(noise_key, number), total, noise * flags.max_norm)
        grads = fnn.tree.scale(1 / (flags.batch_size * flags.max_norm), fnn.tree.add(total, private))
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return fnn.optim.apply_updates(params, updates), opt_state, drawn.dropped

    step = fnn.jit(step, donate_argnums=(0, 1)) if flags.compile else step
    rows: list[dict[str, float]] = []
    for epoch in range(1, flags.epochs + 1):
        dropped = torch.zeros((), dtype=torch.int64, device=device)
        for number in range((epoch - 1) * per_epoch, epoch * per_epoch):
            params, opt_state, over = step(params, opt_state, torch.tensor(number, dtype=torch.int32, device=device))
            dropped = dropped + over
        if int(dropped):
            raise SystemExit(f"{int(dropped)} draws did not fit into the batch, which the accountant does not allow")
        epsilon = spent(noise, rate, epoch * per_epoch, flags.delta)
        rows.append({"epoch": epoch, "epsilon": epsilon, **evaluate(model.apply, params, test)})
        print("epoch {epoch:3d}  epsilon {epsilon:.3f}  accuracy {test_accuracy:.2%}".format(**rows[-1]))
    flags.output.mkdir(parents=True, exist_ok=True)
    result = {"noise_multiplier": noise, "delta": flags.delta, "rate": rate, "epochs": rows}
    part = flags.output / "metrics.part"
    part.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(part, flags.output / "metrics.json")
    fnn.checkpoint.save(flags.output / "params.safetensors", params)
    plots.privacy(flags.output / "privacy.png", rows, flags.delta)
    print(f"wrote {flags.output}")
    return result


if __name__ == "__main__":
    train(tyro.cli(Flags))
