"""What a jitted function refers to besides its arguments: a change of it is another graph, and nothing else is."""

import dataclasses
import decimal
import enum
import fractions
import functools
import math
import types

import numpy
import pytest
import torch

import fnn

X = torch.tensor([1.0, -2.0, 3.0])


def numbers():
    return {
        "int": (2, 3),
        "float": (2.0, 3.0),
        "bool": (True, False),
        "negative zero": (0.0, -0.0),
        "nan": (1.0, math.nan),
    }


class Kind(enum.Enum):
    DOUBLE = 2
    TRIPLE = 3


@dataclasses.dataclass
class Config:
    factor: float = 2.0


class Slotted:
    __slots__ = ("factor",)

    def __init__(self, factor):
        self.factor = factor


class Caller:
    offset = 0.0

    def __init__(self, factor):
        self.factor = factor

    def helper(self, x):
        return x * self.factor + self.offset

    def __call__(self, x):
        return self.helper(x)

    def method(self, x):
        return self.helper(x) - 1


factor = 2.0
options = {"factor": 2.0}
factors = [2.0]
module = types.ModuleType("settings_of_a_user")
module.factor = 2.0
config = Config()


def scaled(x):
    return x * factor


def with_keyword(x, *, factor=2.0):
    return x * factor


partial_of_keyword = functools.partial(lambda x, *, factor: x * factor, factor=2.0)


def with_default(x, factor=2.0):
    return x * factor


def decorated(function):
    @functools.wraps(function)
    def wrapper(*args):
        return function(*args) * factor

    return wrapper


def set_global(name, value):
    globals()[name] = value


