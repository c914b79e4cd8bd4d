"""Per-sample gradients against a loop over samples in float64, and their refusals."""

import collections
import threading
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F

import fnn
from fnn._samples import refuse_samples_apart

key = fnn.random.key


def mlp():
    model = fnn.models.mlp(12, 16, 5)
    x = fnn.random.normal(key(1), (9, 12), torch.float64)
    return model.init(key(0)), classify(model, 5), (x, fnn.random.randint(key(2), (9,), 0, 5))


def lenet():
    model = fnn.models.lenet()
    x = fnn.random.normal(key(1), (9, 1, 32, 32), torch.float64)
    return model.init(key(0)), classify(model, 10), (x, fnn.random.randint(key(2), (9,), 0, 10))


def tied():
    """Tied embedding, a matrix used twice, grouped convolution, an index shared by all samples, an affine scale."""
    draw = lambda i, *shape: 0.5 * fnn.random.normal(fnn.random.fold_in(key(3), i), shape)
    params = {
        "embedding": draw(0, 11, 6),
        "conv": draw(1, 4, 3, 3),
        "position": draw(2, 7, 6),
        "scale": 1 + draw(3, 6),
        "twice": draw(4, 6, 6),
        "odd": draw(5, 6, 6),
    }

    def loss(params, batch):
        h = F.embedding(batch["tokens"], params["embedding"], padding_idx=2) + params["position"][torch.arange(7)]
        h = F.layer_norm(h, (6,)) * params["scale"]
        h = h + torch.tanh(h @ params["twice"]) @ params["twice"] + h @ params["odd"] @ params["odd"].T
        local = F.conv1d(h.transpose(1, 2), params["conv"], None, padding="same", groups=2).transpose(1, 2)
        logits = F.linear(h + F.pad(local, (0, 2)), params["embedding"])
        return fnn.losses.cross_entropy(logits.transpose(1, 2), batch["tokens"])

    return params, loss, {"tokens": fnn.random.randint(key(5), (9, 7), 0, 11)}


def strided():
    """Convolutions of every option, and one weight used at two strides."""
    params = {"a": fnn.random.normal(key(6), (4, 2, 3, 2)), "b": fnn.random.normal(key(7), (4, 2, 3, 3))}

    def loss(params, x):
        first = F.conv2d(x, params["a"], None, (2, 1), (1, 2), (1, 2), 1)
        second = F.conv2d(first.tanh(), params["b"], None, 1, "valid", 1, 2)
        third = F.conv2d(first.tanh(), params["b"], None, 2, 1, 1, 2)
        return second.tanh().mean() + third.square().mean()

    return params, loss, fnn.random.normal(key(8), (9, 2, 11, 9), torch.float64)


def frames():
    """Several images a sample, and a matrix behind a vmap of the loss's own."""
    params = {"conv": fnn.random.normal(key(9), (4, 2, 3, 3)), "matrix": fnn.random.normal(key(10), (3, 4))}

    def loss(params, x):
        features = F.conv2d(x.flatten(0, 1), params["conv"], None, 2, 1, 1, 1).tanh().mean((2, 3))
        logits = torch.func.vmap(lambda row: F.linear(row, params["matrix"]))(features)
        return logits.unflatten(0, x.shape[:2]).tanh().sum(1).square().mean()

    return params, loss, fnn.random.normal(key(11), (9, 3, 2, 5, 4), torch.float64)


def classify(model, classes):
    return lambda params, batch: fnn.losses.cross_entropy(model.apply(params, batch[0]), batch[1])


NETWORKS = {"mlp": mlp, "lenet": lenet, "tied": tied, "strided": strided, "frames": frames}


@pytest.fixture(params=NETWORKS, scope="module")
def case(request):
    params, loss, batch = NETWORKS[request.param]()
    params = fnn.tree.cast(params, torch.float64)
    rows = [fnn.tree.map(lambda x, i=i: x[i : i + 1], batch) for i in range(9)]
    return params, loss, batch, fnn.tree.stack([reference_grad(loss, params, row) for row in rows])


def reference_grad(loss, params, row):
    """By torch.autograd, which shares nothing with torch.func's transforms."""
    leaves = [leaf.clone().requires_grad_() for leaf in fnn.tree.leaves(params)]
    return fnn.tree.structure(params).unflatten(
        torch.autograd.grad(loss(fnn.tree.structure(params).unflatten(leaves), row), leaves)
    )


def norms_of(grads):
    return sum(leaf.flatten(1).square().sum(1) for leaf in fnn.tree.leaves(grads)).sqrt()


