"""Products against dense matrices from plain torch.func in float64, also compiled, vmapped and differentiated."""

import functools
import itertools

import pytest
import torch
import torch.nn.functional as F

import fnn
from fnn.curvature import (
    empirical_fisher_product,
    fisher_product,
    ggn_diagonal,
    ggn_operator,
    ggn_product,
    hvp,
    hvp_mode,
    vhp,
)
from fnn.jacobian import directional_derivatives, jmp, linearize_by_vjp, mjp, ntk

MODEL = fnn.models.mlp(4, 5, 3, activation=fnn.layers.tanh)
PARAMS = fnn.tree.cast(MODEL.init(fnn.random.key(0)), torch.float64)
X = fnn.random.normal(fnn.random.key(1), (6, 4), torch.float64)
Y = fnn.random.randint(fnn.random.key(2), (6,), 0, 3)
VECTOR, UNRAVEL = fnn.tree.ravel(PARAMS)
TANGENT = fnn.tree.cast(fnn.random.like(fnn.random.key(3), PARAMS), torch.float64)
V = fnn.tree.ravel(TANGENT)[0]
MODES = ["auto", "forward-over-reverse", "reverse-over-forward", "reverse-over-reverse"]


def predict(params):
    return MODEL.apply(params, X)


def compare(output):
    return fnn.losses.cross_entropy(output, Y)


def loss(params):
    return compare(predict(params))


def losses(params):
    return fnn.losses.cross_entropy(predict(params), Y, reduction="none")


def jacobian():
    return torch.func.jacrev(lambda v: predict(UNRAVEL(v)).reshape(-1))(VECTOR)


def hessian():
    return torch.func.hessian(lambda v: loss(UNRAVEL(v)))(VECTOR)


def ggn():
    p = torch.softmax(predict(PARAMS), 1)
    blocks = torch.block_diag(*[torch.diag(row) - torch.outer(row, row) for row in p]) / len(X)
    return jacobian().T @ blocks @ jacobian()


def empirical():
    rows = torch.func.jacrev(lambda v: losses(UNRAVEL(v)))(VECTOR)
    return rows.T @ rows / len(X)


def flat(tree):
    return fnn.tree.ravel(tree)[0]


# name -> (product with a tangent, first result, second result as a vector)
PRODUCTS = {
    **{
        f"hvp, {mode}": (
            lambda p, t, mode=mode: hvp(loss, (p,), (t,), mode),
            lambda: flat(torch.func.grad(loss)(PARAMS)),
            lambda: hessian() @ V,
        )
        for mode in MODES
    },
    "vhp": (lambda p, t: vhp(loss, (p,), (t,)), lambda: flat(torch.func.grad(loss)(PARAMS)), lambda: hessian().T @ V),
    "ggn": (lambda p, t: ggn_product(predict, compare, (p,), (t,)), lambda: predict(PARAMS), lambda: ggn() @ V),
    "fisher": (lambda p, t: fisher_product(predict, (p,), (t,)), lambda: predict(PARAMS), lambda: ggn() @ V),
    "empirical fisher": (
        lambda p, t: empirical_fisher_product(losses, (p,), (t,)),
        lambda: losses(PARAMS),
        lambda: empirical() @ V,
    ),
    "linearize": (
        lambda p, t: (lambda out, push: (out, push(t)))(*linearize_by_vjp(predict, p)),
        lambda: predict(PARAMS),
        lambda: jacobian() @ V,
    ),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_equals_dense_also_mapped(name):
    result = PRODUCTS[name][0](PARAMS, TANGENT)
    check(name, result)
    stacked = fnn.tree.stack([TANGENT, fnn.tree.scale(2.0, TANGENT)])
    mapped = torch.func.vmap(lambda t: PRODUCTS[name][0](PARAMS, t)[1])(stacked)
    check(name, (result[0], fnn.tree.map(lambda leaf: leaf[1] / 2, mapped)))


def check(name, result):
    _, first, second = PRODUCTS[name]
    for ours, theirs in zip(result, (flat(first()), second()), strict=True):
        torch.testing.assert_close(flat(ours), theirs, rtol=1e-11, atol=1e-13)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "names"), [("replay", list(PRODUCTS)), ("inductor", ["ggn"])], ids=["traced", "code"]
)
def test_one_graph_of_all_equals_dense(backend, names):
    together = fnn.jit(lambda p, t: {name: PRODUCTS[name][0](p, t) for name in names}, backend=backend)
    for name, result in together(PARAMS, TANGENT).items():
        check(name, result)


