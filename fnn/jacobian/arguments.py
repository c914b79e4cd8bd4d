"""Checks of the arguments of products, made before torch fails deep inside."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fnn import tree as _tree
from fnn.gradients.value_and_grad import check_differentiable, scalar_valued
from fnn.jacobian.torch_rules import MissingRuleError
from fnn.linalg.vector_space import check_like
from fnn.tree import Tree, describe


def check_primals(primals: Any, name: str, complex_too: bool = False) -> None:
    """Raise ``TypeError`` unless the primals are a tuple of trees of floating (or complex) tensors.

    Raises ``ValueError`` for trees without leaves.
    """
    if not isinstance(primals, (tuple, list)) or not primals:
        raise TypeError(
            f"{name} takes its primals as a tuple, one tree for each argument of the function, got "
            f"{describe(primals)}; write {name}(f, (params,), ...)"
        )
    for i, primal in enumerate(primals):
        try:
            check_floating(primal, f"primals[{i}]", name, complex_too)
        except TypeError as error:
            if i == 0:
                raise
            instead = f"write {name}(lambda params: f(params, batch), (params,), ...) if all of primals[{i}] is data"
            raise TypeError(f"{error}; {instead}") from None
    check_not_empty(primals, name)


def check_not_empty(tree: Tree, name: str) -> None:
    """Raise ``ValueError`` for a tree without leaves, such as the params ``{}`` of a layer without parameters."""
    if not _tree.leaves(tree):
        raise ValueError(
            f"{name} got no tensor to differentiate with respect to, only {tree!r}; params without a leaf have no "
            "derivative"
        )


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
    """The tangents, with their dicts in the order of the primals. Raises ``ValueError`` for one that does not fit."""
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
    """As :func:`check_tangents`, for tangents with a new first axis (k, ...), and k."""
    first, count = _first_row(tangents, name, "tangents")
    check_tangents(primals, first, name, complex_too)
    return tuple(_tree.structure(p).unflatten(_tree.leaves(t)) for p, t in zip(primals, tangents, strict=True)), count


def check_cotangent_stack(output: Tree, cotangents: Tree, name: str) -> tuple[Tree, int]:
    """Cotangents with a new first axis (k, ...), with their dicts in the order of the output, and k."""
    first, count = _first_row(cotangents, name, "cotangents")
    check_like(output, first, "output", "cotangents")
    return _tree.structure(output).unflatten(_tree.leaves(cotangents)), count


def _first_row(stacks: Tree, name: str, what: str) -> tuple[Tree, int]:
    try:
        count = _tree.leading_length(stacks, what, "products")
    except ValueError as error:
        raise ValueError(f"{name}: {error}; for a single product write leaf[None]") from None
    if count == 0:
        raise ValueError(f"{name} needs at least one product, but {what} have a first axis of length 0")
    return _tree.map(lambda leaf: leaf[0], stacks), count


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
    """A tree of fixed numbers of magnitude about one, without a pattern, none of them zero.

    Linear maps are differentiated at this point. Any point gives the same result where the map is made of linear
    operations, but an iterative solver inside the map would stop at once at zero or at an eigenvector.
    """

    def numbers(leaf: Tensor) -> Tensor:
        count = torch.arange(1, leaf.numel() + 1, device=leaf.device, dtype=torch.float32)
        return (torch.cos(count * count) * 1.5).reshape(leaf.shape).to(leaf.dtype)

    return _tree.map(numbers, tree)


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
