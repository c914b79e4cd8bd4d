"""Damping per layer, variances and draws from Kronecker factors, and predictive covariances, against dense matrices."""

import pytest
import torch
import torch.nn.functional as F

import fnn
from fnn.curvature import ekfac, kfac, predictive_covariance
from fnn.linalg import LinearOperator, identity_operator, matrix_operator

MODEL = fnn.models.mlp(3, 4, 2, activation=fnn.layers.tanh)
PARAMS = fnn.tree.cast(MODEL.init(fnn.random.key(0)), torch.float64)
X = fnn.random.normal(fnn.random.key(1), (5, 3), torch.float64)
DAMPING = {"0.weight": 0.1, "2.weight": torch.tensor(2.0, dtype=torch.float64)}
GROUPED = {
    "first": fnn.random.normal(fnn.random.key(2), (4, 2, 2), torch.float64),
    "bias": fnn.random.normal(fnn.random.key(3), (4,), torch.float64),
    "second": fnn.random.normal(fnn.random.key(4), (4, 3), torch.float64),
}
NETWORKS = {
    "mlp": (MODEL.apply, PARAMS, X, DAMPING),
    "groups and x @ weight": (
        lambda p, x: F.conv1d(x, p["first"], p["bias"], groups=2).tanh().sum(2) @ p["second"],
        GROUPED,
        fnn.random.normal(fnn.random.key(5), (5, 4, 3), torch.float64),
        {"first": 0.3, "second": 1.5},
    ),
}


@pytest.fixture(params=[(name, make) for name in NETWORKS for make in (kfac, ekfac)], ids=lambda case: case[1].__name__)
def case(request):
    name, make = request.param
    model, params, x, damping = NETWORKS[name]
    K = make(model, params, x, likelihood="normal")
    leaves = {path: K.blocks[path] for path in K.factors}
    by_leaf = fnn.tree.zeros_like(params)
    flat, treedef = fnn.tree.flatten(by_leaf)
    for path, block in leaves.items():
        for place in (block.weight, block.bias):
            if place is not None:
                flat[place] = torch.full_like(flat[place], float(damping[path]))
    dense = K.dense() + torch.diag(fnn.tree.ravel(treedef.unflatten(flat))[0])
    return K, damping, dense


def test_damping_for_each_layer(case):
    K, damping, dense = case
    torch.testing.assert_close(K.inverse(damping).dense(), torch.linalg.inv(dense))
    torch.testing.assert_close(K.log_determinant(damping), torch.logdet(dense))


def test_diagonals_are_those_of_the_dense_matrix(case):
    K, damping, dense = case
    for operator, expected in ((K, K.dense()), (K.inverse(damping), torch.linalg.inv(dense))):
        diagonal = operator.diagonal()
        torch.testing.assert_close(fnn.tree.ravel(diagonal)[0], expected.diagonal())
        memory = [leaf.untyped_storage().data_ptr() for leaf in fnn.tree.leaves((diagonal, operator.factors))]
        assert len(set(memory)) == len(memory)


def test_draws_have_the_covariance(case):
    """A draw is a matrix times normal numbers: that matrix, read off by its columns, times its transpose is exact."""
    K, damping, dense = case
    numbers = fnn.random.like(fnn.random.key(7), K.input)
    root = K._map_eigenvalues(torch.rsqrt, damping).dense()
    torch.testing.assert_close(root @ root.T, torch.linalg.inv(dense))
    drawn = fnn.tree.ravel(K.sample(fnn.random.key(7), damping))[0]
    torch.testing.assert_close(drawn, root @ fnn.tree.ravel(numbers)[0])


def test_many_draws():
    K = kfac(MODEL.apply, PARAMS, X).decomposed()
    count = 4000
    draws = torch.func.vmap(lambda key: K.sample(key, DAMPING))(fnn.random.split(fnn.random.key(3), count))
    rows = torch.func.vmap(lambda draw: fnn.tree.ravel(draw)[0])(draws)
    expected = K.inverse(DAMPING).dense()
    scale = expected.diagonal().sqrt()
    correlation = (rows.T @ rows / count - expected) / (scale[:, None] * scale)
    assert correlation.abs().max() < 5 / count**0.5 * 2**0.5
    assert (rows.mean(0) / scale).abs().max() < 5 / count**0.5


