"""The types of layers, the checks that layers share, and errors that name their place in a network."""

import operator
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple, Self

from torch import Tensor

from fnn._configs import factory as factory
from fnn._configs import with_parts as with_parts
from fnn._numerics import under_autocast
from fnn.layers.structure import structure
from fnn.tree import Tree


class Layer(NamedTuple):
    """A pair of pure functions.

    ``init(key) -> params`` makes a tree of tensors, which is ``{}`` for a layer without parameters.
    ``apply(params, x, *, key=None) -> y`` computes the layer. A key turns on the randomness of training (dropout);
    without a key the result is deterministic. ``print(layer)`` shows the calls that make it and its parts.
    """

    init: Callable[[Tensor], Tree]
    apply: Callable[..., Any]

    def __repr__(self) -> str:
        return structure(self)


class StatefulLayer(NamedTuple):
    """A layer with state that is not trained, such as running statistics.

    ``init(key) -> (params, state)`` and ``apply(params, state, x, *, train=False, key=None) -> (y, state)``.
    """

    init: Callable[[Tensor], tuple[Tree, Tree]]
    apply: Callable[..., tuple[Any, Tree]]

    def __repr__(self) -> str:
        return structure(self)


class _PlacedError(Exception):
    """An error whose message starts with the path of a layer in ``params``."""

    def __init__(self, message: str, path: tuple[str, ...] = ()):
        self.message = message
        self.path = path
        place = "params" + "".join(f"[{name!r}]" for name in path)
        super().__init__(f"{place}: {message}" if path else message)

    def below(self, name: str) -> Self:
        """Return the same error with ``name`` in front of its path, for the combinator that holds the layer."""
        return type(self)(self.message, (name, *self.path))


class ShapeError(_PlacedError, ValueError):
    """Inputs or params do not fit a layer. The message starts with the path of the layer in ``params``."""


class ArgumentError(_PlacedError, TypeError):
    """An argument of a layer has a wrong type. The message starts with the path of the layer in ``params``."""


def check_axis(layer: str, x: Tensor, dim: int) -> None:
    """Raise :class:`ShapeError` unless ``x`` has the axis ``dim``; as in torch, a number has an axis 0.

    >>> import torch
    >>> check_axis("softmax", torch.ones(2, 3), 2)
    Traceback (most recent call last):
    fnn.layers.base.ShapeError: softmax: inputs of shape (2, 3) have no axis 2
    """
    axes = max(x.dim(), 1)
    if not -axes <= dim < axes:
        raise ShapeError(f"{layer}: inputs of shape {tuple(x.shape)} have no axis {dim}")


def check_tensor(layer: str, x: Any) -> None:
    """Raise :class:`ArgumentError` unless ``x`` is a tensor.

    >>> check_tensor("linear", [1.0, 2.0])
    Traceback (most recent call last):
    fnn.layers.base.ArgumentError: linear expects a tensor, got a list; write torch.as_tensor(x) ...
    """
    if isinstance(x, Tensor):
        return
    if x is None:
        raise ArgumentError(f"{layer} got no input; write apply(params, x)")
    if isinstance(x, Mapping):
        line = "params come first, as in apply(params, x), and one tensor of a dict is x['name']"
    else:
        line = "write torch.as_tensor(x) (float64 from NumPy becomes float32 with .float())"
    raise ArgumentError(f"{layer} expects a tensor, got {_a(x)}; {line}")


def check_mapping(layer: str, params: Any) -> None:
    """Raise :class:`ArgumentError` unless ``params`` is a dict."""
    if isinstance(params, (dict, Mapping)):  # a dict is found at once, an abstract class takes longer
        return
    if isinstance(params, Tensor):
        line = "; write apply(params, x), params first"
    elif isinstance(params, tuple) and len(params) == 2:
        line = "; a layer with state gives two values: params, state = model.init(key)"
    else:
        line = "; write params = model.init(fnn.random.key(0))"
    raise ArgumentError(f"{layer} expects its params as a dict, got {_a(params)}{line}")


