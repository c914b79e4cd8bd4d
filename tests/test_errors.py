"""Bad input to layers, models, losses, metrics and value_and_grad: a sentence that names what was given."""

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
        r"conv2d with a kernel reaching over \[3, 3\] pixels got images of \[2, 8\]",
    ),
    (lambda: layers.conv2d(3, 4, 3, groups=2), "groups=2 must divide in_channels=3"),
    (apply(layers.max_pool2d(9), ONES(1, 1, 8, 8)), r"max_pool2d with a window of \(9, 9\) got images of \(8, 8\)"),
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
    (lambda: layers.group_norm(4, 6), "groups=4 must divide channels=6"),
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
    (lambda: layers.dropout(1.0), "0 <= rate < 1, got 1.0"),
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
    step = fnn.jit(MLP.apply, backend="eager")
    with pytest.raises(fnn.layers.ShapeError, match=r"params\['0'\]: linear expects"):
        step(MLP.init(KEY), ONES(2, 3))
