"""Derivative rules that torch lacks or has wrong, and how products notice them."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from fnn import _torch


class MissingRuleError(TypeError):
    """A derivative needs a rule that torch lacks, or has wrong, for the operation whose name is ``operation``."""

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
    """The end of a sentence that names fnn's own form of an operation, or nothing."""
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
if torch.__version__ < "2.15":
    _WRONG_WHEN_NESTED += ("linalg_solve_ex", "linalg_det", "linalg_slogdet")
# Third derivatives that are wrong by reverse mode, too.
_WRONG_THIRD = ("layer_norm", "batch_norm")
# Backward rules that are wrong for many cotangents at once.
_WRONG_UNDER_VMAP = ("cdist", "masked_select")


class Faults(NamedTuple):
    """The first operation of a function whose forward rule, or whose rule under vmap, is wrong in torch, or None."""

    forward: str | None
    vmap: str | None


class _Listener(_torch.TorchDispatchMode):
    """Records the first operation whose rules are wrong, of each kind."""

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
    """The function's result, without derivatives, and the operations in it whose rules are wrong in torch.

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
    if "must override the setup_context" in text:
        raise NoBackwardRuleError(name, "a torch.autograd.Function without setup_context") from error


def _without_forward_rule(text: str) -> str | None:
    """The operation that an error of torch's forward mode is about; None for another error."""
    named = re.search(r"forward AD with (?:aten::)?(\S+) that does not support it", text)
    if named:
        return named.group(1)
    if "jvp function for custom autograd.Function" in text:
        return "a torch.autograd.Function without a jvp method"
    if "ZeroTensors are immutable" in text:  # the rule writes into a tangent that is known to be zero
        return "an operation such as torch.nn.functional.mse_loss"
    return None
