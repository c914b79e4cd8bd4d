"""The files of a run: checkpoints that are kept, clean params, and a line of metrics for each epoch."""

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fnn import checkpoint
from fnn import tree as _tree
from fnn._processes import rank, world_size
from fnn.tree import Tree

PARAMS, BEST = "params.safetensors", "best.safetensors"
METRICS, BATCH = "metrics.jsonl", "nan-batch.safetensors"
_NAME = re.compile(r"checkpoint-(\d{9})\.safetensors")


class RunFolder:
    """Writes and reads the files of one run in a folder.

    ``checkpoint-STEP.safetensors`` holds everything that the run needs to go on; the last ``keep`` of them stay.
    ``params.safetensors`` holds the params alone under torch's names, with the metadata of the run, and
    ``best.safetensors`` those of the best epoch.
    """

    def __init__(self, path: str | Path, keep: int, metadata: Mapping[str, str]) -> None:
        self.path, self.keep = Path(path).expanduser(), keep
        self.metadata = {**metadata, "torch": torch.__version__}
        self._wait: Callable[[], None] = lambda: None

    def open(self) -> None:
        """Make the folder. Raises ``PermissionError`` or another ``OSError`` if it cannot be made or written."""
        self.path.mkdir(parents=True, exist_ok=True)
        if not os.access(self.path, os.W_OK | os.X_OK):
            raise PermissionError(f"{self.path} cannot be written; name another folder")

    def steps(self) -> list[int]:
        """The steps of the checkpoints, in ascending order."""
        return sorted(int(found[1]) for found in map(_NAME.fullmatch, os.listdir(self.path)) if found)

    def save(self, state: tuple, totals: Mapping[str, Tensor], progress: Mapping[str, Any]) -> None:
        """Write a checkpoint in the background, after an earlier one is written. Of several processes, one writes.

        totals: the sums of the metrics of this epoch. progress: where the run stands, as JSON can hold it.
        """
        if rank() > 0:
            return
        self._wait()
        step = progress["step"]
        text = self.metadata | {"progress": json.dumps(progress)}
        whole = {"state": {str(i): part for i, part in enumerate(state)}, "totals": dict(totals)}
        wait = [checkpoint.save_in_background(self._file(step), whole, text)]
        wait.append(checkpoint.save_in_background(self.path / PARAMS, state[0], self.metadata | {"step": str(step)}))

        def finish() -> None:
            errors = []
            for each in wait:  # for both files, also where the first could not be written
                try:
                    each()
                except OSError as error:
                    errors.append(error)
            if errors:
                raise errors[0]
            for old in self.steps()[: -self.keep]:
                self._file(old).unlink(missing_ok=True)
            self._wait = lambda: None

        self._wait = finish

    def finish(self) -> None:
        """Wait until everything is on the disk."""
        self._wait()

    def save_best(self, params: Tree, row: Mapping[str, float]) -> None:
        if rank() == 0:
            checkpoint.save(self.path / BEST, params, self.metadata | {"metrics": json.dumps(row)})

    def write_metrics(self, rows: list[dict[str, float]]) -> None:
        if rank() > 0:
            return
        part = self.path / (METRICS + ".part")
        try:
            part.write_text("".join(json.dumps(row) + "\n" for row in rows))
            os.replace(part, self.path / METRICS)
        finally:
            part.unlink(missing_ok=True)  # of a full disk

    def keep_batch(self, batch: Tree) -> Path:
        """Write this process's part of a batch."""
        file = self.path / (BATCH if world_size() == 1 else BATCH.replace(".", f"-{rank()}."))
        checkpoint.save(file, batch)
        return file

    def load(self, state: tuple) -> tuple[tuple, dict[str, Tensor], dict[str, Any]] | None:
        """The state, the sums of the metrics of this epoch, and the progress of the last checkpoint, if there is one.

        Raises ``ValueError`` for a checkpoint that is damaged or does not fit the state.
        """
        steps = self.steps()
        if not steps:
            return None
        file = self._file(steps[-1])
        metadata = checkpoint.load_metadata(file)
        flat = _tree.to_state_dict(checkpoint.load(file))
        found = {name.removeprefix("state."): leaf for name, leaf in flat.items() if name.startswith("state.")}
        totals = {name.removeprefix("totals."): leaf for name, leaf in flat.items() if name.startswith("totals.")}
        like = {str(i): part for i, part in enumerate(state)}
        checkpoint.check_fits(file, found, like)
        placed = {name: found[name].to(leaf.device) for name, leaf in _tree.items(like)}
        parts = _tree.from_state_dict(placed, like)
        devices = _tree.leaves(state)
        device = devices[0].device if devices else None
        totals = {name: leaf.to(device) for name, leaf in totals.items()}
        return tuple(parts[str(i)] for i in range(len(state))), totals, json.loads(metadata["progress"])

    def _file(self, step: int) -> Path:
        return self.path / f"checkpoint-{step:09d}.safetensors"
