"""Taking trees of every kind of container apart and putting them together."""

import collections
import copy
import dataclasses
import gc
import pickle
import threading
import weakref
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils import _pytree as torch_pytree

from fnn import tree
from fnn.tree import treedef as module


class Pair(NamedTuple):
    left: Any
    right: Any


class Config(dict):
    """A class of dict that nobody registered."""


@dataclasses.dataclass
class Block:
    inner: Any
    scale: Any
    name: str = "block"


torch_pytree.register_pytree_node(
    Block,
    lambda block: ([block.inner, block.scale], {"name": [block.name]}),  # a context that cannot be hashed
    lambda children, context: Block(*children, context["name"][0]),
    flatten_with_keys_fn=lambda block: (
        [(torch_pytree.GetAttrKey("inner"), block.inner), (torch_pytree.GetAttrKey("scale"), block.scale)],
        {"name": [block.name]},
    ),
)

keys = st.one_of(st.text("aw01²_.'\"", min_size=1, max_size=4), st.integers(-3, 12))


def containers(inner: st.SearchStrategy) -> st.SearchStrategy:
    dicts = st.dictionaries(keys, inner, max_size=4)
    return st.one_of(
        dicts,
        dicts.map(collections.OrderedDict),
        dicts.map(lambda d: collections.defaultdict(list, d)),
        dicts.map(collections.UserDict),
        dicts.map(Config),
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.lists(inner, max_size=3).map(collections.deque),
        st.tuples(inner, inner).map(lambda pair: Pair(*pair)),
        st.tuples(inner, inner, st.sampled_from(["a", "b"])).map(lambda three: Block(*three)),
    )


leaves = st.one_of(st.integers(0, 99), st.none(), st.just(1.5), st.builds(torch.tensor, st.integers(0, 99)))
trees = st.recursive(leaves, containers, max_leaves=12)


def same(one: Any, two: Any) -> bool:
    """Equal containers of the same classes with dicts filled in the same order, and the very same leaves."""
    if type(one) is not type(two):
        return False
    if isinstance(one, (dict, collections.UserDict)):
        factories = getattr(one, "default_factory", None) is getattr(two, "default_factory", None)
        return list(one) == list(two) and factories and all(same(one[key], two[key]) for key in one)
    if isinstance(one, Block):
        return one.name == two.name and same(one.inner, two.inner) and same(one.scale, two.scale)
    if isinstance(one, (list, tuple, collections.deque)):
        return len(one) == len(two) and all(map(same, one, two))
    return one is two


def reversed_dicts(t: Any) -> Any:
    """The same tree with every dict filled the other way round."""
    if isinstance(t, (dict, collections.UserDict)):
        items = [(key, reversed_dicts(t[key])) for key in reversed(list(t))]
        return collections.defaultdict(t.default_factory, items) if hasattr(t, "default_factory") else type(t)(items)
    if isinstance(t, Pair):
        return Pair(*map(reversed_dicts, t))
    if isinstance(t, Block):
        return Block(reversed_dicts(t.inner), reversed_dicts(t.scale), t.name)
    return type(t)(map(reversed_dicts, t)) if isinstance(t, (list, tuple, collections.deque)) else t


@settings(max_examples=300, deadline=None)
@given(trees)
def test_a_tree_comes_back_as_it_was(t: Any) -> None:
    for _ in range(3):  # by the walk, and by what is written afterwards
        found, treedef = tree.flatten(t)
        assert same(treedef.unflatten(found), t)
        assert treedef.num_leaves == len(found) == len(treedef.paths) == len(treedef.keystrs)
        assert all(a is b for a, b in zip(treedef.flatten_up_to(t), found, strict=True))
    assert tree.flatten(t)[1] is treedef


@settings(max_examples=200, deadline=None)
@given(trees)
def test_the_order_in_which_dicts_were_filled_changes_nothing_but_the_result_s_own(t: Any) -> None:
    other = reversed_dicts(t)
    (found, treedef), (found_other, treedef_other) = tree.flatten(t), tree.flatten(other)
    assert treedef == treedef_other
    assert hash(treedef) == hash(treedef_other)
    assert treedef.keystrs == treedef_other.keystrs
    assert all(a is b for a, b in zip(found, found_other, strict=True))
    assert all(a is b for a, b in zip(treedef.flatten_up_to(other), found, strict=True))
    assert same(treedef_other.unflatten(found), other)


