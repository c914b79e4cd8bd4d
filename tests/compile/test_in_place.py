"""Replay writes over values that nothing needs any more; results, arguments and constants are what eager code has."""

import random

import pytest
import torch

import fnn

CLOSED = torch.tensor([[0.5, -1.0], [2.0, 0.25]])
OPERATIONS = [
    lambda a, b: a + b,
    lambda a, b: a * b,
    lambda a, b: a - 2 * b,
    lambda a, b: a / 3,
    lambda a, b: a.relu(),
    lambda a, b: a.tanh(),
    lambda a, b: a.T,
    lambda a, b: a.view(-1).view(a.shape) if a.is_contiguous() else a.reshape(2, 2),
    lambda a, b: a[:1].expand(2, 2),
    lambda a, b: torch.cat([a[1:], b[:1]]),
    lambda a, b: a.unbind()[0] + b.unbind()[1][:, None],
    lambda a, b: a.clone().mul_(b),
    lambda a, b: torch._foreach_mul([a, b], torch.tensor(1.5))[1] + a,
    lambda a, b: sum(torch._foreach_add([a, a], [b, a])),
    lambda a, b: torch._foreach_neg([a.T, b])[0],
    lambda a, b: a * CLOSED,
    lambda a, b: torch.tensor([[1.0, 2.0], [3.0, 4.0]]) * a,
    lambda a, b: (a > b).float() + a,
    lambda a, b: a.double().mul(b).float(),
    lambda a, b: a @ b,
]


def program(seed):
    """A function of two matrices that applies random operations to random earlier values, and returns some of them."""
    draw = random.Random(seed)
    steps = [(draw.choice(OPERATIONS), draw.random(), draw.random()) for _ in range(12)]
    returned = [draw.random() for _ in range(3)]

    def function(x, y):
        values = [x, y]
        for operation, i, j in steps:
            values.append(operation(*(values[-1 - int(k * min(4, len(values)))] for k in (i, j))))
        return [values[2 + int(k * 12)] for k in returned], values[-1]

    return function


@pytest.mark.parametrize("seed", range(60))
def test_random_programs_are_replayed_bit_for_bit(seed):
    function = program(seed)
    x, y = torch.tensor([[1.0, -0.5], [0.25, 2.0]]), torch.tensor([[-1.0, 3.0], [0.5, -0.75]])
    given = x.clone(), y.clone(), CLOSED.clone()
    jitted = fnn.jit(function)
    for _ in range(3):
        assert all(map(torch.equal, fnn.tree.leaves(jitted(x, y)), fnn.tree.leaves(function(x, y))))
    assert all(map(torch.equal, (x, y, CLOSED), given))
    donated = fnn.jit(lambda x, y: (function(x, y)[1] + x, function(x, y)[0][0] * y), donate_argnums=(0, 1))
    expected = function(x, y)[1] + x, function(x, y)[0][0] * y
    assert all(map(torch.equal, donated(x.clone(), y.clone()), expected))


def shared(use):
    """A function of a temporary that is used in this way for the last time."""
    return lambda x, y: use(x * y, y)


WRITES_THAT_WOULD_BE_WRONG = {
    "one temporary twice in a list": shared(lambda t, y: torch._foreach_mul([t, t], 2.0)),
    "a view of the other argument": shared(lambda t, y: t + t.T),
    "a result is a view of it": shared(lambda t, y: (t.T, t + 1)),
    "a result that is broadcast": shared(lambda t, y: t[:1].clone() * y),
    "elements that share memory": shared(lambda t, y: t[:1].clone().expand(2, 2) + y),
    "another dtype": shared(lambda t, y: t.long() / 3),
    "a later view": shared(lambda t, y: (lambda v: (t * 2, v + 1))(t.view(4))),
    "a constant": lambda x, y: CLOSED * 2 + x,
    "an argument": lambda x, y: (x * 2).T * 3 + y,
}


@pytest.mark.parametrize("name", WRITES_THAT_WOULD_BE_WRONG)
def test_memory_that_is_needed_is_not_written(name):
    function = WRITES_THAT_WOULD_BE_WRONG[name]
    x, y = torch.tensor([[1.0, -5.0], [2.5, 2.0]]), torch.tensor([[-1.0, 3.0], [0.5, -0.75]])
    jitted, closed = fnn.jit(function), CLOSED.clone()
    for _ in range(2):
        assert all(map(torch.equal, fnn.tree.leaves(jitted(x, y)), fnn.tree.leaves(function(x, y))))
    assert torch.equal(CLOSED, closed)


def test_an_update_is_written_over_the_gradient(monkeypatch):
    from fnn.compile import replay

    sources = []
    make = replay._Source.function
    monkeypatch.setattr(replay._Source, "function", lambda self: sources.append(self) or make(self))
    optimizer = fnn.optim.sgd(0.1)

    @fnn.jit(donate_argnums=(0, 1))
    def step(params, state, x):
        grads = fnn.grad(lambda p: (p["w"] @ x * p["v"]).square().sum())(params)
        updates, state = optimizer.update(grads, state, params)
        return fnn.optim.apply_updates(params, updates), state

    params = {"w": torch.ones(3, 3), "v": torch.ones(3)}
    step(params, optimizer.init(params), torch.ones(3))
    names = {getattr(value, "__name__", "") for value in sources[0].values.values()}
    assert {"_foreach_mul_", "_foreach_add_"} <= names
    assert "_foreach_mul" not in names


def test_a_number_is_not_written_over() -> None:
    function = lambda x: 10000.0 ** (x * 2.0)
    x = torch.tensor([0.0, 0.5, -1.0])
    torch.testing.assert_close(fnn.jit(function, backend="replay")(x), function(x))


CLOSED_OVER = torch.ones(2, 3)


@pytest.mark.parametrize(
    "function",
    [
        lambda: CLOSED_OVER[0].sin(),
        lambda: CLOSED_OVER.T.view(3, 2)[1:].exp(),
        lambda: torch.vmap(lambda p, b: p * b.sin(), (0, None))(CLOSED_OVER, CLOSED_OVER[0]),
        lambda: sum(x.neg() for x in CLOSED_OVER.unbind()),
        lambda: sum(x.neg() for x in CLOSED_OVER.split(1)),
    ],
)
def test_views_of_closed_over_tensors_are_not_written(function) -> None:
    before = CLOSED_OVER.clone()
    fnn.jit(function)()
    assert torch.equal(CLOSED_OVER, before)
