"""Intermediate outputs: combinators tell who listens what each of their parts returned."""

import difflib
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, overload

from torch import Tensor

from fnn import tree as _tree
from fnn._configs import with_parts
from fnn.layers.base import ArgumentError, Layer, ShapeError, StatefulLayer
from fnn.layers.structure import is_layer

Listener = Callable[["Call"], None]


class Call:
    """One call of a part: its path in ``params``, its arguments and what it returned."""

    def __init__(self, path: str, part: StatefulLayer, args: tuple, kwargs: dict[str, Any], output: Any, leaf: bool):
        self.path = path
        self.part = part
        self.args = args
        self.kwargs = kwargs
        self.output = output
        self.leaf = leaf
        """Whether no other part was called inside this one."""


class _Frame:
    def __init__(self, listener: Listener):
        self.listener = listener
        self.path: list[str] = []
        self.heard = 0


class _Frames(threading.local):
    active: tuple[_Frame, ...] = ()


_frames = _Frames()


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Call ``listener`` after each call of a part inside this context."""
    before = _frames.active
    _frames.active = (*before, _Frame(listener))
    try:
        yield
    finally:
        _frames.active = before


def call_part(name: str, part: StatefulLayer, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
    """Return ``part.apply(*args, **kwargs)``, and put ``name`` in front of the path of errors and of heard outputs.

    A part whose name is empty has the params of the layer that calls it.
    """
    frames = _frames.active
    before = [frame.heard for frame in frames]
    if name:
        for frame in frames:
            frame.path.append(name)
    try:
        output, state = part.apply(*args, **kwargs)
        for frame, heard in zip(frames, before, strict=True):
            frame.heard += 1
            frame.listener(Call(".".join(frame.path), part, args, kwargs, output, frame.heard == heard + 1))
    except (ShapeError, ArgumentError) as error:
        raise (error.below(name) if name else error) from None
    finally:
        if name:
            for frame in frames:
                frame.path.pop()
    return output, state


def collected(function: Callable[[], Any]) -> tuple[Any, dict[str, Any]]:
    """Return a function's result and the outputs of the parts that it called, by path.

    The outputs are not told to anybody else. A combinator that runs its part inside a transform must return them from
    the transform, and then tells them by :func:`tell`.
    """
    before = _frames.active
    found: dict[str, Any] = {}
    _frames.active = (_Frame(lambda call: found.update({call.path: call.output})),) if before else ()
    try:
        return function(), found
    finally:
        _frames.active = before


def tell(outputs: dict[str, Any], part: StatefulLayer) -> None:
    """Tell listeners of the outputs that :func:`collected` returned."""
    for frame in _frames.active:
        for path, output in outputs.items():
            place = ".".join([*frame.path, path] if path else frame.path)
            frame.listener(Call(place, part, (), {}, output, False))


@overload
def capture(model: Layer, paths: Sequence[str]) -> Layer: ...
@overload
def capture(model: StatefulLayer, paths: Sequence[str]) -> StatefulLayer: ...
def capture(model: Layer | StatefulLayer, paths: Sequence[str]) -> Layer | StatefulLayer:
    """The model, with intermediate outputs: ``apply`` returns ``(y, outputs)`` in place of ``y``.

    ``outputs`` is a dict with the output of the part at each of ``paths``, which are the paths in ``params`` that
    ``print(model)`` shows. Params and state are those of the model. The outputs are results like any other: they can be
    differentiated, mapped and compiled. Of a part that is called several times, the last output is given; of a part of
    ``repeat``, the outputs of all repetitions, stacked along a new first axis. The parts of a layer whose own ``apply``
    calls them directly are not seen; :func:`fnn.layers.connect` makes such a layer. Raises ``ValueError`` for a path
    that no part has.

    >>> import torch, fnn
    >>> model = fnn.models.mlp(4, 8, 2)
    >>> params, x = model.init(fnn.random.key(0)), torch.ones(5, 4)
    >>> y, outputs = capture(model, ["0", "1"]).apply(params, x)
    >>> y.shape, outputs["1"].shape, bool((outputs["1"] == outputs["0"].relu()).all())
    (torch.Size([5, 2]), torch.Size([5, 8]), True)
    >>> slope = fnn.grad(lambda params: capture(model, ["1"]).apply(params, x)[1]["1"].sum())(params)
    >>> bool(slope["0"]["weight"].any()), bool(slope["2"]["weight"].any())
    (True, False)
    """
    if not is_layer(model):
        raise TypeError(f"capture expects a layer, got a {type(model).__name__}; write capture(model, paths)")
    if isinstance(paths, str):
        raise TypeError(f"capture expects a list of paths, got {paths!r}; write capture(model, [{paths!r}])")
    wanted = tuple(paths)

    def apply(*args: Any, **kwargs: Any) -> Any:
        seen: dict[str, Any] = {}

        def listen(call: Call) -> None:
            seen[call.path] = call.output if call.path in wanted else None

        with listening(listen):
            result = model.apply(*args, **kwargs)
        for path in wanted:
            if path not in seen:
                raise _unknown_path(path, list(seen))
        # a copy, because the output of the last part is the result of the model, too
        outputs = {path: _tree.map(_copy, seen[path]) for path in wanted}
        return (result, outputs) if isinstance(model, Layer) else ((result[0], outputs), result[1])

    return with_parts(type(model)(model.init, apply), {"": model})


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _unknown_path(path: str, seen: list[str]) -> ValueError:
    if not seen:
        line = (
            "it has no parts that can be seen: combinators such as sequential, and fnn.layers.connect, make such parts"
        )
    else:
        close = difflib.get_close_matches(path, seen, 3, 0.3)
        shown = ", ".join(map(repr, close or seen[:8]))
        line = f"the nearest are {shown}" if close else f"its parts are {shown}" + (", ..." if len(seen) > 8 else "")
    return ValueError(f"capture: the model has no part {path!r}; {line}; print(model) shows all of them")
