"""Results own their memory: no leaf shares it with an argument or with another leaf, and none is expanded."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import fnn
from fnn import curvature, gradients, jacobian, linalg, tree

PARAMS = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0])}
TANGENT = tree.map(torch.clone, PARAMS)
BATCH = torch.ones(3, 2)

# functions whose derivatives are copies, repetitions or constants
FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "identity": lambda p: p,
    "twice": lambda p: {"u": p["a"], "v": p["a"]},
    "expanded": lambda p: p["b"].expand(3),
    "view": lambda p: p["a"].view(2, 1),
    "linear": lambda p: p["a"].sum() + p["b"].sum(),
}


def total(p: Any) -> Tensor:
    return p["a"].sum() + p["b"].sum()


def ones(f: Callable, *leading: int) -> Any:
    return tree.map(lambda leaf: torch.ones((*leading, *leaf.shape)), f(PARAMS))


def linearized(f: Callable) -> tuple:
    output, derivative = jacobian.linearize_by_vjp(f, PARAMS)
    return output, derivative(TANGENT)


def stacked(p: Any) -> Any:
    return tree.map(lambda leaf: leaf[None], p)


OF_A_FUNCTION: dict[str, Callable[[Callable], Any]] = {
    "jmp": lambda f: jacobian.jmp(f, (PARAMS,), (stacked(TANGENT),)),
    "mjp": lambda f: jacobian.mjp(f, (PARAMS,), ones(f, 1)),
    "linearize_by_vjp": linearized,
    "directional_derivatives": lambda f: jacobian.directional_derivatives(f, (PARAMS,), (TANGENT,)),
    "dense_jacobian": lambda f: jacobian.dense_jacobian(f)(PARAMS),
    "dense_jacobian, forward": lambda f: jacobian.dense_jacobian(f, mode="forward")(PARAMS),
    "laplacian": lambda f: jacobian.laplacian(f)(PARAMS),
    "jacobian_operator": lambda f: jacobian.jacobian_operator(f, PARAMS) @ TANGENT,
    "jacobian_operator, transposed": lambda f: jacobian.jacobian_operator(f, PARAMS).T @ ones(f),
    "stop_gradient": lambda f: jacobian.stop_gradient(f(PARAMS)),
    "custom_vjp": lambda f: jacobian.custom_vjp(f, lambda p: (f(p), ()), lambda r, u: (PARAMS,))(PARAMS),
    "grad, aux": lambda f: fnn.grad(lambda p: (total(p), f(p)), has_aux=True)(PARAMS),
    "grad, aux of the batch": lambda f: fnn.grad(lambda p, b: (total(p), (f(p), b)), has_aux=True)(PARAMS, BATCH),
    "per_sample_grad, aux": lambda f: fnn.per_sample_grad(lambda p, b: (total(p) + b.sum(), f(p)), has_aux=True)(
        PARAMS, BATCH
    ),
    "LinearOperator": lambda f: linalg.LinearOperator(f, PARAMS, f(PARAMS)) @ TANGENT,
}
MODES = ("auto", "forward-over-reverse", "reverse-over-forward", "reverse-over-reverse")
OF_PARAMS: dict[str, Callable[[], Any]] = {
    **{f"hvp, linear, {m}": lambda m=m: curvature.hvp(total, (PARAMS,), (TANGENT,), m) for m in MODES},
    **{
        f"hvp, square, {m}": lambda m=m: curvature.hvp(lambda p: tree.dot(p, p) / 2, (PARAMS,), (TANGENT,), m)
        for m in MODES
    },
    "ggn_product": lambda: curvature.ggn_product(lambda p: p, lambda y: tree.dot(y, y) / 2, (PARAMS,), (TANGENT,)),
    "fisher_product": lambda: curvature.fisher_product(lambda p: p["a"][:, None], (PARAMS,), (TANGENT,), "normal"),
    "empirical_fisher_product": lambda: curvature.empirical_fisher_product(lambda p: p["a"], (PARAMS,), (TANGENT,)),
    "dense_hessian": lambda: curvature.dense_hessian(total)(PARAMS),
    "hessian_diagonal": lambda: curvature.hessian_diagonal(total)(PARAMS),
    "grad": lambda: fnn.grad(total)(PARAMS),
    "value_and_grad": lambda: fnn.value_and_grad(lambda p: p["a"][0])(PARAMS),
    "per_sample_grad": lambda: fnn.per_sample_grad(lambda p, b: total(p))(PARAMS, BATCH),
    "per_sample_grad, chunks": lambda: fnn.per_sample_grad(lambda p, b: total(p), chunk_size=2)(PARAMS, BATCH),
    "clipped_grad": lambda: fnn.clipped_grad(lambda p, b: total(p), 1.0)(PARAMS, BATCH),
    "per_sample_norms": lambda: gradients.per_sample_norms(lambda p, b: total(p), per_leaf=True)(PARAMS, BATCH),
    "per_sample_moments": lambda: gradients.per_sample_moments(lambda p, b: total(p) * b.sum())(PARAMS, BATCH),
    "accumulate_grad": lambda: gradients.accumulate_grad(lambda p, b: total(p) * b.mean(), 1)(PARAMS, BATCH),
    "cg": lambda: linalg.cg(linalg.identity_operator(PARAMS), TANGENT, x0=TANGENT),
    "operators": lambda: (1.0 * (linalg.identity_operator(PARAMS) @ linalg.identity_operator(PARAMS))) @ TANGENT,
}
CALLS = OF_PARAMS | {
    f"{name}, {kind}": lambda call=call, f=f: call(f)
    for name, call in OF_A_FUNCTION.items()
    for kind, f in FUNCTIONS.items()
}


@pytest.mark.parametrize("name", CALLS)
def test_results_own_their_memory(name: str) -> None:
    leaves = [leaf for leaf in tree.leaves(CALLS[name]()) if isinstance(leaf, Tensor)]
    leaves = [leaf for leaf in leaves if leaf.is_floating_point()]
    memory = [leaf.untyped_storage().data_ptr() for leaf in (*leaves, *tree.leaves((PARAMS, TANGENT, BATCH)))]
    assert len(set(memory)) == len(memory)
    before = [leaf.clone() for leaf in leaves]
    for i, leaf in enumerate(leaves):  # each can be changed without changing another one
        leaf.detach().add_(1)
        for other, old in zip(leaves[i + 1 :], before[i + 1 :], strict=True):
            assert torch.equal(other, old)
    assert all(leaf.eq(old + 1).all() for leaf, old in zip(leaves, before, strict=True))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_results_of_jitted_functions_own_their_memory(name: str) -> None:
    f = lambda p: (FUNCTIONS[name](p), FUNCTIONS[name](p), p["a"][:1], p["a"].expand(3, 2), p["b"].sum().expand(4))
    for _ in range(2):
        leaves = tree.leaves(fnn.jit(f)(PARAMS))
        memory = [leaf.untyped_storage().data_ptr() for leaf in (*leaves, *tree.leaves(PARAMS))]
        assert len(set(memory)) == len(memory)
        for leaf in leaves:
            assert leaf.untyped_storage().nbytes() == leaf.numel() * leaf.element_size()