CHANGES = {
    "global": (lambda x: x * factor, lambda v: set_global("factor", v)),
    "global of a function that it calls": (lambda x: scaled(x), lambda v: set_global("factor", v)),
    "global of a lambda inside": (lambda x: (lambda y: y * factor)(x), lambda v: set_global("factor", v)),
    "dict": (lambda x: x * options["factor"], lambda v: options.update(factor=v)),
    "list": (lambda x: x * factors[0], lambda v: factors.__setitem__(0, v)),
    "attribute of a module": (lambda x: x * module.factor, lambda v: setattr(module, "factor", v)),
    "attribute of an object": (lambda x: x * config.factor, lambda v: setattr(config, "factor", v)),
    "default": (with_default, lambda v: setattr(with_default, "__defaults__", (v,))),
    "default of a keyword": (with_keyword, lambda v: setattr(with_keyword, "__kwdefaults__", {"factor": v})),
    "keyword of a partial": (partial_of_keyword, lambda v: partial_of_keyword.keywords.update(factor=v)),
    "wrapper of a function of torch": (decorated(torch.sin), lambda v: set_global("factor", v)),
    "wrapper of a layer of fnn": (decorated(fnn.layers.relu), lambda v: set_global("factor", v)),
    "partial": (functools.partial(lambda f, x: x * f["factor"], options), lambda v: options.update(factor=v)),
    "inside vmap": (torch.func.vmap(lambda x: x * factor), lambda v: set_global("factor", v)),
    "inside grad": (fnn.grad(lambda x: (x * x * factor).sum()), lambda v: set_global("factor", v)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_value_is_seen(name):
    function, change = CHANGES[name]
    jitted = fnn.jit(function)
    change(2.0)
    seen = []
    for value in (2.0, 3.0, 2.0, 3, True, 1, 1.0, -0.0, 0.0, 2.0):
        change(value)
        assert torch.equal(jitted(X), function(X)), value
        assert torch.equal(torch.signbit(jitted(X)), torch.signbit(function(X))), value
        seen.append(value)
    change(2.0)
    assert fnn.compile_count(jitted) == 8  # 2.0, 3.0, 3, True, 1, 1.0, -0.0, 0.0


@pytest.mark.parametrize("kind", ["instance", "method", "lambda", "class attribute", "slots"])
def test_attributes_of_objects_are_seen(kind, monkeypatch):
    caller = Caller(2.0)
    function = {
        "instance": caller,
        "method": caller.method,
        "lambda": lambda x: caller.helper(x),
        "class attribute": caller,
        "slots": (lambda s: lambda x: x * s.factor)(slotted := Slotted(2.0)),
    }[kind]
    jitted = fnn.jit(function)
    for value in (2.0, 5.0, 2.0):
        if kind == "class attribute":
            monkeypatch.setattr(Caller, "offset", value)
        else:
            (slotted if kind == "slots" else caller).factor = value
        assert torch.equal(jitted(X), function(X))
    assert fnn.compile_count(jitted) == 2


@pytest.mark.parametrize("header", [{}, {"__name__": "__main__"}, {"__name__": "not.importable"}])
def test_globals_of_code_without_a_module_are_seen(header):
    scope = dict(header)
    exec("rate = 2.0\ndef inner(x):\n    return x * rate\ndef outer(x):\n    return inner(x) + 1", scope)
    jitted = fnn.jit(scope["outer"])
    for rate in (2.0, 3.0, 2.0):
        scope["rate"] = rate
        assert torch.equal(jitted(X), X * rate + 1)
    exec("def inner(x):\n    return x - rate", scope)
    assert torch.equal(jitted(X), X - 2.0 + 1)
    assert fnn.compile_count(jitted) == 3


@torch.no_grad()
def test_modules_of_torch_are_seen_wherever_they_are():
    drop, norm = torch.nn.Dropout(0.5), torch.nn.BatchNorm1d(2)
    layers = fnn.layers.sequential(fnn.layers.relu, lambda x: norm(drop(x)))
    jitted = fnn.jit(lambda x: layers.apply({}, x))
    x = torch.rand(4, 2)
    for part, training in ((drop, False), (norm, False), (drop, True), (drop, False), (norm, True), (norm, False)):
        part.train(training)
        torch.manual_seed(0)
        expected = layers.apply({}, x)
        torch.manual_seed(0)
        assert torch.equal(jitted(x), expected)
    drop.train()
    before = torch.random.get_rng_state()
    for p in (0.1, 0.9):
        drop.p = p
        torch.random.set_rng_state(before)
        expected = layers.apply({}, x)
        torch.random.set_rng_state(before)
        assert torch.equal(jitted(x), expected)
    weight = norm.weight
    with torch.no_grad():
        weight.mul_(3)
    drop.eval()
    assert torch.equal(jitted(x), layers.apply({}, x))
    norm.weight = torch.nn.Parameter(torch.full((2,), 7.0))
    assert torch.equal(jitted(x), layers.apply({}, x))


def test_tensors_closed_over_are_read_anew_and_held_by_reference():
    w = torch.ones(3)
    holder = {"w": torch.ones(3)}
    jitted = fnn.jit(lambda x: x * w + holder["w"])
    assert torch.equal(jitted(X), X + 1)
    w.mul_(2)
    holder["w"].add_(4)
    assert torch.equal(jitted(X), X * 2 + 5)
    w.data = torch.full((3,), 10.0)
    assert torch.equal(jitted(X), X * 10 + 5)
    assert fnn.compile_count(jitted) == 1
    w.data = torch.full((1,), 2.0)  # of another shape
    assert torch.equal(jitted(X), X * 2 + 5)
    w = torch.zeros(3)
    holder["w"] = torch.zeros(3)
    assert torch.equal(jitted(X), X * 0)
    w = torch.zeros(3, dtype=torch.float64)
    assert jitted(X).dtype == torch.float64


def test_a_name_bound_to_new_tensors_keeps_none_of_the_old_ones_alive():
    import gc
    import weakref

    w = torch.ones(3)
    jitted = fnn.jit(lambda x: x * w)
    references = []
    for i in range(5):
        w = torch.full((3,), float(i))
        references.append(weakref.ref(w))
        assert torch.equal(jitted(X), X * i)
    gc.collect()
    assert sum(reference() is not None for reference in references) <= 2


def test_a_thousand_variants_of_one_function():
    jitted = fnn.jit(lambda x, name: x + len(name), static_argnums=1)
    x = torch.zeros(())
    for _ in range(2):
        assert [jitted(x, f"{i:04}" * (i % 3)).item() for i in range(1000)] == [4.0 * (i % 3) for i in range(1000)]
    assert fnn.compile_count(jitted) == 667  # the empty name is one of them


@pytest.mark.parametrize("kind", ["ranks", "lengths", "names", "values"])
def test_many_kinds_of_one_function(kind):
    values = {
        "ranks": [torch.ones((1,) * i) for i in range(20)],
        "lengths": [[torch.ones(())] * i for i in range(20)],
        "names": [{f"w{i}": torch.ones(())} for i in range(20)],
        "values": [torch.ones(i) for i in range(20)],
    }[kind]
    jitted = fnn.jit(lambda t: [x * 2 for x in fnn.tree.leaves(t)])
    for value in values + values:
        assert all(torch.equal(a, b * 2) for a, b in zip(jitted(value), fnn.tree.leaves(value), strict=True))
    assert fnn.compile_count(jitted) == 20


def test_a_value_may_change_its_kind():
    activations = [torch.relu]
    jitted = fnn.jit(lambda x: activations[0](x) if activations else x)
    assert torch.equal(jitted(X), X.relu())
    for value in (None, [], [torch.sin], None, [torch.relu]):
        activations = value
        assert torch.equal(jitted(X), X if not value else value[0](X))


STATIC = [2, 2.0, True, 1, 1.0, False, 0, 0.0, -0.0, "2", None, (1, 2.0), (1, 2), (1.0, 2), Kind.DOUBLE, Kind.TRIPLE]
STATIC += [numpy.int64(2), numpy.int32(2), numpy.float32(2), fractions.Fraction(2), decimal.Decimal(2), 2 + 0j]


def test_static_arguments_count_with_their_types():
    log = types.SimpleNamespace(seen=[])  # what lies deeper than one level is not watched

    def note(x, value):
        log.seen.append(value)
        return x

    jitted = fnn.jit(note, static_argnums=1)
    for value in STATIC + STATIC:
        jitted(X, value)
    assert list(map(repr, log.seen)) == list(map(repr, STATIC))
    jitted(X, math.nan)
    jitted(X, float("nan"))
    assert len(log.seen) == len(STATIC) + 1


def test_a_static_object_that_changes_is_another_argument():
    caller = Caller(2.0)
    jitted = fnn.jit(lambda x, caller: caller(x), static_argnums=1)
    for value in (2.0, 3.0, 2.0):
        caller.factor = value
        assert torch.equal(jitted(X, caller), X * value)
    assert fnn.compile_count(jitted) == 2


def test_settings_of_torch_are_part_of_the_key():
    jitted = fnn.jit(lambda x: x + torch.zeros(3, dtype=torch.get_default_dtype()))
    assert jitted(X).dtype == torch.float32
    try:
        torch.set_default_dtype(torch.float64)
        assert jitted(X).dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    product = fnn.jit(lambda a: a @ a)
    a = torch.rand(8, 8)
    for enabled in (False, True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            assert product(a).dtype == (torch.bfloat16 if enabled else torch.float32)
            assert torch.equal(product(a), a @ a)


SETTINGS = {
    "default dtype": (torch.get_default_dtype, torch.set_default_dtype, (torch.float32, torch.float64)),
    "deterministic": (
        torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms, (False, True)
    ),
    "autocast": (
        lambda: torch.is_autocast_enabled("cpu"), lambda on: torch.set_autocast_enabled("cpu", on), (False, True)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_each_setting_has_a_graph_of_its_own(name):
    get, put, values = SETTINGS[name]
    jitted = fnn.jit(lambda x: x + values.index(get()))
    try:
        for value in (*values, *values):
            put(value)
            assert float(jitted(torch.tensor(0.0))) == values.index(value)
            assert "has been traced for this call" in jitted.explain(torch.tensor(0.0))
    finally:
        put(values[0])
    assert fnn.compile_count(jitted) == 2


def test_explain_says_why_a_call_is_traced_again():
    scale = 2.0
    jitted = fnn.jit(lambda params, x: params["w"] * x * scale)
    params = {"w": torch.ones(3)}
    assert jitted.explain(params, X) == "<lambda> has not been traced yet"
    jitted(params, X)
    assert jitted.explain(params, X) == "<lambda> has been traced for this call"
    text = jitted.explain({"w": torch.ones(3, dtype=torch.float64)}, X)
    assert text == "<lambda> is traced again: params['w'] has dtype torch.float64, was torch.float32"
    assert "params['w'] has shape torch.Size([1])" in jitted.explain({"w": torch.ones(1)}, X)
    assert "its arguments are" in jitted.explain({"v": torch.ones(3)}, X)
    scale = 3.0
    assert jitted.explain(params, X) == "<lambda> is traced again: `scale` of <lambda> is 3.0, was 2.0"
    assert fnn.compile_count(jitted) == 1


ONE_LEVEL = {  # a container that holds a number, and how the number is read and changed
    "list": (lambda value: [value], lambda held: held[0], lambda held, value: held.__setitem__(0, value)),
    "dict": (lambda value: {"a": value}, lambda held: held["a"], lambda held, value: held.__setitem__("a", value)),
    "object": (
        lambda value: types.SimpleNamespace(a=value), lambda held: held.a, lambda held, value: setattr(held, "a", value)
    ),
}  # fmt: skip


@pytest.mark.parametrize("inner", ONE_LEVEL)
@pytest.mark.parametrize("outer", ONE_LEVEL)
def test_items_are_watched_one_level_deep(outer: str, inner: str) -> None:
    """What a container holds is part of the key; the containers in it are told apart by identity alone."""
    (make, read, write), (make_inner, read_inner, write_inner) = ONE_LEVEL[outer], ONE_LEVEL[inner]
    for held, of, to in ((make(2.0), read, write), (make_inner(2.0), read_inner, write_inner)):
        f = fnn.jit(lambda x, held=held, of=of: x * of(held))
        assert torch.equal(f(X), 2 * X)
        to(held, 3.0)
        assert torch.equal(f(X), 3 * X)
    held = make(make_inner(2.0))
    f = fnn.jit(lambda x: x * read_inner(read(held)))
    assert torch.equal(f(X), 2 * X)
    write_inner(read(held), 3.0)
    assert torch.equal(f(X), 2 * X)  # deeper: a constant of the trace, as the docs say
    write(held, make_inner(3.0))
    assert torch.equal(f(X), 3 * X)


class Scale:
    def __init__(self, number):
        self.number = number

    def __call__(self, x):
        return x * self.number


@pytest.mark.parametrize(
    "make",
    [
        Scale,
        lambda number: functools.partial(torch.mul, number),
        lambda number: lambda x: x * number,
        lambda number: types.MethodType(Scale.__call__, Scale(number)),
    ],
    ids=["object", "partial", "closure", "method"],
)
def test_an_object_at_the_address_of_one_that_is_gone_is_another(make):
    holder = types.SimpleNamespace(scaled=None)
    f = fnn.jit(lambda x: holder.scaled(x))
    for number in range(1, 21):
        holder.scaled = None  # frees the last one, whose address the next one often takes
        holder.scaled = make(float(number))
        assert torch.equal(f(X), number * X)
