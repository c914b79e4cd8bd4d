"""Layers over images and other arrays with spatial axes, in one to three dimensions, against those of torch.nn.

The names and the arguments are torch's own, so that a row gives both sides: ``"conv1d, same"`` is made by
``layers.conv1d`` and by ``nn.Conv1d``. Results are cubed, because the second derivatives of linear layers are 0.
"""

# ruff: noqa: E501 (one case a line)

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import fnn
from fnn import layers
from tests.contracts.case import Case, function, module, normed, numbers

KEY = fnn.random.key(11)
MODULES = {name.lower(): getattr(nn, name) for name in dir(nn) if isinstance(getattr(nn, name), type)}
SHAPES = {1: (2, 2, 7), 2: (2, 2, 6, 7), 3: (2, 2, 5, 6, 4)}  # odd and even sizes


def torch_module(name: str) -> Callable[..., nn.Module]:
    return MODULES[name.split(",")[0].replace("_", "")]


def with_params(name: str, args: tuple, options: dict, shape: tuple[int, ...]) -> Case:
    layer = getattr(layers, name.split(",")[0])(*args, **options)
    case = module(layer, torch_module(name)(*args, **options), *shape)
    return case._replace(
        function=lambda params, x: layer.apply(params, x).pow(3),
        reference=lambda params, x: case.reference(params, x).pow(3),
    )


def without_params(name: str, args: tuple, options: dict, shape: tuple[int, ...]) -> Case:
    layer = getattr(layers, name.split(",")[0])(*args, **options)
    net = torch_module(name)(*args, **options)
    return function(lambda x: layer.apply({}, x).pow(3), lambda x: net(x).pow(3), *shape)


CONVOLUTIONS: dict[str, tuple[tuple, dict, tuple[int, ...]]] = {
    "conv1d": ((2, 3, 3), {}, (3, 2, 6)),
    "conv1d, strided, padded, dilated, grouped": ((4, 6, 3, 2, 1, 2, 2), {}, (3, 4, 7)),
    "conv1d, same, even kernel, circular": ((2, 3, 4), {"padding": "same", "padding_mode": "circular", "bias": False}, (3, 2, 6)),
    "conv1d, reflect": ((2, 3, 3, 1, 2), {"padding_mode": "reflect"}, (3, 2, 6)),
    "conv3d": ((2, 3, 2), {}, (3, 2, 3, 3, 4)),
    "conv3d, strided, padded, dilated, grouped": ((2, 4, (3, 2, 1), (1, 2, 1), (1, 0, 1), (2, 1, 1), 2), {}, (3, 2, 4, 3, 2)),
    "conv3d, same, even kernel": ((1, 2, (2, 3, 1)), {"padding": "same", "bias": False}, (3, 1, 2, 3, 4)),
    "conv3d, replicate": ((1, 2, 2, 1, 1), {"padding_mode": "replicate"}, (3, 1, 2, 3, 2)),
    "conv_transpose1d": ((3, 2, 3), {}, (3, 3, 4)),
    "conv_transpose1d, every option": ((4, 6, 3, 2, 1, 1, 2, False, 2), {}, (3, 4, 4)),
    "conv_transpose2d": ((3, 2, 3), {}, (3, 3, 4, 3)),
    "conv_transpose2d, every option": ((4, 6, (3, 2), (2, 1), 1, (1, 1), 2, False, (1, 3)), {}, (3, 4, 4, 3)),
    "conv_transpose3d": ((2, 1, 2), {}, (3, 2, 2, 3, 2)),
    "conv_transpose3d, every option": ((2, 4, (3, 2, 1), 2, (1, 0, 0), 1, 2, False), {}, (3, 2, 2, 3, 2)),
}  # fmt: skip

