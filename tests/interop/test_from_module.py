"""Modules as pure functions: what they draw, what they write, what they hold, and what is refused."""

import inspect
import math
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fnn
from fnn import _torch
from fnn.interop import from_module
from fnn.interop.function_mode import RULES

KEY = fnn.random.key(3)


class Calling(nn.Module):
    """A module whose forward is a function of (module, x)."""

    def __init__(self, function: Callable[..., Any], **tensors: Tensor) -> None:
        super().__init__()
        self.function = function
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)

    def forward(self, *inputs: Any, **keywords: Any) -> Any:
        return self.function(self, *inputs, **keywords)


# Random numbers

MANY = 20_000
PROBABILITIES = torch.tensor([0.1, 0.6, 0.3])

# What is drawn for an x of shape (MANY, 4); moments are compared with those of torch's own draws.
RANDOM: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "F.dropout": lambda m, x: F.dropout(x, 0.3, m.training),
    "torch.dropout": lambda m, x: torch.dropout(x, 0.3, m.training),
    "F.dropout, in place": lambda m, x: F.dropout(x.clone(), 0.3, m.training, True),
    "nn.Dropout": lambda m, x: nn.Dropout(0.3).train(m.training)(x),
    "F.dropout1d": lambda m, x: F.dropout1d(x[..., None].expand(-1, -1, 3), 0.3, m.training),
    "F.dropout2d": lambda m, x: F.dropout2d(x[..., None, None].expand(-1, -1, 2, 2), 0.3, m.training),
    "F.dropout3d": lambda m, x: F.dropout3d(x[..., None, None, None].expand(-1, -1, 2, 1, 2), 0.3, m.training),
    "F.alpha_dropout": lambda m, x: F.alpha_dropout(x, 0.3, m.training),
    "F.feature_alpha_dropout": lambda m, x: F.feature_alpha_dropout(x[..., None].expand(-1, -1, 2), 0.3, m.training),
    "F.rrelu": lambda m, x: F.rrelu(-x, training=m.training),
    "F.gumbel_softmax": lambda m, x: F.gumbel_softmax(x * torch.arange(4.0), tau=0.7, hard=True),
    "F.fractional_max_pool2d": lambda m, x: F.fractional_max_pool2d(
        (x.reshape(-1, 4, 1) * torch.arange(1.0, 41).reshape(1, 4, 10)).reshape(-1, 1, 4, 10)[:4000], (2, 3), (2, 4)
    ),
    "torch.rand": lambda m, x: torch.rand(len(x), 4) + torch.rand((len(x), 4)) + torch.rand(size=x.shape),
    "torch.randn": lambda m, x: torch.randn(x.shape, dtype=torch.float64),
    "torch.rand_like": lambda m, x: torch.rand_like(x),
    "torch.randn_like": lambda m, x: torch.randn_like(x, dtype=torch.float64),
    "F.dropout, what was changed": lambda m, x: (lambda y: (F.dropout(y, 0.4, m.training, True), y)[1])(x.clone()),
    "F.dropout_, by its name": lambda m, x: (lambda y: (torch.dropout_(y, 0.4, m.training), y)[1])(x.clone()),
    "torch.randint": lambda m, x: torch.randint(5, x.shape) + torch.randint(-3, 2, x.shape),
    "torch.randint, by name": lambda m, x: torch.randint(1, high=3, size=x.shape, dtype=torch.float32),
    "torch.randint_like": lambda m, x: torch.randint_like(x, 2, 7) + torch.randint_like(x, 3),
    "torch.randperm": lambda m, x: x.flatten()[: len(x)] * torch.randperm(len(x)),
    "torch.bernoulli": lambda m, x: torch.bernoulli(x * 0.3) + torch.bernoulli(x, 0.2),
    "torch.normal": lambda m, x: torch.normal(x, 2 * x) + torch.normal(1.0, 2.0, x.shape) + torch.normal(x, 3.0),
    "torch.multinomial": lambda m, x: torch.multinomial(PROBABILITIES.expand(len(x), 3), 2),
    "torch.multinomial, replaced": lambda m, x: torch.multinomial(PROBABILITIES.expand(len(x), 3), 4, True),
    "bernoulli_": lambda m, x: x.new_empty(x.shape).bernoulli_(0.8),
    "bernoulli_, of probabilities": lambda m, x: torch.empty_like(x).bernoulli_(0.3 * x),
    "uniform_": lambda m, x: torch.empty_like(x).uniform_(-1, 2) + torch.empty_like(x).uniform_(to=3.0),
    "normal_": lambda m, x: torch.empty_like(x).normal_(std=0.3),
    "random_": lambda m, x: torch.empty_like(x).random_(3) + torch.empty_like(x).random_(-2, 2),
    "exponential_": lambda m, x: torch.empty_like(x).exponential_(2.0),
    "nn.init.trunc_normal_": lambda m, x: nn.init.trunc_normal_(torch.empty_like(x), std=0.5),
    "nn.init.normal_": lambda m, x: nn.init.normal_(torch.empty_like(x), 1.0, 0.5),
    "attention": lambda m, x: F.scaled_dot_product_attention(
        *[x[: MANY // 4].reshape(-1, 5, 4)] * 3, dropout_p=0.3
    ),
    "Categorical": lambda m, x: torch.distributions.Categorical(PROBABILITIES, validate_args=False).sample(x.shape),
    "Normal": lambda m, x: torch.distributions.Normal(x, 0.5, validate_args=False).rsample(),
}  # fmt: skip
every_draw = pytest.mark.parametrize("name", RANDOM)


def moments(values: Tensor) -> Tensor:
    """The means of the values, of their squares and cubes, and of products of neighbours in the last axes."""
    values = values.double().reshape(len(values), -1)
    return torch.cat([(values**power).mean(0) for power in (1, 2, 3)] + [(values * values.roll(1, 1)).mean(0)])


@every_draw
def test_draws_have_torch_s_distribution_and_come_from_the_key(name: str) -> None:
    x = torch.ones(MANY, 4)
    module = Calling(RANDOM[name]).train()
    torch.manual_seed(0)
    theirs = module(x)
    layer, params, _ = from_module(module)
    generator = torch.get_rng_state()
    ours = layer.apply(params, x, key=KEY)
    assert torch.equal(generator, torch.get_rng_state())
    assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
    spread = moments(theirs).abs() + theirs.double().abs().max().clamp(min=1.0) ** 1.5
    assert ((moments(ours) - moments(theirs)).abs() / spread).max() < 0.03
    assert torch.equal(ours, layer.apply(params, x, key=KEY))
    assert not torch.equal(ours, layer.apply(params, x, key=fnn.random.key(4)))


UNDER_TRANSFORMS = (
    "F.dropout", "F.dropout, in place", "F.dropout2d", "F.rrelu", "F.gumbel_softmax", "F.fractional_max_pool2d",
    "torch.rand", "torch.randint", "torch.randperm", "torch.multinomial", "bernoulli_", "nn.init.normal_",
    "Categorical",
)  # fmt: skip


@pytest.mark.parametrize("name", UNDER_TRANSFORMS)
def test_draws_under_vmap_and_jit_are_those_of_single_calls(name: str) -> None:
    x = torch.ones(20, 4)
    layer, params, _ = from_module(Calling(RANDOM[name]).train())
    keys = fnn.random.split(KEY)
    draw = lambda key, x=x: layer.apply(params, x, key=key)
    loop = torch.stack([draw(key) for key in keys])
    torch.testing.assert_close(fnn.vmap(draw)(keys), loop)
    assert torch.equal(fnn.jit(draw)(keys[0], x), loop[0])
    if name == "bernoulli_":  # into a tensor like one that the function closes over, which is not traced
        assert torch.equal(fnn.jit(lambda key: draw(key))(keys[0]), loop[0])


@every_draw
def test_without_a_key_nothing_is_drawn(name: str) -> None:
    x = torch.ones(20, 4)
    layer, params, _ = from_module(Calling(RANDOM[name]).train())
    generator = torch.get_rng_state()
    if "ropout" in name or name == "F.rrelu":
        out = layer.apply(params, x)
        assert torch.equal(out, Calling(RANDOM[name]).eval()(x))
    elif name != "attention":
        with pytest.raises(TypeError, match=r"Calling draws random numbers at .*; give apply a key"):
            layer.apply(params, x)
    assert torch.equal(generator, torch.get_rng_state())


def test_every_function_of_torch_that_draws_has_a_rule() -> None:
    """The operations that torch itself marks as drawing, under all names that a module can call."""
    every = torch._C._dispatch_get_all_op_names()
    names = {name.removeprefix("aten::").split(".")[0] for name in every if name.startswith("aten::")}
    drawing = [name for name in names if _torch.is_random(getattr(torch.ops.aten, name))]
    assert len(drawing) > 40
    internal = [name for name in drawing if name[0] == "_"]  # parts of others, which modules do not call
    for name in set(drawing) - set(internal):
        for place in (torch, torch.Tensor, F):
            function = getattr(place, name, None)
            assert not callable(function) or function in RULES, f"{place.__name__}.{name}"


def test_every_function_in_python_that_draws_has_a_rule() -> None:
    """Functions that a mode does not see into: those of which the source calls one that draws."""
    marks = (
        "torch.rand",
        "_VF.dropout",
        "dropout(",
        "bernoulli",
        "exponential_",
        "uniform_(",
        "normal_(",
        "rrelu",
        "torch.normal",
    )
    found = []
    for function in torch.overrides.get_testing_overrides():
        if inspect.isfunction(function) and function.__module__.startswith("torch") and function not in RULES:
            try:
                source = inspect.getsource(function)
            except (OSError, TypeError):
                continue
            body = source.split('"""')[-1] if '"""' in source else source
            if any(mark in body for mark in marks):
                found.append(function)
    harmless = {"fractional_max_pool2d", "fractional_max_pool3d"}  # the same functions with return_indices
    assert not {function.__name__ for function in found} - harmless


@pytest.mark.parametrize(
    "draw",
    [
        lambda m, x: torch.poisson(x),
        lambda m, x: x.clone().cauchy_(),
        lambda m, x: torch.rand(3, generator=torch.Generator()),
        lambda m, x: torch.empty(3).normal_(generator=torch.Generator()),
        lambda m, x: torch.ops.aten.rand([3]),
    ],
)
def test_draws_that_cannot_be_made_from_a_key_are_refused(draw: Callable) -> None:
    layer, params, _ = from_module(Calling(draw))
    with pytest.raises(TypeError, match="draws from a generator of torch and not from a key"):
        layer.apply(params, torch.ones(4, 4), key=KEY)


def test_packed_sequences_are_refused_where_the_loop_is_written_out() -> None:
    lstm = nn.LSTM(2, 3, 2, dropout=0.5)
    layer, params, _ = from_module(
        Calling(lambda m, x: m.part(nn.utils.rnn.pack_sequence([x[:3], x[:2]]))[0].data).add_part(lstm)
    )
    assert layer.apply(params, torch.ones(4, 2)).shape == (5, 3)
    with pytest.raises(TypeError, match="pad the sequences"):
        layer.apply(params, torch.ones(4, 2), key=KEY)


def add_part(self: Calling, part: nn.Module) -> Calling:
    self.part = part
    return self


Calling.add_part = add_part  # type: ignore[attr-defined]


# Writes


def assigned(m: nn.Module, x: Tensor) -> Tensor:
    m.total = m.total + x.sum(0)
    return x * m.total


def by_item(m: nn.Module, x: Tensor) -> Tensor:
    m.total[0] = x.sum()
    return x * m.total


def by_out(m: nn.Module, x: Tensor) -> Tensor:
    torch.add(m.total, x.sum(0), out=m.total)
    return x * m.total


def by_view(m: nn.Module, x: Tensor) -> Tensor:
    m.total[:2].mul_(2).add_(x.sum())
    return x * m.total


def by_data(m: nn.Module, x: Tensor) -> Tensor:
    m.total.data.copy_(x.mean(0))
    return x * m.total


def twice(m: nn.Module, x: Tensor) -> Tensor:
    m.total += x.sum(0)
    y = x * m.total
    m.total.mul_(0.5).sub_(1)
    return y + m.total


WRITES = {
    "assigned": assigned, "item": by_item, "out": by_out, "view": by_view, "data": by_data, "twice": twice,
    "copied": lambda m, x: m.total.copy_(x.mean(0)) * x, "filled": lambda m, x: m.total.fill_(2) * x,
    "zeroed": lambda m, x: m.total.zero_() + x, "lerped": lambda m, x: m.total.lerp_(x.mean(0), 0.3) * x,
    "foreach": lambda m, x: (torch._foreach_add_([m.total], [x.sum(0)]), x * m.total)[1],
}  # fmt: skip


@pytest.mark.parametrize("name", WRITES)
def test_what_a_module_writes_into_its_buffers_is_the_new_state(name: str) -> None:
    x, before = torch.arange(6.0).reshape(2, 3), torch.tensor([1.0, -2.0, 3.0])
    module = Calling(WRITES[name], total=before.clone())
    layer, params, state = from_module(module)
    given = fnn.tree.map(torch.clone, state)
    for call in (layer.apply, fnn.jit(lambda *args: layer.apply(*args, train=True)), layer.apply):
        out, new = call(params, state, x, **({"train": True} if call is layer.apply else {}))
        same = layer.apply(params, state, x)[1]
        assert fnn.tree.max_difference(state, given) == 0
        assert same is state
    wanted = module(x)
    assert torch.equal(out, wanted)
    assert torch.equal(new["total"], module.total)
    assert torch.equal(from_module(Calling(WRITES[name], total=before)).state["total"], before)


@pytest.mark.parametrize("name", sorted(set(WRITES) - {"item", "out", "view", "data", "foreach"}))
def test_writes_under_vmap_are_those_of_a_loop(name: str) -> None:
    x = torch.arange(12.0).reshape(2, 2, 3)
    layer, params, state = from_module(Calling(WRITES[name], total=torch.tensor([1.0, -2.0, 3.0])))
    found = fnn.vmap(lambda x: layer.apply(params, state, x, train=True))(x)
    loop = [layer.apply(params, state, each, train=True) for each in x]
    assert fnn.tree.max_difference(found, fnn.tree.stack(loop)) == 0


@pytest.mark.parametrize(
    "change",
    [
        lambda m, x: x.relu_(),
        lambda m, x: F.relu(x, inplace=True),
        lambda m, x: nn.Sequential(nn.Flatten(), nn.ReLU(inplace=True))(x),
        lambda m, x: torch.exp(x, out=x),
        lambda m, x: x.view(-1)[:2].zero_() + x.sum(),
        lambda m, x: F.dropout(x, 0.5, True, True),
        lambda m, x: x.uniform_(),
    ],
)  # fmt: skip
def test_inputs_are_never_changed(change: Callable) -> None:
    x = torch.tensor([[-1.0, 2.0, -3.0]])
    layer, params, _ = from_module(Calling(change).train())
    for call in (layer.apply, fnn.jit(lambda *args, **keywords: layer.apply(*args, **keywords))):
        given = x.clone()
        found = call(params, given, key=KEY)
        assert torch.equal(given, x)
        assert found.shape == Calling(change)(x.clone()).shape


def test_parameters_that_are_changed_in_place_are_refused() -> None:
    module = nn.Embedding(5, 2, max_norm=0.1)
    layer, params, _ = from_module(Calling(lambda m, x: m.part.weight.mul_(2)[x]).add_part(nn.Embedding(5, 2)))
    with pytest.raises(TypeError, match=r"changes one of its parameters in place, by torch\.Tensor\.mul_"):
        layer.apply(params, torch.tensor([1]))
    layer, params, _ = from_module(module)
    given = fnn.tree.map(torch.clone, params)
    with pytest.raises(TypeError, match="changes one of its parameters in place"):
        layer.apply(params, torch.tensor([1]))
    assert fnn.tree.max_difference(given, params) == 0


# Batch norm


@pytest.mark.parametrize("momentum", [0.1, None])
def test_running_statistics_in_training_and_evaluation(momentum: float | None) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 3, 3),
        nn.BatchNorm2d(3, momentum=momentum),
        nn.Dropout(0.5),
        nn.InstanceNorm2d(3, track_running_stats=True),
    )
    net.double()
    layer, params, state = from_module(net)
    x = torch.randn(4, 2, 6, 6).double()
    evaluated, same = layer.apply(params, state, x)
    assert same is state
    dropped, same = layer.apply(params, state, x, key=KEY)  # with a key alone the running statistics are used
    assert same is state
    assert (dropped - evaluated).abs().max() > 0.1
    assert torch.equal(evaluated, net.eval()(x))
    net[2].p = 0.0
    net.train()
    for _ in range(3):
        out, state = layer.apply(params, state, x, train=True)
        assert torch.equal(out, net(x))
    found = fnn.interop.state_dict(params, state)
    assert found.keys() == net.state_dict().keys()
    assert all(torch.equal(found[name], leaf) for name, leaf in net.state_dict().items())


