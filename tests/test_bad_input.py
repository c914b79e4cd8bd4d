"""Bad input to the recipes as commands: each ends with a sentence and a status, and leaves nothing half-done."""

import json
import runpy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from PIL import Image

import fnn

resource = pytest.importorskip("resource")  # POSIX


def command(name: str, *flags: object) -> str:
    """Run a recipe as from the command line; return its last words, which Python prints before it exits with 1."""
    before = sys.argv
    sys.argv = [f"{name}.py", *map(str, flags)]
    try:
        with pytest.raises(SystemExit) as stopped:
            runpy.run_module(f"recipes.{name}", run_name="__main__")
    finally:
        sys.argv = before
    assert isinstance(stopped.value.code, str), stopped.value.code
    assert "Traceback" not in stopped.value.code
    return stopped.value.code


def save_images(folder: Path, count: int, mode: str = "L") -> None:
    folder.mkdir(parents=True)
    for i in range(count):
        Image.new(mode, (8, 8), 40 * i if mode == "L" else (40 * i, 0, 9)).save(folder / f"{i}.png")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tables and folders of images, each with one mistake, and a run whose params are of another model."""
    root = tmp_path_factory.mktemp("inputs")
    save_images(root / "table", 6)
    tables = {
        "empty": "",
        "header": "file,label\n",
        "column": "0.png\n1.png\n",
        "missing": "0.png,1\nz.png,0\n",
        "negative": "0.png,1\n1.png,-1\n",
        "unlabelled": "0.png,1\n1.png,\n",
        "few": "0.png,1\n1.png,0\n",
    }
    for name, text in tables.items():
        (root / "table" / f"{name}.csv").write_text(text)
    for name in ("corrupt", "text", "hole"):
        save_images(root / name / "cat", 4)
        save_images(root / name / "dog", 4)
    whole = (root / "corrupt" / "dog" / "2.png").read_bytes()
    (root / "corrupt" / "dog" / "2.png").write_bytes(whole[: len(whole) // 2])
    (root / "text" / "dog" / "2.png").write_text("not an image")
    (root / "hole" / "emu").mkdir()
    (root / "nothing").mkdir()
    model = fnn.models.mlp(784, 8, 10)
    described = {
        "config": json.dumps(fnn.layers.config(model)), "classes": json.dumps(fnn.data.DIGITS), "size": "28"
    }  # fmt: skip
    other = fnn.models.mlp(784, 9, 10).init(fnn.random.key(0))
    fnn.checkpoint.save(root / "other" / "params.safetensors", other, described)
    return root


MLP_MISTAKES = {  # flags of mlp; {} is the folder of the inputs
    "empty table": ("--images {}/table/empty.csv", r"table/empty\.csv has no rows"),
    "a header alone": ("--images {}/table/header.csv", r"header\.csv has a header and no rows"),
    "a table without labels": ("--images {}/table/column.csv", "has no column 1; its first line is '0.png'"),
    "a missing label": ("--images {}/table/unlabelled.csv", "line 2 of .* no label in column 1"),
    "a missing image": ("--images {}/table/missing.csv", r"line 2 of .* names .*z\.png, which is missing"),
    "a label out of range": ("--images {}/table/negative.csv", "line 2 of .* has the label -1"),
    "few images": ("--images {}/table/few.csv", "at least five images are needed, and there are 2"),
    "a missing table": ("--images {}/table/none.csv", r"there is no file .*none\.csv"),
    "a corrupt image": ("--images {}/corrupt", r"dog/2\.png is not an image that can be read, or is damaged"),
    "text as an image": ("--images {}/text", r"dog/2\.png is not an image that can be read"),
    "an empty class": ("--images {}/hole", r"hole/emu holds no images"),
    "an empty folder": ("--images {}/nothing", "holds no folders; put the images of each class into a folder"),
    "a missing folder": ("--images {}/none", "there is no folder"),
    "no epochs": ("--epochs -1", "^--epochs -1: give a value that is at least 1"),
    "an empty batch": ("--batch-size 0", "^--batch-size 0: give a value that is at least 1"),
    "a negative rate": ("--learning-rate -0.1", "^--learning-rate -0.1: give a value that is a finite number above 0"),
    "nothing to resume": ("--resume", "^--resume: no checkpoint at"),
}


@pytest.mark.parametrize("name", MLP_MISTAKES)
def test_mistakes_on_the_command_line_are_sentences(name: str, inputs: Path, tmp_path: Path) -> None:
    flags, sentence = MLP_MISTAKES[name]
    said = command("mlp", *flags.format(inputs).split(), "--output", tmp_path / "run")
    with pytest.raises(SystemExit, match=sentence):
        raise SystemExit(said)
    assert not (tmp_path / "run").exists()


def test_params_of_another_model_are_a_sentence(inputs: Path, tmp_path: Path) -> None:
    flags = "--run", inputs / "other", "--files", inputs / "table" / "0.png", "--output", tmp_path / "run"
    assert "does not fit the tree: '0.bias' is (9,) torch.float32, but the tree has (8,)" in command("predict", *flags)
    assert not (tmp_path / "run").exists()


def test_grey_and_coloured_images_of_two_classes_are_trained_on(tmp_path: Path) -> None:
    save_images(tmp_path / "photos" / "cat", 5)
    save_images(tmp_path / "photos" / "dog", 5, "RGB")
    flags = ["mlp.py", "--images", str(tmp_path / "photos"), "--epochs", "1", "--output", str(tmp_path / "run")]
    before, sys.argv = sys.argv, flags
    try:
        runpy.run_module("recipes.mlp", run_name="__main__")
    finally:
        sys.argv = before
    assert fnn.checkpoint.load(tmp_path / "run" / "params.safetensors")["4"]["bias"].shape == (2,)


def test_a_loss_that_is_not_finite_is_a_sentence(tmp_path: Path) -> None:
    said = command("mlp", "--learning-rate", "1e30", "--output", tmp_path)
    assert said.startswith("stopped: fit: train_loss is ")
    assert "the batch is kept in" in said
    assert [file.name for file in tmp_path.iterdir()] == ["nan-batch.safetensors"]
    assert fnn.checkpoint.load(tmp_path / "nan-batch.safetensors")["0"].shape == (64, 1, 28, 28)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Let writing beyond this size fail, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [0, 5_000_000])  # not a byte; the params, and not the checkpoint
def test_a_full_disk_is_a_sentence_and_leaves_no_part(size: int, tmp_path: Path) -> None:
    with files_of_at_most(size):
        said = command("mlp", "--epochs", "1", "--output", tmp_path / "run")
    assert said.startswith("stopped: [Errno 27] File too large")
    assert str(tmp_path / "run") in said
    left = sorted(file.name for file in (tmp_path / "run").iterdir())
    assert left == ([] if size == 0 else ["metrics.jsonl", "params.safetensors"])
    if size:
        assert fnn.tree.size(fnn.checkpoint.load(tmp_path / "run" / "params.safetensors")) == 669_706


def test_an_accelerator_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    said = command("mlp", "--device", "cuda", "--output", tmp_path / "run")
    assert said == "--device cuda: torch finds no accelerator here, and no device 'cuda'"
    assert not (tmp_path / "run").exists()
