"""Params split over processes: each keeps a part of every tensor, and whole tensors exist only while they are used.

A leaf is split along one axis into N equal parts (Rajbhandari et al., 2020, "ZeRO", stage 3; FSDP in torch). The leaves
of one layer, which stand beside each other in the tree, are sent together, in one all-gather before the layer is used
and in one reduce-scatter of their gradients. In a jitted step :mod:`fnn.compile.gather_order` moves each of these to
the layer that it belongs to. In eager code the whole params are gathered before the call.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fnn import _torch
from fnn import tree as _tree
from fnn._memory import own
from fnn._numerics import safe_sqrt, widen
from fnn._processes import explained_failures, rank, world_size
from fnn.distributed.agreement import agree
from fnn.distributed.reduction import gather_rows, reduce, refuse_transforms
from fnn.tree import Tree, TreeDef


@dataclass(frozen=True)
class Sharding:
    """How a tree is split, as returned by :func:`shard`: the shape of each whole leaf, and the axis that is split.

    ``axes`` has None for a leaf that every process holds whole. The tree is split over the ``size`` processes of a
    group, of which this one is number ``index``, and there are ``copies`` of these parts in other groups.
    """

    treedef: TreeDef
    shapes: tuple[torch.Size, ...]
    axes: tuple[int | None, ...]
    size: int
    index: int
    group: str
    copies: int = 1
    copies_group: str = ""

    constant_under_jit = True

    def part_shape(self, i: int) -> tuple[int, ...]:
        """The shape of this process's part of leaf number ``i``."""
        axis = self.axes[i]
        return tuple(length // self.size if k == axis else length for k, length in enumerate(self.shapes[i]))

    def layers(self, leaves: Sequence[Tensor]) -> Iterable[list[int]]:
        """The split leaves that stand beside each other in the tree and have one dtype."""
        groups: dict[tuple, list[int]] = {}
        for i, (path, axis) in enumerate(zip(self.treedef.entries, self.axes, strict=True)):
            if axis is not None:
                groups.setdefault((path[:-1], leaves[i].dtype), []).append(i)
        return groups.values()


def shard(tree: Tree, mesh: Any = None, rules: Any = None) -> tuple[Tree, Sharding]:
    """This process's part of a tree that all processes hold whole, and the :class:`Sharding` that describes it.

    ``parts, sharding = shard(params)``; the parts are a tree of the same structure. Each leaf is split along its first
    axis that the number of processes divides; one without such an axis stays whole on every process. ``rules`` chooses
    otherwise: a function of the dotted path that returns an axis, None for a leaf that stays whole, or "auto", or a
    tree of these (see :func:`fnn.tree.leaf_values`). ``mesh`` is a ``torch.distributed.device_mesh.DeviceMesh`` of one
    axis, or of two: the tree is then split along the second, and copied along the first. By default all processes are
    one axis.

    ``shard((params, optimizer.init(params)))`` splits the optimizer's state in the same way. On the device "meta"
    it gives the shapes alone. Costs no communication. Raises ``ValueError`` for an axis that a leaf does not have or
    that cannot be divided, and if the trees of the processes differ.

    >>> parts, sharding = shard({"weight": torch.ones(4, 2)})
    >>> sharding.axes, gather(parts, sharding)["weight"].shape
    ((0,), torch.Size([4, 2]))
    """
    leaves, treedef = _tree.flatten(tree)
    groups = _groups(mesh)
    size, index = groups["size"], groups["index"]
    chosen = ["auto"] * len(leaves) if rules is None else _tree.leaf_values(rules, tree, "rules")
    axes = tuple(
        _axis(f"tree{path}", leaf, axis, size) for path, leaf, axis in zip(treedef.keystrs, leaves, chosen, strict=True)
    )
    agree("shard", treedef, leaves, axes)
    sharding = Sharding(treedef, tuple(leaf.shape for leaf in leaves), axes, **groups)
    parts = [
        leaf if axis is None else leaf.narrow(axis, index * (leaf.shape[axis] // size), leaf.shape[axis] // size)
        for leaf, axis in zip(leaves, axes, strict=True)
    ]
    return treedef.unflatten([part.clone(memory_format=torch.contiguous_format) for part in parts]), sharding


def gather(parts: Tree, sharding: Sharding) -> Tree:
    """The whole tree, on every process. A process receives (N - 1) / N of its bytes for N processes.

    Raises ``ValueError`` for parts that do not fit the sharding, and what :func:`reduce` raises.

    >>> parts, sharding = shard({"weight": torch.arange(4)})
    >>> gather(parts, sharding)
    {'weight': tensor([0, 1, 2, 3])}
    """
    leaves = _part_leaves("gather", parts, sharding)
    refuse_transforms("gather", leaves)
    return own(sharding.treedef.unflatten(_gathered(leaves, sharding)), parts)


def fully_sharded(f: Callable, sharding: Sharding, reduction: Any = "mean") -> Callable:
    """The function ``f(params, *rest)`` of whole params as a function of this process's parts of them.

    Like :func:`data_parallel`: each process gives its own part of the batch, and ``reduction`` says how results are
    combined. Results that are trees like the params, such as gradients, come back as this process's parts, so that the
    optimizer, whose state is that of the parts, updates these: ``value, grads = fully_sharded(value_and_grad(loss),
    sharding)(parts, batch)``. This is right for optimizers that treat each number alone, such as SGD and Adam;
    :func:`check_elementwise` refuses others. The norm of the gradient is :func:`global_norm`.

    In a step under :func:`fnn.jit` the leaves of a layer are gathered when the layer is used, in the forward and again
    in the backward pass, and freed after it. In eager code they are all gathered before the call. Each process sends
    and receives about 3 (N - 1) / N times the bytes of the params for N processes, where :func:`data_parallel` takes 2.

    >>> import fnn
    >>> parts, sharding = shard({"w": torch.ones(2)})
    >>> fully_sharded(fnn.grad(lambda params, x: (params["w"] * x).sum()), sharding)(parts, torch.tensor([1.0, 2.0]))
    {'w': tensor([1., 2.])}
    """

    @functools.wraps(f)
    def fully_sharded_of(parts: Tree, *rest: Any, **kwargs: Any) -> Tree:
        leaves = _part_leaves("fully_sharded", parts, sharding)
        refuse_transforms("fully_sharded", leaves)
        result = f(sharding.treedef.unflatten(_gathered(leaves, sharding)), *rest, **kwargs)
        return _scattered(result, sharding, reduction)

    return fully_sharded_of


def global_norm(parts: Tree, sharding: Sharding) -> Tensor:
    """The Euclidean norm of the whole tree, such as the gradient: ``fnn.tree.global_norm(gather(parts, sharding))``.

    One number is sent. ``scale(torch.clamp(max_norm / norm, max=1.0), grads)`` clips the gradient.

    >>> global_norm(*shard({"w": torch.tensor([3.0, 4.0])}))
    tensor(5.)
    """
    leaves = _part_leaves("global_norm", parts, sharding)
    refuse_transforms("global_norm", leaves)
    squares = [widen(leaf).abs().square().sum() for leaf in leaves]
    zero = torch.zeros_like(squares[0])
    whole = sum([x for x, axis in zip(squares, sharding.axes, strict=True) if axis is None], zero)
    split = sum([x for x, axis in zip(squares, sharding.axes, strict=True) if axis is not None], zero)
    if sharding.size > 1:
        with explained_failures():
            split = _torch.all_reduce(split, sharding.group)
    return safe_sqrt(whole + split)


def check_elementwise(optimizer: Any) -> None:
    """Raise ``ValueError`` unless an optimizer updates each number of the params by itself, so that it may see parts.

    Two updates of a small matrix are compared with those of its halves, for small and for large gradients. An optimizer
    that takes the norm of a leaf or of the whole gradient, or that multiplies matrices, is refused. Run it once, before
    training, with the optimizer of the run.

    >>> import fnn
    >>> check_elementwise(fnn.optim.adam(1e-3))
    >>> check_elementwise(fnn.optim.clip_by_global_norm(1.0))
    Traceback (most recent call last):
    ValueError: the optimizer does not update each number of the params by itself ...
    """
    start = torch.linspace(-1.0, 2.0, 32, dtype=torch.float64).reshape(8, 4)

    def updates_of(rows: slice, size: float) -> Tensor:
        params, updates = {"w": start[rows].clone()}, []
        state = optimizer.init(params)
        for step in range(2):
            grads = {"w": size * (start[rows] * 3 + step).sin()}
            update, state = optimizer.update(grads, state, params)
            params = {"w": params["w"] + update["w"]}
            updates.append(update["w"])
        return torch.stack(updates, 1)

    for size in (1e-3, 1.0, 1e3):
        whole = updates_of(slice(0, 8), size)
        halves = torch.cat([updates_of(slice(0, 4), size), updates_of(slice(4, 8), size)])
        if not torch.allclose(whole, halves, rtol=1e-9, atol=0.0):
            raise ValueError(
                "the optimizer does not update each number of the params by itself, so its updates of parts are not "
                "parts of its updates; use data_parallel, or an optimizer such as sgd or adam, and clip the gradient "
                "with global_norm(grads, sharding)"
            )


def _groups(mesh: Any) -> dict[str, Any]:
    if mesh is None:
        group = _torch.default_group() if world_size() > 1 else ""
        return {"size": world_size(), "index": rank(), "group": group}
    if mesh.ndim not in (1, 2):
        raise ValueError(f"shard: a mesh has one or two axes, got {mesh.ndim}")
    if mesh.size() != world_size():
        raise ValueError(f"shard: the mesh has {mesh.size()} processes, and there are {world_size()}")
    last = mesh.ndim - 1
    found = {"size": mesh.size(last), "index": mesh.get_local_rank(last), "group": mesh.get_group(last).group_name}
    if mesh.ndim == 2:
        found |= {"copies": mesh.size(0), "copies_group": mesh.get_group(0).group_name}
    return found


def _axis(place: str, leaf: Any, axis: Any, size: int) -> int | None:
    if not isinstance(leaf, Tensor):
        raise TypeError(f"shard: {place} is {leaf!r}, not a tensor; keep configuration in a closure")
    if leaf.is_complex():
        raise ValueError(f"shard: {place} is complex; keep it as torch.view_as_real(x)")
    if axis is None:
        return None
    if axis == "auto":
        return next((k for k, length in enumerate(leaf.shape) if length % size == 0 and length), None)
    if not isinstance(axis, int) or not -leaf.dim() <= axis < leaf.dim():
        raise ValueError(
            f"shard: {place} has shape {tuple(leaf.shape)} and no axis {axis!r}; a rule is an axis, None or 'auto'"
        )
    if leaf.shape[axis] % size:
        raise ValueError(
            f"shard: axis {axis} of {place} has length {leaf.shape[axis]}, which {size} processes do not divide; "
            "choose another axis, or None to keep the leaf whole"
        )
    return axis % leaf.dim()


def _part_leaves(name: str, parts: Tree, sharding: Sharding) -> list[Tensor]:
    """The leaves of a tree of parts. ``ValueError`` naming the path of one that does not fit."""
    leaves = sharding.treedef.flatten_up_to(parts, ("the tree that was sharded", "parts"))
    for i, leaf in enumerate(leaves):
        if tuple(leaf.shape) != sharding.part_shape(i):
            raise ValueError(
                f"{name}: parts{sharding.treedef.keystrs[i]} has shape {tuple(leaf.shape)}, expected "
                f"{sharding.part_shape(i)}, the part of process {sharding.index} of a leaf of shape "
                f"{tuple(sharding.shapes[i])}; write parts, sharding = shard(params)"
            )
    return leaves


def _gathered(leaves: list[Tensor], sharding: Sharding) -> list[Tensor]:
    whole = list(leaves)
    for layer in sharding.layers(leaves) if sharding.size > 1 else ():
        sent = torch.cat([leaves[i].reshape(-1) for i in layer])
        with explained_failures():
            received = gather_rows(sent, sharding.size, sharding.group)
        for i, piece in zip(layer, received.split([leaves[i].numel() for i in layer], 1), strict=True):
            axis: Any = sharding.axes[i]
            stacked = piece.reshape(sharding.size, *sharding.part_shape(i))
            whole[i] = stacked.movedim(0, axis).reshape(sharding.shapes[i])
    return whole


def _scattered(result: Tree, sharding: Sharding, reduction: Any) -> Tree:
    """The result, combined over all processes; trees like the whole params as this process's parts."""
    leaves, treedef = _tree.flatten(result)
    kinds = _tree.leaf_values(reduction, result, "reduction")
    starts = [
        start
        for start in _starts(treedef, sharding.treedef)
        if {*kinds[start : start + len(sharding.shapes)]} <= {"mean", "sum"}
        and all(
            tuple(leaf.shape) == tuple(shape)
            for leaf, shape in zip(leaves[start : start + len(sharding.shapes)], sharding.shapes, strict=True)
        )
    ]
    split: dict[int, Tensor] = {}
    for start in starts if sharding.size > 1 else ():
        block = slice(start, start + len(sharding.shapes))
        for i, part in _reduce_scattered(leaves[block], sharding).items():
            count = sharding.size * sharding.copies
            part = part / count if kinds[start + i] == "mean" else part.clone()
            split[start + i] = part.to(leaves[start + i].dtype)
    rest = [i for i in range(len(leaves)) if i not in split]
    others = iter(reduce([leaves[i] for i in rest], [kinds[i] for i in rest]))
    return own(treedef.unflatten([split[i] if i in split else next(others) for i in range(len(leaves))]))


def _reduce_scattered(leaves: list[Tensor], sharding: Sharding) -> dict[int, Tensor]:
    """This process's parts of the sums over all processes, by the number of the leaf."""
    parts = {}
    for layer in sharding.layers(leaves):
        rows = []
        for i in layer:
            axis: Any = sharding.axes[i]
            length = sharding.shapes[i][axis] // sharding.size
            stacked = widen(leaves[i]).unflatten(axis, (sharding.size, length)).movedim(axis, 0)
            rows.append(stacked.reshape(sharding.size, -1))
        with explained_failures():
            received = _torch.reduce_scatter(torch.cat(rows, 1).flatten(), sharding.size, sharding.group)
            if sharding.copies > 1:
                received = _torch.all_reduce(received, sharding.copies_group)
        for i, piece in zip(layer, received.split([row.shape[1] for row in rows]), strict=True):
            parts[i] = piece.reshape(sharding.part_shape(i))
    return parts


def _starts(treedef: TreeDef, wanted: TreeDef) -> list[int]:
    """The numbers of the first leaves of the subtrees that have the wanted structure."""
    if treedef == wanted:
        return [0]
    found, start = [], 0
    for child in treedef.children:
        found += [start + first for first in _starts(child, wanted)]
        start += child.num_leaves
    return found
