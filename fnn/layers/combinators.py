"""Layers made of layers. A combinator of layers of which one has state has state itself."""

from collections.abc import Callable
from typing import Any, Literal, overload

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
from fnn.layers.capture import call_part
from fnn.tree import Tree

Part = Layer | Callable[..., Any]
AnyPart = Part | StatefulLayer


class Parts:
    """The parts of a layer during one call of its ``apply``, as functions of their inputs.

    ``parts.name(x)`` and ``parts["name"](x)`` apply a part to its own params, state and key.
    """

    def __init__(
        self,
        combinator: str,
        parts: dict[str, StatefulLayer],
        params: dict[str, Tree],
        state: dict[str, Tree],
        train: bool,
        key: Tensor | None,
    ):
        check_names(combinator, params, parts)
        check_names(combinator, state, parts)
        self._parts = parts
        self._params = params
        self._state = dict(state)
        self._train = train
        self._keys = dict(zip(parts, random.split(key, max(len(parts), 1)), strict=False)) if key is not None else {}
        self._calls = dict.fromkeys(parts, 0)

    def __getitem__(self, name: str) -> Callable[..., Any]:
        if name not in self._parts:
            raise AttributeError(f"there is no part {name!r}; the parts are {', '.join(self._parts)}")

        def call(*inputs: Any, **options: Any) -> Any:
            key, count = self._keys.get(name), self._calls[name]
            if key is not None and count:
                key = random.fold_in(key, count)
            self._calls[name] += 1
            y, state = call_part(
                name,
                self._parts[name],
                self._params.get(name, {}),
                self._state.get(name, {}),
                *inputs,
                train=self._train,
                key=key,
                **options,
            )
            if not is_empty(state):
                self._state[name] = state
            return y

        return call

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return self[name]

    def __contains__(self, name: str) -> bool:
        return name in self._parts

    @property
    def names(self) -> list[str]:
        """The names of the parts, in the order in which they were given."""
        return list(self._parts)


def combined(combinator: str, given: dict[str, AnyPart], forward: Callable[..., Any]) -> Layer | StatefulLayer:
    """Return the layer of these parts whose output is ``forward(parts, *inputs)``."""
    parts = {name: as_stateful(combinator, name, part) for name, part in given.items()}

    def init(key: Any = None) -> tuple[dict[str, Tree], dict[str, Tree]]:
        keys = random.split(key, max(len(parts), 1))
        made = {name: part.init(keys[i]) for i, (name, part) in enumerate(parts.items())}
        params, state = ({name: pair[i] for name, pair in made.items() if not is_empty(pair[i])} for i in (0, 1))
        return params, state

    def apply(
        params: dict[str, Tree],
        state: dict[str, Tree],
        *inputs: Any,
        train: bool = False,
        key: Tensor | None = None,
        **options: Any,
    ) -> tuple[Any, dict[str, Tree]]:
        check_mapping(combinator, params)
        check_state(combinator, state, next(iter((*inputs, *options.values())), None))
        calls = Parts(combinator, parts, params, state, train, key)
        return forward(calls, *inputs, **options), calls._state

    return like(StatefulLayer(init, apply), *given.values(), parts=given)


@overload
def connect(forward: Callable[..., Any], **parts: Part) -> Layer: ...
@overload
def connect(forward: Callable[..., Any], **parts: AnyPart) -> StatefulLayer: ...
@factory
def connect(forward: Callable[..., Any], **parts: AnyPart) -> Layer | StatefulLayer:
    """A layer of named parts, connected as the function ``forward(parts, x)`` says: ``parts.name(x)`` applies a part.

    ``forward`` reads like the ``forward`` of a ``torch.nn.Module``, with ``parts`` in the place of ``self``; params,
    state and keys of the parts are handed through, as in :func:`sequential`. The layer takes all inputs that
    ``forward`` takes. A part that is called several times shares its params; its state is that of the last call, and
    its key differs from call to call. Raises what :func:`sequential` raises.

    >>> import torch, fnn
    >>> gated = connect(
    ...     lambda parts, x: parts.linear(x) * torch.sigmoid(parts.gate(x)),
    ...     linear=fnn.layers.linear(4, 3), gate=fnn.layers.linear(4, 3),
    ... )
    >>> params = gated.init(fnn.random.key(0))
    >>> fnn.tree.paths(params)
    ('gate.bias', 'gate.weight', 'linear.bias', 'linear.weight')
    >>> gated.apply(params, torch.ones(5, 4)).shape
    torch.Size([5, 3])
    """
    return combined("connect", parts, forward)


