"""Clipping of gradients by element, leaf, unit or global norm."""

from typing import Any

import torch
from torch import Tensor

from fnn import _torch
from fnn._numerics import safe_sqrt
from fnn.optim.base import Optimizer, from_lists, list_form, needs_params, runs_together
from fnn.optim.hyperparams import Number, check_range, one_number
from fnn.optim.layout import Layout
from fnn.optim.rules import State, from_rule
from fnn.optim.tensor_list import TensorList
from fnn.tree import global_norm


def clip(limit: Number) -> Optimizer:
    """Clip each element to [-limit, limit].

    >>> clip(1.0).update({"w": torch.tensor([-3.0, 0.5])}, clip(1.0).init({"w": torch.ones(2)}))[0]
    {'w': tensor([-1.0000,  0.5000])}
    """
    check_range("limit", limit)

    def rule(t: Tensor, limit: Tensor):
        def leaf(g, p):
            bound = limit.to(g.dtype).clamp(min=0.0)
            return (g.clamp(-bound, bound),)

        return leaf

    return from_rule(rule, {"limit": limit}, real_only="clip")


def clip_by_global_norm(max_norm: Number) -> Optimizer:
    """Multiply all leaves by min(1, max_norm / norm), where norm is the Euclidean norm of all leaves as one vector.

    There is no epsilon, so the clipped norm is max_norm itself; ``torch.nn.utils.clip_grad_norm_`` adds 1e-6 to the
    norm. If one element is nan, all elements of the result are nan.

    >>> opt = clip_by_global_norm(1.0)
    >>> opt.update({"w": torch.tensor([3.0, 4.0])}, opt.init({"w": torch.ones(2)}))[0]
    {'w': tensor([0.6000, 0.8000])}
    """
    check_range("max_norm", max_norm)
    numbers = from_rule(lambda t, max_norm: lambda g, p: (g,), {"max_norm": one_number("max_norm", max_norm)})
    advance = list_form(numbers)

    def on_lists(layout: Layout, grads: list, state: State, params: list | None, **_: Any) -> tuple[list, State]:
        state = advance.on_lists(layout, [], state, None)[1]
        max_norm = (state.hyperparams | state.scheduled)["max_norm"]
        if not grads:
            return grads, state
        if not runs_together(grads):
            factor = shrink(global_norm(grads), max_norm)
            return [g * factor.to(g.dtype) for g in grads], state
        norms = _torch.foreach["norm"](grads)
        widest = torch.float64 if any(x.dtype is torch.float64 for x in norms) else torch.float32
        factor = shrink(torch.stack([x.to(widest) for x in norms]).norm(), max_norm)
        return (TensorList(grads) * factor).tensors, state

    return from_lists(numbers.init, on_lists, advance.map_slots)


def shrink(norm: Tensor, limit: Tensor) -> Tensor:
    """Return min(1, limit / norm), or nan if the norm is nan. The derivative at a norm of 0 is finite.

    >>> shrink(torch.tensor([0.0, 2.0, float("nan")]), torch.tensor(1.0))
    tensor([1.0000, 0.5000,    nan])
    """
    limit = limit.clamp(min=0.0)  # tensors are not checked, and a negative limit must not change signs
    large = ~(norm <= limit)
    return torch.where(large, limit / torch.where(large, norm, 1.0), 1.0)


def clip_by_block(max_rms: Number) -> Optimizer:
    """Divide each leaf by max(1, rms / max_rms), where rms is its root mean square (Shazeer and Stern, 2018).

    >>> opt = clip_by_block(1.0)
    >>> opt.update({"w": torch.tensor([3.0, 3.0])}, opt.init({"w": torch.ones(2)}))[0]
    {'w': tensor([1., 1.])}
    """
    check_range("max_rms", max_rms)

    def rule(t: Tensor, max_rms: Tensor):
        return lambda g, p: (g * shrink(safe_sqrt((g * g).mean()), max_rms).to(g.dtype),)

    return from_rule(rule, {"max_rms": max_rms}, real_only="clip_by_block")


def adaptive_gradient_clip(clipping: Number = 0.01, eps: Number = 1e-3) -> Optimizer:
    """Clip the gradient of each unit to ``clipping`` times the norm of its weights (Brock et al., 2021).

    A unit is an index into the first axis of a leaf of two or more axes (an output of a linear layer or convolution),
    and the whole leaf otherwise: g min(1, clipping max(norm(p), eps) / norm(g)). Needs params.

    >>> opt = adaptive_gradient_clip(0.1)
    >>> params = {"w": torch.ones(2, 4)}
    >>> opt.update({"w": torch.ones(2, 4)}, opt.init(params), params)[0]["w"]
    tensor([[0.1000, 0.1000, 0.1000, 0.1000],
            [0.1000, 0.1000, 0.1000, 0.1000]])
    """
    check_range("clipping", clipping)

    def rule(t: Tensor, clipping: Tensor, eps: Tensor):
        def leaf(g, p):
            axes = tuple(range(1, g.dim())) if g.dim() > 1 else (0,)
            largest = norm(p, axes).clamp(min=eps.to(g.dtype)) * clipping
            return (g * shrink(norm(g, axes), largest),)

        return leaf

    rates = from_rule(rule, {"clipping": clipping, "eps": eps}, real_only="adaptive_gradient_clip")
    return needs_params(rates, "adaptive_gradient_clip")


def zero_nans() -> Optimizer:
    """Replace every nan by zero. Infinities stay.

    >>> opt = zero_nans()
    >>> opt.update({"w": torch.tensor([float("nan"), 1.0])}, opt.init({"w": torch.ones(2)}))[0]
    {'w': tensor([0., 1.])}
    """
    return from_rule(lambda t: lambda g, p: (g.masked_fill(g != g, 0.0),))


def norm(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Return the Euclidean norm over some axes, which are kept with length 1. Its derivative at 0 is 0.

    >>> norm(torch.tensor([[3.0, 4.0]]), (1,))
    tensor([[5.]])
    """
    return safe_sqrt((x * x).sum(axes, keepdim=True))
