"""A train step of every layer, activation and loss: donated, undonated and eager give the same bits."""

from typing import Any

import pytest
import torch
from torch import Tensor

import fnn
from fnn import tree
from tests.contracts import cases
from tests.contracts.test_generated_code import LOOPS
from tests.contracts.test_transforms import Setting

QUICK = {"linear", "conv2d", "batch_norm, training", "multi_head_attention", "cross_entropy, weight, classes"}
OPTIMIZER = fnn.optim.sgd(0.05, momentum=0.9)


def update(value_and_grads: tuple, params: Any, state: Any) -> tuple:
    value, grads = value_and_grads
    updates, state = OPTIMIZER.update(grads, state, params)
    return fnn.optim.apply_updates(params, updates), state, value


def equal(first: Any, second: Any) -> bool:
    return all(tree.leaves(tree.map(torch.equal, first, second)))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in cases.CASES]
)
def test_two_donated_steps_equal_undonated_and_eager_ones(name: str) -> None:
    s = Setting(name)

    def step(params: Any, state: Any, x: Tensor) -> tuple:
        return update(fnn.value_and_grad(lambda p: s.scalar(p, x).sum())(params), params, state)

    pure = fnn.jit(step)
    donated = fnn.jit(step, donate_argnums=(0, 1))
    runs = []
    for function in (step, pure, donated):
        params, state = tree.map(torch.clone, s.params), OPTIMIZER.init(s.params)
        for _ in range(2):
            given = params
            params, state, value = function(params, state, s.x)
        assert all(leaf.is_meta == (function is donated) for leaf in tree.leaves(given))
        runs.append((params, state, value))
    assert not equal(runs[0][0], s.params)
    if name.split(",")[0] in LOOPS:
        assert tree.allclose(runs[1], runs[0], rtol=1e-13, atol=1e-13)
    else:
        assert equal(runs[1], runs[0])
    assert equal(runs[2], runs[1])
    # the gradients of bilinear have other strides than its params, so the second momentum has another layout
    assert fnn.compile_count(pure) == (2 if name.startswith("bilinear") else 1)
    assert fnn.compile_count(donated) == 1


def test_running_statistics_may_be_donated_with_the_params() -> None:
    model = fnn.layers.sequential(
        fnn.layers.linear(3, 4), fnn.layers.batch_norm(4), fnn.layers.relu, fnn.layers.linear(4, 2)
    )
    start, x = model.init(fnn.random.key(0)), fnn.random.normal(fnn.random.key(1), (6, 3))

    def step(params: Any, statistics: Any, state: Any) -> tuple:
        def loss(params: Any) -> tuple:
            y, after = model.apply(params, statistics, x, train=True)
            return (y**2).mean(), after

        (value, after), grads = fnn.value_and_grad(loss, has_aux=True)(params)
        params, state, value = update((value, grads), params, state)
        return params, after, state, value

    donated = fnn.jit(step, donate_argnums=(0, 1, 2))
    runs = []
    for function in (step, donated):
        (params, statistics), state = tree.map(torch.clone, start), OPTIMIZER.init(start[0])
        for _ in range(2):
            params, statistics, state, value = function(params, statistics, state)
        runs.append((params, statistics, state, value))
    assert not equal(runs[0][1], start[1])
    assert equal(runs[1], runs[0])
