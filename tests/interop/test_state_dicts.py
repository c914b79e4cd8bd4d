"""State dicts in both directions, and files of weights."""

import json
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import fnn
from fnn.interop import from_module, load_state_dict, read_state_dict, state_dict, torchvision_weights


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))


def test_both_directions() -> None:
    net, other = network(), network()
    with torch.no_grad():
        for leaf in other.parameters():
            leaf.add_(torch.randn_like(leaf))
    other(torch.randn(4, 1, 4, 4))
    layer, params, state = from_module(net)
    loaded = load_state_dict(params, state, other.state_dict())
    assert (loaded.missing, loaded.unexpected, loaded.mismatched) == ([], [], {})
    x = torch.randn(2, 1, 4, 4)
    assert torch.equal(layer.apply(loaded.params, loaded.state, x)[0], other.eval()(x))
    net.load_state_dict(state_dict(loaded.params, loaded.state))
    assert torch.equal(net.eval()(x), other(x))
    loaded.params["3"]["bias"].zero_()  # the leaves are copies
    assert (other[3].bias != 0).all()


def test_models_of_fnn_take_the_same_state_dicts() -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    model = fnn.models.mlp(4, 3, 2)
    params = load_state_dict(model.init(fnn.random.key(0)), {}, net.state_dict()).params
    x = torch.randn(5, 4)
    torch.testing.assert_close(model.apply(params, x), net(x))


def test_what_does_not_fit_is_named_and_reported() -> None:
    _, params, state = from_module(network())
    given = dict(network().state_dict())
    del given["0.bias"], given["1.running_var"], given["1.num_batches_tracked"]
    given |= {
        "3.weight": torch.ones(3, 9),
        "head.weight": torch.ones(2),
        "1.weight": torch.ones(2, dtype=torch.complex64),
    }
    with pytest.raises(ValueError, match="does not fit") as error:
        load_state_dict(params, state, given)
    assert str(error.value) == (
        "the state_dict does not fit: missing ['0.bias', '1.running_var']; unexpected ['head.weight']; wrong ["
        "'1.weight' is of torch.complex64, expected torch.float32, '3.weight' is (3, 9), expected (3, 8)]"
    )
    loaded = load_state_dict(params, state, given, strict=False)
    assert (loaded.missing, loaded.unexpected) == (["0.bias", "1.running_var"], ["head.weight"])
    assert list(loaded.mismatched) == ["1.weight", "3.weight"]
    assert torch.equal(loaded.params["3"]["weight"], params["3"]["weight"])
    assert torch.equal(loaded.params["0"]["weight"], given["0.weight"])
    assert loaded.params["0"]["bias"].data_ptr() != params["0"]["bias"].data_ptr()


@pytest.mark.parametrize("prefix", ["module.", "model.encoder."])
def test_a_prefix_is_recognised(prefix: str) -> None:
    _, params, state = from_module(network())
    given = network().state_dict()
    longer = {prefix + name: leaf for name, leaf in given.items()}
    for trees, entries in (((params, state), longer), ((fnn.tree.from_state_dict(longer), {}), given)):
        with pytest.raises(ValueError, match=r"; write \{") as error:
            load_state_dict(*trees, entries)
        line = str(error.value).split("; write ")[1]
        loaded = load_state_dict(*trees, eval(line, {"state_dict": entries}))
        assert (loaded.missing, loaded.unexpected) == ([], [])


def test_dtypes_and_entries() -> None:
    params = {"w": torch.zeros(2, dtype=torch.float64)}
    loaded = load_state_dict(params, None, {"w": torch.tensor([1.5, 2.0], dtype=torch.bfloat16)})
    assert torch.equal(loaded.params["w"], torch.tensor([1.5, 2.0], dtype=torch.float64))
    with pytest.raises(TypeError, match=r"the entry 'model' is a dict; give state_dict\['model'\]"):
        load_state_dict(params, {}, {"model": {"w": torch.zeros(2)}})  # type: ignore[dict-item]
    with pytest.raises(TypeError, match="expects a dict of tensors, got a list"):
        load_state_dict(params, {}, [torch.zeros(2)])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'a' is a leaf of params and of state"):
        state_dict({"a": torch.zeros(1)}, {"a": torch.zeros(1)})


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight


def test_tied_names() -> None:
    module = Tied()
    converted = from_module(module)
    given = {name: leaf.clone() for name, leaf in module.state_dict().items()}
    zeros = fnn.tree.zeros_like(converted.params)
    for entries in (given, {"head.weight": given["head.weight"]}, {"embed.weight": given["embed.weight"]}):
        loaded = load_state_dict(zeros, {}, entries, tied=converted.tied)
        assert torch.equal(loaded.params["embed"]["weight"], module.embed.weight)
    load_state_dict(zeros, {}, module.state_dict())  # shared memory tells that the names are tied
    with pytest.raises(ValueError, match=r"unexpected \['head.weight'\]"):
        load_state_dict(zeros, {}, given)
    with pytest.raises(ValueError, match=r"'head.weight' differs from 'embed.weight', with which it is tied"):
        load_state_dict(zeros, {}, given | {"head.weight": torch.zeros(5, 3)}, tied=converted.tied)
    Tied().load_state_dict(state_dict(loaded.params, tied=converted.tied))


# Files

ENTRIES = {"fc.weight": torch.arange(6.0).reshape(2, 3), "fc.bias": torch.ones(2), "steps": torch.tensor(3)}


def same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(torch.equal(found[name], leaf) for name, leaf in wanted.items())


