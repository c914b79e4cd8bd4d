"""fnn.jit: one graph, donation that is exact, errors that are sentences."""

import functools
from collections import OrderedDict, namedtuple

import pytest
import torch

import fnn

Pair = namedtuple("Pair", "a b")


jit = fnn.jit


def tree(*values):
    return {chr(97 + i): torch.tensor([float(v), 10.0 * v]) for i, v in enumerate(values)}


def copied(*trees):
    return [fnn.tree.map(torch.clone, t) for t in trees]


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(fnn.tree.leaves(first), fnn.tree.leaves(second), strict=True))


HAZARDS = {
    "update": lambda p, x: fnn.tree.map(lambda a: a + x, p),
    "swap": lambda p, x: {"a": p["b"], "b": p["a"]},
    "rotate and use": lambda p, x: {"a": p["b"] + p["a"], "b": p["a"] * x},
    "shared result": lambda p, x: (lambda s: {"a": s, "b": s})(p["a"] + x),
    "unchanged": lambda p, x: {"a": p["a"], "b": p["b"] + x},
    "old among results": lambda p, x: (fnn.tree.map(lambda a: a * x, p), p),
    "old view among results": lambda p, x: (fnn.tree.map(lambda a: a * x, p), p["a"][1:], x),
    "flipped view": lambda p, x: {"a": p["b"].flip(0), "b": p["a"].flip(0)},
    "value first": lambda p, x: (x * 2, fnn.tree.map(lambda a: a * x, p)),
    "other order of keys": lambda p, x: {"b": p["b"] * x, "a": p["a"] - x},
    "other containers": lambda p, x: [p["a"] + x, {"z": p["b"] - x}],
    "named tuple": lambda p, x: Pair(p["a"] + x, p["b"]),
}


@pytest.mark.parametrize("name", HAZARDS)
def test_donation_gives_the_pure_result(name):
    function = HAZARDS[name]
    x = torch.tensor(3.0)
    for _ in range(2):
        (given,) = copied(tree(1, 2))
        pointers = {leaf.data_ptr() for leaf in given.values()}
        expected = function(tree(1, 2), x)
        out = fnn.jit(function, donate_argnums=0)(given, x)
        assert fnn.tree.structure(out) == fnn.tree.structure(expected)
        assert same(out, expected)
        assert pointers <= {leaf.data_ptr() for leaf in fnn.tree.leaves(out)}  # memory was taken over
        assert all(leaf.is_meta for leaf in given.values())


def adam_problem():
    model = fnn.models.mlp(4, 5, 3)
    params = model.init(fnn.random.key(0))
    optimizer = fnn.optim.adam(1e-2)
    batch = fnn.random.normal(fnn.random.key(1), (6, 4)), fnn.random.randint(fnn.random.key(2), (6,), 0, 3)

    def loss(params, batch):
        return fnn.losses.cross_entropy(model.apply(params, batch[0]), batch[1])

    def step(params, opt_state, batch):
        value, grads = fnn.value_and_grad(loss)(params, batch)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return fnn.optim.apply_updates(params, updates), opt_state, value

    return step, params, optimizer.init(params), batch


def test_loop_with_short_batch_and_changed_rate():
    step, params, state, batch = adam_problem()
    pure, donated = jit(step), jit(step, donate_argnums=(0, 1))
    p, s = copied(params, state)
    for i in range(6):
        part = fnn.tree.map(lambda x, i=i: x[: 6 - i % 3], batch)
        p, s, value = donated(p, s, part)
        params, state, expected = pure(params, state, part)
        assert torch.equal(value, expected)
        if i == 2:
            s, state = (fnn.optim.set_hyperparams(x, learning_rate=0.5) for x in (s, state))
    assert same((p, s), (params, state))
    assert fnn.compile_count(donated) == 3  # one for each size of the batch; another rate is the same graph


def test_undonated_arguments_are_left_alone():
    p = tree(1, 2)
    out = jit(HAZARDS["update"])(p, torch.tensor(1.0))
    assert same(p, tree(1, 2))
    assert same(out, {"a": torch.tensor([2.0, 11.0]), "b": torch.tensor([3.0, 21.0])})


