"""The structure of a model: as text, and as plain data from which the model can be made again."""

import difflib
import functools
import inspect
import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fnn._configs import MAKERS, Config, config_of, parts_of

Own = Mapping[str, Any] | None


def is_layer(value: Any) -> bool:
    """Return True for a ``Layer`` or a ``StatefulLayer``."""
    return isinstance(value, tuple) and getattr(value, "_fields", None) == ("init", "apply")


def structure(layer: Any) -> str:
    """Return the calls that make a layer and its parts, a part to a line, with the path of each part in ``params``.

    This is the text that ``print(model)`` shows. Arguments that have their default values are left out, and so are the
    arguments that are the parts themselves.

    >>> import fnn
    >>> print(fnn.models.mlp(784, 512, 10))
    mlp(784, 512, 10)
      0: linear(784, 512)
      1: relu
      2: linear(512, 10)
    >>> print(fnn.layers.sequential(fnn.layers.residual(fnn.models.mlp(4, 4)), fnn.layers.dropout(0.1)))
    sequential(...)
      0: residual(...)
        mlp(4, 4)
          0.0: linear(4, 4)
      1: dropout(p=0.1)
    """
    return "\n".join(_lines(layer, "", "", 0))


def paths(layer: Any, prefix: str = "") -> list[str]:
    """Return the dotted paths of all parts of a model that its makers have recorded, in the order of the calls."""
    found = []
    for name, part in parts_of(layer).items():
        path = f"{prefix}.{name}" if prefix and name else prefix or name
        found += ([path] if name else []) + paths(part, path)
    return found


def config(model: Any, own: Own = None) -> dict[str, Any]:
    """Return a model's configuration as data that ``json.dump`` can write; :func:`from_config` makes the model again.

    The data name the public functions of fnn that made the model and their arguments; params are kept apart, as in
    ``fnn.checkpoint``. ``own`` gives names to functions, makers and layers that are not fnn's. Raises ``TypeError`` for
    such a part that has no name, and for arguments that are not plain data, such as tensors.

    >>> import fnn
    >>> config(fnn.layers.linear(4, 3, bias=False))
    {'make': 'layers.linear', 'arguments': {'in_features': 4, 'out_features': 3, 'bias': False}}
    >>> square = lambda x: x * x
    >>> data = config(fnn.models.mlp(4, 3, 2, activation=square), own={"square": square})
    >>> data["arguments"]["activation"]
    {'function': 'own.square'}
    """
    if not is_layer(model):
        raise TypeError(f"config expects a layer, got a {type(model).__name__}; write config(model)")
    return _encode(model, "model", own or {})


def from_config(config: Mapping[str, Any], own: Own = None) -> Any:
    """Return the model that :func:`config` described.

    ``own`` has the functions, makers and layers that were given to ``config``, by the same names. Nothing is imported
    or called but the public layers, models and initialisers of fnn and what ``own`` holds, so that a file from somebody
    else can be read. Raises ``ValueError`` for a name or an argument that does not exist, and ``TypeError`` for data of
    another form.

    >>> import fnn
    >>> from_config({"make": "models.mlp", "arguments": {"sizes": [4, 3]}})
    mlp(4, 3)
      0: linear(4, 3)
    """
    made = _decode(config, own or {})
    if not is_layer(made):
        raise TypeError(f"from_config expects the data that config(model) returned, got {config!r}")
    return made


# Text


def _lines(part: Any, path: str, name: str, depth: int) -> list[str]:
    label = f"{path}: " if name else ""
    lines = ["  " * depth + label + call_text(part)]
    for inner, value in parts_of(part).items():
        below = f"{path}.{inner}" if path and inner else path or inner
        lines += _lines(value, below, inner, depth + 1)
    return lines


