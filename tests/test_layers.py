"""What the contract tables do not show: state, first values, names, dtypes, empty batches, the edges of activations."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import grad, jvp, vmap

import fnn
from fnn import layers, losses, tree

KEY = fnn.random.key(0)


def numbers(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def small_network() -> fnn.StatefulLayer:
    block = layers.sequential(layers.conv2d(4, 4, 3, padding=1), layers.batch_norm(4))
    return layers.sequential(
        conv=layers.conv2d(1, 4, 3), norm=layers.batch_norm(4), act=fnn.layers.relu, block=layers.residual(block),
        flat=fnn.layers.flatten, drop=fnn.layers.dropout(0.5), head=layers.linear(64, 3),
    )  # fmt: skip


class TorchResidual(nn.Sequential):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return input + super().forward(input)


def torch_network() -> nn.Sequential:
    net = nn.Sequential()
    block = TorchResidual(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4))
    for name, part in {
        "conv": nn.Conv2d(1, 4, 3), "norm": nn.BatchNorm2d(4), "act": nn.ReLU(), "block": block,
        "flat": nn.Flatten(), "head": nn.Linear(64, 3),
    }.items():  # fmt: skip
        net.add_module(name, part)
    return net.double()


@pytest.mark.parametrize("momentum", [0.1, 0.5, None])
def test_running_statistics_are_those_of_torch(momentum: float | None) -> None:
    layer, net = layers.batch_norm(3, momentum=momentum), nn.BatchNorm2d(3, momentum=momentum).double()
    params, state = tree.cast(layer.init(KEY), torch.float64)
    for step in range(4):
        x = 2.0 * numbers(step, 5, 3, 2, 4) + step
        y, state = layer.apply(params, state, x, train=True)
        torch.testing.assert_close(y, net(x).detach())
    for name, buffer in net.named_buffers():
        torch.testing.assert_close(state[name], buffer)
    y, same = layer.apply(params, state, x)
    torch.testing.assert_close(y, net.eval()(x).detach())
    assert same is state


def test_state_and_params_have_the_names_of_the_state_dict() -> None:
    params, state = small_network().init(KEY)
    assert set(tree.paths(params)) | set(tree.paths(state)) == set(torch_network().state_dict())
    assert set(tree.paths(state)) == {name for name, _ in torch_network().named_buffers()}
    assert state["norm"]["num_batches_tracked"].dtype == torch.int64


def test_training_a_network_with_state_equals_torch() -> None:
    model, net = small_network(), torch_network()
    params, state = tree.cast(model.init(KEY), torch.float64)
    net.load_state_dict(tree.to_state_dict(params) | tree.to_state_dict(state))
    theirs = torch.optim.SGD(net.parameters(), 0.1)

    def loss(params, state, x, y):
        logits, state = model.apply(params, state, x, train=True)
        return losses.cross_entropy(logits, y), state

    for step in range(20):
        x, y = numbers(step, 6, 1, 6, 6), torch.arange(6) % 3
        before = tree.map(torch.clone, state)
        (_, new_state), grads = fnn.value_and_grad(loss, has_aux=True)(params, state, x, y)
        assert all(tree.leaves(tree.map(torch.equal, state, before)))
        params, state = tree.map(lambda p, g: p - 0.1 * g, params, grads), new_state
        theirs.zero_grad()
        F.cross_entropy(net(x), y).backward()
        theirs.step()
    for path, value in net.state_dict().items():
        ours = (tree.to_state_dict(params) | tree.to_state_dict(state))[path]
        torch.testing.assert_close(ours, value, rtol=1e-9, atol=1e-10)


def test_state_under_transforms_and_in_one_graph() -> None:
    model, x = small_network(), numbers(3, 4, 1, 6, 6)
    several = [tree.cast(model.init(fnn.random.key(i)), torch.float64) for i in range(3)]
    stacked = tree.stack(several)
    step = lambda params, state: model.apply(params, state, x, train=True, key=KEY)
    together = vmap(step)(*stacked)
    for i, pair in enumerate(several):
        alone = step(*pair)
        assert tree.allclose(tree.map(lambda leaf, i=i: leaf[i], together), alone)
    assert tree.allclose(fnn.jit(vmap(step))(*stacked), together)
    # the state is a constant of differentiation, as torch's buffers are
    moved = lambda p: model.apply(p, several[0][1], x, train=True)[1]["block"]["1"]["running_mean"].sum()
    assert all(not leaf.any() for leaf in tree.leaves(grad(moved)(several[0][0])))
    # a state whose dicts were filled in another order keeps that order
    state = dict(reversed(several[0][1].items()))
    assert list(model.apply(several[0][0], state, x, train=True)[1]) == list(state)


def test_what_is_random_needs_a_key_and_what_has_state_needs_train() -> None:
    model, x = small_network(), torch.ones(4, 1, 6, 6)
    params, state = model.init(KEY)
    quiet, same = model.apply(params, state, x)
    assert torch.equal(quiet, model.apply(params, state, x)[0])
    assert all(tree.leaves(tree.map(torch.equal, state, same)))
    assert not torch.equal(quiet, model.apply(params, state, x, key=KEY)[0])


def test_batch_norm_has_no_per_sample_gradient_in_training() -> None:
    model, x = small_network(), torch.ones(4, 1, 6, 6)
    params, state = model.init(KEY)
    loss = lambda train: lambda p, batch: losses.cross_entropy(model.apply(p, state, batch, train=train)[0], ONES[:1])
    with pytest.raises(ValueError, match=r"batch_norm in training mode .* no per-sample gradient; write group_norm"):
        fnn.per_sample_grad(loss(True))(params, x)
    assert tree.leaves(fnn.per_sample_grad(loss(False))(params, x))[0].shape[0] == 4


ONES = torch.ones(4, dtype=torch.int64)


@pytest.mark.parametrize("name", ["attention", "embedding", "layer_norm", "rms_norm", "group_norm", "batch_norm"])
def test_first_values_are_those_of_torch(name: str) -> None:
    layer, net = {
        "attention": (layers.multi_head_attention(64, 4), nn.MultiheadAttention(64, 4)),
        "embedding": (layers.embedding(200, 50), nn.Embedding(200, 50)),
        "layer_norm": (layers.layer_norm((3, 4)), nn.LayerNorm((3, 4))),
        "rms_norm": (layers.rms_norm(5), nn.RMSNorm(5)),
        "group_norm": (layers.group_norm(2, 6), nn.GroupNorm(2, 6)),
        "batch_norm": (layers.batch_norm(6), nn.BatchNorm2d(6)),
    }[name]
    made = layer.init(KEY)
    flat = (
        tree.to_state_dict(made) if name != "batch_norm" else tree.to_state_dict(made[0]) | tree.to_state_dict(made[1])
    )
    assert set(flat) == set(net.state_dict())
    for path, theirs in net.state_dict().items():
        ours = flat[path]
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        if theirs.unique().numel() < 3:
            assert torch.equal(ours, theirs)
        else:
            assert float(ours.std()) == pytest.approx(float(theirs.std()), rel=0.05)
            assert float(ours.abs().max()) == pytest.approx(float(theirs.abs().max()), rel=0.2)


def test_ghost_norms_see_the_matrices_of_every_layer() -> None:
    model = layers.sequential(
        embed=layers.embedding(9, 8), attend=layers.residual(layers.multi_head_attention(8, 2)),
        norm=layers.layer_norm(8), flat=fnn.layers.flatten, head=layers.linear(24, 3),
    )  # fmt: skip
    params = tree.cast(model.init(KEY), torch.float64)
    batch = fnn.random.randint(KEY, (5, 3), 0, 9), torch.tensor([0, 1, 2, 2, 1])
    loss = lambda p, batch: losses.cross_entropy(model.apply(p, batch[0]), batch[1])
    plan = fnn.gradients.ghost_plan(loss)(params, batch)
    matrices = {path for path, leaf in tree.items(params) if leaf.dim() == 2}
    assert {path for path, leaf in plan.items() if leaf.method != "exact"} == matrices
    each = fnn.per_sample_grad(loss)(params, batch)
    norms = torch.stack([tree.global_norm(one) for one in tree.unstack(each)])
    torch.testing.assert_close(fnn.gradients.per_sample_norms(loss, method="ghost")(params, batch), norms)


def test_causal_attention_does_not_look_ahead() -> None:
    layer = layers.multi_head_attention(8, 2, causal=True)
    params, x = layer.init(KEY), torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    changed = torch.cat([x[:, :3], x[:, 3:] + 1.0], 1)
    assert torch.equal(layer.apply(params, x)[:, :3], layer.apply(params, changed)[:, :3])
    torch.testing.assert_close(layer.apply(params, x[0]), layer.apply(params, x)[0])


LOW = [torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("name", ["layer_norm", "rms_norm", "group_norm", "batch_norm"])
def test_norms_of_16_bits_are_right_to_16_bits(name: str, dtype: torch.dtype) -> None:
    x = (60.0 * numbers(1, 8, 64) + 300.0).to(dtype)  # whose squares overflow float16
    exact = x.double()
    layer = {"layer_norm": layers.layer_norm(64, dtype=dtype), "rms_norm": layers.rms_norm(64, dtype=dtype),
             "group_norm": layers.group_norm(4, 64, dtype=dtype)}.get(name)  # fmt: skip
    if layer is None:
        stateful = layers.batch_norm(64, dtype=dtype)
        params, state = stateful.init(KEY)
        assert {leaf.dtype for leaf in tree.leaves(state)} == {torch.float32, torch.int64}
        y, _ = stateful.apply(params, state, x, train=True)
        reference = F.batch_norm(exact, None, None, training=True)
    else:
        y = layer.apply(layer.init(KEY), x)
        reference = {
            "layer_norm": lambda: F.layer_norm(exact, (64,)),
            "rms_norm": lambda: F.rms_norm(exact, (64,)),
            "group_norm": lambda: F.group_norm(exact, 4),
        }[name]()
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), reference, rtol=2 * torch.finfo(dtype).eps, atol=2 * torch.finfo(dtype).eps)


def test_autocast_mixes_dtypes() -> None:
    model = layers.sequential(layers.linear(4, 8), fnn.layers.relu, layers.linear(8, 2))
    params = model.init(KEY)
    with torch.autocast("cpu", torch.bfloat16):
        out = model.apply(params, torch.ones(3, 4))
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), model.apply(params, torch.ones(3, 4)), rtol=0.03, atol=0.03)


EMPTY = {
    "linear": (layers.linear(3, 2), (0, 3)), "conv2d": (layers.conv2d(1, 2, 3), (0, 1, 5, 5)),
    "max_pool2d": (layers.max_pool2d(2), (0, 1, 4, 4)), "avg_pool2d": (layers.avg_pool2d(2), (0, 1, 4, 4)),
    "layer_norm": (layers.layer_norm(3), (0, 3)), "group_norm": (layers.group_norm(1, 3), (0, 3, 2)),
    "rms_norm": (layers.rms_norm(3), (0, 3)), "attention": (layers.multi_head_attention(4, 2), (0, 3, 4)),
    "dropout": (layers.dropout(0.5), (0, 3)), "lenet": (fnn.models.lenet(), (0, 1, 32, 32)),
}  # fmt: skip


@pytest.mark.parametrize("name", EMPTY)
def test_an_empty_batch_gives_an_empty_result_and_no_gradient(name: str) -> None:
    layer, shape = EMPTY[name]
    params, x = layer.init(KEY), torch.zeros(shape)
    assert layer.apply(params, x, key=KEY).shape[0] == 0
    assert all(not leaf.any() for leaf in tree.leaves(grad(lambda p: layer.apply(p, x, key=KEY).sum())(params)))


EDGES = torch.tensor([0.0, -0.0, 1e-3, -1e-3, 30.0, -30.0, 100.0, -100.0, 1e4, -1e4])
# first and second derivative from the definition, where torch's own formulas could overflow
DERIVATIVES = {
    "softplus": lambda s: (s, s * (1 - s)),
    "log_sigmoid": lambda s: (1 - s, -s * (1 - s)),
    "sigmoid": lambda s: (s * (1 - s), s * (1 - s) * (1 - 2 * s)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", DERIVATIVES)
def test_saturated_activations_keep_their_derivatives(name: str, dtype: torch.dtype) -> None:
    function, x = getattr(layers, name), EDGES.to(dtype)
    first, second = DERIVATIVES[name](torch.sigmoid(EDGES.double()))
    slope = lambda x: grad(lambda z: function(z).sum())(x)
    torch.testing.assert_close(slope(x).double(), first, rtol=0, atol=2e-7)
    torch.testing.assert_close(jvp(slope, (x,), (torch.ones_like(x),))[1].double(), second, rtol=0, atol=2e-7)


@pytest.mark.parametrize("name", ["relu", "relu6", "leaky_relu", "elu", "selu", "gelu", "silu", "mish", "tanh"])
def test_activations_are_torchs_at_their_edges(name: str) -> None:
    ours, theirs = getattr(layers, name), getattr(F, name)
    x = torch.cat([EDGES, torch.tensor([6.0, math.inf])]).double()
    torch.testing.assert_close(ours(x), theirs(x))
    finite = x[:-1]
    torch.testing.assert_close(vmap(grad(ours))(finite), vmap(grad(theirs))(finite))
    second = jvp(vmap(grad(ours)), (finite,), (torch.ones_like(finite),))[1]
    assert bool(second.isfinite().all())
    # away from the kinks, against central differences
    smooth = finite[(finite.abs() > 1e-2) & (finite != 6)]
    step = 1e-5
    slope = vmap(grad(ours))
    difference = (slope(smooth + step) - slope(smooth - step)) / (2 * step)
    torch.testing.assert_close(second[(finite.abs() > 1e-2) & (finite != 6)], difference, rtol=1e-5, atol=1e-7)


def test_softmax_of_a_masked_entry() -> None:
    x = torch.tensor([[1.0, -math.inf, 2.0]])
    assert torch.equal(layers.log_softmax(x).isinf(), x.isinf())
    torch.testing.assert_close(layers.softmax(x), F.softmax(x, -1))
    slope = grad(lambda z: layers.softmax(z)[0, 0])(x)
    assert bool(slope.isfinite().all())
    assert bool(jvp(grad(lambda z: layers.softmax(z)[0, 0]), (x,), (torch.ones_like(x),))[1].isfinite().all())


@pytest.mark.parametrize("name", ["conv", "linear"])
def test_biases_start_within_the_fan_of_the_weight(name: str) -> None:
    layer, net = {
        "conv": (layers.conv2d(8, 4000, 3, groups=4), nn.Conv2d(8, 4000, 3, groups=4)),
        "linear": (layers.linear(7, 4000), nn.Linear(7, 4000)),
    }[name]
    bound = 1 / math.sqrt(net.weight[0].numel())
    bias = layer.init(KEY)["bias"]
    assert 0.98 * bound < float(bias.abs().max()) <= bound
    assert float(net.bias.detach().abs().max()) == pytest.approx(float(bias.abs().max()), rel=0.03)


@pytest.mark.parametrize("name", ["linear", "conv2d", "embedding"])
def test_initialisers_that_are_given_are_used(name: str) -> None:
    make = {"linear": layers.linear, "conv2d": layers.conv2d, "embedding": layers.embedding}[name]
    options: dict = {"weight_init": fnn.init.constant(3.0)}
    if name != "embedding":
        options["bias_init"] = fnn.init.constant(-2.0)
    params = make(4, 4, **({"kernel_size": 1} if name == "conv2d" else {}), **options).init(KEY)
    assert set(params["weight"].unique().tolist()) == {3.0}
    assert name == "embedding" or set(params["bias"].unique().tolist()) == {-2.0}


@pytest.mark.parametrize("padding_idx", [2, -1, 0])
def test_the_padding_row_of_an_embedding_is_not_trained(padding_idx: int) -> None:
    layer, net = layers.embedding(5, 3, padding_idx), nn.Embedding(5, 3, padding_idx).double()
    params = tree.cast(layer.init(KEY), torch.float64)
    assert not params["weight"][padding_idx].any()
    assert bool(params["weight"].any(1).sum() == 4)
    x = torch.tensor([[0, 2, 4], [4, 2, 1]])
    weight = numbers(0, 5, 3)
    net.load_state_dict({"weight": weight})
    (net(x) * numbers(1, 2, 3, 3)).sum().backward()
    loss = lambda p: (layer.apply(p, x) * numbers(1, 2, 3, 3)).sum()
    torch.testing.assert_close(grad(loss)({"weight": weight})["weight"], net.weight.grad)
    torch.testing.assert_close(layer.apply({"weight": weight}, x), net(x).detach())


def test_max_pooling_gives_its_places() -> None:
    x = numbers(0, 2, 3, 7, 8)
    ours = layers.max_pool2d(3, 2, 1, return_indices=True).apply({}, x)
    theirs = nn.MaxPool2d(3, 2, 1, return_indices=True)(x)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_statistics_that_are_not_tracked() -> None:
    layer, net = layers.batch_norm(3, track_running_stats=False), nn.BatchNorm1d(3, track_running_stats=False).double()
    params, state = tree.cast(layer.init(KEY), torch.float64)
    assert state == {}
    for train in (True, False):
        y, state = layer.apply(params, state, numbers(0, 6, 3), train=train)
        torch.testing.assert_close(y, net.train(train)(numbers(0, 6, 3)).detach())
        assert state == {}
    with pytest.raises(ValueError, match="no per-sample gradient"):
        fnn.per_sample_grad(lambda p, x: layer.apply(p, {}, x)[0].sum())(params, numbers(0, 6, 3))


def test_attention_over_nothing() -> None:
    for causal in (False, True):
        layer = layers.multi_head_attention(4, 2, causal=causal)
        assert layer.apply(layer.init(KEY), torch.zeros(3, 0, 4)).shape == (3, 0, 4)
        assert layer.apply(layer.init(KEY), torch.zeros(0, 3, 4)).shape == (0, 3, 4)


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax_over_an_empty_axis_and_of_one_number(name: str) -> None:
    ours, theirs = getattr(layers, name), getattr(F, name)
    for shape in ((0,), (2, 0), (0, 2), ()):
        x = torch.zeros(shape)
        assert torch.equal(ours(x), theirs(x, -1))
        assert torch.equal(grad(lambda x: ours(x).sum())(x), torch.zeros(shape))


def wide_logits(dtype: torch.dtype) -> torch.Tensor:
    return (3.0 * numbers(0, 20, 1000)).to(dtype)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax_of_16_bits_is_summed_in_32(name: str, dtype: torch.dtype, autocast: bool) -> None:
    x = wide_logits(dtype)
    with torch.autocast("cpu", dtype, enabled=autocast):
        y = getattr(layers, name)(x)
    exact = getattr(F, name)(x.double(), -1)
    assert y.dtype == (torch.float32 if autocast else dtype)
    precision = torch.finfo(y.dtype).eps
    torch.testing.assert_close(
        y.double(), exact, rtol=2 * precision, atol=2 * precision * (name == "log_softmax") + 1e-7
    )
    if name == "softmax":
        torch.testing.assert_close(y.double().sum(-1), torch.ones(20).double(), rtol=0, atol=2 * precision)


def tokens(dtype: torch.dtype) -> torch.Tensor:
    return (torch.arange(12) % 5).reshape(3, 4).to(dtype)


def test_embedding_takes_int32() -> None:
    layer = layers.embedding(5, 2)
    params = layer.init(KEY)
    assert torch.equal(layer.apply(params, tokens(torch.int32)), layer.apply(params, tokens(torch.int64)))


def test_small_images_that_padding_makes_large_enough() -> None:
    x = torch.ones(1, 1, 1, 2)
    conv, net = layers.conv2d(1, 2, 3, padding=1), nn.Conv2d(1, 2, 3, padding=1)
    params = {name: leaf.detach() for name, leaf in net.named_parameters()}
    torch.testing.assert_close(conv.apply(params, x), net(x).detach())
    assert torch.equal(layers.max_pool2d(3, 1, 1).apply({}, x), F.max_pool2d(x, 3, 1, 1))
    assert torch.equal(layers.avg_pool2d(3, 1, 1).apply({}, x), F.avg_pool2d(x, 3, 1, 1))


ONE_BAD_AXIS = {
    "padding of a pool": lambda pair: layers.max_pool2d(2, padding=pair(0, 2)),
    "padding of an average": lambda pair: layers.avg_pool2d((4, 4), padding=pair(2, 3)),
    "window of a pool": lambda pair: layers.max_pool2d(pair(2, 7)).apply({}, torch.ones(1, 1, 6, 6)),
    "window of an average": lambda pair: layers.avg_pool2d(pair(2, 7)).apply({}, torch.ones(1, 1, 6, 6)),
    "dilated window": lambda pair: layers.max_pool2d(3, dilation=pair(1, 3)).apply({}, torch.ones(1, 1, 6, 6)),
    "kernel": lambda pair: applied(layers.conv2d(1, 1, pair(2, 7)), torch.ones(1, 1, 6, 6)),
    "dilated kernel": lambda pair: applied(layers.conv2d(1, 1, 3, dilation=pair(1, 3)), torch.ones(1, 1, 6, 6)),
    "same with a stride": lambda pair: layers.conv2d(1, 1, 3, stride=pair(1, 2), padding="same"),
    "groups": lambda pair: layers.conv2d(*pair(4, 3), 1, groups=2),
    "features of a norm": lambda pair: applied(layers.layer_norm(pair(3, 4)), torch.ones(2, *pair(3, 5))),
    "size of 0": lambda pair: layers.conv2d(1, 1, pair(1, 0)),
}


def applied(layer: fnn.Layer, x: torch.Tensor) -> torch.Tensor:
    return layer.apply(layer.init(KEY), x)


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("name", ONE_BAD_AXIS)
def test_one_axis_that_does_not_fit_is_enough(name: str, swapped: bool) -> None:
    with pytest.raises(ValueError, match=r"[a-z]+"):
        ONE_BAD_AXIS[name](lambda a, b: (b, a) if swapped else (a, b))


NAMED = {
    "linear": (lambda: layers.linear(4, 3), (2, 4)), "conv2d": (lambda: layers.conv2d(1, 2, 3), (1, 1, 4, 4)),
    "layer_norm": (lambda: layers.layer_norm(4), (2, 4)), "group_norm": (lambda: layers.group_norm(1, 4), (2, 4, 3)),
    "rms_norm": (lambda: layers.rms_norm(4), (2, 4)), "mlp": (lambda: fnn.models.mlp(4, 3, 2), (2, 4)),
    "dropout": (lambda: layers.dropout(0.5), (2, 4)),
    "residual": (lambda: layers.residual(layers.linear(4, 4)), (2, 4)),
    "sequential": (lambda: layers.sequential(layers.relu, layers.linear(4, 3)), (2, 4)),
}  # fmt: skip


@pytest.mark.parametrize("name", NAMED)
def test_empty_entries_are_allowed_and_others_are_not(name: str) -> None:
    make, shape = NAMED[name]
    layer, x = make(), torch.ones(shape)
    params = layer.init(KEY)
    expected = layer.apply(params, x)
    for empty in ({}, (), []):
        assert torch.equal(layer.apply(params | {"other": empty}, x), expected)
    for more in (torch.ones(1), {"weight": torch.ones(1)}, [torch.ones(1)], 0.5):
        with pytest.raises(ValueError, match="has no 'other': these params were made for another model"):
            layer.apply(params | {"other": more}, x)


@pytest.mark.parametrize(
    ("layer", "kernel"),
    [
        (lambda: layers.layer_norm(3), "aten::native_layer_norm"),
        (lambda: layers.group_norm(1, 3), "aten::native_group_norm"),
        (lambda: layers.batch_norm(3), "aten::native_batch_norm"),
    ],
)
def test_norms_are_one_kernel_where_one_gradient_is_taken(layer: Any, kernel: str) -> None:
    made = layer()
    x = fnn.random.normal(KEY, (4, 3))
    params, *state = made.init(KEY) if isinstance(made, fnn.StatefulLayer) else (made.init(KEY),)
    options = {"train": True} if state else {}
    loss = lambda params: fnn.tree.leaves(made.apply(params, *state, x, **options))[0].square().sum()
    slope = lambda params: fnn.jvp(loss, (params,), (params,))[1]
    for call, expected in ((fnn.grad(loss), True), (slope, False), (fnn.grad(slope), False)):
        for f in (call, fnn.jit(call)):
            f(params)
            with torch.profiler.profile() as seen:
                f(params)
            assert (kernel in {event.key for event in seen.key_averages()}) == expected
