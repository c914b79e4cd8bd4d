"""The function that a ``torch.nn.Module`` computes, as a layer, with its parameters and buffers as trees."""

import copy
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fnn import _torch
from fnn import tree as _tree
from fnn.interop import derivative_rules, random_rules, recurrent_rules  # noqa: F401  (they register their rules)
from fnn.interop.function_mode import CopyNeededError, ModuleCalls
from fnn.interop.to_module import LayerModule
from fnn.layers.base import ArgumentError, Layer, ShapeError, StatefulLayer, factory
from fnn.random.arguments import check_key
from fnn.tree import Tree


class Converted(NamedTuple):
    """A module as a layer, with the values of its parameters, and of its buffers and frozen parameters."""

    layer: Layer | StatefulLayer
    params: Tree
    state: Tree

    @property
    def tied(self) -> dict[str, str]:
        """The further names of tensors that the module uses at several places: ``{name: the name in the tree}``."""
        return dict(getattr(self.layer.apply, "tied", {}))


def from_module(module: nn.Module) -> Converted:
    """Return ``(layer, params, state)``: the function that a module computes, and its values as nested dicts.

    The paths in ``params`` and ``state`` are the names in the module's ``state_dict``. ``params`` are its parameters,
    ``state`` its buffers and the parameters with ``requires_grad=False``, which are not trained. A tensor that the
    module uses under several names (tied weights) is one leaf, under the first of them. The leaves are copies, and the
    module itself is neither changed nor used again: later changes of it are not seen.

    A module with state gives a ``StatefulLayer``, whose ``apply(params, state, *inputs, train=False, key=None,
    **inputs)`` returns ``(outputs, state)``; otherwise it is a ``Layer`` with ``apply(params, *inputs, key=None,
    **inputs)``. ``init(key)`` returns the values that the module had, whatever the key is. Inputs and outputs are those
    of the module's ``forward``; inputs that are named "key" or "train" are passed by position.

    - Without ``train`` and ``key`` the module is in evaluation mode, otherwise in training mode. If only a key is
      given, norms keep using their running statistics. A part that was in evaluation mode while the module was in
      training mode remains so. With ``train``, the new state holds what the module wrote into its buffers; without it,
      the state is returned as it is.
    - Random numbers come from ``key``, and nothing is drawn from torch's global generator. Without a key dropout does
      nothing, and other draws raise ``TypeError``.
    - Every transform applies. Attention, norms and recurrent layers are written out where torch's own functions lack
      derivatives or have them wrong.

    Raises ``TypeError`` for what is not a module, for modules whose operations cannot be seen (scripted and compiled
    ones, ``DataParallel``), and when ``apply`` meets a draw that cannot be made from a key, a parameter that is changed
    in place, or an output that is not a tree. Python attributes that a module changes in its ``forward`` are not part
    of the state.

    >>> import fnn
    >>> net = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5), nn.Linear(3, 2))
    >>> model, params, state = from_module(net)
    >>> fnn.tree.paths(params), state
    (('0.bias', '0.weight', '2.bias', '2.weight'), {})
    >>> x = torch.ones(5, 4)
    >>> torch.equal(model.apply(params, x), net.eval()(x))
    True
    >>> model.apply(params, x, key=fnn.random.key(0)).shape
    torch.Size([5, 2])
    """
    _check_module(module)
    if isinstance(module, LayerModule):
        return Converted(*module.copies())
    layer = _layer(module)
    made = layer.init(None)  # pyright: ignore[reportArgumentType]  (the key is not used)
    params, state = made if isinstance(layer, StatefulLayer) else (made, {})
    return Converted(layer, params, state)


@factory
def _layer(module: nn.Module) -> Layer | StatefulLayer:
    skeleton = _Skeleton(module)
    first = {
        kind: {path: leaf.detach().clone() for path, leaf in leaves.items()} for kind, leaves in _leaves(module).items()
    }

    def init_both(key: Any = None) -> tuple[Tree, Tree]:
        params, state = (
            _tree.from_state_dict({path: leaf.clone() for path, leaf in first[kind].items()})
            for kind in ("params", "state")
        )
        return params, state

    def apply_both(
        params: Tree, state: Tree, *inputs: Any, train: bool = False, key: Tensor | None = None, **keywords: Any
    ) -> tuple[Any, Tree]:
        return skeleton.call(params, state, inputs, keywords, train, key)

    def init_params(key: Any = None) -> Tree:
        return init_both(key)[0]

    def apply_params(params: Tree, *inputs: Any, key: Tensor | None = None, **keywords: Any) -> Any:
        return skeleton.call(params, {}, inputs, keywords, False, key)[0]

    layer = StatefulLayer(init_both, apply_both) if first["state"] else Layer(init_params, apply_params)
    layer.apply.tied = skeleton.tied  # pyright: ignore[reportFunctionMemberAccess]
    return layer


