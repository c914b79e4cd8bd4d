"""Per-sample gradients, curvature, BatchNorm and ensembles over several processes, against one process."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import fnn
from tests.distributed import jobs
from tests.distributed.launcher import Group


@pytest.fixture(scope="module")
def group() -> Iterator[Group]:
    group = Group(2)
    yield group
    group.close()


def assert_close(found: Any, expected: Any, tolerance: float = 1e-12) -> None:
    for (path, leaf), other in zip(fnn.tree.items(found), fnn.tree.leaves(expected), strict=True):
        torch.testing.assert_close(leaf, other, rtol=0, atol=tolerance, msg=lambda text, path=path: f"{path}: {text}")


@pytest.mark.parametrize("backend", ["eager", "replay"])
def test_batch_norm_over_all_processes(group: Group, backend: str) -> None:
    for found in group.run(jobs.batch_norm_gradient, backend):
        assert_close(found, jobs.batch_norm_gradient("eager"))


def test_batch_norm_over_all_processes_refuses_vmap(group: Group) -> None:
    assert "leave out sync_batch_norm" in group(jobs.batch_norm_under_vmap)


@pytest.mark.parametrize("backend", ["eager", "replay"])
def test_private_gradients_have_the_noise_of_one_process(group: Group, backend: str) -> None:
    for found in group.run(jobs.private_gradient, backend):
        assert_close(found, jobs.private_gradient("eager"))


def test_curvature_over_all_processes(group: Group) -> None:
    for found in group.run(jobs.curvature):
        assert_close(found, jobs.curvature(), 1e-9)


@pytest.mark.parametrize("backend", ["eager", "replay"])
def test_members_of_an_ensemble_are_spread_over_processes(group: Group, backend: str) -> None:
    for found in group.run(jobs.ensemble, backend):
        assert_close(found, jobs.ensemble("eager"))


def test_metrics_of_all_processes(group: Group) -> None:
    for found in group.run(jobs.metrics):
        assert found["right"] == 5
        assert found["loss"] == 3.5
        assert found["batches"] == 7
        assert found["half"].dtype == torch.bfloat16
        assert found["half"] == 28
        assert found["complex"] == 28 - 28j
        assert found["rows"].dtype == torch.int16
        assert found["rows"].flatten().tolist() == list(range(8))
        assert found["flags"].tolist() == [False] * 4 + [True] * 4


def test_accumulation_sends_one_message(group: Group) -> None:
    grads, messages = group(jobs.accumulated_gradient)
    assert messages == 1
    assert_close(grads, jobs.accumulated_gradient()[0])


def test_second_derivatives_of_batch_norm_over_all_processes(group: Group) -> None:
    assert_close(group(jobs.second_derivative_of_batch_norm), jobs.second_derivative_of_batch_norm(), 1e-10)


def test_a_scan_may_communicate(group: Group) -> None:
    assert_close(group(jobs.scanned_steps), jobs.scanned_steps())
