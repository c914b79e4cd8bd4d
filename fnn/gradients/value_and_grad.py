"""Gradients of scalar losses with respect to trees."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fnn import tree as _tree


def value_and_grad(function: Callable, argnums: int | Sequence[int] = 0, has_aux: bool = False) -> Callable:
    """``(value, grads)`` of a scalar function, in JAX's order.

    ``grads`` has the structure of the argument (a tuple of them where ``argnums`` is a sequence). With
    ``has_aux`` the function returns ``(value, aux)`` and the result is ``((value, aux), grads)``. Costs one
    forward and one backward pass, about three forwards. Raises ``TypeError`` naming the path of a leaf that
    is no floating tensor, and ``ValueError`` for a value that is not a scalar.

    >>> value_and_grad(lambda p: (p["w"] ** 2).sum())({"w": torch.tensor([3.0])})
    (tensor(9.), {'w': tensor([6.])})
    """
    numbers = (argnums,) if isinstance(argnums, int) else tuple(argnums)

    checked = scalar_valued(function, "value_and_grad", has_aux)
    transformed = torch.func.grad_and_value(
        checked, argnums=argnums if isinstance(argnums, int) else numbers, has_aux=has_aux
    )

    def value_and_grad_of(*args: Any, **kwargs: Any) -> tuple:
        for number in numbers:
            if not -len(args) <= number < len(args):
                raise ValueError(f"argnums={argnums}, but the function got {len(args)} positional arguments")
            check_differentiable(args[number], f"argument {number}")
        grads, value = transformed(*args, **kwargs)
        return value, grads

    return value_and_grad_of


def scalar_valued(function: Callable, name: str, has_aux: bool = False) -> Callable:
    """The same function, raising ``ValueError`` where its value is not a 0-d tensor."""

    def checked(*args: Any, **kwargs: Any) -> Any:
        out = function(*args, **kwargs)
        value = out[0] if has_aux else out
        if not isinstance(value, Tensor) or value.dim() != 0:
            what = (
                f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            )
            raise ValueError(f"{name} needs a function with a scalar value, got {what}; write loss.mean()")
        return out

    return checked


def check_differentiable(tree: _tree.Tree, name: str = "params") -> None:
    """Raise ``TypeError`` naming the first leaf that is not a floating tensor.

    >>> check_differentiable({"count": torch.tensor(1)})
    Traceback (most recent call last):
    TypeError: params['count'] is a torch.int64 tensor and has no gradient; split it off with fnn.tree.partition
    """
    leaves = _tree.leaves(tree)
    if all(isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex()) for leaf in leaves):
        return
    for path, leaf in zip(_tree.keystrs(tree), leaves, strict=True):
        if not isinstance(leaf, Tensor):
            raise TypeError(f"{name}{path} is {leaf!r}, not a tensor; keep configuration in a closure")
        if not leaf.is_floating_point() and not leaf.is_complex():
            raise TypeError(
                f"{name}{path} is a {leaf.dtype} tensor and has no gradient; split it off with fnn.tree.partition"
            )
