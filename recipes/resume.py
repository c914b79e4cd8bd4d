"""Runs that can be stopped and resumed: what the image recipes keep after each epoch."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import fnn
from recipes import files
from recipes.command_line import RunFlags

CHECKPOINT = "checkpoint.safetensors"
# may differ between an unbroken and a resumed run
FREE = ("epochs", "output", "overwrite", "resume", "data_root", "device", "compile")


def begin(state: fnn.tree.Tree, flags: Any, name: str, device: torch.device) -> tuple[Path, fnn.tree.Tree, list[dict]]:
    """The output folder, and the state and history from which to go on: new ones, or with ``--resume`` the kept ones.

    Stops with a sentence where nothing can be resumed, or where the checkpoint was made with other flags.
    """
    if not flags.resume:
        output = files.open_output(flags, name)
        keep(output, state, flags, [])  # so that a run which is stopped in its first epoch can be resumed, too
        return output, state, []
    if flags.overwrite:
        raise SystemExit("--resume goes on with an earlier run and --overwrite replaces it: give one of them")
    output = flags.output or Path("runs") / name
    try:
        metadata = fnn.checkpoint.load_metadata(output / CHECKPOINT)
        _compare(json.loads(metadata["flags"]), fixed(flags))
        return output, fnn.checkpoint.load(output / CHECKPOINT, state, str(device)), json.loads(metadata["history"])
    except FileNotFoundError as error:
        raise SystemExit(f"--resume: {error}") from error
    except KeyError as error:
        raise SystemExit(
            f"--resume: {output / CHECKPOINT} was not written by this recipe: it has no {error}"
        ) from error
    except (OSError, ValueError, TypeError) as error:
        raise SystemExit(f"--resume: the checkpoint in {output} does not fit: {error}") from error


def keep(output: Path, state: fnn.tree.Tree, flags: RunFlags, history: list[dict]) -> None:
    """Write the checkpoint, with the flags and the history inside, and the history as lines of JSON."""
    metadata = {"history": json.dumps(history), "flags": json.dumps(fixed(flags))}
    fnn.checkpoint.save(output / CHECKPOINT, state, metadata)
    files.write_text(output / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in history))


def fixed(flags: RunFlags) -> dict[str, Any]:
    """The flags that an unbroken and a resumed run must share."""
    return {name: value for name, value in asdict(flags).items() if name not in FREE}


def _compare(before: dict[str, Any], now: dict[str, Any]) -> None:
    for name, value in now.items():
        if before.get(name) != value:
            raise SystemExit(f"--resume: the checkpoint was made with {name}={before.get(name)!r}, not {value!r}")


@contextmanager
def resumable(output: Path) -> Iterator[None]:
    """Ctrl-C inside says how to go on, and after which epoch: the one in the checkpoint."""
    try:
        yield
    except KeyboardInterrupt:
        kept = json.loads(fnn.checkpoint.load_metadata(output / CHECKPOINT)["history"])
        raise KeyboardInterrupt(f" after epoch {len(kept)}; go on with --resume") from None
