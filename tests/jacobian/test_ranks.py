"""Params with leaves of every rank, 0-d and empty ones among them, against torch.func on one flat vector."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import hessian, jacrev

import fnn
from fnn import curvature, jacobian, linalg, tree
from fnn.linalg.vector_space import one_hot

PARAMS = {
    "scalar": torch.tensor(0.7, dtype=torch.float64),
    "empty": torch.zeros(0, 3, dtype=torch.float64),
    "vector": torch.tensor([1.0, 2.0], dtype=torch.float64),
    "matrix": fnn.random.normal(fnn.random.key(0), (2, 3), torch.float64),
    "cube": fnn.random.normal(fnn.random.key(1), (1, 2, 2), torch.float64),
}
X = fnn.random.normal(fnn.random.key(2), (4, 3), torch.float64)
TANGENT = fnn.random.like(fnn.random.key(3), PARAMS)
VECTOR, UNRAVEL = tree.ravel(PARAMS)
V = tree.ravel(TANGENT)[0]


def model(p: dict, x: Tensor) -> Tensor:
    y = (x @ p["matrix"].T * p["vector"] * p["scalar"]).sin()
    return y @ p["cube"][0] + p["empty"].sum()


def of_params(p: dict) -> Tensor:
    return model(p, X)


def loss(p: dict, x: Tensor = X) -> Tensor:
    return model(p, x).square().mean()


def flat(found: dict) -> Tensor:
    return tree.ravel(found)[0]


def jacobian_squared() -> linalg.LinearOperator:
    operator = jacobian.jacobian_operator(of_params, PARAMS)
    return operator.T @ operator


J = jacrev(lambda v: of_params(UNRAVEL(v)))(VECTOR)
H = hessian(lambda v: loss(UNRAVEL(v)))(VECTOR)
ROWS = J.reshape(-1, len(VECTOR))
CASES: dict[str, tuple[Callable[[], Tensor], Tensor]] = {
    "jmp": (lambda: jacobian.jmp(of_params, (PARAMS,), (tree.map(lambda x: x[None], TANGENT),))[1][0], J @ V),
    "mjp": (
        lambda: flat(tree.unstack(jacobian.mjp(of_params, (PARAMS,), torch.ones(1, 4, 2).double())[1])[0]),
        ROWS.sum(0),
    ),
    "linearize_by_vjp": (lambda: jacobian.linearize_by_vjp(of_params, PARAMS)[1](TANGENT), J @ V),
    "directional_derivatives": (lambda: jacobian.directional_derivatives(loss, (PARAMS,), (TANGENT,))[2], V @ H @ V),
    "laplacian": (lambda: jacobian.laplacian(loss)(PARAMS), H.trace()),
    "jacobian_operator": (lambda: jacobian.jacobian_operator(of_params, PARAMS).dense(), ROWS),
    "transposed": (lambda: jacobian.jacobian_operator(of_params, PARAMS).T.dense(), ROWS.T),
    "sparse_jacobian": (lambda: jacobian.sparse_jacobian(of_params, "detect")(PARAMS).dense(), ROWS),
    **{
        f"dense_jacobian, {mode}": (
            lambda mode=mode: jacobian.blocks_to_matrix(jacobian.dense_jacobian(of_params, mode=mode)(PARAMS), PARAMS),
            ROWS,
        )
        for mode in ("forward", "reverse")
    },
    **{
        f"ntk, {method}": (
            lambda method=method: jacobian.ntk(model, PARAMS, X, method=method),
            torch.einsum("nap,mbp->nmab", J, J),
        )
        for method in ("contraction", "product")
    },
    "hvp": (lambda: flat(curvature.hvp(loss, (PARAMS,), (TANGENT,))[1]), H @ V),
    "dense_hessian": (lambda: jacobian.blocks_to_matrix(curvature.dense_hessian(loss)(PARAMS), PARAMS), H),
    "hessian_diagonal": (lambda: flat(curvature.hessian_diagonal(loss)(PARAMS)), H.diagonal()),
    "hessian_operator": (lambda: curvature.hessian_operator(loss, PARAMS, X).dense(), H),
    "ggn_operator": (
        lambda: curvature.ggn_operator(model, lambda y, x: y.square().mean(), PARAMS, X).dense(),
        ROWS.T @ ROWS / 4,
    ),
    "ggn_diagonal": (
        lambda: flat(curvature.ggn_diagonal(model, lambda y, x: y.square().mean())(PARAMS, X)),
        (ROWS**2).sum(0) / 4,
    ),
    "empirical_fisher": (
        lambda: curvature.empirical_fisher_operator(lambda p, x: model(p, x).sum(1), PARAMS, X).dense(),
        J.sum(1).T @ J.sum(1) / 4,
    ),
    "cg": (
        lambda: flat(linalg.cg(jacobian_squared().damped(5.0), TANGENT, tolerance=1e-12).solution),
        torch.linalg.solve(ROWS.T @ ROWS + 5.0 * torch.eye(len(V), dtype=torch.float64), V),
    ),
    "restricted": (
        lambda: curvature.hessian_operator(loss, PARAMS, X).restrict(lambda path: path == "scalar").dense()[0, 0],
        jacrev(jacrev(lambda s: loss(PARAMS | {"scalar": s})))(PARAMS["scalar"]),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_leaves_of_every_rank(name: str) -> None:
    found, expected = CASES[name]
    torch.testing.assert_close(found(), expected, rtol=1e-9, atol=1e-11)


def test_checks_of_leaves_of_every_rank() -> None:
    jacobian.check_grads(of_params, (PARAMS,))


SQUARED = lambda y, x: y.square().mean()
CHUNKED: dict[str, Callable[[int | None], tree.Tree]] = {
    "jmp": lambda k: jacobian.jmp(of_params, (PARAMS,), one_hot((PARAMS,), 0, 7), k)[1],
    "mjp": lambda k: jacobian.mjp(of_params, (PARAMS,), one_hot(of_params(PARAMS), 0, 7), k)[1],
    "dense_jacobian, forward": lambda k: jacobian.dense_jacobian(of_params, mode="forward", chunk_size=k)(PARAMS),
    "dense_jacobian, reverse": lambda k: jacobian.dense_jacobian(of_params, mode="reverse", chunk_size=k)(PARAMS),
    "laplacian": lambda k: jacobian.laplacian(loss, chunk_size=k)(PARAMS),
    "sparse_jacobian": lambda k: jacobian.sparse_jacobian(of_params, "detect", k)(PARAMS).dense(),
    "ntk": lambda k: jacobian.ntk(model, PARAMS, X, chunk_size=k),
    "ntk, product": lambda k: jacobian.ntk(model, PARAMS, X, X[:3], method="product", chunk_size=k),
    "dense_hessian": lambda k: curvature.dense_hessian(loss, chunk_size=k)(PARAMS),
    "hessian_diagonal": lambda k: curvature.hessian_diagonal(loss, chunk_size=k)(PARAMS),
    "ggn_diagonal": lambda k: curvature.ggn_diagonal(model, SQUARED, chunk_size=k)(PARAMS, X),
    "per_sample_ggn_diagonal": lambda k: curvature.per_sample_ggn_diagonal(model, SQUARED, k)(PARAMS, X),
    "per_sample_fisher_diagonal": lambda k: curvature.per_sample_fisher_diagonal(
        lambda p, x: model(p, x).flatten(1), "normal", chunk_size=k
    )(PARAMS, X),
    "dense": lambda k: curvature.hessian_operator(loss, PARAMS, X).dense(k),
    "columns": lambda k: curvature.hessian_operator(loss, PARAMS, X).columns(torch.eye(len(V)).double(), k),
    "estimate_diagonal": lambda k: linalg.estimate_diagonal(
        curvature.hessian_operator(loss, PARAMS, X), fnn.random.key(0), 7, chunk_size=k
    ),
    "estimate_frobenius_norm": lambda k: linalg.estimate_frobenius_norm(
        curvature.hessian_operator(loss, PARAMS, X), fnn.random.key(0), 7, k
    ),
    "per_sample_grad": lambda k: fnn.per_sample_grad(loss, chunk_size=k)(PARAMS, X),
    "per_sample_moments": lambda k: fnn.gradients.per_sample_moments(loss, k)(PARAMS, X),
    "per_sample_norms": lambda k: fnn.gradients.per_sample_norms(loss, k)(PARAMS, X),
    "clipped_grad": lambda k: fnn.clipped_grad(loss, 0.01, k)(PARAMS, X, weights=torch.arange(4.0).double()),
    "gradient_noise_scale": lambda k: fnn.gradients.gradient_noise_scale(loss, k)(PARAMS, X),
}


@pytest.mark.parametrize("name", CHUNKED)
def test_chunks_change_nothing(name: str) -> None:
    whole = CHUNKED[name](None)
    for size in (1, 2, 3, 100):
        assert tree.allclose(CHUNKED[name](size), whole, rtol=1e-9, atol=1e-11)
    for size in (0, -1):
        with pytest.raises(ValueError, match="chunk_size"):
            CHUNKED[name](size)


def backwards(given: Any) -> Any:
    """The same tree with its dict filled from behind."""
    return dict(reversed(given.items()))


def outputs(p: dict) -> dict:
    return {"y": model(p, X), "a": p["matrix"].sin(), "norm": tree.dot(p, p)}


STACK = tree.map(lambda x: torch.stack([x, 2 * x]), TANGENT)
COTANGENT = fnn.random.like(fnn.random.key(7), outputs(PARAMS))
COTANGENTS = tree.map(lambda x: torch.stack([x, 2 * x]), COTANGENT)
ORDERED: dict[str, Callable[[Callable], Any]] = {
    "jmp": lambda order: jacobian.jmp(outputs, (PARAMS,), (order(STACK),)),
    "mjp": lambda order: jacobian.mjp(outputs, (PARAMS,), order(COTANGENTS)),
    "linearize_by_vjp": lambda order: jacobian.linearize_by_vjp(outputs, PARAMS)[1](order(TANGENT)),
    "directional_derivatives": lambda order: jacobian.directional_derivatives(outputs, (PARAMS,), (order(TANGENT),)),
    "jacobian_operator": lambda order: jacobian.jacobian_operator(outputs, PARAMS) @ order(TANGENT),
    "transposed": lambda order: jacobian.jacobian_operator(outputs, PARAMS).T @ order(COTANGENT),
    "hvp": lambda order: curvature.hvp(loss, (PARAMS,), (order(TANGENT),)),
    "ggn_product": lambda order: curvature.ggn_product(of_params, lambda y: (y**4).sum(), (PARAMS,), (order(TANGENT),)),
    "hessian_operator": lambda order: curvature.hessian_operator(loss, PARAMS, X) @ order(TANGENT),
    "cg": lambda order: linalg.cg(jacobian_squared().damped(5.0), order(TANGENT), x0=order(PARAMS)).solution,
}


@pytest.mark.parametrize("name", ORDERED)
def test_the_order_of_dicts_does_not_matter(name: str) -> None:
    expected, found = ORDERED[name](lambda given: given), ORDERED[name](backwards)
    assert tree.max_difference(expected, found) == 0
    for ours, theirs in zip(tree.leaves(expected), tree.leaves(found), strict=True):
        assert ours.shape == theirs.shape
    assert repr(tree.structure(expected)) == repr(tree.structure(found))
