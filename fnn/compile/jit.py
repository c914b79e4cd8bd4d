"""``jit``: a pure function is traced once for each kind of arguments; after that its flat graph runs."""

import functools
import os
import threading
from collections.abc import Callable, Hashable, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fnn import tree as _tree
from fnn._argnums import as_tuple, positions
from fnn._tracing import is_plain_call
from fnn.compile import donation
from fnn.compile.artifacts import write
from fnn.compile.executable import Executable, Signature
from fnn.compile.trace import Layout, layout_of, name_of, parameters
from fnn.compile.watch import Watch, by_value
from fnn.tree import Tree, TreeDef

# the descriptors' own __get__ is the fastest way to read an attribute of many tensors
_shape, _dtype, _device, _requires_grad = (
    getattr(Tensor, name).__get__ for name in ("shape", "dtype", "device", "requires_grad")
)
_TENSORS = frozenset({Tensor, torch.nn.Parameter})


class _Switch(threading.local):
    off = os.environ.get("FNN_DISABLE_JIT", "0") not in ("", "0")


_switch = _Switch()


@contextmanager
def disable_jit():
    """Within this context jitted functions run as plain functions.

    The environment variable ``FNN_DISABLE_JIT=1`` does the same for the whole process.

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
    """Trace a pure function once for each kind of arguments, and run the flat graph. Use as ``@jit`` or ``@jit(...)``.

    Args:
        f: a pure function of trees of tensors.
        donate_argnums: positional arguments whose memory the results take over, so that a train step holds
            one copy of params and optimizer state. The donated tensors hold no data afterwards; use the results
            instead: ``params, opt_state, value = step(params, opt_state, batch)``. For each donated leaf there
            must be a result with the same shape, dtype and device.
        static_argnums: positional arguments that are hashable Python values. Each value and type gets its own graph.
        backend: "replay" runs the operations one by one with the kernels of eager mode. It needs no compilation and
            its results are bitwise equal to those of f. "inductor" generates code, as ``torch.compile`` does.
        mode: the mode of Inductor, such as "reduce-overhead" (CUDA graphs) or "max-autotune".
        options: the options of Inductor. If all tensors are on the CPU, the defaults are ``layout_optimization=False``
            and the matrix products of :mod:`fnn.compile.cpu_matmul`; ``{"cpu_matmul": "mkl"}`` or ``"onednn"`` selects
            the library for the products.
        background: replay the graph until a thread, started at the second call, has compiled it, and then switch. An
            integer says at which call to switch, so that a run can be repeated bit for bit.

    While f is traced, its tensors have shapes but no values. It is traced again if the structure of the arguments or
    the shape, strides, dtype or device of a leaf changes, if a static argument or a setting of torch (default dtype,
    autocast, deterministic algorithms) changes, and if something that f refers to has changed (see
    :mod:`fnn.compile.watch`). It is never traced again because the numbers in a tensor change.
    ``jitted.explain(*args)`` says why a call would be traced again, and :func:`compile_count` how many graphs have
    been traced. ``jitted.save(path)`` writes what Inductor has compiled for this function, for
    :func:`load_compiled`.

    Within another jitted function and within ``vmap``, ``grad`` and other transforms, the jitted function simply calls
    f. It also calls f if gradients are enabled and an argument, or a tensor that f refers to, requires gradients, so
    that ``.backward()`` works. With donated arguments the results never require gradients.

    Raises ``TypeError`` if a leaf is not a tensor, if Python code asks for the value of a tensor (the message names
    the line), or if a result is a function. Raises ``ValueError`` if a tensor was donated before or is donated twice,
    or if there is no result for a donated leaf. Exceptions that f raises are passed on unchanged.

    >>> square = jit(lambda x: x * x)
    >>> square(torch.tensor(3.0)), compile_count(square)
    (tensor(9.), 1)
    >>> @jit(donate_argnums=0)
    ... def halve(params):
    ...     return {"w": params["w"] / 2}
    >>> params = {"w": torch.ones(2)}
    >>> params = halve(params)
    >>> params
    {'w': tensor([0.5000, 0.5000])}
    """
    if backend not in ("replay", "inductor"):
        raise ValueError(f'jit: backend is "replay" or "inductor", got {backend!r}')
    if backend == "replay" and (mode or options or background is not False):
        raise ValueError('jit: mode, options and background are for backend="inductor"')
    settings = {"backend": backend, "mode": mode, "options": options or {}, "background": background}
    if f is None:
        return functools.partial(jit, donate_argnums=donate_argnums, static_argnums=static_argnums, **settings)
    donated = _positions(f, donate_argnums, "jit(donate_argnums=...)")
    static = _positions(f, static_argnums, "jit(static_argnums=...)")
    if set(donated) & set(static):
        raise ValueError(f"an argument is either donated or static, got {donate_argnums!r} and {static_argnums!r}")
    jitted = _Jitted(f, donated, static, settings)

    def call(*args: Any, **kwargs: Any) -> Any:
        return f(*args, **kwargs) if _switch.off or is_plain_call() else jitted.call(args, kwargs)

    functools.update_wrapper(call, f)
    call.compile_count = lambda: len(jitted.records)  # type: ignore[attr-defined]
    call.save = lambda path: write(path, jitted.compiled_graphs)  # type: ignore[attr-defined]
    call.explain = lambda *args, **kwargs: jitted.explain(args, kwargs)  # type: ignore[attr-defined]
    return call


def compile_count(jitted: Callable) -> int:
    """The number of graphs that have been traced so far for a function made by :func:`jit`.

    >>> compile_count(jit(lambda x: x))
    0
    """
    return jitted.compile_count()  # type: ignore[attr-defined]


class _Record(NamedTuple):
    """The conditions under which a graph was traced, for :meth:`_Jitted.explain`."""

    treedef: TreeDef
    layouts: list[Layout]
    statics: tuple
    state: tuple
    watched: dict[str, Any]


class _Jitted:
    """A function with its settings and all its graphs."""

    def __init__(
        self, f: Callable, donated: tuple[int, ...], static: tuple[int, ...], settings: dict[str, Any]
    ) -> None:
        self.f = f
        self.donated = donated
        self.static = static
        self.settings = settings
        self.lock = threading.RLock()
        self.watches: dict[Hashable, Watch] = {}  # by the static arguments
        self.signatures: dict[int, Signature] = {}  # by the id of the structure, which the signature keeps alive
        self.last: Signature | None = None
        self.records: list[_Record] = []
        self.compiled_graphs: set[str] = set()  # their hashes

    def call(self, args: tuple, kwargs: dict) -> Any:
        values: tuple = ()
        everything = args
        if self.static:
            args, values = self._split(args, kwargs)
        signature = self.last
        leaves = signature.treedef.flatten_exact((args, kwargs)) if signature else None
        if leaves is None or signature is None:
            leaves, treedef = _tree.flatten((args, kwargs))
            signature = self.last = self._signature(treedef)
        if not _TENSORS.issuperset(map(type, leaves)):
            signature.check(leaves)
        given = [leaves[i] for i in signature.donated]
        if given:
            donation.own(leaves, signature.donated)
        elif torch.is_grad_enabled() and any(map(_requires_grad, leaves)):
            return self.f(*everything, **kwargs)
        statics = tuple(map(_static_key, values))
        watch = self.watches.get(statics) or self.watches.setdefault(statics, Watch([self.f, *values]))
        table = watch.look()
        state = _global_state()
        key = (
            id(signature), state, *map(_shape, leaves), *map(_dtype, leaves), *map(_device, leaves),
            *map(Tensor.stride, leaves),
        )  # fmt: skip
        executable = table.get(key)
        if executable is None or not executable.holds():
            with self.lock:
                executable = table.get(key)
                if executable is None or not executable.holds():
                    signature.check(leaves)
                    if emptied := watch.emptied():
                        raise ValueError(
                            f"{emptied} holds no data: it was donated to an earlier call. Pass it to "
                            f"{name_of(self.f)} as an argument, or make the function refer to a copy (tensor.clone())"
                        )
                    rare = self._only_sizes_differ(signature, leaves, statics)
                    f = self._with_statics(values)
                    executable = Executable(
                        f,
                        signature,
                        leaves,
                        watch.references,
                        compiled_graphs=self.compiled_graphs,
                        rare=rare,
                        **self.settings,
                    )
                    table[key] = executable
                    layouts = [*map(layout_of, leaves)]
                    self.records.append(_Record(signature.treedef, layouts, statics, state, watch.values()))
        if torch.is_grad_enabled() and executable.constants_require_grad() and not given:
            return self.f(*everything, **kwargs)
        return executable.call(leaves, given)

    def explain(self, args: tuple, kwargs: dict) -> str:
        """Say whether a call with these arguments would trace the function again, and why."""
        values: tuple = ()
        if self.static:
            args, values = self._split(args, kwargs)
        leaves, treedef = _tree.flatten((args, kwargs))
        signature = self._signature(treedef)
        signature.check(leaves)
        statics = tuple(map(_static_key, values))
        watched = Watch([self.f, *values]).values()
        now = _Record(treedef, [*map(layout_of, leaves)], statics, _global_state(), watched)
        reasons = [_differences(signature.names, then, now) for then in self.records]
        name = name_of(self.f)
        if not reasons:
            return f"{name} has not been traced yet"
        nearest = min(reasons, key=len)
        return f"{name} is traced again: {'; '.join(nearest)}" if nearest else f"{name} has been traced for this call"

    def _signature(self, treedef: TreeDef) -> Signature:
        signature = self.signatures.get(id(treedef))
        if signature is None:
            signature = Signature(self.f, treedef, self.donated, self.static)
            signature = self.signatures.setdefault(id(treedef), signature)
        return signature

    def _only_sizes_differ(self, signature: Signature, leaves: Sequence[Tensor], statics: tuple) -> bool:
        """Whether the function was traced before for arguments that differ only in size, like a last, short batch."""
        if self.settings["backend"] == "replay":
            return False
        kinds = [(len(x.shape), x.dtype, x.device) for x in leaves]
        return any(
            record.treedef is signature.treedef
            and record.statics == statics
            and [(len(x.shape), x.dtype, x.device) for x in record.layouts] == kinds
            and [x.shape for x in record.layouts] != [x.shape for x in leaves]
            for record in self.records
        )

    def _with_statics(self, values: tuple) -> Callable[..., Tree]:
        """The function with its static arguments filled in."""
        if not values:
            return self.f
        static = dict(zip(self.static, values, strict=False))

        def function(*args: Any, **kwargs: Any) -> Tree:
            rest = iter(args)
            total = len(args) + len(static)
            return self.f(*[static[i] if i in static else next(rest) for i in range(total)], **kwargs)

        return functools.update_wrapper(function, self.f)

    def _split(self, args: tuple, kwargs: dict) -> tuple[tuple, tuple]:
        """Split the arguments into those that are not static and those that are."""
        name, names = name_of(self.f), parameters(self.f)
        values = tuple(args[i] for i in self.static if i < len(args))
        for i in self.static[len(values) :]:
            if i < len(names) and names[i] in kwargs:
                raise TypeError(f"argument {i} of {name} is static: give it by position, not as {names[i]}=...")
        for i, value in zip(self.static, values, strict=False):
            if isinstance(value, Tensor):
                raise TypeError(f"argument {i} of {name} is static and must be a Python value, got a tensor")
            try:
                hash(value)
            except TypeError:
                raise TypeError(
                    f"argument {i} of {name} is static and must be hashable, got a {type(value).__name__}; "
                    "pass a tuple in place of a list"
                ) from None
        return tuple(arg for i, arg in enumerate(args) if i not in self.static), values


def _differences(names: Sequence[str], then: _Record, now: _Record) -> list[str]:
    """The reasons why a call cannot use the graph of an earlier trace."""
    if then.treedef is not now.treedef:
        return [f"its arguments are {now.treedef!r} and were {then.treedef!r}"]
    found = []
    for name, old, new in zip(names, then.layouts, now.layouts, strict=True):
        changed = [f"{part} {b}, was {a}" for part, a, b in zip(Layout._fields, old, new, strict=True) if a != b]
        found += [f"{name} has {', '.join(changed)}"] * bool(changed)
    if then.statics != now.statics:
        found.append("a static argument has changed")
    if then.state != now.state:
        found.append("the setting of torch's default dtype, autocast or deterministic algorithms has changed")
    for place in {**then.watched, **now.watched}:
        (old, old_text), (new, new_text) = (record.watched.get(place, (None, "not there")) for record in (then, now))
        if old != new:
            found.append(f"{place} is {new_text}, was {old_text}")
    return found


def _global_state() -> tuple:
    """The settings of torch that change what a traced function computes."""
    cast = torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")
    dtypes = (torch.get_autocast_dtype("cpu"), torch.get_autocast_dtype("cuda")) if any(cast) else ()
    return torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled(), *cast, *dtypes


def _static_key(value: Any) -> Any:
    mark = by_value(value)
    return (type(value), value) if isinstance(mark, int) else mark


def _positions(f: Callable, argnums: int | Sequence[int], name: str) -> tuple[int, ...]:
    """The positions as non-negative numbers; negative ones count from the end of the parameters of ``f``."""
    given = as_tuple(argnums, name)
    count = len(parameters(f))
    if all(n >= 0 for n in given):  # with *args, f may take more arguments than it names
        count = max((count, *(n + 1 for n in given)))
    return tuple(sorted(positions(given, count, name)))