def test_sixteen_bits():
    params = fnn.tree.cast(PARAMS, torch.bfloat16)
    K = kfac(MODEL.apply, params, X.bfloat16(), likelihood="normal")
    for result in (K.sample(fnn.random.key(0), 0.1), K.inverse(0.1).diagonal()):
        assert fnn.tree.result_type(result) == torch.bfloat16
    exact = kfac(MODEL.apply, PARAMS, X, likelihood="normal").inverse(0.1).diagonal()
    difference = fnn.tree.sub(fnn.tree.cast(K.inverse(0.1).diagonal(), torch.float64), exact)
    assert fnn.tree.global_norm(difference) < 0.05 * fnn.tree.global_norm(exact)


def jacobian(model, params, x):
    vector, unravel = fnn.tree.ravel(params)
    return torch.func.jacrev(lambda v: model(unravel(v), x).flatten(1))(vector)


def test_predictive_covariance_is_that_of_the_linearised_network(case):
    K, damping, dense = case
    model, params, x, _ = next(n for n in NETWORKS.values() if n[3] is damping)
    J = jacobian(model, params, x)
    expected = J @ torch.linalg.inv(dense) @ J.mT
    for chunk_size in (None, 2):
        result = predictive_covariance(model, params, x, K.inverse(damping), chunk_size)
        torch.testing.assert_close(result, expected)


def test_predictive_covariance_of_any_operator_and_of_batches_with_labels():
    root = fnn.random.normal(fnn.random.key(9), (26, 26), torch.float64)
    matrix = root @ root.T
    S = LinearOperator(lambda v: fnn.tree.ravel(PARAMS)[1](matrix @ fnn.tree.ravel(v)[0]), PARAMS, symmetric=True)
    outputs = lambda p, batch: MODEL.apply(p, batch["x"]).unflatten(1, (1, 2))
    J = jacobian(MODEL.apply, PARAMS, X)
    batch = {"x": X, "y": torch.arange(5)}
    torch.testing.assert_close(predictive_covariance(outputs, PARAMS, batch, S), J @ matrix @ J.mT)
    flat = lambda v, x: x @ v[:, None]
    diagonal = torch.diag(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    expected = (X**2 * diagonal.diagonal()).sum(1)[:, None, None]
    torch.testing.assert_close(predictive_covariance(flat, X[0], X, matrix_operator(diagonal)), expected)


def test_compiled():
    def variances(params, x, new, key):
        K = kfac(MODEL.apply, params, x)
        S = K.inverse(DAMPING)
        return predictive_covariance(MODEL.apply, params, new, S), S.diagonal(), K.sample(key, DAMPING)

    arguments = PARAMS, X, X[:2], fnn.random.key(1)
    replayed = fnn.jit(variances, backend="replay")(*arguments)
    assert fnn.tree.allclose(replayed, variances(*arguments), rtol=1e-12, atol=1e-13)


ERRORS = {
    "a layer is missing": (
        lambda: kfac(MODEL.apply, PARAMS, X).inverse({"0.weight": 0.1}),
        r"expected \['0.weight', '2.weight'\], got \['0.weight'\]",
    ),
    "not a layer": (
        lambda: kfac(MODEL.apply, PARAMS, X).sample(fnn.random.key(0), {**DAMPING, "2.bias": 0.1}),
        r"got \['0.weight', '2.bias', '2.weight'\]",
    ),
    "negative": (
        lambda: kfac(MODEL.apply, PARAMS, X).log_determinant({**DAMPING, "0.weight": -1.0}),
        r"cannot be -1\.0",
    ),
    "another tree": (
        lambda: predictive_covariance(MODEL.apply, PARAMS, X, identity_operator(PARAMS["0"])),
        r"covariance\.input and params differ at \['bias'\]",
    ),
    "not an operator": (lambda: predictive_covariance(MODEL.apply, PARAMS, X, 3.0), "LinearOperator or a matrix"),
    "not a tensor": (
        lambda: predictive_covariance(lambda p, x: {"y": MODEL.apply(p, x)}, PARAMS, X, identity_operator(PARAMS)),
        "one tensor, got dict",
    ),
    "chunk size": (
        lambda: predictive_covariance(MODEL.apply, PARAMS, X, identity_operator(PARAMS), 0),
        "chunk_size",
    ),
    "no samples": (lambda: predictive_covariance(MODEL.apply, PARAMS, X[:0], identity_operator(PARAMS)), "no samples"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_sentences(name):
    call, words = ERRORS[name]
    with pytest.raises((ValueError, TypeError), match=words):
        call()
