"""Run the recipes of the gallery and write gallery.md and its pictures: ``python docs/make_gallery.py [NAME ...]``.

With names, only these recipes are run, and the sections of the others stay as they are. Times in the outputs are those
of the machine that ran the script.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from PIL import Image

DOCS = Path(__file__).resolve().parent
PAGE = DOCS / "gallery.md"
HEAD = """# Gallery

Programs that run from a clone of the repository as `python -m recipes.NAME`, after `pip install ".[recipes]"`. Each
has `--help`, writes its pictures and numbers into a folder in `runs`, and takes at most a few minutes on a laptop's
CPU. The outputs here are real: `python docs/make_gallery.py` runs the commands and writes this page. Times in them are
those of one machine.

The tutorial shows four more: [a tour of tensors](tutorial/tensors.md), [own images](tutorial/data.md) step by step,
[the weights of VGG-16](tutorial/saving.md) and [CPU beside GPU](tutorial/optimisation.md).
"""


class Entry(NamedTuple):
    """A section of the gallery."""

    name: str
    title: str
    text: str
    picture: str  # in the folder of the run
    shows: str  # what the picture shows
    flags: str = ""
    lines: int = 12  # of the output, the last ones


ENTRIES = [
    Entry(
        "mlp",
        "A perceptron",
        "The tutorial's first network, on the digits that come with the package.",
        "predictions.png",
        "Test images with the predicted class",
    ),
    Entry(
        "lenet",
        "LeNet",
        "The tutorial's second network. `--dataset mnist` brings it to 99 %.",
        "curves.png",
        "Loss and accuracy over the epochs",
    ),
    Entry(
        "own_images",
        "Your own images",
        "From a folder of labelled image files to predictions; `--images` of `mlp` and `lenet` takes such a folder.",
        "predictions.png",
        "Images from files with the predicted classes",
    ),
    Entry(
        "autograd_basics",
        "Gradients are return values",
        "The examples of the autograd tutorial, written as functions.",
        "autograd.png",
        "Gradients, products with a Jacobian, and losses",
        lines=24,
    ),
    Entry(
        "pitfalls",
        "What common mistakes cost",
        "A softmax too many, a ReLU at the end, no shuffling, no `zero_grad`: each with its measured effect.",
        "pitfalls.png",
        "Accuracies with each mistake, and two wrong averages",
    ),
    Entry(
        "class_weights",
        "A rare class",
        "Weights in the loss bring back the recall of a class with few images.",
        "recall.png",
        "Recall and precision of each class for three choices of weights",
    ),
    Entry(
        "lr_sweep",
        "Sixty-four learning rates at once",
        "The rate is a value in the optimizer's state, so a sweep is a `vmap` of the train step.",
        "sweep.png",
        "The final loss against the learning rate",
    ),
    Entry(
        "resnet",
        "A residual network",
        "BatchNorm's running statistics go in and come out of the step, and augmentation takes a key.",
        "curves.png",
        "Loss and accuracy over the epochs",
    ),
    Entry(
        "transfer",
        "A new head",
        "A backbone from a file of weights is frozen in two ways, or trained along.",
        "accuracy.png",
        "Accuracy of the frozen and the trained backbone and of new weights",
    ),
    Entry(
        "lora",
        "Low-rank adapters",
        "The params of a `torch.nn` network become a function of two thin matrices for each weight.",
        "accuracy.png",
        "Accuracy of the adapters beside that of training all weights",
    ),
    Entry(
        "transformer",
        "A model of characters",
        "A decoder learns 22 sonnets, and writes with a cache of keys and values.",
        "curves.png",
        "Training and held-out loss over the steps",
        lines=16,
    ),
    Entry(
        "sample_difficulty",
        "Wrong labels",
        "Samples are ranked by the norms of their gradients, and the wrong labels among them come first.",
        "norms.png",
        "Distribution of the norms for right and wrong labels",
    ),
    Entry(
        "dp_sgd",
        "Private training",
        'Clipped gradients of single samples and noise, with an accountant. Needs `pip install ".[recipes,privacy]"`.',
        "privacy.png",
        "Test accuracy and epsilon over the epochs",
        "--dataset digits",
    ),
    Entry(
        "hessian_spectrum",
        "The spectrum of the Hessian",
        "Densities of eigenvalues before and after training, from products alone.",
        "spectrum.png",
        "Spectral densities of Hessian and Gauss-Newton matrix",
    ),
    Entry(
        "natural_gradient",
        "Second-order steps",
        "Gauss-Newton steps by conjugate gradients, beside Adam.",
        "race.png",
        "Loss against steps and against time",
    ),
    Entry(
        "heat_equation",
        "A differential equation",
        "A network that satisfies u_t = u_xx, with derivatives in forward mode inside the loss.",
        "heat.png",
        "The solution that was found, its error, and the loss",
    ),
]


def section(entry: Entry, printed: str, folder: Path) -> str:
    """Keep the picture of a run, and return its section of the page."""
    picture = Image.open(folder / entry.picture).convert("RGB")
    picture.thumbnail((1200, 1200))
    picture.quantize(128).save(DOCS / "pictures" / f"gallery_{entry.name}.png", optimize=True)
    printed = printed.replace(str(folder), f"runs/{entry.name}")
    shown = [line.rstrip() for line in printed.splitlines() if line.strip()][-entry.lines :]
    command = f"python -m recipes.{entry.name} {entry.flags}".strip()
    return (
        f"## {entry.title}\n\n{entry.text}\n\n```sh\n{command}\n```\n\n"
        f"![{entry.shows}](pictures/gallery_{entry.name}.png)\n\n```text\n" + "\n".join(shown) + "\n```\n"
    )


def run(entry: Entry) -> str:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "run"
        flags = [*entry.flags.split(), "--output", str(folder), "--device", "cpu"]
        words = [sys.executable, "-m", f"recipes.{entry.name}", *flags]
        done = subprocess.run(words, cwd=DOCS.parent, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(words)}\n{done.stderr}")
        return section(entry, done.stdout, folder)


def write(new: dict[str, str]) -> None:
    """Put sections into the page, in the place of those of the same recipes."""
    text = PAGE.read_text() if PAGE.exists() else ""
    pieces = re.split(r"^(?=## )", text, flags=re.MULTILINE)[1:]
    old = {match[1]: piece for piece in pieces if (match := re.search(r"pictures/gallery_(\w+)\.png", piece))}
    sections = old | new
    PAGE.write_text("\n".join([HEAD, *(sections[e.name].strip() + "\n" for e in ENTRIES if e.name in sections)]))


def main() -> None:
    chosen = sys.argv[1:] or [entry.name for entry in ENTRIES]
    unknown = set(chosen) - {entry.name for entry in ENTRIES}
    if unknown:
        raise SystemExit(f"the gallery has no {sorted(unknown)}; its recipes are {[e.name for e in ENTRIES]}")
    for entry in ENTRIES:
        if entry.name in chosen:
            write({entry.name: run(entry)})


if __name__ == "__main__":
    main()