def test_files_of_weights(tmp_path: Path) -> None:
    torch.save(ENTRIES, tmp_path / "weights.pth")
    safetensors.torch.save_file(ENTRIES, tmp_path / "weights.safetensors")
    fnn.checkpoint.save(tmp_path / "ours.safetensors", fnn.tree.from_state_dict(ENTRIES))
    torch.save({"epoch": 3, "state_dict": ENTRIES}, tmp_path / "run.pth")
    for name in ("weights.pth", "weights.safetensors", "ours.safetensors"):
        assert same(read_state_dict(tmp_path / name), ENTRIES), name
    assert same(read_state_dict(tmp_path / "run.pth", entry="state_dict"), ENTRIES)
    with pytest.raises(
        ValueError, match=r"holds a dict with the entries \['epoch', 'state_dict'\].*entry='state_dict'"
    ):
        read_state_dict(tmp_path / "run.pth")
    with pytest.raises(ValueError, match="has no entry 'model', only a dict with the entries"):
        read_state_dict(tmp_path / "run.pth", entry="model")


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_folders_of_hugging_face(tmp_path: Path, kind: str) -> None:
    save: Any = safetensors.torch.save_file if kind == "safetensors" else torch.save
    name = "model" if kind == "safetensors" else "pytorch_model"
    save(ENTRIES, tmp_path / f"{name}.{kind}")
    assert same(read_state_dict(tmp_path), ENTRIES)
    parts = {"fc.weight": 1, "fc.bias": 2, "steps": 2}
    files = {path: f"{name}-0000{part}-of-00002.{kind}" for path, part in parts.items()}
    for file in set(files.values()):
        save({path: ENTRIES[path] for path in ENTRIES if files[path] == file}, tmp_path / file)
    (tmp_path / f"{name}.{kind}").unlink()
    index = tmp_path / f"{name}.{kind}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 9}, "weight_map": files}))
    assert same(read_state_dict(tmp_path), ENTRIES)
    assert list(read_state_dict(index)) == list(ENTRIES)
    index.write_text(json.dumps({"weight_map": files | {"fc.scale": files["steps"]}}))
    with pytest.raises(ValueError, match=r"lists \['fc.scale'\], which its files do not hold"):
        read_state_dict(tmp_path)
    (tmp_path / files["steps"]).unlink()
    with pytest.raises(FileNotFoundError, match=files["steps"]):
        read_state_dict(tmp_path)
    index.write_text("{}")
    with pytest.raises(ValueError, match="not an index of weights"):
        read_state_dict(tmp_path)


def test_a_tiny_model_of_transformers_is_read_back(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=11, n_positions=8, n_embd=8, n_layer=1, n_head=2)
    module = transformers.GPT2LMHeadModel(config).eval()
    module.save_pretrained(tmp_path, max_shard_size="2KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    other = from_module(transformers.GPT2LMHeadModel(config))
    loaded = load_state_dict(other.params, other.state, read_state_dict(tmp_path), tied=other.tied)
    words = torch.tensor([[1, 4, 2]])
    found = other.layer.apply(loaded.params, words, use_cache=False).logits
    torch.testing.assert_close(found, module(words).logits)


class Pickled:
    def __reduce__(self) -> tuple:
        return print, ("this code must not run",)


def test_files_that_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")
    torch.save({"weights": Pickled()}, tmp_path / "code.pt")
    for name in ("module.pt", "code.pt"):
        with pytest.raises(
            ValueError, match=r"holds pickled Python objects.*torch\.save\(module\.state_dict\(\), path\)"
        ):
            read_state_dict(tmp_path / name)
    assert "must not run" not in capsys.readouterr().out
    torch.save(ENTRIES, tmp_path / "whole.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:300])
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "page.pt").write_text("<html>not found</html>")
    (tmp_path / "page.safetensors").write_text("<html>not found</html>")
    torch.save([torch.ones(2)], tmp_path / "list.pt")
    for name, message in {
        "cut.pt": "was altered or is damaged, or torch.save did not write it",
        "empty.pt": "not a file of torch.save",
        "page.pt": "not a file of torch.save",
        "page.safetensors": "not a readable safetensors file",
        "list.pt": "holds a list, which is not a dict of tensors",
    }.items():
        with pytest.raises(ValueError, match=message):
            read_state_dict(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="no file of weights at"):
        read_state_dict(tmp_path / "missing.pt")
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileNotFoundError, match=r"has none of model\.safetensors\.index\.json"):
        read_state_dict(tmp_path / "folder")


# torchvision


def test_pretrained_weights_come_from_the_cache_or_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torchvision = pytest.importorskip("torchvision")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def offline(*args: Any, **kwargs: Any) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "urlopen", offline)
    with pytest.raises(
        OSError, match=r"weights of resnet18 .* could not be downloaded from https://.*no network.*; put"
    ):
        torchvision_weights("resnet18")
    weights = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    module = torchvision.models.resnet18()
    (tmp_path / "checkpoints").mkdir(exist_ok=True)
    torch.save(module.state_dict(), tmp_path / "checkpoints" / Path(weights.url).name)
    for name in ("resnet18", "ResNet18_Weights.IMAGENET1K_V1"):
        assert same(torchvision_weights(name), dict(module.state_dict()))
    for wrong in ("resnet19", "ResNet18_Weights.NONE", "NoWeights.V1"):
        with pytest.raises(ValueError, match=f"torchvision has no weights '{wrong}'"):
            torchvision_weights(wrong)


def test_a_download_is_compared_with_its_checksum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torchvision = pytest.importorskip("torchvision")
    seen = []

    def download(url: str, target: str, hash_prefix: str | None = None, progress: bool = True) -> None:
        seen.append((hash_prefix, progress))
        torch.save(torchvision.models.resnet18().state_dict(), target)

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    torchvision_weights("resnet18")
    url = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url
    assert seen == [(url.rsplit("-")[-1].removesuffix(".pth"), False)]