@pytest.mark.parametrize("name", [name for name in PRODUCTS if name != "linearize"])
def test_products_are_linear_and_differentiable(name):
    """d/dt of v^T A(params + t v) v by forward mode against central differences."""
    product = PRODUCTS[name][0]
    energy = lambda p: fnn.tree.dot(TANGENT, product(p, TANGENT)[1])
    slope = fnn.tree.dot(torch.func.grad(energy)(PARAMS), TANGENT)
    high, low = (energy(fnn.tree.map(lambda p, t, s=s: p + s * t, PARAMS, TANGENT)) for s in (1e-5, -1e-5))
    torch.testing.assert_close(slope, (high - low) / 2e-5, rtol=1e-7, atol=1e-9)


def test_several_primals_and_auxiliary_output():
    f = lambda a, b: (a["w"] ** 2 @ b, {"seen": a["w"] + b})
    primals = {"w": torch.tensor([1.0, 2.0])}, torch.tensor([3.0, 4.0])
    tangents = {"w": torch.tensor([1.0, 0.0])}, torch.tensor([0.0, 1.0])
    for mode in MODES:
        grads, product, aux = hvp(f, primals, tangents, mode, has_aux=True)
        assert torch.equal(grads[0]["w"], torch.tensor([6.0, 16.0]))
        assert torch.equal(product[0]["w"], torch.tensor([6.0, 4.0]))  # 2 b v + 2 w u
        assert torch.equal(product[1], torch.tensor([2.0, 0.0]))
        assert torch.equal(aux["seen"], torch.tensor([4.0, 6.0]))
    for curvature in (
        lambda g: ggn_product(g, lambda y: y.sum() ** 2, primals, tangents, has_aux=True),
        lambda g: jmp(g, primals, fnn.tree.stack([tangents, tangents]), has_aux=True),
        lambda g: mjp(g, primals, torch.ones(2), has_aux=True),
    ):
        output, _, aux = curvature(f)
        assert output == 19.0
        assert torch.equal(aux["seen"], torch.tensor([4.0, 6.0]))


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_many_tangents_and_cotangents(chunk_size):
    columns = fnn.random.normal(fnn.random.key(4), (5, len(VECTOR)), torch.float64)
    rows = fnn.random.normal(fnn.random.key(5), (5, *predict(PARAMS).shape), torch.float64)
    push = lambda p, c: jmp(predict, (p,), (torch.func.vmap(UNRAVEL)(c),), chunk_size)
    pull = lambda p, r: mjp(predict, (p,), r, chunk_size)
    for function in (push, pull):
        for call in (function, fnn.jit(function))[: 2 if chunk_size else 1]:
            output, products = call(PARAMS, columns if function is push else rows)
            torch.testing.assert_close(output, predict(PARAMS))
            if function is push:
                expected = columns @ jacobian().T
                torch.testing.assert_close(products.flatten(1), expected, rtol=1e-11, atol=1e-13)
            else:
                expected = rows.flatten(1) @ jacobian()
                torch.testing.assert_close(torch.func.vmap(flat)(products), expected, rtol=1e-11, atol=1e-13)


def test_directional_derivatives():
    """Those of exp(a . x) are (a . v)^k exp(a . x)."""
    a, x, v = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    f = lambda x, order=4: directional_derivatives(lambda x: {"y": torch.exp(a @ x)}, (x,), (v,), order)
    for call in (f, fnn.jit(f)):
        got = torch.stack([d["y"] for d in call(x)])
        torch.testing.assert_close(got, torch.exp(a @ x) * (a @ v) ** torch.arange(5.0).double())


@pytest.mark.parametrize("likelihood", ["categorical", "normal", "bernoulli"])
@pytest.mark.parametrize("shape", [(3,), (3, 2)])
def test_drawn_fisher_is_unbiased(likelihood, shape):
    """The mean over many draws against the exact product, within four standard errors; 'normal' and others alike."""
    weight = fnn.random.normal(fnn.random.key(6), (2, *shape, 4), torch.float64)
    model = lambda w: weight @ w
    w, v = fnn.random.normal(fnn.random.key(7), (2, 4), torch.float64)
    exact = fisher_product(model, (w,), (v,), likelihood)[1]
    keys = fnn.random.split(fnn.random.key(8), 2000)
    draws = torch.func.vmap(lambda key: fisher_product(model, (w,), (v,), likelihood, key)[1])(keys)
    error = (draws.mean(0) - exact).abs() / (draws.std(0) / len(keys) ** 0.5)
    assert error.max() < 4
    several = fisher_product(model, (w,), (v,), likelihood, keys[0], draws=50)[1]
    assert (several - exact).norm() < 0.5 * (draws - exact).norm(dim=1).mean()


