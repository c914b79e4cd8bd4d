"""scan, fori_loop and epoch mean the Python loop: eager and traced, under every transform."""

import collections
from typing import NamedTuple

import pytest
import torch
from torch.func import grad, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx

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


def traced(function, *args, functional=False):
    """The graph that fnn.jit makes, before it is compiled, and the function that runs it."""
    leaves, treedef = fnn.tree.flatten(args)
    results = []

    def flat(*leaves):
        out, out_def = fnn.tree.flatten(function(*treedef.unflatten(leaves)))
        results.append((out_def, [leaf is None for leaf in out]))
        return [leaf for leaf in out if leaf is not None]

    flat = torch.func.functionalize(flat) if functional else flat
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
        changed = h * x * params["b"]
        changed[0] = x[0]
        changed[1:] += h[:2]
        return new.tanh_() + changed, rows.T[1:].reshape(-1)

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
    "hessian": lambda f: lambda p, c, xs: torch.func.hessian(lambda c: scalar(f(p, c, xs)))(c),
    "ordinary autograd": lambda f: lambda p, c, xs: ordinary_gradient(lambda c, xs: scalar(f(p, c, xs)), c, xs),
}  # fmt: skip


def ordinary_gradient(f, *args):
    args = [arg.detach().requires_grad_() for arg in args]
    with torch.enable_grad():
        first = torch.autograd.grad(f(*args), args, create_graph=True)
        return [*first, *torch.autograd.grad(scalar(list(first)), args)]


FEW = {gru, gradient_of_what_is_closed_over, nested, named_tuple}  # for which every transform is tried
SHORT = {"plain", "grad", "per-sample gradients", "jvp", "vmap over carry"}
TABLE = [(problem, name) for problem in PROBLEMS for name in TRANSFORMS if name in SHORT or problem in FEW]


@pytest.mark.parametrize(("problem", "transform"), TABLE, ids=lambda each: getattr(each, "__name__", each))
def test_every_transform_of_every_step_is_that_of_the_loop(problem, transform):
    through = lambda scan: TRANSFORMS[transform](lambda *args: problem(scan, *args))
    args = PARAMS, H, XS
    expected = through(plain_scan)(*args)
    close(through(fnn.scan)(*args), expected)
    graph, run = traced(through(fnn.scan), *args)
    assert (loops_in(graph) > 0) == (transform != "ordinary autograd")
    close(run(*args), expected)
    loops.run_as_python_loops(graph)
    close(run(*args), expected)


@pytest.mark.parametrize("transform", ["plain", "grad", "per-sample gradients", "jvp(grad)"])
@pytest.mark.parametrize("problem", [gru, nested, in_place_and_views], ids=lambda problem: problem.__name__)
def test_functionalized_trace(problem, transform):
    through = lambda scan: TRANSFORMS[transform](lambda *args: problem(scan, *args))
    graph, run = traced(through(fnn.scan), PARAMS, H, XS, functional=True)
    assert loops_in(graph) > 0
    close(run(PARAMS, H, XS), through(plain_scan)(PARAMS, H, XS))


@pytest.mark.parametrize("options", [{"unroll": 2}, {"unroll": 3}, {"unroll": 7}, {"remat": True}], ids=str)
@pytest.mark.parametrize("transform", ["plain", "grad", "per-sample gradients", "jvp(grad)"])
def test_unroll_and_remat_change_no_value(transform, options):
    with_options = lambda *args: fnn.scan(*args, **options)
    through = lambda scan: TRANSFORMS[transform](lambda *args: several_carries(scan, *args))
    args = PARAMS, H, normal(5, 7, SIZE)
    expected = through(plain_scan)(*args)
    close(through(with_options)(*args), expected)
    graph, run = traced(through(with_options), *args)
    assert (loops_in(graph) > 0) == (options != {"unroll": 7})
    close(run(*args), expected)


def sizes_of_inputs(graph):
    """How many numbers the loops of a graph are given along the axis of the steps."""
    nodes = graph.graph.find_nodes(op="call_function", target=_torch.scan_op)
    return sum(x.meta["val"].numel() for node in nodes for x in node.args[2])


