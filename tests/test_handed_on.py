"""The transforms of torch.func that fnn hands on: the same results, and torch's errors where fnn has nothing to say."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import fnn
from fnn import tree

NAMES = ("vmap", "jvp", "vjp", "jacrev", "jacfwd", "hessian", "linearize")
KEY = fnn.random.key(0)
X, Y = fnn.random.normal(KEY, (5, 4), torch.float64), fnn.random.normal(fnn.random.key(1), (5, 4), torch.float64)
P = {"w": X[0], "b": Y[0]}
T = {"w": Y[1], "b": X[1]}


def cubic(p: Any, x: Any = 2.0) -> Tensor:
    return (p["w"] ** 3 * p["b"].sin() * x).cumsum(0)


def with_aux(p: Any) -> tuple:
    return cubic(p), {"norm": p["w"].norm()}


def pulled(vjp: Callable, *args: Any, **kwargs: Any) -> tuple:
    value, pullback, *rest = vjp(*args, **kwargs)
    return value, pullback(torch.ones_like(value)), pullback(Y[2], retain_graph=False, create_graph=False), *rest


CALLS: dict[str, Callable[[Any], Any]] = {
    "vmap": lambda f: f.vmap(torch.dot)(X, Y),
    "vmap, axes": lambda f: f.vmap(cubic, ({"w": 0, "b": None}, 1), out_dims=1)({"w": X, "b": Y[0]}, X.T),
    "vmap, chunks, keywords": lambda f: f.vmap(lambda x, y: {"a": x * y, "b": [y]}, chunk_size=2)(X, y=Y),
    "vmap, one keyword for all": lambda f: f.vmap(lambda x, y: x[:, None] * y)(X, y=Y[0]),
    "vmap of vmap": lambda f: f.vmap(f.vmap(torch.mul), in_dims=(0, None))(X, Y[0]),
    "vmap of grad": lambda f: f.vmap(fnn.grad(lambda p, x: cubic(p, x).sum()), (None, 0))(P, X),
    "vmap, keys": lambda f: f.vmap(lambda key: fnn.random.normal(key, (3,)))(fnn.random.split(KEY, 4)),
    "jvp": lambda f: f.jvp(cubic, (P,), (T,)),
    "jvp, aux, strict": lambda f: f.jvp(with_aux, (P,), (T,), strict=True, has_aux=True),
    "jvp of grad": lambda f: f.jvp(fnn.grad(lambda p: cubic(p).sum()), (P,), (T,)),
    "grad of jvp": lambda f: fnn.grad(lambda p: f.jvp(cubic, (p,), (T,))[1].sum())(P),
    "vjp": lambda f: pulled(f.vjp, cubic, P, X[0]),
    "vjp, aux": lambda f: pulled(f.vjp, with_aux, P, has_aux=True),
    "vmap of vjp": lambda f: f.vmap(f.vjp(cubic, P)[1])(X),
    "jacrev": lambda f: f.jacrev(cubic)(P),
    "jacrev, argnums, chunks": lambda f: f.jacrev(cubic, (0, 1), chunk_size=2)(P, X[0]),
    "jacrev, aux": lambda f: f.jacrev(with_aux, has_aux=True)(P),
    "jacfwd": lambda f: f.jacfwd(cubic, 1)(P, X[0]),
    "jacfwd, aux": lambda f: f.jacfwd(with_aux, 0, True)(P),
    "jacfwd of jacrev": lambda f: f.jacfwd(f.jacrev(cubic))(P),
    "hessian": lambda f: f.hessian(lambda p: cubic(p).sum())(P),
    "hessian, argnums": lambda f: f.hessian(lambda p, x: cubic(p, x).sum(), (0, 1))(P, X[0]),
    "linearize": lambda f: (lambda value, f_jvp: (value, f_jvp(T), f_jvp(P)))(*f.linearize(cubic, P)),
}


def equal(first: Any, second: Any) -> bool:
    return tree.structure(first) == tree.structure(second) and all(tree.leaves(tree.map(torch.equal, first, second)))


@pytest.mark.parametrize("name", CALLS)
def test_results_are_those_of_torch_func(name: str) -> None:
    assert equal(CALLS[name](fnn), CALLS[name](torch.func))


@pytest.mark.parametrize("name", [name for name in CALLS if name not in ("linearize", "vmap, keys")])
def test_they_may_be_jitted(name: str) -> None:
    assert equal(fnn.jit(lambda: CALLS[name](fnn))(), CALLS[name](torch.func))


@pytest.mark.parametrize("name", NAMES)
def test_signatures_are_those_of_torch_func(name: str) -> None:
    def parameters(function: Callable) -> list:
        found = inspect.signature(function).parameters.values()
        return [(x.name, x.kind, x.default) for x in found if not x.name.startswith("_")]

    assert parameters(getattr(fnn, name)) == parameters(getattr(torch.func, name))


def test_the_function_keeps_its_name() -> None:
    assert fnn.vmap(cubic).__name__ == fnn.jacrev(cubic).__name__ == fnn.hessian(cubic).__name__ == "cubic"


class OwnError(RuntimeError):
    pass


@pytest.mark.parametrize("kind", [OwnError, ValueError, RuntimeError, TypeError, KeyError, AttributeError])
def test_errors_of_the_function_are_passed_on(kind: type[Exception]) -> None:
    error = kind("inner size 3 of the tensor must match")

    def fails(*args: Any) -> Any:
        raise error

    calls = [
        lambda: fnn.vmap(fails)(X), lambda: fnn.vmap(fnn.vmap(fails))(X), lambda: fnn.jvp(fails, (X,), (Y,)),
        lambda: fnn.vjp(fails, X), lambda: fnn.jacrev(fails)(X), lambda: fnn.jacfwd(fails)(X),
        lambda: fnn.hessian(fails)(X), lambda: fnn.linearize(fails, X), lambda: fnn.vmap(fails, (None, 0))(None, X),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(kind) as caught:
            call()
        assert caught.value is error


OF_FUNCTIONS: dict[str, Callable[[Callable], Any]] = {
    "vmap": lambda f: fnn.vmap(f)(X), "jvp": lambda f: fnn.jvp(f, (X,), (Y,)), "vjp": lambda f: fnn.vjp(f, X),
    "jacrev": lambda f: fnn.jacrev(f)(X), "jacfwd": lambda f: fnn.jacfwd(f)(X), "hessian": lambda f: fnn.hessian(f)(X),
}  # fmt: skip


@pytest.mark.parametrize("name", OF_FUNCTIONS)
def test_what_a_function_returned_instead_of_tensors_is_named(name: str) -> None:
    for value, kind in ((1.0, "float"), (3, "int"), ("a", "str"), ({"a": 1.0}, "float"), (X.numpy(), "numpy.ndarray")):
        with pytest.raises(TypeError, match=rf"^{name}: the function must return tensors, got a {kind}; "):
            OF_FUNCTIONS[name](lambda x, value=value: value)
    sentence = "returned nothing" if name != "vmap" else "got a NoneType; .* leave out what is None"
    with pytest.raises((TypeError, ValueError), match=rf"^{name}: the function .*{sentence}"):
        OF_FUNCTIONS[name](lambda x: None)


def test_torchs_error_is_the_cause_and_a_sentence_is_not_explained_again() -> None:
    with pytest.raises(ValueError, match=r"^vmap: the function asks for the number") as caught:
        fnn.vmap(fnn.vmap(lambda x: x * x.item()))(X)
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert caught.value.__cause__.__cause__ is None


def test_what_torch_refuses_outside_the_table_keeps_its_words() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        fnn.vmap(lambda x: x[None] @ torch.ones(3, 2, dtype=x.dtype))(X)
    with pytest.raises(RuntimeError, match=r"output with shape \[4\] doesn't match the broadcast shape \[5, 3, 4\]"):
        fnn.vmap(lambda x: torch.zeros(4).add_(torch.ones(3, 4) * x.sum()))(X)


SCALE = 2.0


def test_a_jitted_function_follows_what_is_inside() -> None:
    global SCALE
    jitted = fnn.jit(fnn.vmap(lambda x: x * SCALE))
    before = jitted(X)
    SCALE = 3.0
    try:
        assert torch.equal(jitted(X), 3 * X)
    finally:
        SCALE = 2.0
    assert torch.equal(before, 2 * X)


def test_traced_code_that_asks_for_a_value_gets_jits_sentence() -> None:
    with pytest.raises(TypeError, match=r"test_handed_on\.py"):
        fnn.jit(lambda x: fnn.vmap(lambda y: y * float(x[0, 0]))(x))(X)


COMPILED: dict[str, Callable[[Any], Callable]] = {
    "vmap": lambda f: f.vmap(lambda x: x * x.sum()),
    "jvp": lambda f: lambda x: f.jvp(torch.sin, (x,), (x,))[1],
    "vjp": lambda f: lambda x: f.vjp(torch.sin, x)[1](x)[0],
    "jacrev": lambda f: f.jacrev(torch.sin),
    "jacfwd": lambda f: f.jacfwd(torch.sin),
    "hessian": lambda f: f.hessian(lambda x: x.sin().sum()),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILED)
def test_torch_compile_sees_through_them(name: str) -> None:
    function = COMPILED[name](fnn)
    compiled = torch.compile(lambda x: function(x), backend="eager", fullgraph=True)
    assert torch.equal(compiled(X), COMPILED[name](torch.func)(X))


@pytest.mark.parametrize("output", [1.0, None, {"a": 2}])
def test_a_function_that_returns_no_tensors_is_refused(output: Any) -> None:
    function, x = lambda x: output, torch.ones(2)
    for transform in (
        lambda: fnn.linearize(function, x),
        lambda: fnn.jvp(function, (x,), (x,)),
        lambda: fnn.vjp(function, x),
        lambda: fnn.vmap(function)(x),
        lambda: fnn.jacrev(function)(x),
        lambda: fnn.jacfwd(function)(x),
        lambda: fnn.jacobian.linearize_by_vjp(function, x),
    ):
        with pytest.raises((TypeError, ValueError), match=r"tensor|returned nothing"):
            transform()