@pytest.mark.parametrize("chunk_size", [1, 7, None])
def test_equals_a_loop(case, chunk_size):
    params, loss, batch, reference = case
    assert fnn.tree.allclose(fnn.per_sample_grad(loss, chunk_size=chunk_size)(params, batch), reference, atol=1e-12)


def test_mean_is_the_gradient_of_the_batch(case):
    params, loss, batch, reference = case
    mean = fnn.tree.map(lambda g: g.mean(0), reference)
    assert fnn.tree.allclose(fnn.grad(loss)(params, batch), mean, atol=1e-12)
    assert fnn.tree.allclose(fnn.gradients.accumulate_grad(loss, 4)(params, batch), mean, atol=1e-12)
    fnn.gradients.check_per_sample(loss)(params, batch)


@pytest.mark.parametrize("method", ["exact", "ghost", "auto"])
@pytest.mark.parametrize("chunk_size", [1, 7, None])
def test_norms_and_clipped_sums(case, method, chunk_size):
    params, loss, batch, reference = case
    norms = norms_of(reference)
    torch.testing.assert_close(
        fnn.gradients.per_sample_norms(loss, chunk_size, method)(params, batch), norms, rtol=1e-10, atol=1e-12
    )
    limit = norms.median().item()
    weights = torch.arange(9, dtype=torch.float64)
    expected = fnn.tree.map(
        lambda g: torch.einsum("i,i...->...", (limit / norms).clamp(max=1) * weights, g) / 9, reference
    )
    clip = fnn.clipped_grad(loss, limit, chunk_size, method, "mean")
    assert fnn.tree.allclose(clip(params, batch, weights=weights), expected, atol=1e-12)


@pytest.mark.parametrize("method", ["exact", "ghost"])
def test_per_leaf(case, method):
    params, loss, batch, reference = case
    norms = fnn.tree.map(lambda g: g.flatten(1).norm(dim=1), reference)
    mine = fnn.gradients.per_sample_norms(loss, method=method, per_leaf=True)(params, batch)
    assert fnn.tree.allclose(mine, norms, atol=1e-12)
    limits = fnn.tree.map(lambda n: n.median(), norms)
    expected = fnn.tree.map(
        lambda g, n, c: torch.einsum("i,i...->...", torch.where(n > c, c / n, 1.0), g), reference, norms, limits
    )
    assert fnn.tree.allclose(
        fnn.clipped_grad(loss, limits, 4, method, per_leaf=True)(params, batch), expected, atol=1e-12
    )


def test_gram_matrices_and_products_agree(case, monkeypatch):
    params, loss, batch, reference = case
    ghost = fnn.gradients.ghost_plan.__globals__["_ghost"]
    monkeypatch.setattr(ghost, "_gram_or_direct", lambda uses, leaf: fnn.gradients.LeafPlan("gram", "forced"))
    mine = fnn.gradients.per_sample_norms(loss, method="ghost")(params, batch)
    torch.testing.assert_close(mine, norms_of(reference), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("network", "method"), [(mlp, "exact"), (mlp, "ghost"), (tied, "ghost")])
def test_compiled_in_one_graph(network, method):
    params, loss, batch = network()
    params = fnn.tree.cast(params, torch.float64)
    clip = fnn.clipped_grad(loss, 0.1, 5, method=method)
    expected = fnn.clipped_grad(loss, 0.1, method="exact")(params, batch)
    assert fnn.tree.allclose(fnn.jit(clip)(params, batch), expected, rtol=1e-10, atol=1e-12)


