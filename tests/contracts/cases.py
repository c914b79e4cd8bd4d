"""The tables of the contract: everything that has to pass every transform, each with a reference made another way.

A case is ``function(params, x)``, float64 values for both, and ``reference(params, x)``: the same computed by
``torch.nn`` or ``torch.nn.functional`` in ordinary autograd.
"""

# ruff: noqa: E501 (one case a line)

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fnn
from fnn import layers, losses
from tests.contracts import cases_sequence
from tests.contracts.case import Case, function, module, numbers


def normed(layer: fnn.StatefulLayer, net: nn.Module, train: bool, *shape: int) -> Case:
    """Batch normalisation against torch's, with running statistics that are neither 0 nor 1."""
    params, state = fnn.tree.cast(layer.init(fnn.random.key(5)), torch.float64)
    params = fnn.tree.map(lambda leaf: leaf + 0.3 * numbers(6, *leaf.shape), params)
    state = fnn.tree.map(lambda leaf: leaf + numbers(7, *leaf.shape).abs() if leaf.is_floating_point() else leaf, state)
    net = net.double().train(train)

    def reference(params: Any, x: Tensor) -> Tensor:
        buffers = {name: leaf.clone() for name, leaf in fnn.tree.to_state_dict(state).items()}
        return torch.func.functional_call(net, fnn.tree.to_state_dict(params) | buffers, (x,))

    return Case(lambda p, x: layer.apply(p, state, x, train=train)[0], reference, params, numbers(1, *shape))


class TorchResidual(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return input + super().forward(input)


KEY = fnn.random.key(11)


def dropped(params: Any, x: Tensor) -> Tensor:
    return layers.dropout(0.4).apply({}, params["scale"] * x, key=KEY)


def dropped_reference(params: Any, x: Tensor) -> Tensor:
    keep = fnn.random.uniform(KEY, x.shape) < 0.6  # bernoulli's definition
    return params["scale"] * x * keep / 0.6


def torch_lenet() -> nn.Module:
    parts = {
        "conv1": nn.Conv2d(1, 6, 3), "relu1": nn.ReLU(), "pool1": nn.MaxPool2d(2),
        "conv2": nn.Conv2d(6, 16, 3), "relu2": nn.ReLU(), "pool2": nn.MaxPool2d(2), "flatten": nn.Flatten(),
        "fc1": nn.Linear(576, 120), "relu3": nn.ReLU(), "fc2": nn.Linear(120, 84), "relu4": nn.ReLU(),
        "fc3": nn.Linear(84, 10),
    }  # fmt: skip
    net = nn.Sequential()
    for name, part in parts.items():
        net.add_module(name, part)
    return net


def torch_lenet5() -> nn.Module:
    parts = {
        "conv1": nn.Conv2d(1, 6, 5), "tanh1": nn.Tanh(), "pool1": nn.AvgPool2d(2),
        "conv2": nn.Conv2d(6, 16, 5), "tanh2": nn.Tanh(), "pool2": nn.AvgPool2d(2), "flatten": nn.Flatten(),
        "fc1": nn.Linear(400, 120), "tanh3": nn.Tanh(), "fc2": nn.Linear(120, 84), "tanh4": nn.Tanh(),
        "fc3": nn.Linear(84, 10),
    }  # fmt: skip
    net = nn.Sequential()
    for name, part in parts.items():
        net.add_module(name, part)
    return net


def torch_mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 7), nn.ReLU(), nn.Linear(7, 3))


def torch_tanh_stack() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(32, 3))


NOT_LAYERS = {"Layer", "StatefulLayer", "ShapeError", "config", "from_config"}  # public names of fnn.layers

