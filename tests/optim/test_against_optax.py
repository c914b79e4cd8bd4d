"""The optimizers that torch lacks, and wrappers, against Optax on the same gradients, 20 steps in float64."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import fnn
from fnn import optim

jax = pytest.importorskip("jax", reason="the comparison with Optax needs JAX")
optax = pytest.importorskip("optax", reason="the comparison needs Optax")
contrib = pytest.importorskip("optax.contrib")


def sam() -> Any:
    return contrib.sam(
        optax.sgd(0.05), optax.chain(contrib.normalize(), optax.sgd(0.1)), sync_period=2, opaque_mode=True
    )


TABLE: dict[str, tuple[Callable[[], fnn.Optimizer], Callable[[], Any]]] = {
    "lion": (lambda: optim.lion(0.02, (0.8, 0.95), 0.1), lambda: optax.lion(0.02, 0.8, 0.95, weight_decay=0.1)),
    "lamb": (lambda: optim.lamb(0.02, weight_decay=0.1), lambda: optax.lamb(0.02, weight_decay=0.1)),
    "lars": (
        lambda: optim.lars(0.5, 0.8, True, 0.1, 0.01, 1e-3),
        lambda: optax.lars(0.5, 0.1, trust_coefficient=0.01, eps=1e-3, momentum=0.8, nesterov=True),
    ),
    "adabelief": (lambda: optim.adabelief(0.02), lambda: optax.adabelief(0.02)),
    "yogi": (lambda: optim.yogi(0.02), lambda: optax.yogi(0.02)),
    "adan": (lambda: optim.adan(0.02, weight_decay=0.1), lambda: optax.adan(0.02, weight_decay=0.1)),
    "ademamix": (
        lambda: optim.ademamix(0.02, (0.8, 0.95, 0.99), 3.0, weight_decay=0.1),
        lambda: contrib.ademamix(0.02, 0.8, 0.95, 0.99, 3.0, weight_decay=0.1),
    ),
    "adopt": (lambda: optim.adopt(0.02, (0.8, 0.95)), lambda: contrib.adopt(0.02, 0.8, 0.95)),
    "adopt, nesterov": (
        lambda: optim.adopt(0.02, (0.8, 0.95), use_clipping=False, nesterov=True),
        lambda: contrib.adopt(0.02, 0.8, 0.95, use_clipping=False, nesterov=True),
    ),
    "novograd": (lambda: optim.novograd(0.02, weight_decay=0.1), lambda: optax.novograd(0.02, weight_decay=0.1)),
    "optimistic gradient descent": (
        lambda: optim.optimistic_gradient_descent(0.02, 0.9, 0.7),
        lambda: optax.optimistic_gradient_descent(0.02, 0.9, 0.7),
    ),
    "optimistic adam": (
        lambda: optim.optimistic_adam(0.02, (0.8, 0.95), alpha=0.9, beta=0.7),
        lambda: optax.optimistic_adam_v2(0.02, b1=0.8, b2=0.95, alpha=0.9, beta=0.7, nesterov=False),
    ),
    "polyak": (lambda: optim.polyak_sgd(0.2, f_min=0.5, eps=5.0), lambda: optax.polyak_sgd(0.2, f_min=0.5, eps=5.0)),
    "polyak, positive": (
        lambda: optim.polyak_sgd(0.15, f_min=1.0, variant="sps+"),
        lambda: optax.polyak_sgd(0.15, f_min=1.0, variant="sps+"),
    ),
    "madgrad": (lambda: optim.madgrad(0.02, 0.8, 0.1), lambda: contrib.madgrad(0.02, 0.8, 0.1)),
    "dog": (lambda: optim.dog(0.9, ("heuristic", 0.1)), lambda: contrib.dog(0.9, ("heuristic", 0.1))),
    "dog, first distance": (
        lambda: optim.dog(init_step=("distance", 0.2), eps=0.1, weight_decay=0.1),
        lambda: contrib.dog(init_step=("distance", 0.2), eps=0.1, weight_decay=0.1),
    ),
    "dog, first rate": (
        lambda: optim.dog(lambda count: 1 / (1 + count), ("learning_rate", 0.02)),
        lambda: contrib.dog(lambda count: 1 / (1 + count), ("learning_rate", 0.02)),
    ),
    "prodigy": (
        lambda: optim.prodigy(lambda count: 1 / (1 + count), (0.8, 0.95), estim_lr0=1e-3, weight_decay=0.1),
        lambda: contrib.prodigy(lambda count: 1 / (1 + count), (0.8, 0.95), estim_lr0=1e-3, weight_decay=0.1),
    ),
    "prodigy, safeguard": (
        lambda: optim.prodigy(0.5, (0.8, 0.95), 0.9, 1e-8, 1e-2, 2.0, 0.1, True),
        lambda: contrib.prodigy(0.5, (0.8, 0.95), 0.9, 1e-8, 1e-2, 2.0, 0.1, True),
    ),
    "dadapt adamw": (
        lambda: optim.dadapt_adamw(lambda count: 1 / (1 + count), (0.8, 0.95), estim_lr0=1e-3, weight_decay=0.1),
        lambda: contrib.dadapt_adamw(lambda count: 1 / (1 + count), (0.8, 0.95), estim_lr0=1e-3, weight_decay=0.1),
    ),
    "sm3": (lambda: optim.sm3(0.05, 0.8), lambda: optax.sm3(0.05, 0.8)),
    "schedule-free sgd": (
        lambda: optim.schedule_free_sgd(0.1, 0.8, 0.01),
        lambda: contrib.schedule_free_sgd(0.1, b1=0.8, weight_decay=0.01),
    ),
    "schedule-free adamw": (
        lambda: optim.schedule_free_adamw(0.02, (0.8, 0.95), weight_decay=0.1),
        lambda: contrib.schedule_free_adamw(0.02, b1=0.8, b2=0.95, weight_decay=0.1),
    ),
    "sam": (lambda: optim.sam(optim.sgd(0.05), 0.1), sam),
    "backtracking": (
        lambda: optim.backtracking_line_search(optim.sgd(3.0), 15),
        lambda: optax.chain(optax.sgd(3.0), optax.scale_by_backtracking_linesearch(15)),
    ),
    "backtracking, few steps": (
        lambda: optim.backtracking_line_search(optim.sgd(8.0), 3, 0.3, 0.5, 2.0, 0.4, 1e-3, 1e-3),
        lambda: optax.chain(optax.sgd(8.0), optax.scale_by_backtracking_linesearch(3, 0.3, 0.5, 2.0, 0.4, 1e-3, 1e-3)),
    ),
    "zoom": (
        lambda: optim.zoom_line_search(optim.sgd(0.3), 15, curv_rtol=0.01),
        lambda: optax.chain(optax.sgd(0.3), optax.scale_by_zoom_linesearch(15, curv_rtol=0.01)),
    ),
    "zoom, few steps": (
        lambda: optim.zoom_line_search(optim.sgd(0.5), 6, 1.5, 1e-9, 3.0, 0.3, 0.01, None, 1e-2, "one"),
        lambda: optax.chain(
            optax.sgd(0.5), optax.scale_by_zoom_linesearch(6, 1.5, 1e-9, 3.0, 0.3, 0.01, None, 1e-2, "one")
        ),
    ),
    "global norm": (
        lambda: optim.chain(optim.clip_by_global_norm(0.7), optim.adamw(0.02, weight_decay=0.1)),
        lambda: optax.chain(optax.clip_by_global_norm(0.7), optax.adamw(0.02, weight_decay=0.1)),
    ),
    "block": (
        lambda: optim.chain(optim.clip_by_block(0.3), optim.scale_by_learning_rate(0.1)),
        lambda: optax.chain(optax.clip_by_block_rms(0.3), optax.scale_by_learning_rate(0.1)),
    ),
    "centralize": (
        lambda: optim.chain(optim.centralize(), optim.sgd(0.1)),
        lambda: optax.chain(optax.centralize(), optax.sgd(0.1)),
    ),
    "trust ratio": (
        lambda: optim.chain(optim.scale_by_trust_ratio(), optim.scale(-0.05)),
        lambda: optax.chain(optax.scale_by_trust_ratio(), optax.scale(-0.05)),
    ),
    "ema": (
        lambda: optim.chain(optim.ema(0.8), optim.scale_by_sign(), optim.scale(-0.02)),
        lambda: optax.chain(optax.ema(0.8), optax.scale_by_sign(), optax.scale(-0.02)),
    ),
    "mask": (
        lambda: optim.chain(optim.mask(optim.scale(0.5), lambda path: path == "w", rest="pass"), optim.sgd(0.1)),
        lambda: optax.chain(optax.masked(optax.scale(0.5), {"w": True, "b": False}), optax.sgd(0.1)),
    ),
    "multi_transform": (
        lambda: optim.multi_transform({"w": optim.adam(0.1), "b": optim.sgd(0.1)}, {"w": "w", "b": "b"}),
        lambda: optax.multi_transform({"w": optax.adam(0.1), "b": optax.sgd(0.1)}, {"w": "w", "b": "b"}),
    ),
}


def loss(params: dict[str, Tensor]) -> Tensor:
    w, b = params["w"], params["b"]
    return (w.sin() ** 2).sum() + (w @ b).cos().sum() + (b**4).sum() / 4


def their_loss(params: Any) -> Any:
    w, b = params["w"], params["b"]
    return (jax.numpy.sin(w) ** 2).sum() + jax.numpy.cos(w @ b).sum() + (b**4).sum() / 4


def searching_update(theirs: Any, grads: Any, state: Any, params: Any) -> tuple:
    return theirs.update(grads, state, params, value=their_loss(params), grad=grads, value_fn=their_loss)


def start(*more: int) -> dict[str, Tensor]:
    """A matrix, or an array with more axes, and a vector."""
    generator = torch.Generator().manual_seed(3)
    draw = lambda *shape: torch.randn(shape, dtype=torch.float64, generator=generator)
    return {"w": draw(*more, 4, 3), "b": draw(3)}


def to_jax(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.numpy.asarray(x.numpy()), tree)


def gradient(params: Any, _: Any = None) -> Any:
    """The gradient that both use, computed by torch."""
    return to_jax(fnn.grad(loss)({name: torch.tensor(jax.device_get(x)) for name, x in params.items()}))


def value(params: Any) -> Any:
    return to_jax(loss({name: torch.tensor(jax.device_get(x)) for name, x in params.items()}))


def extra(name: str, params: Any) -> dict:
    """The arguments of Optax's update beside gradients, state and params."""
    return {"grad_fn": gradient} if name == "sam" else {"value": value(params)} if "polyak" in name else {}


