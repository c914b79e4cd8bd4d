"""Each row of the sheet of the Jacobian book runs, with the shapes and at the cost that the page states."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

import fnn

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def sheet() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DOCS))
        yield importlib.import_module("cost_sheet")


def test_each_call_takes_and_gives_the_shapes_of_its_row(sheet: ModuleType) -> None:
    names = sheet.names_of_the_page()
    rows = sheet.rows()
    assert len(rows) > 25
    for row in rows:
        for argument in filter(None, row.takes.split("; ")):
            name, words = argument.split(": ")
            assert sheet.expected(words, names) == [sheet.shapes_of(names[name])], row
        result = eval(row.call, names)
        things = result if isinstance(result, tuple) else (result,)
        assert sheet.expected(row.gives, names) == [sheet.shapes_of(thing) for thing in things], row


@pytest.mark.parametrize("side", ["params", "inputs"])
def test_each_call_costs_what_its_row_states(sheet: ModuleType, side: str) -> None:
    names = sheet.names_of_the_page(*[5] * 9, samples=3)
    names = names if side == "params" else sheet.by_inputs(names)
    stated = [(row.call, row.by_params if side == "params" else row.by_inputs) for row in sheet.rows()]
    assert sum(bool(cost) for _, cost in stated) > 20
    for call, cost in stated:
        if cost:
            assert sheet.counted(call, names) == pytest.approx(sheet.claimed(cost, names), rel=0.15), call


@pytest.mark.parametrize("size", [4, 16, 32])
def test_a_derivative_of_a_root_costs_what_the_pages_state(sheet: ModuleType, size: int) -> None:
    net = fnn.models.mlp(*[size] * 5, activation=fnn.layers.tanh)
    params = fnn.tree.scale(0.3, fnn.tree.cast(net.init(fnn.random.key(0)), torch.float64))
    equation = lambda x, params: x - net.apply(params, x)
    x = fnn.jacobian.root(equation, torch.zeros(size, dtype=torch.float64), params)
    at_root = lambda params: fnn.jacobian.root(equation, x, params, solve=lambda g, x: x)
    calls = lambda call: sheet.operations(call) / sheet.operations(lambda: equation(x, params))
    _, pullback = fnn.vjp(at_root, params)
    assert calls(lambda: pullback(x)) == pytest.approx(size + 4, abs=0.5)
    assert calls(lambda: at_root(params)) == pytest.approx(size + 5, abs=0.5)
    pushed = calls(lambda: fnn.jvp(at_root, (params,), (params,)))
    assert pushed - calls(lambda: at_root(params)) == pytest.approx(size + 7, abs=0.5)


def test_the_shapes_of_a_cell(sheet: ModuleType) -> None:
    names = {"x": {"a": torch.ones(2, 3), "b": torch.ones(4)}, "f": lambda x: torch.ones(5), "k": 7}
    assert sheet.expected("f(x), (k, x)", names) == [{"": (5,)}, {"a": (7, 2, 3), "b": (7, 4)}]
    assert sheet.expected("(f(x), x)", names) == [{"a": (5, 2, 3), "b": (5, 4)}]
    assert sheet.expected("(), (k,)", names) == [{"": ()}, {"": (7,)}]
    assert sheet.claimed("2 + 2 k", names) == 16
