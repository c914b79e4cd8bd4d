"""Layers over spatial axes beyond the contract tables: indices, single samples, empty batches, 16 bits, state, errors."""

# ruff: noqa: E501 (one case a line)

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import grad
from torch.nn.utils import parametrizations

import fnn
from fnn import layers, tree
from tests.contracts import cases_spatial
from tests.contracts.case import numbers

KEY = fnn.random.key(0)
ONES = torch.ones
# layers of one input, with an input for each
ONE_INPUT = {
    **{name: (make, row[2]) for name, row in cases_spatial.CONVOLUTIONS.items() for make in [cases_spatial.MADE[name]]},
    **{
        name: (cases_spatial.MADE[name], tuple(row[2:]) or cases_spatial.SHAPES[int(name.split(",")[0][-2])])
        for name, row in cases_spatial.PLAIN.items()
    },
    "fractional_max_pool2d": (cases_spatial.MADE["fractional_max_pool2d"], (2, 3, 6, 7)),
    "fractional_max_pool3d": (layers.fractional_max_pool3d(2, 3), (2, 3, 6, 7, 5)),
    "instance_norm": (layers.instance_norm(3, affine=True, spatial=2), (2, 3, 5, 4)),
}
BATCHED = ("upsample", "upsampling", "channel_shuffle", "unflatten", "local_response_norm")  # in torch too


def double(layer: fnn.Layer) -> Any:
    return tree.cast(layer.init(KEY), torch.float64)


@pytest.mark.parametrize("name", [name for name in ONE_INPUT if not name.startswith(BATCHED)])
def test_a_single_sample_is_a_batch_of_one(name: str) -> None:
    layer, shape = ONE_INPUT[name]
    params, x = double(layer), numbers(0, *shape)
    torch.testing.assert_close(layer.apply(params, x[0]), layer.apply(params, x[:1])[0])
    if name.startswith("fractional"):
        assert layer.apply(params, x[0], key=KEY).shape == layer.apply(params, x)[0].shape


@pytest.mark.parametrize("name", ONE_INPUT)
def test_an_empty_batch_gives_an_empty_result_and_no_gradient(name: str) -> None:
    layer, shape = ONE_INPUT[name]
    params, x = double(layer), torch.zeros(0, *shape[1:], dtype=torch.float64)
    y = layer.apply(params, x)
    assert y.shape == (0, *layer.apply(params, numbers(0, *shape)).shape[1:])
    grads, slope = grad(lambda p, x: layer.apply(p, x).sum(), argnums=(0, 1))(params, x)
    assert slope.shape == x.shape
    assert all(not leaf.any() for leaf in tree.leaves(grads))


