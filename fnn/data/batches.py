"""Batches of rows, of tensors in memory and of streams."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from fnn import random
from fnn import tree as _tree
from fnn.layers.base import as_size
from fnn.tree import Tree

Row = TypeVar("Row")


class Stream(Generic[Row]):
    """A data set whose rows are read when a batch needs them, for what is larger than memory.

    rows: a sequence of what identifies a row, such as the path of an image and its label. ``read(row)`` returns a tree
    of tensors or numbers. ``collate(trees)`` makes one batch of them; by default it stacks the leaves. Rows are read by
    ``workers`` threads, the next batch while this one is used.

    >>> squares = Stream(range(5), lambda number: (torch.tensor(float(number**2)), number))
    >>> len(squares), squares.take([1, 3])
    (5, (tensor([1., 9.]), tensor([1, 3])))
    """

    def __init__(
        self,
        rows: Sequence[Row],
        read: Callable[[Row], Tree],
        collate: Callable[[list[Tree]], Tree] | None = None,
        workers: int = 4,
    ) -> None:
        self.rows, self.read, self.collate = rows, read, collate or stack_rows
        self.workers = as_size("Stream", "workers", workers)

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, indices: Sequence[int]) -> Tree:
        """Return the batch of the rows with these indices."""
        return self.collate([self.read(self.rows[i]) for i in indices])


class Batches(Iterator[Tree]):
    """An iterator over batches. ``len(batches)`` counts all of them, those already taken included."""

    def __init__(self, batches: Iterator[Tree], count: int) -> None:
        self._batches, self._count = batches, count

    def __len__(self) -> int:
        return self._count

    def __next__(self) -> Tree:
        return next(self._batches)


def batches(
    arrays: Tree | Stream[Any],
    batch_size: int,
    key: Tensor | None = None,
    drop_last: bool = False,
    part: tuple[int, int] = (0, 1),
) -> Batches:
    """Iterate over the rows of a tree of tensors, or of a :class:`Stream`, in batches.

    Batches of tensors are on the device of the tensors. With a key the rows come in the order of
    ``random.permutation(key, rows)``; use ``fnn.random.fold_in(key, epoch)`` for another order in each epoch. Without a
    key they come in stored order. The last batch may be smaller; with ``drop_last`` it is then left out.
    ``len(batches(...))`` is the number of batches. Tensors on a file, as ``torch.from_file`` and
    ``torch.from_numpy(numpy.memmap(...))`` make them, are read batch by batch.

    ``part=(i, n)`` gives part i, from 0, of n equal parts of every batch, and reads only its rows: the parts together
    are the batches that one process would see. :func:`fnn.distributed.local_batches` fills it in.

    Raises ``TypeError`` for leaves that are not tensors, and ``ValueError`` for leaves of different lengths, for no
    rows, for a batch size below 1, if ``drop_last`` leaves no batch, and for a batch that cannot be divided into n
    equal parts.

    >>> x, y = torch.arange(5.0), torch.arange(5)
    >>> [labels.tolist() for _, labels in batches((x, y), 2)]
    [[0, 1], [2, 3], [4]]
    >>> len(batches((x, y), 2, random.key(0), drop_last=True))
    2
    """
    rows = len(arrays) if isinstance(arrays, Stream) else length(arrays)
    batch_size = as_size("batches", "batch_size", batch_size)
    if not rows:
        raise ValueError("batches: the data set has no rows")
    if drop_last and rows < batch_size:
        raise ValueError(f"batches: drop_last leaves none of {rows} rows in batches of {batch_size}")
    order = None if key is None else random.permutation(key, rows)
    stop = rows - rows % batch_size if drop_last else rows
    cuts = [(start, min(start + batch_size, stop)) for start in range(0, stop, batch_size)]
    cuts = [(start + s, start + e) for start, end in cuts for s, e in [part_of(end - start, *part)]]
    if isinstance(arrays, Stream):
        numbers = range(rows) if order is None else order.tolist()
        return Batches(_read_ahead(arrays, [numbers[start:end] for start, end in cuts]), len(cuts))
    order = None if order is None else order.to(_tree.leaves(arrays)[0].device)
    return Batches(_cut(arrays, order, cuts), len(cuts))


def part_of(rows: int, number: int, count: int) -> tuple[int, int]:
    """The first row, and the one after the last, of one of ``count`` equal parts of a batch.

    >>> part_of(6, 1, 3)
    (2, 4)
    """
    if rows % count:
        raise ValueError(
            f"a batch of {rows} rows cannot be divided among {count} processes; write a batch size that is a multiple "
            f"of {count}, and drop_last=True where the last batch is smaller"
        )
    size = rows // count
    return number * size, (number + 1) * size


def _cut(arrays: Tree, order: Tensor | None, cuts: list[tuple[int, int]]) -> Iterator[Tree]:
    for start, stop in cuts:
        chosen = slice(start, stop) if order is None else order[start:stop]
        yield _tree.map(lambda leaf, chosen=chosen: leaf[chosen], arrays)


def _read_ahead(stream: Stream[Any], groups: list[Sequence[int]]) -> Iterator[Tree]:
    """Read the rows of each group in threads, and those of the next group before a batch is handed out."""
    with ThreadPoolExecutor(stream.workers) as pool:

        def ask(group: Sequence[int]) -> list[Future]:
            return [pool.submit(stream.read, stream.rows[i]) for i in group]

        coming: list[Future] = []
        try:
            coming = ask(groups[0])
            for following in [*groups[1:], []]:
                rows = [row.result() for row in coming]
                coming = ask(following)
                yield stream.collate(rows)
        finally:
            for row in coming:  # where the loop was left early
                row.cancel()


def stack_rows(rows: list[Tree]) -> Tree:
    """Stack the leaves of equal trees, tensors or numbers, along a new first axis."""
    return _tree.map(lambda *values: torch.stack([torch.as_tensor(value) for value in values]), *rows)


def length(arrays: Tree) -> int:
    """Return the common length of the leading axis.

    Raises ``ValueError`` listing the shapes if the lengths differ, and ``TypeError`` for a leaf that is not a tensor.

    >>> length((torch.zeros(3, 2), torch.zeros(3)))
    3
    """
    for path, leaf in _tree.items(arrays):
        if not isinstance(leaf, Tensor):
            kind = type(leaf).__name__
            line = "dict(batch)" if isinstance(leaf, Mapping) else "torch.as_tensor(array)"
            raise TypeError(f"arrays{f'[{path!r}]' if path else ''} is a {kind}, not a tensor; write {line}")
    shapes = {path: tuple(leaf.shape) for path, leaf in _tree.items(arrays)}
    if not shapes or () in shapes.values() or len({shape[0] for shape in shapes.values()}) != 1:
        raise ValueError(f"arrays need one common length of the leading axis, got shapes {shapes}")
    return next(iter(shapes.values()))[0]
