"""fnn.grad and fnn.value_and_grad against torch.func.grad, which they equal bit for bit, and against torch.autograd."""

import collections
import copy
import threading
import weakref
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch.func import jacrev, jvp, vjp, vmap

import fnn

key = fnn.random.key


def normal(number, *shape, dtype=torch.float64):
    return fnn.random.normal(fnn.random.fold_in(key(7), number), shape, dtype)


X = normal(0, 6, 4)
PARAMS = {"first": {"weight": normal(1, 5, 4), "bias": normal(2, 5)}, "second": [normal(3, 3, 5), normal(4, 3)]}


def network(p, x=X):
    hidden = F.linear(x, p["first"]["weight"], p["first"]["bias"]).tanh()
    return F.log_softmax(F.linear(hidden, *p["second"]), -1)[:, 0].mean()


class Pair(NamedTuple):
    a: torch.Tensor
    b: torch.Tensor


def tied(p):
    return ((X @ p["w"]).tanh() @ p["w"].T).square().sum()


FUNCTIONS = {
    "network": (network, PARAMS),
    "a single tensor": (lambda p: (p**3).sum(), X),
    "a named tuple": (lambda p: (p.a * p.b).sum(), Pair(X, X + 1)),
    "the argument itself": (lambda p: p, torch.tensor(2.0)),
    "sums, whose gradients share memory": (lambda p: p[0].sum() + p[1].sum() + (p[0] + p[2]).sum(), [X, X + 1, X - 1]),
    "a leaf that is not used": (lambda p: p["a"].sin().sum(), {"a": X, "b": X + 1}),
    "a constant": (lambda p: torch.ones(()), {"a": X}),
    "no gradient inside": (lambda p: (p["a"].detach() * p["a"]).sum(), {"a": X}),
    "a leaf used twice": (tied, {"w": normal(5, 4, 3)}),
    "views": (lambda p: (p["a"][1:, ::2].T.reshape(-1) ** 2).sum(), {"a": X}),
    "an inner vmap": (lambda p: vmap(lambda row: (row * p["a"][0]).sin().sum())(p["a"]).sum(), {"a": X}),
    "an inner jvp": (lambda p: jvp(lambda q: (q["a"] ** 3).sum(), (p,), ({"a": X},))[1], {"a": X + 1}),
    "an inner vjp": (lambda p: vjp(lambda q: q.sin().sum(0), p["a"])[1](p["a"][0])[0].sum(), {"a": X}),
    "an inner jacrev": (lambda p: jacrev(lambda q: q**2)(p["a"][0]).square().sum(), {"a": X}),
    "an inner gradient": (lambda p: fnn.grad(lambda q: (q["a"] ** 3).sum())(p)["a"].square().sum(), {"a": X}),
    "an inner gradient of another argument": (
        lambda p: fnn.grad(lambda q: (p["a"] * q**3).sum())(X).square().sum(),
        {"a": X + 1},
    ),
    "a second inner gradient": (
        lambda p: fnn.grad(lambda q: fnn.grad(lambda r: (r**4 * p["a"]).sum())(q).sin().sum())(p["a"]).sum(),
        {"a": X},
    ),
    "a complex leaf": (lambda p: (p.abs() ** 3).sum(), torch.complex(X, X.flip(0))),
    "half precision": (lambda p: (p * p.sin()).sum(), X.to(torch.bfloat16)),
}


def equal(first, second):
    pairs = zip(fnn.tree.leaves(first), fnn.tree.leaves(second), strict=True)
    return all(torch.equal(a, b) and a.dtype == b.dtype for a, b in pairs)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("around", ["nothing", "no_grad", "inference_mode"])
