"""The recipes as a user runs them."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import fnn
from recipes import heat_equation, hessian_spectrum, lr_sweep, natural_gradient, time_to_accuracy

ROOT = Path(__file__).parents[1]


def start(*arguments: str) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # a shell's background job ignores SIGINT, and so would what it starts
    interruptible = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(command, env=environment, cwd=ROOT, preexec_fn=interruptible, **pipes)


def run(*arguments: str) -> str:
    process = start(*arguments)
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return out


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_mlp_learns_the_digits_and_writes_everything(tmp_path: Path) -> None:
    out = run("recipes.mlp", "--output", str(tmp_path))
    assert "device" in out
    assert "669,706" in out
    assert metrics(tmp_path)[-1]["test_accuracy"] >= 0.95
    params, _ = fnn.checkpoint.load(tmp_path / "checkpoint.safetensors").values()
    images, labels = fnn.data.load_dataset("digits", size=28).test
    logits = fnn.models.mlp(784, 512, 512, 10).apply(params, images)
    assert float(fnn.metrics.accuracy(logits, labels)) == pytest.approx(metrics(tmp_path)[-1]["test_accuracy"])
    for name in ("curves.png", "predictions.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_a_resumed_run_equals_an_unbroken_one(tmp_path: Path) -> None:
    flags = ("recipes.lenet", "--optimizer", "adam", "--learning-rate", "0.01")
    run(*flags, "--epochs", "3", "--output", str(tmp_path / "whole"))
    run(*flags, "--epochs", "1", "--output", str(tmp_path / "parts"))
    run(*flags, "--epochs", "3", "--output", str(tmp_path / "parts"), "--resume")
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    whole, parts = (fnn.checkpoint.load(tmp_path / name / "checkpoint.safetensors") for name in ("whole", "parts"))
    equal = fnn.tree.map(torch.equal, whole, parts)
    assert all(fnn.tree.leaves(equal))


def test_control_c_leaves_a_checkpoint_to_resume(tmp_path: Path) -> None:
    process = start("recipes.mlp", "--epochs", "10000", "--output", str(tmp_path))
    log = tmp_path / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and len(log.read_text().splitlines()) >= 2):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "no two epochs in two minutes"
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "--resume" in out
    done = len(metrics(tmp_path))
    run("recipes.mlp", "--epochs", str(done + 1), "--output", str(tmp_path), "--resume")
    assert [row["epoch"] for row in metrics(tmp_path)] == list(range(1, done + 2))


def test_bad_flags_are_sentences(tmp_path: Path) -> None:
    for flags, sentence in {("--resume",): "no checkpoint at", ("--device", "mps"): "torch finds"}.items():
        process = start("recipes.mlp", "--output", str(tmp_path / "none"), *flags)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 1
        assert sentence in errors
        assert "Traceback" not in errors


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
    with pytest.raises(SystemExit, match="0 < lowest <= highest"):
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
    with pytest.raises(SystemExit, match="top >= 1"):
        hessian_spectrum.spectra(hessian_spectrum.Flags(top=0, output=tmp_path))


def test_gauss_newton_needs_fewer_steps_than_adam(tmp_path: Path) -> None:
    flags = natural_gradient.Flags(steps=6, adam_steps=8, width=16, repeats=1, compile=False, output=tmp_path)
    result = natural_gradient.compete(flags)
    last = {name: history[-1] for name, history in result["rows"].items()}
    assert [row["step"] for row in last.values()] == [6, 48, 48]
    losses = [row["loss"] for row in result["rows"]["Gauss-Newton CG"]]
    assert losses == sorted(losses, reverse=True)  # a step that does not go down is not taken
    assert last["Gauss-Newton CG"]["loss"] < 0.5 * last["Adam, all samples"]["loss"]
    assert result["reached"]["Gauss-Newton CG"]["0.3"]["step"] <= 6
    assert "first by time" in natural_gradient.summary(result)
    assert is_picture(tmp_path / "race.png")
    with pytest.raises(SystemExit, match="adam-steps"):
        natural_gradient.compete(natural_gradient.Flags(adam_steps=0, output=tmp_path))


def test_the_exact_solution_fulfils_the_heat_equation() -> None:
    x, t = fnn.random.uniform(fnn.random.key(0), (2, 50), dtype=torch.float64)
    zero = heat_equation.residual(heat_equation.exact, x, t)
    assert zero.abs().max() < 1e-12
    slower = heat_equation.residual(lambda x, t: heat_equation.exact(x, 0.5 * t), x, t)
    assert torch.allclose(slower, 0.5 * torch.pi**2 * heat_equation.exact(x, 0.5 * t))


def test_the_heat_equation_is_learned(tmp_path: Path) -> None:
    flags = heat_equation.Flags(steps=30, points=64, width=8, learning_rate=1e-2, compile=False, output=tmp_path)
    figures = heat_equation.solve(flags)
    rows = json.loads((tmp_path / "metrics.json").read_text())["rows"]
    assert figures["loss"] < 0.5 * rows[0]["loss"]
    assert figures["relative_error"] < rows[0]["relative_error"]
    assert "eager_over_compiled" not in figures
    assert is_picture(tmp_path / "heat.png")
    with pytest.raises(SystemExit, match="points >= 4"):
        heat_equation.solve(heat_equation.Flags(points=1, output=tmp_path))


@pytest.mark.slow
def test_a_run_with_compiled_code_of_another_equals_it(tmp_path: Path) -> None:
    file = tmp_path / "step.bin"
    flags = ("recipes.mlp", "--epochs", "2", "--compiled", str(file))
    run(*flags, "--output", str(tmp_path / "first"))
    size = file.stat().st_size
    run(*flags, "--output", str(tmp_path / "second"))
    assert metrics(tmp_path / "first") == metrics(tmp_path / "second")
    assert file.stat().st_size == size
    run("recipes.mlp", "--epochs", "2", "--output", str(tmp_path / "eager"))
    for row, other in zip(metrics(tmp_path / "second"), metrics(tmp_path / "eager"), strict=True):
        assert row == pytest.approx(other, rel=1e-3)


@pytest.mark.slow
def test_the_compiled_heat_equation_is_solved_to_one_percent(tmp_path: Path) -> None:
    figures = heat_equation.solve(heat_equation.Flags(steps=1500, rounds=5, output=tmp_path))
    assert figures["relative_error"] < 0.01
    assert figures["eager_over_compiled"] > 0


@pytest.mark.slow
def test_compiled_gauss_newton_steps_equal_eager_ones(tmp_path: Path) -> None:
    flags = {"steps": 3, "adam_steps": 4, "width": 8, "repeats": 1}
    runs = [
        natural_gradient.compete(natural_gradient.Flags(**flags, compile=compile, output=tmp_path))
        for compile in (False, True)
    ]
    losses = [[row["loss"] for history in run["rows"].values() for row in history] for run in runs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_seeds_reach_an_accuracy_alone_as_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = {"dataset": "digits", "model": "mlp", "every": 8, "batch_size": 32, "compile": False, "output": tmp_path}
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
