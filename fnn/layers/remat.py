"""Recomputation: a backward pass that computes intermediate values again in place of keeping them."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fnn import _torch
from fnn import tree as _tree
from fnn.compile import loops
from fnn.layers.base import Layer, StatefulLayer, factory
from fnn.layers.capture import call_part, collected, tell
from fnn.layers.combinators import as_stateful, like

Made = TypeVar("Made", bound=Layer | StatefulLayer | Callable[..., Any])


def remat(f: Made) -> Made:
    """The same layer or function, whose backward pass keeps only its arguments and computes the rest again.

    This is ``jax.checkpoint``. It saves the memory of the intermediate values for the time of one more forward pass,
    and computes the same numbers. It works under ``grad``, ``vmap``, ``jvp`` and :func:`fnn.jit` and in any nesting of
    them, where ``torch.utils.checkpoint`` raises an error; in eager code outside of other transforms it is that
    function. Arguments and results are trees; a tensor that a function closes over is treated like an argument. In
    eager code inside ``torch.func`` each call traces the function first, which takes some tenths of a second;
    :func:`fnn.jit` traces once. A function that contains a ``torch.autograd.Function`` runs without recomputation
    there. Params and state of a layer are its own.

    >>> import torch, fnn
    >>> block = remat(fnn.models.mlp(4, 64, 4))
    >>> params, x = block.init(fnn.random.key(0)), torch.ones(8, 4)
    >>> loss = lambda apply: lambda params: apply(params, x).square().sum()
    >>> slopes = [fnn.grad(loss(layer.apply))(params) for layer in (block, fnn.models.mlp(4, 64, 4))]
    >>> fnn.tree.allclose(*slopes)
    True
    """
    if isinstance(f, (Layer, StatefulLayer)):
        return _remat_layer(f)
    if not callable(f):
        raise TypeError(f"remat expects a layer or a function, got a {type(f).__name__}")

    @functools.wraps(f)
    def recomputed(*args: Any, **kwargs: Any) -> Any:
        return _recomputed(f, args, kwargs)

    return recomputed  # pyright: ignore[reportReturnType]


def _layer(layer: Any) -> Any:
    part = as_stateful("remat", "layer", layer)

    def apply(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
        call = lambda *args, **kwargs: collected(lambda: call_part("", part, *args, **kwargs))
        (y, state), outputs = _recomputed(call, args, kwargs)
        tell(outputs, part)
        return y, state

    return like(StatefulLayer(part.init, apply), layer, parts={"": layer})


_layer.__name__ = _layer.__qualname__ = "remat"
_remat_layer = factory(_layer)


def _recomputed(function: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
    leaves, treedef = _tree.flatten((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    results: list[Any] = []  # the last result, whose tensors are not used

    def flat(*values: Tensor) -> list[Tensor]:
        given = iter(values)
        args, kwargs = treedef.unflatten([next(given) if isinstance(leaf, Tensor) else leaf for leaf in leaves])
        leaves_out, out_def = _tree.flatten(function(*args, **kwargs))
        results[:] = [out_def, [None if isinstance(leaf, Tensor) else leaf for leaf in leaves_out]]
        results.append([isinstance(leaf, Tensor) for leaf in leaves_out])
        return [leaf for leaf in leaves_out if isinstance(leaf, Tensor)]

    found = iter(_flat_recomputed(flat, tensors))
    out_def, constants, present = results
    return out_def.unflatten([next(found) if each else value for value, each in zip(constants, present, strict=True)])


def _flat_recomputed(flat: Callable[..., list[Tensor]], tensors: list[Tensor]) -> list[Tensor]:
    if _torch.peek_interpreter_stack() is None and not _torch.recording():
        if not torch.is_grad_enabled():
            return flat(*tensors)
        return checkpoint(flat, *tensors, use_reentrant=False, preserve_rng_state=False)
    try:
        body, closed = loops.make_body(flat, [], [], tensors, remat=True)
    except Exception:
        return flat(*tensors)  # it cannot be a graph of its own; or it raises the error again
    # a loop of one step, which torch's transforms and the compiler keep apart from what surrounds it
    return [y.reshape(y.shape[1:]) for y in loops.loop(body, [], [], [*tensors, *closed], 1).ys]
