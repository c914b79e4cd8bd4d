"""The line search of L-BFGS against torch's, on functions that lead through each of its branches."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fnn import grad, optim

LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "parabola": lambda x: (x - 1).square().sum(),
    "narrow valley": lambda x: (torch.tensor([1.0, 100.0]).double() * x.square()).sum(),
    "two wells": lambda x: (x.square() - 1).square().sum(),
    "waves": lambda x: (3 * x).cos().sum() + 0.05 * x.square().sum(),
    "flat far away": lambda x: x.square().log1p().sum(),
    "steep wall": lambda x: (-x).sum() + (4 * (x - 2)).exp().sum(),
    "edge": lambda x: torch.sqrt(1e-4 + (x - 0.7).square()).sum(),
    "long slope": lambda x: torch.nn.functional.softplus(-x).sum() + 1e-3 * x.square().sum(),
}
STARTS = [0.1, -0.9, 2.5, 5.0]


def ours(loss: Callable, at: float, rate: float, steps: int) -> tuple[Tensor, int]:
    x, calls = torch.tensor([at, 0.3 * at + 0.05]).double(), 0

    def counted(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return loss(x)

    opt = optim.lbfgs(rate, max_iter=steps, line_search_fn="strong_wolfe")
    updates, _ = opt.update(grad(loss)(x), opt.init(x), x, loss=counted)
    return optim.apply_updates(x, updates), calls


def theirs(loss: Callable, at: float, rate: float, steps: int) -> tuple[Tensor, int]:
    x, calls = torch.tensor([at, 0.3 * at + 0.05]).double().requires_grad_(), 0
    opt = torch.optim.LBFGS([x], rate, max_iter=steps, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        opt.zero_grad()
        value = loss(x)
        value.backward()
        return value

    opt.step(closure)
    return x.detach(), calls


@pytest.mark.parametrize("name", LOSSES)
def test_points_and_evaluations_are_those_of_torch(name: str) -> None:
    for at in STARTS:
        for rate in (0.01, 1.0, 30.0):
            for steps in (1, 4):
                found, expected = (search(LOSSES[name], at, rate, steps) for search in (ours, theirs))
                assert steps > 1 or found[1] == expected[1], (at, rate)
                torch.testing.assert_close(found[0], expected[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", LOSSES)
def test_a_step_satisfies_the_strong_wolfe_conditions(name: str) -> None:
    loss = LOSSES[name]
    for at in STARTS:
        x = torch.tensor([at, 0.3 * at + 0.05]).double()
        slope = grad(loss)(x)
        for rate in (0.01, 1.0, 30.0):
            step = optim.lbfgs(rate, max_iter=1, max_eval=100, line_search_fn="strong_wolfe")
            updates, _ = step.update(slope, step.init(x), x, loss=loss)
            before, after = float(slope @ updates), float(grad(loss)(x + updates) @ updates)
            assert before < 0
            assert float(loss(x + updates)) <= float(loss(x)) + 1e-4 * before + 1e-12
            assert abs(after) <= 0.9 * abs(before) or math.isclose(after, before, abs_tol=1e-9)
