"""A donated step is done as a whole or not at all, whatever interrupts it; several threads may call one function."""

import subprocess
import sys
import threading

import pytest
import torch

import fnn

INTERRUPTED = """
import os, random, signal, sys, threading, time
import torch, fnn

signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background of a shell ignores SIGINT
torch.set_num_threads(1)
backend, hits_wanted, seed = sys.argv[1], *map(int, sys.argv[2:])
model = fnn.models.mlp(8, 16, 16, 4)
optimizer = fnn.optim.adam(1e-2)

def loss(params, batch):
    return fnn.losses.cross_entropy(model.apply(params, batch[0]), batch[1])

def step(params, state, batch):
    value, grads = fnn.value_and_grad(loss)(params, batch)
    updates, state = optimizer.update(grads, state, params)
    return fnn.optim.apply_updates(params, updates), state, value

batch = fnn.random.normal(fnn.random.key(1), (16, 8)), fnn.random.randint(fnn.random.key(2), (16,), 0, 4)
start = model.init(fnn.random.key(0))
start = start, optimizer.init(start)
pure, donated = fnn.jit(step, backend=backend), fnn.jit(step, backend=backend, donate_argnums=(0, 1))
history, state = [fnn.tree.leaves(start)], start
for _ in range(300):
    state = pure(*state, batch)[:2]
    history.append(fnn.tree.leaves(state))
donated(*fnn.tree.map(torch.clone, start), batch)
armed, hits = False, 0

def shoot():
    generator = random.Random(seed)
    while True:
        time.sleep(generator.random() * 0.01)
        if armed:
            os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=shoot, daemon=True).start()
while hits < hits_wanted:
    p, s = fnn.tree.map(torch.clone, start)
    steps = 0
    try:
        armed = True
        while steps < 290:
            p, s, _ = donated(p, s, batch)
            steps += 1
        armed = False
    except KeyboardInterrupt:
        armed = False
        hits += 1
    try:
        time.sleep(0.02)
    except KeyboardInterrupt:
        pass
    leaves = fnn.tree.leaves((p, s))
    assert not any(leaf.is_meta for leaf in leaves), "an emptied state"
    whole = [all(map(torch.equal, leaves, history[n])) for n in (steps, steps + 1)]
    assert any(whole), "neither the old state nor the new one"
print("interrupted", hits)
"""


SLOW = [pytest.param(backend, 500, marks=pytest.mark.slow) for backend in ("replay", "inductor")]


@pytest.mark.parametrize(("backend", "hits"), [("replay", 40), *SLOW])
def test_an_interrupt_leaves_a_whole_state(backend, hits):
    command = [sys.executable, "-c", INTERRUPTED, backend, str(hits), "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.stdout.strip() == f"interrupted {hits}", done.stdout + done.stderr[-2000:]


def test_an_exception_in_the_middle_leaves_the_old_state(monkeypatch):
    from fnn.compile import donation

    step = fnn.jit(lambda p: fnn.tree.map(lambda x: x + 1, p), donate_argnums=0)
    p = step({"a": torch.zeros(2), "b": torch.zeros(3)})

    class Fails:
        def unflatten(self, leaves):
            raise KeyboardInterrupt

    leaves = fnn.tree.leaves(p)
    handover = donation.Handover()
    with pytest.raises(KeyboardInterrupt):
        handover.exchange(leaves, leaves, [0, 1], [None, None], Fails())
    assert [leaf.tolist() for leaf in fnn.tree.leaves(p)] == [[1.0, 1.0], [1.0, 1.0, 1.0]]
    p = step(p)
    assert [leaf.tolist() for leaf in fnn.tree.leaves(p)] == [[2.0, 2.0], [2.0, 2.0, 2.0]]


def test_threads_may_call_one_function():
    jitted = fnn.jit(lambda p, x: {"w": p["w"] * x, "n": p["n"] + 1}, donate_argnums=0)
    wrong = []

    def work(k):
        p = {"w": torch.ones(3 + k % 2), "n": torch.tensor(0)}
        for _ in range(300):
            p = jitted(p, torch.tensor(1.0 + k / 1000))
        expected = torch.ones(3 + k % 2)
        for _ in range(300):
            expected = expected * torch.tensor(1.0 + k / 1000)
        if not (torch.equal(p["w"], expected) and p["n"] == 300):
            wrong.append(k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert fnn.compile_count(jitted) == 2
