"""What the contract tables do not show of activations and dropout: infinities, kinks, 16 bits, draws, empty axes."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import grad, jvp, vmap

import fnn
from fnn import layers, random

KEY = random.key(3)
INF = math.inf
POINTS = [-INF, -1e30, -100.0, -20.5, -3.0, -1.0, -0.5, 0.0, 0.25, 0.5, 1.0, 3.0, 6.0, 20.5, 100.0, 1e30, INF, math.nan]

# name -> (fnn's function, torch's)
PAIRS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    **{
        name: (getattr(layers, name), getattr(F, name))
        for name in (
            "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "softplus", "softsign",
            "tanhshrink", "hardtanh", "hardsigmoid", "hardswish", "hardshrink", "softshrink",
        )
    },
    "elu, alpha": (lambda x: layers.elu(x, 1.5), lambda x: F.elu(x, 1.5)),
    "celu, alpha": (lambda x: layers.celu(x, 1.5), lambda x: F.celu(x, 1.5)),
    "gelu, tanh": (lambda x: layers.gelu(x, "tanh"), lambda x: F.gelu(x, approximate="tanh")),
    "softplus, beta": (lambda x: layers.softplus(x, 2.0, 6.0), lambda x: F.softplus(x, 2.0, 6.0)),
    "hardtanh, bounds": (lambda x: layers.hardtanh(x, -3.0, 0.5), lambda x: F.hardtanh(x, -3.0, 0.5)),
    "hardshrink, lambd": (lambda x: layers.hardshrink(x, 3.0), lambda x: F.hardshrink(x, 3.0)),
    "softshrink, lambd": (lambda x: layers.softshrink(x, 3.0), lambda x: F.softshrink(x, 3.0)),
    "threshold": (lambda x: layers.threshold(x, 0.5, 7.0), lambda x: F.threshold(x, 0.5, 7.0)),
    "sigmoid": (layers.sigmoid, torch.sigmoid),
    "log_sigmoid": (layers.log_sigmoid, F.logsigmoid),
    "tanh": (layers.tanh, torch.tanh),
    "rrelu, no key": (lambda x: layers.rrelu().apply({}, x), lambda x: F.rrelu(x, training=False)),
    "prelu": (
        lambda x: layers.prelu().apply({"weight": x.new_full((1,), 0.2)}, x),
        lambda x: F.prelu(x, x.new_full((1,), 0.2)),
    ),
    "glu": (lambda x: layers.glu(torch.cat([x, x.flip(0)])), lambda x: F.glu(torch.cat([x, x.flip(0)]))),
}  # fmt: skip


def slope(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return grad(lambda x: f(x).sum())


def assert_equal_where_finite(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    """Where torch has no number, ours may have the limit."""
    known = theirs.isfinite()
    torch.testing.assert_close(ours[known], theirs[known], rtol=tolerance, atol=tolerance)
    infinite = theirs.isinf()
    assert torch.equal(ours[infinite], theirs[infinite])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", PAIRS)
def test_values_and_slopes_at_infinities_and_kinks_are_torchs(name: str, dtype: torch.dtype) -> None:
    ours, theirs = PAIRS[name]
    x = torch.tensor(POINTS, dtype=dtype)
    tolerance = 10 * torch.finfo(dtype).eps
    assert_equal_where_finite(ours(x), theirs(x), tolerance)
    if name != "glu":  # every entry meets nan there
        leaf = x.clone().requires_grad_()
        theirs(leaf).nansum().backward()
        assert leaf.grad is not None
        tolerance = 1e-7 if name == "hardsigmoid" else tolerance  # torch's slope is 1 / 6 in float32
        assert_equal_where_finite(slope(ours)(x)[:-1], leaf.grad[:-1], tolerance)
    assert bool(ours(torch.tensor([math.nan, math.nan], dtype=dtype)).isnan().all()), "nan is not hidden"


@pytest.mark.parametrize("name", PAIRS)
def test_second_derivatives_of_all_modes_agree_and_are_finite(name: str) -> None:
    f, _ = PAIRS[name]
    x = torch.tensor([point for point in POINTS if abs(point) < 1e6], dtype=torch.float64)
    one = torch.ones_like(x)
    twice = slope(slope(f))(x)
    forward = lambda x: jvp(f, (x,), (one,))[1]
    for other in (
        jvp(slope(f), (x,), (one,))[1],
        slope(forward)(x),
        jvp(forward, (x,), (one,))[1] if name != "glu" else twice,  # with mixed terms
        vmap(lambda x: grad(lambda x: slope(f)(x[None]).sum())(x))(x) if name != "glu" else twice,
    ):
        torch.testing.assert_close(other, twice)
    assert bool(twice.isfinite().all())
    smooth = torch.tensor([-5.3, -1.7, -0.37, 0.21, 1.9, 4.3, 8.1], dtype=torch.float64)
    step = 1e-5
    differences = (slope(f)(smooth + step) - slope(f)(smooth - step)) / (2 * step)
    if name != "glu":
        torch.testing.assert_close(slope(slope(f))(smooth), differences, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", PAIRS)
def test_16_bits_are_rounded_once(name: str, dtype: torch.dtype) -> None:
    f, _ = PAIRS[name]
    x = torch.linspace(-12, 60, 400).to(dtype)
    exact = f(x.double())
    torch.testing.assert_close(f(x), exact.to(dtype), rtol=torch.finfo(dtype).eps, atol=2e-7)
    assert f(x).dtype == dtype
    assert bool(slope(f)(x).isfinite().all())


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "softmin"])
def test_softmax_over_an_empty_axis(name: str) -> None:
    f = getattr(layers, name)
    for shape, dim in (((0,), 0), ((3, 0), -1), ((3, 0), 0), ((0, 2, 4), 1)):
        x = torch.zeros(shape)
        assert f(x, dim).shape == shape
        assert slope(lambda x, dim=dim: f(x, dim))(x).shape == shape


def test_gumbel_softmax_draws_classes_with_their_probabilities() -> None:
    logits = torch.tensor([0.0, 1.0, -2.0, 2.0]).expand(40_000, 4)
    hard = layers.gumbel_softmax(logits, 0.3, hard=True, key=KEY)
    assert torch.equal(hard.unique(), torch.tensor([0.0, 1.0]))
    assert torch.equal(hard.sum(-1), torch.ones(40_000))
    torch.testing.assert_close(hard.mean(0), torch.softmax(logits[0], 0), rtol=0, atol=0.01)
    soft = layers.gumbel_softmax(logits, 0.3, key=KEY)
    assert torch.equal(soft.argmax(-1), hard.argmax(-1))
    near = layers.gumbel_softmax(logits[:100], 1e-4, key=KEY)
    torch.testing.assert_close(near, hard[:0].new_tensor(near.round().tolist()), rtol=0, atol=1e-3)


@pytest.mark.parametrize("dim", [0, -1])
def test_a_hard_gumbel_softmax_has_the_derivatives_of_the_soft_one(dim: int) -> None:
    x, v = random.normal(KEY, (2, 3, 4), torch.float64)
    f = lambda hard: lambda x: (layers.gumbel_softmax(x, 0.7, hard, dim, key=KEY) * v).sum()
    torch.testing.assert_close(grad(f(True))(x), grad(f(False))(x))
    torch.testing.assert_close(jvp(grad(f(True)), (x,), (v,))[1], jvp(grad(f(False)), (x,), (v,))[1])
    torch.testing.assert_close(jvp(f(True), (x,), (v,))[1], jvp(f(False), (x,), (v,))[1])
    each = vmap(lambda key: layers.gumbel_softmax(x, hard=True, key=key))(random.split(KEY, 5))
    assert len({tuple(row.flatten().tolist()) for row in each}) == 5


def test_slopes_of_rrelu_are_drawn_between_the_bounds() -> None:
    x = -torch.ones(10_000)
    slopes = -layers.rrelu(0.2, 0.6).apply({}, x, key=KEY)
    assert 0.2 <= float(slopes.min()) < 0.21
    assert 0.59 < float(slopes.max()) < 0.6
    assert float(slopes.mean()) == pytest.approx(0.4, abs=0.01)
    assert torch.equal(layers.rrelu(0.2, 0.6).apply({}, -x, key=KEY), -x)


def test_prelu_has_the_names_and_values_of_torch() -> None:
    assert {name: tuple(leaf.shape) for name, leaf in layers.prelu(3).init(KEY).items()} == {"weight": (3,)}
    torch.testing.assert_close(layers.prelu(3, 0.1).init(KEY)["weight"], nn.PReLU(3, 0.1).weight.detach())


DROPOUTS: dict[str, tuple[Callable[[float], fnn.Layer], tuple[int, ...], int]] = {  # and axes that share a draw
    "dropout": (layers.dropout, (50, 40), 0),
    "dropout1d": (layers.dropout1d, (50, 40, 3), 1),
    "dropout1d, no batch": (layers.dropout1d, (2000, 3), 1),
    "dropout2d": (layers.dropout2d, (50, 40, 2, 3), 2),
    "dropout2d, no batch": (layers.dropout2d, (2000, 2, 3), 2),
    "dropout3d": (layers.dropout3d, (50, 40, 2, 1, 3), 3),
    "dropout3d, no batch": (layers.dropout3d, (2000, 2, 1, 3), 3),
    "alpha_dropout": (layers.alpha_dropout, (50, 40), 0),
    "feature_alpha_dropout": (layers.feature_alpha_dropout, (50, 40, 3, 2), 2),
}


@pytest.mark.parametrize("name", DROPOUTS)
def test_what_is_dropped_and_how_often(name: str) -> None:
    make, shape, shared = DROPOUTS[name]
    x = torch.full(shape, 2.0)
    assert make(0.3).apply({}, x) is x
    assert torch.equal(make(0.0).apply({}, x, key=KEY), x)
    assert torch.equal(make(1.0).apply({}, x, key=KEY), torch.zeros(shape))
    assert torch.equal(slope(lambda x: make(1.0).apply({}, x, key=KEY))(x), torch.zeros(shape))
    y = make(0.3).apply({}, x, key=KEY)
    channels = y.flatten(y.dim() - shared) if shared else y[..., None]
    assert torch.equal(channels, channels[..., :1].expand_as(channels))
    dropped, kept = y.unique().tolist()
    if "alpha" not in name:
        assert (dropped, kept) == (0.0, pytest.approx(2.0 / 0.7))
    assert float((channels[..., 0] == dropped).float().mean()) == pytest.approx(0.3, abs=0.04)
    half = x.to(torch.bfloat16)
    assert make(0.3).apply({}, half, key=KEY).dtype == torch.bfloat16


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_alpha_dropout_keeps_mean_and_variance(p: float) -> None:
    x = random.normal(KEY, (200_000,), torch.float64)
    y = layers.alpha_dropout(p).apply({}, x, key=random.key(4))
    assert float(y.mean()) == pytest.approx(0.0, abs=0.01)
    assert float(y.var()) == pytest.approx(1.0, abs=0.02)
    torch.manual_seed(0)
    theirs = F.alpha_dropout(torch.zeros(1000, dtype=torch.float64), p, training=True).unique()
    torch.testing.assert_close(layers.alpha_dropout(p).apply({}, 0 * x[:1000], key=KEY).unique(), theirs)


MISTAKES: dict[str, tuple[Callable[[], object], str]] = {
    "glu, odd": (lambda: layers.glu(torch.ones(2, 3)), r"glu halves axis -1, .* even size; got inputs of \(2, 3\)"),
    "swiglu, 0-d": (lambda: layers.swiglu(torch.ones(())), r"swiglu halves axis -1"),
    "softmax2d": (lambda: layers.softmax2d(torch.ones(2, 3)), r"\(batch, channels, height, width\), got \(2, 3\)"),
    "hardtanh": (lambda: layers.hardtanh(torch.ones(2), 1.0, -1.0), "min_val <= max_val, got 1.0 and -1.0"),
    "softshrink": (lambda: layers.softshrink(torch.ones(2), -1.0), "lambd >= 0, got -1.0"),
    "celu": (lambda: layers.celu(torch.ones(2), 0.0), "divides by alpha, got 0"),
    "tau": (lambda: layers.gumbel_softmax(torch.ones(2), 0.0, key=KEY), "tau > 0, got 0.0"),
    "gumbel, no key": (lambda: layers.gumbel_softmax(torch.ones(2), key=None), r"write fnn\.random\.key\(0\)"),  # pyright: ignore[reportArgumentType]
    "rrelu": (lambda: layers.rrelu(0.5, 0.1), "lower <= upper, got 0.5 and 0.1"),
    "prelu": (lambda: layers.prelu(3).apply(layers.prelu(3).init(KEY), torch.ones(2, 4)), r"\(batch, 3, \.\.\.\)"),
    "prelu, size": (lambda: layers.prelu(0), "num_parameters >= 1, got 0"),
    "dropout, p": (lambda: layers.dropout1d(-0.1), "dropout1d expects 0 <= p <= 1, got -0.1"),
    "dropout2d, shape": (
        lambda: layers.dropout2d().apply({}, torch.ones(2, 3)),
        r"dropout2d expects inputs of shape \(batch, channels, height, width\), got \(2, 3\)",
    ),
    "feature_alpha_dropout": (
        lambda: layers.feature_alpha_dropout().apply({}, torch.ones(3)),
        r"feature_alpha_dropout expects inputs of shape \(batch, channels, \.\.\.\), got \(3,\)",
    ),
    "adaptive": (lambda: layers.adaptive_log_softmax(4, 7, [4, 2]), r"increasing cutoffs from 1 to 6, got \[4, 2\]"),
    "distance": (lambda: layers.pairwise_distance(torch.ones(2), torch.ones(2), -1.0), "p >= 0, got -1.0"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named(mistake: str) -> None:
    call, sentence = MISTAKES[mistake]
    with pytest.raises((ValueError, TypeError), match=sentence):
        call()


HOLOMORPHIC = {"identity", "flatten", "sigmoid", "tanh", "silu", "softsign", "tanhshrink", "glu", "swiglu"}
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    **{name.split(",")[0]: lambda x, name=name: PAIRS[name][0](x) for name in PAIRS if name not in HOLOMORPHIC},
    **{name: getattr(layers, name) for name in (*sorted(HOLOMORPHIC), "softmax", "log_softmax", "softmin", "geglu")},
    "prelu": lambda x: layers.prelu().apply(layers.prelu().init(KEY), x),
    "gumbel_softmax": lambda x: layers.gumbel_softmax(x, key=KEY),
    "cosine_similarity": lambda x: layers.cosine_similarity(x, x),
    "pairwise_distance": lambda x: layers.pairwise_distance(x, x),
    "alpha_dropout": lambda x: layers.alpha_dropout().apply({}, x, key=KEY),
    "dropout": lambda x: layers.dropout().apply({}, x, key=KEY),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_complex_numbers_are_right_or_refused_by_name(name: str) -> None:
    parts = random.normal(KEY, (2, 3, 4), torch.float64)
    x = torch.complex(parts[0], parts[1])
    try:
        y = FUNCTIONS[name](x)
    except TypeError as error:
        assert name in str(error)  # noqa: PT017
        assert "complex" in str(error)  # noqa: PT017
        return
    assert name in {*HOLOMORPHIC, "dropout"}
    formulas = {
        "sigmoid": lambda x: 1 / (1 + (-x).exp()),
        "tanh": lambda x: (x.exp() - (-x).exp()) / (x.exp() + (-x).exp()),
        "silu": lambda x: x / (1 + (-x).exp()),
        "softsign": lambda x: x / (1 + (x * x.conj()).real.sqrt()),
        "tanhshrink": lambda x: x - (x.exp() - (-x).exp()) / (x.exp() + (-x).exp()),
        "glu": lambda x: x[:, :2] / (1 + (-x[:, 2:]).exp()),
        "swiglu": lambda x: x[:, :2] / (1 + (-x[:, :2]).exp()) * x[:, 2:],
        "dropout": lambda x: torch.complex(FUNCTIONS["dropout"](x.real), FUNCTIONS["dropout"](x.imag)),
    }
    torch.testing.assert_close(y, formulas.get(name, lambda x: x)(x))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_is_not_a_tensor_is_refused(name: str) -> None:
    if name != "identity":
        with pytest.raises(TypeError, match=r"expects a tensor, got a list; write torch\.as_tensor"):
            FUNCTIONS[name]([0.5, 1.0, 2.0])  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("p", [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, INF])
def test_distances_of_equal_vectors_have_finite_derivatives(p: float) -> None:
    x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [2.0, 3.0]], dtype=torch.float64)
    y = torch.tensor([[0.0, 0.0], [1.0, 4.0], [0.0, 0.0]], dtype=torch.float64)
    ours = lambda x: layers.pairwise_distance(x, y, p, eps=0.0)
    torch.testing.assert_close(ours(x), F.pairwise_distance(x, y, p, eps=0.0))
    assert torch.equal(ours(x), layers.pairwise_distance(x, y, p, 0.0, keepdim=True).squeeze(-1))
    assert bool(slope(ours)(x).isfinite().all())
    assert bool(jvp(slope(ours), (x,), (y + 1,))[1].isfinite().all())
    similarity = lambda x: layers.cosine_similarity(x, y)
    torch.testing.assert_close(similarity(x), F.cosine_similarity(x, y))
    assert bool(slope(similarity)(x).isfinite().all())
