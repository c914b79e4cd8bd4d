"""Recipes that torchrun starts in several processes: the numbers of one process, faults, and restarts."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import fnn

ROOT = Path(__file__).parents[2]
RECIPES = {
    "mlp": ["--epochs", "2"],
    "lenet": ["--epochs", "1", "--batch-size", "240"],
    "resnet": ["--epochs", "1", "--batch-size", "480", "--size", "8"],
    "transformer": ["--steps", "3", "--every", "3", "--length", "8", "--width", "8", "--heads", "2", "--layers", "1", "--samples", "1"],
}


def start(count: int, *words: str, restarts: int = 0) -> subprocess.Popen:
    """A recipe in ``count`` processes under torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    command += ["--max-restarts", str(restarts), "--monitor-interval", "0.1", "-m", *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def run(count: int, *words: str) -> str:
    process = start(count, *words)
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 0, text
    return text


def one(*words: str) -> str:
    return subprocess.run([sys.executable, "-m", *words], cwd=ROOT, check=True, capture_output=True, text=True).stdout


def largest_difference(first: Path, second: Path) -> float:
    ours, theirs = (
        fnn.tree.to_state_dict(fnn.checkpoint.load(path / "params.safetensors")) for path in (first, second)
    )
    assert ours.keys() == theirs.keys()
    return max(float((ours[name].double() - theirs[name].double()).abs().max()) for name in ours)


@pytest.mark.parametrize(
    "name", [name if name == "mlp" else pytest.param(name, marks=pytest.mark.slow) for name in RECIPES]
)
def test_a_recipe_gives_the_numbers_of_one_process(name: str, tmp_path: Path) -> None:
    words = [f"recipes.{name}", *RECIPES[name], "--device", "cpu", "--output"]
    one(*words, str(tmp_path / "one"))
    text = run(2, *words, str(tmp_path / "two"))
    assert text.count("wrote") == 1  # the first process alone prints
    # an element of Adam's update whose gradient is zero but for rounding is of the size of the learning rate
    assert largest_difference(tmp_path / "one", tmp_path / "two") < (1e-6 if name in ("mlp", "lenet") else 1e-3)
    if name != "transformer":
        rows = [
            [json.loads(line) for line in (tmp_path / part / "metrics.jsonl").read_text().splitlines()]
            for part in ("one", "two")
        ]
        for ours, theirs in zip(*rows, strict=True):
            assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-5)
            assert ours["test_loss"] == pytest.approx(theirs["test_loss"], rel=1e-4)


@pytest.mark.slow
def test_mistakes_end_all_processes_with_a_sentence(tmp_path: Path) -> None:
    mistakes = {
        "--batch-size 63: give a multiple of 2, the number of processes": ["recipes.mlp", "--batch-size", "63"],
        "this recipe runs in one process": ["recipes.lr_sweep"],
        "--resume: no checkpoint at": ["recipes.mlp", "--resume"],
    }
    for sentence, words in mistakes.items():
        process = start(2, *words, "--device", "cpu", "--output", str(tmp_path / "run"))
        text, _ = process.communicate(timeout=300)
        assert process.returncode != 0
        assert sentence in text


@pytest.mark.slow
def test_a_run_goes_on_after_each_death_of_a_process(tmp_path: Path) -> None:
    """One process, chosen at random, is killed ten times at random moments; torchrun starts all of them again."""
    words = ["recipes.mlp", "--device", "cpu", "--epochs", "60", "--output"]
    run(2, *words, str(tmp_path / "unbroken"))
    output = tmp_path / "broken"
    process = start(2, *words, str(output), restarts=10)
    chosen, killed = random.Random(0), 0
    while killed < 10 and process.poll() is None:
        before = rows_of(output)
        while rows_of(output) == before and process.poll() is None:  # it has started again and has trained
            time.sleep(0.05)
        time.sleep(chosen.uniform(0, 0.5))
        workers = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
        if len(workers) == 2 and process.poll() is None:
            os.kill(int(chosen.choice(workers)), signal.SIGKILL)
            killed += 1
    text, _ = process.communicate(timeout=600)
    assert process.returncode == 0, text
    assert killed == 10
    assert largest_difference(tmp_path / "unbroken", output) == 0
    numbers = [
        [json.loads(line)["train_loss"] for line in (p / "metrics.jsonl").open()]
        for p in (tmp_path / "unbroken", output)
    ]
    assert numbers[0] == numbers[1]


def rows_of(output: Path) -> int:
    metrics = output / "metrics.jsonl"
    return len(metrics.read_text().splitlines()) if metrics.exists() else 0
