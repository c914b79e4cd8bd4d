"""Trees in files: safetensors with dotted paths as names, written whole or not at all."""

import os
import tempfile
from pathlib import Path

import safetensors
import safetensors.torch

from fnn import tree as _tree
from fnn.tree import Tree


def save(path: str | Path, tree: Tree, metadata: dict[str, str] | None = None) -> None:
    """Write a tree of tensors, and a dict of strings, to a safetensors file.

    The names are the dotted paths, so params are readable as a torch ``state_dict``. The file is written beside
    its place and moved there, so a reader finds the old file or the new one, never a part. Raises ``TypeError`` for a
    leaf that is no tensor and ``ValueError`` for two leaves with one path.

    >>> import torch, tempfile, os
    >>> path = os.path.join(tempfile.mkdtemp(), "params.safetensors")
    >>> save(path, {"fc": {"bias": torch.ones(2)}})
    >>> load(path)
    {'fc': {'bias': tensor([1., 1.])}}
    """
    path = Path(path)
    flat = _tree.to_state_dict(tree)
    for name, leaf in flat.items():
        if not hasattr(leaf, "detach"):
            raise TypeError(f"save: {name!r} is {leaf!r}, not a tensor; put strings into metadata")
    copies = {name: leaf.detach().cpu().contiguous().clone() for name, leaf in flat.items()}  # no shared storage
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    os.close(handle)
    try:
        safetensors.torch.save_file(copies, part, metadata)
        os.replace(part, path)
    except BaseException:
        os.unlink(part)
        raise


def load(path: str | Path, like: Tree = None, device: str = "cpu") -> Tree:
    """The tree in a safetensors file: nested dicts, or the containers of ``like`` where it is given.

    Raises ``FileNotFoundError``, and ``ValueError`` for a file of another kind or one whose paths, shapes or dtypes
    do not fit ``like``.

    >>> load("missing.safetensors")
    Traceback (most recent call last):
    FileNotFoundError: no checkpoint at missing.safetensors
    """
    flat = _read(path, lambda file: {name: file.get_tensor(name) for name in file.keys()}, device)  # noqa: SIM118
    if like is None:
        return _tree.from_state_dict(flat)
    for name, leaf in _tree.items(like):
        if name in flat and (flat[name].shape != leaf.shape or flat[name].dtype != leaf.dtype):
            found, wanted = (f"{tuple(t.shape)} {t.dtype}" for t in (flat[name], leaf))
            raise ValueError(f"{path}: {name!r} is {found}, but the tree has {wanted} there")
    return _tree.from_state_dict(flat, like)


def load_metadata(path: str | Path) -> dict[str, str]:
    """The strings saved beside the tree.

    >>> import torch, tempfile, os
    >>> path = os.path.join(tempfile.mkdtemp(), "params.safetensors")
    >>> save(path, {"w": torch.ones(1)}, {"epoch": "3"})
    >>> load_metadata(path)
    {'epoch': '3'}
    """
    return _read(path, lambda file: dict(file.metadata() or {}), "cpu")


def _read(path, what, device: str):
    if not Path(path).exists():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        with safetensors.safe_open(path, "pt", device=device) as file:
            return what(file)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from error