def test_norms_that_were_frozen_stay_frozen() -> None:
    net = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3), nn.BatchNorm1d(3)).train()
    net[0].eval()
    layer, params, state = from_module(net)
    new = layer.apply(params, state, torch.randn(5, 3), train=True)[1]
    assert fnn.tree.max_difference(new["0"], state["0"]) == 0
    assert int(new["2"]["num_batches_tracked"]) == 1


def test_batch_norm_in_training_has_no_gradient_of_one_sample() -> None:
    layer, params, state = from_module(nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1)))
    loss = lambda params, x: layer.apply(params, state, x, train=True)[0].mean()
    with pytest.raises(ValueError, match="no per-sample gradient"):
        fnn.per_sample_grad(loss)(params, torch.randn(5, 3))


# Names and values


def test_tied_weights_are_one_leaf_and_frozen_parameters_are_state() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
            self.head.weight = self.embed.weight
            self.scale = nn.Parameter(torch.tensor(2.0), requires_grad=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.embed(x)) * self.scale

    module = Tied()
    converted = from_module(module)
    layer, params, state = converted
    assert (fnn.tree.paths(params), fnn.tree.paths(state)) == (("embed.weight",), ("scale",))
    assert converted.tied == {"head.weight": "embed.weight"}
    x = torch.tensor([1, 4])
    grads = fnn.grad(lambda p: layer.apply(p, state, x)[0].square().sum())(params)
    module(x).square().sum().backward()
    torch.testing.assert_close(grads["embed"]["weight"], module.embed.weight.grad)
    changed = fnn.tree.scale(3.0, params)
    torch.testing.assert_close(layer.apply(changed, state, x)[0], 9 * module(x).detach())


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)),
        lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(3, 2)),
        lambda: nn.utils.parametrizations.orthogonal(nn.Linear(3, 3)),
        lambda: nn.Bilinear(3, 3, 2),
    ],
    ids=["weight_norm", "spectral_norm", "orthogonal", "bilinear"],
)
def test_parametrizations_and_several_inputs(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    module = make().double()
    layer, params, state = from_module(module)
    x = torch.randn(4, 3).double()
    inputs = (x, x) if isinstance(module, nn.Bilinear) else (x,)
    call = lambda p, train: layer.apply(p, state, *inputs, train=train)[0] if state else layer.apply(p, *inputs)
    for train in (False, True):
        wanted = module.train(train)(*inputs)
        torch.testing.assert_close(call(params, train), wanted)
        grads = fnn.grad(lambda p, train=train: call(p, train).square().sum())(params)
        module.zero_grad()
        wanted.square().sum().backward()
        for path, leaf in fnn.tree.items(grads):
            torch.testing.assert_close(leaf, module.get_parameter(path).grad)
        module.load_state_dict(fnn.interop.state_dict(params, state))


def test_the_module_is_neither_changed_nor_used_again() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).train()
    before = {name: leaf.clone() for name, leaf in module.state_dict().items()}
    layer, params, state = from_module(module)
    made = layer.init(KEY)
    x = torch.ones(2, 3)
    first = layer.apply(params, state, x)[0]
    with torch.no_grad():
        for leaf in params["0"].values():
            leaf.add_(1)
        module[0].weight.mul_(5)
    module.eval()
    second = layer.apply(*made, x)[0]
    assert torch.equal(first, second)
    assert torch.equal(layer.init(fnn.random.key(9))[0]["0"]["weight"], before["0.weight"])
    assert torch.equal(module.state_dict()["0.bias"], before["0.bias"])
    assert all(isinstance(leaf, nn.Parameter) for leaf in module.parameters())