@overload
def sequential(*layers: Part, **named: Part) -> Layer: ...
@overload
def sequential(*layers: AnyPart, **named: AnyPart) -> StatefulLayer: ...
@factory
def sequential(*layers: AnyPart, **named: AnyPart) -> Layer | StatefulLayer:
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

    def forward(parts: Parts, x: Any) -> Any:
        for name in given:
            x = parts[name](x)
            if isinstance(x, (Layer, StatefulLayer)):
                raise ArgumentError(
                    f"part {name!r} gave a layer for its input, so it makes layers; call it in sequential"
                )
        return x

    given = _numbered("sequential", layers, named)
    return combined("sequential", given, forward)


@overload
def residual(layer: Part, shortcut: Part | None = None) -> Layer: ...
@overload
def residual(layer: AnyPart, shortcut: AnyPart | None = None) -> StatefulLayer: ...
@factory
def residual(layer: AnyPart, shortcut: AnyPart | None = None) -> Layer | StatefulLayer:
    """y = x + layer(x), or y = shortcut(x) + layer(x) (He et al., 2015).

    Without a shortcut, params and state are those of ``layer``; with one, they are ``{"layer": ..., "shortcut": ...}``.
    x: any shape; ``layer`` gives the shape of x, or that of ``shortcut(x)``. Raises ``ShapeError`` when the two differ.

    >>> import torch, fnn
    >>> residual(fnn.layers.relu).apply({}, torch.tensor([-1.0, 2.0]))
    tensor([-1.,  4.])
    >>> block = residual(fnn.layers.sequential(fnn.layers.batch_norm(3), fnn.layers.relu))
    >>> params, state = block.init(fnn.random.key(0))
    >>> y, state = block.apply(params, state, torch.ones(5, 3), train=True)
    >>> wider = residual(fnn.layers.linear(3, 4), shortcut=fnn.layers.linear(3, 4, bias=False))
    >>> fnn.tree.paths(wider.init(fnn.random.key(0)))
    ('layer.bias', 'layer.weight', 'shortcut.weight')
    """
    if shortcut is not None:
        return combined("residual", {"layer": layer, "shortcut": shortcut}, _with_shortcut)
    part = as_stateful("residual", "layer", layer)

    def apply(
        params: Tree, state: Tree, x: Any = None, *, train: bool = False, key: Tensor | None = None
    ) -> tuple[Tensor, Tree]:
        check_state("residual", state, x)
        check_tensor("residual", x)
        y, state = call_part("", part, params, state, x, train=train, key=key)
        if y.shape != x.shape:
            raise ShapeError(
                f"residual adds a layer's output to its input, but the layer turns {tuple(x.shape)} into "
                f"{tuple(y.shape)}; write residual(layer, shortcut), with a shortcut that makes the same change"
            )
        return x + y, state

    return like(StatefulLayer(part.init, apply), layer, parts={"": layer})


def _with_shortcut(parts: Parts, x: Any) -> Tensor:
    check_tensor("residual", x)
    y, straight = parts.layer(x), parts.shortcut(x)
    if y.shape != straight.shape:
        raise ShapeError(
            f"residual adds the outputs of its layer and its shortcut, but they have shapes {tuple(y.shape)} and "
            f"{tuple(straight.shape)}"
        )
    return straight + y