def _leaves(module: nn.Module) -> dict[str, dict[str, Tensor]]:
    """The tensors that become params and state, by path. A tensor with several names has the first."""
    found: dict[str, dict[str, Tensor]] = {"params": {}, "state": {}}
    seen = set()
    for slot in _torch.slots(module):
        tensor = slot.owner[slot.name]
        if id(tensor) not in seen:
            seen.add(id(tensor))
            trained = slot.kind == "parameter" and tensor.requires_grad
            found["params" if trained else "state"][slot.path] = tensor
    return found


class _Places(NamedTuple):
    """The leaves of one tree and where they go: for each path its shape, and the slots that hold the tensor."""

    kind: str  # "params" or "state"
    shapes: dict[str, tuple[int, ...]]
    slots: dict[str, list[_torch.Slot]]

    def leaves(self, name: str, tree: Tree) -> dict[str, Tensor]:
        """The leaves of a tree that the caller gives, by path. Raises ``ShapeError`` or ``TypeError``."""
        if not isinstance(tree, Mapping):
            line = "apply(params, state, x)" if self.kind == "state" else "apply(params, x), params first"
            raise ArgumentError(f"{name} expects its {self.kind} as a dict, got a {type(tree).__name__}; write {line}")
        leaves = dict(_tree.items(tree))
        if leaves.keys() != self.shapes.keys():
            missing = [path for path in self.shapes if path not in leaves]
            extra = [path for path in leaves if path not in self.shapes]
            raise ShapeError(
                f"{name}: its {self.kind} do not fit the module: missing {missing}, not in the module {extra}"
            )
        for path, shape in self.shapes.items():
            leaf = leaves[path]
            if not isinstance(leaf, Tensor):
                raise ArgumentError(f"{name} expects {self.kind} {path!r} as a tensor, got a {type(leaf).__name__}")
            if tuple(leaf.shape) != shape:
                stacked = tuple(leaf.shape)[1:] == shape
                hint = "; stacked params go through vmap, as in vmap(layer.apply, (0, None))" if stacked else ""
                raise ShapeError(f"{name} expects {self.kind} {path!r} of shape {shape}, got {tuple(leaf.shape)}{hint}")
        return leaves


class _Skeleton:
    """A copy of a module without values, into which a call puts the values that it is given."""

    constant_under_jit = True  # nobody else holds the copy, so jit need not compare what is in it

    def __init__(self, module: nn.Module) -> None:
        self.name = type(module).__name__
        self.lock = threading.RLock()
        self.module = _without_values(module)
        self.stays_in_evaluation = {
            name for name, part in module.named_modules() if module.training and not part.training
        }
        self.mode: tuple[bool, bool] | None = None
        self.copied: set[str] = set()  # the kinds of tensors that the module is known to write into
        self.recurrent = [part for part in self.module.modules() if isinstance(part, nn.RNNBase)]
        kinds = _leaves(module)
        paths = {id(tensor): path for leaves in kinds.values() for path, tensor in leaves.items()}
        slots: dict[str, list[_torch.Slot]] = {path: [] for path in paths.values()}
        for slot, own in zip(_torch.slots(module), _torch.slots(self.module), strict=True):
            slots[paths[id(slot.owner[slot.name])]].append(own)
        self.params, self.state = (
            _Places(
                kind, {path: tuple(leaf.shape) for path, leaf in leaves.items()}, {path: slots[path] for path in leaves}
            )
            for kind, leaves in kinds.items()
        )
        self.tied = {slot.path: path for path, each in slots.items() for slot in each[1:]}

    def call(
        self, params: Tree, state: Tree, inputs: tuple, keywords: dict, train: bool, key: Tensor | None
    ) -> tuple[Any, Tree]:
        """The outputs and the new state."""
        if key is not None:
            check_key(key)
        given_params, given_state = self.params.leaves(self.name, params), self.state.leaves(self.name, state)
        given_inputs, structure = _tree.flatten((inputs, keywords))
        with self.lock:
            while True:
                used_state = _copies(given_state) if "state" in self.copied else given_state
                used_inputs = [_copy(leaf) for leaf in given_inputs] if "inputs" in self.copied else given_inputs
                caller = {
                    "inputs": [leaf for leaf in given_inputs if isinstance(leaf, Tensor)],
                    "state": given_state.values(),
                    "params": given_params.values(),
                }
                calls = ModuleCalls(self.name, caller, key)
                try:
                    outputs, new_state = self._run(calls, given_params, used_state, structure, used_inputs, train)
                    break
                except CopyNeededError as needed:
                    self.copied.add(needed.kind)
        _check_outputs(self.name, outputs)
        if not train or not given_state:
            return outputs, state
        return outputs, _tree.structure(state).unflatten([new_state[path] for path in _tree.structure(state).paths])

    def _run(
        self, calls: ModuleCalls, params: dict, state: dict, structure: _tree.TreeDef, leaves: list, train: bool
    ) -> tuple[Any, dict[str, Tensor]]:
        self._set_mode(train, calls.key is not None)
        args, kwargs = structure.unflatten(leaves)
        with self._filled(params | state), calls.running():
            outputs = self.module(*args, **kwargs)
            held = {path: places[0].owner[places[0].name] for path, places in self.state.slots.items()}
        leaves, treedef = _tree.flatten(outputs)
        return treedef.unflatten(list(map(calls.present, leaves))), {
            path: calls.present(leaf) for path, leaf in held.items()
        }

    @contextmanager
    def _filled(self, values: dict[str, Tensor]) -> Iterator[None]:
        slots = {**self.params.slots, **self.state.slots}
        try:
            for path, places in slots.items():
                for slot in places:
                    slot.owner[slot.name] = values[path]
            for part in self.recurrent:
                _torch.refresh_recurrent(part)
            yield
        finally:
            for places in slots.values():
                for slot in places:
                    slot.owner[slot.name] = _EMPTY

    def _set_mode(self, train: bool, drawing: bool) -> None:
        """Put each part into training or evaluation mode. With a key alone, norms with statistics are in evaluation."""
        if self.mode == (train, drawing):
            return
        for name, part in self.module.named_modules():
            training = train if isinstance(part, _torch.NormWithStatistics) else train or drawing
            part.training = training and name not in self.stays_in_evaluation
        self.mode = train, drawing


