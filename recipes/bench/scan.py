"""Time of many steps in one call, by ``fnn.scan``, ``fnn.compile.epoch`` and ``lax.scan``, and of loops over one step.

The flags are ``--models mlp narrow``, ``--steps 200``, ``--batch 64``, ``--optimizers adam`` and ``--seconds 30``; the
data are on the device. The compile time of scans of ``--lengths 10 100 1000`` is compared with that of one step.
``--device cuda --dtype bfloat16 --tf32`` are as in ``step``. The CUDA part has not been run on a GPU.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import fnn
from recipes.bench import harness, networks, rivals

BASE = "torch.nn + torch.optim, loop"
ONE = "fnn.jit, inductor, donated, loop"
Batch = tuple[Tensor, Tensor]


def loop(step: rivals.Step, batches: list[Batch]) -> Callable[[], Tensor]:
    return lambda: torch.stack([step(batch) for batch in batches])


def whole(
    given: rivals.Problem, run: Callable, inputs: tuple, backend: str = "inductor", mode: str | None = None
) -> Callable[[], Tensor]:
    """A call of the jitted ``run(carry, *inputs) -> (carry, losses)``, which donates the carry."""
    compiled = fnn.jit(run, donate_argnums=0, backend=backend, mode=mode)
    held = [rivals.first_carry(given, rivals.fnn_function(given)[1])]

    def call() -> Tensor:
        held[0], losses = compiled(held[0], *inputs)
        return losses

    return call


def scanned(given: rivals.Problem, batches: Batch, unroll: int = 1, **settings: Any) -> Callable[[], Tensor]:
    step, _ = rivals.fnn_function(given)
    return whole(given, lambda carry, batches: fnn.scan(step, carry, batches, unroll=unroll), (batches,), **settings)


def jax_scanned(given: rivals.Problem, batches: Batch) -> Callable[[], Any]:
    jax, step, first, _ = rivals.jax_function(given)
    compiled = jax.jit(lambda carry, batches: jax.lax.scan(step, carry, batches), donate_argnums=0)
    held, inputs = [first(given.start)], rivals.jax_arrays(batches)

    def call() -> Any:
        held[0], losses = compiled(held[0], inputs)
        return losses

    return call


def jax_loop(given: rivals.Problem, batches: list[Batch]) -> Callable[[], Any]:
    step, inputs = rivals.with_jax(given), [rivals.jax_arrays(batch) for batch in batches]
    import jax.numpy as jnp  # pyright: ignore[reportMissingImports]

    return lambda: jnp.stack([step(batch) for batch in inputs])


def runs(given: rivals.Problem, steps: int, unrolls: list[int]) -> dict[str, Callable[[], Any]]:
    """The rivals. All take the batches that ``fnn.compile.epoch`` draws from the data with its key."""
    count, key = len(given.y), fnn.random.key(3).to(given.device)
    x, y = networks.batch(given.name, steps * count)
    data = x.to(given.device, given.dtype), y.to(given.device)
    order = fnn.random.permutation(key, steps * count)
    xs, ys = (data[i][order].reshape(steps, count, *data[i].shape[1:]) for i in (0, 1))
    batches = list(zip(xs, ys, strict=True))
    step, _ = rivals.fnn_function(given)
    calls: dict[str, Callable[[], Any]] = {
        BASE: loop(rivals.eager(given), batches),
        "torch.nn + fused, loop": loop(rivals.eager(given, fused=True), batches),
        "fnn.jit, replay, donated, loop": loop(rivals.ours(given), batches),
        "fnn.jit of fnn.scan, replay": scanned(given, (xs, ys), backend="replay"),
        ONE: loop(rivals.ours(given, backend="inductor"), batches),
    }
    for unroll in unrolls:
        calls[f"fnn.jit of fnn.scan, inductor, unroll {unroll}"] = scanned(given, (xs, ys), unroll)
    if given.device.type == "cuda":
        graphs = "reduce-overhead"
        calls[f"{ONE}, {graphs}"] = loop(rivals.ours(given, backend="inductor", mode=graphs), batches)
        calls[f"fnn.jit of fnn.scan, inductor, {graphs}"] = scanned(given, (xs, ys), mode=graphs)
    epoch = lambda carry, data, key: fnn.compile.epoch(step, carry, data, key, count)
    calls["fnn.jit of fnn.compile.epoch, inductor, which draws the order"] = whole(given, epoch, (data, key))
    rivals.add(calls, "JAX, jit, donated, loop", lambda: jax_loop(given, batches))
    rivals.add(calls, "JAX, jit of lax.scan, donated", lambda: jax_scanned(given, (xs, ys)))
    return calls


def compile_seconds(call: Callable[[], object]) -> float:
    """The time of the first call less that of the second, without caches on disk."""
    torch.compiler.reset()
    first = harness.timed(call)
    return first - harness.timed(call)


def compiling(given: rivals.Problem, lengths: list[int]) -> dict[str, list[object]]:
    """Compile times over that of one step: a row for fnn and one for JAX, with a cell for each length."""
    x, y = given.batch
    many = lambda k: (x.expand(k, *x.shape).clone(), y.expand(k, *y.shape).clone())
    makers: dict[str, tuple[Callable, Callable]] = {
        "fnn.jit of fnn.scan, inductor": (
            lambda: rivals.ours(given, backend="inductor"),
            lambda k: scanned(given, many(k)),
        ),
        "JAX, jit of lax.scan": (lambda: rivals.with_jax(given), lambda k: jax_scanned(given, many(k))),
    }
    rows: dict[str, list[object]] = {}
    for name, (one, scan) in makers.items():
        try:
            base = compile_seconds(one())
            rows[name] = [compile_seconds(scan(k)) / base for k in lengths]
        except ImportError as error:
            print(f"{name}: left out, {error}")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    harness.add_device_flags(parser)
    parser.add_argument("--models", nargs="+", choices=networks.NAMES, metavar="MODEL", default=["mlp", "narrow"])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--unroll", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--lengths", nargs="*", type=int, default=[10, 100, 1000])
    parser.add_argument("--optimizers", nargs="+", default=["adam"])
    parser.add_argument("--seconds", type=float, default=30.0)
    options = parser.parse_args()
    dtype = harness.prepare(options)
    torch.compiler.config.force_disable_caches = True
    columns: dict[str, dict[str, float]] = {}
    compiled: list[list[object]] = []
    for name in options.models:
        for optimizer in options.optimizers:
            given = rivals.problem(name, optimizer, options.batch, options.device, dtype)
            torch.compiler.reset()
            calls = runs(given, options.steps, options.unroll)
            rivals.agree(calls, dtype, options.steps)
            seconds = harness.interleave(calls, **harness.plan(calls, options.seconds))
            columns[f"{name}, {optimizer}"] = harness.ratios(seconds, BASE)
            print(f"{name}, {optimizer}: {columns[f'{name}, {optimizer}']}", flush=True)
            for row, cells in compiling(given, options.lengths).items() if options.lengths else ():
                compiled.append([f"{name}, {optimizer}: {row}", *cells])
    body = (
        f"{options.steps} steps of batch {options.batch} from data on the device, losses kept: time over that of "
        f"{BASE}; smaller is faster. All take the same batches in the same order, and the losses of the first and "
        "the third step agree.\n\n" + harness.columns_table(columns)
    )
    if compiled:
        header = ["", *(f"{length} steps" for length in options.lengths)]
        body += "\n\nCompile time over that of one step, by the same library, without caches:\n\n"
        body += harness.table(header, compiled)
    title = f"Many steps in one call{harness.where(options)}"
    harness.report(harness.section("scan", "", options), title, body, ["jax", "optax"])
