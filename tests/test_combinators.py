"""Layers made of layers: keys, state, intermediate outputs, memory, precision. The contract tables show the numbers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.func import grad, jacrev, jvp, vmap
from torch.multiprocessing.reductions import StorageWeakRef

import fnn
from fnn import layers, tree
from fnn._torch import TorchDispatchMode

KEY = fnn.random.key(0)
DROP = layers.dropout(0.5)


def block() -> fnn.StatefulLayer:
    """A layer with params, state and randomness that keeps the shape (..., 4)."""
    return layers.sequential(layers.linear(4, 4), layers.batch_norm(4), layers.dropout(0.5), layers.tanh)


def joined(outputs: Any) -> Tensor:
    return torch.cat(list(outputs), -1)


COMBINED: dict[str, Callable[[], fnn.StatefulLayer]] = {
    "sequential": lambda: layers.sequential(block(), block()),
    "residual": lambda: layers.residual(block()),
    "residual, shortcut": lambda: layers.residual(block(), block()),
    "parallel": lambda: layers.parallel(block(), block()),
    "branch": lambda: layers.sequential(layers.branch(block(), block()), joined),
    "connect": lambda: layers.connect(lambda parts, x: parts.a(parts.b(parts.a(x))), a=block(), b=block()),
    "map_over_time": lambda: layers.map_over_time(block()),
    "repeat": lambda: layers.repeat(block(), 2),
    "repeat, remat": lambda: layers.repeat(block(), 2, remat=True),
    "remat": lambda: layers.remat(block()),
    "mixed_precision": lambda: layers.mixed_precision(block()),
    "nested": lambda: layers.repeat(layers.remat(layers.residual(layers.mixed_precision(block()))), 3, remat=True),
}


@pytest.mark.parametrize("name", COMBINED)
def test_state_and_keys_pass_through(name: str) -> None:
    model = COMBINED[name]()
    assert isinstance(model, fnn.StatefulLayer)
    params, state = model.init(KEY)
    before = tree.map(torch.clone, (params, state))
    x = fnn.random.normal(KEY, (6, 3, 4) if name == "map_over_time" else (6, 4))
    apply = lambda key, train=True: model.apply(params, state, x, train=train, key=key)
    y, after = apply(KEY)
    assert not torch.equal(y, apply(fnn.random.key(1))[0])  # the key reaches the dropout
    assert torch.equal(y, apply(KEY)[0])
    assert torch.equal(apply(None)[0], apply(None)[0])
    assert tree.structure(after) == tree.structure(state)
    for path, leaf in tree.items(after):  # train reaches the batch normalisation, and each part has its own state
        assert not torch.equal(leaf, tree.get(state, path)), path
    assert tree.max_difference(apply(None, train=False)[1], state) == 0
    assert tree.max_difference((params, state), before) == 0
    compiled = fnn.jit(lambda p, s, x, key: model.apply(p, s, x, train=True, key=key))(params, state, x, KEY)
    assert tree.allclose(compiled, (y, after), rtol=1e-5, atol=1e-6)
    with pytest.raises(TypeError, match=r"has state: write params, state = model\.init"):
        model.apply(params, x)


@pytest.mark.parametrize("make", [layers.parallel, layers.branch, lambda *parts: layers.connect(_both, a=parts[0])])
def test_each_call_of_a_part_draws_for_itself(make: Callable) -> None:
    model = layers.sequential(make(DROP, layers.sequential(DROP)), lambda y: y if isinstance(y, tuple) else (y,))
    outputs = model.apply({}, torch.ones(1000), key=KEY)
    if len(outputs) == 2:
        assert not torch.equal(*outputs)
    else:  # sums of two draws of 0 or 2 are 2 only if the draws differ
        assert 400 < int((outputs[0] == 2).sum()) < 600


def _both(parts: Any, x: Tensor) -> Tensor:
    return parts.a(x) + parts.a(x)


IN_A_ROW: dict[str, Callable[[fnn.Layer], fnn.Layer]] = {
    "repeat": lambda layer: layers.repeat(layer, 2),
    "sequential": lambda layer: layers.sequential(layer, layer),
    "sequential, named": lambda layer: layers.sequential(a=layer, b=layer),
    "sequential, nested": lambda layer: layers.sequential(layers.sequential(layer), layers.remat(layer)),
}


@pytest.mark.parametrize("name", IN_A_ROW)
def test_layers_in_a_row_draw_for_themselves_and_start_differently(name: str) -> None:
    y = IN_A_ROW[name](DROP).apply({}, torch.ones(1000), key=KEY)
    assert sorted(y.unique().tolist()) == [0.0, 4.0]
    assert 180 < int((y == 4).sum()) < 320  # 1/4 of them, and 1/2 if both draws were the same
    leaves = tree.leaves(IN_A_ROW[name](layers.linear(3, 3, bias=False)).init(KEY))
    assert not torch.equal(*(leaves if len(leaves) == 2 else leaves[0]))


@pytest.mark.parametrize("make", [layers.sequential, layers.parallel, layers.branch, layers.residual])
def test_equal_parts_start_differently(make: Callable) -> None:
    params = make(layers.linear(3, 3), layers.linear(3, 3)).init(KEY)
    for first, second in zip(*map(tree.leaves, params.values()), strict=True):
        assert not torch.equal(first, second)


def test_a_repeat_is_traced_once() -> None:
    x = torch.ones(2, 4)
    counts = set()
    for n in (3, 30):
        model = layers.repeat(layers.residual(fnn.models.mlp(4, 8, 4)), n)
        params = model.init(KEY)
        counts.add(len(fnn.trace(grad(lambda p, model=model: model.apply(p, x).sum()))(params).nodes))
    assert len(counts) == 1


def network() -> fnn.StatefulLayer:
    tower = layers.repeat(layers.residual(fnn.models.mlp(4, 8, 4)), 3)
    return layers.sequential(
        first=layers.linear(4, 4), norm=layers.batch_norm(4), tower=layers.remat(tower), last=layers.remat(layers.tanh)
    )


PATHS = ["first", "norm", "tower.1", "tower", "last"]


def test_intermediate_outputs_of_every_part() -> None:
    model = network()
    params, state = model.init(KEY)
    x = fnn.random.normal(KEY, (6, 4))
    (y, outputs), after = layers.capture(model, PATHS).apply(params, state, x, train=True)
    assert tree.max_difference((y, after), model.apply(params, state, x, train=True)) == 0
    first = layers.linear(4, 4).apply(params["first"], x)
    normed, _ = layers.batch_norm(4).apply(params["norm"], state["norm"], first, train=True)
    hidden, inside = normed, []
    for each in tree.unstack(params["tower"]):
        inside.append(layers.linear(4, 8).apply(each["0"], hidden).relu())
        hidden = hidden + fnn.models.mlp(4, 8, 4).apply(each, hidden)
    expected = {"first": first, "norm": normed, "tower": hidden, "tower.1": torch.stack(inside), "last": hidden.tanh()}
    assert tree.allclose(outputs, expected, rtol=1e-5, atol=1e-6)
    assert list(outputs) == PATHS
    storages = [leaf.untyped_storage().data_ptr() for leaf in (y, *outputs.values())]
    assert len(set(storages)) == len(storages)


def test_intermediate_outputs_under_transforms() -> None:
    model = network()
    params, state = tree.cast(model.init(KEY), torch.float64)
    x = fnn.random.normal(KEY, (6, 4), torch.float64)
    captured = layers.frozen(layers.capture(model, ["norm", "tower.1"]), state)

    def feature(params: Any, x: Tensor) -> Tensor:
        y, outputs = captured.apply(params, x)
        return outputs["tower.1"].sum() + (outputs["norm"] ** 2).sum() + 0 * y.sum()

    slope = grad(feature)(params, x)
    step = 1e-6
    for path in ("first.weight", "tower.0.bias"):
        tangent = tree.zeros_like(params)
        tangent = tree.replace(tangent, path, fnn.random.normal(KEY, tree.get(params, path).shape, torch.float64))
        moved = [feature(tree.add(params, tree.scale(sign * step, tangent)), x) for sign in (1, -1)]
        torch.testing.assert_close(tree.dot(slope, tangent), (moved[0] - moved[1]) / (2 * step), rtol=1e-6, atol=1e-6)
    each = vmap(grad(feature), (None, 0))(params, x[:, None])
    assert tree.allclose(tree.map(lambda leaf: leaf.sum(0), each), slope, rtol=1e-9, atol=1e-9)
    assert tree.allclose(fnn.jit(grad(feature))(params, x), slope, rtol=1e-9, atol=1e-9)
    assert tree.allclose(fnn.jit(vmap(grad(feature), (None, 0)))(params, x[:, None]), each, rtol=1e-9, atol=1e-9)


def test_two_captures_do_not_disturb_one_another() -> None:
    model = fnn.models.mlp(4, 8, 2)
    params, x = model.init(KEY), torch.ones(3, 4)
    inner = layers.capture(model, ["0"])
    (y, one), two = layers.capture(inner, ["1"]).apply(params, x)
    assert torch.equal(two["1"], one["0"].relu())
    with pytest.raises(fnn.layers.ShapeError):
        layers.capture(model, ["0"]).apply(params, torch.ones(3, 5))
    assert torch.equal(model.apply(params, x), y)  # nothing listens any more after an error


def test_an_unknown_path_is_a_sentence() -> None:
    model = network()
    params, state = model.init(KEY)
    with pytest.raises(ValueError, match=r"no part 'tower.9'; the nearest are 'tower.\d'"):
        layers.capture(model, ["tower.9"]).apply(params, state, torch.ones(2, 4))
    own = fnn.Layer(lambda key: {}, lambda params, x, *, key=None: x)
    with pytest.raises(ValueError, match="it has no parts that can be seen"):
        layers.capture(own, ["a"]).apply({}, torch.ones(2))
    with pytest.raises(TypeError, match=r"expects a list of paths, got 'first'; write capture\(model, \['first'\]\)"):
        layers.capture(model, "first")
    with pytest.raises(TypeError, match="capture expects a layer"):
        layers.capture(model.apply, ["first"])


def test_a_frozen_layer_has_gradients_of_samples_and_jacobians() -> None:
    model = layers.sequential(layers.linear(4, 3), layers.batch_norm(3), layers.linear(3, 2))
    params, state = tree.cast(model.init(KEY), torch.float64)
    x = fnn.random.normal(KEY, (5, 4), torch.float64)
    _, state = model.apply(params, state, x, train=True)
    plain = layers.frozen(model, state)
    assert isinstance(plain, fnn.Layer)
    loss = lambda params, x: plain.apply(params, x).square().mean()
    each = fnn.per_sample_grad(loss)(params, x)
    for i, one in enumerate(tree.unstack(each)):
        alone = grad(lambda p, i=i: model.apply(p, state, x[i : i + 1])[0].square().mean())(params)
        assert tree.allclose(one, alone, rtol=1e-10, atol=1e-12)
    jacobian = jacrev(plain.apply)(params, x)
    assert tree.max_difference(jacobian, jacrev(lambda p: model.apply(p, state, x)[0])(params)) == 0
    assert tree.structure(plain.init(KEY)) == tree.structure(params)
    with pytest.raises(TypeError, match="a layer without state, which needs no freezing"):
        layers.frozen(layers.linear(2, 2), {})
    with pytest.raises(TypeError, match="expects its state as a dict"):
        layers.frozen(model, (params, state))


class LiveBytes(TorchDispatchMode):
    """The largest number of bytes in use at once, of tensors that operations inside this context made."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree.leaves(out):
            if isinstance(leaf, Tensor) and not isinstance(leaf, FakeTensor):
                storage = leaf.untyped_storage()
                self.alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.alive = {key: pair for key, pair in self.alive.items() if not pair[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return out


def by_autograd(loss: Callable, params: Any, x: Tensor) -> Any:
    leaves = [leaf.detach().requires_grad_() for leaf in tree.leaves(params)]
    return torch.autograd.grad(loss(tree.structure(params).unflatten(leaves), x), leaves)


DERIVATIVES: dict[str, Callable] = {
    "autograd": by_autograd,
    "grad": lambda loss, params, x: grad(loss)(params, x),
    "vmap(grad)": lambda loss, params, x: vmap(grad(loss), (None, 0))(params, x.unflatten(0, (2, -1))),
    "jvp(grad)": lambda loss, params, x: jvp(lambda p: grad(loss)(p, x), (params,), (params,)),
}


@pytest.mark.parametrize("make", ["remat", "repeat"])
@pytest.mark.parametrize(
    "derivative",
    ["autograd", "grad", *(pytest.param(name, marks=pytest.mark.slow) for name in ("vmap(grad)", "jvp(grad)"))],
)
def test_recomputation_needs_less_memory(derivative: str, make: str) -> None:
    """8 blocks, of which the inputs and the intermediate values of one are needed at a time."""
    inner = layers.residual(layers.sequential(*[layers.linear(8, 8), layers.tanh] * 3))
    x = fnn.random.normal(KEY, (512, 8))
    peaks, found = [], []
    for again in (False, True):
        if make == "repeat":
            model = layers.repeat(inner, 8, remat=again)
        else:
            model = layers.sequential(*[layers.remat(inner) if again else inner] * 8)
        params = model.init(KEY)
        with LiveBytes() as live:
            loss = lambda params, x, model=model: model.apply(params, x).sum()
            found.append(DERIVATIVES[derivative](loss, params, x))
        peaks.append(live.peak)
    assert tree.allclose(*found, rtol=1e-4, atol=1e-4)
    assert peaks[1] < 0.5 * peaks[0], peaks


def test_recomputation_runs_the_function_again_and_closes_over_tensors() -> None:
    count, scale = [], torch.tensor(3.0)

    def f(x: Tensor, power: int, none: None) -> dict:
        count.append(1)
        return {"y": (scale * x).sin() ** power, "none": none, "power": power}

    wrapped = layers.remat(f)
    assert wrapped(torch.ones(2), 2, None)["power"] == 2
    assert wrapped(torch.ones(2), 2, None)["none"] is None
    count.clear()
    slope = fnn.grad(lambda x: wrapped(x, 2, None)["y"].sum())(torch.ones(2))
    assert len(count) == 2
    torch.testing.assert_close(slope, 2 * 3 * (3 * torch.ones(2)).sin() * (3 * torch.ones(2)).cos())
    # what is closed over is differentiated, too
    for transform in (fnn.grad, grad, lambda f: fnn.jit(grad(f))):
        of_closed = transform(lambda w: layers.remat(lambda x: (w * x).tanh())(torch.ones(2)).sum())(torch.tensor(0.5))
        torch.testing.assert_close(of_closed, 2 * (1 - torch.tensor(0.5).tanh() ** 2))
    with pytest.raises(TypeError, match="remat expects a layer or a function, got a int"):
        layers.remat(3)


def test_mixed_precision_computes_in_16_bits_and_trains_in_32() -> None:
    seen: list = []
    look = lambda x: (seen.append(x.dtype), x)[1]
    inner = layers.sequential(layers.linear(4, 16), look, layers.batch_norm(16), layers.relu, layers.linear(16, 2))
    model = layers.mixed_precision(inner)
    params, state = model.init(KEY)
    x = fnn.random.normal(KEY, (8, 4))

    def loss(params: Any) -> tuple[Tensor, Any]:
        y, after = model.apply(params, state, x, train=True)
        assert y.dtype == torch.float32
        return y.square().sum(), after

    grads, after = fnn.grad(loss, has_aux=True)(params)
    assert set(seen) == {torch.bfloat16}
    assert tree.spec(grads) == tree.spec(params)
    assert tree.spec(after) == tree.spec(state)
    exact = fnn.grad(lambda p: inner.apply(p, state, x, train=True)[0].square().sum())(params)
    assert 0 < float(tree.max_difference(grads, exact)) < 0.05 * float(tree.global_norm(exact))
    half = layers.mixed_precision(
        layers.linear(2, 2), params=torch.float16, compute=torch.float32, output=torch.float64
    )
    assert half.init(KEY)["weight"].dtype == torch.float16
    assert half.apply(half.init(KEY), torch.ones(1, 2)).dtype == torch.float64
    words = layers.mixed_precision(layers.embedding(5, 3))
    assert words.apply(words.init(KEY), torch.tensor([1, 4])).shape == (2, 3)
    with pytest.raises(TypeError, match=r"expects compute as a floating dtype, got torch\.int8"):
        layers.mixed_precision(layers.linear(2, 2), compute=torch.int8)


SENTENCES = {
    "parallel": (lambda: layers.parallel(layers.linear(2, 3), layers.linear(2, 4)), (5, 2), r"\(5, 3\), '1' \(5, 4\)"),
    "concatenate": (
        lambda: layers.parallel(layers.relu, lambda x: x[:3], combine="concatenate"), (5, 2), r"'1' \(3, 2\)",
    ),
    "axis": (lambda: layers.parallel(layers.relu, combine="concatenate"), (5,), "do not fit"),
    "repeat": (lambda: layers.repeat(layers.linear(2, 3), 2), (5, 2), r"turns \(5, 2\) torch.float32 into \(5, 3\)"),
    "shortcut": (lambda: layers.residual(layers.linear(2, 3), layers.relu), (5, 2), r"shapes \(5, 3\) and \(5, 2\)"),
    **{
        f"{name}, broadcast from {small}": (
            lambda make=make, small=small: make(lambda x: x.sum_to_size(small)), (5, 2), r"\(5, 2\)|'1'"
        )
        for small in ((5, 1), (1, 2), (2,), (1, 1))
        for name, make in {
            "residual": layers.residual, "shortcut": lambda part: layers.residual(layers.relu, part),
            "parallel": lambda part: layers.parallel(layers.relu, part), "repeat": lambda part: layers.repeat(part, 2),
        }.items()
    },
    "time": (lambda: layers.map_over_time(layers.relu), (5,), r"expects inputs of shape \(batch, time, ...\)"),
    "path": (
        lambda: layers.residual(layers.relu, layers.sequential(a=layers.linear(3, 2))), (5, 2),
        r"^params\['shortcut'\]\['a'\]: linear expects",
    ),
    "path in remat": (lambda: layers.sequential(a=layers.remat(layers.linear(3, 2))), (5, 2), r"^params\['a'\]: lin"),
    "path in repeat": (lambda: layers.repeat(layers.sequential(layers.linear(3, 3)), 2), (5, 2), r"^params\['0'\]: l"),
}  # fmt: skip


@pytest.mark.parametrize("name", SENTENCES)
def test_inputs_that_do_not_fit_are_a_sentence(name: str) -> None:
    make, shape, message = SENTENCES[name]
    model = make()
    params, x = model.init(KEY), torch.ones(shape)
    with pytest.raises(fnn.layers.ShapeError, match=message):
        model.apply(params, x)
    if not name.startswith("path"):
        return
    with pytest.raises(fnn.layers.ShapeError, match=message):  # under a transform, too
        grad(lambda p: model.apply(p, x).sum())(params)


def test_arguments_that_do_not_fit_are_a_sentence() -> None:
    with pytest.raises(ValueError, match="combine is 'sum' or 'concatenate', got 'mean'"):
        layers.parallel(layers.relu, combine="mean")
    with pytest.raises(ValueError, match="at least one layer"):
        layers.parallel()
    with pytest.raises(TypeError, match="branch takes numbered parts or named parts, not both"):
        layers.branch(layers.relu, a=layers.relu)
    with pytest.raises(ValueError, match="repeat expects n >= 1, got 0"):
        layers.repeat(layers.relu, 0)
    with pytest.raises(fnn.layers.ShapeError, match=r"leaves of shape \(2, ...\), got \(3,\) at 'bias'"):
        layers.repeat(layers.linear(3, 3), 2).apply(layers.linear(3, 3).init(KEY), torch.ones(1, 3))
    with pytest.raises(AttributeError, match="there is no part 'b'; the parts are a"):
        layers.connect(lambda parts, x: parts.b(x), a=layers.relu).apply({}, torch.ones(1))
