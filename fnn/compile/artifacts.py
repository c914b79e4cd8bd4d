"""Saving compiled code to a file, so that it can be shipped with a program."""

import hashlib
import os
import re
import tempfile
import zipfile
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from fnn import _torch

_LIBRARY = re.compile(r"libraries/(\w\w/[\w.]+)")
_GRAPH = re.compile(r"graphs/(\w{64})")
_DIGEST = "sha256"


class _Compiled(NamedTuple):
    code: Any
    libraries: set[str]  # the keys of the shared libraries that the code uses


_made: dict[str, _Compiled] = {}  # what Inductor has compiled in this process, by the hash of the graph
_loaded: dict[str, bytes] = {}  # what load_compiled has read, by the hash of the graph


def compiled(
    module: fx.GraphModule, inputs: Sequence[Tensor], options: dict[str, Any]
) -> tuple[Callable[..., Any], str]:
    """Compile the graph with Inductor, or use the code that :func:`load_compiled` has read for it.

    The second result is the hash of the graph.
    """
    layouts = [(tuple(x.shape), x.stride(), x.dtype, x.device) for x in inputs]
    shown = {name: getattr(value, "uuid", lambda value=value: value)() for name, value in options.items()}
    text = f"{torch.__version__}\n{module.code}\n{layouts}\n{sorted(shown.items(), key=str)}"
    name = hashlib.sha256(text.encode()).hexdigest()
    with _torch.libraries_loaded_here() as libraries:
        if name in _loaded:
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "graph"
                file.write_bytes(_loaded[name])
                code = _torch.load_inductor(file, options)
        else:
            code = _torch.inductor(module, list(inputs), options)
    _made[name] = _Compiled(code, libraries)
    return code, name


def save_compiled(path: str | os.PathLike) -> None:
    """Write everything that Inductor has compiled in this process to a file that can be shipped with a program.

    ``jitted.save(path)`` writes what it has compiled for one function. Graphs that torch cannot store, such as those
    with loops, are left out and compiled again. Raises ``ValueError`` if nothing is left to write.

    >>> step = fnn.jit(train_step, backend="inductor", donate_argnums=(0, 1))  # doctest: +SKIP
    >>> params, opt_state, value = step(params, opt_state, batch)  # doctest: +SKIP
    >>> save_compiled("step.bin")  # doctest: +SKIP
    """
    write(path, _made)


def write(path: str | os.PathLike, names: Collection[str]) -> None:
    """Write the compiled code of the graphs with these hashes."""
    if not names:
        raise ValueError('save_compiled: nothing has been compiled yet; call a function with backend="inductor" first')
    chosen = {name: _made[name] for name in names}
    path = Path(path).expanduser()
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        contents: dict[str, bytes] = {}
        with tempfile.TemporaryDirectory() as folder:
            for name, each in chosen.items():
                file = Path(folder) / name
                try:
                    each.code.save(path=str(file), format="binary")
                except RuntimeError:  # torch cannot store every graph, such as one with a loop
                    continue
                contents[f"graphs/{name}"] = file.read_bytes()
        if not contents:
            raise ValueError("save_compiled: torch can store none of the compiled graphs, as with loops")
        for place, library in _libraries(set().union(*(each.libraries for each in chosen.values()))).items():
            contents[f"libraries/{place}"] = library.read_bytes()
        with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in contents.items():
                archive.writestr(name, content)
            archive.writestr(_DIGEST, _digest(contents))
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def load_compiled(path: str | os.PathLike) -> None:
    """Read a file that :func:`save_compiled` wrote, so that the functions in it need not be compiled again.

    Call this before the functions are called for the first time. They are still traced. The saved code is used only
    for exactly the same graphs, shapes and options, and with the same torch version, kind of processor and C++
    compiler; everything else is compiled as usual. The file holds machine code, so load only files that you trust:
    the checksum detects damage, but not malice. Raises ``FileNotFoundError`` if the file does not exist, and
    ``ValueError`` if it is a file of another kind, or was truncated or altered.

    >>> load_compiled("no_such_file.bin")
    Traceback (most recent call last):
    FileNotFoundError: ...
    """
    path = Path(path).expanduser()
    try:
        with zipfile.ZipFile(path) as archive:
            contents = {name: archive.read(name) for name in archive.namelist()}
        intact = contents.pop(_DIGEST) == _digest(contents)
    except FileNotFoundError:
        raise
    except Exception as error:  # zipfile and zlib raise many kinds of exceptions
        raise ValueError(f"load_compiled: {path} is not a file of save_compiled, or is damaged ({error})") from error
    if not intact:
        raise ValueError(f"load_compiled: {path} was altered after save_compiled wrote it")
    folder = Path(_torch.cache_folder())
    for name, content in contents.items():
        if match := _GRAPH.fullmatch(name):
            _loaded[match[1]] = content
        elif match := _LIBRARY.fullmatch(name):
            file = folder / match[1]
            if not file.exists():
                file.parent.mkdir(parents=True, exist_ok=True)
                part = file.with_name(f"{file.name}.{os.getpid()}.part")
                part.write_bytes(content)
                part.chmod(0o755)
                os.replace(part, file)


def _libraries(keys: Collection[str]) -> dict[str, Path]:
    """The shared libraries with these keys, and those that Inductor built for detecting the processor.

    The keys of the result are their paths in Inductor's cache. ``torch.compiler.save_cache_artifacts`` does not save
    these libraries, although compiling them takes longer than everything else.
    """
    folder = Path(_torch.cache_folder())
    files = [file for key in keys for file in folder.glob(f"{key[1:3]}/{key}*.so")]
    files += [file for file in folder.glob("??/*.so*") if ".main." not in file.name]
    return {file.relative_to(folder).as_posix(): file for file in files}


def _digest(contents: dict[str, bytes]) -> bytes:
    digest = hashlib.sha256()
    for name in sorted(contents):
        digest.update(f"{name}\n{len(contents[name])}\n".encode())
        digest.update(contents[name])
    return digest.hexdigest().encode()