# the shape is that of SHAPES for the number in the name, unless it is given
PLAIN: dict[str, tuple] = {
    "pixel_shuffle": ((2,), {}, 2, 8, 2, 3),
    "pixel_unshuffle": ((2,), {}, 2, 2, 4, 6),
    "channel_shuffle": ((2,), {}, 2, 6, 3),
    "unflatten": ((1, (2, -1)), {}, 2, 6, 2),
    "unfold": (((2, 3), 2, (1, 2), (2, 1)), {}, 2, 2, 6, 7),
    "fold": (((5, 6), (2, 3), (2, 1), (1, 2), (2, 1)), {}, 2, 12, 24),
    "local_response_norm": ((3, 0.5, 0.7, 2.0), {}, 2, 5, 4),
    "local_response_norm, even": ((4, 0.5), {}, 2, 6, 2, 3),
    "upsample": (((5,),), {}, 2, 2, 7),
    "upsample, nearest, scale": ((None, 1.7), {}, 2, 2, 4, 5),
    "upsample, nearest-exact": ((None, (0.7, 2.0)), {"mode": "nearest-exact"}, 2, 2, 4, 5),
    "upsample, area": ((None, 0.6), {"mode": "area"}, 2, 2, 6, 5),
    "upsample, linear": ((None, 1.5), {"mode": "linear"}, 2, 2, 5),
    "upsample, linear, recomputed scale": ((None, 1.3), {"mode": "linear", "recompute_scale_factor": True}, 2, 2, 5),
    "upsample, bilinear": (((3, 9),), {"mode": "bilinear"}, 2, 2, 4, 5),
    "upsample, bicubic": ((None, (1.4, 2.3)), {"mode": "bicubic"}, 2, 2, 4, 5),
    "upsample, bicubic, corners": (((3, 9),), {"mode": "bicubic", "align_corners": True}, 2, 2, 4, 5),
    "upsample, trilinear": (((3, 5, 2),), {"mode": "trilinear"}, 2, 1, 4, 3, 3),
    "upsample, trilinear, corners": (((3, 5, 2),), {"mode": "trilinear", "align_corners": True}, 2, 1, 4, 3, 3),
    "upsampling_nearest2d": (((5, 3),),),
    "upsampling_bilinear2d": ((None, 1.5),),
    "max_pool1d": ((3, 2, 1),),
    "max_pool1d, dilated, ceil_mode": ((2, 3, 1, 2), {"ceil_mode": True}),
    "max_pool3d": ((3, 2, 1),),
    "max_pool3d, dilated, ceil_mode": (((2, 1, 2), 3, (1, 0, 1), (2, 1, 1)), {"ceil_mode": True}),
    "avg_pool1d": ((3, 2, 1),),
    "avg_pool1d, ceil_mode, padding not counted": ((3, 2, 1, True, False),),
    "avg_pool3d": ((3, 2, 1),),
    "avg_pool3d, ceil_mode, padding not counted": (((3, 2, 2), 2, (1, 0, 1), True, False),),
    "avg_pool3d, divisor_override": ((2,), {"divisor_override": 5}),
    "lp_pool1d": ((2, 3, 2),),
    "lp_pool1d, ceil_mode": ((2, 3, 2, True),),
    "lp_pool2d": ((2, (3, 2)),),
    "lp_pool2d, fourth powers": ((4, 2, 1),),
    "lp_pool2d, sum": ((1, 2, 1),),
    "lp_pool2d, largest": ((float("inf"), 2, 1),),
    "lp_pool3d": ((2, 2, (2, 1, 2)),),
    "adaptive_avg_pool1d": ((3,),),
    "adaptive_avg_pool2d": (((3, 4),),),
    "adaptive_avg_pool2d, one, None": (((1, None),),),
    "adaptive_avg_pool2d, one": ((1,),),
    "adaptive_avg_pool2d, enlarged": (((9, 8),),),
    "adaptive_avg_pool3d": (((3, None, 2),),),
    "adaptive_max_pool1d": ((3,),),
    "adaptive_max_pool2d": (((3, 4),),),
    "adaptive_max_pool2d, one, None": (((1, None),),),
    "adaptive_max_pool3d": (((3, None, 2),),),
    **{
        f"{kind}{dims}d": ((tuple(range(1, 1 + 2 * dims)) if dims < 3 else (1, 2, 0, 1, 2, 1), *value),)
        for kind, value in {"zero_pad": (), "constant_pad": (2.5,), "reflection_pad": (), "replication_pad": (), "circular_pad": ()}.items()
        for dims in (1, 2, 3)
    },
    **{
        f"{kind}2d, cropped": (((-1, 2, 1, -2), *value),)
        for kind, value in {"zero_pad": (), "constant_pad": (2.5,), "reflection_pad": (), "replication_pad": (), "circular_pad": ()}.items()
    },
}  # fmt: skip


