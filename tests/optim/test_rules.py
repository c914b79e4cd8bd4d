"""A rule means the same for lists of leaves, for one leaf after the other, and in a graph that is replayed."""

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fnn
from fnn import _tracing, optim, tree
from fnn.compile.trace import layout_of
from fnn.optim import base
from fnn.optim.base import list_form
from fnn.optim.tensor_list import LeafwiseError, TensorList
from tests.optim.cases_optim import CASES, extra, step


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def params_of(dtype: torch.dtype = torch.float64) -> dict:
    """Leaves of different ranks, one of them 0-d and one empty, and a zero among the numbers."""
    w = draw(4, 3, seed=1, dtype=dtype)
    w[0, 0] = 0
    parts = {"v": draw(3, seed=2, dtype=dtype), "k": draw(2, 3, 2, 2, seed=3, dtype=dtype)}
    return {"body": [w, parts], "z": draw(seed=4, dtype=dtype), "none": draw(0, 3, dtype=dtype)}


def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "multi_tensor_kernels", lambda: False)


def slotted(leaf: Callable) -> Callable:
    """A transform of one's own with a number and a slot."""
    return lambda: optim.from_rule(lambda t, rate: leaf(t, rate), {"rate": 0.3}, {"slot": torch.zeros_like})


def in_place(t: Tensor, rate: Tensor) -> Callable:
    def leaf(g, p, slot):
        slot = slot.clone()
        before = slot
        slot *= rate
        slot += g
        return before * 2, slot

    return leaf


