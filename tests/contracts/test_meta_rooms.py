"""Everything public in gradients, jacobian, curvature and optim on torch's ``meta`` device: see test_meta.py.

Functions that give numbers to Python by their nature, or draw pictures of what they saw, are listed with the reason.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import fnn
from fnn import curvature, gradients, jacobian, tree
from fnn.compile.trace import layout_of, trace_function
from tests.contracts.test_meta import META, OnlyOn
from tests.optim import cases_optim

KEY = fnn.random.key(0, META)
MODEL = fnn.models.mlp(4, 5, 3)
X, LABELS = torch.zeros(6, 4, device=META), torch.zeros(6, dtype=torch.int64, device=META)
BATCH = X, LABELS
PARAMS = MODEL.init(KEY)
VECTOR, MATRIX = torch.zeros(4, device=META), torch.zeros(3, 4, device=META)


def loss(params: Any, batch: Any, key: Tensor | None = None) -> Tensor:
    return fnn.losses.cross_entropy(MODEL.apply(params, batch[0]), batch[1])


def outputs(params: Any) -> Tensor:
    return MODEL.apply(params, X)


def stacked(value: Any, count: int = 2) -> Any:
    return tree.map(lambda leaf: leaf.new_zeros((count, *leaf.shape)), value)


def square(x: Tensor) -> Tensor:
    return x**2


softplus = jacobian.custom_jvp(
    torch.nn.functional.softplus, lambda p, t: (torch.nn.functional.softplus(p[0]), torch.sigmoid(p[0]) * t[0])
)
clamped = jacobian.custom_vjp(lambda x: x, lambda x: (x, ()), lambda residuals, u: (u.clamp(-1.0, 1.0),))
TANGENTS = tree.map(torch.zeros_like, PARAMS)
COTANGENTS = torch.zeros(2, 6, 3, device=META)

TOP_LEVEL: dict[str, Callable[[], Any]] = {
    "grad": lambda: fnn.grad(loss)(PARAMS, BATCH),
    "value_and_grad": lambda: fnn.value_and_grad(loss)(PARAMS, BATCH),
    "vmap": lambda: fnn.vmap(MODEL.apply, (None, 0))(PARAMS, X),
    "jvp": lambda: fnn.jvp(outputs, (PARAMS,), (TANGENTS,)),
    "vjp": lambda: fnn.vjp(outputs, PARAMS)[1](torch.zeros(6, 3, device=META)),
    "jacrev": lambda: fnn.jacrev(outputs)(PARAMS),
    "jacfwd": lambda: fnn.jacfwd(outputs)(PARAMS),
    "hessian": lambda: fnn.hessian(lambda x: (MATRIX @ x).sin().sum())(VECTOR),
    "per_sample_grad": lambda: fnn.per_sample_grad(loss, chunk_size=4)(PARAMS, BATCH),
    "clipped_grad": lambda: [
        fnn.clipped_grad(loss, 1.0, method=method)(PARAMS, BATCH) for method in ("exact", "ghost", "auto")
    ],
    "scan": lambda: fnn.scan(lambda carry, x: (carry + x, carry * x), VECTOR, X),
    "fori_loop": lambda: fnn.fori_loop(0, 3, lambda i, carry: carry + 1, VECTOR),
}
GRADIENTS: dict[str, Callable[[], Any]] = {
    "adapt_max_norm": lambda: gradients.adapt_max_norm(VECTOR[0], VECTOR, 4, count_std=1.0, key=KEY),
    "accumulate_grad": lambda: gradients.accumulate_grad(loss, 2)(PARAMS, BATCH),
    "ghost_plan": lambda: gradients.ghost_plan(loss)(PARAMS, BATCH),
    "gradient_noise_scale": lambda: gradients.gradient_noise_scale(loss)(PARAMS, BATCH),
    "noise_like": lambda: gradients.noise_like(KEY, PARAMS, 0.5),
    "per_sample_moments": lambda: gradients.per_sample_moments(loss, chunk_size=4)(PARAMS, BATCH),
    "per_sample_norms": lambda: [
        gradients.per_sample_norms(loss, method=method)(PARAMS, BATCH) for method in ("exact", "ghost", "auto")
    ],
    "per_sample_value_and_grad": lambda: gradients.per_sample_value_and_grad(loss)(PARAMS, BATCH),
    "poisson_sample": lambda: gradients.poisson_sample(KEY, 10, 0.5, 8),
}
JACOBIAN: dict[str, Callable[[], Any]] = {
    "blocks_to_matrix": lambda: jacobian.blocks_to_matrix(jacobian.dense_jacobian(outputs)(PARAMS), PARAMS),
    "custom_jvp": lambda: torch.func.grad(torch.func.grad(lambda x: softplus(x)))(VECTOR[0]),
    "custom_vjp": lambda: fnn.grad(lambda x: (5.0 * clamped(x)).sum())(VECTOR),
    "dense_jacobian": lambda: [
        jacobian.dense_jacobian(outputs, mode=mode)(PARAMS) for mode in ("forward", "reverse", "auto")
    ],
    "directional_derivatives": lambda: jacobian.directional_derivatives(square, (VECTOR,), (VECTOR,), order=3),
    "jacobian_operator": lambda: [
        (J @ TANGENTS, J.T @ torch.zeros(6, 3, device=META)) for J in [jacobian.jacobian_operator(outputs, PARAMS)]
    ],
    "jmp": lambda: jacobian.jmp(outputs, (PARAMS,), (stacked(PARAMS),)),
    "laplacian": lambda: jacobian.laplacian(lambda x: (MATRIX @ x).sin().sum())(VECTOR),
    "linearize_by_vjp": lambda: jacobian.linearize_by_vjp(outputs, PARAMS)[1](TANGENTS),
    "linear_solve": lambda: jacobian.linear_solve(lambda x: x.cumsum(0), VECTOR),
    "mjp": lambda: jacobian.mjp(outputs, (PARAMS,), COTANGENTS),
    "ntk": lambda: [jacobian.ntk(MODEL.apply, PARAMS, X, mode=mode) for mode in ("trace", "full", "diagonal")],
    "stop_gradient": lambda: fnn.grad(lambda x: (x * jacobian.stop_gradient(x)).sum())(VECTOR),
    "straight_through": lambda: fnn.grad(lambda x: jacobian.straight_through(torch.round)(x).sum())(VECTOR),
}
CURVATURE: dict[str, Callable[[], Any]] = {
    "dense_hessian": lambda: curvature.dense_hessian(lambda p: loss(p, BATCH))(PARAMS),
    "empirical_fisher_product": lambda: curvature.empirical_fisher_product(
        lambda p: fnn.losses.cross_entropy(outputs(p), LABELS, reduction="none"), (PARAMS,), (TANGENTS,)
    ),
    "fisher_product": lambda: [
        curvature.fisher_product(outputs, (PARAMS,), (TANGENTS,), "categorical", **options)
        for options in ({}, {"key": KEY})
    ],
    "ggn_diagonal": lambda: curvature.ggn_diagonal(outputs, lambda y: fnn.losses.cross_entropy(y, LABELS))(PARAMS),
    "ggn_product": lambda: curvature.ggn_product(
        outputs, lambda y: fnn.losses.cross_entropy(y, LABELS), (PARAMS,), (TANGENTS,)
    ),
    "hessian_diagonal": lambda: curvature.hessian_diagonal(lambda p: loss(p, BATCH))(PARAMS),
    "hvp": lambda: curvature.hvp(lambda p: loss(p, BATCH), (PARAMS,), (TANGENTS,)),
    "vhp": lambda: curvature.vhp(lambda p: loss(p, BATCH), (PARAMS,), (TANGENTS,)),
    "hessian_operator": lambda: curvature.hessian_operator(loss, PARAMS, BATCH) @ TANGENTS,
    "ggn_operator": lambda: curvature.ggn_operator(
        lambda p, batch: MODEL.apply(p, batch[0]), lambda y, batch: fnn.losses.cross_entropy(y, batch[1]), PARAMS, BATCH
    ) @ TANGENTS,
    "fisher_operator": lambda: curvature.fisher_operator(MODEL.apply, PARAMS, X) @ TANGENTS,
    "empirical_fisher_operator": lambda: curvature.empirical_fisher_operator(
        lambda p, batch: fnn.losses.cross_entropy(MODEL.apply(p, batch[0]), batch[1], reduction="none"), PARAMS, BATCH
    ) @ TANGENTS,
    "kfac": lambda: [
        (K @ TANGENTS, K.inverse({"0.weight": 0.1, "2.weight": 1.0}).diagonal(), K.sample(KEY, 0.1))
        for K in [curvature.kfac(MODEL.apply, PARAMS, X, weight_sharing="reduce")]
    ],
    "per_sample_fisher_diagonal": lambda: [
        curvature.per_sample_fisher_diagonal(MODEL.apply, key=key)(PARAMS, X) for key in (None, KEY)
    ],
    "per_sample_ggn_diagonal": lambda: curvature.per_sample_ggn_diagonal(
        lambda p, batch: MODEL.apply(p, batch[0]), lambda y, batch: fnn.losses.cross_entropy(y, batch[1])
    )(PARAMS, BATCH),
    "predictive_covariance": lambda: curvature.predictive_covariance(
        MODEL.apply, PARAMS, X, fnn.linalg.identity_operator(PARAMS)
    ),
    "ekfac": lambda: curvature.ekfac(MODEL.apply, PARAMS, X) @ TANGENTS,
}  # fmt: skip
# what does not compute on the device: classes, plain values, and checks that compare numbers in Python
OTHER = {
    "gradients": {
        "LeafPlan",
        "Moments",
        "NoiseScale",
        "PoissonSample",
        "check_per_sample",
        "epsilon_spent",
        "noise_beside_count",
        "noise_for_epsilon",
    },
    # patterns of non-zeros are data, and are coloured in Python; solvers look at their residuals
    "jacobian": {
        "SparseJacobian",
        "check_grads",
        "colours",
        "detect_pattern",
        "fixed_point",
        "root",
        "sparse_jacobian",
    },
    "curvature": {"KroneckerEigen", "KroneckerFactors", "KroneckerOperator", "hvp_mode", "sparse_hessian"},
}
ROOMS = {"gradients": GRADIENTS, "jacobian": JACOBIAN, "curvature": CURVATURE}
CALLS = {
    **{f"fnn.{name}": call for name, call in TOP_LEVEL.items()},
    **{f"{room}.{name}": call for room, calls in ROOMS.items() for name, call in calls.items()},
}


@pytest.mark.parametrize("name", CALLS)
def test_derivatives(name: str) -> None:
    with OnlyOn():
        CALLS[name]()


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_name_is_run(room: str) -> None:
    assert {*ROOMS[room], *OTHER[room]} == set(getattr(fnn, room).__all__)


@pytest.mark.parametrize("name", cases_optim.CASES)
def test_optimizers(name: str) -> None:
    optimizer = cases_optim.CASES[name].make(0.1)
    params = tree.map(lambda leaf: leaf.to(META), cases_optim.start())
    with OnlyOn():
        state = optimizer.init(params)
        cases_optim.step(optimizer, params, state)


@pytest.mark.parametrize("for_replay", [True, False])
@pytest.mark.parametrize("name", cases_optim.CASES)
def test_compiled_optimizers(name: str, for_replay: bool) -> None:
    """Every value of the graph of a step, and what it closes over, is on the device."""
    optimizer = cases_optim.CASES[name].make(0.1)
    params = tree.map(lambda leaf: leaf.to(META), cases_optim.start())

    def step(params: Any, state: Any) -> Any:
        return cases_optim.step(optimizer, params, state)

    leaves, treedef = tree.flatten(((params, optimizer.init(params)), {}))
    traced = trace_function(step, treedef, [*map(layout_of, leaves)], for_replay=for_replay)
    values = [node.meta.get("val") for node in traced.module.graph.nodes]
    devices = {x.device for x in tree.leaves([values, traced.constants]) if isinstance(x, Tensor)}
    assert devices == {META}
