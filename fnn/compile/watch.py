"""The values that a function refers to besides its arguments. They are part of the key of its graphs.

A graph is valid only as long as the names that were read when it was traced refer to the same values. :class:`Watch`
follows the user's function through its closure, defaults, globals and bound objects, and through the user's functions
that it finds there, and records each place where it finds values. Reading all places again takes a few microseconds.

Numbers, strings and tuples are compared by value and type; lists, dicts and the attributes of objects by their items,
one level deep; the modules of ``torch.nn`` by their submodules, parameters, buffers and plain attributes such as the
training flag; everything else by identity. Functions of installed libraries are not followed. The closures of fnn's
functions are, because they may hold the user's functions, such as a lambda among the layers of a model.
"""

import dis
import enum
import functools
import os
import sys
import sysconfig
import threading
import weakref
from collections.abc import Callable, Iterable
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

_MISSING = object()
_OF_CLASSES = ("__dict__", "__weakref__", "__doc__")
_PLAIN = (str, bytes, int, type(None), type(...), torch.dtype, torch.device, torch.layout, torch.memory_format)
_INSTALLED = tuple({sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib", "purelib", "platlib")})


def by_value(value: Any) -> Any:
    """A hashable key for a value: equal for equal values of one plain type, nan included; otherwise the identity.

    >>> by_value(2) == by_value(2.0), by_value(0.0) == by_value(-0.0), by_value(float("nan")) == by_value(float("nan"))
    (False, False, True)
    """
    kind = type(value)
    if isinstance(value, enum.Enum):
        return kind, value.name
    if isinstance(value, float):
        return kind, float.hex(value)
    if isinstance(value, complex):
        return kind, float.hex(value.real), float.hex(value.imag)
    if isinstance(value, _PLAIN):
        return kind, value
    if isinstance(value, tuple):
        return kind, *map(by_value, value)
    return id(value)


class Place(NamedTuple):
    """A place that holds values, such as a closure. ``read`` returns them, and ``names`` their names in ``where``."""

    where: str
    read: Callable[[], Iterable]
    names: Callable[[], Iterable]


class _Look(NamedTuple):
    """The values in the places at one time, and the table that belongs to them."""

    places: list[Place]
    ids: list[int]
    kept: list[Any]  # the values that are compared by value; keeping them alive keeps their ids unique
    table: dict


class Watch:
    """The places that some roots refer to. ``look()`` returns the table that belongs to their current values."""

    def __init__(self, roots: Iterable[Any]) -> None:
        self._roots = list(roots)
        self._lock = threading.RLock()
        # by the values in the places; each with references to them, so that no other value gets the id of a dead one
        self._tables: dict[tuple, tuple[dict, list]] = {}
        self._last: _Look | None = None

    def look(self) -> dict:
        """Return a table, the same one whenever all places hold the same values."""
        last = self._last
        if last is not None:
            try:
                if [id(value) for place in last.places for value in place.read()] == last.ids:
                    return last.table
            except (ValueError, RuntimeError):  # an emptied cell; a dict that another thread is changing
                pass
        return self._walk()

    def _walk(self) -> dict:
        with self._lock:
            walk = _Walk()
            for root in self._roots:
                walk.visit(root)
            found = [value for place in walk.places for value in place.read()]
            marks = tuple(map(by_value, found))
            if marks not in self._tables:
                self._tables[marks] = {}, self._pins(found, marks)
            table = self._tables[marks][0]
            kept = [value for value in found if not isinstance(by_value(value), int)]
            self._last = _Look(walk.places, list(map(id, found)), kept, table)
            return table

    def references(self, tensors: Iterable[Tensor]) -> list[Callable[[], Tensor]]:
        """Functions that return the tensors. Those in a place are not kept alive; their table is deleted with them."""
        known = set(self._last.ids) if self._last else set()
        return [weakref.ref(x) if id(x) in known else (lambda x=x: x) for x in tensors]  # type: ignore[misc]

    def emptied(self) -> str:
        """The name of a tensor in these places that holds no data because it was donated; "" if there is none."""
        for place in self._last.places if self._last else ():
            for name, value in zip(place.names(), place.read(), strict=False):
                if isinstance(value, Tensor) and value.is_meta:
                    return f"`{name}` of {place.where}"
        return ""

    def values(self) -> dict[str, Any]:
        """The current values in all places, by name: each as its key for comparison and as text."""
        self.look()
        places = self._last.places if self._last else []
        return {
            f"`{name}` of {place.where}": (by_value(value), _text(value))
            for place in places
            for name, value in zip(place.names(), place.read(), strict=False)
        }

    def _pins(self, values: Iterable[Any], marks: tuple) -> list:
        """References to all values that are compared by identity; when one of them dies, the table is deleted."""
        mine = weakref.ref(self)

        def delete_table(_: Any) -> None:
            watch = mine()
            if watch is not None:
                watch._tables.pop(marks, None)
                watch._last = None

        pins: list = []
        for value in values:
            if isinstance(value, tuple):
                pins += self._pins(value, marks)
            elif isinstance(by_value(value), int):
                try:
                    pins.append(weakref.ref(value, delete_table))
                except TypeError:
                    pins.append(value)
        return pins


class _Walk:
    """One walk over everything that can be reached from some roots, which records the places."""

    def __init__(self) -> None:
        self.places: list[Place] = []
        self._seen: dict[tuple[Any, bool], Any] = {}

    def _note(self, where: str, names: Callable, read: Callable[[], Iterable], items: bool = True) -> None:
        self.places.append(Place(where, read, names))
        for value in read():
            self.visit(value, items)

    def visit(self, value: Any, items: bool = True) -> None:
        """Record the places within a value; those of lists, dicts and objects only if ``items`` is true."""
        container = not isinstance(value, (*_PLAIN, float, complex, Tensor, ModuleType))
        if not container or (id(value), items) in self._seen:
            return
        self._seen[id(value), items] = value
        if isinstance(value, FunctionType):
            self._function(value)
        elif isinstance(value, MethodType):
            self.visit(value.__func__)
            self.visit(value.__self__)
        elif isinstance(value, functools.partial):
            self._note(
                "a partial",
                lambda: ["function", *map(str, range(len(value.args))), *value.keywords],
                lambda: [value.func, *value.args, *value.keywords.values()],
            )
        elif isinstance(value, (staticmethod, classmethod)):
            self.visit(value.__func__)
        elif isinstance(value, property):
            self.visit((value.fget,))
        elif isinstance(value, tuple):
            for item in value:
                self.visit(item, items)
        elif isinstance(value, torch.nn.Module):
            self._module(value)
        elif isinstance(value, type):
            self._class(value)
        elif not items:
            self._class(type(value))
        elif isinstance(value, list):
            self._note("a list", lambda: range(len(value)), lambda: value, False)
        elif isinstance(value, dict):
            self._note("a dict", lambda: [*["keys"] * len(value), *value], lambda: [*value, *value.values()], False)
        else:
            self._object(value)

    def _function(self, function: FunctionType) -> None:
        module = function.__globals__.get("__name__")
        cells = function.__closure__ or ()
        if _of(module, "fnn", "torch"):
            for cell in cells:
                self.visit(_content(cell))
            return
        if not _of_the_user(function.__globals__):
            return
        code, scope = function.__code__, function.__globals__
        where, parameters = function.__name__, code.co_varnames
        self._note(where, lambda: ["code", *code.co_freevars], lambda: [function.__code__, *map(_content, cells)])
        if function.__defaults__ or function.__kwdefaults__:
            self._note(
                where,
                lambda: [f"default {i}" for i in range(len(parameters))],
                lambda: [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()],
            )
        names, chains = _global_names(code)
        self._note(f"the globals of {where}", lambda: names, lambda: [scope.get(name, _MISSING) for name in names])
        for name, *attributes in chains:
            self._chain(scope.get(name), attributes)

    def _chain(self, value: Any, names: list[str]) -> None:
        """Record the attributes of modules, such as ``config.rate`` if config is a module."""
        if names and isinstance(value, ModuleType) and _of_the_user(vars(value)):
            scope, name = vars(value), names[0]
            self._note(f"the module {value.__name__}", lambda: (name,), lambda: (scope.get(name, _MISSING),))
            self._chain(scope.get(name), names[1:])

    def _object(self, value: Any) -> None:
        kind = type(value)
        self._class(kind)
        if _of(kind.__module__, "builtins", "torch") or getattr(kind, "constant_under_jit", False):
            return
        if hasattr(value, "__dict__"):
            scope = vars(value)
            self._note(
                f"a {kind.__name__}",
                lambda: [*["attributes"] * len(scope), *scope],
                lambda: [*scope, *scope.values()],
                False,
            )
        slots = [name for base in kind.__mro__ for name in _slots(base)]
        if slots:
            self._note(
                f"a {kind.__name__}", lambda: slots, lambda: [getattr(value, name, _MISSING) for name in slots], False
            )

    def _class(self, kind: type) -> None:
        for base in kind.__mro__:
            module = sys.modules.get(base.__module__)
            if base is not object and (base, True) not in self._seen and (not module or _of_the_user(vars(module))):
                self._seen[base, True] = base
                self._note(
                    f"the class {base.__name__}",
                    lambda base=base: [k for k in vars(base) if k not in _OF_CLASSES],
                    lambda base=base: [v for k, v in vars(base).items() if k not in _OF_CLASSES],
                    False,
                )

    def _module(self, module: torch.nn.Module) -> None:
        for part in module.modules():
            self._class(type(part))
            scope = vars(part)
            plain = [k for k, v in scope.items() if k[0] != "_" and not isinstance(by_value(v), int)]
            parts = [scope[name] for name in ("_parameters", "_buffers", "_modules")]

            def read(scope: dict = scope, plain: list = plain, parts: list = parts) -> list:
                return [scope.get(name, _MISSING) for name in plain] + [x for part in parts for x in part.values()]

            def names(plain: list = plain, parts: list = parts) -> list:
                return plain + [name for part in parts for name in part]

            self.places.append(Place(f"a {type(part).__name__}", read, names))


def _text(value: Any) -> str:
    return f"{value!r:.60}" if isinstance(value, (*_PLAIN, float, complex)) else f"a {type(value).__name__}"


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # the cell is still empty
        return _MISSING


def _slots(kind: type) -> tuple[str, ...]:
    slots = vars(kind).get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _of(module: str | None, *libraries: str) -> bool:
    return (module or "").partition(".")[0] in libraries


def _of_the_user(scope: dict) -> bool:
    """Whether a module, given by its globals, is neither fnn nor an installed library. Code of exec has no file."""
    name, file = scope.get("__name__"), scope.get("__file__")
    if _of(name, "fnn", "torch", "builtins"):
        return False
    return not file.startswith(_INSTALLED) if file else name not in sys.builtin_module_names


@functools.lru_cache(maxsize=10_000)
def _global_names(code: CodeType) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """The globals that code and its nested code read, and the chains of attributes that they read from each."""
    names: dict[str, None] = {}
    chains: dict[tuple[str, ...], None] = {}
    chain: tuple[str, ...] = ()
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            chain = (instruction.argval,)
            names[instruction.argval] = None
        elif instruction.opname in ("LOAD_ATTR", "LOAD_METHOD") and chain:
            chain = (*chain, instruction.argval)
            chains[chain] = None
        else:
            chain = ()
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            inner_names, inner_chains = _global_names(constant)
            names.update(dict.fromkeys(inner_names))
            chains.update(dict.fromkeys(inner_chains))
    return tuple(names), tuple(chains)
