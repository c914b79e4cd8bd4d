"""Sparse Jacobians: patterns that are too small, given as sparse tensors, and found by probing."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

import fnn
from fnn.jacobian import blocks_to_matrix, colours, dense_jacobian, detect_pattern, sparse_jacobian

X = fnn.random.normal(fnn.random.key(0), (9,), torch.float64)
BAND = torch.ones(9, 9).triu(-1).tril(1)


def stencil(x):
    padded = torch.cat([x.new_zeros(1), x, x.new_zeros(1)])
    return torch.sin(padded[:-2]) + x * padded[2:]


def tall(x):
    """Rows share columns: coloured by rows."""
    return torch.stack([x.sum(), (x**2).sum()])


def test_every_pattern_that_lacks_an_entry_is_refused():
    full = dense_jacobian(stencil)(X)
    for place in full.nonzero():
        pattern = BAND.clone()
        pattern[tuple(place)] = 0
        with pytest.raises(ValueError, match=r"too small for this x.*detect_pattern"):
            sparse_jacobian(stencil, pattern)(X)
    torch.testing.assert_close(sparse_jacobian(stencil, BAND)(X).dense(), full)
    for column in range(9):
        pattern = torch.ones(2, 9)
        pattern[1, column] = 0
        with pytest.raises(ValueError, match="column"):
            sparse_jacobian(tall, pattern)(X)
    torch.testing.assert_close(sparse_jacobian(tall, torch.ones(2, 9))(X).dense(), dense_jacobian(tall)(X))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("chunk_size", [None, 1, 2])
def test_right_patterns_pass_in_every_magnitude(dtype, chunk_size):
    for scale in (1e-6, 1.0, 1e6):
        f = lambda x, scale=scale: scale * stencil(x) * torch.logspace(-3, 3, 9, dtype=x.dtype)
        for draw in fnn.random.split(fnn.random.key(1), 5):
            x = fnn.random.normal(draw, (9,), dtype)
            torch.testing.assert_close(sparse_jacobian(f, BAND, chunk_size)(x).dense(), dense_jacobian(f)(x))


def test_the_check_can_be_left_out():
    pattern = torch.eye(9)
    assert sparse_jacobian(stencil, pattern, check=False)(X).values.shape == (9,)


def test_where_numbers_cannot_be_read_a_wrong_pattern_gives_nan():
    wrong, right = sparse_jacobian(stencil, torch.eye(9)), sparse_jacobian(stencil, BAND)
    xs = torch.stack([X, 2.0 * X])
    assert torch.func.vmap(lambda x: wrong(x).dense())(xs).isnan().any((1, 2)).all()
    expected = torch.stack([dense_jacobian(stencil)(x) for x in xs])
    torch.testing.assert_close(torch.func.vmap(lambda x: right(x).dense())(xs), expected)
    traced = make_fx(lambda x: (wrong(x).values, right(x).dense()), tracing_mode="fake", _allow_non_fake_inputs=True)(X)
    values, dense = traced(X)
    assert values.isnan().all()
    torch.testing.assert_close(dense, expected[0])
    gradient = torch.func.grad(lambda x: right(x).dense().sum())(X)
    torch.testing.assert_close(gradient, torch.func.grad(lambda x: dense_jacobian(stencil)(x).sum())(X))


@pytest.mark.parametrize("layout", ["coo", "csr", "bool", "int"])
def test_patterns_of_every_layout(layout):
    pattern = {"coo": BAND.to_sparse(), "csr": BAND.to_sparse_csr(), "bool": BAND.bool(), "int": BAND.long()}[layout]
    assert torch.equal(colours(pattern), colours(BAND))
    torch.testing.assert_close(sparse_jacobian(stencil, pattern)(X).dense(), dense_jacobian(stencil)(X))
    stored_zero = torch.sparse_coo_tensor(torch.tensor([[0, 0], [0, 1]]), torch.tensor([1.0, 0.0]), (1, 2))
    assert torch.equal(colours(stored_zero), torch.tensor([0, 0]))


def test_a_large_sparse_pattern_is_never_made_dense():
    n = 20_000
    index = torch.arange(n)
    pattern = torch.sparse_coo_tensor(torch.stack([index, index]), torch.ones(n), (n, n))
    found = sparse_jacobian(torch.sin, pattern)(torch.zeros(n))
    assert torch.equal(found.values, torch.ones(n))


def test_patterns_are_detected():
    expected = dense_jacobian(stencil)(X) != 0
    assert torch.equal(detect_pattern(stencil, X), expected)
    assert torch.equal(detect_pattern(stencil, torch.zeros(9), chunk_size=2), expected)  # at 0 alone J is diagonal
    tree = {"a": X[:3], "b": X[3:]}
    of_tree = lambda t: {"u": t["a"] ** 2, "v": t["b"] * t["a"][0]}
    expected = blocks_to_matrix(dense_jacobian(of_tree)(tree), tree)
    assert torch.equal(detect_pattern(of_tree, tree), expected != 0)
    detected = sparse_jacobian(of_tree, "detect")
    for scale in (1.0, 2.0):
        at = fnn.tree.scale(scale, tree)
        torch.testing.assert_close(detected(at).dense(), blocks_to_matrix(dense_jacobian(of_tree)(at), at))
    with pytest.raises(ValueError, match=r"detect_pattern\(f, x\) before"):
        torch.func.vmap(lambda x: sparse_jacobian(stencil, "detect")(x).values)(torch.stack([X, X]))
    with pytest.raises(ValueError, match="'banded'"):
        sparse_jacobian(stencil, "banded")
    branch = lambda x: torch.where(x > 10.0, x.flip(0), x)
    with pytest.raises(ValueError, match="too small"):
        sparse_jacobian(branch, "detect")(X), sparse_jacobian(branch, detect_pattern(branch, X))(100.0 + X)


def test_results_own_their_memory():
    function = sparse_jacobian(stencil, BAND)
    first, second = function(X), function(X)
    for one, other in zip(first[:3], second[:3], strict=True):
        assert one.untyped_storage().data_ptr() != other.untyped_storage().data_ptr()


@pytest.mark.parametrize("f", [stencil, tall, lambda x: x[2:5].sin(), lambda x: torch.cat([x, x.flip(0) ** 2])])
def test_every_form_of_a_sparse_jacobian_is_the_dense_one(f):
    expected = dense_jacobian(f)(X)
    sparse = sparse_jacobian(f, "detect")(X)
    assert sparse.shape == tuple(expected.shape)
    torch.testing.assert_close(sparse.dense(), expected)
    torch.testing.assert_close(sparse.to_sparse().to_dense(), expected)
    for layout in (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc):
        pattern = (-(expected != 0).double()).to_sparse(layout=layout)  # any number but zero marks an entry
        torch.testing.assert_close(sparse_jacobian(f, pattern)(X).dense(), expected)


def test_an_entry_that_differs_from_zero_at_one_of_the_points_is_in_the_pattern():
    here = lambda x: torch.where((x == X).all(), x, x.detach())  # no derivative anywhere but at X
    near = lambda x: (x - X) ** 2  # none at X
    both = lambda x: here(x) + near(x.flip(0) - X.flip(0) + X)
    assert torch.equal(detect_pattern(here, X), torch.eye(9) == 1)
    assert torch.equal(detect_pattern(near, X), torch.eye(9) == 1)
    assert torch.equal(detect_pattern(both, X), (torch.eye(9) + torch.eye(9).flip(0)) > 0)


def test_a_detected_pattern_grows_where_it_is_too_small():
    branch = lambda x: torch.where(x > 10.0, x.flip(0) ** 2, x)
    found = sparse_jacobian(branch, "detect")
    for x in (X, X + 100.0, X):
        torch.testing.assert_close(found(x).dense(), dense_jacobian(branch)(x))
    with pytest.raises(ValueError, match="pattern='detect' needs the check"):
        sparse_jacobian(branch, "detect", check=False)