def check_params(layer: str, params: Any, **shapes: tuple[int, ...]) -> None:
    """Raise :class:`ShapeError` unless ``params`` has exactly the leaves of these names and shapes.

    >>> import torch
    >>> check_params("linear", {"weight": torch.ones(3, 2)}, weight=(2, 3))
    Traceback (most recent call last):
    fnn.layers.base.ShapeError: linear expects a weight of shape (2, 3), got (3, 2)
    """
    check_mapping(layer, params)
    for name, shape in shapes.items():
        if name not in params:
            raise ShapeError(f"{layer} expects a {name} of shape {shape}, but was given only {sorted(params)}")
        if not isinstance(params[name], Tensor):
            raise ArgumentError(f"{layer} expects its {name} as a tensor, got {_a(params[name])}")
        given = tuple(params[name].shape)
        if given != shape:
            if params[name].is_meta and given == (0,):
                raise ShapeError(
                    f"{layer}: its {name} was donated to a jitted function, which emptied it; use the params that the "
                    "function returned"
                )
            hint = "; stacked params go through vmap, as in vmap(model.apply, (0, None))" if given[1:] == shape else ""
            raise ShapeError(f"{layer} expects a {name} of shape {shape}, got {given}{hint}")
    check_names(layer, params, shapes)


def check_names(layer: str, params: Mapping, names: Collection[str]) -> None:
    """Raise :class:`ShapeError` for entries that the layer does not have. Empty entries are allowed.

    >>> import torch
    >>> check_names("linear", {"weight": torch.ones(3, 2), "bias": torch.ones(3)}, ["weight"])
    Traceback (most recent call last):
    fnn.layers.base.ShapeError: linear has no 'bias': ...
    """
    for name, value in params.items():
        if name not in names and not is_empty(value):
            known = f"its own are {', '.join(map(repr, names))}" if names else "it has none of its own"
            raise ShapeError(
                f"{layer} has no {name!r}: these params were made for another model ({known}); write params = "
                "model.init(key) with this model, or leave the entry out"
            )


def check_state(layer: str, state: Any, x: Any) -> None:
    """Raise :class:`ArgumentError` if a layer with state is called without its state."""
    if x is None or isinstance(state, Tensor):
        raise ArgumentError(
            f"{layer} has state: write params, state = model.init(key) and y, state = model.apply(params, state, x, "
            "train=True)"
        )
    if not isinstance(state, Mapping):
        raise ArgumentError(
            f"{layer} expects its state as a dict, got {_a(state)}; write params, state = model.init(key)"
        )


def is_empty(tree: Any) -> bool:
    """Return True for an empty dict, tuple or list, such as the params of a layer without parameters."""
    return isinstance(tree, (dict, tuple, list, Mapping)) and len(tree) == 0


def _a(value: Any) -> str:
    """Return the name of a value's type with its article, for error messages."""
    kind = type(value)
    name = kind.__name__ if kind.__module__ in ("builtins", "collections") else f"{kind.__module__}.{kind.__name__}"
    return "None" if value is None else f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def as_size(layer: str, name: str, value: Any, least: int = 1) -> int:
    """Return a size as a Python integer. Raises ``TypeError`` or ``ValueError`` naming the argument.

    >>> as_size("linear", "in_features", 2.5)
    Traceback (most recent call last):
    TypeError: linear expects in_features as an integer, got 2.5
    """
    try:
        if isinstance(value, (bool, Tensor)):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{layer} expects {name} as an integer, got {value!r}") from None
    if number < least:
        raise ValueError(f"{layer} expects {name} >= {least}, got {number}")
    return number


SPATIAL = {1: ("length",), 2: ("height", "width"), 3: ("depth", "height", "width")}  # the names of spatial axes


