"""Whole networks as layers."""

from fnn.models.alexnet import alexnet
from fnn.models.efficientnet import efficientnet_b0
from fnn.models.gpt import gpt, gpt_cache
from fnn.models.lenet import lenet, lenet5
from fnn.models.mlp import mlp
from fnn.models.mobilenet import mobilenet_v2
from fnn.models.resnet import resnet18, resnet34, resnet50, resnet101, resnet152, wide_resnet50_2, wide_resnet101_2
from fnn.models.vgg import vgg11, vgg11_bn, vgg13, vgg13_bn, vgg16, vgg16_bn, vgg19, vgg19_bn
from fnn.models.vit import vit, vit_b_16

__all__ = [
    "alexnet",
    "efficientnet_b0",
    "gpt",
    "gpt_cache",
    "lenet",
    "lenet5",
    "mlp",
    "mobilenet_v2",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "vgg11",
    "vgg11_bn",
    "vgg13",
    "vgg13_bn",
    "vgg16",
    "vgg16_bn",
    "vgg19",
    "vgg19_bn",
    "vit",
    "vit_b_16",
    "wide_resnet50_2",
    "wide_resnet101_2",
]
