"""Donation: the results of a step take over the memory of its arguments.

An executable writes each result into the memory of a donated leaf of the same shape and dtype. Then the results get
tensor objects of their own and the donated objects lose their memory, so that an old tree cannot show new values.

What an interrupt leaves behind is the old state or the new one: it is held back while memory is written, and if it
comes then, the old tree keeps the new values. The exchange of memory is one call into C, in the middle of which Python
delivers no signal; an exception right after it exchanges back.
"""

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
    """Keep Ctrl-C back until :func:`release_interrupts`, where Python would handle it: in its main thread."""
    if threading.current_thread() is not threading.main_thread():
        return None
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler):
        return None
    came: list[tuple] = []
    signal.signal(signal.SIGINT, lambda *arguments: came.append(arguments))
    return handler, came


def release_interrupts(held: Any) -> None:
    """Let Ctrl-C through again, and let its handler have the one that came meanwhile."""
    if held is not None:
        handler, came = held
        signal.signal(signal.SIGINT, handler)
        if came:
            handler(*came[0])


def sweep(function: Callable, *columns: Iterable) -> None:
    """Call a function of C for every row, without a moment at which Python could deliver a signal."""
    collections.deque(map(function, *columns), maxlen=0)


def assign(donated: Sequence[Sequence[Any]], results: Sequence[Any], parts: Sequence[int]) -> list[int | None]:
    """For each donated leaf the number of the result that takes its memory, or None where there is none.

    ``donated`` are the leaves of each donated argument, ``results`` the leaves of the result, each described by what
    must be equal (shape, dtype, device), and ``parts`` the numbers of leaves of the result's elements. Each donated
    argument takes the first element of its shapes and dtypes in order; a leaf without such a place takes the first
    free result that fits. Any choice is exact; this one lets each update be merged with its write.
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
    """Put a copy in the place of each donated leaf whose memory somebody else sees, or that cannot be written in place.

    A donated leaf may also be an argument that is not donated: that one is then copied, as it is read meanwhile.
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
    """Gives the memory of donated tensors to tensor objects of its own.

    The emptied objects serve as the next call's new ones unless somebody still holds them: to make tensors costs more
    than all else here.
    """

    def __init__(self) -> None:
        self._spare: list[Tensor] = []

    def __call__(
        self, given: list[Tensor], own: list[Tensor], places: Sequence[int], results: list, treedef: TreeDef
    ) -> Any:
        """The tree of the results. ``given`` are the donated tensors and ``own`` they, or what was copied of them."""
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


# how often an object is referred to that one list and one variable, or element of results, hold while they are counted
_ALONE = next(map(sys.getrefcount, [object()]))
