"""The tables of layers, activations, losses and optimizers through Inductor's code, and their gradients by replay.

Inductor takes about a second for each C++ kernel, so many cases are compiled as one function.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import fnn
from fnn import tree
from tests.contracts import cases
from tests.contracts.test_transforms import Setting
from tests.optim import cases_optim

TOGETHER = 10  # cases in one compiled function


def groups(names: Any) -> dict[str, list[str]]:
    """Every tenth name begins a group, which is called by its first name."""
    names = list(names)
    return {names[i]: names[i : i + TOGETHER] for i in range(0, len(names), TOGETHER)}


def forward_and_gradient(setting: Setting) -> Callable:
    def both(params: Any, x: torch.Tensor) -> tuple:
        return setting.function(params, x), fnn.grad(lambda p: setting.scalar(p, x).sum())(params)

    return both


TOLERANCES = {torch.float64: 1e-10, torch.float32: 2e-5}
LOOSE = {"muon": 1e-2}  # computes products in bfloat16, and generated code keeps more digits between them


def assert_close(ours: Any, theirs: Any) -> None:
    """Compare two dicts of trees, with the tolerance of each leaf's dtype and name."""
    for name in theirs:
        paths = tree.structure(theirs[name]).keystrs
        for path, a, b in zip(paths, tree.leaves(ours[name]), tree.leaves(theirs[name]), strict=True):
            tolerance = LOOSE.get(name, TOLERANCES.get(b.dtype, 0.0))
            scale = max(1.0, float(b.abs().max())) if b.numel() else 1.0
            torch.testing.assert_close(
                a, b, rtol=tolerance, atol=tolerance * scale, msg=lambda text, at=f"{name}{path}": f"{at}: {text}"
            )


TABLE = groups(name for name in cases.CASES if not name.startswith("models."))


@pytest.mark.slow
@pytest.mark.parametrize("group", TABLE)
def test_generated_code_equals_eager(group: str) -> None:
    """Layers in float32, whose products take routes of their own on the CPU, functions and losses in float64."""
    settings = {name: Setting(name) for name in TABLE[group]}
    functions = {name: forward_and_gradient(setting) for name, setting in settings.items()}
    args = {
        name: tree.cast((setting.params, setting.x), torch.float32 if name in cases.LAYERS else torch.float64)
        for name, setting in settings.items()
    }

    def everything(args: Any) -> dict:
        return {name: function(*args[name]) for name, function in functions.items()}

    compiled = fnn.jit(everything, backend="inductor")
    assert_close(compiled(args), everything(args))
    assert fnn.compile_count(compiled) == 1


@pytest.mark.slow
@pytest.mark.parametrize("group", groups(cases_optim.CASES))
def test_generated_code_of_optimizers_equals_eager(group: str) -> None:
    optimizers = {name: cases_optim.CASES[name].make(0.1) for name in groups(cases_optim.CASES)[group]}

    def everything(params: Any, states: Any) -> tuple:
        stepped = {
            name: cases_optim.step(optimizer, params[name], states[name]) for name, optimizer in optimizers.items()
        }
        return {name: p for name, (p, _) in stepped.items()}, {name: s for name, (_, s) in stepped.items()}

    compiled = fnn.jit(everything, backend="inductor", donate_argnums=(0, 1))
    runs = []
    for function in (everything, compiled):
        params = {name: cases_optim.start() for name in optimizers}
        states = {name: optimizer.init(params[name]) for name, optimizer in optimizers.items()}
        for _ in range(3):
            params, states = function(params, states)
        runs.append((params, states))
    assert_close(runs[1][0], runs[0][0])
    assert_close(runs[1][1], runs[0][1])
    assert fnn.compile_count(compiled) == 1


# a loop that is one node of the graph sums its gradients in another order than the loop of eager code
LOOPS = ("rnn", "lstm", "gru", "map_over_time", "repeat")


@pytest.mark.parametrize("name", cases.CASES)
def test_a_replayed_gradient_has_the_bits_of_eager_code(name: str) -> None:
    setting = Setting(name)
    function = forward_and_gradient(setting)
    expected = function(setting.params, setting.x)
    ours = fnn.jit(function)(setting.params, setting.x)
    if name.split(",")[0] in LOOPS:
        assert tree.allclose(ours, expected, rtol=1e-13, atol=1e-13)
    else:
        assert all(map(torch.equal, tree.leaves(ours), tree.leaves(expected)))
