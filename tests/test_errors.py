"""Bad input to layers, models, losses, metrics and value_and_grad: a sentence that names what was given."""

# ruff: noqa: E501 (one mistake a line)

import collections
import re

import numpy
import pytest
import torch

import fnn
from fnn import layers, losses, metrics

KEY = fnn.random.key(0)
LENET, MLP = fnn.models.lenet(), fnn.models.mlp(784, 5, 10)
DEEP = layers.sequential(body=layers.sequential(layers.linear(4, 3), layers.linear(2, 1)))
ONES = torch.ones


def apply(layer: fnn.Layer, x: torch.Tensor):
    return lambda: layer.apply(layer.init(KEY), x)


def train(layer: fnn.StatefulLayer, x: torch.Tensor):
    return lambda: layer.apply(*layer.init(KEY), x, train=True)


SMALL, LARGE = fnn.models.mlp(4, 3), fnn.models.mlp(4, 3, 2)


def donated(layer: fnn.Layer) -> fnn.tree.Tree:
    params = layer.init(KEY)
    fnn.jit(lambda params: fnn.tree.scale(2.0, params), donate_argnums=0)(params)
    return params


STACKED = fnn.tree.stack([MLP.init(fnn.random.key(i)) for i in range(4)])
SENTENCES = [
    (
        apply(LENET, ONES(2, 1, 28, 28)),
        r"lenet expects images of shape \(batch, 1, 32, 32\), got \(2, 1, 28, 28\); .*pad",
    ),
    (apply(LENET, ONES(1, 32, 32)), r"lenet expects images"),
    (apply(MLP, ONES(2, 3)), r"params\['0'\]: linear expects inputs of shape \(\.\.\., 784\), got \(2, 3\)"),
    (apply(DEEP, ONES(2, 4)), r"params\['body'\]\['1'\]: linear expects inputs of shape \(\.\.\., 2\), got \(2, 3\)"),
    (apply(layers.conv2d(3, 4, 3), ONES(2, 1, 8, 8)), r"conv2d expects inputs of shape \(batch, 3, height, width\)"),
    (
        apply(layers.conv2d(1, 4, 3), ONES(2, 1, 2, 8)),
        r"conv2d with a kernel that reaches over \(3, 3\) got an input of size \(2, 8\)",
    ),
    (lambda: layers.conv2d(3, 4, 3, groups=2), "groups=2 must divide in_channels=3"),
    (
        apply(layers.max_pool2d(9), ONES(1, 1, 8, 8)),
        r"max_pool2d with a window of \(9, 9\) got an input of size \(8, 8\)",
    ),
    (apply(layers.avg_pool2d(2), ONES(8)), r"avg_pool2d expects inputs of shape"),
    (
        apply(layers.linear(3, 2), ONES(2, 3, dtype=torch.uint8)),
        r"float32 and got inputs of torch.uint8; write x\.to\(",
    ),
    (apply(DEEP, ONES(2, 4).double()), r"params\['body'\]\['0'\]: linear has params of torch.float32 .*float64"),
    (apply(layers.conv2d(1, 2, 3), ONES(2, 1, 5, 5).double()), "conv2d has params of torch.float32"),
    (lambda: DEEP.apply({}, ONES(2, 4)), r"\['body'\]\['0'\]: linear expects a weight of shape \(3, 4\), .* only \[\]"),
    (lambda: layers.linear(2, 3).apply({"weight": ONES(2, 3)}, ONES(2)), r"weight of shape \(3, 2\), got \(2, 3\)$"),
    (lambda: MLP.apply(STACKED, ONES(2, 784)), r"weight of shape \(5, 784\), got \(4, 5, 784\); stacked .* vmap"),
    (
        apply(layers.layer_norm((3, 4)), ONES(2, 4)),
        r"layer_norm expects inputs of shape \(\.\.\., 3, 4\), got \(2, 4\)",
    ),
    (apply(layers.rms_norm(3), ONES(2, 4)), r"rms_norm expects inputs of shape \(\.\.\., 3\), got \(2, 4\)"),
    (lambda: layers.layer_norm(()), "at least one axis"),
    (lambda: layers.group_norm(4, 6), "num_groups=4 must divide num_channels=6"),
    (apply(layers.group_norm(2, 6), ONES(2, 4, 3)), r"group_norm expects inputs of shape \(batch, 6, \.\.\.\), got"),
    (
        apply(layers.instance_norm(6), ONES(6)),
        r"instance_norm expects inputs of shape \(batch, 6, \.\.\.\), got \(6,\)",
    ),
    (train(layers.batch_norm(3), ONES(2, 4)), r"batch_norm expects inputs of shape \(batch, 3, \.\.\.\), got \(2, 4\)"),
    (
        train(layers.batch_norm(3), ONES(1, 3)),
        r"more than one value per channel, got inputs of \(1, 3\); train on larger",
    ),
    (train(layers.sequential(layers.batch_norm(3)), ONES(1, 3)), r"params\['0'\]: batch_norm in training mode"),
    (
        lambda: layers.batch_norm(3).apply(*layers.batch_norm(2).init(KEY), ONES(2, 3)),
        r"weight of shape \(3,\), got \(2,\)",
    ),
    (
        lambda: layers.batch_norm(3, affine=False).apply({}, {}, ONES(2, 3)),
        r"running_mean of shape \(3,\), .* only \[\]",
    ),
    (
        apply(layers.embedding(5, 2), ONES(3)),
        r"embedding expects int64 or int32 numbers, got torch.float32 of shape \(3,\)",
    ),
    (lambda: layers.multi_head_attention(6, 4), "num_heads=4 must divide embed_dim=6"),
    (apply(layers.multi_head_attention(6, 2), ONES(2, 5)), r"shape \(batch, sequence, 6\), got \(2, 5\)"),
    (apply(layers.residual(layers.linear(3, 2)), ONES(2, 3)), r"the layer turns \(2, 3\) into \(2, 2\)"),
    (
        apply(layers.sequential(layers.residual(layers.linear(3, 2))), ONES(2, 4)),
        r"params\['0'\]: linear expects inputs of shape \(\.\.\., 3\), got \(2, 4\)",
    ),
    (lambda: layers.dropout(1.5), "dropout expects 0 <= p <= 1, got 1.5"),
    (lambda: layers.gelu(ONES(1), "exact"), "'none' or 'tanh', got 'exact'"),
    (lambda: fnn.models.mlp(3), r"at least an input and an output size, got \(3,\)"),
    (lambda: losses.cross_entropy(ONES(2, 3), ONES(3, dtype=torch.int64)), r"targets of shape \(2,\), got \(3,\)"),
    (lambda: losses.cross_entropy(ONES(2, 3), ONES(2)), r"targets of shape \(2, 3\), got \(2,\)"),
    (
        lambda: losses.cross_entropy(ONES(2, 3), torch.tensor([0, 1]), ONES(2)),
        r"one entry per class, shape \(3,\), got \(2,\)",
    ),
    (lambda: losses.cross_entropy(ONES(()), torch.tensor(0)), "axis of classes"),
    (
        lambda: losses.cross_entropy(ONES(2, 3), torch.tensor([0, 1]), label_smoothing=2.0),
        "0 <= label_smoothing <= 1, got 2.0",
    ),
    # params of another model, in both directions
    (
        lambda: SMALL.apply(LARGE.init(KEY), ONES(2, 4)),
        "sequential has no '2': these params were made for another model",
    ),
    (lambda: LARGE.apply(SMALL.init(KEY), ONES(2, 4)), r"params\['2'\]: linear expects a weight .* only \[\]"),
    (
        lambda: layers.linear(4, 3, bias=False).apply(layers.linear(4, 3).init(KEY), ONES(2, 4)),
        "linear has no 'bias': these params were made for another model .its own are 'weight'",
    ),
    (
        lambda: layers.conv2d(1, 2, 3, bias=False).apply(layers.conv2d(1, 2, 3).init(KEY), ONES(2, 1, 5, 5)),
        "conv2d has no 'bias'",
    ),
    (
        lambda: layers.layer_norm(3, bias=False).apply(layers.layer_norm(3).init(KEY), ONES(2, 3)),
        "layer_norm has no 'bias'",
    ),
    (
        lambda: layers.layer_norm(3, elementwise_affine=False).apply(layers.layer_norm(3).init(KEY), ONES(2, 3)),
        "it has none of its own",
    ),
    (
        lambda: layers.rms_norm(3, elementwise_affine=False).apply({"weight": ONES(3)}, ONES(2, 3)),
        "rms_norm has no 'weight'",
    ),
    (
        lambda: layers.group_norm(1, 3, affine=False).apply({"weight": ONES(3)}, ONES(2, 3)),
        "group_norm has no 'weight'",
    ),
    (
        lambda: layers.embedding(3, 2).apply({"weight": ONES(3, 2), "bias": ONES(2)}, ONES(1).long()),
        "embedding has no 'bias'",
    ),
    (lambda: layers.dropout().apply({"weight": ONES(2)}, ONES(2)), "dropout has no 'weight'"),
    (lambda: layers.max_pool2d(2).apply({"weight": ONES(2)}, ONES(1, 4, 4)), "max_pool2d has no 'weight'"),
    (lambda: layers.avg_pool2d(2).apply({"weight": ONES(2)}, ONES(1, 4, 4)), "avg_pool2d has no 'weight'"),
    (
        lambda: layers.multi_head_attention(4, 2, bias=False).apply(
            layers.multi_head_attention(4, 2).init(KEY), ONES(2, 3, 4)
        ),
        "multi_head_attention has no 'in_proj_bias'",
    ),
    (
        lambda: layers.sequential(layers.linear(4, 3), layers.relu).apply(
            {"0": layers.linear(4, 3).init(KEY), "1": {"weight": ONES(3)}}, ONES(2, 4)
        ),
        r"params\['1'\]: a function has no 'weight'",
    ),
    (
        lambda: layers.sequential(layers.batch_norm(3)).apply(
            *layers.sequential(layers.batch_norm(3), layers.batch_norm(3)).init(KEY), ONES(2, 3)
        ),
        "sequential has no '1'",
    ),
    (
        lambda: layers.batch_norm(3, track_running_stats=False).apply(*layers.batch_norm(3).init(KEY), ONES(2, 3)),
        "has no 'run",
    ),
    (
        lambda: fnn.models.lenet().apply(fnn.models.lenet().init(KEY) | {"fc4": {"w": ONES(1)}}, ONES(1, 1, 32, 32)),
        "no 'fc4'",
    ),
    # sizes
    (lambda: layers.conv2d(1, 2, (3, 3, 7)), r"conv2d expects kernel_size as one integer or a pair .*got \(3, 3, 7\)"),
    (lambda: layers.conv2d(1, 2, 3, stride=(1, 1, 1)), "conv2d expects stride as one integer or a pair"),
    (lambda: layers.conv2d(1, 2, 3, dilation=(1,)), "conv2d expects dilation as one integer or a pair"),
    (lambda: layers.conv2d(1, 2, 3, padding=(1, 1, 1)), "conv2d expects padding as one integer or a pair"),
    (lambda: layers.conv2d(1, 2, 3, padding="full"), "'same' or 'valid', got 'full'"),
    (lambda: layers.conv2d(1, 2, 3, 2, "same"), r"padding='same' needs stride 1, got \(2, 2\)"),
    (lambda: layers.conv2d(1, 2, 3, padding_mode="mirror"), "padding_mode is one of 'zeros'.* got 'mirror'"),
    (lambda: layers.max_pool2d((2, 2, 2)), "max_pool2d expects kernel_size as one integer or a pair"),
    (lambda: layers.max_pool2d(2, padding=2), r"at most half a window of \(2, 2\), got padding=\(2, 2\)"),
    (lambda: layers.linear(-1, 2), "in_features >= 0, got -1"),
    (lambda: layers.embedding(3, 2, padding_idx=3), "padding_idx=3 is not one of the 3 rows"),
    (lambda: layers.softplus(ONES(1), beta=0), "divides by beta"),
    (apply(layers.instance_norm(3), ONES(2, 3)), r"more than one value per channel, got inputs of \(2, 3\)"),
    (
        apply(layers.instance_norm(3, spatial=1), ONES(2, 3)),
        r"instance_norm expects inputs of shape \(batch, 3, axis0\)",
    ),
    # labels
    (lambda: losses.cross_entropy(ONES(2, 3), ONES(2)), r"these are torch.float32: .* write targets\.long\(\)"),
    (lambda: losses.cross_entropy(ONES(2, 3), ONES(2, 1).long()), r"write targets\.squeeze\(-1\)"),
    (lambda: losses.nll(ONES(2, 3), ONES(2)), r"shape \(2, 3\), got \(2,\); these are .* targets\.long\(\)"),
    (lambda: losses.mse(ONES(2, 1), ONES(2)), r"write prediction\.squeeze\(-1\)"),
    (lambda: losses.mse(ONES(2, 3), ONES(2)), r"for class labels write cross_entropy, or .*one_hot\(target, 3\)"),
    (lambda: metrics.confusion_matrix(ONES(2, 3), torch.tensor([0, 3])), "targets from 0 to 2; leave out"),
    (lambda: metrics.confusion_matrix(ONES(2, 3), torch.tensor([0, -1])), "targets from 0 to 2; leave out"),
    (lambda: metrics.confusion_matrix(ONES(2, 3), torch.tensor([0, -100])), "targets from 0 to 2; leave out"),
    (lambda: metrics.confusion_matrix(ONES(2, 3), ONES(2)), r"got torch.float32; write targets\.long\(\)"),
    (apply(layers.residual(layers.linear(3, 2)), ONES(2, 3)), r"with a shortcut that makes the same change"),
    (
        lambda: layers.linear(3, 2).apply(donated(layers.linear(3, 2)), ONES(2, 3)),
        "weight was donated to a jitted function",
    ),
    (lambda: fnn.summary(donated(layers.linear(3, 2))), "was donated to a jitted function; summarise"),
    (lambda: losses.mse(ONES(2, 1), ONES(2)), r"one shape, got \(2, 1\) and \(2,\)"),
    (lambda: losses.mse(ONES(2), ONES(2), "avg"), "'mean', 'sum' or 'none', got 'avg'"),
    (lambda: losses.huber(ONES(2), ONES(2), delta=0.0), "delta > 0, got 0"),
    (lambda: losses.smooth_l1(ONES(2), ONES(2), beta=-1.0), "beta >= 0, got -1"),
    (lambda: losses.nll(ONES(2, 3), ONES(2, 3)), "nll expects integer targets"),
    (lambda: losses.bce_with_logits(ONES(2), ONES(3)), r"got \(2,\) and \(3,\)"),
    (lambda: metrics.accuracy(ONES(2, 3), ONES(3)), r"got \(2, 3\) and \(3,\)"),
    (lambda: metrics.top_k_accuracy(ONES(2, 3), ONES(2), 4), "1 <= k <= 3 classes, got 4"),
    (lambda: metrics.confusion_matrix(ONES(2, 3), ONES(3)), r"got \(2, 3\) and \(3,\)"),
    (
        lambda: fnn.value_and_grad(lambda p: p)(ONES(2)),
        r"scalar value, got a tensor of shape \(2,\); write loss.mean\(\)",
    ),
    (
        lambda: fnn.value_and_grad(lambda p: p.sum(), argnums=1)(ONES(2)),
        "argument 1 is asked for, but the function got 1 positional",
    ),
]


