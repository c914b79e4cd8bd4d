import math

import pytest
import scipy.stats
import torch

import fnn
from fnn import init

KEY = fnn.random.key(3)
SHAPE = (64, 32, 3, 3)  # fan_in 288, fan_out 576
N = math.prod(SHAPE)

# name -> (initialiser, torch's function that has the same distribution)
SAME_AS_TORCH = {
    "xavier_uniform": (init.xavier_uniform(2.0), lambda w: torch.nn.init.xavier_uniform_(w, 2.0)),
    "xavier_normal": (init.xavier_normal(2.0), lambda w: torch.nn.init.xavier_normal_(w, 2.0)),
    "kaiming_uniform": (init.kaiming_uniform(0.2), lambda w: torch.nn.init.kaiming_uniform_(w, 0.2)),
    "kaiming_normal": (
        init.kaiming_normal(mode="fan_out", nonlinearity="relu"),
        lambda w: torch.nn.init.kaiming_normal_(w, mode="fan_out", nonlinearity="relu"),
    ),
    "uniform": (init.uniform(-2.0, 5.0), lambda w: torch.nn.init.uniform_(w, -2.0, 5.0)),
    "normal": (init.normal(1.0, 0.3), lambda w: torch.nn.init.normal_(w, 1.0, 0.3)),
    "truncated_normal": (
        init.truncated_normal(1.0, 2.0, -2.0, 2.0),
        lambda w: torch.nn.init.trunc_normal_(w, 1.0, 2.0),
    ),
    "torch_default": (init.torch_default(), lambda w: torch.nn.init.kaiming_uniform_(w, math.sqrt(5))),
    "constant": (init.constant(0.3), lambda w: torch.nn.init.constant_(w, 0.3)),
    "zeros": (init.zeros(), torch.nn.init.zeros_),
    "ones": (init.ones(), torch.nn.init.ones_),
}


@pytest.mark.parametrize("name", SAME_AS_TORCH)
def test_distribution_is_that_of_torch(name: str) -> None:
    initializer, fill = SAME_AS_TORCH[name]
    ours = initializer(KEY, SHAPE, torch.float64).reshape(-1).sort().values
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = fill(torch.empty(SHAPE, dtype=torch.float64)).reshape(-1).sort().values
    scale = float(theirs[-1] - theirs[0]) or 1.0
    # quantile by quantile; the tails of a normal are the noisiest
    middle = slice(N // 100, -N // 100)
    assert float((ours[middle] - theirs[middle]).abs().max()) < 0.02 * scale
    if "normal" not in name:
        assert float((ours - theirs).abs().max()) <= 1.63 * math.sqrt(2 / N) * scale  # Kolmogorov-Smirnov, 1 % level


@pytest.mark.parametrize(
    ("initializer", "variance"),
    [
        (init.lecun_uniform(), 1 / 288),
        (init.lecun_normal(), 1 / 288),
        (init.variance_scaling(3.0, "fan_out", "normal"), 3 / 576),
    ],
)
def test_variance(initializer: init.Initializer, variance: float) -> None:
    w = initializer(KEY, SHAPE, torch.float64)
    assert float(w.var()) == pytest.approx(variance, rel=0.05)
    assert abs(float(w.mean())) < 4 * math.sqrt(variance / N)


@pytest.mark.parametrize("distribution", ["uniform", "normal", "truncated_normal"])
@pytest.mark.parametrize("mode", ["fan_in", "fan_out", "fan_avg"])
@pytest.mark.parametrize("shape", [(4, 3), (3, 4), (5, 2, 3), (2, 1, 3, 5), (1, 1)])
def test_draws_are_scaled_by_the_fans_exactly(mode: str, distribution: str, shape: tuple[int, ...]) -> None:
    # with one key only the factor sqrt(scale / fan) depends on mode and scale
    kernel = math.prod(shape[2:])
    fan = {"fan_in": shape[1] * kernel, "fan_out": shape[0] * kernel, "fan_avg": (shape[0] + shape[1]) / 2 * kernel}
    w = init.variance_scaling(3.0, mode, distribution)(KEY, shape, torch.float64)  # type: ignore[arg-type]
    unit = init.variance_scaling(float(fan[mode]), mode, distribution)(KEY, shape, torch.float64)  # type: ignore
    reference = {
        "uniform": fnn.random.uniform(KEY, shape, torch.float64, -math.sqrt(3), math.sqrt(3)),
        "normal": fnn.random.normal(KEY, shape, torch.float64),
        "truncated_normal": fnn.random.truncated_normal(KEY, -2.0, 2.0, shape, torch.float64)
        / float(scipy.stats.truncnorm.std(-2, 2)),
    }[distribution]
    torch.testing.assert_close(unit, reference)
    torch.testing.assert_close(w, reference * math.sqrt(3.0 / fan[mode]))


NARROW = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("name", SAME_AS_TORCH)
def test_16_bits_are_float32_rounded(name: str, dtype: torch.dtype) -> None:
    initializer = SAME_AS_TORCH[name][0]
    exact, rounded = initializer(KEY, SHAPE, torch.float32), initializer(KEY, SHAPE, dtype)
    assert rounded.dtype == dtype
    # one rounding, and at the bounds one more step inwards
    torch.testing.assert_close(rounded.float(), exact, rtol=2.01 * torch.finfo(dtype).eps, atol=1e-6)
    assert float(rounded.double().std()) == pytest.approx(float(exact.double().std()), rel=1e-3)
    assert abs(float((rounded.double() - exact.double()).mean())) <= 0.5 * torch.finfo(dtype).eps * float(
        exact.abs().max()
    )


@pytest.mark.parametrize("dtype", [torch.float32, *NARROW])
@pytest.mark.parametrize(
    "options", [(0.0, 0.02, -2.0, 2.0), (1.0, 2.0, 0.9, 1.1), (0.0, 1.0, 2.0, 2.5), (0.0, 0.1, -0.2, 0.2)]
)
def test_truncated_normal_stays_inside_its_bounds(
    options: tuple[float, float, float, float], dtype: torch.dtype
) -> None:
    mean, std, a, b = options
    w = init.truncated_normal(mean, std, a, b)(KEY, (300, 200), dtype).double()
    assert a < float(w.min())
    assert float(w.max()) < b
    reference = scipy.stats.truncnorm((a - mean) / std, (b - mean) / std, mean, std)
    assert float(w.std()) == pytest.approx(float(reference.std()), rel=0.02)
    assert float(w.mean()) == pytest.approx(float(reference.mean()), abs=0.02 * float(reference.std()) + 1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *NARROW])
