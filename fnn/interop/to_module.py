"""A layer with its params and state as a ``torch.nn.Module``."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fnn import tree as _tree
from fnn.interop.function_mode import key_of_module
from fnn.layers.base import Layer, StatefulLayer
from fnn.tree import Tree


def to_module(layer: Layer | StatefulLayer, params: Tree, state: Tree | None = None) -> nn.Module:
    """Return a ``torch.nn.Module`` that computes a layer, for ``torch.export``, ONNX, and code written for modules.

    The leaves of ``params`` become parameters and those of ``state`` buffers, under their dotted paths, so the module's
    ``state_dict`` has the names of the trees. They are copies. ``module(*inputs, **inputs)`` calls ``apply``. In
    training mode (``module.train()``, the mode of a new module) it writes the new state into its buffers, and takes the
    key of its draws from torch's global generator, as torch's dropout does; ``module(x, key=key)`` gives it one.

    :func:`from_module` turns the module into the same layer again. Raises ``TypeError`` for what is not a layer, for a
    ``StatefulLayer`` without state, and for leaves that are not tensors, and ``ValueError`` for a name that a module
    cannot give to a tensor.

    >>> import fnn
    >>> model = fnn.models.mlp(4, 3, 2)
    >>> params = model.init(fnn.random.key(0))
    >>> module = to_module(model, params).eval()
    >>> sorted(module.state_dict())
    ['0.bias', '0.weight', '2.bias', '2.weight']
    >>> x = torch.ones(5, 4)
    >>> torch.equal(module(x), model.apply(params, x))
    True
    """
    if not isinstance(layer, (Layer, StatefulLayer)):
        raise TypeError(f"to_module expects a Layer or a StatefulLayer, got a {type(layer).__name__}")
    if isinstance(layer, StatefulLayer) and state is None:
        raise TypeError("to_module: the layer has state; write to_module(layer, params, state)")
    return LayerModule(layer, params, {} if state is None else state)


class _Held(NamedTuple):
    """What a :class:`LayerModule` needs beside its tensors."""

    layer: Layer | StatefulLayer
    params: _tree.TreeDef
    state: _tree.TreeDef


class LayerModule(nn.Module):
    """The module that :func:`to_module` makes."""

    def __init__(self, layer: Layer | StatefulLayer, params: Tree, state: Tree) -> None:
        super().__init__()
        self.of_fnn = _Held(layer, _tree.structure(params), _tree.structure(state))
        for kind, tree in (("params", params), ("state", state)):
            if not isinstance(tree, Mapping) and kind == "params":
                raise TypeError(
                    "to_module expects params as a dict, whose names the module takes over; got a "
                    + type(tree).__name__
                )
            for path, leaf in _tree.items(tree):
                if not isinstance(leaf, Tensor):
                    raise TypeError(f"to_module expects tensors, and {kind} {path!r} is a {type(leaf).__name__}")
                _register(self, path, leaf.detach().clone(), kind == "params")

    def forward(self, *inputs: Any, key: Tensor | None = None, **keywords: Any) -> Any:
        params, state = self._trees()
        held = self.of_fnn
        if self.training and key is None:
            key = key_of_module()
        if isinstance(held.layer, Layer):
            return held.layer.apply(params, *inputs, key=key, **keywords)
        outputs, new = held.layer.apply(params, state, *inputs, train=self.training, key=key, **keywords)
        if self.training:
            with torch.no_grad():
                for old, leaf in zip(_tree.leaves(state), held.state.flatten_up_to(new), strict=True):
                    old.copy_(leaf)
        return outputs

    def extra_repr(self) -> str:
        return repr(self.of_fnn.layer)

    def _trees(self) -> tuple[Tree, Tree]:
        named = dict(self.named_parameters()) | dict(self.named_buffers())
        held = self.of_fnn
        params, state = (
            treedef.unflatten([named[path] for path in treedef.paths]) for treedef in (held.params, held.state)
        )
        return params, state

    def copies(self) -> tuple[Layer | StatefulLayer, Tree, Tree]:
        """The layer, and copies of its params and state."""
        params, state = (_tree.map(lambda leaf: leaf.detach().clone(), tree) for tree in self._trees())
        return self.of_fnn.layer, params, state


def _register(module: nn.Module, path: str, leaf: Tensor, trained: bool) -> None:
    *parents, name = path.split(".")
    try:
        for parent in parents:
            if parent not in dict(module.named_children()):
                module.add_module(parent, nn.Module())
            module = module.get_submodule(parent)
        if trained:
            module.register_parameter(name, nn.Parameter(leaf, leaf.is_floating_point() or leaf.is_complex()))
        else:
            module.register_buffer(name, leaf)
    except (KeyError, AttributeError) as error:
        raise ValueError(
            f"to_module: a torch.nn.Module cannot hold a tensor named {path!r} ({error}); rename it in the tree"
        ) from error