def test_auto_is_right_where_other_modes_are_not():
    x, target = torch.linspace(-1, 1, 5).double(), torch.zeros(5).double()
    every = "all modes work"
    cases = {
        "fnn": (lambda x: fnn.losses.huber(torch.sin(x), target), every),
        "torch": (lambda x: F.huber_loss(torch.sin(x), target), "forward-over-reverse fails at huber_loss_backward"),
        "zero": (lambda x: F.mse_loss(torch.sin(x), target), "forward-over-reverse fails at an operation such as"),
        "function": (lambda x: Cube.apply(x).sum(), "fails at a torch.autograd.Function"),
        "norm": (
            lambda x: F.mse_loss(F.layer_norm(x**2, (5,)), target + 0.3),
            "forward-over-reverse fails at native_layer_norm; reverse-over-forward fails at native_layer_norm",
        ),
    }
    for name, (f, reason) in cases.items():
        mode, why = hvp_mode(f, (x,))
        assert mode == "reverse-over-reverse", name
        assert reason in why, name
        expected = torch.autograd.functional.hvp(f, x, x)[1]
        torch.testing.assert_close(hvp(f, (x,), (x,))[1], expected)
        if name != "function":  # torch cannot trace an autograd.Function inside torch.func transforms
            jitted = fnn.jit(functools.partial(lambda f, x: hvp(f, (x,), (x,))[1], f))
            torch.testing.assert_close(jitted(x), expected)


def test_gauss_newton_functions_take_the_same_functions():
    model = lambda p, batch: MODEL.apply(p, batch[0])
    loss = lambda out, batch: F.mse_loss(out, batch[1])
    batch = X, F.one_hot(Y, 3).double()
    J = jacobian()
    G = J.T @ J * (2.0 / batch[1].numel())
    close = lambda a, b: torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)
    close(flat(ggn_product(model, loss, (PARAMS,), (TANGENT,), batch)[1]), G @ V)
    close(ggn_operator(model, loss, PARAMS, batch) @ V, G @ V)
    close(flat(ggn_diagonal(model, loss)(PARAMS, batch)), G.diagonal())


class Cube(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, cotangent):
        return cotangent * 3 * ctx.saved_tensors[0] ** 2


@pytest.mark.parametrize("mode", ["full", "trace", "diagonal"])
@pytest.mark.parametrize("method", ["contraction", "product"])
@pytest.mark.parametrize("other", [None, X[:4] + 0.1])
def test_ntk(mode, method, other):
    dense = lambda x: torch.func.jacrev(lambda v: MODEL.apply(UNRAVEL(v), x))(VECTOR)
    kernel = torch.einsum("nap,mbp->nmab", dense(X), dense(X if other is None else other))
    reduced = {
        "full": kernel,
        "trace": kernel.diagonal(dim1=2, dim2=3).sum(-1),
        "diagonal": kernel.diagonal(dim1=2, dim2=3),
    }[mode]
    for chunk_size in (None, 3):
        ours = ntk(MODEL.apply, PARAMS, X, other, mode, method, chunk_size)
        torch.testing.assert_close(ours, reduced, rtol=1e-11, atol=1e-13)
    if other is None and mode == "full":
        compiled = fnn.jit(lambda p, x: ntk(MODEL.apply, p, x, None, mode, method))
        torch.testing.assert_close(compiled(PARAMS, X), reduced, rtol=1e-11, atol=1e-13)


