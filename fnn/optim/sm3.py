"""SM3: an Adagrad whose sums of squares are kept for the rows and columns of a leaf instead of its elements."""

import torch
from torch import Tensor

from fnn.optim.aliases import descend
from fnn.optim.base import Optimizer
from fnn.optim.hyperparams import Choice, Number
from fnn.optim.rules import from_rule
from fnn.optim.scale_by_adam import check_betas


def scale_by_sm3(momentum: Number = 0.9, eps: Number = 1e-8) -> Optimizer:
    """SM3's direction (Anil et al., 2019, algorithm SM3-II): Adagrad with n + m sums for an n by m matrix.

    There is one sum for each index along each axis of a leaf. The sum of an element is v = g^2 + the smallest of the
    sums of its indices, and the new sum of an index is the largest v of its elements. Direction:
    m = momentum m + (1 - momentum) g / sqrt(v + eps), where an element that has never had a gradient counts as 0.

    >>> opt = scale_by_sm3(momentum=0.0)
    >>> params = {"w": torch.ones(3, 2)}
    >>> direction, state = opt.update({"w": torch.full((3, 2), 2.0)}, opt.init(params))
    >>> direction["w"][0], state.slots["sums"]["w"]
    (tensor([1., 1.]), tensor([4., 4., 4., 4., 4.]))
    """
    check_betas(momentum=momentum)

    def rule(t: Tensor, momentum: Tensor, eps: Tensor):
        def leaf(g, p, mean, sums):
            if not g.numel():
                return g, mean, sums
            along = [part.reshape(shape) for part, shape in zip(sums.split(list(g.shape)), _rows(g), strict=True)]
            v = along[0]
            for part in along[1:]:
                v = torch.minimum(v, part)
            v = v + g * g
            seen = v > 0
            step = torch.where(seen, g * (torch.where(seen, v, 1.0) + eps).rsqrt(), 0.0)
            mean = mean + (step - mean) * (1 - momentum)
            return mean, mean, torch.cat([_largest(v, axis) for axis in range(v.dim())])

        return leaf

    def zeros(p: Tensor) -> Tensor:
        return p.new_zeros(sum(p.shape) if p.dim() else 1)

    slots = {"mean": torch.zeros_like, "sums": zeros}
    return from_rule(rule, {"momentum": momentum, "eps": eps}, slots, real_only="scale_by_sm3")


def _rows(g: Tensor) -> list[list[int]]:
    """For each axis, the shape with the length of this axis and ones elsewhere."""
    return [[n if i == axis else 1 for i in range(g.dim())] for axis, n in enumerate(g.shape)]


def _largest(v: Tensor, axis: int) -> Tensor:
    """The maximum over all axes but one."""
    others = [i for i in range(v.dim()) if i != axis]
    return v.amax(others) if others else v


def sm3(
    learning_rate: Choice = 1e-3,
    momentum: Number = 0.9,
    eps: Number = 1e-8,
    weight_decay: Choice = 0.0,
    maximize: bool = False,
) -> Optimizer:
    """SM3 (Anil et al., 2019), an Adagrad with small memory; see :func:`fnn.optim.scale_by_sm3`.

    ``weight_decay`` is added to the gradient.

    >>> opt = sm3(0.1, momentum=0.0)
    >>> params = {"w": torch.ones(1)}
    >>> opt.update(params, opt.init(params), params)[0]
    {'w': tensor([-0.1000])}
    """
    direction = scale_by_sm3(momentum, eps)
    return descend(direction, learning_rate=learning_rate, weight_decay=weight_decay, maximize=maximize)
