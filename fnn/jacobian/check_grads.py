"""A test of derivatives against central differences of the values."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fnn import random
from fnn import tree as _tree
from fnn._numerics import widen
from fnn.jacobian.arguments import check_primals, differentiable_output
from fnn.jacobian.torch_rules import forward_mode
from fnn.linalg.vector_space import check_like


def check_grads(
    f: Callable,
    args: tuple,
    order: int = 2,
    modes: Sequence[str] = ("fwd", "rev"),
    key: Tensor | None = None,
    tolerance: float | None = None,
) -> None:
    """Raise ``AssertionError``, naming the path and the entry, unless the derivatives of ``f(*args)`` are right.

    For a random tangent v and cotangent u, and a step h = eps^(1/3) for the coarsest dtype among arguments and output:

    - ``"fwd"``: J v against (f(x + h v) - f(x - h v)) / 2 h, entry by entry of the output,
    - ``"rev"``: <J^T u, v> against the same difference in <u, f>, leaf by leaf of the arguments; u weights the entries
      of the output by one over their slopes, so that a large one hides no error of a small one; where the entries
      of J^T u differ by more than a factor of 100, further directions v weight the argument's entries likewise,
    - both: <u, J v> = <J^T u, v>, to rounding;

    then the same for J v and J^T u as functions of the arguments, up to ``order``, in every sequence of the modes. The
    allowed error is ``tolerance`` relative to the number itself, 2 eps^(2/5) unless given (1e-6 for float64, 3e-3 for
    float32), plus the uncertainty of the differences: the distance between those of the steps h and 2 h, and the
    rounding of the values over h. For a sharp test write ``fnn.tree.cast(args, torch.float64)``. Where f has a kink
    within h of the arguments, the test may fail or miss an error. Costs about 4 (leaves + 2) calls for each of the
    modes^order functions. Raises ``ValueError`` for another order or mode, ``TypeError`` for an integer or complex leaf
    and an operation without a forward rule.

    >>> check_grads(torch.sin, (torch.tensor([0.3, 2.0]),))
    >>> wrong = lambda x: x**2 + (x - x.detach())
    >>> check_grads(wrong, (torch.tensor([0.3, 2.0]),), order=1)
    Traceback (most recent call last):
    AssertionError: check_grads: order 1, fwd: output differs from central differences ...
    """
    if order < 1 or not modes or set(modes) - {"fwd", "rev"}:
        raise ValueError(f"check_grads needs order >= 1 and modes out of 'fwd' and 'rev', got {order} and {modes}")
    check_primals(args, "check_grads")
    output = differentiable_output(f, "check_grads")(*args)
    leaves = [*_tree.leaves(args), *_tree.leaves(output)]
    eps = max(torch.finfo(leaf.dtype).eps for leaf in leaves)
    limit = 2.0 * eps**0.4 if tolerance is None else tolerance
    _check(f, tuple(args), order, tuple(modes), random.key(0) if key is None else key, eps, limit, ())


class _Difference(NamedTuple):
    """A central difference, a list of the output's leaves, and how far each entry may be from the derivative."""

    values: list[Tensor]
    noise: list[Tensor]