def as_sizes(layer: str, name: str, value: Any, dims: int, least: int = 1) -> tuple[int, ...]:
    """Return one size for all spatial axes, or one for each of ``dims`` axes, as a tuple.

    >>> as_sizes("conv2d", "kernel_size", 3, 2)
    (3, 3)
    >>> as_sizes("conv2d", "kernel_size", (3, 3, 7), 2)
    Traceback (most recent call last):
    ValueError: conv2d expects kernel_size as one integer or a pair (height, width), got (3, 3, 7)
    """
    if not isinstance(value, (tuple, list)):
        value = (value,) * dims
    if len(value) != dims:
        kind = {1: "a tuple (length,)", 2: "a pair (height, width)", 3: "three (depth, height, width)"}[dims]
        raise ValueError(f"{layer} expects {name} as one integer or {kind}, got {value}")
    return tuple(as_size(layer, name, size, least) for size in value)


def as_pair(caller: str, name: str, value: Any, least: int = 1) -> tuple[int, int]:
    """Return one size for both axes, or a pair of sizes (height, width), as a pair.

    >>> as_pair("resize", "size", 28)
    (28, 28)
    """
    height, width = as_sizes(caller, name, value, 2, least)
    return height, width


def check_dtype(layer: str, x: Tensor, leaf: Tensor) -> None:
    """Raise :class:`ShapeError` if inputs and params differ in device, or in dtype unless autocast is on."""
    if x.device != leaf.device:
        raise ShapeError(
            f"{layer} has params on {leaf.device} and got inputs on {x.device}; write x.to({str(leaf.device)!r}), "
            "or fnn.tree.to(params, device)"
        )
    if x.dtype != leaf.dtype and not under_autocast(x):
        raise ShapeError(
            f"{layer} has params of {leaf.dtype} and got inputs of {x.dtype}; write x.to({leaf.dtype}), "
            "or fnn.tree.cast(params, dtype) for another precision"
        )


def check_real(layer: str, x: Tensor) -> None:
    """Raise :class:`ArgumentError` unless ``x`` is a tensor of real numbers.

    >>> import torch
    >>> check_real("relu", torch.ones(1, dtype=torch.complex64))
    Traceback (most recent call last):
    fnn.layers.base.ArgumentError: relu is not defined for complex numbers; apply it to x.real and x.imag
    """
    check_tensor(layer, x)
    if x.is_complex():
        raise ArgumentError(f"{layer} is not defined for complex numbers; apply it to x.real and x.imag")


def check_floating(layer: str, x: Tensor) -> None:
    """Raise :class:`ArgumentError` unless ``x`` is a tensor of real floating-point numbers.

    >>> import torch
    >>> check_floating("avg_pool2d", torch.tensor([1, 2]))
    Traceback (most recent call last):
    fnn.layers.base.ArgumentError: avg_pool2d expects floating-point inputs, got torch.int64; write x.float()
    """
    check_real(layer, x)
    if not x.is_floating_point():
        raise ArgumentError(f"{layer} expects floating-point inputs, got {x.dtype}; write x.float()")


def check_last_axis(layer: str, x: Tensor, features: int) -> None:
    """Raise :class:`ShapeError` unless the last axis of ``x`` has ``features`` entries."""
    check_tensor(layer, x)
    if x.dim() == 0 or x.shape[-1] != features:
        raise ShapeError(f"{layer} expects inputs of shape (..., {features}), got {tuple(x.shape)}")


def check_channels(layer: str, x: Tensor, channels: int | None, spatial: tuple[str, ...]) -> None:
    """Raise :class:`ShapeError` unless ``x`` is (batch, channels, *spatial) or (channels, *spatial)."""
    check_tensor(layer, x)
    rank = len(spatial) + 1
    if x.dim() not in (rank, rank + 1) or (channels is not None and x.shape[-rank] != channels):
        wanted = ", ".join(["batch", "channels" if channels is None else str(channels), *spatial])
        raise ShapeError(f"{layer} expects inputs of shape ({wanted}), got {tuple(x.shape)}")


def check_channels_first(layer: str, x: Tensor, channels: int) -> None:
    """Raise :class:`ShapeError` unless ``x`` is (batch, channels, ...), with any number of further axes."""
    check_tensor(layer, x)
    if x.dim() < 2 or x.shape[1] != channels:
        raise ShapeError(f"{layer} expects inputs of shape (batch, {channels}, ...), got {tuple(x.shape)}")
