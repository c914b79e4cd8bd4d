"""Layers made of layers. One that holds a layer with state has state itself."""

from collections.abc import Callable
from typing import overload

from torch import Tensor

from fnn import random
from fnn.layers.base import Layer, ShapeError, StatefulLayer
from fnn.tree import Tree

Part = Layer | Callable[[Tensor], Tensor]


@overload
def sequential(*layers: Part, **named: Part) -> Layer: ...
@overload
def sequential(*layers: Part | StatefulLayer, **named: Part | StatefulLayer) -> StatefulLayer: ...
def sequential(*layers: Part | StatefulLayer, **named: Part | StatefulLayer) -> Layer | StatefulLayer:
    """Layers one after the other; a plain function of one tensor counts as a layer without parameters.

    Params are numbered as in ``torch.nn.Sequential``, or named by keyword; parts without parameters have
    no entry. A key given to ``apply`` is split, one for each part. When a part is a ``StatefulLayer`` so is the
    whole, and its state has the names of the parts that have state. Raises ``TypeError`` for a part that is
    neither a layer nor a function, and puts the part's name on a ``ShapeError``.

    >>> import torch, fnn
    >>> model = sequential(fnn.layers.linear(4, 3), fnn.layers.relu, fnn.layers.linear(3, 2))
    >>> list(model.init(fnn.random.key(0)))
    ['0', '2']
    >>> list(sequential(body=fnn.layers.linear(4, 3), act=fnn.layers.relu).init(fnn.random.key(0)))
    ['body']
    >>> params, state = sequential(fnn.layers.linear(4, 3), fnn.layers.batch_norm(3)).init(fnn.random.key(0))
    >>> list(params), list(state)
    (['0', '1'], ['1'])
    """
    if layers and named:
        raise TypeError("sequential takes numbered parts or named parts, not both")
    given = named or {str(i): part for i, part in enumerate(layers)}
    parts = {name: _as_stateful("sequential", name, part) for name, part in given.items()}

    def init(key: Tensor) -> tuple[dict[str, Tree], dict[str, Tree]]:
        keys = random.split(key, max(len(parts), 1))
        made = {name: part.init(keys[i]) for i, (name, part) in enumerate(parts.items())}
        params, state = ({name: pair[i] for name, pair in made.items() if not _is_empty(pair[i])} for i in (0, 1))
        return params, state

    def apply(
        params: dict[str, Tree], state: dict[str, Tree], x: Tensor, *, train: bool = False, key: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tree]]:
        keys = random.split(key, max(len(parts), 1)) if key is not None else None
        after = dict(state)
        for i, (name, part) in enumerate(parts.items()):
            given_state, given_key = state.get(name, {}), None if keys is None else keys[i]
            try:
                x, new_state = part.apply(params.get(name, {}), given_state, x, train=train, key=given_key)
            except ShapeError as error:
                raise error.below(name) from None
            if not _is_empty(new_state):
                after[name] = new_state
        return x, after

    whole = StatefulLayer(init, apply)
    return whole if any(isinstance(part, StatefulLayer) for part in given.values()) else _without_state(whole)


@overload
def residual(layer: Part) -> Layer: ...
@overload
def residual(layer: StatefulLayer) -> StatefulLayer: ...
def residual(layer: Part | StatefulLayer) -> Layer | StatefulLayer:
    """y = x + layer(x) (He et al., 2015). Params and state are those of ``layer``.

    x: any shape that the layer keeps -> the same shape. Raises ``ShapeError`` when the layer changes the shape.

    >>> import torch, fnn
    >>> residual(fnn.layers.relu).apply({}, torch.tensor([-1.0, 2.0]))
    tensor([-1.,  4.])
    >>> block = residual(fnn.layers.sequential(fnn.layers.batch_norm(3), fnn.layers.relu))
    >>> params, state = block.init(fnn.random.key(0))
    >>> y, state = block.apply(params, state, torch.ones(5, 3), train=True)
    """
    part = _as_stateful("residual", "layer", layer)

    def apply(
        params: Tree, state: Tree, x: Tensor, *, train: bool = False, key: Tensor | None = None
    ) -> tuple[Tensor, Tree]:
        y, state = part.apply(params, state, x, train=train, key=key)
        if y.shape != x.shape:
            raise ShapeError(
                f"residual adds a layer's output to its input, but the layer turns {tuple(x.shape)} into "
                f"{tuple(y.shape)}"
            )
        return x + y, state

    whole = StatefulLayer(part.init, apply)
    return whole if isinstance(layer, StatefulLayer) else _without_state(whole)


def _as_stateful(combinator: str, name: str, part: Part | StatefulLayer) -> StatefulLayer:
    """Any part in the wider form, so that each combinator is written once."""
    if isinstance(part, StatefulLayer):
        return part
    if isinstance(part, Layer):
        return StatefulLayer(
            lambda key: (part.init(key), {}),
            lambda params, state, x, *, train=False, key=None: (part.apply(params, x, key=key), state),
        )
    if callable(part):
        return StatefulLayer(lambda key: ({}, {}), lambda params, state, x, *, train=False, key=None: (part(x), state))
    raise TypeError(f"{combinator}: part {name!r} is neither a layer nor a function: {part!r}")


def _without_state(layer: StatefulLayer) -> Layer:
    return Layer(
        lambda key: layer.init(key)[0],
        lambda params, x, *, key=None: layer.apply(params, {}, x, key=key)[0],
    )


def _is_empty(tree: Tree) -> bool:
    return isinstance(tree, (dict, tuple, list)) and len(tree) == 0
