"""Ctrl-C and SIGTERM during a run: it ends after a whole step, which is the same one in all processes."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from fnn import _torch
from fnn._processes import explained_failures, world_size

_REPEATED = 0.5  # seconds in which a signal counts once: torchrun passes one on that a terminal may have sent as well


class Interrupts:
    """The signals that ask a run to stop, in this process or in one of the others."""

    def __init__(self) -> None:
        self._first: float | None = None  # when the first signal came
        self._group = _group_of_cpus() if world_size() > 1 else None
        self._sent: tuple[Tensor, Any] | None = None

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Context manager: signals inside the block are noted. A second one, half a second later, interrupts at once.

        SIGTERM is left alone if the program has a handler of its own for it.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        if before[signal.SIGTERM] is not signal.SIG_DFL:
            del before[signal.SIGTERM]
        for number in before:
            signal.signal(number, self._note)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def after_a_step(self) -> bool:
        """Whether to stop now. All processes call this after the same steps, and get the same answer.

        Each process tells the others after a step whether it was interrupted, and looks after the next step at what
        they have told, so that none waits for a message.
        """
        if world_size() == 1:
            return self._first is not None
        before, self._sent = self._sent, self._send()
        return before is not None and self._received(before)

    def now(self) -> bool:
        """Whether any process has been interrupted. All call this together, and each waits for the others."""
        if world_size() == 1:
            return self._first is not None
        if self._sent is not None:
            self._received(self._sent)  # nothing is on its way when the process ends
            self._sent = None
        return self._received(self._send())

    def close(self) -> None:
        """Close the connections that these messages alone need."""
        if self._group is not None:
            torch.distributed.destroy_process_group(self._group)

    def _note(self, number: int, frame: Any) -> None:
        if self._first is None:
            self._first = time.monotonic()
        elif time.monotonic() - self._first > _REPEATED:
            raise KeyboardInterrupt

    def _send(self) -> tuple[Tensor, Any]:
        count = torch.tensor([self._first is not None], dtype=torch.int32)
        with explained_failures():
            return count, torch.distributed.all_reduce(count, group=self._group, async_op=True)

    def _received(self, sent: tuple[Tensor, Any]) -> bool:
        count, work = sent
        with explained_failures():
            work.wait()
        return bool(count)


def _group_of_cpus() -> Any:
    """A group that sends tensors on the CPU; None stands for that of the run."""
    if torch.distributed.get_backend() == "gloo":
        return None
    return torch.distributed.new_group(backend="gloo", timeout=_torch.shared_store("fnn").timeout)
