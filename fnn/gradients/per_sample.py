"""One gradient per sample, for any loss over a batch.

A sample is seen by the loss as a batch of one, ``x[i:i+1]``, so a loss and a model written for batches
work unchanged. Everything here is ``vmap`` over samples of ``grad``, and composes with the other
transforms and with ``fnn.jit``.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fnn import random
from fnn import tree as _tree
from fnn.gradients.value_and_grad import check_differentiable, scalar_valued
from fnn.layers.base import samples_apart
from fnn.tree import Tree

Argnums = int | Sequence[int]


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
    samples; :func:`check_per_sample` tells.

    Memory: samples x parameters for the result, and the activations of ``chunk_size`` samples (all of them
    where it is None) for the work. Cost: one forward and one backward pass of the batch, and writing the
    result. Raises ``ValueError`` for leaves that disagree about the number of samples, for a ``chunk_size``
    that is not positive, for a loss that is not a scalar, for a random key among the shared arguments and
    for BatchNorm in training mode; ``TypeError`` for a leaf that is no tensor.

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
    numbers = as_numbers(argnums)
    transformed = torch.func.grad_and_value(
        scalar_valued(as_batch_of_one(loss, batch_argnums), "a per-sample gradient", has_aux),
        argnums if isinstance(argnums, int) else numbers,
        has_aux,
    )

    def per_sample_value_and_grad_of(*args: Any, **kwargs: Any) -> tuple:
        kwargs, in_dims = prepare(args, kwargs, numbers, batch_argnums)
        grads, values = over_samples(transformed, in_dims, chunk_size)(*args, **kwargs)
        return values, grads

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
        kwargs, in_dims = prepare(args, kwargs, (), batch_argnums)
        one = scalar_valued(as_batch_of_one(loss, batch_argnums), "a per-sample gradient")
        apart = over_samples(one, in_dims, None)(*args, **kwargs)
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


# What the other files of this package share


def over_samples(function: Callable, in_dims: tuple, chunk_size: int | None) -> Callable:
    """``vmap`` over samples, whose errors about hidden randomness say what to write."""
    mapped = torch.func.vmap(lambda keys, *args: function(*args, **keys), (0, *in_dims), chunk_size=chunk_size)

    def call(*args: Any, **kwargs: Any) -> Any:
        with samples_apart():
            try:
                return mapped(kwargs, *args)  # vmap hands keywords on unmapped
            except RuntimeError as error:
                if "randomness" not in str(error):
                    raise
                raise ValueError(
                    "the loss draws from torch's global random generator (torch.nn.functional.dropout does), which "
                    "cannot be repeated per sample; write fnn.layers.dropout(rate) in the model and give a key: "
                    "per_sample_grad(loss)(params, batch, key=key)"
                ) from error

    return call


def as_batch_of_one(loss: Callable, batch_argnums: Argnums) -> Callable:
    """The loss as a function of samples without the axis of the batch."""
    numbers = as_numbers(batch_argnums)

    def of_one(*args: Any, **kwargs: Any) -> Any:
        rows = [_tree.map(lambda x: x.unsqueeze(0), arg) if i in numbers else arg for i, arg in enumerate(args)]
        return loss(*rows, **kwargs)

    return of_one


def prepare(args: tuple, kwargs: dict, argnums: tuple[int, ...], batch_argnums: Argnums) -> tuple[dict, tuple]:
    """Check the arguments of a per-sample function; return its keywords with one key a sample, and the in_dims."""
    numbers = as_numbers(batch_argnums)
    for number in (*argnums, *numbers):
        if not 0 <= number < len(args):
            raise ValueError(
                f"argument {number} is asked for, but the function got {len(args)} positional arguments; "
                "write per_sample_grad(loss)(params, batch), or name the places with argnums and batch_argnums"
            )
    for number in argnums:
        check_differentiable(args[number], "params" if number == 0 else f"argument {number}")
    count = count_samples(*(args[number] for number in numbers))
    for number, arg in enumerate(args):
        if number not in numbers and number not in argnums:
            _check_no_key(arg, number, count)
    unknown = [name for name in kwargs if name != "key"]
    if unknown:
        raise TypeError(f"keyword {unknown[0]!r} cannot be mapped over samples; pass it by position, or in a closure")
    key = kwargs.get("key")
    if key is None:
        kwargs = {}
    elif key.dim() == 1:
        kwargs = {"key": random.split(key, count)}
    elif key.shape[0] != count:
        raise ValueError(f"key has shape {tuple(key.shape)} for {count} samples; pass one key, or one key a sample")
    return kwargs, tuple(0 if i in numbers else None for i in range(len(args)))


def count_samples(*batches: Tree) -> int:
    """The length of the leading axis that all leaves share.

    >>> count_samples({"image": torch.zeros(3, 2), "label": torch.zeros(4)})
    Traceback (most recent call last):
    ValueError: batch['label'] has 4 samples, but batch['image'] has 3; all leaves need one leading length
    """
    first: tuple[str, int] | None = None
    for batch in batches:
        for path, leaf in zip(_tree.keystrs(batch), _tree.leaves(batch), strict=True):
            if not isinstance(leaf, Tensor):
                raise TypeError(f"batch{path} is {leaf!r}, not a tensor; keep configuration in a closure")
            if leaf.dim() == 0:
                raise ValueError(
                    f"batch{path} is a 0-d tensor and has no axis of samples; pass it as an argument after the batch"
                )
            if first is None:
                first = f"batch{path}", leaf.shape[0]
            elif leaf.shape[0] != first[1]:
                hint = ""
                if _is_key(leaf):
                    hint = "; it looks like a random key: pass it as key=key, which is split per sample"
                raise ValueError(
                    f"batch{path} has {leaf.shape[0]} samples, but {first[0]} has {first[1]}; all leaves need one "
                    f"leading length, so move the axis of samples to the front: x.movedim(axis, 0){hint}"
                )
    if first is None:
        raise ValueError("the batch has no leaves")
    if first[1] == 0:
        raise ValueError(f"{first[0]} has no samples: its leading axis has length 0")
    return first[1]


def check_chunk_size(chunk_size: int | None) -> None:
    """Raise ``ValueError`` unless the chunk size is None or positive."""
    if chunk_size is not None and (not isinstance(chunk_size, int) or chunk_size < 1):
        raise ValueError(
            f"chunk_size is the number of samples worked on at once, got {chunk_size!r}; write a positive integer, "
            "or None for all at once"
        )


def as_numbers(argnums: Argnums) -> tuple[int, ...]:
    return (argnums,) if isinstance(argnums, int) else tuple(argnums)


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.dtype == torch.int32 and tuple(leaf.shape) == (2,)


def _check_no_key(arg: Tree, number: int, count: int) -> None:
    for path, leaf in zip(_tree.keystrs(arg), _tree.leaves(arg), strict=True):
        if _is_key(leaf):
            raise ValueError(
                f"argument {number}{path} looks like one random key, which would give all {count} samples the same "
                "dropout mask; pass it by name, per_sample_grad(loss)(params, batch, key=key), to split it per sample"
            )
