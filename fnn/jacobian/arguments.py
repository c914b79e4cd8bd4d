"""What goes into a product, checked before torch fails deep inside, and torch's rules that are missing or wrong."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fnn import _torch
from fnn import tree as _tree
from fnn.gradients.value_and_grad import check_differentiable, scalar_valued
from fnn.linalg.vector_space import check_like
from fnn.tree import Tree, describe


def check_primals(primals: Any, name: str, complex_too: bool = False) -> None:
    """Raise ``TypeError`` unless the primals are a tuple of trees of floating (or complex) tensors."""
    if not isinstance(primals, (tuple, list)) or not primals:
        raise TypeError(
            f"{name} takes its primals as a tuple, one tree for each argument of the function, got "
            f"{describe(primals)}; write {name}(f, (params,), ...)"
        )
    for i, primal in enumerate(primals):
        check_floating(primal, f"primals[{i}]", name, complex_too)


def check_floating(tree: Tree, what: str, name: str, complex_too: bool = False) -> None:
    """Raise ``TypeError`` naming a leaf that is not a real floating (or, where allowed, complex) tensor."""
    if not complex_too:
        for path, leaf in zip(_tree.keystrs(tree), _tree.leaves(tree), strict=True):
            if isinstance(leaf, Tensor) and leaf.is_complex():
                instead = ", or state holomorphic=True" if name == "dense_jacobian" else ""
                raise TypeError(
                    f"{name} takes real numbers, and {what}{path} is a {leaf.dtype} tensor; write the function of the "
                    f"real and imaginary parts, torch.view_as_real(z){instead}"
                )
    check_differentiable(_tree.map(_real_part, tree), what)


def _real_part(leaf: Any) -> Any:
    return leaf.real if isinstance(leaf, Tensor) and leaf.is_complex() else leaf


def check_tangents(primals: tuple, tangents: Any, name: str, complex_too: bool = False) -> tuple:
    """The tangents in the primals' own order of keys. Raises ``ValueError`` where one does not fit its primal."""
    check_primals(primals, name, complex_too)
    if not isinstance(tangents, (tuple, list)) or len(tangents) != len(primals):
        raise ValueError(
            f"{name} takes a tuple of one tangent for each primal, {len(primals)} in all, got {describe(tangents)}; "
            f"write (tangent,) for one"
        )
    for i, (primal, tangent) in enumerate(zip(primals, tangents, strict=True)):
        check_like(primal, tangent, f"primals[{i}]", f"tangents[{i}]")
    return tuple(_tree.structure(p).unflatten(_tree.leaves(t)) for p, t in zip(primals, tangents, strict=True))


def check_tangent_stack(primals: tuple, tangents: Any, name: str, complex_too: bool = False) -> tuple[tuple, int]:
    """The same for tangents with a new first axis (k, ...), and k."""
    first, count = _first_row(tangents, name, "tangents")
    check_tangents(primals, first, name, complex_too)
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


def differentiable_output(f: Callable, name: str, has_aux: bool = False, complex_too: bool = False) -> Callable:
    """The same function, raising ``TypeError`` where its output has no derivative."""

    def checked(*primals: Tree) -> Any:
        result = f(*primals)
        check_floating(result[0] if has_aux else result, "the function's output", name, complex_too)
        return result

    return checked


def real_scalar(f: Callable, name: str, has_aux: bool = False) -> Callable:
    """The same function, raising ``ValueError`` or ``TypeError`` where its value is not a real scalar."""
    scalar = scalar_valued(f, name, has_aux)

    def checked(*args: Any, **kwargs: Any) -> Any:
        result = scalar(*args, **kwargs)
        check_floating(result[0] if has_aux else result, "the function's value", name)
        return result

    return checked


def irregular_like(tree: Tree) -> Tree:
    """A tree of fixed numbers of the size of one, without any pattern, none of them zero.

    A place at which linear maps are differentiated. Any place gives the same result where the map is made of linear
    operations; zero, or an eigenvector, is a bad one for a map that runs an iterative solver, which
    stops there at once.
    """

    def numbers(leaf: Tensor) -> Tensor:
        count = torch.arange(1, leaf.numel() + 1, device=leaf.device, dtype=torch.float32)
        return (torch.cos(count * count) * 1.5).reshape(leaf.shape).to(leaf.dtype)

    return _tree.map(numbers, tree)