ONE = torch.ones(2)
TREE = {"a": ONE, "b": ONE}
SUM = lambda p: (p["a"] * p["b"]).sum()
ERRORS = {
    "no tuple": (lambda: hvp(SUM, TREE, TREE), TypeError, r"primals as a tuple.*write hvp\(f, \(params,\)"),
    "wrong tree": (lambda: hvp(SUM, (TREE,), ({"a": ONE},)), ValueError, r"differ at \['b'\]"),
    "wrong count": (lambda: hvp(SUM, (TREE,), (TREE, TREE)), ValueError, r"one tangent for each primal, 1 in all"),
    "shape": (
        lambda: ggn_product(SUM, torch.sum, (TREE,), ({"a": ONE, "b": torch.ones(3)},)),
        ValueError,
        r"tangents\[0\]\['b'\] has shape \(3,\).*\(2,\)",
    ),
    "dtype": (
        lambda: jmp(SUM, (TREE,), ({"a": ONE[None], "b": ONE[None].double()},)),
        ValueError,
        r"tangents\[0\]\['b'\] has shape \(2,\) and torch.float64.*torch.float32",
    ),
    "integer leaf": (
        lambda: hvp(SUM, ({"a": ONE, "b": torch.ones(2, dtype=torch.int64)},), (TREE,)),
        TypeError,
        r"primals\[0\]\['b'\] is a torch.int64 tensor.*partition",
    ),
    "integer output": (
        lambda: linearize_by_vjp(lambda p: (p > 0).long(), ONE),
        TypeError,
        "the function's output is a torch",
    ),
    "not a scalar": (lambda: hvp(torch.sin, (ONE,), (ONE,)), ValueError, r"shape \(2,\); write loss.mean"),
    "mode": (lambda: hvp(torch.sum, (ONE,), (ONE,), "reverse"), ValueError, "'forward-over-reverse'"),
    "no stack": (lambda: jmp(torch.sin, (torch.tensor(1.0),), (torch.tensor(1.0),)), ValueError, r"leaf\[None\]"),
    "cotangent": (lambda: mjp(torch.sin, (ONE,), torch.ones(4, 3)), ValueError, r"cotangents has shape \(3,\)"),
    "unequal": (
        lambda: jmp(SUM, (TREE,), ({"a": torch.ones(2, 2), "b": torch.ones(3, 2)},)),
        ValueError,
        r"jmp: tangents\[0\]\['b'\] has 3 products, but tangents\[0\]\['a'\] has 2",
    ),
    "chunk size": (lambda: jmp(torch.sin, (ONE,), (torch.eye(2),), 0), ValueError, "positive"),
    "order": (lambda: directional_derivatives(torch.sin, (ONE,), (ONE,), 0), ValueError, "at least 1"),
    "no forward rule": (
        lambda: hvp(lambda x: F.huber_loss(x, ONE), (ONE,), (ONE,), "forward-over-reverse"),
        TypeError,
        r"huber_loss_backward has no forward rule.*fnn.losses.huber.*reverse mode: hvp\(f, primals, tangents\)$",
    ),
    "losses": (lambda: empirical_fisher_product(torch.sum, (ONE,), (ONE,)), ValueError, "reduction='none'"),
    "likelihood": (lambda: fisher_product(torch.sin, (ONE,), (ONE,), "poisson"), ValueError, "poisson"),  # type: ignore[arg-type]
    "ntk outputs": (lambda: ntk(lambda w, x: x @ w, ONE, torch.ones(3, 2)), ValueError, r"flatten\(1\)"),
    "ntk mode": (lambda: ntk(lambda w, x: x @ w, ONE, torch.ones(3, 2), mode="all"), ValueError, "'trace'"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_sentences(name):
    call, kind, words = ERRORS[name]
    with pytest.raises(kind, match=words):
        call()


def test_a_compiled_function_raises_the_same_sentence():
    forward = fnn.jit(lambda x: hvp(lambda x: F.huber_loss(x, ONE), (x,), (x,), "forward-over-reverse")[1])
    with pytest.raises(TypeError, match="huber_loss_backward has no forward rule"):
        forward(ONE)


def test_data_among_the_primals_is_told_from_params() -> None:
    data = torch.ones(3), torch.tensor([1, 2, 3])
    f = lambda w, data: (w * data[0]).sum() + data[1].sum()
    with pytest.raises(
        TypeError, match=r"write jmp\(lambda params: f\(params, batch\), .* if all of primals\[1\] is data"
    ):
        jmp(f, (torch.ones(3), data), (torch.ones(1, 3), (torch.ones(1, 3), torch.ones(1, 3))))
    with pytest.raises(TypeError, match=r"primals\[0\].* split it off with fnn.tree.partition$"):
        jmp(lambda n: n, (torch.tensor([1]),), (torch.ones(1, 1),))


@pytest.mark.parametrize("name", ["ggn", "fisher", "drawn fisher", "empirical fisher"])
def test_products_take_the_memory_of_one_result(name: str):
    x, w = torch.randn(2, 300), torch.randn(300, 300)
    model, compare = (lambda w: torch.tanh(x @ w)), (lambda out: (out**2).sum())
    product = {
        "ggn": lambda: ggn_product(model, compare, (w,), (w,)),
        "fisher": lambda: fisher_product(model, (w,), (w,)),
        "drawn fisher": lambda: fisher_product(model, (w,), (w,), key=fnn.random.key(0)),
        "empirical fisher": lambda: empirical_fisher_product(lambda w: model(w).sum(1), (w,), (w,)),
    }[name]
    product()  # what torch keeps from its first call is not counted
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiled:
        result = product()[1]
    changes = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = itertools.accumulate(change.nbytes() for change in sorted(changes, key=lambda e: e.start_ns()))
    assert result.nbytes <= max(held) < 1.5 * result.nbytes
