"""Tracing: what cannot be traced is a sentence that names the line; a graph is a value; foreign modules trace."""

import gc
import re
import types
import xml.etree.ElementTree as ElementTree
from contextlib import nullcontext

import pytest
import torch

import fnn
from fnn.layers import linear, relu, sequential

X = torch.tensor([1.0, -2.0, 3.0])
CLOSED = torch.tensor(2.5)
INTEGERS = torch.tensor([1, 2, 3])

READS = {
    "if": lambda x: x if x.sum() > 0 else -x,
    "while": lambda x: next(iter(())) if not x.any() else x,
    "and": lambda x: (x.sum() > 0) and x,
    "item": lambda x: x * x.sum().item(),
    "float": lambda x: x * float(x[0]),
    "int": lambda x: x * int(x[0]),
    "bool": lambda x: x * bool(x[0]),
    "index": lambda x: [1, 2, 3][x.long()[0]] * x,
    "mask": lambda x: x[x > 0],
    "nonzero": lambda x: x.nonzero(),
    "unique": lambda x: x.unique(),
    "masked_select": lambda x: x.masked_select(x > 0),
    "tolist": lambda x: x * x.tolist()[0],
    "numpy": lambda x: torch.from_numpy(x.numpy() * 2),
    "closed over": lambda x: x * CLOSED.item(),
    "closed over, float": lambda x: x * float(CLOSED),
    "closed over, if": lambda x: x if CLOSED > 2 else -x,
    "closed over, tolist": lambda x: x * CLOSED.tolist(),
    "inside grad": fnn.grad(lambda x: (x * x.sum().item()).sum()),
    "inside fnn": lambda x: fnn.tree.map(lambda leaf: leaf * float(leaf.sum()), {"w": x})["w"],
}


@pytest.mark.parametrize("name", READS)
def test_asking_for_a_value_names_the_file_and_line(name):
    with pytest.raises(
        TypeError, match=r"asks for the value of a tensor at .*test_trace\.py:\d+: `.*`, and while"
    ) as found:
        fnn.jit(READS[name])(X)
    assert f'"{name}"' in str(found.value)  # of the line itself


def test_a_number_made_while_tracing_may_be_read():
    jitted = fnn.jit(lambda x: x * torch.tensor(3.0).item() if torch.tensor(True) else x)
    assert torch.equal(jitted(X), X * 3)


def test_exceptions_come_out_as_they_are_and_leave_no_graph():
    class MyError(Exception):
        pass

    def fails(x):
        raise MyError("mine")

    jitted = fnn.jit(fails, donate_argnums=0)
    x = X.clone()
    with pytest.raises(MyError, match="mine"):
        jitted(x)
    assert torch.equal(x, X)
    assert fnn.compile_count(jitted) == 0
    assert not torch.compiler.is_compiling()


def test_python_runs_once_and_sees_that_it_is_traced():
    log = types.SimpleNamespace(seen=[])

    def function(x):
        log.seen.append(torch.compiler.is_compiling())
        return x * 2

    jitted = fnn.jit(function)
    jitted(X)
    jitted(X)
    assert log.seen == [True]
    assert not torch.compiler.is_compiling()


RESULTS = {
    "argument": lambda x: x,
    "twice": lambda x: (x, x),
    "view of the argument": lambda x: x[1:],
    "two views of one": lambda x: (lambda y: (y[1:], y[:2]))(x * 2),
    "expanded": lambda x: x.sum().expand(4),
    "closed over": lambda x: CLOSED,
    "view of what is closed over": lambda x: INTEGERS[1:],
    "transposed": lambda x: x.reshape(3, 1).expand(3, 2).T,
    "the same result twice": lambda x: (lambda y: {"a": y, "b": [y]})(x + 1),
    "diagonal": lambda x: torch.diag(x).diagonal(),
}


@pytest.mark.parametrize("name", RESULTS)
def test_results_own_their_memory(name):
    x = X.clone()
    jitted = fnn.jit(RESULTS[name])
    for _ in range(2):
        leaves = fnn.tree.leaves(jitted(x))
        expected = fnn.tree.leaves(RESULTS[name](x))
        assert all(map(torch.equal, leaves, expected))
        storages = [leaf.untyped_storage().data_ptr() for leaf in leaves]
        assert len(set(storages)) == len(storages)
        assert {t.untyped_storage().data_ptr() for t in (x, CLOSED, INTEGERS)}.isdisjoint(storages)
        for leaf in leaves:
            leaf.zero_()  # lies nowhere upon itself
    assert torch.equal(x, X)


