"""Time of drawing random numbers by fnn.random, eager and compiled, and by torch's own generator."""

import torch

import fnn
from recipes.bench import harness


def main() -> None:
    count = 10_000_000
    key = fnn.random.key(0)
    uniform, normal = (
        fnn.jit(draw, static_argnums=1, backend="inductor") for draw in (fnn.random.uniform, fnn.random.normal)
    )
    seconds = harness.interleave(
        {
            "torch.randn": lambda: torch.randn(count),
            "torch.rand": lambda: torch.rand(count),
            "fnn.random.normal, eager": lambda: fnn.random.normal(key, (count,)),
            "fnn.random.normal, compiled": lambda: normal(key, (count,)),
            "fnn.random.uniform, eager": lambda: fnn.random.uniform(key, (count,)),
            "fnn.random.uniform, compiled": lambda: uniform(key, (count,)),
        },
        rounds=7,
    )
    rows = list(harness.ratios(seconds, "torch.randn").items())
    body = (
        f"Time to draw {count:,} float32 numbers over that of `torch.randn`, CPU. The time is proportional to "
        "the count, so the ratios are those of initialising a network of 138 million parameters.\n\n"
    )
    harness.report("random_numbers", "Random numbers", body + harness.table(["", "ratio"], rows))