_EMPTY = torch.empty(0, device="meta")


def _without_values(module: nn.Module) -> nn.Module:
    """A copy of a module that shares no memory with it, and whose parameters and buffers hold nothing."""
    memo: dict[int, Any] = {}
    for slot in _torch.slots(module):
        memo[id(slot.owner[slot.name])] = _EMPTY
    for part in module.modules():  # tensors computed from parameters, as by weight_norm, cannot be copied
        memo |= {id(value): value.detach() for value in vars(part).values() if isinstance(value, Tensor)}
    try:
        return copy.deepcopy(module, memo)
    except Exception as error:
        raise TypeError(
            f"from_module copies the {type(module).__name__} with copy.deepcopy, which fails: {error}; remove what "
            "cannot be copied from its attributes"
        ) from error


def _copies(leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    return {path: leaf.clone() for path, leaf in leaves.items()}


def _copy(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf


def _check_module(module: Any) -> None:
    if isinstance(module, type) and issubclass(module, nn.Module):
        raise TypeError(
            f"from_module expects a module, got the class {module.__name__}; call it: {module.__name__}(...)"
        )
    if not isinstance(module, nn.Module):
        raise TypeError(f"from_module expects a torch.nn.Module, got a {type(module).__name__}")
    for name, part in module.named_modules():
        where = f" at {name!r}" if name else ""
        if isinstance(part, torch.jit.ScriptModule):
            raise TypeError(
                f"from_module: the part{where} is scripted and hides its operations; give the module that was scripted"
            )
        if isinstance(part, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            raise TypeError(
                f"from_module: the part{where} is a {type(part).__name__}; write from_module(module.module)"
            )
        if hasattr(part, "_orig_mod"):
            raise TypeError(
                f"from_module: the part{where} is compiled by torch.compile; give the module that was compiled"
            )
    lazy = [slot.path for slot in _torch.slots(module) if nn.parameter.is_lazy(slot.owner[slot.name])]
    if lazy:
        raise TypeError(f"from_module: {lazy[0]!r} has no shape yet; call the module once on an input, then convert it")


def _check_outputs(name: str, outputs: Any) -> None:
    leaves, treedef = _tree.flatten(outputs)
    for place, leaf in zip(treedef.keystrs, leaves, strict=True):
        if leaf is not None and not isinstance(leaf, (Tensor, bool, int, float, complex, str)):
            raise TypeError(
                f"{name} returns a {type(leaf).__name__} at outputs{place}, which is not a tree of tensors; give apply "
                "the keyword of the module that turns it off, such as use_cache=False, or wrap the module in one that "
                "returns tensors"
            )
