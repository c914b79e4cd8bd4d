"""``jit``: a pure function is traced once for each kind of its arguments, and its flat graph is what runs."""

import functools
import inspect
import os
import threading
from collections.abc import Callable, Hashable, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from fnn import _torch
from fnn import tree as _tree
from fnn.compile import donation
from fnn.compile.inductor import compile_graph
from fnn.compile.replay import replay
from fnn.compile.trace import Trace, trace
from fnn.compile.watch import Watch, by_value
from fnn.tree import Tree, TreeDef

_shape, _dtype, _device = Tensor.shape.__get__, Tensor.dtype.__get__, Tensor.device.__get__
_TENSORS = frozenset({Tensor, torch.nn.Parameter})


class _Switch(threading.local):
    off = os.environ.get("FNN_DISABLE_JIT", "0") not in ("", "0")


_switch = _Switch()


@contextmanager
def disable_jit():
    """While it lasts, jitted functions are the plain ones; so they are everywhere if FNN_DISABLE_JIT=1 is in the
    environment.

    >>> with disable_jit():
    ...     jit(lambda x: x if x > 0 else -x)(torch.tensor(-2.0))
    tensor(2.)
    """
    before, _switch.off = _switch.off, True
    try:
        yield
    finally:
        _switch.off = before


def jit(
    f: Callable | None = None,
    *,
    donate_argnums: int | Sequence[int] = (),
    static_argnums: int | Sequence[int] = (),
    backend: str = "replay",
    mode: str | None = None,
    options: dict[str, Any] | None = None,
    background: bool | int = False,
) -> Any:
    """Trace a pure function once for each kind of its arguments, and run the flat graph.

    TODO
    """
    settings = {
        "donate_argnums": _numbers(donate_argnums),
        "static_argnums": _numbers(static_argnums),
        "backend": backend,
        "mode": mode,
        "options": options,
        "background": background,
    }
    if f is None:
        return functools.partial(jit, **settings)
    if set(settings["donate_argnums"]) & set(settings["static_argnums"]):
        raise ValueError(f"an argument is either donated or static, got {donate_argnums!r} and {static_argnums!r}")
    jitted = _Jitted(f, settings)

    def call(*args: Any, **kwargs: Any) -> Any:
        return f(*args, **kwargs) if _switch.off or _torch.plain_call() else jitted.call(args, kwargs)

    functools.update_wrapper(call, f)
    call.compile_count = lambda: jitted.count  # type: ignore[attr-defined]
    return call


def compile_count(jitted: Callable) -> int:
    """How many graphs a function made by :func:`jit` has traced so far.

    >>> compile_count(jit(lambda x: x))
    0
    """
    return jitted.compile_count()  # type: ignore[attr-defined]


class _Jitted:
    """A function with its settings and everything that has been traced of it."""

    def __init__(self, f: Callable, settings: dict[str, Any]) -> None:
        self.f = f
        self.settings = settings
        self.static: tuple[int, ...] = settings["static_argnums"]
        self.count = 0
        self.lock = threading.RLock()
        self.watches: dict[Hashable, Watch] = {}  # by the static arguments
        self.signatures: dict[int, _Signature] = {}  # by the id of a structure, which the signature keeps alive
        self.last: _Signature | None = None

    def call(self, args: tuple, kwargs: dict) -> Any:
        values: tuple = ()
        if self.static:
            args, values = _split(self.f, args, kwargs, self.static)
        signature = self.last
        leaves = signature.treedef.flatten_exact((args, kwargs)) if signature else None
        if leaves is None or signature is None:
            leaves, treedef = _tree.flatten((args, kwargs))
            signature = self.last = self.signatures.get(id(treedef)) or self._signature(treedef)
        if not _TENSORS.issuperset(map(type, leaves)):
            signature.check(leaves)
        given = [leaves[i] for i in signature.donated]
        if given:
            donation.own(leaves, signature.donated)
        statics = tuple(map(_static_key, values))
        watch = self.watches.get(statics) or self.watches.setdefault(statics, Watch([self.f, *values]))
        table = watch.look()
        key = (
            id(signature), *_global_state(), *map(_shape, leaves), *map(_dtype, leaves), *map(_device, leaves),
            *map(Tensor.stride, leaves),
        )  # fmt: skip
        executable = table.get(key)
        if executable is None or not executable.holds():
            with self.lock:
                executable = table.get(key)
                if executable is None or not executable.holds():
                    signature.check(leaves)
                    executable = table[key] = _Executable(self, signature, leaves, values)
                    self.count += 1
        return executable(leaves, given)

    def _signature(self, treedef: TreeDef) -> "_Signature":
        return self.signatures.setdefault(id(treedef), _Signature(self.f, treedef, self.settings))


