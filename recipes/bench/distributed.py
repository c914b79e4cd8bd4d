"""Steps of several processes, against torch's DistributedDataParallel and FSDP2: time and bytes sent.

``python -m recipes.bench distributed`` starts gloo processes on this machine, in which all rivals take turns, so that
every row is a ratio within one run. They start from the same params, take the same batch, of which each process has a
part, and give the same loss. The bytes are those that the operating system has sent through the connections of process
0. On one machine the processes share its cores and its memory, so the times say what a step costs beside its
arithmetic, and nothing about links.
"""

import argparse
import multiprocessing
import os
import random
import socket
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor

import fnn
from recipes.bench import harness, networks

Step = Callable[[], Tensor]
RATE = 1e-3


def fnn_parallel(name: str, start: dict[str, Tensor], batch: tuple, backend: str) -> Step:
    model = networks.layer(name)
    f = fnn.distributed.data_parallel(fnn.value_and_grad(_loss(model)))
    return _steps(f, _params(start), batch, backend)


def fnn_sharded(name: str, start: dict[str, Tensor], batch: tuple, backend: str) -> Step:
    model = networks.layer(name)
    parts, sharding = fnn.distributed.shard(_params(start))
    return _steps(fnn.distributed.fully_sharded(fnn.value_and_grad(_loss(model)), sharding), parts, batch, backend)


def _params(start: dict[str, Tensor]) -> dict:
    return fnn.tree.from_state_dict({path: leaf.clone() for path, leaf in start.items()})  # which the steps donate


def _loss(model: fnn.Layer) -> Callable:
    return lambda params, batch: fnn.losses.cross_entropy(model.apply(params, batch[0]), batch[1])


def _steps(f: Callable, params: Any, batch: tuple, backend: str) -> Step:
    optimizer = fnn.optim.adam(RATE)
    state = params, optimizer.init(params)

    @fnn.jit(donate_argnums=(0, 1), backend=backend)
    def step(params: Any, opt_state: Any, batch: tuple) -> tuple:
        value, grads = f(params, batch)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return fnn.optim.apply_updates(params, updates), opt_state, value

    def call() -> Tensor:
        nonlocal state
        *state, value = step(*state, batch)
        return value

    return call


def torch_parallel(name: str, start: dict[str, Tensor], batch: tuple, backend: str) -> Step:
    module = networks.module(name)
    module.load_state_dict(start)
    network = torch.nn.parallel.DistributedDataParallel(module)
    return _torch_steps(network, batch)


def torch_sharded(name: str, start: dict[str, Tensor], batch: tuple, backend: str) -> Step:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    module = networks.module(name)
    module.load_state_dict(start)
    mesh = init_device_mesh("cpu", (fnn.distributed.world_size(),))
    taken: set[torch.nn.Module] = {module}
    for part in module.modules():
        if part not in taken and next(part.parameters(recurse=False), None) is not None:
            fully_shard(part, mesh=mesh)
            taken |= {*part.modules()}  # an attention reads the weight of the linear layer inside it by itself
    fully_shard(module, mesh=mesh)  # in place
    return _torch_steps(module, batch)


def _torch_steps(network: torch.nn.Module, batch: tuple) -> Step:
    optimizer = torch.optim.Adam(network.parameters(), lr=RATE, fused=True)

    def call() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(network(batch[0]), batch[1])
        value.backward()
        optimizer.step()
        value = value.detach()
        torch.distributed.all_reduce(value)  # fnn's loss is that of all processes
        return value / fnn.distributed.world_size()

    return call


RIVALS = {
    "fnn data_parallel": fnn_parallel,
    "DistributedDataParallel": torch_parallel,
    "fnn fully_sharded": fnn_sharded,
    "FSDP2 fully_shard": torch_sharded,
}
BASES = {"fnn data_parallel": "DistributedDataParallel", "fnn fully_sharded": "FSDP2 fully_shard"}