def plain(name: str, args: tuple, options: dict | None = None, *shape: int) -> Case:
    return without_params(name, args, options or {}, shape or SHAPES[int(name.split(",")[0][-2])])


def make(name: str, args: tuple, options: dict | None = None, *shape: int) -> fnn.Layer:
    return getattr(layers, name.split(",")[0])(*args, **(options or {}))


def fractional(dims: int, ours: dict, theirs: dict) -> Case:
    layer = getattr(layers, f"fractional_max_pool{dims}d")(2, **ours)
    pool = getattr(F, f"fractional_max_pool{dims}d")

    def reference(x: Tensor) -> Tensor:
        places = fnn.random.uniform(KEY, (*x.shape[:2], dims), x.dtype)
        return pool(x, 2, _random_samples=places, **theirs).pow(3)

    return function(lambda x: layer.apply({}, x, key=KEY.to(x.device)).pow(3), reference, *SHAPES[dims])


def unpooled(dims: int, output_size: tuple[int, ...] | None) -> Case:
    layer, net = getattr(layers, f"max_unpool{dims}d")(2, 2), getattr(nn, f"MaxUnpool{dims}d")(2, 2)
    pooled, indices = getattr(F, f"max_pool{dims}d")(numbers(4, *SHAPES[dims]), 2, 2, return_indices=True)

    def call(unpool: Callable[..., Tensor], x: Tensor) -> Tensor:
        return unpool(x, indices.to(x.device)[: len(x)], output_size).pow(3)

    return function(lambda x: call(lambda *a: layer.apply({}, *a), x), lambda x: call(net, x), *pooled.shape)


def resized(mode: str) -> Case:
    options = {"size": (3, 2), "mode": mode, "antialias": True}
    return function(
        lambda x: layers.interpolate(x, **options).pow(3), lambda x: F.interpolate(x, **options).pow(3), 2, 2, 6, 7
    )


def bilinear(bias: bool) -> Case:
    layer, net = layers.bilinear(3, 2, 4, bias), nn.Bilinear(3, 2, 4, bias).double()
    params = fnn.tree.cast(layer.init(KEY), torch.float64)
    return Case(
        lambda p, x: layer.apply(p, x[..., :3], x[..., 3:]),
        lambda p, x: torch.func.functional_call(net, p, (x[..., :3].contiguous(), x[..., 3:].contiguous())),
        params,
        numbers(1, 3, 2, 5),
    )


# the state is a constant of these functions
WITH_STATE: dict[str, Callable[[], Case]] = {
    "spectral_norm": lambda: normed(
        layers.spectral_norm(layers.linear(4, 3)), parametrizations.spectral_norm(nn.Linear(4, 3)), False, 5, 4
    ),
    "spectral_norm, transposed": lambda: normed(
        layers.spectral_norm(layers.conv_transpose2d(2, 3, 2)),
        parametrizations.spectral_norm(nn.ConvTranspose2d(2, 3, 2)), False, 3, 2, 3, 3,
    ),
    "spectral_norm, vector": lambda: normed(
        layers.spectral_norm(layers.batch_norm(3)), parametrizations.spectral_norm(nn.BatchNorm1d(3)), False, 5, 3
    ),
    "instance_norm, running statistics": lambda: normed(
        layers.instance_norm(3, 1e-3, affine=True, track_running_stats=True),
        nn.InstanceNorm2d(3, 1e-3, affine=True, track_running_stats=True), False, 4, 3, 3, 2,
    ),
    "instance_norm, running statistics, training": lambda: normed(
        layers.instance_norm(3, affine=True, track_running_stats=True),
        nn.InstanceNorm1d(3, affine=True, track_running_stats=True), True, 4, 3, 5,
    ),
    "batch_norm, volumes, training": lambda: normed(
        layers.batch_norm(3), nn.BatchNorm3d(3), True, 4, 3, 2, 3, 2
    ),
}  # fmt: skip

