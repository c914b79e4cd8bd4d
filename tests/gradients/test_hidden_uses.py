"""Leaves that are a layer's matrix and are used in a second way: norms against a loop of torch.autograd.grad.

Where a second use is missed, the norm is too small and a bound on it is broken without a word.
"""

import functools
import random

import pytest
import torch
import torch.nn.functional as F
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.fx.experimental.proxy_tensor import make_fx

import fnn
from fnn.curvature import ekfac, empirical_fisher_operator, kfac

SAMPLES, WIDTH = 3, 4


def sketch(w):
    """A number that depends on every entry of a tensor, smoothly and unevenly."""
    weights = torch.arange(1.0, w.numel() + 1, dtype=w.dtype).reshape(w.shape)
    return (weights * w.sin()).sum() / 10


@pytest.mark.parametrize("shape", [(), (1,), (WIDTH,), (1, WIDTH), (2, WIDTH)])
def test_what_is_added_in_the_place_of_a_bias(shape):
    params = {
        "w": fnn.random.normal(fnn.random.key(1), (WIDTH, 3), torch.float64),
        "b": fnn.random.normal(fnn.random.key(2), shape, torch.float64),
    }
    x = fnn.random.normal(fnn.random.key(0), (SAMPLES, 2, 3), torch.float64)
    model = lambda p, x: F.linear(x, p["w"], p["b"]).flatten(1)
    loss = lambda p, x: model(p, x).sin().sum()
    each = fnn.per_sample_grad(loss)(params, x)
    expected = {name: leaf.flatten(1).norm(dim=1) if leaf.dim() > 1 else leaf.abs() for name, leaf in each.items()}
    for method in ("ghost", "exact"):
        norms = fnn.gradients.per_sample_norms(loss, method=method, per_leaf=True)(params, x)
        assert fnn.tree.allclose(norms, expected)
        clipped = fnn.clipped_grad(loss, 1e9, method=method)(params, x)
        assert fnn.tree.allclose(clipped, fnn.tree.map(lambda leaf: leaf.sum(0), each))
    if shape == (WIDTH,):
        assert kfac(model, params, x, likelihood="normal").shape == (4 * WIDTH, 4 * WIDTH)
    else:
        with pytest.raises(ValueError, match=r"params\['b'\] is .*partition"):
            kfac(model, params, x, likelihood="normal")


def iterated(w, x):
    return sum((i + 1) * sketch(row) for i, row in enumerate(w))


def unpacked(w, x):
    first, *rest = w
    return sketch(first) * rest[-1].sum()


def zipped(w, x):
    return sum((a * b.cos()).sum() for a, b in zip(w, w.mT, strict=True))


def sliced_into(w, x):
    buffer = torch.zeros(6, WIDTH, WIDTH, dtype=w.dtype)
    return sketch(torch.cat([buffer[:2], w[None], buffer[3:]])) + sketch(torch.stack([w, w]))


def written_into_a_slice(w, x):
    copy = w.clone()
    copy[1] = 2 * copy[0]
    return sketch(copy)


def as_default(w, x):
    def inner(y, w=w):
        return (w @ y).tanh().sum()

    return inner(x[0])


def in_a_dict(w, x):
    config = {"scale": 2.0, "matrix": [w]}
    return config["scale"] * sketch(config["matrix"][0])


def in_a_partial(w, x):
    return functools.partial(F.linear, weight=w)(x).tanh().sum()


MODULE = torch.nn.Linear(WIDTH, WIDTH, bias=False)


def in_a_module(w, x):
    return torch.func.functional_call(MODULE, {"weight": w}, (x,)).sin().sum()


def by_generator(w, x):
    rows = (row for row in w)
    return sum(sketch(row) for row in rows)


def gradient_penalty(w, x):
    """The derivative of a linear function is its matrix, though no layer's output leads to it."""
    return grad(lambda y: F.linear(y, w).sum())(x).square().sum()


def autograd_of_itself(w, x):
    (slope,) = torch.autograd.grad(F.linear(x, w).sin().sum(), w, create_graph=True)
    return slope.square().sum()


def autograd_of_itself_in_a_list(w, x):
    slopes = torch.autograd.grad(outputs=(x @ w).sin().sum(), inputs=[w], create_graph=True)
    return slopes[0].square().sum()


def autograd_of_a_linear_layer(w, x):
    """The derivative of a linear layer is its matrix, though its output leads nowhere."""
    hidden = F.linear(x, w).tanh()
    (slope,) = torch.autograd.grad(F.linear(hidden, w).sum(), hidden, create_graph=True)
    return slope.square().sum()


