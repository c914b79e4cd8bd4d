"""Many donated train steps in a row are the undonated ones, bit for bit."""

from typing import Any

import pytest
import torch

import fnn
from fnn import layers, optim, tree

MODEL = layers.sequential(
    layers.linear(5, 8),
    layers.layer_norm(8),
    layers.silu,
    layers.dropout(0.1),
    layers.linear(8, 8),
    layers.linear(8, 3),
)
RATE = optim.schedules.cosine(1e-2, 1500)
OPTIMIZERS = {
    "adam": lambda: optim.adam(RATE),
    "sgd": lambda: optim.sgd(RATE, momentum=0.9),
    "clipped, averaged": lambda: optim.ema_params(optim.chain(optim.clip_by_global_norm(0.5), optim.adamw(RATE)), 0.99),
}


def steps_of(function: Any, start: Any, count: int) -> Any:
    params, state, key = tree.map(torch.clone, start)
    x, labels = fnn.random.normal(fnn.random.key(2), (64, 5)), fnn.random.randint(fnn.random.key(3), (64,), 0, 3)
    total = torch.zeros(())
    for i in range(count):
        rows = slice(i % 7, i % 7 + 16)
        params, state, key, value = function(params, state, key, (x[rows], labels[rows]))
        total += value
    return params, state, key, total


SLOW = [(name, backend) for backend in ("replay", "inductor") for name in OPTIMIZERS][1:]


@pytest.mark.parametrize(
    ("name", "backend"), [("adam", "replay"), *(pytest.param(*s, marks=pytest.mark.slow) for s in SLOW)]
)
def test_2000_donated_steps_are_the_undonated_ones(name: str, backend: str) -> None:
    optimizer = OPTIMIZERS[name]()

    def step(params: Any, state: Any, key: Any, batch: Any) -> tuple:
        key, used = fnn.random.split(key)

        def loss(params: Any) -> Any:
            return fnn.losses.cross_entropy(MODEL.apply(params, batch[0], key=used), batch[1])

        value, grads = fnn.value_and_grad(loss)(params)
        updates, state = optimizer.update(grads, state, params)
        return optim.apply_updates(params, updates), state, key, value

    params = MODEL.init(fnn.random.key(0))
    start = params, optimizer.init(params), fnn.random.key(1)
    pure, donated = (fnn.jit(step, donate_argnums=donate, backend=backend) for donate in ((), (0, 1, 2)))
    runs = [steps_of(function, start, 2000) for function in (pure, donated)]
    assert all(map(torch.equal, *map(tree.leaves, runs)))
    assert not tree.allclose(runs[0][0], params)
    assert fnn.compile_count(pure) == fnn.compile_count(donated) == 1
    if backend == "replay":
        eager, replayed = (steps_of(function, start, 20) for function in (step, donated))
        assert all(map(torch.equal, tree.leaves(eager), tree.leaves(replayed)))
