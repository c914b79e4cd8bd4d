"""How the calls that a module makes become pure: draws come from a key, and nobody else's memory is written.

While a module runs, :class:`ModuleCalls` sees every function of torch that it calls. The functions that draw random
numbers, those whose derivatives torch lacks or has wrong, and those that write into buffers have rules of their own.
The others run as they are.
"""

import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fnn import _torch, random
from fnn.compile.trace import stack, user_line

Rule = Callable[["ModuleCalls", Callable, tuple, dict], Any]
RULES: dict[Any, Rule] = {}
"""What is done in place of a function of torch: ``rule(calls, function, args, kwargs)``."""

_DRAWS_AT_ONCE = 64  # keys are split in blocks, because a split costs the same for one key as for many


class CopyNeededError(Exception):
    """The module writes into a tensor that the caller holds. ``kind`` is "state" or "inputs"."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


def rule(*functions: Callable | None) -> Callable[[Rule], Rule]:
    """Register the decorated function as the rule of these functions; None stands for one that this torch lacks."""

    def register(made: Rule) -> Rule:
        RULES.update(dict.fromkeys([function for function in functions if function is not None], made))
        return made

    return register


class _Active(threading.local):
    calls: "ModuleCalls | None" = None


_active = _Active()


def key_of_module() -> Tensor | None:
    """The key with which a layer draws inside a module: that of the pass, or one from torch's global generator."""
    if _active.calls is not None:
        return None if _active.calls.key is None else _active.calls.draw()
    return torch.randint(-(1 << 31), 1 << 31, (2,)).to(torch.int32)


class ModuleCalls(TorchFunctionMode):
    """Sees the functions of torch that a module calls in one forward pass.

    ``given`` are the caller's tensors by kind: "params", "state" and "inputs". ``key`` is the key of this pass, or None
    if nothing may be drawn.
    """

    def __init__(self, name: str, given: dict[str, Iterable[Tensor]], key: Tensor | None) -> None:
        super().__init__()
        self.name = name
        self.given = given
        self.key = key
        self.keys: Any = ()
        self.draws = 0
        self._owners: dict[int, str] | None = None
        self.values: dict[int, tuple[Tensor, Tensor]] = {}  # by the id of a tensor: the tensor, its present value

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return self.handle(func, args, kwargs or {})

    def handle(self, func: Any, args: tuple, kwargs: dict) -> Any:
        """The result of a call, by the rule of the function if it has one."""
        if self.values:
            args, kwargs = self.present(args), self.present(kwargs)
        replacement = RULES.get(func)
        if replacement is not None:
            return replacement(self, func, args, kwargs)
        if _torch.is_random(func) or kwargs.get("generator") is not None:
            self.refuse(func)
        for tensor in _written(func, args, kwargs):
            if self.must_be_kept_beside(tensor, (args, kwargs)):
                return self.set(tensor, _out_of_place(func)(*args, **kwargs))
            if (owner := self.owner(tensor)) is not None:
                self.copy(owner, func)
        return func(*args, **kwargs)

    @contextmanager
    def running(self) -> Iterator[None]:
        """The context in which the module is called."""
        before, _active.calls = _active.calls, self
        try:
            with _torch.compiling(), self:
                yield
        finally:
            _active.calls = before

    # Random numbers

    def draw(self) -> Tensor:
        """The key of the next draw. Raises ``TypeError`` if the pass has no key."""
        if self.key is None:
            raise TypeError(
                f"{self.name} draws random numbers{user_line(stack(sys._getframe(1)))}; give apply a key, as in "
                "apply(params, x, key=key)"
            )
        place = self.draws % _DRAWS_AT_ONCE
        if place == 0:
            block = self.draws // _DRAWS_AT_ONCE
            key = random.fold_in(self.key, block) if block else self.key
            self.keys = random.split(key, _DRAWS_AT_ONCE).unbind()
        self.draws += 1
        return self.keys[place]

    def refuse(self, func: Any) -> NoReturn:
        """Raise ``TypeError`` for a function whose draws cannot be made from a key."""
        raise TypeError(
            f"{self.name} calls {_name(func)}, which draws from a generator of torch and not from a key; write the "
            "draw with torch.rand, torch.randn, torch.bernoulli or dropout, or hand the drawn numbers in as an input"
        )

    # Memory

    def owner(self, tensor: Tensor) -> str | None:
        """Whose memory the tensor is: "params", "state" or "inputs" of the caller, or None for the module's own."""
        if self._owners is None:
            self._owners = {}
            for kind, tensors in self.given.items():
                for each in tensors:
                    self._owners[_torch.storage_id(_torch.without_wrappers(each))] = kind
        return self._owners.get(_torch.storage_id(_torch.without_wrappers(tensor)))

    def copy(self, owner: str, func: Any) -> NoReturn:
        """Stop the pass, because it would write into the caller's memory."""
        if owner == "params":
            raise TypeError(
                f"{self.name} changes one of its parameters in place, by {_name(func)}, so it is not a function of its "
                "params; keep what changes in a buffer, or write the operation without the underscore"
            )
        raise CopyNeededError(owner)

    def write(self, tensor: Tensor, value: Tensor) -> Tensor:
        """Write a value into a tensor of the module, and return the tensor."""
        if self.must_be_kept_beside(tensor, value):
            return self.set(tensor, value)
        if (owner := self.owner(tensor)) is not None:
            self.copy(owner, Tensor.copy_)
        return tensor.copy_(value)

    def set(self, tensor: Tensor, value: Tensor) -> Tensor:
        """Give a tensor another value from here on."""
        tensor = next((original for original, present in self.values.values() if present is tensor), tensor)
        self.values[id(tensor)] = tensor, value.to(tensor.dtype).expand(tensor.shape)
        return tensor

    def must_be_kept_beside(self, tensor: Tensor, values: Any) -> bool:
        """Whether what is computed from ``values`` cannot be written into a tensor, and is kept beside it instead.

        It cannot where the values belong to a transform and the tensor does not: under vmap, the tensor is the same
        for all samples. A tensor whose memory another one shares is not kept beside, since that one would not change.
        """
        if any(present is tensor for _, present in self.values.values()):
            return True
        leaves = [leaf for leaf in _torch.tree_leaves(values) if isinstance(leaf, Tensor)]
        if all(_torch.levels_of(leaf) <= _torch.levels_of(tensor) for leaf in leaves):
            return False
        owner = self.owner(tensor)
        return owner == "state" or (owner is None and _users(tensor) == _users(torch.empty(0)))

    def present(self, value: Any) -> Any:
        """Replace the tensors that were given another value, also inside lists, tuples and dicts."""
        if isinstance(value, Tensor):
            return self.values[id(value)][1] if id(value) in self.values else value
        if type(value) in (tuple, list):
            return type(value)(map(self.present, value))
        if type(value) is dict:
            return {name: self.present(each) for name, each in value.items()}
        return value


