import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import scipy.special
import scipy.stats
import torch
from torch.func import grad, vmap

import fnn
from fnn import random
from fnn.random.continuous import _open_unit_of, _truncated, next_up
from fnn.random.threefry import CHUNK, hash_counters, signed, threefry

TABLE = json.loads(Path(__file__).with_name("jax_table.json").read_text())["seeds"]
KEY = random.key(5)


def test_threefry_known_answers() -> None:
    # the vectors of Random123, the authors' own implementation
    cases = [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((-1, -1), (-1, -1), (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ]
    for key, counter, expected in cases:
        words = [torch.tensor(signed(word & 0xFFFFFFFF), dtype=torch.int32) for word in (*key, *counter)]
        assert [int(word) & 0xFFFFFFFF for word in threefry(*words)] == list(expected)


@pytest.mark.parametrize("seed", TABLE)
def test_equal_to_jax_bit_for_bit(seed: str) -> None:
    expected, key = TABLE[seed], random.key(int(seed))
    many = random.bits(key, (200000,)).to(torch.int64)
    ours = {
        "split": random.split(key, 5),
        "fold_in": random.fold_in(key, 77),
        "bits": random.bits(key, (3, 5)),
        "uniform": random.uniform(key, (3, 5)),
        "uniform -2.5 7": random.uniform(key, (3, 5), torch.float32, -2.5, 7.0),
        "uniform bfloat16": random.uniform(key, (7,), dtype=torch.bfloat16),
        "uniform float16": random.uniform(key, (7,), dtype=torch.float16),
        **{
            f"uniform {name}, bounds": random.uniform(key, (40,), getattr(torch, name), -2.5, 7.0)
            for name in ("bfloat16", "float16")
        },
        "randint 64 bits": random.randint(key, (9,), -5, 2**40 + 3),
        "randint uint8": random.randint(key, (9,), 0, 256, torch.uint8),
        "randint -5 1000": random.randint(key, (9,), -5, 1000),
        "randint all": random.randint(key, (9,), -(2**31), 2**31 - 1),
        "bernoulli 0.3": random.bernoulli(key, 0.3, (20,)),
        "permutation 10": random.permutation(key, 10),
        "permutation 2000, first 10": random.permutation(key, 2000)[:10],
        "bits 200000, sum and last": torch.stack([many.sum(), many[-1]]),
    }
    assert ours.keys() == expected.keys()
    for name, value in ours.items():
        assert value.tolist() == expected[name], name


DRAWS = {
    "bits": lambda key: random.bits(key, (70, 3)),
    "uniform": lambda key: random.uniform(key, (70, 3)),
    "uniform, bounds": lambda key: random.uniform(key, (5,), torch.float32, -1.0, 3.0),
    "uniform, float64": lambda key: random.uniform(key, (5,), dtype=torch.float64),
    "normal": lambda key: random.normal(key, (7,)),
    "normal, float64": lambda key: random.normal(key, (7,), torch.float64),
    "truncated_normal": lambda key: random.truncated_normal(key, -1.0, 2.0, (9,)),
    "bernoulli": lambda key: random.bernoulli(key, 0.3, (9,)),
    "randint": lambda key: random.randint(key, (9,), 0, 7),
    "randint, bounds in tensors": lambda key: random.randint(key, (9,), torch.tensor(-5), torch.tensor(2**40)),
    "uniform, float16": lambda key: random.uniform(key, (9,), torch.float16, 1.0, 1.5),
    "truncated_normal, bfloat16": lambda key: random.truncated_normal(key, -1.0, 2.0, (9,), torch.bfloat16),
    "permutation": lambda key: random.permutation(key, 11),
    "categorical": lambda key: random.categorical(key, torch.tensor([0.1, 0.2, 0.3]), shape=(20,)),
    "split": lambda key: random.split(key, 3),
    "fold_in": lambda key: random.fold_in(key, torch.tensor(9)),
}


@pytest.mark.parametrize("name", DRAWS)
def test_one_key_one_result_everywhere(name: str) -> None:
    draw = DRAWS[name]
    keys = random.split(KEY, 4)
    each = torch.stack([draw(key) for key in keys])
    assert torch.equal(vmap(draw)(keys), each)
    assert torch.equal(draw(KEY), draw(KEY.clone()))
    assert not torch.equal(draw(keys[0]), draw(keys[1]))
    compiled = fnn.jit(vmap(draw))
    assert torch.equal(compiled(keys), each)


def test_generated_code_gives_the_same_bits() -> None:
    draw = fnn.jit(lambda key: random.uniform(key, (1000,), torch.float32, -1.0, 3.0))
    assert torch.equal(draw(KEY), random.uniform(KEY, (1000,), torch.float32, -1.0, 3.0))


@pytest.mark.slow
def test_generated_code_gives_normal_numbers_within_rounding() -> None:
    draw = lambda key: random.normal(random.fold_in(key, 3), (1000,))
    torch.testing.assert_close(fnn.jit(draw)(KEY), draw(KEY), rtol=1e-5, atol=1e-5)


def test_long_draws_are_the_short_ones_continued() -> None:
    assert torch.equal(random.bits(KEY, (200001,))[:9], random.bits(KEY, (9,)))
    whole = random.uniform(KEY, (200001,))
    assert torch.equal(whole[CHUNK - 2 : CHUNK + 2], random.uniform(KEY, (70000,))[65534:65538])


def truncated_distribution(lower: float, upper: float) -> Callable[[torch.Tensor], torch.Tensor]:
    sign = -1.0 if lower > 0 else 1.0  # the function has all its digits in the lower tail
    ends = [normal_distribution(torch.tensor(sign * bound, dtype=torch.float64)) for bound in (lower, upper)]
    return lambda x: ((normal_distribution(sign * x) - ends[0]) / (ends[1] - ends[0])).clamp(0, 1)


FLOATING = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
N = 60_000


def distance(x: torch.Tensor, distribution: Callable[[torch.Tensor], torch.Tensor]) -> float:
    """The statistic of Kolmogorov and Smirnov for draws that were rounded to their dtype.

    The share of draws that round to a number or below is the probability of the points that round so: up to the
    middle between the number and the next one.
    """
    values, counts = x.unique(return_counts=True)
    below = counts.cumsum(0).double() / len(x)
    middle = 0.5 * (values.double() + next_up(values).double())
    return float((distribution(middle) - below).abs().max())


def normal_distribution(x: torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(scipy.special.ndtr(x.double().numpy()))


LIMIT = 1.63  # Kolmogorov-Smirnov at the 1 % level, over sqrt(n)


@pytest.mark.parametrize("dtype", FLOATING)
def test_normal_has_its_distribution(dtype: torch.dtype) -> None:
    x = random.normal(KEY, (2 * N,), dtype)
    assert distance(x, normal_distribution) < LIMIT / math.sqrt(2 * N)
    moments = [float((x.double() ** k).mean()) for k in (1, 2, 3, 4)]
    for moment, expected, variance in zip(moments, (0, 1, 0, 3), (1, 2, 15, 96), strict=True):
        assert abs(moment - expected) < 4 * math.sqrt(variance / (2 * N))
    halves = x[:N] * x[N:]  # the two halves come from the same hashes
    assert abs(float(halves.double().mean())) < 4 / math.sqrt(N)
    for far in (3.0, 4.0):  # the tails, by the Poisson distribution
        expected = 4 * N * float(normal_distribution(torch.tensor(-far)))
        assert abs(int((x.abs() > far).sum()) - expected) < 4 * math.sqrt(expected) + 1


BOUNDS = [(-1.0, 2.0), (-2.0, 2.0), (0.5, 0.75), (3.0, 5.0), (-7.0, -6.0), (-10.0, 10.0), (-100.0, 1.0), (-30.0, -29.0)]


@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("dtype", FLOATING)
def test_truncated_normal_has_its_distribution(dtype: torch.dtype, bounds: tuple[float, float]) -> None:
    lower, upper = bounds
    given = [random.truncated_normal(KEY, lower, upper, (N,), dtype)]
    given.append(random.truncated_normal(KEY, torch.tensor(lower), torch.tensor(upper), (N,), dtype))
    assert torch.equal(*given)
    x = given[0].double()
    assert lower < float(x.min())
    assert float(x.max()) < upper
    mean, variance = (float(moment) for moment in scipy.stats.truncnorm.stats(lower, upper))
    distribution = truncated_distribution(lower, upper)
    if dtype in FLOATING[:2]:
        assert distance(given[0], distribution) < LIMIT / math.sqrt(N)
        assert abs(float(x.mean()) - mean) < 4 * math.sqrt(variance / N)
        assert float(x.std()) == pytest.approx(math.sqrt(variance), rel=0.02)
    else:  # the draws of float32, rounded; those that round to a bound are moved to the number inside
        single = random.truncated_normal(KEY, lower, upper, (N,)).double()
        torch.testing.assert_close(x, single, rtol=1.01 * torch.finfo(dtype).eps, atol=1e-6)


def test_truncated_normal_with_many_bounds() -> None:
    lower, upper = torch.tensor([-1.0, 2.0, -6.5]), torch.tensor([1.0, 3.0, -6.0])
    assert random.truncated_normal(KEY, lower, upper).shape == (3,)
    x = random.truncated_normal(KEY, lower, upper, (N, 3))
    assert bool(((x > lower) & (x < upper)).all())
    for column, low, high in zip(x.T, lower.tolist(), upper.tolist(), strict=True):
        assert distance(column, truncated_distribution(low, high)) < LIMIT / math.sqrt(N)


def test_no_draw_is_at_the_far_bound() -> None:
    # the word 0 gives uniform's lower bound, whose inverse would be infinite
    words = torch.tensor([0, -1], dtype=torch.int32)
    for dtype in FLOATING:
        other = words if dtype == torch.float64 else torch.zeros_like(words)
        wides = FLOATING[: 1 if dtype == torch.float64 else 2]  # float32 on devices without float64
        for wide in wides:
            unit = _open_unit_of(words, other, dtype, wide)
            assert unit.dtype == wide
            assert bool(((unit > 0) & (unit < 1)).all())
            x = _truncated(unit, -8.5, 8.5, dtype)
            assert -8.4 < float(x[0]) < -5
            assert 5 < float(x[1]) < 8.4


def test_open_draws_are_the_middles_of_equal_parts() -> None:
    """Each draw is made of the words of its hash, the first the higher one, wherever it is drawn."""
    a, b = (words.tolist() for words in hash_counters(KEY, 20, lambda a, b: (a, b)))
    pairs = [(high & 0xFFFFFFFF, low & 0xFFFFFFFF) for high, low in zip(a, b, strict=True)]
    wide = [(high << 32 | low) >> 12 for high, low in pairs]
    assert random.uniform(KEY, (20,), torch.float64).tolist() == [word * 2.0**-52 for word in wide]
    shares = {
        torch.float64: [(word + 0.5) * 2.0**-52 for word in wide],
        torch.float32: [((high ^ low) + 0.5) * 2.0**-32 for high, low in pairs],
    }
    for dtype, share in shares.items():
        expected = torch.as_tensor(scipy.special.ndtri(numpy.array(share)), dtype=dtype)
        torch.testing.assert_close(random.truncated_normal(KEY, -37.0, 37.0, (20,), dtype), expected)
    words = [torch.tensor([signed(pair[i]) for pair in pairs], dtype=torch.int32) for i in (0, 1)]
    narrow = [((high ^ low) >> 9) + 0.5 for high, low in pairs]
    assert _open_unit_of(*words, torch.float32, torch.float32).tolist() == [part * 2.0**-23 for part in narrow]


def test_an_event_of_probability_0_does_not_happen_and_one_of_1_does() -> None:
    key = random.key(780233)  # its first draw is 0
    assert float(random.uniform(key)) == 0.0
    for zero in (0.0, torch.tensor(0.0), torch.tensor([0.0]), torch.tensor(False), torch.tensor(0, dtype=torch.int64)):
        assert not random.bernoulli(key, zero).any()
    for one in (1.0, torch.tensor(1.0), torch.tensor(2.0**-149), torch.tensor(True)):
        assert random.bernoulli(key, one).all()


@pytest.mark.parametrize("bounds", [(1.0, 1.5), (100.0, 101.0), (-0.05, 0.05), (-3.0, -1.0), (0.0, 1e-3)])
@pytest.mark.parametrize("dtype", FLOATING)
def test_uniform_is_within_its_bounds(dtype: torch.dtype, bounds: tuple[float, float]) -> None:
    low, high = (float(torch.tensor(bound, dtype=dtype)) for bound in bounds)
    x = random.uniform(KEY, (N,), dtype, *bounds)
    assert low <= float(x.min())
    assert float(x.max()) < high
    tensors = [torch.tensor(bound, dtype=dtype) for bound in (low, high)]
    assert torch.equal(x, random.uniform(KEY, (N,), dtype, *tensors))
    if dtype in FLOATING[:2]:
        share = lambda points: ((points - low) / (high - low)).clamp(0, 1)
        assert distance(x, share) < LIMIT / math.sqrt(N)
    else:  # multiples of the step below 1, as in JAX
        share = torch.finfo(dtype).eps
        expected, step = low + (0.5 - share / 2) * (high - low), share * max(abs(low), abs(high))
        assert abs(float(x.double().mean()) - expected) < step + 4 * (high - low) * math.sqrt(1 / 12 / N)


@pytest.mark.parametrize("dtype", FLOATING)
def test_frequencies_do_not_depend_on_the_dtype(dtype: torch.dtype) -> None:
    p = torch.tensor([0.003, 0.1, 0.6, 0.297], dtype=torch.float64)
    logits = p.log().to(dtype)
    exact = torch.softmax(logits.double(), 0)
    counts = random.categorical(KEY, logits, shape=(N,)).bincount(minlength=4)
    assert float(((counts - N * exact) ** 2 / (N * exact)).sum()) < 11.3  # chi-squared, 3 degrees, 1 %
    many = random.categorical(KEY, torch.zeros(30, dtype=dtype), shape=(N,)).bincount(minlength=30)
    assert float(((many - N / 30) ** 2 / (N / 30)).sum()) < 49.6  # 29 degrees, 1 %
    for share in p.to(dtype):
        rate = float(share)
        drawn = float(random.bernoulli(KEY, share, (N,)).double().mean())
        assert abs(drawn - rate) < 4 * math.sqrt(rate / N)
        assert (
            torch.equal(random.bernoulli(KEY, share, (N,)), random.bernoulli(KEY, rate, (N,))) or dtype == FLOATING[0]
        )


def test_discrete_draws_have_their_frequencies() -> None:
    n = 100_000
    counts = random.randint(KEY, (n,), -3, 4).add(3).bincount(minlength=7)
    assert float(((counts - n / 7) ** 2 / (n / 7)).sum()) < 16.8  # chi-squared, 6 degrees, 1 %
    p = torch.tensor([0.1, 0.6, 0.3])
    counts = random.categorical(KEY, p.log(), shape=(n,)).bincount(minlength=3)
    assert float(((counts - n * p) ** 2 / (n * p)).sum()) < 9.2
    assert abs(float(random.bernoulli(KEY, 0.3, (n,)).float().mean()) - 0.3) < 4 * math.sqrt(0.21 / n)
    first = vmap(lambda key: random.permutation(key, 4))(random.split(KEY, 20000))[:, 0].bincount()
    assert float(((first - 5000) ** 2 / 5000).sum()) < 11.3


def test_gradients_pass_through_draws() -> None:
    slope = grad(lambda scale: (scale * random.normal(KEY, (3,))).sum())(torch.tensor(2.0))
    assert float(slope) == pytest.approx(float(random.normal(KEY, (3,)).sum()))
    slope = grad(lambda high: random.uniform(KEY, (3,), maxval=high).sum())(torch.tensor(2.0))
    assert float(slope) == pytest.approx(float(random.uniform(KEY, (3,)).sum()))


def test_like_gives_every_leaf_its_own_numbers() -> None:
    tree = {"b": torch.zeros(3), "a": torch.zeros(3, dtype=torch.float64), "c": [torch.zeros(3), torch.zeros(3)]}
    draws = random.like(KEY, tree, random.uniform)
    assert list(draws) == ["b", "a", "c"]
    assert draws["a"].dtype == torch.float64
    several = [draws["b"], *draws["c"], draws["a"].float()]
    assert all(not torch.equal(one, other) for i, one in enumerate(several) for other in several[:i])


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8])
def test_randint_covers_the_whole_dtype_and_bounds_may_be_numpys(dtype: torch.dtype) -> None:
    least, most = torch.iinfo(dtype).min, torch.iinfo(dtype).max
    x = random.randint(KEY, (N,), least, most + 1, dtype)
    share = (x.double() - least) / (float(most) - least)
    assert abs(float(share.mean()) - 0.5) < 4 * math.sqrt(1 / 12 / N) + 1 / (float(most) - least)
    assert torch.equal(random.randint(KEY, (9,), 3, 90, dtype), random.randint(KEY, (9,), numpy.int16(3), 90, dtype))
    several = numpy.array([0, 50]), torch.tensor([7, 90])
    y = random.randint(KEY, (N, 2), *several, dtype)
    assert (y.amin(0).tolist(), y.amax(0).tolist()) == ([0, 50], [6, 89])
    # as JAX has it: moved into the range of the dtype, and minval where nothing is left
    outside = random.randint(
        KEY, (N,), torch.tensor(max(least, -200) - 5), torch.tensor(min(most - 9, 1000) + 9), dtype
    )
    assert int(outside.max()) <= most
    assert random.randint(KEY, (3,), torch.tensor(7), torch.tensor(5), dtype).tolist() == [7, 7, 7]


@pytest.mark.parametrize("bounds", [(0, 2**40), (-(2**62), 2**62), (-(2**63), 2**63 - 1), (5, 2**33 + 1)])
def test_wide_integers_are_not_cut(bounds: tuple[int, int]) -> None:
    x = random.randint(KEY, (N,), *bounds)
    assert torch.equal(x, random.randint(KEY, (N,), *map(torch.tensor, bounds)))
    assert torch.equal(x, random.randint(KEY, (N,), *map(numpy.int64, bounds)))
    low, high = bounds
    shares = (x.double() - low) / (float(high) - float(low))
    assert distance(shares, lambda points: points.clamp(0, 1)) < LIMIT / math.sqrt(N)
    assert len(x.unique()) > N - 10


SPANS = [1, 2, 3, 1000, *(2**k + d for k in (31, 32, 33, 62, 63) for d in (-1, 0, 1)), 3 * 2**62 + 7, 2**64 - 1, 2**64]


@pytest.mark.parametrize("span", SPANS)
def test_integers_are_those_of_unbounded_arithmetic(span: int) -> None:
    # the definition of jax.random.randint in Python's integers: of 32-bit draws for spans up to 2^32, else of 64 bits
    first = -(2**63) if span > 2**63 else -(span // 2)
    high, low = (
        [
            [int(word) % 2**32 for word in words]
            for words in zip(*(column.tolist() for column in hash_counters(key, 40)), strict=True)
        ]
        for key in random.split(KEY)
    )
    word = (lambda pair: pair[0] ^ pair[1]) if span <= 2**32 else (lambda pair: pair[0] << 32 | pair[1])
    size = 2**32 if span <= 2**32 else 2**64
    half = int(size**0.5) % span
    factor = half * half % size % span
    expected = [
        first + ((word(a) % span * factor) % size + word(b) % span) % size % span
        for a, b in zip(high, low, strict=True)
    ]
    assert random.randint(KEY, (40,), first, first + span).tolist() == expected
    if first + span < 2**63:
        assert random.randint(KEY, (40,), *map(torch.tensor, (first, first + span))).tolist() == expected


EMPTY: dict[str, Callable[[tuple[int, ...]], torch.Tensor]] = {
    "bits": lambda shape: random.bits(KEY, shape),
    "uniform": lambda shape: random.uniform(KEY, shape),
    "uniform, bounds": lambda shape: random.uniform(KEY, shape, torch.float64, torch.zeros(shape), torch.ones(())),
    "normal": lambda shape: random.normal(KEY, shape, torch.float64),
    "truncated_normal": lambda shape: random.truncated_normal(KEY, -1.0, 1.0, shape),
    "bernoulli": lambda shape: random.bernoulli(KEY, 0.5, shape),
    "randint": lambda shape: random.randint(KEY, shape, 0, 2**40),
    "categorical": lambda shape: random.categorical(KEY, torch.zeros(3), shape=shape),
    "init.normal": lambda shape: fnn.init.normal()(KEY, shape),
}


@pytest.mark.parametrize("shape", [(0,), (0, 3), (2, 0, 4)])
@pytest.mark.parametrize("name", EMPTY)
def test_a_shape_may_be_empty(name: str, shape: tuple[int, ...]) -> None:
    assert EMPTY[name](shape).shape == shape
    assert random.split(KEY, 0).shape == (0, 2)
    assert random.permutation(KEY, 0).shape == (0,)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_equal_bounds_leave_one_integer(dtype: torch.dtype) -> None:
    low, high = torch.tensor([3, 0, 200, 7]), torch.tensor([3, 0, 201, 5])
    x = random.randint(KEY, (500, 4), low, high, dtype)
    assert torch.equal(x, low.to(dtype).expand(500, 4))


def test_the_global_generator_is_not_touched() -> None:
    state = torch.random.get_rng_state()
    for draw in DRAWS.values():
        draw(KEY)
    assert torch.equal(torch.random.get_rng_state(), state)


PAIR = torch.tensor([0.0, 1.0])
BAD = {
    "integer for a key": (lambda: random.uniform(7, (2,)), TypeError, r"got 7; write fnn\.random\.key\(7\)"),
    "no key": (lambda: random.split(None), TypeError, r"got None; write fnn\.random\.key\(0\)"),
    "several keys": (lambda: random.normal(random.split(KEY, 3), (2,)), TypeError, r"\(3, 2\), .*; several .* vmap"),
    "floating key": (lambda: random.uniform(torch.zeros(2), (2,)), TypeError, r"int32 tensor of shape \(2,\).*float32"),
    "seed": (lambda: random.key(1.5), TypeError, "integer seed, got 1.5"),
    "bool for a seed": (lambda: random.key(True), TypeError, "integer seed, got True"),
    "long seed": (lambda: random.key(2**70), ValueError, "64 bits"),
    "shape": (lambda: random.uniform(KEY, 3), ValueError, r"tuple of integers .* got 3; write \(3,\)"),
    "floating shape": (lambda: random.normal(KEY, (2.0,)), ValueError, r"tuple of integers .* got \(2.0,\)"),
    "negative shape": (lambda: random.uniform(KEY, (-1,)), ValueError, "not negative"),
    "negative split": (lambda: random.split(KEY, -1), ValueError, "not negative"),
    "integer dtype": (lambda: random.uniform(KEY, (2,), dtype=torch.int64), TypeError, "floating dtype"),
    "bound for a dtype": (lambda: random.uniform(KEY, (2,), -1.0, 1.0), TypeError, r"got -1.0; uniform\(key"),
    "uniform reversed": (lambda: random.uniform(KEY, (2,), minval=2.0), ValueError, "minval=2.0, maxval=1.0"),
    "uniform infinite": (lambda: random.uniform(KEY, (2,), maxval=math.inf), ValueError, "finite in torch.float32"),
    "uniform, float16": (
        lambda: random.uniform(KEY, (), torch.float16, -6e4, 6e4), ValueError, "difference finite in torch.float16"
    ),
    "uniform repeated": (lambda: random.uniform(KEY, minval=PAIR), ValueError, r"and \(\) do not .*shape=\(2,"),
    "uniform misfit": (lambda: random.uniform(KEY, (3,), maxval=PAIR), ValueError, r"the shape \(3,\) of the result"),
    "truncated repeated": (lambda: random.truncated_normal(KEY, PAIR, 2.0, ()), ValueError, "do not broadcast"),
    "truncated reversed": (lambda: random.truncated_normal(KEY, 2.0, 1.0, (3,)), ValueError, "lower < upper"),
    "truncated far": (lambda: random.truncated_normal(KEY, 50.0, 60.0), ValueError, "within 37 standard deviations"),
    "bernoulli repeated": (lambda: random.bernoulli(KEY, torch.full((8,), 0.5), ()), ValueError, r"\(8,\) do not"),
    "bernoulli": (lambda: random.bernoulli(KEY, 1.5), ValueError, "0 <= p <= 1, got 1.5"),
    "randint empty": (lambda: random.randint(KEY, (2,), 5, 5), ValueError, "minval=5, maxval=5"),
    "randint reversed": (lambda: random.randint(KEY, (2,), numpy.int64(5), 2), ValueError, "minval=5, maxval=2"),
    "randint wraps": (lambda: random.randint(KEY, (2,), 0, 300, torch.uint8), ValueError, "torch.uint8 .0 to 255;"),
    "randint negative": (lambda: random.randint(KEY, (2,), -1, 3, torch.uint8), ValueError, "minval=-1"),
    "randint long": (lambda: random.randint(KEY, (2,), 0, 2**64), ValueError, "maxval=18446744073709551616"),
    "randint repeated": (lambda: random.randint(KEY, (), torch.tensor([0, 5]), 9), ValueError, "do not broadcast"),
    "randint floating": (lambda: random.randint(KEY, (2,), 0, 2.5), TypeError, "integer bounds, got 2.5"),
    "randint floating tensor": (lambda: random.randint(KEY, (2,), 0, PAIR), TypeError, "integer bounds, got a tensor"),
    "randint dtype": (lambda: random.randint(KEY, (2,), 0, 2, torch.float32), TypeError, "integer dtype.*uniform"),
    "bits": (lambda: random.bits(KEY, (2**31,)), ValueError, "split the key"),
    "categorical": (
        lambda: random.categorical(KEY, torch.zeros(2, 3), shape=(3,)), ValueError, r"must end with \(2,\)"
    ),
    "categorical, integers": (lambda: random.categorical(KEY, ONES), TypeError, "floating logits, got .*int64"),
    "categorical, empty": (lambda: random.categorical(KEY, torch.zeros(2, 0)), ValueError, "no classes along axis -1"),
    "fold_in": (lambda: random.fold_in(KEY, 1.5), TypeError, "integer or a 0-d integer tensor, got 1.5"),
    "fold_in, floating tensor": (lambda: random.fold_in(KEY, torch.tensor(1.5)), TypeError, r"\(\), torch.float32"),
    "fold_in, several": (lambda: random.fold_in(KEY, ONES), TypeError, r"vmap\(fold_in"),
    "permutation": (lambda: random.permutation(KEY, torch.tensor(3)), TypeError, "a length or a tensor of at least"),
}  # fmt: skip
ONES = torch.ones(3, dtype=torch.int64)


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_a_sentence(name: str) -> None:
    call, error, message = BAD[name]
    with pytest.raises(error, match=message):
        call()
