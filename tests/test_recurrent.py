"""Recurrent layers beyond the contract tables: every option against torch, lengths, dropout, one loop, errors."""

# ruff: noqa: E501 (one case a line)

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad

import fnn
from fnn import layers, losses, random, tree
from tests.contracts.case import numbers

KEY = random.key(0)
NETS: dict[str, tuple[Callable, Callable]] = {
    "rnn": (layers.rnn, nn.RNN), "lstm": (layers.lstm, nn.LSTM), "gru": (layers.gru, nn.GRU)
}  # fmt: skip
CELLS: dict[str, tuple[Callable, Callable]] = {
    "rnn_cell": (layers.rnn_cell, nn.RNNCell),
    "lstm_cell": (layers.lstm_cell, nn.LSTMCell),
    "gru_cell": (layers.gru_cell, nn.GRUCell),
}
LENGTHS = torch.tensor([2, 5, 1, 4])


def flat(output: Tensor, state: Any) -> Tensor:
    states = state if isinstance(state, tuple) else (state,)
    return torch.cat([output.flatten(), *(part.flatten() for part in states)])


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        (name, {"num_layers": count, "bidirectional": both, "bias": count == 1})
        for name, count, both in itertools.product(NETS, (1, 2), (False, True))
    ]
    + [
        ("rnn", {"nonlinearity": "relu", "bidirectional": True}),
        ("lstm", {"proj_size": 2, "num_layers": 2, "bidirectional": True}),
    ],
)
def test_outputs_states_and_gradients_are_torchs(name: str, options: dict, lengths: Tensor | None, given: bool) -> None:
    make, make_net = NETS[name]
    layer, net = make(3, 4, **options), make_net(3, 4, batch_first=True, **options).double()
    params = {leaf: value.detach() for leaf, value in net.named_parameters()}
    assert {leaf: value.shape for leaf, value in layer.init(KEY).items()} == {
        leaf: value.shape for leaf, value in params.items()
    }
    count = options.get("num_layers", 1) * (2 if options.get("bidirectional") else 1)
    sizes = [options.get("proj_size", 4), 4][: 2 if name == "lstm" else 1]
    states = tuple(numbers(i, count, 4, size) for i, size in enumerate(sizes))
    state: Any = None if not given else states if name == "lstm" else states[0]

    x = numbers(5, 4, 5, 3)
    if lengths is None:
        theirs = net(x, state)
    else:
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        output, last = net(packed, state)
        theirs = nn.utils.rnn.pad_packed_sequence(output, batch_first=True, total_length=5)[0], last
        x = torch.where((torch.arange(5) < lengths[:, None])[..., None], x, torch.nan)  # the padding does not matter

    def ours(params: Any) -> Tensor:
        return flat(*layer.apply(params, x, state, lengths=lengths))

    torch.testing.assert_close(ours(params), flat(*theirs).detach())
    weights = numbers(6, len(flat(*theirs)))
    (flat(*theirs) * weights).sum().backward()
    slope = grad(lambda p: (ours(p) * weights).sum())(params)
    for leaf, value in net.named_parameters():
        torch.testing.assert_close(slope[leaf], value.grad)


@pytest.mark.parametrize("name", [*NETS, *CELLS])
def test_first_values_are_uniform_in_torchs_bounds(name: str) -> None:
    make, make_net = (NETS | CELLS)[name]
    params, net = make(20, 25).init(KEY), make_net(20, 25)
    net.load_state_dict(params)  # strict: no name is missing and none is left
    for value in params.values():
        assert 0.18 < float(value.abs().max()) < 0.2
        assert abs(float(value.mean())) < 0.05


@pytest.mark.parametrize("name", NETS)
def test_one_sample_is_a_batch_of_one(name: str) -> None:
    layer = NETS[name][0](3, 4, 2, bidirectional=True)
    params, x = tree.cast(layer.init(KEY), torch.float64), numbers(1, 5, 3)
    states = tuple(numbers(i, 4, 4) for i in range(2))
    state: Any = states if name == "lstm" else states[0]
    batch: Any = tuple(part[:, None] for part in states) if name == "lstm" else states[0][:, None]
    for lengths in (None, torch.tensor(3)):
        alone = layer.apply(params, x, state, lengths=lengths)
        together = layer.apply(params, x[None], batch, lengths=None if lengths is None else lengths[None])
        assert alone[0].shape == (5, 8)
        torch.testing.assert_close(flat(*alone), flat(*together))