def _check(
    f: Callable, args: tuple, order: int, modes: tuple, key: Tensor, eps: float, limit: float, done: tuple
) -> None:
    here = f"check_grads: order {len(done) + 1}, " + " of ".join(["{}", *reversed(done)])
    tangent_key, cotangent_key, key = random.split(key, 3)
    v = random.like(tangent_key, args)
    output = f(*args)
    structure = _tree.structure(output)
    numeric = _difference(f, args, v, eps)
    draws = _tree.leaves(random.like(cotangent_key, output))
    plain = structure.unflatten(draws)  # unweighted, where rounding errors matter: weights enlarge them
    weights = _weights(numeric, eps, limit)
    u = structure.unflatten([draw * w.to(draw.dtype) for draw, w in zip(draws, weights, strict=True)])
    slope = pulled = None
    if "fwd" in modes:
        slope = forward_mode(lambda: torch.func.jvp(f, args, v)[1], "check_grads")
        check_like(output, slope, "output", "its tangent")
        rows = zip(structure.keystrs, _tree.leaves(slope), numeric.values, numeric.noise, strict=True)
        for path, ours, theirs, noise in rows:
            allowed = limit * torch.maximum(ours.abs(), theirs.abs()) + noise
            if done and ours.numel():  # second derivatives cancel, such as p - p^2 of a softmax
                allowed = allowed + 100.0 * eps * ours.abs().max()
            _compare(ours, theirs, allowed, f"{here.format('fwd')}: output{path} differs from central differences")
    if "rev" in modes:
        pulled = torch.func.vjp(f, *args)[1](u)
        check_like(args, pulled, "args", "their cotangent")
        gradients, treedef = _tree.flatten(pulled)
        for number, (path, gradient) in enumerate(zip(treedef.keystrs, gradients, strict=True)):
            for direction in _directions(gradient, _tree.leaves(v)[number]):
                alone = [direction if i == number else torch.zeros_like(g) for i, g in enumerate(gradients)]
                along = _difference(f, args, treedef.unflatten(alone), eps)
                cotangents = [widen(leaf) for leaf in _tree.leaves(u)]
                theirs = sum(((w * d).sum() for w, d in zip(cotangents, along.values, strict=True)), torch.zeros(()))
                terms = sum(((w * d).abs().sum() for w, d in zip(cotangents, along.values, strict=True)), 0.0)
                noise = sum(((w.abs() * d).sum() for w, d in zip(cotangents, along.noise, strict=True)), 0.0)
                ours = (widen(gradient) * widen(direction)).sum()
                allowed = limit * (torch.maximum(ours.abs(), theirs.abs()) + 0.01 * terms) + noise
                message = f"{here.format('rev')}: along args{path} it differs from central differences"
                _compare(ours, theirs, allowed, message)
    if slope is not None and pulled is not None:
        message = f"{here.format('fwd against rev')}: <u, J v> and <J^T u, v> differ"
        pulled = torch.func.vjp(f, *args)[1](plain)
        norm = _tree.global_norm
        total = norm(plain) * norm(slope) + norm(pulled) * norm(v)
        allowed = 100.0 * eps * torch.clamp(total, min=1.0)
        _compare(_tree.dot(plain, slope), _tree.dot(pulled, v), allowed, message)
    if order == 1:
        return
    for mode, derivative in {
        "fwd": lambda *args: torch.func.jvp(f, args, v)[1],
        "rev": lambda *args: torch.func.vjp(f, *args)[1](plain),
    }.items():
        if mode in modes:
            _check(derivative, args, order - 1, modes, key, eps, limit, (*done, mode))


def _difference(f: Callable, args: tuple, v: tuple, eps: float) -> _Difference:
    """The difference with the step h.

    Its noise comes from its distance to the difference with 2 h and from the rounding of the values over h.
    """
    h = eps ** (1 / 3)
    pairs = [
        [
            [widen(leaf) for leaf in _tree.leaves(f(*_tree.map(lambda x, t, s=s: x + s * t, args, v)))]
            for s in (step, -step)
        ]
        for step in (h, 2.0 * h)
    ]
    values, noise = [], []
    for high, low, further, lower in zip(*pairs[0], *pairs[1], strict=True):
        near, far = (high - low) / (2.0 * h), (further - lower) / (4.0 * h)
        values.append(near)
        apart = (near - far).abs()
        common = apart.median() if apart.numel() else 0.0  # an entry may happen to round alike for both steps
        noise.append(2.0 * apart + 4.0 * common + 4.0 * eps / h * torch.maximum(high.abs(), low.abs()))
    return _Difference(values, noise)


def _weights(numeric: _Difference, eps: float, limit: float) -> list[Tensor]:
    """One over the slope of each entry of the output, relative to the largest, and less where the slope is noise."""
    largest = max((float(value.abs().max()) for value in numeric.values if value.numel()), default=0.0)
    if not 0.0 < largest < float("inf"):
        return [torch.ones_like(value) for value in numeric.values]
    noisy = sum(value.numel() for value in numeric.values) / limit
    return [
        largest / torch.clamp(torch.maximum(value.abs(), noisy * noise), min=eps * largest)
        for value, noise in zip(numeric.values, numeric.noise, strict=True)
    ]


def _directions(gradient: Tensor, v: Tensor) -> list[Tensor]:
    """v; where few entries of the gradient outweigh the others, also v with these entries made small."""
    sizes = gradient.abs()[gradient != 0]
    if not sizes.numel() or not bool(sizes.isfinite().all()):
        return [v]
    middle = sizes.median()
    if bool(sizes.max() <= 100.0 * middle) and bool(sizes.min() >= 0.01 * middle):
        return [v]
    return [v, v * middle / (middle + gradient.abs()), v * sizes.min() / (sizes.min() + gradient.abs())]


def _compare(ours: Tensor, theirs: Tensor, allowed: Tensor, message: str) -> None:
    error = (ours - theirs).abs()
    wrong = ~(error <= allowed)  # nan is an error too
    if bool(wrong.any()):
        place = tuple(wrong.nonzero()[0].tolist())
        where = f" at entry {list(place)}" if place else ""
        raise AssertionError(
            f"{message} by {float(error[place]):.3g}{where}: {float(ours[place]):.6g} against "
            f"{float(theirs[place]):.6g}, where {float(allowed[place]):.3g} is allowed"
        )