def wide_counts(x: Any) -> Any:
    """JAX converts an int32 count to float32, which rounds its square root, and an int64 count to float64."""
    return x.astype(jax.numpy.int64) if x.dtype == jax.numpy.int32 else x


def largest(ours: dict, theirs: dict) -> float:
    return max(float((ours[k] - torch.tensor(jax.device_get(theirs[k]))).abs().max()) for k in ours)


SEARCHES = [name for name in TABLE if name.startswith(("backtracking", "zoom"))]
SETTINGS = [(name, shape, f"{name}, {axes} axes") for name in TABLE for shape, axes in (((), "two"), ((2, 1), "four"))]
SLOW = {label for name, shape, label in SETTINGS if name in SEARCHES and (shape or "few" in name)}  # JAX compiles long


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        pytest.param(n, shape, id=label, marks=[pytest.mark.slow] if label in SLOW else [])
        for n, shape, label in SETTINGS
    ],
)
def test_twenty_steps_equal_optax(name: str, shape: tuple, record_property: Callable) -> None:
    make, make_theirs = TABLE[name]
    with jax.enable_x64(True):
        opt, theirs = make(), make_theirs()
        their_update = jax.jit(functools.partial(searching_update, theirs)) if name in SEARCHES else theirs.update
        params = start(*shape)
        other = to_jax(params)
        state, other_state = opt.init(params), jax.tree.map(wide_counts, theirs.init(other))
        for _ in range(20):
            updates, state = opt.update(fnn.grad(loss)(params), state, params, loss=loss, value=loss(params))
            params = optim.apply_updates(params, updates)
            updates, other_state = their_update(gradient(other), other_state, other, **extra(name, other))
            other = optax.apply_updates(other, updates)
        difference = largest(params, other)
    record_property("largest difference", difference)
    assert float((params["w"] - start(*shape)["w"]).abs().max()) > 1e-3
    assert difference < 1e-12


