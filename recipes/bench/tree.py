"""Time of flattening, unflattening and mapping trees by fnn.tree, torch.utils._pytree, optree and JAX.

The flags are ``--leaves 10 100 1000`` and ``--seconds 2``, the time for a column. The trees are the params of layers
with a weight and a bias each.
"""

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.utils import _pytree

import fnn
from recipes.bench import harness

BASE = "torch.utils._pytree"


class Library(NamedTuple):
    """``flatten(tree) -> (leaves, structure)``, ``unflatten(leaves, structure) -> tree`` and ``map(f, tree)``."""

    flatten: Callable[[Any], Any]
    unflatten: Callable[[Any, Any], Any]
    map: Callable[[Callable, Any], Any]


def libraries() -> dict[str, Library]:
    found = {
        BASE: Library(_pytree.tree_flatten, _pytree.tree_unflatten, _pytree.tree_map),
        "fnn.tree": Library(fnn.tree.flatten, lambda leaves, treedef: treedef.unflatten(leaves), fnn.tree.map),
    }
    try:
        import optree  # pyright: ignore[reportMissingImports]

        unflatten = lambda leaves, structure: optree.tree_unflatten(structure, leaves)
        found["optree"] = Library(optree.tree_flatten, unflatten, optree.tree_map)
    except ImportError as error:
        print(f"optree: left out, {error}")
    try:
        import jax  # pyright: ignore[reportMissingImports]

        unflatten = lambda leaves, structure: jax.tree.unflatten(structure, leaves)
        found["JAX"] = Library(jax.tree.flatten, unflatten, jax.tree.map)
    except ImportError as error:
        print(f"JAX: left out, {error}")
    return found


def params(leaves: int) -> dict[str, dict[str, torch.Tensor]]:
    """Params of layers with a weight and a bias; the last has no bias if the number of leaves is odd."""
    names = [(f"layer{i // 2}", ("weight", "bias")[i % 2]) for i in range(leaves)]
    tree: dict[str, dict[str, torch.Tensor]] = {}
    for layer, name in names:
        tree.setdefault(layer, {})[name] = torch.zeros(())
    return tree


def tasks(library: Library, tree: Any) -> dict[str, Callable[[], object]]:
    leaves, structure = library.flatten(tree)
    same = lambda leaf: leaf
    return {
        "flatten": lambda: library.flatten(tree),
        "unflatten": lambda: library.unflatten(leaves, structure),
        "map": lambda: library.map(same, tree),
    }


def check(calls: dict[str, dict[str, Callable[[], Any]]], tree: dict) -> None:
    """Raise ``RuntimeError`` unless each library returns the leaves of the tree and rebuilds the same tree."""
    held = lambda tree: {(a, b): id(leaf) for a, layer in tree.items() for b, leaf in layer.items()}
    for name, library in calls.items():
        leaves, _ = library["flatten"]()
        if {id(leaf) for leaf in leaves} != set(held(tree).values()):
            raise RuntimeError(f"{name} found other leaves")
        if held(library["unflatten"]()) != held(tree) or held(library["map"]()) != held(tree):
            raise RuntimeError(f"{name} made another tree")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--leaves", nargs="+", type=int, default=[10, 100, 1000])
    parser.add_argument("--seconds", type=float, default=2.0)
    options = parser.parse_args()
    columns: dict[str, dict[str, float]] = {}
    for count in options.leaves:
        tree = params(count)
        calls = {name: tasks(library, tree) for name, library in libraries().items()}
        check(calls, tree)
        for task in ("flatten", "unflatten", "map"):
            rivals = {name: library[task] for name, library in calls.items()}
            inner = max(1, 1000 // count)
            once = sum(harness.timed(call, inner) for call in rivals.values())
            rounds = min(301, max(5, round(options.seconds / once)))
            seconds = harness.interleave(rivals, rounds=rounds, inner=inner)
            columns[f"{task}, {count:,}"] = harness.ratios(seconds, BASE)
    body = (
        f"Time over that of {BASE}; smaller is faster. Columns: task and number of leaves, in dicts of a weight and a "
        "bias for each layer; map calls a function that returns its argument.\n\n"
    )
    harness.report("tree", "Trees", body + harness.columns_table(columns), ["optree", "jax"])