def test_python_values_among_the_results():
    jitted = fnn.jit(lambda x: {"x": x * 2, "name": "abc", "none": None, "number": 3.5})
    assert jitted(X)["name"] == "abc"
    assert jitted(X)["none"] is None
    assert jitted(X)["number"] == 3.5


def test_changes_in_place_within_the_function():
    def function(x):
        y = x.clone()
        y[0] = 7.0
        y[1:] += y[0]
        y.mul_(2)
        return y, y[:2]

    for ours, eager in zip(fnn.jit(function)(X), function(X), strict=True):
        assert torch.equal(ours, eager)


class Sine(torch.autograd.Function):
    """A function of the user's own. Its derivative is three times the cosine, so that it cannot be mistaken."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.sin()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, cotangent):
        return cotangent * 3 * ctx.saved_tensors[0].cos()

    @staticmethod
    def jvp(ctx, tangent):
        return tangent * 3 * ctx.saved_tensors[0].cos()


class WithoutRules(torch.autograd.Function):
    generate_vmap_rule = False

    @staticmethod
    def forward(ctx, x):
        return x.sin()

    @staticmethod
    def backward(ctx, cotangent):
        return cotangent


def sine(x):
    y = x.clone()
    y[0] *= 2  # a change in place beside it
    return (Sine.apply(y) * x).sum()


OF_A_FUNCTION = {
    "apply": sine,
    "grad": fnn.grad(sine),
    "torch.func.grad": torch.func.grad(sine),
    "grad(grad)": fnn.grad(lambda x: fnn.grad(sine)(x).sum()),
    "vmap(grad)": lambda x: fnn.vmap(fnn.grad(lambda x: Sine.apply(x).sum()))(x[:, None]),
    "jvp": lambda x: fnn.jvp(lambda x: Sine.apply(x * x), (x,), (x,)),
}


@pytest.mark.parametrize("name", OF_A_FUNCTION)
def test_derivatives_of_the_users_own_autograd_function(name):
    ours, eager = fnn.jit(OF_A_FUNCTION[name])(X), OF_A_FUNCTION[name](X)
    assert all(map(torch.equal, fnn.tree.leaves(ours), fnn.tree.leaves(eager)))


def test_an_autograd_function_that_torch_func_cannot_use_is_refused_as_in_eager_code():
    derivative = torch.func.grad(lambda x: WithoutRules.apply(x).sum())
    for call in (derivative, fnn.jit(derivative)):
        with pytest.raises(RuntimeError, match="setup_context"):
            call(X)


def linear_after(view):
    """The gradient of a forward derivative that ends in a linear function of a view."""
    t = torch.tensor([0.5, -1.0, 2.0, 1.0])
    return fnn.grad(lambda p: fnn.jvp(lambda q: (view(q.square()) * 2).sum(), (p,), (t,))[1])


VIEWS = {
    "view": lambda x: x.view(2, 2),
    "flatten": lambda x: x[:, None].flatten(),
    "transpose": lambda x: x.view(2, 2).T,
    "slice": lambda x: x[1:],
    "none": lambda x: x,
}


@pytest.mark.parametrize("name", VIEWS)
def test_gradients_of_forward_derivatives_through_views(name):
    x = torch.tensor([1.0, -2.0, 3.0, torch.inf])
    function = linear_after(VIEWS[name])
    assert torch.equal(fnn.jit(function)(x).nan_to_num(7.0), function(x).nan_to_num(7.0))


def test_products_with_zero_tangents_are_not_computed():
    """In the tangent of a product with a constant, the constant's tangent is zero."""
    function = lambda x: fnn.jvp(lambda y: (y.view(3, 1) * torch.ones(3)).sin(), (x,), (x,))[1]
    names = [node.target.__name__ for node in fnn.trace(fnn.grad(lambda x: function(x).sum()))(X).nodes]
    assert not [name for name in names if "zero" in name]
    infinite = torch.tensor([torch.inf, 1.0, 2.0])
    scaled = fnn.grad(lambda x: fnn.jvp(lambda y: (y * X).view(3, 1).sum(), (x,), (torch.ones(3),))[1] * x[1])
    assert torch.equal(fnn.jit(scaled)(infinite), scaled(infinite))


def test_a_tensor_closed_over_that_the_function_changes_is_changed_at_each_call():
    total = torch.zeros(3)

    def function(x):
        total.add_(x)
        return total * 2

    jitted = fnn.jit(function)
    assert torch.equal(jitted(X), X * 2)
    assert torch.equal(jitted(X), X * 4)
    assert torch.equal(total, X * 2)


