import collections
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import grad, jvp, vmap

import fnn
from fnn import tree
from fnn.linalg.vector_space import one_hot


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
    assert tree.paths(one) == ("2", "10", "a.x", "a.y") == tree.paths(two)
    assert torch.equal(tree.ravel(one)[0], tree.ravel(two)[0])
    assert tree.structure(one) == tree.structure(two)
    assert tree.allclose(one, two)
    assert tree.leaves(tree.sub(one, two)) == [torch.tensor(0.0)] * 4
    # torch's transforms compare dict order, so what is built like a tree keeps its order
    assert list(tree.structure(one).unflatten(tree.leaves(one))) == ["10", "2", "a"]
    square = lambda p: sum((leaf**2).sum() for leaf in tree.leaves(p))
    assert float(jvp(square, (one,), (fnn.random.like(fnn.random.key(0), one),))[1]) != 0


LIKE_ITS_ARGUMENT = {
    "map": lambda t: tree.map(torch.neg, t),
    "map_with_path": lambda t: tree.map_with_path(lambda path, leaf: leaf, t),
    "cast": lambda t: tree.cast(t, torch.float64),
    "replace": lambda t: tree.replace(t, "a", torch.ones(1)),
    "from_state_dict": lambda t: tree.from_state_dict(dict(sorted(tree.to_state_dict(t).items())), t),
    "partition": lambda t: tree.partition(t, lambda path: True)[0],
    "partition, the rest": lambda t: tree.partition(t, {"b": False, "a": False, "10": False, "2": False})[1],
    "stack": lambda t: tree.stack([t, t]),
    "unravel": lambda t: tree.ravel(t)[1](tree.ravel(t)[0]),
    "random.like": lambda t: fnn.random.like(fnn.random.key(0), t),
    "grad": fnn.grad(lambda t: tree.dot(t, t)),
    "one_hot": lambda t: one_hot(t, 0, 2),
}


@pytest.mark.parametrize("name", LIKE_ITS_ARGUMENT)
def test_a_dict_keeps_the_order_in_which_it_was_filled(name: str) -> None:
    t = {"b": torch.ones(1), "10": {"y": torch.ones(2), "x": torch.ones(2)}, "a": torch.ones(1), "2": torch.ones(1)}
    result = LIKE_ITS_ARGUMENT[name](t)
    assert list(result) == list(t)
    assert list(result["10"]) == ["y", "x"]


def test_both_forms_of_a_path() -> None:
    t = sample()
    assert tree.paths(t) == ("blocks.0", "blocks.1.0", "blocks.1.1.left", "conv1.bias", "conv1.weight")
    assert tree.keystrs(t)[2] == "['blocks'][1][1].left"
    assert tree.get(t, "conv1.bias") is t["conv1"]["bias"]
    assert tree.get(t, "blocks.1.1.left") is t["blocks"][1][1].left


