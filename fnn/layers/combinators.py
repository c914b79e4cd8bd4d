"""Layers made of layers. A combinator of layers of which one has state has state itself."""

from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor

from fnn import random
from fnn.layers.base import (
    ArgumentError,
    Layer,
    ShapeError,
    StatefulLayer,
    check_mapping,
    check_names,
    check_params,
    check_state,
    check_tensor,
    factory,
    is_empty,
    with_parts,
)
from fnn.tree import Tree

Part = Layer | Callable[[Tensor], Tensor]


@overload
def sequential(*layers: Part, **named: Part) -> Layer: ...
@overload
def sequential(*layers: Part | StatefulLayer, **named: Part | StatefulLayer) -> StatefulLayer: ...
@factory
def sequential(*layers: Part | StatefulLayer, **named: Part | StatefulLayer) -> Layer | StatefulLayer:
    """Apply layers one after the other. A function of one tensor is a layer without parameters.

    Params are numbered as in ``torch.nn.Sequential``, or named by keyword. Parts without parameters have no entry. A
    key given to ``apply`` is split into one key for each part. If a part is a ``StatefulLayer``, the result is one too,
    and its state has an entry for each part with state. Raises ``TypeError`` for a part that is neither a layer nor a
    function, for a ``torch.nn.Module``, and for a function that makes layers and was not called. Raises ``ShapeError``
    for params of unknown parts. Errors of a part start with its path in ``params``.

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

    def init(key: Any = None) -> tuple[dict[str, Tree], dict[str, Tree]]:
        keys = random.split(key, max(len(parts), 1))
        made = {name: part.init(keys[i]) for i, (name, part) in enumerate(parts.items())}
        params, state = ({name: pair[i] for name, pair in made.items() if not is_empty(pair[i])} for i in (0, 1))
        return params, state

    def apply(
        params: dict[str, Tree],
        state: dict[str, Tree],
        x: Any = None,
        *,
        train: bool = False,
        key: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tree]]:
        check_mapping("sequential", params)
        check_state("sequential", state, x)
        check_names("sequential", params, parts)
        check_names("sequential", state, parts)
        keys = random.split(key, max(len(parts), 1)) if key is not None else None
        after = dict(state)
        for i, (name, part) in enumerate(parts.items()):
            given_state, given_key = state.get(name, {}), None if keys is None else keys[i]
            try:
                x, new_state = part.apply(params.get(name, {}), given_state, x, train=train, key=given_key)
            except (ShapeError, ArgumentError) as error:
                raise error.below(name) from None
            if isinstance(x, (Layer, StatefulLayer)):
                raise ArgumentError(
                    f"part {name!r} gave a layer for its input, so it makes layers; call it in sequential"
                )
            if not is_empty(new_state):
                after[name] = new_state
        return x, after

    whole = StatefulLayer(init, apply)
    has_state = any(isinstance(part, StatefulLayer) for part in given.values())
    return with_parts(whole if has_state else _without_state(whole), given)


@overload
def residual(layer: Part) -> Layer: ...
@overload
def residual(layer: StatefulLayer) -> StatefulLayer: ...
@factory
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
        params: Tree, state: Tree, x: Any = None, *, train: bool = False, key: Tensor | None = None
    ) -> tuple[Tensor, Tree]:
        check_state("residual", state, x)
        check_tensor("residual", x)
        y, state = part.apply(params, state, x, train=train, key=key)
        if y.shape != x.shape:
            raise ShapeError(
                f"residual adds a layer's output to its input, but the layer turns {tuple(x.shape)} into "
                f"{tuple(y.shape)}; write a layer of your own whose apply adds a shortcut that makes the same change, "
                "shortcut.apply(params['shortcut'], x) + layer.apply(params['layer'], x)"
            )
        return x + y, state

    whole = StatefulLayer(part.init, apply)
    return with_parts(whole if isinstance(layer, StatefulLayer) else _without_state(whole), {"": layer})


def _as_stateful(combinator: str, name: str, part: Part | StatefulLayer) -> StatefulLayer:
    """Convert a part to a layer with state, so that combinators handle only one kind of layer."""
    if isinstance(part, StatefulLayer):
        return part
    if isinstance(part, Layer):
        return StatefulLayer(
            lambda key: (part.init(key), {}),
            lambda params, state, x, *, train=False, key=None: (part.apply(params, x, key=key), state),
        )
    _refuse_modules(combinator, name, part)
    if callable(part):

        def apply(
            params: Tree, state: Tree, x: Any, *, train: bool = False, key: Tensor | None = None
        ) -> tuple[Any, Tree]:
            check_params("a function", params)
            return part(x), state

        return StatefulLayer(lambda key: ({}, {}), apply)
    raise TypeError(f"{combinator}: part {name!r} is neither a layer nor a function: {part!r}")


def _refuse_modules(combinator: str, name: str, part: Any) -> None:
    """Raise ``TypeError`` for modules, classes and factories of layers, which are not functions of a tensor."""
    made = {Layer, StatefulLayer, Layer | StatefulLayer}
    if getattr(part, "__annotations__", {}).get("return") in made:
        raise TypeError(
            f"{combinator}: part {name!r} makes layers and was not called; write {part.__name__}(...), with its "
            "arguments, in place of " + part.__name__
        )
    owner = getattr(part, "__self__", part)  # the module of a bound method such as module.forward
    kind = owner if isinstance(owner, type) else type(owner)
    if not issubclass(kind, torch.nn.Module):
        if isinstance(part, type):
            raise TypeError(f"{combinator}: part {name!r} is the class {part.__name__}, not a function of a tensor")
        return
    from fnn import layers

    plain = kind.__name__.lower().removesuffix("1d").removesuffix("2d").removesuffix("3d")
    same = [ours for ours in layers.__all__ if ours.replace("_", "").removesuffix("2d") == plain]
    if same:
        is_factory = getattr(getattr(layers, same[0]), "__annotations__", {}).get("return") in made
        line = f"fnn.layers.{same[0]}" + ("(...)" if is_factory else "") + ", or "
    else:
        line = ""
    raise TypeError(
        f"{combinator}: part {name!r} is a torch.nn.Module ({kind.__name__}), whose parameters would be constants that "
        f"are never trained; write {line}fnn.interop.from_module(module).layer"
    )


def _without_state(layer: StatefulLayer) -> Layer:
    def init(key: Any = None) -> Tree:
        return layer.init(key)[0]

    return Layer(init, lambda params, x, *, key=None: layer.apply(params, {}, x, key=key)[0])
