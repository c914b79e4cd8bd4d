"""The benchmarks at toy sizes: every rival computes the same, and is in the table that is written."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import fnn
from recipes.bench import ensemble, floor, harness, memory, rivals, scan, step


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
    """The functions themselves in place of compiled ones: what is tested here is what they compute."""
    same = lambda function=None, **settings: (lambda f: f) if function is None else function
    monkeypatch.setattr(fnn, "jit", same)
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
    run(monkeypatch, step, *TINY, "--floor-size", "32", "--unsafe")
    names = [step.BASE, "torch.nn + foreach", "torch.nn + fused", "torch.compile of the loss + fused", "fnn.jit"]
    names += ["torch.compile of the step, by hand", step.OURS, f"{step.OURS}, unsafe_keep_donated", *PEERS]
    check(rows(report), names, 2)
    assert rows(report)[step.BASE] == ["1.00", "1.00"]
    assert {"floor: bytes over copy bandwidth", "floor: operations over matrix rate"} < set(rows(report))
    run(monkeypatch, step, *TINY, "--floor-size", "32", "--dtype", "bfloat16", "--optimizers", "adam")
    run(monkeypatch, step, *TINY, "--floor-size", "32", "--optimizers", "sgd")
    text = report.read_text()
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
        "fnn.jit of fnn.scan, unroll 4",
        "fnn.jit of fnn.compile.epoch, which draws the order",
    ]
    check(rows(report), [*names, *jax, *["JAX, jit of lax.scan, donated"] * has("optax")], 1)
    run(monkeypatch, ensemble, *TINY, "--count", "3")
    names = [ensemble.BASE, "fnn.jit, donated, loop", "fnn.vmap, eager", ensemble.OURS]
    check(rows(report), [*names, *jax, *["JAX, jit of vmap, donated"] * has("optax")], 1)
    assert report.read_text().count("<!-- begin ") == 2


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_memory_of_one_rival(
    report: Path, uncompiled: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(memory, "RIVALS", {memory.BASE: memory.RIVALS[memory.BASE]})
    run(monkeypatch, memory, "--models", "100m", "--batch", "4", "--once", memory.BASE)
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "flags"),
    [
        (step, ("--floor-size", "32")),
        (scan, ("--steps", "6", "--lengths", "2", "4")),
        (ensemble, ("--count", "3")),
    ],
)
def test_compiled_rivals_compute_the_same(
    module: object, flags: tuple[str, ...], report: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(monkeypatch, module, *TINY, *flags, "--backend", "aot_eager")
    assert report.exists()
