"""Writes tests/jax_table.json: what ``jax.random`` gives. Run where JAX is installed: python tests/make_jax_table.py"""

import json
from pathlib import Path

import jax
import numpy as np


def entry(key: jax.Array) -> dict:
    def plain(array: jax.Array) -> list:
        array = np.asarray(array)
        if array.dtype == np.uint32:
            array = array.view(np.int32)
        return array.tolist()  # float32 numbers are exact as Python floats

    return {
        "split": plain(jax.random.split(key, 5)),
        "fold_in": plain(jax.random.fold_in(key, 77)),
        "bits": plain(jax.random.bits(key, (3, 5))),
        "uniform": plain(jax.random.uniform(key, (3, 5))),
        "uniform -2.5 7": plain(jax.random.uniform(key, (3, 5), minval=-2.5, maxval=7.0)),
        "uniform bfloat16": plain(jax.random.uniform(key, (7,), "bfloat16").astype("float32")),
        "uniform float16": plain(jax.random.uniform(key, (7,), "float16").astype("float32")),
        **{
            f"uniform {name}, bounds": plain(jax.random.uniform(key, (40,), name, -2.5, 7.0).astype("float32"))
            for name in ("bfloat16", "float16")
        },
        "randint 64 bits": long_integers(key),
        "randint uint8": plain(jax.random.randint(key, (9,), 0, 256, "uint8")),
        "randint -5 1000": plain(jax.random.randint(key, (9,), -5, 1000)),
        "randint all": plain(jax.random.randint(key, (9,), -(2**31), 2**31 - 1)),
        "bernoulli 0.3": plain(jax.random.bernoulli(key, 0.3, (20,))),
        "permutation 10": plain(jax.random.permutation(key, 10)),
        "permutation 2000, first 10": plain(jax.random.permutation(key, 2000)[:10]),
        "bits 200000, sum and last": [
            int(np.asarray(jax.random.bits(key, (200000,))).view(np.int32).astype(np.int64).sum()),
            int(np.asarray(jax.random.bits(key, (200000,))).view(np.int32)[-1]),
        ],
    }


def long_integers(key: jax.Array) -> list:
    with jax.enable_x64(True):
        return np.asarray(jax.random.randint(key, (9,), -5, 2**40 + 3, "int64")).tolist()


if __name__ == "__main__":
    seeds = [0, 1, 42, 2**31 - 1, -3]
    table = {"jax": jax.__version__, "seeds": {str(s): entry(jax.random.PRNGKey(s)) for s in seeds}}
    Path(__file__).with_name("jax_table.json").write_text(json.dumps(table))
