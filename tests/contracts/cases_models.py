"""Combinators and models against modules of torch and of torchvision."""

# ruff: noqa: E501 (one case a line)

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import torchvision.models
from torch import Tensor

import fnn
from fnn import layers, models
from tests.contracts.case import Case, numbers


def by_hand(layer: fnn.Layer, reference: Callable[[Any, Tensor], Tensor], *shape: int) -> Case:
    """A layer without a torch module of the same names, against a function that is written out."""
    params = fnn.tree.cast(layer.init(fnn.random.key(5)), torch.float64)
    return Case(layer.apply, reference, params, numbers(1, *shape))


def stateful(
    layer: fnn.StatefulLayer, reference: Callable[[Any, Any, Tensor], Tensor], train: bool, *shape: int
) -> Case:
    params, state = fnn.tree.cast(layer.init(fnn.random.key(5)), torch.float64)
    state = moved(state)
    return Case(
        lambda p, x: layer.apply(p, state, x, train=train)[0],
        lambda p, x: reference(p, state, x),
        params,
        numbers(1, *shape),
    )


def affine(params: Any, x: Tensor) -> Tensor:
    return x @ params["weight"].mT + params["bias"]


def tower(params: Any, x: Tensor) -> Tensor:
    """Three layers x + tanh(W x + b) written as a loop, the stacked params one at a time."""
    for each in fnn.tree.unstack(params):
        x = x + torch.tanh(affine(each["0"], x))
    return x


def normed_tower(params: Any, state: Any, x: Tensor) -> Tensor:
    for each, norm in zip(fnn.tree.unstack(params), fnn.tree.unstack(state), strict=True):
        x = affine(each["0"], x)
        x = F.batch_norm(x, norm["1"]["running_mean"], norm["1"]["running_var"], each["1"]["weight"], each["1"]["bias"])
    return x


def cell() -> fnn.Layer:
    return layers.residual(layers.sequential(layers.linear(4, 4), layers.tanh))


def normed_cell() -> fnn.StatefulLayer:
    return layers.sequential(layers.linear(4, 4), layers.batch_norm(4))


def gate(parts: Any, x: Tensor) -> Tensor:
    return parts.linear(x) * torch.sigmoid(parts.gate(parts.linear(x)))


def gated() -> fnn.Layer:
    return layers.connect(gate, linear=layers.linear(4, 3), gate=layers.linear(3, 3))


def gated_by_hand(params: Any, x: Tensor) -> Tensor:
    y = affine(params["linear"], x)
    return y * torch.sigmoid(affine(params["gate"], y))


def join(outputs: Any) -> Tensor:
    return torch.cat(outputs, -1)


def two_heads() -> fnn.Layer:
    return layers.sequential(layers.branch(layers.linear(4, 2), layers.linear(4, 3)), join)


def several() -> fnn.Layer:
    return layers.parallel(layers.linear(4, 3), layers.sequential(layers.linear(4, 3), layers.tanh))


def moved(state: Any) -> Any:
    """Running statistics that are neither 0 nor 1."""
    return fnn.tree.map(lambda leaf: leaf + numbers(7, *leaf.shape).abs() if leaf.is_floating_point() else leaf, state)


def frozen() -> Case:
    layer = layers.batch_norm(4)
    state = moved(fnn.tree.cast(layer.init(fnn.random.key(5)), torch.float64)[1])
    return by_hand(
        layers.frozen(layer, state),
        lambda p, x: F.batch_norm(x, state["running_mean"], state["running_var"], **p),
        5,
        4,
    )


def perturbed(layer: fnn.Layer) -> Any:
    params = fnn.tree.cast(layer.init(fnn.random.key(5)), torch.float64)
    return fnn.tree.map(lambda leaf: leaf + 0.3 * numbers(6, *leaf.shape), params)


def small_vit() -> fnn.Layer:
    return models.vit(4, 2, 1, 2, 4, 6, num_classes=3)


def vit() -> Case:
    net = torchvision.models.VisionTransformer(4, 2, 1, 2, 4, 6, num_classes=3).double()

    def reference(params: Any, x: Tensor) -> Tensor:
        return torch.func.functional_call(net, fnn.tree.to_state_dict(params), (x,))

    return Case(small_vit().apply, reference, perturbed(small_vit()), numbers(1, 2, 3, 4, 4))


def small_gpt(**options: Any) -> fnn.Layer:
    return models.gpt(5, 3, 4, 2, 2, **options)


def gpt_by_hand(params: Any, tokens: Tensor) -> Tensor:
    norm = lambda p, x: (
        (x - x.mean(-1, keepdim=True)) / (x.var(-1, False, keepdim=True) + 1e-5).sqrt() * p["weight"] + p["bias"]
    )
    x = params["wte"]["weight"][tokens] + params["wpe"]["weight"][: tokens.shape[1]]
    for block in [params["h"]["0"], params["h"]["1"]]:
        attn = block["attn"]
        q, k, v = (
            (norm(block["ln_1"], x) @ attn["in_proj_weight"].T + attn["in_proj_bias"])
            .unflatten(-1, (3, 2, 2))
            .unbind(2)
        )
        heads = []
        for h in range(2):
            scores = q[:, :, h] @ k[:, :, h].mT / 2**0.5
            weights = torch.softmax(scores + torch.full_like(scores, -torch.inf).triu(1), -1)
            heads.append(weights @ v[:, :, h])
        x = x + affine(attn["out_proj"], torch.cat(heads, -1))
        mlp = block["mlp"]
        x = x + affine(mlp["c_proj"], F.gelu(affine(mlp["c_fc"], norm(block["ln_2"], x)), approximate="tanh"))
    return norm(params["ln_f"], x) @ params["wte"]["weight"].T


