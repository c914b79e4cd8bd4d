"""Hyperparameters by name: read, set and logged in the state, whatever the optimizer is made of."""

import torch
from torch import Tensor

from fnn import tree as _tree
from fnn.tree import Tree

_FIELDS = ("hyperparams", "scheduled")


def get_hyperparams(state: Tree) -> dict[str, Tensor]:
    """Every hyperparameter in an optimizer's state, 0-d tensors by name.

    A name that occurs once stands alone: ``learning_rate``. Where several parts have it, the place in the state stands
    before it: ``parts.head.1.learning_rate``. What a schedule decides is shown with its value at the last update.

    >>> import fnn
    >>> opt = fnn.optim.adam(1e-3)
    >>> {name: float(value) for name, value in get_hyperparams(opt.init({"w": torch.ones(1)})).items()}
    {'beta1': 0.9, 'beta2': 0.999, 'eps': 1e-08, 'learning_rate': 0.001}
    """
    return {name: _tree.get(state, path) for name, (path, _) in _found(state).items()}


def set_hyperparams(state: Tree, **values: float | Tensor) -> Tree:
    """The state with new values for some hyperparameters, by the names of :func:`get_hyperparams`.

    A plain name sets it in every part that has it. Raises ``ValueError`` for a name that is not there, and for one that
    a schedule decides.

    >>> import fnn
    >>> opt = fnn.optim.sgd(0.1)
    >>> params = {"w": torch.ones(1)}
    >>> state = set_hyperparams(opt.init(params), learning_rate=0.5)
    >>> opt.update(params, state, params)[0]
    {'w': tensor([-0.5000])}
    """
    known = _found(state)
    for name, value in values.items():
        chosen = [(path, fixed) for full, (path, fixed) in known.items() if name in (full, full.rpartition(".")[2])]
        if not chosen:
            raise ValueError(f"no hyperparameter {name!r} in this state; it has {sorted(known)}")
        for path, fixed in chosen:
            if not fixed:
                raise ValueError(f"{name!r} is decided by a schedule; make the optimizer with a number to set it")
            old = _tree.get(state, path)
            new = value.to(old) if isinstance(value, Tensor) else torch.full_like(old, value)
            if new.dim():
                raise ValueError(f"{name!r} must be a number or a 0-d tensor, got one of shape {tuple(new.shape)}")
            state = _tree.replace(state, path, new)
    return state


def _found(state: Tree) -> dict[str, tuple[str, bool]]:
    """Shown name: (path in the state, whether it may be set)."""
    entries = []
    for path in _tree.paths(state):
        *place, field, name = path.split(".") if "." in path else ("", path)
        if field in _FIELDS and "slots" not in place:
            entries.append((name, ".".join([*place, name]), path, field == "hyperparams"))
    names = [name for name, *_ in entries]
    return {name if names.count(name) == 1 else full: (path, fixed) for name, full, path, fixed in entries}
