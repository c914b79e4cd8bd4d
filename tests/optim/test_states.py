"""What an optimizer's state is checked for, that results own their memory, and numbers of 16 bits and complex ones."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fnn
from fnn import optim, tree
from tests.optim.cases_optim import CASES, Case, extra, parabola, start, step

TABLE = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
EAGER_AND_TRACED = pytest.mark.parametrize("traced", [False, True], ids=["eager", "in vmap"])


def update(opt: fnn.Optimizer, grads: Any, state: Any, params: Any) -> tuple:
    return opt.update(grads, state, params, **extra(params))


def memory(given: Any) -> list[int]:
    return [leaf.untyped_storage().data_ptr() for leaf in tree.leaves(given) if leaf.numel()]


@TABLE
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_results_own_their_memory(case: Case, dtype: torch.dtype) -> None:
    params = tree.cast(start(), dtype)
    rate = torch.tensor(0.05, dtype=torch.float64)
    opt = case.make(rate)
    state = opt.init(params)
    assert len(set(memory((rate, params, state)))) == len(memory((rate, params, state)))
    for _ in range(2):
        grads = fnn.grad(parabola)(params)
        updates, after = update(opt, grads, state, params)
        everything = rate, params, grads, state, updates, after
        assert len(set(memory(everything))) == len(memory(everything))
        params, state = optim.apply_updates(params, updates), after


CONSTANT = torch.full((3,), 2.0)
HANDED_ON = {
    "gradient and param": lambda g, p, s: (g, p),
    "gradient alone": lambda g, p, s: (g, 2 * s),
    "param alone": lambda g, p, s: (2 * g, p),
    "slot as update": lambda g, p, s: (s, 2 * s),
    "slot twice": lambda g, p, s: (s, s),
    "slot alone": lambda g, p, s: (2 * g, s),
    "view and gradient": lambda g, p, s: (p.view_as(p), g),
    "view of a new value": lambda g, p, s: ((2 * g).view_as(g), 2 * s),
    "one value for both": lambda g, p, s: (2 * g,) * 2,
    "one constant for all leaves": lambda g, p, s: (CONSTANT[: len(g)], 2 * s),
    "one value for all leaves": lambda g, p, s: (CONSTANT, 2 * s) if len(g) == 3 else (g, s),
}
PARAMS_OF_RULES = {
    "one leaf": {"w": torch.ones(3)},
    "two leaves": {"v": torch.ones(3), "w": torch.zeros(3)},
    "a 0-d leaf": {"w": torch.ones(3), "z": torch.tensor(1.0)},
}


@pytest.mark.parametrize("leaves", PARAMS_OF_RULES)
@pytest.mark.parametrize("name", HANDED_ON)
def test_what_a_rule_hands_through_is_copied(name: str, leaves: str) -> None:
    params = PARAMS_OF_RULES[leaves]
    for grads in (params, tree.map(torch.clone, params)):
        rule = lambda t: HANDED_ON[name]
        for opt in (optim.from_rule(rule, slots={"s": lambda p: p}), optim.identity()):
            state = opt.init(params)
            updates, after = opt.update(grads, state, params)
            inputs = params if grads is params else (params, grads)
            everything = memory((inputs, state, updates, after))
            assert len(set(everything)) == len(everything)


def test_keys_and_numbers_given_as_tensors_are_copied() -> None:
    key, rate = fnn.random.key(0), torch.tensor(0.5)
    opt = optim.chain(optim.add_noise(key, 0.1), optim.sgd(rate))
    state = opt.init({"w": torch.ones(2)})
    rate.zero_()
    key.zero_()
    assert float(optim.get_hyperparams(state)["learning_rate"]) == 0.5
    assert not set(memory((key, rate))) & set(memory(state))
    two = optim.chain(optim.sgd(0.1), optim.sgd(0.2)).init({"w": torch.ones(2)})
    new = torch.tensor(0.7)
    two = optim.set_hyperparams(two, learning_rate=new)
    held = memory((new, two))
    assert len(set(held)) == len(held)
    values = optim.get_hyperparams(two)
    assert not set(memory(values)) & set(memory(two))


def test_plateau_states_own_their_leaves() -> None:
    plateau = optim.schedules.reduce_on_plateau(0.1, patience=0)
    state = plateau.init()
    for value in (1.0, 2.0, torch.tensor(3.0, dtype=torch.float64)):
        rate, after = plateau.update(value, state)
        held = memory((rate, state, after, [torch.as_tensor(value)]))
        assert len(set(held)) == len(held)
        state = after


@TABLE
def test_states_made_under_vmap_are_contiguous(case: Case) -> None:
    params = tree.stack([start(), start(), start()])
    opt = case.make(0.05)
    state = fnn.vmap(opt.init)(params)
    for path, leaf in tree.items(state):
        assert leaf.shape[0] == 3, path
        assert leaf.is_contiguous(), path


@TABLE
@EAGER_AND_TRACED
def test_a_state_of_other_shapes_is_refused_before_any_kernel(case: Case, traced: bool) -> None:
    opt, params = case.make(0.05), start()
    if not any(leaf.dim() for leaf in tree.leaves(opt.init(params))):
        pytest.skip("no slots")
    call = lambda state: update(opt, params, state, params)[0]
    if traced:
        call = lambda state, call=call: fnn.vmap(lambda _: call(state))(torch.zeros(2))
    for wrong in ((3, 2), (2, 3, 1), (1, 3), (200, 300)):
        other = opt.init(params | {"w": torch.zeros(wrong, dtype=torch.float64)})
        if tree.spec(other) == tree.spec(opt.init(params)):
            continue
        with pytest.raises(ValueError, match=r"\['w'\] has shape|differ at \['w'\]|numbers, but the params have"):
            call(other)
    more = opt.init(params | {"extra": torch.zeros(2, dtype=torch.float64)})
    with pytest.raises(
        ValueError, match=r"differ at \['extra'\]|numbers, but the params have|has no value|has the label"
    ):
        call(more)
    with pytest.raises(ValueError, match=r"opt_state|got a state that is|State"):
        call({"something": torch.zeros(2)})


def reordered(given: Any) -> Any:
    """The same tree with all dicts filled from behind."""
    if isinstance(given, dict):
        return {name: reordered(part) for name, part in reversed(given.items())}
    if isinstance(given, tuple):
        parts = [reordered(part) for part in given]
        return type(given)(*parts) if hasattr(given, "_fields") else tuple(parts)
    return given


@TABLE
def test_the_order_of_dicts_in_a_state_does_not_matter(case: Case) -> None:
    opt, params = case.make(0.05), start()
    state = opt.init(params)
    for _ in range(2):
        grads = fnn.grad(parabola)(params)
        updates, after = update(opt, grads, state, params)
        other, other_after = update(opt, reordered(grads), reordered(state), params)
        assert list(other) == list(params)
        assert tree.max_difference(updates, other) == 0
        assert tree.max_difference(after, other_after) == 0
        params, state = optim.apply_updates(params, updates), after


def test_a_state_of_other_slots_is_refused_by_name() -> None:
    params = start()
    with pytest.raises(ValueError, match=r"slots \['mean', 'square'\].*slots \['momentum_buffer'\]"):
        optim.momentum().update(params, optim.scale_by_adam().init(params), params)
    with pytest.raises(ValueError, match=r"mean\['w'\] has shape \(3, 2\), but params\['w'\] has \(2, 3\)"):
        optim.adam().update(params, optim.adam().init(params | {"w": params["w"].T}), params)
    with pytest.raises(ValueError, match=r"row.*'w'"):
        optim.adafactor().update(params, optim.adafactor().init(params | {"w": params["w"].T}), params)


@EAGER_AND_TRACED
@pytest.mark.parametrize(
    "opt", [optim.sgd(0.1), optim.adam(), optim.chain(optim.clip_by_global_norm(1.0), optim.lion())]
)
def test_other_structures_are_refused(opt: fnn.Optimizer, traced: bool) -> None:
    params: dict = {"a": [torch.ones(2), torch.ones(2)], "b": torch.ones(3)}
    state = opt.init(params)
    call = lambda grads: opt.update(grads, state, params)
    if traced:
        call = lambda grads, call=call: fnn.vmap(lambda _: call(grads))(torch.zeros(2))
    with pytest.raises(ValueError, match=r"grads differ at \['c'\]: params has nothing"):
        call(params | {"c": torch.ones(1)})
    with pytest.raises(ValueError, match=r"grads differ at \['a'\]: params has a list of length 2, grads has a tuple"):
        call(params | {"a": tuple(params["a"])})
    with pytest.raises(TypeError, match=r"grads\['b'\] is 1\.0, not a tensor"):
        call(params | {"b": 1.0})
    with pytest.raises(ValueError, match=r"updates\['b'\] has shape \(1,\), but params\['b'\] has \(3,\)"):
        optim.apply_updates(params, params | {"b": torch.ones(1)})


# 16 bits


@TABLE
@EAGER_AND_TRACED
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_gives_what_float32_gives_rounded(case: Case, dtype: torch.dtype, traced: bool) -> None:
    params = tree.cast({"w": 3 * start()["w"], "x": start()["x"], "z": start()["z"]}, dtype)
    grads = tree.map(lambda p: (100 * p.float().sin()).to(dtype), params)
    opt = case.make(0.05)
    call = lambda *given: update(opt, *given)[0]
    wide = [tree.cast(x, torch.float32) for x in (grads, params)]
    expected = call(wide[0], opt.init(wide[1]), wide[1])
    if traced:
        call = lambda *given, call=call: tree.map(lambda x: x[0], fnn.vmap(lambda _: call(*given))(torch.zeros(2)))
    got = call(grads, opt.init(params), params)
    error = 2 ** (-10 if dtype is torch.float16 else -7)
    for one, other in zip(tree.leaves(got), tree.leaves(expected), strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(one.float(), other, rtol=error, atol=error * float(other.abs().max()))


def test_norms_of_many_16_bit_numbers() -> None:
    grads = {"w": torch.full((1000,), 15.0, dtype=torch.float16), "v": torch.ones(5, dtype=torch.float16)}
    clipped, _ = optim.clip_by_global_norm(1.0).update(grads, optim.clip_by_global_norm(1.0).init(grads))
    assert float(tree.global_norm(clipped)) == pytest.approx(1.0, rel=1e-3)
    for opt in (optim.lamb(0.1), optim.lars(0.1), optim.clip_by_block(0.5), optim.adaptive_gradient_clip(0.1)):
        params = tree.cast(grads, torch.bfloat16)
        big = tree.map(lambda p: 300 * p.half(), params)
        ours, _ = opt.update(big, opt.init(params), params)
        wide = tree.cast(params, torch.float32)
        theirs, _ = opt.update(tree.cast(big, torch.float32), opt.init(wide), wide)
        for one, other in zip(tree.leaves(ours), tree.leaves(theirs), strict=True):
            torch.testing.assert_close(one.float(), other, rtol=1e-2, atol=0)


def test_accumulated_16_bit_gradients_do_not_lose_digits() -> None:
    params = {"w": torch.zeros(3, dtype=torch.bfloat16)}
    opt = optim.accumulate(optim.sgd(1.0), 1000)
    state = opt.init(params)
    for _ in range(1000):
        updates, state = opt.update({"w": torch.ones(3, dtype=torch.bfloat16)}, state, params)
    assert updates["w"].tolist() == [-1.0] * 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_a_product_over_many_steps_keeps_its_digits(dtype: torch.dtype) -> None:
    opt = optim.scale_by_nadam(0.95, momentum_decay=0.02)
    params = {"w": torch.ones(2, 3, dtype=dtype), "z": torch.tensor(1.0, dtype=dtype)}
    state = opt.init(params)
    for _ in range(40):
        _, state = opt.update(params, state, params)
    expected = math.prod(0.95 * (1 - 0.5 * 0.96 ** (t * 0.02)) for t in range(1, 41))
    for product in tree.leaves(state.slots["mu_product"]):
        assert float(product) == pytest.approx(expected, rel=1e-4)


def test_averages_of_16_bit_params_move() -> None:
    opt = optim.ema_params(optim.sgd(1.0), 0.999)
    params = {"w": torch.zeros(2, dtype=torch.bfloat16)}
    state = opt.init(params)
    expected = 0.0
    for i in range(200):
        grads = {"w": torch.full((2,), -1.0 if i == 1 else 0.0, dtype=torch.bfloat16)}
        updates, state = opt.update(grads, state, params)
        params = optim.apply_updates(params, updates)
        expected = 0.999 * expected + 0.001 * float(params["w"][0]) if i else float(params["w"][0])
    assert float(state.average["w"][0]) == pytest.approx(expected, rel=1e-4)


def test_a_16_bit_state_is_computed_with_in_float32() -> None:
    params = {"w": torch.tensor([1.0, -0.3])}
    kept, exact = optim.with_state_dtype(optim.adam(0.1), torch.bfloat16), optim.adam(0.1)
    state, full = kept.init(params), exact.init(params)
    for i in range(5):
        grads = {"w": torch.tensor([0.1 + i, 1e-3])}
        wide = tree.map(lambda x: x.float() if x.dtype == torch.bfloat16 else x, state)
        expected, full = exact.update(grads, wide, params)
        updates, state = kept.update(grads, state, params)
        assert updates["w"].dtype == torch.float32
        assert torch.equal(updates["w"], expected["w"])  # not rounded to 16 bits on the way
        assert torch.equal(state[0].slots["square"]["w"], full[0].slots["square"]["w"].bfloat16())


# complex numbers


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("SGD", {"momentum": 0.9, "weight_decay": 0.1}), ("Adam", {"amsgrad": True}), ("AdamW", {}),
        ("NAdam", {}), ("RAdam", {}), ("Adamax", {}), ("Adagrad", {}), ("Adadelta", {"lr": 1.0}),
        ("RMSprop", {"centered": True, "momentum": 0.5}), ("Rprop", {}), ("ASGD", {}),
    ],
)  # fmt: skip
@EAGER_AND_TRACED
def test_complex_params_equal_torch(name: str, given: dict, traced: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(shape, dtype=torch.complex128, generator=generator)
    params = {"w": draw(3, 2), "z": draw(), "r": torch.randn(4, dtype=torch.float64, generator=generator)}
    loss = lambda p: (p["w"].abs() ** 4).sum() + (p["z"] * p["w"].sum() - 1).abs() ** 2 + (p["r"] ** 2).sum()
    weights = {path: leaf.clone().requires_grad_() for path, leaf in params.items()}
    rate = given.get("lr", 0.01)
    theirs = getattr(torch.optim, name)(list(weights.values()), **({"lr": rate} | given), foreach=False)
    settings = {key: value for key, value in given.items() if key != "lr"}
    opt = getattr(optim, name.lower())(rate, **settings)
    state = opt.init(params)

    def ours(params: Any, state: Any) -> tuple:
        updates, state = opt.update(torch.func.grad(loss)(params), state, params)
        return optim.apply_updates(params, updates), state

    if traced:
        ours = lambda p, s, f=ours: tree.map(lambda x: x[0], fnn.vmap(lambda _: f(p, s))(torch.zeros(1)))
    for _ in range(8):
        theirs.zero_grad()
        loss(weights).backward()
        theirs.step()
        params, state = ours(params, state)
    for path, leaf in params.items():
        torch.testing.assert_close(leaf, weights[path].detach(), rtol=1e-8, atol=1e-8)


PAIRS = [
    "optimistic", "optimistic adam", "polyak", "madgrad", "dog", "prodigy", "dadapt adamw", "novograd", "ademamix",
]  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_complex_params_are_pairs_of_real_ones(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    pairs = {"w": torch.randn(3, 2, 2, dtype=torch.float64, generator=generator), "z": torch.ones(2).double()}
    params = tree.map(torch.view_as_complex, pairs)
    opt = CASES[name].make(0.1)
    state, other_state = opt.init(params), opt.init(pairs)
    for _ in range(5):
        value = sum((leaf.abs() ** 4).sum() for leaf in tree.leaves(params))
        grads = tree.map(lambda p: 4 * p.abs() ** 2 * p, params)
        updates, state = opt.update(grads, state, params, value=value)
        params = optim.apply_updates(params, updates)
        grads = tree.map(lambda p: 4 * (p**2).sum(-1, keepdim=True) * p, pairs)
        updates, other_state = opt.update(grads, other_state, pairs, value=value)
        pairs = optim.apply_updates(pairs, updates)
    assert tree.allclose(tree.map(torch.view_as_real, params), pairs, rtol=1e-12, atol=1e-12)


def test_norms_of_complex_numbers_are_real() -> None:
    grads = {"w": torch.tensor([3 + 4j, 0]), "v": torch.tensor([12.0])}
    opt = optim.clip_by_global_norm(1.0)
    clipped, _ = opt.update(grads, opt.init(grads))
    torch.testing.assert_close(clipped["w"], grads["w"] / 13)
    torch.testing.assert_close(clipped["v"], grads["v"] / 13)
    for make in (
        optim.clip(1.0),
        optim.clip_by_block(1.0),
        optim.centralize(),
        optim.adaptive_gradient_clip(),
        optim.adafactor(),
        optim.sm3(),
    ):
        with pytest.raises(TypeError, match=r"is for real numbers, but params\['w'\] has dtype torch.complex64"):
            make.update(grads, make.init(grads), grads)
    with pytest.raises(TypeError, match=r"grads\['v'\] has dtype torch.complex64, but params\['v'\] has torch.float32"):
        optim.sgd().update(grads | {"v": grads["v"] * 1j}, optim.sgd().init(grads), grads)


# not a number


@EAGER_AND_TRACED
def test_one_nan_makes_all_of_a_clipped_gradient_nan(traced: bool) -> None:
    grads = {"a": torch.tensor([1.0, math.nan]), "b": torch.ones(2)}
    opt = optim.clip_by_global_norm(1.0)
    call = lambda _: opt.update(grads, opt.init(grads))[0]
    clipped = fnn.vmap(call)(torch.zeros(2)) if traced else call(0)
    assert all(bool(leaf.isnan().all()) for leaf in tree.leaves(clipped))
    weights = [leaf.clone().requires_grad_() for leaf in grads.values()]
    for weight, leaf in zip(weights, grads.values(), strict=True):
        weight.grad = leaf.clone()
    torch.nn.utils.clip_grad_norm_(weights, 1.0)
    assert all(bool(weight.grad.isnan().all()) for weight in weights)


@pytest.mark.parametrize(
    "make", [optim.clip, optim.clip_by_global_norm, optim.clip_by_block, optim.adaptive_gradient_clip]
)
def test_a_limit_below_zero_turns_no_sign(make: Callable) -> None:
    with pytest.raises(ValueError, match="must not be negative, got -1"):
        make(-1.0)
    opt = make(torch.tensor(-1.0))
    params = {"w": torch.tensor([3.0, -4.0])}
    updates, _ = opt.update(params, opt.init(params), params)
    assert bool((updates["w"] * params["w"] >= 0).all())


# numbers and choices of every kind


SCHEDULES: dict[str, Callable] = {
    "math": lambda step: 0.1 * (1 + math.cos(step / 10)),
    "if": lambda step: 0.1 if step < 2 else 0.01,
    "int": lambda step: 1,
    "NumPy": lambda step: np.float32(0.1) / (1 + np.float64(step)),
    "float32": lambda step: torch.tensor(0.5) / (1 + step),
    "int tensor": lambda step: torch.tensor(2),
    "bool": lambda step: step > 1,
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_may_return_any_number(name: str) -> None:
    opt, params = optim.sgd(SCHEDULES[name]), {"w": torch.ones(2, dtype=torch.float64)}
    state = opt.init(params)
    spec = tree.spec(state)
    for i in range(4):
        updates, state = opt.update(params, state, params)
        expected = -float(SCHEDULES[name](torch.tensor(float(i), dtype=torch.float64)))
        assert updates["w"].tolist() == pytest.approx([expected] * 2, rel=1e-7)
        assert tree.spec(state) == spec
    with pytest.raises(TypeError, match="learning_rate must be a number or a 0-d tensor, got 'fast'"):
        optim.sgd(lambda step: "fast").init(params)
    with pytest.raises(ValueError, match=r"shape \(2,\)"):
        optim.sgd(lambda step: torch.ones(2)).init(params)


@EAGER_AND_TRACED
def test_rates_and_decays_may_be_trees(traced: bool) -> None:
    params = {"body": {"w": torch.ones(2), "b": torch.ones(3)}, "head": [torch.ones(2), torch.ones(())]}
    rates = {"body": 0.1, "head": [lambda step: 1.0 + step, torch.tensor(0.5)]}
    opt = optim.sgd(rates, weight_decay={"body": {"w": 1.0, "b": 0.0}, "head": 0.0})
    state = opt.init(params)
    call = lambda state, _: opt.update(params, state, params)
    if traced:
        call = lambda s, _, f=call: tree.map(lambda x: x[0], fnn.vmap(lambda x: f(s, x))(torch.zeros(1)))
    for i in range(2):
        updates, state = call(state, 0)
        assert [float(u.flatten()[0]) for u in tree.leaves(updates)] == pytest.approx([-0.1, -0.2, -1.0 - i, -0.5])
    values = {name: float(x) for name, x in optim.get_hyperparams(state).items()}
    assert values == {
        "weight_decay.body.w": 1.0, "weight_decay.body.b": 0.0, "weight_decay.head": 0.0,
        "learning_rate.body": pytest.approx(0.1), "learning_rate.head.0": 2.0, "learning_rate.head.1": 0.5,
    }  # fmt: skip
    state = optim.set_hyperparams(state, **{"learning_rate.body": 10.0})
    assert call(state, 0)[0]["body"]["b"].tolist() == [-10.0] * 3
    with pytest.raises(ValueError, match=r"learning_rate has no value for the leaf \['head'\]"):
        optim.adam({"body": 0.1}).init(params)
    with pytest.raises(ValueError, match=r"limit\['tail'\] is a value for no leaf of the tree"):
        optim.clip({"body": 0.1, "head": 1.0, "tail": 1.0}).init(params)
    with pytest.raises(ValueError, match=r"learning_rate.body must not be negative, got -0.1"):
        optim.adam({"body": -0.1, "head": 1.0})
    with pytest.raises(TypeError, match=r"max_norm must be a number.*the same for all leaves"):
        optim.clip_by_global_norm({"body": 0.1, "head": 1.0})
    with pytest.raises(TypeError, match=r"learning_rate must be a number.* got '0.1'"):
        optim.sgd("0.1")


def test_freeze_and_mask_take_trees_of_bools() -> None:
    params = {"body": {"w": torch.ones(2), "b": torch.ones(3)}, "head": torch.ones(2)}
    zero = lambda updates: [not bool(u.any()) for u in tree.leaves(updates)]
    for choice in (
        {"body": True, "head": False},
        {"body": {"w": True, "b": True}, "head": False},
        lambda p: "body" in p,
    ):
        opt = optim.freeze(optim.adam(0.1), choice)
        assert zero(opt.update(params, opt.init(params), params)[0]) == [True, True, False]
        opt = optim.mask(optim.adam(0.1), choice, rest="zero")
        assert zero(opt.update(params, opt.init(params), params)[0]) == [False, False, True]
    opt = optim.multi_transform({"a": optim.sgd(1.0), 3: optim.sgd(3.0)}, {"body": {"w": "a", "b": 3}, "head": 3})
    assert [float(u[0]) for u in tree.leaves(opt.update(params, opt.init(params), params)[0])] == [-3.0, -1.0, -3.0]
    for nothing in (lambda path: path == "boby", {"body": False, "head": False}, False):
        with pytest.raises(ValueError, match=r"freeze: no leaf is chosen; the paths of the params are \['body.b'"):
            optim.freeze(optim.adam(0.1), nothing).init(params)
    with pytest.raises(
        TypeError, match=r"freeze must be a tree of True and False, but for the leaf \['head'\] it is 'no'"
    ):
        optim.freeze(optim.adam(0.1), {"body": True, "head": "no"}).init(params)
    with pytest.raises(ValueError, match=r"freeze has no value for the leaf \['head'\]"):
        optim.freeze(optim.adam(0.1), {"body": True}).init(params)


def test_optimizers_that_take_the_loss_may_be_for_a_part() -> None:
    params = start()
    for inner in (optim.sam(optim.sgd(0.1), 0.1), optim.lbfgs(max_iter=3), optim.sophia(0.1)):
        opt = optim.freeze(inner, lambda path: path == "x")
        updates, _ = update(opt, fnn.grad(parabola)(params), opt.init(params), params)
        rest = {name: leaf for name, leaf in params.items() if name != "x"}
        alone, _ = update(inner, fnn.grad(parabola)(rest), inner.init(rest), rest)
        assert not bool(updates["x"].any())
        assert tree.allclose({name: updates[name] for name in rest}, alone, atol=1e-12)


MAXIMIZED = {
    "ademamix": optim.ademamix, "adopt": optim.adopt, "novograd": optim.novograd,
    "lion": optim.lion, "lamb": optim.lamb, "lars": optim.lars, "adabelief": optim.adabelief, "yogi": optim.yogi,
    "adan": optim.adan, "sophia": optim.sophia, "lbfgs": lambda **given: optim.lbfgs(max_iter=3, **given),
    "rprop": optim.rprop, "asgd": optim.asgd, "adafactor": optim.adafactor, "sgd": optim.sgd, "adam": optim.adam,
    "adamw": optim.adamw, "nadam": optim.nadam, "radam": optim.radam, "adamax": optim.adamax, "adagrad": optim.adagrad,
    "adadelta": optim.adadelta, "rmsprop": optim.rmsprop, "optimistic": optim.optimistic_gradient_descent,
    "optimistic adam": optim.optimistic_adam, "madgrad": optim.madgrad, "dog": optim.dog, "prodigy": optim.prodigy,
    "dadapt adamw": optim.dadapt_adamw, "sm3": optim.sm3,
}  # fmt: skip


@pytest.mark.parametrize("name", MAXIMIZED)
def test_maximizing_is_minimizing_the_negative(name: str) -> None:
    up, down = MAXIMIZED[name](maximize=True), MAXIMIZED[name]()
    params = other = start()
    state, other_state = up.init(params), down.init(params)
    curved = lambda p: tree.map(torch.ones_like, p)
    for _ in range(4):
        grads = fnn.grad(parabola)(params)
        updates, state = up.update(grads, state, params, loss=parabola, hessian_diagonal=curved(params))
        params = optim.apply_updates(params, updates)
        falling = lambda p: -parabola(p)
        updates, other_state = down.update(
            fnn.grad(falling)(other), other_state, other, loss=falling, hessian_diagonal=curved(other)
        )
        other = optim.apply_updates(other, updates)
    assert tree.allclose(params, other, atol=1e-12)
    assert float(parabola(params)) > float(parabola(start()))


def test_adaptive_sam_weighs_by_the_size_of_the_params() -> None:
    params = {"w": torch.tensor([2.0, -0.5, 1.0], dtype=torch.float64)}
    loss = lambda p: (p["w"] ** 3).sum() + p["w"].prod()
    grads = fnn.grad(loss)(params)
    g, p = grads["w"], params["w"]
    worst = {"w": p + 0.3 * p**2 * g / (p * g).norm()}
    opt = optim.sam(optim.sgd(1.0), 0.3, adaptive=True)
    updates, _ = opt.update(grads, opt.init(params), params, loss=loss)
    torch.testing.assert_close(updates["w"], -fnn.grad(loss)(worst)["w"])


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_schedule_free_weighs_by_the_largest_rate_so_far(power: float) -> None:
    rates = [0.1, 0.4, 0.2, 0.05, 0.3]
    loss = lambda p: (p["w"].sin() * torch.arange(1.0, 4.0, dtype=torch.float64)).sum()
    params = {"w": torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)}
    opt = optim.schedule_free_sgd(lambda step: rates[int(step)], 0.7, weight_power=power)
    state = opt.init(params)
    x = z = params["w"]
    total, largest = 0.0, 0.0
    for rate in rates:
        grads = fnn.grad(loss)(params)
        z = z - rate * grads["w"]
        largest = max(largest, rate)
        total += largest**power
        x = x + (z - x) * largest**power / total
        updates, state = opt.update(grads, state, params)
        params = optim.apply_updates(params, updates)
        torch.testing.assert_close(params["w"], z + 0.7 * (x - z), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(optim.schedule_free_params(state, params)["w"], x, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="one hyperparameter learning_rate for all leaves"):
        optim.schedule_free(optim.scale(0.1)).init(params)


def test_adaptive_clipping_where_the_params_are_zero() -> None:
    params = {"w": torch.zeros(2, 4), "b": torch.zeros(2)}
    opt = optim.adaptive_gradient_clip(0.1, eps=1e-3)
    updates, _ = opt.update(tree.map(lambda p: p + 3.0, params), opt.init(params), params)
    assert updates["w"].norm(dim=1).tolist() == pytest.approx([1e-4, 1e-4])
    assert float(updates["b"].norm()) == pytest.approx(1e-4)


def test_pairs_without_curvature_stay_out_of_the_memory_of_lbfgs() -> None:
    concave = lambda p: -(p["x"] ** 2).sum() / 2 + (p["x"] ** 4).sum() / 4
    params = {"x": torch.tensor([0.1, -0.2], dtype=torch.float64)}
    weights = params["x"].clone().requires_grad_()
    theirs = torch.optim.LBFGS([weights], lr=0.1, max_iter=6)
    opt = optim.lbfgs(0.1, max_iter=6)

    def closure() -> Tensor:
        theirs.zero_grad()
        value = concave({"x": weights})
        value.backward()
        return value

    state = opt.init(params)
    for i in range(4):
        theirs.step(closure)
        updates, state = opt.update(fnn.grad(concave)(params), state, params, loss=concave)
        params = optim.apply_updates(params, updates)
        torch.testing.assert_close(params["x"], weights.detach(), rtol=1e-9, atol=1e-9)
        if i == 0:
            assert int(state.filled) < 5


@pytest.mark.parametrize("multiply", [2, 3, 5])
def test_restarts_begin_at_their_peaks(multiply: int) -> None:
    schedule = optim.schedules.cosine_restarts(1.0, 5, multiply)
    begin, length = 0, 5
    for _ in range(8):
        for given in (begin, torch.tensor(begin), torch.tensor(float(begin), dtype=torch.float64)):
            assert float(schedule(given)) == pytest.approx(1.0, abs=1e-12)
        if begin:
            assert float(schedule(begin - 1)) < 0.1
        begin, length = begin + length, length * multiply


@TABLE
def test_a_step_runs_on_the_meta_device(case: Case) -> None:
    if case is CASES["lbfgs"]:
        pytest.skip("depends on values in eager code")
    params = tree.to(tree.cast(start(), torch.float32), "meta")
    opt = case.make(0.05)
    params, state = step(opt, params, opt.init(params))
    assert {leaf.device.type for leaf in tree.leaves((params, state))} == {"meta"}