class MissingRuleError(TypeError):
    """A derivative needs a rule of an operation that torch does not have, or has wrong; ``operation`` is its name."""

    def __init__(self, message: str, operation: str):
        self.operation = operation
        super().__init__(message)


class NoForwardRuleError(MissingRuleError):
    """An operation has no right forward rule in torch."""

    def __init__(self, name: str, operation: str, wrong: bool = False):
        fault = "a wrong forward rule for these derivatives" if wrong else "no forward rule"
        instead = _INSTEAD.get(name, "fnn.jacobian.mjp(f, primals, cotangents)")
        super().__init__(
            f"{name} uses forward mode, and {operation} has {fault} in torch {torch.__version__}; write the "
            f"function with other operations{_written_out(operation)}, or use reverse mode: {instead}",
            operation,
        )


class NoBackwardRuleError(MissingRuleError):
    """A backward rule of an operation has no backward rule in torch."""

    def __init__(self, name: str, operation: str):
        super().__init__(
            f"{name} needs the derivative of {operation}, for which torch {torch.__version__} has no rule; write the "
            f"function with other operations{_written_out(operation)}",
            operation,
        )


_INSTEAD = {
    "hvp": "hvp(f, primals, tangents)",
    "dense_jacobian": "dense_jacobian(f, mode='reverse')",
    "dense_hessian": "dense_hessian(f)",
    "hessian_diagonal": "hessian_diagonal(f)",
    "check_grads": "check_grads(f, args, modes=('rev',))",
}
_WRITTEN_OUT = {
    "layer_norm": "fnn.layers.layer_norm",
    "batch_norm": "fnn.layers.batch_norm",
    "mse_loss": "fnn.losses.mse",
    "huber_loss": "fnn.losses.huber",
}


def _written_out(operation: str) -> str:
    return next((f", such as {ours}" for theirs, ours in _WRITTEN_OUT.items() if theirs in operation), "")


# Forward rules of torch 2.11 to 2.15 that give wrong numbers: these at once ...
_WRONG = ("triangular_solve", "scatter_reduce", "linear_cross_entropy")
# ... and these where another derivative is taken of them, since they treat saved results as constants.
_WRONG_WHEN_NESTED = (
    "layer_norm",
    "batch_norm",
    "householder_product",
    "cholesky_inverse",
    "linalg_eig",
    "_safe_softmax",
)
# Third derivatives that are wrong by reverse mode, too.
_WRONG_THIRD = ("layer_norm", "batch_norm")
# Backward rules that are wrong for many cotangents at once.
_WRONG_UNDER_VMAP = ("cdist", "masked_select")


class Faults(NamedTuple):
    """The first operation of a function whose forward rule, or whose rule under vmap, is wrong in torch, or None."""

    forward: str | None
    vmap: str | None


class _Listener(_torch.TorchDispatchMode):
    """Notes the operations whose rules are wrong."""

    def __init__(self, nested: bool) -> None:
        super().__init__()
        self.names = _WRONG + _WRONG_WHEN_NESTED if nested else _WRONG
        self.forward: str | None = None
        self.vmap: str | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        name = func.name().split("::")[-1].split(".")[0]
        if any(wrong in name for wrong in self.names):
            only_products = "scatter_reduce" in name
            if not only_products or "prod" in args or "prod" in (kwargs or {}).values():
                self.forward = self.forward or name
        if any(wrong in name for wrong in _WRONG_UNDER_VMAP):
            self.vmap = self.vmap or name
        return func(*args, **(kwargs or {}))


def call_and_listen(f: Callable, primals: tuple, nested: bool) -> tuple[Any, Faults]:
    """The function's result, without derivatives, and the operations in it that torch has wrong.

    ``nested`` says that forward mode will be differentiated again; inside another transform it always may be.
    """
    listener = _Listener(nested or _torch.peek_interpreter_stack() is not None)
    with torch.no_grad(), math_attention(), listener:
        result = f(*primals)
    return result, Faults(listener.forward, listener.vmap)


