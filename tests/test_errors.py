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
    (lambda: fnn.value_and_grad(lambda p: p.sum(), argnums=1)(ONES(2)), "argnums=1, but the function got 1"),
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
        layers.sequential(fnn.relu, act=fnn.relu)
    with pytest.raises(TypeError, match="part '0' is neither a layer nor a function: 3"):
        layers.sequential(3)  # type: ignore[arg-type]


def test_a_compiled_function_raises_the_same_sentence() -> None:
    step = fnn.jit(MLP.apply, backend="eager")
    with pytest.raises(fnn.ShapeError, match=r"params\['0'\]: linear expects"):
        step(MLP.init(KEY), ONES(2, 3))
