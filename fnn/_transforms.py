"""The transforms of ``torch.func``, with sentences for the usual mistakes.

Each function here calls the one of torch.func that has its name, with the same arguments and the same result. Nothing
else happens unless that raises an error. Then the arguments are looked at, and if they explain the error, a
``TypeError`` or ``ValueError`` says what to write instead; torch's error is its cause. Any other error is passed on
unchanged.
"""

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fnn import tree as _tree
from fnn._argnums import positions
from fnn.gradients.value_and_grad import check_differentiable, check_function
from fnn.jacobian.arguments import check_floating, check_not_empty, check_tangents
from fnn.linalg.vector_space import check_like

_RAISED = (RuntimeError, ValueError, TypeError, AttributeError, IndexError, AssertionError)  # by torch.func


def vmap(
    func: Callable,
    in_dims: Any = 0,
    out_dims: Any = 0,
    randomness: str = "error",
    *,
    chunk_size: int | None = None,
) -> Callable:
    """The function over a batch, written for one sample: ``torch.func.vmap``.

    Args:
        func: takes and returns trees of tensors.
        in_dims: for each positional argument the axis to map over, a tree of them, or None for one that is the same
            for all. Keyword arguments are the same for all, other than in JAX.
        out_dims: where the new axis stands in the results.
        randomness: what to do about torch's global generator: "error", "same" or "different". The functions of
            :mod:`fnn.random` need none of it.
        chunk_size: how many samples are computed at once; None for all.

    >>> vmap(torch.dot)(torch.eye(2), torch.tensor([[2.0, 3.0], [4.0, 5.0]]))
    tensor([2., 5.])
    """
    if randomness not in ("error", "same", "different"):
        raise ValueError(f"vmap: randomness is 'error', 'same' or 'different', got {randomness!r}")
    mapped = torch.func.vmap(func, in_dims, out_dims, randomness, chunk_size=chunk_size)

    @functools.wraps(mapped)
    def vmap_of(*args: Any, **kwargs: Any) -> Any:
        try:
            return mapped(*args, **kwargs)
        except _RAISED as error:
            _explain(error, "vmap", lambda: _check_mapped(func, in_dims, args, kwargs))
            raise

    return vmap_of


def jvp(func: Callable, primals: Any, tangents: Any, *, strict: bool = False, has_aux: bool = False) -> tuple:
    """``(f(*primals), J tangents)``, the derivative in one direction by forward mode: ``torch.func.jvp``.

    ``primals`` and ``tangents`` are tuples with one tree for each argument of the function. With ``has_aux`` the
    function returns ``(output, aux)``, and aux is a third result. Costs about three times as much as the function.

    >>> jvp(torch.sin, (torch.tensor(0.0),), (torch.tensor(2.0),))
    (tensor(0.), tensor(2.))
    """
    try:
        return torch.func.jvp(func, primals, tangents, strict=strict, has_aux=has_aux)
    except _RAISED as error:

        def check() -> None:
            check_function(func, "jvp")
            check_tangents(primals, tangents, "jvp", complex_too=True)

        _explain(error, "jvp", check)
        raise


def vjp(func: Callable, *primals: Any, has_aux: bool = False) -> tuple:
    """``(f(*primals), pullback)``, reverse mode: ``torch.func.vjp``.

    ``pullback(cotangent)`` is a tuple with one tree for each primal. With ``has_aux`` the function returns
    ``(output, aux)``, and aux is a third result.

    >>> value, pullback = vjp(torch.sin, torch.tensor(0.0))
    >>> pullback(torch.tensor(2.0))
    (tensor(2.),)
    """
    try:
        output, pullback, *aux = torch.func.vjp(func, *primals, has_aux=has_aux)
    except _RAISED as error:
        _explain(error, "vjp", lambda: _check_arguments(func, "vjp", primals, range(len(primals))))
        raise

    @functools.wraps(pullback)
    def vjp_of(cotangents: Any, retain_graph: bool = True, create_graph: bool | None = None) -> Any:
        try:
            return pullback(cotangents, retain_graph, create_graph)
        except _RAISED as error:
            _explain(error, "vjp", lambda: check_like(output, cotangents, "the function's output", "the cotangent"))
            raise

    return (output, vjp_of, *aux)


def linearize(func: Callable, *primals: Any) -> tuple[Any, Callable]:
    """``(f(*primals), f_jvp)``: ``torch.func.linearize``.

    ``f_jvp(*tangents)`` is the derivative in one direction. The function runs once, whatever the number of directions.

    >>> value, f_jvp = linearize(torch.sin, torch.tensor(0.0))
    >>> f_jvp(torch.tensor(2.0))
    tensor(2.)
    """
    try:
        output, f_jvp = torch.func.linearize(func, *primals)
    except _RAISED as error:
        _explain(error, "linearize", lambda: _check_arguments(func, "linearize", primals, range(len(primals))))
        raise
    others = [leaf for leaf in _tree.leaves((output,)) if not isinstance(leaf, Tensor)]
    if others or output is None:
        raise _not_tensors("linearize", type(others[0] if others else None).__name__)

    @functools.wraps(f_jvp)
    def linearize_of(*tangents: Any) -> Any:
        try:
            return f_jvp(*tangents)
        except _RAISED as error:
            _explain(error, "linearize", lambda: check_tangents(primals, tangents, "f_jvp", complex_too=True))
            raise

    return output, linearize_of