def check_surroundings(f: Callable, primals: tuple, name: str) -> None:
    """Inside other transforms, raise ``TypeError`` for an operation of f whose reverse rules are wrong there."""
    if _torch.peek_interpreter_stack() is None:
        return
    faults = call_and_listen(f, primals, nested=True)[1]
    if _torch.inside_vmap() and faults.vmap is not None:
        raise MissingRuleError(
            f"{name}: {faults.vmap} has a wrong backward rule under vmap in torch {torch.__version__}; write it with "
            "other operations, such as (x[:, None] - y[None]).norm(dim=-1), or call in a loop",
            faults.vmap,
        )
    if _torch.inside_derivative() and faults.forward is not None:
        check_third(faults.forward, name)


def check_third(operation: str, name: str) -> None:
    """Raise ``TypeError`` for an operation whose third derivatives are wrong by reverse mode, too."""
    if any(wrong in operation for wrong in _WRONG_THIRD):
        raise MissingRuleError(
            f"{name} needs third derivatives here, and those of {operation} are wrong in torch {torch.__version__}; "
            f"write the function with other operations{_written_out(operation)}",
            operation,
        )


@contextmanager
def math_attention() -> Iterator[None]:
    """Attention by plain products: the fused kernels have neither forward rules nor second derivatives."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


def forward_mode(call: Callable[[], Any], name: str) -> Any:
    """The result of ``call``; :class:`NoForwardRuleError` where an operation has no forward rule."""
    try:
        with math_attention():
            return call()
    except (NotImplementedError, RuntimeError) as error:
        operation = _without_forward_rule(str(error))
        if operation is not None:
            raise NoForwardRuleError(name, operation) from error
        _raise_missing(error, name)
        raise


def reverse_mode(call: Callable[[], Any], name: str) -> Any:
    """The result of ``call``; :class:`NoBackwardRuleError` where an operation has no second derivative."""
    try:
        with math_attention():
            return call()
    except (NotImplementedError, RuntimeError) as error:
        _raise_missing(error, name)
        raise


def _raise_missing(error: Exception, name: str) -> None:
    text = str(error)
    named = re.search(r"derivative for '?(?:aten::)?(\w+)'? is not implemented", text)
    if named:
        raise NoBackwardRuleError(name, named.group(1)) from error
    if "once_differentiable" in text:
        raise NoBackwardRuleError(name, "a torch.autograd.Function marked once_differentiable") from error
    if "must override the setup_context" in text:
        raise NoBackwardRuleError(name, "a torch.autograd.Function without setup_context") from error


def _without_forward_rule(text: str) -> str | None:
    """The operation that an error of torch's forward mode is about; None for another error."""
    named = re.search(r"forward AD with (?:aten::)?(\S+) that does not support it", text)
    if named:
        return named.group(1)
    if "jvp function for custom autograd.Function" in text:
        return "a torch.autograd.Function without a jvp method"
    if "ZeroTensors are immutable" in text:  # it writes into a tangent that is known to be zero
        return "an operation such as torch.nn.functional.mse_loss"
    return None


def mapped(function: Callable, stacks: tuple, out_dims: Any = 0, loop: bool = False) -> Any:
    """``function`` of each row of the stacked trees: one ``vmap``, or one call after the other where it fails.

    Some operations have no rule under vmap (sizes that depend on values), or a wrong one, for which ``loop`` is true;
    they run in a loop. ``out_dims`` is 0, or a tuple of 0 and None for the parts of the result.
    """
    if not loop:
        try:
            return torch.func.vmap(function, out_dims=out_dims)(*stacks)
        except RuntimeError as error:
            if "random" in str(error):  # with other numbers in every row the rows are not those of one matrix
                raise MissingRuleError(
                    "the function draws random numbers from torch's generator, so that its products do not belong to "
                    "one function; draw them with a key of fnn.random, or hand them in as an argument",
                    "a random operation",
                ) from error
    count = _tree.leading_length(stacks)
    results = [function(*_tree.map(lambda leaf, i=i: leaf[i], stacks)) for i in range(count)]
    if not isinstance(out_dims, tuple):
        return _tree.stack(results)
    parts = zip(*results, strict=True)
    return tuple(part[0] if dim is None else _tree.stack(part) for dim, part in zip(out_dims, parts, strict=True))
