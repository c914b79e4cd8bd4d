"""The cost of each Jacobian and curvature product in calls of the function: counted and measured, eager and compiled.

The function is a perceptron of eight equal layers with tanh. Floating-point operations are counted, in eager code by
``torch.utils.flop_counter`` and in compiled code from the graph of ``fnn.trace``; both, and the times, are divided by
those of one call of the function. Time is the processor's, so that other processes disturb it little. The flags are
``--widths 256 512 1024``, ``--batch 256``, ``--rounds 5``, ``--vectors 8``, and ``--backends eager replay inductor``
(without the last by default). ``--frontier`` measures forward against reverse mode for whole Jacobians of n inputs and
m outputs instead, and writes what ``docs/drawings/second.py`` draws.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import fnn
from fnn.curvature import empirical_fisher_product, fisher_product, ggn_product, hvp
from fnn.jacobian import dense_jacobian, jmp, linearize_by_vjp, mjp
from recipes.bench import harness

LAYERS = 8
PAGE = Path(__file__).parents[2] / "docs" / "jacobians" / "choosing.md"
FRONTIER = Path(__file__).parents[2] / "docs" / "drawings" / "frontier.json"
CALL = "f"


def network(width: int, batch: int) -> tuple[fnn.Layer, dict, Tensor, Tensor]:
    model = fnn.models.mlp(*[width] * (LAYERS + 1), activation=fnn.layers.tanh)
    x = fnn.random.normal(fnn.random.key(1), (batch, width))
    return model, model.init(fnn.random.key(0)), x, fnn.random.randint(fnn.random.key(2), (batch,), 0, width)


def products(width: int, batch: int, vectors: int) -> dict[str, tuple[Callable, tuple]]:
    """Each product as a function and its arguments; the first is the function itself."""
    model, params, x, labels = network(width, batch)
    apply, cross_entropy = model.apply, fnn.losses.cross_entropy
    v, dx = fnn.random.like(fnn.random.key(3), params), fnn.random.like(fnn.random.key(4), x)
    u = fnn.random.normal(fnn.random.key(5), (batch, width))
    vs, dxs = (fnn.tree.map(lambda leaf: torch.stack([leaf] * vectors), tree) for tree in (v, dx))
    us = torch.stack([u] * vectors)
    compare = lambda output: cross_entropy(output, labels)
    loss = lambda params, x: compare(apply(params, x))
    losses = lambda params, x: cross_entropy(apply(params, x), labels, reduction="none")

    def rows(number: int, tangent: Any, tangents: Any) -> dict[str, tuple[Callable, tuple]]:
        """The products with respect to params (0) or the inputs (1)."""
        given = (params, x)
        of = lambda function, p: lambda chosen: function(*p[:number], chosen, *p[number + 1 :])
        what = ("params", "inputs")[number]
        at = lambda p: (p[number],)

        def hessian(mode: Any) -> Callable:
            return lambda t, *p: hvp(of(loss, p), at(p), (t,), mode)[1]

        curvature = {
            "H v, reverse over reverse": (hessian("reverse-over-reverse"), (tangent, *given)),
            "H v, forward over reverse": (hessian("forward-over-reverse"), (tangent, *given)),
            "H v, reverse over forward": (hessian("reverse-over-forward"), (tangent, *given)),
            "J' H J v": (lambda t, *p: ggn_product(of(apply, p), compare, at(p), (t,))[1], (tangent, *given)),
            "F v": (lambda t, *p: fisher_product(of(apply, p), at(p), (t,))[1], (tangent, *given)),
            "E v": (lambda t, *p: empirical_fisher_product(of(losses, p), at(p), (t,))[1], (tangent, *given)),
        }
        found = {
            "J v": (lambda t, *p: torch.func.jvp(of(apply, p), at(p), (t,)), (tangent, *given)),
            "J' u": (lambda u, *p: torch.func.vjp(of(apply, p), *at(p))[1](u), (u, *given)),
            f"J V, {vectors} at once": (lambda t, *p: jmp(of(apply, p), at(p), (t,)), (tangents, *given)),
            f"U' J, {vectors} at once": (lambda u, *p: mjp(of(apply, p), at(p), u), (us, *given)),
            "linearize_by_vjp, then J v": (
                lambda t, *p: linearize_by_vjp(of(apply, p), *at(p))[1](t),
                (tangent, *given),
            ),
        } | (curvature if number == 0 else {"H v, reverse over reverse": curvature["H v, reverse over reverse"]})
        return {f"{name}, {what}": row for name, row in found.items()}

    both = {CALL: (apply, (params, x))} | rows(0, v, vs) | rows(1, dx, dxs)
    both["gradient, params"] = (lambda *p: fnn.grad(loss)(*p), (params, x))
    both["per-sample norms, params"] = (
        lambda params, batch: fnn.gradients.per_sample_norms(
            lambda p, batch: cross_entropy(apply(p, batch[0]), batch[1])
        )(params, batch),
        (params, (x, labels)),
    )
    return both


def eager_flops(function: Callable, args: tuple) -> float:
    with FlopCounterMode(display=False) as counter:
        function(*args)
    return counter.get_total_flops()


def measure(rivals: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    return harness.interleave(rivals, rounds, warm=1, clock=time.process_time)


def costs(options: argparse.Namespace) -> str:
    """The table: counted and measured costs in calls of the function, a row for each product."""
    columns: dict[str, dict[str, object]] = {}

    def add(title: str, values: dict[str, float]) -> None:
        columns[title] = dict(harness.ratios(values, CALL))

    for kind in options.backends:
        compiled = kind != "eager"
        for i, width in enumerate(options.widths):
            calls = products(width, options.batch, options.vectors)
            if i == 0 and f"counted, {kind}" not in columns:
                counts = {
                    name: float(fnn.trace(f)(*args).flops if compiled else eager_flops(f, args))
                    for name, (f, args) in calls.items()
                }
                add(f"counted, {kind}", counts)
            rivals = {}
            for name, (f, args) in calls.items():
                g = fnn.jit(f, backend=kind) if compiled else f
                rivals[name] = lambda g=g, args=args: g(*args)
            add(f"{width}, {kind}", measure(rivals, options.rounds))
    # memory: a large batch, beside which the params are small, in activations of one layer
    width, batch = 16, 4096
    one = batch * width * 4
    memory: dict[str, float] = {}
    for name, (f, args) in products(width, batch, options.vectors).items():
        memory[name] = fnn.trace(f)(*args).peak_memory / one
    columns["memory"] = dict(memory)
    return harness.columns_table(columns)


def frontier(options: argparse.Namespace) -> dict:
    """The time of reverse mode over that of forward mode for whole Jacobians of n inputs and m outputs, by backend."""
    sizes, hidden = options.sizes, 256
    found: dict = {"machine": harness.machine(), "hidden": hidden, "sizes": sizes}
    for kind in options.backends:
        ratios = []
        for m in sizes:
            row = []
            for n in sizes:
                model = fnn.models.mlp(n, hidden, hidden, m, activation=fnn.layers.tanh)
                params, x = model.init(fnn.random.key(0)), fnn.random.normal(fnn.random.key(1), (n,))
                rivals = {}
                modes: tuple[Literal["forward", "reverse"], ...] = ("forward", "reverse")
                for mode in modes:
                    jacobian = dense_jacobian(model.apply, argnums=1, mode=mode)
                    g = jacobian if kind == "eager" else fnn.jit(jacobian, backend=kind)
                    rivals[mode] = lambda g=g, params=params, x=x: g(params, x)
                seconds = measure(rivals, options.rounds)
                row.append(round(seconds["reverse"] / seconds["forward"], 2))
            ratios.append(row)
        found[kind] = ratios  # a row for each m
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--widths", nargs="+", type=int, default=[256, 512, 1024])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--vectors", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--backends", nargs="+", default=["eager", "replay"], choices=["eager", "replay", "inductor"])
    parser.add_argument("--frontier", action="store_true")
    parser.add_argument("--sizes", nargs="+", type=int, default=[4, 16, 64, 256, 1024])
    options = parser.parse_args()
    if options.frontier:
        lines = [f" {json.dumps(name)}: {json.dumps(value)}" for name, value in frontier(options).items()]
        FRONTIER.write_text("{\n" + ",\n".join(lines) + "\n}\n")
        return
    body = (
        f"CPU, float32, a perceptron of {LAYERS} equal layers with tanh, batch {options.batch}. Everything is divided "
        "by one call of f, eager or compiled; memory is counted in activations of one layer.\n\n"
        f"{costs(options)}"
    )
    harness.report("jacobian_costs", "Counted and measured", body, page=PAGE)


if __name__ == "__main__":
    main()
