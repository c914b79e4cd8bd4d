"""Find wrong labels by the norms of per-sample gradients: ``python -m recipes.sample_difficulty``.

A share of the training labels is changed, and a network is trained for a few epochs on all samples. The samples are
then ranked by the norm of their gradient (Paul et al., 2021, "GraNd"). For comparison they are also ranked by their
loss, which needs no gradients.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

import fnn
from recipes import command_line, files, plots


@dataclass
class Flags(command_line.ImageFlags):
    """Find mislabelled images by per-sample gradient norms."""

    changed: command_line.Share = 0.05
    """Share of the training labels that are changed to another class."""
    epochs: command_line.CountOrZero = 5
    batch_size: command_line.Count = 64
    learning_rate: command_line.Positive = 1e-3
    """Learning rate of Adam."""
    chunk_size: command_line.Count = 1000
    """Number of samples whose gradient norms are computed at a time; it limits memory."""


def change_labels(key: Tensor, labels: Tensor, share: float, classes: int) -> tuple[Tensor, Tensor]:
    """Change exactly ``round(share n)`` labels to another class; return the labels and the mask of the changed ones."""
    which_key, shift_key = fnn.random.split(key)
    rows = fnn.random.permutation(which_key, len(labels))[: round(share * len(labels))]
    wrong = torch.zeros(len(labels), dtype=torch.bool, device=labels.device)
    wrong[rows] = True
    shift = fnn.random.randint(shift_key, tuple(labels.shape), 1, classes).to(labels)
    return torch.where(wrong, (labels + shift) % classes, labels), wrong


def found(score: Tensor, wrong: Tensor) -> dict[str, float]:
    """How well a score finds k wrong labels: precision among the k highest scores, and area under the ROC curve."""
    count = int(wrong.sum())
    precision = float(wrong[score.argsort(descending=True)[:count]].double().mean())
    ranks = torch.empty(len(score), dtype=torch.float64)
    ranks[score.argsort()] = torch.arange(1, len(score) + 1, dtype=torch.float64)
    area = (float(ranks[wrong].sum()) - count * (count + 1) / 2) / (count * (len(score) - count))
    return {"precision": precision, "area": area}


def search(flags: Flags) -> dict[str, dict[str, float]]:
    """Train, rank the samples, draw the pictures, and return what is written to metrics.json."""
    device = command_line.begin(flags)
    data = command_line.load_images(flags, device)
    images, true = data.train
    if not 0 < round(flags.changed * len(true)) < len(true):
        raise SystemExit(f"--changed {flags.changed}: this share of {len(true)} labels is none or all of them")
    output = files.open_output(flags, "sample_difficulty")
    label_key, init_key, order_key = fnn.random.split(fnn.random.key(flags.seed), 3).to(device)
    labels, wrong = change_labels(label_key, true, flags.changed, len(data.classes))
    model = fnn.models.mlp(images[0].numel(), 256, 256, len(data.classes))
    params = fnn.tree.to(model.init(init_key), device)
    optimizer = fnn.optim.adam(flags.learning_rate)
    opt_state = optimizer.init(params)

    def loss(params: fnn.tree.Tree, batch: tuple[Tensor, Tensor]) -> Tensor:
        return fnn.losses.cross_entropy(model.apply(params, batch[0]), batch[1])

    def train_step(params: fnn.tree.Tree, opt_state: fnn.tree.Tree, batch: tuple[Tensor, Tensor]) -> tuple:
        updates, opt_state = optimizer.update(fnn.grad(loss)(params, batch), opt_state, params)
        return fnn.optim.apply_updates(params, updates), opt_state

    step = command_line.jit(train_step, flags, donate_argnums=(0, 1))
    steps = -(-len(labels) // flags.batch_size)
    for epoch in range(flags.epochs):
        batches = fnn.data.batches((images, labels), flags.batch_size, fnn.random.fold_in(order_key, epoch))
        for batch in command_line.progress(batches, f"epoch {epoch + 1}", steps):
            params, opt_state = step(params, opt_state, batch)

    print(f"norms of the gradients of {len(labels)} samples", flush=True)
    norms = fnn.gradients.per_sample_norms(loss, chunk_size=flags.chunk_size, method="ghost")(params, (images, labels))
    losses = fnn.losses.cross_entropy(model.apply(params, images), labels, reduction="none")
    norms, losses, wrong = norms.cpu(), losses.cpu(), wrong.cpu()
    result = {"norm": found(norms, wrong), "loss": found(losses, wrong)}
    files.write_metrics(output, result)
    plots.difficulty(output / "norms.png", norms, wrong)
    hardest = norms.argsort(descending=True)[:12]
    titles = [f"labelled {data.classes[labels[i]]}" for i in hardest.tolist()]
    for place, i in enumerate(hardest.tolist()):
        titles[place] += f"\n(changed; is {data.classes[true[i]]})" if wrong[i] else "\n(as in the data set)"
    heading = "The training images with the largest gradient norms; red: this recipe changed the label"
    plots.gallery(output / "hardest.png", images[hardest].cpu(), titles, wrong[hardest].tolist(), heading)
    print(f"{int(wrong.sum())} of {len(wrong)} labels are wrong; share of wrong labels among as many highest scores:")
    for name, row in result.items():
        print("{:10s} {precision:7.2%}   area under the ROC curve {area:.4f}".format(name, **row))
    print(f"wrote {output}")
    return result


if __name__ == "__main__":
    command_line.main(search, Flags())