def test_using_a_donated_tree_is_an_error():
    step = jit(HAZARDS["update"], donate_argnums=0)
    old = tree(1, 2)
    new = step(old, torch.tensor(1.0))
    with pytest.raises(ValueError, match=r"p\['a'\] holds no data: it was donated"):
        step(old, torch.tensor(1.0))
    with pytest.raises(ValueError, match=r"p\['a'\] holds no data"):
        jit(lambda p: fnn.tree.scale(2.0, p))(old)
    with pytest.raises((RuntimeError, NotImplementedError)):
        old["a"].tolist()
    with pytest.raises((RuntimeError, NotImplementedError)):
        float(old["a"].sum())
    assert new["a"].tolist() == [2.0, 11.0]  # the failed calls changed nothing
    assert step(new, torch.tensor(1.0))["a"].tolist() == [3.0, 12.0]


def test_memory_that_others_see_is_copied_first():
    step = jit(HAZARDS["update"], donate_argnums=0)
    base = torch.arange(4.0)
    given = {"a": base[:2], "b": base[1:3]}  # two overlapping views
    out = step(given, torch.tensor(1.0))
    assert out["a"].tolist() == [1.0, 2.0]
    assert out["b"].tolist() == [2.0, 3.0]
    assert base.tolist() == [0.0, 1.0, 2.0, 3.0]
    assert given["a"].is_meta
    detached = torch.ones(2)
    out = step({"a": detached.detach(), "b": torch.zeros(2)}, torch.tensor(1.0))
    assert detached.tolist() == [1.0, 1.0]
    assert out["a"].tolist() == [2.0, 2.0]


UPDATES = {
    "add": lambda w, g: w + g,
    "mul": lambda w, g: w * g,
    "lerp": lambda w, g: torch.lerp(w, g, 0.3),
    "addcmul": lambda w, g: torch.addcmul(w, g, g),
    "exp": lambda w, g: w.exp(),
    "index_add": lambda w, g: w.index_add(0, torch.tensor([0, 1]), g),
    "foreach": lambda w, g: torch._foreach_add([w], [g])[0],
    "optimizer": lambda w, g: fnn.optim.apply_updates([w], [g])[0],
}
READERS = {
    "difference": lambda new, old: new - old,
    "reversed": lambda new, old: old - new,
    "view": lambda new, old: new.view(-1) - old.view(-1),
    "later": lambda new, old: new.sin().sum() + old.cos(),
    "twice": lambda new, old: (old * new, old + new),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", UPDATES)
def test_an_old_value_that_is_read_after_the_new_one(name, reader):
    def step(w, g):
        new = UPDATES[name](w, g)
        return new, READERS[reader](new, w)

    w, g = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 5.0])
    expected = step(w, g)
    found = fnn.jit(step, donate_argnums=0)(w.clone(), g)
    assert all(torch.equal(a, b) for a, b in zip(fnn.tree.leaves(found), fnn.tree.leaves(expected), strict=True))


def test_one_tensor_in_two_donated_places_is_refused():
    one = torch.ones(2)
    with pytest.raises(ValueError, match=r"p\['a'\] and p\['b'\] are the same tensor"):
        jit(HAZARDS["update"], donate_argnums=0)({"a": one, "b": one}, torch.tensor(1.0))
    assert one.tolist() == [1.0, 1.0]


def test_a_donated_tree_may_be_an_undonated_argument_too():
    def step(p, target):
        return fnn.tree.map(lambda a, b: a + 2 * b, p, target)

    f = jit(step, donate_argnums=0)
    p = f(tree(1, 2), tree(1, 2))
    assert f(p, p)["a"].tolist() == [9.0, 90.0]


@pytest.mark.parametrize("change", [lambda a: a.double(), lambda a: a[:1], lambda a: a.sum()])
def test_changed_dtype_or_shape_is_refused(change):
    given = tree(1, 2)
    with pytest.raises(ValueError, match=r"p\['b'\] is donated, but no result is left with its shape \(2,\)"):
        jit(lambda p: {"a": p["a"], "b": change(p["b"])}, donate_argnums=0)(given)
    assert same(given, tree(1, 2))