def _users(tensor: Tensor) -> int:
    """How many tensors share this one's memory; while a graph is recorded, the recorder's are among them."""
    return _torch.storage_users(_torch.without_wrappers(tensor))


# Functions that write into one of their arguments

_OPERATORS = frozenset(
    f"__i{name}__"
    for name in (
        "add",
        "sub",
        "mul",
        "truediv",
        "floordiv",
        "mod",
        "pow",
        "and",
        "or",
        "xor",
        "lshift",
        "rshift",
        "matmul",
    )
)


def _written(func: Any, args: tuple, kwargs: dict) -> list[Tensor]:
    """The tensors that a function writes into."""
    name = getattr(func, "__name__", "")
    out = kwargs.get("out")
    written = [] if out is None else [out] if isinstance(out, Tensor) else list(out)
    in_place = name in _OPERATORS or name in ("__setitem__", "__set__") if name[:2] == "__" else name[-1:] == "_"
    if (in_place or kwargs.get("inplace")) and (args or kwargs):
        first = args[0] if args else next(iter(kwargs.values()))
        written += [first] if isinstance(first, Tensor) else list(first) if isinstance(first, (list, tuple)) else []
    return [tensor for tensor in written if isinstance(tensor, Tensor)]


def _out_of_place(func: Any) -> Callable[..., Tensor]:
    """The function that returns what an in-place function would write."""
    name = func.__name__
    plain = f"__{name[3:]}" if name in _OPERATORS else name.rstrip("_")
    function = _SETTING.get(name) or getattr(Tensor, plain, None)
    if function is None:
        raise TypeError(
            f"a module writes into a tensor by {_name(func)}, which has no form that returns the new value, so no "
            "transform can be applied to it; write the operation with torch.where, or call apply without the transform"
        )
    return function


_SETTING: dict[str, Callable[..., Tensor]] = {
    "copy_": lambda tensor, source, *rest: source,
    "fill_": lambda tensor, value: value if isinstance(value, Tensor) else torch.full_like(tensor, value),
    "zero_": torch.zeros_like,
}


def _name(func: Any) -> str:
    name = getattr(func, "__name__", str(func))
    return f"torch.Tensor.{name}" if getattr(torch.Tensor, name, None) is func else f"torch.{name}"