def gpt() -> Case:
    return Case(small_gpt().apply, gpt_by_hand, perturbed(small_gpt()), torch.tensor([[0, 4, 2], [3, 3, 1]]))


LAYERS: dict[str, Callable[[], Case]] = {
    "models.vit": vit,
    "models.gpt": gpt,
    "residual, shortcut": lambda: by_hand(
        layers.residual(layers.sequential(layers.linear(4, 3), layers.tanh), layers.linear(4, 3)),
        lambda p, x: affine(p["shortcut"], x) + torch.tanh(affine(p["layer"]["0"], x)), 5, 4,
    ),
    "connect": lambda: by_hand(gated(), gated_by_hand, 5, 4),
    "parallel": lambda: by_hand(several(), lambda p, x: affine(p["0"], x) + torch.tanh(affine(p["1"]["0"], x)), 5, 4),
    "parallel, concatenate": lambda: by_hand(
        layers.parallel(a=layers.conv2d(2, 3, 1), b=layers.conv2d(2, 1, 3, padding=1), combine="concatenate"),
        lambda p, x: torch.cat([F.conv2d(x, **p["a"]), F.conv2d(x, **p["b"], padding=1)], 1), 3, 2, 4, 4,
    ),
    "branch": lambda: by_hand(two_heads(), lambda p, x: torch.cat([affine(p["0"]["0"], x), affine(p["0"]["1"], x)], -1), 5, 4),
    "map_over_time": lambda: by_hand(
        layers.map_over_time(layers.conv2d(1, 2, 3)),
        lambda p, x: torch.stack([F.conv2d(step, p["weight"], p["bias"]) for step in x.unbind(1)], 1), 3, 2, 1, 4, 4,
    ),
    "repeat": lambda: by_hand(layers.repeat(cell(), 3), tower, 5, 4),
    "repeat, remat": lambda: by_hand(layers.repeat(cell(), 3, remat=True), tower, 5, 4),
    "repeat, with state": lambda: stateful(layers.repeat(normed_cell(), 2), normed_tower, False, 5, 4),
    "remat": lambda: by_hand(
        layers.remat(cell()), lambda p, x: x + torch.tanh(affine(p["0"], x)), 5, 4
    ),
    "remat, nested, with state": lambda: stateful(
        layers.remat(layers.sequential(layers.remat(layers.sequential(layers.conv2d(1, 2, 3), layers.batch_norm(2))), layers.tanh)),
        lambda p, s, x: torch.tanh(F.batch_norm(F.conv2d(x, **p["0"]["0"]), None, None, **p["0"]["1"], training=True)),
        True, 3, 1, 4, 4,
    ),
    "frozen": frozen,
    "mixed_precision": lambda: by_hand(
        layers.mixed_precision(layers.linear(4, 3), *[torch.float64] * 3), affine, 5, 4
    ),
}  # fmt: skip


# models that tests/test_models.py compares with torchvision's, because every transform of them would take too long
LARGE = {"models.gpt_cache"} | {
    f"models.{name}"
    for name in models.__all__
    if name.startswith(("alexnet", "vgg", "resnet", "wide_resnet", "mobilenet", "efficientnet", "vit_b"))
}


def as_tokens(x: Tensor) -> Tensor:
    return x.long()


def on_meta() -> dict[str, Any]:
    norm = layers.batch_norm(4)
    return {
        "frozen": layers.frozen(norm, norm.init(fnn.random.key(0, "meta"))[1]),
        "connect": gated(),
        "residual, shortcut": layers.residual(layers.linear(4, 3), layers.linear(4, 3)),
        "parallel": several(),
        "branch": two_heads(),
        "map_over_time": layers.map_over_time(layers.sequential(layers.linear(4, 4), layers.dropout(0.5))),
        "repeat": layers.repeat(cell(), 2),
        "remat": layers.remat(cell()),
        "mixed_precision": layers.mixed_precision(layers.linear(4, 3)),
        "models.vit": small_vit(),
        "models.gpt": layers.sequential(as_tokens, small_gpt(p=0.1)),
        "models.gpt, rotary, stacked": layers.sequential(
            as_tokens, small_gpt(positions="rotary", stacked=True, tied=False)
        ),
        "models.resnet18": models.resnet18(3),
    }


ON_META = on_meta()
SHAPES = {
    "map_over_time": (2, 3, 4),
    "models.vit": (2, 3, 4, 4),
    "models.gpt": (2, 3),
    "models.resnet18": (2, 3, 33, 33),
}
MADE = {name: getattr(models, name.removeprefix("models."))() for name in sorted(LARGE - {"models.gpt_cache"})}