OTHER_TREES = {
    "shape": lambda: {"a": torch.ones(3), "b": torch.ones(3)},
    "dtype": lambda: {"a": torch.ones(2, dtype=torch.float64), "b": torch.ones(2)},
    "strides": lambda: {"a": torch.ones(2, 3).T.contiguous().T, "b": torch.ones(3, 2).T},
    "order of keys": lambda: {"b": torch.ones(2), "a": torch.zeros(2)},
    "nested": lambda: {"a": {"c": torch.ones(2)}, "b": [torch.zeros(2), torch.ones(1)]},
    "parameter": lambda: {"a": torch.nn.Parameter(torch.ones(2)), "b": torch.ones(2, requires_grad=True)},
    "named tuple": lambda: Pair(torch.ones(2), torch.zeros(2)),
    "ordered dict": lambda: OrderedDict(a=torch.ones(2), b=torch.zeros(2)),
    "one leaf": lambda: torch.ones(2),
    "empty": lambda: {},
}


@pytest.mark.parametrize("name", OTHER_TREES)
def test_donated_trees_of_two_kinds_take_turns(name):
    """Guards of donated leaves are left out while they are the last call's results: nothing else may slip through."""

    def function(p, x):
        return fnn.tree.map(lambda a: a * x + a.shape[0], p)

    step = fnn.jit(function, donate_argnums=0)
    first, second = tree(1, 2), OTHER_TREES[name]()
    expected = [*copied(first), fnn.tree.map(lambda a: a.detach().clone(), second)]
    x = torch.tensor(2.0)
    for turn in (0, 0, 0, 1, 0, 1, 1, 1, 0, 0):
        expected[turn] = function(expected[turn], x)
        if turn == 0:
            first = step(first, x)
        else:
            second = step(second, x)
        assert fnn.tree.structure(first) == fnn.tree.structure(expected[0])
        assert fnn.tree.structure(second) == fnn.tree.structure(expected[1])
        assert same(first, expected[0])
        assert same(second, expected[1])


def test_old_trees_stay_empty_as_long_as_somebody_holds_them():
    step = jit(HAZARDS["update"], donate_argnums=0)
    held = [tree(1, 2)]
    for _ in range(5):
        held.append(step(held[-1], torch.tensor(1.0)))
    assert all(leaf.is_meta for old in held[:-1] for leaf in old.values())
    assert same(held[-1], {"a": torch.tensor([6.0, 15.0]), "b": torch.tensor([7.0, 25.0])})
    some = held[-1]["a"]
    last = step(held.pop(), torch.tensor(1.0))
    held.clear()
    for _ in range(3):
        last = step(last, torch.tensor(1.0))
    assert some.is_meta
    assert last["a"].tolist() == [10.0, 19.0]


def test_a_new_tensor_in_the_place_of_a_freed_result_is_no_result():
    step = jit(lambda w: w + 1, donate_argnums=0)
    out = step(torch.zeros(2))
    for _ in range(50):  # a freed object's id is soon taken by another
        out = step(out)
        del out
        base = torch.zeros(4)
        view = base[:2]
        out = step(view)
        assert base.tolist() == [0.0, 0.0, 0.0, 0.0]
        assert out.tolist() == [1.0, 1.0]


def test_several_states_take_turns():
    step = jit(HAZARDS["update"], donate_argnums=0)
    states, expected = [tree(i, -i) for i in range(4)], [tree(i, -i) for i in range(4)]
    x = torch.tensor(1.0)
    for turn in (0, 1, 2, 3, 0, 1, 2, 3, 3, 0, 2, 2, 1):
        states[turn], expected[turn] = step(states[turn], x), HAZARDS["update"](expected[turn], x)
        assert all(same(*pair) for pair in zip(states, expected, strict=True))
    mixed = step({"a": states[0]["a"], "b": states[1]["b"]}, x)  # of two states: each is this function's own
    assert same(mixed, HAZARDS["update"]({"a": expected[0]["a"], "b": expected[1]["b"]}, x))
    assert states[0]["a"].is_meta
    assert torch.equal(states[0]["b"], expected[0]["b"])
    with pytest.raises(ValueError, match=r"p\['a'\] holds no data"):
        step(states[0], x)
    states[2] = step(states[2], x)
    assert same(states[2], HAZARDS["update"](expected[2], x))