def test_differences_name_the_first_path_and_both_sides() -> None:
    t = sample()
    cases = [
        (tree.replace(t, "conv1", {"weight": torch.ones(1)}), r"\['conv1'\]\['bias'\].*a tensor.*nothing"),
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
    assert (spec.shape, spec.dtype, spec.device) == ((2, 3), torch.float32, torch.device("cpu"))


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
    with pytest.raises(ValueError, match=r"no 'conv1.gamma' in the tree; its leaves are \['blocks.0'"):
        tree.replace(t, "conv1.gamma", torch.ones(1))


def test_state_dicts_refuse_ambiguous_paths() -> None:
    with pytest.raises(ValueError, match=r"dotted path 'a\.b'"):
        tree.to_state_dict({"a.b": torch.ones(1), "a": {"b": torch.ones(1)}})
    with pytest.raises(ValueError, match=r"'a' is both|below 'a'"):
        tree.from_state_dict({"a.b": torch.ones(1), "a": torch.ones(1)})


@pytest.mark.parametrize("names", ["v", "w x", "w", "w v", "", "w v x", "v w y x"])
def test_a_state_dict_has_exactly_the_paths_of_the_tree(names: str) -> None:
    flat, like = {name: torch.ones(1) for name in names.split()}, {"w": torch.ones(1), "v": torch.ones(1)}
    if set(flat) == set(like):
        assert tree.structure(tree.from_state_dict(flat, like)) == tree.structure(like)
        return
    missing, extra = sorted(set(like) - set(flat)), sorted(set(flat) - set(like))
    with pytest.raises(ValueError, match=r"missing \[.*\], not in the tree \[.*\]") as error:
        tree.from_state_dict(flat, like)
    assert all(repr(name) in str(error.value) for name in missing + extra)


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
    compiled = fnn.jit(everything)
    assert tree.allclose(compiled(t), everything(t))


def test_choices_are_predicates_trees_or_prefixes() -> None:
    t = sample()
    assert tree.paths(t) == ("blocks.0", "blocks.1.0", "blocks.1.1.left", "conv1.bias", "conv1.weight")
    assert tree.leaf_values(lambda path: path.startswith("conv1"), t) == [False, False, False, True, True]
    assert tree.leaf_values(0.5, t) == [0.5] * 5
    assert tree.leaf_values({"conv1": "a", "blocks": ["b", "c"]}, t) == ["b", "c", "c", "a", "a"]
    assert tree.leaf_values(tree.map(lambda leaf: leaf.dim(), t), t) == [1, 0, 1, 1, 2]
    with pytest.raises(ValueError, match=r"labels has no value for the leaf \['blocks'\]\[0\]"):
        tree.leaf_values({"conv1": "a"}, t, "labels")
    with pytest.raises(ValueError, match=r"labels\['head'\] is a value for no leaf of the tree"):
        tree.leaf_values({"conv1": "a", "blocks": "b", "head": "c"}, t, "labels")
    with pytest.raises(ValueError, match=r"labels\['conv1'\]\['bias'\]\['x'\] is a value for no leaf"):
        tree.leaf_values(
            {"conv1": {"bias": {"x": 1}, "weight": 1}, "blocks": 1}, t | {"conv1": {"weight": 1}}, "labels"
        )


@settings(max_examples=60, deadline=None)
@given(trees)
def test_partition_takes_a_tree_of_bools(given_tree: tree.Tree) -> None:
    flags = tree.structure(given_tree).unflatten([i % 2 == 0 for i in range(len(tree.leaves(given_tree)))])
    chosen, rest = tree.partition(given_tree, flags)
    assert len(tree.leaves(chosen)) == sum(tree.leaves(flags))
    assert tree.structure(tree.combine(rest, chosen)) == tree.structure(given_tree)


def test_combine_refuses_what_both_parts_have() -> None:
    for one, two in [({"a": 1}, {"a": 1}), ([1], [2]), ({"a": {}}, {"a": 1}), ({"a": [1, ()]}, {"a": [2, ()]})]:
        with pytest.raises(ValueError, match="both parts have something at"):
            tree.combine(one, two)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sums_of_narrow_leaves_are_wide(dtype: torch.dtype) -> None:
    ones = [torch.ones(1, dtype=dtype)] * 1000
    assert float(tree.global_norm(ones)) == pytest.approx(1000**0.5)
    assert float(tree.dot(ones, ones)) == 1000
    large = {"w": torch.full((4,), 300.0, dtype=dtype)}
    assert float(tree.global_norm(large)) == pytest.approx(600.0)
    assert tree.global_norm(tree.cast(large, torch.float64)).dtype == torch.float64


FLOATING = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("shape", [(), (1,), (3,)])
@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("other", FLOATING)
def test_lerp_keeps_the_dtypes_of_the_first_tree(
    dtype: torch.dtype, other: torch.dtype, shape: tuple[int, ...]
) -> None:
    first, second = {"w": torch.full(shape, 1.0, dtype=dtype)}, {"w": torch.full(shape, 3.0, dtype=dtype)}
    for weight in (0.5, torch.tensor(0.5, dtype=other), torch.full(shape, 0.5, dtype=other)):
        between = tree.lerp(first, second, weight)["w"]
        assert between.dtype == dtype
        assert torch.equal(between, torch.full(shape, 2.0, dtype=dtype))


@pytest.mark.parametrize("weight", [0.5, torch.tensor(0.5), torch.tensor(0.5, dtype=torch.float64)])
def test_lerp_of_integers(weight: float | torch.Tensor) -> None:
    between = tree.lerp({"count": torch.tensor([1, 2, -3])}, {"count": torch.tensor([3, 5, -4])}, weight)["count"]
    assert between.dtype == torch.int64
    assert between.tolist() == [2, 3, -3]


def test_leaves_of_different_dtypes_are_compared() -> None:
    for dtype in (torch.float64, torch.bfloat16, torch.int64):
        assert tree.allclose({"w": torch.ones(2)}, {"w": torch.ones(2, dtype=dtype)})
        assert not tree.allclose({"w": torch.full((2,), 2.5)}, {"w": torch.full((2,), 2, dtype=dtype)})


def test_norms_of_complex_leaves_are_real() -> None:
    t = {"z": torch.tensor([3 + 4j]), "w": torch.tensor([12.0])}
    assert float(tree.global_norm(t)) == pytest.approx(13.0)
    assert not tree.global_norm(t).is_complex()
    assert complex(tree.dot({"z": torch.tensor([1j])}, {"z": torch.tensor([2.0 + 0j])})) == -2j  # JAX's vdot


@pytest.mark.parametrize(
    "function",
    [
        lambda t: tree.cast(t, torch.float32),
        lambda t: tree.to(t, "cpu"),
        lambda t: tree.unstack(tree.map(lambda x: x[None], t))[0],
        lambda t: tree.ravel(t)[1](tree.ravel(t)[0]),
        lambda t: tree.stack([t]),
        lambda t: tree.concat([t]),
        lambda t: tree.lerp(t, t, 0.0),
        lambda t: tree.where(torch.tensor(True), t, t),
        lambda t: tree.add(t, tree.zeros_like(t)),
        lambda t: tree.scale(1.0, t),
    ],
)
def test_a_returned_tree_owns_its_leaves(function) -> None:
    t = {"a": torch.ones(2), "b": torch.ones(3)}
    memory = [leaf.untyped_storage().data_ptr() for leaf in [*tree.leaves(t), *tree.leaves(function(t))]]
    assert len(set(memory)) == 4


def test_one_tolerance_is_the_only_one() -> None:
    one, near = {"w": torch.ones(2)}, {"w": torch.ones(2) + 1e-6}
    assert tree.allclose(one, near)
    assert not tree.allclose(one, near, atol=1e-12)
    assert tree.allclose(one, near, rtol=1e-5)
    assert not tree.allclose({"w": torch.zeros(1)}, {"w": torch.full((1,), 1e-30)}, rtol=1e-5)
    assert not tree.allclose({"w": torch.ones(3)}, {"w": torch.ones(1)})
    assert float(tree.max_difference(one, near)) == pytest.approx(1e-6, rel=0.1)
    assert torch.isnan(tree.max_difference(one, {"w": torch.tensor([1.0, float("nan")])}))


def test_leading_length_names_what_does_not_fit() -> None:
    assert tree.leading_length([torch.ones(3, 2), torch.ones(3)]) == 3
    for t, error, message in [
        ({"x": torch.ones(3), "y": torch.ones(4)}, ValueError, r"batch\['y'\] has 4 samples, but batch\['x'\] has 3"),
        ({"x": torch.tensor(1.0)}, ValueError, r"batch\['x'\] is a 0-d tensor"),
        ({"x": 3}, TypeError, r"batch\['x'\] is 3, not a tensor"),
        ({}, ValueError, "batch has no leaves"),
    ]:
        with pytest.raises(error, match=message):
            tree.leading_length(t)


def test_containers_count_as_one_structure_whatever_their_class_of_dict() -> None:
    params = collections.OrderedDict(w=torch.ones(2), b=torch.zeros(1))
    loaded = {"b": torch.ones(1), "w": torch.ones(2)}
    added = tree.add(params, loaded)
    assert type(added) is collections.OrderedDict
    assert list(added) == ["w", "b"]
    batch = collections.UserDict(x=torch.ones(2))
    assert isinstance(tree.scale(2.0, batch), collections.UserDict)
    assert tree.paths(tree.replace(collections.defaultdict(list, {"a": 1}), "a", [1, 2])) == ("a.0", "a.1")


def test_keys_with_dots_and_quotes_are_reached() -> None:
    t = {"a.b": {"c": 1}, "a": {"b": {"d": 2}}, "it's": 3, "": 4}
    assert tree.get(t, "a.b.c") == 1
    assert tree.get(t, "a.b.d") == 2
    assert tree.get(t, "it's") == 3
    assert tree.get(tree.replace(t, "a.b.d", 9), "a.b.d") == 9
    with pytest.raises(ValueError, match=r"no 'a.b.e' in the tree"):
        tree.get(t, "a.b.e")


def test_combine_refuses_a_tuple_beside_something_else() -> None:
    for first, second in (
        (torch.ones(1), (torch.ones(1),)),
        ((torch.ones(1),), torch.ones(1)),
        ({"b": torch.ones(1)}, (torch.ones(1),)),
    ):
        with pytest.raises(ValueError, match=r"both parts have something at \['a'\]"):
            tree.combine({"a": first}, {"a": second})
    assert tree.combine({"a": (), "b": ()}, {"a": (), "b": ()}) == {"a": (), "b": ()}


def test_partition_leaves_out_what_holds_no_leaf() -> None:
    t = {"a": {"empty": {}, "w": 1}, "b": [(), {"v": 2}], "c": 3, "d": {}}
    chosen, rest = tree.partition(t, lambda path: path.startswith("c"))
    assert chosen == {"c": 3, "d": {}}
    assert tree.leaves(rest) == [1, 2]
    assert tree.combine(chosen, rest) == t
    assert tree.partition({"d": {}, "e": [()]}, lambda path: True)[0] == {"d": {}, "e": [()]}