def test_moments_and_noise_scale(case):
    params, loss, batch, reference = case
    moments = fnn.gradients.per_sample_moments(loss, 4)(params, batch)
    assert fnn.tree.allclose(moments.second, fnn.tree.map(lambda g: g.square().mean(0), reference), atol=1e-12)
    assert fnn.tree.allclose(moments.variance, fnn.tree.map(lambda g: g.var(0), reference), atol=1e-12)
    scale = fnn.gradients.gradient_noise_scale(loss, 4)(params, batch)
    trace = sum(leaf.sum() for leaf in fnn.tree.leaves(moments.variance))
    torch.testing.assert_close(scale.trace, trace, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(scale.square_norm, fnn.tree.dot(moments.mean, moments.mean) - trace / 9)


@pytest.mark.parametrize("chunk_size", [1, 3, 7, None])
def test_moments_in_chunks_with_a_key(chunk_size):
    """The keys of the samples do not depend on how they are divided into chunks."""
    model = fnn.layers.sequential(fnn.layers.linear(6, 4), fnn.layers.dropout(0.5), fnn.layers.linear(4, 1))
    params = fnn.tree.cast(model.init(key(0)), torch.float64)
    loss = lambda params, x, key=None: model.apply(params, x, key=key).square().mean()
    x, keys = fnn.random.normal(key(1), (7, 6), torch.float64), fnn.random.split(key(4), 7)
    each = fnn.tree.stack([fnn.grad(loss)(params, x[i : i + 1], key=keys[i]) for i in range(7)])
    expected = (
        fnn.tree.map(lambda g: g.mean(0), each),
        fnn.tree.map(lambda g: g.square().mean(0), each),
        fnn.tree.map(lambda g: g.var(0), each),
    )
    for given in (key(4), keys):
        moments = fnn.gradients.per_sample_moments(loss, chunk_size)(params, x, key=given)
        assert fnn.tree.allclose(tuple(moments), expected, rtol=1e-10, atol=1e-12)
    without = fnn.gradients.per_sample_moments(loss, chunk_size)(params, x)
    assert not fnn.tree.allclose(without.mean, moments.mean, rtol=1e-2, atol=1e-2)


CONVOLUTIONS = {
    "even kernel": ((4, 3, 4), {"padding": "same"}),
    "even kernel, dilation": ((4, 3, 2), {"padding": "same", "dilation": 3}),
    "even kernel, groups": ((6, 1, 4), {"padding": "same", "groups": 3}),
    "stride": ((4, 3, 3), {"stride": 2, "padding": 2, "dilation": 2}),
    "even and odd": ((4, 3, 2, 3), {"padding": "same"}),
    "even and even": ((4, 3, 4, 2), {"padding": "same", "dilation": (1, 2)}),
    "even, groups": ((6, 1, 2, 4), {"padding": "same", "groups": 3}),
    "pairs": ((4, 3, 2, 3), {"stride": (2, 1), "padding": (0, 2), "dilation": (1, 2)}),
    "valid": ((4, 3, 3, 2), {"padding": "valid", "stride": 2}),
}


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name, monkeypatch):
    shape, options = CONVOLUTIONS[name]
    conv = F.conv1d if len(shape) == 3 else F.conv2d
    params = {"weight": fnn.random.normal(key(0), shape, torch.float64), "bias": torch.ones(shape[0]).double()}
    x = fnn.random.normal(key(1), (3, 3, *(9, 8)[: len(shape) - 2]), torch.float64)
    loss = lambda p, x: conv(x, p["weight"], p["bias"], **options).sin().sum()
    expected = norms_of(fnn.tree.stack([reference_grad(loss, params, x[i : i + 1]) for i in range(3)]))
    ghost = fnn.gradients.ghost_plan.__globals__["_ghost"]
    for method in ("gram", "direct"):
        monkeypatch.setattr(ghost, "_gram_or_direct", lambda uses, leaf, m=method: fnn.gradients.LeafPlan(m, "forced"))
        norms = fnn.gradients.per_sample_norms(loss, method="ghost")(params, x)
        torch.testing.assert_close(norms, expected, rtol=1e-11, atol=0)


@pytest.mark.parametrize(
    "options", [{"padding_idx": 2}, {"padding_idx": -1}, {"padding_idx": -3}, {"padding_idx": 0}, {}]
)
@pytest.mark.parametrize("scale_grad_by_freq", [False, True])
def test_embeddings(options, scale_grad_by_freq, monkeypatch):
    params = fnn.random.normal(key(0), (5, 4), torch.float64)
    words = torch.tensor([[0, 2, 2, 4], [1, 1, 1, 3], [4, 3, 0, 0]])
    loss = lambda p, x: F.embedding(x, p, scale_grad_by_freq=scale_grad_by_freq, **options).sin().square().sum()
    expected = norms_of(torch.stack([reference_grad(loss, params, words[i : i + 1]) for i in range(3)]))
    total = sum(reference_grad(loss, params, words[i : i + 1]) * min(1, 0.7 / expected[i]) for i in range(3))
    ghost = fnn.gradients.ghost_plan.__globals__["_ghost"]
    for method in ("gram", "direct"):
        monkeypatch.setattr(ghost, "_gram_or_direct", lambda uses, leaf, m=method: fnn.gradients.LeafPlan(m, "forced"))
        norms = fnn.gradients.per_sample_norms(loss, method="ghost")(params, words)
        torch.testing.assert_close(norms, expected, rtol=1e-11, atol=0)
        torch.testing.assert_close(fnn.clipped_grad(loss, 0.7, method="ghost")(params, words), total)


