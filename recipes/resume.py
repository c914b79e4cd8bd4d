"""Checkpoints after each epoch, from which a stopped run can be resumed."""

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
# flags that may differ between the first and the resumed run
FREE = ("epochs", "output", "overwrite", "resume", "data_root", "device", "compile")


def begin(state: fnn.tree.Tree, flags: Any, name: str, device: torch.device) -> tuple[Path, fnn.tree.Tree, list[dict]]:
    """Return the output folder, the state and the history; with ``--resume``, the last two are from the checkpoint.

    Raises ``SystemExit`` if there is nothing to resume, or if the checkpoint was written with other flags.
    """
    if not flags.resume:
        output = files.open_output(flags, name)
        keep(output, state, flags, [])  # a run that is stopped in its first epoch can be resumed, too
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
    """Write the checkpoint, which contains the flags and the history, and write the history as lines of JSON."""
    metadata = {"history": json.dumps(history), "flags": json.dumps(fixed(flags))}
    fnn.checkpoint.save(output / CHECKPOINT, state, metadata)
    files.write_text(output / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in history))


def fixed(flags: RunFlags) -> dict[str, Any]:
    """The flags that must be the same when a run is resumed."""
    found = {name: value for name, value in asdict(flags).items() if name not in FREE}
    return {name: str(value.resolve()) if isinstance(value, Path) else value for name, value in found.items()}


def _compare(before: dict[str, Any], now: dict[str, Any]) -> None:
    for name, value in now.items():
        if before.get(name) != value:
            raise SystemExit(f"--resume: the checkpoint was made with {name}={before.get(name)!r}, not {value!r}")


@contextmanager
def resumable(output: Path) -> Iterator[None]:
    """Context manager: Ctrl-C inside the block reports the last epoch in the checkpoint and how to resume."""
    try:
        yield
    except KeyboardInterrupt:
        kept = json.loads(fnn.checkpoint.load_metadata(output / CHECKPOINT)["history"])
        raise KeyboardInterrupt(f" after epoch {len(kept)}; go on with --resume") from None
