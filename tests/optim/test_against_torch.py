"""Every setting in torch's own table of optimizers, 20 steps in float64, against torch.optim's plain loop."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing._internal.common_optimizers import optim_db

import fnn
from fnn import optim

# that module of torch's tests freezes its global flags for the whole process, and Opacus sets one
torch.backends.flags_frozen.__globals__["__allow_nonbracketed_mutation_flag"] = True

NAMES = {"lr": "learning_rate"}
SHAPES = [(4, 3), (3, 4), (5,), (2, 3, 2, 2)]


def settings() -> list:
    found = []
    for info in optim_db:
        name = info.optim_cls.__name__
        if name == "SparseAdam":  # for sparse gradients, which torch.func does not make
            continue
        for i, given in enumerate(info.optim_inputs_func(device="cpu")):
            # 400 iterations each
            long = [pytest.mark.slow] if name == "LBFGS" and given.desc not in ("default", "strong_wolfe") else []
            found.append(pytest.param(info.optim_cls, given.kwargs, id=f"{name}-{i}-{given.desc}", marks=long))
    return found


def start(shapes: list) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {str(i): torch.randn(s, dtype=torch.float64, generator=generator) for i, s in enumerate(shapes)}


def loss(params: dict[str, Tensor]) -> Tensor:
    """Bounded on both sides, so that climbing ends too; neither convex nor separable within a leaf."""
    return sum((x.sin() ** 2).sum() + (x.flatten()[:-1].sin() * x.flatten()[1:].cos()).sum() for x in params.values())


def convex(params: dict[str, Tensor]) -> Tensor:
    """For L-BFGS without a line search, which elsewhere runs away and then follows every rounding."""
    return sum(
        (x**2).sum() / 2 + (x.flatten()[1:] - x.flatten()[:-1]).square().logaddexp(x.new_zeros(())).sum() / 3
        for x in params.values()
    )


def ours(name: str) -> Callable:
    if name == "Muon":
        return lambda learning_rate=1e-3, **rest: optim.muon(learning_rate, adam_learning_rate=1.0, **rest)
    return getattr(optim, name.lower())


@pytest.fixture(autouse=True)
def torch_keeps_its_scalars_in_float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)  # ASGD rounds its rate to the default dtype
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("compiled_path", [False, True], ids=["eager", "per leaf"])
@pytest.mark.parametrize(("cls", "given"), settings())
def test_twenty_steps_equal_torch(cls: type, given: dict[str, Any], compiled_path: bool, record_property) -> None:
    name = cls.__name__
    goal = loss
    if name == "LBFGS":
        goal = (lambda p: -convex(p)) if given.get("maximize") else convex
    params = start([s for s in SHAPES if len(s) == 2] if name == "Muon" else SHAPES)
    weights = {path: leaf.clone().requires_grad_() for path, leaf in params.items()}
    plain = {} if name in ("LBFGS", "Muon") else {"foreach": False}
    given = {key: value.double() if isinstance(value, Tensor) else value for key, value in given.items()}
    theirs = cls(list(weights.values()), **given, **plain)
    opt = ours(name)(**{NAMES.get(key, key): value for key, value in given.items()})
    state = opt.init(params)

    def step(params: Any, state: Any) -> tuple:
        updates, state = opt.update(fnn.grad(goal)(params), state, params, loss=goal)
        return optim.apply_updates(params, updates), state

    def closure() -> Tensor:
        theirs.zero_grad()
        value = goal(weights)
        value.backward()
        return value

    if compiled_path and "line_search_fn" in given:
        pytest.skip("the line search depends on values")
    for _ in range(2 if compiled_path and name == "LBFGS" else 20):
        theirs.step(closure)
        if compiled_path:  # a transform sends every optimizer along the formula for one leaf
            params, state = fnn.vmap(lambda p, s, _: step(p, s), (None, None, 0), out_dims=0)(
                params, state, torch.zeros(1)
            )
            params, state = fnn.tree.map(lambda x: x[0], (params, state))
        else:
            params, state = step(params, state)
    largest = max(
        float((weights[k] - params[k]).detach().abs().max() / weights[k].detach().abs().max()) for k in params
    )
    record_property("largest relative difference", largest)
    assert largest < 1e-10


# beyond the settings of torch's own table: where a rule changes with time, or with the size of the rate
LATER = {
    "Adafactor": [{"lr": 5.0}, {"lr": 1.0, "beta2_decay": -0.3, "weight_decay": 0.1}, {"lr": 0.3, "d": 1.5}],
    "ASGD": [{"lr": 0.1, "t0": 3.0}, {"lr": 0.1, "t0": 1.0, "lambd": 0.3, "alpha": 0.5}],
    "RAdam": [{"lr": 0.1, "betas": (0.9, 0.7)}, {"lr": 0.1, "betas": (0.5, 0.99)}],
    "Adagrad": [{"lr": 0.1, "lr_decay": 0.5, "initial_accumulator_value": 0.2}],
    "NAdam": [{"lr": 0.1, "momentum_decay": 0.5}],
    "Rprop": [{"lr": 0.1, "etas": (0.3, 2.0), "step_sizes": (0.05, 0.3)}],
}


@pytest.mark.parametrize(("name", "given"), [(name, given) for name, all_given in LATER.items() for given in all_given])
def test_thirty_steps_of_rules_that_change(name: str, given: dict[str, Any]) -> None:
    params = start(SHAPES)
    weights = [leaf.clone().requires_grad_() for leaf in params.values()]
    theirs = getattr(torch.optim, name)(weights, foreach=False, **given)
    opt = ours(name)(**{NAMES.get(key, key): value for key, value in given.items()})
    state = opt.init(params)
    for _ in range(30):
        updates, state = opt.update(fnn.grad(loss)(params), state, params)
        params = optim.apply_updates(params, updates)
        theirs.zero_grad()
        loss(dict(zip(params, weights, strict=True))).backward()
        theirs.step()
    for leaf, weight in zip(params.values(), weights, strict=True):
        torch.testing.assert_close(leaf, weight.detach(), rtol=1e-9, atol=1e-9)
    if name == "ASGD":
        for leaf, weight in zip(fnn.tree.leaves(state.slots["average"]), weights, strict=True):
            torch.testing.assert_close(leaf, theirs.state[weight]["ax"], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("line_search", [None, "strong_wolfe"])
@pytest.mark.parametrize("max_eval", [1, 2, 3, 5, None])
def test_lbfgs_stops_after_so_many_evaluations(max_eval: int | None, line_search: str | None) -> None:
    params = start(SHAPES[:2])
    weights = [leaf.clone().requires_grad_() for leaf in params.values()]
    given = {"max_iter": 4, "max_eval": max_eval, "line_search_fn": line_search}
    theirs = torch.optim.LBFGS(weights, lr=0.5, **given)

    def closure() -> Tensor:
        theirs.zero_grad()
        value = convex(dict(zip(params, weights, strict=True)))
        value.backward()
        return value

    opt = optim.lbfgs(0.5, **given)
    state = opt.init(params)
    for _ in range(3):
        theirs.step(closure)
        updates, state = opt.update(fnn.grad(convex)(params), state, params, loss=convex)
        params = optim.apply_updates(params, updates)
    for leaf, weight in zip(params.values(), weights, strict=True):
        torch.testing.assert_close(leaf, weight.detach(), rtol=1e-8, atol=1e-9)
