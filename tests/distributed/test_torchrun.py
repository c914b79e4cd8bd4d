"""Recipes that torchrun starts in several processes: the numbers of one process, faults, and restarts."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import fnn

ROOT = Path(__file__).parents[2]
RECIPES = {
    "mlp": "--epochs 2",
    "lenet": "--epochs 1 --batch-size 240",
    "resnet": "--epochs 1 --batch-size 1438 --size 8",
    "transformer": "--steps 3 --every 3 --length 8 --width 8 --heads 2 --layers 1 --samples 1",
}
# Adam's first updates of weights whose gradients are rounding errors have the size of the learning rate
COMPARED = {"resnet": "running_", "transformer": "ln_f"}


def start(count: int, *words: str, restarts: int = 0, output: Any = subprocess.PIPE) -> subprocess.Popen:
    """A recipe in ``count`` processes under torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    command += ["--max-restarts", str(restarts), "--monitor-interval", "0.1", "-m", *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def run(count: int, *words: str) -> str:
    process = start(count, *words)
    text, _ = process.communicate(timeout=400)
    assert process.returncode == 0, text
    return text


def workers_of(process: subprocess.Popen) -> list[int]:
    """The processes that torchrun has started."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(number) for number in children.read_text().split()] if children.exists() else []


def metrics_of(output: Path) -> list[dict]:
    metrics = output / "metrics.jsonl"
    return [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []


def params_of(output: Path) -> dict:
    return fnn.tree.to_state_dict(fnn.checkpoint.load(output / "params.safetensors"))


@pytest.mark.parametrize(
    "name", ["mlp", *(pytest.param(name, marks=pytest.mark.slow) for name in RECIPES if name != "mlp")]
)
def test_a_recipe_gives_the_numbers_of_one_process(name: str, tmp_path: Path) -> None:
    words = [f"recipes.{name}", *RECIPES[name].split(), "--device", "cpu", "--output"]
    subprocess.run([sys.executable, "-m", *words, str(tmp_path / "one")], cwd=ROOT, check=True, capture_output=True)
    text = run(2, *words, str(tmp_path / "two"))
    assert text.count("wrote") == 1  # the first process alone prints
    ours, theirs = params_of(tmp_path / "one"), params_of(tmp_path / "two")
    names = [path for path in ours if COMPARED.get(name, "") in path]
    assert names
    for path in names:
        torch.testing.assert_close(ours[path], theirs[path], rtol=1e-5, atol=2e-5, msg=path)
    losses = [[row["train_loss"] for row in metrics_of(tmp_path / part)] for part in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.slow
def test_mistakes_end_all_processes_with_a_sentence(tmp_path: Path) -> None:
    mistakes = {
        "--batch-size 63: give a multiple of 2, the number of processes": "recipes.mlp --batch-size 63",
        "this recipe runs in one process": "recipes.lr_sweep",
        "--resume: no checkpoint at": "recipes.mlp --resume",
    }
    for sentence, words in mistakes.items():
        process = start(2, *words.split(), "--device", "cpu", "--output", str(tmp_path / "run"))
        text, _ = process.communicate(timeout=400)
        assert process.returncode != 0
        assert sentence in text


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_goes_on_from_the_step_at_which_all_stopped(number: int, tmp_path: Path) -> None:
    words = ["recipes.mlp", "--device", "cpu", "--epochs"]
    process = start(2, *words, "10000", "--output", str(tmp_path / "broken"), output=(tmp_path / "text").open("w"))
    deadline = time.monotonic() + 120
    while len(metrics_of(tmp_path / "broken")) < 3:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.1)
    process.send_signal(number)
    assert process.wait(timeout=60) != 0
    (step,) = (int(file.stem[-9:]) for file in (tmp_path / "broken").glob("checkpoint-*"))
    text = (tmp_path / "text").read_text()
    assert re.findall("stopped.*", text) == [f"stopped after step {step}; go on with --resume"]
    epochs = str(-(-step // 23) + 1)  # of 23 steps each
    run(2, *words, epochs, "--output", str(tmp_path / "broken"), "--resume")
    run(2, *words, epochs, "--output", str(tmp_path / "unbroken"))
    ours, theirs = params_of(tmp_path / "broken"), params_of(tmp_path / "unbroken")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes in /proc")
def test_a_run_goes_on_after_each_death_of_a_process(tmp_path: Path) -> None:
    """One process, chosen at random, is killed ten times at random moments; torchrun starts all of them again."""
    words = ["recipes.mlp", "--device", "cpu", "--epochs", "60", "--output"]
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    run(2, *words, str(unbroken))
    process = start(2, *words, str(broken), restarts=10, output=(tmp_path / "printed.txt").open("w"))
    chosen, killed = random.Random(0), 0
    while killed < 10 and process.poll() is None:
        before = len(metrics_of(broken))
        while len(metrics_of(broken)) == before and process.poll() is None:  # until it has trained since the last start
            time.sleep(0.05)
        time.sleep(chosen.uniform(0, 0.5))
        workers = workers_of(process)
        if len(workers) == 2 and process.poll() is None:
            os.kill(chosen.choice(workers), signal.SIGKILL)
            killed += 1
    assert process.wait(timeout=600) == 0, (tmp_path / "printed.txt").read_text()
    assert killed == 10
    ours, theirs = params_of(broken), params_of(unbroken)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    losses = [[row["train_loss"] for row in metrics_of(path)] for path in (broken, unbroken)]
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_restarts_leave_an_older_run_alone(tmp_path: Path) -> None:
    words = ["recipes.mlp", "--device", "cpu", "--epochs", "1", "--output", str(tmp_path / "run")]
    run(2, *words)
    before = {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()}
    process = start(2, *words, restarts=1, output=(tmp_path / "text").open("w"))
    assert process.wait(timeout=300) != 0
    assert (tmp_path / "text").read_text().count("an earlier run has left") == 2
    assert {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()} == before


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes in /proc")
@pytest.mark.parametrize("more", [("--overwrite",), ()])
def test_a_recipe_without_checkpoints_starts_anew_or_ends_with_an_error(more: tuple, tmp_path: Path) -> None:
    flags = RECIPES["transformer"].replace("--steps 3 --every 3", "--steps 200 --every 50").split()
    words = ["recipes.transformer", *flags, "--device", "cpu", "--output"]
    process = start(2, *words, str(tmp_path / "run"), *more, restarts=1, output=(tmp_path / "text").open("w"))
    while not (tmp_path / "run" / "params.safetensors").exists():
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(workers_of(process)[1], signal.SIGKILL)
    status, text = process.wait(timeout=300), (tmp_path / "text").read_text()
    if not more:
        assert status != 0
        assert "an earlier run has left params.safetensors there; give --overwrite" in text
        return
    assert status == 0, text
    run(2, *words, str(tmp_path / "unbroken"))
    ours, theirs = params_of(tmp_path / "run"), params_of(tmp_path / "unbroken")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
