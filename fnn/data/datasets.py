"""Data sets of torch and torchvision as tensors."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from fnn import tree as _tree
from fnn.data.batches import stack_rows
from fnn.data.own_images import pixels_of
from fnn.tree import Tree


def from_dataset(dataset: Any, progress: bool = False) -> Tree:
    """Convert a data set of rows (input, label, ...) to a tuple of tensors, one for each column.

    dataset: any data set of ``torch.utils.data`` or ``torchvision.datasets``, or another collection of rows; or a
    ``DataLoader``, whose batches are joined. Rows are tuples or lists, or dicts, which give a dict of tensors. Tensors
    and numbers are stacked; a PIL image becomes float32 (channels, height, width) in [0, 1]. ``progress`` shows a
    progress bar (needs tqdm).

    Raises ``ValueError`` for a data set without rows and for rows that cannot be stacked, and ``TypeError`` for rows
    that are not tuples, lists or dicts.

    >>> rows = [(torch.zeros(2), 3), (torch.ones(2), 4)]
    >>> from_dataset(rows)
    (tensor([[0., 0.], [1., 1.]]), tensor([3, 4]))
    """
    loaded = isinstance(dataset, DataLoader)
    rows = [_as_tensors(row) for row in _with_progress(_rows_of(dataset), progress, dataset)]
    if not rows:
        raise ValueError("from_dataset got a data set without rows")
    try:
        return _tree.map(lambda *leaves: torch.cat(leaves), *rows) if loaded else stack_rows(rows)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"from_dataset: the rows cannot be stacked ({error}); give them one shape with the data set's transform"
        ) from error


def _rows_of(dataset: Any) -> Iterable[Any]:
    if hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__"):
        return (dataset[i] for i in range(len(dataset)))
    return iter(dataset)


def _with_progress(rows: Iterable[Any], progress: bool, dataset: Any) -> Iterable[Any]:
    if not progress:
        return rows
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise ImportError("from_dataset shows progress through tqdm: pip install 'fnn[recipes]'") from error
    return tqdm(rows, "reading", len(dataset) if hasattr(dataset, "__len__") else None)


def _as_tensors(row: Any) -> Tree:
    if isinstance(row, Mapping):
        return {name: _as_tensor(value) for name, value in row.items()}
    if isinstance(row, (tuple, list)):
        return tuple(_as_tensor(value) for value in row)
    raise TypeError(f"from_dataset expects rows (input, label, ...), got a {type(row).__name__} as a row")


def _as_tensor(value: Any) -> Tensor:
    return pixels_of(value) if hasattr(value, "getbands") else torch.as_tensor(value)  # PIL images have bands