def test_dropout_between_layers_by_its_definition() -> None:
    layer, net = layers.gru(3, 4, 3, dropout=0.4), nn.GRU(3, 4, 3, batch_first=True).double()
    params = {leaf: value.detach() for leaf, value in net.named_parameters()}
    x, keys = numbers(1, 2, 5, 3), random.split(KEY, 3)
    y = x
    for i in range(3):
        one = layers.gru(3 if i == 0 else 4, 4)
        if i > 0:
            y = torch.where(random.uniform(keys[i], y.shape) < 0.6, y / 0.6, 0.0)
        y, _ = one.apply(
            {leaf.replace(f"l{i}", "l0"): value for leaf, value in params.items() if leaf.endswith(f"l{i}")}, y
        )
    torch.testing.assert_close(layer.apply(params, x, key=KEY)[0], y)
    torch.testing.assert_close(layer.apply(params, x)[0], net(x)[0].detach())


@pytest.mark.parametrize("name", NETS)
def test_a_sequence_without_steps_keeps_the_state(name: str) -> None:
    layer = NETS[name][0](3, 4, bidirectional=True, return_state=True)
    params, h = layer.init(KEY), torch.ones(2, 2, 4)
    state: Any = (h, 2 * h) if name == "lstm" else h
    for x, lengths in ((torch.ones(2, 0, 3), None), (torch.ones(2, 3, 3), torch.tensor([0, 0]))):
        output, last = layer.apply(params, x, state, lengths=lengths)
        assert output.shape == (2, x.shape[1], 8)
        assert not output.any()
        assert torch.equal(flat(output, last), flat(output, state))


def classifier(kind: Callable) -> fnn.Layer:
    body = kind(3, 4, num_layers=2, dropout=0.2, return_state=False)
    return layers.sequential(body, lambda y: y[:, -1], layers.linear(4, 2))


@pytest.mark.parametrize("name", NETS)
def test_in_sequential_with_per_sample_gradients_and_a_jitted_step(name: str) -> None:
    model = classifier(NETS[name][0])
    params, x = tree.cast(model.init(KEY), torch.float64), numbers(1, 4, 5, 3)
    batch = x, torch.tensor([0, 1, 1, 0])
    loss = lambda p, batch: losses.cross_entropy(model.apply(p, batch[0]), batch[1])
    slope = grad(loss)(params, batch)
    each = fnn.per_sample_grad(loss)(params, batch)
    tree.map(torch.testing.assert_close, tree.map(lambda g: g.mean(0), each), slope)
    norms = torch.stack([tree.global_norm(one) for one in tree.unstack(each)])
    torch.testing.assert_close(fnn.gradients.per_sample_norms(loss)(params, batch), norms)
    tree.map(torch.testing.assert_close, fnn.jit(grad(loss))(params, batch), slope)


def test_the_graph_does_not_grow_with_the_sequence() -> None:
    layer = layers.lstm(3, 4)
    params = layer.init(KEY)
    count = lambda length: len(fnn.trace(layer.apply)(params, torch.ones(2, length, 3)).nodes)
    assert count(40) == count(5)


def test_autocast_keeps_the_dtype_of_the_state() -> None:
    layer = layers.lstm(3, 4)
    params, x = layer.init(KEY), torch.ones(2, 5, 3)
    with torch.autocast("cpu", torch.bfloat16):
        output, (h, c) = layer.apply(params, x)
    assert h.dtype == c.dtype == torch.float32
    torch.testing.assert_close(output.float(), layer.apply(params, x)[0], rtol=0.02, atol=0.02)


LSTM, GRU, X = layers.lstm(3, 4), layers.gru(3, 4), torch.ones(2, 5, 3)


def call(layer: fnn.Layer, *args: Any, **options: Any) -> Callable[[], Any]:
    return lambda: layer.apply(layer.init(KEY), *args, **options)


