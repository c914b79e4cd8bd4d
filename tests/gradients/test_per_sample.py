"""Per-sample gradients against a loop over samples in float64, and their refusals."""

import threading

import pytest
import torch
import torch.nn.functional as F

import fnn

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
    monkeypatch.setattr(ghost, "_cheaper", lambda uses, leaf: fnn.gradients.LeafPlan("gram", "forced"))
    mine = fnn.gradients.per_sample_norms(loss, method="ghost")(params, batch)
    torch.testing.assert_close(mine, norms_of(reference), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("network", "method"), [(mlp, "exact"), (mlp, "ghost"), (tied, "ghost")])
def test_compiled_in_one_graph(network, method):
    params, loss, batch = network()
    params = fnn.tree.cast(params, torch.float64)
    clip = fnn.clipped_grad(loss, 0.1, 5, method=method)
    expected = fnn.clipped_grad(loss, 0.1, method="exact")(params, batch)
    if method == "ghost" and not fnn._torch.compiled_modes_see_all:
        with pytest.raises(TypeError, match="hides uses such as"):
            fnn.jit(clip, backend="aot_eager")(params, batch)
        clip = fnn.clipped_grad(loss, 0.1, 5, method="auto")
    assert fnn.tree.allclose(fnn.jit(clip, backend="aot_eager")(params, batch), expected, atol=1e-12)


def test_moments_and_noise_scale(case):
    params, loss, batch, reference = case
    moments = fnn.gradients.per_sample_moments(loss, 4)(params, batch)
    assert fnn.tree.allclose(moments.second, fnn.tree.map(lambda g: g.square().mean(0), reference), atol=1e-12)
    assert fnn.tree.allclose(moments.variance, fnn.tree.map(lambda g: g.var(0), reference), atol=1e-12)
    scale = fnn.gradients.gradient_noise_scale(loss, 4)(params, batch)
    trace = sum(leaf.sum() for leaf in fnn.tree.leaves(moments.variance))
    torch.testing.assert_close(scale.trace, trace, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(scale.square_norm, fnn.tree.dot(moments.mean, moments.mean) - trace / 9)


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
        (lambda: fnn.gradients.accumulate_grad(quadratic, 5)(ONES, torch.ones(4, 3)), "steps=5"),
    ],
)
def test_refusals(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_layers_that_mix_samples_are_refused():
    def loss(params, x):
        fnn.layers.base.refuse_samples_apart("batch_norm")
        return quadratic(params, x)

    fnn.grad(loss)(ONES, torch.ones(4, 3))
    for transform in (fnn.per_sample_grad(loss), fnn.clipped_grad(loss, 1.0)):
        with pytest.raises(ValueError, match="group_norm"):
            transform(ONES, torch.ones(4, 3))
    fnn.grad(loss)(ONES, torch.ones(4, 3))  # the refusal leaves nothing behind


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
        fnn.layers.base.refuse_samples_apart("batch_norm")
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
    full = fnn.gradients.poisson_sample(key(2), 500, 0.5, 100)
    assert full.weights.sum() == 100
    assert full.dropped > 100
