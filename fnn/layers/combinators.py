"""Layers made of layers."""

from collections.abc import Callable

from torch import Tensor

from fnn import random
from fnn.layers.base import Layer, ShapeError
from fnn.tree import Tree


def sequential(*layers: Layer | Callable[[Tensor], Tensor], **named: Layer | Callable[[Tensor], Tensor]) -> Layer:
    """Layers one after the other; a plain function of one tensor counts as a layer without parameters.

    Params are numbered as in ``torch.nn.Sequential``, or named by keyword; parts without parameters have
    no entry. A key given to ``apply`` is split, one for each part. Raises ``TypeError`` for a part that is
    neither, and puts the part's name on a ``ShapeError``.

    >>> import torch, fnn
    >>> model = sequential(fnn.layers.linear(4, 3), fnn.relu, fnn.layers.linear(3, 2))
    >>> list(model.init(fnn.random.key(0)))
    ['0', '2']
    >>> list(sequential(body=fnn.layers.linear(4, 3), act=fnn.relu).init(fnn.random.key(0)))
    ['body']
    """
    if layers and named:
        raise TypeError("sequential takes numbered parts or named parts, not both")
    given = named or {str(i): part for i, part in enumerate(layers)}
    parts = {name: _as_layer(name, part) for name, part in given.items()}

    def init(key: Tensor) -> dict[str, Tree]:
        keys = random.split(key, len(parts))
        params = {name: part.init(keys[i]) for i, (name, part) in enumerate(parts.items())}
        return {name: value for name, value in params.items() if not _is_empty(value)}

    def apply(params: dict[str, Tree], x: Tensor, *, key: Tensor | None = None) -> Tensor:
        keys = random.split(key, len(parts)) if key is not None else None
        for i, (name, part) in enumerate(parts.items()):
            x = apply_at(name, part, params, x, None if keys is None else keys[i])
        return x

    return Layer(init, apply)


def apply_at(name: str, layer: Layer, params: dict[str, Tree], x: Tensor, key: Tensor | None = None) -> Tensor:
    """Apply the layer whose params stand under ``name``; errors then say so."""
    try:
        return layer.apply(params.get(name, {}), x, key=key)
    except ShapeError as error:
        raise error.below(name) from None


def _as_layer(name: str, part: Layer | Callable[[Tensor], Tensor]) -> Layer:
    if isinstance(part, Layer):
        return part
    if callable(part):
        return Layer(lambda key: {}, lambda params, x, *, key=None: part(x))
    raise TypeError(f"sequential: part {name!r} is neither a layer nor a function: {part!r}")


def _is_empty(params: Tree) -> bool:
    return isinstance(params, (dict, tuple, list)) and len(params) == 0
