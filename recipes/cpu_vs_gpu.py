"""Time training steps on the CPU and on the accelerator: ``python -m recipes.cpu_vs_gpu``.

Perceptrons of several widths are trained with batches of several sizes, each on every device that there is. An epoch is
timed from drawing its order until the device is done with its last step, and a step over calls with one full batch.
Tracing and compilation happen before, in an epoch that is not timed. The recipe has not been run on a GPU.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

import fnn
from recipes import command_line, files, plots
from recipes.plots import plt

Batch = tuple[Tensor, Tensor]


@dataclass
class Flags(command_line.ImageFlags):
    """Time epochs and steps on the CPU and on the accelerator."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """auto compares the CPU with the accelerator if there is one; cpu measures the CPU alone."""
    batch_sizes: list[int] = field(default_factory=lambda: [16, 64, 256, 1024])
    widths: list[int] = field(default_factory=lambda: [64, 256, 1024])
    """Widths of the two hidden layers."""
    epochs: command_line.Count = 3
    """Epochs that are timed, each with as many steps that are timed alone; the medians are shown."""
    learning_rate: command_line.Positive = 1e-3
    """Learning rate of Adam."""


class Row(NamedTuple):
    """What was measured of one network, batch size and device; the loss is that of the last step."""

    device: str
    width: int
    batch_size: int
    parameters: int
    epoch_seconds: float
    step_seconds: float
    loss: float


def measure(flags: Flags) -> list[Row]:
    """Time all combinations, write the files, and return the rows of the table."""
    chosen = command_line.begin(flags)
    data = command_line.load_images(flags, torch.device("cpu"), 28)
    for name, sizes in (("batch-sizes", flags.batch_sizes), ("widths", flags.widths)):
        if not sizes or min(sizes) < 1:
            raise SystemExit(f"--{name} {' '.join(map(str, sizes))}: give numbers that are at least 1")
    command_line.check_batch_size(max(flags.batch_sizes), len(data.train[1]))
    output = files.open_output(flags, "cpu_vs_gpu")
    devices = [torch.device("cpu")] + [chosen] * (chosen.type != "cpu")
    rows = []
    for device in devices:
        train = fnn.tree.to(data.train, device)
        for width in flags.widths:
            for batch_size in flags.batch_sizes:
                rows.append(time_epochs(flags, device, train, width, batch_size, len(data.classes)))
                print(describe(rows[-1], first=len(rows) == 1), flush=True)
    print(conclusion(rows, devices))
    files.write_metrics(output, {"threads": torch.get_num_threads(), "rows": [row._asdict() for row in rows]})
    draw(output / "times.png", rows)
    print(f"wrote {output}")
    return rows


def time_epochs(flags: Flags, device: torch.device, train: Batch, width: int, batch_size: int, classes: int) -> Row:
    """Train for an epoch that is not timed, and then for those that are; then time steps with one batch."""
    model = fnn.models.mlp(train[0][0].numel(), width, width, classes)
    init_key, order_key = fnn.random.split(fnn.random.key(flags.seed, device=device))
    params = model.init(init_key)
    optimizer = fnn.optim.adam(flags.learning_rate)
    opt_state = optimizer.init(params)

    def loss(params: fnn.tree.Tree, batch: Batch) -> Tensor:
        return fnn.losses.cross_entropy(model.apply(params, batch[0]), batch[1])

    def train_step(params: fnn.tree.Tree, opt_state: fnn.tree.Tree, batch: Batch) -> tuple:
        value, grads = fnn.value_and_grad(loss)(params, batch)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return fnn.optim.apply_updates(params, updates), opt_state, value

    step = command_line.jit(train_step, flags)
    first = next(fnn.data.batches(train, batch_size, order_key))
    value = torch.zeros(())

    def take_epoch(epoch: int) -> None:
        nonlocal params, opt_state, value
        for batch in fnn.data.batches(train, batch_size, fnn.random.fold_in(order_key, epoch)):
            params, opt_state, value = step(params, opt_state, batch)

    def take_steps(count: int) -> None:
        for _ in range(count):
            step(params, opt_state, first)

    count = max(1, len(train[1]) // batch_size)
    epochs, steps = [], []
    label = f"{device.type}, width {width}, batches of {batch_size}"
    for epoch in command_line.progress(range(flags.epochs + 1), label, flags.epochs + 1):
        epochs.append(timed(device, take_epoch, epoch))
        steps.append(timed(device, take_steps, count) / count)
    medians = statistics.median(epochs[1:]), statistics.median(steps[1:])
    return Row(device.type, width, batch_size, fnn.tree.size(params), *medians, float(value))


def timed(device: torch.device, call: Callable[[int], None], argument: int) -> float:
    """Seconds until the device has done what the call asks for."""
    synchronize(device)
    start = time.perf_counter()
    call(argument)
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    """Wait until an accelerator is done."""
    if device.type != "cpu":
        torch.accelerator.synchronize()


def describe(row: Row, first: bool) -> str:
    header = "device  width  parameters  batch size  ms per step  s per epoch  images per s\n" if first else ""
    return header + (
        f"{row.device:6s} {row.width:6d} {row.parameters:11,d} {row.batch_size:11d} {1000 * row.step_seconds:12.3f} "
        f"{row.epoch_seconds:12.3f} {row.batch_size / row.step_seconds:13,.0f}"
    )


def conclusion(rows: list[Row], devices: list[torch.device]) -> str:
    """What was compared, and where the accelerator is faster."""
    threads = f"{torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"
    if len(devices) == 1:
        return f"Only the CPU was measured, with {threads}: the rows compare widths and batch sizes."
    times = {(row.device, row.width, row.batch_size): row.step_seconds for row in rows}
    name = devices[1].type
    gains = {
        (width, size): seconds / times[name, width, size]
        for (device, width, size), seconds in times.items()
        if device == "cpu"
    }
    lines = [f"The CPU, with {threads}, was compared with {name}: {device_name(devices[1])}."]
    for words, choose in (("most", max), ("least", min)):
        width, size = choose(gains, key=lambda place: gains[place])
        gain = gains[width, size]
        lines.append(f"{name} gains {words} at width {width}, batches of {size}: {gain:.2f} times the CPU's speed.")
    return "\n".join(lines)


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def draw(path: Path, rows: list[Row]) -> None:
    """Time of a step and of an epoch by batch size: a colour for each width, dashed lines for the accelerator."""
    figure, panels = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    widths = sorted({row.width for row in rows})
    for device, width in dict.fromkeys((row.device, row.width) for row in rows):
        some = sorted((row for row in rows if (row.device, row.width) == (device, width)), key=lambda r: r.batch_size)
        for axes, times in zip(
            panels, ([1000 * r.step_seconds for r in some], [r.epoch_seconds for r in some]), strict=True
        ):
            style = f"C{widths.index(width)}o" + ("-" if device == "cpu" else "--")
            axes.loglog([row.batch_size for row in some], times, style, label=f"{device}, width {width}")
    for axes, words in zip(panels, ("ms per step", "seconds per epoch"), strict=True):
        sizes = sorted({row.batch_size for row in rows})
        axes.set_xticks(sizes, map(str, sizes))
        axes.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
        axes.set(xlabel="batch size", ylabel=words)
        axes.spines[["top", "right"]].set_visible(False)
    panels[1].legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    plots.save(figure, path)


if __name__ == "__main__":
    command_line.main(measure, Flags())
