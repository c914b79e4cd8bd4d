"""Operators against dense matrices from plain torch.func in float64."""

import pytest
import torch

import fnn
from fnn.curvature import empirical_fisher_operator, fisher_operator, fisher_product, ggn_operator, hessian_operator
from fnn.jacobian import jacobian_operator
from fnn.linalg import LinearOperator, identity_operator, matrix_operator

MODEL = fnn.models.mlp(4, 5, 3, activation=fnn.layers.tanh)
PARAMS = fnn.tree.cast(MODEL.init(fnn.random.key(0)), torch.float64)
X = fnn.random.normal(fnn.random.key(1), (7, 4), torch.float64)
Y = fnn.random.randint(fnn.random.key(2), (7,), 0, 3)
BATCHES = [(X[:2], Y[:2]), (X[2:], Y[2:])]
VECTOR, UNRAVEL = fnn.tree.ravel(PARAMS)
N = len(VECTOR)


def model_fn(params, batch):
    return MODEL.apply(params, batch[0])


def loss_fn(output, batch):
    return fnn.losses.cross_entropy(output, batch[1])


def loss(params, batch):
    return loss_fn(model_fn(params, batch), batch)


def dense_jacobian():
    return torch.func.jacrev(lambda v: MODEL.apply(UNRAVEL(v), X).reshape(-1))(VECTOR)


def dense_hessian():
    return torch.func.hessian(lambda v: loss(UNRAVEL(v), (X, Y)))(VECTOR)


def dense_ggn():
    p = torch.softmax(MODEL.apply(PARAMS, X), 1)
    blocks = torch.block_diag(*[torch.diag(row) - torch.outer(row, row) for row in p]) / len(X)
    return dense_jacobian().T @ blocks @ dense_jacobian()


def losses_fn(params, batch):
    return fnn.losses.cross_entropy(model_fn(params, batch), batch[1], reduction="none")


def dense_empirical_fisher():
    grads = torch.func.jacrev(lambda v: losses_fn(UNRAVEL(v), (X, Y)))(VECTOR)
    return grads.T @ grads / len(X)


MAKERS = {
    "jacobian": (lambda **data: jacobian_operator(model_fn, PARAMS, **data), dense_jacobian),
    "hessian": (lambda **data: hessian_operator(loss, PARAMS, **data), dense_hessian),
    "ggn": (lambda **data: ggn_operator(model_fn, loss_fn, PARAMS, **data), dense_ggn),
    "fisher": (lambda **data: fisher_operator(model_fn, PARAMS, **data), dense_ggn),
    "empirical fisher": (
        lambda **data: empirical_fisher_operator(losses_fn, PARAMS, **data),
        dense_empirical_fisher,
    ),
}