@pytest.mark.parametrize(("call", "message"), SENTENCES, ids=[message[:40] for _, message in SENTENCES])
def test_value_errors(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


INTEGERS = torch.tensor([0, 1])
WEIGHTS = layers.linear(3, 2).init(KEY)
NAMES = {"fc": {"weight": ONES(1), "bias": ONES(1)}}
FROM_TORCH, FROM_PARAMS, _ = fnn.interop.from_module(torch.nn.Linear(3, 2))
# a hint, a call whose mistake it explains, and calls with other mistakes, whose sentences must not have it
HINTS = {
    r"prediction\.squeeze": (lambda: losses.mse(ONES(2, 1), ONES(2)), [lambda: losses.mse(ONES(3, 1), ONES(2)), lambda: losses.mse(ONES(2, 3), ONES(2)), lambda: losses.mse(ONES(2, 1, 1), ONES(2))]),
    "for class labels write": (lambda: losses.mse(ONES(2, 3), ONES(2)), [lambda: losses.mse(ONES(4, 3), ONES(2)), lambda: losses.mse(ONES(2), ONES(2, 3)), lambda: losses.mse(ONES(2, 3), ONES(()))]),
    r"targets\.long": (lambda: losses.cross_entropy(ONES(2, 3), ONES(2)), [lambda: losses.cross_entropy(ONES(2, 3), ONES(4)), lambda: losses.cross_entropy(ONES(2, 3), INTEGERS[:1])]),
    r"targets\.squeeze": (lambda: losses.cross_entropy(ONES(2, 3), INTEGERS[:, None]), [lambda: losses.cross_entropy(ONES(2, 3), INTEGERS[None]), lambda: losses.cross_entropy(ONES(2, 3), ONES(3, 1))]),
    "stacked params go through vmap": (lambda: MLP.apply(STACKED, ONES(2, 784)), [lambda: layers.linear(3, 2).apply(WEIGHTS | {"bias": ONES(3)}, ONES(3)), lambda: layers.linear(3, 2).apply(WEIGHTS | {"bias": ONES(2, 1)}, ONES(3))]),
    r"stacked params .*vmap\(layer": (lambda: FROM_TORCH.apply(fnn.tree.stack([FROM_PARAMS] * 2), ONES(3)), [lambda: FROM_TORCH.apply(FROM_PARAMS | {"bias": ONES(3)}, ONES(3))]),
    "several keys go through vmap": (lambda: fnn.random.normal(fnn.random.split(KEY, 3)), [lambda: fnn.random.normal(torch.zeros(3, dtype=torch.int32)), lambda: fnn.random.normal(ONES(3, 2)), lambda: fnn.random.normal(1)]),
    r"fnn\.random\.key\(1\)": (lambda: fnn.random.normal(1), [lambda: fnn.random.normal(1.0), lambda: fnn.random.normal(ONES(2)), lambda: fnn.random.normal(torch.tensor(1))]),
    r"uniform\(key, shape, dtype": (lambda: fnn.random.uniform(KEY, (), 0.5), [lambda: fnn.random.uniform(KEY, (), torch.int64)]),
    "has_aux=True": (lambda: fnn.grad(lambda x: (x.sum(), 1))(ONES(2)), [lambda: fnn.grad(lambda x: None)(ONES(2)), lambda: fnn.grad(lambda x: [x.sum()])(ONES(2)), lambda: fnn.grad(lambda x: x)(ONES(2))]),
    r"without \.item": (lambda: fnn.grad(lambda x: 1.0)(ONES(2)), [lambda: fnn.grad(lambda x: x)(ONES(2)), lambda: fnn.grad(lambda x: "1.0")(ONES(2))]),
    r"value\.real": (lambda: fnn.grad(lambda x: x.sum() * 1j)(ONES(2)), [lambda: fnn.grad(lambda x: x.sum().long())(ONES(2))]),
    "the nearest are": (lambda: layers.from_config({"make": "layers.lineer", "arguments": {}}), [lambda: layers.from_config({"make": "?", "arguments": {}})]),
    r"call it: adam\(": (lambda: fnn.optim.chain(fnn.optim.adam), [lambda: fnn.optim.chain(3)]),
    r"give state_dict\['fc'\]": (lambda: fnn.interop.load_state_dict({}, {}, {"fc": {"w": ONES(1)}}), [lambda: fnn.interop.load_state_dict({}, {}, {"fc": [ONES(1)]})]),
    r"removeprefix\('module\.'\)": (
        lambda: fnn.interop.load_state_dict(NAMES, {}, {"module.fc.weight": ONES(1), "module.fc.bias": ONES(1)}),
        [lambda: fnn.interop.load_state_dict(NAMES, {}, {"module.fc.weight": ONES(1), "fc.other": ONES(1)}), lambda: fnn.interop.load_state_dict(NAMES, {}, {"fc.weight": ONES(1)})],
    ),
}  # fmt: skip


@pytest.mark.parametrize("hint", HINTS)
def test_a_hint_stands_where_it_fits_and_nowhere_else(hint: str) -> None:
    fitting, others = HINTS[hint]
    with pytest.raises((ValueError, TypeError), match=hint):
        fitting()
    for call in others:
        with pytest.raises((ValueError, TypeError)) as found:
            call()
        assert re.search(hint, str(found.value)) is None, found.value


BN = layers.sequential(layers.linear(4, 3), layers.batch_norm(3))
NUMPY = numpy.ones((2, 4), dtype="float32")
X = ONES(2, 4)
TYPES = {
    "swapped": (lambda: SMALL.apply(X, SMALL.init(KEY)), r"params as a dict, got a torch\.Tensor; write apply\(params, x\)"),
    "swapped, linear": (lambda: layers.linear(4, 3).apply(X, {}), r"linear expects its params as a dict"),
    "swapped, conv": (lambda: layers.conv2d(1, 2, 3).apply(X, {}), "conv2d expects its params as a dict"),
    "swapped, lenet": (lambda: LENET.apply(X, LENET.init(KEY)), "lenet expects its params as a dict"),
    "swapped, norms": (lambda: layers.layer_norm(4).apply(X, {}), "layer_norm expects its params as a dict"),
    "swapped, embedding": (lambda: layers.embedding(3, 2).apply(X.long(), {}), "embedding expects its params as a dict"),
    "swapped, bags": (lambda: layers.embedding_bag(3, 2).apply(X.long(), {}), "embedding_bag expects its params as a di"),
    "swapped, dropout": (lambda: layers.dropout().apply(X, {}), "dropout expects its params as a dict"),
    "no params": (lambda: SMALL.apply(None, X), r"got None; write params = model\.init\(fnn\.random\.key\(0\)\)"),
    "NumPy": (lambda: SMALL.apply(SMALL.init(KEY), NUMPY), r"a tensor, got a numpy\.ndarray; write torch\.as_tensor\(x\)"),
    "list": (lambda: layers.linear(4, 3).apply(layers.linear(4, 3).init(KEY), [1.0]), "linear expects a tensor, got a list"),
    "inner NumPy": (
        lambda: layers.sequential(body=layers.sequential(lambda x: x.numpy(), layers.linear(4, 3))).apply(
            {"body": {"1": layers.linear(4, 3).init(KEY)}}, X
        ),
        r"params\['body'\]\['1'\]: linear expects a tensor, got a numpy",
    ),
    "UserDict": (lambda: SMALL.apply(SMALL.init(KEY), collections.UserDict(x=X)), "got a collections?.?UserDict|got a UserDict"),
    "NumPy, embedding": (lambda: layers.embedding(3, 2).apply({"weight": ONES(3, 2)}, NUMPY), "embedding expects a tensor"),
    "NumPy, pool": (lambda: layers.max_pool2d(2).apply({}, NUMPY), "max_pool2d expects a tensor"),
    "NumPy, attention": (lambda: layers.multi_head_attention(4, 2).apply({}, NUMPY), "multi_head_attention expects a tensor"),
    "NumPy, loss": (lambda: losses.mse(NUMPY, X), r"mse expects tensors, got a ndarray; write torch\.as_tensor"),
    "list, loss": (lambda: losses.cross_entropy(X, [0, 1]), "cross_entropy expects tensors, got a list"),
    "list, metric": (lambda: metrics.accuracy(X, [0, 1]), "accuracy expects tensors, got a list"),
    "no state": (lambda: BN.apply(BN.init(KEY)[0], X), r"sequential has state: write params, state = model\.init\(key\)"),
    "no state, batch_norm": (lambda: layers.batch_norm(4).apply({"weight": ONES(4)}, X), "batch_norm has state"),
    "no state, residual": (lambda: layers.residual(layers.batch_norm(4)).apply({}, X), "residual has state"),
    "not unpacked": (lambda: BN.apply(BN.init(KEY), X), r"got a tuple; a layer with state gives two values: params, state ="),
    "module": (lambda: layers.sequential(torch.nn.Linear(4, 3)), r"torch\.nn\.Module \(Linear\).*write fnn\.layers\.linear\(\.\.\.\)"),
    "module's forward": (lambda: layers.sequential(torch.nn.Linear(4, 3).forward), r"torch\.nn\.Module \(Linear\)"),
    "activation module": (lambda: layers.sequential(torch.nn.ReLU()), r"write fnn\.layers\.relu"),
    "batch norm module": (lambda: layers.sequential(torch.nn.BatchNorm2d(3)), r"write fnn\.layers\.batch_norm\(\.\.\.\)"),
    "conv1d module": (lambda: layers.sequential(torch.nn.Conv1d(1, 2, 3)), r"write fnn\.layers\.conv1d\(\.\.\.\)"),
    "other module": (lambda: layers.residual(torch.nn.LSTM(4, 4)), r"residual: part 'layer' .*fnn\.interop\.from_module\(module\)"),
    "class": (lambda: layers.sequential(torch.nn.ReLU), r"torch\.nn\.Module \(ReLU\)"),
    "model activation": (lambda: fnn.models.mlp(4, 3, 2, activation=torch.nn.Tanh()), r"write fnn\.layers\.tanh"),
    "uncalled": (lambda: layers.sequential(layers.dropout), r"part '0' makes layers and was not called; write dropout\(\.\.\.\)"),
    "uncalled model": (lambda: layers.sequential(fnn.models.lenet), r"write lenet\(\.\.\.\)"),
    "uncalled state": (lambda: layers.sequential(body=layers.batch_norm), "part 'body' makes layers"),
    "uncalled, own": (lambda: layers.sequential(lambda n: layers.linear(4, 4)).apply({}, X), "part '0' gave a layer for its input"),
    "no key": (lambda: SMALL.init(), r"expected a key.*got None; write fnn\.random\.key\(0\)"),
    "no key, state": (lambda: BN.init(), r"write fnn\.random\.key\(0\)"),
    **{
        f"no key, {name}": (layer.init, r"write fnn\.random\.key\(0\)")
        for name, layer in {
            "linear": layers.linear(4, 3), "conv2d": layers.conv2d(1, 2, 3), "layer_norm": layers.layer_norm(3),
            "rms_norm": layers.rms_norm(3), "group_norm": layers.group_norm(1, 3), "batch_norm": layers.batch_norm(3),
            "embedding": layers.embedding(3, 2), "attention": layers.multi_head_attention(4, 2), "lenet": LENET,
            "residual": layers.residual(layers.linear(3, 3)),
        }.items()
    },
    "integer key": (lambda: SMALL.init(0), r"got 0; write fnn\.random\.key\(0\)"),
    "integer key, dropout": (lambda: layers.dropout().apply({}, X, key=3), r"got 3; write fnn\.random\.key\(3\)"),
    "size": (lambda: layers.linear(4.0, 3), r"linear expects in_features as an integer, got 4\.0"),
    "size, text": (lambda: layers.embedding("3", 2), "num_embeddings as an integer, got '3'"),
    "size, bool": (lambda: layers.linear(4, True), "linear expects out_features as an integer, got True"),
    "batch size, bool": (lambda: list(fnn.data.batches(X, True)), "batch_size as an integer, got True"),
    "sizes in a list": (lambda: fnn.models.mlp([4, 3]), r"mlp takes its sizes one by one, got \[4, 3\]; write mlp\(\*sizes\)"),
    "dropout": (lambda: layers.dropout(layers.linear(2, 2)), "dropout expects p, the probability to drop, as a number"),
    "summary": (lambda: fnn.summary(SMALL), r"expects a layer with its params and inputs; write summary\(model, params, x\)"),
    "summary of a module": (lambda: fnn.summary(torch.nn.Linear(4, 3)), "params is a Linear, not a tensor"),
}  # fmt: skip


@pytest.mark.parametrize("name", TYPES)
def test_what_is_of_another_kind(name: str) -> None:
    call, message = TYPES[name]
    with pytest.raises(TypeError, match=message):
        call()


def test_sizes_may_be_numpys() -> None:
    size = numpy.int64(4)
    made = [
        layers.linear(size, size), layers.conv2d(size, size, size), layers.layer_norm(size), layers.group_norm(size, size),
        layers.embedding(size, size), layers.batch_norm(size), layers.multi_head_attention(size, size), layers.rms_norm((size,)),
        layers.max_pool2d(size), layers.avg_pool2d((size, size)), layers.instance_norm(size, affine=True),
    ]  # fmt: skip
    for layer in made:
        layer.init(KEY)
    assert fnn.models.mlp(size, 3).apply(fnn.models.mlp(4, 3).init(KEY), X).shape == (2, 3)


def test_type_errors() -> None:
    with pytest.raises(TypeError, match=r"argument 0\['fc'\]\['count'\] is a torch.int64 tensor and has no gradient"):
        fnn.value_and_grad(lambda p: ONES(()))({"fc": {"count": torch.tensor(1)}})
    with pytest.raises(TypeError, match=r"argument 0\['rate'\] is 0.1, not a tensor"):
        fnn.value_and_grad(lambda p: ONES(()))({"rate": 0.1})
    with pytest.raises(TypeError, match="numbered parts or named parts, not both"):
        layers.sequential(fnn.layers.relu, act=fnn.layers.relu)
    with pytest.raises(TypeError, match="residual: part 'layer' is neither a layer nor a function: 3"):
        layers.residual(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="part '0' is neither a layer nor a function: 3"):
        layers.sequential(3)  # type: ignore[arg-type]


def test_a_compiled_function_raises_the_same_sentence() -> None:
    step = fnn.jit(MLP.apply)
    with pytest.raises(fnn.layers.ShapeError, match=r"params\['0'\]: linear expects"):
        step(MLP.init(KEY), ONES(2, 3))