def call_text(part: Any, initialisers: bool = True) -> str:
    """Return the call that makes a part, in one line, with or without the initialisers of its params."""
    known = config_of(part)
    if known is None:
        return f"{_maker_name(part.apply)}(...)" if is_layer(part) else _value(part)
    parts = list(known.parts.values())
    defaults = inspect.signature(known.maker).parameters
    shown: list[str] = []
    for name, value in known.arguments.items():
        parameter = defaults[name]
        if not initialisers and not is_layer(value) and config_of(value):
            continue
        if parameter.kind is parameter.VAR_POSITIONAL:
            shown += [_argument(each, parts) for each in value]
        elif parameter.kind is parameter.VAR_KEYWORD:
            shown += [_argument(each, parts, key) for key, each in value.items()]
        elif is_layer(value):
            shown.append(_argument(value, parts))
        elif parameter.default is parameter.empty:
            shown.append(_value(value))
        elif not _equal(value, parameter.default):
            shown.append(f"{name}={_value(value)}")
    shown = [text for i, text in enumerate(shown) if text != "..." or "..." not in shown[:i]]
    return f"{known.maker.__name__}({', '.join(shown)})"


def _argument(value: Any, parts: list[Any], name: str = "") -> str:
    """Return the text of an argument, which is "..." for a part, because the next lines show it."""
    if any(value is each for each in parts):
        return "..."
    return f"{name}={_value(value)}" if name else _value(value)


def _equal(value: Any, default: Any) -> bool:
    return value is default or (type(value) is type(default) and not isinstance(value, Tensor) and value == default)


def _value(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"Tensor{tuple(value.shape)}"
    if is_layer(value) or config_of(value):
        return call_text(value)
    if isinstance(value, functools.partial):
        shown = [*map(_value, value.args), *(f"{name}={_value(each)}" for name, each in value.keywords.items())]
        return f"{_value(value.func)}({', '.join(shown)})"
    if isinstance(value, (list, tuple)):
        inner = ", ".join(map(_value, value)) + ("," if isinstance(value, tuple) and len(value) == 1 else "")
        return f"[{inner}]" if isinstance(value, list) else f"({inner})"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {_value(each)}" for key, each in value.items()) + "}"
    return getattr(value, "__name__", None) or repr(value) if callable(value) else repr(value)


def _maker_name(function: Callable[..., Any]) -> str:
    """Return the name of the function that defines ``function``: "scale_norm" of ``scale_norm.<locals>.apply``."""
    names = getattr(function, "__qualname__", type(function).__name__).split(".<locals>")
    return names[-2].lstrip(".") if len(names) > 1 else names[0]


# Data


def _encode(value: Any, place: str, own: Mapping[str, Any]) -> Any:
    for name, each in own.items():
        if each is value:
            return {"layer" if is_layer(value) else "function": f"own.{name}"}
    known = config_of(value)
    if known is not None:
        return _encode_call(known, place, own)
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, (tuple, list)) and not is_layer(value):
        items = [_encode(each, f"{place}[{i}]", own) for i, each in enumerate(value)]
        return items if isinstance(value, list) else {"tuple": items}
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {"dict": {key: _encode(each, f"{place}[{key!r}]", own) for key, each in value.items()}}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, functools.partial):
        arguments = {name: _encode(each, f"{place}.{name}", own) for name, each in value.keywords.items()}
        positional = [_encode(each, f"{place}[{i}]", own) for i, each in enumerate(value.args)]
        return {"partial": _encode(value.func, place, own), "positional": positional, "arguments": arguments}
    name = getattr(value, "__name__", "")
    if name and _functions().get(name) is value:
        return {"function": f"layers.{name}"}
    raise TypeError(f"config: {place} is {_own_part(value)}")


def _encode_call(known: Config, place: str, own: Mapping[str, Any]) -> dict[str, Any]:
    public = [name for name, maker in MAKERS.items() if maker is known.maker]
    public += [f"own.{name}" for name, maker in own.items() if maker is known.maker]
    if not public:
        name = known.maker.__name__
        raise TypeError(
            f"config: {place} was made by {name}, which is not a public function of fnn; write "
            f"config(model, own={{{name!r}: {name}}}), and the same own in from_config"
        )
    signature = inspect.signature(known.maker).parameters
    arguments = {}
    for name, value in known.arguments.items():
        if signature[name].kind is inspect.Parameter.VAR_POSITIONAL:
            arguments[name] = [_encode(each, f"{place}.{i}", own) for i, each in enumerate(value)]
        elif signature[name].kind is inspect.Parameter.VAR_KEYWORD:
            arguments[name] = {key: _encode(each, f"{place}.{key}", own) for key, each in value.items()}
        else:
            arguments[name] = _encode(value, f"{place}.{name}", own)
    return {"make": public[0], "arguments": arguments}


