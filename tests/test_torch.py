import ast
from pathlib import Path

import torch

from fnn import _torch


def test_every_private_name_is_there() -> None:
    missing = [name for name in _torch.__all__ if not hasattr(_torch, name)]
    assert not missing, f"torch {torch.__version__} has moved {missing}; look at fnn/_torch.py"


def test_private_names_stand_in_one_file() -> None:
    package = Path(_torch.__file__).parent
    found = []
    for file in package.rglob("*.py"):
        if file.name == "_torch.py":
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch"):
                names = [*(node.module or "").split("."), *[alias.name for alias in node.names]]
                found += [f"{file.name}: {node.module}" for name in names if name.startswith("_")]
            if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
                root = node
                while isinstance(root, ast.Attribute):
                    root = root.value
                if isinstance(root, ast.Name) and root.id == "torch":
                    found.append(f"{file.name}: {ast.unparse(node)}")
    assert not found
