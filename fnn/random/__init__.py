"""Random numbers as pure functions of a key.

A key is an int32 tensor of shape (2,). Threefry-2x32 with 20 rounds (Salmon et al., 2011, "Parallel random numbers: as
easy as 1, 2, 3") hashes it together with a counter, in plain tensor operations. The same key therefore gives the same
bits on every device and torch version, in eager and compiled code, alone and under ``vmap`` over keys.

The layout and the conversions are those of ``jax.random`` (partitionable Threefry, JAX's default), so ``key``,
``split``, ``fold_in``, ``bits``, ``uniform``, ``randint``, ``bernoulli`` and ``permutation`` give JAX's numbers, with
two exceptions: a uniform draw that rounds up to ``maxval`` becomes the next smaller number (JAX returns ``maxval``),
and 16-bit probabilities are compared with 32-bit draws. :func:`normal` uses the Box-Muller transform, which is much
faster here than JAX's inverse error function, and so gives other numbers of the same distribution.

Bounds and probabilities are Python numbers, NumPy arrays or tensors. Arrays must broadcast to ``shape``, so that every
number of the result is an independent draw; otherwise a ``ValueError`` is raised, as in JAX.

No function here reads or changes torch's global generator.
"""

from fnn.random.continuous import like, normal, truncated_normal, uniform
from fnn.random.discrete import bernoulli, categorical, permutation, randint
from fnn.random.keys import bits, fold_in, key, split

__all__ = [
    "bernoulli",
    "bits",
    "categorical",
    "fold_in",
    "key",
    "like",
    "normal",
    "permutation",
    "randint",
    "split",
    "truncated_normal",
    "uniform",
]