@settings(max_examples=200, deadline=None)
@given(trees, trees)
def test_two_structures_are_equal_exactly_when_one_fits_the_other(one: Any, two: Any) -> None:
    first, second = tree.structure(one), tree.structure(two)
    if first == second:
        assert all(a is b for a, b in zip(first.flatten_up_to(two), tree.leaves(two), strict=True))
    else:
        with pytest.raises(ValueError, match="first tree and second tree differ at "):
            first.flatten_up_to(two)


@settings(max_examples=100, deadline=None)
@given(trees)
def test_every_path_leads_to_its_leaf(t: Any) -> None:
    found, treedef = tree.flatten(t)
    for keystr, leaf in zip(treedef.keystrs, found, strict=True):
        assert eval(f"t{keystr}", {"t": t}) is leaf
    for path, leaf in zip(treedef.paths, found, strict=True):
        if treedef.paths.count(path) == 1 and path and not any(p != path and p.startswith(path) for p in treedef.paths):
            assert tree.get(t, path) is leaf
            assert tree.get(tree.replace(t, path, "new"), path) == "new"


def test_leaves_of_registered_containers_follow_torch() -> None:
    t = {"q": collections.deque([1, 2]), "m": torch.max(torch.eye(2), 0), "b": Block({"w": 1}, 2)}
    theirs = torch_pytree.tree_leaves({key: t[key] for key in sorted(t)})
    assert all(a is b for a, b in zip(tree.leaves(t), theirs, strict=True))
    assert tree.paths(t)[:2] == ("b.inner.w", "b.scale")
    assert tree.keystrs(t)[0] == "['b'].inner['w']"


@pytest.mark.parametrize(
    ("given_keys", "ordered"),
    [
        (["10", "2", "a"], ["2", "10", "a"]),
        (["w10", "w2", "w02", "w"], ["w", "w02", "w2", "w10"]),
        (["1²", "1", "²"], ["1", "1²", "²"]),
        ([1, "1", 10, 2], [1, "1", 2, 10]),
        (["layer.10.w", "layer.9.w"], ["layer.9.w", "layer.10.w"]),
    ],
)
def test_keys_are_sorted_with_numbers_as_numbers(given_keys: list, ordered: list) -> None:
    assert list(module.natural_order(given_keys)) == ordered == list(module.natural_order(given_keys[::-1]))


def test_keys_that_print_alike_are_refused() -> None:
    class Key:
        def __str__(self) -> str:
            return "key"

        __repr__ = __str__

    with pytest.raises(ValueError, match="differ in how they print"):
        tree.flatten({Key(): 1, Key(): 2})


def test_a_class_that_is_registered_later_is_no_longer_a_leaf() -> None:
    class Late:
        def __init__(self, inner: Any) -> None:
            self.inner = inner

    t = [Late(1), Late(2)]
    before = tree.flatten(t)
    assert tree.flatten(t)[0] == t
    torch_pytree.register_pytree_node(Late, lambda x: ([x.inner], None), lambda children, _: Late(*children))
    assert tree.flatten(t)[0] == [1, 2]
    with pytest.raises(ValueError, match=r"differ at \[0\]"):
        before[1].flatten_up_to(t)


def test_structures_are_interned_let_go_of_and_survive_copies() -> None:
    t = {"a": [1, 2], "b": Pair(3, {})}
    treedef = tree.structure(t)
    assert copy.deepcopy(treedef) is treedef
    assert pickle.loads(pickle.dumps(tree.structure({"a": [1], "b": ()}))) is tree.structure({"a": [4], "b": ()})
    gone = weakref.ref(tree.structure({"never seen again": [5]}))
    module._recent.clear()
    gc.collect()
    assert gone() is None


def test_many_threads_make_one_structure() -> None:
    for n in range(20):
        made: list = []
        t = {f"{n} {i}": [i, (i,)] for i in range(50)}
        threads = [threading.Thread(target=lambda t=t, made=made: made.append(tree.structure(t))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(map(id, made))) == 1


def test_deep_and_wide_trees() -> None:
    deep: Any = torch.ones(1)
    for i in range(200):
        deep = {"next": deep} if i % 2 else [deep]
    wide = {f"w{i}": torch.ones(1) for i in range(3000)}
    for t in (deep, wide):
        found, treedef = tree.flatten(t)
        tree.flatten(t)
        assert same(treedef.unflatten(found), t)


def test_another_number_of_leaves_is_refused() -> None:
    treedef = tree.structure([1, 2])
    for wrong in ([1], [1, 2, 3], iter([1])):
        with pytest.raises(ValueError, match=r"2 leaves cannot be made of \d"):
            treedef.unflatten(wrong)
    assert treedef.unflatten(iter([3, 4])) == [3, 4]
