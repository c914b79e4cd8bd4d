"""Saving and loading trees as safetensors files with dotted paths as names.

Saving is atomic. The metadata of a file hold a checksum of all its bytes under ``fnn.sha256``, and loading refuses a
file that was altered or truncated. Files of ``torch.save`` have checksums of their own, which are compared too;
safetensors files of other programs have none and are read without this check. No file is ever run as code.
"""

import hashlib
import json
import os
import pickle
import re
import secrets
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from fnn import tree as _tree
from fnn.tree import Tree

__all__ = [
    "load",
    "load_metadata",
    "save",
    "save_in_background",
]

try:
    import fcntl
except ImportError:  # Windows, where a file that is being written cannot be removed anyway
    fcntl = None

_CHECKSUM = "fnn.sha256"
_FORMAT = "fnn.format"  # marks files that must have a checksum, in case the name of the checksum is damaged
_NO_CHECKSUM = "0" * 64  # the placeholder for which the checksum is computed
_RESERVED = "__metadata__"


def save(path: str | Path, tree: Tree, metadata: dict[str, str] | None = None) -> None:
    """Write a tree of tensors and a dict of strings to a safetensors file.

    The names are the dotted paths, so params can be read as a torch ``state_dict``. The contents are written to a
    temporary file in the same folder, flushed to the disk and moved into place, so a reader finds either the old file
    or the new one. Temporary files of interrupted saves are removed. If the path is a symbolic link, its target is
    written. An existing file keeps its permissions, and a new file gets those of the umask. ``~`` is the home folder.

    Raises ``TypeError`` for a leaf that is not a tensor, has no data or has a dtype that safetensors lacks, and for
    metadata that are not strings; ``ValueError`` for two leaves with the same path and for reserved names; and
    ``IsADirectoryError`` for a folder.

    >>> import torch, tempfile, os
    >>> path = os.path.join(tempfile.mkdtemp(), "params.safetensors")
    >>> save(path, {"fc": {"bias": torch.ones(2)}})
    >>> load(path)
    {'fc': {'bias': tensor([1., 1.])}}
    """
    _copied(path, tree, metadata)()


def save_in_background(path: str | Path, tree: Tree, metadata: dict[str, str] | None = None) -> Callable[[], None]:
    """Like :func:`save`, but the file is written by a thread while the program goes on.

    The tensors are copied before this function returns, so they may be donated or changed at once. Mistakes in the
    arguments are raised here. The returned function waits until the file is written, and raises what went wrong there,
    such as ``OSError`` for a full disk.

    >>> import torch, tempfile, os
    >>> path = os.path.join(tempfile.mkdtemp(), "params.safetensors")
    >>> wait = save_in_background(path, {"w": torch.ones(1)})
    >>> wait()
    >>> load(path)
    {'w': tensor([1.])}
    """
    write, errors = _copied(path, tree, metadata), []

    def run() -> None:
        try:
            write()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)  # not a daemon: the file is written even if the program ends
    thread.start()

    def wait() -> None:
        thread.join()
        if errors:
            raise errors[0]

    return wait


def _copied(path: str | Path, tree: Tree, metadata: dict[str, str] | None) -> Callable[[], None]:
    """Check the arguments of :func:`save`, copy the tensors, and return the function that writes the file."""
    target = Path(os.path.realpath(_checked_path(path, "save")))
    flat = _tree.to_state_dict(tree)
    for name, leaf in flat.items():
        check_leaf(name, leaf)
    strings = checked_metadata(metadata)
    # safetensors refuses tensors that share memory, so each leaf is copied
    copies = {name: leaf.detach().cpu().contiguous().clone() for name, leaf in flat.items()}

    def write() -> None:
        contents = bytearray(safetensors.torch.save(copies, strings | {_FORMAT: "1", _CHECKSUM: _NO_CHECKSUM}))
        place = _checksum_place(contents)
        assert place is not None  # the placeholder is there
        contents[place : place + 64] = _digest(contents, place)
        target.parent.mkdir(parents=True, exist_ok=True)
        _write(target, contents)

    return write


