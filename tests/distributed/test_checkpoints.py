"""Checkpoints that several processes write, read by other numbers of processes."""

import re
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import fnn
from tests.distributed import checkpoint_jobs as jobs
from tests.distributed.launcher import Group


@pytest.fixture(scope="module")
def groups() -> Iterator[dict[int, Group]]:
    groups = {count: Group(count) for count in (2, 4)}
    yield groups
    for group in groups.values():
        group.close()


def test_any_number_of_processes_goes_on_from_a_checkpoint(groups: dict[int, Group], tmp_path: Path) -> None:
    expected = jobs.train(None, range(4), None)
    runs = {1: jobs.train, **{count: lambda *args, run=run: run(jobs.train, *args) for count, run in groups.items()}}
    for writers in (1, 4):
        path = str(tmp_path / f"of-{writers}")
        runs[writers](None, range(2), path)
        for readers in (1, 2, 4):
            params = runs[readers](path, range(2, 4), None)
            for name, leaf in params.items():
                torch.testing.assert_close(leaf, expected[name], rtol=0, atol=1e-6)


def test_a_checkpoint_is_one_tree_and_one_file(groups: dict[int, Group], tmp_path: Path) -> None:
    params = groups[4](jobs.train, None, range(1), str(tmp_path / "parts"))
    whole = fnn.distributed.load(tmp_path / "parts")
    state = jobs.sharded_state(fnn.optim.adam(0.01))[0]
    assert fnn.tree.keystrs(whole) == fnn.tree.keystrs(fnn.tree.from_state_dict(fnn.tree.to_state_dict(state)))
    fnn.checkpoint.save(tmp_path / "whole.safetensors", whole)
    again = fnn.checkpoint.load(tmp_path / "whole.safetensors", like=state)
    assert fnn.tree.allclose(again[0], fnn.tree.from_state_dict(params, again[0]), rtol=0, atol=0)
    stored = [fnn.tree.nbytes(load_file(file)) for file in (tmp_path / "parts").glob("*.safetensors")]
    assert len(stored) == 4
    assert sum(stored) == fnn.tree.nbytes(whole)  # each number is stored once


SENTENCES = {
    "exists": "FileExistsError: save: there is something at",
    "missing": "FileNotFoundError: no checkpoint at",
    "other tree": "ValueError: .* does not fit the tree: missing .*'c'.*; not in the tree .*'b'.*; 'w' is",
    "leaf": "TypeError: save: 'w' is 1.0, not a tensor",
    "no folder": "(NotADirectoryError|FileExistsError|OSError): ",
    "altered": "ValueError: .*(is not the checkpoint that was saved: shard-.* was altered)",
    "removed": "ValueError: .*(is not the checkpoint that was saved: shard-.* was altered, damaged or removed)",
    "left behind": "good$",
}


def test_fit_compares_the_states_of_the_processes(groups: dict[int, Group], tmp_path: Path) -> None:
    for found in groups[2].run(jobs.fit_from_another_seed, str(tmp_path / "run")):
        assert re.match(r"ValueError: the state of fit, .* differs between processes: process 1 has state\[0\]", found)
    assert not list((tmp_path / "run").iterdir())  # nothing was trained
    assert jobs.fit_from_another_seed(str(tmp_path / "one")) == "no error"


@pytest.mark.parametrize(
    ("count", "job", "number", "at", "step"),
    [
        (1, jobs.fit_with_a_signal, signal.SIGTERM, 5, 5), (2, jobs.fit_with_a_signal, signal.SIGTERM, 5, 6),
        (2, jobs.fit_with_a_signal, signal.SIGINT, 6, 6), (4, jobs.fit_with_a_signal, signal.SIGINT, 4, 5),
        (2, jobs.fit_with_a_signal_on_nccl, signal.SIGINT, 5, 6),
    ],
)  # fmt: skip
def test_a_signal_to_one_process_stops_all_after_the_same_step(
    groups: dict[int, Group], tmp_path: Path, count: int, job: Callable, number: int, at: int, step: int
) -> None:
    run = (lambda *args: [job(*args)]) if count == 1 else partial(groups[count].run, job)
    expected = jobs.fit_with_a_signal(str(tmp_path / "unbroken"), None)[1]
    assert [end for end, _ in run(str(tmp_path / "run"), number, at)] == ["interrupted"] * count
    assert [int(file.stem[-9:]) for file in (tmp_path / "run").glob("checkpoint-*")] == [step]
    for end, params in run(str(tmp_path / "run"), None):  # goes on
        assert end == "end"
        assert params == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_all_processes_get_a_sentence(groups: dict[int, Group], tmp_path: Path, count: int) -> None:
    results = [jobs.errors(str(tmp_path))] if count == 1 else groups[count].run(jobs.errors, str(tmp_path))
    for found in results:
        assert not isinstance(found, Exception), found
        for name, sentence in SENTENCES.items():
            assert re.match(sentence, found[name]), (name, found[name])