@pytest.mark.parametrize("data", [{"batch": (X, Y)}, {"batches": BATCHES}], ids=["batch", "batches"])
@pytest.mark.parametrize("name", MAKERS)
def test_dense_equals_torch_func(name, data):
    make, dense = MAKERS[name]
    operator, matrix = make(**data), dense()
    torch.testing.assert_close(operator.dense(chunk_size=5), matrix, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(operator.T.dense(), matrix.T, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("likelihood", ["normal", "bernoulli"])
def test_fisher_likelihoods(likelihood):
    output = MODEL.apply(PARAMS, X).reshape(-1)
    p = torch.sigmoid(output)
    middle = torch.ones_like(output) if likelihood == "normal" else p * (1 - p)
    expected = dense_jacobian().T @ (middle[:, None] * dense_jacobian()) / len(X)
    operator = fisher_operator(model_fn, PARAMS, batches=BATCHES, likelihood=likelihood)
    torch.testing.assert_close(operator.dense(), expected, rtol=1e-11, atol=1e-13)


def test_monte_carlo_fisher_is_one_matrix_with_draws_of_its_own_for_each_batch():
    key = fnn.random.key(5)
    operator = fisher_operator(model_fn, PARAMS, batches=BATCHES, key=key, draws=3)
    expected = torch.zeros(N, N, dtype=torch.float64)
    for number, batch in enumerate(BATCHES):  # one batch's draws by the product, at the basis
        draws = fnn.random.fold_in(key, number)
        product = lambda v, batch=batch, draws=draws: fisher_product(
            lambda p: model_fn(p, batch), (PARAMS,), (UNRAVEL(v),), "categorical", draws, 3
        )[1]
        rows = torch.stack([fnn.tree.ravel(product(v))[0] for v in torch.eye(N, dtype=torch.float64)])
        expected = expected + len(batch[0]) / len(X) * rows
    torch.testing.assert_close(operator.dense(), expected, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(operator.dense(chunk_size=4), operator.T.dense(), rtol=1e-11, atol=1e-13)
    assert torch.linalg.matrix_rank(operator.dense()) <= 3 * len(X)
    twice = fisher_operator(model_fn, PARAMS, batches=[(X, Y), (X, Y)], key=key)
    assert not torch.allclose(twice.dense(), fisher_operator(model_fn, PARAMS, (X, Y), key=key).dense())


@pytest.mark.slow
def test_monte_carlo_fisher_tends_to_the_exact_one():
    drawn = fisher_operator(model_fn, PARAMS, (X, Y), key=fnn.random.key(6), draws=4000).dense()
    assert (drawn - dense_ggn()).norm() < 0.1 * dense_ggn().norm()


@pytest.mark.parametrize("name", MAKERS)
def test_tree_flat_and_matrix_products_agree_also_compiled(name):
    operator = MAKERS[name][0](batch=(X, Y))
    v = fnn.random.like(fnn.random.key(3), PARAMS)
    flat = fnn.tree.ravel(v)[0]
    result = operator @ v
    assert fnn.tree.structure(result) == fnn.tree.structure(operator.output)
    expected = fnn.tree.ravel(result)[0]
    torch.testing.assert_close(operator @ flat, expected)
    torch.testing.assert_close(operator @ torch.stack([flat, 2 * flat], 1), torch.stack([expected, 2 * expected], 1))
    compiled = fnn.jit(lambda v: operator(v), backend="aot_eager")
    torch.testing.assert_close(compiled(flat), expected)


def test_algebra():
    a = torch.arange(6.0, dtype=torch.float64).reshape(2, 3)
    b = torch.tensor([[1.0, 2.0], [3.0, 5.0], [0.0, 1.0]], dtype=torch.float64)
    A, B = matrix_operator(a), matrix_operator(b)
    cases = {
        "sum": (A + B.T, a + b.T),
        "difference": (A - B.T, a - b.T),
        "scaled": (2.0 * A * torch.tensor(3.0), 6 * a),
        "divided": (A / 4, a / 4),
        "composed": (A @ B, a @ b),
        "damped": ((A @ B).damped(0.5), a @ b + 0.5 * torch.eye(2)),
    }
    for name, (operator, matrix) in cases.items():
        torch.testing.assert_close(operator.dense(), matrix.double(), msg=name)
        torch.testing.assert_close(operator.T.dense(), matrix.double().T, msg=name)
    assert (A.T @ A).symmetric
    assert (A @ A.T).symmetric
    assert not (A @ B).symmetric
    assert A.T.T is A


def test_compiled_operators_take_tensors_on_the_right_and_numbers_on_both_sides():
    v, c = fnn.random.like(fnn.random.key(3), VECTOR), torch.tensor(3.0).double()

    def products(params, v, c):
        H = hessian_operator(loss, params, (X, Y))
        J = jacobian_operator(model_fn, params, (X, Y))
        return J @ v, (H @ torch.stack([v, 2 * v], 1)), ((c * J) / c) @ v

    compiled = fnn.jit(products, backend="aot_eager")
    torch.testing.assert_close(compiled(PARAMS, v, c), products(PARAMS, v, c))
    with pytest.raises(TypeError, match=r"on which side.*write A\(x\)"):
        fnn.jit(lambda v: unsymmetric() @ v, backend="aot_eager")(v)
    with pytest.raises(TypeError, match=r"stands on the left.*A\.T @ x"):
        v @ hessian_operator(loss, PARAMS, (X, Y))


def unsymmetric():
    return LinearOperator(lambda v: v * torch.arange(N), VECTOR)


def test_restriction_is_the_block():
    operator = hessian_operator(loss, PARAMS, (X, Y))
    chosen = torch.cat([torch.full((leaf.numel(),), path.startswith("2")) for path, leaf in fnn.tree.items(PARAMS)])
    block = operator.restrict(lambda path: path.startswith("2"))
    assert block.symmetric
    torch.testing.assert_close(block.dense(), dense_hessian()[chosen][:, chosen])
    columns = jacobian_operator(model_fn, PARAMS, (X, Y)).restrict(lambda path: path.startswith("2"), side="input")
    torch.testing.assert_close(columns.dense(), dense_jacobian()[:, chosen])
    torch.testing.assert_close(columns.T.dense(), dense_jacobian()[:, chosen].T)


def test_to_scipy_finds_the_top_eigenvalue():
    linalg = pytest.importorskip("scipy.sparse.linalg", reason="SciPy is the reference")
    operator = ggn_operator(model_fn, loss_fn, PARAMS, (X, Y))
    top = linalg.eigsh(operator.to_scipy(), k=1, return_eigenvectors=False)[0]
    assert top == pytest.approx(torch.linalg.eigvalsh(dense_ggn())[-1].item(), rel=1e-9)
    jacobian = jacobian_operator(model_fn, PARAMS, (X, Y)).to_scipy()
    assert linalg.svds(jacobian, k=1, return_singular_vectors=False)[0] == pytest.approx(
        torch.linalg.matrix_norm(dense_jacobian(), 2).item(), rel=1e-9
    )


def test_ggn_equals_curvlinops():
    curvlinops = pytest.importorskip("curvlinops", reason="curvlinops is the reference")
    net = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3)).double()
    net.load_state_dict(fnn.tree.to_state_dict(PARAMS))
    named = dict(net.named_parameters())
    peer = curvlinops.GGNLinearOperator(net, torch.nn.CrossEntropyLoss(), list(named.values()), BATCHES)
    order = torch.cat(
        [
            VECTOR.new_tensor(range(N)).split([leaf.numel() for leaf in fnn.tree.leaves(PARAMS)])[
                fnn.tree.paths(PARAMS).index(name)
            ]
            for name in named
        ]
    ).long()
    expected = peer @ torch.eye(N, dtype=torch.float64)
    actual = ggn_operator(model_fn, loss_fn, PARAMS, batches=BATCHES).dense()
    torch.testing.assert_close(actual[order][:, order], expected, rtol=1e-10, atol=1e-12)


ERRORS = {
    "wrong path": (lambda H: H @ {"0": PARAMS["0"]}, ValueError, r"\['2'\]"),
    "wrong shape": (lambda H: H @ fnn.tree.replace(PARAMS, "0.bias", torch.zeros(9).double()), ValueError, r"\(9,\)"),
    "wrong dtype": (lambda H: H @ fnn.tree.cast(PARAMS, torch.float32), ValueError, r"float32"),
    "wrong length": (lambda H: H @ torch.zeros(3), ValueError, r"shape \(3,\)"),
    "sum of different trees": (lambda H: H + identity_operator(torch.zeros(2)), ValueError, "right.input"),
    "product by *": (lambda H: H * H, TypeError, "A @ x"),
    "damped Jacobian": (lambda H: jacobian_operator(model_fn, PARAMS, (X, Y)).damped(1.0), ValueError, "damped"),
    "no path": (lambda H: H.restrict(lambda path: False), ValueError, "the paths are"),
    "no batches": (lambda H: hessian_operator(loss, PARAMS, batches=[]), ValueError, "empty"),
    "iterator": (lambda H: hessian_operator(loss, PARAMS, batches=iter(BATCHES)), ValueError, r"list\(batches\)"),
    "batch and batches": (lambda H: hessian_operator(loss, PARAMS, (X, Y), batches=BATCHES), ValueError, "not both"),
    "ragged batch": (lambda H: hessian_operator(loss, PARAMS, batches=[(X, Y[:2])]), ValueError, "first axis"),
    "loss per sample": (
        lambda H: hessian_operator(lambda p: p, torch.zeros(2)) @ torch.zeros(2),
        ValueError,
        "loss.mean",
    ),
    "integer leaf": (lambda H: hessian_operator(loss, {"n": torch.tensor(1)}), TypeError, r"\['n'\]"),
    "likelihood": (lambda H: fisher_operator(model_fn, PARAMS, (X, Y), likelihood="poisson"), ValueError, "poisson"),
    "samples": (
        lambda H: fisher_operator(model_fn, PARAMS, (X, Y), key=fnn.random.key(0), draws=0),
        ValueError,
        "draws=0",
    ),
    "mean loss": (
        lambda H: empirical_fisher_operator(loss, PARAMS, (X, Y)) @ PARAMS,
        ValueError,
        "reduction='none'",
    ),
    "no transpose": (lambda H: LinearOperator(lambda v: v, torch.zeros(2)).T, ValueError, "rmatvec"),
    "chunk size": (lambda H: H.dense(chunk_size=0), ValueError, "positive"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_sentences(name):
    call, kind, words = ERRORS[name]
    with pytest.raises(kind, match=words):
        call(hessian_operator(loss, PARAMS, (X, Y)))