def test_remat_keeps_the_carries_alone():
    def step(h, x):
        for _ in range(5):
            h = torch.tanh(h * x)
        return h, None

    kept = {}
    for remat in (False, True):
        gradient_of = grad(lambda h, xs, remat=remat: fnn.scan(step, h, xs, remat=remat)[0].sum())
        kept[remat] = sizes_of_inputs(traced(gradient_of, H, XS)[0])
    assert kept[True] == 3 * LENGTH * SIZE  # xs forward; carries and xs backward
    assert kept[False] >= 7 * LENGTH * SIZE


def test_what_does_not_change_in_the_loop_is_not_kept_for_each_step():
    """A product with a transformed weight: the weight is not stacked, though the backward pass needs it."""
    step = lambda h, x: (torch.tanh((PARAMS["w"].T * 2) @ h + x), None)
    gradient_of = grad(lambda h, xs: fnn.scan(step, h, xs)[0].sum(), (0, 1))
    assert sizes_of_inputs(traced(gradient_of, H, XS)[0]) <= 4 * LENGTH * SIZE


@pytest.mark.parametrize("transform", ["plain", "grad", "per-sample gradients", "jvp(grad)"])
def test_the_graph_does_not_grow_with_the_length(transform):
    through = TRANSFORMS[transform](lambda *args: gru(fnn.scan, *args))
    counts = {sum(len(module.graph.nodes) for module in traced(through, PARAMS, H, normal(6, n, SIZE))[0].modules())
              for n in (3, 300)}  # fmt: skip
    assert len(counts) == 1


# What a step's graph does not keep: the loop is written out


