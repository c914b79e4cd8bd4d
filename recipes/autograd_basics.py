"""Gradients are return values: ``python -m recipes.autograd_basics``.

The examples of PyTorch's autograd tutorial, written as functions: the gradients of a linear model with five rows of
weights, the product of a vector with the Jacobian of (x + 1)^2, frozen parameters, stopped gradients, and the graph of
a train step, which is printed and drawn. Each part prints what it computes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fnn
from recipes import command_line, files, plots
from recipes.plots import plt


@dataclass
class Flags(command_line.RunFlags):
    """Compute the gradients of the autograd tutorial, and draw the graph of a train step."""

    steps: command_line.Count = 50
    """Steps of gradient descent."""
    learning_rate: command_line.Positive = 0.5


Batch = tuple[Tensor, Tensor]  # inputs (5,) and targets (3,)


def logits(params: fnn.tree.Tree, batch: Batch) -> Tensor:
    return batch[0] @ params["w"] + params["b"]


def loss(params: fnn.tree.Tree, batch: Batch) -> Tensor:
    return fnn.losses.bce_with_logits(logits(params, batch), batch[1])


def explain(flags: Flags) -> dict[str, Any]:
    """Print each part, write the files, and return what is written to metrics.json."""
    device = command_line.begin(flags)
    output = files.open_output(flags, "autograd_basics")
    w_key, b_key = fnn.random.split(fnn.random.key(flags.seed, device=device))
    params = {"w": fnn.random.normal(w_key, (5, 3)), "b": fnn.random.normal(b_key, (3,))}
    batch = torch.ones(5, device=device), torch.zeros(3, device=device)

    grads = gradients(params, batch)
    products = jacobian_products(device)
    loss_of_bias, stopped = parts(params, batch)
    step = make_step(loss, flags.learning_rate)
    draw_graphs(output, step, params, batch)
    losses = {
        "w and b are trained": descend(flags, step, params, batch),
        "w is frozen": descend(flags, make_step(loss_of_bias, flags.learning_rate), {"b": params["b"]}, batch),
    }
    print(f"\n6. {flags.steps} steps of gradient descent")
    for name, row in losses.items():
        print(f"{name:22s} loss {row[0]:.4f} -> {row[-1]:.4f}")
    result = {
        "loss": float(loss(params, batch)),
        "gradients": {name: leaf.tolist() for name, leaf in grads.items()},
        "stopped": {name: leaf.tolist() for name, leaf in stopped.items()},
        "products": [product.tolist() for product in products],
        "losses": losses,
    }
    files.write_metrics(output, result)
    draw(output / "autograd.png", grads["w"].cpu(), products, losses)
    print(f"wrote {output}")
    return result


def gradients(params: fnn.tree.Tree, batch: Batch) -> fnn.tree.Tree:
    """The gradient is a tree like the params. All inputs are 1, so each row of that of w equals that of b."""
    value, grads = fnn.value_and_grad(loss)(params, batch)
    again = fnn.grad(loss)(params, batch)
    by_hand = (logits(params, batch).sigmoid() - batch[1]) / 3
    print("1. The gradients of w (5, 3) and b (3,) of binary_cross_entropy_with_logits(x w + b, 0)")
    print(f"loss {float(value):.4f}\nw: {grads['w']}\nb: {grads['b']}")
    print("(sigmoid(x w + b) - y) / 3 is the gradient of b:", torch.allclose(grads["b"], by_hand))
    print("every row of the gradient of w is that of b:", torch.equal(grads["w"], grads["b"].expand(5, 3)))
    print("a second call returns the same, and nothing adds up:", not fnn.tree.max_difference(grads, again))
    return grads


def jacobian_products(device: torch.device) -> tuple[Tensor, Tensor]:
    """Products of ones with the Jacobian of (x + 1)^2 at the identity: once, and added to a second one."""
    inputs = torch.eye(5, device=device)
    value, pull = fnn.vjp(lambda x: (x + 1).pow(2), inputs)
    (first,) = pull(torch.ones_like(value))
    (second,) = pull(torch.ones_like(value))
    print("\n2. (eye(5) + 1)^2: the product of ones, which have the shape of the output, with the Jacobian")
    print(first)
    print("the product once more, the same:", torch.equal(first, second))
    print(f"their sum, which a second backward() leaves in .grad:\n{fnn.tree.add(first, second)}")
    return first.cpu(), fnn.tree.add(first, second).cpu()


def parts(params: fnn.tree.Tree, batch: Batch) -> tuple[Callable[[fnn.tree.Tree, Batch], Tensor], fnn.tree.Tree]:
    """Return the loss as a function of b alone, and the gradients where that of w is stopped."""
    trained, kept = fnn.tree.partition(params, lambda path: path == "b")

    def loss_of_bias(trained: fnn.tree.Tree, batch: Batch) -> Tensor:
        return loss(fnn.tree.combine(trained, kept), batch)

    def stopping_loss(params: fnn.tree.Tree, batch: Batch) -> Tensor:
        return loss({"w": params["w"].detach(), "b": params["b"]}, batch)

    print("\n3. Frozen parameters: the gradient with respect to a part of the tree")
    print(fnn.grad(loss_of_bias)(trained, batch))
    stopped = fnn.grad(stopping_loss)(params, batch)
    print("\n4. Stopped gradients: w.detach() inside the loss has a gradient of zero")
    print(f"w: {stopped['w'].tolist()}\nb: {stopped['b']}")
    return loss_of_bias, stopped


def make_step(loss: Callable[[fnn.tree.Tree, Batch], Tensor], rate: float) -> Callable[[fnn.tree.Tree, Batch], tuple]:
    """A step against the gradient: (params, batch) -> (new params, loss)."""

    def step(params: fnn.tree.Tree, batch: Batch) -> tuple[fnn.tree.Tree, Tensor]:
        value, grads = fnn.value_and_grad(loss)(params, batch)
        return fnn.tree.map(lambda p, g: p - rate * g, params, grads), value

    return step


def draw_graphs(output: Path, step: Callable, params: fnn.tree.Tree, batch: Batch) -> None:
    """Print the graph of the loss, and write and draw it and that of the step."""
    print("\n5. The graph: fnn.trace(f)(params, batch) prints the operations of f in the order in which they run")
    print(fnn.trace(loss)(params, batch))
    for name, function in (("loss", loss), ("step", step)):
        graph = fnn.trace(function)(params, batch)
        files.write_text(output / f"{name}.txt", f"{graph}\n")
        files.write_text(output / f"{name}.svg", graph.svg())
        print(f"{name}: {len(graph.nodes)} operations, printed in {name}.txt and drawn in {name}.svg")


def descend(flags: Flags, step: Callable, params: fnn.tree.Tree, batch: Batch) -> list[float]:
    """The loss before each step."""
    jitted = command_line.jit(step, flags)
    losses = []
    for _ in command_line.progress(range(flags.steps), "steps", flags.steps):
        params, value = jitted(params, batch)
        losses.append(value)
    return torch.stack(losses).tolist()


def draw(path: Path, grad: Tensor, products: tuple[Tensor, Tensor], losses: dict[str, list[float]]) -> None:
    """The three matrices with their numbers, and the loss by step."""
    figure, panels = plt.subplots(1, 4, figsize=(13, 3.4), layout="constrained", width_ratios=(0.7, 1, 1, 1.3))
    titles = ("gradient of w\n(each row is that of b)", "ones times the Jacobian\nof (eye(5) + 1)$^2$", "twice, added")
    for axes, matrix, title in zip(panels, (grad, *products), titles, strict=False):
        axes.imshow(matrix, cmap="Blues", vmin=0, vmax=0.5 if matrix is grad else 10)
        for i, row in enumerate(matrix.tolist()):
            for j, value in enumerate(row):
                axes.text(j, i, f"{value:.2g}", ha="center", va="center", fontsize=9)
        axes.set_title(title, fontsize=10)
        axes.set(xticks=[], yticks=[])
    for name, row in losses.items():
        panels[3].plot(row, label=name)
    panels[3].set(xlabel="step", ylabel="loss (nats)", ylim=(0, None))
    panels[3].legend(frameon=False)
    panels[3].spines[["top", "right"]].set_visible(False)
    plots.save(figure, path)


if __name__ == "__main__":
    command_line.main(explain, Flags())
