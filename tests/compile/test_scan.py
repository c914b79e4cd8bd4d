"""scan, fori_loop and epoch mean the Python loop: eager and traced, under every transform."""

import collections
from typing import NamedTuple

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.func import grad, jvp, vmap

import fnn
from fnn import _torch
from fnn.compile import loops

LENGTH, SIZE = 4, 3


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def normal(seed, *shape):
    return fnn.random.normal(fnn.random.key(seed), shape, torch.float64)


def plain_scan(step, carry, xs, length=None, unroll=1, remat=False):
    """The definition, in five lines."""
    ys = []
    for i in range(len(fnn.tree.leaves(xs)[0])):
        carry, y = step(carry, fnn.tree.map(lambda x, i=i: x[i], xs))
        ys.append(y)
    return carry, None if ys[0] is None else fnn.tree.map(lambda *leaves: torch.stack(leaves), *ys)


def traced(function, *args):
    """The graph that fnn.jit makes, before it is compiled, and the function that runs it."""
    leaves, treedef = fnn.tree.flatten(args)
    results = []

    def flat(*leaves):
        out, out_def = fnn.tree.flatten(function(*treedef.unflatten(leaves)))
        results.append((out_def, [leaf is None for leaf in out]))
        return [leaf for leaf in out if leaf is not None]

    graph = make_fx(flat, tracing_mode="fake", _allow_non_fake_inputs=True)(*leaves)
    out_def, absent = results[-1]

    def run(*args):
        found = iter(graph(*fnn.tree.leaves(args)))
        return out_def.unflatten([None if each else next(found) for each in absent])

    return graph, run


def loops_in(graph):
    return sum(node.target is _torch.scan_op for node in graph.graph.nodes)


def close(got, expected):
    got, expected = (fnn.tree.map(lambda x: torch.zeros(()) if x is None else x, tree) for tree in (got, expected))
    fnn.tree.check_same_structure(got, expected, ("got", "expected"))
    for path, a, b in zip(fnn.tree.keystrs(got), fnn.tree.leaves(got), fnn.tree.leaves(expected), strict=True):
        assert a.shape == b.shape, path
        assert a.dtype == b.dtype, path
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10, msg=lambda text, path=path: f"{path}: {text}")


# Each problem is (scan, params, carry, xs) -> results; params are closed over by the step unless it says otherwise.

PARAMS = {"w": normal(0, SIZE, SIZE) / 2, "u": normal(1, SIZE, SIZE) / 2, "b": normal(2, SIZE)}
H, XS = normal(3, SIZE), normal(4, LENGTH, SIZE)


def cell(params, h, x):
    """A gated recurrent unit with one gate."""
    gate = torch.sigmoid(params["w"] @ h + params["b"])
    return gate * h + (1 - gate) * torch.tanh(params["u"] @ x)


class State(NamedTuple):
    h: torch.Tensor
    memory: dict
    count: torch.Tensor


def running_sum(scan, params, carry, xs):
    return scan(lambda total, x: (total + x, total * x), carry, xs)


def linear_rnn(scan, params, carry, xs):
    return scan(lambda h, x: (params["w"] @ h + x, h), carry, xs)


def gru(scan, params, carry, xs):
    def step(h, x):
        h = cell(params, h, x)
        return h, h

    return scan(step, carry, xs)


def gru_params_in_carry(scan, params, carry, xs):
    def step(carry, x):
        h = cell(carry["params"], carry["h"], x)
        return {"params": carry["params"], "h": h}, (h**2).sum()

    return scan(step, {"params": params, "h": carry}, xs)


def train_steps(scan, params, carry, xs):
    loss = lambda p, x: ((cell(p, carry, x) - x) ** 2).mean() + (p["b"] * carry).sum()

    def step(p, x):
        value, grads = fnn.value_and_grad(loss)(p, x)
        return fnn.tree.map(lambda a, g: a - 0.1 * g, p, grads), value

    return scan(step, params, xs)


def gradient_of_what_is_closed_over(scan, params, carry, xs):
    """The step differentiates with respect to a tensor that it closes over, by torch.func and by fnn."""

    def step(h, x):
        force = grad(lambda w: torch.tanh(w @ h).sum())(params["w"])
        _, grads = fnn.value_and_grad(lambda p: (cell(p, h, x) ** 2).sum())(params)
        return force @ x + grads["b"], (grads["u"] * params["w"]).sum(0)

    return scan(step, carry, xs)


def transforms_in_the_step(scan, params, carry, xs):
    def step(h, x):
        rows = vmap(lambda row, scale: torch.sin(row * x) * scale)(params["w"], params["b"])
        _, moved = jvp(lambda b: torch.sigmoid(b * h), (params["b"],), (params["b"] * x,))
        return rows.sum(0) + moved, vmap(grad(lambda row: (row * h).sum() ** 2))(params["u"])

    return scan(step, carry, xs)


