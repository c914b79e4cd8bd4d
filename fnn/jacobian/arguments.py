"""What goes into a product, checked before torch fails deep inside."""

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fnn import tree as _tree
from fnn.gradients.value_and_grad import check_differentiable
from fnn.linalg.vector_space import check_like
from fnn.tree import Tree, describe


def check_primals(primals: Any, name: str) -> None:
    """Raise ``TypeError`` unless the primals are a tuple of trees of floating tensors."""
    if not isinstance(primals, (tuple, list)) or not primals:
        raise TypeError(
            f"{name} takes its primals as a tuple, one tree for each argument of the function, got "
            f"{describe(primals)}; write {name}(f, (params,), ...)"
        )
    for i, primal in enumerate(primals):
        check_differentiable(primal, f"primals[{i}]")


def check_tangents(primals: tuple, tangents: Any, name: str) -> tuple:
    """The tangents in the primals' own order of keys. Raises ``ValueError`` where one does not fit its primal."""
    check_primals(primals, name)
    if not isinstance(tangents, (tuple, list)) or len(tangents) != len(primals):
        raise ValueError(
            f"{name} takes a tuple of one tangent for each primal, {len(primals)} in all, got {describe(tangents)}; "
            f"write (tangent,) for one"
        )
    for i, (primal, tangent) in enumerate(zip(primals, tangents, strict=True)):
        check_like(primal, tangent, f"primals[{i}]", f"tangents[{i}]")
    return tuple(_tree.structure(p).unflatten(_tree.leaves(t)) for p, t in zip(primals, tangents, strict=True))


def check_tangent_stack(primals: tuple, tangents: Any, name: str) -> tuple[tuple, int]:
    """The same for tangents with a new first axis (k, ...), and k."""
    first, count = _first_row(tangents, name, "tangents")
    check_tangents(primals, first, name)
    return tuple(_tree.structure(p).unflatten(_tree.leaves(t)) for p, t in zip(primals, tangents, strict=True)), count


def check_cotangent_stack(output: Tree, cotangents: Tree, name: str) -> tuple[Tree, int]:
    """Cotangents with a new first axis (k, ...) in the output's order of keys, and k."""
    first, count = _first_row(cotangents, name, "cotangents")
    check_like(output, first, "output", "cotangents")
    return _tree.structure(output).unflatten(_tree.leaves(cotangents)), count


def _first_row(stacks: Tree, name: str, what: str) -> tuple[Tree, int]:
    lengths = {
        f"{what}{path}": list(leaf.shape[:1]) if isinstance(leaf, Tensor) else []
        for path, leaf in zip(_tree.keystrs(stacks), _tree.leaves(stacks), strict=True)
    }
    count = next(iter(lengths.values()), [])
    if count in ([], [0]) or any(length != count for length in lengths.values()):
        raise ValueError(
            f"{name} takes {what} whose leaves share a first axis of one or more products, got first axes "
            f"{ {path: tuple(length) for path, length in lengths.items()} }; "
            "write leaf[None] for one"
        )
    return _tree.map(lambda leaf: leaf[0], stacks), count[0]


def differentiable_output(f: Callable, has_aux: bool = False) -> Callable:
    """The same function, raising ``TypeError`` where its output has no derivative."""

    def checked(*primals: Tree) -> Any:
        result = f(*primals)
        check_differentiable(result[0] if has_aux else result, "the function's output")
        return result

    return checked


class NoForwardRuleError(TypeError):
    """An operation has no forward rule in torch; ``operation`` is its name."""

    def __init__(self, name: str, operation: str):
        self.operation = operation
        instead = _INSTEAD.get(name, "mjp(f, primals, cotangents)")
        super().__init__(
            f"{name} uses forward mode, and {operation} has no forward rule in torch {torch.__version__}; write the "
            f"function with other operations, or use reverse mode: {instead}"
        )


_INSTEAD = {
    "hvp": "hvp(f, primals, tangents, mode='reverse-over-reverse')",
    "jacobian": "jacobian(f, mode='reverse')",
    "hessian": "hessian(f, mode='reverse-over-reverse')",
    "directional_derivatives": "fnn.grad, once for each order",
    "laplacian": "the trace of hessian(f, mode='reverse-over-reverse')",
}


def forward_mode(call: Callable[[], Any], name: str) -> Any:
    """The result of ``call``; :class:`NoForwardRuleError` where an operation has no forward rule."""
    try:
        return call()
    except (NotImplementedError, RuntimeError) as error:
        operation = _without_forward_rule(error)
        if operation is None:
            raise
        raise NoForwardRuleError(name, operation) from error


def _without_forward_rule(error: Exception) -> str | None:
    """The operation that an error of torch's forward mode is about; None for another error."""
    text = str(error)
    named = re.search(r"forward AD with (\S+) that does not support it", text)
    if named:
        return named.group(1)
    if "jvp function for custom autograd.Function" in text:
        return "a torch.autograd.Function without a jvp method"
    if "ZeroTensors are immutable" in text:  # it writes into a tangent that is known to be zero
        return "an operation such as torch.nn.functional.mse_loss"
    return None
