from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import grad, jvp, vmap

import fnn
from fnn import tree


class Pair(NamedTuple):
    left: torch.Tensor
    right: dict


def sample() -> dict:
    return {
        "conv1": {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.ones(2)},
        "blocks": [torch.zeros(1), (torch.tensor(2.0), Pair(torch.ones(1), {}))],
    }


shapes = st.lists(st.integers(0, 3), max_size=3).map(tuple)
trees = st.recursive(
    shapes.map(torch.ones),
    lambda inner: st.one_of(
        st.dictionaries(st.text("ab1.", min_size=1, max_size=3).filter(lambda s: "." not in s), inner, max_size=3),
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=2).map(tuple),
    ),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(trees)
def test_leaves_and_vectors_go_back_to_the_tree(given_tree: tree.Tree) -> None:
    numbered = tree.structure(given_tree).unflatten([leaf + i for i, leaf in enumerate(tree.leaves(given_tree))])
    vector, unravel = tree.ravel(numbered)
    assert vector.numel() == tree.size(given_tree)
    assert tree.allclose(unravel(vector), numbered)
    assert tree.structure(unravel(vector)) == tree.structure(numbered)
    assert tree.allclose(tree.from_state_dict(tree.to_state_dict(numbered), numbered), numbered)


@settings(max_examples=60, deadline=None)
@given(trees, st.integers(0, 3))
def test_partition_and_combine_are_inverse(given_tree: tree.Tree, salt: int) -> None:
    chosen, rest = tree.partition(given_tree, lambda path: (len(path) + salt) % 2 == 0)
    assert len(tree.leaves(chosen)) + len(tree.leaves(rest)) == len(tree.leaves(given_tree))
    back = tree.combine(chosen, rest)
    assert tree.structure(back) == tree.structure(given_tree)
    assert all(a is b for a, b in zip(tree.leaves(back), tree.leaves(given_tree), strict=True))


def test_order_of_a_dict_does_not_matter() -> None:
    one = {"10": torch.tensor(10.0), "2": torch.tensor(2.0), "a": {"y": torch.tensor(1.0), "x": torch.tensor(0.0)}}
    two = {"a": {"x": torch.tensor(0.0), "y": torch.tensor(1.0)}, "2": torch.tensor(2.0), "10": torch.tensor(10.0)}
    assert tree.paths(one) == ["2", "10", "a.x", "a.y"] == tree.paths(two)
    assert torch.equal(tree.ravel(one)[0], tree.ravel(two)[0])
    assert tree.structure(one) == tree.structure(two)
    assert tree.allclose(one, two)
    assert tree.leaves(tree.sub(one, two)) == [torch.tensor(0.0)] * 4
    # torch's transforms compare dict order, so what is built like a tree keeps its order
    assert list(tree.structure(one).unflatten(tree.leaves(one))) == ["10", "2", "a"]
    square = lambda p: sum((leaf**2).sum() for leaf in tree.leaves(p))
    assert float(jvp(square, (one,), (fnn.random.like(fnn.random.key(0), one),))[1]) != 0


def test_both_forms_of_a_path() -> None:
    t = sample()
    assert tree.paths(t) == ["blocks.0", "blocks.1.0", "blocks.1.1.left", "conv1.bias", "conv1.weight"]
    assert tree.keystrs(t)[2] == "['blocks'][1][1].left"
    assert tree.get(t, "conv1.bias") is t["conv1"]["bias"]
    assert tree.get(t, "blocks.1.1.left") is t["blocks"][1][1].left


def test_differences_name_the_first_path_and_both_sides() -> None:
    t = sample()
    cases = [
        (tree.replace(t, "conv1", {"weight": torch.ones(1)}), r"\['conv1'\]\['bias'\].*shape \(2,\).*nothing"),
        (t | {"new": torch.ones(1)}, r"\['new'\].*first tree has nothing, second tree has a tensor of shape \(1,\)"),
        (t | {"blocks": (1, 2)}, r"\['blocks'\].*a list of length 2.*a tuple of length 2"),
        (tree.replace(t, "blocks.0", {}), r"\['blocks'\]\[0\].*a tensor.*a dict with keys \[\]"),
    ]
    for other, message in cases:
        with pytest.raises(ValueError, match=message):
            tree.map(lambda a, b: a, t, other)