LAYERS: dict[str, Callable[[], Case]] = {
    "linear": lambda: module(layers.linear(4, 3), nn.Linear(4, 3), 5, 4),
    "linear, sequences": lambda: module(layers.linear(4, 3, bias=False), nn.Linear(4, 3, bias=False), 5, 2, 4),
    "conv2d": lambda: module(layers.conv2d(2, 3, 3), nn.Conv2d(2, 3, 3), 4, 2, 6, 6),
    "conv2d, strided, padded, dilated, grouped": lambda: module(
        layers.conv2d(4, 6, (3, 2), 2, (1, 2), (1, 2), 2), nn.Conv2d(4, 6, (3, 2), 2, (1, 2), (1, 2), 2), 3, 4, 7, 8
    ),
    "conv2d, same, no bias": lambda: module(
        layers.conv2d(2, 3, 3, padding="same", bias=False), nn.Conv2d(2, 3, 3, padding="same", bias=False), 3, 2, 5, 5
    ),
    "conv2d, same, even kernel": lambda: module(
        layers.conv2d(2, 3, (4, 2), padding="same"), nn.Conv2d(2, 3, (4, 2), padding="same"), 3, 2, 6, 5
    ),
    **{
        f"conv2d, {mode}": lambda mode=mode: module(
            layers.conv2d(2, 3, 3, 2, (1, 2), padding_mode=mode), nn.Conv2d(2, 3, 3, 2, (1, 2), padding_mode=mode), 3, 2, 5, 6
        )
        for mode in ("reflect", "replicate", "circular")
    },
    "conv2d, circular, same": lambda: module(
        layers.conv2d(2, 3, (4, 3), padding="same", padding_mode="circular"),
        nn.Conv2d(2, 3, (4, 3), padding="same", padding_mode="circular"), 3, 2, 6, 5,
    ),
    "max_pool2d, dilated, ceil_mode": lambda: function(
        lambda x: layers.max_pool2d(2, 3, 1, 2, ceil_mode=True).apply({}, x),
        lambda x: F.max_pool2d(x, 2, 3, 1, 2, ceil_mode=True), 3, 2, 7, 8,
    ),
    "avg_pool2d, ceil_mode, padding not counted": lambda: function(
        lambda x: layers.avg_pool2d(3, 2, 1, True, False).apply({}, x),
        lambda x: F.avg_pool2d(x, 3, 2, 1, True, False), 3, 2, 6, 8,
    ),
    "avg_pool2d, divisor_override": lambda: function(
        lambda x: layers.avg_pool2d(3, 2, divisor_override=5).apply({}, x),
        lambda x: F.avg_pool2d(x, 3, 2, divisor_override=5), 3, 2, 7, 7,
    ),
    "layer_norm, no bias": lambda: module(layers.layer_norm(5, 1e-3, bias=False), nn.LayerNorm(5, 1e-3, bias=False), 4, 3, 5),
    "rms_norm, eps": lambda: module(layers.rms_norm(5, 1e-3), nn.RMSNorm(5, 1e-3), 4, 3, 5),
    "group_norm, no bias, eps": lambda: module(layers.group_norm(2, 6, 1e-3, bias=False), nn.GroupNorm(2, 6, 1e-3), 3, 6, 4),
    "instance_norm, no bias, eps": lambda: module(
        layers.instance_norm(3, 1e-3, True, False), nn.InstanceNorm1d(3, 1e-3, affine=True), 3, 3, 4
    ),
    "instance_norm, single samples": lambda: function(
        lambda x: torch.stack([layers.instance_norm(2, spatial=2).apply({}, one) for one in x]),
        lambda x: F.instance_norm(x), 3, 2, 3, 4,
    ),
    "batch_norm, no bias": lambda: normed(layers.batch_norm(3, 1e-3, bias=False), nn.BatchNorm2d(3, 1e-3), False, 4, 3, 5, 5),
    "batch_norm, statistics not tracked": lambda: normed(
        layers.batch_norm(3, track_running_stats=False), nn.BatchNorm1d(3, track_running_stats=False), False, 4, 3, 5
    ),
    "max_pool2d": lambda: function(
        lambda x: layers.max_pool2d(3, 2, 1).apply({}, x), lambda x: F.max_pool2d(x, 3, 2, 1), 3, 2, 7, 7
    ),
    "avg_pool2d": lambda: function(
        lambda x: layers.avg_pool2d(3, 2, 1).apply({}, x), lambda x: F.avg_pool2d(x, 3, 2, 1), 3, 2, 7, 7
    ),
    "layer_norm": lambda: module(layers.layer_norm(5), nn.LayerNorm(5), 4, 3, 5),
    "layer_norm, two axes, no affine": lambda: function(
        lambda x: layers.layer_norm((3, 5), 1e-3, affine=False).apply({}, x),
        lambda x: F.layer_norm(x, (3, 5), eps=1e-3), 4, 3, 5,
    ),
    "rms_norm": lambda: module(layers.rms_norm(5), nn.RMSNorm(5), 4, 3, 5),
    "group_norm": lambda: module(layers.group_norm(2, 6), nn.GroupNorm(2, 6), 3, 6, 4),
    "instance_norm": lambda: module(
        layers.instance_norm(3, affine=True), nn.InstanceNorm2d(3, affine=True), 3, 3, 4, 4
    ),
    "batch_norm": lambda: normed(layers.batch_norm(3), nn.BatchNorm2d(3), False, 4, 3, 5, 5),
    "batch_norm, training": lambda: normed(layers.batch_norm(3, 1e-3), nn.BatchNorm1d(3, 1e-3), True, 4, 3, 5),
    **cases_sequence.LAYERS,
    "residual": lambda: module(layers.residual(layers.linear(4, 4)), TorchResidual(4, 4), 5, 4),
    "sequential, with state": lambda: normed(
        layers.sequential(
            layers.conv2d(1, 2, 3), layers.batch_norm(2), layers.tanh, layers.flatten, layers.linear(8, 3)
        ),
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)),
        True, 3, 1, 4, 4,
    ),
    "dropout": lambda: Case(dropped, dropped_reference, {"scale": numbers(3, 6)}, numbers(2, 4, 6)),
    "sequential": lambda: module(
        layers.sequential(layers.conv2d(1, 2, 3), layers.tanh, layers.flatten, layers.linear(32, 3)),
        torch_tanh_stack(), 3, 1, 6, 6,
    ),
    "models.mlp": lambda: module(fnn.models.mlp(12, 7, 3), torch_mlp(), 4, 12),
    "models.lenet": lambda: module(fnn.models.lenet(), torch_lenet(), 2, 1, 32, 32),
    "models.lenet5": lambda: module(fnn.models.lenet5(), torch_lenet5(), 2, 1, 32, 32),
}  # fmt: skip