@overload
def parallel(*layers: Part, combine: Literal["sum", "concatenate"] = "sum", dim: int = 1, **named: Part) -> Layer: ...
@overload
def parallel(
    *layers: AnyPart, combine: Literal["sum", "concatenate"] = "sum", dim: int = 1, **named: AnyPart
) -> StatefulLayer: ...
@factory
def parallel(
    *layers: AnyPart, combine: Literal["sum", "concatenate"] = "sum", dim: int = 1, **named: AnyPart
) -> Layer | StatefulLayer:
    """Apply all layers to the same input, and add their outputs or concatenate them along ``dim``.

    Params, state and keys are those of :func:`sequential`. Raises ``ValueError`` for no layer and for another
    ``combine``, and ``ShapeError`` for outputs whose shapes do not fit together.

    >>> import torch, fnn
    >>> parallel(fnn.layers.relu, fnn.layers.tanh).apply({}, torch.tensor([[0.0, 1.0]]))
    tensor([[0.0000, 1.7616]])
    >>> inception = parallel(fnn.layers.conv2d(3, 4, 1), fnn.layers.conv2d(3, 6, 3, padding=1), combine="concatenate")
    >>> inception.apply(inception.init(fnn.random.key(0)), torch.ones(2, 3, 8, 8)).shape
    torch.Size([2, 10, 8, 8])
    """
    if combine not in ("sum", "concatenate"):
        raise ValueError(f"parallel: combine is 'sum' or 'concatenate', got {combine!r}")
    given = _numbered("parallel", layers, named)
    if not given:
        raise ValueError("parallel needs at least one layer")

    def forward(parts: Parts, x: Any) -> Tensor:
        outputs = [parts[name](x) for name in given]
        if not _fit_together(outputs, dim if combine == "concatenate" else None):
            found = ", ".join(f"{name!r} {tuple(y.shape)}" for name, y in zip(given, outputs, strict=True))
            raise ShapeError(f"parallel with combine={combine!r} got outputs of shapes that do not fit: {found}")
        if combine == "concatenate":
            return torch.cat(outputs, dim)
        total = outputs[0]
        for y in outputs[1:]:
            total = total + y
        return total

    return combined("parallel", given, forward)


def _fit_together(outputs: list[Tensor], dim: int | None) -> bool:
    """Return True if the tensors have one shape, apart from the axis ``dim``."""
    rank = outputs[0].dim()
    if dim is not None and not -rank <= dim < rank:
        return False
    sizes = {tuple(size for axis, size in enumerate(y.shape) if dim is None or axis != dim % rank) for y in outputs}
    return len(sizes) == 1 and len({y.dim() for y in outputs}) == 1


@overload
def branch(*layers: Part, **named: Part) -> Layer: ...
@overload
def branch(*layers: AnyPart, **named: AnyPart) -> StatefulLayer: ...
@factory
def branch(*layers: AnyPart, **named: AnyPart) -> Layer | StatefulLayer:
    """Apply all layers to the same input, and return all outputs: a tuple, or a dict if the layers are named.

    Params, state and keys are those of :func:`sequential`. It is for networks with several heads.

    >>> import torch, fnn
    >>> heads = branch(label=fnn.layers.linear(4, 10), box=fnn.layers.linear(4, 4))
    >>> outputs = heads.apply(heads.init(fnn.random.key(0)), torch.ones(2, 4))
    >>> {name: tuple(y.shape) for name, y in outputs.items()}
    {'label': (2, 10), 'box': (2, 4)}
    """
    given = _numbered("branch", layers, named)

    def forward(parts: Parts, x: Any) -> Any:
        outputs = {name: parts[name](x) for name in given}
        return outputs if named else tuple(outputs.values())

    return combined("branch", given, forward)


