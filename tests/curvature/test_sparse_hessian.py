"""Sparse Hessians against dense ones, star colourings against their definition, and patterns that are too small."""

import itertools

import pytest
import torch

import fnn
from fnn.curvature import dense_hessian, sparse_hessian
from fnn.curvature.sparse_hessian import star_colours

X = fnn.random.normal(fnn.random.key(0), (6,), torch.float64)
ARROW = torch.eye(6, dtype=torch.bool)
ARROW[-1] = ARROW[:, -1] = True
ENERGIES = {
    "chain": lambda x: ((x[1:] - x[:-1]) ** 4).sum() + x.sin().sum(),
    "arrow": lambda x: (x[:-1] ** 3 * x[-1]).sum() + x[-1] ** 4,
    "separate": lambda x: (x**4).sum(),
    "full": lambda x: x.prod() + (x.sum()) ** 3,
}
PRODUCTS = {"chain": 3, "arrow": 2, "separate": 1, "full": 6}


@pytest.mark.parametrize("name", ENERGIES)
@pytest.mark.parametrize("mode", ["auto", "forward-over-reverse"])
def test_a_sparse_hessian_is_the_dense_one(name, mode):
    energy, expected = ENERGIES[name], dense_hessian(ENERGIES[name])(X)
    for pattern in ("detect", expected != 0, (expected != 0).to_sparse()):
        found = sparse_hessian(energy, pattern, mode, chunk_size=2)(X)
        torch.testing.assert_close(found.dense(), expected)
    rows, columns = (expected != 0).nonzero().unbind(1)
    assert int(star_colours(rows, columns, 6).max()) + 1 == PRODUCTS[name]


def test_star_colourings_of_random_graphs():
    """Neighbours differ, and every path of four vertices has three colours."""
    for key in fnn.random.split(fnn.random.key(1), 20):
        upper = fnn.random.bernoulli(key, 0.3, (9, 9)).bool().triu(1)
        pattern = upper | upper.T
        rows, columns = pattern.nonzero().unbind(1)
        colour = star_colours(rows, columns, 9).tolist()
        for a, b, c, d in itertools.permutations(range(9), 4):
            if pattern[a, b]:
                assert colour[a] != colour[b]
            if pattern[a, b] and pattern[b, c] and pattern[c, d]:
                assert len({colour[a], colour[b], colour[c], colour[d]}) > 2
        weights = fnn.random.normal(key, (9, 9), torch.float64)
        H = (weights + weights.T) * (pattern + torch.eye(9))
        x = torch.zeros(9, dtype=torch.float64)
        found = sparse_hessian(lambda x, H=H: 0.5 * x @ H @ x, H != 0)(x)
        torch.testing.assert_close(found.dense(), H)


def test_trees_transforms_and_jit():
    tree = {"a": X[:2], "b": X[2:]}
    energy = lambda t: (t["a"].sum() * t["b"] ** 2).sum()
    H = fnn.jacobian.blocks_to_matrix(dense_hessian(energy)(tree), tree)
    torch.testing.assert_close(sparse_hessian(energy, "detect")(tree).dense(), H)
    chain = ENERGIES["chain"]
    band = torch.ones(6, 6).triu(-1).tril(1)
    made = sparse_hessian(chain, band)
    function = lambda x: made(x).dense()
    xs = torch.stack([X, 2.0 * X])
    expected = torch.stack([dense_hessian(chain)(x) for x in xs])
    torch.testing.assert_close(torch.func.vmap(function)(xs), expected)
    torch.testing.assert_close(fnn.jit(function)(X), expected[0])
    slope = torch.func.grad(lambda x: (dense_hessian(chain)(x) ** 2).sum())(X)
    torch.testing.assert_close(torch.func.grad(lambda x: (function(x) ** 2).sum())(X), slope)


def test_a_pattern_that_is_too_small_is_refused_or_grows():
    band = torch.eye(6)
    with pytest.raises(ValueError, match="sparse_hessian: the pattern is too small for this x: row"):
        sparse_hessian(ENERGIES["chain"], band)(X)
    assert torch.func.vmap(lambda x: sparse_hessian(ENERGIES["chain"], band)(x).values)(X[None]).isnan().all()
    branch = lambda x: torch.where(x[0] > 10.0, ENERGIES["full"](x), ENERGIES["chain"](x))
    found = sparse_hessian(branch, "detect")
    for x in (X, X + 20.0, X):
        torch.testing.assert_close(found(x).dense(), dense_hessian(branch)(x))


def test_errors_are_sentences():
    with pytest.raises(ValueError, match=r"pattern \(6, 6\) is not symmetric; write pattern \| pattern\.T"):
        sparse_hessian(ENERGIES["chain"], ARROW.triu())
    with pytest.raises(ValueError, match="input has 5 numbers, the pattern is for 6"):
        sparse_hessian(ENERGIES["chain"], ARROW)(X[:5])
    with pytest.raises(ValueError, match="pattern is a matrix or 'detect', got 'band'"):
        sparse_hessian(ENERGIES["chain"], "band")
    with pytest.raises(ValueError, match="pattern='detect' needs the check"):
        sparse_hessian(ENERGIES["chain"], "detect", check=False)
    with pytest.raises(ValueError, match="needs a function with a scalar value"):
        sparse_hessian(torch.sin, ARROW)(X)
    with pytest.raises(TypeError, match="complex128"):
        sparse_hessian(ENERGIES["chain"], ARROW)(X.to(torch.complex128))
