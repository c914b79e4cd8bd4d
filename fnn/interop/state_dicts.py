"""Params and state as a flat ``state_dict``, and back."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from fnn import tree as _tree
from fnn.tree import Tree


class Loaded(NamedTuple):
    """The trees that :func:`load_state_dict` returns, and what did not fit.

    ``missing`` and ``unexpected`` are names; ``mismatched`` says by name what was given and what was expected.
    """

    params: Tree
    state: Tree
    missing: list[str]
    unexpected: list[str]
    mismatched: dict[str, str]


def state_dict(params: Tree, state: Tree | None = None, tied: Mapping[str, str] | None = None) -> dict[str, Tensor]:
    """Return params and state as one flat dict, which ``load_state_dict`` of the same torch network takes.

    tied: further names for leaves, ``{name: the path of the leaf}``, as in ``Converted.tied``. Raises ``ValueError``
    for a path that both trees have.

    >>> list(state_dict({"fc": {"weight": torch.ones(2, 3)}}, {"norm": {"running_mean": torch.zeros(2)}}))
    ['fc.weight', 'norm.running_mean']
    """
    flat = _tree.to_state_dict(params)
    for path, leaf in _tree.to_state_dict({} if state is None else state).items():
        if path in flat:
            raise ValueError(f"{path!r} is a leaf of params and of state; give it one place")
        flat[path] = leaf
    return flat | {name: flat[path] for name, path in (tied or {}).items()}


def load_state_dict(
    params: Tree,
    state: Tree | None,
    state_dict: Mapping[str, Tensor],
    *,
    strict: bool = True,
    tied: Mapping[str, str] | None = None,
) -> Loaded:
    """Return trees like ``params`` and ``state`` with the values of a ``state_dict``, such as a weights file's.

    The leaves have the dtypes and devices of those given, and memory of their own. tied: further names for leaves, as
    in ``Converted.tied``; an entry that shares its memory with an expected one is known to be tied without it. As in
    torch, a ``num_batches_tracked`` may be missing.

    Raises ``ValueError`` that names all missing, unexpected and wrongly shaped entries. With ``strict=False`` these are
    returned as a report, and the leaves that have no value keep their own. Raises ``TypeError`` for entries that are
    not tensors.

    >>> params = {"fc": {"weight": torch.zeros(1, 2), "bias": torch.zeros(1)}}
    >>> loaded = load_state_dict(params, {}, {"fc.weight": torch.ones(1, 2), "head": torch.ones(3)}, strict=False)
    >>> loaded.params["fc"]["weight"], loaded.missing, loaded.unexpected
    (tensor([[1., 1.]]), ['fc.bias'], ['head'])
    >>> load_state_dict(params, {}, {"fc.weight": torch.ones(2, 1), "fc.bias": torch.ones(1)})
    Traceback (most recent call last):
    ValueError: the state_dict does not fit: wrong ['fc.weight' is (2, 1), expected (1, 2)]
    """
    _check_entries(state_dict)
    trees = [_tree.flatten(tree) for tree in (params, {} if state is None else state)]
    wanted = {path: leaf for leaves, treedef in trees for path, leaf in zip(treedef.paths, leaves, strict=True)}
    given, mismatched = _untied(state_dict, wanted, tied or {})
    missing = [path for path in wanted if path not in given and not path.endswith("num_batches_tracked")]
    unexpected = [path for path in given if path not in wanted]
    values = {}
    for path, leaf in wanted.items():
        fault = _fault(given[path], leaf) if path in given else None
        if fault:
            mismatched[path] = fault
        kept = fault is not None or path not in given
        values[path] = (leaf if kept else given[path]).detach().to(leaf.device, leaf.dtype, copy=True)
    if strict and (missing or unexpected or mismatched):
        wrong = ", ".join(f"{path!r} {fault}" for path, fault in mismatched.items())
        parts = [("missing", missing), ("unexpected", unexpected)]
        listed = [f"{name} {names}" for name, names in parts if names] + ([f"wrong [{wrong}]"] if wrong else [])
        hint = _hint(missing, unexpected)
        raise ValueError(f"the state_dict does not fit: {'; '.join(listed)}{hint}")
    new = [treedef.unflatten([values[path] for path in treedef.paths]) for _, treedef in trees]
    return Loaded(new[0], new[1], missing, unexpected, mismatched)


def _check_entries(state_dict: Mapping[str, Tensor]) -> None:
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"load_state_dict expects a dict of tensors, got a {type(state_dict).__name__}")
    for name, value in state_dict.items():
        if not isinstance(value, Tensor):
            line = f"; give state_dict[{name!r}]" if isinstance(value, Mapping) else ""
            raise TypeError(
                f"load_state_dict expects tensors, and the entry {name!r} is a {type(value).__name__}{line}"
            )


def _untied(
    state_dict: Mapping[str, Tensor], wanted: Iterable[str], tied: Mapping[str, str]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The entries without the further names of leaves, and those whose two names have different values."""
    given, different = dict(state_dict), {}
    for name, path in tied.items():
        if name in given:
            value = given.pop(name)
            if path in given and not _same(given[path], value):
                different[name] = f"differs from {path!r}, with which it is tied"
            given.setdefault(path, value)
    memory = {_memory(given[path]) for path in wanted if path in given}
    unwanted = [name for name in given if name not in set(wanted) and _memory(given[name]) in memory]
    return {name: value for name, value in given.items() if name not in unwanted}, different


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and (_memory(a) == _memory(b) or torch.equal(a, b))


def _memory(tensor: Tensor) -> tuple:
    return tensor.data_ptr() or id(tensor), tensor.shape, tensor.stride()


def _fault(given: Tensor, leaf: Tensor) -> str | None:
    """What is wrong with an entry, or None."""
    if given.shape != leaf.shape:
        return f"is {tuple(given.shape)}, expected {tuple(leaf.shape)}"
    if _kind(given) != _kind(leaf):
        return f"is of {given.dtype}, expected {leaf.dtype}"
    return None


def _kind(tensor: Tensor) -> str:
    return "complex" if tensor.is_complex() else "floating" if tensor.is_floating_point() else "integer"


def _hint(missing: list[str], unexpected: list[str]) -> str:
    """A line to write where all names differ by one prefix, such as the "module." of DataParallel."""
    missing, unexpected = (
        [name for name in names if not name.endswith("num_batches_tracked")] for names in (missing, unexpected)
    )
    for longer, shorter, line in (
        (unexpected, missing, "{{name.removeprefix({prefix!r}): leaf for name, leaf in state_dict.items()}}"),
        (missing, unexpected, "{{{prefix!r} + name: leaf for name, leaf in state_dict.items()}}"),
    ):
        first = next((name for name in longer if shorter and name.endswith("." + shorter[0])), None)
        if first is not None:
            prefix = first.removesuffix(shorter[0])
            if {prefix + name for name in shorter} <= set(longer):
                return "; write " + line.format(prefix=prefix)
    return ""
