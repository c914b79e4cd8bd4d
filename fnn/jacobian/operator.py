"""The Jacobian of a function of a tree as a linear operator.

With ``batch`` the function is called as ``function(params, batch)``, with ``batches`` (a list, a loader: anything that
can be iterated again and again) once for each; without either as ``function(params)``.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch

from fnn import tree as _tree
from fnn.gradients.value_and_grad import check_differentiable
from fnn.linalg.linear_operator import LinearOperator
from fnn.tree import Tree

NO_BATCH: Any = object()


def jacobian_operator(
    function: Callable, params: Tree, batch: Any = NO_BATCH, *, batches: Iterable | None = None
) -> LinearOperator:
    """J of ``function``, rows numbered by its output: ``J @ v`` by forward mode, ``J.T @ u`` by reverse mode.

    With ``batches`` the outputs are joined along their first axis. Each product costs about two (``@``) or
    three (``.T @``) calls of the function. Memory: forward mode that of one call, reverse mode all activations
    of one batch. Raises ``TypeError`` naming a leaf of params that has no derivative, ``ValueError`` for no
    batches or an iterator that can be read only once.

    >>> J = jacobian_operator(lambda x: x * x, torch.tensor([1.0, 2.0]))
    >>> J.dense()
    tensor([[2., 0.],
            [0., 4.]])
    """
    check_differentiable(params)
    calls = Calls(batch, batches)
    with torch.no_grad():
        outputs = [function(params, *args) for _, args in calls]
    output = outputs[0] if len(outputs) == 1 else _tree.concat(outputs)
    lengths = [_tree.leaves(out)[0].shape[:1] for out in outputs]
    check_differentiable(output, "the function's output")

    def product(v: Tree) -> Tree:
        parts = [torch.func.jvp(lambda p, args=args: function(p, *args), (params,), (v,))[1] for _, args in calls]
        return parts[0] if len(parts) == 1 else _tree.concat(parts)

    def transposed(u: Tree) -> Tree:
        total, start = None, 0
        for (_, args), length in zip(calls, lengths, strict=True):
            part = u
            if len(lengths) > 1:
                stop = start + length[0]
                part = _tree.map(lambda leaf, start=start, stop=stop: leaf[start:stop], u)
                start = stop
            (back,) = torch.func.vjp(lambda p, args=args: function(p, *args), params)[1](part)
            total = back if total is None else _tree.add(total, back)
        return total

    return LinearOperator(product, params, output, transposed)


class Calls:
    """The extra arguments of each call of the function, with the number of samples in them."""

    def __init__(self, batch: Any, batches: Iterable | None) -> None:
        if batches is None:
            self.batches = None
            self.single = [(1, () if batch is NO_BATCH else (batch,))]
            return
        if batch is not NO_BATCH:
            raise ValueError("give either one batch or batches=[...], not both")
        if iter(batches) is batches:
            raise ValueError(
                "batches is an iterator and can be read once, but every product reads it; write batches=list(batches)"
            )
        self.batches = batches
        if next(iter(self), None) is None:
            raise ValueError("batches is empty; an operator needs at least one batch")

    def __iter__(self) -> Any:
        if self.batches is None:
            return iter(self.single)
        return ((_tree.leading_length(batch), (batch,)) for batch in self.batches)
