"""The benchmarks at toy sizes: every rival computes the same, and is in the table that is written."""

import importlib.util
import json
import pkgutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import fnn
import recipes.bench
from recipes.bench import (
    distributed,
    ensemble,
    floor,
    gradients,
    harness,
    jacobian_costs,
    memory,
    models,
    rivals,
    scan,
    start,
    step,
    tree,
)


@pytest.fixture
def report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    threads, products = torch.get_num_threads(), torch.get_float32_matmul_precision()
    tf32 = torch.backends.cudnn.allow_tf32
    monkeypatch.setattr(harness, "REPORT", tmp_path / "performance.md")
    yield tmp_path / "performance.md"
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(products)
    torch.backends.cudnn.allow_tf32 = tf32


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is compiled by Inductor: what is tested here is what the rivals compute."""
    jit = fnn.jit
    replay = lambda function, donate_argnums=(), **settings: jit(function, donate_argnums=donate_argnums)
    monkeypatch.setattr(fnn, "jit", replay)
    same = lambda function=None, **settings: (lambda f: f) if function is None else function
    monkeypatch.setattr(torch, "compile", same)


def run(monkeypatch: pytest.MonkeyPatch, module: object, *flags: str) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", *flags])
    module.main()  # type: ignore[attr-defined]


def rows(report: Path) -> dict[str, list[str]]:
    """Rows of the tables by their first cell."""
    lines = [line.strip("|\n").split("|") for line in report.read_text().splitlines() if line.startswith("| ")]
    return {name.strip(): [cell.strip() for cell in cells] for name, *cells in lines}


def has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def check(found: dict[str, list[str]], names: list[str], columns: int) -> None:
    for name in names:
        assert len(found[name]) == columns, name
        assert all(float(cell) > 0 for cell in found[name]), name


PEERS = ["JAX + Optax, jit, donated"] * has("optax") + ["TorchOpt, functional"] * has("torchopt")


CASES = {"lenet": "adam", "residual": "sgd", "transformer": "adam"}
MORE = [("tiny", "sgd"), ("tiny", "adam"), ("narrow", "adam"), ("lenet", "sgd"), ("transformer", "sgd")]


@pytest.mark.parametrize(
    ("name", "optimizer"), [*CASES.items(), *(pytest.param(*more, marks=pytest.mark.slow) for more in MORE)]
)
def test_rivals_compute_the_same(name: str, optimizer: str, uncompiled: None) -> None:
    given = rivals.problem(name, optimizer, 3)
    calls = step.steps(given)
    rivals.agree(calls)
    assert set(PEERS) < set(calls)
    calls["other"] = rivals.eager(given._replace(x=given.x + 0.1))
    with pytest.raises(RuntimeError, match=r"other and torch\.nn"):
        rivals.agree(calls)


def test_an_update_that_differs_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    for optimizer in rivals.RATES:
        given = rivals.problem("tiny", optimizer, 3)
        calls = {"one": rivals.eager(given)}
        with monkeypatch.context() as patch:
            patch.setitem(rivals.RATES, optimizer, 1.1 * rivals.RATES[optimizer])
            calls["faster"] = rivals.eager(given)
        with pytest.raises(RuntimeError, match="faster and one"):
            rivals.agree(calls)


def test_layers_in_bfloat16(uncompiled: None) -> None:
    given = rivals.problem("transformer", "adam", 3, dtype=torch.bfloat16)
    calls = {"torch": rivals.eager(given), "fnn": rivals.ours(given)}
    rivals.agree(calls, torch.bfloat16)
    carry, _ = rivals.fnn_function(given)[0](rivals.first_carry(given, rivals.fnn_function(given)[1]), given.batch)
    assert {leaf.dtype for leaf in fnn.tree.leaves(carry[0])} == {torch.float32}


TINY = ("--models", "tiny", "--batch", "4", "--seconds", "0.01")


def test_step_writes_a_section_for_each_model(report: Path, uncompiled: None, monkeypatch: pytest.MonkeyPatch) -> None:
    run(monkeypatch, step, *TINY, "--floor-size", "32")
    names = [step.BASE, "torch.nn + fused", "torch.compile of the loss + fused", "fnn, eager", step.REPLAY]
    names += ["torch.compile of the step, by hand", step.INDUCTOR, *PEERS]
    check(rows(report), names, 2)
    assert rows(report)[step.BASE] == ["1.00", "1.00"]
    assert {"floor: bytes over copy bandwidth", "floor: operations over matrix rate"} < set(rows(report))
    run(monkeypatch, step, *TINY, "--floor-size", "32", "--dtype", "bfloat16", "--optimizers", "adam")
    run(monkeypatch, step, *TINY, "--floor-size", "32", "--optimizers", "sgd", "--without-inductor")
    text = report.read_text()
    assert step.INDUCTOR not in text.split("<!-- end step tiny -->")[0]
    assert text.count("## Train step") == 2  # the third run replaced the first
    assert "perceptron 16-8-10, CPU, bfloat16" in text
    with pytest.raises(SystemExit, match="no GPU"):
        run(monkeypatch, step, "--device", "cuda") if not torch.cuda.is_available() else sys.exit("no GPU")


def test_scan_and_ensemble_write_every_rival(report: Path, uncompiled: None, monkeypatch: pytest.MonkeyPatch) -> None:
    run(monkeypatch, scan, *TINY, "--steps", "5", "--lengths")
    jax = ["JAX, jit, donated, loop"] * has("optax")
    names = [
        scan.BASE,
        scan.ONE,
        "fnn.jit of fnn.scan, replay",
        "fnn.jit of fnn.scan, inductor, unroll 4",
        "fnn.jit of fnn.compile.epoch, inductor, which draws the order",
    ]
    check(rows(report), [*names, *jax, *["JAX, jit of lax.scan, donated"] * has("optax")], 1)
    run(monkeypatch, ensemble, *TINY, "--count", "3")
    names = [ensemble.BASE, "fnn.jit, inductor, donated, loop", "fnn.vmap, eager", ensemble.OURS]
    check(rows(report), [*names, *jax, *["JAX, jit of vmap, donated"] * has("optax")], 1)
    assert report.read_text().count("<!-- begin ") == 2


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_memory_of_one_rival(
    report: Path, uncompiled: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(memory, "RIVALS", {memory.BASE: memory.RIVALS[memory.BASE]})
    run(monkeypatch, memory, "--models", "100m", "--batch", "4", "--parts", "step", "--once", memory.BASE)
    copies = int(capfd.readouterr().out.split("TENSORS")[1]) / 4 / 99e6
    assert 3.5 < copies < 4.5  # params, gradients, two moments


@pytest.mark.filterwarnings("ignore:CUDA is not available")
def test_floor_counts_bytes_and_operations() -> None:
    given = rivals.problem("tiny", "adam", 4)
    found = floor.of_step(given, floor.Rates(1.0, 1.0), lambda: None)
    assert found.bytes == 6 * 4 * 226 + 4 * 16 * 4 + 4 * 8  # params, moments, their results; images; labels
    assert found.operations == 2 * 4 * (2 * 16 * 8 + 3 * 8 * 10)  # no gradient of the images
    measured = floor.rates("cpu", torch.float32, 64, rounds=1)
    assert min(measured) > 0
    assert floor.launches(lambda: None) == 0


def test_sections_have_names_of_their_own() -> None:
    options = lambda **given: type("", (), {"device": "cpu", "dtype": "float32", "tf32": False, **given})
    assert harness.section("step", "mlp", options()) == "step mlp"
    assert harness.section("scan", "", options(device="cuda", tf32=True)) == "scan cuda float32 tf32"


@pytest.mark.parametrize("row", gradients.ROWS)
def test_gradients_by_hand_and_by_fnn_are_the_same(row: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradients, "LENGTH", 5)
    calls = gradients.calls(row, 2)
    gradients.check(calls)
    name, *_ = calls[gradients.OURS]()
    calls["other"] = lambda: calls[gradients.OURS]() | {name: torch.ones(())}
    with pytest.raises(RuntimeError, match=f"the gradients at {name} differ"):
        gradients.check(calls)


def test_the_time_of_a_gradient_is_reported(report: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(monkeypatch, memory, "--parts", "gradients", "--rows", "narrow", "--rounds", "2")
    (cells,) = (cells for name, cells in rows(report).items() if name.startswith("perceptron 32-19x16-10"))
    assert all(float(cell) > 0 for cell in cells)


@pytest.mark.parametrize("row", gradients.ROWS)
def test_the_peak_of_a_gradient_is_that_of_backward(row: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradients, "LENGTH", 32)
    calls = gradients.calls(row, 64)
    hand, ours, autograd = (
        gradients.peak(calls[name]) for name in (gradients.HAND, gradients.OURS, gradients.AUTOGRAD)
    )
    assert ours == autograd  # the same function, which .backward() takes with the modules of torch.nn
    assert ours < 1.05 * hand
    if row == "deep":
        assert hand > 64 * 512 * 4 * 19  # the activations after each relu


def test_trees_are_taken_apart_by_every_library(report: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(monkeypatch, tree, "--leaves", "3", "8", "--seconds", "0.01")
    check(rows(report), [tree.BASE, "fnn.tree", *["optree"] * has("optree"), *["JAX"] * has("jax")], 6)
    params = tree.params(5)
    assert len(fnn.tree.leaves(params)) == 5
    library = tree.libraries()["fnn.tree"]
    wrong = library._replace(map=lambda f, tree: library.map(torch.clone, tree))
    with pytest.raises(RuntimeError, match="wrong made another tree"):
        tree.check({"wrong": tree.tasks(wrong, params)}, params)


@pytest.mark.parametrize("rival", ["torch", "eager", "replay"])
def test_a_start_is_timed(rival: str, capsys: pytest.CaptureFixture) -> None:
    start.child(rival, "tiny", [2, 3])
    figures = json.loads(capsys.readouterr().out)
    assert 0 < figures["1"] < figures["2"] < figures["3"]
    assert ("trace" in figures) == (rival == "replay")


def test_starts_are_ratios_to_torch(report: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def measure(rival: str, name: str, steps: list[int], folder: Path) -> dict[str, float]:
        asked.append(rival)
        seconds = {"torch": 2.0, "replay": 1.0, "inductor": 8.0}[rival]
        return {"1": seconds, "7": seconds + 1.0} | ({"trace": 1.0} if rival == "replay" else {})

    monkeypatch.setattr(start, "measure", measure)
    run(monkeypatch, start, "--models", "tiny", "--steps", "7", "--rivals", "replay", "inductor")
    assert asked == ["torch", "replay", "inductor"]
    found = rows(report)
    assert found[start.RIVALS["replay"]] == ["0.50", "0.67"]
    assert found[start.RIVALS["inductor"]] == ["4.00", "3.00"]


@pytest.mark.skipif(sys.platform != "linux", reason="the bytes that were sent are read from Linux's connections")
@pytest.mark.parametrize(
    "name", ["tiny", *(pytest.param(name, marks=pytest.mark.slow) for name in ("lenet", "transformer"))]
)
def test_steps_of_several_processes_and_their_bytes(name: str, report: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ("--networks", name, "--batch", "4", "--rounds", "1")
    run(monkeypatch, distributed, *flags)  # every process compares the losses of the rivals
    lines = [line.strip("|").split("|") for line in report.read_text().splitlines() if line.startswith(f"| {name}")]
    found = {cells[1].strip(): [float(cell) for cell in cells[3:]] for cells in lines}
    assert set(found) == set(distributed.BASES)
    assert all(value > 0 for cells in found.values() for value in cells)
    # a ring of two processes sends the gradients once, and three messages of half of the params are fully sharded; the
    # connections carry more than that, for messages so small
    assert found["fnn data_parallel"][2] >= 1.0
    assert found["fnn fully_sharded"][2] >= 1.5


def test_no_bench_hides_a_module_of_python() -> None:
    names = {module.name for module in pkgutil.iter_modules(recipes.bench.__path__)}
    assert not names & set(sys.stdlib_module_names)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "flags"),
    [
        (step, ("--floor-size", "32", "--optimizers", "sgd")),
        (scan, ("--steps", "6", "--unroll", "1", "--lengths", "2", "4")),
        (ensemble, ("--count", "3")),
    ],
)
def test_compiled_rivals_compute_the_same(
    module: object, flags: tuple[str, ...], report: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(monkeypatch, module, *TINY, *flags)
    assert report.exists()


SLOW = [pytest.param(name, marks=pytest.mark.slow) if name == "resnet18" else name for name in models.NAMES]


@pytest.mark.parametrize("name", SLOW)
def test_models_of_torch_and_of_fnn_take_the_same_steps(
    name: str, report: Path, uncompiled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers" if name == "gpt2" else "torchvision")
    flags = ("--models", name, "--size", "tiny", "--batch", "8", "--seconds", "0.01")
    run(monkeypatch, models, *flags)  # rivals.agree compares the losses
    check(rows(report), [models.BASE, "fnn, eager", models.REPLAY, "fnn.jit, inductor"], 2)
    assert "<!-- begin models tiny -->" in report.read_text()


def test_products_cost_the_operations_that_the_chapter_derives() -> None:
    layers, calls = jacobian_costs.LAYERS, jacobian_costs.products(width=4, batch=3, vectors=2)
    counts = {name: jacobian_costs.eager_flops(f, args) for name, (f, args) in calls.items()}
    counted = harness.ratios(counts, jacobian_costs.CALL)
    inner = layers - 1
    assert counted["gradient, params"] == (3 * inner + 2) / layers
    assert counted["H v, reverse over reverse, params"] == (9 * inner + 4) / layers
    assert counted["J' u, inputs"] == 2
    assert counted["H v, reverse over reverse, inputs"] == 4
