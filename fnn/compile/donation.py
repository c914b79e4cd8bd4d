"""Donation: the results of a step take over the memory of its arguments.

An executable writes each result into the memory of a donated leaf of the same shape and dtype. Then the results get
new tensor objects and the donated tensor objects lose their memory, so that the old tree cannot show new values.

An interrupt leaves either the old state or the new one, never a mixture. Ctrl-C is delayed while memory is written; if
it arrives during that time, the old tree stays usable and holds the new values. The tensor objects exchange their
memory in one call into C, during which Python delivers no signals. If an exception follows directly after the exchange,
it is undone.
"""

import _signal  # pyright: ignore[reportMissingImports]  # the module signal takes twenty times as long, for its enums
import collections
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from fnn import _torch
from fnn.tree import TreeDef


def hold_interrupts() -> Any:
    """Delay Ctrl-C until :func:`release_interrupts`. Only the main thread handles signals; others do nothing here."""
    if threading.current_thread() is not threading.main_thread():
        return None
    handler = _signal.getsignal(signal.SIGINT)
    if not callable(handler):
        return None
    received: list[tuple] = []
    _signal.signal(signal.SIGINT, lambda *arguments: received.append(arguments))
    return handler, received


def release_interrupts(held: Any) -> None:
    """Restore the handler of Ctrl-C, and call it if Ctrl-C was pressed in the meantime."""
    if held is not None:
        handler, received = held
        _signal.signal(signal.SIGINT, handler)
        if received:
            handler(*received[0])


def sweep(function: Callable, *columns: Iterable) -> None:
    """Call a C function on every row of the columns; the whole loop runs in C, so that no signal can interrupt it."""
    collections.deque(map(function, *columns), maxlen=0)


def assign(donated: Sequence[Sequence[Any]], results: Sequence[Any], parts: Sequence[int]) -> list[int | None]:
    """Find for each donated leaf the index of the result that takes its memory, or None if there is none.

    ``donated`` holds the leaves of each donated argument and ``results`` the leaves of the result, each described by
    what must be equal (shape, dtype, device). ``parts`` holds the number of leaves of each element of the result. Each
    donated argument is matched with the first free element whose leaves have the same descriptions in the same order.
    If there is none, each of its leaves is matched with the first free result that fits. Every matching gives correct
    values; this one usually pairs a leaf with its own update, so that the update can be fused with the write.
    """
    starts = [sum(parts[:i]) for i in range(len(parts))]
    free = dict.fromkeys(range(len(results)))
    places: list[int | None] = []
    for leaves in donated:
        block: list[int] | None = None
        for start, count in zip(starts, parts, strict=True):
            if block is None and start in free and list(results[start : start + count]) == list(leaves):
                block = list(range(start, start + count))
        for leaf in leaves if block is None else ():
            place = next((i for i in free if results[i] == leaf), None)
            if place is not None:
                free.pop(place)
            places.append(place)
        for place in block or ():
            free.pop(place)
            places.append(place)
    return places


def own(leaves: list[Any], donated: Sequence[int]) -> None:
    """Replace each donated leaf that shares memory with another tensor, or cannot be written in place, by a copy.

    A donated leaf may also be passed as an argument that is not donated. That argument is copied too, because it is
    read while the memory of the donated leaf is written.
    """
    for i in donated:
        if not _is_own(leaves[i]):
            leaves[i] = leaves[i].detach().clone()
    taken = {id(leaves[i]) for i in donated}
    if len({*map(id, leaves)}) < len(leaves):
        places = set(donated)
        for i, leaf in enumerate(leaves):
            if id(leaf) in taken and i not in places:
                leaves[i] = leaf.clone()


def _is_own(leaf: Tensor) -> bool:
    return (
        _torch.storage_users(leaf) == 1
        and 0 not in leaf.stride()
        and not leaf.requires_grad
        and not _torch.is_view(leaf)
        and not leaf.is_inference()
        and not leaf.is_conj()
        and not leaf.is_neg()
    )


class Handover:
    """Moves the memory of donated tensors to new tensor objects.

    Creating tensor objects is the most expensive part of this. Therefore the emptied objects of one call are reused as
    the new objects of the next call, unless something else still refers to them.
    """

    def __init__(self) -> None:
        self._spare: list[Tensor] = []

    def exchange(
        self, given: list[Tensor], own: list[Tensor], places: Sequence[int], results: list, treedef: TreeDef
    ) -> Any:
        """Return the tree of results. ``given`` are the donated tensors; ``own`` are these or their copies."""
        news, self._spare = self._spare, []
        if len(news) != len(given) or max(map(sys.getrefcount, news), default=0) > _ALONE:
            news = [*torch.empty((len(given), 0), device="meta").unbind()]
        for place, old, copy, new in zip(places, given, own, news, strict=True):
            results[place] = new if copy is old else copy
        try:
            sweep(_torch.swap_tensors, given, news)
            self._spare = given
            return treedef.unflatten(results)
        except BaseException:
            if given and given[0].is_meta:
                self._spare = []
                sweep(_torch.swap_tensors, given, news)
            raise


# sys.getrefcount of an object that only one list refers to
_ALONE = next(map(sys.getrefcount, [object()]))
