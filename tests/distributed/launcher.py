"""Groups of gloo processes on this machine, which stay alive and run one function after the other."""

import multiprocessing
import os
import pickle
import socket
from collections.abc import Callable
from typing import Any

_SLOW_IMPORTS = (
    "torch.fx.experimental.symbolic_shapes",
    "torch.fx.experimental.proxy_tensor",
    "torch.distributed._functional_collectives",
)


class Group:
    """``count`` connected processes; ``run(function, *args)`` calls a function of a module in each of them."""

    def __init__(self, count: int, timeout: float = 200.0) -> None:
        context = multiprocessing.get_context("forkserver")
        # imported once, before the processes are forked
        context.set_forkserver_preload([*_SLOW_IMPORTS, "tests.distributed.jobs"])
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.pipes, self.processes = [], []
        for rank in range(count):
            mine, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, rank, count, port, timeout), daemon=True)
            process.start()
            theirs.close()
            self.pipes.append(mine)
            self.processes.append(process)

    def run(self, function: Callable, *args: Any) -> list[Any]:
        """The results of all processes; an exception of one of them stands in the place of its result."""
        self.send(function, *args)
        return [self.result(number) for number in range(len(self.pipes))]

    def send(self, function: Callable, *args: Any) -> None:
        for pipe in self.pipes:
            pipe.send_bytes(pickle.dumps((function, args)))

    def result(self, number: int) -> Any:
        """What a process returns to the last call."""
        assert self.pipes[number].poll(500), "a process hangs"
        return pickle.loads(self.pipes[number].recv_bytes())

    def __call__(self, function: Callable, *args: Any) -> Any:
        """The result of process 0, after a look at the others for exceptions."""
        results = self.run(function, *args)
        for result in results:
            if isinstance(result, Exception):
                raise result
        return results[0]

    def close(self) -> None:
        for pipe in self.pipes:
            pipe.close()
        for process in self.processes:
            process.join(5)
            process.kill()


def _serve(pipe: Any, rank: int, count: int, port: int, timeout: float) -> None:
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }  # fmt: skip
    import torch

    import fnn

    torch.set_num_threads(1)
    fnn.distributed.init("cpu", timeout)
    while True:
        try:
            function, args = pickle.loads(pipe.recv_bytes())
        except EOFError:
            return
        try:
            result = function(*args)
        except Exception as error:
            result = error
        pipe.send_bytes(pickle.dumps(result))
