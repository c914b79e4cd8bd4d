"""From a folder of labelled images to predictions: ``python -m recipes.own_images``.

Images of MNIST are written as PNG files, in a folder for each class, and a table ``labels.csv`` lists the files and
their classes: this stands in for images of your own. Both are read, and hold the same. Some of the images are shown in
a grid, LeNet is trained on four fifths of them, and the others are classified, with probabilities.
"""

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

import fnn
from recipes import command_line, files, plots, resume, training
from recipes.training import Batch

SIZE = 32  # LeNet takes images of 32x32 pixels


@dataclass
class Flags(command_line.ImageFlags):
    """Write labelled image files, read them, train on them and classify some."""

    dataset: Literal["digits", "mnist", "fashion_mnist"] = "mnist"
    each: command_line.Count = 200
    """Number of images of each class that are written."""
    epochs: command_line.Count = 10
    batch_size: command_line.Count = 32
    learning_rate: command_line.Positive = 2e-3
    """Learning rate of Adam."""


def run(flags: Flags) -> dict[str, Any]:
    """Write the images, read them, train and predict; return what is written to metrics.json."""
    device = command_line.begin(flags)
    data = command_line.load_images(flags, torch.device("cpu"))
    write_key, init_key, order_key = fnn.random.split(fnn.random.key(flags.seed), 3)
    rows = choose(write_key, data.train[1], flags.each)
    if len(rows) < 5:
        raise SystemExit(f"--each {flags.each}: at least five images are needed")
    output = files.open_output(flags, "own_images")
    written = write(output, data, rows)
    print(f"wrote {written} images into {output / 'photos'}, and {output / 'labels.csv'}", flush=True)

    own = fnn.data.from_folder(output / "photos", size=SIZE, channels=1)
    table = fnn.data.from_csv(output / "labels.csv", output / "photos", size=SIZE, channels=1)
    same = own.classes == table.classes and not fnn.tree.max_difference(own.data, table.data)
    print(
        f"read {len(own.files)} images of {len(own.classes)} classes; folder and table {'agree' if same else 'differ'}"
    )
    images, labels = own.data[0].to(device), own.data[1].to(device)
    step = len(labels) // 16
    shown = range(0, 16 * step, step) if step else range(len(labels))
    plots.gallery(
        output / "grid.png", images[shown].cpu(), [own.classes[labels[i]] for i in shown], [False] * len(shown)
    )

    test = torch.arange(len(labels), device=device) % 5 == 4
    params, history = train(flags, (images[~test], labels[~test]), (images[test], labels[test]), init_key, order_key)
    of_test = [file for file, held in zip(own.files, test.tolist(), strict=True) if held]
    chosen = range(0, len(of_test), max(1, len(of_test) // 8))[:8]
    guess = fnn.training.predict(fnn.models.lenet(), params, images[test][chosen], top=2)
    titles, wrong = [], []
    for i, found, shares in zip(chosen, guess.classes.tolist(), guess.probabilities.tolist(), strict=True):
        words = [f"{own.classes[label]} {share:.1%}" for label, share in zip(found, shares, strict=True)]
        print(f"{of_test[i].relative_to(output)}: {', '.join(words)}")
        titles.append(f"{of_test[i].relative_to(output / 'photos')}: {words[0]}")
        wrong.append(found[0] != int(labels[test][i]))
    plots.gallery(output / "predictions.png", images[test][chosen].cpu(), titles, wrong)
    fnn.checkpoint.save(output / "params.safetensors", params)
    result = {"images": len(own.files), "same": same, "history": history, "predictions": titles}
    files.write_metrics(output, result)
    print(f"wrote {output}")
    return result


def choose(key: Tensor, labels: Tensor, each: int) -> Tensor:
    """The rows of ``each`` random images of each class, or of all where there are fewer, class by class."""
    order = fnn.random.permutation(key, len(labels))
    return torch.cat([order[labels[order] == label][:each] for label in range(int(labels.max()) + 1)])


def write(output: Path, data: fnn.data.Images, rows: Tensor) -> int:
    """Write the images of these rows as ``photos/CLASS/NUMBER.png``, and the table of their names and classes.

    Raises ``SystemExit`` if there are other files in the folder: they would be read as images of this run.
    """
    images, labels = data.train[0][rows], data.train[1][rows].tolist()
    names = [data.classes[label].replace("/", " or ") for label in labels]
    first = {name: names.index(name) for name in set(names)}
    paths = [output / "photos" / name / f"{number - first[name]:04d}.png" for number, name in enumerate(names)]
    others = set((output / "photos").glob("*/*")) - set(paths)
    if others:
        raise SystemExit(
            f"--output {output}: {min(others)} is not a file that this run writes; remove the folder photos, or name "
            "another folder"
        )
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["file", "label"])
    for path, name, image in command_line.progress(zip(paths, names, images, strict=True), "writing", len(paths)):
        path.parent.mkdir(parents=True, exist_ok=True)
        save_image(path, image)
        writer.writerow([path.relative_to(output / "photos"), name])
    files.write_text(output / "labels.csv", table.getvalue())
    return len(paths)


def save_image(path: Path, image: Tensor) -> None:
    """Write a grey image (1, height, width) in [0, 1] as PNG."""
    from PIL import Image  # an extra, which the recipes need and fnn does not

    Image.fromarray((255 * image[0]).round().byte().numpy()).save(path)


def train(
    flags: Flags, train_data: Batch, test_data: Batch, init_key: Tensor, order_key: Tensor
) -> tuple[fnn.tree.Tree, list[dict[str, float]]]:
    """Train LeNet; return the params and the metrics of each epoch."""
    model, optimizer = fnn.models.lenet(), fnn.optim.adam(flags.learning_rate)
    params = fnn.tree.to(model.init(init_key), train_data[0].device)

    def loss(params: fnn.tree.Tree, batch: Batch) -> Tensor:
        return fnn.losses.cross_entropy(model.apply(params, batch[0]), batch[1])

    def train_step(params: fnn.tree.Tree, opt_state: fnn.tree.Tree, batch: Batch) -> tuple:
        value, grads = fnn.value_and_grad(loss)(params, batch)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return fnn.optim.apply_updates(params, updates), opt_state, {"train_loss": value}

    history = []
    state = params, optimizer.init(params)
    epochs = fnn.training.fit(
        command_line.jit(train_step, flags, donate_argnums=(0, 1)),
        state,
        lambda epoch: fnn.data.batches(train_data, flags.batch_size, fnn.random.fold_in(order_key, epoch)),
        flags.epochs,
        evaluate=lambda params, opt_state: training.evaluate(model.apply, params, test_data),
    )
    for epoch in epochs:
        history.append({"epoch": epoch.number, **epoch.metrics})
        print(resume.describe(history[-1]), flush=True)
        state = epoch.state
    return state[0], history


if __name__ == "__main__":
    command_line.main(run, Flags())
