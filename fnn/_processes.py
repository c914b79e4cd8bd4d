"""The processes of a run that compute together: how many there are, and whether they do the same."""

import hashlib
import itertools
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from fnn import _torch

_FAILURES = re.compile(
    r"timed out|timeout|closed by peer|reset by peer|pair closure|broken pipe|refused", re.IGNORECASE
)
_checks = itertools.count()


def rank() -> int:
    """The number of this process, from 0 to ``world_size() - 1``. It is 0 without :func:`fnn.distributed.init`.

    >>> rank()
    0
    """
    return torch.distributed.get_rank() if _is_initialized() else 0


def world_size() -> int:
    """The number of processes. It is 1 without :func:`fnn.distributed.init`.

    >>> world_size()
    1
    """
    return torch.distributed.get_world_size() if _is_initialized() else 1


def _is_initialized() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def check_agreement(what: str, lines: Sequence[str]) -> None:
    """Raise ``ValueError`` on every process unless all processes call this with the same lines.

    The lines describe what the processes are about to do together, and ``what`` names it in the message. Every process
    must make the same calls in the same order. One that does not come is a ``RuntimeError`` after the time-out of
    :func:`fnn.distributed.init`.
    """
    if world_size() == 1:
        return
    store = _torch.shared_store(f"fnn/{next(_checks)}")
    mine = "\n".join([what, *lines])
    store.set(f"digest of {rank()}", hashlib.sha256(mine.encode()).hexdigest())
    with explained_failures():
        if rank() == 0:
            digests = [store.get(f"digest of {other}") for other in range(world_size())]
            store.set("differs", next((str(i) for i, digest in enumerate(digests) if digest != digests[0]), ""))
        other = store.get("differs").decode()
        if not other:
            return
        store.set(f"lines of {rank()}", mine)
        first, second = (store.get(f"lines of {number}").decode() for number in ("0", other))
    raise ValueError(_difference(first, second, other))


def digests(places: Sequence[str], leaves: Sequence[Tensor]) -> list[str]:
    """A line for each leaf, which is the same for the same bits."""
    lines = []
    for place, leaf in zip(places, leaves, strict=True):
        contents = leaf.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest = hashlib.sha256(contents.numpy().data).hexdigest()[:16]
        lines.append(f"{place} of shape {tuple(leaf.shape)}, {leaf.dtype}, with the digest {digest}")
    return lines


def _difference(text: str, other_text: str, other: str) -> str:
    rows = itertools.zip_longest(text.split("\n"), other_text.split("\n"), fillvalue="nothing")
    first, second = next(row for row in rows if row[0] != row[1])
    what = text.split("\n")[0]
    return (
        f"{what} differs between processes: process {other} has {second} where process 0 has {first}. All processes "
        "must run the same code, with the same numbers in it, on trees of the same structure and shapes"
    )


@contextmanager
def explained_failures() -> Iterator[None]:
    """Explain an error of a communication that is caused by another process, which has ended or did not come."""
    try:
        yield
    except RuntimeError as error:
        if world_size() == 1 or not _FAILURES.search(str(error)):
            raise
        raise RuntimeError(
            f"process {rank()} of {world_size()} has waited in vain for the others: one of them has ended, or did not "
            "come to the same communication within the time-out of fnn.distributed.init(timeout=...). If none of them "
            f"shows an error, they do not run the same code. ({str(error).splitlines()[0]})"
        ) from error


def all_values(value: Any) -> list[Any]:
    """The values, which can be pickled, that all processes give to this function, in the order of the processes.

    >>> all_values(3)
    [3]
    """
    if world_size() == 1:
        return [value]
    found: list[Any] = [None] * world_size()
    with explained_failures():
        torch.distributed.all_gather_object(found, value)
    return found
