"""The public face: each name in one place, and all of them in docs/names.md."""

import importlib
import inspect
import re
import subprocess
import sys
import typing
from pathlib import Path
from types import ModuleType

import pytest

import fnn

ROOMS = [name for name in fnn.__all__ if isinstance(getattr(fnn, name), ModuleType)]
ROOMS += [
    f"{room}.{name}"
    for room in ROOMS
    for name in importlib.import_module(f"fnn.{room}").__all__
    if isinstance(getattr(importlib.import_module(f"fnn.{room}"), name), ModuleType)
]
PUBLIC = {room: importlib.import_module(f"fnn.{room}").__all__ for room in ROOMS}
PUBLIC["fnn"] = [name for name in fnn.__all__ if name not in ROOMS]


def test_what_stands_at_the_top_level_stands_nowhere_else() -> None:
    for room in ROOMS:
        assert not set(PUBLIC[room]) & set(PUBLIC["fnn"]), room


def test_no_object_has_two_names() -> None:
    places: dict[int, list[str]] = {}
    for room, names in PUBLIC.items():
        module = fnn if room == "fnn" else importlib.import_module(f"fnn.{room}")
        for name in names:
            value = getattr(module, name)
            if callable(value):
                places.setdefault(id(value), []).append(f"{room}.{name}")
    aliases = [sorted(names) for names in places.values() if len(names) > 1]
    # JAX's names and torch's for the same initialisers, both of which the field uses
    assert all(name.startswith("init.") for names in aliases for name in names), aliases


def test_the_table_of_names_is_that_of_the_code() -> None:
    page = (Path(__file__).parents[1] / "docs" / "names.md").read_text()
    listed = re.findall(r"^\| `([\w.]+)` \| .+ \| .* \|$", page, flags=re.MULTILINE)
    assert len(set(listed)) == len(listed)
    assert set(listed) == {f"{room}.{name}" for room, names in PUBLIC.items() for name in names}


@pytest.mark.parametrize("room", PUBLIC)
def test_every_public_name_has_a_docstring(room: str) -> None:
    module = fnn if room == "fnn" else importlib.import_module(f"fnn.{room}")
    for name in PUBLIC[room]:
        value = getattr(module, name)
        if callable(value) and typing.get_origin(value) is None:  # not the alias of a type
            assert (value.__doc__ or "").strip(), f"{room}.{name}"


@pytest.mark.parametrize("room", PUBLIC)
def test_every_public_function_has_an_example(room: str) -> None:
    module = fnn if room == "fnn" else importlib.import_module(f"fnn.{room}")
    functions = {name for name in PUBLIC[room] if inspect.isfunction(getattr(module, name))}
    without = {name for name in functions if ">>>" not in (getattr(module, name).__doc__ or "")}
    assert not without


def test_importing_fnn_imports_no_extra_and_not_the_compiler() -> None:
    heavy = (
        "torchvision",
        "matplotlib",
        "tqdm",
        "tyro",
        "jax",
        "triton",
        "torch._dynamo",
        "torch._inductor.compile_fx",
    )
    code = f"import sys, torch; before = set(sys.modules); import fnn; print({heavy} & (sys.modules.keys() - before))"
    code = code.replace(str(heavy), str(set(heavy)))
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()", found.stdout
