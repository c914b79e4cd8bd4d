"""``jit``: a whole pure function as one compiled graph."""

import functools
import inspect
import itertools
import linecache
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch

from fnn import _torch
from fnn.compile import donation as donate
from fnn.compile import written
from fnn.compile.guards import Guards
from fnn.tree import Tree

_serial = itertools.count()


def jit(
    function: Callable | None = None,
    *,
    donate_argnums: int | Sequence[int] = (),
    static_argnums: int | Sequence[int] = (),
    batch_argnums: int | Sequence[int] = (),
    mode: str | None = None,
    backend: str = "inductor",
    options: dict[str, Any] | None = None,
    unsafe_skip_guards: bool = False,
    unsafe_keep_donated: bool = False,
) -> Any:
    """Compile a whole pure function as one graph. Use as ``@jit`` or ``@jit(...)``.

    Args:
        function: a pure function of trees of tensors.
        donate_argnums: positional arguments whose memory the results take over, so that a train step holds
            one copy of params and optimizer state. The donated tensors hold no data afterwards; go on with
            the results: ``params, opt_state, value = step(params, opt_state, batch)``. Each donated leaf needs
            a result of its shape, dtype and device.
        static_argnums: positional arguments that are hashable Python values; one graph for each value.
        batch_argnums: positional arguments whose leaves' leading axis changes its length, such as a batch: the length
            is symbolic from the first call on, so that a short last batch compiles nothing.
        mode: torch.compile's: "reduce-overhead" (CUDA graphs), "max-autotune", ...
        backend: "inductor"; "eager" and "aot_eager" trace without generating code.
        options: Inductor's, over fnn's own defaults where everything is on the CPU: ``layout_optimization=False``
            and the matrix products of :mod:`fnn.compile.cpu_matmul`.
        unsafe_skip_guards: after the first call nothing checks that shapes, dtypes, structure and closed-over
            Python values are still the traced ones; another call then gives garbage or a crash.
        unsafe_keep_donated: return the donated tensor objects themselves, which saves about a microsecond per
            leaf; an old tree then shows the new values without an error.

    The graph is made on the first call and again for other structures, shapes (a second batch size makes the
    size symbolic, so a third one is free; with ``batch_argnums`` the second is free, too), dtypes, devices and Python
    values that the function closes over; never for other numbers in a tensor, such as a learning rate or a step count.
    :func:`compile_count` tells. What lies inside functions of fnn and torch is taken not to change
    (:class:`fnn.compile.guards.Guards`).

    Raises ``TypeError`` for a leaf that is no tensor, for code that cannot be one graph (naming the line) and
    for a call inside ``vmap`` or ``grad``; ``ValueError`` for a tree that was donated before, one tensor
    donated twice, and a donated leaf for which there is no result. An exception of the function is raised as
    itself. Nothing is computed for autograd: results never require gradients.

    >>> square = jit(lambda x: x * x, backend="eager")
    >>> square(torch.tensor(3.0)), compile_count(square)
    (tensor(9.), 1)
    >>> @jit(donate_argnums=0, backend="eager")
    ... def halve(params):
    ...     return {"w": params["w"] / 2}
    >>> params = {"w": torch.ones(2)}
    >>> params = halve(params)
    >>> params
    {'w': tensor([0.5000, 0.5000])}
    """
    settings = {
        "donate_argnums": _numbers(donate_argnums),
        "static_argnums": _numbers(static_argnums),
        "batch_argnums": _numbers(batch_argnums),
        "mode": mode,
        "backend": backend,
        "options": options,
        "unsafe_skip_guards": unsafe_skip_guards,
        "unsafe_keep_donated": unsafe_keep_donated,
    }
    if function is None:
        return functools.partial(jit, **settings)
    kinds = [settings[name] for name in ("donate_argnums", "static_argnums", "batch_argnums")]
    if len(set().union(*kinds)) < sum(map(len, kinds)):
        raise ValueError(f"an argument is either donated or static or a batch, got {kinds[0]}, {kinds[1]}, {kinds[2]}")
    static = kinds[1]
    variants: dict[Hashable, _Compiled] = {}

    def call(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return function(*args, **kwargs)
        if _torch.peek_interpreter_stack() is not None:
            raise TypeError(
                f"the compiled function {_name(function)} was called inside vmap, grad or another transform; "
                "compile the outermost function: write fnn.jit(fnn.vmap(f)), not fnn.vmap(fnn.jit(f))"
            )
        values: tuple = ()
        if static:
            args, values = _split(function, args, static)
        compiled = variants.get(values)
        if compiled is None:
            compiled = variants[values] = _Compiled(function, dict(zip(static, values, strict=False)), settings)
        with torch.no_grad():
            return compiled(args, kwargs)

    functools.update_wrapper(call, function)
    call.compile_count = lambda: sum(len(compiled.graphs) for compiled in variants.values())  # type: ignore[attr-defined]
    return call


def compile_count(jitted: Callable) -> int:
    """How many graphs a function made by :func:`jit` has compiled so far.

    >>> compile_count(jit(lambda x: x))
    0
    """
    return jitted.compile_count()  # type: ignore[attr-defined]


class _Variant:
    """The graphs for donated arguments of one structure, shapes and dtypes."""

    def __init__(self, donated: dict[int, Tree], leaves: list[torch.Tensor]) -> None:
        self.take = written.taker(donated)
        # results are plain tensors: only then may the next call's be taken to be as these are
        self.repeats = all(type(leaf) is torch.Tensor and not leaf.requires_grad for leaf in leaves)
        self.compiled: list[tuple[Guards, Callable]] = []  # one for each choice of the functions that Guards holds


class _Compiled:
    """The function with its static arguments bound, and what is known about its graphs."""

    def __init__(self, function: Callable, static: dict[int, Any], settings: dict[str, Any]) -> None:
        self.function = function
        self.static = static
        self.settings = settings
        # numbers among the arguments that are left once static ones are taken out
        self.donated, self.batches = (
            [i - sum(s < i for s in static) for i in settings[name]] for name in ("donate_argnums", "batch_argnums")
        )
        self.numbers = itertools.count()
        self.graphs: dict[int, Callable] = {}  # by number: how to rebuild the results
        self.variants: dict[Hashable, _Variant] = {}
        self.plain = _Variant({}, [])  # where nothing is donated
        self.hands = donate.Hands()
        self.last: _Variant | None = None  # of the last call, if its results fit it

    def __call__(self, args: tuple, kwargs: dict) -> Any:
        if not self.donated:
            return self._run(self.plain, args, kwargs, [], True)
        leaves = self.last.take(args) if self.last else None
        if (
            not self.last
            or leaves is None
            or not self.hands.gave(leaves, self.last)
            or self._shared(leaves, args, kwargs)
        ):
            return self._start(args, kwargs)
        return self._run(self.last, args, kwargs, leaves, True)

    def _start(self, args: tuple, kwargs: dict) -> Any:
        """A call whose donated leaves are not, one by one, those that an earlier one gave."""
        for i in self.donated:
            if i >= len(args):
                raise TypeError(f"{_name(self.function)}: a donated argument must be given by position")
        given = _torch.tree_leaves([args[i] for i in self.donated])
        if not self.hands.gave_each(given):
            args = self._take(args, kwargs)
        leaves = donate.leaves([args[i] for i in self.donated])
        shared = self._shared(leaves, args, kwargs)
        structures = tuple(_torch.tree_flatten(args[i])[1] for i in self.donated)
        key = structures, tuple(map(donate.signature, leaves)), shared
        variant = self.variants.get(key)
        if variant is None:
            variant = self.variants[key] = _Variant({i: args[i] for i in self.donated}, leaves)
        out = self._run(variant, args, kwargs, leaves, False)
        taken = set(map(id, leaves))
        donate.empty([leaf for leaf in given if id(leaf) not in taken])  # copied first, and taken like the others
        self.last = None if shared or not variant.repeats else variant
        return out

    def _shared(self, leaves: list, args: tuple, kwargs: dict) -> tuple:
        """Which leaves of other arguments are donated leaves."""
        others: list[int] = []
        for i, arg in enumerate(args):
            if i not in self.donated:
                donate.identities((arg,), others)
        if kwargs:
            donate.identities(kwargs, others)
        if set(map(id, leaves)).isdisjoint(others):
            return ()
        places = {id(leaf): i for i, leaf in enumerate(leaves)}
        return tuple((i, places[leaf]) for i, leaf in enumerate(others) if leaf in places)

    def _run(self, variant: _Variant, args: tuple, kwargs: dict, leaves: list, mine: bool) -> Any:
        """Call the graph and give its results the memory of the donated leaves. mine: an earlier call gave these."""
        compiled = next((compiled for guards, compiled in variant.compiled if guards.hold()), None)
        if compiled is None:
            compiled = self._compile(variant, args, kwargs)
            args = tuple(_torch.tree_map(_torch.varying, x) if i in self.batches else x for i, x in enumerate(args))
        try:
            number, out = compiled(*args, **kwargs)
        except _torch.TorchDynamoException as error:
            self._explain(error, args, kwargs)
            raise
        if number not in self.graphs:
            self.graphs[number] = written.rebuilder(out, leaves)
        if self.settings["mode"] == "reduce-overhead":
            # results that are not donated lie in the graph's own memory, which the next replay overwrites
            kept = set(map(id, leaves))
            out = _torch.tree_map(lambda x: x.clone() if isinstance(x, torch.Tensor) and id(x) not in kept else x, out)
        if not leaves:
            return out
        if self.settings["unsafe_keep_donated"]:
            if not mine:
                self.hands.keep(leaves, variant)
            return out
        news, fresh = self.hands.over(leaves, variant, mine)
        if fresh and self.settings["mode"] == "reduce-overhead":
            _torch.mark_static(news)
        return self.graphs[number](out, news)

    def _take(self, args: tuple, kwargs: dict) -> tuple:
        """The arguments with donated leaves that nobody else sees, checked."""
        named = self._named(args, kwargs)
        donate.check_leaves(named)
        names = list(named)
        own = donate.owned({names[i]: args[i] for i in self.donated})
        args = tuple(own[names[i]] if i in self.donated else arg for i, arg in enumerate(args))
        if self.settings["mode"] == "reduce-overhead":
            _torch.mark_static(_torch.tree_leaves([args[i] for i in self.donated]))
        return args

    def _compile(self, variant: _Variant, args: tuple, kwargs: dict) -> Callable:
        next_number = torch.compiler.assume_constant_result(lambda: next(self.numbers))
        traced = self._traced

        def body(*args: Any, **kwargs: Any) -> tuple:
            out = traced(args, kwargs)
            return next_number(), out

        # a code object and name of its own: torch keeps graphs, the count of recompilations and what it learned
        # about changing sizes by code object or name, and would mix up every function compiled here
        body.__code__ = body.__code__.replace(co_name=f"{_name(self.function)}_{next(_serial)}")
        mode, backend = self.settings["mode"], self.settings["backend"]
        options = dict(self.settings["options"] or {})
        on_cpu = all(isinstance(x, torch.Tensor) and x.device.type == "cpu" for x in _torch.tree_leaves((args, kwargs)))
        if backend == "inductor":
            defaults: dict[str, Any] = {}
            if on_cpu:
                from fnn.compile import cpu_matmul as products  # only here, as it imports the compiler

                route = products.Products(products.onednn_is_faster())
                defaults = {"layout_optimization": False, "post_grad_custom_pre_pass": route}
            options = defaults | _torch.mode_options(mode or "default") | options
        known = [*(f"args[{i}]" for i in self.donated), "traced.__self__.static", "traced.__self__.donated"]
        guards = Guards({"traced": traced, "next_number": next_number, "G": globals()}, known)
        skip_all = self.settings["unsafe_skip_guards"]
        options["guard_filter_fn"] = torch.compiler.skip_all_guards_unsafe if skip_all else guards.choose
        compiled = torch.compile(body, fullgraph=True, backend=backend, options=options)
        variant.compiled.append((guards, compiled))
        return compiled

    def _traced(self, args: tuple, kwargs: dict) -> Tree:
        for leaf in donate.leaves((args, kwargs)):
            if not isinstance(leaf, torch.Tensor) or leaf.is_meta:
                raise ValueError("an argument is no living tensor")  # _explain says which
        out = self.function(*self._merge(args), **kwargs)
        return donate.write([args[i] for i in self.donated], out) if self.donated else out

    def _merge(self, args: tuple) -> tuple:
        rest = iter(args)
        total = len(args) + len(self.static)
        return tuple([self.static[i] if i in self.static else next(rest) for i in range(total)])

    def _named(self, args: tuple, kwargs: dict) -> dict[str, Tree]:
        names = [name for i, name in enumerate(_parameters(self.function)) if i not in self.static]
        names = [names[i] if i < len(names) else f"argument {i}" for i in range(len(args))]
        return dict(zip(names, args, strict=True)) | kwargs

    def _explain(self, error: Exception, args: tuple, kwargs: dict) -> None:
        """Raise what went wrong during tracing as the function itself would, or as a sentence."""
        named = self._named(args, kwargs)
        donate.check_leaves(named)
        out = self.function(*self._merge(args), **kwargs)
        donate.check_results({name: args[i] for i, name in enumerate(named) if i in self.donated}, out)
        place = _user_line(error)
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raised = [line.split("raised exception ", 1)[1] for line in lines if "raised exception " in line]
        reason = (raised or lines)[0]  # what the function itself raises only where it is traced
        raise TypeError(
            f"fnn.jit needs {_name(self.function)} to be one graph, and it is not{place}: {reason}. Python control "
            "flow on a tensor's value becomes torch.where; printing, .item() and other effects go outside"
        ) from error


def _user_line(error: Exception) -> str:
    stack = getattr(error, "real_stack", None) or []
    frames = [f for f in stack if "/torch/" not in f.filename and "/fnn/compile/" not in f.filename]
    if not frames:
        return ""
    frame = frames[-1]
    line = frame.line or linecache.getline(frame.filename, frame.lineno or 0).strip()
    return f" at {frame.filename}:{frame.lineno}: `{line}`"


def _split(function: Callable, args: tuple, static: tuple[int, ...]) -> tuple[tuple, tuple]:
    values = tuple(args[i] for i in static if i < len(args))
    for i, value in zip(static, values, strict=False):
        try:
            hash(value)
        except TypeError:
            raise TypeError(
                f"argument {i} of {_name(function)} is static and must be hashable, got a {type(value).__name__}; "
                "pass a tuple in place of a list"
            ) from None
        if isinstance(value, torch.Tensor):
            raise TypeError(f"argument {i} of {_name(function)} is static and must be a Python value, got a tensor")
    return tuple(arg for i, arg in enumerate(args) if i not in static), values


def _numbers(argnums: int | Sequence[int]) -> tuple[int, ...]:
    numbers = (argnums,) if isinstance(argnums, int) else tuple(argnums)
    if any(not isinstance(n, int) or n < 0 for n in numbers) or len(set(numbers)) < len(numbers):
        raise ValueError(f"argnums are different positions 0, 1, ..., got {argnums!r}")
    return tuple(sorted(numbers))


def _parameters(function: Callable) -> list[str]:
    try:
        return list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return []


def _name(function: Callable) -> str:
    return getattr(function, "__name__", type(function).__name__)
