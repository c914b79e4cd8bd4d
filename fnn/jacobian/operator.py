"""The Jacobian of a function of a tree as a linear operator.

With ``batch`` the function is called as ``f(params, batch)``, with ``batches`` (a list, a loader: anything that
can be iterated again and again) once for each; without either as ``f(params)``.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch

from fnn import tree as _tree
from fnn.jacobian.arguments import check_floating
from fnn.jacobian.products import along, forward_else_reverse
from fnn.jacobian.torch_rules import call_and_listen
from fnn.linalg.linear_operator import LinearOperator
from fnn.tree import Tree

NO_BATCH: Any = object()


def jacobian_operator(
    f: Callable, params: Tree, batch: Any = NO_BATCH, *, batches: Iterable | None = None
) -> LinearOperator:
    """J of ``f``, rows numbered by its output: ``J @ v`` by forward mode, ``J.T @ u`` by reverse mode.

    With ``batches`` the outputs are joined along their first axis. Each product costs about three calls of the
    function. Memory: forward mode that of one call, reverse mode all activations of one batch. Where an operation has
    no forward rule in torch, or a wrong one, ``J @ v`` is computed by reverse mode as in ``linearize_by_vjp``, about
    five calls. Raises ``TypeError`` naming a leaf of params that has no derivative or is complex, ``ValueError`` for no
    batches or an iterator that can be read only once.

    >>> J = jacobian_operator(lambda x: x * x, torch.tensor([1.0, 2.0]))
    >>> J.dense()
    tensor([[2., 0.],
            [0., 4.]])
    """
    name = "jacobian_operator"
    check_floating(params, "params", name)
    calls = Calls(batch, batches)
    runs = [call_and_listen(lambda p, args=args: f(p, *args), (params,), nested=True) for _, args in calls]
    outputs = [result for result, _ in runs]
    forward_is_right = all(faults.forward is None for _, faults in runs)
    output = outputs[0] if len(outputs) == 1 else _tree.concat(outputs)
    lengths = [_tree.leaves(out)[0].shape[:1] for out in outputs]
    check_floating(output, "the function's output", name)

    def product(v: Tree) -> Tree:
        parts = []
        for _, args in calls:
            of_params = lambda p, args=args: f(p, *args)
            slope = lambda forward, g=of_params: along(g, (params,), (v,), forward, name)[1]
            parts.append(forward_else_reverse(forward_is_right, slope, name))
        return parts[0] if len(parts) == 1 else _tree.concat(parts)

    def transposed(u: Tree) -> Tree:
        total, start = None, 0
        for (_, args), length in zip(calls, lengths, strict=True):
            part = u
            if len(lengths) > 1:
                stop = start + length[0]
                part = _tree.map(lambda leaf, start=start, stop=stop: leaf[start:stop], u)
                start = stop
            (back,) = torch.func.vjp(lambda p, args=args: f(p, *args), params)[1](part)
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