def test_emptied_tensors_are_refused_in_any_order():
    step = jit(HAZARDS["swap"], donate_argnums=0)
    first = step(tree(1, 2), torch.tensor(1.0))
    second = step(first, torch.tensor(1.0))
    for old in (first, {"a": first["b"], "b": first["a"]}):
        with pytest.raises(ValueError, match=r"p\['a'\] holds no data"):
            step(old, torch.tensor(1.0))
    assert same(second, tree(1, 2))


def test_results_donated_to_another_function_are_not_taken_for_living_ones():
    step = jit(HAZARDS["update"], donate_argnums=0)
    other = jit(lambda a: a * 2, donate_argnums=0)
    x = torch.tensor(1.0)
    p = step(step(tree(1, 2), x), x)
    b = other(p["b"])
    with pytest.raises(ValueError, match=r"p\['b'\] holds no data"):
        step(p, x)
    assert same(step({"a": p["a"], "b": b}, x), {"a": torch.tensor([4.0, 13.0]), "b": torch.tensor([9.0, 45.0])})


def test_a_donated_leaf_among_the_other_arguments_only_now_and_then():
    step = jit(lambda p, q: {"a": p["a"] + q["a"], "b": p["b"] * q["a"]}, donate_argnums=0)
    p, q = tree(1, 2), tree(3, 4)
    expected, other = copied(p, q)
    for shared in (False, False, True, False, True, True):
        pure = expected if shared else other
        expected = {"a": expected["a"] + pure["a"], "b": expected["b"] * pure["a"]}
        p = step(p, p if shared else q)
        assert same(p, expected)


@pytest.mark.parametrize("leaf", [3, 0.5, None, "relu"])
def test_python_leaves_are_refused(leaf):
    with pytest.raises(TypeError, match=r"p\['rate'\] is .*frozen into the graph"):
        jit(lambda p: p["a"])({"a": torch.ones(1), "rate": leaf})


def test_a_static_place_that_no_argument_takes():
    """A function of fewer arguments than a static place, called with keywords, is the plain function."""
    x = torch.tensor([2.0, 3.0])
    for places in (1, 2, (1, 2)):
        found = fnn.jit(lambda x, **named: x * named["scale"], static_argnums=places)(x, scale=x)
        assert torch.equal(found, x * x)


def test_static_arguments():
    f = jit(lambda x, power, y: x**power + y, static_argnums=1)
    x, y = torch.tensor(2.0), torch.tensor(1.0)
    assert [f(x, k, y).item() for k in (1, 2, 3, 1)] == [3.0, 5.0, 9.0, 3.0]
    assert fnn.compile_count(f) == 3
    with pytest.raises(TypeError, match="argument 1 of <lambda> is static and must be hashable, got a list"):
        f(x, [1], y)
    g = jit(lambda n, p: {"a": p["a"] * n}, static_argnums=0, donate_argnums=1)
    assert g(3, {"a": torch.ones(1)})["a"].item() == 3.0
    with pytest.raises(ValueError, match="either donated or static"):
        jit(lambda p: p, donate_argnums=0, static_argnums=0)


def test_a_graph_break_names_the_line():
    def branch(x):
        if x.sum() > 0:
            return x
        return -x

    with pytest.raises(
        TypeError, match=r"branch asks for the value of a tensor at .*test_jit\.py:\d+: `if x\.sum\(\) > 0:`"
    ):
        jit(branch)(torch.ones(2))


def test_exceptions_of_the_function_are_its_own():
    model = fnn.models.mlp(4, 5, 3)
    params = model.init(fnn.random.key(0))
    with pytest.raises(fnn.layers.ShapeError, match=r"params\['0'\]: linear expects"):
        jit(model.apply)(params, torch.ones(2, 3))


def test_inside_a_transform_or_another_jit_it_is_the_plain_function():
    f = jit(lambda x: (x * x).sum())
    assert fnn.vmap(f)(torch.ones(3, 2)).tolist() == [2.0, 2.0, 2.0]
    assert fnn.grad(f)(torch.ones(3)).tolist() == [2.0, 2.0, 2.0]
    assert jit(fnn.vmap(f))(torch.ones(3, 2)).tolist() == [2.0, 2.0, 2.0]
    assert fnn.compile_count(f) == 0


