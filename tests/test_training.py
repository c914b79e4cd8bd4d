"""The training loop, evaluation and predictions: against loops by hand, broken runs against unbroken ones."""

import importlib
import io
import itertools
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fnn
from fnn.training import evaluate, fit, predict

fit_module = importlib.import_module("fnn.training.fit")  # the name of the module is that of the function, too
MODEL = fnn.models.mlp(4, 8, 3)
OPTIMIZER = fnn.optim.adam(0.05)
DATA = fnn.random.normal(fnn.random.key(1), (22, 4)), torch.arange(22) % 3
ORDER = fnn.random.key(2)


def loss(params: Any, batch: Any) -> Tensor:
    images, labels = batch
    return fnn.losses.cross_entropy(MODEL.apply(params, images), labels)


def plain_step(params: Any, opt_state: Any, batch: Any) -> tuple:
    value, grads = fnn.value_and_grad(loss)(params, batch)
    updates, opt_state = OPTIMIZER.update(grads, opt_state, params)
    return fnn.optim.apply_updates(params, updates), opt_state, value


STEPS = {"eager": plain_step, "jitted, donated": fnn.jit(plain_step, donate_argnums=(0, 1))}


def start() -> tuple:
    params = MODEL.init(fnn.random.key(0))
    return params, OPTIMIZER.init(params)


def order(epoch: int) -> Any:
    return fnn.data.batches(DATA, 4, fnn.random.fold_in(ORDER, epoch))


def by_hand(epochs: int) -> tuple[tuple, list[float]]:
    """The state after some epochs and the mean losses of their samples, by an ordinary loop."""
    (params, opt_state), means = start(), []
    for epoch in range(epochs):
        total = torch.zeros((), dtype=torch.float64)
        for batch in order(epoch):
            params, opt_state, value = plain_step(params, opt_state, batch)
            total = total + value.double() * len(batch[1])
        means.append(float(total) / 22)
    return (params, opt_state), means


def same(a: Any, b: Any) -> bool:
    return fnn.tree.structure(a) == fnn.tree.structure(b) and fnn.tree.max_difference(a, b) == 0


@pytest.mark.parametrize("name", STEPS)
def test_fit_is_the_loop_by_hand(name: str) -> None:
    state, means = by_hand(3)
    found = list(fit(STEPS[name], start(), order, 3))
    assert [epoch.number for epoch in found] == [1, 2, 3]
    assert same(found[-1].state, state)
    assert [epoch.metrics["loss"] for epoch in found] == pytest.approx(means, rel=1e-12)


def test_metrics_of_samples_and_of_batches_have_one_mean() -> None:
    def step(params: Any, batch: Any) -> tuple:
        values = fnn.losses.cross_entropy(MODEL.apply(params, batch[0]), batch[1], reduction="none")
        return params, {"mean": values.mean(), "samples": values}

    row = next(iter(fit(step, start()[:1], order, 1))).metrics
    logits = MODEL.apply(start()[0], DATA[0])
    whole = float(torch.nn.functional.cross_entropy(logits, DATA[1]))
    assert row["mean"] == pytest.approx(whole, rel=1e-6)
    assert row["samples"] == pytest.approx(whole, rel=1e-6)