def jacrev(
    func: Callable, argnums: int | tuple[int, ...] = 0, *, has_aux: bool = False, chunk_size: int | None = None
) -> Callable:
    """The Jacobian by reverse mode, row by row: ``torch.func.jacrev``.

    For each leaf of the output and each leaf of the argument at ``argnums`` a tensor (output's axes, argument's axes).
    ``chunk_size`` rows are computed at once.

    >>> jacrev(lambda x: x**2)(torch.tensor([1.0, 2.0]))
    tensor([[2., 0.],
            [0., 4.]])
    """
    return _derivative(
        torch.func.jacrev(func, argnums, has_aux=has_aux, chunk_size=chunk_size), func, argnums, "jacrev"
    )


def jacfwd(
    func: Callable, argnums: int | tuple[int, ...] = 0, has_aux: bool = False, *, randomness: str = "error"
) -> Callable:
    """The Jacobian by forward mode, column by column: ``torch.func.jacfwd``.

    The result is that of :func:`jacrev`; this is cheaper for fewer inputs than outputs.

    >>> jacfwd(lambda x: x**2)(torch.tensor([1.0, 2.0]))
    tensor([[2., 0.],
            [0., 4.]])
    """
    return _derivative(torch.func.jacfwd(func, argnums, has_aux, randomness=randomness), func, argnums, "jacfwd")


def hessian(func: Callable, argnums: int | tuple[int, ...] = 0) -> Callable:
    """The second derivatives, by forward over reverse mode: ``torch.func.hessian``.

    For each pair of leaves of the argument at ``argnums`` a tensor (output's axes, first leaf's axes, second leaf's
    axes).

    >>> hessian(lambda x: (x**3).sum())(torch.tensor([1.0, 2.0]))
    tensor([[ 6.,  0.],
            [ 0., 12.]])
    """
    return _derivative(torch.func.hessian(func, argnums), func, argnums, "hessian")


def _derivative(derivative: Callable, func: Callable, argnums: int | tuple[int, ...], name: str) -> Callable:
    @functools.wraps(derivative)
    def derivative_of(*args: Any, **kwargs: Any) -> Any:
        try:
            return derivative(*args, **kwargs)
        except _RAISED as error:
            _explain(error, name, lambda: _check_arguments(func, name, args, argnums))
            raise

    return derivative_of


# What went wrong


def _not_tensors(name: str, kind: str) -> TypeError:
    return TypeError(
        f"{name}: the function must return tensors, got a {kind}; write no .item() or float(), and leave out what is "
        "None"
    )


def _explain(error: Exception, name: str, check: Callable[[], Any]) -> None:
    """Raise the error of ``check``, which looks at the arguments, or one that says what torch's message means."""
    try:
        check()
    except (TypeError, ValueError) as sentence:
        raise sentence from error
    message = str(error)
    if not isinstance(error, RuntimeError | ValueError):
        return
    if re.search(r"only (return )?[tT]ensors, got", message):
        raise _not_tensors(name, message.rsplit("<class '")[-1].split("'")[0]) from error
    for pattern, meaning in _MEANINGS:
        if re.search(pattern, message):
            raise ValueError(f"{name}: the function {meaning}") from error


# patterns of torch's messages about what a function does, and what they mean
_MEANINGS = [
    (
        r"calling \.item\(\)|in some data-dependent|data-dependent control flow",
        "asks for the number in a tensor, by .item(), float(x), if x > 0, or a slice y[x : x + 2], where there is no "
        "single number; write torch.where(x > 0, a, b) for the choice, y[x + torch.arange(2)] for the slice",
    ),
    (
        r"operators that can (support|output) dynamic shape",
        "selects by values, as x[x > 0] and nonzero do, so its results would differ in length; write "
        "torch.where(x > 0, x, 0.0)",
    ),
    (
        r"Cannot access data pointer of Tensor",
        "reads the values of a tensor, by .numpy() or .tolist(), where there is no single value; compute with torch's "
        "functions",
    ),
    (
        r"randomness error mode",
        "draws from torch's global random generator, as torch.rand and torch.nn.functional.dropout do; draw from a key "
        "that is an argument, as in vmap(f)(x, fnn.random.split(key, len(x)))",
    ),
    (
        # the third alternative is a shape, and the same shape with one more axis in front
        r"inplace arithmetic\(self|_\(self, \*extra_args\) is not possible|"
        r"output with shape \[(.*)\] doesn't match the broadcast shape \[\d+, \1\]",
        "writes in place into a tensor without the mapped axis, which the result has; write a new value, y = y + x in "
        "place of y += x, or make y from a mapped tensor, as in torch.zeros_like(x)",
    ),
    (r"if has_aux is True", "must return (output, aux) because of has_aux=True"),
    (
        r"must be floating-point or complex Tensors",
        "returned integers or bools, which have no derivative; return the floating numbers before argmax, round or a "
        "comparison",
    ),
    (r"non-empty output", "returned nothing; return its result"),
]