def test_outputs_and_inputs_are_trees() -> None:
    layer, params, _ = from_module(
        Calling(lambda m, x, *, scale, flag=True: {"y": [x["a"] * scale, None], "n": 3, "flag": flag})
    )
    out = layer.apply(params, {"a": torch.ones(2)}, scale=torch.tensor(2.0), flag=False)
    assert torch.equal(out["y"][0], torch.full((2,), 2.0))
    assert (out["y"][1], out["n"], out["flag"]) == (None, 3, False)
    layer, params, _ = from_module(Calling(lambda m, x: {"cache": object()}))
    with pytest.raises(TypeError, match=r"Calling returns a object at outputs\['cache'\], .* such as use_cache=False"):
        layer.apply(params, torch.ones(1))


def test_conversions_that_are_refused() -> None:
    linear = nn.Linear(2, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(linear)
    refused = {
        "got the class Linear; call it": nn.Linear,
        "expects a torch.nn.Module, got a function": F.relu,
        "at '0' is scripted and hides its operations": nn.Sequential(scripted),
        r"write from_module\(module.module\)": nn.DataParallel(linear),
        "is compiled by torch.compile": torch.compile(linear),
        "'weight' has no shape yet; call the module once": nn.LazyLinear(3),
    }
    for message, module in refused.items():
        with pytest.raises(TypeError, match=message):
            from_module(module)  # type: ignore[arg-type]


def test_params_that_do_not_fit_are_refused_by_path() -> None:
    layer, params, state = from_module(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)))
    x = torch.ones(4, 3)
    wrong = {
        r"missing \['0.bias'\], not in the module \['0.b'\]": {
            "0": {"weight": params["0"]["weight"], "b": params["0"]["bias"]}, "1": params["1"]
        },
        r"params '0.bias' of shape \(2,\), got \(3,\)": fnn.tree.replace(params, "0.bias", torch.ones(3)),
        r"params '0.weight' as a tensor, got a int": fnn.tree.replace(params, "0.weight", 1),
        "expects its params as a dict, got a Tensor": x,
    }  # fmt: skip
    for message, tree in wrong.items():
        with pytest.raises((ValueError, TypeError), match=message):
            layer.apply(tree, state, x)
    with pytest.raises(TypeError, match="expects its state as a dict, got a Tensor"):
        layer.apply(params, x)
    with pytest.raises(TypeError, match="expected a key"):
        layer.apply(params, state, x, key=7)


