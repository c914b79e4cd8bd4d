"""Transforms without a running mean: scaling, decay, noise and clipping."""

from collections.abc import Callable

import torch
from torch import Tensor

from fnn import random
from fnn import tree as _tree
from fnn.optim.base import Number, State, Transform, as_time, check_range, from_leaves, per_leaf
from fnn.optim.tensor_list import add_scaled
from fnn.tree import Tree


def scale(factor: Number) -> Transform:
    """g factor.

    >>> scale(2.0).update({"w": torch.ones(1)}, scale(2.0).init({"w": torch.ones(1)}))[0]
    {'w': tensor([2.])}
    """
    return per_leaf(lambda t, factor: lambda g, p: (g * factor,), {"factor": factor})


def negate() -> Transform:
    """-g: ascent in place of descent, what ``maximize`` does.

    >>> negate().update({"w": torch.ones(1)}, negate().init({"w": torch.ones(1)}))[0]
    {'w': tensor([-1.])}
    """
    return per_leaf(lambda t: lambda g, p: (-g,))


def scale_by_learning_rate(learning_rate: Number) -> Transform:
    """-learning_rate g: the step of descent. A function is a schedule of the count, which is 0 at the first update.

    >>> opt = scale_by_learning_rate(0.5)
    >>> opt.update({"w": torch.ones(1)}, opt.init({"w": torch.ones(1)}))[0]
    {'w': tensor([-0.5000])}
    """
    check_range("learning_rate", learning_rate)
    return per_leaf(lambda t, learning_rate: lambda g, p: (g * -learning_rate,), {"learning_rate": learning_rate})


def scale_by_schedule(schedule: Callable[[Tensor], Tensor]) -> Transform:
    """g schedule(count), count = 0 at the first update.

    >>> opt = scale_by_schedule(lambda count: 1 / (2 + count))
    >>> opt.update({"w": torch.ones(1)}, opt.init({"w": torch.ones(1)}))[0]
    {'w': tensor([0.5000])}
    """
    return per_leaf(lambda t, factor: lambda g, p: (g * factor,), {"factor": schedule})


def scale_by_sign() -> Transform:
    """sign(g) (Bernstein et al., 2018).

    >>> scale_by_sign().update({"w": torch.tensor([-3.0])}, scale_by_sign().init({"w": torch.ones(1)}))[0]
    {'w': tensor([-1.])}
    """
    return per_leaf(lambda t: lambda g, p: (g.sign(),))


def add_decayed_weights(weight_decay: Number) -> Transform:
    """g + weight_decay p: before a preconditioner the L2 penalty, behind it decoupled decay. Needs params.

    >>> opt = add_decayed_weights(0.1)
    >>> params = {"w": torch.ones(1)}
    >>> opt.update({"w": torch.zeros(1)}, opt.init(params), params)[0]
    {'w': tensor([0.1000])}
    """
    check_range("weight_decay", weight_decay)

    def rule(t: Tensor, weight_decay: Tensor):
        return lambda g, p: (add_scaled(g, p, weight_decay),)

    return needs_params(per_leaf(rule, {"weight_decay": weight_decay}), "weight decay")


def needs_params(transform: Transform, what: str) -> Transform:
    """The same transform, with a sentence for a call without params."""
    inner = transform.on_leaves

    def on_leaves(grads: list, state: Tree, params: list | None, **extra) -> tuple[list, Tree]:
        if params is None:
            raise ValueError(f"{what} needs the params; write optimizer.update(grads, opt_state, params)")
        return inner(grads, state, params, **extra)

    return from_leaves(transform.init, on_leaves)


def add_noise(key: Tensor, eta: Number, gamma: Number = 0.55) -> Transform:
    """g + normal noise of variance eta / t^gamma (Neelakantan et al., 2015), drawn from a key that the state carries.

    >>> opt = add_noise(random.key(0), eta=0.0)
    >>> opt.update({"w": torch.ones(1)}, opt.init({"w": torch.ones(1)}))[0]
    {'w': tensor([1.])}
    """
    check_range("eta", eta)
    start, advance = _numbers({"eta": eta, "gamma": gamma})

    def init(params: Tree) -> tuple:
        return start(params), {"key": key}

    def on_leaves(grads: list, state: tuple, params: list | None, **_) -> tuple[list, tuple]:
        numbers, values = advance(state[0])
        std = (values["eta"] / as_time(numbers.count) ** values["gamma"]).sqrt()
        after, *keys = random.split(state[1]["key"], len(grads) + 1)
        draws = [random.normal(k, tuple(g.shape), g.dtype) for g, k in zip(grads, keys, strict=True)]
        noisy = [g + std.to(g.dtype) * draw for g, draw in zip(grads, draws, strict=True)]
        return noisy, (numbers, {"key": after})

    return from_leaves(init, on_leaves)


def _numbers(hyperparams: dict[str, Number]) -> tuple[Callable, Callable]:
    """``init(params) -> state`` and ``advance(state) -> (state, values)`` for hyperparameters alone."""
    transform = per_leaf(lambda t, **_: lambda g, p: (g,), hyperparams)
    count = transform.on_leaves

    def advance(state: State) -> tuple[State, dict[str, Tensor]]:
        state = count([], state, None)[1]
        return state, {**state.hyperparams, **state.scheduled}

    return transform.init, advance


