"""Steps of several processes, each on its part of a batch, against the same steps of one process."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import fnn
from tests.distributed import jobs
from tests.distributed.launcher import Group

QUICK = [  # (processes, (network, optimizer, backend))
    (2, ("mlp", "sgd", "eager")), (4, ("mlp", "adam", "replay")), (2, ("lenet", "sgd", "replay")),
    (2, ("transformer", "adam", "replay")),
]  # fmt: skip
ALL = [
    (network, optimizer, backend)
    for network in ("mlp", "lenet", "transformer")
    for optimizer in ("sgd", "adam")
    for backend in ("eager", "replay")
]

INDUCTOR = [("mlp", "adam", "inductor"), ("lenet", "sgd", "inductor"), ("transformer", "adam", "inductor")]


@pytest.fixture(scope="module")
def groups() -> Iterator[Callable[[int], Group]]:
    made: dict[int, Group] = {}

    def group(count: int) -> Group:
        if count not in made:
            made[count] = Group(count)
        return made[count]

    yield group
    for each in made.values():
        each.close()


def assert_as_one_process(group: Group, job: Callable, row: tuple[str, str, str], steps: int) -> tuple:
    # Rounding errors grow: Adam divides them by gradients that are as small as they, and fifty steps of SGD in float32
    # end 1e-6 from those in float64, in one process as well.
    dtype = torch.float64 if row[1] == "adam" or steps >= 50 else torch.float32
    tolerance = 1e-10 if dtype == torch.float64 else 1e-6
    losses, params, *more = group(job, *row, steps, dtype)
    expected_losses, expected = jobs.train_data_parallel(row[0], row[1], "eager", steps, dtype)
    assert losses == pytest.approx(expected_losses, abs=tolerance)
    assert max(float((params[name] - expected[name]).abs().max()) for name in expected) < tolerance
    return tuple(more)


@pytest.mark.parametrize(("count", "row"), QUICK)
def test_several_processes_train_as_one(groups: Callable, count: int, row: tuple[str, str, str]) -> None:
    assert_as_one_process(groups(count), jobs.train_data_parallel, row, 10 if row[0] == "mlp" else 3)


@pytest.mark.parametrize(("count", "row"), QUICK)
def test_fully_sharded_processes_train_as_one(groups: Callable, count: int, row: tuple[str, str, str]) -> None:
    (share,) = assert_as_one_process(groups(count), jobs.train_fully_sharded, row, 10 if row[0] == "mlp" else 3)
    assert share < 1.2 / count  # of the memory of params and optimizer state; 0.3 on four processes


@pytest.mark.parametrize("backend", ["eager", "replay"])
def test_params_are_split_over_one_axis_of_a_mesh_and_copied_along_the_other(
    groups: Callable, backend: str, tmp_path: Path
) -> None:
    expected, norms, _ = jobs.train_on_a_mesh("eager", str(tmp_path / "one"))
    for params, found_norms, shapes in groups(4).run(jobs.train_on_a_mesh, backend, str(tmp_path / "four")):
        assert shapes == {"0.weight": (16, 3), "0.bias": (16,), "2.weight": (2, 16), "2.bias": (4,)}
        for name, leaf in expected.items():
            torch.testing.assert_close(params[name], leaf, rtol=0, atol=1e-12)
        torch.testing.assert_close(found_norms, norms, rtol=1e-12, atol=0)
    files = [load_file(file) for file in (tmp_path / "four").glob("*.safetensors")]
    assert sum(map(fnn.tree.nbytes, files)) == fnn.tree.nbytes(expected)  # each number is stored once
    for name, leaf in fnn.tree.to_state_dict(fnn.distributed.load(tmp_path / "four")).items():
        torch.testing.assert_close(leaf, expected[name], rtol=0, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("job", [jobs.train_data_parallel, jobs.train_fully_sharded], ids=["parallel", "sharded"])
@pytest.mark.parametrize("row", [*ALL, *INDUCTOR], ids="-".join)
def test_fifty_steps(groups: Callable, count: int, row: tuple[str, str, str], job: Callable) -> None:
    assert_as_one_process(groups(count), job, row, 50)


def test_layers_are_gathered_where_they_are_used(groups: Callable) -> None:
    order, peak, together = groups(2)(jobs.order_of_a_sharded_step)
    layers = 4
    # gathered and used one after the other in the forward pass; in the backward pass gathered again, all but the last
    # layer, which is still there, and the first, whose weight no gradient needs, and scattered at once
    forward, backward = ["gather", "product"], ["product", "product", "scatter"]
    assert order == forward * layers + backward + ["gather", *backward] * (layers - 2) + ["product", "scatter"]
    assert peak < 0.75 * together