ACTIVATIONS: dict[str, Callable[[], Case]] = {
    "relu": lambda: function(layers.relu, F.relu, 4, 6),
    "relu6": lambda: function(lambda x: layers.relu6(4 * x), lambda x: F.relu6(4 * x), 4, 6),
    "leaky_relu": lambda: function(lambda x: layers.leaky_relu(x, 0.2), lambda x: F.leaky_relu(x, 0.2), 4, 6),
    "elu": lambda: function(lambda x: layers.elu(x, 1.5), lambda x: F.elu(x, 1.5), 4, 6),
    "selu": lambda: function(layers.selu, F.selu, 4, 6),
    "gelu": lambda: function(layers.gelu, F.gelu, 4, 6),
    "gelu, tanh": lambda: function(lambda x: layers.gelu(x, "tanh"), lambda x: F.gelu(x, approximate="tanh"), 4, 6),
    "silu": lambda: function(layers.silu, F.silu, 4, 6),
    "mish": lambda: function(layers.mish, F.mish, 4, 6),
    "softplus": lambda: function(layers.softplus, F.softplus, 4, 6),
    "softplus, beta, threshold": lambda: function(
        lambda x: layers.softplus(x, 2.0, 1.5), lambda x: F.softplus(x, 2.0, 1.5), 4, 6
    ),
    "sigmoid": lambda: function(layers.sigmoid, torch.sigmoid, 4, 6),
    "log_sigmoid": lambda: function(layers.log_sigmoid, F.logsigmoid, 4, 6),
    "tanh": lambda: function(layers.tanh, torch.tanh, 4, 6),
    "softmax": lambda: function(layers.softmax, lambda x: F.softmax(x, -1), 4, 6),
    "log_softmax": lambda: function(layers.log_softmax, lambda x: F.log_softmax(x, -1), 4, 6),
    "flatten": lambda: function(layers.flatten, lambda x: x.flatten(1), 4, 2, 3),
}

