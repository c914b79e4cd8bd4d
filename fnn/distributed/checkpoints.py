"""Checkpoints that all processes write together and that any number of processes reads (torch.distributed.checkpoint).

A checkpoint is a folder of safetensors files, in which each process has written its parts, and of ``index.json`` with
the checksums of the files and the metadata. No file is run as code. The folder gets its name when everything is on the
disk, so a reader finds a whole checkpoint or none.
"""

import hashlib
import json
import os
import secrets
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fnn import _torch, checkpoint
from fnn import tree as _tree
from fnn._processes import all_values, rank, world_size
from fnn.distributed.sharding import Sharding
from fnn.tree import Tree

INDEX = "index.json"


def save(
    path: str | Path, parts: Tree, sharding: Sharding | None = None, metadata: dict[str, str] | None = None
) -> None:
    """Write a tree to a folder. All processes call this with the same path, on a disk that all of them see.

    parts: this process's parts of the tree and the :class:`Sharding` that :func:`shard` returned with them, or without
    a sharding a tree that all processes hold whole. Each number is written once. ``load`` reads it in any number of
    processes. To keep the tree in one file, call ``fnn.checkpoint.save(file, fnn.distributed.load(path))`` in one
    process.

    Raises ``FileExistsError`` if there is something at ``path``, and what :func:`fnn.checkpoint.save` raises for leaves
    and metadata that cannot be saved; ``OSError`` on all processes if one of them cannot write. Then nothing is left. A
    save whose processes are killed leaves a folder whose name ends in ``.part``; no reader takes it for a checkpoint.

    >>> import tempfile, os
    >>> from fnn.distributed import shard
    >>> path = os.path.join(tempfile.mkdtemp(), "step-100")
    >>> parts, sharding = shard({"w": torch.ones(4)})
    >>> save(path, parts, sharding, {"step": "100"})
    >>> load(path), load_metadata(path)
    ({'w': tensor([1., 1., 1., 1.])}, {'step': '100'})
    """
    target = Path(path).expanduser()
    strings = checkpoint.checked_metadata(metadata)
    flat = _tree.to_state_dict(parts)
    for name, leaf in flat.items():
        checkpoint.check_leaf(name, leaf)
    token, exists = all_values((secrets.token_hex(4), target.exists()))[0]
    if exists:
        raise FileExistsError(f"save: there is something at {path} already; give each checkpoint a name of its own")
    folder = target.with_name(f"{target.name}.{token}.part")

    def write() -> None:
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
        from torch.distributed.checkpoint.state_dict_saver import save as save_parts

        save_parts(
            _distributed(flat, sharding),
            storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True),
            no_dist=world_size() == 1,
        )

    def finish() -> None:
        if rank() == 0:
            _write_index(folder, parts, sharding, strings)
            os.replace(folder, target)
            _sync(target.parent)

    try:
        _on_all(write)
        _on_all(finish)
    except BaseException:
        if rank() == 0:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def load(path: str | Path, like: Tree = None, sharding: Sharding | None = None) -> Tree:
    """Read a checkpoint of :func:`save`. All processes call this together, as many of them as there are now.

    like: this process's parts of a tree with the structure, shapes and dtypes that were saved, and ``sharding`` as
    :func:`shard` returned it; the values of the parts do not matter. Without a sharding ``like`` is a whole tree, and
    without ``like`` all processes read everything, as nested dicts on the CPU.

    Raises ``FileNotFoundError`` if there is no checkpoint, and ``ValueError`` for one that is incomplete or altered and
    for one that does not fit ``like``, on all processes.

    >>> load("nothing")
    Traceback (most recent call last):
    FileNotFoundError: no checkpoint at nothing
    """
    folder = Path(path).expanduser()
    index = _on_all(lambda: _read_index(folder, path))
    _on_all(lambda: _verify(folder, path, index["files"]))
    saved = {
        name: torch.empty(row["shape"], dtype=getattr(torch, row["dtype"]), device="meta")
        for name, row in index["leaves"].items()
    }
    if like is None:
        like = _tree.from_state_dict({name: torch.empty_like(x, device="cpu") for name, x in saved.items()})
        sharding = None
    whole = like
    if sharding is not None:
        shapes = zip(_tree.leaves(like), sharding.shapes, strict=True)
        whole = sharding.treedef.unflatten([torch.empty(s, dtype=x.dtype, device="meta") for x, s in shapes])
    _on_all(lambda: checkpoint.check_fits(path, saved, whole))
    flat = {name: torch.empty_like(leaf) for name, leaf in _tree.to_state_dict(like).items()}
    empty = _tree.from_state_dict(flat, like)

    def read() -> None:
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
        from torch.distributed.checkpoint.state_dict_loader import load as load_parts

        load_parts(
            _distributed(_tree.to_state_dict(empty), sharding),
            storage_reader=HuggingFaceStorageReader(str(folder)),
            no_dist=world_size() == 1,
        )

    _on_all(read)
    return empty