class StopError(Exception):
    pass


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("stop", [1, 3, 6, 7, 13, 17])
def test_a_resumed_run_has_the_numbers_of_an_unbroken_one(tmp_path: Path, name: str, stop: int) -> None:
    unbroken = list(fit(STEPS[name], start(), order, 3, folder=tmp_path / "whole", save_every=1, score=score))
    calls = []

    def breaking(*arguments: Any) -> tuple:
        if len(calls) == stop:
            raise StopError
        calls.append(1)
        return STEPS[name](*arguments)

    options = {"folder": tmp_path / "broken", "save_every": 1, "score": score}
    with pytest.raises(StopError):
        list(fit(breaking, start(), order, 3, **options))
    with pytest.raises(FileExistsError, match="give resume=True"):
        fit(STEPS[name], start(), order, 3, **options)
    resumed = list(fit(STEPS[name], start(), order, 3, **options, resume=True))
    assert same(resumed[-1].state, unbroken[-1].state)
    for file in ("params.safetensors", "best.safetensors"):
        assert same(fnn.checkpoint.load(tmp_path / "broken" / file), fnn.checkpoint.load(tmp_path / "whole" / file))
    rows = [
        [json.loads(line) for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        for run in ("broken", "whole")
    ]
    for row in (*rows[0], *rows[1]):
        assert row.pop("seconds") > 0
    assert rows[0] == rows[1]


def score(row: dict[str, float]) -> float:
    return row["loss"]


def test_files_of_a_run(tmp_path: Path) -> None:
    found = list(fit(plain_step, start(), order, 4, folder=tmp_path, keep=2, metadata={"model": "mlp(4, 8, 3)"}))
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == [
        "checkpoint-000000018.safetensors",
        "checkpoint-000000024.safetensors",
        "metrics.jsonl",
        "params.safetensors",
    ]
    module = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    flat = fnn.tree.to_state_dict(fnn.checkpoint.load(tmp_path / "params.safetensors"))
    module.load_state_dict(flat)
    torch.testing.assert_close(module(DATA[0]), MODEL.apply(found[-1].state[0], DATA[0]))
    assert fnn.checkpoint.load_metadata(tmp_path / "params.safetensors")["model"] == "mlp(4, 8, 3)"
    assert list(fit(plain_step, start(), order, 4, folder=tmp_path, resume=True)) == []


def test_tensorboard_reads_what_was_written(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = list(fit(plain_step, start(), order, 2, folder=tmp_path, tensorboard=True))
    reader = events.EventAccumulator(str(tmp_path))
    reader.Reload()
    assert sorted(reader.Tags()["scalars"]) == ["epoch", "loss", "seconds", "step"]
    for name in ("loss", "step"):
        assert [event.step for event in reader.Scalars(name)] == [1, 2]
        values = [event.value for event in reader.Scalars(name)]
        assert values == pytest.approx([epoch.metrics[name] for epoch in found], rel=1e-6)


def test_early_stopping_keeps_the_best_params(tmp_path: Path) -> None:
    losses = iter([3.0, 2.0, 2.5, float("nan"), 2.0, 1.0])
    extra = lambda *state: {"test_loss": next(losses)}
    options = {"score": lambda row: row["test_loss"], "patience": 3, "folder": tmp_path}
    found = list(fit(plain_step, start(), order, 9, evaluate=extra, **options))
    assert len(found) == 5
    assert same(fnn.checkpoint.load(tmp_path / "best.safetensors"), found[1].state[0])
    assert json.loads(fnn.checkpoint.load_metadata(tmp_path / "best.safetensors")["metrics"])["epoch"] == 2


def test_the_first_nan_stops_the_run(tmp_path: Path) -> None:
    inputs = DATA[0].clone()
    inputs[13, 2] = float("nan")
    spoiled = lambda epoch: fnn.data.batches((inputs, DATA[1]), 4)
    sentence = r"loss is nan at step 4 \(epoch 1, batch 4\).*state\[0\]\['0'\]\['bias'\] is the first of 12"
    with pytest.raises(FloatingPointError, match=sentence):
        list(fit(plain_step, start(), spoiled, 2, folder=tmp_path))
    kept = fnn.checkpoint.load(tmp_path / "nan-batch.safetensors")
    assert torch.equal(kept["1"], DATA[1][12:16])
    assert bool(kept["0"].isnan().any())
    with pytest.raises(FloatingPointError, match="step 4"):
        list(fit(plain_step, start(), spoiled, 1))
    assert len(list(fit(plain_step, start(), spoiled, 1, check_finite=False))) == 1


MISTAKES = {
    "state": (lambda: fit(plain_step, {"w": 1}, order, 1), TypeError, r"a tuple such as \(params, opt_state\)"),  # type: ignore[arg-type]
    "epochs": (lambda: fit(plain_step, start(), order, 0), ValueError, "epochs >= 1, got 0"),
    "no folder": (lambda: fit(plain_step, start(), order, 1, resume=True), ValueError, "need a folder"),
    "patience": (lambda: fit(plain_step, start(), order, 1, patience=2), ValueError, "patience needs score"),
    "no batches": (lambda: list(fit(plain_step, start(), lambda epoch: [], 1)), ValueError, "has no batches"),
    "results": (lambda: list(fit(lambda p, o, b: (p, o), start(), order, 1)), TypeError, "the 2 parts of the state"),
    "metrics": (
        lambda: list(fit(lambda p, b: (p, torch.ones(3, 2)), start()[:1], order, 1)), ValueError, r"shape \(3, 2\)"
    ),
    "no samples": (lambda: evaluate(lambda p, b: {}, {}, iter([])), ValueError, "no samples"),
    "one number": (lambda: evaluate(lambda p, b: b[0].mean(), {}, DATA), TypeError, "a dict of tensors"),  # type: ignore[arg-type, return-value]
    "top": (lambda: predict(MODEL, start()[0], DATA[0], top=4), ValueError, "top=4 of 3 classes"),
    "logits": (lambda: predict(lambda p, x: x.sum(), {}, DATA[0]), ValueError, r"logits of shape \(samples, classes\)"),
    "state of a layer": (lambda: predict(fnn.layers.batch_norm(4), {}, DATA[0]), TypeError, "frozen"),  # type: ignore[arg-type]
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_sentences(name: str) -> None:
    mistake, kind, sentence = MISTAKES[name]
    with pytest.raises(kind, match=sentence):
        mistake()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_the_batches_of_the_epoch_and_the_mean_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count()
    monkeypatch.setattr(fit_module.time, "monotonic", lambda: float(next(clock)))  # every step is worth a new text
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    options = {"folder": tmp_path, "save_every": 2}

    def breaking(*arguments: Any) -> tuple:
        if len(calls) == 4:
            raise StopError
        calls.append(plain_step(*arguments))
        return calls[-1]

    calls: list[tuple] = []
    with pytest.raises(StopError):
        list(fit(breaking, start(), order, 1, **options))
    mean = sum(float(call[2]) for call in calls) / 4
    assert f"loss={mean:.4g}" in terminal.getvalue()
    assert "epoch 1" in terminal.getvalue()
    assert "4/6" in terminal.getvalue()
    terminal.truncate(0)
    list(fit(plain_step, start(), order, 1, **options, resume=True))
    assert "4/6" in terminal.getvalue()  # a resumed epoch starts where it was
    assert "1/6" not in terminal.getvalue()
    terminal.truncate(0)
    list(fit(plain_step, start(), order, 1, progress=False))
    assert not terminal.getvalue().strip("\0")
    file = io.StringIO()  # where output goes that is kept
    monkeypatch.setattr(sys, "stderr", file)
    list(fit(plain_step, start(), order, 1))
    assert not file.getvalue()


def test_a_terminal_without_tqdm_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert len(list(fit(plain_step, start(), order, 1))) == 1


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    list(fit(plain_step, start(), order, 1, folder=tmp_path))
    other = fnn.models.mlp(4, 9, 3).init(fnn.random.key(0))
    with pytest.raises(ValueError, match=r"does not fit the tree.*'0\.0\.bias' is \(8,\)"):
        list(fit(plain_step, (other, OPTIMIZER.init(other)), order, 2, folder=tmp_path, resume=True))


def test_evaluation_counts_samples_and_not_batches() -> None:
    params = start()[0]

    def metrics(params: Any, batch: Any) -> dict[str, Tensor]:
        logits = MODEL.apply(params, batch[0])
        right = (logits.argmax(-1) == batch[1]).float()
        return {"loss": fnn.losses.cross_entropy(logits, batch[1]), "accuracy": right}

    logits = MODEL.apply(params, DATA[0]).double()
    expected = {
        "loss": float(torch.nn.functional.cross_entropy(logits, DATA[1])),
        "accuracy": float((logits.argmax(-1) == DATA[1]).double().mean()),
    }
    for data in (DATA, fnn.data.batches(DATA, 5), fnn.data.Stream(range(22), lambda i: (DATA[0][i], DATA[1][i]))):
        assert evaluate(metrics, params, data, batch_size=7) == pytest.approx(expected, rel=1e-6)


def test_predictions_are_ranked() -> None:
    params = start()[0]
    expected = torch.softmax(MODEL.apply(params, DATA[0]), -1)
    found = predict(MODEL, params, DATA[0], batch_size=5)
    assert torch.equal(found.classes[:, 0], expected.argmax(-1))
    torch.testing.assert_close(found.probabilities, expected.sort(descending=True).values)
    assert torch.equal(predict(MODEL.apply, params, DATA[0], top=1).classes, found.classes[:, :1])
    stream = fnn.data.Stream(range(22), lambda i: (DATA[0][i], DATA[1][i]))
    torch.testing.assert_close(predict(MODEL, params, stream), found)


SCRIPT = """
import sys, time, torch, fnn
sys.path.insert(0, {root!r})
from tests.test_training import order, start, STEPS
from fnn.training import fit
step = STEPS["jitted, donated"]
def slow(*arguments):
    results = step(*arguments)
    print("step", flush=True)
    time.sleep(0.005)
    return results
epochs = fit(slow, start(), order, 40, folder={folder!r}, resume=True, save_every=1, keep=2)
for epoch in epochs:
    pass
print("done", flush=True)
"""


def launch(folder: Path) -> subprocess.Popen:
    script = textwrap.dedent(SCRIPT.format(root=str(Path(__file__).parents[1]), folder=str(folder)))
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def read_steps(process: subprocess.Popen, count: int) -> int:
    """Wait for some steps, fewer if the run ends before."""
    assert process.stdout is not None
    seen = 0
    while seen < count and process.stdout.readline().strip() == "step":
        seen += 1
    return seen


def test_ctrl_c_saves_and_the_run_goes_on(tmp_path: Path) -> None:
    process = launch(tmp_path)
    read_steps(process, 9)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "KeyboardInterrupt" in errors
    steps = [int(file.name[11:20]) for file in tmp_path.glob("checkpoint-*")]
    assert max(steps) >= 9
    found = list(fit(STEPS["eager"], start(), order, max(steps) // 6 + 1, folder=tmp_path, resume=True))
    assert same(found[-1].state, by_hand(found[-1].number)[0])


@pytest.mark.slow
def test_fifty_kills_lose_nothing(tmp_path: Path) -> None:
    """SIGKILL at random moments of a run that saves at every step; it ends with the params of an unbroken run."""
    generator = torch.Generator().manual_seed(0)
    kills = 0
    while kills < 50:
        process = launch(tmp_path)
        read_steps(process, 1 + int(torch.randint(0, 8, (), generator=generator)))
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.communicate(timeout=60)
        if process.returncode == 0:
            break
    found = list(fit(STEPS["eager"], start(), order, 41, folder=tmp_path, resume=True))
    assert kills >= 20
    assert same(found[-1].state, by_hand(41)[0])
    assert not list(tmp_path.glob("*.part"))
