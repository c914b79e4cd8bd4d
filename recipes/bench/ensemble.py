"""Time of a train step of ten networks at once by ``fnn.vmap``, by loops over the networks, and by JAX's ``vmap``.

The flags are ``--models small mlp lenet``, ``--count 10``, ``--batch 64``, ``--optimizers adam`` and ``--seconds 15``.
All networks see the same batch; each starts from different parameters. ``--device cuda --dtype bfloat16 --tf32`` are as
in ``step``. The CUDA part has not been run on a GPU.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import fnn
from recipes.bench import harness, networks, rivals

BASE = "torch.nn + torch.optim, loop"
OURS = "fnn.jit of fnn.vmap, inductor, donated"


def loop(calls: list[rivals.Step]) -> Callable[[], Tensor]:
    return lambda: torch.stack([call() for call in calls])


def shared_step(members: list[rivals.Problem]) -> Callable[[], Tensor]:
    """A loop over the networks that calls one compiled step."""
    step, optimizer = rivals.fnn_function(members[0])
    compiled = fnn.jit(step, donate_argnums=0, backend="inductor")
    held = [rivals.first_carry(given, optimizer) for given in members]

    def call() -> Tensor:
        values = []
        for i, carry in enumerate(held):
            held[i], value = compiled(carry, members[0].batch)
            values.append(value)
        return torch.stack(values)

    return call


def mapped(members: list[rivals.Problem], jit: bool = True, **settings: Any) -> Callable[[], Tensor]:
    step, optimizer = rivals.fnn_function(members[0])
    every: Callable = fnn.vmap(step, in_dims=(0, None))
    if jit:
        every = fnn.jit(every, donate_argnums=0, **settings)
    held = [fnn.tree.stack([rivals.first_carry(given, optimizer) for given in members])]

    def call() -> Tensor:
        held[0], losses = every(held[0], members[0].batch)
        return losses

    return call


def jax_shared(members: list[rivals.Problem]) -> Callable[[], Any]:
    jax, step, first, batch = rivals.jax_function(members[0])
    compiled = jax.jit(step, donate_argnums=0)
    held = [first(given.start) for given in members]

    def call() -> Any:
        values = []
        for i, carry in enumerate(held):
            held[i], value = compiled(carry, batch)
            values.append(value)
        return jax.numpy.stack(values)

    return call


def jax_mapped(members: list[rivals.Problem]) -> Callable[[], Any]:
    jax, step, first, batch = rivals.jax_function(members[0])
    compiled = jax.jit(jax.vmap(step, (0, None)), donate_argnums=0)
    carries = [first(given.start) for given in members]
    held = [jax.tree.map(lambda *leaves: jax.numpy.stack(leaves), *carries)]

    def call() -> Any:
        held[0], losses = compiled(held[0], batch)
        return losses

    return call


def steps(members: list[rivals.Problem]) -> dict[str, Callable[[], Any]]:
    calls: dict[str, Callable[[], Any]] = {
        BASE: loop([rivals.eager(given) for given in members]),
        "torch.nn + fused, loop": loop([rivals.eager(given, fused=True) for given in members]),
        "fnn.jit, inductor, donated, loop": shared_step(members),
        "fnn.vmap, eager": mapped(members, jit=False),
        "fnn.jit of fnn.vmap, replay, donated": mapped(members),
        OURS: mapped(members, backend="inductor"),
    }
    if members[0].device.type == "cuda":
        calls[f"{OURS}, reduce-overhead"] = mapped(members, backend="inductor", mode="reduce-overhead")
    rivals.add(calls, "JAX, jit, donated, loop", lambda: jax_shared(members))
    rivals.add(calls, "JAX, jit of vmap, donated", lambda: jax_mapped(members))
    return calls


def main() -> None:
    parser = argparse.ArgumentParser()
    harness.add_device_flags(parser)
    parser.add_argument("--models", nargs="+", choices=networks.NAMES, metavar="MODEL")
    parser.set_defaults(models=["small", "mlp", "lenet"])
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--optimizers", nargs="+", default=["adam"])
    parser.add_argument("--seconds", type=float, default=15.0)
    options = parser.parse_args()
    dtype = harness.prepare(options)
    columns: dict[str, dict[str, float]] = {}
    for name in options.models:
        for optimizer in options.optimizers:
            given = rivals.problem(name, optimizer, options.batch, options.device, dtype)
            members = [given._replace(start=rivals.start(name, options.device, seed)) for seed in range(options.count)]
            torch.compiler.reset()
            calls = steps(members)
            rivals.agree(calls, dtype)
            seconds = harness.interleave(calls, **harness.plan(calls, options.seconds))
            columns[f"{name}, {optimizer}"] = harness.ratios(seconds, BASE)
    models = "; ".join(f"{name}: {networks.describe(name)}" for name in options.models)
    body = (
        f"One step of {options.count} networks, batch {options.batch}: time over that of {BASE}; smaller is faster. "
        f"All rivals' losses of the first and the third step agree. {models}.\n\n"
    )
    title = f"{options.count} networks at once{harness.where(options)}"
    name = harness.section("ensemble", "", options)
    harness.report(name, title, body + harness.columns_table(columns), ["jax", "optax"])
