"""Numbers that are known: tutorial shapes, parameter counts, metrics, value_and_grad against autograd."""

import pytest
import torch
import torch.nn.functional as F

import fnn
from fnn._torch import TorchDispatchMode

KEY = fnn.random.key(0)


def test_tutorial_shapes_and_parameter_counts() -> None:
    lenet, mlp = fnn.models.lenet(), fnn.models.mlp(784, 512, 512, 10)
    params = lenet.init(KEY)
    assert len(fnn.tree.leaves(params)) == 10
    assert params["conv1"]["weight"].shape == (6, 1, 3, 3)
    assert fnn.tree.size(params) == 81_194
    assert fnn.tree.size(mlp.init(KEY)) == 669_706
    assert fnn.tree.size(fnn.models.mlp(3 * 28 * 28, 20, 10).init(KEY)) == 47_270
    assert fnn.tree.size(fnn.models.lenet5().init(KEY)) == 61_706
    assert lenet.apply(params, torch.ones(1, 1, 32, 32)).shape == (1, 10)
    assert mlp.apply(mlp.init(KEY), torch.ones(64, 1, 28, 28)).shape == (64, 10)


def test_bce_gives_equal_rows_as_in_the_tutorial() -> None:
    params = {"w": fnn.random.normal(KEY, (5, 3)), "b": fnn.random.normal(fnn.random.key(1), (3,))}
    z = torch.ones(5) @ params["w"] + params["b"]
    grads = fnn.grad(lambda p: fnn.losses.bce_with_logits(torch.ones(5) @ p["w"] + p["b"], torch.zeros(3)))(params)
    assert torch.equal(grads["w"], grads["b"].expand(5, 3))
    torch.testing.assert_close(grads["b"], torch.sigmoid(z) / 3)


@pytest.mark.parametrize("target", [0.0, 1.0])
def test_bce_has_the_right_slope_at_zero(target: float) -> None:
    # where torch.maximum(z, 0) and |z| in the usual stable form both have a kink
    slope = fnn.grad(lambda z: fnn.losses.bce_with_logits(z, torch.full((1,), target)))(torch.zeros(1))
    assert float(slope) == pytest.approx(0.5 - target)


def test_extreme_logits_stay_finite() -> None:
    logits = torch.tensor([[1e4, -1e4], [-1e4, 1e4]])
    value, grads = fnn.value_and_grad(lambda z: fnn.losses.cross_entropy(z, torch.tensor([0, 0])))(logits)
    assert float(value) == 1e4
    assert bool(grads.isfinite().all())
    assert float(fnn.losses.bce_with_logits(torch.tensor([-1e4, 1e4]), torch.tensor([1.0, 1.0]))) == 5000


def test_cross_entropy_of_the_first_step_is_log_ten() -> None:
    model = fnn.models.mlp(784, 512, 512, 10)
    images, labels = fnn.data.load_dataset("digits", size=28).train
    loss = fnn.losses.cross_entropy(model.apply(model.init(KEY), images), labels)
    assert abs(float(loss) - 2.3026) < 0.02


def test_metrics_against_counting() -> None:
    logits = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(0, 4, (50,), generator=torch.Generator().manual_seed(1))
    guesses = [max(range(4), key=lambda c, row=row: row[c]) for row in logits.tolist()]
    pairs = list(zip(labels.tolist(), guesses, strict=True))
    assert float(fnn.metrics.accuracy(logits, labels)) == pytest.approx(sum(a == b for a, b in pairs) / 50)
    matrix = fnn.metrics.confusion_matrix(logits, labels)
    assert matrix.tolist() == [[pairs.count((i, j)) for j in range(4)] for i in range(4)]
    best_two = [sorted(range(4), key=lambda c, row=row: -row[c])[:2] for row in logits.tolist()]
    share = sum(label in two for label, two in zip(labels.tolist(), best_two, strict=True)) / 50
    assert float(fnn.metrics.top_k_accuracy(logits, labels, 2)) == pytest.approx(share)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8])
@pytest.mark.parametrize("leading", [(), (7,), (4, 3), (4, 2, 3)])
def test_metrics_of_any_leading_axes_and_integers_are_those_of_the_rows(
    leading: tuple[int, ...], dtype: torch.dtype
) -> None:
    classes = 100  # whose square does not fit into 8 bits
    logits = torch.randn((*leading, classes), generator=torch.Generator().manual_seed(0))
    best = logits.topk(3, -1).indices
    place = torch.arange(best[..., 0].numel()).reshape(leading) % 4  # a quarter of the targets is not among the three
    targets = torch.where(place < 3, best.gather(-1, place.clamp(max=2)[..., None])[..., 0], logits.argmin(-1))
    targets = targets.to(dtype)
    rows = list(zip(logits.reshape(-1, classes), targets.reshape(-1).tolist(), strict=True))
    metrics = fnn.metrics
    assert float(metrics.accuracy(logits, targets)) == pytest.approx(
        sum(int(z.argmax()) == y for z, y in rows) / len(rows)
    )
    for k in (1, 2, 3, classes):
        among = sum(y in z.topk(k).indices.tolist() for z, y in rows)
        assert float(metrics.top_k_accuracy(logits, targets, k)) == pytest.approx(among / len(rows))
    matrix = metrics.confusion_matrix(logits, targets)
    assert matrix.dtype == torch.int64
    expected = torch.zeros(classes, classes, dtype=torch.int64)
    for z, y in rows:
        expected[y, int(z.argmax())] += 1
    assert torch.equal(matrix, expected)