def test_operations_without_a_result_that_is_used_are_left_out():
    graph = fnn.trace(lambda x: (x.exp().sin(), x + 1)[1])(X)
    assert [node.target for node in graph.nodes] == [torch.ops.aten.add.Tensor]


def test_a_graph_prints_like_a_jaxpr_with_the_paths_of_params():
    model = sequential(linear(3, 4), relu, linear(4, 2))
    params = model.init(fnn.random.key(0))
    graph = fnn.trace(fnn.grad(lambda params, x: model.apply(params, x).sum()))(params, torch.ones(5, 3))
    lines = str(graph).splitlines()
    assert "a = params['0']['bias']" in lines[0]
    assert "e = x" in lines[0]
    assert sum("addmm" in line for line in lines) == 2
    assert any(re.search(r"threshold_backward \w+ \w+ 0", line) for line in lines)
    assert re.fullmatch(r"  in \(\w+, \w+, \w+, \w+\) }", lines[-1])
    # forward: two products; backward: two for the weights, one for the input of the second layer
    assert graph.flops == 2 * 5 * (3 * 4 + 4 * 2 + 3 * 4 + 4 * 2 + 4 * 2)


def test_counts_of_a_graph():
    x = torch.ones(10, 20)
    graph = fnn.trace(lambda x, w: (x @ w).relu())(x, torch.ones(20, 5))
    assert graph.flops == 2 * 10 * 20 * 5
    assert graph.bytes == 4 * (10 * 20 + 20 * 5 + 10 * 5 + 10 * 5 + 10 * 5)
    assert graph.peak_memory == 4 * (10 * 20 + 20 * 5 + 10 * 5 + 10 * 5)
    assert fnn.trace(lambda x: x.T)(x).bytes == 0


def test_a_drawing_has_every_operation():
    graph = fnn.trace(fnn.grad(lambda w, x: ((x @ w - (x[:, :2] < 1).float()) ** 2).sum()))(
        torch.ones(3, 2), torch.ones(5, 3)
    )
    drawing = ElementTree.fromstring(graph.svg())
    texts = [text.text for text in drawing.iter("{http://www.w3.org/2000/svg}text")]
    assert {"w", "x", "mm", "lt"} <= set(texts)
    assert len(texts) == 2 * (len(graph.nodes) + 2)


def test_debug_print_runs_each_time_and_in_order(capsys):
    def function(x):
        fnn.debug.print("first {}", x)
        y = fnn.grad(lambda x: (fnn.debug.print("in grad {}", x), (x * x).sum())[1])(x)
        z = fnn.vmap(lambda y: (fnn.debug.print("in vmap {}", y), y + 1)[1])(y)
        fnn.debug.print("{[b]}", {"b": z.sum()})
        return z

    function(X)
    expected = capsys.readouterr().out
    jitted = fnn.jit(function)
    for _ in range(3):
        jitted(X)
        assert capsys.readouterr().out == expected
    assert expected.splitlines()[0] == f"first {X}"
    assert fnn.compile_count(jitted) == 1


def test_nans_names_the_operation_and_the_line():
    def function(x):
        y = x - 2
        return y.log().sum()  # here

    for call in (function, fnn.jit(function), fnn.jit(fnn.grad(function))):
        expected = pytest.raises(FloatingPointError, match=r"log made a nan of shape \(3,\).*return y\.log\(\)")
        with expected, fnn.debug.nans():
            call(X)
    with pytest.raises(FloatingPointError, match="log_ made a nan"), fnn.debug.nans():
        (X - 2).log_()
    for call in (
        lambda: torch.log(-X.abs() - 1, out=torch.zeros(3)),  # tensors given by name
        lambda: torch.sum(torch.stack([X, X / 0 - X / 0]), dim=0, keepdim=True),
        lambda: torch.complex(X, X / 0) * torch.complex(X / 0, X),
    ):
        with pytest.raises(FloatingPointError, match="made a nan"), fnn.debug.nans():
            call()
    with fnn.debug.nans():
        fnn.jit(lambda x: x * 2)(torch.tensor([torch.nan, 1.0]))  # was there before
        assert torch.equal(torch.sum(X, dtype=torch.float64), X.double().sum())
    fnn.jit(function)(X)  # nothing is checked outside


def test_disable_jit():
    jitted = fnn.jit(lambda x: x if x.sum() > 0 else -x, donate_argnums=0)
    with fnn.disable_jit():
        assert torch.equal(jitted(X), X)
    with pytest.raises(TypeError, match="asks for the value"):
        jitted(X.clone())