def clip(limit: Number) -> Transform:
    """Each element held within [-limit, limit].

    >>> clip(1.0).update({"w": torch.tensor([-3.0, 0.5])}, clip(1.0).init({"w": torch.ones(2)}))[0]
    {'w': tensor([-1.0000,  0.5000])}
    """
    check_range("limit", limit)

    def rule(t: Tensor, limit: Tensor):
        def leaf(g, p):
            bound = limit.to(g.dtype)
            return (g.clamp(-bound, bound),)

        return leaf

    return per_leaf(rule, {"limit": limit}, together=False)


def clip_by_global_norm(max_norm: Number) -> Transform:
    """All leaves times min(1, max_norm / norm), norm being that of all leaves as one vector.

    Without an epsilon, so that the clipped norm is max_norm itself; ``torch.nn.utils.clip_grad_norm_`` adds 1e-6 to the
    norm.

    >>> opt = clip_by_global_norm(1.0)
    >>> opt.update({"w": torch.tensor([3.0, 4.0])}, opt.init({"w": torch.ones(2)}))[0]
    {'w': tensor([0.6000, 0.8000])}
    """
    check_range("max_norm", max_norm)
    init, advance = _numbers({"max_norm": max_norm})

    def on_leaves(grads: list, state: State, params: list | None, **_) -> tuple[list, State]:
        state, values = advance(state)
        max_norm = values["max_norm"]
        norm = _tree.global_norm(grads)
        factor = torch.where(norm > max_norm, max_norm / torch.where(norm > max_norm, norm, 1.0), 1.0)
        return [g * factor.to(g.dtype) for g in grads], state

    return from_leaves(init, on_leaves)


def clip_by_block(max_rms: Number) -> Transform:
    """Each leaf divided by max(1, rms / max_rms), rms the root of the mean of its squares (Shazeer and Stern, 2018).

    >>> opt = clip_by_block(1.0)
    >>> opt.update({"w": torch.tensor([3.0, 3.0])}, opt.init({"w": torch.ones(2)}))[0]
    {'w': tensor([1., 1.])}
    """
    check_range("max_rms", max_rms)

    def rule(t: Tensor, max_rms: Tensor):
        def leaf(g, p):
            mean_square = (g * g).mean()
            large = mean_square > max_rms**2
            return (g / torch.where(large, torch.where(large, mean_square, 1.0).sqrt() / max_rms, 1.0),)

        return leaf

    return per_leaf(rule, {"max_rms": max_rms}, together=False)


def adaptive_gradient_clip(clipping: Number = 0.01, eps: Number = 1e-3) -> Transform:
    """Each unit's gradient held to ``clipping`` times the norm of the unit's weights (Brock et al., 2021).

    A unit is a row along the first axis of a leaf of two axes and more (an output of a linear layer or convolution),
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
            largest = clipping * _norm(p, axes).clamp(min=eps.to(g.dtype))
            norm = _norm(g, axes)
            large = norm > largest
            return (g * torch.where(large, largest / torch.where(large, norm, 1.0), 1.0),)

        return leaf

    numbers = {"clipping": clipping, "eps": eps}
    return needs_params(per_leaf(rule, numbers, together=False), "adaptive_gradient_clip")


def centralize() -> Transform:
    """Gradients of leaves with two axes and more less their mean over all axes but the first (Yong et al., 2020).

    >>> opt = centralize()
    >>> opt.update({"w": torch.tensor([[1.0, 3.0]])}, opt.init({"w": torch.ones(1, 2)}))[0]
    {'w': tensor([[-1.,  1.]])}
    """

    def leaf(g, p):
        return (g - g.mean(tuple(range(1, g.dim())), keepdim=True) if g.dim() > 1 else g,)

    return per_leaf(lambda t: leaf, together=False)


def zero_nans() -> Transform:
    """Zero in place of every element that is not a number; infinities stay.

    >>> opt = zero_nans()
    >>> opt.update({"w": torch.tensor([float("nan"), 1.0])}, opt.init({"w": torch.ones(2)}))[0]
    {'w': tensor([0., 1.])}
    """
    return per_leaf(lambda t: lambda g, p: (g.masked_fill(g != g, 0.0),), together=False)


def scale_by_trust_ratio(coefficient: Number = 1.0, eps: Number = 0.0) -> Transform:
    """Each leaf times coefficient norm(p) / (norm(g) + eps), or times 1 where a norm is 0 (You et al., 2017).

    >>> opt = scale_by_trust_ratio()
    >>> params = {"w": torch.tensor([3.0, 4.0])}
    >>> opt.update({"w": torch.tensor([0.0, 1.0])}, opt.init(params), params)[0]
    {'w': tensor([0., 5.])}
    """

    def rule(t: Tensor, coefficient: Tensor, eps: Tensor):
        def leaf(g, p):
            axes = tuple(range(g.dim()))
            p_norm, g_norm = _norm(p, axes), _norm(g, axes)
            usable = (p_norm > 0) & (g_norm > 0)
            ratio = coefficient * p_norm / (torch.where(usable, g_norm, 1.0) + eps)
            return (g * torch.where(usable, ratio, 1.0),)

        return leaf

    numbers = {"coefficient": coefficient, "eps": eps}
    return needs_params(per_leaf(rule, numbers, together=False), "the trust ratio")


def _norm(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Euclidean, the axes kept, with slope 0 at 0."""
    square = (x * x).sum(axes, keepdim=True)
    zero = square == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, square).sqrt())
