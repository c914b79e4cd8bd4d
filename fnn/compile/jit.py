"""``jit``: a pure function is traced once for each kind of its arguments, and its flat graph is what runs."""

import functools
import os
import threading
from collections.abc import Callable, Hashable, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fnn import _torch
from fnn import tree as _tree
from fnn._argnums import as_tuple, positions
from fnn.compile import donation
from fnn.compile.artifacts import save_compiled
from fnn.compile.executable import Executable, Signature
from fnn.compile.trace import Layout, layout_of, name_of, parameters
from fnn.compile.watch import Watch, by_value
from fnn.tree import Tree, TreeDef

# as attributes of the class these are descriptors, whose __get__ is the fastest way to an attribute of many tensors
_shape, _dtype, _device, _requires_grad = (
    getattr(Tensor, name).__get__ for name in ("shape", "dtype", "device", "requires_grad")
)
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
    """Trace a pure function once for each kind of arguments, and run the flat graph. Use as ``@jit`` or ``@jit(...)``.

    Args:
        f: a pure function of trees of tensors.
        donate_argnums: positional arguments whose memory the results take over, so that a train step holds
            one copy of params and optimizer state. The donated tensors hold no data afterwards; go on with
            the results: ``params, opt_state, value = step(params, opt_state, batch)``. Each donated leaf needs
            a result of its shape, dtype and device.
        static_argnums: positional arguments that are hashable Python values; one graph for each value and type.
        backend: "replay" runs the operations one by one with eager's own kernels: it is ready as soon as f has been
            traced, and gives the bits that f gives. "inductor" generates code, as ``torch.compile`` does.
        mode: Inductor's: "reduce-overhead" (CUDA graphs), "max-autotune", ...
        options: Inductor's, over fnn's own defaults where everything is on the CPU: ``layout_optimization=False``
            and the matrix products of :mod:`fnn.compile.cpu_matmul`, whose route ``{"cpu_matmul": "mkl"}`` or
            ``"onednn"`` sets.
        background: replay until Inductor is ready in a thread, and then switch. A number says at which call to switch,
            so that a run can be repeated bit for bit.

    While f is traced its tensors have shapes, but no values. It is traced again for another structure, shape, stride,
    dtype or device of the arguments, another static argument, other settings of torch (default dtype, autocast,
    deterministic algorithms), and when something that f refers to has changed: see :mod:`fnn.compile.watch`. Never
    for other numbers in a tensor. ``jitted.explain(*args)`` says why a call would trace again, :func:`compile_count`
    how often that has happened. Inside another jitted function and inside ``vmap``, ``grad`` and their like it is f
    itself, and so it is where autograd has to see it: an argument, or a tensor that f refers to, requires gradients
    and these are enabled. Results of donated arguments never require gradients.

    Raises ``TypeError`` for a leaf that is not a tensor and for Python code that asks for a tensor's value (naming the
    line); ``ValueError`` for a tree that was donated before, one tensor donated twice, and a donated leaf for which
    there is no result. An exception of f is raised as itself.

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
        return f(*args, **kwargs) if _switch.off or _torch.plain_call() else jitted.call(args, kwargs)

    functools.update_wrapper(call, f)
    call.compile_count = lambda: len(jitted.records)  # type: ignore[attr-defined]
    call.save = save_compiled  # type: ignore[attr-defined]
    call.explain = lambda *args, **kwargs: jitted.explain(args, kwargs)  # type: ignore[attr-defined]
    return call


def compile_count(jitted: Callable) -> int:
    """How many graphs a function made by :func:`jit` has traced so far.

    >>> compile_count(jit(lambda x: x))
    0
    """
    return jitted.compile_count()  # type: ignore[attr-defined]


class _Record(NamedTuple):
    """What a graph was traced for, for :meth:`_Jitted.explain`."""

    treedef: TreeDef
    layouts: list[Layout]
    statics: tuple
    state: tuple
    watched: dict[str, Any]


class _Jitted:
    """A function with its settings and everything that has been traced of it."""

    def __init__(
        self, f: Callable, donated: tuple[int, ...], static: tuple[int, ...], settings: dict[str, Any]
    ) -> None:
        self.f = f
        self.donated = donated
        self.static = static
        self.settings = settings
        self.lock = threading.RLock()
        self.watches: dict[Hashable, Watch] = {}  # by the static arguments
        self.signatures: dict[int, Signature] = {}  # by the id of a structure, which the signature keeps alive
        self.last: Signature | None = None
        self.records: list[_Record] = []

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
                            f"{name_of(self.f)} as an argument, or let it refer to a copy (tensor.clone())"
                        )
                    rare = self._only_sizes_differ(signature, leaves, statics)
                    f = self._with_statics(values)
                    executable = Executable(f, signature, leaves, watch.references, rare=rare, **self.settings)
                    table[key] = executable
                    layouts = [*map(layout_of, leaves)]
                    self.records.append(_Record(signature.treedef, layouts, statics, state, watch.values()))
        if torch.is_grad_enabled() and executable.constants_require_grad() and not given:
            return self.f(*everything, **kwargs)
        return executable(leaves, given)

    def explain(self, args: tuple, kwargs: dict) -> str:
        """A sentence on whether a call with these arguments would trace the function, and why."""
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
        """Whether it has been traced for such arguments of other sizes: this may be a last, short batch."""
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
        """The function of the arguments that are not static."""
        if not values:
            return self.f
        static = dict(zip(self.static, values, strict=False))

        def function(*args: Any, **kwargs: Any) -> Tree:
            rest = iter(args)
            total = len(args) + len(static)
            return self.f(*[static[i] if i in static else next(rest) for i in range(total)], **kwargs)

        return functools.update_wrapper(function, self.f)

    def _split(self, args: tuple, kwargs: dict) -> tuple[tuple, tuple]:
        """The arguments that are not static, and those that are."""
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
    """Why a call is not the one of an earlier trace."""
    if then.treedef is not now.treedef:
        return [f"its arguments are {now.treedef!r} and were {then.treedef!r}"]
    found = []
    for name, old, new in zip(names, then.layouts, now.layouts, strict=True):
        changed = [f"{part} {b}, was {a}" for part, a, b in zip(Layout._fields, old, new, strict=True) if a != b]
        found += [f"{name} has {', '.join(changed)}"] * bool(changed)
    if then.statics != now.statics:
        found.append("a static argument is another")
    if then.state != now.state:
        found.append("torch's default dtype, autocast or deterministic algorithms are set otherwise")
    for place in {**then.watched, **now.watched}:
        (old, old_text), (new, new_text) = (record.watched.get(place, (None, "not there")) for record in (then, now))
        if old != new:
            found.append(f"{place} is {new_text}, was {old_text}")
    return found


def _global_state() -> tuple:
    """What of torch's state changes what a traced function computes."""
    cast = torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")
    dtypes = (torch.get_autocast_dtype("cpu"), torch.get_autocast_dtype("cuda")) if any(cast) else ()
    return torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled(), *cast, *dtypes


def _static_key(value: Any) -> Any:
    mark = by_value(value)
    return (type(value), value) if isinstance(mark, int) else mark


def _positions(f: Callable, argnums: int | Sequence[int], name: str) -> tuple[int, ...]:
    """The positions of arguments, none negative; negative ones are counted from the end of the parameters of ``f``."""
    given = as_tuple(argnums, name)
    count = len(parameters(f))
    if all(n >= 0 for n in given):  # f may take more arguments than it names
        count = max((count, *(n + 1 for n in given)))
    return tuple(sorted(positions(given, count, name)))
