"""Steps of several processes, each on its part of a batch, against the same steps of one process."""

from collections.abc import Iterator

import pytest
import torch

from tests.distributed import jobs
from tests.distributed.launcher import Group


@pytest.fixture(scope="module", params=[2, 4])
def group(request: pytest.FixtureRequest) -> Iterator[Group]:
    group = Group(request.param)
    yield group
    group.close()


def close(first: dict, second: dict, tolerance: float = 1e-6) -> bool:
    return all(torch.allclose(first[name], second[name], rtol=0, atol=tolerance) for name in first)


@pytest.mark.parametrize("backend", ["eager", "replay"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("network", ["mlp", "lenet", "transformer"])
def test_several_processes_train_as_one(group: Group, network: str, optimizer: str, backend: str) -> None:
    steps = 50 if network == "mlp" else 5
    losses, params = group(jobs.train_data_parallel, network, optimizer, backend, steps)
    expected_losses, expected = jobs.train_data_parallel(network, optimizer, "eager", steps)
    assert losses == pytest.approx(expected_losses, abs=1e-6)
    assert close(params, expected)
