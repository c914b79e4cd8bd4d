"""Peak memory of a train step of each rival, and of the eager gradient compared with ``.backward()``.

By default, the step is that of Adam on a perceptron with 100 million parameters. Each rival takes three steps in its
own process. The report gives the peak of the second and third step, less what the process holds when the tensors have
been freed; this needs Linux. The flags are ``--models mlp lenet transformer``, ``--batch 1024``, ``--optimizer adam``,
and ``--dtype`` as in ``step``. With ``--device cuda``, the report gives the most memory that the allocator had given to
tensors; this has not been run on a GPU.

``--parts step gradients`` chooses the parts. The part of the gradients also measures time; its flags are
``--rows deep lenet narrow scan``, ``--gradient-batch 4096`` and ``--rounds 15``.
"""

import argparse
import gc
import subprocess
import sys
from collections.abc import Callable

import torch

from recipes.bench import gradients, harness, networks, rivals

RIVALS: dict[str, Callable[[rivals.Problem], rivals.Step]] = {
    "torch.optim, fused": lambda given: rivals.eager(given, fused=True),
    "torch.optim, foreach": lambda given: rivals.eager(given, foreach=True),
    "torch.compile of the loss + fused": lambda given: rivals.eager(given, compiled=True, fused=True),
    "torch.compile of the step, by hand": rivals.by_hand,
    "TorchOpt, functional": rivals.torchopt,
    "fnn, eager": lambda given: rivals.ours(given, jit=False),
    "fnn.jit, replay, donated": rivals.ours,
    "fnn.jit, inductor, donated": lambda given: rivals.ours(given, backend="inductor"),
    "fnn.jit, inductor": lambda given: rivals.ours(given, donated=False, backend="inductor"),
    "JAX + Optax, jit, donated": rivals.with_jax,
}
BASE = "torch.optim, fused"


def once(name: str, given: rivals.Problem) -> None:
    """Print the peak memory of one rival in bytes, or nothing if it is not installed."""
    try:
        step = RIVALS[name](given)
    except ImportError as error:
        print(error, file=sys.stderr)
        return
    given.start.clear()  # every rival has its own copy
    harness.wait(step())
    if given.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        harness.reset_peak()
    step()
    harness.wait(step())
    if given.device.type == "cuda":
        print("TENSORS", cuda_peak(jax=name.startswith("JAX")))
        return
    peak = harness.resident("VmHWM")
    del step, given
    gc.collect()
    harness.trim()
    print("TENSORS", peak - harness.resident("VmRSS"))


def cuda_peak(jax: bool) -> int:
    """Peak memory of tensors in bytes. JAX counts it from the start of the process, so it includes compilation."""
    if not jax:
        return torch.cuda.max_memory_allocated()
    import jax as library  # pyright: ignore[reportMissingImports]

    return library.devices()[0].memory_stats()["peak_bytes_in_use"]


def main() -> None:
    parser = argparse.ArgumentParser()
    harness.add_device_flags(parser)
    parser.add_argument("--models", nargs="+", choices=networks.NAMES, metavar="MODEL", default=["100m"])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--optimizer", choices=["sgd", "adam"], default="adam")
    parser.add_argument("--once", help=argparse.SUPPRESS)
    parser.add_argument("--parts", nargs="+", choices=["step", "gradients"], default=["step", "gradients"])
    parser.add_argument("--rows", nargs="+", choices=gradients.ROWS, default=list(gradients.ROWS))
    parser.add_argument("--gradient-batch", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    dtype = harness.prepare(options)
    if "gradients" in options.parts:
        table = gradients.section(options.rows, options.gradient_batch, options.rounds)
        harness.report("memory gradients", "Eager gradients", table)
    if "step" not in options.parts:
        return
    if options.once:
        (name,) = options.models
        kind = (options.optimizer, options.batch, options.device, dtype)
        return once(options.once, rivals.problem(name, *kind))
    columns: dict[str, dict[str, object]] = {}
    for model in options.models:
        peaks = {}
        parameters = sum(leaf.nbytes for leaf in rivals.start(model, "cpu").values())
        for name in RIVALS:
            flags = [
                *sys.argv[1:],
                "--models",
                model,
                "--parts",
                "step",
                "--once",
                name,
            ]  # the last value of a repeated flag counts
            command = [sys.executable, "-m", "recipes.bench", "memory", *flags]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            if "TENSORS" in done.stdout:
                peaks[name] = int(done.stdout.rsplit("TENSORS", 1)[1])
        columns[f"{model}, ratio"] = {name: peak / peaks[BASE] for name, peak in peaks.items()}
        columns[f"{model}, copies"] = {name: peak / parameters for name, peak in peaks.items()}
    models = "; ".join(f"{name}: {networks.describe(name)}" for name in options.models)
    body = (
        f"Peak memory of a step of {options.optimizer} at batch {options.batch:,}, less what the process holds without "
        f"tensors, over that of torch.nn + {BASE} (ratio), and in copies of the parameters. {models}.\n\n"
    )
    part = "" if options.models == ["100m"] else f"{' '.join(options.models)} {options.batch}"
    name = harness.section("memory", part, options)
    harness.report(name, f"Memory of a step{harness.where(options)}", body + harness.columns_table(columns), ["jax"])
