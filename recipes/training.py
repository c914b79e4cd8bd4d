"""What the image recipes share: flags, the train step, the epochs, and the files that they write."""

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from tqdm import tqdm

import fnn
from recipes import plots


@dataclass
class Flags:
    """Train a classifier of images."""

    dataset: Literal["digits", "mnist", "fashion_mnist"] = "digits"
    data_root: Path | None = None
    """Folder of the data sets (default: the environment variable FNN_DATA, else ~/.cache/fnn)."""
    epochs: int = 20
    batch_size: int = 64
    learning_rate: float = 0.02
    optimizer: Literal["sgd", "adam"] = "sgd"
    momentum: float = 0.9
    """Of SGD."""
    seed: int = 0
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    shuffle: bool = True
    """A new order every epoch; --no-shuffle takes the stored order."""
    compile: bool = False
    """Compile the train step: seconds at the start, faster steps after. Worth it for long runs and GPUs."""
    compiled: Path | None = None
    """Compile, with the code of this file; if it is not there, it is written after the first epoch. Trust its maker."""
    output: Path | None = None
    """Folder for metrics, checkpoint and pictures (default: runs/RECIPE-DATASET)."""
    resume: bool = False
    """Go on from the checkpoint in the output folder."""


def run(name: str, model: fnn.Layer, size: int, flags: Flags) -> dict[str, float]:
    """Train, write everything, and return the last epoch's figures."""
    device = choose_device(flags.device)
    data = fnn.data.load_dataset(flags.dataset, flags.data_root, size=size)
    train, test = fnn.tree.to(data.train, device), fnn.tree.to(data.test, device)
    output = flags.output or Path("runs") / f"{name}-{flags.dataset}"
    output.mkdir(parents=True, exist_ok=True)

    init_key, order_key = fnn.random.split(fnn.random.key(flags.seed))
    params = fnn.tree.to(model.init(init_key), device)
    optimizer = make_optimizer(flags)
    opt_state = optimizer.init(params)
    first, history = 0, []
    checkpoint, log = output / "checkpoint.safetensors", output / "metrics.jsonl"
    if flags.resume:
        (params, opt_state), first, history = _resume(checkpoint, (params, opt_state), flags, device)

    def keep() -> None:
        metadata = {"history": json.dumps(history), "flags": json.dumps(_fixed(flags))}
        fnn.checkpoint.save(checkpoint, (params, opt_state), metadata)
        _write(log, "".join(json.dumps(row) + "\n" for row in history))

    keep()  # so that stopping in the first epoch leaves a checkpoint too

    def loss(params: fnn.tree.Tree, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        return fnn.losses.cross_entropy(model.apply(params, images), labels)

    def train_step(params: fnn.tree.Tree, opt_state: fnn.tree.Tree, batch: tuple[Tensor, Tensor]) -> tuple:
        value, grads = fnn.value_and_grad(loss)(params, batch)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return fnn.optim.apply_updates(params, updates), opt_state, value

    # without precompiled headers, which no file holds, a start from a file calls no C++ compiler
    options = {"cpp_cache_precompile_headers": False} if flags.compiled else None
    compiled = fnn.jit(train_step, donate_argnums=(0, 1), batch_argnums=2, options=options)
    step = compiled if flags.compile or flags.compiled else train_step
    if flags.compiled and flags.compiled.exists():
        fnn.load_compiled(flags.compiled)
    elif flags.compiled:
        flags.compiled.parent.mkdir(parents=True, exist_ok=True)

    print(f"device {device}\n{fnn.summary(params)}")
    try:
        for epoch in range(first, flags.epochs):
            key = fnn.random.fold_in(order_key, epoch) if flags.shuffle else None
            start, values = time.perf_counter(), []
            batches = fnn.data.batches(train, flags.batch_size, key)
            total = -(-fnn.data.length(train) // flags.batch_size)
            new_params, new_opt_state = params, opt_state
            for batch in tqdm(batches, f"epoch {epoch + 1}", total, leave=False, disable=None):
                new_params, new_opt_state, value = step(new_params, new_opt_state, batch)
                values.append(value * len(batch[1]))
            params, opt_state = new_params, new_opt_state
            row = {"epoch": epoch + 1, "train_loss": float(torch.stack(values).sum()) / fnn.data.length(train)}
            row |= evaluate(model.apply, params, test)
            history.append(row)
            seconds = time.perf_counter() - start
            print("epoch {epoch:3d}  train loss {train_loss:.4f}".format(**row), end="  ")
            print("test loss {test_loss:.4f}  accuracy {test_accuracy:6.2%}".format(**row), f" {seconds:.1f} s")
            keep()
            if flags.compiled and not flags.compiled.exists():
                fnn.save_compiled(flags.compiled)
    except KeyboardInterrupt:
        print(f"\nstopped after epoch {len(history)}; go on with --resume")
        raise SystemExit(130) from None
    if history:
        plots.curves(output / "curves.png", history)
        shown = test[0][:25].cpu(), test[1][:25].cpu()
        plots.predictions(output / "predictions.png", *shown, model.apply(params, test[0][:25]).cpu(), data.classes)
    print(f"wrote {output}")
    return history[-1] if history else {}


def make_optimizer(flags: Flags) -> fnn.Optimizer:
    if flags.optimizer == "adam":
        return fnn.optim.adam(flags.learning_rate)
    return fnn.optim.sgd(flags.learning_rate, momentum=flags.momentum)


def evaluate(apply: Callable, params: fnn.tree.Tree, data: tuple[Tensor, Tensor]) -> dict[str, float]:
    """Mean loss over samples and accuracy, a thousand images at a time."""
    loss, right, rows = 0.0, 0.0, fnn.data.length(data)
    for images, labels in fnn.data.batches(data, 1000):
        logits = apply(params, images)
        loss += float(fnn.losses.cross_entropy(logits, labels, reduction="sum"))
        right += float(fnn.metrics.accuracy(logits, labels)) * len(labels)
    return {"test_loss": loss / rows, "test_accuracy": right / rows}


def choose_device(name: str) -> torch.device:
    """ "auto" is the accelerator when there is one. Stops with a sentence when the named device is missing."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if name == "auto":
        return torch.device(found.type if found else "cpu")
    if name != "cpu" and (found is None or found.type != name):
        raise SystemExit(f"--device {name}: torch finds {found.type if found else 'no accelerator'} here")
    return torch.device(name)


def _fixed(flags: Flags) -> dict:
    """The flags that an unbroken and a resumed run must share."""
    free = ("epochs", "output", "resume", "data_root", "device", "compile", "compiled")
    return {name: value for name, value in asdict(flags).items() if name not in free}


def _resume(path: Path, like: tuple, flags: Flags, device: torch.device) -> tuple[tuple, int, list]:
    try:
        metadata = fnn.checkpoint.load_metadata(path)
        before, now = json.loads(metadata["flags"]), _fixed(flags)
        for name, value in now.items():
            if before.get(name) != value:
                raise SystemExit(f"--resume: the checkpoint was made with {name}={before.get(name)!r}, not {value!r}")
        history = json.loads(metadata["history"])
        return fnn.checkpoint.load(path, like, str(device)), len(history), history
    except (FileNotFoundError, ValueError, KeyError) as error:
        raise SystemExit(f"--resume: {error}") from error


def _write(path: Path, text: str) -> None:
    part = path.with_suffix(".part")
    part.write_text(text)
    os.replace(part, path)
