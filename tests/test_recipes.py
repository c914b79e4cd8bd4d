"""The recipes as a user runs them."""

import dataclasses
import importlib
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import pytest
import torch
import torchvision
from PIL import Image

import fnn
from recipes import (
    autograd_basics,
    class_weights,
    command_line,
    cpu_vs_gpu,
    dp_sgd,
    heat_equation,
    hessian_spectrum,
    lora,
    lr_sweep,
    natural_gradient,
    own_images,
    pitfalls,
    predict,
    resnet,
    resume,
    sample_difficulty,
    tensors,
    time_to_accuracy,
    training,
    transfer,
    transformer,
    vgg_weights,
)

ROOT = Path(__file__).parents[1]


class Recipe(NamedTuple):
    """The function of a recipe, its flags, and values of them that make a short run."""

    run: Callable[[Any], Any]
    flags: type
    short: dict[str, Any]


def small_vgg() -> fnn.Layer:
    """A network with the names of the first and last layers of VGG-16."""
    layers = fnn.layers
    return layers.sequential(
        features=layers.sequential(layers.conv2d(3, 4, 3, padding=1), layers.relu, layers.max_pool2d(2)),
        avgpool=layers.adaptive_avg_pool2d(2),
        flatten=layers.flatten,
        classifier=layers.sequential(layers.linear(16, 10)),
    )


RECIPES = {
    "autograd_basics": Recipe(autograd_basics.explain, autograd_basics.Flags, {"steps": 3}),
    "class_weights": Recipe(class_weights.compare, class_weights.Flags, {"epochs": 1, "batch_size": 256, "seeds": 1}),
    "cpu_vs_gpu": Recipe(cpu_vs_gpu.measure, cpu_vs_gpu.Flags, {"batch_sizes": [719], "widths": [4], "epochs": 1}),
    "own_images": Recipe(
        own_images.run, own_images.Flags, {"dataset": "digits", "each": 5, "epochs": 1, "batch_size": 20}
    ),
    "pitfalls": Recipe(pitfalls.compare, pitfalls.Flags, {"epochs": 1, "batch_size": 256, "width": 4, "seeds": 1}),
    "tensors": Recipe(tensors.tour, tensors.Flags, {}),
    "vgg_weights": Recipe(
        lambda flags: vgg_weights.measure(small_vgg(), flags), vgg_weights.Flags, {"rounds": 1, "image_size": 32}
    ),
    "mlp": Recipe(
        lambda flags: training.run("mlp", lambda classes: fnn.models.mlp(784, 16, classes), 28, flags),
        training.Flags,
        {"epochs": 2, "batch_size": 256},
    ),
    "lenet": Recipe(
        lambda flags: training.run("lenet", fnn.models.lenet, 32, flags),
        training.Flags,
        {"epochs": 1, "batch_size": 256, "optimizer": "adam"},
    ),
    "dp_sgd": Recipe(
        dp_sgd.train, dp_sgd.Flags, {"dataset": "digits", "epochs": 1, "batch_size": 359, "chunk_size": 128}
    ),
    "heat_equation": Recipe(heat_equation.solve, heat_equation.Flags, {"steps": 3, "points": 8, "rounds": 0}),
    "hessian_spectrum": Recipe(
        hessian_spectrum.spectra,
        hessian_spectrum.Flags,
        {"samples": 64, "width": 4, "small": 2, "epochs": 1, "probes": 1, "steps": 5, "top": 1},
    ),
    "lora": Recipe(lora.adapt, lora.Flags, {"width": 8, "epochs": 1, "batch_size": 256, "labelled": 20, "steps": 2}),
    "lr_sweep": Recipe(lr_sweep.sweep, lr_sweep.Flags, {"rates": 2, "steps": 3, "width": 4, "loop": 0}),
    "natural_gradient": Recipe(
        natural_gradient.compete, natural_gradient.Flags, {"steps": 2, "adam_steps": 2, "width": 4, "repeats": 1}
    ),
    "resnet": Recipe(resnet.train, resnet.Flags, {"epochs": 1, "batch_size": 719, "size": 8}),
    "sample_difficulty": Recipe(sample_difficulty.search, sample_difficulty.Flags, {"epochs": 1, "batch_size": 256}),
    "transfer": Recipe(transfer.transfer, transfer.Flags, {"epochs": 1, "batch_size": 256, "steps": 2}),
    "time_to_accuracy": Recipe(
        time_to_accuracy.measure,
        time_to_accuracy.Flags,
        {"dataset": "digits", "model": "mlp", "seeds": 1, "epochs": 1, "every": 4, "targets": [1.0], "together": False},
    ),
    "transformer": Recipe(
        transformer.train,
        transformer.Flags,
        {"steps": 3, "every": 2, "batch_size": 2, "length": 8, "width": 8, "heads": 2, "layers": 1, "samples": 2},
    ),
}
every_recipe = pytest.mark.parametrize("name", list(RECIPES))
LONG = ("dp_sgd", "hessian_spectrum", "resnet", "transformer")  # also in their short form
long_ones_slow = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in RECIPES]
)


@pytest.fixture(autouse=True)
def no_accountant(monkeypatch: pytest.MonkeyPatch) -> None:
    """The accountant is an extra: without it a formula stands in for it where its figures are not looked at."""
    if importlib.util.find_spec("dp_accounting") is None:
        stand_in = lambda noise, rate, delta: rate * sum(n / z**2 for z, n in noise.items()) ** 0.5
        monkeypatch.setattr("fnn.gradients.privacy._renyi_epsilon", stand_in)