@pytest.mark.parametrize("name", ["accuracy", "top_k_accuracy", "confusion_matrix"])
@pytest.mark.parametrize(
    "shapes",
    [((4, 3), (3,)), ((4, 3), (4, 1)), ((4, 3), ()), ((3,), (1,)), ((2, 4, 3), (8,)), ((2, 4, 3), (4, 2)), ((), ())],
)
def test_metrics_refuse_targets_that_would_be_broadcast(name: str, shapes: tuple) -> None:
    logits, targets = torch.zeros(shapes[0]), torch.zeros(shapes[1], dtype=torch.int64)
    with pytest.raises(ValueError, match=name):
        getattr(fnn.metrics, name)(logits, targets, *([1] if name == "top_k_accuracy" else []))


def test_a_confusion_matrix_of_many_classes_takes_the_memory_of_the_matrix() -> None:
    logits = torch.randn(300, 1000, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(0, 1000, (300,), generator=torch.Generator().manual_seed(1))

    class Largest(TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            self.numbers = max(self.numbers, out.numel() if isinstance(out, torch.Tensor) else 0)
            return out

    with Largest() as mode:
        matrix = fnn.metrics.confusion_matrix(logits, labels)
    assert mode.numbers <= 1_000_000
    assert int(matrix.sum()) == 300
    assert torch.equal(matrix.sum(1), labels.bincount(minlength=1000))
    assert torch.equal(matrix.sum(0), logits.argmax(-1).bincount(minlength=1000))
    stacked = torch.func.vmap(fnn.metrics.confusion_matrix)(
        logits[:, :7].reshape(3, 100, 7), labels.reshape(3, 100) % 7
    )
    assert torch.equal(stacked.sum(0), fnn.metrics.confusion_matrix(logits[:, :7], labels % 7))
    assert float(fnn.metrics.top_k_accuracy(logits, labels, 1000)) == 1.0


def test_value_and_grad_against_autograd() -> None:
    x, y = torch.randn(3, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    a, b = x.clone().requires_grad_(), y.clone().requires_grad_()
    expected = (a.sin() * b**2).sum()
    expected.backward()
    value, (dx, dy) = fnn.value_and_grad(lambda x, y: (x.sin() * y**2).sum(), argnums=(0, 1))(x, y)
    assert torch.equal(value, expected.detach())
    torch.testing.assert_close((dx, dy), (a.grad, b.grad))
    (value, aux), dy = fnn.value_and_grad(lambda x, y: ((x * y).sum(), {"x": x}), argnums=1, has_aux=True)(x, y)
    assert torch.equal(aux["x"], x)
    assert torch.equal(dy, x)


def test_dropout_scales_what_it_keeps_and_needs_a_key() -> None:
    model = fnn.layers.sequential(fnn.layers.linear(20, 500), fnn.layers.dropout(0.3), fnn.layers.linear(500, 2))
    params, x = model.init(KEY), torch.ones(4, 20)
    assert list(params) == ["0", "2"]
    assert torch.equal(model.apply(params, x), model.apply(params, x))
    one, two = (model.apply(params, x, key=fnn.random.key(i)) for i in (1, 2))
    assert not torch.equal(one, two)
    kept = fnn.layers.dropout(0.3).apply({}, torch.ones(100_000), key=KEY)
    assert abs(float((kept == 0).float().mean()) - 0.3) < 0.006
    assert float(kept.max()) == pytest.approx(1 / 0.7)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("network", ["mlp", "lenet"])
def test_two_hundred_steps_equal_torch(network: str, optimizer: str) -> None:
    model = {"mlp": fnn.models.mlp(64, 32, 10), "lenet": fnn.models.lenet()}[network]
    size = {"mlp": 8, "lenet": 32}[network]
    images, labels = fnn.data.load_dataset("digits", size=size).train
    images = images.double()
    params = fnn.tree.cast(model.init(KEY), torch.float64)
    weights = [leaf.clone().requires_grad_() for leaf in fnn.tree.leaves(params)]
    theirs = {"sgd": torch.optim.SGD(weights, 0.05, momentum=0.9, nesterov=True, weight_decay=1e-3),
              "adam": torch.optim.Adam(weights, 1e-3)}[optimizer]  # fmt: skip
    ours = {"sgd": fnn.optim.sgd(0.05, momentum=0.9, nesterov=True, weight_decay=1e-3), "adam": fnn.optim.adam(1e-3)}[
        optimizer
    ]

    def forward(p: list[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        bias, weight = p[0::2], p[1::2]
        if network == "mlp":
            return F.linear(F.relu(F.linear(x.flatten(1), weight[0], bias[0])), weight[1], bias[1])
        for i in (0, 1):
            x = F.max_pool2d(F.relu(F.conv2d(x, weight[i], bias[i])), 2)
        x = F.relu(F.linear(x.flatten(1), weight[2], bias[2]))
        return F.linear(F.relu(F.linear(x, weight[3], bias[3])), weight[4], bias[4])

    def loss(params: fnn.tree.Tree, batch: tuple) -> torch.Tensor:
        return fnn.losses.cross_entropy(model.apply(params, batch[0]), batch[1])

    state = ours.init(params)
    for step in range(200):
        rows = slice(8 * (step % 100), 8 * (step % 100) + 8)
        batch = images[rows], labels[rows]
        grads = fnn.grad(loss)(params, batch)
        updates, state = ours.update(grads, state, params)
        params = fnn.optim.apply_updates(params, updates)
        theirs.zero_grad()
        F.cross_entropy(forward(weights, batch[0]), batch[1]).backward()
        theirs.step()
    difference = max(float((a - b.detach()).abs().max()) for a, b in zip(fnn.tree.leaves(params), weights, strict=True))
    print(f"{network} {optimizer}: largest difference {difference:.1e}")
    assert difference < {"sgd": 1e-10, "adam": 1e-8}[optimizer]
