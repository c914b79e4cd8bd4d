"""Files of weights: those of ``torch.save`` and of Hugging Face, and torchvision's pretrained weights."""

import difflib
import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fnn import checkpoint
from fnn import tree as _tree

_IN_FOLDERS = ("model.safetensors.index.json", "model.safetensors", "pytorch_model.bin.index.json", "pytorch_model.bin")


def read_state_dict(
    path: str | Path, entry: str | None = None, device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """Read a file of weights as a flat dict of tensors, for :func:`load_state_dict`.

    path: a safetensors file; a file of ``torch.save``; the index of a model in several files
    (``model.safetensors.index.json``); or a folder with one of these under the names of Hugging Face. entry: the entry
    of a training checkpoint that holds the weights, such as "state_dict". No code in a file is run: files of
    ``torch.save`` are read with ``weights_only=True``.

    Raises ``FileNotFoundError`` for a missing file, and ``ValueError`` for a file of another format, for pickled Python
    objects such as whole modules, and for contents that are not a dict of tensors.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "weights.pt"
    >>> torch.save(torch.nn.Linear(2, 1).state_dict(), path)
    >>> list(read_state_dict(path))
    ['weight', 'bias']
    """
    place = Path(path).expanduser()
    if place.is_dir():
        found = [place / name for name in _IN_FOLDERS if (place / name).exists()]
        if not found:
            raise FileNotFoundError(f"the folder {path} has none of {', '.join(_IN_FOLDERS)}; name the file of weights")
        place = found[0]
    if not place.exists():
        raise FileNotFoundError(f"no file of weights at {path}")
    if place.name.endswith(".index.json"):
        return _read_index(place, device)
    if place.suffix == ".safetensors":
        return _tree.to_state_dict(checkpoint.load(place, device=device))
    return _read_saved(place, entry, device)


def _read_index(index: Path, device: torch.device | str) -> dict[str, Tensor]:
    try:
        files = json.loads(index.read_text())["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{index} is not an index of weights, which is JSON with a 'weight_map'") from error
    leaves: dict[str, Tensor] = {}
    for name in sorted(set(files.values())):
        leaves |= read_state_dict(index.parent / name, device=device)
    missing = [name for name in files if name not in leaves]
    if missing:
        raise ValueError(f"{index} lists {missing}, which its files do not hold")
    return {name: leaves[name] for name in files}


def _read_saved(path: Path, entry: str | None, device: torch.device | str) -> dict[str, Tensor]:
    with path.open("rb") as file:
        start = file.read(2)
    if start not in (b"PK", b"\x80\x02"):  # an archive, or the pickles of torch before 1.6
        raise ValueError(f"{path} is not a file of torch.save, nor a safetensors file named so")
    if start == b"PK":
        checkpoint.check_archive(path)
    try:
        found = torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds pickled Python objects, such as a whole module, and reading them could run any code; write "
            "torch.save(module.state_dict(), path) in the program that made it, and read that file"
        ) from error
    except (RuntimeError, EOFError, ValueError) as error:
        raise ValueError(f"{path} is not a file of torch.save, or is damaged: {error}") from error
    if entry is not None:
        if not isinstance(found, Mapping) or entry not in found:
            raise ValueError(f"{path} has no entry {entry!r}, only {_names(found)}")
        found = found[entry]
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        inner = (
            [name for name, value in found.items() if isinstance(value, Mapping)] if isinstance(found, Mapping) else []
        )
        line = f"; write read_state_dict(path, entry={inner[0]!r})" if inner else ""
        raise ValueError(f"{path} holds {_names(found)}, which is not a dict of tensors{line}")
    return dict(found)


def _names(value: Any) -> str:
    return f"a dict with the entries {list(value)}" if isinstance(value, Mapping) else f"a {type(value).__name__}"


def torchvision_weights(name: str, progress: bool = False) -> dict[str, Tensor]:
    """Return the ``state_dict`` of one of torchvision's pretrained models, from its cache or by a download.

    name: a model, such as "resnet18", for its best weights, or one of its weights, such as
    "ResNet18_Weights.IMAGENET1K_V1". Raises ``ImportError`` without torchvision, ``ValueError`` for a name that it does
    not have, and ``OSError`` where the file can neither be found nor downloaded.

    >>> weights = torchvision_weights("resnet18")  # doctest: +SKIP
    >>> torchvision_weights("resnet17")
    Traceback (most recent call last):
    ValueError: torchvision has no weights 'resnet17'; write the name of a model, such as ['resnet18', ...]
    """
    try:
        from torchvision import models
    except ImportError as error:
        raise ImportError("torchvision_weights needs torchvision; write pip install torchvision") from error
    try:
        weights: Any = models.get_weight(name) if "." in name else models.get_model_weights(name).DEFAULT  # pyright: ignore[reportAttributeAccessIssue]
    except (ValueError, KeyError, AttributeError) as error:
        near = difflib.get_close_matches(name, models.list_models(), 3)
        raise ValueError(
            f"torchvision has no weights {name!r}; write the name of a model, such as {near or ['resnet18']}"
        ) from error
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    try:
        return dict(weights.get_state_dict(progress=progress, check_hash=True, weights_only=True))
    except OSError as error:
        raise OSError(
            f"the weights of {name} are not in {folder} and could not be downloaded from {weights.url} ({error}); put "
            "the file there, or read it with read_state_dict"
        ) from error
