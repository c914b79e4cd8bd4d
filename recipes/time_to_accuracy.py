"""Measure the training time to a test accuracy, over many seeds: ``python -m recipes.time_to_accuracy``.

One call takes ``every`` steps by ``fnn.scan``, over batches that are gathered on the device. The time of these calls
and of drawing the order of each epoch is measured, until the device is done. After each call the whole test set is
classified; this is not measured, because how often the accuracy is checked is not part of training. The time of
tracing and compilation is the time of the first call less that of a later one, and is reported separately. Loading the
data is not measured. A second row trains all seeds together by ``vmap``, with one clock for all of them. A picture
shows the accuracy of each seed by its training time. On MNIST, which takes minutes for each seed:
``--dataset mnist --targets 0.9 0.99 --every 100 --seeds 3``. The recipe has not been run on a GPU.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

import fnn
from recipes import command_line, files, plots


@dataclass
class Flags(command_line.ImageFlags):
    """Train from several seeds until the test accuracies are reached, one after the other and all together."""

    model: Literal["lenet", "mlp"] = "lenet"
    targets: list[float] = field(default_factory=lambda: [0.9, 0.95])
    """Test accuracies; a run ends when it has reached them all."""
    seeds: command_line.Count = 3
    """Number of networks that are trained; their keys are derived from --seed."""
    epochs: command_line.Count = 60
    """Maximum number of epochs; a target that is not reached by then counts as not reached."""
    every: command_line.Count = 11
    """Steps in one call; the accuracy is checked after each call."""
    batch_size: command_line.Count = 64
    learning_rate: command_line.Positive = 1e-3
    """Learning rate of Adam."""
    unroll: command_line.Count = 1
    """Steps of the scan that are unrolled into one iteration."""
    mode: Literal["default", "reduce-overhead"] = "default"
    """reduce-overhead uses CUDA graphs; it needs --compile."""
    together: bool = True
    """Also train all seeds at once by vmap."""


class Trainer:
    """The compiled functions for one seed, or for several along a leading axis."""

    def __init__(self, flags: Flags, data: fnn.data.Images, together: bool) -> None:
        self.flags, self.train, self.test = flags, data.train, data.test
        size = data.train[0].shape[-1]
        model = fnn.models.mlp(size * size, 512, 512, 10) if flags.model == "mlp" else fnn.models.lenet()
        optimizer = fnn.optim.adam(flags.learning_rate)
        length, width = fnn.data.length(data.train), flags.every * flags.batch_size
        if length < width:
            raise SystemExit(f"--every {flags.every} batches of {flags.batch_size} are more than the {length} samples")
        self.calls = length // width  # of an epoch

        def start(key: Tensor) -> tuple:
            params = model.init(fnn.random.fold_in(key, 0))
            return params, optimizer.init(params)

        def train_step(carry: tuple, index: Tensor, train: tuple[Tensor, Tensor]) -> tuple:
            loss = lambda params: fnn.losses.cross_entropy(model.apply(params, train[0][index]), train[1][index])
            params, state = carry
            value, grads = fnn.value_and_grad(loss)(params)
            updates, state = optimizer.update(grads, state, params)
            return (fnn.optim.apply_updates(params, updates), state), value

        def order(key: Tensor, epoch: Tensor) -> Tensor:
            key = fnn.random.fold_in(fnn.random.fold_in(key, 1), epoch)
            chosen = fnn.random.permutation(key, length)[: self.calls * width]
            return chosen.reshape(self.calls, flags.every, flags.batch_size)

        def accuracy(carry: tuple, test: tuple[Tensor, Tensor]) -> Tensor:
            parts = [
                fnn.metrics.accuracy(model.apply(carry[0], images), labels) * len(labels)
                for images, labels in fnn.data.batches(test, 2000)
            ]
            return torch.stack(parts).sum() / len(test[1])

        # the axis of the seeds comes after those of the calls and steps
        each: Callable = fnn.vmap(train_step, in_dims=(0, 0, None)) if together else train_step

        def train_steps(carry: tuple, indices: Tensor, train: tuple[Tensor, Tensor]) -> tuple:
            return fnn.scan(lambda carry, index: each(carry, index, train), carry, indices, unroll=flags.unroll)

        mode = {} if flags.mode == "default" else {"mode": flags.mode}
        self.run = command_line.jit(train_steps, flags, donate_argnums=0, **mode)
        self.order = command_line.jit(fnn.vmap(order, (0, None), out_dims=2) if together else order, flags)
        self.accuracy: Callable = fnn.vmap(accuracy, in_dims=(0, None)) if together else accuracy
        self.start = fnn.vmap(start) if together else start

    def reach(self, key: Tensor, label: str) -> tuple[list[Tensor], list[tuple[float, Tensor]]]:
        """Train until all targets are reached.

        Return, for each target, the seconds after which it was first reached, or infinity if it was not, and the
        accuracies with the seconds until then. They are tensors with the batch shape of ``key``: () for one seed,
        (seeds,) for several.
        """
        carry, seconds, curve = self.start(key), 0.0, []
        reached, shown = [torch.full(key.shape[:-1], torch.inf) for _ in self.flags.targets], time.monotonic()
        accuracy = torch.zeros(key.shape[:-1])
        for epoch in torch.arange(self.flags.epochs, dtype=torch.int32, device=key.device):
            calls = command_line.progress(range(self.calls), f"{label}, epoch {int(epoch) + 1}", self.calls)
            for call in calls:
                begin = time.perf_counter()
                if call == 0:
                    indices = self.order(key, epoch)
                carry, losses = self.run(carry, indices[call], self.train)
                losses.cpu()  # waits for the device
                seconds += time.perf_counter() - begin
                accuracy = self.accuracy(carry, self.test).cpu()
                curve.append((seconds, accuracy))
                reached = [
                    torch.where((accuracy >= target) & old.isinf(), seconds, old)
                    for target, old in zip(self.flags.targets, reached, strict=True)
                ]
                if all(bool(times.isfinite().all()) for times in reached):
                    return reached, curve
            if time.monotonic() - shown > 5:
                shown = time.monotonic()
                print(f"{label}: {float(accuracy.min()):.1%} after {seconds:.1f} s", flush=True)
        return reached, curve

    def compile_seconds(self, key: Tensor) -> float:
        """The time of tracing and compilation: that of the first call less that of the second."""

        epoch = torch.zeros((), dtype=torch.int32, device=key.device)

        def once() -> float:
            carry = self.start(key)
            begin = time.perf_counter()
            carry, losses = self.run(carry, self.order(key, epoch)[0], self.train)
            losses.cpu()
            return time.perf_counter() - begin

        first = once()
        return max(0.0, first - once())


def measure(flags: Flags) -> dict[str, Any]:
    """Train, print the times, and return what is written to metrics.json."""
    device = command_line.begin(flags)
    if not flags.targets or not all(0 < target <= 1 for target in flags.targets):
        raise SystemExit(f"--targets {flags.targets}: give at least one accuracy above 0 and at most 1")
    if flags.mode != "default" and not flags.compile:
        raise SystemExit(f"--mode {flags.mode} needs --compile")
    data = command_line.load_images(flags, device, size=32 if flags.model == "lenet" else None)
    key = fnn.random.key(flags.seed).to(device)
    keys = torch.stack([fnn.random.fold_in(key, seed) for seed in range(flags.seeds)])

    alone = Trainer(flags, data, together=False)
    output = files.open_output(flags, "time_to_accuracy")
    compiling = alone.compile_seconds(key)
    targets = ", ".join(f"{target:.1%}" for target in flags.targets)
    print(f"traced and compiled in {compiling:.1f} s; seconds to {targets}:", flush=True)
    runs, curves = [], []
    for seed in range(flags.seeds):
        reached, curve = alone.reach(keys[seed], f"seed {seed}")
        runs.append(reached)
        curves.append(([seconds for seconds, _ in curve], [float(accuracy) for _, accuracy in curve]))
        print(f"seed {seed:3d}  " + "  ".join(f"{float(seconds):7.2f}" for seconds in reached), flush=True)
    plots.reaching(output / "accuracy.png", curves, flags.targets)
    rows = {"one after the other": _row(flags, compiling, [torch.stack(column) for column in zip(*runs, strict=True)])}
    if flags.together:
        every = Trainer(flags, data, together=True)
        compiling = every.compile_seconds(keys)
        print(f"all seeds together by vmap: traced and compiled in {compiling:.1f} s", flush=True)
        reached, _ = every.reach(keys, "all seeds together, the worst")
        rows["together by vmap"] = _row(flags, compiling, reached)
    result = {"dataset": flags.dataset, "model": flags.model, "device": str(device), "rows": rows}
    for name, row in rows.items():
        print(f"{name}: compile {row['compile_seconds']:.1f} s")
        for target, found in row["targets"].items():
            print(f"  {float(target):.1%}: {found['reached']} of {flags.seeds} seeds", end="")
            print(
                ", {mean:.2f} s, spread {spread:.2f} s, last {last:.2f} s".format(**found) if found["reached"] else ""
            )
    files.write_metrics(output, result)
    print(f"wrote {output}")
    return result


def _row(flags: Flags, compile_seconds: float, times: list[Tensor]) -> dict[str, Any]:
    """Mean and standard deviation over the seeds that reached a target, and how many did."""
    targets = {}
    for target, column in zip(flags.targets, times, strict=True):
        found = [value for value in column.tolist() if value < float("inf")]
        spread = statistics.stdev(found) if len(found) > 1 else 0.0
        figures = {"mean": statistics.mean(found), "spread": spread, "last": max(found)} if found else {}
        targets[str(target)] = {"reached": len(found), **figures}
    return {"compile_seconds": compile_seconds, "targets": targets}


if __name__ == "__main__":
    command_line.main(measure, Flags())