def nested(scan, params, carry, xs):
    def step(h, x):
        inner = lambda g, z: (torch.tanh(params["w"] @ g + z * h), (g * x).sum())
        return scan(inner, x, xs[:2])

    return scan(step, carry, xs)


def several_carries(scan, params, carry, xs):
    def step(carry, x):
        (h, total), count = carry["state"], carry["count"]
        h = torch.tanh(params["w"] @ h + x * count)
        return {"state": (h, total + (h * x).sum()), "count": count + 1}, (h[:2], {"n": count})

    return scan(step, {"state": (carry, carry.sum()), "count": torch.tensor(1)}, (xs))


def named_tuple(scan, params, carry, xs):
    def step(state, x):
        h = torch.tanh(params["w"] @ state.h + x["in"])
        memory = collections.defaultdict(list, {"old": state.h * x["scale"]})
        return State(h, memory, state.count + 1), State(h.sum(), {}, state.count)

    state = State(carry, collections.defaultdict(list, {"old": carry * 2}), torch.tensor(0))
    return scan(step, state, {"in": xs, "scale": xs[:, :1]})


def no_ys(scan, params, carry, xs):
    return scan(lambda h, x: (cell(params, h, x), None), carry, xs)


def in_place_and_views(scan, params, carry, xs):
    def step(h, x):
        rows = params["w"] * h
        rows[0].mul_(2)  # of the step's own
        new = torch.cat([rows[:, 0] + x, h.flip(0)]).reshape(2, -1)[0]
        return new.tanh_(), rows.T[1:].reshape(-1)

    return scan(step, carry, xs)


PROBLEMS = [
    running_sum, linear_rnn, gru, gru_params_in_carry, train_steps, gradient_of_what_is_closed_over,
    transforms_in_the_step, nested, several_carries, named_tuple, no_ys, in_place_and_views,
]  # fmt: skip


def scalar(results):
    leaves = [leaf for leaf in fnn.tree.leaves(results) if leaf is not None and leaf.is_floating_point()]
    return sum((leaf**2).sum() for leaf in leaves)


def gradient(f):
    return grad(lambda *args: scalar(f(*args)), (0, 1, 2))


def norm_of(f):
    return lambda *args: scalar(gradient(f)(*args))


def floating(f):
    """Only the results that have tangents."""
    return lambda *args: [x for x in fnn.tree.leaves(f(*args)) if x is not None and x.is_floating_point()]


def stacked(x):
    return fnn.tree.map(lambda leaf: torch.stack([leaf, 0.5 * leaf]), x)


def tensors(f):
    return lambda *args: [x for x in fnn.tree.leaves(f(*args)) if x is not None]


TRANSFORMS = {
    "plain": lambda f: f,
    "grad": gradient,
    "per-sample gradients": lambda f: lambda p, c, xs: vmap(gradient(f), (None, None, 0))(p, c, stacked(xs)),
    "jvp": lambda f: lambda *args: jvp(floating(f), args, args),
    "jvp(grad)": lambda f: lambda *args: jvp(gradient(f), args, args),
    "grad(grad)": lambda f: grad(norm_of(f), (0, 1, 2)),
    "grad(jvp)": lambda f: grad(lambda *args: scalar(jvp(floating(f), args, args)[1]), (0, 1, 2)),
    "vmap over carry": lambda f: lambda p, c, xs: vmap(tensors(f), (None, 0, None))(p, stacked(c), xs),
    "vmap over params": lambda f: lambda p, c, xs: vmap(tensors(f), (0, None, None))(stacked(p), c, xs),
    "jacobian": lambda f: lambda p, c, xs: torch.func.jacrev(lambda c: scalar(f(p, c, xs)) * c)(c),
    "hessian": lambda f: lambda p, c, xs: torch.func.hessian(lambda c: scalar(f(p, c, xs)))(c),
    "ordinary autograd": lambda f: lambda p, c, xs: ordinary_gradient(lambda c, xs: scalar(f(p, c, xs)), c, xs),
}  # fmt: skip


def ordinary_gradient(f, *args):
    args = [arg.detach().requires_grad_() for arg in args]
    with torch.enable_grad():
        first = torch.autograd.grad(f(*args), args, create_graph=True)
        return [*first, *torch.autograd.grad(scalar(list(first)), args)]


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.__name__)
def test_every_transform_of_every_step_is_that_of_the_loop(problem, transform):
    through = lambda scan: TRANSFORMS[transform](lambda *args: problem(scan, *args))
    args = PARAMS, H, XS
    expected = through(plain_scan)(*args)
    close(through(fnn.scan)(*args), expected)
    graph, run = traced(through(fnn.scan), *args)
    assert loops_in(graph) > 0
    close(run(*args), expected)
