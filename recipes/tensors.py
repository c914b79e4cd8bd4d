"""A tour of tensors as values: ``python -m recipes.tensors``.

The first chapters of PyTorch's tutorial, with einops: making, indexing, joining, arithmetic, changes in place and why
fnn makes none, and the bridges to NumPy, which share memory. The statements are run one after the other, and shown with
their values as in a Python session.
"""

import ast
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import einops
import numpy
import torch
import torch.nn.functional as F
from torch import Tensor

import fnn
from recipes import command_line, files, plots
from recipes.plots import plt


@dataclass
class Flags(command_line.CommonFlags):
    """Show what tensors do, one statement after the other."""


TOUR = {
    "Making tensors": """
data = torch.tensor([[1, 2], [3, 4]])
data.dtype, data.shape, data.device
torch.zeros(2, 3), torch.ones_like(data)
torch.linspace(0, 1, 5), torch.arange(0, 10, 3)
""",
    "Random tensors from a key": """
key = fnn.random.key(seed, device=device)
fnn.random.uniform(key, (2, 3))
torch.equal(fnn.random.uniform(key, (2, 3)), fnn.random.uniform(key, (2, 3)))
left, right = fnn.random.split(key)
fnn.random.normal(left, (3,)), fnn.random.normal(right, (3,))
""",
    "Shape, dtype and device": """
x = torch.arange(12.0, device=device).reshape(3, 4)
x.shape, x.dtype, x.device
x.to(torch.bfloat16).dtype, x.to(torch.int32).dtype, x.to("cpu").device
""",
    "Indexing": """
x
x[0], x[:, 0]
x[..., -1]
x[:-1].shape
x[x > 8]
x[torch.tensor([2, 0])]
""",
    "Joining": """
torch.cat([x, x], dim=1).shape, torch.stack([x, x]).shape
einops.pack([x, x], "row *")[0].shape
""",
    "Arithmetic": """
torch.equal(x @ x.T, torch.matmul(x, x.T)), torch.equal(x * x, x.square())
x + torch.tensor([10.0, 20.0, 30.0, 40.0], device=device)
x.sum(), x.sum().item()
x.mean(dim=0), x.max(dim=1).indices
""",
    "Axes with names, by einops": """
images = digits[:6]
images.shape
einops.rearrange(images, "n 1 h w -> n (h w)").shape
einops.rearrange(images, "(rows columns) 1 h w -> (rows h) (columns w)", columns=3).shape
einops.reduce(images, "n 1 (h 2) (w 2) -> n 1 h w", "max").shape
einops.reduce(images, "n 1 h w -> n", "mean")
einops.repeat(torch.tensor([1, 2]), "n -> n copies", copies=3)
einops.einsum(x, x, "i k, j k -> i j").shape
""",
    "Trees of tensors": """
params = {"weight": torch.ones(2, 2), "bias": torch.zeros(2)}
fnn.tree.map(lambda leaf: leaf + 1, params)
fnn.tree.spec(params)["bias"]
fnn.tree.stack([params, params])["weight"].shape
fnn.random.like(key, params)["bias"]
""",
    "A change in place reaches whoever holds the tensor": """
x = torch.arange(6.0).reshape(2, 3)
row = x[0]
_ = row.add_(5)
x
""",
    "fnn makes new tensors": """
x + 5, x[0]
torch.where(torch.arange(3) == 1, 0.0, x)
x.index_put((torch.tensor([1]),), torch.zeros(3))
torch.slice_scatter(x, torch.ones(2, 1), dim=1, start=2)
total = torch.zeros(3)
fails(lambda: fnn.vmap(lambda row: total.add_(row))(x))
fnn.vmap(lambda row: total + row)(x)
""",
    "The bridges to NumPy share memory": """
t = torch.ones(3)
n = t.numpy()
_ = t.add_(1)
n
n = numpy.ones(3)
shared, copied = torch.from_numpy(n), torch.tensor(n)
_ = numpy.add(n, 1, out=n)
shared
copied
""",
}


def message(call: Callable[[], object]) -> str:
    """The message of the exception that the call raises, in lines of at most 110 characters."""
    try:
        call()
    except Exception as error:
        return textwrap.fill(f"{type(error).__name__}: {error}", 110)
    return "no exception"


def session(statements: str, names: dict[str, Any]) -> str:
    """Run the statements with these names, and return them with the values of the expressions among them."""
    lines = []
    names["fails"] = lambda call: lines.append(message(call))
    for statement in ast.parse(statements).body:
        source = ast.get_source_segment(statements, statement) or ""
        lines.append(f">>> {source}")
        if isinstance(statement, ast.Expr):
            value = eval(source, names)
            if value is not None:
                lines.append(repr(value))
        else:
            exec(source, names)
    return "\n".join(lines)


def tour(flags: Flags) -> dict[str, str]:
    """Print each chapter, write the files, and return the texts of the chapters."""
    device = command_line.begin(flags)
    output = files.open_output(flags, "tensors")
    digits, labels = fnn.tree.to(fnn.data.load_dataset("digits").train, device)
    names = {"torch": torch, "numpy": numpy, "einops": einops, "fnn": fnn, "digits": digits}
    names |= {"seed": flags.seed, "device": device}
    chapters = {}
    for title, statements in TOUR.items():
        chapters[title] = session(statements, names)
        print(f"{title}\n{chapters[title]}\n", flush=True)
    files.write_text(output / "tour.txt", "\n".join(f"{title}\n{text}\n" for title, text in chapters.items()))
    files.write_metrics(output, chapters)
    draw(output / "einops.png", digits.cpu(), labels.cpu())
    print(f"wrote {output}")
    return chapters


def draw(path: Path, images: Tensor, labels: Tensor) -> None:
    """Ten digits of (n, 1, h, w) in four arrangements, with the pattern that makes each."""
    images = F.pad(fnn.data.resize(images, 14), (1, 1, 1, 1))
    of_each = torch.stack([images[labels == digit][:20] for digit in range(10)])
    digits = of_each[:, 0]
    side_by_side = "(rows columns) 1 h w -> (rows h) (columns w)"
    transposed = "(rows columns) 1 h w -> (rows w) (columns h)"
    pooled = "(rows columns) 1 (h 2) (w 2) -> (rows h) (columns w)"
    averaged = "(rows columns) n 1 h w -> (rows h) (columns w)"
    pictures = {
        f"rearrange:\n{side_by_side}": einops.rearrange(digits, side_by_side, rows=2),
        f"rearrange:\n{transposed}": einops.rearrange(digits, transposed, rows=2),
        f"reduce, by the maximum:\n{pooled}": einops.reduce(digits, pooled, "max", rows=2),
        f"reduce, by the mean over n:\n{averaged}": einops.reduce(of_each, averaged, "mean", rows=2),
    }
    figure, panels = plt.subplots(2, 2, figsize=(9, 5), layout="constrained")
    for axes, (title, picture) in zip(panels.flat, pictures.items(), strict=True):
        axes.imshow(picture, cmap="gray_r", vmin=0, vmax=1)
        axes.set_title(title, fontsize=8, family="monospace")
        axes.axis("off")
    plots.save(figure, path)


if __name__ == "__main__":
    command_line.main(tour, Flags())
