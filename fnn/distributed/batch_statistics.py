"""BatchNorm over the batches of all processes: a sum over processes inside the function that is differentiated."""

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor

from fnn import _torch
from fnn._processes import explained_failures, world_size
from fnn.jacobian.custom_derivatives import custom_vjp
from fnn.layers.batch_norm import statistics_of_all


def sync_batch_norm(f: Callable) -> Callable:
    """The function ``f``, such as a loss, in which BatchNorm in training normalises by the batches of all processes.

    Without it, each process takes the mean and variance of its own part of the batch, as with torch's modules; with it
    the result is that of one process with the whole batch, as with ``torch.nn.SyncBatchNorm``. Write
    ``data_parallel(value_and_grad(sync_batch_norm(loss), has_aux=True), (("mean", "state"), "mean"))``. All processes
    must call ``f`` together. Costs two messages of about ``channels`` numbers for each layer in the forward pass, two
    in the backward pass, and waiting for them. Raises ``ValueError`` in training inside ``vmap``.

    >>> import fnn, torch
    >>> layer = fnn.layers.batch_norm(2)
    >>> x = torch.tensor([[0.0, 4.0], [2.0, 8.0]])
    >>> sync_batch_norm(layer.apply)(*layer.init(fnn.random.key(0)), x, train=True)[0]
    tensor([[-1.0000, -1.0000],
            [ 1.0000,  1.0000]])
    """

    @functools.wraps(f)
    def synchronized(*args: Any, **kwargs: Any) -> Any:
        if world_size() == 1:
            return f(*args, **kwargs)
        with statistics_of_all(_total):
            return f(*args, **kwargs)

    return synchronized


def _all_reduce(x: Tensor) -> Tensor:
    if _torch.inside_vmap():
        raise ValueError(
            "batch_norm inside sync_batch_norm and vmap: the members of vmap have batches of their own; leave out "
            "sync_batch_norm"
        )
    with explained_failures():
        return _torch.all_reduce(x, _torch.default_group())


# The loss of a run is the mean of the losses of the processes. The sum is an input of all of them, so the cotangent of
# what one process has added is the sum of all cotangents. The first result of the forward rule only gives a shape.
_total = custom_vjp(_all_reduce, lambda x: (x, ()), lambda _, cotangent: (_total(cotangent),), check=False)