def test_the_bits_of_torch_func(name, around):
    f, params = FUNCTIONS[name]
    before = copy.deepcopy(params)
    expected, value = torch.func.grad_and_value(f)(params)
    context = {"nothing": torch.enable_grad, "no_grad": torch.no_grad, "inference_mode": torch.inference_mode}
    with context[around]():
        mine, (my_value, also_mine) = fnn.grad(f)(params), fnn.value_and_grad(f)(params)
    assert equal(mine, expected)
    assert equal(also_mine, expected)
    assert torch.equal(my_value, value)
    assert fnn.tree.structure(mine) == fnn.tree.structure(params)
    # nothing is left on what the caller holds, and results are plain tensors with memory of their own
    assert equal(params, before)
    assert not any(leaf.requires_grad or leaf.grad is not None for leaf in fnn.tree.leaves(params))
    results = [*fnn.tree.leaves(mine), *fnn.tree.leaves(also_mine), my_value]
    assert not any(leaf.requires_grad for leaf in results)
    memory = [leaf.untyped_storage().data_ptr() for leaf in (*results, *fnn.tree.leaves(params))]
    if around != "inference_mode":  # where torch.func works it out
        assert len(set(memory)) == len(memory)
        assert all(0 not in leaf.stride() for leaf in results)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_inside_transforms_and_differentiated_again(name):
    f, params = FUNCTIONS[name]
    if name in ("a complex leaf", "an inner vmap"):
        return  # jvp of abs() and vmap in vmap with other shapes are no question of grad
    again = lambda g: lambda p: sum(leaf.sin().sum() for leaf in fnn.tree.leaves(g(f)(p)))
    ones = fnn.tree.ones_like(params)
    for outer in (
        lambda g: fnn.grad(again(g))(params),
        lambda g: torch.func.grad(again(g))(params),
        lambda g: jvp(again(g), (params,), (ones,)),
        lambda g: vmap(lambda scale: g(f)(fnn.tree.scale(scale, params)))(torch.tensor([1.0, 2.0], dtype=X.dtype)),
    ):
        assert fnn.tree.allclose(outer(fnn.grad), outer(torch.func.grad), rtol=1e-6, atol=1e-12)