@overload
def map_over_time(layer: Part) -> Layer: ...
@overload
def map_over_time(layer: StatefulLayer) -> StatefulLayer: ...
@factory
def map_over_time(layer: AnyPart) -> Layer | StatefulLayer:
    """Apply a layer to each step of a sequence: x (batch, time, ...) -> y (batch, time, ...).

    The layer is applied once, to a batch of batch x time samples, so that batch normalisation takes its statistics over
    all steps and dropout draws for each step. Params and state are those of the layer. Raises ``ShapeError`` for an
    input without a time axis.

    >>> import torch, fnn
    >>> frames = map_over_time(fnn.layers.conv2d(1, 4, 3))
    >>> frames.apply(frames.init(fnn.random.key(0)), torch.ones(2, 5, 1, 8, 8)).shape
    torch.Size([2, 5, 4, 6, 6])
    """
    part = as_stateful("map_over_time", "layer", layer)

    def apply(
        params: Tree, state: Tree, x: Any = None, *, train: bool = False, key: Tensor | None = None
    ) -> tuple[Tensor, Tree]:
        check_state("map_over_time", state, x)
        check_tensor("map_over_time", x)
        if x.dim() < 2:
            raise ShapeError(f"map_over_time expects inputs of shape (batch, time, ...), got {tuple(x.shape)}")
        y, state = call_part("", part, params, state, x.flatten(0, 1), train=train, key=key)
        return y.reshape(*x.shape[:2], *y.shape[1:]), state

    return like(StatefulLayer(part.init, apply), layer, parts={"": layer})


def _numbered(combinator: str, layers: tuple, named: dict[str, Any]) -> dict[str, Any]:
    if layers and named:
        raise TypeError(f"{combinator} takes numbered parts or named parts, not both")
    return named or {str(i): part for i, part in enumerate(layers)}


def as_stateful(combinator: str, name: str, part: AnyPart) -> StatefulLayer:
    """Convert a part to a layer with state, so that combinators handle only one kind of layer.

    Raises ``TypeError`` for what is neither a layer nor a function.
    """
    if isinstance(part, StatefulLayer):
        return part
    if isinstance(part, Layer):
        return with_parts(
            StatefulLayer(
                lambda key: (part.init(key), {}),
                lambda params, state, *inputs, train=False, key=None, **options: (
                    part.apply(params, *inputs, key=key, **options),
                    state,
                ),
            ),
            {"": part},
        )
    _refuse_modules(combinator, name, part)
    if callable(part):

        def apply(
            params: Tree,
            state: Tree,
            *inputs: Any,
            train: bool = False,
            key: Tensor | None = None,
            **options: Any,
        ) -> tuple[Any, Tree]:
            check_params("a function", params)
            return part(*inputs, **options), state

        return with_parts(StatefulLayer(lambda key: ({}, {}), apply), {"": part})
    raise TypeError(f"{combinator}: part {name!r} is neither a layer nor a function: {part!r}")


def like(whole: StatefulLayer, *given: Any, parts: dict[str, Any]) -> Layer | StatefulLayer:
    """Return ``whole`` with its parts recorded, as a layer without state unless one of the given layers has state."""
    if any(isinstance(part, StatefulLayer) for part in given):
        return with_parts(whole, parts)
    return with_parts(without_state(whole), parts)


def without_state(layer: StatefulLayer) -> Layer:
    """Return a layer whose state is empty as a plain layer."""

    def init(key: Any = None) -> Tree:
        return layer.init(key)[0]

    def apply(params: Tree, *inputs: Any, key: Tensor | None = None, **options: Any) -> Any:
        if not inputs and not options:
            raise ArgumentError("the layer got no input; write apply(params, x)")
        return layer.apply(params, {}, *inputs, key=key, **options)[0]

    return Layer(init, apply)


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

    exact = kind.__name__.lower()
    plain = exact.removesuffix("1d").removesuffix("2d").removesuffix("3d")  # batch_norm is for any number of axes
    same = [ours for ours in layers.__all__ if ours.replace("_", "") in (exact, plain)]
    if same:
        is_factory = getattr(getattr(layers, same[0]), "__annotations__", {}).get("return") in made
        line = f"fnn.layers.{same[0]}" + ("(...)" if is_factory else "") + ", or "
    else:
        line = ""
    raise TypeError(
        f"{combinator}: part {name!r} is a torch.nn.Module ({kind.__name__}), whose parameters would be constants that "
        f"are never trained; write {line}fnn.interop.from_module(module).layer"
    )
