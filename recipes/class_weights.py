"""Find a rare class with a weighted cross entropy: ``python -m recipes.class_weights``.

Most training images of one class are left out. A network that is trained on the rest rarely says that class, because
that costs little. Weights of the classes in the loss, n / (classes n_c) for a class with n_c of n images, make each
class count the same; their square roots are a milder choice. The recall of a class is the share of its images that are
found, and its precision the share of its predictions that are right; weights raise the recall of the rare class and
may cost its precision and the recall of the others.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fnn
from recipes import command_line, files, plots
from recipes.plots import plt

Batch = tuple[Tensor, Tensor]


@dataclass
class Flags(command_line.ImageFlags):
    """Train with and without weights of the classes, where one class is rare."""

    rare: command_line.CountOrZero = 8
    """Number of the class that is made rare."""
    kept: command_line.Share = 0.05
    """Share of the training images of that class that are kept."""
    epochs: command_line.Count = 10
    batch_size: command_line.Count = 64
    learning_rate: command_line.Positive = 3e-3
    """Learning rate of Adam."""
    seeds: command_line.Count = 5
    """Networks that are trained for each choice of weights; the scores are their means."""


def make_rare(key: Tensor, data: Batch, rare: int, kept: float) -> Batch:
    """The data without a part of the images of one class; at least one of them is kept."""
    images, labels = data
    rows = fnn.random.permutation(key, len(labels))
    of_class = rows[labels[rows] == rare]
    others = rows[labels[rows] != rare]
    rows = torch.cat([others, of_class[: max(1, round(kept * len(of_class)))]])
    return images[rows], labels[rows]


def compare(flags: Flags) -> dict[str, Any]:
    """Train, write the files, and return what is written to metrics.json."""
    device = command_line.begin(flags)
    data = command_line.load_images(flags, device)
    classes = len(data.classes)
    if flags.rare >= classes:
        raise SystemExit(f"--rare {flags.rare}: the classes are 0 to {classes - 1}")
    output = files.open_output(flags, "class_weights")
    rare_key, key = fnn.random.split(fnn.random.key(flags.seed, device=device))
    train = make_rare(rare_key, data.train, flags.rare, flags.kept)
    counts = torch.bincount(train[1], minlength=classes)
    weights = len(train[1]) / (classes * counts)
    losses = {
        "no weights": fnn.losses.cross_entropy,
        "square roots": functools.partial(fnn.losses.cross_entropy, weight=weights.sqrt()),
        "n / (classes n_c)": functools.partial(fnn.losses.cross_entropy, weight=weights),
    }
    name = data.classes[flags.rare]
    print(
        f"{len(train[1])} images, {int(counts[flags.rare])} of them {name}, whose weight is {weights[flags.rare]:.2f}"
    )
    result: dict[str, Any] = {"counts": counts.tolist(), "weights": weights.tolist(), "scores": {}}
    for choice, criterion in losses.items():
        confusion = train_networks(flags, criterion, train, data, key, choice)
        scores = [fnn.metrics.scores(counted, average="none") for counted in confusion]
        result["scores"][choice] = {
            "recall": torch.stack([score.recall for score in scores]).mean(0).tolist(),
            "precision": torch.stack([score.precision for score in scores]).mean(0).tolist(),
            "accuracy": float(torch.stack([c.diagonal().sum() / c.sum() for c in confusion]).mean()),
        }
    files.write_metrics(output, result)
    draw(output / "recall.png", data.classes, flags.rare, result["scores"])
    print(f"{'class ' + name:18s}    recall  precision   mean recall of the others  accuracy")
    for choice, row in result["scores"].items():
        recall, precision = row["recall"][flags.rare], row["precision"][flags.rare]
        others = (sum(row["recall"]) - recall) / (classes - 1)
        print(f"{choice:18s} {recall:9.1%} {precision:10.1%} {others:27.1%} {row['accuracy']:9.1%}")
    print(f"wrote {output}")
    return result


def train_networks(
    flags: Flags, criterion: Callable, train: Batch, data: fnn.data.Images, key: Tensor, label: str
) -> list[Tensor]:
    """Train a network for each seed, and return the counts of classes (row) predicted as classes (column)."""
    model = fnn.models.mlp(train[0][0].numel(), 64, len(data.classes))
    optimizer = fnn.optim.adam(flags.learning_rate)

    def loss(params: fnn.tree.Tree, batch: Batch) -> Tensor:
        return criterion(model.apply(params, batch[0]), batch[1])

    def train_step(params: fnn.tree.Tree, opt_state: fnn.tree.Tree, batch: Batch) -> tuple:
        updates, opt_state = optimizer.update(fnn.grad(loss)(params, batch), opt_state, params)
        return fnn.optim.apply_updates(params, updates), opt_state

    step = command_line.jit(train_step, flags, donate_argnums=(0, 1))
    total = flags.seeds * flags.epochs
    found, params = [], {}
    for number in command_line.progress(range(total), label, total):
        seed, epoch = divmod(number, flags.epochs)
        init_key, order_key = fnn.random.split(fnn.random.fold_in(key, seed))
        if epoch == 0:
            params = model.init(init_key)
            opt_state = optimizer.init(params)
        for batch in fnn.data.batches(train, flags.batch_size, fnn.random.fold_in(order_key, epoch)):
            params, opt_state = step(params, opt_state, batch)
        if epoch == flags.epochs - 1:
            found.append(fnn.metrics.confusion_matrix(model.apply(params, data.test[0]), data.test[1]).cpu())
    return found


def draw(path: Path, classes: tuple[str, ...], rare: int, scores: dict[str, dict]) -> None:
    """Recall of each class, and recall and precision of the rare one, by the choice of weights."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained", width_ratios=(2, 1))
    for number, (choice, row) in enumerate(scores.items()):
        places = [i + 0.27 * (number - 1) for i in range(len(classes))]
        left.bar(places, [100 * value for value in row["recall"]], width=0.25, label=choice)
    names = [f"{name}\n(rare)" if number == rare else name for number, name in enumerate(classes)]
    left.set_xticks(range(len(classes)), names, rotation=0 if max(map(len, classes)) < 4 else 40, fontsize=9)
    left.set(ylabel="recall (%)", ylim=(0, 100))
    left.legend(frameon=False, loc="lower left", ncols=3, bbox_to_anchor=(0, 1.0), title="weights of the classes")
    for measure in ("recall", "precision"):
        right.plot(list(scores), [100 * row[measure][rare] for row in scores.values()], "o-", label=measure)
    right.set(ylabel="percent", ylim=(0, 103), title=f"the rare class, {classes[rare]}")
    right.legend(frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    plots.save(figure, path)


if __name__ == "__main__":
    command_line.main(compare, Flags())