def resnet():
    torchvision = pytest.importorskip("torchvision")
    return torchvision.models.resnet18(num_classes=4), torch.randn(2, 3, 32, 32)


def lstm():
    class Last(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = torch.nn.LSTM(3, 5, batch_first=True)
            self.head = torch.nn.Linear(5, 4)

        def forward(self, x):
            return self.head(self.lstm(x)[0][:, -1])

    return Last(), torch.randn(2, 6, 3)


@pytest.mark.parametrize("make", [lstm, pytest.param(resnet, marks=pytest.mark.slow)])
def test_modules_of_torch_replay_bit_for_bit(make):
    torch.manual_seed(0)
    module, x = make()
    params, buffers = dict(module.named_parameters()), dict(module.named_buffers())
    params = {name: p.detach().clone() for name, p in params.items()}
    y = torch.tensor([1, 3])
    module.eval()
    optimizer = fnn.optim.adam(1e-3)

    def loss(params, x, y):
        return fnn.losses.cross_entropy(torch.func.functional_call(module, (params, buffers), (x,)), y)

    def step(params, state, x, y):
        value, grads = fnn.value_and_grad(loss)(params, x, y)
        updates, state = optimizer.update(grads, state, params)
        return fnn.optim.apply_updates(params, updates), state, value, grads

    pure, donated = fnn.jit(step), fnn.jit(step, donate_argnums=(0, 1))
    state = optimizer.init(params)
    p, s = fnn.tree.map(torch.clone, (params, state))
    eager = fnn.grad(loss)(params, x, y)
    for i in range(3):
        params, state, value, grads = pure(params, state, x, y)
        p, s, other, _ = donated(p, s, x, y)
        if i == 0:
            assert all(map(torch.equal, fnn.tree.leaves(grads), fnn.tree.leaves(eager)))
        assert torch.equal(value, other)
        assert all(map(torch.equal, fnn.tree.leaves((params, state)), fnn.tree.leaves((p, s))))
    assert torch.equal(loss(params, x, y), fnn.jit(loss)(params, x, y))


def test_a_number_to_the_power_of_a_tensor() -> None:
    x = torch.arange(3.0)
    assert torch.equal(fnn.jit(lambda x: 2.0 ** (x + 1.0))(x), 2.0 ** (x + 1.0))


@pytest.mark.parametrize("length", [2, 7])
def test_a_graph_with_a_loop_prints_counts_and_draws(length: int) -> None:
    def looped(xs: torch.Tensor) -> torch.Tensor:
        return fnn.scan(lambda carry, x: (torch.tanh(carry @ x), None), torch.eye(3), xs)[0].sum()

    def unrolled(xs: torch.Tensor) -> torch.Tensor:
        carry = torch.eye(3)
        for x in xs:
            carry = torch.tanh(carry @ x)
        return carry.sum()

    xs = torch.randn(length, 3, 3, generator=torch.Generator().manual_seed(0))
    for change in (lambda f: f, fnn.grad):
        graph, plain = fnn.trace(change(looped))(xs), fnn.trace(change(unrolled))(xs)
        assert graph.flops >= plain.flops  # the loop also computes the derivative of its first carry
        assert graph.flops <= plain.flops + 54
        assert graph.bytes > 0
        assert graph.peak_memory > 0
        assert "where scan_body_0 = { lambda" in str(graph)
        assert "tanh" in str(graph).split("where")[1]
        assert graph.svg().startswith("<svg")


def test_contexts_that_disable_jit_may_be_nested_and_left_by_an_error():
    jitted = fnn.jit(lambda x: x.item())  # which cannot be traced
    with fnn.disable_jit():
        with fnn.disable_jit():
            assert jitted(torch.tensor(2.0)) == 2.0
        assert jitted(torch.tensor(2.0)) == 2.0
        with pytest.raises(KeyError), fnn.disable_jit():
            raise KeyError
        assert jitted(torch.tensor(2.0)) == 2.0
    with pytest.raises(TypeError):
        jitted(torch.tensor(2.0))


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize(
    ("fails", "outcome"), [(False, nullcontext()), (True, pytest.raises(ValueError, match="on purpose"))]
)
def test_the_garbage_collector_is_as_it_was_after_a_trace(fails, outcome, enabled):
    during = []

    @fnn.jit
    def jitted(x):
        during.append(gc.isenabled())
        if fails:
            raise ValueError("on purpose")
        return x + 1

    try:
        if not enabled:
            gc.disable()
        with outcome:
            jitted(X)
        after = gc.isenabled()
    finally:
        gc.enable()
    assert during == [False]
    assert after == enabled