OWN: dict[str, Callable] = {
    "ne": slotted(lambda t, r: lambda g, p, s: (torch.where(g != 0, r * g, 7.0), s + (g != 0).to(g.dtype))),
    "eq": slotted(lambda t, r: lambda g, p, s: (g * (g == 0), s)),
    "comparisons": slotted(lambda t, r: lambda g, p, s: (g * (g > 0) + (p <= r) * g - (r < g) * g, s + (g >= p))),
    "logic": slotted(lambda t, r: lambda g, p, s: (g * ((g > 0) & ~(p > 0) | (p < r)), s)),
    "abs": slotted(lambda t, r: lambda g, p, s: (abs(g) * r, torch.abs(g))),
    "sign": slotted(lambda t, r: lambda g, p, s: (torch.sign(g) * r, g.sign())),
    "power": slotted(lambda t, r: lambda g, p, s: (g**2 + abs(g) ** r, 2**g + torch.pow(g, 3))),
    "ndim": slotted(lambda t, r: lambda g, p, s: (g * r if g.ndim > 1 else -g, s)),
    "dim": slotted(lambda t, r: lambda g, p, s: (g.flatten(1).sum(1).mean() * g if g.dim() > 1 else g, s)),
    "dtype": slotted(lambda t, r: lambda g, p, s: (g + torch.finfo(g.dtype).eps, s.to(p.dtype))),
    "shape": slotted(lambda t, r: lambda g, p, s: (g / max(g.shape[0], 1), s + g.numel())),
    "torch functions": slotted(lambda t, r: lambda g, p, s: (torch.clamp(g, min=-r, max=0.5), torch.maximum(g, p))),
    "where": slotted(
        lambda t, r: lambda g, p, s: (torch.where(t == 1, g, s), torch.where(g > p, g, torch.zeros_like(p)))
    ),
    "reduction": slotted(lambda t, r: lambda g, p, s: (g * (g * p).sum() / (1 + g.norm()), s + g.mean() * r)),
    "matrix product": slotted(
        lambda t, r: lambda g, p, s: ((g.reshape(-1, 1) @ p.reshape(1, -1)).sum(1).reshape(g.shape), s)
    ),
    "indexing": slotted(lambda t, r: lambda g, p, s: (g + g[..., :1], s)),
    "division": slotted(lambda t, r: lambda g, p, s: (1 / (r + g * g) - 2 / (3 + abs(p)), (r - g) / (1 + s * s))),
    "remainder": slotted(lambda t, r: lambda g, p, s: (g % r + g // 2, s)),
    "numpy": slotted(lambda t, r: lambda g, p, s: (np.float64(2.0) * g + g * np.float32(0.5), s - np.float64(1.0))),
    "two results": slotted(lambda t, r: lambda g, p, s: (torch.sort(g, 0).values, torch.frexp(g).mantissa)),
    "list of tensors": slotted(lambda t, r: lambda g, p, s: (torch.stack([g, p, s]).sum(0), s)),
    "keyword": slotted(lambda t, r: lambda g, p, s: (torch.add(g, p, alpha=2), s.add(g, alpha=-3))),
    "rows": slotted(lambda t, r: lambda g, p, s: (g * len(g), s + sum(x.sum() for x in g))),
    "in place": slotted(in_place),
    "widen": slotted(lambda t, r: lambda g, p, s: (g - fnn._numerics.widen(p), s)),
    "random": slotted(lambda t, r: lambda g, p, s: (g + fnn.random.normal(fnn.random.key(0), g.shape, g.dtype), s)),
    "value": slotted(lambda t, r: lambda g, p, s: (g if g.sum() > 0 else -2 * g, s)),
    "float": slotted(lambda t, r: lambda g, p, s: (g * math.sqrt(1 + float(g.sum()) ** 2), s)),
}


def run(opt: fnn.Optimizer, params: Any, steps: int = 3) -> Any:
    state = opt.init(params)
    for i in range(steps):
        grads = tree.map(lambda p, i=i: (p * (i + 1)).cos() * p, params)
        updates, state = opt.update(grads, state, params, **extra(params))
        params = optim.apply_updates(params, updates)
    return params, state


RULES = {name: case.make for name, case in CASES.items()}
RULES["multi_transform"] = lambda r: optim.multi_transform(
    {"a": optim.adam(r), "b": optim.rmsprop(r)}, lambda path: "ab"[path.startswith("body")]
)


@pytest.mark.parametrize("name", OWN)
def test_own_rules_mean_the_same_both_ways(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    params = params_of()
    together = run(OWN[name](), params)
    one_by_one(monkeypatch)
    alone = run(OWN[name](), params)
    assert tree.spec(together) == tree.spec(alone)
    for one, other in zip(tree.leaves(together), tree.leaves(alone), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_optimizers_mean_the_same_both_ways(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    params = params_of(dtype)
    if name == "lbfgs":
        del params["none"]
    together = run(RULES[name](0.05), params)
    one_by_one(monkeypatch)
    alone = run(RULES[name](0.05), params)
    assert tree.spec(together) == tree.spec(alone)
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 3e-2}[dtype]
    if name == "muon":
        tolerance = max(tolerance, 1e-2)
    for one, other in zip(tree.leaves(together), tree.leaves(alone), strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("name", [n for n in RULES if n not in ("muon", "adafactor", "lbfgs", "sm3", "all transforms")])
def test_rules_of_the_library_need_no_second_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from fnn.optim import rules

    def refused(*_: Any) -> Any:
        raise AssertionError("this rule was run leaf by leaf")

    monkeypatch.setattr(rules, "_leaf_by_leaf", lambda leaf, columns, n: refused() if columns[0] else [[]] * n)
    run(RULES[name](0.05), params_of())


GRAPHS: dict[str, tuple[Callable, set[str]]] = {
    "sgd": (lambda: optim.sgd(0.1), {"_foreach_mul", "_foreach_add"}),
    "momentum": (lambda: optim.sgd(0.1, 0.9), {"foreach_add_scaled", "_foreach_mul", "_foreach_add"}),
    "adam": (lambda: optim.adam(0.1), {"foreach_adam", "_foreach_mul", "_foreach_add"}),
    "amsgrad": (lambda: optim.adam(0.1, amsgrad=True), {"foreach_adam", "_foreach_mul", "_foreach_add"}),
    "clipped": (
        lambda: optim.chain(optim.clip_by_global_norm(0.1), optim.adamw(0.1)),
        {"_foreach_norm", "foreach_adam"},
    ),
    "rmsprop": (lambda: optim.rmsprop(0.1), {"foreach_add_product", "_foreach_sqrt", "_foreach_div"}),
    "lion": (lambda: optim.lion(0.1), {"foreach_lerp", "_foreach_sign"}),
    "multi": (
        lambda: optim.multi_transform({"a": optim.adam(0.1), "b": optim.sgd(0.1)}, lambda path: "ab"["w1" in path]),
        {"foreach_adam"},
    ),
    "accumulate": (lambda: optim.accumulate(optim.adam(0.1), 2), {"foreach_adam"}),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_graphs_for_replay_are_made_of_kernels_of_lists(name: str) -> None:
    make, expected = GRAPHS[name]
    opt, params = make(), {f"w{i}": draw(3, i + 1, seed=i, dtype=torch.float32) for i in range(20)}
    _, state = opt.update(params, opt.init(params), params)
    given, treedef = tree.flatten((tree.map(torch.sin, params), state, params))

    def flat(*leaves: Tensor) -> list:
        grads, state, params = treedef.unflatten(leaves)
        updates, state = opt.update(grads, state, params)
        return tree.leaves((optim.apply_updates(params, updates), state))

    graph, _ = _tracing.record(flat, [layout_of(leaf) for leaf in given], {}, True)
    graph.graph.eliminate_dead_code()
    called = [str(node.target).split(".")[1] for node in graph.graph.nodes if "." in str(node.target)]
    assert expected <= set(called)
    assert len(called) < (40 if name != "accumulate" else 200)
    assert not any("local_scalar" in target for target in called)
    assert all(torch.equal(one, other) for one, other in zip(graph(*given), flat(*given), strict=True))


REPLAYED = [
    "adafactor", "sam, adaptive", "all transforms", "optimistic", "polyak", "madgrad", "dog", "prodigy", "dadapt adamw",
    "sm3", "backtracking", "zoom",
]  # fmt: skip


@pytest.mark.parametrize("donate", [(), (0, 1)], ids=["kept", "donated"])
@pytest.mark.parametrize("name", [*GRAPHS, *REPLAYED])
def test_replayed_steps_equal_eager_ones_bit_for_bit(name: str, donate: tuple) -> None:
    opt = GRAPHS[name][0]() if name in GRAPHS else CASES[name].make(0.05)
    jitted = fnn.jit(lambda params, state: step(opt, params, state), donate_argnums=donate)
    params = {f"w{i}": draw(3, i + 1, seed=i, dtype=torch.float32) for i in range(4)}
    state = opt.init(params)
    expected = params, state
    given = tree.map(torch.clone, expected)
    for _ in range(4):
        given, expected = jitted(*given), step(opt, *expected)
    for one, other in zip(tree.leaves(given), tree.leaves(expected), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["lerp", "add_scaled", "add_product", "adam"])
def test_kernels_in_place_compute_the_same(name: str) -> None:
    numbers = [torch.tensor(x, dtype=torch.float64) for x in (0.3, 0.9, 0.99, 1e-3)]
    lists = [[draw(3, 2, seed=i) ** 2, draw(4, seed=i + 9) ** 2] for i in range(4)]
    count = {"lerp": 2, "add_scaled": 2, "add_product": 3, "adam": 4}[name]
    arguments = [*lists[:count], *(numbers if name == "adam" else numbers[:1])]
    expected = getattr(torch.ops.fnn, f"foreach_{name}")(*arguments)
    copies = tree.map(torch.clone, arguments)
    got = getattr(torch.ops.fnn, f"foreach_{name}_")(*copies)
    got = (got, *copies[1:4]) if name == "adam" else copies[0]
    assert tree.allclose(list(got), list(expected), atol=0.0)


def test_a_list_answers_where_its_tensors_agree_and_says_where_they_do_not() -> None:
    x = TensorList([torch.ones(2), torch.ones(3, 2)])
    assert (x.dtype, x.device.type, x.is_floating_point()) == (torch.float32, "cpu", True)
    assert bool((x == 1).all())
    for question in (lambda: x.ndim, lambda: x.shape, lambda: x.size(0), lambda: len(x), lambda: float(x.sum())):
        with pytest.raises(LeafwiseError, match="differs between the tensors of a list"):
            question()
    with pytest.raises(AttributeError, match="no_such_method"):
        x.no_such_method()
    with pytest.raises(LeafwiseError, match=r"lists of \[1, 2\] tensors"):
        x * TensorList([torch.ones(2)])
    assert copy.copy(x).tensors == x.tensors
    assert repr(TensorList([torch.ones(1)])) == "TensorList([tensor([1.])])"
    square = TensorList([torch.eye(2), 2 * torch.eye(2)])
    assert [int(row.tensors[1].sum()) for row in square] == [2, 2]
    with pytest.raises(LeafwiseError, match="not one array"):
        np.asarray(x)
    with pytest.raises(LeafwiseError, match="results of different lengths"):
        torch.unbind(TensorList([torch.ones(2), torch.ones(3)]))


def test_kernels_get_gradients_of_any_layout() -> None:
    params = {"w": draw(4, 3, seed=1), "v": draw(3, 4, seed=2)}
    grads = {"w": draw(3, 4, seed=3).T, "v": draw(4, 3, seed=4).T}
    assert not grads["w"].is_contiguous()
    opt = optim.adam(0.1)
    state = tree.map(lambda x: x.T.contiguous().T if x.dim() == 2 else x, opt.init(params))
    ours, other = opt.update(grads, state, params), opt.update(tree.map(torch.clone, grads), opt.init(params), params)
    dense = tree.map(lambda g: g.contiguous(), grads)
    other = opt.update(dense, opt.init(params), params)
    assert tree.allclose(ours, other, rtol=1e-12)
    expected = tree.map(lambda g: -0.1 * g / (g.abs() + 1e-8), grads)
    assert tree.allclose(ours[0], expected, rtol=1e-10)


def test_mistakes_in_a_rule_are_sentences() -> None:
    params = {"w": torch.ones(2), "v": torch.ones(3, 1)}
    one = lambda leaf, **rest: optim.from_rule(lambda t: leaf, **rest)
    update = lambda opt: opt.update(params, opt.init(params), params)
    with pytest.raises(ValueError, match="a tuple of the update and 1 slots, got 1 values"):
        update(one(lambda g, p, s: (g,), slots={"s": torch.zeros_like}))
    with pytest.raises(TypeError, match=r"must return tensors, got 0\.0"):
        update(one(lambda g, p: (0.0,)))
    with pytest.raises(ValueError, match=r"gave shape \(\) for a leaf of shape \(3, 1\)|gave shape \(\) for"):
        update(one(lambda g, p: (g.sum(),)))
    with pytest.raises(ZeroDivisionError):
        update(one(lambda g, p: (g / (1 // 0),)))


def test_chains_take_trees_apart_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from fnn.optim.layout import Layout

    made = []
    original = Layout.of.__func__
    monkeypatch.setattr(Layout, "of", classmethod(lambda cls, *args: made.append(1) or original(cls, *args)))
    params = params_of()
    adam = optim.chain(optim.scale(2.0)._replace(init=optim.scale(2.0).init), optim.adam(0.1))
    opt = optim.chain(
        optim.clip_by_global_norm(1.0), optim.chain(optim.ema_params(adam), optim.freeze(adam, lambda p: p == "z"))
    )
    state = opt.init(params)
    made.clear()
    opt.update(params, state, params)
    assert len(made) == 1


def test_replace_keeps_the_list_form_and_pairs_of_ones_own_chain() -> None:
    params = {"w": torch.ones(2, dtype=torch.bfloat16), "b": torch.ones(())}
    doubled = optim.scale(2.0)._replace(init=lambda params: optim.scale(4.0).init(params))
    assert list_form(doubled) is doubled.update.lists
    count = lambda grads, state, params=None, **_: (tree.scale(3.0, grads), {"calls": state["calls"] + 1})
    own = fnn.Optimizer(lambda params: {"calls": torch.tensor(0)}, count)
    opt = optim.chain(doubled, optim.chain(own, optim.accumulate(own, 1)), optim.freeze(own, lambda path: path == "b"))
    updates, state = opt.update(params, opt.init(params), params)
    assert updates["w"].tolist() == [108.0, 108.0]
    assert updates["b"].item() == 0
    assert tree.spec(updates) == tree.spec(params)
    assert int(state[1][0]["calls"]) == int(state[1][1].inner["calls"]) == 1
    replaced = optim.adam(0.1)._replace(update=count)
    assert optim.chain(replaced).update(params, (own.init(params),), params)[0]["w"].tolist() == [3.0, 3.0]
    with pytest.raises(TypeError, match=r"chain takes optimizers, got .*; call it: adam\(\.\.\.\)"):
        optim.chain(optim.adam)


WRAPPERS: dict[str, Callable] = {
    "chain": optim.chain,
    "named_chain": lambda optimizer: optim.named_chain(inner=optimizer),
    "accumulate": lambda optimizer: optim.accumulate(optimizer, 1),
    "apply_if_finite": optim.apply_if_finite,
    "ema_params": optim.ema_params,
    "average_params": optim.average_params,
    "lookahead": optim.lookahead,
    "with_state_dtype": lambda optimizer: optim.with_state_dtype(optimizer, torch.float32),
    "sam": optim.sam,
    "multi_transform": lambda optimizer: optim.multi_transform({"all": optimizer}, {"w": "all"}),
    "freeze": lambda optimizer: optim.freeze(optimizer, {"w": False, "v": True}),
    "backtracking_line_search": optim.backtracking_line_search,
    "zoom_line_search": optim.zoom_line_search,
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_what_is_given_beside_the_gradients_reaches_the_inner_optimizer(name: str) -> None:
    received: dict = {}

    def update(grads: tree.Tree, state: tree.Tree, params: tree.Tree = None, **extra: object) -> tuple:
        received.update(extra)
        return grads, state

    params = {"w": torch.ones(2)} | ({"v": torch.ones(1)} if name == "freeze" else {})
    given = {"loss": lambda params: (params["w"] ** 2).sum(), "value": torch.tensor(2.0), "other": object()}
    wrapped = WRAPPERS[name](fnn.Optimizer(lambda params: {}, update))
    wrapped.update(params, wrapped.init(params), params, **given)
    assert received.keys() == given.keys()
    assert received["value"] is given["value"]
    assert received["other"] is given["other"]