def test_numbers_of_a_tree() -> None:
    t = sample()
    assert tree.size(t) == 6 + 2 + 1 + 1 + 1
    assert tree.nbytes(tree.cast(t, torch.float64)) == 11 * 8
    flat = torch.cat([leaf.reshape(-1) for leaf in tree.leaves(t)])
    assert float(tree.global_norm(t)) == pytest.approx(float(flat.norm()))
    assert float(tree.dot(t, t)) == pytest.approx(float(flat @ flat))
    assert tree.size({}) == 0
    assert float(tree.dot({}, {})) == 0
    spec = tree.spec(t)["conv1"]["weight"]
    assert spec == ((2, 3), torch.float32, torch.device("cpu"))


def test_norm_is_smooth_enough_at_zero() -> None:
    gradient = grad(tree.global_norm)({"w": torch.zeros(3)})
    assert gradient["w"].tolist() == [0, 0, 0]


def test_cast_leaves_integers_alone_and_like_functions_keep_dtypes() -> None:
    t = {"w": torch.ones(2), "count": torch.tensor(3), "flag": torch.tensor(True)}
    half = tree.cast(t, torch.bfloat16)
    assert [leaf.dtype for leaf in tree.leaves(half)] == [torch.int64, torch.bool, torch.bfloat16]
    assert tree.zeros_like(t)["count"].dtype == torch.int64
    assert tree.ones_like(t, torch.float64)["w"].dtype == torch.float64


def test_replace_and_get_refuse_unknown_paths_and_change_nothing() -> None:
    t = sample()
    new = tree.replace(t, "blocks.1.1.left", torch.tensor(9.0))
    assert float(new["blocks"][1][1].left) == 9
    assert float(t["blocks"][1][1].left) == 1
    assert new["conv1"]["bias"] is t["conv1"]["bias"]
    with pytest.raises(ValueError, match=r"no 'conv1.gamma' in the tree: at conv1 is a dict with keys"):
        tree.replace(t, "conv1.gamma", torch.ones(1))


def test_flatten_refuses_ambiguous_paths() -> None:
    with pytest.raises(ValueError, match=r"dotted path 'a\.b'"):
        tree.to_state_dict({"a.b": torch.ones(1), "a": {"b": torch.ones(1)}})
    with pytest.raises(ValueError, match=r"'a' is both|below 'a'"):
        tree.from_state_dict({"a.b": torch.ones(1), "a": torch.ones(1)})
    with pytest.raises(ValueError, match=r"missing \['w'\], not in the tree \['v'\]"):
        tree.from_state_dict({"v": torch.ones(1)}, {"w": torch.ones(1)})


def test_stack_concat_unstack() -> None:
    first, second = sample(), tree.scale(2.0, sample())
    stacked = tree.stack([first, second])
    assert stacked["conv1"]["weight"].shape == (2, 2, 3)
    assert tree.allclose(tree.unstack(stacked)[1], second)
    assert tree.concat([{"x": torch.ones(2, 3)}, {"x": torch.zeros(1, 3)}])["x"].shape == (3, 3)
    with pytest.raises(ValueError, match=r"cannot stack the leaves at 'w': .*\(1,\), \(2,\)"):
        tree.stack([{"w": torch.ones(1)}, {"w": torch.ones(2)}])
    with pytest.raises(ValueError, match="at least one tree"):
        tree.stack([])
    with pytest.raises(ValueError, match="one leading length"):
        tree.unstack({"a": torch.ones(2), "b": torch.ones(3)})


def test_ravel_keeps_dtypes_and_is_differentiable() -> None:
    mixed = {"a": torch.ones(2, dtype=torch.float64), "b": torch.ones(1)}
    vector, unravel = tree.ravel(mixed)
    assert vector.dtype == torch.float64
    assert unravel(vector)["b"].dtype == torch.float32
    assert vmap(unravel)(torch.ones(5, 3))["a"].shape == (5, 2)
    assert grad(lambda v: (unravel(v)["a"] * torch.tensor([1.0, 2.0])).sum())(vector).tolist() == [1, 2, 0]
    with pytest.raises(ValueError, match=r"shape \(3,\), got \(4,\)"):
        unravel(torch.ones(4))


def test_works_inside_one_graph() -> None:
    def everything(t: dict) -> tuple:
        vector, unravel = tree.ravel(t)
        return (
            tree.global_norm(t),
            unravel(2 * vector),
            tree.map_with_path(lambda p, x: x * len(p), t),
            tree.to_state_dict(t),
        )

    t = sample()
    compiled = fnn.jit(everything, backend="aot_eager")
    assert tree.allclose(compiled(t), everything(t))
