"""Projections of params onto convex sets, for constrained problems: descend, then project.

Each function returns the nearest point of a set, where the distance is the Euclidean norm of all leaves as one vector::

    updates, opt_state = optimizer.update(grads, opt_state, params)
    params = fnn.optim.projections.simplex(fnn.optim.apply_updates(params, updates))

Sums and sorting are over all leaves; to project a part of the params, give that part alone. 16-bit leaves are projected
in float32 and rounded. Complex leaves raise ``TypeError``, except in :func:`l2_ball`.
"""

import torch
from torch import Tensor

from fnn.optim.layout import Layout, working
from fnn.tree import Tree, global_norm

__all__ = ["box", "l1_ball", "l2_ball", "linf_ball", "non_negative", "simplex"]

Radius = float | Tensor


def non_negative(params: Tree) -> Tree:
    """Set negative elements to 0.

    >>> non_negative({"w": torch.tensor([-1.0, 2.0])})
    {'w': tensor([0., 2.])}
    """
    layout, leaves = _opened(params, "non_negative")
    return layout.tree([x.clamp(min=0.0) for x in leaves])


def box(params: Tree, lower: Tree | float, upper: Tree | float) -> Tree:
    """Clip each element to [lower, upper], which are numbers, 0-d tensors or trees like the params.

    >>> box({"w": torch.tensor([-1.0, 2.0])}, 0.0, {"w": torch.tensor([1.0, 1.5])})
    {'w': tensor([0.0000, 1.5000])}
    """
    layout, leaves = _opened(params, "box")
    bounds = [_bound(layout, bound, name) for bound, name in ((lower, "lower"), (upper, "upper"))]
    rows = zip(leaves, *bounds, strict=True)
    return layout.tree([torch.minimum(torch.maximum(x, low), high) for x, low, high in rows])


def linf_ball(params: Tree, scale: Radius = 1.0) -> Tree:
    """Clip each element to [-scale, scale]: the largest absolute value is at most ``scale``.

    >>> linf_ball({"w": torch.tensor([-3.0, 0.5])})
    {'w': tensor([-1.0000,  0.5000])}
    """
    _check_scale("linf_ball", scale)
    return box(params, -scale, scale)


def l2_ball(params: Tree, scale: Radius = 1.0) -> Tree:
    """Shrink all leaves by one factor so that the Euclidean norm is at most ``scale``.

    >>> l2_ball({"w": torch.tensor([3.0]), "b": torch.tensor([4.0])})
    {'w': tensor([0.6000]), 'b': tensor([0.8000])}
    """
    _check_scale("l2_ball", scale)
    layout = Layout.of(params)
    leaves = layout.leaves(params, "params")
    norm = global_norm(leaves)
    large = ~(norm <= scale)  # true for nan
    factor = torch.where(large, scale / torch.where(large, norm, 1.0), 1.0)
    return layout.tree([x * factor.to(x.dtype) for x in leaves])


def simplex(params: Tree, scale: Radius = 1.0) -> Tree:
    """The nearest non-negative values whose sum over all leaves is ``scale`` (Held, Wolfe and Crowder, 1974).

    They are max(x - theta, 0), with the one number theta for which the sum is right; it is found by sorting.

    >>> simplex({"w": torch.tensor([0.5, -1.0]), "b": torch.tensor(0.9)})
    {'w': tensor([0.3000, 0.0000]), 'b': tensor(0.7000)}
    """
    _check_scale("simplex", scale)
    layout, leaves = _opened(params, "simplex")
    if not any(x.numel() for x in leaves):
        raise ValueError("simplex: the params have no elements, and so their sum cannot be the scale")
    theta = _threshold(leaves, scale)
    return layout.tree([(x - theta.to(x.dtype)).clamp(min=0.0) for x in leaves])


def l1_ball(params: Tree, scale: Radius = 1.0) -> Tree:
    """The nearest values whose sum of absolute values over all leaves is at most ``scale`` (Duchi et al., 2008).

    If the sum is larger, all absolute values are lowered by the same number, but not below 0; many become 0.

    >>> l1_ball({"w": torch.tensor([-1.0, 0.25]), "b": torch.tensor(1.0)})
    {'w': tensor([-0.5000,  0.0000]), 'b': tensor(0.5000)}
    """
    _check_scale("l1_ball", scale)
    layout, leaves = _opened(params, "l1_ball")
    if not any(x.numel() for x in leaves):
        return layout.tree([x.clone() for x in leaves])
    sizes = [x.abs() for x in leaves]
    theta = _threshold(sizes, scale)
    outside = ~(theta <= 0)  # true for nan
    shrunk = [x.sign() * (size - theta.to(x.dtype)).clamp(min=0.0) for x, size in zip(leaves, sizes, strict=True)]
    return layout.tree([torch.where(outside, new, x) for new, x in zip(shrunk, leaves, strict=True)])


def _threshold(leaves: list[Tensor], scale: Radius) -> Tensor:
    """The number theta for which the sum of max(x - theta, 0) over all leaves is ``scale``."""
    values = torch.cat([x.reshape(-1) for x in leaves]).sort(descending=True).values
    places = torch.arange(1, values.numel() + 1, device=values.device)
    inside = values * places > values.cumsum(0) - scale  # true for the values above theta, which stand first
    return (torch.where(inside, values, 0.0).sum() - scale) / inside.sum()


def _opened(params: Tree, name: str) -> tuple[Layout, list[Tensor]]:
    layout = Layout.of(params)
    layout.refuse_complex(name)
    return layout, layout.leaves(params, "params")


def _bound(layout: Layout, bound: Tree | float, name: str) -> list[Tensor]:
    if isinstance(bound, (int, float)) or (isinstance(bound, Tensor) and not bound.dim()):
        return [x.new_zeros(()) + (bound.to(x) if isinstance(bound, Tensor) else bound) for x in working(layout.params)]
    return layout.leaves(bound, name)


def _check_scale(name: str, scale: Radius) -> None:
    if not isinstance(scale, Tensor) and not scale > 0:
        raise ValueError(f"{name}: scale must be positive, got {scale}")
