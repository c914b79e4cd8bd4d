"""What the processes of a group are asked to do with checkpoints. Every function runs in a single process as well."""

import os
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

import fnn
from fnn import distributed
from fnn.distributed.checkpoints import INDEX
from tests.distributed.jobs import loss_of, network


def sharded_state(optimizer: fnn.Optimizer) -> tuple[Any, Any, Any]:
    """The parts of a transformer's params and of an optimizer's state, and the shardings of the params and of both."""
    params = fnn.tree.cast(network("transformer")[0].init(fnn.random.key(0)), torch.float64)
    sharding = distributed.shard(params)[1]
    parts, both = distributed.shard((params, optimizer.init(params)))
    return parts, sharding, both


def train(start: str | None, steps: range, end: str | None) -> dict:
    """Steps of Adam from the first params, or from a checkpoint; the params after them, which are also saved."""
    optimizer = fnn.optim.adam(0.01)
    model, data = network("transformer")
    data = fnn.tree.cast(data, torch.float64)
    state, sharding, both = sharded_state(optimizer)
    if start is not None:
        assert distributed.load_metadata(start) == {"step": str(steps.start)}
        state = distributed.load(start, state, both)
    value_and_grads = distributed.fully_sharded(fnn.value_and_grad(loss_of(model)), sharding)
    params, opt_state = state
    for number in steps:
        batch = next(distributed.local_batches(data, 8, fnn.random.fold_in(fnn.random.key(1), number)))
        _, grads = value_and_grads(params, batch)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = fnn.optim.apply_updates(params, updates)
    if end is not None:
        distributed.save(end, (params, opt_state), both, {"step": str(steps.stop)})
    return fnn.tree.to_state_dict(distributed.gather(params, sharding))


def message(f: Any) -> str:
    try:
        f()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def fit_from_another_seed(folder: str) -> str:
    """The message of ``fit`` where each process has made its params from a key of its own."""
    params = network("mlp")[0].init(fnn.random.key(distributed.rank()))
    batches = lambda epoch: iter([torch.ones(2)])
    epochs = fnn.training.fit(lambda params, batch: (params, batch.sum()), (params,), batches, 1, folder=folder)
    return message(lambda: next(epochs))


def fit_with_a_signal(folder: str, number: int | None, at: int = 5) -> tuple[str, list[float]]:
    """Four epochs of three steps, in which the last process gets a signal: how ``fit`` ends, and the params then."""
    params, seen = torch.ones(2, dtype=torch.float64), 0

    def step(params: torch.Tensor, batch: torch.Tensor) -> tuple:
        nonlocal seen
        seen += 1
        if seen == at and number is not None and distributed.rank() == distributed.world_size() - 1:
            os.kill(os.getpid(), number)
        return params * 1.5 - distributed.reduce(batch.mean(0)), params.sum()

    data = fnn.random.normal(fnn.random.key(0), (12, 2), torch.float64)
    batches = lambda epoch: distributed.local_batches(data, 4, fnn.random.fold_in(fnn.random.key(1), epoch))
    end = "end"
    try:
        for epoch in fnn.training.fit(step, (params,), batches, 4, folder=folder, resume=True):
            params = epoch.state[0]
    except KeyboardInterrupt:
        end = "interrupted"
    return end, params.tolist()


def fit_with_a_signal_on_nccl(folder: str, number: int | None, at: int = 5) -> tuple[str, list[float]]:
    """The same where the messages of the run do not go between CPUs, so that those about signals need another group."""
    with patch("torch.distributed.get_backend", lambda: "nccl"):
        return fit_with_a_signal(folder, number, at)


def errors(folder: str) -> dict[str, str]:
    """The messages of all mistakes in a row, in this process."""
    rank = distributed.rank()
    parts, sharding = distributed.shard({"w": torch.arange(8.0), "b": torch.ones(3)})
    other, other_sharding = distributed.shard({"w": torch.arange(4.0), "c": torch.ones(3)})
    place = Path(folder)
    good = place / "good"
    distributed.save(good, parts, sharding)
    found = {
        "exists": message(lambda: distributed.save(good, parts, sharding)),
        "missing": message(lambda: distributed.load(place / "nothing", parts, sharding)),
        "other tree": message(lambda: distributed.load(good, other, other_sharding)),
        "leaf": message(lambda: distributed.save(place / "leaf", {"w": 1.0})),
        # one process has another path, in a folder that cannot be made
        "no folder": message(lambda: distributed.save(place / "good" / INDEX / "x", parts, sharding)),
    }
    files = sorted(good.glob("*.safetensors"))
    distributed.reduce(torch.zeros(1))  # everybody has listed the files
    if rank == 0:
        contents = bytearray(files[-1].read_bytes())
        contents[-1] ^= 1
        files[-1].write_bytes(contents)
    distributed.reduce(torch.zeros(1))
    found["altered"] = message(lambda: distributed.load(good, parts, sharding))
    distributed.reduce(torch.zeros(1))
    if rank == 0:
        files[-1].unlink()
    distributed.reduce(torch.zeros(1))
    found["removed"] = message(lambda: distributed.load(good, parts, sharding))
    found["left behind"] = " ".join(sorted(path.name for path in place.iterdir()))
    return found
