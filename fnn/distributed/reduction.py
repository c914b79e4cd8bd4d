"""Trees combined over all processes, and gradients computed on all of them."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fnn import _torch
from fnn import tree as _tree
from fnn._memory import own
from fnn._numerics import widen
from fnn._processes import explained_failures, world_size
from fnn.distributed.agreement import agree
from fnn.tree import Tree

_REDUCTIONS = ("mean", "sum", "concat", "state")


def data_parallel(f: Callable, reduction: Any = "mean") -> Callable:
    """The function ``f`` of the local part of a batch, with its results reduced over all processes.

    ``f`` is any function that returns trees of tensors, such as ``fnn.value_and_grad(loss)``: each process calls it
    with the same params and with its own part of the batch, and all get the mean of the losses and of the gradients.
    With parts of equal sizes and a loss that is a mean over samples, that is the gradient of the whole batch.
    ``reduction`` is that of :func:`reduce`: ``"sum"`` for ``fnn.clipped_grad(loss, max_norm)``, and a tree for parts
    that are reduced in different ways, such as ``(("mean", "state"), "mean")`` for ``((value, state), grads)``.

    Works in eager code and inside :func:`fnn.jit`, and is the function itself in a single process. It stands outside
    the transforms: ``data_parallel(value_and_grad(loss))``, and not ``value_and_grad(data_parallel(loss))``, which
    raises ``ValueError``. Costs what :func:`reduce` costs for the result.

    >>> import fnn
    >>> loss = lambda w, x: (w * x).mean()
    >>> data_parallel(fnn.value_and_grad(loss))(torch.tensor(1.0), torch.tensor([1.0, 3.0]))
    (tensor(2.), tensor(2.))
    """

    @functools.wraps(f)
    def data_parallel_of(*args: Any, **kwargs: Any) -> Tree:
        return _reduced("data_parallel", f(*args, **kwargs), reduction)

    return data_parallel_of


def reduce(tree: Tree, reduction: Any = "mean") -> Tree:
    """Combine the trees of all processes, which have the same structure and shapes. All processes get the result.

    ``reduction`` is a word, or a tree of words for the parts of the tree, or a function of the path of a leaf (see
    :func:`fnn.tree.leaf_values`):

    - "mean": the mean of floating and complex leaves. For integers it raises ``ValueError``.
    - "sum": the sum, also of integers, such as counts of right answers.
    - "concat": the rows of all processes, along the first axis, in the order of the processes.
    - "state": the mean of floating leaves, and other leaves as they are: for the state of BatchNorm, whose count of
      batches is the same everywhere.

    16-bit leaves are added up in float32. All leaves of one dtype are sent in one message. A process sends and receives
    about 2 (N - 1) / N times the bytes of its tree for N processes, 16-bit leaves as float32; with "concat" it is
    N - 1 times. Raises ``ValueError`` inside ``grad``, ``vmap`` and other transforms, where the communication would be
    differentiated, and if the trees of the processes differ; ``RuntimeError`` if another process does not come.

    >>> reduce({"loss": torch.tensor(2.0), "right": torch.tensor(3)}, {"loss": "mean", "right": "sum"})
    {'loss': tensor(2.), 'right': tensor(3)}
    """
    return _reduced("reduce", tree, reduction)


def _reduced(name: str, tree: Tree, reduction: Any) -> Tree:
    leaves, treedef = _tree.flatten(tree)
    kinds = _tree.leaf_values(reduction, tree, "reduction")
    for path, leaf, kind in zip(treedef.keystrs, leaves, kinds, strict=True):
        _check(name, f"result{path}", leaf, kind)
    refuse_transforms(name, leaves)
    if world_size() == 1:
        return own(tree, tree)
    agree(name, treedef, leaves, kinds)
    groups: dict[tuple, list[int]] = {}
    for i, (leaf, kind) in enumerate(zip(leaves, kinds, strict=True)):
        if kind != "state":
            groups.setdefault((kind, _wire(leaf, kind).dtype, leaf.device), []).append(i)
        elif leaf.is_floating_point() or leaf.is_complex():
            groups.setdefault(("mean", _wire(leaf, "mean").dtype, leaf.device), []).append(i)
    results = list(leaves)
    buffers = []
    for (kind, _, _), places in groups.items():
        wires = [_wire(leaves[i], kind) for i in places]
        sent = torch.cat([wire.reshape(-1) for wire in wires])
        with explained_failures():
            received = gather_rows(sent) if kind == "concat" else _torch.all_reduce(sent, _torch.default_group())
        received = received / world_size() if kind == "mean" else received
        buffers.append(received)
        for i, wire, piece in zip(places, wires, received.split([wire.numel() for wire in wires], -1), strict=True):
            shape = wire.shape if kind != "concat" else (world_size() * wire.shape[0], *wire.shape[1:])
            results[i] = _unwire(piece.reshape(shape), leaves[i])
    return own(treedef.unflatten(results), tree, buffers)


def _check(name: str, place: str, leaf: Any, kind: Any) -> None:
    if kind not in _REDUCTIONS:
        raise ValueError(f"{name}: a reduction is one of {', '.join(map(repr, _REDUCTIONS))}, got {kind!r}")
    if not isinstance(leaf, Tensor):
        raise TypeError(f"{name}: {place} is {leaf!r}, not a tensor; write torch.tensor(...)")
    if kind == "mean" and not (leaf.is_floating_point() or leaf.is_complex()):
        raise ValueError(
            f"{name}: {place} is a {leaf.dtype} tensor, and the mean of integers need not be one; write "
            "reduction='sum' for counts and 'state' for the state of layers, or a tree of words for parts of the result"
        )
    if kind == "sum" and leaf.dtype == torch.bool:
        raise ValueError(f"{name}: {place} is a bool tensor, whose sum is a count; write x.long()")
    if kind == "concat" and leaf.dim() == 0:
        raise ValueError(f"{name}: {place} is a 0-d tensor and has no rows to concatenate; write x[None]")


def _wire(leaf: Tensor, kind: str) -> Tensor:
    """The leaf as it is sent: for a sum, real, and of a dtype that keeps digits and that all backends add."""
    if kind == "concat":
        return leaf
    if leaf.is_complex():
        return torch.view_as_real(leaf.resolve_conj())
    return widen(leaf) if leaf.is_floating_point() or leaf.dtype == torch.int32 else leaf.to(torch.int64)


def _unwire(wire: Tensor, like: Tensor) -> Tensor:
    return torch.view_as_complex(wire) if like.is_complex() and not wire.is_complex() else wire.to(like.dtype)


# Shared by the other files of this room


def refuse_transforms(name: str, leaves: Sequence[Any]) -> None:
    """Raise ``ValueError`` inside a transform of torch.func, and for leaves that ordinary autograd follows."""
    followed = torch.is_grad_enabled() and any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in leaves)
    if _torch.peek_interpreter_stack() is not None or followed:
        raise ValueError(
            f"{name} is called inside grad, vmap or another transform, or on tensors that require gradients, and "
            "communication between processes is not differentiated; put it outside, as in "
            "data_parallel(fnn.value_and_grad(loss))(params, batch)"
        )


def gather_rows(flat: Tensor, size: int | None = None, group: str | None = None) -> Tensor:
    """The flat tensors of all processes of a group, or of all, as rows. They are sent as bytes, of any dtype."""
    size, group = size or world_size(), group or _torch.default_group()
    return _torch.all_gather(flat.view(torch.uint8), size, group).view(flat.dtype).view(size, -1)