def test_threads_do_not_see_each_other_s_params() -> None:
    layer, params, _ = from_module(nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)))
    x, trees = torch.ones(2, 3), [fnn.tree.scale(float(i), params) for i in range(4)]
    wanted = [layer.apply(tree, x) for tree in trees]
    wrong = []

    def work(number: int) -> None:
        for _ in range(50):
            if not torch.equal(layer.apply(trees[number], x), wanted[number]):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert not torch.compiler.is_compiling()


def test_a_converted_module_is_a_part_of_a_model() -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten())
    model = fnn.layers.sequential(backbone=from_module(module).layer, head=fnn.layers.linear(8, 3))
    params, state = model.init(KEY)
    assert torch.equal(params["backbone"]["0"]["weight"], module[0].weight)
    out, new = model.apply(params, state, torch.ones(2, 1, 4, 4), train=True)
    assert out.shape == (2, 3)
    assert int(new["backbone"]["1"]["num_batches_tracked"]) == 1
    with pytest.raises(TypeError, match=r"write .*fnn\.interop\.from_module\(module\)"):
        fnn.layers.sequential(module)


def test_second_derivatives_of_hardsigmoid_which_torch_has_not() -> None:
    layer, params, _ = from_module(Calling(lambda m, x: F.hardsigmoid(x).pow(3).sum()))
    x = torch.tensor([-3.5, -2.0, 0.4, 2.5, 4.0], dtype=torch.float64)
    slope = torch.where(x.abs() < 3, 1 / 6, 0.0)
    expected = torch.diag(6 * (x / 6 + 0.5).clamp(0, 1) * slope**2)
    for second in (fnn.hessian, lambda f: fnn.jacrev(fnn.grad(f))):
        torch.testing.assert_close(second(lambda x: layer.apply(params, x))(x), expected)


