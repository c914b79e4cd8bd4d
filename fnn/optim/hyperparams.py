"""Hyperparameters: named 0-d tensors in the state of an optimizer."""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fnn import tree as _tree
from fnn.tree import Tree, TreeDef

Number = float | Tensor | Callable[[Tensor], Any]
"""A hyperparameter: a number, a 0-d tensor, or a schedule, which is a function of the count of updates."""

Choice = Any
"""A :data:`Number`, or a tree of these like the params or a prefix of them."""

_FIELDS = ("hyperparams", "scheduled")


class Hyperparams:
    """The hyperparameters that an optimizer was made with.

    A tree of numbers is one hyperparameter for each leaf, named by its path, such as ``learning_rate.head``.
    """

    def __init__(self, choices: Mapping[str, Choice]) -> None:
        self.trees = {name: choice for name, choice in choices.items() if not _is_number(choice)}
        self.numbers = {flat: number for name, choice in choices.items() for flat, number in _named(name, choice)}
        self.schedules = tuple([(name, number) for name, number in self.numbers.items() if _is_schedule(number)])
        self.names = list(choices)
        for name, number in self.numbers.items():
            if not _is_number(number):
                raise TypeError(f"{name} must be a number, a 0-d tensor, a schedule or a tree of these, got {number!r}")
        self.groups = lru_cache(maxsize=8)(self._groups)

    def init(self, params: Tree, count: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the values in a new state: the fixed ones, and those of the schedules at the first update."""
        self.groups(_tree.structure(params))
        fixed = {name: x for name, x in self.numbers.items() if not _is_schedule(x)}
        first = {name: schedule(as_time(count)) for name, schedule in self.schedules}
        fixed, first = ({name: as_hyperparam(name, x, count) for name, x in some.items()} for some in (fixed, first))
        return fixed, first

    def values(
        self, count: Tensor, fixed: dict[str, Tensor], scheduled: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return all values for the update after ``count`` others, and those of the schedules alone."""
        if not self.schedules:
            return fixed, {}
        time = as_time(count)
        now = {
            name: as_hyperparam(name, schedule(time), count).to(scheduled[name]) for name, schedule in self.schedules
        }
        return {name: now[name] if name in now else fixed[name] for name in self.numbers}, now

    def _groups(self, treedef: TreeDef) -> list[tuple[tuple[int, ...] | None, dict[str, str]]]:
        """Group the leaves that share all values: their indices (None for all leaves), and the names of the values.

        Raises ``ValueError`` if a tree of values does not fit the params.
        """
        if not self.trees or not treedef.num_leaves:
            return [(None, {})]
        params = treedef.unflatten(range(treedef.num_leaves))
        names = {name: [name] * treedef.num_leaves for name in self.names}
        for name, choice in self.trees.items():
            flat = _tree.structure(choice).unflatten([flat for flat, _ in _named(name, choice)])
            names[name] = _tree.leaf_values(flat, params, name)
        groups: dict[tuple, list[int]] = {}
        for i, row in enumerate(zip(*names.values(), strict=True)):
            groups.setdefault(row, []).append(i)
        return [(tuple(chosen), dict(zip(self.names, row, strict=True))) for row, chosen in groups.items()]


def _named(name: str, choice: Choice) -> list[tuple[str, Any]]:
    if _is_number(choice):
        return [(name, choice)]
    return [(f"{name}.{path}" if path else name, leaf) for path, leaf in _tree.items(choice)]


def _is_schedule(value: Any) -> bool:
    return callable(value) and not isinstance(value, (Tensor, Mapping))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, Tensor)) or hasattr(value, "__float__") or _is_schedule(value)


def counter(params: Tree) -> Tensor:
    """Return a count of 0 on the device of the params: int64, 0-d. Under ``vmap`` each member has its own count."""
    leaves = _tree.leaves(params)
    return leaves[0].new_zeros((), dtype=torch.int64) if leaves else torch.zeros((), dtype=torch.int64)


def as_hyperparam(name: str, value: Any, count: Tensor) -> Tensor:
    """Return a value as a new 0-d tensor on the device of the count.

    Python numbers become float64 where the device has it, so that they are exact for float64 params.

    >>> as_hyperparam("learning_rate", 0.1, torch.tensor(0))
    tensor(0.1000, dtype=torch.float64)
    """
    if not isinstance(value, Tensor):
        try:
            value = float(value)
        except (TypeError, ValueError):
            raise TypeError(f"{name} must be a number or a 0-d tensor, got {value!r}") from None
        return count.new_zeros((), dtype=_wide(count.device)) + value
    if value.dim():
        raise ValueError(
            f"{name} must be a number or a 0-d tensor, got one of shape {tuple(value.shape)}; "
            f"for several values at once write vmap(lambda {name}: ...)"
        )
    dtype = value.dtype if value.is_floating_point() else _wide(count.device)
    return count.new_zeros((), dtype=dtype) + value.to(count.device, dtype)


