"""The start of a run: which of the processes this one is, its device, and the connection to the others."""

import atexit
import importlib
import os
from datetime import timedelta
from typing import NamedTuple

import torch

from fnn._processes import rank, world_size
from fnn.devices import device as find_device

_BACKENDS = {"cpu": "gloo", "cuda": "nccl", "xpu": "xccl"}
_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


class Processes(NamedTuple):
    """What :func:`init` returns: the number of this process, the number of all processes, and this one's device."""

    rank: int
    world_size: int
    device: torch.device


def init(device: str = "auto", timeout: float = 600.0) -> Processes:
    """Connect the processes that ``torchrun`` has started, or do nothing in a single process.

    Call it once, before anything else: ``rank, world_size, device = fnn.distributed.init()``. The number of this
    process and the address of the first come from the environment that ``torchrun --nproc-per-node N`` sets. Without
    torchrun there is one process, and all functions of this room do what they do for one. ``device`` is "auto", "cpu"
    or "cuda", as in :func:`fnn.device`; on CUDA each process of a machine takes a device of its own, and NCCL carries
    the messages, on the CPU gloo. ``timeout`` is how many seconds a process waits for the others in a communication
    before it raises ``RuntimeError``; with NCCL the process is then ended by torch's watchdog.

    Raises ``ValueError`` for an environment with only a part of torchrun's variables, for a device that torch does not
    find, and for a time-out that is not positive.

    >>> init("cpu")
    Processes(rank=0, world_size=1, device=device(type='cpu'))
    """
    if not timeout > 0:
        raise ValueError(f"init: timeout is a positive number of seconds, got {timeout}")
    given = [name for name in _VARIABLES if name in os.environ]
    if not {"RANK", "WORLD_SIZE"} & set(given) or os.environ.get("WORLD_SIZE") == "1":
        return Processes(rank(), world_size(), find_device(device))
    if missing := [name for name in _VARIABLES if name not in given]:
        raise ValueError(
            f"init: the environment has {', '.join(given)} but not {', '.join(missing)}; start the processes with "
            "torchrun --nproc-per-node N script.py, which sets all of them"
        )
    kind = find_device(device).type
    if kind not in _BACKENDS:
        raise ValueError(f"init: torch connects processes on {', '.join(_BACKENDS)}, not on {kind}; write init('cpu')")
    own = find_device(kind if kind == "cpu" else f"{kind}:{os.environ['LOCAL_RANK']}")
    if world_size() == 1:
        if kind != "cpu":
            torch.accelerator.set_device_index(own)
        _connect(_BACKENDS[kind], timedelta(seconds=timeout))
        atexit.register(torch.distributed.destroy_process_group)
    return Processes(rank(), world_size(), own)


def _connect(backend: str, timeout: timedelta) -> None:
    """Make the group of all processes.

    torchrun keeps its store when it starts the processes again after the end of one of them. The addresses of those
    that have ended are still in it, so each start has keys of its own.
    """
    from torch.distributed.rendezvous import rendezvous

    # imported later, its functions would keep this group and its threads as a default until the interpreter has ended
    importlib.import_module("torch.distributed.nn.functional")

    store, rank, count = next(rendezvous("env://", timeout=timeout))
    store.set_timeout(timeout)
    start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = torch.distributed.PrefixStore(f"fnn/start {start}", store)  # pyright: ignore[reportPrivateImportUsage]
    torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=timeout)
