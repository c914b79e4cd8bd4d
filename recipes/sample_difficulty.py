"""Which labels are wrong? ``python -m recipes.sample_difficulty`` ranks samples by the norm of their gradients.

A share of the training labels is changed, a network is trained for a few epochs on all of them, and samples are ranked
by the norm of their gradient (Paul et al., 2021, "GraNd") and, for an honest comparison, by their loss, which costs no
gradient at all.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro
from torch import Tensor

import fnn
from recipes import plots
from recipes.training import choose_device


@dataclass
class Flags:
    """Find mislabelled images by per-sample gradient norms."""

    dataset: Literal["digits", "mnist", "fashion_mnist"] = "digits"
    data_root: Path | None = None
    """Folder of the data sets (default: the environment variable FNN_DATA, else ~/.cache/fnn)."""
    changed: float = 0.05
    """Share of the training labels that are changed to another class."""
    epochs: int = 5
    batch_size: int = 64
    learning_rate: float = 1e-3
    chunk_size: int = 1000
    """Samples whose activations are alive at a time while norms are taken."""
    seed: int = 0
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    output: Path = Path("runs/sample_difficulty")


def change_labels(key: Tensor, labels: Tensor, share: float, classes: int) -> tuple[Tensor, Tensor]:
    """Labels of which exactly ``round(share n)`` are another class, and the mask of those."""
    which_key, shift_key = fnn.random.split(key)
    rows = fnn.random.permutation(which_key, len(labels))[: round(share * len(labels))]
    wrong = torch.zeros(len(labels), dtype=torch.bool, device=labels.device)
    wrong[rows] = True
    shift = fnn.random.randint(shift_key, tuple(labels.shape), 1, classes).to(labels)
    return torch.where(wrong, (labels + shift) % classes, labels), wrong


def found(score: Tensor, wrong: Tensor) -> dict[str, float]:
    """How well a score finds the wrong ones: precision among as many as there are, and the area under the ROC curve."""
    count = int(wrong.sum())
    precision = float(wrong[score.argsort(descending=True)[:count]].double().mean())
    ranks = torch.empty(len(score), dtype=torch.float64)
    ranks[score.argsort()] = torch.arange(1, len(score) + 1, dtype=torch.float64)
    area = (float(ranks[wrong].sum()) - count * (count + 1) / 2) / (count * (len(score) - count))
    return {"precision": precision, "area": area}


def search(flags: Flags) -> dict[str, dict[str, float]]:
    """Train, rank, draw; returns what metrics.json holds."""
    if not 0 < flags.changed < 1:
        raise SystemExit(f"--changed is a share between 0 and 1, got {flags.changed}")
    device = choose_device(flags.device)
    data = fnn.data.load_dataset(flags.dataset, flags.data_root)
    images, true = fnn.tree.to(data.train, device)
    label_key, init_key, order_key = fnn.random.split(fnn.random.key(flags.seed), 3).to(device)
    labels, wrong = change_labels(label_key, true, flags.changed, len(data.classes))
    model = fnn.models.mlp(images[0].numel(), 256, 256, len(data.classes))
    params = fnn.tree.to(model.init(init_key), device)
    optimizer = fnn.optim.adam(flags.learning_rate)
    opt_state = optimizer.init(params)

    def loss(params: fnn.tree.Tree, batch: tuple[Tensor, Tensor]) -> Tensor:
        return fnn.losses.cross_entropy(model.apply(params, batch[0]), batch[1])

    for epoch in range(flags.epochs):
        for batch in fnn.data.batches((images, labels), flags.batch_size, fnn.random.fold_in(order_key, epoch)):
            updates, opt_state = optimizer.update(fnn.grad(loss)(params, batch), opt_state, params)
            params = fnn.optim.apply_updates(params, updates)

    norms = fnn.gradients.per_sample_norms(loss, chunk_size=flags.chunk_size, method="ghost")(params, (images, labels))
    losses = fnn.losses.cross_entropy(model.apply(params, images), labels, reduction="none")
    norms, losses, wrong = norms.cpu(), losses.cpu(), wrong.cpu()
    result = {"norm": found(norms, wrong), "loss": found(losses, wrong)}
    flags.output.mkdir(parents=True, exist_ok=True)
    part = flags.output / "metrics.part"
    part.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(part, flags.output / "metrics.json")
    plots.difficulty(flags.output / "norms.png", norms, wrong)
    hardest = norms.argsort(descending=True)[:12]
    titles = [f"{data.classes[labels[i]]} (is {data.classes[true[i]]})" for i in hardest.tolist()]
    plots.gallery(flags.output / "hardest.png", images[hardest].cpu(), titles, wrong[hardest].tolist())
    print(f"{int(wrong.sum())} of {len(wrong)} labels are wrong; found among as many of the highest score:")
    for name, row in result.items():
        print("{:10s} {precision:7.2%}   area under the ROC curve {area:.4f}".format(name, **row))
    print(f"wrote {flags.output}")
    return result


if __name__ == "__main__":
    search(tyro.cli(Flags))