def short(name: str, output: Path, **flags: Any) -> Any:
    recipe = RECIPES[name]
    return recipe.run(recipe.flags(**(recipe.short | {"output": output} | flags)))


def written(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def start(*arguments: str, **variables: str) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | variables
    command = [sys.executable, "-m", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # a shell's background job ignores SIGINT, and so would what it starts
    interruptible = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)
    return subprocess.Popen(command, env=environment, cwd=ROOT, preexec_fn=interruptible, **pipes)


def run(*arguments: str) -> str:
    process = start(*arguments)
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return out


def metrics(folder: Path) -> list[dict]:
    """The rows of a run, without the times."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def checkpoint(folder: Path) -> Any:
    """What the last checkpoint of a run holds."""
    return fnn.checkpoint.load(max(folder.glob("checkpoint-*.safetensors")))


def test_own_images_are_trained_on_and_classified(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    images, labels = fnn.data.load_dataset("digits").train
    for i in range(300):
        file = tmp_path / "photos" / f"digit {int(labels[i])}" / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((images[i, 0] * 255).byte().numpy()).save(file)
    flags = {"images": tmp_path / "photos", "epochs": 30, "batch_size": 32, "learning_rate": 0.05}
    assert short("mlp", tmp_path / "run", **flags)["test_accuracy"] > 0.7
    capsys.readouterr()
    chosen = [tmp_path / "photos" / "digit 0", tmp_path / "photos" / "digit 3"]
    guess = predict.classify(predict.Flags(run=tmp_path / "run", files=chosen, output=tmp_path / "out", top=2))
    right = sum(len(list(folder.iterdir())) for folder in chosen)
    expected = [number for number, folder in ((0, chosen[0]), (3, chosen[1])) for _ in folder.iterdir()]
    assert guess.classes.shape == (right, 2)
    assert float((guess.classes[:, 0] == torch.tensor(expected)).float().mean()) > 0.8
    assert f"{sorted(chosen[0].iterdir())[0]}: digit 0 " in capsys.readouterr().out
    assert (tmp_path / "out" / "predictions.png").stat().st_size > 1000


PREDICTIONS = {
    "no run": ({"run": Path("nothing")}, "no checkpoint at nothing/params.safetensors; train a network first"),
    "no files": ({"files": []}, "name the images to classify"),
    "a missing file": ({"files": [Path("nothing.png")]}, "there is no file nothing.png"),
    "not an image": ({"files": [Path(__file__)]}, "test_recipes.py is not an image"),
    "too many classes": ({"top": 11}, "there are 10 classes"),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    short("mlp", folder, epochs=1)
    return folder


@pytest.mark.parametrize("mistake", PREDICTIONS)
def test_mistakes_with_predictions_are_sentences(mistake: str, trained: Path, tmp_path: Path) -> None:
    Image.new("L", (9, 9)).save(tmp_path / "0.png")
    flags, sentence = PREDICTIONS[mistake]
    given = {"run": trained, "files": [tmp_path / "0.png"], "output": tmp_path / "out"} | flags
    with pytest.raises(SystemExit, match=sentence):
        predict.classify(predict.Flags(**given))
    assert not (tmp_path / "out").exists()


# what is the same in each run of the recipes that measure times
UNTIMED: dict[str, Callable[[Any], Any]] = {
    "cpu_vs_gpu": lambda rows: [row.loss for row in rows],
    "own_images": lambda found: [row | {"seconds": None} for row in found["history"]],
    "natural_gradient": lambda found: [[row["loss"] for row in rows] for rows in found["rows"].values()],
    "vgg_weights": lambda found: found["logits"],
}


@long_ones_slow
def test_a_short_run_is_the_same_again_and_is_not_overwritten(name: str, tmp_path: Path) -> None:
    first = short(name, tmp_path / "first")
    files = written(tmp_path / "first")
    assert {"metrics.json", "metrics.jsonl"} & set(files)
    assert not [file for file in files if file.endswith(".part")]
    with pytest.raises(SystemExit, match=r"an earlier run has left .* give --overwrite to replace it"):
        short(name, tmp_path / "first", seed=1)
    assert written(tmp_path / "first") == files
    again = short(name, tmp_path / "first", overwrite=True)
    if name in UNTIMED:
        first, again = (UNTIMED[name](found) for found in (first, again))
    if name in ("lr_sweep", "heat_equation"):
        assert written(tmp_path / "first") == files
    if name in ("mlp", "lenet", "resnet"):
        assert first.pop("seconds") > 0
        assert again.pop("seconds") > 0
    if name == "time_to_accuracy":
        assert first["rows"].keys() == again["rows"].keys()
    else:
        assert first == again
        other = short(name, tmp_path / "other", seed=1)
        assert first != (UNTIMED[name](other) if name in UNTIMED else other)


@every_recipe
def test_numbers_out_of_their_range_are_sentences(name: str, tmp_path: Path) -> None:
    recipe = RECIPES[name]
    hints = get_type_hints(recipe.flags, include_extras=True)
    numbers = [field.name for field in dataclasses.fields(recipe.flags) if hints[field.name] in (int, float)]
    assert not numbers, "these flags have no limit"
    limited = [name for name, hint in hints.items() if hasattr(hint, "__metadata__") and name not in FOLDERS]
    assert "seed" in limited
    for flag in limited:
        shown = flag.replace("_", "-")
        for value in (-1, float("nan")):
            with pytest.raises(SystemExit, match=f"^--{shown} {value}: give a value that is "):
                short(name, tmp_path / "none", **{flag: value})
    assert not (tmp_path / "none").exists()


FOLDERS = ("output", "data_root", "images", "weights", "text")
ZERO = [
    (name, flag)
    for name, recipe in RECIPES.items()
    for flag in ("batch_size", "learning_rate")
    if flag in recipe.flags.__dataclass_fields__
]


@pytest.mark.parametrize(("name", "flag"), ZERO)
def test_zero_is_refused(name: str, flag: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=f"^--{flag.replace('_', '-')} 0: give"):
        short(name, tmp_path / "none", **{flag: 0})


@every_recipe
def test_a_bad_place_or_device_is_a_sentence(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    for output in (file, file / "below"):
        with pytest.raises(SystemExit, match=r"^--output .*no folder can be made there"):
            short(name, output)
    assert file.read_text() == "mine"
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with pytest.raises(SystemExit, match=r"^--device cuda: torch finds no accelerator here"):
        short(name, tmp_path / "none", device="cuda")
    if issubclass(RECIPES[name].flags, command_line.ImageFlags):
        torchvision = pytest.importorskip("torchvision")

        def offline(self: object) -> None:
            raise RuntimeError("Error downloading")

        monkeypatch.setattr(torchvision.datasets.MNIST, "download", offline)
        with pytest.raises(SystemExit, match=r"^--dataset mnist: MNIST: reading and downloading failed"):
            short(name, tmp_path / "none", dataset="mnist", data_root=tmp_path / "empty")
    assert not (tmp_path / "none").exists()


def test_an_unwritable_folder_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # the superuser may write everywhere
    with pytest.raises(SystemExit, match=r"^--output .*the folder cannot be written"):
        short("lr_sweep", tmp_path)


def test_a_full_disk_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(flags: training.Flags) -> None:
        raise OSError(28, "No space left on device", "metrics.json")

    monkeypatch.setattr(sys, "argv", ["mlp.py"])
    with pytest.raises(SystemExit, match=r"stopped: .*No space left on device"):
        command_line.main(full, training.Flags())


def test_control_c_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    def interrupted(flags: training.Flags) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["mlp.py"])
    with pytest.raises(SystemExit) as stopped:
        command_line.main(interrupted, training.Flags())
    assert stopped.value.code == 130
    assert capsys.readouterr().err.split() == ["stopped"]


def interrupt(name: str, seconds: float, *flags: str) -> tuple[int, str]:
    process = start(f"recipes.{name}", *flags)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors


@pytest.mark.parametrize("seconds", [0.3, 1.0, 2.0])
def test_control_c_while_libraries_are_imported(seconds: float, tmp_path: Path) -> None:
    assert interrupt("lr_sweep", seconds, "--steps", "100000", "--output", str(tmp_path)) == (130, "\nstopped\n")


@pytest.mark.slow
@every_recipe
def test_control_c_in_the_middle(name: str, tmp_path: Path) -> None:
    if name == "tensors":
        pytest.skip("it ends within seconds")
    fields = RECIPES[name].flags.__dataclass_fields__
    forever = next(flag for flag in ("epochs", "steps", "rounds") if flag in fields)
    count = "1000000"
    if name == "dp_sgd":
        pytest.importorskip("dp_accounting")
        count = "1000"  # its privacy budget is not enough for more
    images = ["--dataset", "digits"] if "dataset" in fields else []  # which are there without a download
    status, errors = interrupt(name, 15.0, f"--{forever}", count, "--output", str(tmp_path), *images)
    # Python kills itself by the signal, which is 130 in a shell too, where Ctrl-C came while it ran code from a string
    assert status in (130, -signal.SIGINT), errors
    assert len([line for line in errors.splitlines() if "stopped" in line]) == 1
    assert "Traceback" not in errors


@pytest.mark.parametrize("name", list(RECIPES))
def test_help_reads_well(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as stopped:
        command_line.main(lambda flags: None, RECIPES[name].flags())
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert f"python -m recipes.{name}" in shown
    assert "None" not in shown


def test_long_work_shows_progress_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    ticks = itertools.count(step=6)
    monkeypatch.setattr(time, "monotonic", lambda: float(next(ticks)))
    assert list(command_line.progress("abcde", "letters", 5)) == list("abcde")
    assert capsys.readouterr().err.splitlines() == ["letters: 1 of 5", "letters: 3 of 5"]


def test_inductor_is_announced(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    asked = []
    monkeypatch.setattr(fnn, "jit", lambda function, **settings: asked.append(settings) or function)
    double = lambda x: 2 * x
    assert command_line.jit(double, training.Flags(), donate_argnums=0)(3) == 6
    assert capsys.readouterr().err == ""
    compiled = command_line.jit(double, training.Flags(compile=True))
    assert [compiled(3), compiled(4)] == [6, 8]
    assert capsys.readouterr().err.count("compiling") == 1
    assert asked == [{"donate_argnums": 0}, {"backend": "inductor"}]


def test_mlp_learns_the_digits_and_writes_everything(tmp_path: Path) -> None:
    out = run("recipes.mlp", "--epochs", "10", "--output", str(tmp_path))
    assert "device" in out
    assert "669,706" in out
    assert metrics(tmp_path)[-1]["test_accuracy"] >= 0.94
    assert out.count("[    0/ 1438]") == 10  # the loss of every hundredth batch
    params = fnn.checkpoint.load(tmp_path / "params.safetensors")
    images, labels = fnn.data.load_dataset("digits", size=28).test
    logits = fnn.models.mlp(784, 512, 512, 10).apply(params, images)
    assert float(fnn.metrics.accuracy(logits, labels)) == pytest.approx(metrics(tmp_path)[-1]["test_accuracy"])
    for name in ("curves.png", "predictions.png"):
        assert is_picture(tmp_path / name)


def test_a_resumed_run_equals_an_unbroken_one(tmp_path: Path) -> None:
    short("lenet", tmp_path / "whole", epochs=3)
    short("lenet", tmp_path / "parts", epochs=1)
    short("lenet", tmp_path / "parts", epochs=3, resume=True)
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    equal = fnn.tree.map(torch.equal, checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "parts"))
    assert all(fnn.tree.leaves(equal))


@pytest.mark.slow
def test_the_state_of_batch_norm_is_resumed(tmp_path: Path) -> None:
    short("resnet", tmp_path / "whole", epochs=2)
    short("resnet", tmp_path / "parts", epochs=1)
    once = fnn.checkpoint.load(tmp_path / "parts" / "params.safetensors")
    short("resnet", tmp_path / "parts", epochs=2, resume=True)
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    equal = fnn.tree.map(torch.equal, checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "parts"))
    assert all(fnn.tree.leaves(equal))
    whole = fnn.checkpoint.load(tmp_path / "whole" / "params.safetensors")
    assert not torch.equal(whole["bn1"]["running_mean"], once["bn1"]["running_mean"])
    network = torchvision.models.resnet18(num_classes=10)
    network.conv1 = torch.nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    network.load_state_dict(fnn.tree.to_state_dict(whole), strict=True)
    model = fnn.models.resnet18(10, in_channels=1)
    images, labels = fnn.data.load_dataset("digits", size=8).test
    params, state = fnn.tree.partition(whole, lambda path: path.endswith(("weight", "bias")))
    logits, _ = model.apply(params, state, images, train=False)
    assert float(fnn.metrics.accuracy(logits, labels)) == pytest.approx(
        metrics(tmp_path / "whole")[-1]["test_accuracy"]
    )
    for name in ("curves.png", "predictions.png"):
        assert is_picture(tmp_path / "whole" / name)


def test_only_clothes_are_mirrored() -> None:
    images = torch.arange(8.0).expand(64, 1, 8, 8)
    rising = {}
    for dataset in ("digits", "fashion_mnist"):
        changed = training.make_augmentation(8, resnet.Flags(dataset=dataset))(images, key=fnn.random.key(0))
        assert changed.shape == images.shape
        rising[dataset] = float((changed[:, 0, 4, 5] > changed[:, 0, 4, 2]).float().mean())
    assert rising["digits"] == 1.0
    assert 0.3 < rising["fashion_mnist"] < 0.7
    own = training.make_augmentation(8, training.Flags(dataset="fashion_mnist", images=Path("mine"), augment=True))
    changed = own(images, key=fnn.random.key(0))
    assert bool((changed[:, 0, 4, 5] > changed[:, 0, 4, 2]).all())
    assert torch.equal(training.make_augmentation(8, training.Flags())(images, key=fnn.random.key(0)), images)


def test_what_cannot_be_resumed_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^--resume: no checkpoint at"):
        short("mlp", tmp_path / "none", resume=True)
    assert not (tmp_path / "none").exists()
    short("mlp", tmp_path, epochs=1)
    files = written(tmp_path)
    for flags, sentence in (
        ({"seed": 1}, "made with seed=0, not 1"),
        ({"learning_rate": 0.5}, "made with learning_rate=0.02, not 0.5"),
        ({"shuffle": False}, "made with shuffle=True, not False"),
        ({"overwrite": True}, "give one of them"),
    ):
        with pytest.raises(SystemExit, match=sentence):
            short("mlp", tmp_path, resume=True, **flags)
    with pytest.raises(SystemExit, match=r"--resume: the checkpoint in .* does not fit: "):
        short("lenet", tmp_path, resume=True, **RECIPES["mlp"].short | {"optimizer": "sgd"})
    with pytest.raises(SystemExit, match="made with schedule='constant', not 'cosine'"):
        short("mlp", tmp_path, resume=True, schedule="cosine")
    assert written(tmp_path) == files
    for file in (max(tmp_path.glob("checkpoint-*")), tmp_path / "params.safetensors"):
        file.write_bytes(b"not one")
        with pytest.raises(SystemExit, match=rf"^--resume: .*{file.name} is not a readable safetensors file"):
            short("mlp", tmp_path, resume=True)
    fnn.checkpoint.save(tmp_path / "params.safetensors", {"w": torch.ones(1)})
    with pytest.raises(SystemExit, match="was not written by this recipe"):
        short("mlp", tmp_path, resume=True)


def test_a_cosine_is_resumed_with_its_epochs(tmp_path: Path) -> None:
    short("mlp", tmp_path, epochs=2, schedule="cosine")
    with pytest.raises(SystemExit, match="made with epochs=2, not 3"):
        short("mlp", tmp_path, epochs=3, schedule="cosine", resume=True)
    optimizer = training.make_optimizer(training.Flags(schedule="cosine", epochs=2, momentum=0.0), 6)
    params = {"w": torch.ones(1)}
    opt_state = optimizer.init(params)
    for step in range(12):
        updates, opt_state = optimizer.update(params, opt_state, params)
        assert float(updates["w"]) == pytest.approx(-0.01 * (1 + math.cos(math.pi * step / 12)), rel=1e-5)


def test_control_c_leaves_a_checkpoint_to_resume(tmp_path: Path) -> None:
    process = start("recipes.mlp", "--epochs", "10000", "--output", str(tmp_path))
    log = tmp_path / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and len(log.read_text().splitlines()) >= 2):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "no two epochs in two minutes"
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    step = int(max(tmp_path.glob("checkpoint-*.safetensors")).stem[-9:])
    assert errors.endswith(f"\nstopped after step {step}; go on with --resume\n")
    assert "Traceback" not in errors
    done = -(-step // 23)  # of 23 steps each
    run("recipes.mlp", "--epochs", str(done + 1), "--output", str(tmp_path), "--resume")
    assert [row["epoch"] for row in metrics(tmp_path)] == list(range(1, done + 2))
    assert fnn.tree.size(checkpoint(tmp_path)["state"]["0"]) == 669_706


def test_bad_flags_end_a_process_with_a_sentence(tmp_path: Path) -> None:
    process = start("recipes.mlp", "--output", str(tmp_path / "none"), "--epochs", "-1")
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert (out, errors) == ("", "--epochs -1: give a value that is at least 1\n")


def test_a_sweep_of_rates_equals_a_loop(tmp_path: Path) -> None:
    flags = lr_sweep.Flags(rates=6, steps=40, loop=3, lowest=1e-4, highest=0.3, width=16, output=tmp_path)
    figures = lr_sweep.sweep(flags)
    assert figures["largest_loss_difference"] < 1e-5
    rows = json.loads((tmp_path / "metrics.json").read_text())["rates"]
    assert [row["rate"] for row in rows] == pytest.approx([1e-4 * 3000 ** (i / 5) for i in range(6)])
    losses = [row["loss"] for row in rows]
    assert min(losses) == pytest.approx(figures["best_loss"])
    assert losses[0] > 2.0 > 0.5 > min(losses)
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit, match="lowest <= highest"):
        lr_sweep.sweep(lr_sweep.Flags(lowest=1.0, highest=0.1, output=tmp_path))


def is_picture(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG")


def test_the_spectrum_equals_dense_on_a_small_network(tmp_path: Path) -> None:
    sizes = {"samples": 128, "width": 4, "small": 3, "epochs": 8, "probes": 1, "steps": 10, "top": 1}
    result = hessian_spectrum.spectra(hessian_spectrum.Flags(**sizes, learning_rate=2e-2, output=tmp_path))
    for row in result["small"].values():
        assert row["lanczos"] == pytest.approx(row["dense"], rel=1e-4)
    assert json.loads((tmp_path / "metrics.json").read_text()) == result
    assert result["after"]["loss"] < 0.9 * result["before"]["loss"]
    assert result["after"]["Hessian"]["smallest"] < 0.0 <= result["after"]["Gauss-Newton"]["smallest"] + 1e-3
    assert is_picture(tmp_path / "spectrum.png")


def test_gauss_newton_needs_fewer_steps_than_adam(tmp_path: Path) -> None:
    flags = natural_gradient.Flags(steps=6, adam_steps=8, width=16, repeats=1, output=tmp_path)
    result = natural_gradient.compete(flags)
    last = {name: history[-1] for name, history in result["rows"].items()}
    assert [row["step"] for row in last.values()] == [6, 48, 48]
    losses = [row["loss"] for row in result["rows"]["Gauss-Newton CG"]]
    assert losses == sorted(losses, reverse=True)  # a step that does not go down is not taken
    assert last["Gauss-Newton CG"]["loss"] < 0.5 * last["Adam, all samples"]["loss"]
    assert result["reached"]["Gauss-Newton CG"]["0.3"]["step"] <= 6
    assert "first by time" in natural_gradient.summary(result)
    assert is_picture(tmp_path / "race.png")


def test_the_exact_solution_fulfils_the_heat_equation() -> None:
    x, t = fnn.random.uniform(fnn.random.key(0), (2, 50), dtype=torch.float64)
    zero = heat_equation.residual(heat_equation.exact, x, t)
    assert zero.abs().max() < 1e-12
    slower = heat_equation.residual(lambda x, t: heat_equation.exact(x, 0.5 * t), x, t)
    assert torch.allclose(slower, 0.5 * torch.pi**2 * heat_equation.exact(x, 0.5 * t))


def test_the_heat_equation_is_learned(tmp_path: Path) -> None:
    flags = heat_equation.Flags(steps=30, points=64, width=8, learning_rate=1e-2, rounds=0, output=tmp_path)
    figures = heat_equation.solve(flags)
    rows = json.loads((tmp_path / "metrics.json").read_text())["rows"]
    assert figures["loss"] < 0.5 * rows[0]["loss"]
    assert figures["relative_error"] < rows[0]["relative_error"]
    assert "eager_over_jit" not in figures
    assert is_picture(tmp_path / "heat.png")


def test_samples_from_the_cache_equal_samples_of_the_whole_text(tmp_path: Path) -> None:
    flags = transformer.Flags(**RECIPES["transformer"].short | {"steps": 20, "dropout": 0.1}, output=tmp_path)
    result = transformer.train(flags)
    characters, learned, held_out = transformer.read(flags, torch.device("cpu"))
    assert len(learned) + len(held_out) == len(flags.text.read_text())
    model = transformer.make_model(flags, characters)
    params = fnn.checkpoint.load(tmp_path / "params.safetensors")
    text = torch.full((flags.samples, 1), characters.index("\n"))
    _, _, key = fnn.random.split(fnn.random.key(flags.seed), 3)
    for one in fnn.random.split(key, flags.length):
        last = model.apply(params, text)[:, -1:]
        text = torch.cat([text, fnn.random.categorical(one, last / flags.temperature)], 1)
    written = ["".join(characters[i] for i in line) for line in text[:, 1:].tolist()]
    assert result["samples"] == written
    assert len(set(written)) == flags.samples


def test_the_transformer_learns_the_text(tmp_path: Path) -> None:
    sizes = {"length": 16, "width": 32, "heads": 2, "layers": 1, "samples": 1, "batch_size": 32}
    flags = transformer.Flags(**sizes, steps=150, every=50, learning_rate=1e-2, output=tmp_path)
    result = transformer.train(flags)
    first, last = result["history"][0], result["history"][-1]
    assert [row["step"] for row in result["history"]] == [0, 50, 100, 150]
    assert first["held_out_loss"] == pytest.approx(torch.tensor(59.0).log().item(), abs=0.1)  # of 59 characters
    assert result["loss_of_frequencies"] < 3.2
    assert max(last["train_loss"], result["best"]["held_out_loss"]) < result["loss_of_frequencies"] - 0.1
    params = fnn.checkpoint.load(tmp_path / "params.safetensors")
    characters, _, held_out = transformer.read(flags, torch.device("cpu"))
    passages = [held_out[i : i + 17] for i in range(0, len(held_out) - 16, 16)]
    apply = transformer.make_model(flags, characters).apply
    losses = [torch.nn.functional.cross_entropy(apply(params, part[None, :-1])[0], part[1:]) for part in passages]
    assert float(torch.stack(losses).mean()) == pytest.approx(result["best"]["held_out_loss"], rel=1e-5)
    assert is_picture(tmp_path / "curves.png")


def test_a_text_that_does_not_serve_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff" * 500)
    (tmp_path / "empty").write_text("")
    for flags, sentence in (
        ({"text": tmp_path / "none"}, "^--text .*No such file"),
        ({"text": tmp_path / "binary"}, "^--text .*can't decode"),
        ({"text": tmp_path / "empty"}, "^--length 8: both parts of the text need 9 characters; they have 0 and 0"),
        ({"heads": 3}, "^--heads 3: give a number that divides --width 8"),
    ):
        with pytest.raises(SystemExit, match=sentence):
            short("transformer", tmp_path / "output", **flags)
    assert not (tmp_path / "output").exists()


@pytest.mark.slow
def test_a_compiled_run_equals_a_replayed_one(tmp_path: Path) -> None:
    for name, flags in {"replayed": {}, "compiled": {"compile": True}}.items():
        short("mlp", tmp_path / name, **flags)
    for row, other in zip(metrics(tmp_path / "compiled"), metrics(tmp_path / "replayed"), strict=True):
        assert row == pytest.approx(other, rel=1e-3)


def test_nothing_is_traced_while_natural_gradient_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jitted: list[Callable] = []
    jit, run = fnn.jit, natural_gradient.run
    counts: list[list[int]] = []

    def kept(*arguments: Any, **settings: Any) -> Callable:
        jitted.append(jit(*arguments, **settings))
        return jitted[-1]

    def counted(*arguments: Any) -> Any:
        result = []
        for timed in (False, True):
            result = run(*arguments) if timed else result
            counts.append([fnn.compile_count(function) for function in jitted])
        return result

    monkeypatch.setattr(fnn, "jit", kept)
    monkeypatch.setattr(natural_gradient, "run", counted)
    short("natural_gradient", tmp_path, steps=4, adam_steps=4)
    before, after = counts
    assert before == after
    assert len(before) == 5
    assert min(before) >= 1


@pytest.mark.slow
def test_the_compiled_heat_equation_is_solved_to_one_percent(tmp_path: Path) -> None:
    figures = heat_equation.solve(heat_equation.Flags(steps=1500, rounds=5, compile=True, output=tmp_path))
    assert figures["relative_error"] < 0.01
    assert figures["eager_over_jit"] > 0


@pytest.mark.slow
def test_compiled_gauss_newton_steps_equal_eager_ones(tmp_path: Path) -> None:
    flags = {"steps": 3, "adam_steps": 4, "width": 8, "repeats": 1}
    runs = [
        natural_gradient.compete(natural_gradient.Flags(**flags, compile=compile, output=tmp_path, overwrite=True))
        for compile in (False, True)
    ]
    losses = [[row["loss"] for history in run["rows"].values() for row in history] for run in runs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_seeds_reach_an_accuracy_alone_as_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = {"dataset": "digits", "model": "mlp", "every": 8, "batch_size": 32, "overwrite": True, "output": tmp_path}
    ticks = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(ticks)))  # a call of the step is a second
    result = time_to_accuracy.measure(time_to_accuracy.Flags(**flags, targets=[0.8, 0.9], seeds=3, epochs=4))
    alone, together = (row["targets"] for row in result["rows"].values())
    assert alone == together
    assert alone["0.8"]["reached"] == alone["0.9"]["reached"] == 3
    assert 1 <= alone["0.8"]["mean"] < alone["0.9"]["mean"] <= alone["0.9"]["last"] < 20
    assert json.loads((tmp_path / "metrics.json").read_text()) == result
    flags["together"] = False
    result = time_to_accuracy.measure(time_to_accuracy.Flags(**flags, targets=[0.5, 1.0], seeds=1, epochs=1))
    (row,) = result["rows"].values()
    assert [found["reached"] for found in row["targets"].values()] == [1, 0]  # and no figure for what was not reached
    assert row["targets"]["1.0"] == {"reached": 0}
    with pytest.raises(SystemExit, match="more than the 1438 samples"):
        time_to_accuracy.measure(time_to_accuracy.Flags(**flags | {"every": 1000}))


def test_import_needs_no_extra() -> None:
    program = (
        "import sys\n"
        "for name in ('torchvision', 'matplotlib', 'tqdm', 'tyro', 'jax', 'scipy'): sys.modules[name] = None\n"
        "import fnn; fnn.data.load_dataset('digits')"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


def test_a_stop_before_the_first_checkpoint_promises_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt, match=r"^$"), resume.resumable(tmp_path):
        raise KeyboardInterrupt
    (tmp_path / "checkpoint-000000012.safetensors").touch()
    with pytest.raises(KeyboardInterrupt, match=r"^ after step 12; go on with --resume$"), resume.resumable(tmp_path):
        raise KeyboardInterrupt


def test_a_backbone_is_frozen_in_two_ways_and_read_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    first = short("transfer", tmp_path / "first", steps=4)
    assert first["frozen, by partition"] == first["frozen, by the optimizer"]
    assert "both ways of freezing differ by 0.0e+00" in capsys.readouterr().out
    assert first["all layers"] != first["frozen, by partition"]
    again = short("transfer", tmp_path / "again", steps=4, weights=tmp_path / "first" / "backbone.pt")
    assert again == first
    torch.save({"fc.weight": torch.ones(2)}, tmp_path / "other.pt")
    for wrong, message in (("other.pt", "the state_dict does not fit: missing"), ("none.pt", "no file of weights")):
        with pytest.raises(SystemExit, match=rf"^--weights .*{wrong}: .*{message}"):
            short("transfer", tmp_path / "wrong", weights=tmp_path / wrong)
    assert not (tmp_path / "wrong").exists()


def test_adapted_weights_are_those_of_the_module_that_is_written(tmp_path: Path) -> None:
    result = short("lora", tmp_path, steps=5)
    assert [row["trained"] for row in result.values()][:2] == [0, 64 + 8 + 8 + 8 + 8 + 10]
    module = lora.make_module(64, 8, 10)
    module.load_state_dict(fnn.interop.read_state_dict(tmp_path / "adapted.pt"))
    images, labels = fnn.data.load_dataset("digits").test
    found = fnn.metrics.accuracy(module(images.rot90(1, (2, 3))), labels)
    assert float(found) == pytest.approx(result["rank 16"]["accuracy"])


def test_the_gradients_of_the_five_rows_are_those_of_backward(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    result = autograd_basics.explain(autograd_basics.Flags(output=tmp_path, steps=20))
    w_key, b_key = fnn.random.split(fnn.random.key(0))
    w = fnn.random.normal(w_key, (5, 3)).requires_grad_()
    b = fnn.random.normal(b_key, (3,)).requires_grad_()
    torch.nn.functional.binary_cross_entropy_with_logits(torch.ones(5) @ w + b, torch.zeros(3)).backward()
    assert result["gradients"]["w"] == [pytest.approx(row) for row in w.grad.tolist()]
    assert result["gradients"]["b"] == result["stopped"]["b"] == pytest.approx(b.grad.tolist())
    assert not torch.tensor(result["stopped"]["w"]).any()
    first, second = map(torch.tensor, result["products"])
    assert torch.equal(first, 2 + 2 * torch.eye(5))
    assert torch.equal(second, 2 * first)
    both, bias = result["losses"].values()
    assert both[0] == bias[0] == result["loss"]
    assert both == sorted(both, reverse=True)
    assert both[-1] < bias[-1] < bias[0]
    assert "False" not in capsys.readouterr().out
    for name in ("loss", "step"):
        assert (tmp_path / f"{name}.svg").read_text().startswith("<svg")
    assert "mm" in (tmp_path / "step.txt").read_text()
    assert is_picture(tmp_path / "autograd.png")


def test_the_tour_shows_what_python_shows(tmp_path: Path) -> None:
    assert tensors.session("x = 1\nx + 1\nNone", {}) == ">>> x = 1\n>>> x + 1\n2\n>>> None"
    chapters = tensors.tour(tensors.Flags(output=tmp_path))
    text = (tmp_path / "tour.txt").read_text()
    assert all(chapter in text for chapter in chapters.values())
    assert "no exception" not in text
    assert "ValueError: vmap: the function writes in place" in text
    assert (
        "tensor([[5., 6., 7.],\n        [3., 4., 5.]])"
        in chapters["A change in place reaches whoever holds the tensor"]
    )
    shown = chapters["The bridges to NumPy share memory"]
    assert ">>> shared\ntensor([2., 2., 2.], dtype=torch.float64)" in shown
    assert ">>> copied\ntensor([1., 1., 1.], dtype=torch.float64)" in shown
    assert is_picture(tmp_path / "einops.png")


def test_weights_of_classes_find_the_rare_one(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    result = class_weights.compare(class_weights.Flags(seeds=1, output=tmp_path))
    labels = fnn.data.load_dataset("digits").train[1]
    of_each = [int((labels == digit).sum()) for digit in range(10)]
    assert result["counts"] == [round(0.05 * n) if digit == 8 else n for digit, n in enumerate(of_each)]
    assert result["weights"] == pytest.approx([sum(result["counts"]) / (10 * n) for n in result["counts"]])
    plain, mild, full = (row["recall"][8] for row in result["scores"].values())
    assert plain < 0.2 < mild < full
    assert full > 0.5
    assert is_picture(tmp_path / "recall.png")
    with pytest.raises(SystemExit, match=r"^--rare 10: the classes are 0 to 9"):
        short("class_weights", tmp_path / "none", rare=10)


def test_pitfalls_cost_what_the_recipe_says(tmp_path: Path) -> None:
    result = pitfalls.compare(pitfalls.Flags(seeds=1, output=tmp_path))
    right, softmax, relu, stored, with_zero, without_zero = (row[0] for row in result["accuracies"].values())
    assert min(right, with_zero) > 0.85
    assert right == pytest.approx(with_zero, abs=0.01)  # torch.nn takes the same steps
    assert max(softmax, without_zero) < 0.6
    assert relu < right - 0.1
    assert stored < 0.2
    true, over_batches, over_samples = result["losses"].values()
    assert over_samples * 359 == pytest.approx(over_batches * 23)  # 22 batches of 16 and one of 7
    assert over_batches == pytest.approx(true, rel=0.2)
    assert over_batches != pytest.approx(true, rel=1e-4)
    assert is_picture(tmp_path / "pitfalls.png")


def test_two_devices_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    rows = short("cpu_vs_gpu", tmp_path / "cpu", device="cpu", batch_sizes=[256, 719], widths=[4, 8])
    assert [(row.width, row.batch_size) for row in rows] == [(4, 256), (4, 719), (8, 256), (8, 719)]
    assert rows[0].parameters == 784 * 4 + 4 + 4 * 4 + 4 + 4 * 10 + 10
    assert min(row.step_seconds for row in rows) > 0
    assert "Only the CPU was measured" in capsys.readouterr().out
    other = [row._replace(device="mps", step_seconds=row.step_seconds / row.width) for row in rows]
    said = cpu_vs_gpu.conclusion(rows + other, [torch.device("cpu"), torch.device("mps")])
    assert "was compared with mps" in said
    assert "mps gains most at width 8, batches of" in said
    assert "8.00 times the CPU's speed" in said
    assert "mps gains least at width 4" in said
    cpu_vs_gpu.draw(tmp_path / "times.png", rows + other)
    assert is_picture(tmp_path / "times.png")
    for flag in ("batch_sizes", "widths"):
        with pytest.raises(SystemExit, match=f"^--{flag.replace('_', '-')} 0: give numbers that are at least 1"):
            short("cpu_vs_gpu", tmp_path / "none", **{flag: [0]})


def test_a_labelled_folder_is_written_and_learned(tmp_path: Path) -> None:
    result = own_images.run(own_images.Flags(dataset="digits", each=30, epochs=8, output=tmp_path))
    assert result["images"] == 300
    assert result["same"]
    assert result["history"][-1]["test_accuracy"] > 0.7
    lines = (tmp_path / "labels.csv").read_text().splitlines()
    assert lines[:2] == ["file,label", "0/0000.png,0"]
    assert len(lines) == 301
    assert sorted(path.name for path in (tmp_path / "photos").iterdir()) == list("0123456789")
    for picture in ("grid.png", "predictions.png"):
        assert is_picture(tmp_path / picture)
    params = fnn.checkpoint.load(tmp_path / "params.safetensors")
    read = fnn.data.from_csv(tmp_path / "labels.csv", tmp_path / "photos", size=32, channels=1)
    held = [tensor[4::5] for tensor in read.data]
    found = fnn.metrics.accuracy(fnn.models.lenet().apply(params, held[0]), held[1])
    assert float(found) == pytest.approx(result["history"][-1]["test_accuracy"])
    with pytest.raises(SystemExit, match="is not a file that this run writes; remove the folder photos"):
        short("own_images", tmp_path, overwrite=True)


def test_weights_are_read_from_a_file_and_fit(tmp_path: Path) -> None:
    first = short("vgg_weights", tmp_path / "first")
    assert first["parameters"] == 4 * 27 + 4 + 160 + 10
    assert first["tensors"] == 4
    assert all(row["same_outputs"] and row["bytes"] > 4 * first["parameters"] for row in first["files"].values())
    assert not (tmp_path / "first" / "vgg16.pth").exists()
    assert is_picture(tmp_path / "first" / "vgg.png")
    weights = tmp_path / "first" / "vgg16.safetensors"
    assert short("vgg_weights", tmp_path / "again", weights=weights)["logits"] == first["logits"]
    torch.save({"fc.weight": torch.ones(2)}, tmp_path / "other.pt")
    for wrong, sentence in (("other.pt", "does not fit the tree"), ("none.pt", "no checkpoint at")):
        with pytest.raises(SystemExit, match=rf"^--weights .*{wrong}: .*{sentence}"):
            short("vgg_weights", tmp_path / "wrong", weights=tmp_path / wrong)
    assert not (tmp_path / "wrong").exists()
