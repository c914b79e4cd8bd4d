"""The first call of a compiled train step in a fresh process: cold, warm from torch's cache, and from a shipped file.

``--models mlp lenet``, ``--rounds 1``. Processes run one after the other, each on one thread.
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

import torch
from torch import Tensor

import fnn
from recipes.bench import harness, rivals

RIVALS = {
    "fnn": "fnn.jit, donated",
    "torch": "torch.nn, torch.compile of the loss, fused optimizer",
    "jax": "JAX + Optax, jit, donated",
}
# rival and kind of start, in this order: a cold start fills the folder of the warm one, a packed one writes the file
# of the shipped one
STARTS = [
    ("torch", "cold"), ("torch", "warm"),
    ("fnn", "cold"), ("fnn", "warm"), ("fnn", "packed"), ("fnn", "shipped"),
    ("jax", "cold"), ("jax", "warm"),
]  # fmt: skip


def fnn_steps(given: rivals.Problem, shipped: bool) -> dict[str, Callable]:
    """The train step, eager and compiled."""
    step, optimizer = rivals.fnn_function(given)
    held = [rivals.first_carry(given, optimizer)]

    def eager() -> Tensor:
        held[0], value = step(held[0], given.batch)
        return value

    # without precompiled headers, which no file holds, a start from a file calls no C++ compiler
    options = {"cpp_cache_precompile_headers": False} if shipped else None
    return {"eager": eager, "compiled": rivals.ours(given, batch_argnums=1, options=options)}


def child(rival: str, kind: str, name: str, file: str) -> None:
    """Print the seconds of the first call, and those of a later call and of an eager step."""
    torch.set_num_threads(1)
    given = rivals.problem(name, "sgd", 64)
    if rival == "fnn":
        calls = fnn_steps(given, kind in ("packed", "shipped"))
    elif rival == "torch":
        torch.optim.SGD([torch.zeros(1)])  # imports the compiler
        calls = {"eager": rivals.eager(given), "compiled": rivals.eager(given, compiled=True, fused=True)}
    else:
        calls = {"compiled": rivals.with_jax(given)}
    if "eager" in calls:
        calls["eager"]()  # imports the compiler, for its own reasons
    begin = time.perf_counter()
    if kind == "shipped":
        fnn.load_compiled(file)
    harness.wait(calls["compiled"]())
    first = time.perf_counter() - begin
    if kind == "packed":
        fnn.save_compiled(file)
    print(json.dumps({"first": first} | harness.interleave(calls, rounds=20, inner=5)))


def measure(rival: str, kind: str, name: str, folder: Path) -> dict[str, float]:
    cache = folder / (rival if kind in ("cold", "warm") else f"{rival}-{kind}")
    cache.mkdir(exist_ok=True)
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "TORCHINDUCTOR_CACHE_DIR": str(cache),
        "TMPDIR": str(cache),  # where torch keeps precompiled headers
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "JAX_PLATFORMS": "cpu",
    }
    program = (
        f"from recipes.bench.start import child; child({rival!r}, {kind!r}, {name!r}, {str(folder / 'step.bin')!r})"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    figures = json.loads(done.stdout.splitlines()[-1])
    print(name, rival, kind, figures, flush=True)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", nargs="+", default=["mlp", "lenet"], choices=["mlp", "lenet"])
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    starts = STARTS
    try:
        import jax  # noqa: F401  # pyright: ignore[reportMissingImports]
        import optax  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        print("JAX or Optax is not installed: left out")
        starts = [pair for pair in STARTS if pair[0] != "jax"]
    rows: dict[tuple[str, str], list] = {pair: [f"{RIVALS[pair[0]]}: {pair[1]}"] for pair in starts}
    for name in options.models:
        found: dict[tuple[str, str], list[dict[str, float]]] = {pair: [] for pair in starts}
        for _ in range(options.rounds):
            with tempfile.TemporaryDirectory() as folder:
                for pair in starts:
                    found[pair].append(measure(*pair, name, Path(folder)))
        middle = {
            pair: {key: statistics.median(row[key] for row in figures) for key in figures[0]}
            for pair, figures in found.items()
        }
        base = middle["torch", "cold"]["first"]
        for pair, row in middle.items():
            gain = row["eager"] - row["compiled"] if "eager" in row else 0.0
            pays = "-" if "eager" not in row else f"{row['first'] / gain:,.0f}" if gain > 0 else "never"
            rows[pair] += [row["first"] / base, pays]
    header = [""]
    for name in options.models:
        header += [f"{name}: first call", f"{name}: steps until it pays"]
    body = (
        "The first call of a train step (batch 64, SGD, float32, CPU) in a fresh process, imports apart, over that of "
        "torch.compile's with empty caches. Warm: the cache of an earlier process. Packed: cold, without precompiled "
        "headers; shipped: from the file that it saved, with empty caches. Steps until it pays: the first call over "
        "what a compiled step saves of an eager step of the same library.\n\n"
    )
    harness.report("start", "Cold and warm starts", body + harness.table(header, list(rows.values())), ["jax", "optax"])