def _check_arguments(func: Any, name: str, args: tuple, argnums: int | Sequence[int]) -> None:
    """Raise ``TypeError`` for the arguments that are differentiated, ``ValueError`` for their positions."""
    check_function(func, name)
    if not args:
        raise ValueError(f"{name} got no arguments to differentiate with respect to; give them by position")
    places = positions(argnums if isinstance(argnums, int) else tuple(argnums), len(args), name)
    for place in places:
        check_floating(args[place], f"argument {place}", name, complex_too=True)
        check_differentiable(args[place], f"argument {place}")
    check_not_empty(tuple(args[place] for place in places), name)


def _check_mapped(func: Any, in_dims: Any, args: tuple, kwargs: dict) -> None:
    """Raise ``TypeError`` or ``ValueError`` for arguments that vmap cannot map."""
    check_function(func, "vmap")
    if not args:
        named = f"; {', '.join(kwargs)}, given by name, would be the same for all" if kwargs else ""
        raise ValueError(f"vmap: the function got no positional arguments, so there is nothing to map over{named}")
    if not isinstance(in_dims, int | tuple):
        line = f"write in_dims={tuple(in_dims)}" if isinstance(in_dims, list) else "write in_dims=0"
        raise TypeError(
            f"vmap: in_dims is an integer or a tuple of one entry for each argument, got {in_dims!r}; {line}"
        )
    if isinstance(in_dims, tuple) and len(in_dims) != len(args):
        named = f" (what is given by name, {', '.join(kwargs)}, is the same for all)" if kwargs else ""
        raise ValueError(
            f"vmap: in_dims={in_dims} has {len(in_dims)} entries for {len(args)} positional arguments{named}; write an "
            "axis or None for each positional argument"
        )
    dims = in_dims if isinstance(in_dims, tuple) else (in_dims,) * len(args)
    mapped: list[tuple[str, int]] = []  # the name of each mapped leaf, and the length of its axis
    for i, (arg, dim) in enumerate(zip(args, dims, strict=True)):
        mapped += _mapped_leaves(arg, dim, f"argument {i}", tuple(None if k == i else d for k, d in enumerate(dims)))
    if not mapped:
        raise ValueError(f"vmap: in_dims={in_dims} maps no argument; give the axis of at least one, such as 0")
    for name, length in mapped:
        if length != mapped[0][1]:
            raise ValueError(
                f"vmap: the mapped axes have different lengths, {mapped[0][1]} in {mapped[0][0]} and {length} in {name}"
                "; write None in in_dims for an argument that is the same for all"
            )


def _mapped_leaves(arg: Any, dims: Any, name: str, without: tuple) -> list[tuple[str, int]]:
    """The mapped leaves of an argument, each with the length of its axis. ``without``: in_dims that leave it out."""
    leaves, treedef = _tree.flatten(arg)
    each, structure = _tree.flatten(dims)
    if isinstance(dims, int | None):
        each = [dims] * len(leaves)
    elif structure is not treedef:
        raise ValueError(
            f"vmap: in_dims has {dims} for {name}, whose structure is {treedef!r}; write an axis or None for each "
            "leaf, or one for the whole argument"
        )
    found = []
    for path, leaf, dim in zip(treedef.keystrs, leaves, each, strict=True):
        if dim is None:
            continue
        instead = f"write in_dims={without}"
        if not isinstance(leaf, Tensor):
            number = isinstance(leaf, bool | int | float | None)
            if path:
                instead = (
                    "leave the entry out" if leaf is None else "write torch.as_tensor(...), or in_dims for each leaf"
                )
            raise TypeError(
                f"vmap maps tensors, and {name}{path} is {repr(leaf) if number else f'a {type(leaf).__name__}'}; "
                + (instead if number or path else "write torch.as_tensor(...)")
            )
        if not -leaf.dim() <= dim < leaf.dim():
            raise ValueError(
                f"vmap: {name}{path} has no axis {dim} to map over, its shape is {tuple(leaf.shape)}; {instead} if it "
                "is the same for all"
            )
        found.append((f"{name}{path}", leaf.shape[dim]))
    return found
