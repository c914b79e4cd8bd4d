"""Time of per-sample gradients, their norms and sums of clipped ones, by fnn, a loop, Opacus, BackPACK and JAX.

The flags are ``--models mlp lenet wide``, ``--batch 64 256`` and ``--rounds 7``. With ``--memory`` the peak memory of
clipped gradients of LeNet at batch 4,096 is measured instead.
"""

import argparse
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fnn
from recipes.bench import harness

WIDTHS = {"mlp": (784, 512, 512, 10), "wide": (784, 2048, 2048, 10)}
LIMIT = 1.0
Batch = tuple[Tensor, Tensor]


def network(name: str) -> nn.Module:
    if name in WIDTHS:
        a, b, c, d = WIDTHS[name]
        return nn.Sequential(nn.Linear(a, b), nn.ReLU(), nn.Linear(b, c), nn.ReLU(), nn.Linear(c, d))
    return nn.Sequential(
        nn.Conv2d(1, 6, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(576, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, 10),
    )


def model(name: str) -> fnn.Layer:
    if name in WIDTHS:
        return fnn.models.mlp(*WIDTHS[name])
    pool = fnn.layers.max_pool2d(2)
    return fnn.layers.sequential(
        fnn.layers.conv2d(1, 6, 3),
        fnn.layers.relu,
        pool,
        fnn.layers.conv2d(6, 16, 3),
        fnn.layers.relu,
        pool,
        fnn.layers.flatten,
        fnn.layers.linear(576, 120),
        fnn.layers.relu,
        fnn.layers.linear(120, 84),
        fnn.layers.relu,
        fnn.layers.linear(84, 10),
    )


def problem(name: str, count: int) -> tuple[nn.Module, Any, Callable, Batch]:
    torch.manual_seed(0)
    net, layers = network(name), model(name)
    params = fnn.tree.from_state_dict({path: leaf.detach().clone() for path, leaf in net.named_parameters()})
    shape = (784,) if name in WIDTHS else (1, 32, 32)
    batch = (
        fnn.random.normal(fnn.random.key(1), (count, *shape)),
        fnn.random.randint(fnn.random.key(2), (count,), 0, 10),
    )
    return net, params, lambda p, batch: fnn.losses.cross_entropy(layers.apply(p, batch[0]), batch[1]), batch


def gradients(name: str, count: int) -> dict[str, Callable[[], object]]:
    net, params, loss, batch = problem(name, count)
    each = fnn.per_sample_grad(loss)
    replayed, compiled = fnn.jit(each), fnn.jit(each, backend="inductor")
    grad = fnn.grad(loss)
    rows = [(batch[0][i : i + 1], batch[1][i : i + 1]) for i in range(count)]
    calls: dict[str, Callable[[], object]] = {
        "fnn.jit(per_sample_grad), inductor": lambda: compiled(params, batch),
        "fnn.jit(per_sample_grad)": lambda: replayed(params, batch),
        "fnn.per_sample_grad": lambda: each(params, batch),
        "loop over grad": lambda: [grad(params, row) for row in rows],
        "floor: writing the result": lambda: [
            torch.full((count, *leaf.shape), 1.0) for leaf in fnn.tree.leaves(params)
        ],
    }
    for mode in ("hooks", "functorch"):
        add(calls, f"Opacus, {mode}", lambda mode=mode: opacus(name, batch, mode))
    add(calls, "BackPACK, BatchGrad", lambda: backpack(name, batch, "BatchGrad"))
    add(calls, "JAX, jit(vmap(grad))", lambda: with_jax(name, net, batch, clip=False))
    return calls


def clipped(name: str, count: int) -> dict[str, Callable[[], object]]:
    net, params, loss, batch = problem(name, count)
    calls: dict[str, Callable[[], object]] = {}
    for method in ("ghost", "exact"):
        call = fnn.clipped_grad(loss, LIMIT, method=method)
        for backend in ("inductor", "replay"):
            jitted = fnn.jit(call, backend=backend)
            calls[f"fnn.jit(clipped_grad), {method}, {backend}"] = lambda jitted=jitted: jitted(params, batch)
        calls[f"fnn.clipped_grad, {method}"] = lambda call=call: call(params, batch)
    add(calls, "Opacus, ghost clipping", lambda: opacus_ghost(name, batch))
    add(calls, "JAX, jit, vmap(grad) and clip", lambda: with_jax(name, net, batch, clip=True))
    return calls


def norms(name: str, count: int) -> dict[str, Callable[[], object]]:
    _, params, loss, batch = problem(name, count)
    calls: dict[str, Callable[[], object]] = {}
    for method in ("ghost", "exact"):
        call = fnn.gradients.per_sample_norms(loss, method=method)
        for backend in ("inductor", "replay"):
            jitted = fnn.jit(call, backend=backend)
            calls[f"fnn.jit(per_sample_norms), {method}, {backend}"] = lambda jitted=jitted: jitted(params, batch)
        calls[f"fnn.gradients.per_sample_norms, {method}"] = lambda call=call: call(params, batch)
    add(calls, "BackPACK, BatchL2Grad", lambda: backpack(name, batch, "BatchL2Grad"))
    return calls


def add(calls: dict, label: str, make: Callable[[], Callable]) -> None:
    try:
        calls[label] = make()
    except ImportError as error:
        print(f"{label}: left out, {error}")


def opacus(name: str, batch: Batch, mode: str) -> Callable[[], object]:
    from opacus.grad_sample import GradSampleModule  # pyright: ignore[reportMissingImports]

    net = GradSampleModule(network(name), force_functorch=mode == "functorch")

    def call() -> None:
        for leaf in net.parameters():
            leaf.grad = None
            leaf.grad_sample = None  # pyright: ignore[reportAttributeAccessIssue]
        F.cross_entropy(net(batch[0]), batch[1]).backward()

    return call


def opacus_ghost(name: str, batch: Batch) -> Callable[[], object]:
    from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import (  # pyright: ignore[reportMissingImports]
        GradSampleModuleFastGradientClipping,
    )

    net = GradSampleModuleFastGradientClipping(network(name), max_grad_norm=1, use_ghost_clipping=True)

    def call() -> None:
        net.zero_grad()
        losses = F.cross_entropy(net(batch[0]), batch[1], reduction="none")
        net.enable_hooks()
        losses.mean().backward(retain_graph=True)
        factor = (LIMIT / (net.get_norm_sample() + 1e-6)).clamp(max=1.0)
        net.zero_grad()
        net.disable_hooks()
        (factor * losses).sum().backward()
        net.enable_hooks()

    return call


def backpack(name: str, batch: Batch, extension: str) -> Callable[[], object]:
    from backpack import backpack as extended  # pyright: ignore[reportMissingImports]
    from backpack import extend, extensions  # pyright: ignore[reportMissingImports]

    net, criterion = extend(network(name)), extend(nn.CrossEntropyLoss())

    def call() -> None:
        net.zero_grad()
        with extended(getattr(extensions, extension)()):
            criterion(net(batch[0]), batch[1]).backward()

    return call


def with_jax(name: str, net: nn.Module, batch: Batch, clip: bool) -> Callable[[], object]:
    import jax  # pyright: ignore[reportMissingImports]
    import jax.numpy as jnp  # pyright: ignore[reportMissingImports]

    params = [jnp.array(leaf.detach().numpy()) for leaf in net.parameters()]
    images, labels = (jnp.array(x.numpy()) for x in batch)

    def loss(p: list, x: Any, y: Any) -> Any:
        x, pairs = x[None], list(zip(p[::2], p[1::2], strict=True))
        if name == "lenet":
            for w, b in pairs[:2]:
                x = jax.nn.relu(jax.lax.conv(x, w, (1, 1), "VALID") + b[:, None, None])
                x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")
            pairs = pairs[2:]
        x = x.reshape(1, -1)
        for w, b in pairs[:-1]:
            x = jax.nn.relu(x @ w.T + b)
        logits = (x @ pairs[-1][0].T + pairs[-1][1])[0]
        return jax.nn.logsumexp(logits) - logits[y]

    def each(p: list) -> Any:
        grads = jax.vmap(jax.grad(loss), (None, 0, 0))(p, images, labels)
        if not clip:
            return grads
        squares = sum(jnp.sum(g.reshape(len(g), -1) ** 2, 1) for g in grads)
        factor = jnp.minimum(1.0, LIMIT / jnp.sqrt(squares))
        return [jnp.einsum("b,b...->...", factor, g) for g in grads]

    compiled = jax.jit(each)
    return lambda: jax.block_until_ready(compiled(params))


def memory() -> None:
    """Peak memory of LeNet's clipped and plain gradients at batch 4,096, less that of a process without either."""
    peaks = {
        what: harness.peak_bytes(["recipes.bench.per_sample", "--once", what]) for what in ("none", "plain", "ghost")
    }
    plain, ghost = (peaks[what] - peaks["none"] for what in ("plain", "ghost"))
    body = (
        "Peak resident memory of one process, less that of the same process without the gradient: clipped_grad by "
        "ghost clipping in chunks of 1,024, over the plain gradient of the batch, eager, CPU.\n\n"
    )
    rows = [["plain gradient", 1.0], ["clipped_grad", ghost / plain]]
    harness.report(
        "per_sample --memory",
        "Memory of clipped gradients, LeNet, batch 4,096",
        body + harness.table(["", "ratio"], rows),
    )


def once(what: str) -> None:
    harness.begin(keep_memory=False)
    _, params, loss, batch = problem("lenet", 4096)
    small = batch[0][:2], batch[1][:2]
    fnn.grad(loss)(params, small)
    fnn.clipped_grad(loss, LIMIT, method="ghost")(params, small)  # loads the libraries that are loaded on first use
    if what == "plain":
        fnn.grad(loss)(params, batch)
    if what == "ghost":
        fnn.clipped_grad(loss, LIMIT, method="ghost", chunk_size=1024)(params, batch)


def main() -> None:
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", nargs="+", default=["mlp", "lenet", "wide"])
    parser.add_argument("--batch", nargs="+", type=int, default=[64, 256])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--once", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.once:
        return once(options.once)
    if options.memory:
        return memory()
    body = "Times over those of fnn, compiled by Inductor, in the same column; CPU, float32; smaller is faster.\n\n"
    for title, make, base in (
        ("Per-sample gradients", gradients, "fnn.jit(per_sample_grad), inductor"),
        ("Sums of clipped gradients", clipped, "fnn.jit(clipped_grad), ghost, inductor"),
        ("Norms", norms, "fnn.jit(per_sample_norms), ghost, inductor"),
    ):
        columns: dict[str, dict[str, float]] = {}
        for name in options.models:
            for count in options.batch:
                if name == "wide" and count > 64:
                    continue  # 6 GB of gradients
                torch.compiler.reset()
                seconds = harness.interleave(make(name, count), rounds=options.rounds, lead=1)
                columns[f"{name}, batch {count}"] = harness.ratios(seconds, base)
        names = list(dict.fromkeys(rival for column in columns.values() for rival in column))
        rows = [[rival, *(column.get(rival, "-") for column in columns.values())] for rival in names]
        body += f"{title}:\n\n" + harness.table(["", *columns], rows) + "\n\n"
    harness.report("per_sample", "Per-sample gradients", body, ["opacus", "backpack-for-pytorch", "jax"])


if __name__ == "__main__":
    main()
