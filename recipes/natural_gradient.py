"""Compare second-order training with Adam: ``python -m recipes.natural_gradient``.

Each step solves (G + damping I) d = -gradient by conjugate gradients, which need only products with the Gauss-Newton
matrix G. For cross-entropy G is the Fisher matrix, so this is a natural gradient step (Amari, 1998; Martens, 2010). The
damping is adapted as by Levenberg and Marquardt, by how well the quadratic model predicted the change of the loss. Adam
trains the same network on the same images: once with all samples in each step, as Gauss-Newton does, and once with
batches of 64. The picture shows the loss against steps and against time.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

import fnn
from fnn.curvature import ggn_operator
from fnn.linalg import LinearOperator, cg
from recipes import command_line, files, plots
from recipes.bench.harness import synchronize

Batch = tuple[Tensor, Tensor]


@dataclass
class Flags(command_line.ImageFlags):
    """Train a perceptron by Gauss-Newton steps and by Adam."""

    steps: command_line.Count = 40
    """Number of Gauss-Newton steps."""
    adam_steps: command_line.Count = 40
    """Adam steps for each Gauss-Newton step, so that both take about the same time."""
    width: command_line.Count = 64
    """Width of the two hidden layers."""
    iterations: command_line.Count = 30
    """Maximum number of conjugate gradient iterations in a step."""
    tolerance: command_line.Positive = 0.05
    """Conjugate gradients stop when the norm of the residual over that of the gradient is at most this."""
    damping: command_line.Positive = 0.1
    """Initial damping."""
    learning_rate: command_line.Positive = 3e-3
    """Learning rate of Adam."""
    repeats: command_line.Count = 3
    """Number of runs, all with the same steps; the time of a step is its median over the runs."""


class Method(NamedTuple):
    """A training method.

    ``state`` is the first state, whose first item is the params, and ``step(state, batch)`` returns the next one.
    ``batches()`` iterates over the batches, and ``per_turn`` steps are taken when it is the turn of this method.
    """

    state: tuple
    step: Callable[[tuple, Batch], tuple]
    batches: Callable[[], Iterator[Batch]]
    per_turn: int


def gauss_newton(predict: Callable, compare: Callable, params: fnn.tree.Tree, flags: Flags) -> tuple[tuple, Callable]:
    """Return the first state, ``(params, damping)``, and the step."""

    def loss(params: fnn.tree.Tree, batch: Batch) -> Tensor:
        return compare(predict(params, batch), batch)

    def loss_and_gradient(params: fnn.tree.Tree, batch: Batch) -> tuple[Tensor, fnn.tree.Tree]:
        return fnn.value_and_grad(loss)(params, batch)

    def ggn_product(params: fnn.tree.Tree, batch: Batch, v: fnn.tree.Tree) -> fnn.tree.Tree:
        return ggn_operator(predict, compare, params, batch).matvec(v)

    value_of, gradient_of, product = (command_line.jit(f, flags) for f in (loss, loss_and_gradient, ggn_product))

    def step(state: tuple, batch: Batch) -> tuple:
        params, damping = state
        value, gradient = gradient_of(params, batch)
        G = LinearOperator(lambda v: product(params, batch, v), params, symmetric=True)
        downhill = fnn.tree.scale(-1.0, gradient)
        move = cg(G.damped(damping), downhill, tolerance=flags.tolerance, max_iterations=flags.iterations).solution
        predicted = fnn.tree.dot(gradient, move) + 0.5 * fnn.tree.dot(move, G @ move)
        moved = fnn.tree.add(params, move)
        change = value_of(moved, batch) - value
        good, poor = change < 0.75 * predicted, ~(change < 0.25 * predicted)
        damping = torch.where(good, damping / 2.0, torch.where(poor, damping * 4.0, damping))
        return (moved if bool(change < 0) else params), damping

    return (params, torch.tensor(flags.damping, device=next(iter(fnn.tree.leaves(params))).device)), step


def adam(loss: Callable, params: fnn.tree.Tree, flags: Flags) -> tuple[tuple, Callable]:
    """Return the first state, ``(params, opt_state)``, and the step."""
    optimizer = fnn.optim.adam(flags.learning_rate)

    def adam_step(state: tuple, batch: Batch) -> tuple:
        params, opt_state = state
        updates, opt_state = optimizer.update(fnn.grad(loss)(params, batch), opt_state, params)
        return fnn.optim.apply_updates(params, updates), opt_state

    return (params, optimizer.init(params)), command_line.jit(adam_step, flags)


def warm(method: Method) -> None:
    """Take two steps, so that tracing and compilation are not measured, for the first state or for later ones."""
    state, batches = method.state, method.batches()
    for _ in range(2):
        state = method.step(state, next(batches))


def run(
    methods: dict[str, Method], turns: int, label: str = "run"
) -> tuple[dict[str, list[float]], dict[str, dict[int, fnn.tree.Tree]]]:
    """Return the seconds of each step, and the params after some of the steps.

    The methods take turns, so that other load on the machine slows all of them alike.
    """
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    trained: dict[str, dict[int, fnn.tree.Tree]] = {name: {} for name in methods}
    states = {name: method.state for name, method in methods.items()}
    batches = {name: method.batches() for name, method in methods.items()}
    for _ in command_line.progress(range(turns), label, turns):
        for name, method in methods.items():
            for number in range(method.per_turn):
                batch = next(batches[name])
                synchronize()
                begin = time.perf_counter()
                states[name] = method.step(states[name], batch)
                synchronize()
                seconds[name].append(time.perf_counter() - begin)
                if (number + 1) % max(1, method.per_turn // 8) == 0:
                    trained[name][len(seconds[name])] = states[name][0]
    return seconds, trained


def compete(flags: Flags) -> dict[str, Any]:
    """Train, draw the picture, and return what is written to metrics.json."""
    device = command_line.begin(flags)
    train, test, classes = command_line.load_images(flags, device)
    output = files.open_output(flags, "natural_gradient")
    pixels = train[0][0].numel()
    model = fnn.models.mlp(pixels, flags.width, flags.width, len(classes), activation=fnn.layers.tanh)
    init_key, order_key = fnn.random.split(fnn.random.key(flags.seed)).to(device)
    params = fnn.tree.to(model.init(init_key), device)

    def predict(params: fnn.tree.Tree, batch: Batch) -> Tensor:
        return model.apply(params, batch[0])

    def compare(logits: Tensor, batch: Batch) -> Tensor:
        return fnn.losses.cross_entropy(logits, batch[1])

    def loss(params: fnn.tree.Tree, batch: Batch) -> Tensor:
        return compare(predict(params, batch), batch)

    def everything() -> Iterator[Batch]:
        while True:
            yield train

    def batches() -> Iterator[Batch]:
        epoch = 0
        while True:
            yield from fnn.data.batches(train, 64, fnn.random.fold_in(order_key, epoch), drop_last=True)
            epoch += 1

    methods = {
        "Gauss-Newton CG": Method(*gauss_newton(predict, compare, params, flags), everything, 1),
        "Adam, all samples": Method(*adam(loss, params, flags), everything, flags.adam_steps),
        "Adam, batches of 64": Method(*adam(loss, params, flags), batches, flags.adam_steps),
    }
    for method in methods.values():
        warm(method)
    runs = [run(methods, flags.steps, f"run {i + 1} of {flags.repeats}") for i in range(flags.repeats)]
    medians = {
        name: [statistics.median(of_step) for of_step in zip(*(times[name] for times, _ in runs), strict=True)]
        for name in methods
    }
    unit = statistics.median(medians["Adam, batches of 64"])
    _, trained = runs[0]
    rows = {
        name: [
            {"step": step, "time": sum(medians[name][:step]) / unit, "loss": float(loss(params, train))}
            for step, params in {0: params, **trained[name]}.items()
        ]
        for name in methods
    }
    result: dict[str, Any] = {"rows": rows, "reached": {}, "test_accuracy": {}}
    for name in methods:
        logits = model.apply(trained[name][max(trained[name])], test[0])
        result["test_accuracy"][name] = float(fnn.metrics.accuracy(logits, test[1]))
        result["reached"][name] = {
            str(level): next(({"step": r["step"], "time": r["time"]} for r in rows[name] if r["loss"] <= level), None)
            for level in (0.3, 0.1, 0.03, 0.01, 0.001)
        }
    files.write_metrics(output, result)
    plots.race(output / "race.png", rows)
    print(summary(result))
    print(f"wrote {output}")
    return result


def summary(result: dict[str, Any]) -> str:
    """A table of when each method reached which training loss, and which method was first by steps and by time."""
    lines = ["training loss reached after steps / time, in median Adam steps of 64 samples"]
    levels = list(next(iter(result["reached"].values())))
    lines.append(f"{'':30s}" + "".join(f"{level:>16s}" for level in levels) + "  test accuracy")
    for name, reached in result["reached"].items():
        cells = ["-" if at is None else f"{at['step']} / {at['time']:.0f}" for at in reached.values()]
        lines.append(
            f"{name:30s}" + "".join(f"{cell:>16s}" for cell in cells) + f"{result['test_accuracy'][name]:15.2%}"
        )
    for by in ("step", "time"):
        first = []
        for level in levels:
            found = {name: reached[level][by] for name, reached in result["reached"].items() if reached[level]}
            first.append(f"{level}: {min(found, key=lambda name: found[name])}" if found else f"{level}: none")
        lines.append(f"first by {by}: " + "; ".join(first))
    return "\n".join(lines)


if __name__ == "__main__":
    command_line.main(compete, Flags())