def test_adaptive_clip_equals_optax_with_its_axes() -> None:
    # Optax stores weights as (inputs, outputs)
    with jax.enable_x64(True):
        opt, theirs = optim.adaptive_gradient_clip(0.05), optax.adaptive_grad_clip(0.05)
        params, grads = start(), fnn.grad(loss)(start())
        turned = lambda tree: to_jax({"w": tree["w"].T, "b": tree["b"]})
        ours, _ = opt.update(grads, opt.init(params), params)
        other, _ = theirs.update(turned(grads), theirs.init(turned(params)), turned(params))
        assert largest({"w": ours["w"].T, "b": ours["b"]}, other) < 1e-15
        assert not torch.equal(ours["w"], grads["w"])


def test_lookahead_equals_optax() -> None:
    with jax.enable_x64(True):
        opt, theirs = optim.lookahead(optim.adam(0.05), 3, 0.4), optax.lookahead(optax.adam(0.05), 3, 0.4)
        params = start()
        other = optax.LookaheadParams.init_synced(to_jax(params))
        state, other_state = opt.init(params), theirs.init(other)
        for _ in range(20):
            updates, state = opt.update(fnn.grad(loss)(params), state, params)
            params = optim.apply_updates(params, updates)
            updates, other_state = theirs.update(gradient(other.fast), other_state, other)
            other = optax.apply_updates(other, updates)
        assert largest(params, other.fast) < 1e-12
        assert largest(state.slow, other.slow) < 1e-12


