from pathlib import Path
from typing import NamedTuple

import pytest
import safetensors.torch
import torch

import fnn


class State(NamedTuple):
    count: torch.Tensor
    rest: tuple


TREE = {
    "key": fnn.random.key(3),
    "state": State(torch.tensor(5), (torch.ones(2, dtype=torch.bfloat16), torch.tensor([True, False]))),
    "w": torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).T,
}


def test_round_trip_keeps_every_bit_and_container(tmp_path: Path) -> None:
    fnn.checkpoint.save(tmp_path / "deep" / "tree.safetensors", TREE, {"epoch": "3"})
    back = fnn.checkpoint.load(tmp_path / "deep" / "tree.safetensors", TREE)
    assert type(back["state"]) is State
    for (path, a), (other, b) in zip(fnn.tree.items(TREE), fnn.tree.items(back), strict=True):
        assert path == other
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    assert fnn.checkpoint.load_metadata(tmp_path / "deep" / "tree.safetensors") == {"epoch": "3"}


def test_shared_storage_is_saved_twice(tmp_path: Path) -> None:
    x = torch.arange(4.0)
    fnn.checkpoint.save(tmp_path / "t", {"a": x, "b": x, "c": x[1:]})
    assert fnn.checkpoint.load(tmp_path / "t")["c"].tolist() == [1.0, 2.0, 3.0]


def test_torch_state_dicts_move_both_ways(tmp_path: Path) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    safetensors.torch.save_file(net.state_dict(), tmp_path / "net")
    model = fnn.models.mlp(4, 3, 2)
    params = fnn.checkpoint.load(tmp_path / "net", like=model.init(fnn.random.key(0)))
    x = torch.rand(5, 4)
    assert torch.equal(model.apply(params, x), net(x))
    fnn.checkpoint.save(tmp_path / "back", params)
    net.load_state_dict(safetensors.torch.load_file(tmp_path / "back"))


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fnn.checkpoint.save(tmp_path / "t", {"a": torch.ones(1)})

    def fail(*args):
        Path(args[1]).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(safetensors.torch, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        fnn.checkpoint.save(tmp_path / "t", {"a": torch.zeros(1)})
    assert fnn.checkpoint.load(tmp_path / "t")["a"].tolist() == [1.0]
    assert [file.name for file in tmp_path.iterdir()] == ["t"]


def test_bad_files_and_trees(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        fnn.checkpoint.load(tmp_path / "none")
    (tmp_path / "text").write_text("hello, this is no checkpoint")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        fnn.checkpoint.load(tmp_path / "text")
    fnn.checkpoint.save(tmp_path / "t", {"a": torch.ones(2)})
    with pytest.raises(ValueError, match=r"missing \['b'\]"):
        fnn.checkpoint.load(tmp_path / "t", {"b": torch.ones(2)})
    with pytest.raises(ValueError, match=r"'a' is \(2,\) torch.float32, but the tree has \(3,\)"):
        fnn.checkpoint.load(tmp_path / "t", {"a": torch.ones(3)})
    with pytest.raises(TypeError, match=r"'rate' is 0\.1, not a tensor"):
        fnn.checkpoint.save(tmp_path / "t", {"rate": 0.1})
