import json
import math
from pathlib import Path

import pytest
import torch
from torch.func import grad, vmap

import fnn
from fnn import random

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
        words = [torch.tensor(random._signed(word & 0xFFFFFFFF), dtype=torch.int32) for word in (*key, *counter)]
        assert [int(word) & 0xFFFFFFFF for word in random._threefry(*words)] == list(expected)


@pytest.mark.parametrize("seed", TABLE)
def test_equal_to_jax_bit_for_bit(seed: str) -> None:
    expected, key = TABLE[seed], random.key(int(seed))
    many = random.bits(key, (200000,)).to(torch.int64)
    ours = {
        "split": random.split(key, 5),
        "fold_in": random.fold_in(key, 77),
        "bits": random.bits(key, (3, 5)),
        "uniform": random.uniform(key, (3, 5)),
        "uniform -2.5 7": random.uniform(key, (3, 5), -2.5, 7.0),
        "uniform bfloat16": random.uniform(key, (7,), dtype=torch.bfloat16),
        "uniform float16": random.uniform(key, (7,), dtype=torch.float16),
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
    "uniform, bounds": lambda key: random.uniform(key, (5,), -1.0, 3.0),
    "uniform, float64": lambda key: random.uniform(key, (5,), dtype=torch.float64),
    "normal": lambda key: random.normal(key, (7,)),
    "normal, float64": lambda key: random.normal(key, (7,), torch.float64),
    "truncated_normal": lambda key: random.truncated_normal(key, -1.0, 2.0, (9,)),
    "bernoulli": lambda key: random.bernoulli(key, 0.3, (9,)),
    "randint": lambda key: random.randint(key, (9,), 0, 7),
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
    compiled = fnn.jit(vmap(draw), backend="aot_eager")
    assert torch.equal(compiled(keys), each)


def test_generated_code_gives_the_same_bits() -> None:
    draw = fnn.jit(lambda key: random.uniform(key, (1000,), -1.0, 3.0))
    assert torch.equal(draw(KEY), random.uniform(KEY, (1000,), -1.0, 3.0))


@pytest.mark.slow
def test_generated_code_gives_normal_numbers_within_rounding() -> None:
    draw = lambda key: random.normal(random.fold_in(key, 3), (1000,))
    torch.testing.assert_close(fnn.jit(draw)(KEY), draw(KEY), rtol=1e-5, atol=1e-5)


def test_long_draws_are_the_short_ones_continued() -> None:
    assert torch.equal(random.bits(KEY, (200001,))[:9], random.bits(KEY, (9,)))
    whole = random.uniform(KEY, (200001,))
    assert torch.equal(whole[random._CHUNK - 2 : random._CHUNK + 2], random.uniform(KEY, (70000,))[65534:65538])


def normal_distribution(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * (1 + torch.erf(x.double() / math.sqrt(2)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normal_has_its_distribution(dtype: torch.dtype) -> None:
    n = 400_000
    x = random.normal(KEY, (n,), dtype)
    ranks = torch.arange(1, n + 1, dtype=torch.float64) / n
    distance = float((normal_distribution(x.sort().values) - ranks).abs().max())
    assert distance < 1.63 / math.sqrt(n)  # Kolmogorov-Smirnov, 1 % level
    moments = [float((x.double() ** k).mean()) for k in (1, 2, 3, 4)]
    for moment, expected, variance in zip(moments, (0, 1, 0, 3), (1, 2, 15, 96), strict=True):
        assert abs(moment - expected) < 4 * math.sqrt(variance / n)
    halves = x[: n // 2] * x[n // 2 :]  # the two halves come from the same hashes
    assert abs(float(halves.double().mean())) < 4 / math.sqrt(n / 2)
    assert float(x.abs().max()) > 4


def test_truncated_normal_has_its_distribution() -> None:
    n = 200_000
    x = random.truncated_normal(KEY, -1.0, 2.0, (n,))
    assert float(x.min()) > -1
    assert float(x.max()) < 2
    low, high = normal_distribution(torch.tensor(-1.0)), normal_distribution(torch.tensor(2.0))
    ranks = torch.arange(1, n + 1, dtype=torch.float64) / n
    ours = (normal_distribution(x.sort().values) - low) / (high - low)
    assert float((ours - ranks).abs().max()) < 1.63 / math.sqrt(n)


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
    slope = grad(lambda high: random.uniform(KEY, (3,), 0.0, high).sum())(torch.tensor(2.0))
    assert float(slope) == pytest.approx(float(random.uniform(KEY, (3,)).sum()))


def test_like_gives_every_leaf_its_own_numbers() -> None:
    tree = {"b": torch.zeros(3), "a": torch.zeros(3, dtype=torch.float64)}
    draws = random.like(KEY, tree, random.uniform)
    assert list(draws) == ["b", "a"]
    assert draws["a"].dtype == torch.float64
    assert not torch.equal(draws["a"].float(), draws["b"])


def test_the_global_generator_is_not_touched() -> None:
    state = torch.random.get_rng_state()
    for draw in DRAWS.values():
        draw(KEY)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_bad_input_is_a_sentence() -> None:
    cases = [
        (lambda: random.uniform(7, (2,)), TypeError, r"fnn\.random\.key\(seed\), got 7"),
        (lambda: random.uniform(torch.zeros(2), (2,)), TypeError, r"int32 tensor of shape \(2,\).*float32"),
        (lambda: random.key(1.5), TypeError, "integer seed, got 1.5"),
        (lambda: random.key(2**70), ValueError, "64 bits"),
        (lambda: random.uniform(KEY, 3), ValueError, "tuple of integers"),
        (lambda: random.uniform(KEY, (-1,)), ValueError, "not negative"),
        (lambda: random.uniform(KEY, (2,), dtype=torch.int64), TypeError, "floating dtype"),
        (lambda: random.randint(KEY, (2,), 5, 5), ValueError, "minval=5, maxval=5"),
        (lambda: random.bits(KEY, (2**31,)), ValueError, "split the key"),
        (lambda: random.categorical(KEY, torch.zeros(2, 3), shape=(3,)), ValueError, r"does not end with .*\(2,\)"),
    ]
    for call, error, message in cases:
        with pytest.raises(error, match=message):
            call()
