"""scan, fori and epoch: the meaning of the Python loop, eager and compiled."""

import pytest
import torch

import fnn


def train(unroll):
    def loss(params, batch):
        x, y = batch
        return ((x @ params["w"] + params["b"] - y) ** 2).mean()

    def step(params, batch):
        value, grads = fnn.value_and_grad(loss)(params, batch)
        return fnn.tree.map(lambda p, g: p - 0.1 * g, params, grads), value

    return step, lambda params, xs: fnn.scan(step, params, xs, unroll=unroll)


PARAMS = {"w": torch.tensor([1.0, -1.0]), "b": torch.tensor(0.5)}
XS = (fnn.random.normal(fnn.random.key(0), (7, 4, 2)), fnn.random.normal(fnn.random.key(1), (7, 4)))


@pytest.mark.parametrize("backend", [None, "eager", "aot_eager"])
@pytest.mark.parametrize("unroll", [1, 3, 7, 20])
def test_scan_with_gradients_in_the_step_is_the_loop(unroll, backend):
    step, run = train(unroll)
    params, values = PARAMS, []
    for i in range(7):
        params, value = step(params, (XS[0][i], XS[1][i]))
        values.append(value)
    got, losses = (run if backend is None else fnn.jit(run, backend=backend))(PARAMS, XS)
    assert fnn.tree.allclose(got, params, rtol=1e-5, atol=1e-6)
    assert torch.allclose(losses, torch.stack(values), rtol=1e-5, atol=1e-6)


def test_inductor_scan_with_donation():
    _, run = train(1)
    expected, losses = run(PARAMS, XS)
    params = fnn.tree.map(torch.clone, PARAMS)
    pointer = params["w"].data_ptr()
    got, values = fnn.jit(run, donate_argnums=0)(params, XS)
    assert fnn.tree.allclose(got, expected, rtol=1e-5, atol=1e-6)
    assert torch.allclose(values, losses, rtol=1e-5, atol=1e-6)
    assert got["w"].data_ptr() == pointer


def test_fori():
    def power(n):
        return lambda x: fnn.fori_loop(0, n, lambda i, y: y * x + i, torch.ones(()))

    x = torch.tensor(2.0)
    value = 1.0
    for i in range(5):
        value = value * 2.0 + i
    assert power(5)(x).item() == fnn.jit(power(5), backend="eager")(x).item() == value
    assert power(0)(x).item() == 1.0


def test_epoch_visits_each_sample_once_in_an_order_from_the_key():
    def run(data, key):
        return fnn.compile.epoch(lambda n, batch: (n + 1, batch), torch.tensor(0), data, key, 3)

    compiled = fnn.jit(run, backend="eager")
    orders = []
    for seed in range(2):
        count, seen = run(torch.arange(10), fnn.random.key(seed))
        assert count.item() == 3
        assert seen.shape == (3, 3)
        assert len(set(seen.flatten().tolist())) == 9
        assert torch.equal(compiled(torch.arange(10), fnn.random.key(seed))[1], seen)
        orders.append(seen)
    assert not torch.equal(*orders)
    assert fnn.compile_count(compiled) == 1


def test_errors():
    with pytest.raises(ValueError, match="one leading length"):
        fnn.scan(lambda c, x: (c, x), torch.ones(()), (torch.ones(2), torch.ones(3)))
    with pytest.raises(ValueError, match=r"carry\['n'\] is \(\) torch.float32 and becomes \(\) torch.float64"):
        fnn.scan(lambda c, x: ({"n": c["n"].double()}, x), {"n": torch.ones(())}, torch.ones(2))
    with pytest.raises(ValueError, match="unroll >= 1"):
        fnn.scan(lambda c, x: (c, x), torch.ones(()), torch.ones(2), unroll=0)
    with pytest.raises(ValueError, match="between 1 and the 4 samples"):
        fnn.compile.epoch(lambda c, b: (c, b), torch.ones(()), torch.ones(4), fnn.random.key(0), 5)


@pytest.mark.parametrize("optimizer", [fnn.optim.sgd(0.1, momentum=0.9), fnn.optim.adam(0.1)], ids=["sgd", "adam"])
def test_compiled_epoch_carries_the_state_of_an_optimizer(optimizer):
    loss = lambda params, batch: ((batch[0] @ params["w"] + params["b"] - batch[1]) ** 2).mean()

    def step(carry, batch):
        params, state = carry
        value, grads = fnn.value_and_grad(loss)(params, batch)
        updates, state = optimizer.update(grads, state, params)
        return (fnn.optim.apply_updates(params, updates), state), value

    data = (XS[0].reshape(28, 2), XS[1].reshape(28))
    run = lambda carry, data, key: fnn.compile.epoch(step, carry, data, key, 4)
    start, key = (PARAMS, optimizer.init(PARAMS)), fnn.random.key(2)
    carry = start
    order = fnn.random.permutation(key, 28)
    for i in range(7):
        carry, _ = step(carry, fnn.tree.map(lambda x, i=i: x[order[4 * i : 4 * i + 4]], data))
    got, losses = fnn.jit(run, backend="eager")(start, data, key)
    assert type(got[1]) is type(start[1])
    assert fnn.tree.allclose(got, carry, rtol=1e-5, atol=1e-6)
    assert losses.shape == (7,)
