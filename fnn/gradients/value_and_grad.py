"""Gradients of scalar functions with respect to trees.

``torch.func.grad`` always records the graph of the backward pass, so that its result can be differentiated again:
this takes twice the memory and up to twice the time of ``.backward()``. An outermost call in eager code needs no such
graph and is left to ``torch.autograd.grad``. So is, in effect, an outermost call in a function that is traced for
replay. Inside a transform, and in other traces, it is ``torch.func.grad``.

Both give the same bits, except through operations for which torch has two formulas: one for a derivative that may be
differentiated again, and a shorter one for a derivative that will not, which is then used here. These are silu, mish,
group normalization and ``torch.nn.LSTM``; there the two agree up to rounding.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from fnn import _torch
from fnn import tree as _tree
from fnn._argnums import Argnums, positions
from fnn._memory import is_outermost, own, own_leaves
from fnn._tracing import differentiated, differentiated_once, is_outermost_in_replay


def grad(f: Callable, argnums: Argnums = 0, has_aux: bool = False) -> Callable:
    """The gradient of a scalar function, as ``torch.func.grad`` and ``jax.grad`` give it.

    ``grad(f)(*args, **kwargs)`` has the structure of the argument at ``argnums``, or is a tuple of such trees where
    ``argnums`` is a sequence; negative positions count from the end. With ``has_aux`` the function returns
    ``(value, aux)`` and the result is ``(grads, aux)``. Gradients with respect to complex leaves follow torch's
    convention: they are the complex conjugates of JAX's.

    Costs one forward and one backward pass, about three forward passes; an outermost call in eager code takes the
    memory of ``.backward()``. It composes with every transform of torch.func, and ordinary autograd sees through it:
    what the function refers to may require gradients.

    Raises ``TypeError`` naming the path of a leaf that is not a floating or complex tensor, and ``ValueError`` for a
    value that is not a real scalar and for ``argnums`` that the arguments do not have.

    >>> grad(lambda p, x: (p["w"] * x).sum())({"w": torch.tensor([3.0])}, torch.tensor([2.0]))
    {'w': tensor([2.])}
    """

    @functools.wraps(f)
    def grad_of(*args: Any, **kwargs: Any) -> Any:
        _, aux, grads = differentiate(f, "grad", argnums, has_aux, args, kwargs)
        return (grads, aux) if has_aux else grads

    return grad_of


def value_and_grad(f: Callable, argnums: Argnums = 0, has_aux: bool = False) -> Callable:
    """``(value, grads)`` of a scalar function, in JAX's order.

    Like :func:`fnn.grad`, with the value, which costs nothing more. With ``has_aux`` the function returns
    ``(value, aux)`` and the result is ``((value, aux), grads)``.

    >>> value_and_grad(lambda p: (p["w"] ** 2).sum())({"w": torch.tensor([3.0])})
    (tensor(9.), {'w': tensor([6.])})
    """

    @functools.wraps(f)
    def value_and_grad_of(*args: Any, **kwargs: Any) -> tuple:
        value, aux, grads = differentiate(f, "value_and_grad", argnums, has_aux, args, kwargs)
        return ((value, aux) if has_aux else value), grads

    return value_and_grad_of


def scalar_valued(function: Callable, name: str, has_aux: bool = False) -> Callable:
    """The same function, raising ``ValueError`` where its value is not a 0-d tensor of real floating numbers."""

    def checked(*args: Any, **kwargs: Any) -> Any:
        out = function(*args, **kwargs)
        if has_aux and not (isinstance(out, tuple) and len(out) == 2):
            raise ValueError(f"{name} with has_aux=True needs a function that returns (value, aux), got {_kind(out)}")
        value = out[0] if has_aux else out
        if not isinstance(value, Tensor) or value.dim() != 0:
            raise ValueError(f"{name} needs a function with a scalar value, got {_kind(value)}; {_hint(value)}")
        if not value.is_floating_point():
            hint = "write value.abs() ** 2 or value.real" if value.is_complex() else "only floating numbers have one"
            raise ValueError(f"{name} needs a real scalar, and a {value.dtype} value has no gradient; {hint}")
        return out

    return checked


def check_function(f: Any, name: str) -> None:
    """Raise ``TypeError`` unless ``f`` can be called.

    >>> check_function(None, "grad")
    Traceback (most recent call last):
    TypeError: grad takes a function, got None; write grad(f)
    """
    if not callable(f):
        shown = f"a {type(f).__name__}" if f is not None else "None"
        line = "a function that calls model.apply(params, x)" if hasattr(f, "apply") else f"{name}(f)"
        raise TypeError(f"{name} takes a function, got {shown}; write {line}")


def check_differentiable(tree: _tree.Tree, name: str = "params") -> None:
    """Raise ``TypeError`` naming the first leaf that is not a floating or complex tensor.

    >>> check_differentiable({"count": torch.tensor(1)})
    Traceback (most recent call last):
    TypeError: params['count'] is a torch.int64 tensor and has no gradient; split it off with fnn.tree.partition
    """
    leaves, treedef = _tree.flatten(tree)
    if all(map(_is_differentiable, leaves)):
        return
    for path, leaf in zip(treedef.keystrs, leaves, strict=True):
        if leaf is None:
            raise TypeError(f"{name}{path} is None, not a tensor; leave the entry out where there is no parameter")
        if isinstance(leaf, torch.nn.Module):
            raise TypeError(
                f"{name}{path} is a torch.nn.Module, not a tree of tensors; write model, params, state = "
                "fnn.interop.from_module(module), and model.apply(params, x) in the function"
            )
        if not isinstance(leaf, Tensor):
            shown = repr(leaf) if isinstance(leaf, (str, int, float, complex)) else f"a {type(leaf).__name__}"
            raise TypeError(
                f"{name}{path} is {shown}, not a tensor; write torch.tensor(...), or keep configuration in a closure"
            )
        if not leaf.is_floating_point() and not leaf.is_complex():
            raise TypeError(
                f"{name}{path} is a {leaf.dtype} tensor and has no gradient; split it off with fnn.tree.partition"
            )


def _is_differentiable(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex())


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return f"a {type(value).__name__}"


def _hint(value: Any) -> str:
    if value is None:
        return "return the loss"
    if isinstance(value, tuple):
        return "write has_aux=True where the function returns (value, aux)"
    if isinstance(value, (int, float)):
        return "return the tensor itself, without .item() or float()"
    return "write loss.mean()"


def differentiate(
    f: Callable, name: str, argnums: Argnums, has_aux: bool, args: tuple, kwargs: dict
) -> tuple[Tensor, Any, Any]:
    """The value of ``f``, what else it returned, and its gradient or tuple of gradients."""
    check_function(f, name)
    places = positions(argnums, len(args), name)
    leaves, treedef = _tree.flatten(tuple(args[place] for place in places))
    if not all(map(_is_differentiable, leaves)):
        for place in places:
            check_differentiable(args[place], f"argument {place}")
    checked = scalar_valued(f, name, has_aux)

    def of_leaves(leaves: list[Tensor]) -> tuple[Tensor, Any]:
        given = list(args)
        for place, arg in zip(places, treedef.unflatten(leaves), strict=True):
            given[place] = arg
        out = checked(*given, **kwargs)
        return out if has_aux else (out, None)

    if leaves and is_outermost() and not torch.is_inference_mode_enabled():
        value, aux, grads = _by_autograd(of_leaves, leaves)
    else:
        value, aux, grads = _by_torch_func(of_leaves, leaves)
    trees = treedef.unflatten(grads)
    if has_aux:
        aux = own(aux, args, kwargs)
    return value, aux, trees[0] if isinstance(argnums, int) else trees


def _by_torch_func(of_leaves: Callable, leaves: list[Tensor]) -> tuple[Tensor, Any, list[Tensor]]:
    found: list = []
    treedef: Any = None

    def of_list(leaves: list[Tensor]) -> tuple[Tensor, tuple]:
        nonlocal found, treedef
        value, aux = of_leaves(leaves)
        found, treedef = _tree.flatten(aux)
        return value, (value, [x for x in found if isinstance(x, Tensor)])  # torch.func takes nothing but tensors

    if is_outermost_in_replay():  # without gradients enabled, torch takes the formulas of torch.autograd.grad
        with differentiated_once():
            value, pullback, *aux = torch.func.vjp(of_list, leaves, has_aux=True)
        tensors = aux[0][1]
        with torch.no_grad():
            (grads,) = pullback(torch.ones_like(value))
    else:
        grads, (value, tensors) = torch.func.grad(of_list, has_aux=True)(leaves)
    unwrapped = iter(tensors)
    return value, treedef.unflatten([next(unwrapped) if isinstance(x, Tensor) else x for x in found]), grads


def _by_autograd(of_leaves: Callable, leaves: list[Tensor]) -> tuple[Tensor, Any, list[Tensor]]:
    """By ``torch.autograd.grad`` on detached leaves.

    Where grad mode is on and the outputs depend on tensors other than the leaves that require gradients, the graph of
    the backward pass is kept, so that ordinary autograd may differentiate the results with respect to those.
    """
    recording = torch.is_grad_enabled()
    with torch.enable_grad():
        try:
            inner = [x.view_as(x) if recording and x.requires_grad else x.detach().requires_grad_() for x in leaves]
            with differentiated():
                value, aux = of_leaves(inner)
        except RuntimeError as error:
            if "inference tensor" in str(error).lower():  # torch.func accepts these
                return _by_torch_func(of_leaves, leaves)
            if "leaf Variable that requires grad" in str(error):
                raise ValueError(
                    "the function changes an argument in place while it is differentiated; write p = p * 2 instead of "
                    "p.mul_(2) or p *= 2"
                ) from error
            raise
        if any(x.is_leaf and x.grad is not None for x in inner):
            raise ValueError("the function calls .backward(), which adds to its arguments; use fnn.grad inside it")
        found, treedef = _tree.flatten(aux)
        outputs = [value, *(x for x in found if isinstance(x, Tensor))]
        keep = recording and _depends_on_others(outputs, inner)
        grads: Iterable[Tensor | None] = [None] * len(inner)
        if value.requires_grad:
            grads = torch.autograd.grad(value, inner, create_graph=keep, allow_unused=True)
    for x in inner:
        if x.is_leaf:
            x.requires_grad_(False)  # a graph that is kept need not lead to it any more

    def finish(x: Any) -> Any:
        if not isinstance(x, Tensor) or not x.requires_grad or (keep and _depends_on_others([x], [])):
            return x
        return x.detach()

    value = finish(value).clone()  # a function may return its argument
    whole = [torch.zeros_like(x) if grad is None else finish(grad) for x, grad in zip(leaves, grads, strict=True)]
    return value, treedef.unflatten([finish(x) for x in found]), own_leaves(whole)


def _depends_on_others(outputs: Iterable[Tensor], leaves: list[Tensor]) -> bool:
    """True if ordinary autograd has a path from one of the outputs to a tensor other than these leaves."""
    own = {id(leaf) for leaf in leaves}
    end = _torch.AccumulateGrad  # the node that adds to a tensor without a graph of its own
    todo = []
    for output in outputs:
        if output.grad_fn is not None:
            todo.append(output.grad_fn)
        elif output.requires_grad and id(output) not in own:
            return True
    seen = set(todo)
    for node in todo:
        for further, _ in node.next_functions:
            if isinstance(further, end):
                variable = further.variable
                if id(variable) not in own and variable.requires_grad:
                    return True
            elif further is not None and further not in seen:
                seen.add(further)
                todo.append(further)
    return False
