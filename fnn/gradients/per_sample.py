"""One gradient per sample, for any loss over a batch.

A sample is seen by the loss as a batch of one, ``x[i:i+1]``, so a loss and a model written for batches
work unchanged. Everything here is ``vmap`` over samples of ``grad``, and composes with the other
transforms and with ``fnn.jit``.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fnn import random
from fnn import tree as _tree
from fnn._argnums import Argnums, positions
from fnn._memory import own
from fnn._samples import samples_apart
from fnn.gradients.value_and_grad import check_differentiable, differentiate, scalar_valued
from fnn.tree import Tree


def per_sample_grad(
    loss: Callable,
    argnums: Argnums = 0,
    chunk_size: int | None = None,
    has_aux: bool = False,
    batch_argnums: Argnums = 1,
) -> Callable:
    """The gradient of each sample's loss: the tree that ``grad(loss)`` gives, with a leading axis of samples.

    ``per_sample_grad(loss)(params, batch, *rest, key=None)``. ``loss(params, batch, ...)`` is the loss that
    ``grad`` takes; ``batch`` (the arguments ``batch_argnums``) is any tree of tensors with one leading axis,
    of which the loss sees one row at a time as a batch of one. The other arguments are the same for all
    samples. ``key`` is split into one key per sample and handed to the loss as its keyword ``key``, so that
    every sample has a dropout mask of its own. With ``has_aux`` the loss returns ``(value, aux)`` and the
    result is ``(grads, aux)``, each tensor of aux with the leading axis.

    ``mean(per_sample_grad(loss))`` is ``grad(loss)`` exactly when the loss is the mean over independent
    samples, which :func:`check_per_sample` checks.

    Memory: samples x parameters for the result, and the activations of ``chunk_size`` samples (all of them
    where it is None) for the work. Cost: one forward and one backward pass of the batch, and writing the
    result. Raises ``ValueError`` for leaves that disagree about the number of samples, for a ``chunk_size``
    that is not positive, for a loss that is not a scalar, for a random key among the shared arguments and
    for BatchNorm in training mode; ``TypeError`` for a leaf that is not a tensor.

    >>> def loss(params, batch):
    ...     x, y = batch
    ...     return ((x @ params["w"] - y) ** 2).mean()
    >>> x, y = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([1.0, 3.0])
    >>> per_sample_grad(loss)({"w": torch.zeros(2)}, (x, y))
    {'w': tensor([[ -2.,   0.], [  0., -12.]])}
    """
    value_and_grads = per_sample_value_and_grad(loss, argnums, chunk_size, has_aux, batch_argnums)

    def per_sample_grad_of(*args: Any, **kwargs: Any) -> Any:
        values, grads = value_and_grads(*args, **kwargs)
        return (grads, values[1]) if has_aux else grads

    return per_sample_grad_of


def per_sample_value_and_grad(
    loss: Callable,
    argnums: Argnums = 0,
    chunk_size: int | None = None,
    has_aux: bool = False,
    batch_argnums: Argnums = 1,
) -> Callable:
    """Like :func:`per_sample_grad`, with each sample's loss: ``(values, grads)``, values of shape (samples,).

    With ``has_aux``: ``((values, aux), grads)``. The loss costs nothing more.

    >>> loss = lambda w, x: (w * x).sum()
    >>> per_sample_value_and_grad(loss)(torch.tensor(2.0), torch.tensor([1.0, 3.0]))
    (tensor([2., 6.]), tensor([1., 3.]))
    """
    check_chunk_size(chunk_size)

    def per_sample_value_and_grad_of(*args: Any, **kwargs: Any) -> tuple:
        call = prepare(args, kwargs, argnums, batch_argnums)
        of_one = as_batch_of_one(loss, call.batches)

        def one(*args: Any, **kwargs: Any) -> tuple:
            value, aux, grads = differentiate(of_one, "a per-sample gradient", argnums, has_aux, args, kwargs)
            return ((value, aux) if has_aux else value), grads

        return own(over_samples(one, call.in_dims, chunk_size)(*args, **call.kwargs), args)

    return per_sample_value_and_grad_of


def check_per_sample(
    loss: Callable, batch_argnums: Argnums = 1, rtol: float = 1e-3, atol: float = 1e-6
) -> Callable[..., None]:
    """Raise unless the loss of a batch is the mean of the losses of its samples.

    ``check_per_sample(loss)(params, batch, *rest)``, once before training, on a small batch in eager mode.
    Per-sample gradients are right for any loss; what this checks is that their mean is the gradient of the
    batch. Costs two forward passes. Raises ``ValueError`` for a loss that sums over samples, and for one in
    which samples see each other (BatchNorm in training mode, contrastive losses, means weighted over the
    batch). Randomness would make every comparison fail: call it without a key.

    >>> check_per_sample(lambda w, x: (w * x).sum())(torch.tensor(2.0), torch.tensor([1.0, 3.0]))
    Traceback (most recent call last):
    ValueError: the loss of a batch is the sum of the losses of its samples ...
    """

    def check(*args: Any, **kwargs: Any) -> None:
        call = prepare(args, kwargs, (), batch_argnums)
        one = scalar_valued(as_batch_of_one(loss, call.batches), "a per-sample gradient")
        apart = over_samples(one, call.in_dims)(*args, **call.kwargs)
        together = loss(*args, **kwargs)
        mean, total = apart.mean(), apart.sum()
        if torch.allclose(together, mean, rtol=rtol, atol=atol):
            return
        if torch.allclose(together, total, rtol=rtol, atol=atol):
            raise ValueError(
                "the loss of a batch is the sum of the losses of its samples, so its gradient is not the mean of the "
                "per-sample gradients; write losses.mean(), or reduction='mean', instead of the sum"
            )
        raise ValueError(
            f"the loss of a batch, {together.item():.6g}, is neither the mean nor the sum of the losses of its "
            f"samples, whose mean is {mean.item():.6g}: samples see each other. BatchNorm in training mode does so "
            "(write group_norm, layer_norm or instance_norm), and so does a mean over weights or ignored targets"
        )

    return check


# Shared by the other files of this package


class Call(NamedTuple):
    """The arguments of a per-sample function, checked."""

    count: int  # of samples
    batches: tuple[int, ...]  # the positions of the arguments that have an axis of samples
    in_dims: tuple[int | None, ...]  # for each argument 0 or None
    kwargs: dict[str, Tensor]  # {} or {"key": one key a sample}


def prepare(args: tuple, kwargs: dict, argnums: Argnums, batch_argnums: Argnums) -> Call:
    """Check the arguments of a per-sample function, and split its key."""
    batches = positions(batch_argnums, len(args), "batch_argnums")
    differentiated = positions(argnums, len(args), "argnums")
    for number in differentiated:
        check_differentiable(args[number], "params" if number == 0 else f"argument {number}")
    count = count_samples(args, batches)
    for number, arg in enumerate(args):
        if number not in batches and number not in differentiated:
            check_no_key(arg, number, f"would give all {count} samples the same dropout mask", "per sample")
    in_dims = tuple(0 if number in batches else None for number in range(len(args)))
    return Call(count, batches, in_dims, split_key(kwargs, count, "samples"))


def over_samples(function: Callable, in_dims: tuple, chunk_size: int | None = None) -> Callable:
    """``vmap`` over samples of a function of trees, whose errors say what to write instead.

    ``in_dims`` has 0 or None for each argument; keywords are mapped. Containers may be all that :mod:`fnn.tree` knows.
    """

    def call(*args: Any, **kwargs: Any) -> Any:
        leaves, treedef = _tree.flatten((args, kwargs))
        structures = zip(in_dims, treedef.children[0].children, strict=True)
        dims = [dim for dim, structure in structures for _ in range(structure.num_leaves)]
        dims += [0] * treedef.children[1].num_leaves
        outputs: Any = None

        def of_leaves(*leaves: Any) -> list[Tensor]:
            nonlocal outputs
            args, kwargs = treedef.unflatten(leaves)
            found, outputs = _tree.flatten(function(*args, **kwargs))
            for path, leaf in zip(outputs.keystrs, found, strict=True):
                if not isinstance(leaf, Tensor):
                    raise TypeError(f"a per-sample function must return tensors, got {leaf!r} at {path}")
            return found

        with samples_apart():
            try:
                found = torch.func.vmap(of_leaves, tuple(dims), chunk_size=chunk_size)(*leaves)
            except RuntimeError as error:
                sentence = _explained(str(error))
                if sentence is None:
                    raise
                raise ValueError(sentence) from error
        return outputs.unflatten(found)

    return call


def _explained(error: str) -> str | None:
    """A sentence that says what to write instead, or None for an error of vmap that has no such answer."""
    if "randomness" in error:
        return (
            "the loss draws from torch's global random generator (torch.nn.functional.dropout does), which cannot be "
            "repeated per sample; write fnn.layers.dropout(p) in the model and give a key: "
            "per_sample_grad(loss)(params, batch, key=key)"
        )
    if ".item()" in error or "data-dependent control flow" in error:
        return (
            "the loss asks for the number in a tensor that is different for each sample: by .item(), if x > 0, or a "
            "slice y[x : x + 2]. Write torch.where(x > 0, ...) for the choice, y[x + torch.arange(2)] for the slice"
        )
    if "embedding_renorm_" in error:
        return (
            "F.embedding(..., max_norm=...) changes its table in place, which a pure function does not; scale the rows "
            "of the table in the loss, or in the training step after the update"
        )
    return None


def as_batch_of_one(loss: Callable, batches: tuple[int, ...]) -> Callable:
    """The loss as a function of samples without the axis of the batch."""

    def of_one(*args: Any, **kwargs: Any) -> Any:
        rows = [_tree.map(lambda x: x.unsqueeze(0), arg) if i in batches else arg for i, arg in enumerate(args)]
        return loss(*rows, **kwargs)

    return of_one


def take_rows(args: tuple, batches: tuple[int, ...], rows: slice) -> tuple:
    """The arguments, of which those with samples are cut to some of their rows."""
    return tuple(_tree.map(lambda x: x[rows], arg) if i in batches else arg for i, arg in enumerate(args))


def count_samples(args: tuple, batches: tuple[int, ...]) -> int:
    """The number of samples of the arguments at some positions.

    >>> count_samples((None, {"image": torch.zeros(3, 2), "label": torch.zeros(4)}), (1,))
    Traceback (most recent call last):
    ValueError: batch['label'] has 4 samples, but batch['image'] has 3; all leaves need one leading length ...
    """
    batch = args[batches[0]] if len(batches) == 1 else [args[number] for number in batches]
    try:
        count = _tree.leading_length(batch)
    except ValueError as error:
        if any(_is_key(leaf) for leaf in _tree.leaves(batch)):
            raise ValueError(f"{error}; a random key is passed as key=key, which is split per sample") from None
        raise
    if count == 0:
        raise ValueError("the batch has no samples: its leading axis has length 0")
    return count


def chunks(count: int, chunk_size: int | None) -> Iterator[slice]:
    """The rows of each chunk of ``count`` samples; None is one chunk."""
    size = chunk_size or count
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def check_chunk_size(chunk_size: int | None) -> None:
    """Raise ``ValueError`` unless the chunk size is None or positive."""
    if chunk_size is not None and (not isinstance(chunk_size, int) or chunk_size < 1):
        raise ValueError(
            f"chunk_size is the number of samples worked on at once, got {chunk_size!r}; write a positive integer, "
            "or None for all at once"
        )


def split_key(kwargs: dict, count: int, what: str) -> dict[str, Tensor]:
    """``{"key": keys}`` with one key for each of ``count`` samples or parts, or ``{}`` where no key is given.

    The given key is one key, which is split, or ``count`` of them.
    """
    unknown = [name for name in kwargs if name != "key"]
    if unknown:
        raise TypeError(f"keyword {unknown[0]!r} cannot be mapped over {what}; pass it by position, or in a closure")
    key = kwargs.get("key")
    if key is None:
        return {}
    if not isinstance(key, Tensor) or key.dim() == 1:
        return {"key": random.split(key, count)}
    if key.shape[0] != count:
        raise ValueError(f"key has shape {tuple(key.shape)} for {count} {what}; pass one key, or one key for each")
    return {"key": key}


def check_params_are_shared(batches: tuple[int, ...]) -> None:
    """Raise ``ValueError`` if the first argument, which is differentiated, is among those with samples.

    >>> check_params_are_shared((0, 1))
    Traceback (most recent call last):
    ValueError: batch_argnums contains 0, the argument that is differentiated; put params first
    """
    if 0 in batches:
        raise ValueError("batch_argnums contains 0, the argument that is differentiated; put params first")


def check_no_key(arg: Tree, number: int, fault: str, split: str) -> None:
    """Raise ``ValueError`` for a random key among the arguments that are the same for all samples or parts."""
    leaves, treedef = _tree.flatten(arg)
    for path, leaf in zip(treedef.keystrs, leaves, strict=True):
        if _is_key(leaf):
            raise ValueError(
                f"argument {number}{path} looks like one random key, which {fault}; pass it by name, "
                f"(params, batch, key=key), to split it {split}"
            )


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.dtype == torch.int32 and tuple(leaf.shape) == (2,)
