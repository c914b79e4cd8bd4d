"""Whether the derivatives of a function are what its values say."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fnn import random
from fnn import tree as _tree
from fnn.jacobian.arguments import check_primals, differentiable_output, forward_mode
from fnn.linalg.vector_space import check_like
from fnn.tree import Tree


def check_grads(
    f: Callable,
    args: tuple,
    order: int = 2,
    modes: Sequence[str] = ("fwd", "rev"),
    key: Tensor | None = None,
    tolerance: float | None = None,
) -> None:
    """Raise ``AssertionError``, naming the path and the error, unless the derivatives of ``f(*args)`` are right.

    For a random tangent v and cotangent u, and a step h = eps^(1/3) for the coarsest dtype among arguments and output:

    - ``"fwd"``: J v against (f(x + h v) - f(x - h v)) / 2 h, leaf by leaf of the output,
    - ``"rev"``: <J^T u, v> against the same difference in <u, f>, leaf by leaf of the arguments,
    - both: <u, J v> = <J^T u, v>, to rounding;

    then the same for J v and J^T u as functions of the arguments, to ``order``, in every sequence of the modes. An
    error counts relative to the largest number on either side, or to 1; ``tolerance`` is 2 eps^(2/5) unless given
    (1e-6 for float64, 3e-3 for float32), so write ``fnn.tree.cast(args, torch.float64)`` for a sharp test. Kinks within
    h of the arguments fail it. Costs about 2 (leaves + 2) calls for each of the modes^order functions. Raises
    ``ValueError`` for another order or mode, ``TypeError`` for an integer leaf and an operation without a forward rule.

    >>> check_grads(torch.sin, (torch.tensor([0.3, 2.0]),))
    >>> wrong = lambda x: x**2 + (x - x.detach())
    >>> check_grads(wrong, (torch.tensor([0.3, 2.0]),), order=1)
    Traceback (most recent call last):
    AssertionError: check_grads: order 1, fwd: output differs from central differences ...
    """
    if order < 1 or not modes or set(modes) - {"fwd", "rev"}:
        raise ValueError(f"check_grads needs order >= 1 and modes out of 'fwd' and 'rev', got {order} and {modes}")
    check_primals(args, "check_grads")
    output = differentiable_output(f)(*args)
    leaves = [*_tree.leaves(args), *_tree.leaves(output)]
    eps = max(torch.finfo(leaf.dtype).eps for leaf in leaves)
    limit = 2.0 * eps**0.4 if tolerance is None else tolerance
    _check(f, tuple(args), order, tuple(modes), random.key(0) if key is None else key, eps, limit, ())


def _check(
    f: Callable, args: tuple, order: int, modes: tuple, key: Tensor, eps: float, limit: float, done: tuple
) -> None:
    here = f"check_grads: order {len(done) + 1}, " + " of ".join(["{}", *reversed(done)])
    step = eps ** (1 / 3)
    tangent_key, cotangent_key, key = random.split(key, 3)
    v = _random(tangent_key, args)
    u = _random(cotangent_key, f(*args))
    slope = pulled = None

    def difference(v: tuple) -> Tree:
        high, low = (f(*_tree.map(lambda x, t, h=h: x + h * t, args, v)) for h in (step, -step))
        return _tree.map(lambda a, b: (a - b) / (2.0 * step), high, low)

    if "fwd" in modes:
        slope = forward_mode(lambda: torch.func.jvp(f, args, v)[1], "check_grads")
        numeric = difference(v)
        check_like(numeric, slope, "output", "its tangent")
        for path, ours, theirs in _beside(slope, numeric):
            _compare(ours, theirs, limit, f"{here.format('fwd')}: output{path} differs from central differences")
    if "rev" in modes:
        pulled = torch.func.vjp(f, *args)[1](u)
        check_like(args, pulled, "args", "their cotangent")
        for number, (path, ours, direction) in enumerate(_beside(pulled, v)):
            alone = [t if i == number else torch.zeros_like(t) for i, t in enumerate(_tree.leaves(v))]
            numeric = _tree.dot(u, difference(_tree.structure(args).unflatten(alone)))
            message = f"{here.format('rev')}: along args{path} it differs from central differences"
            _compare((ours * direction).sum(), numeric, limit, message)
    if slope is not None and pulled is not None:
        message = f"{here.format('fwd against rev')}: <u, J v> and <J^T u, v> differ"
        scale = _tree.global_norm(u) * _tree.global_norm(slope) + _tree.global_norm(pulled) * _tree.global_norm(v)
        _compare(_tree.dot(u, slope), _tree.dot(pulled, v), 100.0 * eps, message, scale)
    if order == 1:
        return
    for mode, derivative in {
        "fwd": lambda *args: torch.func.jvp(f, args, v)[1],
        "rev": lambda *args: torch.func.vjp(f, *args)[1](u),
    }.items():
        if mode in modes:
            _check(derivative, args, order - 1, modes, key, eps, limit, (*done, mode))


def _beside(first: Tree, second: Tree) -> Any:
    return zip(_tree.keystrs(first), _tree.leaves(first), _tree.leaves(second), strict=True)


def _random(key: Tensor, like: Tree) -> Tree:
    return _tree.map(lambda draw, leaf: draw.to(leaf.dtype), random.like(key, like), like)


def _compare(ours: Tensor, theirs: Tensor, limit: float, message: str, scale: Tensor | None = None) -> None:
    if scale is None:
        scale = torch.cat([ours.reshape(-1), theirs.reshape(-1)]).abs().max() if ours.numel() else ours.sum()
    error = (ours - theirs).abs().max() if ours.numel() else ours.sum()
    relative = float(error / torch.clamp(scale, min=1.0))
    if not relative <= limit:  # nan is an error too
        raise AssertionError(f"{message} by {float(error):.3g}, relative {relative:.3g}, where {limit:.3g} is allowed")