class Weighted(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Linear(4, 1, dtype=torch.float64)

    def forward(self, x):
        return self.inner(x).sum()


CLOSED = torch.tensor(2.0, dtype=torch.float64)
OUTSIDE = {
    "a closed-over leaf": lambda g, w: g(lambda p: (w * p**3).sum())(X).sum(),
    "a closed-over result": lambda g, w: (lambda v: g(lambda p: (v * p**3).sum())(X).sum())(w.exp() + 1),
    "another argument": lambda g, w: g(lambda p, v: (v * p**3).sum())(X, w).sum(),
    "a keyword": lambda g, w: g(lambda p, v: (v * p**3).sum())(X, v=w).sum(),
    "the argument itself": lambda g, w: g(lambda p: p**3)(w),
    "a result as the argument": lambda g, w: g(lambda p: (p**3).sum())(w * X).sum(),
    "argument and closure": lambda g, w: g(lambda p: w * p**3)(w),
    "only the other output": lambda g, w: g(lambda p: ((p**2).sum(), (p * w).sum()), has_aux=True)(X)[1],
    "the closed-over tensor as the other output": lambda g, w: g(lambda p: ((p**2).sum(), w), has_aux=True)(X)[1] * 1,
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_ordinary_autograd_sees_through(name):
    derivatives = []
    for transform in (fnn.grad, torch.func.grad):
        w = CLOSED.clone().requires_grad_()
        result = OUTSIDE[name](transform, w)
        derivatives.append(torch.autograd.grad(result, w)[0])
        assert w.grad is None
    assert torch.equal(*derivatives)
    assert derivatives[0] != 0
    with torch.no_grad():
        assert not OUTSIDE[name](fnn.grad, w.requires_grad_()).requires_grad


def test_only_what_depends_on_the_outside_requires_grad():
    w = CLOSED.clone().requires_grad_()
    value, grads = fnn.value_and_grad(lambda p: (w * p["a"] ** 2).sum() + (p["b"] ** 2).sum())({"a": X, "b": X + 1})
    assert value.requires_grad
    assert grads["a"].requires_grad
    assert not grads["b"].requires_grad
    torch.testing.assert_close(torch.autograd.grad(value, w)[0], X.square().sum())


def test_frozen_module_and_teacher():
    """Parameters of a module are seen, and no gradient is added to them."""
    module = Weighted()
    loss = lambda p, x: torch.func.functional_call(module, p, (x,))
    params = dict(module.named_parameters())
    expected = torch.func.grad(loss)(params, X)
    assert equal(fnn.grad(loss)(params, X), expected)
    assert all(p.grad is None and p.requires_grad for p in module.parameters())


@pytest.mark.parametrize("transform", [fnn.grad, fnn.value_and_grad])
def test_positions_and_aux(transform):
    f = lambda x, y, z: ((x * y).sum() * z, {"product": x * y, "text": "kept", "x": x})
    args = X, X + 1, torch.tensor(3.0, dtype=torch.float64)
    for argnums in (0, 1, 2, -1, -3, (0,), (0, 2), (-1, 0), [1]):
        result = transform(f, argnums, has_aux=True)(*args)
        (value, aux), grads = result if transform is fnn.value_and_grad else ((None, result[1]), result[0])
        numbers = argnums if isinstance(argnums, int) else tuple(argnums)
        places = numbers % 3 if isinstance(numbers, int) else tuple(n % 3 for n in numbers)
        expected, theirs = torch.func.grad_and_value(lambda *a: f(*a)[0], places)(*args)
        assert equal(grads, expected)
        assert isinstance(grads, tuple) == isinstance(numbers, tuple)
        assert value is None or torch.equal(value, theirs)
        assert aux["text"] == "kept"
        assert torch.equal(aux["product"], X * (X + 1))
        assert not aux["product"].requires_grad
        assert not aux["x"].requires_grad


@pytest.mark.parametrize("inside", [False, True])
def test_containers_of_every_kind(inside):
    """Those that torch.func knows, and those that only fnn.tree knows."""
    tree = collections.UserDict(a=X[0], b=[X[1], collections.OrderedDict(c=X[2])])
    f = lambda t, x: ((t["a"] * t["b"][0] * t["b"][1]["c"] * x).sum(), collections.UserDict(twice=2 * t["a"]))

    def call(x):
        grads, aux = fnn.grad(f, has_aux=True)(tree, x)
        assert type(grads) is type(aux) is collections.UserDict
        assert type(grads["b"][1]) is collections.OrderedDict
        return grads["a"], aux["twice"]

    gradient, twice = vmap(call)(X) if inside else call(X[3])
    rows = X if inside else X[3]
    torch.testing.assert_close(gradient, X[1] * X[2] * rows)
    torch.testing.assert_close(twice, (2 * X[0]).expand_as(rows))


def test_saves_for_the_backward_pass_what_backward_saves():
    model = fnn.models.mlp(*[32] * 8, activation=fnn.layers.tanh)
    params, x = model.init(key(0)), torch.ones(16, 32)
    loss = lambda p: fnn.losses.mse(model.apply(p, x), x)

    def saved(call):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.nbytes) or t, lambda t: t):
            call()
        return sum(sizes)

    leaves, treedef = fnn.tree.flatten(params)
    own = [leaf.clone().requires_grad_() for leaf in leaves]
    expected = saved(lambda: loss(treedef.unflatten(own)).backward())
    assert saved(lambda: fnn.grad(loss)(params)) == expected
    graph_of_backward = lambda: torch.autograd.grad(loss(treedef.unflatten(own)), own, create_graph=True)
    assert saved(graph_of_backward) > expected  # what torch.func would save


def test_keeps_no_activations_alive():
    alive = []

    def f(p):
        hidden = (p * 2).tanh()
        alive.append(weakref.ref(hidden))
        return hidden.sum(), hidden.sum()

    result = fnn.value_and_grad(f, has_aux=True)(X)
    assert alive[0]() is None
    assert result[0][1].grad_fn is None


