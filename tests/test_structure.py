"""The structure of models: as text, and as data from which they are made again."""

import functools
import json
import math

import pytest
import torch

import fnn
from fnn import layers, models, tree
from fnn._configs import MAKERS
from fnn.layers.base import factory
from fnn.layers.structure import paths
from tests.contracts import cases_models, cases_sequence, cases_spatial, test_meta

KEY, META = fnn.random.key(0), fnn.random.key(0, "meta")
TEXT = """
sequential(...)
  conv: conv2d(1, 4, (3, 3), padding=1, weight_init=kaiming_normal(mode='fan_out'))
  block: residual(...)
    sequential(...)
      block.0: batch_norm(4, momentum=None)
      block.1: leaky_relu(negative_slope=0.2)
      block.2: dropout(p=0.1)
  flat: flatten
  head: mlp(64, 5, 3, activation=gelu)
    head.0: linear(64, 5)
    head.1: gelu
    head.2: linear(5, 3)
""".strip()


def network() -> fnn.StatefulLayer:
    leaky = functools.partial(layers.leaky_relu, negative_slope=0.2)
    return layers.sequential(
        conv=layers.conv2d(1, 4, (3, 3), padding=1, weight_init=fnn.init.kaiming_normal(mode="fan_out")),
        block=layers.residual(layers.sequential(layers.batch_norm(4, momentum=None), leaky, layers.dropout(0.1))),
        flat=layers.flatten,
        head=models.mlp(64, 5, 3, activation=layers.gelu),
    )


OWN = {"join": cases_models.join, "gate": cases_models.gate, "as_tokens": cases_models.as_tokens}


def again(model: fnn.Layer | fnn.StatefulLayer) -> fnn.Layer | fnn.StatefulLayer:
    return layers.from_config(json.loads(json.dumps(layers.config(model, OWN), allow_nan=False)), OWN)


def test_a_model_prints_its_structure() -> None:
    model = network()
    assert str(model) == TEXT
    params, state = model.init(KEY)
    leaves = {path.rpartition(".")[0] for path in (*tree.paths(params), *tree.paths(state))}
    assert leaves <= set(paths(model))  # each params' place is printed


def test_a_model_made_again_computes_the_same() -> None:
    model = network()
    new = again(model)
    assert str(new) == TEXT
    params, state = model.init(KEY)
    assert tree.max_difference(new.init(KEY), (params, state)) == 0
    x = fnn.random.normal(KEY, (3, 1, 4, 4))
    given = {"train": True, "key": KEY}
    assert tree.max_difference(new.apply(params, state, x, **given), model.apply(params, state, x, **given)) == 0


MADE = {name: layer for name, layer in test_meta.LAYERS.items() if hasattr(layer.apply, "config")}
MADE |= cases_spatial.MADE | cases_sequence.MADE | cases_models.MADE


@pytest.mark.parametrize("name", [name for name in MADE if name != "frozen"])
def test_every_layer_is_made_again_from_its_config(name: str) -> None:
    layer = MADE[name]
    new = again(layer)
    assert str(new) == str(layer)
    assert layers.config(new, OWN) == layers.config(layer, OWN)
    assert tree.spec(new.init(META)) == tree.spec(layer.init(META))


def test_every_public_layer_and_model_records_how_it_was_made() -> None:
    public = {f"layers.{name}" for name in layers.__all__} | {f"models.{name}" for name in models.__all__}
    listed = {name for name in MAKERS if not name.startswith("init.")}
    assert listed <= public
    made = {name.split(",")[0] for name in MADE}
    assert {name.removeprefix("layers.") for name in listed} == made


def test_a_pair_stays_a_pair() -> None:
    init, apply = layers.linear(4, 3)
    assert len(fnn.Layer(init, apply)) == 2
    assert fnn.Layer(init, apply) == (init, apply)


def test_arguments_that_are_infinite_or_of_a_dtype() -> None:
    half = functools.partial(layers.softplus, threshold=math.inf)
    model = layers.sequential(layers.linear(2, 3, dtype=torch.float64), half)
    new = again(model)
    assert new.init(KEY)["0"]["weight"].dtype == torch.float64
    assert str(new) == str(model)


