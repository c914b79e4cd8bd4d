"""Runs of ``fnn.training.fit`` under the flags of a recipe: they are resumed with ``--resume`` and printed."""

import importlib.util
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from tqdm import tqdm

import fnn
from fnn.data.batches import Batches
from recipes import files
from recipes.command_line import RunFlags

Flags = TypeVar("Flags", bound=Any)
PARAMS, METRICS = "params.safetensors", "metrics.jsonl"
FILES = ("checkpoint-*.safetensors", PARAMS, METRICS, "launch-*.txt", "nan-batch.safetensors", "events.out.tfevents.*")
# flags that may differ between the first and the resumed run
FREE = ("epochs", "output", "overwrite", "resume", "tensorboard", "data_root", "device", "compile")


def restarted(flags: Flags, name: str) -> Flags:
    """The flags with which ``torchrun --max-restarts`` starts a recipe again after the end of one of its processes.

    The run goes on from its last checkpoint, or starts anew if it has none. An older run in the folder is not touched:
    its files name another launch.
    """
    output = flags.output or Path("runs") / name
    file, launch = _launch(output)
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0" or not file.is_file() or file.read_text() != launch:
        return flags
    kept = (output / PARAMS).exists()
    return replace(flags, resume=kept, overwrite=not kept)


def _launch(output: Path) -> tuple[Path, str]:
    """The file that names the call of torchrun on this machine, and its name: the process that starts this one."""
    environment = os.environ.get
    return (
        output / f"launch-{environment('GROUP_RANK', '0')}.txt",
        f"{environment('TORCHELASTIC_RUN_ID')} {os.getppid()}",
    )


def open_run(flags: Any, name: str) -> Path:
    """Return the output folder of a new run, or with ``--resume`` that of an earlier run with the same flags.

    ``--overwrite`` removes the files of the earlier run. Raises ``SystemExit`` if there is nothing to resume, or if the
    earlier run had other flags.
    """
    if flags.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise SystemExit("--tensorboard needs the package of this name: pip install tensorboard")
    if not flags.resume:
        output = files.open_output(flags, name)
        for pattern in FILES if fnn.distributed.rank() == 0 else ():
            for old in output.glob(pattern):
                old.unlink()
        if os.environ.get("LOCAL_RANK") == "0":
            file, launch = _launch(output)
            file.write_text(launch)
        return output
    if flags.overwrite:
        raise SystemExit("--resume goes on with an earlier run and --overwrite replaces it: give one of them")
    output = flags.output or Path("runs") / name
    try:
        _compare(json.loads(fnn.checkpoint.load_metadata(output / PARAMS)["flags"]), fixed(flags))
    except FileNotFoundError as error:
        raise SystemExit(f"--resume: {error}") from error
    except KeyError as error:
        raise SystemExit(f"--resume: {output / PARAMS} was not written by this recipe: it has no {error}") from error
    except (OSError, ValueError) as error:
        raise SystemExit(f"--resume: {error}") from error
    return output


def fit(
    flags: Any,
    output: Path,
    step: Callable[..., tuple],
    state: tuple,
    batches: Callable[[int], Batches],
    samples: int,
    evaluate: Callable[..., dict[str, float]],
    metadata: dict[str, str],
) -> Iterator[dict[str, float]]:
    """``fnn.training.fit`` that prints like the PyTorch tutorials: losses of batches, and the test after each epoch.

    step returns the state and the loss of a batch, and evaluate returns "test_loss" and "test_accuracy". Yields the
    metrics of each epoch. A loss that is not finite and a checkpoint that does not fit raise ``SystemExit``.
    """
    number = 0  # of the batch in its epoch, also where a run is resumed in the middle of one

    def numbered(epoch: int) -> Batches:
        taken = batches(epoch)

        def count() -> Iterator[Any]:
            nonlocal number
            for number, batch in enumerate(taken):  # noqa: B007
                yield batch

        return Batches(count(), len(taken))

    def printing(*arguments: Any) -> tuple:
        *parts, loss = step(*arguments)
        if number % 100 == 0:
            show(f"loss: {float(loss):>7f}  [{number * flags.batch_size:>5d}/{samples:>5d}]")
        return *parts, {"train_loss": loss}

    options = {"resume": flags.resume, "tensorboard": flags.tensorboard}
    metadata = metadata | {"flags": json.dumps(fixed(flags))}
    try:
        for epoch in fnn.training.fit(
            printing, state, numbered, flags.epochs, evaluate=evaluate, folder=output, metadata=metadata, **options
        ):
            row = epoch.metrics
            show(describe(row))
            yield row
    except FloatingPointError as error:
        raise SystemExit(f"stopped: {error}") from error
    except ValueError as error:
        what = f"--resume: the checkpoint in {output} does not fit" if flags.resume else "stopped"
        raise SystemExit(f"{what}: {error}") from error


def describe(row: dict[str, float]) -> str:
    """The line that is printed for an epoch."""
    line = "epoch {epoch:3d}  train loss {train_loss:.4f}  test loss {test_loss:.4f}  accuracy {test_accuracy:6.2%}  "
    return (line + "{seconds:.1f} s").format(**row)


def show(line: str) -> None:
    """Print a line above the progress bar, if there is one."""
    tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()


def finished(output: Path, device: torch.device) -> tuple[fnn.tree.Tree, list[dict[str, float]]]:
    """The params and the metrics of all epochs of a run, those before it was resumed included."""
    history = [json.loads(line) for line in (output / METRICS).read_text().splitlines()]
    return fnn.checkpoint.load(output / PARAMS, device=device), history


def fixed(flags: RunFlags) -> dict[str, Any]:
    """The flags that must be the same when a run is resumed."""
    found = {name: value for name, value in asdict(flags).items() if name not in FREE}
    if found.get("schedule") == "cosine":  # whose rates depend on the number of epochs
        found["epochs"] = flags.epochs  # pyright: ignore[reportAttributeAccessIssue]
    return {name: str(value.resolve()) if isinstance(value, Path) else value for name, value in found.items()}


def _compare(before: dict[str, Any], now: dict[str, Any]) -> None:
    for name, value in now.items():
        if before.get(name) != value:
            raise SystemExit(f"--resume: the checkpoint was made with {name}={before.get(name)!r}, not {value!r}")


@contextmanager
def resumable(output: Path) -> Iterator[None]:
    """Context manager: Ctrl-C inside the block reports the step of the last checkpoint and how to resume."""
    try:
        yield
    except KeyboardInterrupt:
        steps = [int(path.stem.split("-")[1]) for path in output.glob("checkpoint-*.safetensors")]
        if not steps:
            raise
        raise KeyboardInterrupt(f" after step {max(steps)}; go on with --resume") from None
