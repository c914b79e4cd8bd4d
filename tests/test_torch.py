"""torch's private names stand in fnn/_torch.py alone, and are there in this version of torch."""

import ast
from pathlib import Path

import torch

from fnn import _torch

FILES = {file: ast.parse(file.read_text()) for file in Path(_torch.__file__).parent.rglob("*.py")}
OF_PYTHON = {"_asdict", "_fields", "_getframe", "_replace"}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def own_names() -> set[str]:
    """Every name that fnn gives to a module, a function, a class, a variable or an attribute."""
    found = {file.stem for file in FILES}
    for tree in FILES.values():
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                found.add(node.name)
            elif isinstance(node, ast.alias):
                found.add(node.asname or "")
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                found.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                found.add(node.attr)
    return found


def test_every_private_name_is_there() -> None:
    missing = [name for name in _torch.__all__ if not hasattr(_torch, name)]
    assert not missing, f"torch {torch.__version__} has moved {missing}; look at fnn/_torch.py"


def test_every_name_that_is_used_is_listed() -> None:
    used = {
        node.attr
        for tree in FILES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "_torch"
    }
    assert used == set(_torch.__all__)


def test_private_names_stand_in_one_file() -> None:
    own = own_names() | OF_PYTHON
    found = []
    for file, tree in FILES.items():
        if file.name == "_torch.py":
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch"):
                names = [*(node.module or "").split("."), *[alias.name for alias in node.names]]
                found += [f"{file.name}: {node.module}" for name in names if is_private(name)]
            if isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in own:
                found.append(f"{file.name}: {ast.unparse(node)}")
    assert not found


def test_a_name_that_is_not_there_is_missing() -> None:
    assert not hasattr(_torch, "no_such_name")
