"""Batches of arrays. A data set is a tree of tensors with a common leading axis."""

from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from fnn import random
from fnn import tree as _tree
from fnn.layers.base import as_size
from fnn.tree import Tree


def batches(arrays: Tree, batch_size: int, key: Tensor | None = None, drop_last: bool = False) -> Iterator[Tree]:
    """Iterate over the rows of a tree of tensors in batches, on the device of the tensors.

    With a key the rows come in the order of ``random.permutation(key, rows)``; use ``fnn.random.fold_in(key, epoch)``
    for another order in each epoch. Without a key they come in stored order. The last batch may be smaller; with
    ``drop_last`` it is then left out. Raises ``TypeError`` for leaves that are not tensors, and ``ValueError`` for
    leaves of different lengths, for a batch size below 1, and if ``drop_last`` leaves no batch.

    >>> x, y = torch.arange(5.0), torch.arange(5)
    >>> [labels.tolist() for _, labels in batches((x, y), 2)]
    [[0, 1], [2, 3], [4]]
    >>> len(list(batches((x, y), 2, random.key(0), drop_last=True)))
    2
    """
    rows = length(arrays)
    batch_size = as_size("batches", "batch_size", batch_size)
    if drop_last and rows < batch_size:
        raise ValueError(f"batches: drop_last leaves none of {rows} rows in batches of {batch_size}")
    order = None if key is None else random.permutation(key, rows).to(_tree.leaves(arrays)[0].device)
    return _cut(arrays, order, rows - rows % batch_size if drop_last else rows, batch_size)


def _cut(arrays: Tree, order: Tensor | None, rows: int, batch_size: int) -> Iterator[Tree]:
    for start in range(0, rows, batch_size):
        stop = min(start + batch_size, rows)
        chosen = slice(start, stop) if order is None else order[start:stop]
        yield _tree.map(lambda leaf, chosen=chosen: leaf[chosen], arrays)


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


def resize(images: Tensor, size: int) -> Tensor:
    """Resize images of shape (batch, channels, height, width) to size x size.

    Square images are padded with zeros if they are smaller by at most 4 pixels and at most a quarter of their size (28
    to 32). All others are interpolated bilinearly (8 to 28). Values stay in the same range. Raises ``ValueError`` for
    other shapes.

    >>> resize(torch.ones(2, 1, 28, 28), 32).shape, resize(torch.ones(2, 1, 8, 8), 28).shape
    (torch.Size([2, 1, 32, 32]), torch.Size([2, 1, 28, 28]))
    """
    size = as_size("resize", "size", size)
    if images.dim() != 4:
        raise ValueError(f"resize expects images of shape (batch, channels, height, width), got {tuple(images.shape)}")
    margin = size - images.shape[-1]
    if margin == 0 and images.shape[-2] == size:
        return images
    if images.shape[-1] == images.shape[-2] and 0 < margin <= min(4, images.shape[-1] // 4):
        before, after = margin // 2, margin - margin // 2
        return F.pad(images, (before, after, before, after))
    return F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)


def from_dataset(dataset: object) -> tuple[Tensor, ...]:
    """Convert an indexable data set of rows (input, label, ...), such as torch's ``Dataset``, to a tuple of tensors.

    Raises ``ValueError`` for a data set without rows and ``TypeError`` for rows that are not tuples or lists.

    >>> rows = [(torch.zeros(2), 3), (torch.ones(2), 4)]
    >>> from_dataset(rows)
    (tensor([[0., 0.], [1., 1.]]), tensor([3, 4]))
    """
    rows = [dataset[i] for i in range(len(dataset))]  # type: ignore[index, arg-type]
    if not rows:
        raise ValueError("from_dataset got a data set without rows")
    if not isinstance(rows[0], (tuple, list)):
        kind = type(rows[0]).__name__
        raise TypeError(f"from_dataset expects rows (input, label, ...), got a {kind} as the first row")
    columns = zip(*rows, strict=True)
    return tuple(torch.stack([torch.as_tensor(value) for value in column]) for column in columns)
