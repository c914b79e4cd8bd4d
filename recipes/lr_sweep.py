"""Train with 64 learning rates at once, one network for each rate, by ``vmap``: ``python -m recipes.lr_sweep``.

The learning rate is part of the optimizer state, which the train step takes as an argument, so a sweep is ``vmap`` of
the train step. All networks start from the same params and see the same batches; only the rate differs.
"""

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

import fnn
from fnn import optim
from recipes import command_line, files, plots
from recipes.bench import harness


@dataclass
class Flags(command_line.ImageFlags):
    """Train one small perceptron for each of many learning rates, all at once."""

    rates: command_line.Count = 64
    """Number of learning rates, which are evenly spaced on a logarithmic scale."""
    lowest: command_line.Positive = 1e-5
    highest: command_line.Positive = 10.0
    optimizer: Literal["sgd", "adam"] = "adam"
    steps: command_line.Count = 300
    batch_size: command_line.Count = 64
    width: command_line.Count = 32
    """Width of the hidden layer."""
    loop: command_line.CountOrZero = 8
    """Number of rates that are also trained one after the other, to compare times and losses."""


def sweep(flags: Flags) -> dict[str, float]:
    """Train, draw the final loss against the rate, and return the figures that are written to metrics.json."""
    device = command_line.begin(flags)
    if flags.lowest > flags.highest or flags.loop > flags.rates:
        raise SystemExit("give flags with lowest <= highest and loop <= rates")
    data = command_line.load_images(flags, device)
    command_line.check_batch_size(flags.batch_size, len(data.train[1]))
    output = files.open_output(flags, "lr_sweep")
    model = fnn.models.mlp(data.train[0][0].numel(), flags.width, len(data.classes))
    init_key, order_key = fnn.random.split(fnn.random.key(flags.seed)).to(device)
    params = model.init(init_key)
    make = {"sgd": optim.sgd, "adam": optim.adam}[flags.optimizer]
    batches = _batches(data.train, flags, order_key)

    def loss(params: fnn.tree.Tree, batch: tuple[Tensor, Tensor]) -> Tensor:
        return fnn.losses.cross_entropy(model.apply(params, batch[0]), batch[1])

    optimizer = make(1e-3)  # the rate is set in the state

    def train_step(params: fnn.tree.Tree, state: fnn.tree.Tree, batch: tuple[Tensor, Tensor]) -> tuple:
        value, grads = fnn.value_and_grad(loss)(params, batch)
        updates, state = optimizer.update(grads, state, params)
        return optim.apply_updates(params, updates), state, value

    def start(rate: Tensor) -> tuple:
        return fnn.tree.map(torch.clone, params), optim.set_hyperparams(optimizer.init(params), learning_rate=rate)

    def train(step: Callable, first: tuple, label: str) -> tuple[Any, float]:
        params, state = first
        begin = time.perf_counter()
        for batch in command_line.progress(batches, label, len(batches)):
            params, state, _ = step(params, state, batch)
        harness.synchronize()
        return params, time.perf_counter() - begin

    low, high = math.log10(flags.lowest), math.log10(flags.highest)
    rates = torch.logspace(low, high, flags.rates, dtype=torch.float64, device=device)
    all_at_once = command_line.jit(fnn.vmap(train_step, in_dims=(0, 0, None)), flags)
    one = command_line.jit(train_step, flags)
    first = fnn.vmap(start)(rates)
    all_at_once(*first, batches[0])  # so that compilation is not measured
    trained, seconds = train(all_at_once, first, f"{flags.rates} rates at once")
    final = fnn.vmap(loss, in_dims=(0, None))(trained, data.train)
    guessing = math.log(len(data.classes))
    best = int(torch.where(final.isfinite(), final, torch.inf).argmin())
    figures = {
        "best_rate": float(rates[best]),
        "best_loss": float(final[best]),
        "best_test_accuracy": float(_accuracy(model.apply, trained, data.test)[best]),
        "diverged": float((~(final <= guessing)).sum()),
    }
    if flags.loop:
        chosen = [round(i * (flags.rates - 1) / max(1, flags.loop - 1)) for i in range(flags.loop)]
        one(*start(rates[0]), batches[0])
        alone = [train(one, start(rates[i]), f"rate {float(rates[i]):.2g} alone") for i in chosen]
        losses = torch.stack([loss(params, data.train) for params, _ in alone])
        figures["loop_over_vmap"] = sum(s for _, s in alone) / flags.loop * flags.rates / seconds
        calm = final[chosen] < 0.5  # where training is unstable, rounding errors grow
        figures["largest_loss_difference"] = float(((losses - final[chosen]).abs() * calm).nan_to_num(0.0).max())
    rows = [{"rate": float(r), "loss": float(v)} for r, v in zip(rates, final, strict=True)]
    files.write_metrics(output, {"figures": figures, "rates": rows})
    plots.sweep(output / "sweep.png", rates.cpu(), final.cpu(), guessing)
    for name, value in figures.items():
        print(f"{name:24s} {value:.4g}")
    print(f"wrote {output}")
    return figures


def _batches(data: tuple[Tensor, Tensor], flags: Flags, key: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return ``steps`` full batches; every epoch has a new order."""
    batches: list[tuple[Tensor, Tensor]] = []
    for epoch in itertools.count():
        if len(batches) >= flags.steps:
            break
        batches += fnn.data.batches(data, flags.batch_size, fnn.random.fold_in(key, epoch), drop_last=True)
    return batches[: flags.steps]


def _accuracy(apply: Callable, params: fnn.tree.Tree, data: tuple[Tensor, Tensor]) -> Tensor:
    return fnn.vmap(lambda p: fnn.metrics.accuracy(apply(p, data[0]), data[1]))(params)


if __name__ == "__main__":
    command_line.main(sweep, Flags())