def a_layer_and_its_derivative(w, x):
    """By torch.autograd, so that no transform of torch.func tells that one is taken."""
    hidden = F.linear(x, w).tanh()
    out = F.linear(hidden, w).sin()
    (slope,) = torch.autograd.grad(out.sum(), hidden, create_graph=True)
    return slope.square().sum() + out.square().sum()


def gradient_of_itself(w, x):
    return fnn.grad(lambda v: (F.linear(x, v) ** 3).sum())(w).square().sum()


def rows_by_vmap(w, x):
    return vmap(lambda row: (row * x[0]).sin().sum())(w).sum()


def layer_in_vmap(w, x):
    return vmap(lambda y: F.linear(y, w).tanh().sum())(torch.stack([x, 2 * x])).sum()


SECOND_USES = {
    "iterated": iterated,
    "unpacked": unpacked,
    "zipped": zipped,
    "a generator": by_generator,
    "sum": lambda w, x: w.sum() ** 2,
    "builtin sum": lambda w, x: sum(w).square().sum(),
    "abs": lambda w, x: abs(w).sum() ** 2,
    "norm": lambda w, x: torch.linalg.matrix_norm(w),
    "T": lambda w, x: sketch(w.T),
    "mT": lambda w, x: (x @ w.mT).sin().sum(),
    "H of the left": lambda w, x: (w @ x.mT).sin().sum(),
    "matrix times itself": lambda w, x: (w @ w).sin().sum(),
    "layer of itself": lambda w, x: F.linear(w, w).sin().sum(),
    "einsum": lambda w, x: torch.einsum("ij,bj->bi", w, x).sin().sum(),
    "concatenated": sliced_into,
    "written into a slice": written_into_a_slice,
    "one row": lambda w, x: sketch(w[1]),
    "an entry": lambda w, x: w[1, 2] ** 3,
    "a slice": lambda w, x: sketch(w[1:, ::2]),
    "rows by index": lambda w, x: sketch(w[torch.tensor([0, 2, 2, -1])]),
    "rows by lookup": lambda w, x: sketch(F.embedding(torch.tensor([3, 1]), w, padding_idx=-1)),
    "rows by index_select": lambda w, x: sketch(w.index_select(0, torch.tensor([0, 1]))),
    "gathered": lambda w, x: sketch(w.gather(1, torch.tensor([[0], [1]]))),
    "unbind": lambda w, x: sketch(w.unbind(1)[2]),
    "split": lambda w, x: sketch(w.split(2)[1]) ** 2,
    "masked": lambda w, x: torch.where(w.detach() > 0, w, 2 * w).square().sum(),
    "a view": lambda w, x: sketch(w.view(-1)[3:]),
    "the same layer again": lambda w, x: F.linear(x, w).sin().sum(),
    "a matrix product": lambda w, x: (x @ w).sin().sum(),
    "mm": lambda w, x: x.mm(w).sin().sum(),
    "a layer without a gradient to its input": lambda w, x: F.linear(x.detach(), w).sin().sum(),
    "conv1d": lambda w, x: F.conv1d(x.reshape(1, WIDTH, 1), w[:, :, None]).sin().sum(),
    "bilinear": lambda w, x: F.bilinear(x, x, w[None]).sin().sum(),
    "a default argument": as_default,
    "in a dict": in_a_dict,
    "in a partial": in_a_partial,
    "in a module": in_a_module,
    "rows by vmap": rows_by_vmap,
    "a layer in a vmap": layer_in_vmap,
    "vmap over columns": lambda w, x: sketch(vmap(torch.sin, 1, 1)(w)),
    "vjp": lambda w, x: sketch(vjp(lambda y: F.linear(y, w), x)[1](x)[0]),
    "vjp of the matrix": lambda w, x: sketch(vjp(lambda v: F.linear(x, v).sin(), w)[1](x)[0]),
    "jvp": lambda w, x: sketch(jvp(lambda y: F.linear(y, w).sin(), (x,), (x + 1,))[1]),
    "jvp of the matrix": lambda w, x: sketch(jvp(lambda v: F.linear(x, v).sin(), (w,), (torch.ones_like(w),))[1]),
    "jacrev": lambda w, x: sketch(jacrev(lambda y: F.linear(y, w).sin())(x)),
    "jacfwd": lambda w, x: sketch(jacfwd(lambda y: F.linear(y, w).sin())(x)),
    "jacobian of a linear layer": lambda w, x: sketch(jacrev(lambda y: F.linear(y, w))(x)),
    "hessian": lambda w, x: sketch(hessian(lambda y: F.linear(y, w).sin().sum())(x[0])),
    "grad": gradient_penalty,
    "grad of itself": gradient_of_itself,
    "autograd of itself": autograd_of_itself,
    "autograd of itself in a list": autograd_of_itself_in_a_list,
    "autograd of a linear layer": autograd_of_a_linear_layer,
    "a layer and its derivative": a_layer_and_its_derivative,
    "no derivative": lambda w, x: w.detach().sum() + (w > 0).sum(),
    "nothing": lambda w, x: 0.0,
}  # fmt: skip