class _Signature:
    """The structure of the arguments that are not static, which of their leaves are donated, and their names."""

    def __init__(self, f: Callable, treedef: TreeDef, settings: dict[str, Any]) -> None:
        self.f = f
        self.treedef = treedef
        self.static: tuple[int, ...] = settings["static_argnums"]
        positional, keywords = treedef.children
        names = [name for i, name in enumerate(_parameters(f)) if i not in self.static]
        names = [names[i] if i < len(names) else f"argument {i}" for i in range(len(positional.children))]
        self.names = [
            f"{name}{path}"
            for name, child in zip(
                [*names, *keywords.node.keys], [*positional.children, *keywords.children], strict=True
            )
            for path in child.keystrs
        ]
        sizes = [child.num_leaves for child in positional.children]
        self.arguments = [i - sum(s < i for s in self.static) for i in settings["donate_argnums"]]
        if any(i >= len(sizes) for i in self.arguments):
            raise TypeError(f"{_name(f)}: a donated argument must be given by position")
        self.blocks = [range(sum(sizes[:i]), sum(sizes[: i + 1])) for i in self.arguments]
        self.donated = [leaf for block in self.blocks for leaf in block]

    def check(self, leaves: Sequence[Any]) -> None:
        """Raise ``TypeError`` for a leaf that is not a tensor, ``ValueError`` for one donated before or twice."""
        for name, leaf in zip(self.names, leaves, strict=True):
            if not isinstance(leaf, Tensor):
                raise TypeError(
                    f"{name} is {leaf!r}, a {type(leaf).__name__}, which would be frozen into the graph; pass "
                    f"torch.tensor(...), keep it in a closure, or name the argument in static_argnums"
                )
            if leaf.is_meta:
                raise ValueError(
                    f"{name} holds no data: it was donated to an earlier call, whose result has its memory now. "
                    "Go on with that result, as in params = step(params, ...), or donate a copy (leaf.clone())"
                )
        places: dict[int, str] = {}
        for i in self.donated:
            if id(leaves[i]) in places:
                raise ValueError(
                    f"{places[id(leaves[i])]} and {self.names[i]} are the same tensor, and a donated tensor's memory "
                    "can take only one result; pass leaf.clone() in one of the two places"
                )
            places[id(leaves[i])] = self.names[i]


class _Executable:
    """A traced graph, ready to be called with leaves of the shapes and dtypes that it was traced with."""

    def __init__(self, jitted: _Jitted, signature: _Signature, leaves: Sequence[Tensor], values: tuple) -> None:
        static = dict(zip(jitted.static, values, strict=False))

        def function(*args: Any, **kwargs: Any) -> Tree:
            rest = iter(args)
            total = len(args) + len(static)
            return jitted.f(*[static[i] if i in static else next(rest) for i in range(total)], **kwargs)

        compiled = jitted.settings["backend"] == "inductor"
        named = functools.update_wrapper(function, jitted.f)
        traced = trace(named, signature.treedef, leaves, for_replay=not compiled)
        self.constants = traced.constants
        self.described = [*map(_kind, traced.constants)]
        self.donated = signature.donated
        self.treedef = traced.treedef
        self.places = _places(signature, leaves, traced)
        donated = dict(zip(self.donated, self.places, strict=True))
        if compiled:
            self.run = compile_graph(traced, donated, jitted.settings["mode"], jitted.settings["options"] or {})
        else:
            self.run = replay(traced, donated)
        self.autocast = [kind for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]
        self.hand_over = donation.Handover()

    def holds(self) -> bool:
        """Whether the tensors that the function closed over still have the shapes that they were traced with."""
        return not self.constants or [*map(_kind, self.constants)] == self.described

    def __call__(self, leaves: list[Tensor], given: list[Tensor]) -> Tree:
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            for kind in self.autocast:  # its casts are in the graph
                stack.enter_context(torch.autocast(kind, enabled=False))
            results = self.run([*leaves, *self.constants])
        if not self.donated:
            return self.treedef.unflatten(results)
        own = [leaves[i] for i in self.donated]
        return self.hand_over(given, own, self.places, results, self.treedef)


