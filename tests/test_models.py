"""Models against those of torchvision: names, initial values, logits, gradients, and statistics after training."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision.models as tv
from torch import Tensor, nn

import fnn
from fnn import layers, models, tree
from fnn._configs import parts_of

KEY, META = fnn.random.key(0), fnn.random.key(0, "meta")
NAMES = [
    "alexnet", "vgg11", "vgg11_bn", "vgg13", "vgg13_bn", "vgg16", "vgg16_bn", "vgg19", "vgg19_bn", "resnet18",
    "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2", "wide_resnet101_2", "mobilenet_v2",
    "efficientnet_b0", "vit_b_16",
]  # fmt: skip


def both_trees(model: Any, key: Tensor) -> tuple[Any, Any]:
    made = model.init(key)
    return made if isinstance(model, fnn.StatefulLayer) else (made, {})


@pytest.mark.parametrize("name", NAMES)
def test_names_and_shapes_are_those_of_the_state_dict(name: str) -> None:
    with torch.device("meta"):
        net = getattr(tv, name)()
    params, state = both_trees(getattr(models, name)(), META)
    expected = {path: (tuple(leaf.shape), leaf.dtype) for path, leaf in net.state_dict().items()}
    found = tree.to_state_dict(params) | tree.to_state_dict(state)
    assert {path: (tuple(leaf.shape), leaf.dtype) for path, leaf in found.items()} == expected
    assert set(tree.paths(params)) == {path for path, _ in net.named_parameters()}


def small_vit(torchs: bool) -> Any:
    if torchs:
        return tv.VisionTransformer(8, 4, 2, 2, 8, 12, num_classes=5)
    return models.vit(8, 4, 2, 2, 8, 12, num_classes=5)


# our model, torchvision's, the shape of the images; without dropout, because the two draw differently
PAIRS: dict[str, tuple[Callable[[], Any], Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet18": (lambda: models.resnet18(10), lambda: tv.resnet18(num_classes=10), (4, 3, 40, 33)),
    "mobilenet_v2": (
        lambda: models.mobilenet_v2(10, p=0.0), lambda: tv.mobilenet_v2(num_classes=10, dropout=0.0), (4, 3, 40, 33),
    ),
    "efficientnet_b0": (
        lambda: models.efficientnet_b0(10, p=0.0, stochastic_depth=0.0),
        lambda: tv.efficientnet_b0(num_classes=10, dropout=0.0, stochastic_depth_prob=0.0), (4, 3, 40, 33),
    ),
    "vgg11_bn, features": (
        lambda: layers.sequential(parts_of(models.vgg11_bn())["features"], layers.flatten),
        lambda: nn.Sequential(tv.vgg11_bn().features, nn.Flatten()), (2, 3, 48, 34),
    ),
    "alexnet, features": (
        lambda: layers.sequential(parts_of(models.alexnet())["features"], layers.flatten),
        lambda: nn.Sequential(tv.alexnet().features, nn.Flatten()), (2, 3, 64, 70),
    ),
    "vit": (lambda: small_vit(False), lambda: small_vit(True), (3, 3, 8, 8)),
}  # fmt: skip
SLOW = {
    "alexnet": (lambda: models.alexnet(10, p=0.0), lambda: tv.alexnet(num_classes=10, dropout=0.0), (2, 3, 64, 64)),
    **{
        name: (
            lambda name=name: getattr(models, name)(10, p=0.0),
            lambda name=name: getattr(tv, name)(num_classes=10, dropout=0.0), (2, 3, 32, 32),
        )
        for name in ("vgg16", "vgg16_bn", "vgg19_bn")
    },
    **{
        name: (
            lambda name=name: getattr(models, name)(10), lambda name=name: getattr(tv, name)(num_classes=10),
            (2, 3, 64, 64),
        )
        for name in ("resnet34", "resnet50", "resnet101", "wide_resnet50_2")
    },
    "vit_b_16": (
        lambda: models.vit_b_16(10, image_size=32), lambda: tv.vit_b_16(num_classes=10, image_size=32), (2, 3, 32, 32),
    ),
}  # fmt: skip
ALL = {**PAIRS, **SLOW}
EACH = [*PAIRS, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]


def pair(name: str) -> tuple[Any, nn.Module, Any, Any, Tensor]:
    """The two models with the same float64 parameters, none of which is zero."""
    make, make_net, shape = ALL[name]
    model, net = make(), make_net().double()
    params, state = tree.cast(both_trees(model, KEY), torch.float64)
    noise = fnn.random.like(fnn.random.key(1), params)
    params = tree.map(lambda leaf, n: leaf + 0.01 * n if leaf.dim() != 2 else leaf + 0.001 * n, params, noise)
    missing = net.load_state_dict(tree.to_state_dict(params) | tree.to_state_dict(state))
    assert not missing.missing_keys
    return model, net, params, state, fnn.random.normal(fnn.random.key(2), shape, torch.float64)


def apply(model: Any, params: Any, state: Any, x: Tensor, train: bool) -> tuple[Tensor, Any]:
    if isinstance(model, fnn.Layer):
        return model.apply(params, x), {}
    return model.apply(params, state, x, train=train)


def assert_equal(ours: Any, theirs: dict[str, Tensor]) -> None:
    """Equal to 1e-10 of the largest entry of each leaf."""
    found = tree.to_state_dict(ours)
    assert set(found) == set(theirs)
    for path, leaf in theirs.items():
        scale = float(leaf.abs().max().clamp(min=1e-3))
        torch.testing.assert_close(
            found[path], leaf, rtol=0, atol=1e-10 * scale, msg=lambda text, path=path: f"{path}: {text}"
        )


@pytest.mark.parametrize("name", EACH)
def test_logits_and_gradients_are_those_of_torchvision(name: str) -> None:
    model, net, params, state, x = pair(name)
    labels = torch.arange(len(x)) % 3
    for train in (False, True):
        y, _ = apply(model, params, state, x, train)
        expected = net.train(train)(x)
        assert_equal({"y": y}, {"y": expected.detach()})
        grads = fnn.grad(lambda p, t=train: F.cross_entropy(apply(model, p, state, x, t)[0], labels))(params)
        theirs = torch.autograd.grad(F.cross_entropy(expected, labels), list(net.parameters()))
        assert_equal(grads, dict(zip((path for path, _ in net.named_parameters()), theirs, strict=True)))


TRAINED = {"resnet18": 1e-2, "mobilenet_v2": 1e-5, "efficientnet_b0": 1e-5, "vgg16_bn": 1e-4, "resnet50": 1e-6}


@pytest.mark.parametrize(
    "name",
    [name if i == 0 else pytest.param(name, marks=pytest.mark.slow) for i, name in enumerate(TRAINED)],
)
def test_training_is_that_of_torchvision(name: str) -> None:
    """Params and running statistics after ten steps of gradient descent.

    The rates are small, because with larger ones some of these networks, new and on random images, multiply rounding
    errors in every step. Of two copies of torchvision's networks one was changed in the last bit of its params. After
    ten steps those of mobilenet_v2 differ by 0.2 at a rate of 1e-2, and by 3e-16 at 1e-5; those of resnet50, whose
    last statistics are of 8 values, by 3e-2 at 1e-4, and by 4e-8 at 1e-5.
    """
    rate = TRAINED[name]
    model, net, params, state, _ = pair(name)
    theirs = torch.optim.SGD(net.train().parameters(), rate)
    for step in range(10):
        x = fnn.random.normal(fnn.random.key(step), ALL[name][2], torch.float64)
        labels = (torch.arange(len(x)) + step) % 3

        def loss(params: Any, state: Any, x: Tensor = x, labels: Tensor = labels) -> tuple[Tensor, Any]:
            y, state = apply(model, params, state, x, True)
            return F.cross_entropy(y, labels), state

        grads, state = fnn.grad(loss, has_aux=True)(params, state)
        params = tree.map(lambda p, g: p - rate * g, params, grads)
        theirs.zero_grad()
        F.cross_entropy(net(x), labels).backward()
        theirs.step()
    found = tree.to_state_dict(params) | tree.to_state_dict(state)
    assert_equal(found, {path: leaf.detach() for path, leaf in net.state_dict().items()})


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "efficientnet_b0", "vgg11_bn, features", "vit"])
def test_first_values_are_those_of_torchvision(name: str) -> None:
    make, make_net, _ = ALL[name]
    params, state = both_trees(make(), KEY)
    for path, theirs in make_net().state_dict().items():
        ours = (tree.to_state_dict(params) | tree.to_state_dict(state))[path]
        if theirs.unique().numel() == 1:
            assert torch.equal(ours, theirs), path
        elif theirs.numel() > 1000:
            torch.testing.assert_close(ours.std(), theirs.std(), rtol=0.1, atol=0)
            # the fourth moment tells a normal distribution from a uniform one: 3 and 1.8
            kurtosis = [float((x / x.std()).pow(4).mean()) for x in (ours, theirs)]
            assert abs(kurtosis[0] - kurtosis[1]) < 0.7, path


def test_other_channels_and_classes() -> None:
    for model in (models.resnet18(10, 1), models.mobilenet_v2(10, 1), models.efficientnet_b0(10, 1)):
        params, state = model.init(META)
        assert model.apply(params, state, torch.zeros(2, 1, 32, 32, device="meta"))[0].shape == (2, 10)
    model = models.resnet18()
    made = model.init(META)
    with pytest.raises(layers.ShapeError, match=r"params\['conv1'\]: conv2d expects inputs of shape \(batch, 3"):
        model.apply(*made, torch.zeros(2, 1, 32, 32, device="meta"))
    with pytest.raises(layers.ShapeError, match=r"vit expects images of shape \(batch, 3, 8, 8\), got \(2, 3, 8, 9\)"):
        small_vit(False).apply(small_vit(False).init(KEY), torch.zeros(2, 3, 8, 9))
    with pytest.raises(ValueError, match="patch_size=3 must divide image_size=8"):
        models.vit(8, 3, 1, 1, 2, 2)


def test_stochastic_depth_leaves_out_whole_samples() -> None:
    model = models.efficientnet_b0(4, p=0.0, stochastic_depth=0.9)
    stage = parts_of(parts_of(model)["features"])["6"]
    drop = parts_of(parts_of(stage)["2"])["stochastic_depth"]
    y = drop.apply({}, torch.ones(2000, 3, 2, 2), key=KEY)
    rate = 0.9 * 13 / 16  # the fourteenth block of sixteen
    kept = (y != 0).flatten(1)
    assert bool((kept.all(1) == kept.any(1)).all())
    assert 1 - rate - 0.03 < float(kept[:, 0].float().mean()) < 1 - rate + 0.03
    torch.testing.assert_close(y.max(), torch.tensor(1 / (1 - rate)))
    params, state = model.init(KEY)
    x = fnn.random.normal(KEY, (2, 3, 32, 32))
    evaluated = model.apply(params, state, x)[0]
    assert not torch.equal(evaluated, model.apply(params, state, x, key=KEY)[0])


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) for name in ("resnet18", "vit")])
def test_models_pass_jit_and_per_sample_gradients(name: str) -> None:
    model, _, params, state, x = pair(name)
    plain = layers.frozen(model, state) if state else model
    loss = lambda p, x, y: fnn.losses.cross_entropy(plain.apply(p, x), y)
    labels = torch.arange(len(x)) % 3
    grads = fnn.grad(loss)(params, x, labels)
    assert tree.allclose(fnn.jit(fnn.grad(loss))(params, x, labels), grads, rtol=1e-9, atol=1e-10)
    each = fnn.per_sample_grad(lambda p, batch: loss(p, *batch))(params, (x, labels))
    assert tree.allclose(tree.map(lambda leaf: leaf.mean(0), each), grads, rtol=1e-8, atol=1e-10)


GPT = {"max_length": 6, "embed_dim": 8, "num_heads": 2, "num_layers": 3}


@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_a_language_model_decodes_what_the_full_pass_computes(positions: Any) -> None:
    model = models.gpt(11, **GPT, positions=positions)
    params = tree.map(lambda leaf: 10 * leaf, model.init(KEY))
    tokens = fnn.random.randint(KEY, (2, 6), 0, 11)
    cache, logits = models.gpt_cache(2, **GPT), []
    step = fnn.jit(lambda params, token, cache: model.apply(params, token, cache=cache))
    for token in tokens.split([1, 3, 1, 1], 1):
        y, cache = step(params, token, cache)
        logits.append(y)
    full = model.apply(params, tokens)
    torch.testing.assert_close(torch.cat(logits, 1), full, rtol=1e-4, atol=1e-5)
    changed = model.apply(params, torch.cat([tokens[:, :3], (tokens[:, 3:] + 1) % 11], 1))
    torch.testing.assert_close(changed[:, :3], full[:, :3])  # a token does not see those after it
    assert not torch.allclose(changed[:, 3:], full[:, 3:])
    backwards = model.apply(params, tokens.flip(1))
    assert not torch.allclose(backwards[:, -1], full[:, -1])  # the order matters


def test_stacked_and_recomputed_language_models_are_the_same_function() -> None:
    plain = models.gpt(11, **GPT, tied=False)
    params = tree.cast(plain.init(KEY), torch.float64)
    tokens = fnn.random.randint(KEY, (2, 6), 0, 11)
    loss = lambda model: lambda p: fnn.losses.cross_entropy(model.apply(p, tokens).flatten(0, 1), tokens.flatten())
    value, grads = fnn.value_and_grad(loss(plain))(params)
    stack = lambda p: {**p, "h": tree.stack(list(p["h"].values()))}
    for options in ({"recompute": True}, {"stacked": True}, {"stacked": True, "recompute": True}):
        model = models.gpt(11, **GPT, tied=False, **options)
        ours, expected = (stack(params), stack(grads)) if "stacked" in options else (params, grads)
        assert tree.structure(model.init(KEY)) == tree.structure(ours)
        found = fnn.value_and_grad(loss(model))(ours)
        assert tree.allclose(found, (value, expected), rtol=1e-10, atol=1e-12)
        assert tree.allclose(fnn.jit(fnn.value_and_grad(loss(model)))(ours), found, rtol=1e-10, atol=1e-12)


def test_a_language_model_starts_as_gpt2() -> None:
    params = models.gpt(300, max_length=64, embed_dim=64, num_heads=2, num_layers=8).init(KEY)
    for path, leaf in tree.items(params):
        if path.endswith("bias"):
            assert not leaf.any()
        elif "ln_" in path:
            assert bool((leaf == 1).all())
        else:
            expected = 0.02 / 4 if path.endswith(("out_proj.weight", "c_proj.weight")) else 0.02
            torch.testing.assert_close(float(leaf.std()), expected, rtol=0.05, atol=0)
    with pytest.raises(ValueError, match="positions is 'learned' or 'rotary', got 'sinusoidal'"):
        models.gpt(5, positions="sinusoidal")  # pyright: ignore[reportArgumentType]


def test_vgg16_in_the_summary() -> None:
    model = models.vgg16()
    table = fnn.summary(model, model.init(META), torch.zeros(1, 3, 224, 224, device="meta"))
    assert table.total.parameters == sum(row.parameters for row in table.rows) == 138_357_544
    assert table.total.bytes == 4 * 138_357_544
    assert table.rows[0][:3] == ("features.0", "conv2d(3, 64, 3, padding=1)", (1, 64, 224, 224))
    assert len(table.rows) == 31 + 2 + 7