def test_empty_params():
    assert fnn.value_and_grad(lambda p: torch.ones(()))({}) == (torch.ones(()), {})


def test_inference_tensors_and_meta_tensors():
    with torch.inference_mode():
        data = torch.ones(4)
    torch.testing.assert_close(fnn.grad(lambda p: (p * data).sum())(torch.ones(4)), torch.ones(4))
    torch.testing.assert_close(fnn.grad(lambda p: (p**2).sum())(data), 2 * torch.ones(4))
    model = fnn.models.mlp(4, 3)
    params = fnn.tree.to(model.init(key(0)), "meta")
    grads = fnn.grad(lambda p: model.apply(p, torch.ones(2, 4, device="meta")).sum())(params)
    assert {leaf.device.type for leaf in fnn.tree.leaves(grads)} == {"meta"}


def test_threads():
    results = [None] * 4

    def work(i):
        results[i] = fnn.grad(lambda p: (p**2).sum() * i)(X)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, result in enumerate(results):
        torch.testing.assert_close(result, 2 * i * X)


def in_place(p):
    p.mul_(2)
    return p.sum()


def backward(p):
    p.sum().backward()
    return (p**2).sum()


ERRORS = {
    "None": (TypeError, lambda g: g(lambda p: p["w"].sum())({"w": X, "b": None}), r"argument 0\['b'\] is None"),
    "a number": (TypeError, lambda g: g(lambda x: x**2)(3.0), r"argument 0 is 3.0, not a tensor; write torch.tensor"),
    "an array": (TypeError, lambda g: g(lambda x: x.sum())(X.numpy()), "argument 0 is a ndarray, not a tensor"),
    "an integer leaf": (
        TypeError,
        lambda g: g(lambda p, q: p.sum(), 1)(X, {"n": torch.ones(2, dtype=torch.int64)}),
        r"argument 1\['n'\] is a torch.int64 tensor and has no gradient; split it off",
    ),
    "a module": (TypeError, lambda g: g(lambda m: m(X))(Weighted()), "from_module"),
    "a vector": (ValueError, lambda g: g(lambda p: p[0])(X), r"scalar value, got a tensor of shape \(4,\).*loss.mean"),
    "a number for a value": (ValueError, lambda g: g(lambda p: p.sum().item())(X), "got a float.*without .item"),
    "nothing for a value": (ValueError, lambda g: g(lambda p: None)(X), "got a NoneType; return the loss"),
    "a pair without has_aux": (ValueError, lambda g: g(lambda p: (p.sum(), p))(X), "got a tuple; write has_aux=True"),
    "has_aux without a pair": (
        ValueError,
        lambda g: g(lambda p: p.sum(), has_aux=True)(X),
        r"returns \(value, aux\), got a tensor of shape \(\)",
    ),
    "an integer value": (ValueError, lambda g: g(lambda p: p.argmax())(X), "torch.int64 value has no gradient"),
    "a complex value": (ValueError, lambda g: g(lambda p: (p * 1j).sum())(X), "complex128 value has no gradient"),
    "a position too far": (ValueError, lambda g: g(lambda p: p.sum(), 1)(X), "argument 1 is asked for.* got 1"),
    "the argument by name": (ValueError, lambda g: g(lambda p: p.sum())(p=X), "argument 0 is asked for.* got 0"),
    "a position twice": (ValueError, lambda g: g(lambda p, q: p.sum(), (0, -2))(X, X), "named once"),
    "in place": (ValueError, lambda g: g(in_place)(X), "changes an argument in place.*write p = p"),
    "backward": (ValueError, lambda g: g(backward)(X), r"calls .backward\(\)"),
}


@pytest.mark.parametrize("transform", [fnn.grad, fnn.value_and_grad])
@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_sentences(name, transform):
    kind, call, words = ERRORS[name]
    before = X.clone()
    with pytest.raises(kind, match=words):
        call(transform)
    assert torch.equal(X, before)
    assert not X.requires_grad
