"""The part of a batch, or of anything with a leading axis, that belongs to this process."""

from typing import Any

from torch import Tensor

from fnn import tree as _tree
from fnn._memory import own
from fnn._processes import rank, world_size
from fnn.data.batches import Batches, Stream, batches, part_of
from fnn.tree import Tree


def local(tree: Tree) -> Tree:
    """This process's part of the rows of a tree: of N equal parts along the first axis, the one of its rank.

    ``reduce(local(tree), "concat")`` is the tree again. So a batch that all processes draw from the same key is shared
    out, and so are the members of an ensemble: ``vmap(train_step)(local(params), ...)``. Raises ``ValueError`` if N
    does not divide the number of rows.

    >>> import torch
    >>> local(torch.arange(4))
    tensor([0, 1, 2, 3])
    """
    start, stop = part_of(_tree.leading_length(tree, "tree", "rows"), rank(), world_size())
    return own(_tree.map(lambda leaf: leaf[start:stop], tree), tree)


def local_batches(
    arrays: Tree | Stream[Any], batch_size: int, key: Tensor | None = None, drop_last: bool = False
) -> Batches:
    """This process's part of every batch that ``fnn.data.batches`` makes of the same arguments.

    ``batch_size`` is that of the whole batch, so a run takes the same batches with any number of processes. All
    processes give the same arguments; each reads only its own rows. Raises what :func:`fnn.data.batches` raises, and
    ``ValueError`` if the number of processes does not divide a batch.

    >>> import torch
    >>> [x.tolist() for x in local_batches(torch.arange(4), 2)]
    [[0, 1], [2, 3]]
    """
    return batches(arrays, batch_size, key, drop_last, part=(rank(), world_size()))
