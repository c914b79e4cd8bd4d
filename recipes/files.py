"""The files that recipes write. They are replaced atomically, and those of an earlier run only with ``--overwrite``."""

import json
import os
from pathlib import Path
from typing import Any

import fnn
from recipes.command_line import CommonFlags


def open_output(flags: CommonFlags, name: str) -> Path:
    """Return the folder for the files of a run, by default ``runs/NAME``; it is created if it does not exist.

    Raises ``SystemExit`` if the folder cannot be written, or if it has files of an earlier run and ``--overwrite`` is
    not given.
    """
    folder = flags.output or Path("runs") / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        found = sorted(file.name for file in folder.iterdir() if not file.name.startswith("."))
        found = found if fnn.distributed.rank() == 0 else []  # the first of several processes decides, and writes
    except OSError as error:
        raise SystemExit(f"--output {folder}: no folder can be made there ({error.strerror})") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise SystemExit(f"--output {folder}: the folder cannot be written")
    if found and not flags.overwrite:
        choices = "--overwrite to replace it" + (", --resume to go on with it" if hasattr(flags, "resume") else "")
        raise SystemExit(
            f"--output {folder}: an earlier run has left {found[0]} there; give {choices}, or name another folder"
        )
    return folder


def write_text(path: Path, text: str) -> None:
    part = path.with_suffix(".part")
    try:
        part.write_text(text)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)  # of a full disk


def write_metrics(output: Path, metrics: dict[str, Any]) -> None:
    """Write ``metrics.json``."""
    write_text(output / "metrics.json", json.dumps(metrics, indent=1) + "\n")