@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-1.0, 1.0), (1.0, 1.01), (-0.05, 0.05), (100.0, 101.0), (2.0, 2.0)])
def test_uniform_stays_inside_its_bounds(bounds: tuple[float, float], dtype: torch.dtype) -> None:
    low, high = (float(torch.tensor(bound, dtype=dtype)) for bound in bounds)
    w = init.uniform(low, high)(KEY, (300, 200), dtype).double()
    assert low <= float(w.min())
    assert float(w.max()) < high or low == high == float(w.max())


def test_leaky_slopes_are_used() -> None:
    for initializer in (init.kaiming_uniform, init.kaiming_normal):
        wide, narrow = (initializer(a)(KEY, (200, 100), torch.float64).std() for a in (0.0, 1.0))
        assert float(wide / narrow) == pytest.approx(math.sqrt(2), rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *NARROW])
@pytest.mark.parametrize("shape", [(8, 5), (5, 8), (4, 2, 3, 3)])
def test_orthogonal(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    w = init.orthogonal(2.0)(KEY, shape, dtype)
    assert w.dtype == dtype
    w = w.double().reshape(shape[0], -1)
    small = w @ w.T if w.shape[0] <= w.shape[1] else w.T @ w
    torch.testing.assert_close(
        small, 4.0 * torch.eye(len(small), dtype=torch.float64), rtol=0, atol=40 * torch.finfo(dtype).eps
    )


@pytest.mark.parametrize("shape", [(4, 4), (5, 3), (3, 5), (4, 2, 2)])
def test_orthogonal_is_the_orthogonal_factor_of_a_normal_matrix(shape: tuple[int, ...]) -> None:
    rows, columns = shape[0], math.prod(shape[1:])
    w = init.orthogonal()(KEY, shape, torch.float64).reshape(rows, columns)
    normal = fnn.random.normal(KEY, (max(rows, columns), min(rows, columns)), torch.float64)
    triangular = (w.T if rows >= columns else w) @ normal
    torch.testing.assert_close(triangular, triangular.triu())
    assert (triangular.diagonal() > 0).all()


def test_orthogonal_has_no_preferred_sign() -> None:
    # Householder's reflections alone give matrices whose first entry is never positive
    first = torch.stack([init.orthogonal()(key, (3, 3)) for key in fnn.random.split(KEY, 400)])
    assert float(first.mean(0).abs().max()) < 4 * math.sqrt(1 / 3 / 400)


@pytest.mark.parametrize("name", ["linear", "conv2d"])
def test_layers_start_as_torchs_do(name: str) -> None:
    ours, theirs = {
        "linear": (fnn.layers.linear(300, 400), torch.nn.Linear(300, 400)),
        "conv2d": (fnn.layers.conv2d(30, 400, 3), torch.nn.Conv2d(30, 400, 3)),
    }[name]
    params = ours.init(KEY)
    for leaf, parameter in theirs.named_parameters():
        a, b = params[leaf].reshape(-1), parameter.detach().reshape(-1)
        assert a.shape == b.shape
        assert float(a.abs().max()) == pytest.approx(float(b.abs().max()), rel=0.03)
        assert float(a.std()) == pytest.approx(float(b.std()), rel=0.1)


@pytest.mark.parametrize("fan_in", [0, 1, 2, 100])
def test_biases_are_within_torchs_bounds(fan_in: int) -> None:
    theirs = torch.nn.Linear(fan_in, 1000).bias.detach().abs().max() if fan_in else torch.zeros(())
    for bias in (init.torch_default_bias(fan_in)(KEY, (1000,)), fnn.layers.linear(fan_in, 1000).init(KEY)["bias"]):
        assert float(bias.abs().max()) == pytest.approx(float(theirs), rel=0.03)


@pytest.mark.parametrize("name", ["linear", "relu", "leaky_relu", "tanh", "sigmoid", "selu"])
def test_gain_is_torchs(name: str) -> None:
    assert init.gain(name) == pytest.approx(torch.nn.init.calculate_gain(name))


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"at least two axes .* got shape \(3,\)"):
        init.xavier_uniform()(KEY, (3,))
    with pytest.raises(ValueError, match="'fan_in', 'fan_out' or 'fan_avg', got 'fan'"):
        init.variance_scaling(mode="fan")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="got 'cauchy'"):
        init.variance_scaling(distribution="cauchy")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="std > 0 and a < b, got std=0"):
        init.truncated_normal(std=0)
    with pytest.raises(TypeError, match=r"got None; write fnn\.random\.key\(0\)"):
        init.normal()(None, (3, 2))
    with pytest.raises(ValueError, match="got 'swish'"):
        init.gain("swish")  # type: ignore[arg-type]
