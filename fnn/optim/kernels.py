"""Multi-tensor kernels whose scalar arguments are 0-d tensors.

torch's kernels take Python numbers, and a graph cannot contain a Python number that is the value of a tensor. The
kernels here read the values when they run. In a graph that will be replayed, each is one operation, such as
``torch.ops.fnn.foreach_lerp``. An in-place operation such as ``foreach_lerp_`` computes the same and writes the results
into its first argument, or into the running means for Adam; it is used where arguments may be overwritten.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from fnn import _torch

Tensors = list[Tensor]


def lerp(start: Tensors, end: Tensors, weight: Tensor) -> Tensors:
    """start + weight (end - start)."""
    return _run("foreach_lerp", _lerp, start, end, weight)


def add_scaled(start: Tensors, other: Tensors, factor: Tensor) -> Tensors:
    """start + factor other."""
    return _run("foreach_add_scaled", _add_scaled, start, other, factor)


def add_product(start: Tensors, first: Tensors, second: Tensors, factor: Tensor) -> Tensors:
    """start + factor first second."""
    return _run("foreach_add_product", _add_product, start, first, second, factor)


def adam(
    grads: Tensors,
    mean: Tensors,
    square: Tensors,
    largest: Tensors,
    t: Tensor,
    beta1: Tensor,
    beta2: Tensor,
    eps: Tensor,
) -> tuple[Tensors, Tensors, Tensors, Tensors]:
    """Return Adam's directions and the new running means. ``largest`` is empty without amsgrad."""
    return _run("foreach_adam", _adam, grads, mean, square, largest, t, beta1, beta2, eps)


def _run(name: str, function: Callable, *args: Tensors | Tensor):
    """Call the function in eager code, and the operation that represents it where a graph is recorded."""
    return getattr(torch.ops.fnn, name)(*args) if _torch.dispatch_modes() else function(*args)


def _lerp(start: Tensors, end: Tensors, weight: Tensor) -> Tensors:
    if not _on_host(weight):
        return _add_scaled(start, _torch.foreach["sub"](end, start), weight)
    return _torch.foreach["lerp"](start, end, weight.item())


def _add_scaled(start: Tensors, other: Tensors, factor: Tensor) -> Tensors:
    if not _on_host(factor):
        return _torch.foreach["add"](start, _torch.foreach["mul"](other, factor))
    return _torch.foreach["add"](start, other, alpha=factor.item())


def _add_product(start: Tensors, first: Tensors, second: Tensors, factor: Tensor) -> Tensors:
    if not _on_host(factor):
        return _add_scaled(start, _torch.foreach["mul"](first, second), factor)
    return _torch.foreach["addcmul"](start, first, second, factor.item())


def _adam(
    grads: Tensors,
    mean: Tensors,
    square: Tensors,
    largest: Tensors,
    t: Tensor,
    beta1: Tensor,
    beta2: Tensor,
    eps: Tensor,
) -> tuple[Tensors, Tensors, Tensors, Tensors]:
    mean, square, largest = ([x.clone() for x in slot] for slot in (mean, square, largest))
    return _adam_(grads, mean, square, largest, t, beta1, beta2, eps), mean, square, largest


def _adam_(
    grads: Tensors,
    mean: Tensors,
    square: Tensors,
    largest: Tensors,
    t: Tensor,
    beta1: Tensor,
    beta2: Tensor,
    eps: Tensor,
) -> Tensors:
    # torch's kernel updates params in place: from zeros, with a learning rate of -1, they become the direction
    directions = [torch.zeros_like(g) for g in grads]
    _torch.fused_adam(  # pyright: ignore[reportCallIssue]
        directions, grads, mean, square, largest, [t.float()] * len(grads), lr=-1.0, beta1=beta1.item(),
        beta2=beta2.item(), eps=eps.item(), weight_decay=0.0, amsgrad=bool(largest), maximize=False,
    )  # fmt: skip
    return directions


def _on_host(number: Tensor) -> bool:
    """Return True if reading the value does not wait for an accelerator."""
    return number.device.type == "cpu"


def _copy(results: Tensors, into: Tensors) -> None:
    for old, new in zip(into, results, strict=True):
        old.copy_(new)


def _lerp_(start: Tensors, end: Tensors, weight: Tensor) -> None:
    if not _on_host(weight):
        return _copy(_lerp(start, end, weight), start)
    _torch.foreach["lerp_"](start, end, weight.item())


def _add_scaled_(start: Tensors, other: Tensors, factor: Tensor) -> None:
    if not _on_host(factor):
        return _copy(_add_scaled(start, other, factor), start)
    _torch.foreach["add_"](start, other, alpha=factor.item())


def _add_product_(start: Tensors, first: Tensors, second: Tensors, factor: Tensor) -> None:
    if not _on_host(factor):
        return _copy(_add_product(start, first, second, factor), start)
    _torch.foreach["addcmul_"](start, first, second, factor.item())


_NUMBERS = "Tensor t, Tensor beta1, Tensor beta2, Tensor eps"
_MEANS = "Tensor(a!)[] mean, Tensor(b!)[] square, Tensor(c!)[] largest"
_library = torch.library.Library("fnn", "FRAGMENT")
for _signature, _function in {
    "foreach_lerp(Tensor[] start, Tensor[] end, Tensor weight) -> Tensor[]": _lerp,
    "foreach_lerp_(Tensor(a!)[] start, Tensor[] end, Tensor weight) -> ()": _lerp_,
    "foreach_add_scaled(Tensor[] start, Tensor[] other, Tensor factor) -> Tensor[]": _add_scaled,
    "foreach_add_scaled_(Tensor(a!)[] start, Tensor[] other, Tensor factor) -> ()": _add_scaled_,
    "foreach_add_product(Tensor[] start, Tensor[] first, Tensor[] second, Tensor factor) -> Tensor[]": _add_product,
    "foreach_add_product_(Tensor(a!)[] start, Tensor[] first, Tensor[] second, Tensor factor) -> ()": _add_product_,
    f"foreach_adam(Tensor[] grads, Tensor[] mean, Tensor[] square, Tensor[] largest, {_NUMBERS}) "
    "-> (Tensor[], Tensor[], Tensor[], Tensor[])": _adam,
    f"foreach_adam_(Tensor[] grads, {_MEANS}, {_NUMBERS}) -> Tensor[]": _adam_,
}.items():
    _library.define(_signature)
    _library.impl(_signature.partition("(")[0], _function, "CompositeExplicitAutograd")


def _like_first(first: Tensors, *_: Tensors | Tensor) -> Tensors:
    return [torch.empty_like(x) for x in first]


def _like_all(*lists: Tensors | Tensor) -> tuple:
    return tuple([torch.empty_like(x) for x in tensors] for tensors in lists if isinstance(tensors, (list, tuple)))


for _name, _shapes in {
    "foreach_lerp": _like_first,
    "foreach_lerp_": lambda *_: None,
    "foreach_add_scaled": _like_first,
    "foreach_add_scaled_": lambda *_: None,
    "foreach_add_product": _like_first,
    "foreach_add_product_": lambda *_: None,
    "foreach_adam": _like_all,
    "foreach_adam_": _like_first,
}.items():
    torch.library.register_fake(f"fnn::{_name}", _shapes, lib=_library)
