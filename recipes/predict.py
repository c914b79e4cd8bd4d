"""Classify image files: ``python -m recipes.predict --run runs/lenet-mnist --files a.png b.png``."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

import fnn
from recipes import command_line, files, plots


@dataclass
class Flags(command_line.CommonFlags):
    """Classify image files with a network that mlp or lenet has trained."""

    run: Annotated[Path, tyro.conf.arg(metavar="FOLDER")] = Path("runs/mlp-digits")
    """Output folder of the training run."""
    files: Annotated[list[Path], tyro.conf.arg(metavar="FILE")] = field(default_factory=list)
    """Images, or folders of images. They are made grey and scaled; strokes are light and the ground is dark."""
    invert: bool = False
    """The images have dark strokes on a light ground."""
    top: command_line.Count = 3
    """How many classes to show for each image."""


def classify(flags: Flags) -> fnn.training.Prediction:
    """Print the most probable classes of each image, and write a picture. Raises ``SystemExit`` for files that fail."""
    device = command_line.begin(flags)
    model, params, metadata = load_run(flags.run, device)
    paths = [path for place in flags.files for path in (sorted(place.iterdir()) if place.is_dir() else [place])]
    if not paths:
        raise SystemExit("--files: name the images to classify, or a folder of them")
    classes, size = json.loads(metadata["classes"]), int(metadata["size"])
    if flags.top > len(classes):
        raise SystemExit(f"--top {flags.top}: there are {len(classes)} classes")
    try:
        read = fnn.data.ImageReader("predict", size, 1)
        images = torch.stack([read(path) for path in paths]).to(device)
    except (ValueError, OSError, ImportError) as error:
        raise SystemExit(f"--files: {error}") from error
    output = files.open_output(flags, "predict")
    guess = fnn.training.predict(model, params, 1 - images if flags.invert else images, flags.top)
    titles = []
    for path, found, probabilities in zip(paths, guess.classes.tolist(), guess.probabilities.tolist(), strict=True):
        shares = [f"{classes[number]} {share:.1%}" for number, share in zip(found, probabilities, strict=True)]
        print(f"{path}: {', '.join(shares)}")
        titles.append(f"{path.name}: {shares[0]}")
    plots.gallery(output / "predictions.png", images.cpu()[:32], titles[:32], [False] * len(titles[:32]))
    print(f"wrote {output}")
    return guess


def load_run(run: Path, device: torch.device) -> tuple[Any, fnn.tree.Tree, dict[str, str]]:
    """The model, the params and the metadata of a training run. Raises ``SystemExit`` if there is none."""
    path = run / "params.safetensors"
    try:
        metadata = fnn.checkpoint.load_metadata(path)
        model = fnn.layers.from_config(json.loads(metadata["config"]))
        like = model.init(fnn.random.key(0))
        return model, fnn.checkpoint.load(path, like, device), metadata
    except FileNotFoundError as error:
        raise SystemExit(f"--run {run}: {error}; train a network first, as with python -m recipes.mlp") from error
    except KeyError as error:
        raise SystemExit(f"--run {run}: {path} was not written by mlp or lenet: it has no {error}") from error
    except (ValueError, TypeError, OSError) as error:
        raise SystemExit(f"--run {run}: {error}") from error


if __name__ == "__main__":
    command_line.main(classify, Flags())
