"""Projections against Optax, by their definition, under every transform, and at the edges."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import fnn
from fnn import tree
from fnn.optim import projections

BOUNDS = {"w": -0.3, "b": 0.1, "z": 0.2}
TABLE: dict[str, tuple[Callable, Callable[[Any], Any]]] = {
    "non_negative": (projections.non_negative, lambda o: o.projection_non_negative),
    "box": (
        lambda p: projections.box(p, -0.2, 0.7),
        lambda o: lambda p: o.projection_box(p, dict.fromkeys(p, -0.2), dict.fromkeys(p, 0.7)),
    ),
    "box of trees": (
        lambda p: projections.box(p, bounds(p, -0.1), bounds(p, 0.2)),
        lambda o: lambda p: o.projection_box(p, *[{k: x + shift for k, x in BOUNDS.items()} for shift in (-0.1, 0.2)]),
    ),
    "linf_ball": (lambda p: projections.linf_ball(p, 0.4), lambda o: lambda p: o.projection_linf_ball(p, 0.4)),
    "l2_ball": (lambda p: projections.l2_ball(p, 0.8), lambda o: lambda p: o.projection_l2_ball(p, 0.8)),
    "l2_ball, inside": (lambda p: projections.l2_ball(p, 80.0), lambda o: lambda p: o.projection_l2_ball(p, 80.0)),
    "simplex": (projections.simplex, lambda o: o.projection_simplex),
    "simplex of 5": (lambda p: projections.simplex(p, 5.0), lambda o: lambda p: o.projection_simplex(p, 5.0)),
    "l1_ball": (projections.l1_ball, lambda o: o.projection_l1_ball),
    "l1_ball, inside": (lambda p: projections.l1_ball(p, 80.0), lambda o: lambda p: o.projection_l1_ball(p, 80.0)),
}  # fmt: skip
ROWS = pytest.mark.parametrize("name", TABLE)


def bounds(params: dict[str, Tensor], shift: float) -> dict[str, Tensor]:
    return {name: torch.full_like(leaf, BOUNDS[name]) + shift for name, leaf in params.items()}


def start(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(shape, dtype=torch.float64, generator=generator)
    return {"w": draw(3, 2), "b": draw(4), "z": draw()}


@ROWS
def test_equals_optax_with_its_derivative(name: str) -> None:
    jax, optax = pytest.importorskip("jax"), pytest.importorskip("optax")
    ours, theirs = TABLE[name][0], TABLE[name][1](optax.projections)
    back = lambda given: {k: torch.tensor(jax.device_get(x)) for k, x in given.items()}
    weights = start(1)
    weighted = lambda p: (sum((theirs(p)[k] * weights[k].numpy()).sum() for k in p), theirs(p))
    with jax.enable_x64(True):
        compiled = jax.jit(jax.grad(weighted, has_aux=True))
        for seed in range(3):
            params = start(seed + 2)
            their_slope, near = compiled({k: jax.numpy.asarray(x.numpy()) for k, x in params.items()})
            assert tree.allclose(ours(params), back(near), rtol=1e-13, atol=1e-15)
            slope = fnn.grad(lambda p: tree.dot(ours(p), weights))(params)
            assert tree.allclose(slope, back(their_slope), rtol=1e-12, atol=1e-13)


@ROWS
def test_is_the_nearest_point_of_the_set(name: str) -> None:
    """Projecting twice changes nothing, and the way to the projection makes an obtuse angle with every way inside."""
    project, params = TABLE[name][0], start()
    near = project(params)
    assert tree.allclose(project(near), near, rtol=1e-13, atol=1e-15)
    moved = tree.map(torch.sub, params, near)
    for seed in range(1, 6):
        other = project(tree.map(lambda p, s=seed: s * p, start(seed)))
        assert float(tree.dot(moved, tree.map(torch.sub, other, near))) <= 1e-12


@ROWS
def test_under_transforms_and_in_graphs(name: str) -> None:
    project, weights = TABLE[name][0], start(7)
    several = [start(seed) for seed in range(3)]
    expected = [project(params) for params in several]
    assert tree.allclose(fnn.vmap(project)(tree.stack(several)), tree.stack(expected), rtol=1e-13, atol=1e-15)
    slope = lambda p: fnn.grad(lambda p: tree.dot(project(p), weights))(p)
    slopes = [slope(params) for params in several]
    assert tree.allclose(fnn.vmap(slope)(tree.stack(several)), tree.stack(slopes), rtol=1e-13, atol=1e-15)
    tangent = fnn.jvp(project, (several[0],), (start(8),))[1]
    _, pull = fnn.vjp(project, several[0])
    assert float(tree.dot(tangent, weights)) == pytest.approx(float(tree.dot(pull(weights)[0], start(8))), rel=1e-12)
    jitted = fnn.jit(project)
    assert tree.max_difference(jitted(several[0]), expected[0]) == 0
    assert tree.max_difference(jitted(several[1]), expected[1]) == 0
    assert fnn.compile_count(jitted) == 1


@ROWS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_keeps_dtypes_and_owns_its_memory(name: str, dtype: torch.dtype) -> None:
    project, params = TABLE[name][0], tree.cast(start(), dtype)
    copies = tree.map(torch.clone, params)
    near = project(params)
    assert tree.spec(near) == tree.spec(params)
    assert tree.max_difference(params, copies) == 0
    held = [leaf.data_ptr() for leaf in tree.leaves((params, near))]
    assert len(set(held)) == len(held)
    exact = project(tree.cast(params, torch.float64))
    assert tree.allclose(tree.cast(near, torch.float64), exact, rtol=0, atol=4 * torch.finfo(dtype).eps)
    assert tree.spec(project(tree.to(params, "meta"))) == tree.spec(tree.to(params, "meta"))


def test_a_point_on_the_edge_of_a_ball_stays_with_its_derivative() -> None:
    params = {"w": torch.tensor([0.5, 0.0, -0.5])}
    for project in (projections.l1_ball, projections.l2_ball, projections.linf_ball):
        assert torch.equal(project(params)["w"], params["w"])
        slope = fnn.grad(lambda p, f=project: f(p)["w"].sum())(params)["w"]
        assert torch.equal(slope, torch.ones(3))


def test_scales_may_be_tensors_and_vmapped() -> None:
    params, scales = start(), torch.tensor([0.5, 1.0, 30.0], dtype=torch.float64)
    for project in (projections.simplex, projections.l1_ball, projections.l2_ball, projections.linf_ball):
        expected = tree.stack([project(params, float(scale)) for scale in scales])
        together = fnn.vmap(lambda scale, f=project: f(params, scale))(scales)
        assert tree.allclose(together, expected, rtol=1e-13, atol=1e-15)


def test_what_cannot_be_projected_is_refused() -> None:
    params = {"w": torch.ones(2)}
    for project in (projections.simplex, projections.l1_ball, projections.l2_ball, projections.linf_ball):
        for scale in (0.0, -1.0, float("nan")):
            with pytest.raises(ValueError, match=f"scale must be positive, got {scale}"):
                project(params, scale)
    pairs = {"w": torch.ones(2, dtype=torch.complex64)}
    for project in (
        projections.simplex, projections.l1_ball, projections.linf_ball, projections.non_negative,
        lambda p: projections.box(p, 0.0, 1.0),
    ):  # fmt: skip
        with pytest.raises(TypeError, match=r"is for real numbers, but params\['w'\] has dtype torch.complex64"):
            project(pairs)
    torch.testing.assert_close(projections.l2_ball(pairs)["w"], pairs["w"] / 2**0.5)
    with pytest.raises(ValueError, match=r"lower\['w'\] has shape \(3,\), but params\['w'\] has \(2,\)"):
        projections.box(params, {"w": torch.ones(3)}, 1.0)
    with pytest.raises(ValueError, match="no elements"):
        projections.simplex({})
    for project in (projections.l1_ball, projections.l2_ball, projections.linf_ball, projections.non_negative):
        assert project({}) == {}


def test_gradient_descent_with_a_projection_solves_a_constrained_problem() -> None:
    """The point of the simplex nearest to a target, by 400 steps of a quadratic with other curvature."""
    curvature, target = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0.9, 0.8, -0.5], dtype=torch.float64)
    loss = lambda p: (curvature * (p["w"] - target) ** 2).sum() / 2
    params, optimizer = {"w": torch.full((3,), 1 / 3).double()}, fnn.optim.sgd(0.1)
    state = optimizer.init(params)
    for _ in range(400):
        updates, state = optimizer.update(fnn.grad(loss)(params), state, params)
        params = projections.simplex(fnn.optim.apply_updates(params, updates))
    # with a multiplier mu: w = target - mu / curvature where positive, and the sum is 1
    mu = (0.9 + 0.8 - 1) / (1 + 1 / 2)
    expected = torch.tensor([0.9 - mu, 0.8 - mu / 2, 0.0], dtype=torch.float64)
    torch.testing.assert_close(params["w"], expected, rtol=1e-9, atol=1e-9)
