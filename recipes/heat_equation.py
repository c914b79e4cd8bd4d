"""Solve a differential equation with a network: ``python -m recipes.heat_equation``.

A rod of length 1 has the initial temperature sin(pi x), its ends are held at temperature 0, and it cools by u_t = u_xx.
A network u(x, t) is trained to satisfy the equation at random points, and the initial and boundary conditions (Raissi,
Perdikaris and Karniadakis, 2019). The derivatives of the network, the first in t and the second in x, are taken in
forward mode, and the gradient of the loss in reverse mode over them. The exact solution exp(-pi^2 t) sin(pi x) enters
the training only through the initial and boundary values.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

import fnn
from fnn.jacobian import directional_derivatives
from recipes import command_line, files, plots
from recipes.bench import harness


@dataclass
class Flags(command_line.RunFlags):
    """Train a network to solve the heat equation."""

    steps: command_line.Count = 3000
    points: Annotated[int, command_line.Limit("at least 4", lambda n: n >= 4)] = 512
    """Random points for the equation. The initial condition and each end of the rod have a quarter as many."""
    width: command_line.Count = 32
    """Width of the three hidden layers."""
    learning_rate: command_line.Positive = 5e-3
    """Initial learning rate of Adam; it decays to 0 by a cosine schedule."""
    weight: command_line.Positive = 20.0
    """Weight of the initial and boundary conditions in the loss; that of the equation is 1."""
    duration: command_line.Positive = 0.5
    """Length of the time interval; over it, the temperature falls by the factor exp(-pi^2 duration)."""
    rounds: command_line.CountOrZero = 20
    """Rounds of the timing of eager against jitted steps; 0 skips it."""


def exact(x: Tensor, t: Tensor) -> Tensor:
    """The exact temperature at the places x: (n,) and the times t: (n,)."""
    return torch.exp(-(math.pi**2) * t) * torch.sin(math.pi * x)


def residual(u: Callable[[Tensor, Tensor], Tensor], x: Tensor, t: Tensor) -> Tensor:
    """u_t - u_xx at the places x: (n,) and the times t: (n,). Each value of u depends on its own point only."""
    one = torch.ones_like(x)
    u_t = fnn.jvp(lambda t: u(x, t), (t,), (one,))[1]
    u_xx = directional_derivatives(lambda x: u(x, t), (x,), (one,), order=2)[2]
    return u_t - u_xx


def solve(flags: Flags) -> dict[str, float]:
    """Train, draw the pictures, and return the figures that are written to metrics.json."""
    device = command_line.begin(flags)
    output = files.open_output(flags, "heat_equation")
    model = fnn.models.mlp(2, flags.width, flags.width, flags.width, 1, activation=fnn.layers.tanh)
    init_key, point_key = fnn.random.split(fnn.random.key(flags.seed)).to(device)
    params = fnn.tree.to(model.init(init_key), device)
    optimizer = fnn.optim.adam(fnn.optim.schedules.cosine(flags.learning_rate, flags.steps))

    def temperature(params: fnn.tree.Tree, x: Tensor, t: Tensor) -> Tensor:
        return model.apply(params, torch.stack([2.0 * x - 1.0, 2.0 * t / flags.duration - 1.0], 1))[:, 0]

    x, t = fnn.random.uniform(point_key, (2, flags.points))
    even = torch.linspace(0, 1, flags.points // 4, device=device)
    zeros = torch.zeros_like(even)
    inside = x, flags.duration * t
    edge = (  # the initial condition, then both ends
        torch.cat([even, zeros, zeros + 1.0]),
        torch.cat([zeros, flags.duration * even, flags.duration * even]),
    )
    batch = inside, edge, exact(*edge)

    def loss(params: fnn.tree.Tree, batch: tuple) -> Tensor:
        inside, edge, known = batch
        u = lambda x, t: temperature(params, x, t)
        return residual(u, *inside).square().mean() + flags.weight * (u(*edge) - known).square().mean()

    def train_step(params: fnn.tree.Tree, opt_state: fnn.tree.Tree, batch: tuple) -> tuple:
        value, grads = fnn.value_and_grad(loss)(params, batch)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return fnn.optim.apply_updates(params, updates), opt_state, value

    opt_state = optimizer.init(params)
    figures: dict[str, float] = {}
    step = command_line.jit(train_step, flags)
    if flags.rounds:
        first = params, opt_state, batch
        rivals = {"eager": lambda: train_step(*first), "jit": lambda: step(*first)}
        figures["eager_over_jit"] = harness.ratios(harness.interleave(rivals, flags.rounds), "jit")["eager"]

    grid_x, grid_t = torch.meshgrid(
        torch.linspace(0, 1, 101, device=device), torch.linspace(0, flags.duration, 101, device=device), indexing="ij"
    )
    truth = exact(grid_x, grid_t)
    solution = lambda: temperature(params, grid_x.flatten(), grid_t.flatten()).reshape(truth.shape)
    rows = []
    for number in command_line.progress(range(flags.steps), "training", flags.steps):
        params, opt_state, value = step(params, opt_state, batch)
        if number % max(1, flags.steps // 40) == 0 or number == flags.steps - 1:
            error = float((solution() - truth).norm() / truth.norm())
            rows.append({"step": number + 1, "loss": float(value), "relative_error": error})
    found = solution()
    figures["relative_error"] = rows[-1]["relative_error"]
    figures["largest_error"] = float((found - truth).abs().max())
    figures["loss"] = rows[-1]["loss"]
    files.write_metrics(output, {"figures": figures, "rows": rows})
    plots.heat(output / "heat.png", found.cpu(), truth.cpu(), flags.duration, rows)
    for name, value in figures.items():
        print(f"{name:22s} {value:.4g}")
    print(f"wrote {output}")
    return figures


if __name__ == "__main__":
    command_line.main(solve, Flags())