def _own_part(value: Any) -> str:
    if is_layer(value):
        name = _maker_name(value.apply)
        return (
            f"a layer of your own, made by {name} without the decorator fnn.layers.base.factory; write "
            f"config(model, own={{{name!r}: layer}}), and the same own in from_config"
        )
    if callable(value) and not isinstance(value, Tensor):
        name = getattr(value, "__name__", type(value).__name__)
        code = getattr(value, "__code__", None)
        where = f" ({code.co_filename}, line {code.co_firstlineno})" if code else ""
        return (
            f"a function of your own, {name}{where}; write config(model, own={{'name': function}}), and the same own "
            "in from_config"
        )
    return f"a {type(value).__name__}, which is not plain data; give the layer that holds it in own={{'name': layer}}"


def _functions() -> dict[str, Callable[..., Any]]:
    """The public functions of a tensor in ``fnn.layers``, such as relu."""
    from fnn import layers  # not at the top, because fnn.layers imports this file

    public = {name: getattr(layers, name) for name in layers.__all__}
    makers = {id(maker) for maker in MAKERS.values()}
    return {
        name: each
        for name, each in public.items()
        if inspect.isfunction(each) and id(each) not in makers and name not in ("capture", "config", "from_config")
    }


def _decode(data: Any, own: Mapping[str, Any]) -> Any:
    if isinstance(data, list):
        return [_decode(each, own) for each in data]
    if not isinstance(data, Mapping):
        return data
    kinds = set(data)
    if kinds == {"make", "arguments"}:
        return _make(data["make"], data["arguments"], own)
    if kinds == {"partial", "positional", "arguments"}:
        arguments = {name: _decode(each, own) for name, each in data["arguments"].items()}
        return functools.partial(_decode(data["partial"], own), *_decode(data["positional"], own), **arguments)
    if len(kinds) == 1:
        ((kind, value),) = data.items()
        if kind in ("function", "layer"):
            return _look_up(value, {f"layers.{name}": each for name, each in _functions().items()}, own)
        if kind == "tuple" and isinstance(value, list):
            return tuple(_decode(value, own))
        if kind == "dict" and isinstance(value, Mapping):
            return {key: _decode(each, own) for key, each in value.items()}
        if kind == "float" and value in ("inf", "-inf", "nan"):
            return float(value)
        if kind == "dtype" and isinstance(getattr(torch, str(value), None), torch.dtype):
            return getattr(torch, value)
    raise TypeError(f"from_config expects the data that config(model) returned, got {data!r} in it")


def _look_up(name: Any, known: Mapping[str, Any], own: Mapping[str, Any]) -> Any:
    known = {**known, **{f"own.{each}": value for each, value in own.items()}}
    if name in known:
        return known[name]
    if str(name).startswith("own."):
        short = name.removeprefix("own.")
        raise ValueError(
            f"from_config needs {short!r}, which is not fnn's; write from_config(config, own={{{short!r}: ...}})"
        )
    close = difflib.get_close_matches(str(name), known, 3)
    hint = f"; the nearest are {', '.join(map(repr, close))}" if close else ""
    raise ValueError(f"from_config: fnn has no {name!r} in this version{hint}")


def _make(name: Any, arguments: Any, own: Mapping[str, Any]) -> Any:
    maker = _look_up(name, MAKERS, own)
    signature = inspect.signature(maker).parameters
    positional: list[Any] = []
    named: dict[str, Any] = {}
    for argument, data in arguments.items():
        if argument not in signature:
            raise ValueError(f"from_config: {name} has no argument {argument!r}; it has {', '.join(signature)}")
        kind = signature[argument].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            positional += _decode(data, own)
        elif kind is inspect.Parameter.VAR_KEYWORD:
            named.update({key: _decode(each, own) for key, each in data.items()})
        else:
            named[argument] = _decode(data, own)
    return maker(*positional, **named)