def _kind(leaf: Any) -> Any:
    """What a result must have in common with a donated leaf whose memory it takes."""
    return (leaf.shape, leaf.dtype, leaf.device) if isinstance(leaf, Tensor) else None


def _places(signature: _Signature, leaves: Sequence[Tensor], traced: Trace) -> list[int]:
    results = [_kind(value.meta["val"]) if isinstance(value, torch.fx.Node) else None for value in traced.results]
    node = traced.treedef.node
    parts = traced.treedef.children if node and node.kind in (tuple, list) else (traced.treedef,)
    given = [[_kind(leaves[i]) for i in block] for block in signature.blocks]
    places = donation.assign(given, results, [part.num_leaves for part in parts])
    for i, place in zip(signature.donated, places, strict=True):
        if place is None:
            left = [kind for j, kind in enumerate(results) if kind and j not in places]
            shown = ", ".join(f"{tuple(shape)} {dtype}" for shape, dtype, _ in left) or "nothing"
            raise ValueError(
                f"{signature.names[i]} is donated, but no result is left with its shape {tuple(leaves[i].shape)} and "
                f"dtype {leaves[i].dtype} to take its memory; left are: {shown}. Return its new value in the same "
                "shape and dtype, or leave the argument out of donate_argnums"
            )
    return [place for place in places if place is not None]


def _global_state() -> tuple:
    """What of torch's state changes what a traced function computes."""
    cast = torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")
    dtypes = (torch.get_autocast_dtype("cpu"), torch.get_autocast_dtype("cuda")) if any(cast) else ()
    return torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled(), *cast, *dtypes


def _static_key(value: Any) -> Any:
    mark = by_value(value)
    return (type(value), value) if isinstance(mark, int) else mark


def _split(f: Callable, args: tuple, kwargs: dict, static: tuple[int, ...]) -> tuple[tuple, tuple]:
    names = _parameters(f)
    values = tuple(args[i] for i in static if i < len(args))
    for i in static[len(values) :]:
        if i < len(names) and names[i] in kwargs:
            raise TypeError(
                f"argument {i} of {_name(f)} is static and must be given by position, not as {names[i]}=..."
            )
    for i, value in zip(static, values, strict=False):
        try:
            hash(value)
        except TypeError:
            raise TypeError(
                f"argument {i} of {_name(f)} is static and must be hashable, got a {type(value).__name__}; "
                "pass a tuple in place of a list"
            ) from None
        if isinstance(value, Tensor):
            raise TypeError(f"argument {i} of {_name(f)} is static and must be a Python value, got a tensor")
    return tuple(arg for i, arg in enumerate(args) if i not in static), values


def _numbers(argnums: int | Sequence[int]) -> tuple[int, ...]:
    numbers = (argnums,) if isinstance(argnums, int) else tuple(argnums)
    if any(not isinstance(n, int) or n < 0 for n in numbers) or len(set(numbers)) < len(numbers):
        raise ValueError(f"argnums are different positions 0, 1, ..., got {argnums!r}")
    return tuple(sorted(numbers))


@functools.lru_cache(maxsize=1000)
def _parameters(f: Callable) -> list[str]:
    try:
        return list(inspect.signature(f).parameters)
    except (TypeError, ValueError):
        return []


def _name(f: Callable) -> str:
    return getattr(f, "__name__", type(f).__name__)