@pytest.mark.parametrize("name", ONE_INPUT)
def test_the_layout_of_memory_does_not_matter(name: str) -> None:
    layer, shape = ONE_INPUT[name]
    params, x = double(layer), numbers(0, *shape)
    strange = x.transpose(0, -1).contiguous().transpose(0, -1)
    assert not strange.is_contiguous()
    torch.testing.assert_close(layer.apply(params, strange), layer.apply(params, x))
    flat = grad(lambda x: layer.apply(params, x).square().sum())
    torch.testing.assert_close(flat(strange), flat(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ONE_INPUT)
def test_16_bits_give_what_64_bits_give_rounded(name: str, dtype: torch.dtype) -> None:
    layer, shape = ONE_INPUT[name]
    params, x = tree.cast(layer.init(KEY), dtype), numbers(0, *shape).to(dtype)
    y, exact = layer.apply(params, x), layer.apply(tree.cast(params, torch.float64), x.double())
    assert y.dtype == dtype
    eps = torch.finfo(dtype).eps
    atol = eps * float(exact.abs().max()) if name.startswith("conv") else 1e-6  # a convolution's sums cancel
    torch.testing.assert_close(y.double(), exact, rtol=eps, atol=atol)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_averages_of_many_16_bit_values(dtype: torch.dtype) -> None:
    x = 10.0 + numbers(0, 1, 2, 64, 64).to(dtype)
    for layer in (layers.avg_pool2d(32), layers.adaptive_avg_pool2d(2), layers.lp_pool2d(1, 32)):
        exact = layer.apply({}, x.double())
        torch.testing.assert_close(layer.apply({}, x).double(), exact, rtol=torch.finfo(dtype).eps, atol=0)


INDICES = {
    **{
        f"max_pool{dims}d": (getattr(layers, f"max_pool{dims}d")(3, 2, 1, return_indices=True), getattr(nn, f"MaxPool{dims}d")(3, 2, 1, return_indices=True))
        for dims in (1, 2, 3)
    },
    **{
        f"adaptive_max_pool{dims}d": (getattr(layers, f"adaptive_max_pool{dims}d")(3, True), getattr(nn, f"AdaptiveMaxPool{dims}d")(3, True))
        for dims in (1, 2, 3)
    },
}  # fmt: skip


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("name", INDICES)
def test_maxima_with_their_places(name: str, single: bool) -> None:
    layer, net = INDICES[name]
    x = numbers(0, *cases_spatial.SHAPES[int(name[-2])])
    x = x[0] if single else x
    for ours, theirs in zip(layer.apply({}, x), net(x), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dims", [2, 3])
def test_fractional_pools_with_their_places(dims: int) -> None:
    layer = getattr(layers, f"fractional_max_pool{dims}d")(2, 3, return_indices=True)
    pool = getattr(F, f"fractional_max_pool{dims}d")
    x = numbers(0, *(2, 2, 6, 7, 5)[: dims + 2])
    for seed in range(20):
        key = fnn.random.key(seed)
        samples = fnn.random.uniform(key, (2, 2, dims), torch.float64)
        for ours, theirs in zip(
            layer.apply({}, x, key=key), pool(x, 2, 3, return_indices=True, _random_samples=samples), strict=True
        ):
            assert torch.equal(ours, theirs)
    whole = getattr(layers, f"fractional_max_pool{dims}d")(2, 1)
    last = x[(..., *[slice(-2, None)] * dims)]  # a single window is at the end
    assert torch.equal(whole.apply({}, x).flatten(), last.flatten(2).amax(2).flatten())


def test_a_key_moves_the_windows_and_no_key_leaves_them() -> None:
    layer, x = layers.fractional_max_pool2d(2, output_ratio=0.6), numbers(0, 1, 8, 20, 20)
    assert torch.equal(layer.apply({}, x), layer.apply({}, x))
    first, second = (layer.apply({}, x, key=fnn.random.key(seed)) for seed in (0, 1))
    assert not torch.equal(first, second)
    middle = F.fractional_max_pool2d(x, 2, (12, 12), _random_samples=torch.full((1, 8, 2), 0.5).double())
    assert torch.equal(layer.apply({}, x), middle)


def test_unpooling_to_the_sizes_that_pooling_came_from() -> None:
    for height, width in ((6, 7), (7, 6), (7, 7)):
        x = numbers(0, 2, 3, height, width)
        y, indices = layers.max_pool2d(2, return_indices=True).apply({}, x)
        back = layers.max_unpool2d(2).apply({}, y, indices, output_size=(height, width))
        assert torch.equal(back, layers.max_unpool2d(2).apply({}, y, indices, x.shape))
        assert torch.equal(back, torch.where(back != 0, x, 0.0))
        assert int((back != 0).sum()) == y.numel()


def test_lp_pooling_of_zeros_has_no_gradient() -> None:
    x = torch.zeros(1, 1, 4, dtype=torch.float64)
    for p in (2, 3, 4):
        layer = layers.lp_pool1d(p, 2)
        slope = grad(lambda x, layer=layer: layer.apply({}, x).sum())
        assert not slope(x).any()
        assert not torch.func.jvp(slope, (x,), (ONES(1, 1, 4).double(),))[1].isnan().any()


NETWORKS = {
    "conv1d": (lambda: layers.conv1d(6, 400, 3, groups=2), lambda: nn.Conv1d(6, 400, 3, groups=2)),
    "conv3d": (lambda: layers.conv3d(3, 200, 2), lambda: nn.Conv3d(3, 200, 2)),
    "conv_transpose1d": (lambda: layers.conv_transpose1d(400, 8, 3, groups=2), lambda: nn.ConvTranspose1d(400, 8, 3, groups=2)),
    "conv_transpose2d": (lambda: layers.conv_transpose2d(100, 300, 3), lambda: nn.ConvTranspose2d(100, 300, 3)),
    "conv_transpose3d": (lambda: layers.conv_transpose3d(30, 100, 2), lambda: nn.ConvTranspose3d(30, 100, 2)),
    "bilinear": (lambda: layers.bilinear(9, 40, 300), lambda: nn.Bilinear(9, 40, 300)),
    "weight_norm": (lambda: layers.weight_norm(layers.linear(70, 50)), lambda: parametrizations.weight_norm(nn.Linear(70, 50))),
    "instance_norm": (
        lambda: layers.instance_norm(4, affine=True, track_running_stats=True),
        lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
    ),
    "spectral_norm": (
        lambda: layers.spectral_norm(layers.conv_transpose2d(60, 30, 3)),
        lambda: parametrizations.spectral_norm(nn.ConvTranspose2d(60, 30, 3)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_first_values_have_the_names_shapes_and_spread_of_torch(name: str) -> None:
    layer, net = (make() for make in NETWORKS[name])
    made = layer.init(KEY)
    flat: dict[str, Tensor] = {}
    for part in made if isinstance(layer, fnn.StatefulLayer) else (made,):
        flat |= tree.to_state_dict(part)
    theirs = net.state_dict()
    assert set(flat) == set(theirs)
    for path, leaf in theirs.items():
        assert (flat[path].shape, flat[path].dtype) == (leaf.shape, leaf.dtype), path
        if leaf.numel() > 1000:
            assert float(flat[path].std()) == pytest.approx(float(leaf.std()), rel=0.1), path
            assert float(flat[path].abs().max()) == pytest.approx(float(leaf.abs().max()), rel=0.1), path
    if "parametrizations.weight.original0" in theirs:  # g starts as |v|
        v = flat["parametrizations.weight.original1"]
        torch.testing.assert_close(flat["parametrizations.weight.original0"], v.norm(dim=1, keepdim=True))
    if "parametrizations.weight.0._u" in theirs:  # the vectors start near the singular ones
        matrix = flat["parametrizations.weight.original"].movedim(1, 0).flatten(1)
        u, v = flat["parametrizations.weight.0._u"], flat["parametrizations.weight.0._v"]
        assert float(u @ matrix @ v) == pytest.approx(float(torch.linalg.matrix_norm(matrix, 2)), rel=0.05)


STATEFUL = {
    "instance_norm": lambda: (
        layers.instance_norm(3, 1e-3, 0.3, affine=True, track_running_stats=True),
        nn.InstanceNorm2d(3, 1e-3, 0.3, affine=True, track_running_stats=True), (2, 3, 4, 5),
    ),
    "instance_norm, single sample": lambda: (
        layers.instance_norm(3, track_running_stats=True, spatial=1), nn.InstanceNorm1d(3, track_running_stats=True), (3, 5),
    ),
    "batch_norm, cumulative": lambda: (layers.batch_norm(3, momentum=None, affine=False), nn.BatchNorm1d(3, momentum=None, affine=False), (4, 3)),
    "batch_norm, 3d": lambda: (layers.batch_norm(3, 1e-3, 0.3), nn.BatchNorm3d(3, 1e-3, 0.3), (2, 3, 2, 3, 2)),
    "spectral_norm": lambda: (
        layers.spectral_norm(layers.linear(3, 4), n_power_iterations=2), parametrizations.spectral_norm(nn.Linear(3, 4), n_power_iterations=2), (5, 3),
    ),
    "spectral_norm, dim": lambda: (
        layers.spectral_norm(layers.conv1d(3, 4, 2), dim=1), parametrizations.spectral_norm(nn.Conv1d(3, 4, 2), dim=1), (5, 3, 6),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STATEFUL)
def test_training_changes_params_and_state_as_in_torch(name: str) -> None:
    layer, net, shape = STATEFUL[name]()
    net = net.double()
    params, state = tree.cast(layer.init(KEY), torch.float64)
    net.load_state_dict(tree.to_state_dict(params) | tree.to_state_dict(state))
    optimizer = torch.optim.SGD(net.parameters(), 0.1) if tree.leaves(params) else None

    def loss(params: Any, state: Any, x: Tensor) -> tuple[Tensor, Any]:
        y, state = layer.apply(params, state, x, train=True)
        return (y - 1.0).square().mean(), state

    for step in range(6):
        x = 2.0 * numbers(step, *shape) + step
        before = tree.map(torch.clone, state)
        if optimizer is None:
            _, new = loss(params, state, x)
            net(x)
        else:
            (_, new), grads = fnn.value_and_grad(loss, has_aux=True)(params, state, x)
            params = tree.map(lambda p, g: p - 0.1 * g, params, grads)
            optimizer.zero_grad()
            (net(x) - 1.0).square().mean().backward()
            optimizer.step()
        assert all(tree.leaves(tree.map(torch.equal, state, before)))
        state = new
    ours = tree.to_state_dict(params) | tree.to_state_dict(state)
    for path, leaf in net.state_dict().items():
        torch.testing.assert_close(ours[path], leaf, rtol=1e-10, atol=1e-12)
    x = numbers(9, *shape)
    y, same = layer.apply(params, state, x)
    torch.testing.assert_close(y, net.eval()(x).detach())
    assert tree.max_difference(same, state) == 0


def test_the_power_method_is_a_constant_of_differentiation_under_every_transform() -> None:
    layer, x = layers.spectral_norm(layers.linear(3, 4)), numbers(0, 5, 3)
    several = [tree.cast(layer.init(fnn.random.key(seed)), torch.float64) for seed in range(3)]
    params, state = several[0]
    tangent = tree.map(lambda leaf: numbers(1, *leaf.shape), params)
    _, used = layer.apply(params, state, x, train=True)
    train = lambda p: layer.apply(p, state, x, train=True)[0].pow(3).sum()
    fixed = lambda p: layer.apply(p, used, x)[0].pow(3).sum()  # the new vectors, given as constants
    for transform in (
        lambda f: grad(f)(params),
        lambda f: torch.func.jvp(f, (params,), (tangent,)),
        lambda f: torch.func.jvp(grad(f), (params,), (tangent,))[1],
        lambda f: grad(lambda p: torch.func.jvp(f, (p,), (tangent,))[1])(params),
    ):
        assert tree.allclose(transform(train), transform(fixed), rtol=1e-12)
        assert tree.allclose(fnn.jit(lambda transform=transform: transform(train))(), transform(fixed), rtol=1e-12)
    step = lambda params, state: layer.apply(params, state, x, train=True)
    together = torch.func.vmap(step)(*tree.stack(several))
    for one, pair in zip(tree.unstack(together), several, strict=True):
        assert tree.allclose(one, step(*pair), rtol=1e-12)


def test_a_parametrized_layer_keeps_the_state_of_what_it_holds() -> None:
    inner = layers.sequential(layers.batch_norm(3))
    block = layers.weight_norm(layers.batch_norm(3))
    params, state = block.init(KEY)
    assert set(state) == set(inner.init(KEY)[1]["0"])
    _, new = block.apply(params, state, numbers(0, 4, 3).float(), train=True)
    assert int(new["num_batches_tracked"]) == 1
    spectral = layers.spectral_norm(layers.weight_norm(layers.linear(3, 4), "bias"))
    params, state = spectral.init(KEY)
    assert tree.paths(params) == (
        "parametrizations.bias.original0", "parametrizations.bias.original1", "parametrizations.weight.original",
    )  # fmt: skip
    y, _ = spectral.apply(params, state, ONES(2, 3), train=True)
    assert y.shape == (2, 4)


def test_params_of_parametrized_layers_can_be_donated() -> None:
    for layer in (layers.weight_norm(layers.linear(3, 4)), layers.weight_norm(layers.linear(3, 4), "bias")):
        params = layer.init(KEY)
        half = fnn.jit(lambda params: tree.scale(0.5, params), donate_argnums=0)(params)
        expected = tree.scale(0.5, layer.init(KEY))
        assert tree.allclose(half, expected)


def test_torchs_cross_map_lrn_differs_only_by_the_first_channel() -> None:
    x = numbers(0, 2, 9, 3, 3).clone()
    x[:, 0] = 0.0
    ours = layers.local_response_norm(3, 0.4, 0.7, 2.0).apply({}, x)
    torch.testing.assert_close(ours, nn.CrossMapLRN2d(3, 0.4, 0.7, 2.0)(x))
    x[:, 0] = 1.0
    ours = layers.local_response_norm(3, 0.4, 0.7, 2.0).apply({}, x)
    theirs = nn.CrossMapLRN2d(3, 0.4, 0.7, 2.0)(x)
    torch.testing.assert_close(ours[:, :2], theirs[:, :2])
    assert not torch.allclose(ours[:, 2:], theirs[:, 2:])


def test_fold_is_the_transpose_of_unfold() -> None:
    options: dict[str, Any] = {"kernel_size": (2, 3), "dilation": (2, 1), "padding": (1, 2), "stride": (2, 1)}
    x = numbers(0, 2, 3, 5, 6)
    columns, back = torch.func.vjp(lambda x: layers.unfold(**options).apply({}, x), x)[:2]
    y = numbers(1, *columns.shape)
    torch.testing.assert_close(layers.fold((5, 6), **options).apply({}, y), back(y)[0])


def test_transposed_convolution_is_the_transpose_of_convolution() -> None:
    x = numbers(0, 2, 4, 6, 5)
    conv = layers.conv2d(4, 6, 3, 2, 1, groups=2, bias=False)
    params = double(conv)
    y, back = torch.func.vjp(lambda x: conv.apply(params, x), x)[:2]
    cotangent = numbers(1, *y.shape)
    transposed = layers.conv_transpose2d(6, 4, 3, 2, 1, (1, 0), 2, bias=False)
    torch.testing.assert_close(transposed.apply(params, cotangent), back(cotangent)[0])


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.7, 1.0, 1.3, 1.7, 2.0, 3.3])
def test_nearest_exact_takes_the_pixels_of_torch(ratio: float) -> None:
    for size in range(4, 12):
        for recomputed in (None, True):
            x = torch.arange(float(size)).view(1, 1, size)
            options: dict[str, Any] = {
                "scale_factor": ratio,
                "mode": "nearest-exact",
                "recompute_scale_factor": recomputed,
            }
            assert torch.equal(layers.interpolate(x, **options), F.interpolate(x, **options))


def apply(layer: fnn.Layer, *inputs: Any) -> Any:
    return lambda: layer.apply(layer.init(KEY), *inputs)


WEIGHT_NORM = layers.weight_norm(layers.linear(3, 2))
SPECTRAL = layers.spectral_norm(layers.linear(3, 2))
SENTENCES = {
    "channels, 1d": (apply(layers.conv1d(3, 4, 3), ONES(2, 1, 8)), r"conv1d expects inputs of shape \(batch, 3, length\), got \(2, 1, 8\)"),
    "channels, 3d": (apply(layers.conv3d(3, 4, 3), ONES(2, 3, 8, 8)), r"conv3d expects inputs of shape \(batch, 3, depth, height, width\)"),
    "channels, transposed": (apply(layers.conv_transpose2d(3, 4, 3), ONES(2, 1, 8, 8)), r"conv_transpose2d expects inputs of shape \(batch, 3, height, width\)"),
    "kernel": (apply(layers.conv1d(1, 1, 3, dilation=2), ONES(2, 1, 4)), r"conv1d with a kernel that reaches over \(5,\) got an input of size \(4,\)"),
    "groups": (lambda: layers.conv3d(4, 3, 1, groups=2), "conv3d: groups=2 must divide in_channels=4 and out_channels=3"),
    "groups, transposed": (lambda: layers.conv_transpose1d(3, 4, 1, groups=2), "conv_transpose1d: groups=2 must divide in_channels=3"),
    "three sizes": (lambda: layers.conv3d(1, 1, (3, 3)), r"conv3d expects kernel_size as one integer or three \(depth, height, width\), got \(3, 3\)"),
    "one size": (lambda: layers.conv1d(1, 1, (3, 3)), r"conv1d expects kernel_size as one integer or a tuple \(length,\), got \(3, 3\)"),
    "output_padding": (lambda: layers.conv_transpose2d(1, 1, 3, 2, 1, 2), r"output_padding=\(2, 2\) must be less than stride=\(2, 2\) or dilation=\(1, 1\)"),
    "empty output": (apply(layers.conv_transpose1d(1, 1, 2, padding=2), ONES(1, 1, 2)), r"conv_transpose1d turns an input of size \(2,\) into one of size \(-1,\)"),
    "reflect": (apply(layers.reflection_pad1d(3), ONES(1, 1, 3)), r"reflection_pad1d can pad 3 entries by at most 2 with mode 'reflect', got \(3, 3\)"),
    "reflect, conv": (apply(layers.conv2d(1, 1, 3, padding=2, padding_mode="reflect"), ONES(1, 1, 2, 5)), "conv2d can pad 2 entries by at most 1"),
    "circular": (apply(layers.circular_pad2d(4), ONES(1, 1, 9, 3)), "circular_pad2d can pad 3 entries by at most 3"),
    "cropped away": (apply(layers.zero_pad1d((-2, -1)), ONES(1, 1, 3)), r"zero_pad1d leaves nothing of 3 entries with padding \(-2, -1\)"),
    "cropped away, then padded": (apply(layers.constant_pad1d((-4, 3), 1.0), ONES(1, 1, 3)), "leaves nothing of 3 entries"),
    "sides": (lambda: layers.zero_pad2d((1, 2)), r"padding as one integer or \(left, right, top, bottom\), got \(1, 2\)"),
    "padding rank": (apply(layers.zero_pad2d(1), ONES(1, 3)), "zero_pad2d expects inputs of shape"),
    "pool rank": (apply(layers.max_pool3d(2), ONES(1, 3)), r"max_pool3d expects inputs of shape \(batch, channels, depth, height, width\)"),
    "window": (apply(layers.lp_pool1d(2, 4), ONES(1, 1, 3)), r"lp_pool1d with a window of \(4,\) got an input of size \(3,\)"),
    "window, dilated": (apply(layers.max_pool1d(2, dilation=4), ONES(1, 1, 4)), r"max_pool1d with a window of \(2,\) got an input of size \(4,\)"),
    "norm_type": (lambda: layers.lp_pool2d(0, 2), "lp_pool2d expects norm_type > 0, got 0"),
    "divisor": (lambda: layers.avg_pool3d(2, divisor_override=0), "divisor_override >= 1, got 0"),
    "adaptive sizes": (lambda: layers.adaptive_avg_pool2d((1, 2, 3)), r"output_size as one integer or \(height, width\), got \(1, 2, 3\)"),
    "adaptive, nothing": (apply(layers.adaptive_avg_pool1d(2), ONES(1, 2, 0)), r"got an input of size \(0,\), which has no entries"),
    "global, rank": (lambda: layers.global_avg_pool(ONES(2, 3)), r"global_avg_pool expects inputs of shape \(batch, channels, \.\.\.\)"),
    "fractional, neither": (lambda: layers.fractional_max_pool2d(2), "expects either output_size or output_ratio"),
    "fractional, ratio": (lambda: layers.fractional_max_pool2d(2, output_ratio=1.5), "output_ratio between 0 and 1, or one for each axis, got 1.5"),
    "fractional, size": (apply(layers.fractional_max_pool2d(3, 5), ONES(1, 1, 6, 9)), r"cannot pool an input of size \(6, 9\) to \(5, 5\)"),
    "unpool, indices": (apply(layers.max_unpool1d(2), ONES(1, 1, 3), ONES(1, 1, 2).long()), r"indices of shape \(1, 1, 3\), got \(1, 1, 2\)"),
    "unpool, size": (
        lambda: layers.max_unpool1d(2).apply({}, ONES(1, 1, 3), ONES(1, 1, 3).long(), (9,)), r"output of size \(6,\), give or take less than the stride \(2,\), got \(9,\)",
    ),
    "size and factor": (lambda: layers.upsample(4, 2.0), "upsample expects either size or scale_factor"),
    "mode": (lambda: layers.interpolate(ONES(1, 1, 3), 2, mode="cubic"), "interpolate: mode is one of 'nearest'.* got 'cubic'"),
    "align_corners": (lambda: layers.upsample(4, align_corners=True), "align_corners needs a mode of 'linear'"),
    "antialias": (lambda: layers.interpolate(ONES(1, 1, 3), 2, mode="linear", antialias=True), "antialias needs mode 'bilinear' or 'bicubic'"),
    "factor": (lambda: layers.upsample(scale_factor=-1.0), "scale_factor > 0, got -1"),
    "recompute": (lambda: layers.upsample(4, recompute_scale_factor=True), "recompute_scale_factor needs scale_factor"),
    "upsample, rank": (apply(layers.upsample(4, mode="bilinear"), ONES(1, 1, 3)), r"mode 'bilinear' expects inputs \(batch, channels, \.\.\.\) of 4 axes"),
    "upsample, sizes": (apply(layers.upsample((4, 4)), ONES(1, 1, 3)), r"input of size \(3,\) expects one number or 1, got \(4, 4\)"),
    "upsample, nothing": (apply(layers.upsample(scale_factor=0.2), ONES(1, 1, 3)), r"would give one of size \(0,\)"),
    "upsample, nearest 2d": (apply(layers.upsampling_nearest2d(4), ONES(1, 1, 3)), "expects inputs .* of 4 axes"),
    "shuffle": (apply(layers.pixel_shuffle(2), ONES(1, 3, 2, 2)), r"a multiple of 4 channels, got \(1, 3, 2, 2\)"),
    "unshuffle": (apply(layers.pixel_unshuffle(2), ONES(1, 3, 3, 2)), r"multiples of 2, got \(1, 3, 3, 2\)"),
    "channel_shuffle": (apply(layers.channel_shuffle(2), ONES(1, 3, 3)), r"a multiple of 2 channels, got \(1, 3, 3\)"),
    "unflatten": (apply(layers.unflatten(1, (2, 3)), ONES(1, 5)), r"unflatten cannot split axis 1 of \(1, 5\) into \(2, 3\)"),
    "unfold": (apply(layers.unfold(4), ONES(1, 1, 3, 9)), r"unfold with patches of \(4, 4\) got an input of size \(3, 9\)"),
    "fold": (apply(layers.fold(4, 2), ONES(1, 4, 8)), r"fold expects inputs of shape \(batch, a multiple of 4, 9\), got \(1, 4, 8\)"),
    "fold, size": (lambda: layers.fold(2, 3), r"fold with patches of \(3, 3\) cannot make an output of size \(2, 2\)"),
    "local response": (apply(layers.local_response_norm(3), ONES(2, 3)), "with at least three axes, got"),
    "bilinear": (apply(layers.bilinear(3, 2, 4), ONES(5, 3), ONES(4, 2)), r"differ in their last axis only, got \(5, 3\) and \(4, 2\)"),
    "bilinear, features": (apply(layers.bilinear(3, 2, 4), ONES(5, 3), ONES(5, 3)), r"bilinear expects inputs of shape \(\.\.\., 2\), got \(5, 3\)"),
    "momentum": (lambda: layers.instance_norm(3, momentum=None), "instance_norm expects momentum as a number"),  # type: ignore[arg-type]
    "plain params": (
        lambda: WEIGHT_NORM.apply(layers.linear(3, 2).init(KEY), ONES(3)),
        r"weight_norm expects \['parametrizations'\]\['weight'\]\['original0'\] and .* given only \['bias', 'weight'\]",
    ),
    "weight and its parts": (
        lambda: WEIGHT_NORM.apply(WEIGHT_NORM.init(KEY) | {"weight": ONES(2, 3)}, ONES(3)), "weight_norm computes 'weight' from its parametrization",
    ),
    "other sizes": (
        lambda: WEIGHT_NORM.apply(layers.weight_norm(layers.linear(3, 2), dim=1).init(KEY), ONES(3)), r"original0 of shape \(2, 1\), got \(1, 3\)",
    ),
    "no such leaf": (lambda: layers.weight_norm(layers.linear(3, 2), "wieght").init(KEY), r"the layer has no leaf 'wieght'; its own entries are \['bias', 'weight'\]"),
    "dim": (lambda: layers.weight_norm(layers.linear(3, 2), dim=2).init(KEY), r"weight_norm with dim=2 got a leaf of shape \(2, 3\)"),
    "other state": (
        lambda: SPECTRAL.apply(SPECTRAL.init(KEY)[0], layers.batch_norm(2).init(KEY)[1], ONES(3)), r"spectral_norm expects \['parametrizations'\]\['weight'\]\['0'\]",
    ),
    "state of another": (
        lambda: SPECTRAL.apply(SPECTRAL.init(KEY)[0], layers.spectral_norm(layers.linear(4, 2)).init(KEY)[1], ONES(3)), r"_v of shape \(3,\), got \(4,\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SENTENCES)
def test_what_does_not_fit_is_refused_by_a_sentence(name: str) -> None:
    call, message = SENTENCES[name]
    with pytest.raises(ValueError, match=message):
        call()


TYPES = {
    "no state": (
        lambda: SPECTRAL.apply(SPECTRAL.init(KEY)[0], ONES(3)),
        "spectral_norm has state: write params, state",
    ),
    "no indices": (
        apply(layers.max_unpool2d(2), ONES(1, 2, 2)),
        r"max_unpool2d got no indices; write apply\(params, x, indices\)",
    ),
    "int32 indices": (
        apply(layers.max_unpool1d(2), ONES(1, 2), ONES(1, 2).int()),
        "expects indices of torch.int64, got torch.int32",
    ),
    "one input": (
        apply(layers.bilinear(3, 2, 4), ONES(5, 3)),
        r"bilinear got one input; write apply\(params, x1, x2\)",
    ),
    "not a layer": (lambda: layers.weight_norm(layers.relu), "weight_norm expects a layer, got"),  # type: ignore[arg-type]
    "not a layer, spectral": (lambda: layers.spectral_norm(nn.Linear(2, 2)), "spectral_norm expects a layer, got"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", TYPES)
def test_what_is_of_another_kind(name: str) -> None:
    call, message = TYPES[name]
    with pytest.raises(TypeError, match=message):
        call()


COMPLEX = (
    "conv",
    "zero_pad",
    "constant_pad",
    "reflection",
    "replication",
    "circular",
    "pixel",
    "channel",
    "unflatten",
    "unfold",
    "fold",
)


@pytest.mark.parametrize("name", ONE_INPUT)
def test_complex_numbers_are_right_or_refused_by_name(name: str) -> None:
    layer, shape = ONE_INPUT[name]
    params = layer.init(KEY)
    x = torch.complex(numbers(0, *shape), numbers(1, *shape))
    if not name.startswith(COMPLEX):
        with pytest.raises(TypeError, match=f"{name.split(',')[0]}.* complex numbers"):
            layer.apply(params, x)
        return
    plain = lambda part: layer.apply(double(layer), part)
    if name.startswith("conv"):  # (1 + i) (W x + b), with real W and b
        y = layer.apply(tree.map(lambda leaf: torch.complex(leaf, leaf), double(layer)), x)
        real, imaginary = plain(x.real), plain(x.imag) - plain(torch.zeros_like(x.imag))
        torch.testing.assert_close(y, torch.complex(real - imaginary, real + imaginary))
    elif name.startswith("constant_pad"):
        torch.testing.assert_close(layer.apply(params, x).real, plain(x.real))
    else:
        torch.testing.assert_close(layer.apply(params, x), torch.complex(plain(x.real), plain(x.imag)))


@pytest.mark.parametrize(
    "name", [name for name in ONE_INPUT if "avg" in name or "lp_" in name or "adaptive" in name or "sampl" in name]
)
def test_integers_have_no_average(name: str) -> None:
    layer, shape = ONE_INPUT[name]
    with pytest.raises(TypeError, match=r"expects floating-point inputs, got torch.int64; write x\.float\(\)"):
        layer.apply({}, torch.ones(shape, dtype=torch.int64))


@pytest.mark.parametrize(
    "name", ["layer_norm", "rms_norm", "group_norm", "batch_norm", "local_response_norm", "weight_norm"]
)
def test_norms_of_integers_and_complex_numbers_are_refused(name: str) -> None:
    layer: Any = {
        "layer_norm": layers.layer_norm(4),
        "rms_norm": layers.rms_norm(4),
        "group_norm": layers.group_norm(2, 4),
        "batch_norm": layers.batch_norm(4),
        "local_response_norm": layers.local_response_norm(3),
        "weight_norm": layers.weight_norm(layers.linear(4, 4)),
    }[name]
    for dtype, message in ((torch.complex64, "complex numbers"), (torch.int64, r"write x\.float\(\)")):
        made = layer.init(KEY)
        if name == "weight_norm":
            made["parametrizations"]["weight"]["original1"] = ONES(4, 4, dtype=dtype)
        with pytest.raises(TypeError, match=f"{name} .*{message}"):
            layer.apply(*made if name == "batch_norm" else (made,), ONES(3, 4, 4, dtype=dtype))


@pytest.mark.parametrize("name", ["conv_transpose3d", "bilinear"])
def test_biases_start_within_the_fan_of_the_weight(name: str) -> None:
    layer, fan = {
        "conv_transpose3d": (layers.conv_transpose3d(8, 4000, 2, groups=2), 2000 * 8),
        "bilinear": (layers.bilinear(9, 40, 4000), 9),
    }[name]
    bias = layer.init(KEY)["bias"]
    assert 0.98 / math.sqrt(fan) < float(bias.abs().max()) <= 1 / math.sqrt(fan)
