"""What an optimizer is."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from fnn import tree as _tree
from fnn.tree import Tree


class Optimizer(NamedTuple):
    """A pair of pure functions.

    ``init(params) -> opt_state`` and ``update(grads, opt_state, params) -> (updates, opt_state)``, where
    updates are added to params by :func:`apply_updates`.
    """

    init: Callable[[Tree], Tree]
    update: Callable[..., tuple[Tree, Tree]]


def chain(*parts: Optimizer) -> Optimizer:
    """The parts one after the other, each working on the updates of the one before; the state is a tuple.

    >>> import torch
    >>> half = Optimizer(lambda params: (), lambda g, s, p=None: (_tree.scale(0.5, g), s))
    >>> chain(half, half).update({"w": torch.ones(1)}, ((), ()))
    ({'w': tensor([0.2500])}, ((), ()))
    """

    def init(params: Tree) -> tuple:
        return tuple(part.init(params) for part in parts)

    def update(grads: Tree, state: tuple, params: Tree = None) -> tuple[Tree, tuple]:
        if len(state) != len(parts):
            raise ValueError(f"chain of {len(parts)} parts got a state of {len(state)}; make it with init(params)")
        new = []
        for part, part_state in zip(parts, state, strict=True):
            grads, part_state = part.update(grads, part_state, params)
            new.append(part_state)
        return grads, tuple(new)

    return Optimizer(init, update)


def apply_updates(params: Tree, updates: Tree) -> Tree:
    """params + updates, each leaf in the dtype of the param.

    >>> import torch
    >>> apply_updates({"w": torch.ones(1)}, {"w": torch.ones(1)})
    {'w': tensor([2.])}
    """

    def add(param: Tensor, update: Tensor) -> Tensor:
        return (param + update).to(param.dtype)

    return _tree.map(add, params, updates)
