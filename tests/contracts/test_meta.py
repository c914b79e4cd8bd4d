"""Everything public in layers, losses, metrics, random and init on torch's ``meta`` device.

The device stands in for an accelerator: a tensor made on the CPU by the way would be copied to it on every call, and
``.item()`` would wait for it.
"""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, jvp, vmap

import fnn
from fnn import init, layers, losses, metrics, models, random, tree
from fnn._torch import TorchDispatchMode
from fnn.random.continuous import inside
from tests.contracts import cases, cases_models, cases_sequence, cases_spatial

META = torch.device("meta")


# torch's own transforms make 0-d tensors of Python numbers with these
_OF_TORCH = (torch.ops.aten._efficientzerotensor.default, torch.ops.aten._to_copy.default)


class OnlyOn(TorchDispatchMode):
    """Refuses operations that give a tensor on another device, and those that bring a number to Python."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func is not torch.ops.aten._local_scalar_dense.default, "a number was fetched from the device"
        out = func(*args, **(kwargs or {}))
        for leaf in () if func in _OF_TORCH and out.dim() == 0 else tree.leaves(out):
            assert not isinstance(leaf, Tensor) or leaf.device == META, f"{func} made a tensor on {leaf.device}"
        return out


def on_meta(value: Any) -> Any:
    return tree.map(lambda leaf: leaf.to(META) if isinstance(leaf, Tensor) else leaf, value)


LAYERS: dict[str, Any] = {
    "linear": layers.linear(4, 3),
    "conv2d": layers.conv2d(1, 2, 3),
    "conv1d": layers.conv1d(1, 2, 3),
    "conv_transpose2d": layers.conv_transpose2d(1, 2, 3),
    "fractional_max_pool2d": layers.fractional_max_pool2d(2, 2),
    "conv2d, same": layers.conv2d(1, 2, 4, padding="same"),
    "conv2d, circular": layers.conv2d(1, 2, 3, padding=1, padding_mode="circular"),
    "max_pool2d": layers.max_pool2d(2),
    "avg_pool2d": layers.avg_pool2d(2),
    "layer_norm": layers.layer_norm(4),
    "rms_norm": layers.rms_norm(4),
    "group_norm": layers.group_norm(2, 4),
    "instance_norm": layers.instance_norm(4, affine=True, spatial=1),
    "instance_norm, running statistics": layers.instance_norm(4, track_running_stats=True),
    "batch_norm": layers.batch_norm(4),
    "weight_norm": layers.weight_norm(layers.linear(4, 3)),
    "spectral_norm": layers.spectral_norm(layers.linear(4, 3)),
    "dropout": layers.dropout(0.5),
    "dropout1d": layers.dropout1d(),
    "dropout2d": layers.dropout2d(),
    "dropout3d": layers.dropout3d(),
    "alpha_dropout": layers.alpha_dropout(),
    "feature_alpha_dropout": layers.feature_alpha_dropout(),
    "adaptive_log_softmax": layers.adaptive_log_softmax(4, 7, [2, 4], 2.0, True),
    "prelu": layers.prelu(),
    "rrelu": layers.rrelu(),
    "embedding": layers.embedding(7, 3, 1, 1.0, scale_grad_by_freq=True),
    **cases_sequence.ON_META,
    "residual": layers.residual(layers.dropout(0.3)),
    "sequential": layers.sequential(layers.linear(4, 3), layers.batch_norm(3), layers.relu, layers.dropout()),
    **cases_models.ON_META,
    "models.mlp": models.mlp(4, 5, 3),
    "models.lenet": models.lenet(),
    "models.lenet5": models.lenet5(),
}
SHAPES = {
    "conv1d": (2, 1, 5), "conv2d": (2, 1, 5, 5), "conv_transpose2d": (2, 1, 5, 5),
    "fractional_max_pool2d": (2, 1, 5, 5), "max_pool2d": (2, 1, 4, 4), "avg_pool2d": (2, 1, 4, 4),
    "group_norm": (2, 4, 3), "dropout2d": (2, 3, 4), "dropout3d": (2, 3, 2, 4), "instance_norm": (2, 4, 3),
    **cases_sequence.SHAPES_ON_META, **cases_models.SHAPES,
    "models.lenet": (2, 1, 32, 32), "models.lenet5": (2, 1, 32, 32),
}  # fmt: skip


STATELESS = [name for name in cases_spatial.LAYERS if name not in cases_spatial.WITH_STATE]


def run_layer(name: str) -> None:
    layer: Any = LAYERS[name]
    key = random.key(0, META)
    shape = SHAPES.get(name.split(",")[0], (3, 4))
    x = torch.zeros(shape, dtype=torch.int64, device=META) if name == "embedding" else torch.zeros(shape, device=META)
    with OnlyOn():
        made = layer.init(key)
        params, state = made if isinstance(layer, fnn.StatefulLayer) else (made, None)

        def apply(params: Any, key: Tensor | None = None) -> Any:
            if state is None:
                return layer.apply(params, x, key=key)
            return layer.apply(params, state, x, train=True, key=key)[0]

        loss = lambda params: apply(params, key).sum()
        apply(params)
        grad(loss)(params)
        if tree.leaves(params):
            jvp(grad(loss), (params,), (params,))
        if state is None:
            vmap(lambda key: apply(params, key))(random.split(key, 3))
        else:
            layer.apply(params, state, x)


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name: str) -> None:
    run_layer(name)


@pytest.mark.parametrize("name", [*STATELESS, *cases.ACTIVATIONS, *cases.LOSSES])
def test_functions_of_the_tables(name: str) -> None:
    case = cases.CASES[name]()
    params, x = on_meta((case.params, case.x))
    with OnlyOn():
        loss = lambda params: case.function(params, x).sum()
        grad(loss)(params)
        jvp(grad(loss), (params,), (params,))


LOGITS, TARGETS = torch.zeros(4, 3, device=META), torch.zeros(4, dtype=torch.int64, device=META)
DRAWS: dict[str, Callable[[Tensor], Any]] = {
    "split": random.split,
    "fold_in": lambda key: (random.fold_in(key, 3), random.fold_in(key, key[0])),
    "bits": lambda key: random.bits(key, (3,)),
    "uniform": lambda key: [
        random.uniform(key, (3,), dtype, *bounds)
        for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16)
        for bounds in ((), (-1.0, 2.0), (key[0].float(), 2.0))
    ],
    "normal": lambda key: [random.normal(key, (3,), dtype) for dtype in (torch.float32, torch.float64, torch.float16)],
    "truncated_normal": lambda key: [
        random.truncated_normal(key, -1.0, 2.0, (3,), torch.bfloat16),
        random.truncated_normal(key, key[0].float(), key.float()),
    ],
    "bernoulli": lambda key: (random.bernoulli(key, 0.3, (3,)), random.bernoulli(key, LOGITS)),
    "randint": lambda key: [
        random.randint(key, (3,), *bounds) for bounds in ((0, 5), (0, 2**40), (key[0], 5), (key[0].long(), 9))
    ],
    "permutation": lambda key: (random.permutation(key, 5), random.permutation(key, LOGITS)),
    "categorical": lambda key: random.categorical(key, LOGITS),
    "like": lambda key: random.like(key, {"a": LOGITS, "b": LOGITS}),
    "inside": lambda key: inside(LOGITS, -1.0, 1.0),
}
INITIALIZERS: dict[str, init.Initializer] = {
    **{
        name: getattr(init, name)()
        for name in (
            "zeros", "ones", "uniform", "normal", "truncated_normal", "variance_scaling", "xavier_uniform",
            "xavier_normal", "kaiming_uniform", "kaiming_normal", "lecun_uniform", "lecun_normal", "orthogonal",
            "torch_default",
        )
    },
    "constant": init.constant(1.0),
    "torch_default_bias": init.torch_default_bias(4),
}  # fmt: skip


@pytest.mark.parametrize("name", DRAWS)
def test_draws(name: str) -> None:
    key = random.key(0, META)
    with OnlyOn():
        DRAWS[name](key)
        vmap(DRAWS[name])(random.split(key, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", INITIALIZERS)
def test_initialisers(name: str, dtype: torch.dtype) -> None:
    with OnlyOn():
        assert INITIALIZERS[name](random.key(0, META), (4, 3), dtype).dtype == dtype


METRICS: dict[str, Callable[[], Any]] = {
    "accuracy": lambda: metrics.accuracy(LOGITS, TARGETS),
    "top_k_accuracy": lambda: metrics.top_k_accuracy(LOGITS, TARGETS, 2),
    "confusion_matrix": lambda: metrics.confusion_matrix(LOGITS, TARGETS),
    "scores": lambda: metrics.scores(metrics.confusion_matrix(LOGITS, TARGETS)),
    "precision": lambda: metrics.precision(LOGITS, TARGETS, "micro"),
    "recall": lambda: metrics.recall(LOGITS, TARGETS, "weighted"),
    "f1": lambda: metrics.f1(LOGITS, TARGETS, "none"),
    "roc_auc": lambda: metrics.roc_auc(LOGITS[:, 0], TARGETS),
}


@pytest.mark.parametrize("name", METRICS)
def test_metrics(name: str) -> None:
    with OnlyOn():
        METRICS[name]()


def public(module: Any) -> set[str]:
    return {
        value.__name__
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
    }


def test_everything_public_is_run() -> None:
    families = {name.split(",")[0] for name in (*LAYERS, *cases_spatial.LAYERS, *cases.ACTIVATIONS)}
    known = {f"models.{name}" for name in models.__all__}
    assert set(layers.__all__) - cases.NOT_LAYERS | known == families | cases_models.LARGE
    assert set(losses.__all__) == {name.split(",")[0] for name in cases.LOSSES}
    assert public(metrics) == {*METRICS}
    assert {*random.__all__, "inside"} == {*DRAWS, "key"}
    assert public(init) == {*INITIALIZERS, "gain", "fans"}


def test_the_mode_sees_what_it_is_for() -> None:
    with OnlyOn():
        for mistake in (lambda: LOGITS + torch.tensor(2.0), lambda: torch.zeros(3)):
            with pytest.raises(AssertionError, match="made a tensor on cpu"):
                mistake()