def load(path: str | Path, like: Tree = None, device: torch.device | str = "cpu") -> Tree:
    """Read a tree from a safetensors file, as nested dicts or with the structure of ``like``.

    A file that ``torch.save`` wrote is read with ``weights_only=True`` if it holds a ``state_dict``. The tensors own
    their memory, so later changes of the file do not affect them. Raises ``FileNotFoundError`` for a missing file, and
    ``ValueError`` for a file of another format, for one that was altered or truncated, for one that holds more than
    tensors, and for one that does not fit ``like``. The message lists missing paths, extra paths, and differences of
    shapes and dtypes.

    >>> load("missing.safetensors")
    Traceback (most recent call last):
    FileNotFoundError: no checkpoint at missing.safetensors
    """
    device = torch.device(device)
    if _is_of_torch(_checked_path(path, "load")):
        read = _read_torch(path)
    else:
        read = sorted(safetensors.torch.load(bytes(_read(path))).items())  # safetensors returns a random order
    flat = {name: leaf.to(device, copy=True) for name, leaf in read}
    if like is None:
        return flat[""] if list(flat) == [""] else _tree.from_state_dict(flat)
    check_fits(path, flat, like)
    return _tree.from_state_dict(flat, like)


def load_metadata(path: str | Path) -> dict[str, str]:
    """Return the strings that were saved with the tree.

    The whole file is read and checked. Raises the same errors as :func:`load`.

    >>> import torch, tempfile, os
    >>> path = os.path.join(tempfile.mkdtemp(), "params.safetensors")
    >>> save(path, {"w": torch.ones(1)}, {"epoch": "3"})
    >>> load_metadata(path)
    {'epoch': '3'}
    """
    contents = _read(path)
    return {name: value for name, value in _metadata(contents).items() if name not in (_FORMAT, _CHECKSUM)}


# Checks of arguments


def _checked_path(path: str | Path, name: str) -> Path:
    path = Path(path).expanduser()
    if path.is_dir():
        raise IsADirectoryError(f"{name}: {path} is a folder; name a file in it, such as {path / 'params.safetensors'}")
    return path


def check_leaf(name: str, leaf: object) -> None:
    if not isinstance(leaf, Tensor):
        raise TypeError(f"save: {name!r} is {leaf!r}, not a tensor; put strings into metadata, numbers as torch.tensor")
    if name == _RESERVED:
        raise ValueError(f"save: {name!r} is a name that safetensors keeps for itself; rename this leaf")
    if leaf.is_meta:
        raise TypeError(
            f"save: {name!r} has no data: it was donated to a jitted function, or made on the meta device; save the "
            "tree that the function returned"
        )
    if leaf.layout != torch.strided:
        raise TypeError(f"save: {name!r} has the layout {leaf.layout}; write leaf.to_dense()")
    try:
        safetensors.torch.save({"leaf": torch.zeros(0, dtype=leaf.dtype)})
    except (KeyError, ValueError, TypeError, RuntimeError, safetensors.SafetensorError):
        line = "torch.view_as_real(leaf)" if leaf.is_complex() else "leaf.to(another dtype)"
        raise TypeError(f"save: {name!r} is of {leaf.dtype}, which safetensors does not have; write {line}") from None


def checked_metadata(metadata: object) -> dict[str, str]:
    if metadata is None:
        return {}
    if not isinstance(metadata, dict):
        raise TypeError(f"save: metadata is a dict of strings, got {metadata!r}")
    for name, value in metadata.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError(
                f"save: metadata holds strings, got {name!r}: {value!r}; write str(...), or json.dumps(...), or put "
                "numbers into the tree as tensors"
            )
        if name in (_FORMAT, _CHECKSUM):
            raise ValueError(f"save: metadata may not hold {name!r}, which the file's checksum needs")
    return metadata


def check_fits(path: str | Path, flat: dict[str, Tensor], like: Tree) -> None:
    wanted = dict(_tree.items(like))
    faults = []
    if missing := [name for name in wanted if name not in flat]:
        faults.append(f"missing {missing}")
    if extra := [name for name in flat if name not in wanted]:
        faults.append(f"not in the tree {extra}")
    for name, leaf in wanted.items():
        if not isinstance(leaf, Tensor):
            raise TypeError(f"load: like[{name!r}] is {leaf!r}, not a tensor")
        if name in flat and (flat[name].shape != leaf.shape or flat[name].dtype != leaf.dtype):
            found, expected = (f"{tuple(t.shape)} {t.dtype}" for t in (flat[name], leaf))
            faults.append(f"{name!r} is {found}, but the tree has {expected} there")
    if faults:
        raise ValueError(f"{path} does not fit the tree: {'; '.join(faults)}")


# The file


def _read(path: str | Path) -> bytearray:
    place = _checked_path(path, "load")
    if not place.exists():
        raise FileNotFoundError(f"no checkpoint at {path}")
    contents = bytearray(place.read_bytes())
    try:
        safetensors.deserialize(bytes(contents))
    except (safetensors.SafetensorError, ValueError) as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from error
    at = _checksum_place(contents)
    damaged = _FORMAT in _metadata(contents) if at is None else contents[at : at + 64] != _digest(contents, at)
    if damaged:
        raise ValueError(f"{path} is not the file that was saved: its checksum differs, so it was altered or damaged")
    return contents