def carry(hyperparams: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copy the hyperparameters for the next state, which must not share memory with this one."""
    if torch.compiler.is_compiling():  # the executable of a graph gives each result its own memory
        return hyperparams
    return {name: value.clone() for name, value in hyperparams.items()}


def as_time(count: Tensor) -> Tensor:
    """Convert a count to a floating dtype."""
    return count.to(_wide(count.device))


def _wide(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


def check_range(name: str, value: Choice, low: float = 0.0, high: float = float("inf")) -> None:
    """Raise ``ValueError`` for a Python number outside [low, high). Tensors and schedules are not checked.

    >>> check_range("learning_rate", -1.0)
    Traceback (most recent call last):
    ValueError: learning_rate must not be negative, got -1.0
    """
    for path, number in _named(name, value):
        if isinstance(number, (int, float)) and not low <= number < high:
            wanted = "must not be negative" if high == float("inf") and low == 0 else f"must be in [{low:g}, {high:g})"
            raise ValueError(f"{path} {wanted}, got {number}")


def is_set(value: Choice) -> bool:
    """Return False for a Python number that is exactly 0, which leaves out a part of an optimizer.

    >>> is_set(0.0), is_set(torch.tensor(0.0))
    (False, True)
    """
    return not (isinstance(value, (int, float)) and value == 0)


def one_number(name: str, value: Choice) -> Number:
    """Return the value. Raises ``TypeError`` for a tree, where all leaves must share one number.

    >>> one_number("max_norm", 1.0)
    1.0
    """
    if not _is_number(value):
        raise TypeError(f"{name} must be a number, a 0-d tensor or a schedule, the same for all leaves, got {value!r}")
    return value


def get_hyperparams(opt_state: Tree) -> dict[str, Tensor]:
    """Return every hyperparameter in an optimizer's state, as a dict of 0-d tensors by name.

    A name that occurs once is used alone: ``learning_rate``. If several parts have it, their paths in the state precede
    it: ``parts.head.1.learning_rate``. A hyperparameter with a schedule has its value at the last update.

    >>> import fnn
    >>> opt = fnn.optim.adam(1e-3)
    >>> {name: float(value) for name, value in get_hyperparams(opt.init({"w": torch.ones(1)})).items()}
    {'beta1': 0.9, 'beta2': 0.999, 'eps': 1e-08, 'learning_rate': 0.001}
    """
    leaves, treedef = _tree.flatten(opt_state)
    return {name: leaves[place].clone() for name, (place, *_) in _found(treedef).items()}


def set_hyperparams(opt_state: Tree, **values: float | Tensor) -> Tree:
    """Return the state with new values for some hyperparameters, by the names of :func:`get_hyperparams`.

    A name without a path sets the value in every part that has it. All other leaves are those of the given state, not
    copies. Raises ``ValueError`` for an unknown name, and for a hyperparameter with a schedule.

    >>> import fnn
    >>> opt = fnn.optim.sgd(0.1)
    >>> params = {"w": torch.ones(1)}
    >>> state = set_hyperparams(opt.init(params), learning_rate=0.5)
    >>> opt.update(params, state, params)[0]
    {'w': tensor([-0.5000])}
    """
    leaves, treedef = _tree.flatten(opt_state)
    known = _found(treedef)
    for name, value in values.items():
        chosen = [(place, fixed) for full, (place, fixed, flat) in known.items() if name in (full, flat)]
        if not chosen:
            raise ValueError(f"no hyperparameter {name!r} in this state; it has {sorted(known)}")
        for place, fixed in chosen:
            if not fixed:
                raise ValueError(f"{name!r} is decided by a schedule; make the optimizer with a number to set it")
            old = leaves[place]
            new = value.to(old.device, old.dtype) if isinstance(value, Tensor) else float(value)
            if isinstance(new, Tensor) and new.dim():
                raise ValueError(f"{name!r} must be a number or a 0-d tensor, got one of shape {tuple(new.shape)}")
            leaves[place] = torch.zeros_like(old) + new
    return treedef.unflatten(leaves)


@lru_cache(maxsize=64)
def _found(treedef: TreeDef) -> dict[str, tuple[int, bool, str]]:
    """Map names of :func:`get_hyperparams` to the index of the leaf, whether it may be set, and the short name."""
    rows = []
    for i, path in enumerate(treedef.entries):
        names = [entry.name for entry in path]
        field = next((k for k, name in enumerate(names) if name in _FIELDS), None)
        if field is not None and "slots" not in names[:field] and field < len(names) - 1:
            name = ".".join(names[field + 1 :])
            rows.append((name, ".".join([*names[:field], name]), i, names[field] == "hyperparams"))
    names = [name for name, *_ in rows]
    return {name if names.count(name) == 1 else full: (i, fixed, name) for name, full, i, fixed in rows}
