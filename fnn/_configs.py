"""A record of how a layer or an initialiser was made."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec, TypeVar


class Config(NamedTuple):
    """How a layer was made: the function that made it, the arguments of the call, and the parts of a combinator.

    A part whose name is empty has the params of the whole, like the layer in ``residual(layer)``.
    """

    maker: Callable[..., Any]
    arguments: dict[str, Any]
    parts: dict[str, Any]


MAKERS: dict[str, Callable[..., Any]] = {}
"""The public functions of fnn that record what they make, by room and name, such as "layers.linear"."""

Arguments = ParamSpec("Arguments")
Made = TypeVar("Made")


def factory(make: Callable[Arguments, Made]) -> Callable[Arguments, Made]:
    """Decorate a function that makes layers or initialisers, so that each of them knows how it was made.

    The :class:`Config` is kept as an attribute of the layer's ``apply`` or of the initialiser. A function that returns
    a layer of another maker, such as a model, keeps the parts of that layer.
    """
    signature = inspect.signature(make)

    @functools.wraps(make)
    def make_and_record(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Made:
        made = make(*args, **kwargs)
        arguments = dict(signature.bind(*args, **kwargs).arguments)
        function: Any = getattr(made, "apply", made)
        function.config = Config(make_and_record, arguments, parts_of(made))
        return made

    room = make.__module__.split(".")
    if room[0] == "fnn" and not make.__name__.startswith("_"):
        MAKERS[f"{room[1]}.{make.__name__}"] = make_and_record
    return make_and_record


def config_of(made: Any) -> Config | None:
    """Return how a layer or an initialiser was made, and None if its maker did not record it."""
    found = getattr(getattr(made, "apply", made), "config", None)
    return found if isinstance(found, Config) else None


def with_parts(layer: Made, parts: dict[str, Any]) -> Made:
    """Record the parts of a new layer, by their names in its params. Call it inside a recorded maker."""
    layer.apply.config = Config(with_parts, {}, parts)  # pyright: ignore[reportAttributeAccessIssue]
    return layer


def parts_of(layer: Any) -> dict[str, Any]:
    """Return the parts that a layer was made of, by their names in its params."""
    found = config_of(layer)
    return found.parts if found else {}
