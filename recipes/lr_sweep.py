"""64 learning rates at once: ``python -m recipes.lr_sweep`` trains one network for each rate by ``vmap``.

The whole train step, optimizer state and all, is a function of the learning rate, so a sweep is ``vmap`` over it. Every
network starts from the same params and sees the same batches; only the rate differs.
"""

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from torch import Tensor

import fnn
from fnn import optim
from recipes import plots


@dataclass
class Flags:
    """Train one small perceptron on the digits for each of many learning rates, all at once."""

    rates: int = 64
    """How many, evenly spaced in the logarithm."""
    lowest: float = 1e-5
    highest: float = 10.0
    optimizer: Literal["sgd", "adam"] = "adam"
    steps: int = 300
    batch_size: int = 64
    width: int = 32
    """Of the hidden layer."""
    seed: int = 0
    loop: int = 8
    """Rates that are also trained one after the other, for the ratio of times and the largest difference."""
    compile: bool = False
    """Compile the step of all networks, and of one."""
    output: Path = Path("runs/lr_sweep")


def sweep(flags: Flags) -> dict[str, float]:
    """Train, draw the final loss against the rate, and return the figures that are written to metrics.json."""
    if flags.rates < 1 or not 0 < flags.lowest <= flags.highest or not 0 <= flags.loop <= flags.rates:
        raise SystemExit("give rates >= 1, 0 < lowest <= highest and 0 <= loop <= rates")
    data = fnn.data.load_dataset("digits")
    model = fnn.models.mlp(64, flags.width, 10)
    init_key, order_key = fnn.random.split(fnn.random.key(flags.seed))
    params = model.init(init_key)
    make = {"sgd": optim.sgd, "adam": optim.adam}[flags.optimizer]
    batches = _batches(data.train, flags, order_key)

    def loss(params: fnn.tree.Tree, batch: tuple[Tensor, Tensor]) -> Tensor:
        return fnn.losses.cross_entropy(model.apply(params, batch[0]), batch[1])

    optimizer = make(1e-3)  # the rate is set in the state

    def step(params: fnn.tree.Tree, state: fnn.tree.Tree, batch: tuple[Tensor, Tensor]) -> tuple:
        value, grads = fnn.value_and_grad(loss)(params, batch)
        updates, state = optimizer.update(grads, state, params)
        return optim.apply_updates(params, updates), state, value

    def start(rate: Tensor) -> tuple:
        return fnn.tree.map(torch.clone, params), optim.set_hyperparams(optimizer.init(params), learning_rate=rate)

    def train(step: Callable, params: Any, state: Any) -> tuple[Any, float]:
        begin = time.perf_counter()
        for batch in batches:
            params, state, _ = step(params, state, batch)
        return params, time.perf_counter() - begin

    low, high = math.log10(flags.lowest), math.log10(flags.highest)
    rates = torch.logspace(low, high, flags.rates, dtype=torch.float64)
    all_at_once: Callable = fnn.vmap(step, in_dims=(0, 0, None))
    one: Callable = step
    if flags.compile:
        all_at_once, one = fnn.jit(all_at_once), fnn.jit(one)
    first = fnn.vmap(start)(rates)
    all_at_once(*first, batches[0])  # compilation and caches are not measured
    trained, seconds = train(all_at_once, *first)
    final = fnn.vmap(loss, in_dims=(0, None))(trained, data.train)
    best = int(torch.where(final.isfinite(), final, torch.inf).argmin())
    figures = {
        "best_rate": float(rates[best]),
        "best_loss": float(final[best]),
        "best_test_accuracy": float(_accuracy(model.apply, trained, data.test)[best]),
        "diverged": float((~(final < 2.3026)).sum()),
    }
    if flags.loop:
        chosen = [round(i * (flags.rates - 1) / max(1, flags.loop - 1)) for i in range(flags.loop)]
        one(*start(rates[0]), batches[0])
        alone = [train(one, *start(rates[i])) for i in chosen]
        losses = torch.stack([loss(params, data.train) for params, _ in alone])
        figures["loop_over_vmap"] = sum(s for _, s in alone) / flags.loop * flags.rates / seconds
        calm = final[chosen] < 0.5  # where training is chaotic, roundings grow
        figures["largest_loss_difference"] = float(((losses - final[chosen]).abs() * calm).nan_to_num(0.0).max())
    flags.output.mkdir(parents=True, exist_ok=True)
    rows = [{"rate": float(r), "loss": float(v)} for r, v in zip(rates, final, strict=True)]
    part = flags.output / "metrics.part"
    part.write_text(json.dumps({"figures": figures, "rates": rows}, indent=1) + "\n")
    os.replace(part, flags.output / "metrics.json")
    plots.sweep(flags.output / "sweep.png", rates, final)
    for name, value in figures.items():
        print(f"{name:24s} {value:.4g}")
    print(f"wrote {flags.output}")
    return figures


def _batches(data: tuple[Tensor, Tensor], flags: Flags, key: Tensor) -> list[tuple[Tensor, Tensor]]:
    """``steps`` full batches, epoch after epoch in new orders."""
    batches: list[tuple[Tensor, Tensor]] = []
    epoch = 0
    while len(batches) < flags.steps:
        whole = [
            (images, labels)
            for images, labels in fnn.data.batches(data, flags.batch_size, fnn.random.fold_in(key, epoch))
            if len(labels) == flags.batch_size
        ]
        if not whole:
            raise SystemExit(f"--batch-size {flags.batch_size} is more than the data set has")
        batches += whole
        epoch += 1
    return batches[: flags.steps]


def _accuracy(apply: Callable, params: fnn.tree.Tree, data: tuple[Tensor, Tensor]) -> Tensor:
    return fnn.vmap(lambda p: fnn.metrics.accuracy(apply(p, data[0]), data[1]))(params)


if __name__ == "__main__":
    sweep(tyro.cli(Flags))