CLASSES = torch.tensor([0, 4, 2, 4])
IMAGE_CLASSES = torch.tensor([[0, 4], [2, 2], [1, 3], [4, 0]])
SOFT = torch.softmax(numbers(7, 4, 5), -1)
WEIGHT = torch.tensor([0.5, 2.0, 1.0, 0.1, 3.0], dtype=torch.float64)
TARGET = numbers(8, 4, 5)
BITS = (numbers(9, 4, 5) > 0).double()


def loss(ours: Callable, theirs: Callable, target: Tensor, *shape: int) -> Case:
    """A loss against torch's; both take (x, target, at), where ``at`` puts a constant on x's device."""

    def call(f: Callable, x: Tensor) -> Tensor:
        at = lambda constant: constant.to(x.device) if isinstance(constant, Tensor) else constant
        options = {"at": at} if "at" in inspect.signature(f).parameters else {}
        return f(x, at(target)[: len(x)], **options)

    return function(lambda x: call(ours, x), lambda x: call(theirs, x), *(shape or (4, 5)))


def placed(at: Callable, options: dict) -> dict:
    return {name: at(value) for name, value in options.items()}


LOSSES: dict[str, Callable[[], Case]] = {
    "cross_entropy": lambda: loss(losses.cross_entropy, F.cross_entropy, CLASSES),
    "cross_entropy, pixels": lambda: loss(losses.cross_entropy, F.cross_entropy, IMAGE_CLASSES, 4, 5, 2),
    "cross_entropy, probabilities": lambda: loss(losses.cross_entropy, F.cross_entropy, SOFT),
    **{
        f"cross_entropy, {name}, {kind}": (
            lambda options=options, target=target: loss(
                lambda x, y, at: losses.cross_entropy(x, y, **placed(at, options)),
                lambda x, y, at: F.cross_entropy(x, y, **placed(at, options)),
                target,
            )
        )
        for kind, target in (("classes", CLASSES), ("probabilities", SOFT))
        for name, options in {
            "weight": {"weight": WEIGHT},
            "smoothing": {"label_smoothing": 0.3},
            "weight and smoothing": {"weight": WEIGHT, "label_smoothing": 0.3},
            "sum": {"reduction": "sum", "label_smoothing": 0.1},
            "none": {"reduction": "none", "weight": WEIGHT},
        }.items()
    },
    "cross_entropy, ignore_index, weight, smoothing": lambda: loss(
        lambda x, y, at: losses.cross_entropy(x, y, at(WEIGHT), 2, label_smoothing=0.2),
        lambda x, y, at: F.cross_entropy(x, y, at(WEIGHT), ignore_index=2, label_smoothing=0.2),
        CLASSES,
    ),
    "nll": lambda: loss(
        lambda x, y, at: losses.nll(layers.log_softmax(x), y, at(WEIGHT)),
        lambda x, y, at: F.nll_loss(F.log_softmax(x, -1), y, at(WEIGHT)),
        CLASSES,
    ),
    "mse": lambda: loss(losses.mse, F.mse_loss, TARGET),
    "l1": lambda: loss(losses.l1, F.l1_loss, TARGET),
    "huber": lambda: loss(
        lambda x, y: losses.huber(x, y, delta=0.7), lambda x, y: F.huber_loss(x, y, delta=0.7), TARGET
    ),
    "smooth_l1": lambda: loss(
        lambda x, y: losses.smooth_l1(x, y, "sum", 0.7),
        lambda x, y: F.smooth_l1_loss(x, y, reduction="sum", beta=0.7),
        TARGET,
    ),
    "bce_with_logits": lambda: loss(
        lambda x, y, at: losses.bce_with_logits(x, y, at(WEIGHT), pos_weight=2 * at(WEIGHT)),
        lambda x, y, at: F.binary_cross_entropy_with_logits(x, y, at(WEIGHT), pos_weight=2 * at(WEIGHT)),
        BITS,
    ),
}

CASES = {**LAYERS, **ACTIVATIONS, **LOSSES}