def load_metadata(path: str | Path) -> dict[str, str]:
    """The strings that were saved with a checkpoint. Raises the errors of :func:`load` for a missing one.

    >>> load_metadata("nothing")
    Traceback (most recent call last):
    FileNotFoundError: no checkpoint at nothing
    """
    return _read_index(Path(path).expanduser(), path)["metadata"]


def _distributed(flat: dict[str, Tensor], sharding: Sharding | None) -> dict[str, Tensor]:
    """The leaves by name, the parts as DTensors, of which torch knows where they belong."""
    if sharding is None or sharding.size == 1:
        return flat
    rows = zip(flat.items(), sharding.axes, strict=True)
    return {
        name: leaf if axis is None else _torch.part_of_a_tensor(leaf, axis, sharding.group)
        for (name, leaf), axis in rows
    }


def _write_index(folder: Path, parts: Tree, sharding: Sharding | None, metadata: dict[str, str]) -> None:
    flat = _tree.to_state_dict(parts)
    shapes = [leaf.shape for leaf in flat.values()] if sharding is None else sharding.shapes
    leaves = {
        name: {"shape": list(shape), "dtype": str(leaf.dtype).removeprefix("torch.")}
        for (name, leaf), shape in zip(flat.items(), shapes, strict=True)
    }
    files = {file.name: _digest(file) for file in sorted(folder.iterdir())}
    for name in files:
        _sync(folder / name)
    text = json.dumps({"format": 1, "metadata": metadata, "leaves": leaves, "files": files}, indent=1)
    with (folder / INDEX).open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _read_index(folder: Path, path: str | Path) -> dict[str, Any]:
    try:
        index = json.loads((folder / INDEX).read_text())
        return {name: dict(index[name]) for name in ("metadata", "leaves", "files")}
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"no checkpoint at {path}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a whole checkpoint: its {INDEX} cannot be read ({error})") from error


def _verify(folder: Path, path: str | Path, files: dict[str, str]) -> None:
    """Compare the checksums of the files; each process looks at its share of them."""
    for name in sorted(files)[rank() :: world_size()]:
        if not (folder / name).is_file() or _digest(folder / name) != files[name]:
            raise ValueError(f"{path} is not the checkpoint that was saved: {name} was altered, damaged or removed")


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    if os.name == "posix":
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _on_all(action: Callable[[], Any]) -> Any:
    """Run something on all processes, and return its result. If it fails on one of them, all of them raise an error."""
    from torch.distributed.checkpoint.api import CheckpointException

    result, error = None, None
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # of a single process
            result = action()
    except CheckpointException as failed:
        error = next(iter(failed.failures.values()))[0]
    except (OSError, ValueError, RuntimeError) as failed:
        error = failed
    kinds = (OSError, ValueError, RuntimeError)
    described = error and (next((i for i, kind in enumerate(kinds) if isinstance(error, kind)), 2), str(error))
    found = [(number, other) for number, other in enumerate(all_values(described)) if other is not None]
    if error is not None:
        raise error
    if found:
        number, (kind, text) = found[0]
        raise kinds[kind](f"process {number} failed: {text}")
    return result
