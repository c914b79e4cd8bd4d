"""Time of one train step by fnn (eager, replayed, compiled), torch.nn + torch.optim, torch.compile, TorchOpt and JAX.

The flags are ``--models mlp lenet narrow residual transformer``, ``--batch 64 1024`` and ``--optimizers sgd adam``. Each
model has a section of the report, which replaces its section of an earlier run. The timing of one column takes
``--seconds 15``; compilation takes another one to two minutes, and ``--without-inductor`` omits the rivals that Inductor
compiles. With ``--device cuda --dtype bfloat16 --tf32``, the parameters, their update and the loss stay float32, and the
layers compute in the narrower type. ``--models large --batch 8192`` is for GPUs. The CUDA part has not been run on a GPU.
"""

import argparse

import torch

from recipes.bench import floor, harness, networks, rivals

BASE = "torch.nn + torch.optim"
REPLAY = "fnn.jit, replay, donated"
INDUCTOR = "fnn.jit, inductor, donated"


def steps(given: rivals.Problem, inductor: bool = True) -> dict[str, rivals.Step]:
    calls: dict[str, rivals.Step] = {BASE: rivals.eager(given), "torch.nn + fused": rivals.eager(given, fused=True)}
    rivals.add(calls, "TorchOpt, functional", lambda: rivals.torchopt(given))
    calls["fnn, eager"] = rivals.ours(given, jit=False)
    calls[REPLAY] = rivals.ours(given)
    if inductor:
        calls["torch.compile of the loss + fused"] = rivals.eager(given, compiled=True, fused=True)
        calls["torch.compile of the step, by hand"] = rivals.by_hand(given)
        calls[INDUCTOR] = rivals.ours(given, backend="inductor")
    if inductor and given.device.type == "cuda":
        graphs = "reduce-overhead"
        calls[f"torch.compile of the loss + fused, {graphs}"] = rivals.eager(
            given, compiled=True, mode=graphs, fused=True
        )
        calls[f"{INDUCTOR}, {graphs}"] = rivals.ours(given, backend="inductor", mode=graphs)
    rivals.add(calls, "JAX + Optax, jit, donated", lambda: rivals.with_jax(given))
    return calls


def column(given: rivals.Problem, options: argparse.Namespace) -> dict[str, object]:
    """The ratios of the rivals, and after them the floor."""
    torch.compiler.reset()
    calls = steps(given, not options.without_inductor)
    best = REPLAY if options.without_inductor else INDUCTOR
    rivals.agree(calls, given.dtype)
    seconds = harness.interleave(calls, **harness.plan(calls, options.seconds))
    bound = floor.of_step(given, floor.rates(given.device.type, given.dtype, options.floor_size), calls[best])
    cells: dict[str, object] = dict(harness.ratios(seconds, BASE))
    cells["floor: bytes over copy bandwidth"] = f"{bound.bytes / seconds[BASE]:.3f}"
    cells["floor: operations over matrix rate"] = bound.operations / seconds[BASE]
    cells[f"share of the matrix rate, {best}"] = bound.operations / seconds[best]
    if bound.launches is not None:
        cells[f"kernels launched, {best}"] = bound.launches
    return cells


def main() -> None:
    parser = argparse.ArgumentParser()
    harness.add_device_flags(parser)
    parser.add_argument("--models", nargs="+", choices=networks.NAMES, metavar="MODEL")
    parser.set_defaults(models=["mlp", "lenet", "narrow", "residual", "transformer"])
    parser.add_argument("--batch", nargs="+", type=int, default=[64, 1024])
    parser.add_argument("--optimizers", nargs="+", default=["sgd", "adam"])
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--without-inductor", action="store_true", help="omit the rivals that Inductor compiles")
    parser.add_argument(
        "--floor-size",
        type=int,
        default=0,
        help="side of the square matrices that the floor is measured with; 0 chooses by device",
    )
    options = parser.parse_args()
    dtype = harness.prepare(options)
    for name in options.models:
        columns: dict[str, dict[str, object]] = {}
        for optimizer in options.optimizers:
            for count in options.batch:
                given = rivals.problem(name, optimizer, count, options.device, dtype)
                columns[f"{optimizer}, {count:,}"] = column(given, options)
                print(f"{name}, {optimizer}, {count:,}: {columns[f'{optimizer}, {count:,}']}", flush=True)
        body = (
            f"Time of one step over that of {BASE}, eager; smaller is faster. Columns: optimizer and batch. The losses "
            "of the first and the third step of all rivals agree.\n\n"
        )
        harness.report(
            harness.section("step", name, options),
            f"Train step, {networks.describe(name)}{harness.where(options)}",
            body + harness.columns_table(columns),
            ["torchopt", "jax", "optax"],
        )