def test_many_functions_of_one_factory_do_not_share_a_limit():
    def make(k):
        return jit(lambda x: x + k)

    assert [make(k)(torch.zeros(())).item() for k in range(20)] == [float(k) for k in range(20)]


def test_donated_argument_by_keyword_is_refused():
    with pytest.raises(TypeError, match="must be given by position"):
        jit(lambda p: p, donate_argnums=0)(p=torch.ones(1))


def test_for_autograd_it_is_the_plain_function():
    w, x = torch.full((2,), 3.0, requires_grad=True), torch.full((2,), 3.0)
    jit(lambda w: (w * w).sum())(w).backward()
    jit(lambda x: (w * x).sum())(x).backward()
    assert w.grad.tolist() == [9.0, 9.0]
    inner = jit(lambda x, y: (x * y).sum())
    assert fnn.grad(lambda x: inner(x, x) + jit(lambda y: (x * y).sum())(x.detach()))(x).tolist() == [9.0, 9.0]
    assert fnn.compile_count(inner) == 0
    with torch.no_grad():
        assert not inner(w, x).requires_grad
    assert fnn.compile_count(inner) == 1
    donated = jit(lambda w: w * 2, donate_argnums=0)
    assert not donated(torch.ones(2, requires_grad=True)).requires_grad


net = fnn.models.mlp(3, 4, 2)


def test_what_stands_behind_a_name_is_seen():
    global net
    params, x = net.init(fnn.random.key(0)), torch.ones(2, 3)
    applied = fnn.jit(lambda params, x: net.apply(params, x))
    for activation in (fnn.layers.relu, fnn.layers.tanh, fnn.layers.relu):
        net = fnn.models.mlp(3, 4, 2, activation=activation)
        torch.testing.assert_close(applied(params, x), net.apply(params, x))
    dropped = fnn.jit(lambda x, key: net.apply({}, x, key=key))
    for rate in (0.1, 0.9):
        net = fnn.layers.dropout(rate)
        key = fnn.random.key(0)
        torch.testing.assert_close(dropped(x, key), net.apply({}, x, key=key))


def test_values_of_the_users_own_functions_are_seen_inside_those_of_fnn():
    scale = 1.0
    holder = {"model": fnn.models.mlp(3, 4, 2)}

    def loss(params, x):
        return scale * (holder["model"].apply(params, x) ** 2).mean()

    each = fnn.jit(fnn.gradients.per_sample_norms(loss, method="exact"))
    params, x = holder["model"].init(fnn.random.key(0)), torch.ones(2, 3)
    before = each(params, x)
    scale = 3.0
    torch.testing.assert_close(each(params, x), 3.0 * before)
    holder["model"] = fnn.models.mlp(3, 4, 2, activation=fnn.layers.tanh)
    torch.testing.assert_close(each(params, x), fnn.gradients.per_sample_norms(loss, method="exact")(params, x))


class Scaled:
    factor = 1.0

    def __init__(self, scale):
        self.scale = scale

    def __call__(self, params, x):
        return self.factor * self.scale * (x @ params).square().mean()


def test_attributes_of_the_users_own_objects_are_seen_inside_functions_of_fnn(monkeypatch):
    loss, params, x = Scaled(1.0), torch.ones(3), torch.ones(2, 3)
    each = fnn.jit(fnn.gradients.per_sample_norms(loss, method="exact"))
    before = each(params, x)
    loss.scale = 3.0
    torch.testing.assert_close(each(params, x), 3.0 * before)
    monkeypatch.setattr(Scaled, "factor", 2.0)
    torch.testing.assert_close(each(params, x), 6.0 * before)


@pytest.mark.parametrize(
    "other",
    [
        torch.full((2,), 5.0),
        torch.full((4,), 5.0)[::2],
        torch.full((2,), 5.0, dtype=torch.float64),
        torch.full((3,), 5.0),
        torch.tensor(5.0).expand(2),
    ],
    ids=["same", "strided", "dtype", "shape", "expanded"],
)
def test_data_assigned_to_a_result_is_what_the_next_step_takes(other):
    step = jit(lambda p: {k: v + 1 for k, v in p.items()}, donate_argnums=0)
    before = other.clone()
    p = step(step(tree(1, 2)))
    p["a"].data = other
    for i in range(1, 4):
        p = step(p)
        assert torch.equal(p["a"], before + i)
        assert p["b"].tolist() == [4.0 + i, 22.0 + i]
    assert torch.equal(other, before)


