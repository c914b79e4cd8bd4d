"""Steps of several processes, each on its part of a batch, against the same steps of one process."""

from collections.abc import Callable, Iterator

import pytest

from tests.distributed import jobs
from tests.distributed.launcher import Group

QUICK = [  # (network, optimizer, backend)
    ("mlp", "sgd", "eager"), ("mlp", "adam", "replay"), ("lenet", "sgd", "replay"), ("transformer", "adam", "replay"),
]  # fmt: skip
ALL = [
    (network, optimizer, backend)
    for network in ("mlp", "lenet", "transformer")
    for optimizer in ("sgd", "adam")
    for backend in ("eager", "replay")
]


@pytest.fixture(scope="module", params=[2, 4])
def group(request: pytest.FixtureRequest) -> Iterator[Group]:
    group = Group(request.param)
    yield group
    group.close()


def assert_as_one_process(group: Group, job: Callable, row: tuple[str, str, str], steps: int) -> tuple:
    losses, params, *more = group(job, *row, steps)
    expected_losses, expected = jobs.train_data_parallel(row[0], row[1], "eager", steps)
    assert losses == pytest.approx(expected_losses, abs=1e-6)
    assert max(float((params[name] - expected[name]).abs().max()) for name in expected) < 1e-6
    return tuple(more)


@pytest.mark.parametrize("row", QUICK, ids="-".join)
def test_several_processes_train_as_one(group: Group, row: tuple[str, str, str]) -> None:
    assert_as_one_process(group, jobs.train_data_parallel, row, 10 if row[0] == "mlp" else 3)


@pytest.mark.parametrize("row", QUICK, ids="-".join)
def test_fully_sharded_processes_train_as_one(group: Group, row: tuple[str, str, str]) -> None:
    (share,) = assert_as_one_process(group, jobs.train_fully_sharded, row, 10 if row[0] == "mlp" else 3)
    assert share < 1.2 / len(group.pipes)  # of the memory of params and optimizer state; 0.3 on four processes


@pytest.mark.slow
@pytest.mark.parametrize("job", [jobs.train_data_parallel, jobs.train_fully_sharded], ids=["parallel", "sharded"])
@pytest.mark.parametrize("row", [*ALL, ("mlp", "adam", "inductor"), ("lenet", "sgd", "inductor")], ids="-".join)
def test_fifty_steps(group: Group, row: tuple[str, str, str], job: Callable) -> None:
    assert_as_one_process(group, job, row, 50)


def test_layers_are_gathered_where_they_are_used(group: Group) -> None:
    if len(group.pipes) > 2:
        pytest.skip("the graph is the same")
    order, peak, together = group(jobs.order_of_a_sharded_step)
    layers = 4
    # gathered and used one after the other in the forward pass; in the backward pass gathered again, all but the last
    # layer, which is still there, and the first, whose weight no gradient needs, and scattered at once
    forward, backward = ["gather", "product"], ["product", "product", "scatter"]
    assert order == forward * layers + backward + ["gather", *backward] * (layers - 2) + ["product", "scatter"]
    assert peak < 0.75 * together