@pytest.mark.parametrize("jitted", [False, True])
@pytest.mark.parametrize("name", ["UserDict", "defaultdict", "OrderedDict", "NamedTuple"])
def test_containers_of_every_kind(name, jitted):
    make = {
        "UserDict": lambda **entries: collections.UserDict(entries),
        "defaultdict": lambda **entries: collections.defaultdict(list, entries),
        "OrderedDict": collections.OrderedDict,
        "NamedTuple": Batch,
    }[name]
    get = getattr if name == "NamedTuple" else lambda tree, entry: tree[entry]
    x, y = fnn.random.normal(key(0), (5, 3), torch.float64), torch.arange(5.0).double()
    batch = make(x=x, y=y)
    params = make(x=torch.ones(2, 3).double(), y=torch.ones(2).double())

    def loss(p, batch):
        assert type(p) is type(params)
        assert type(batch) is type(params)
        out = F.linear(get(batch, "x"), get(p, "x"), get(p, "y")).sin()
        return (out.sum(1) * get(batch, "y")).mean()

    run = fnn.jit if jitted else lambda f: f
    rows = [make(x=x[i : i + 1], y=y[i : i + 1]) for i in range(5)]
    expected = fnn.tree.stack([reference_grad(loss, params, row) for row in rows])
    each = run(fnn.per_sample_grad(loss, chunk_size=2))(params, batch)
    assert type(each) is type(params)
    assert fnn.tree.allclose(each, expected, atol=1e-12)
    mean = fnn.tree.map(lambda g: g.mean(0), expected)
    fnn.gradients.check_per_sample(loss)(params, batch)
    for result in (run(fnn.grad(loss)), run(fnn.gradients.accumulate_grad(loss, 2))):
        assert fnn.tree.allclose(result(params, batch), mean, atol=1e-12)
    torch.testing.assert_close(run(fnn.gradients.per_sample_norms(loss))(params, batch), norms_of(expected))
    clipped = run(fnn.clipped_grad(loss, 1e6, reduction="mean"))(params, batch)
    assert fnn.tree.allclose(clipped, mean, atol=1e-12)
    moments = run(fnn.gradients.per_sample_moments(loss, 2))(params, batch)
    assert fnn.tree.allclose(moments.variance, fnn.tree.map(lambda g: g.var(0), expected), atol=1e-12)


