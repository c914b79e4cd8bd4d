"""Diagonals of the curvature of each sample, against a loop over dense Jacobians, operators, and BackPACK."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fnn
from fnn.curvature import ggn_diagonal, per_sample_fisher_diagonal, per_sample_ggn_diagonal

key = fnn.random.key
tanh, linear = fnn.layers.tanh, fnn.layers.linear
POSITIONWISE = fnn.layers.sequential(linear(4, 5), tanh, linear(5, 3))
NETWORKS = {
    "mlp": (fnn.models.mlp(4, 5, 3, activation=tanh), (4,)),
    "convolution": (
        fnn.layers.sequential(fnn.layers.conv2d(2, 3, 2), tanh, fnn.layers.flatten, linear(12, 3)),
        (2, 3, 3),
    ),
    "sequence": (
        fnn.Layer(POSITIONWISE.init, lambda p, x: POSITIONWISE.apply(p, x).movedim(-1, 1)),  # (samples, 3, positions)
        (2, 4),
    ),
}
MODULES = {
    "mlp": lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)),
    "convolution": lambda: nn.Sequential(nn.Conv2d(2, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3)),
}
LIKELIHOODS = ["categorical", "normal", "bernoulli"]


def problem(name):
    model, shape = NETWORKS[name]
    params = fnn.tree.cast(model.init(key(0)), torch.float64)
    return model.apply, params, fnn.random.normal(key(1), (5, *shape), torch.float64)


def rows(tree):
    return torch.func.vmap(lambda row: fnn.tree.ravel(row)[0])(tree)


def by_dense_matrices(apply, params, x, middle):
    """The diagonal of J^T middle(output) J of one sample after the other."""
    vector, unravel = fnn.tree.ravel(params)
    diagonals = []
    for row in x:
        f = lambda v, row=row: apply(unravel(v), row[None])[0]
        output = f(vector)
        J = torch.func.jacrev(f)(vector).reshape(output.numel(), -1)
        diagonals.append((J.T @ middle(output).reshape(len(J), len(J)) @ J).diagonal())
    return torch.stack(diagonals)


def log_likelihood_hessian(likelihood):
    """The Hessian of the negative logarithm, whose value at the label does not enter it."""
    negative = {
        "categorical": lambda out: out.logsumexp(0).sum(),
        "normal": lambda out: 0.5 * out.square().sum(),
        "bernoulli": lambda out: F.softplus(out).sum(),
    }
    return torch.func.hessian(negative[likelihood])


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("name", NETWORKS)
def test_exact_fisher_diagonals_equal_a_loop_over_dense_matrices(name, likelihood):
    apply, params, x = problem(name)
    expected = by_dense_matrices(apply, params, x, log_likelihood_hessian(likelihood))
    for chunk_size in (None, 2):
        result = per_sample_fisher_diagonal(apply, likelihood, chunk_size=chunk_size)(params, x)
        torch.testing.assert_close(rows(result), expected)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("name", NETWORKS)
def test_drawn_fisher_diagonals_take_the_draws_of_the_product_and_are_unbiased(name, likelihood):
    apply, params, x = problem(name)
    drawn = per_sample_fisher_diagonal(apply, likelihood, key(3), draws=4)(params, x)
    operator = lambda v: fnn.curvature.fisher_product(
        lambda p: apply(p, x), (params,), (v,), likelihood, key(3), draws=4
    )[1]
    basis = fnn.linalg.LinearOperator(operator, params, symmetric=True).dense()
    torch.testing.assert_close(rows(drawn).mean(0), basis.diagonal())
    if name == "mlp":
        many = rows(per_sample_fisher_diagonal(apply, likelihood, key(4), draws=200)(params, x[:2]))
        exact = rows(per_sample_fisher_diagonal(apply, likelihood)(params, x[:2]))
        torch.testing.assert_close(many, exact, rtol=0.4, atol=0.1 * float(exact.max()))


@pytest.mark.parametrize("name", NETWORKS)
def test_gauss_newton_diagonals_of_any_loss(name):
    apply, params, x = problem(name)
    target = fnn.random.normal(key(2), tuple(apply(params, x).shape), torch.float64)
    model = lambda p, batch: apply(p, batch[0])
    loss = lambda out, batch: fnn.losses.huber(out, batch[1])
    result = per_sample_ggn_diagonal(model, loss, chunk_size=3)(params, (x, target))
    targets = iter(target)

    def middle(out):
        y = next(targets)
        return torch.func.hessian(lambda out: F.huber_loss(out, y))(out)

    torch.testing.assert_close(rows(result), by_dense_matrices(apply, params, x, middle))
    mean = fnn.tree.map(lambda leaf: leaf.mean(0), result)
    assert fnn.tree.allclose(mean, ggn_diagonal(model, loss)(params, (x, target)), rtol=1e-10, atol=1e-12)
    memory = [leaf.untyped_storage().data_ptr() for leaf in fnn.tree.leaves((result, params))]
    assert len(set(memory)) == len(memory)


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("loss", ["cross-entropy", "mean squared error"])
def test_equals_backpack(name, loss):
    backpack = pytest.importorskip("backpack", reason="BackPACK is the reference")
    extensions = pytest.importorskip("backpack.extensions")
    apply, params, x = problem(name)
    net = MODULES[name]().double()
    net.load_state_dict(fnn.tree.to_state_dict(params))
    criterion = nn.CrossEntropyLoss(reduction="sum") if loss == "cross-entropy" else nn.MSELoss(reduction="sum")
    target = torch.tensor([0, 2, 1, 1, 0]) if loss == "cross-entropy" else torch.zeros(5, 3).double()
    net, criterion = backpack.extend(net), backpack.extend(criterion)
    with warnings.catch_warnings(), backpack.backpack(extensions.BatchDiagGGNExact()):
        warnings.simplefilter("ignore")
        criterion(net(x), target).backward()
    likelihood, scale = ("categorical", 1.0) if loss == "cross-entropy" else ("normal", 2.0)
    ours = fnn.tree.to_state_dict(per_sample_fisher_diagonal(apply, likelihood)(params, x))
    mine = (lambda out, y: fnn.losses.cross_entropy(out, y[1])) if loss == "cross-entropy" else None
    for path, leaf in net.named_parameters():
        torch.testing.assert_close(scale * ours[path], leaf.diag_ggn_exact_batch, msg=path)
    if mine is not None:
        general = per_sample_ggn_diagonal(lambda p, batch: apply(p, batch[0]), mine)(params, (x, target))
        assert fnn.tree.allclose(fnn.tree.to_state_dict(general), ours, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("drawn", [None, key(5)])
def test_transforms(drawn):
    apply, params, x = problem("mlp")
    diagonal = per_sample_fisher_diagonal(apply, key=drawn, draws=2)
    total = lambda p: sum(leaf.sum() for leaf in fnn.tree.leaves(diagonal(p, x)))
    step = fnn.jit(lambda p: (diagonal(p, x), torch.func.grad(total)(p)), backend="replay")
    for actual, expected in zip(
        fnn.tree.leaves(step(params)),
        fnn.tree.leaves((diagonal(params, x), torch.func.grad(total)(params))),
        strict=True,
    ):
        assert torch.equal(actual, expected)
    direction = fnn.random.like(key(6), params)
    slope = torch.func.jvp(total, (params,), (direction,))[1]
    torch.testing.assert_close(slope, fnn.tree.dot(torch.func.grad(total)(params), direction))
    ahead, behind = (total(fnn.tree.map(lambda p, d, s=s: p + s * d, params, direction)) for s in (1e-5, -1e-5))
    torch.testing.assert_close((ahead - behind) / 2e-5, slope, rtol=1e-6, atol=1e-8)
    stacked = fnn.tree.stack([params, fnn.tree.scale(2.0, params)])
    mapped = torch.func.vmap(lambda p: diagonal(p, x))(stacked)
    assert fnn.tree.allclose(fnn.tree.map(lambda leaf: leaf[0], mapped), diagonal(params, x), rtol=1e-12, atol=1e-14)


def test_sixteen_bits():
    apply, params, x = problem("mlp")
    exact = per_sample_fisher_diagonal(apply)(params, x)
    result = per_sample_fisher_diagonal(apply)(fnn.tree.cast(params, torch.bfloat16), x.bfloat16())
    assert fnn.tree.result_type(result) == torch.bfloat16
    difference = fnn.tree.global_norm(fnn.tree.sub(fnn.tree.cast(result, torch.float64), exact))
    assert difference < 0.05 * fnn.tree.global_norm(exact)


W, X = {"w": torch.ones(2, 3)}, torch.ones(4, 2)
MATMUL = lambda p, x: x @ p["w"]
ERRORS = {
    "likelihood": (lambda: per_sample_fisher_diagonal(MATMUL, "poisson"), "got 'poisson'"),
    "draws": (lambda: per_sample_fisher_diagonal(MATMUL, key=key(0), draws=0), "draws=0"),
    "chunk size": (lambda: per_sample_ggn_diagonal(MATMUL, torch.sum, chunk_size=0), "chunk_size"),
    "no logits": (lambda: per_sample_fisher_diagonal(lambda p, x: MATMUL(p, x).sum(1))(W, X), "needs logits"),
    "a scalar": (
        lambda: per_sample_fisher_diagonal(lambda p, x: MATMUL(p, x).sum(), "normal")(W, X),
        "first axis|batch",
    ),
    "a dict": (lambda: per_sample_fisher_diagonal(lambda p, x: {"y": MATMUL(p, x)})(W, X), "one tensor, got a dict"),
    "two lengths": (lambda: per_sample_ggn_diagonal(MATMUL, torch.sum)(W, (X, X[:2])), "has 2 samples"),
    "not a scalar loss": (lambda: per_sample_ggn_diagonal(MATMUL, lambda out, x: out)(W, X), "scalar"),
    "integers": (lambda: per_sample_fisher_diagonal(MATMUL)({"w": torch.ones(2, 3, dtype=torch.int64)}, X), r"\['w'\]"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_sentences(name):
    call, words = ERRORS[name]
    with pytest.raises((ValueError, TypeError), match=words):
        call()