@factory
def doubled(size: int, scale: float = 2.0) -> fnn.Layer:
    inner = layers.linear(size, size)
    return fnn.Layer(inner.init, lambda params, x, *, key=None: scale * inner.apply(params, x))


def plain(size: int) -> fnn.Layer:
    return fnn.Layer(lambda key: {}, lambda params, x, *, key=None: x)


def square(x: torch.Tensor) -> torch.Tensor:
    return x * x


def test_parts_of_the_users_own_are_given_by_name() -> None:
    fixed = plain(3)
    own = {"doubled": doubled, "square": square, "fixed": fixed}
    model = layers.sequential(doubled(3, scale=4.0), square, fixed)
    assert str(model) == "sequential(...)\n  0: doubled(3, scale=4.0)\n  1: square\n  2: plain(...)"
    data = json.loads(json.dumps(layers.config(model, own)))
    params, x = model.init(KEY), torch.ones(2, 3)
    assert torch.equal(layers.from_config(data, own).apply(params, x), model.apply(params, x))
    with pytest.raises(ValueError, match=r"needs 'doubled', which is not fnn's; write from_config\(config, own="):
        layers.from_config(data)


REFUSED = {
    "function": (
        square,
        r"model\.1 is a function of your own, square \(.*test_structure.py, line \d+\); write config\(",
    ),
    "lambda": (lambda x: x, r"model\.1 is a function of your own, <lambda>"),
    "maker": (doubled(3), r"model\.1 was made by doubled, which is not a public function of fnn; write config\("),
    "tensors": (
        test_meta.LAYERS["frozen"],
        r"model\.1\.state\['running_mean'\] is a Tensor, which is not plain data",
    ),
    "layer": (plain(3), r"model\.1 is a layer of your own, made by plain without the decorator"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_public_name_is_refused(name: str) -> None:
    part, message = REFUSED[name]
    with pytest.raises(TypeError, match=message):
        layers.config(layers.sequential(layers.relu, part))


FORGED = {
    "unknown": ({"make": "layers.linaer", "arguments": {}}, "has no 'layers.linaer' .* nearest are 'layers.linear'"),
    "module": ({"make": "os.system", "arguments": {}}, "has no 'os.system'"),
    "private": ({"make": "layers._factory", "arguments": {}}, "has no 'layers._factory'"),
    "function": ({"function": "layers.from_config"}, "has no 'layers.from_config'"),
    "argument": ({"make": "layers.linear", "arguments": {"size": 3}}, "layers.linear has no argument 'size'"),
    "form": ({"make": "layers.linear"}, "expects the data that config"),
    "dtype": ({"make": "layers.linear", "arguments": {"in_features": {"dtype": "load"}}}, "expects the data"),
    "not a layer": ([1], "expects the data"),
}


@pytest.mark.parametrize("name", FORGED)
def test_other_data_is_refused(name: str) -> None:
    data, message = FORGED[name]
    with pytest.raises((TypeError, ValueError), match=message):
        layers.from_config(data)


def own_init(key: torch.Tensor) -> dict:
    return {}


def own_apply(params: dict, x: torch.Tensor) -> torch.Tensor:
    return 2 * x


class OwnApply:
    def __call__(self, params: dict, x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    def method(self, params: dict, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


def own_maker() -> fnn.Layer:
    return fnn.Layer(own_init, lambda params, x: 2 * x)


OWN_LAYERS = {
    "own_apply": fnn.Layer(own_init, own_apply),
    "own_maker": own_maker(),
    "OwnApply": fnn.Layer(own_init, OwnApply()),
    "OwnApply.method": fnn.Layer(own_init, OwnApply().method),
    "partial": fnn.Layer(own_init, functools.partial(own_apply)),
    "<lambda>": fnn.Layer(own_init, lambda params, x: 2 * x),
}


@pytest.mark.parametrize("name", OWN_LAYERS)
def test_layers_of_ones_own_are_called_what_their_functions_are_called(name: str) -> None:
    own = OWN_LAYERS[name]
    assert repr(layers.sequential(own)) == f"sequential(...)\n  0: {name}(...)"
    (row,) = fnn.summary(own, own.init(KEY), torch.ones(2, 3)).rows
    assert row.layer == f"{name}(...)"