class Batch(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", ["exact", "ghost"])
@pytest.mark.parametrize("chunk_size", [7, None])
def test_sums_of_16_bits_are_wide(dtype, method, chunk_size):
    """Norms and sums as in float32 of the same 16-bit gradients: no overflow, no sum that stops growing."""
    x = (100 * fnn.random.normal(key(0), (300, 64))).to(dtype)
    labels = fnn.random.uniform(key(1), (300, 8)).to(dtype)
    params = {f"{i}": torch.zeros(8, 64, dtype=dtype) for i in range(3)} | {"bias": torch.zeros(8, dtype=dtype)}

    def loss(p, batch):  # the gradients with respect to each matrix are y x^T, those of the bias 3 y
        x, y = batch
        return sum((F.linear(x, p[f"{i}"], p["bias"]) * y).sum() for i in range(3))

    products = (labels.float()[:, :, None] * x.float()[:, None]).to(dtype).float()
    gradients = {f"{i}": products for i in range(3)} | {"bias": 3 * labels.float()}
    norms = norms_of(gradients)
    assert norms.max() > 1000
    mine = fnn.gradients.per_sample_norms(loss, chunk_size, method)(params, (x, labels))
    assert mine.dtype == torch.float32
    torch.testing.assert_close(mine, norms, rtol=2e-2 if dtype == torch.bfloat16 else 2e-3, atol=0)
    one = fnn.clipped_grad(loss, 1.0, chunk_size, method)(params, (x[:1], labels[:1]))
    torch.testing.assert_close(fnn.tree.global_norm(one).item(), 1.0, rtol=1e-2, atol=0)
    total = fnn.clipped_grad(loss, 1.0, chunk_size, method)(params, (x, labels))
    assert {leaf.dtype for leaf in total.values()} == {dtype}
    expected = fnn.tree.map(lambda g: torch.einsum("i,i...->...", 1 / norms, g), gradients)
    for path, leaf in total.items():
        torch.testing.assert_close(
            leaf.float(), expected[path], rtol=3e-2, atol=3e-2 * expected[path].abs().max().item()
        )


def test_accumulated_gradients_and_moments_of_16_bits_are_wide():
    ones = {"w": torch.zeros(3, dtype=torch.bfloat16)}
    loss = lambda p, x: (p["w"] * x).sum(1).mean()
    x = torch.ones(1000, 3, dtype=torch.bfloat16)
    torch.testing.assert_close(
        fnn.gradients.accumulate_grad(loss, 1000)(ones, x)["w"], torch.ones(3).bfloat16(), rtol=1e-2, atol=0
    )
    x = (3 + fnn.random.normal(key(0), (1000, 3))).bfloat16()
    moments = fnn.gradients.per_sample_moments(loss, 10)(ones, x)
    for mine, theirs in zip(moments, (x.float().mean(0), x.float().square().mean(0), x.float().var(0)), strict=True):
        assert mine["w"].dtype == torch.bfloat16
        torch.testing.assert_close(mine["w"].float(), theirs, rtol=1e-2, atol=0)


@pytest.mark.parametrize("method", ["exact", "ghost"])
@pytest.mark.parametrize("chunk_size", [None, 10])
def test_noise_scale_where_the_noise_is_small(method, chunk_size):
    """The gradients are the samples themselves, of mean 1,000 and standard deviation 0.1."""
    x = 1000 + 0.1 * fnn.random.normal(key(0), (64, 20))
    loss = lambda p, x: F.linear(x, p["w"]).sum()
    scale = fnn.gradients.gradient_noise_scale(loss, chunk_size, method)({"w": torch.zeros(1, 20)}, x)
    trace = x.double().var(0).sum()
    assert scale.trace.dtype == torch.float32
    torch.testing.assert_close(scale.trace.double(), trace, rtol=1e-5, atol=0)
    torch.testing.assert_close(scale.square_norm.double(), x.double().mean(0).square().sum() - trace / 64)
    same = fnn.gradients.gradient_noise_scale(loss, chunk_size, method)({"w": torch.zeros(1, 20)}, x[:1].expand(8, 20))
    assert 0 <= same.trace < 1e-6


@pytest.mark.parametrize("per_leaf", [False, True])
def test_limits_given_as_tensors(per_leaf):
    """A limit that is not positive never flips a sign; a limit or gradient that is nan is not passed over."""
    params, x = {"a": torch.ones(3), "b": torch.ones(2, 3)}, fnn.random.normal(key(0), (5, 3))
    loss = lambda p, x: (p["a"] * x).sum() + F.linear(x, p["b"]).sum()
    clip = lambda limit, x=x: fnn.clipped_grad(loss, limit, per_leaf=per_leaf)(params, x)
    assert fnn.tree.allclose(clip(torch.tensor(0.5)), clip(0.5), rtol=1e-6)
    assert fnn.tree.allclose(clip(torch.tensor(0.5, dtype=torch.float64)), clip(0.5), rtol=1e-6)
    for limit in (0.0, -1.0, -torch.inf):
        assert all((leaf == 0).all() for leaf in fnn.tree.leaves(clip(torch.tensor(limit))))
        assert all((leaf == 0).all() for leaf in fnn.tree.leaves(clip(torch.tensor(limit), torch.zeros(5, 3))))
    assert all(leaf.isnan().all() for leaf in fnn.tree.leaves(clip(torch.tensor(torch.nan))))
    assert all(leaf.isnan().all() for leaf in fnn.tree.leaves(clip(1.0, x.clone().fill_(torch.nan))))
    slope = fnn.grad(lambda limit: fnn.tree.dot(clip(limit), clip(limit)))
    assert slope(torch.tensor(0.5)) > 0
    assert slope(torch.tensor(-0.5)) == 0
    assert not fnn.grad(lambda x: clip(1.0, x)["a"].sum())(torch.zeros(5, 3)).isnan().any()


def test_accumulation_gives_each_part_a_key():
    model = fnn.layers.sequential(fnn.layers.dropout(0.5), fnn.layers.linear(6, 1))
    params, x = model.init(key(0)), torch.ones(9, 6)
    loss = lambda params, x, key=None: model.apply(params, x, key=key).mean()
    accumulated = fnn.gradients.accumulate_grad(loss, 4)(params, x, key=key(3))
    keys, edges = fnn.random.split(key(3), 4), (0, 2, 4, 6, 9)
    parts = [fnn.grad(loss)(params, x[edges[i] : edges[i + 1]], key=keys[i]) for i in range(4)]
    expected = fnn.tree.map(lambda *g: sum((edges[i + 1] - edges[i]) / 9 * g[i] for i in range(4)), *parts)
    assert fnn.tree.allclose(accumulated, expected, rtol=1e-6)
    with pytest.raises(ValueError, match="same random numbers; pass it by name"):
        fnn.gradients.accumulate_grad(lambda p, x, k: loss(p, x, k), 4)(params, x, key(3))


def test_negative_positions():
    x = fnn.random.normal(key(0), (4, 3))
    loss = lambda p, x: (p * x).sin().sum()
    turned = lambda x, p: loss(p, x)
    expected = fnn.per_sample_grad(loss)(torch.ones(3), x)
    assert torch.equal(fnn.per_sample_grad(turned, argnums=-1, batch_argnums=-2)(x, torch.ones(3)), expected)
    assert torch.equal(fnn.per_sample_grad(loss, batch_argnums=-1)(torch.ones(3), x), expected)
    norms = fnn.gradients.per_sample_norms(loss, batch_argnums=-1)(torch.ones(3), x)
    torch.testing.assert_close(norms, expected.norm(dim=1))


def test_complex_params():
    params = torch.complex(fnn.random.normal(key(0), (2, 3)), fnn.random.normal(key(1), (2, 3)))
    x = torch.complex(fnn.random.normal(key(2), (4, 3)), fnn.random.normal(key(3), (4, 3)))
    loss = lambda p, x: F.linear(x, p).abs().square().sum()
    each = fnn.per_sample_grad(loss)(params, x)
    for method in ("exact", "ghost"):
        norms = fnn.gradients.per_sample_norms(loss, method=method)(params, x)
        torch.testing.assert_close(norms, torch.linalg.vector_norm(each, dim=(1, 2)))
        total = fnn.clipped_grad(loss, 1.0, method=method)(params, x)
        torch.testing.assert_close(total, torch.einsum("i,ijk->jk", (1 / norms).clamp(max=1).to(each.dtype), each))


def test_plan_says_which_and_why():
    params, loss, batch = tied()
    params = fnn.tree.cast(params, torch.float64)
    plan = fnn.gradients.ghost_plan(loss)(params, batch)
    assert plan["odd"].method == "exact"
    assert "not only as the matrix" in plan["odd"].reason
    assert plan["scale"].method == "exact"
    assert plan["embedding"].method != "exact"


def test_each_sample_draws_its_own_dropout_mask():
    model = fnn.layers.sequential(fnn.layers.dropout(0.5), fnn.layers.linear(6, 1))
    params = model.init(key(0))
    loss = lambda params, x, key=None: model.apply(params, x, key=key).mean()
    x = torch.ones(8, 6)
    grads = fnn.per_sample_grad(loss)(params, x, key=key(4))["1"]["weight"]
    keys = fnn.random.split(key(4), 8)
    alone = torch.stack([fnn.grad(loss)(params, x[i : i + 1], key=keys[i])["1"]["weight"] for i in range(8)])
    torch.testing.assert_close(grads, alone)
    assert len({tuple(row.flatten().tolist()) for row in grads}) > 4
    norms = fnn.gradients.per_sample_norms(loss, 3, "ghost")(params, x, key=key(4))
    torch.testing.assert_close(norms, (alone.flatten(1).square().sum(1) + 1).sqrt())


def quadratic(params, x):
    return (params["w"] * x).mean()


ONES = {"w": torch.ones(3)}


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: fnn.per_sample_grad(quadratic, chunk_size=0), "chunk_size"),
        (lambda: fnn.clipped_grad(quadratic, 1.0, chunk_size=-2), "chunk_size"),
        (lambda: fnn.clipped_grad(quadratic, 0.0), "max_norm"),
        (lambda: fnn.gradients.per_sample_norms(quadratic, method="fast"), "method"),
        (
            lambda: fnn.per_sample_grad(lambda p, b: p["w"].sum())(ONES, {"x": torch.ones(4, 3), "y": torch.ones(5)}),
            r"batch\['y'\] has 5 samples, but batch\['x'\] has 4",
        ),
        (lambda: fnn.per_sample_grad(quadratic)(ONES, torch.tensor(1.0)), "no axis of samples"),
        (lambda: fnn.per_sample_grad(lambda p, x, k: quadratic(p, x))(ONES, torch.ones(4, 3), key(0)), "dropout mask"),
        (
            lambda: fnn.per_sample_grad(lambda p, x: F.dropout(p["w"] * x).mean())(ONES, torch.ones(4, 3)),
            "global random generator",
        ),
        (lambda: fnn.per_sample_grad(lambda p, x: p["w"] * x)(ONES, torch.ones(4, 3)), "scalar"),
        (
            lambda: fnn.gradients.check_per_sample(lambda p, x: (p["w"] * x).mean(1).sum())(ONES, torch.ones(4, 3)),
            "sum of the losses",
        ),
        (
            lambda: fnn.gradients.check_per_sample(lambda p, x: (p["w"] * (x - x.mean(0))).square().mean())(
                ONES, torch.arange(12.0).reshape(4, 3)
            ),
            "samples see each other",
        ),
        (lambda: fnn.clipped_grad(quadratic, {"w": -1.0}, per_leaf=True), "got -1.0"),
        (lambda: fnn.clipped_grad(quadratic, float("nan")), "max_norm"),
        (lambda: fnn.per_sample_grad(quadratic)(ONES, torch.ones(0, 3)), "no samples"),
        (lambda: fnn.per_sample_grad(quadratic)(ONES), "batch_argnums: argument 1 .* got 1 positional"),
        (lambda: fnn.clipped_grad(quadratic, 1.0, batch_argnums=0)(ONES, torch.ones(4, 3)), "put params first"),
        (
            lambda: fnn.per_sample_grad(lambda p, b: p["w"].sum())(ONES, (torch.ones(4, 3), key(0))),
            "a random key is passed as key=key",
        ),
        (
            lambda: fnn.per_sample_grad(lambda p, i: p["w"][i[0] : i[0] + 2].sum())(ONES, torch.arange(2)),
            r"y\[x \+ torch.arange\(2\)\] for the slice",
        ),
        (
            lambda: fnn.gradients.per_sample_norms(lambda p, x: p["w"].sum() if x.sum() > 0 else p["w"].prod())(
                ONES, torch.ones(4, 3)
            ),
            r"Write torch.where\(x > 0",
        ),
        (
            lambda: fnn.per_sample_grad(lambda p, x: F.embedding(x, p["w"][:, None], max_norm=0.1).sum())(
                ONES, torch.zeros(4, 3, dtype=torch.int64)
            ),
            "changes its table in place",
        ),
        (lambda: fnn.gradients.accumulate_grad(quadratic, 5)(ONES, torch.ones(4, 3)), "steps=5"),
    ],
)
def test_refusals(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize("method", ["exact", "ghost"])
@pytest.mark.parametrize("shape", [(), (1,), (0,), (3,), (2, 3), (2, 1, 3)])
def test_leaves_of_every_rank(shape, method):
    params = {"p": fnn.random.normal(key(0), shape, torch.float64), "w": torch.ones(3, dtype=torch.float64)}
    x = fnn.random.normal(key(1), (5, 3), torch.float64)
    loss = lambda q, x: ((x @ q["w"]) * (1 + q["p"].sin().sum())).square().mean()
    each = [fnn.grad(loss)(params, x[i : i + 1]) for i in range(5)]
    norms = {name: torch.stack([one[name].norm() for one in each]) for name in params}
    total = torch.stack([fnn.tree.global_norm(one) for one in each])
    assert fnn.tree.allclose(G.per_sample_norms(loss, method=method, per_leaf=True)(params, x), norms)
    assert fnn.tree.allclose(G.per_sample_norms(loss, method=method, chunk_size=2)(params, x), total)
    factors = (0.7 / total).clamp(max=1.0)
    clipped = fnn.tree.map(lambda *leaves: sum(f * leaf for f, leaf in zip(factors, leaves, strict=True)), *each)
    assert fnn.tree.allclose(fnn.clipped_grad(loss, 0.7, method=method)(params, x), clipped)
    mean = fnn.tree.map(lambda *leaves: torch.stack(leaves).mean(0), *each)
    assert fnn.tree.allclose(G.per_sample_moments(loss, chunk_size=2)(params, x).mean, mean)
    assert fnn.tree.allclose(G.accumulate_grad(loss, 3)(params, x), mean)
    variance = sum((fnn.tree.global_norm(fnn.tree.sub(one, mean)) ** 2 for one in each), torch.zeros(())) / 4
    assert float(G.gradient_noise_scale(loss, method=method)(params, x).trace) == pytest.approx(float(variance))


G = fnn.gradients


@pytest.mark.parametrize("count", [1, 3, 5, 8])
def test_there_is_one_key_or_one_for_each_sample(count):
    keys = fnn.random.split(key(0), count)
    loss = lambda p, x, key: (p["w"] * x * fnn.random.uniform(key, (3,))).sum()
    for make in (fnn.per_sample_grad, G.per_sample_norms, lambda f: fnn.clipped_grad(f, 1.0), G.per_sample_moments):
        make(loss)(ONES, torch.ones(4, 3), key=fnn.random.split(key(0), 4))
        with pytest.raises(ValueError, match=rf"key has shape \({count}, 2\) for 4 samples; pass one key"):
            make(loss)(ONES, torch.ones(4, 3), key=keys)


OF_SHARED_PARAMS = {
    "clipped_grad": lambda batches: fnn.clipped_grad(quadratic, 1.0, batch_argnums=batches),
    "per_sample_norms": lambda batches: G.per_sample_norms(quadratic, batch_argnums=batches),
    "per_sample_norms, exact": lambda batches: G.per_sample_norms(quadratic, method="exact", batch_argnums=batches),
    "ghost_plan": lambda batches: G.ghost_plan(quadratic, batches),
    "gradient_noise_scale": lambda batches: G.gradient_noise_scale(quadratic, batch_argnums=batches),
    "accumulate_grad": lambda batches: G.accumulate_grad(quadratic, 2, batches),
    "per_sample_moments": lambda batches: G.per_sample_moments(quadratic, batch_argnums=batches),
}


@pytest.mark.parametrize("batches", [0, (0, 1), -2])
@pytest.mark.parametrize("name", OF_SHARED_PARAMS)
def test_params_have_no_axis_of_samples(name, batches):
    params = {"w": torch.ones(4, 3)}  # as many rows as the batch
    with pytest.raises(ValueError, match=r"batch_argnums contains 0, .*put params first"):
        OF_SHARED_PARAMS[name](batches)(params, torch.ones(4, 3))


def test_layers_that_mix_samples_are_refused():
    def loss(params, x):
        refuse_samples_apart("batch_norm")
        return quadratic(params, x)

    fnn.grad(loss)(ONES, torch.ones(4, 3))
    for transform in (fnn.per_sample_grad(loss), fnn.clipped_grad(loss, 1.0)):
        with pytest.raises(ValueError, match="group_norm"):
            transform(ONES, torch.ones(4, 3))
    fnn.grad(loss)(ONES, torch.ones(4, 3))  # the refusal leaves nothing behind


def test_a_per_sample_gradient_inside_another_one_ends_alone():
    def loss(params, x):
        inner = fnn.gradients.per_sample_norms(quadratic)(params, x).sum()
        refuse_samples_apart("batch_norm")  # still inside the outer one
        return quadratic(params, x) + inner

    fnn.grad(loss)(ONES, torch.ones(4, 3))
    with pytest.raises(ValueError, match="group_norm"):
        fnn.per_sample_grad(loss)(ONES, torch.ones(4, 3))
    refuse_samples_apart("batch_norm")


def test_threads_know_nothing_of_each_other():
    inside, leave, refused = threading.Event(), threading.Event(), []

    def waiting(params, x):
        inside.set()
        leave.wait(10)
        return quadratic(params, x)

    other = threading.Thread(target=fnn.per_sample_grad(waiting), args=(ONES, torch.ones(4, 3)))
    other.start()
    assert inside.wait(10)
    try:
        refuse_samples_apart("batch_norm")
    except ValueError as error:
        refused.append(error)
    leave.set()
    other.join()
    assert not refused


def test_noise_and_poisson_samples():
    noise = fnn.gradients.noise_like(key(0), {"a": torch.zeros(20000), "b": torch.zeros(20000)}, 3.0)
    assert abs(noise["a"].std() - 3.0) < 0.1
    assert abs((noise["a"] * noise["b"]).mean()) < 0.3
    drawn = [fnn.gradients.poisson_sample(fnn.random.fold_in(key(1), i), 500, 0.1, 100) for i in range(200)]
    counts = torch.stack([sample.weights.sum() for sample in drawn])
    assert abs(counts.mean() - 50) < 3
    assert 4 < counts.std() < 10  # sqrt(45) = 6.7
    assert all(len(set(sample.indices.tolist())) == 100 for sample in drawn)
    assert all(sample.dropped == 0 for sample in drawn)
    for most in (1, 100, 260, 500):
        full = fnn.gradients.poisson_sample(key(2), 500, 0.5, most)
        everything = fnn.gradients.poisson_sample(key(2), 500, 0.5, 500).weights.sum()
        assert full.weights.sum() == min(most, everything)
        assert full.dropped == max(everything - most, 0)