def draw(number, *shape):
    return fnn.random.normal(fnn.random.fold_in(fnn.random.key(11), number), shape, torch.float64)


PARAMS = {"w": draw(0, WIDTH, WIDTH), "b": draw(1, WIDTH), "head": draw(2, WIDTH, 2)}
BATCH = {"x": draw(3, SAMPLES, WIDTH), "words": torch.tensor([[0, 2, 0], [1, 3, 3], [2, 2, 2]])}
FIRST_USES = {
    "linear": lambda w, b, batch: F.linear(batch["x"], w, b),
    "matmul": lambda w, b, batch: batch["x"] @ w + b,
    "embedding": lambda w, b, batch: F.embedding(batch["words"], w).sum(1) + b,
    "conv": lambda w, b, batch: F.conv1d(batch["x"][:, :, None], w[:, :, None], b)[..., 0],
}


def loss_of(first, seconds):
    def loss(params, batch):
        w, x = params["w"], batch["x"]
        hidden = FIRST_USES[first](w, params["b"], batch).tanh()
        return (hidden @ params["head"]).square().sum(1).mean() + sum(SECOND_USES[second](w, x) for second in seconds)

    return loss


def by_loop(loss):
    rows = []
    for i in range(SAMPLES):
        leaves, treedef = fnn.tree.flatten(fnn.tree.map(lambda p: p.clone().requires_grad_(), PARAMS))
        value = loss(treedef.unflatten(leaves), fnn.tree.map(lambda x, i=i: x[i : i + 1], BATCH))
        rows.append(torch.autograd.grad(value, leaves))
    return treedef.unflatten([torch.stack(column) for column in zip(*rows, strict=True)])


def traced(f, *args):
    """f(*args) by a graph that was recorded on fake tensors, as fnn.jit records it."""
    leaves, treedef = fnn.tree.flatten(args)
    result = None

    def flat(*leaves):
        nonlocal result
        out, result = fnn.tree.flatten(f(*treedef.unflatten(leaves)))
        return out

    graph = make_fx(flat, tracing_mode="fake", _allow_non_fake_inputs=True)(*leaves)
    return result.unflatten(graph(*leaves))