LAYERS: dict[str, Callable[[], Case]] = {
    **WITH_STATE,
    "identity": lambda: function(lambda x: layers.identity(x).pow(3), lambda x: x**3, 3, 4),
    "bilinear": lambda: bilinear(True),
    "bilinear, no bias": lambda: bilinear(False),
    "interpolate": lambda: resized("bilinear"),
    "interpolate, bicubic": lambda: resized("bicubic"),
    "weight_norm": lambda: module(layers.weight_norm(layers.linear(4, 3)), parametrizations.weight_norm(nn.Linear(4, 3)), 5, 4),
    "weight_norm, whole": lambda: module(
        layers.weight_norm(layers.conv1d(2, 3, 2), dim=None), parametrizations.weight_norm(nn.Conv1d(2, 3, 2), dim=-1), 3, 2, 4
    ),
    "weight_norm, transposed": lambda: module(
        layers.weight_norm(layers.conv_transpose1d(2, 3, 2), dim=1),
        parametrizations.weight_norm(nn.ConvTranspose1d(2, 3, 2), dim=1), 3, 2, 4,
    ),
    "weight_norm, bias too": lambda: module(
        layers.weight_norm(layers.weight_norm(layers.linear(4, 3)), "bias"),
        parametrizations.weight_norm(parametrizations.weight_norm(nn.Linear(4, 3)), "bias"), 5, 4,
    ),
    **{name: lambda name=name, row=row: with_params(name, *row) for name, row in CONVOLUTIONS.items()},
    **{name: lambda name=name, row=row: plain(name, *row) for name, row in PLAIN.items()},
    "global_avg_pool": lambda: function(
        lambda x: layers.global_avg_pool(x).pow(3), lambda x: F.adaptive_avg_pool2d(x, 1)[..., 0, 0].pow(3), 2, 3, 4, 5
    ),
    "global_max_pool": lambda: function(
        lambda x: layers.global_max_pool(x).pow(3), lambda x: F.adaptive_max_pool2d(x, 1)[..., 0, 0].pow(3), 2, 3, 4, 5
    ),
    "fractional_max_pool2d": lambda: fractional(2, {"output_size": (3, 5)}, {"output_size": (3, 5)}),
    "fractional_max_pool2d, ratio": lambda: fractional(2, {"output_ratio": 0.6}, {"output_ratio": (0.6, 0.6)}),
    "fractional_max_pool3d": lambda: fractional(3, {"output_size": (3, 4, 2)}, {"output_size": (3, 4, 2)}),
    "max_unpool1d": lambda: unpooled(1, None),
    "max_unpool1d, size": lambda: unpooled(1, (7,)),
    "max_unpool2d": lambda: unpooled(2, (6, 7)),
    "max_unpool3d": lambda: unpooled(3, SHAPES[3]),
}  # fmt: skip

MADE: dict[str, fnn.Layer] = {
    **{name: make(name, args, options) for name, (args, options, _) in CONVOLUTIONS.items()},
    **{name: make(name, *row) for name, row in PLAIN.items()},
    **{f"max_unpool{dims}d": make(f"max_unpool{dims}d", (2,)) for dims in (1, 2, 3)},
    "bilinear": layers.bilinear(3, 2, 4),
    "weight_norm": layers.weight_norm(layers.linear(4, 3)),
    "fractional_max_pool2d": layers.fractional_max_pool2d(2, output_ratio=0.6),
    "fractional_max_pool3d": layers.fractional_max_pool3d(2, 3, return_indices=True),
}
