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
