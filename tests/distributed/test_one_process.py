"""In a single process everything is what it is without the room; and which optimizers may see parts of params."""

import pytest
import torch

import fnn
from fnn import distributed

ELEMENTWISE = {
    "sgd": fnn.optim.sgd(0.1, momentum=0.9, nesterov=True), "adam": fnn.optim.adam(1e-3),
    "adamw": fnn.optim.adamw(1e-3), "lion": fnn.optim.lion(1e-3), "rmsprop": fnn.optim.rmsprop(1e-2),
    "adagrad": fnn.optim.adagrad(0.1), "clip": fnn.optim.clip(0.5),
}  # fmt: skip
OTHERS = {
    "clip_by_global_norm": fnn.optim.clip_by_global_norm(1.0), "lamb": fnn.optim.lamb(1e-2),
    "lars": fnn.optim.lars(1e-2), "muon": fnn.optim.muon(1e-2), "adafactor": fnn.optim.adafactor(1e-2),
    "chain": fnn.optim.chain(fnn.optim.clip_by_global_norm(100.0), fnn.optim.sgd(0.1)),
}  # fmt: skip


@pytest.mark.parametrize("optimizer", ELEMENTWISE.values(), ids=ELEMENTWISE)
def test_optimizers_that_may_see_parts(optimizer: fnn.Optimizer) -> None:
    distributed.check_elementwise(optimizer)


@pytest.mark.parametrize("optimizer", OTHERS.values(), ids=OTHERS)
def test_optimizers_that_may_not_see_parts(optimizer: fnn.Optimizer) -> None:
    with pytest.raises(ValueError, match="does not update each number of the params by itself"):
        distributed.check_elementwise(optimizer)


def test_one_process_needs_no_environment() -> None:
    assert distributed.init("cpu") == (0, 1, torch.device("cpu"))
    x = torch.arange(4.0)
    assert distributed.reduce(x, "concat").data_ptr() != x.data_ptr()  # a result has memory of its own
    assert torch.equal(distributed.reduce(x, "sum"), x)
    assert torch.equal(distributed.local(x), x)


def test_parts_of_batches_are_the_batches() -> None:
    x, key = torch.arange(10), fnn.random.key(0)
    whole = list(fnn.data.batches(x, 4, key, drop_last=True))
    parts = [list(fnn.data.batches(x, 4, key, drop_last=True, part=(i, 2))) for i in range(2)]
    assert [torch.cat(pair).tolist() for pair in zip(*parts, strict=True)] == [batch.tolist() for batch in whole]
    stream = fnn.data.Stream(range(10), lambda number: torch.tensor(number))
    read = [list(fnn.data.batches(stream, 4, key, drop_last=True, part=(i, 2))) for i in range(2)]
    assert [[b.tolist() for b in part] for part in read] == [[b.tolist() for b in part] for part in parts]
    with pytest.raises(ValueError, match="a batch of 2 rows cannot be divided among 4 processes"):
        fnn.data.batches(x, 4, part=(0, 4))


def test_a_process_reads_its_own_part_of_each_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    x, key = torch.arange(12), fnn.random.key(1)
    monkeypatch.setattr("fnn.distributed.parts.world_size", lambda: 3)
    parts = []
    for number in range(3):
        monkeypatch.setattr("fnn.distributed.parts.rank", lambda number=number: number)
        parts.append([batch.tolist() for batch in distributed.local_batches(x, 6, key)])
    whole = [batch.tolist() for batch in fnn.data.batches(x, 6, key)]
    assert [[*a, *b, *c] for a, b, c in zip(*parts, strict=True)] == whole


def test_sharding_of_one_process() -> None:
    params = {"w": torch.ones(3, 2), "b": torch.zeros(())}
    parts, sharding = distributed.shard(params, rules={"w": 1, "b": None})
    assert sharding.axes == (None, 1)
    assert fnn.tree.allclose(distributed.gather(parts, sharding), params)
    assert parts["w"].data_ptr() != params["w"].data_ptr()
    meta, _ = distributed.shard({"w": torch.ones(4, device="meta")})
    assert meta["w"].is_meta


@pytest.mark.parametrize("name", ["reduce", "gather", "global_norm"])
def test_communication_is_refused_inside_transforms(name: str) -> None:
    """In one process too, so that a program does not fail only when it runs on several."""
    parts, sharding = distributed.shard({"w": torch.ones(4)})
    calls = {
        "reduce": lambda parts: distributed.reduce(parts["w"], "sum").sum(),
        "gather": lambda parts: distributed.gather(parts, sharding)["w"].sum(),
        "global_norm": lambda parts: distributed.global_norm(parts, sharding),
    }
    calls[name](parts)
    for call in (lambda: fnn.grad(calls[name])(parts), lambda: fnn.vmap(calls[name])(fnn.tree.stack([parts] * 2))):
        with pytest.raises(ValueError, match=f"{name} is called inside grad, vmap or another transform"):
            call()
