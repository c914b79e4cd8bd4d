"""Bad input, processes that differ, and processes that end: each is a sentence, and none waits for ever."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import fnn
from tests.distributed import jobs
from tests.distributed.launcher import Group


@pytest.fixture(scope="module")
def group() -> Iterator[Group]:
    group = Group(2)
    yield group
    group.close()


def test_trees_that_differ_between_processes(group: Group) -> None:
    for found in group.run(jobs.other_trees):
        assert re.match(
            r"ValueError: the tree that reduce takes differs between processes: process 1 has result\['grads'\]\['w'\] "
            r"of shape \(4,\), float32 \(mean\) where process 0 has result\['grads'\]\['w'\] of shape \(3,\)",
            found,
        )


def test_code_that_differs_between_processes(group: Group) -> None:
    for found in group.run(jobs.other_code):
        assert found.startswith("ValueError: the graph of step differs between processes: process 1 has aten.relu")


def test_numbers_that_differ_between_processes(group: Group) -> None:
    numbers = [("0.2", "0.1"), ("3", "2"), ("0.0", "1.0"), ("2.0", "1.0")]
    for texts in group.run(jobs.other_numbers):
        for text, (other, first) in zip(texts, numbers, strict=True):
            assert re.match(
                rf"ValueError: the graph of .* differs between processes: process 1 has .* with {other} where process "
                rf"0 has .* with {first}\. All processes must run the same code, with the same numbers in it",
                text,
            )


def test_processes_may_take_rows_and_keys_of_their_own(group: Group) -> None:
    for found in group.run(jobs.own_places):  # the means of two rows, weighted with 1 and 2
        assert found.tolist() == [((0 + 3) / 2 + 2 * (6 + 9) / 2) / 2 + 1.5 * k for k in range(3)]


def test_values_that_differ_between_processes(group: Group) -> None:
    what = "ValueError: the tree of check_equal differs between processes: process 1 has tree"
    for equal, rate, dtype, number in group.run(jobs.other_values):
        assert equal == "no error"
        assert rate.startswith(what + "[1]['rate'] of shape (), torch.float32, with the digest")
        assert dtype.startswith(what + "['w'] of shape (2,), torch.int32")
        assert number.startswith("TypeError: check_equal: tree['w'] is 1.0, not a tensor")


REFUSALS = [
    "ValueError: a batch of 5 rows cannot be divided among 2 processes; write a batch size that is a multiple of 2",
    "ValueError: a batch of 3 rows cannot be divided among 2 processes",
    "ValueError: a batch of 3 rows cannot be divided among 2 processes",
    *["ValueError: reduce is called inside grad, vmap or another transform"] * 5,
    "ValueError: reduce: result['count'] is a torch.int64 tensor, and the mean of integers need not be one",
    "ValueError: reduce: result['right'] is a bool tensor, whose sum is a count",
    "ValueError: reduce: result is a 0-d tensor and has no rows to concatenate",
    "ValueError: reduce: a reduction is one of 'mean', 'sum', 'concat', 'state', got 'average'",
    "TypeError: reduce: result['x'] is 1.0, not a tensor",
    "ValueError: shard: axis 1 of tree['w'] has length 3, which 2 processes do not divide",
    "ValueError: shard: tree['w'] has shape (4, 3) and no axis 2",
    "ValueError: shard: tree['w'] is complex",
    "ValueError: gather: parts['w'] has shape (4, 3), expected (2, 3), the part of process 0",
    "ValueError: fully_sharded: parts['w'] has shape (4, 3), expected (2, 3), the part of process 0",
]


def test_refusals_are_sentences(group: Group) -> None:
    found = group(jobs.refusals)
    for text, expected in zip(found, REFUSALS, strict=True):
        assert text.startswith(expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("job", "arguments"),
    [
        (jobs.one_stays_away, ["replay"]),
        (jobs.one_stays_away, ["eager"]),
        (jobs.one_does_not_trace, []),
        (jobs.one_dies, []),
    ],
)
def test_a_process_that_does_not_come_is_an_error(job: Callable, arguments: list) -> None:
    group = Group(2, timeout=10.0)
    start = time.monotonic()
    group.send(job, *arguments)
    found = group.result(0)
    assert found.startswith("RuntimeError: process 0 of 2 has waited in vain for the others")
    assert time.monotonic() - start < 180
    group.close()


def test_an_incomplete_environment_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ValueError, match="has RANK but not WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT; start"):
        fnn.distributed.init("cpu")
    with pytest.raises(ValueError, match="timeout is a positive number of seconds, got 0"):
        fnn.distributed.init("cpu", timeout=0)


SCRIPT = """
import torch, fnn
rank, world_size, device = fnn.distributed.init("cpu", timeout=60)
x = torch.ones(3 + rank)
fnn.distributed.reduce(x)
"""


@pytest.mark.slow
def test_a_run_of_torchrun_ends_with_an_error(tmp_path: Path) -> None:
    done = torchrun(SCRIPT, tmp_path)
    assert done.returncode != 0
    assert "the tree that reduce takes differs between processes" in done.stderr


TRAINING = """
import atexit, os, torch, fnn

@atexit.register  # before init, so that it is called after what init registers
def show():
    names = [open(f"/proc/self/task/{thread}/comm").read() for thread in os.listdir("/proc/self/task")]
    os.write(1, f"at the end: {[name for name in names if 'gloo' in name]}\\n".encode())

rank, world_size, device = fnn.distributed.init("cpu", timeout=60)
model, optimizer = fnn.models.mlp(4, 3), fnn.optim.sgd(0.1)
grads_of = fnn.distributed.data_parallel(fnn.value_and_grad(lambda p, x: (model.apply(p, x) ** 2).mean()))

@fnn.jit(donate_argnums=(0, 1))
def step(params, opt_state, batch):
    value, grads = grads_of(params, batch)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return fnn.optim.apply_updates(params, updates), opt_state, value

params = model.init(fnn.random.key(0))
batches = lambda epoch: [torch.ones(2, 4)] * 3
for epoch in fnn.training.fit(step, (params, optimizer.init(params)), batches, epochs=2, progress=False):
    fnn.distributed.check_equal(epoch.state)
print("trained")
"""


@pytest.mark.slow
def test_no_thread_of_the_connection_outlives_it(tmp_path: Path) -> None:
    """A thread that lets go of a tensor while Python ends would abort the process."""
    done = torchrun(TRAINING, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("trained") == done.stdout.count("at the end: []") == 2


def torchrun(text: str, folder: Path) -> subprocess.CompletedProcess:
    script = folder / "script.py"
    script.write_text(text)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)