def check(loss, tracing):
    reference = by_loop(loss)
    norms = sum(leaf.flatten(1).square().sum(1) for leaf in fnn.tree.leaves(reference)).sqrt()
    limit = norms.median()
    total = fnn.tree.map(lambda g: torch.einsum("i,i...->...", (limit / norms).clamp(max=1), g), reference)
    run = traced if tracing else lambda f, *args: f(*args)
    for method in ("auto", "ghost"):
        mine = run(fnn.gradients.per_sample_norms(loss, method=method), PARAMS, BATCH)
        torch.testing.assert_close(mine, norms, rtol=1e-9, atol=1e-12)
    clip = fnn.clipped_grad(loss, limit.item(), chunk_size=2, method="ghost")
    assert fnn.tree.allclose(run(clip, PARAMS, BATCH), total, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("second", SECOND_USES)
def test_every_second_use(second):
    for first in ("linear", "embedding"):
        check(loss_of(first, [second]), False)


@pytest.mark.parametrize("second", [name for name in SECOND_USES if name != "hessian"])  # torch cannot trace it
def test_every_second_use_traced(second):
    check(loss_of("linear", [second]), True)


@pytest.mark.parametrize("second", ["iterated", "a layer in a vmap", "jvp", "grad", "grad of itself"])
def test_jitted(second):
    loss = loss_of("linear", [second])
    norms = sum(leaf.flatten(1).square().sum(1) for leaf in fnn.tree.leaves(by_loop(loss))).sqrt()
    for method in ("auto", "ghost"):
        mine = fnn.jit(fnn.gradients.per_sample_norms(loss, method=method))(PARAMS, BATCH)
        torch.testing.assert_close(mine, norms, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("seed", range(40))
def test_random_uses(seed):
    draw = random.Random(seed)
    first = draw.choice(list(FIRST_USES))
    seconds = draw.sample(list(SECOND_USES), draw.randint(1, 3))
    check(loss_of(first, seconds), False)


def test_uses_that_are_seen_stay_ghosts():
    """So that the tests above do not pass because everything is differentiated per sample."""
    seen = [
        "the same layer again",
        "a matrix product",
        "mm",
        "rows by index",
        "rows by lookup",
        "in a partial",
        "nothing",
    ]
    for second in [*seen, "in a module", "no derivative", "a layer without a gradient to its input"]:
        plan = fnn.gradients.ghost_plan(loss_of("linear", [second]))(PARAMS, BATCH)
        assert plan["w"].method != "exact", second
    plan = fnn.gradients.ghost_plan(loss_of("linear", ["sum", "abs"]))(PARAMS, BATCH)
    assert plan["w"].reason == "used by abs and sum, not only as the matrix of a linear, conv, embedding or matmul"


def test_a_tensor_at_two_paths_and_in_the_closure():
    """Each path has its own gradient, and what the loss refers to is a constant."""
    w = PARAMS["w"]
    params = {"a": w, "b": w, "c": [w]}

    def loss(p, x):
        return (F.linear(F.linear(x, p["a"]).sin(), p["b"]) @ w).cos().sum() + F.linear(x, w).sum() + p["c"][0].sum()

    reference = []
    for row in BATCH["x"]:
        a, b = w.clone().requires_grad_(), w.clone().requires_grad_()
        value = (F.linear(F.linear(row[None], a).sin(), b) @ w).cos().sum()
        squares = [g.square().sum() for g in torch.autograd.grad(value, (a, b))]
        reference.append((squares[0] + squares[1] + w.numel()).sqrt())
    for method in ("ghost", "exact"):
        norms = fnn.gradients.per_sample_norms(loss, method=method)(params, BATCH["x"])
        torch.testing.assert_close(norms, torch.stack(reference), rtol=1e-10, atol=0)


def test_an_input_that_is_changed_in_place():
    """Ordinary gradients refuse this too."""

    def loss(p, x):
        x = x * 1.0
        out = F.linear(x, p["w"])
        x.mul_(2)
        return (out + x).square().sum()

    plan = fnn.gradients.ghost_plan(loss)({"w": PARAMS["w"]}, BATCH["x"])
    assert "changed in place" in plan["w"].reason
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        fnn.gradients.per_sample_norms(loss)({"w": PARAMS["w"]}, BATCH["x"])


def test_a_loss_that_calls_other_layers_each_time():
    count = 0

    def loss(p, x):
        nonlocal count
        count += 1
        return (F.linear(x, p["w"]) if count == 1 else x @ p["w"]).square().sum()

    with pytest.raises(ValueError, match="not a pure function"):
        fnn.gradients.per_sample_norms(loss)({"w": PARAMS["w"]}, BATCH["x"])


def test_inside_transforms():
    """Norms mapped over parameters and differentiated, with a second use hidden from the mode."""
    loss = loss_of("linear", ["rows by vmap", "iterated"])
    norms = lambda method: (
        lambda scale, w: fnn.gradients.per_sample_norms(lambda p, batch: scale * loss(p, batch), method=method)(
            {**PARAMS, "w": w}, BATCH
        )
    )
    scales = torch.tensor([0.5, 2.0], dtype=torch.float64)
    stacked = torch.stack([PARAMS["w"], PARAMS["w"] + 1])
    mapped = [vmap(norms(method))(scales, stacked) for method in ("ghost", "exact")]
    torch.testing.assert_close(*mapped)
    slopes = [grad(lambda s, m=method: norms(m)(s, PARAMS["w"]).sum())(scales[1]) for method in ("ghost", "exact")]
    torch.testing.assert_close(*slopes)
    tangents = [
        jvp(norms(method), (scales[0], PARAMS["w"]), (scales[1], stacked[1]))[1] for method in ("ghost", "exact")
    ]
    torch.testing.assert_close(*tangents)


KFAC_LOSS = {
    "seen": lambda p, x: F.linear(F.linear(x, p["w"], p["b"]).tanh(), p["w"], p["b"]),
    "hidden": lambda p, x: F.linear(x, p["w"], p["b"]) + vmap(lambda row: row.sum())(p["w"]),
    "hidden bias": lambda p, x: F.linear(x, p["w"], p["b"]) + sum(p["b"]),
    "derivative": lambda p, x: grad(lambda y: F.linear(y, p["w"], p["b"]).sin().sum())(x),
}


@pytest.mark.parametrize("name", KFAC_LOSS)
@pytest.mark.parametrize("make", [kfac, ekfac])
def test_kronecker_factors(name, make):
    params = {"w": PARAMS["w"], "b": PARAMS["b"]}
    if name != "seen":
        with pytest.raises(ValueError, match=r"params\['[wb]'\] is (a vector )?used by .*fnn.tree.partition"):
            make(KFAC_LOSS[name], params, BATCH["x"], likelihood="normal")
        return
    losses = lambda p, x: KFAC_LOSS[name](p, x).square().sum(1)
    K = ekfac(losses, params, BATCH["x"], likelihood="empirical")
    fisher = empirical_fisher_operator(losses, params, BATCH["x"]).dense()
    torch.testing.assert_close(K.dense().trace(), fisher.trace())


@pytest.mark.parametrize("method", ["auto", "ghost", "exact"])
@pytest.mark.parametrize("shape", [(), (2,), (2, 3), (2, 3, 4)])
def test_a_leaf_that_is_not_used(shape, method):
    params = {
        "a": torch.ones(shape, dtype=torch.float64),
        "w": fnn.random.normal(fnn.random.key(1), (WIDTH, 3), torch.float64),
        "z": torch.ones(shape, dtype=torch.float64),
    }
    x = fnn.random.normal(fnn.random.key(2), (SAMPLES, 2, WIDTH), torch.float64)
    loss = lambda params, x: (x @ params["w"]).sin().square().sum()
    rows = [grad(loss)(params, x[i : i + 1]) for i in range(SAMPLES)]
    norms = fnn.gradients.per_sample_norms(loss, method=method)(params, x)
    torch.testing.assert_close(norms, torch.stack([fnn.tree.global_norm(row) for row in rows]))
    clipped = fnn.clipped_grad(loss, 0.5, method=method)(params, x)
    expected = [fnn.tree.scale(min(1.0, 0.5 / float(norm)), row) for norm, row in zip(norms, rows, strict=True)]
    assert fnn.tree.allclose(clipped, functools.reduce(fnn.tree.add, expected))


def draw(*shape):
    return fnn.random.normal(fnn.random.fold_in(fnn.random.key(7), sum(shape)), shape, torch.float64)


# weights of other numbers of axes than those of a layer: the weight, the function, one batch of inputs
SHAPES = {
    "matmul, a stack of matrices": (draw(2, 4, 5), lambda w, x: x[:, :, None] @ w, draw(SAMPLES, 2, 4)),
    "matmul, a stack on the left": (draw(2, 5, 4), lambda w, x: w @ x[..., None], draw(SAMPLES, 2, 4)),
    "matmul, a vector": (draw(4), lambda w, x: x @ w, draw(SAMPLES, 2, 4)),
    "linear, a vector": (draw(4), lambda w, x: F.linear(x, w), draw(SAMPLES, 2, 4)),
    "conv1d": (draw(3, 2, 2), lambda w, x: F.conv1d(x, w), draw(SAMPLES, 2, 4)),
    "conv2d, one image": (draw(3, 2, 2, 2), lambda w, x: F.conv2d(x[0], w), draw(SAMPLES, 2, 4, 4)),
    "conv3d": (draw(2, 1, 2, 2, 2), lambda w, x: F.conv3d(x, w), draw(SAMPLES, 1, 3, 3, 3)),
    "bilinear": (draw(3, 4, 4), lambda w, x: F.bilinear(x, x, w), draw(SAMPLES, 2, 4)),
    "einsum": (draw(2, 4, 3), lambda w, x: torch.einsum("bij,ijk->bk", x, w), draw(SAMPLES, 2, 4)),
}


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("method", ["auto", "ghost"])
@pytest.mark.parametrize("name", SHAPES)
def test_weights_of_every_number_of_axes(name, method):
    w, function, x = SHAPES[name]
    loss = lambda w, x: function(w, x).sin().square().sum()
    norms = fnn.gradients.per_sample_norms(loss, method=method)(w, x)
    expected = [grad(loss)(w, x[i : i + 1]).norm() for i in range(SAMPLES)]
    torch.testing.assert_close(norms, torch.stack(expected))