def bytes_sent() -> int:
    """The bytes that this process has sent through all TCP connections it holds, and that have arrived. Linux only."""
    total = 0
    for entry in os.listdir("/proc/self/fd"):
        try:
            kind = os.readlink(f"/proc/self/fd/{entry}")
            if not kind.startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(entry))) as connection:
                info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 232)
        except OSError:  # a file that was closed meanwhile, or a socket of another kind
            continue
        total += int.from_bytes(info[120:128], "little")  # tcpi_bytes_acked
    return total


def serve(rank: int, count: int, port: int, name: str, batch_size: int, rounds: int, backend: str, pipe: Any) -> None:
    """One of the processes. Process 0 sends seconds and bytes of a step for each rival."""
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }  # fmt: skip
    harness.begin()
    fnn.distributed.init("cpu")
    torch.manual_seed(0)
    start = networks.module(name).state_dict()
    batch = fnn.distributed.local(networks.batch(name, batch_size))
    steps = {rival: make(name, start, batch, backend) for rival, make in RIVALS.items()}
    losses = {rival: [float(step()) for _ in range(3)] for rival, step in steps.items()}
    for rival, values in losses.items():
        if max(abs(a - b) for a, b in zip(values, losses["DistributedDataParallel"], strict=True)) > 1e-4:
            raise SystemExit(f"{rival} has losses {values}, and torch {losses['DistributedDataParallel']}")
    seconds: dict[str, list[float]] = {rival: [] for rival in steps}
    sent = {}
    for number in range(rounds):
        for rival, step in random.Random(number).sample(list(steps.items()), len(steps)):
            step()
            torch.distributed.barrier()
            before, begin = bytes_sent(), time.perf_counter()
            for _ in range(10):
                step()
            seconds[rival].append((time.perf_counter() - begin) / 10)
            torch.distributed.barrier()  # its own bytes are a few hundred
            sent[rival] = (bytes_sent() - before) / 10
    if rank == 0:
        medians = {rival: statistics.median(values) for rival, values in seconds.items()}
        pipe.send((medians, sent, sum(leaf.nbytes for leaf in start.values())))


def measure(name: str, count: int, batch_size: int, rounds: int, backend: str) -> tuple[dict, dict, int]:
    """Seconds and bytes of a step for each rival, and the bytes of the params."""
    context = multiprocessing.get_context("spawn")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mine, theirs = context.Pipe()
    given = (count, port, name, batch_size, rounds, backend, theirs)
    processes = [context.Process(target=serve, args=(rank, *given)) for rank in range(count)]
    for process in processes:
        process.start()
    theirs.close()
    try:
        return mine.recv()
    except EOFError:
        raise SystemExit("a process has ended with an error") from None
    finally:
        for process in processes:
            process.join(30)


def main() -> None:
    parser = argparse.ArgumentParser("recipes.bench distributed")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--networks", nargs="+", default=["mlp", "lenet", "transformer"])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--backend", choices=["replay", "inductor"], default="replay")
    options = parser.parse_args()
    rows = []
    for name in options.networks:
        seconds, sent, size = measure(name, options.processes, options.batch, options.rounds, options.backend)
        for rival, base in BASES.items():
            ratios = [seconds[rival] / seconds[base], sent[rival] / sent[base]]
            rows.append([name, rival, base, *ratios, sent[rival] / size, sent[base] / size])
    header = ["network", "fnn", "torch", "time, fnn over torch", "bytes sent, fnn over torch",
              "fnn's bytes over those of the params", "torch's"]  # fmt: skip
    harness.report(
        f"distributed {options.processes} {options.backend}",
        f"Steps of {options.processes} processes, Adam, batch {options.batch}, {options.backend}",
        harness.table(header, rows) + "\n\nMedians of rounds in which all four take turns, on gloo within one machine.",
    )


if __name__ == "__main__":
    main()
