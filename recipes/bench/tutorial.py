"""Time of the tutorial's whole run on Fashion-MNIST, from process start to exit, by the recipe and the tutorial's loop.

The flags are ``--epochs 10``, ``--rounds 1`` and ``--rivals replay cold warm``. The environment variable FNN_DATA names
the folder of the data.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from recipes.bench import harness

LOOP = Path(__file__).with_name("tutorial_loop.py")
RECIPE = ["--dataset", "fashion_mnist", "--no-shuffle", "--learning-rate", "1e-3", "--momentum", "0", "--device", "cpu"]
RIVALS = {
    "replay": "python -m recipes.mlp",
    "cold": "--compile, first time on this machine",
    "warm": "--compile, again",
}
# largest differences at the tenth epoch; runs with different seeds differ by as much
CLOSE = {"test_accuracy": 0.015, "test_loss": 0.025}


def timed(command: list[str], cache: Path | None = None) -> tuple[float, str]:
    """Run a process on one thread; return the seconds from start to exit, and what it printed.

    torch writes its caches and temporary files to the folder ``cache``.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(LOOP.parents[2])}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # so that libraries are byte-compiled once, not in every process
    if cache:
        cache.mkdir(exist_ok=True)
        environment |= {"TORCHINDUCTOR_CACHE_DIR": str(cache), "TMPDIR": str(cache)}
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *command], env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return time.perf_counter() - start, done.stdout


def tutorial(root: str, epochs: int) -> tuple[float, dict[str, float]]:
    seconds, out = timed([str(LOOP), root, str(epochs)])
    return seconds, json.loads(out.splitlines()[-1])


def recipe(name: str, root: str, epochs: int, folder: Path) -> tuple[float, dict[str, float]]:
    """Run the recipe. ``cold`` must run before ``warm``, because it fills the cache."""
    flags = [*RECIPE, "--data-root", root, "--output", str(folder / name), "--epochs", str(epochs)]
    if name in ("cold", "warm"):
        flags += ["--compile"]
    seconds, _ = timed(["-m", "recipes.mlp", *flags], folder / "cache")
    return seconds, json.loads((folder / name / "metrics.jsonl").read_text().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--rivals", nargs="+", default=list(RIVALS), choices=list(RIVALS))
    options = parser.parse_args()
    root = os.environ.get("FNN_DATA")
    if root is None:
        sys.exit("FNN_DATA is not set: set it to the folder that contains FashionMNIST/raw")
    timed(
        ["-c", "import torchvision, fnn, recipes.training"]
    )  # byte-compiles the libraries and reads them into the file cache
    seconds: dict[str, list[float]] = {}
    figures: dict[str, dict[str, float]] = {}
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            for name in ["tutorial", *options.rivals]:
                if name == "tutorial":
                    taken, figures[name] = tutorial(root, options.epochs)
                else:
                    taken, figures[name] = recipe(name, root, options.epochs, Path(folder))
                seconds.setdefault(name, []).append(taken)
                print(name, figures[name], flush=True)
    if options.epochs >= 10:  # in earlier epochs runs with different seeds differ by more
        for name, row in figures.items():
            for figure, most in CLOSE.items():
                gap = abs(row[figure] - figures["tutorial"][figure])
                assert gap <= most, f"{name}: {figure} is {gap:.4f} from the tutorial's"
    whole = harness.ratios({name: statistics.median(times) for name, times in seconds.items()}, "tutorial")
    titles = {"tutorial": "the tutorial's own loop"} | RIVALS
    rows = [
        [titles[name], whole[name], f"{row['test_accuracy']:.1%}", f"{row['test_loss']:.3f}"]
        for name, row in figures.items()
    ]
    body = (
        f"From process start to exit, {options.epochs} epoch(s) of MLP 784-512-512-10 on Fashion-MNIST, batch 64, "
        "SGD 1e-3, stored order, test set after every epoch; time over that of the tutorial's own loop (torchvision, "
        "ToTensor, DataLoader, nn.Module, torch.optim.SGD), one core, one thread. The recipe also writes checkpoints, "
        "metrics and pictures.\n\n"
    )
    header = ["", "time", "test accuracy", "test loss"]
    harness.report("tutorial", "The whole tutorial run", body + harness.table(header, rows), ["torchvision"])