def donated_kinds():
    import copy

    with torch.inference_mode():
        inference = torch.ones(2)
    base = torch.ones(4)
    return {
        "inference": inference,
        "deepcopy of an expanded one": copy.deepcopy(torch.ones(1).expand(2)),
        "expanded": torch.ones(1).expand(2),
        "view": base[1:3],
        "detached": base[:2].detach(),
        "conjugated": torch.ones(2, dtype=torch.complex64).conj(),
        "requires grad": torch.ones(2, requires_grad=True),
        "not a leaf": torch.ones(2, requires_grad=True) * 1,
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "not contiguous": torch.ones(2, 2).T[0],
    }


@pytest.mark.parametrize("name", donated_kinds())
def test_every_kind_of_tensor_may_be_donated(name):
    step = jit(lambda p: p * 2 + 1, donate_argnums=0)
    given = donated_kinds()[name]
    expected = given.detach().clone()
    out = given
    for _ in range(3):
        out = step(out)
        expected = expected * 2 + 1
        assert torch.equal(out, expected)
        assert not out.requires_grad
    assert given.is_meta


def test_a_donated_tensor_that_is_closed_over_is_read_before_it_is_written():
    w = torch.ones(2)
    step = jit(lambda p: {"a": p["a"] * 2, "b": p["b"] + w}, donate_argnums=0)
    out = step({"a": w, "b": torch.zeros(2)})
    assert out["a"].tolist() == [2.0, 2.0]
    assert out["b"].tolist() == [1.0, 1.0]
    with pytest.raises((ValueError, TypeError), match="donated"):
        step(out)


def test_an_argument_that_the_function_changes():
    def changes(x, y):
        x.add_(1)
        return x * y

    eager, ours = torch.ones(2), torch.ones(2)
    assert torch.equal(jit(changes)(ours, torch.tensor(3.0)), changes(eager, torch.tensor(3.0)))
    assert torch.equal(ours, eager)
    donated = torch.ones(2)
    out = jit(changes, donate_argnums=0)(donated, torch.tensor(3.0))
    assert out.tolist() == [6.0, 6.0]


def test_keyword_arguments_in_any_order_and_odd_containers():
    f = jit(lambda x, *, a, b: (x + a * 2 + b, OrderedDict(z=a, y=b)))
    for _ in range(2):
        out, kept = f(torch.tensor(1.0), b=torch.tensor(3.0), a=torch.tensor(10.0))
        assert out == 24
        assert list(kept) == ["z", "y"]
        assert f(torch.tensor(1.0), a=torch.tensor(10.0), b=torch.tensor(3.0))[0] == 24
    order = jit(lambda d: next(iter(d.values())))
    assert order({"a": torch.tensor(1), "b": torch.tensor(2)}) == 1
    assert order({"b": torch.tensor(2), "a": torch.tensor(1)}) == 2  # the order of a dict may matter to a function


def test_positions_may_be_negative_and_must_be_there() -> None:
    def step(params: dict, batch: torch.Tensor) -> dict:
        return {"w": params["w"] + batch}

    params = {"w": torch.ones(2)}
    assert fnn.jit(step, donate_argnums=-2)(params, torch.ones(2))["w"].tolist() == [2, 2]
    assert params["w"].is_meta
    assert fnn.jit(lambda x, n: x * n, static_argnums=-1)(torch.ones(1), 3).item() == 3
    for wrong, error in ((-3, ValueError), ((0, 0), ValueError), ((0, -2), ValueError), (1.5, TypeError)):
        with pytest.raises(error, match="donate_argnums"):
            fnn.jit(step, donate_argnums=wrong)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: (x, [lambda y: y * x]),
        lambda x: (x, [fnn.vjp(torch.sin, x)[1]]),
        lambda x: (x, [functools.partial(torch.add, x)]),
    ],
)
def test_a_function_is_not_a_result(function):
    with pytest.raises(TypeError, match=r"returns a function in result\[1\]\[0\], which would hold tensors without"):
        fnn.jit(function)(torch.ones(2))