def _is_of_torch(path: Path) -> bool:
    """Whether a file starts as those of ``torch.save`` do, which are zip archives."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _read_torch(path: str | Path) -> list[tuple[str, Tensor]]:
    """Read a ``state_dict`` that ``torch.save`` wrote. Raises ``ValueError`` for anything else."""
    place = _checked_path(path, "load")
    check_archive(place)
    try:
        found = torch.load(place, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than tensors, such as a pickled module, and reading it could run any code; where it "
            f"was written, write torch.save(module.state_dict(), path) instead ({str(error).splitlines()[0]})"
        ) from None
    except (RuntimeError, EOFError, OSError) as error:
        raise ValueError(f"{path} is damaged, or torch.save did not write it: {error}") from error
    if not isinstance(found, dict) or not all(isinstance(leaf, Tensor) for leaf in found.values()):
        shown = {name: type(leaf).__name__ for name, leaf in found.items()} if isinstance(found, dict) else found
        raise ValueError(
            f"{path} is not a state_dict, a dict of tensors, but {_tree.describe(shown)}; write "
            "torch.save(module.state_dict(), path), or read it with torch.load(path, weights_only=True)"
        )
    return sorted((str(name), leaf.detach()) for name, leaf in found.items())


def check_archive(path: Path) -> None:
    """Raise ``ValueError`` if a file of ``torch.save`` was altered or cut.

    ``torch.load`` does not look at the checksums of the entries of such a zip archive.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if entry.CRC:  # 0 where torch was told not to compute it
                    with archive.open(entry) as file:
                        while file.read(1 << 20):  # raises an error at the end if the checksum differs
                            pass
    except Exception as error:  # zipfile raises errors of many types for damaged files
        raise ValueError(f"{path} was altered or is damaged, or torch.save did not write it: {error}") from error


def _metadata(contents: bytearray) -> dict[str, str]:
    length = int.from_bytes(contents[:8], "little")
    return json.loads(contents[8 : 8 + length]).get(_RESERVED, {})


def _checksum_place(contents: bytearray) -> int | None:
    """Return the offset of the 64 characters of the checksum, or None if there is no checksum."""
    length = int.from_bytes(contents[:8], "little")
    found = re.search(rb'"%s":"([0-9a-f]{64})"' % re.escape(_CHECKSUM).encode(), contents[8 : 8 + length])
    return None if found is None else 8 + found.start(1)


def _digest(contents: bytearray, place: int) -> bytes:
    """Compute the checksum of a file whose checksum is at the offset ``place``."""
    digest = hashlib.sha256()
    view = memoryview(contents)
    for part in (view[:place], _NO_CHECKSUM.encode(), view[place + 64 :]):
        digest.update(part)
    return digest.hexdigest().encode()


def _write(target: Path, contents: bytearray) -> None:
    """Replace the target atomically. The new contents are on the disk before the old file is replaced."""
    _remove_leftovers(target)
    part, descriptor = _open_part(target)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(contents)
            file.flush()
            if target.exists():
                os.chmod(part, target.stat().st_mode & 0o7777)
            os.fsync(file.fileno())
            if fcntl is not None:
                os.replace(part, target)  # while locked, so that no other process removes it as a leftover
        if fcntl is None:
            os.replace(part, target)  # Windows can move closed files only
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError):  # of a full disk, whose message has no name
            raise OSError(error.errno, error.strerror or str(error), str(target)) from error
        raise
    if os.name == "posix":
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # writes the new name to the disk
        finally:
            os.close(folder)


def _open_part(target: Path) -> tuple[Path, int]:
    """Create a temporary file beside the target, with the permissions of the umask, and lock it while it is open."""
    while True:
        part = target.with_name(f"{target.name}.{secrets.token_hex(4)}.part")
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        if fcntl is None:
            return part, descriptor
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if part.exists():  # otherwise another process has removed it as a leftover before it was locked
            return part, descriptor
        os.close(descriptor)


def _remove_leftovers(target: Path) -> None:
    """Remove temporary files of interrupted saves to this target. Files of running saves are locked."""
    pattern = re.compile(re.escape(target.name) + r"\.[0-9a-f]{8}\.part")
    for part in target.parent.iterdir():
        if fcntl is None or not pattern.fullmatch(part.name):
            continue
        try:
            with part.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                part.unlink()
        except OSError:  # another process is writing it or has just moved it
            continue
