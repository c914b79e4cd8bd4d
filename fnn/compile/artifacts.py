"""Compiled code in a file, to be shipped with a program."""

import os
import re
import zipfile
from pathlib import Path

import torch

from fnn import _torch

_GRAPHS = "graphs"
_LIBRARY = re.compile(r"libraries/(\w\w/[\w.]+)")


def save_compiled(path: str | os.PathLike) -> None:
    """Write what this process has compiled to a file, to be shipped with a program: graphs and CPU machine code.

    Raises ``ValueError`` when nothing was compiled.
    """
    saved = torch.compiler.save_cache_artifacts()
    if saved is None:
        raise ValueError("save_compiled: nothing has been compiled in this process yet; call the function first")
    part = Path(f"{os.fspath(path)}.part")
    with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(_GRAPHS, saved[0])
        for place, library in _torch.cached_libraries().items():
            archive.write(library, f"libraries/{place}")
    os.replace(part, path)


def load_compiled(path: str | os.PathLike) -> None:
    """Read a file of :func:`save_compiled` into torch's cache, before the first call of the functions.

    The file holds machine code, so load only files that you trust. It fits the same torch version, kind of
    processor, source code, C++ compiler and folder of the Python environment; what does not fit is compiled as usual.
    Raises ``FileNotFoundError`` where there is no such file, ``ValueError`` for another kind of file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name: _LIBRARY.fullmatch(name) for name in archive.namelist() if name != _GRAPHS}
            libraries = {match[1]: archive.read(name) for name, match in names.items() if match}
            graphs = archive.read(_GRAPHS)
    except (zipfile.BadZipFile, KeyError) as error:
        raise ValueError(f"load_compiled: {os.fspath(path)} is no file of save_compiled ({error})") from error
    folder = _torch.cache_folder()
    for place, content in libraries.items():
        file = folder / place
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            part = file.with_name(f"{file.name}.{os.getpid()}.part")
            part.write_bytes(content)
            part.chmod(0o755)
            os.replace(part, file)
    torch.compiler.load_cache_artifacts(graphs)