ERRORS: dict[str, tuple[Callable[[], Any], str]] = {
    "features": (call(LSTM, X[..., :2]), r"lstm expects inputs of shape \(batch, sequence, 3\), got \(2, 5, 2\)"),
    "axes": (call(GRU, X[0, 0]), r"gru expects inputs of shape \(batch, sequence, 3\), got \(3,\)"),
    "state": (call(GRU, X, torch.ones(2, 4)), r"gru expects a state of shape \(1, 2, 4\), got \(2, 4\)"),
    "state of an lstm": (call(LSTM, X, torch.ones(1, 2, 4)), r"lstm expects its state as \(h, c\), got Tensor"),
    "state, dtype": (call(GRU, X, torch.ones(1, 2, 4).double()), "float64"),
    "lengths": (call(GRU, X, lengths=torch.tensor([1])), r"gru expects lengths of shape \(2,\), got \(1,\)"),
    "lengths, list": (call(GRU, X, lengths=[1, 2]), r"lengths as an int64 or int32 tensor, got \[1, 2\]"),
    "params": (lambda: GRU.apply(LSTM.init(KEY), X), r"gru expects a weight_ih_l0 of shape \(12, 3\), got \(16, 3\)"),
    "more layers": (lambda: GRU.apply(layers.gru(3, 4, 2).init(KEY), X), "gru has no 'weight_ih_l1'"),
    "nonlinearity": (lambda: layers.rnn(3, 4, nonlinearity="gelu"), "nonlinearity as 'tanh' or 'relu', got 'gelu'"),  # type: ignore[arg-type]
    "projection": (lambda: layers.lstm(3, 4, proj_size=4), "proj_size < hidden_size=4, got 4"),
    "sizes": (lambda: layers.rnn_cell(3, 0), "rnn_cell expects hidden_size >= 1, got 0"),
    "cell": (call(layers.gru_cell(3, 4), X[0], X[0]), r"gru_cell expects a state of shape \(5, 4\), got \(5, 3\)"),
    "cell, state": (call(layers.lstm_cell(3, 4), X[0], X[0]), r"lstm_cell expects its state as \(h, c\)"),
    "sequential": (call(layers.sequential(LSTM, layers.linear(4, 2)), X), r"params\['1'\]: linear expects a tensor, got a tuple"),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name: str) -> None:
    provoke, message = ERRORS[name]
    with pytest.raises((ValueError, TypeError), match=message):
        provoke()


@pytest.mark.parametrize(
    "options", [{}, {"bias": False}, {"num_layers": 2, "bidirectional": True}, {"proj_size": 2}], ids=str
)
def test_lstm_in_float32_is_one_kernel_where_one_gradient_is_taken(options: dict[str, Any]) -> None:
    layer = layers.lstm(3, 4, **options)
    params, x = layer.init(KEY), fnn.random.normal(KEY, (5, 7, 3))

    def loss(params: Any, x: Tensor) -> Tensor:
        output, (h, c) = layer.apply(params, x)
        return output.square().sum() + h.sum() * c.sum()

    gradient = fnn.grad(loss, argnums=(0, 1))
    expected = gradient(*fnn.tree.cast((params, x), torch.float64))  # in float64 the formula is used
    slope = lambda params, x: fnn.jvp(loss, (params, x), (params, x))[1]
    for f in (gradient, fnn.jit(gradient), of_torch := torch.func.grad(loss, argnums=(0, 1))):
        with torch.profiler.profile() as seen:
            found = f(params, x)
        torch.testing.assert_close(fnn.tree.cast(found, torch.float64), expected, rtol=1e-5, atol=1e-5)
        kernels = {event.key for event in seen.key_averages() if "rnn_layer" in event.key}
        has_kernel = torch.backends.mkldnn.is_available() and "proj_size" not in options and f is not of_torch
        assert bool(kernels) == has_kernel
    long = fnn.random.normal(KEY, (5, 70, 3))  # a compiled graph does not grow with the length
    assert len({len(fnn.trace(gradient)(params, sequence).nodes) for sequence in (x, long)}) == 1
    wide = fnn.tree.cast((params, x), torch.float64)
    torch.testing.assert_close(slope(params, x).double(), slope(*wide), rtol=1e-5, atol=1e-4)
