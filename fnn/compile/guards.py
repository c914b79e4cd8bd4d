"""Which of the compiler's guards are checked on every call, and what stands in for the others.

A graph is only right while what the function refers to is what was traced. torch.compile looks at every code object,
closure and module attribute that it passed through, which for a deep network takes longer than its matrix products.
Most of that lies inside functions of fnn and torch, whose closures and modules nobody changes. Those guards are left
out; in their place the identity of each such function is compared where the user's code refers to it, so that another
model of the same layers is another graph. Guards of arguments, of the user's own functions, objects and values, also
where they lie inside functions of fnn, and of torch's global state stay.
"""

import re
from collections.abc import Callable, Sequence
from types import FunctionType, ModuleType
from typing import Any

LIBRARIES = ("fnn", "torch")
# a name that begins with a module of a library, perhaps within calls: dict(type(G['__import_torch_dot_utils'].x))
_IMPORTED = re.compile(r"""(\w[\w.]*\()*(G\['__import_(fnn|torch)(_dot_\w+)?'\]|__import__\('(fnn|torch)['.])""")


class Guards:
    """The guards of one compiled function: ``choose`` is torch.compile's ``guard_filter_fn``."""

    def __init__(self, names: dict[str, Any], known: Sequence[str] = ()) -> None:
        """names: what the guards' expressions begin with, the compiled body's variables and its globals, ``G``.

        known: arguments that are not looked at, because who calls knows that they are those of the trace.
        """
        self.names = names
        self.known = tuple(known)
        self.held: dict[str, Any] = {}
        self.hold: Callable[[], bool] = lambda: True

    def choose(self, entries: Sequence[Any]) -> list[bool]:
        """For each guard whether it is checked. The functions that stand in for the others are noted."""
        owners = {entry.name: entry.value for entry in entries if _owns(entry.value)}
        kept = []
        for entry in entries:
            owner = _owner(entry.name, owners)
            inside = _of_library(owner) if owner else bool(_IMPORTED.match(entry.name))
            inside = inside or _own_global(entry.name) or entry.name.startswith(self.known)
            if not inside and isinstance(entry.value, FunctionType) and _of_library(entry.value):
                self.held[entry.name] = entry.value
                inside = True
            kept.append(not inside)
        self.hold = self._holder()
        return kept

    def _holder(self) -> Callable[[], bool]:
        """One expression for all functions: each look costs less than a guard."""
        values = list(self.held.values())
        tests = " and ".join(f"{name} is values[{i}]" for i, name in enumerate(self.held)) or "True"
        scope = self.names | {"values": values}
        test = eval(f"lambda: {tests}", scope)

        def hold() -> bool:
            try:
                return test()
            except (AttributeError, KeyError, IndexError, ValueError):  # a place that is there no more
                return False

        return hold


def _owns(value: Any) -> bool:
    """Whether it decides for what lies in it: a function, a module, or a class of the user's own and its objects."""
    if isinstance(value, (FunctionType, ModuleType)):
        return True
    kind = value if isinstance(value, type) else type(value)
    return kind.__module__.partition(".")[0] not in (*LIBRARIES, "builtins")


def _owner(name: str, owners: dict[str, Any]) -> Any:
    """The innermost function, module or object of the user's that the named thing lies in; None where in none."""
    for match in reversed(list(re.finditer(r"[.\[]", name))):
        if name[: match.start()] in owners:
            return owners[name[: match.start()]]
    return None


def _of_library(owner: Any) -> bool:
    module = owner.__name__ if isinstance(owner, ModuleType) else getattr(owner, "__module__", None) or ""
    return owner is not None and module.partition(".")[0] in LIBRARIES


def _own_global(name: str) -> bool:
    """Whether it is a global of the body's own module, which is fnn's."""
    return name.startswith("G['") and not name.startswith("G['__import_")