def test_sophia_equals_optax_given_the_same_diagonals() -> None:
    def diagonal(params: dict[str, Tensor]) -> dict[str, Tensor]:
        vector, unravel = fnn.tree.ravel(params)
        return unravel(torch.func.hessian(lambda v: loss(unravel(v)))(vector).diagonal())

    def theirs_diagonal(grads: Any, state: Any, params: Any = None, **_: Any) -> tuple:
        return to_jax(diagonal({name: torch.tensor(jax.device_get(x)) for name, x in params.items()})), state

    with jax.enable_x64(True), jax.disable_jit():
        opt = optim.sophia(0.02, (0.9, 0.8), gamma=0.5, weight_decay=0.1)
        estimate = optax.GradientTransformationExtraArgs(lambda params: (), theirs_diagonal)
        theirs = contrib.sophia(
            0.02, 0.9, 0.8, weight_decay=0.1, gamma=0.5, update_interval=1, hessian_diagonal_fn=estimate
        )
        params = start()
        other = to_jax(params)
        state, other_state = opt.init(params), theirs.init(other)
        before: dict = {}
        for _ in range(20):
            updates, state = opt.update(fnn.grad(loss)(params), state, params, **before)
            before = {"hessian_diagonal": diagonal(params)}  # Optax uses an estimate from the next step on
            params = optim.apply_updates(params, updates)
            updates, other_state = theirs.update(gradient(other), other_state, other)
            other = optax.apply_updates(other, updates)
        assert largest(params, other) < 1e-12
