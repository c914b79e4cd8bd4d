"""Time from the import to the first result and to 100 and 1,000 train steps, with each rival in a new process.

The flags are ``--models mlp lenet narrow``, ``--rounds 1``, ``--steps 100 1000`` and ``--rivals``. The processes run one
after the other, each on one thread. The clock starts when the libraries have been imported; modules that they import
later are included in the time.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from recipes.bench import harness, networks, rivals

BASE = "torch"
RIVALS = {
    "torch": "torch.nn + torch.optim",
    "compile": "torch.compile of the loss + fused",
    "compile, warm": "the same again, with its files on disk",
    "eager": "fnn, eager",
    "replay": "fnn.jit, replay, donated",
    "inductor": "fnn.jit, inductor, donated",
    "inductor, warm": "the same again, with its files on disk",
    "background": "fnn.jit, inductor in the background, donated",
    "jax": "JAX + Optax, jit, donated",
    "jax, warm": "the same again, with its files on disk",
}  # a warm start must follow the cold one, because it uses the files that the cold one wrote


def step(rival: str, given: rivals.Problem) -> rivals.Step:
    makers: dict[str, Callable[[], rivals.Step]] = {
        "torch": lambda: rivals.eager(given),
        "compile": lambda: rivals.eager(given, compiled=True, fused=True),
        "eager": lambda: rivals.ours(given, jit=False),
        "replay": lambda: rivals.ours(given),
        "inductor": lambda: rivals.ours(given, backend="inductor"),
        "background": lambda: rivals.ours(given, backend="inductor", background=True),
        "jax": lambda: rivals.with_jax(given),
    }
    return makers[rival]()


def child(rival: str, name: str, steps: list[int]) -> None:
    """Print the seconds to the first result and to each number of steps, and, if the rival traces, those of tracing."""
    harness.begin()
    given = rivals.problem(name, "sgd", 64)
    if rival == "jax":
        rivals.jax_function(given)  # so that JAX and Optax are imported before the clock starts
    figures: dict[str, float] = {}
    begin = time.perf_counter()
    call = step(rival, given)
    for number in range(1, max(steps) + 1):
        value = call()
        if number in (1, *steps):
            harness.wait(value)
            figures[str(number)] = time.perf_counter() - begin
    figures |= tracing(rival, given)
    print(json.dumps(figures))


def tracing(rival: str, given: rivals.Problem) -> dict[str, float]:
    """Seconds to trace the step again, as a function that has not been seen, in a process that has traced before."""
    if rival == "jax":
        jax, function, first, batch = rivals.jax_function(given)
        carry = first(given.start)
        begin = time.perf_counter()
        jax.jit(function, donate_argnums=0).lower(carry, batch)
        return {"trace": time.perf_counter() - begin}
    if rival == "replay":
        call = step(rival, given)
        whole = harness.timed(call)
        return {"trace": whole - harness.timed(call)}
    return {}


def measure(rival: str, name: str, steps: list[int], folder: Path) -> dict[str, float]:
    kind = rival.removesuffix(", warm")
    cache = folder / kind
    if cache.exists() != rival.endswith(", warm"):
        raise SystemExit(
            f"--rivals: {kind!r} and then {rival!r}, so that the warm start finds the files of the cold one"
        )
    cache.mkdir(exist_ok=True)
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "TORCHINDUCTOR_CACHE_DIR": str(cache),
        "TMPDIR": str(cache),  # torch keeps precompiled headers there
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "JAX_PLATFORMS": "cpu",
    }
    program = f"from recipes.bench.start import child; child({kind!r}, {name!r}, {steps!r})"
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    figures = json.loads(done.stdout.splitlines()[-1])
    print(name, rival, figures, flush=True)
    return figures


def installed(names: list[str]) -> list[str]:
    try:
        import jax  # noqa: F401  # pyright: ignore[reportMissingImports]
        import optax  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        print("JAX or Optax is not installed; its rows are left out")
        return [name for name in names if not name.startswith("jax")]
    return names


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", nargs="+", default=["mlp", "lenet", "narrow"], choices=networks.NAMES)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--steps", nargs="+", type=int, default=[100, 1000])
    parser.add_argument("--rivals", nargs="+", default=list(RIVALS), choices=list(RIVALS))
    options = parser.parse_args()
    names = installed(list(dict.fromkeys([BASE, *options.rivals])))
    columns: dict[str, dict[str, object]] = {}
    traces: dict[str, dict[str, object]] = {}
    for model in options.models:
        found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
        for _ in range(options.rounds):
            with tempfile.TemporaryDirectory() as folder:
                for name in names:
                    found[name].append(measure(name, model, options.steps, Path(folder)))
        middle = {
            name: {key: statistics.median(row[key] for row in rows) for key in rows[0]} for name, rows in found.items()
        }
        for number in (1, *options.steps):
            title = f"{model}: first result" if number == 1 else f"{model}: {number:,} steps"
            seconds = {RIVALS[name]: row[str(number)] for name, row in middle.items()}
            columns[title] = dict(harness.ratios(seconds, RIVALS[BASE]))
        if "trace" in middle.get("jax", {}):
            seconds = {RIVALS[name]: row["trace"] for name, row in middle.items() if "trace" in row}
            traces[model] = dict(harness.ratios(seconds, RIVALS["jax"]))
    body = (
        "Seconds from the import to the result of a train step (batch 64, SGD, float32, CPU) in a new process, over those "
        f"of {RIVALS[BASE]}; smaller is faster. Caches on disk are empty unless the row says otherwise.\n\n"
    ) + harness.columns_table(columns)
    if traces:
        body += "\n\nTime of tracing the step in a process that has traced it before, over that of JAX's lowering:\n\n"
        body += harness.columns_table(traces)
    harness.report("start", "From the import to the first steps", body, ["jax", "optax"])
