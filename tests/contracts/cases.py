"""The tables of the contract: everything that has to pass every transform, each with a reference made another way.

A case is ``function(params, x)``, float64 values for both, and ``reference(params, x)``: the same computed by
``torch.nn`` or ``torch.nn.functional`` in ordinary autograd.
"""

# ruff: noqa: E501 (one case a line)

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fnn
from fnn import layers
from tests.contracts import cases_models, cases_sequence, cases_spatial
from tests.contracts.case import Case, function, module, normed
from tests.contracts.cases_functions import ACTIVATIONS, DROPOUTS, FUNCTIONS_WITH_PARAMS
from tests.contracts.cases_losses import LOSSES


class TorchResidual(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return input + super().forward(input)


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


NOT_LAYERS = {"Layer", "StatefulLayer", "ShapeError", "capture", "config", "from_config"}  # public names of fnn.layers

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
        layers.instance_norm(3, 1e-3, affine=True, bias=False), nn.InstanceNorm1d(3, 1e-3, affine=True), 3, 3, 4
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
        lambda x: layers.layer_norm((3, 5), 1e-3, elementwise_affine=False).apply({}, x),
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
    "sequential": lambda: module(
        layers.sequential(layers.conv2d(1, 2, 3), layers.tanh, layers.flatten, layers.linear(32, 3)),
        torch_tanh_stack(), 3, 1, 6, 6,
    ),
    **cases_models.LAYERS,
    "models.mlp": lambda: module(fnn.models.mlp(12, 7, 3), torch_mlp(), 4, 12),
    "models.lenet": lambda: module(fnn.models.lenet(), torch_lenet(), 2, 1, 32, 32),
    "models.lenet5": lambda: module(fnn.models.lenet5(), torch_lenet5(), 2, 1, 32, 32),
}  # fmt: skip

LAYERS |= cases_spatial.LAYERS
LAYERS |= DROPOUTS | FUNCTIONS_WITH_PARAMS
CASES = {**LAYERS, **ACTIVATIONS, **LOSSES}