@pytest.mark.parametrize("kind", ["layer of fnn", "module"])
@pytest.mark.parametrize("inside", ["scan", "remat"])
@pytest.mark.parametrize("transform", ["jvp(grad)", "grad(jvp)", "grad(grad)", "jvp(jvp)"])
def test_second_derivatives_of_norms_in_graphs_of_their_own(kind: str, inside: str, transform: str) -> None:
    """A graph that is recorded apart from the transforms around it holds the formula that they need."""
    key = fnn.random.key(0)
    params = {"weight": fnn.random.uniform(key, (3,), torch.float64), "bias": torch.ones(3, dtype=torch.float64)}
    xs, matrix = fnn.random.normal(key, (4, 5, 3), torch.float64), fnn.random.normal(key, (3, 3), torch.float64)
    norm = fnn.layers.layer_norm(3, dtype=torch.float64).apply
    if kind == "module":
        norm = fnn.interop.from_module(torch.nn.LayerNorm(3, dtype=torch.float64))[0].apply

    def formula(params: Any, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * params["weight"] + params["bias"]

    def in_graph(params: Any) -> Tensor:
        step = lambda h, x: (norm(params, torch.sin(h @ matrix + x)), None)
        if inside == "scan":
            return fnn.scan(step, xs[0], xs)[0].pow(3).sum()
        return fnn.layers.remat(lambda h: step(h, xs[1])[0])(xs[0]).pow(3).sum()

    def written_out(params: Any) -> Tensor:
        h = xs[0]
        for x in xs if inside == "scan" else xs[1:2]:
            h = formula(params, torch.sin(h @ matrix + x))
        return h.pow(3).sum()

    along = fnn.tree.map(torch.ones_like, params)
    slope = lambda f: lambda params: fnn.jvp(f, (params,), (along,))[1]
    norm_of = lambda f: lambda params: sum(leaf.square().sum() for leaf in f(params).values())
    second = {
        "jvp(grad)": lambda f: slope(fnn.grad(f)),
        "grad(jvp)": lambda f: fnn.grad(slope(f)),
        "grad(grad)": lambda f: fnn.grad(norm_of(fnn.grad(f))),
        "jvp(jvp)": lambda f: slope(slope(f)),
    }[transform]
    torch.testing.assert_close(fnn.jit(second(in_graph))(params), second(written_out)(params))


ATTENTION: dict[str, dict] = {
    "plain": {},
    "allowed pairs": {"attn_mask": torch.tensor([[1, 1, 0], [0, 1, 0], [0, 0, 1]], dtype=torch.bool)},
    "added numbers": {
        "attn_mask": torch.tensor([[0.3, -math.inf, 0.0], [0.0, 1.0, -0.4], [-math.inf, 0.0, 2.0]]).double()
    },
    "causal": {"is_causal": True},
    "scale": {"scale": 0.3, "is_causal": True},
    "groups": {"enable_gqa": True},
    "causal groups": {"enable_gqa": True, "is_causal": True},
}


@pytest.mark.parametrize("name", ATTENTION)
def test_attention_is_torch_s_mapped_and_in_second_derivatives(name: str) -> None:
    def attend(x: Tensor) -> Tensor:
        kv = x[..., :2, :, :] if "groups" in name else x
        return F.scaled_dot_product_attention(x, kv, kv.sin(), **ATTENTION[name])

    x, v = (fnn.random.normal(key, (2, 4, 3, 5), torch.float64) for key in fnn.random.split(KEY))
    layer, params, _ = from_module(Calling(lambda m, x: attend(x)))
    torch.testing.assert_close(fnn.vmap(lambda x: layer.apply(params, x[None])[0])(x), attend(x))

    def gradient(x: Tensor) -> Tensor:
        given = x.clone().requires_grad_()
        return torch.autograd.grad((attend(given) ** 3).sum(), given)[0]

    found = fnn.jvp(fnn.grad(lambda x: (layer.apply(params, x) ** 3).sum()), (x,), (v,))
    torch.testing.assert_close(found[0], gradient(x))
    difference = (gradient(x + 1e-5 * v) - gradient(x - 1e-5 * v)) / 2e-5
    torch.testing.assert_close(found[1], difference, rtol=1e-6, atol=1e-7)
