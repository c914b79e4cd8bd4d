"""Layers as modules: names, modes, export, and the way back."""

import copy
import io
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fnn
from fnn.interop import from_module, state_dict, to_module

KEY = fnn.random.key(2)


def network() -> fnn.StatefulLayer:
    return fnn.layers.sequential(
        conv=fnn.layers.conv2d(1, 2, 3), norm=fnn.layers.batch_norm(2), act=fnn.layers.relu, flat=fnn.layers.flatten,
        drop=fnn.layers.dropout(0.5), head=fnn.layers.linear(8, 3),
    )  # fmt: skip


def x() -> Tensor:
    return torch.randn(4, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def test_names_values_and_gradients() -> None:
    layer = network()
    params, state = layer.init(KEY)
    module = to_module(layer, params, state).eval()
    assert set(module.state_dict()) == {*fnn.tree.paths(params), *fnn.tree.paths(state)}
    assert {name for name, _ in module.named_parameters()} == set(fnn.tree.paths(params))
    out = module(x())
    assert torch.equal(out, layer.apply(params, state, x())[0])
    out.square().sum().backward()
    grads = fnn.grad(lambda p: layer.apply(p, state, x())[0].square().sum())(params)
    for path, leaf in fnn.tree.items(grads):
        torch.testing.assert_close(module.get_parameter(path).grad, leaf)
    with torch.no_grad():
        module.get_parameter("head.bias").add_(1)
    assert torch.equal(layer.apply(params, state, x())[0], out)  # the module has copies


def test_training_mode_writes_the_state_and_draws_as_modules_do() -> None:
    layer = network()
    params, state = layer.init(KEY)
    module = to_module(layer, params, state)
    first = module(x(), key=KEY)
    wanted, after = layer.apply(params, state, x(), train=True, key=KEY)
    assert torch.equal(first, wanted)
    assert all(torch.equal(module.get_buffer(path), leaf) for path, leaf in fnn.tree.items(after))
    torch.manual_seed(0)
    one, two = module(x()), module(x())
    torch.manual_seed(0)
    assert torch.equal(module(x()), one)
    assert not torch.equal(one, two)
    module.eval()
    before = {name: leaf.clone() for name, leaf in module.state_dict().items()}
    assert torch.equal(module(x()), module(x()))
    assert all(torch.equal(leaf, before[name]) for name, leaf in module.state_dict().items())


def test_round_trips() -> None:
    layer = network()
    params, state = layer.init(KEY)
    again = from_module(to_module(layer, params, state))
    assert again.layer is layer
    assert fnn.tree.max_difference((again.params, again.state), (params, state)) == 0
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)).double()
    converted = from_module(net)
    module = to_module(*converted)
    y = torch.randn(5, 4).double()
    assert torch.equal(module.eval()(y), net.eval()(y))
    net.load_state_dict(module.state_dict())
    inside = from_module(nn.Sequential(module.train(), nn.Dropout(0.2)))  # a layer in a module in a layer
    assert set(fnn.tree.paths(inside.params)) == {f"0.{path}" for path in fnn.tree.paths(converted.params)}
    call = lambda key: inside.layer.apply(inside.params, inside.state, y, train=True, key=key)
    generator = torch.get_rng_state()
    assert torch.equal(call(KEY)[0], call(KEY)[0])
    assert not torch.equal(call(KEY)[0], call(fnn.random.key(8))[0])
    assert torch.equal(call(None)[0], call(None)[0])
    assert torch.equal(generator, torch.get_rng_state())
    assert int(call(None)[1]["0"]["1"]["num_batches_tracked"]) == 1


def test_export() -> None:
    layer = network()
    params, state = layer.init(KEY)
    module = to_module(layer, params, state).eval()
    exported = torch.export.export(module, (x(),))
    assert set(exported.state_dict) == set(state_dict(params, state))
    file = io.BytesIO()
    torch.export.save(exported, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    torch.testing.assert_close(loaded(x()), module(x()))
    converted = from_module(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)))
    exported = torch.export.export(to_module(*converted).eval(), (torch.ones(2, 4),))
    torch.testing.assert_close(
        exported.module()(torch.ones(2, 4)), converted.layer.apply(converted.params, torch.ones(2, 4))
    )


def test_onnx() -> None:
    pytest.importorskip("onnxscript")
    reference = pytest.importorskip("onnx.reference")
    model = fnn.models.mlp(4, 3, 2)
    params = model.init(KEY)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program: Any = torch.onnx.export(
            to_module(model, params).eval(), (torch.ones(5, 4),), dynamo=True, verbose=False
        )
    found = reference.ReferenceEvaluator(program.model_proto).run(
        None, {program.model_proto.graph.input[0].name: torch.ones(5, 4).numpy()}
    )
    torch.testing.assert_close(torch.from_numpy(found[0]), model.apply(params, torch.ones(5, 4)))


def test_trees_of_other_containers_and_copies() -> None:
    layer = fnn.Layer(
        lambda key: [torch.ones(2), {"b": torch.ones(1)}],
        lambda p, x, *, key=None: p["list"][0] * x + p["list"][1]["b"],
    )
    module = to_module(layer, {"list": layer.init(KEY)}).double()
    assert list(module.state_dict()) == ["list.0", "list.1.b"]
    assert torch.equal(copy.deepcopy(module)(torch.ones(2).double()), torch.full((2,), 2.0).double())


def test_refused() -> None:
    layer = network()
    params, _ = layer.init(KEY)
    with pytest.raises(TypeError, match=r"the layer has state; write to_module\(layer, params, state\)"):
        to_module(layer, params)
    with pytest.raises(TypeError, match="expects a Layer or a StatefulLayer, got a Linear"):
        to_module(nn.Linear(2, 2), params)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expects params as a dict"):
        to_module(fnn.layers.linear(2, 2), torch.ones(2))
    with pytest.raises(TypeError, match="params 'a' is a int"):
        to_module(fnn.layers.linear(2, 2), {"a": 1})
    with pytest.raises(ValueError, match="cannot hold a tensor named 'training'"):
        to_module(fnn.layers.linear(2, 2), {"training": torch.ones(2)})