class Doubled(torch.autograd.Function):
    """The identity whose derivative is 2."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, cotangent):
        return 2 * cotangent


def partly_without_gradients(x):
    with torch.no_grad():
        return torch.sin(x)


@pytest.mark.parametrize("function", [Doubled.apply, partly_without_gradients, lambda x: x.detach()],
                         ids=["custom Function", "no_grad", "detach"])  # fmt: skip
@pytest.mark.parametrize("transform", ["grad", "per-sample gradients"])
def test_steps_that_stop_or_change_gradients(transform, function):
    def problem(scan, params, carry, xs):
        return scan(lambda h, x: (torch.tanh(params["w"] @ h) + function(h * x), h), carry, xs)

    through = lambda scan: TRANSFORMS[transform](lambda *args: problem(scan, *args))
    _, run = traced(through(fnn.scan), PARAMS, H, XS)
    close(run(PARAMS, H, XS), through(plain_scan)(PARAMS, H, XS))


def test_a_loop_without_gradients_inside_a_gradient():
    def loss(scan, h, xs):
        with torch.no_grad():
            total, _ = scan(lambda t, x: (t + h * x, t), torch.zeros(SIZE), xs)
        return (total * h).sum() + scan(lambda t, x: (t + h * x, t), torch.zeros(SIZE), xs)[0].sum()

    through = lambda scan: grad(lambda *args: loss(scan, *args), (0, 1))
    close(traced(through(fnn.scan), H, XS)[1](H, XS), through(plain_scan)(H, XS))


def test_errors_of_the_step_are_its_own():
    def step(h, x):
        raise LookupError("of the step's own")

    for call in (lambda h: fnn.scan(step, h, XS)[0].sum(), grad(lambda h: fnn.scan(step, h, XS)[0].sum())):
        with pytest.raises(LookupError, match="of the step's own"):
            traced(call, H)


def test_a_failure_inside_the_trace_of_a_step_is_raised_and_does_not_unroll_the_loop():
    calls = []

    def step(h, x):
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("only at first")
        return h * x, h

    with pytest.raises(RuntimeError, match="only at first"):
        traced(grad(lambda h: fnn.scan(step, h, XS)[0].sum()), H)
    assert len(calls) == 1


def test_a_tangent_that_reaches_no_result():
    """The gradient of a step that is linear in the params does not depend on the params."""
    problem = lambda scan, p, xs: scan(lambda h, x: (h + (p @ x).sum(), None), torch.zeros(()), xs)[0]
    product = lambda scan: lambda p, t: jvp(grad(lambda p: problem(scan, p, XS)), (p,), (t,))
    p, t = PARAMS["w"], PARAMS["u"]
    graph, run = traced(product(fnn.scan), p, t)
    assert loops_in(graph) > 0
    close(run(p, t), product(plain_scan)(p, t))


def test_pullback_after_the_transform_has_ended():
    """vjp returns a function that is called when its level is gone, alone, under vmap and differentiated."""

    def both(scan):
        def function(h, xs):
            _, pullback = torch.func.vjp(lambda h, xs: gru(scan, PARAMS, h, xs)[1], h, xs)
            directions = torch.ones(2, LENGTH, SIZE) * h
            return vmap(pullback)(directions), grad(lambda d: scalar(pullback(d)))(directions[0])

        return function

    close(traced(both(fnn.scan), H, XS)[1](H, XS), both(plain_scan)(H, XS))


# Trees


@pytest.mark.parametrize("trace", [False, True], ids=["eager", "traced"])
@pytest.mark.parametrize("empty", [(), {}, None], ids=str)
def test_empty_carries_ys_and_xs(empty, trace):
    call = lambda function, *args: traced(function, *args)[1](*args) if trace else function(*args)
    carry, ys = call(lambda xs: fnn.scan(lambda c, x: (c, x * 2), empty, xs), XS)
    assert carry == empty
    close(ys, XS * 2)
    carry, ys = call(lambda h, xs: fnn.scan(lambda c, x: (c + x, empty), h, xs), H, XS)
    assert ys == empty
    close(carry, H + XS.sum(0))
    carry, ys = call(lambda h: fnn.scan(lambda c, x: (c * 2, (c, x)), h, empty, length=3), H)
    close(carry, H * 8)
    close(ys[0], torch.stack([H, H * 2, H * 4]))
    assert ys[1] == empty
    carry, ys = call(lambda h: fnn.scan(lambda c, x: (empty, {"a": (None, h)}), empty, None, 3), H)
    assert carry == empty
    assert ys["a"][0] is None
    close(ys["a"][1], H.expand(3, SIZE))


@pytest.mark.parametrize("trace", [False, True], ids=["eager", "traced"])
def test_length_zero(trace):
    def function(h, xs):
        return fnn.scan(lambda c, x: (c + x["a"], (c.sum(), x["b"] * 2)), h, xs)

    args = H, {"a": XS[:0], "b": torch.zeros(0, 2, dtype=torch.int32)}
    carry, (sums, rows) = traced(function, *args)[1](*args) if trace else function(*args)
    close(carry, H)
    assert sums.shape == (0,)
    assert rows.shape == (0, 2)
    assert rows.dtype == torch.int32
    per_sample = vmap(lambda h: function(h, args[1])[1][0])(torch.stack([H, H]))
    assert per_sample.shape == (2, 0)


@pytest.mark.parametrize("trace", [False, True], ids=["eager", "traced"])
def test_containers_come_back_as_they_were(trace):
    class Registered(collections.UserDict):
        pass

    torch.utils._pytree.register_pytree_node(
        Registered,
        lambda d: (list(d.values()), list(d)),
        lambda values, keys: Registered(zip(keys, values, strict=True)),
    )
    carry = State(H, collections.defaultdict(list, b=H, a=H + 1), torch.tensor(1)), Registered(z=H)
    xs = collections.OrderedDict(z=XS, a=State(XS, {}, XS[:, 0]))

    def step(carry, x):
        assert type(x) is collections.OrderedDict
        assert type(x["a"]) is State
        assert type(carry[1]) is Registered
        assert list(x) == ["z", "a"]
        return (State(carry[0].h + x["z"], {"a": H, "b": H}, carry[0].count), carry[1]), x["a"]

    function = lambda carry, xs: fnn.scan(step, carry, xs)
    new, ys = traced(function, carry, xs)[1](carry, xs) if trace else function(carry, xs)
    assert type(new[0].memory) is collections.defaultdict
    assert list(new[0].memory) == ["b", "a"]
    assert type(new[1]) is Registered
    assert type(ys) is State


@pytest.mark.parametrize("trace", [False, True], ids=["eager", "traced"])
def test_results_share_no_memory(trace):
    closed_over = torch.ones(SIZE)
    steps = {
        "carry": lambda c, x: (c, c),
        "x": lambda c, x: ({"a": x, "b": x[:]}, x),
        "closed over": lambda c, x: ({"a": closed_over, "b": closed_over}, closed_over),
        "swapped": lambda c, x: ({"a": c["b"], "b": c["a"]}, c["a"]),
    }
    for name, step in steps.items():
        carry = {"a": H.clone(), "b": H.clone() + 1}
        function = lambda carry, xs, step=step: fnn.scan(step, carry, xs)
        expected = plain_scan(step, carry, XS)
        results = traced(function, carry, XS)[1](carry, XS) if trace else function(carry, XS)
        close(results, expected)
        used = [x.untyped_storage().data_ptr() for x in (*carry.values(), XS, closed_over, *fnn.tree.leaves(results))]
        assert len(set(used)) == len(used), name


def test_eager_derivative_takes_the_xs_apart_once():
    """The backward pass of xs[i] makes a tensor as large as all xs, in each step."""

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            tensors = [leaf for leaf in torch.utils._pytree.tree_leaves(out) if isinstance(leaf, torch.Tensor)]
            self.count += sum(leaf.shape[:1] == (50,) for leaf in tensors)
            return out

    xs = normal(7, 50, SIZE)
    with Largest() as largest:
        grad(lambda xs: scalar(fnn.scan(lambda h, x: (torch.tanh(h * x), h), H, xs)))(xs)
    assert largest.count < 20


# Other loops


@pytest.mark.parametrize("trace", [False, True], ids=["eager", "traced"])
def test_fori_loop(trace):
    call = lambda function, x: traced(function, x)[1](x) if trace else function(x)
    power = lambda n: lambda x: fnn.fori_loop(2, n, lambda i, y: y * x + i, torch.ones(()))
    x = torch.tensor(2.0)
    value = 1.0
    for i in range(2, 7):
        value = value * 2.0 + i
    assert call(power(7), x).item() == value
    assert call(power(1), x).item() == 1.0
    assert call(grad(power(4)), x).item() == 2 * 2.0 + 2
    carry = torch.ones(2)
    kept = fnn.fori_loop(3, 3, lambda i, c: c + 1, carry)
    assert torch.equal(kept, carry)
    assert kept.data_ptr() != carry.data_ptr()
    assert fnn.fori_loop(0, 3, lambda i, c: c, ()) == ()


@pytest.mark.parametrize("trace", [False, True], ids=["eager", "traced"])
def test_epoch_visits_each_sample_once_in_an_order_from_the_key(trace):
    def run(data, key):
        return fnn.compile.epoch(lambda n, batch: (n + 1, batch), torch.tensor(0), data, key, 3)

    data = torch.arange(10)
    call = traced(run, data, fnn.random.key(0))[1] if trace else run
    orders = []
    for seed in range(2):
        count, seen = call(data, fnn.random.key(seed))
        assert count.item() == 3
        assert len(set(seen.flatten().tolist())) == 9
        assert torch.equal(seen.flatten(), data[fnn.random.permutation(fnn.random.key(seed), 10)[:9]])
        orders.append(seen)
    assert not torch.equal(*orders)


@pytest.mark.parametrize("optimizer", [fnn.optim.sgd(0.1, momentum=0.9), fnn.optim.adam(0.1)], ids=["sgd", "adam"])
def test_epoch_carries_the_state_of_an_optimizer(optimizer):
    loss = lambda params, batch: ((batch[0] @ params["w"] + params["b"] - batch[1]) ** 2).mean()

    def step(carry, batch):
        params, state = carry
        value, grads = fnn.value_and_grad(loss)(params, batch)
        updates, state = optimizer.update(grads, state, params)
        return (fnn.optim.apply_updates(params, updates), state), value

    data = normal(8, 28, 2), normal(9, 28)
    run = lambda carry, data, key: fnn.compile.epoch(step, carry, data, key, 4)
    params = {"w": normal(10, 2), "b": normal(11)}
    start, key = (params, optimizer.init(params)), fnn.random.key(2)
    order = fnn.random.permutation(key, 28).reshape(7, 4)
    carry = start
    for index in order:
        carry, _ = step(carry, fnn.tree.map(lambda x, index=index: x[index], data))
    for got, losses in (run(start, data, key), traced(run, start, data, key)[1](start, data, key)):
        assert type(got[1]) is type(start[1])
        close(got, carry)
        assert losses.shape == (7,)


def test_donated_epoch():
    optimizer = fnn.optim.adam(0.1)

    def step(carry, x):
        params, state = carry
        value, grads = fnn.value_and_grad(lambda p: ((cell(p, H, x) - x) ** 2).sum())(params)
        updates, state = optimizer.update(grads, state, params)
        return (fnn.optim.apply_updates(params, updates), state), value

    run = lambda carry, xs: fnn.scan(step, carry, xs)
    expected = run((PARAMS, optimizer.init(PARAMS)), XS)
    params = fnn.tree.map(torch.clone, PARAMS)
    carry = params, optimizer.init(params)
    pointer = params["w"].data_ptr()
    jitted = fnn.jit(run, donate_argnums=0, backend="replay")
    (params, state), losses = jitted(carry, XS)
    close(((params, state), losses), expected)
    assert params["w"].data_ptr() == pointer
    close(jitted((params, state), XS), run(expected[0], XS))


def test_as_jax_does():
    jax = pytest.importorskip("jax")
    step = lambda h, x: (h * x + 1, h - x)
    as_jax = lambda x: jax.numpy.asarray(x.numpy().astype("float32"))
    expected = jax.lax.scan(step, as_jax(H), as_jax(XS))
    got = fnn.scan(step, H.float(), XS.float())
    for a, b in zip(got, expected, strict=True):
        assert torch.allclose(a, torch.from_numpy(jax.device_get(b).copy()), rtol=1e-6)
    _, ys = jax.lax.scan(lambda c, x: (c, x * 2), as_jax(H), as_jax(XS[:0]))
    assert fnn.scan(lambda c, x: (c, x * 2), H, XS[:0])[1].shape == ys.shape


ERRORS = {
    "leading lengths": (
        lambda: fnn.scan(lambda c, x: (c, x), H, (torch.ones(2), torch.ones(3))),
        ValueError, r"one leading length, got shapes \{'xs\[0\]': \(2,\), 'xs\[1\]': \(3,\)\}",
    ),
    "0-d xs": (lambda: fnn.scan(lambda c, x: (c, x), H, torch.ones(())), ValueError, "one leading length"),
    "no length": (lambda: fnn.scan(lambda c, x: (c, x), H, None), ValueError, "write length="),
    "other length": (lambda: fnn.scan(lambda c, x: (c, x), H, XS, 5), ValueError, "length is 5, but .* is 4"),
    "negative length": (lambda: fnn.scan(lambda c, x: (c, x), H, None, -1), ValueError, "non-negative integer, got -1"),
    "dtype": (
        lambda: fnn.scan(lambda c, x: ({"n": c["n"].float()}, x), {"n": H}, XS),
        ValueError, r"carry\['n'\] is \(3,\) torch.float64 and becomes \(3,\) torch.float32",
    ),
    "shape": (
        lambda: fnn.scan(lambda c, x: (c[None], x), H, XS),
        ValueError, r"carry is \(3,\) torch.float64 and becomes \(1, 3\)",
    ),
    "structure": (
        lambda: fnn.scan(lambda c, x: ({"a": c["a"], "b": x}, x), {"a": H}, XS),
        ValueError, r"differ at \['b'\]: the carry has nothing",
    ),
    "carry of None": (
        lambda: fnn.scan(lambda c, x: ({"a": None}, x), {"a": H}, XS), ValueError, r"carry\['a'\] is None in the step",
    ),
    "number in carry": (
        lambda: fnn.scan(lambda c, x: (c, x), {"n": 0}, XS), TypeError, r"carry\['n'\] is 0 \(int\).*torch.tensor\(0\)",
    ),
    "number in new carry": (
        lambda: fnn.scan(lambda c, x: ((c[0], 1.5), x), (H, H), XS), TypeError, r"carry\[1\] is 1.5 \(float\)",
    ),
    "number as y": (lambda: fnn.scan(lambda c, x: (c, {"loss": 1}), H, XS), TypeError, r"y\['loss'\] is 1 \(int\)"),
    "no pair": (lambda: fnn.scan(lambda c, x: c, H, XS), TypeError, r"returns \(carry, y\), got a tensor"),
    "unroll": (lambda: fnn.scan(lambda c, x: (c, x), H, XS, unroll=0), ValueError, "at least 1, got 0"),
    "epoch": (
        lambda: fnn.compile.epoch(lambda c, b: (c, b), H, XS, fnn.random.key(0), 5), ValueError, "between 1 and the 4",
    ),
}  # fmt: skip


@pytest.mark.parametrize("trace", [False, True], ids=["eager", "traced"])
@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_sentences(name, trace):
    function, kind, text = ERRORS[name]
    with pytest.raises(kind, match=text):
        traced(lambda x: function(), H) if trace else function()


def test_y_that_changes():
    count = iter(range(9))
    with pytest.raises(ValueError, match="the first y and a later y differ"):
        fnn.scan(lambda c, x: (c, {next(count): x}), H, XS)


@pytest.mark.slow
@pytest.mark.parametrize("transform", ["plain", "grad", "per-sample gradients", "jvp"])
def test_inductor(transform):
    problem = nested if transform == "grad" else gru
    through = lambda scan: TRANSFORMS[transform](lambda *args: problem(scan, *args))
    args = PARAMS, H, XS
    close(fnn.jit(through(fnn.scan), backend="inductor")(*args), through(plain_scan)(*args))


@pytest.mark.parametrize("problem", [gru, train_steps, named_tuple, nested], ids=lambda problem: problem.__name__)
@pytest.mark.parametrize("transform", ["plain", "grad", "per-sample gradients"])
def test_jit_replays_loops(problem, transform):
    through = lambda scan: TRANSFORMS[transform](lambda *args: problem(scan, *args))
    args = PARAMS, H, XS
    close(fnn.jit(through(fnn.scan), backend="replay")(*args), through(plain_scan)(*args))


@pytest.mark.parametrize("problem", [several_carries, no_ys], ids=lambda problem: problem.__name__)
def test_the_compiler_takes_the_graph(problem):
    args = PARAMS, H, XS
    through = lambda scan: gradient(lambda *args: problem(scan, *args))
    graph, _ = traced(through(fnn.scan), *args)
    got = torch.compile(graph, fullgraph=True)(*fnn.tree.leaves(args))
    close(list(got), fnn.tree.leaves(through(plain_scan)(*args)))


def counted(calls: list) -> fnn.Layer:
    """The identity, which notes each time that Python runs it."""
    return fnn.Layer(
        lambda key: {"w": torch.ones(2)}, lambda params, x, key=None: (calls.append(1), x * params["w"])[1]
    )


STEPS = 12
UNROLLED = {  # a loop of 12 steps whose body, as Python runs it, makes a note
    "scan": lambda calls, x, unroll: fnn.scan(
        lambda c, b: (calls.append(1), (c + b, b))[1], torch.zeros(2), x, unroll=unroll
    ),
    "epoch": lambda calls, x, unroll: fnn.compile.epoch(
        lambda c, b: (calls.append(1), (c + b[0], b))[1], torch.zeros(2), x, fnn.random.key(0), 1, unroll=unroll
    ),
    "repeat": lambda calls, x, unroll: fnn.layers.repeat(counted(calls), STEPS, unroll=unroll).apply(
        {"w": x.clone()}, x[0]
    ),
}


@pytest.mark.parametrize("name", UNROLLED)
def test_unroll_is_the_number_of_steps_in_the_body_of_the_loop(name):
    calls = []
    for unroll in (1, 2, 3):
        calls.clear()
        fnn.jit(lambda x, unroll=unroll: UNROLLED[name](calls, x, unroll))(torch.ones(STEPS, 2))
        assert len(calls) == unroll
