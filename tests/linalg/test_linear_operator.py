"""Operators against dense matrices from plain torch.func in float64."""

import gc
import weakref

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

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


def traced(f, *args):
    """f(*args) by a graph of f, as fnn.jit makes it."""
    return make_fx(f, tracing_mode="fake", _allow_non_fake_inputs=True)(*args)(*args)


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
def test_tree_flat_and_matrix_products_agree_also_traced(name):
    operator = MAKERS[name][0](batch=(X, Y))
    v = fnn.random.like(fnn.random.key(3), PARAMS)
    flat = fnn.tree.ravel(v)[0]
    result = operator @ v
    assert fnn.tree.structure(result) == fnn.tree.structure(operator.output)
    expected = fnn.tree.ravel(result)[0]
    torch.testing.assert_close(operator @ flat, expected)
    torch.testing.assert_close(operator @ torch.stack([flat, 2 * flat], 1), torch.stack([expected, 2 * expected], 1))
    torch.testing.assert_close(traced(lambda v: operator @ v, flat), expected)


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
    S = matrix_operator(a @ a.T)
    for name, (operator, matrix) in {
        "congruence": (A.T @ S @ A, a.T @ (a @ a.T) @ a),
        "congruence from the right": (A.T @ (S @ A), a.T @ (a @ a.T) @ a),
        "scaled inside": (A.T @ (2.0 * S) @ A, 2 * a.T @ (a @ a.T) @ a),
        "with transpose": (A @ B + (A @ B).T, a @ b + b.T @ a.T),
        "with transpose, written out": (A @ B + B.T @ A.T, a @ b + b.T @ a.T),
        "transposed twice": (A.T.T.T @ A, a.T @ a),
        "power": (S @ S @ S, torch.linalg.matrix_power(a @ a.T, 3)),
    }.items():
        assert operator.symmetric, name
        torch.testing.assert_close(operator.dense(), matrix.double(), msg=name)
    for operator in (A @ B, A @ matrix_operator(a.T.clone()), A.T @ (A @ B) @ A):
        assert not operator.symmetric


def test_traced_operators_take_tensors_on_the_right_and_numbers_on_both_sides():
    v, c = fnn.random.like(fnn.random.key(3), VECTOR), torch.tensor(3.0).double()

    def products(params, v, c):
        H = hessian_operator(loss, params, (X, Y))
        J = jacobian_operator(model_fn, params, (X, Y))
        return J @ v, H @ torch.stack([v, 2 * v], 1), ((c * J) / c) @ v

    torch.testing.assert_close(traced(products, PARAMS, v, c), products(PARAMS, v, c))


SQUARE = LinearOperator(lambda v: v * torch.arange(N), VECTOR)
SIDES = {
    "eager": lambda f: f(VECTOR),
    "vmap": lambda f: torch.func.vmap(f)(torch.stack([VECTOR, VECTOR])),
    "grad": lambda f: torch.func.grad(lambda v: f(v).sum())(VECTOR),
    "traced": lambda f: traced(f, VECTOR),
    "numpy": lambda f: f(VECTOR.numpy()),
    "matrix": lambda f: f(torch.stack([VECTOR, VECTOR])),
}


@pytest.mark.parametrize("name", SIDES)
@pytest.mark.parametrize("operator", [SQUARE, identity_operator(VECTOR), identity_operator(PARAMS)], ids=repr)
def test_an_operator_stands_on_the_left_everywhere(name, operator):
    with pytest.raises(TypeError, match=r"stands on the left.*A\.T @ x"):
        SIDES[name](lambda x: x @ operator)
    if name != "numpy":
        SIDES[name](lambda x: operator @ (x.T if x.dim() == 2 else x))


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


def operators():
    """One operator of every kind, with the matrix that it stands for."""
    a = fnn.random.normal(fnn.random.key(11), (4, 6), torch.float64)
    s = fnn.random.normal(fnn.random.key(12), (6, 6), torch.float64)
    s = s @ s.T
    A, S = matrix_operator(a), matrix_operator(s)
    like = {"w": torch.zeros(2, 2).double(), "b": torch.zeros(2).double()}
    space = fnn.tree.ravel(like)[1]
    T = LinearOperator(lambda t: space(s @ fnn.tree.ravel(t)[0]), like, symmetric=True)
    c = torch.tensor(1.5, dtype=torch.float32)
    keep = torch.tensor([True, True, False, False, False, False])
    return {
        "matrix": (A, a),
        "transpose": (A.T, a.T),
        "symmetric": (S, s),
        "of trees": (T, s),
        "sum": (A + A, 2 * a),
        "difference": (S - 2.0 * S, -s),
        "multiple": (c * A, 1.5 * a),
        "quotient": (A / 4, a / 4),
        "negative": (-A, -a),
        "product": (A @ S, a @ s),
        "gram": (A.T @ A, a.T @ a),
        "congruence": (A @ S @ A.T, a @ s @ a.T),
        "damped": (T.damped(0.3), s + 0.3 * torch.eye(6).double()),
        "restricted": (T.restrict({"b": True, "w": False}), s[keep][:, keep]),
        "columns": (T.restrict(lambda path: path == "b", side="input"), s[:, keep]),
        "rows": (T.restrict({"b": True, "w": False}, side="output"), s[keep]),
        "identity": (identity_operator(like), torch.eye(6).double()),
        "kronecker": (lambda K: (K, K.dense()))(fnn.curvature.kfac(MODEL.apply, PARAMS, X)),
        "inverse": (lambda K: (K, K.dense()))(fnn.curvature.kfac(MODEL.apply, PARAMS, X).inverse(0.1)),
    }


@pytest.mark.parametrize("name", operators())
def test_properties(name):
    operator, matrix = operators()[name]
    rows, columns = operator.shape
    v, w = (fnn.random.normal(fnn.random.key(i), (columns,), torch.float64) for i in (1, 2))
    u = fnn.random.normal(fnn.random.key(3), (rows,), torch.float64)
    close = lambda a, b: torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    close(operator.dense(), matrix.double())
    close(operator.dense(chunk_size=2), matrix.double())
    close(operator @ (2.0 * v - 3.0 * w), 2.0 * (operator @ v) - 3.0 * (operator @ w))
    close(u @ (operator @ v), (operator.T @ u) @ v)
    close(operator.T.dense(), matrix.double().T)
    assert operator.T.shape == (columns, rows)
    assert operator.T.symmetric == operator.symmetric
    if operator.symmetric:
        close(matrix, matrix.T)
    many = torch.stack([v, w], 1)
    close(operator @ many, matrix.double() @ many)
    close(torch.func.vmap(lambda x: operator @ x)(many.T), (matrix.double() @ many).T)
    close(torch.func.grad(lambda x: u @ (operator @ x))(v), matrix.double().T @ u)
    close(torch.func.jvp(lambda x: operator @ x, (v,), (w,))[1], matrix.double() @ w)
    close(traced(lambda x: operator @ x, v), matrix.double() @ v)
    close(fnn.tree.ravel(operator @ fnn.tree.ravel(operator.input)[1](v))[0], matrix.double() @ v)
    scipy = pytest.importorskip("scipy.sparse.linalg", reason="SciPy is the reference")
    theirs = operator.to_scipy()
    close(torch.as_tensor(theirs @ v.numpy()), matrix.double() @ v)
    close(torch.as_tensor(theirs.T @ u.numpy()), matrix.double().T @ u)
    assert isinstance(theirs, scipy.LinearOperator)


@pytest.mark.parametrize("name", operators())
def test_an_operator_and_what_it_holds_are_freed_at_once(name):
    gc.collect()
    gc.disable()
    try:
        operator = operators()[name][0]
        operator @ torch.zeros(operator.shape[1], dtype=torch.float64)
        derived = [operator.T, operator.T @ operator, operator * 2.0, operator + operator, operator.T.T]
        gone = [weakref.ref(o) for o in (operator, *derived)]
        del operator, derived
        assert not [ref() for ref in gone if ref() is not None]
    finally:
        gc.enable()


def test_operators_of_networks_are_freed_at_once():
    gc.collect()
    gc.disable()
    try:
        for make, _ in MAKERS.values():
            params = fnn.tree.map(torch.clone, PARAMS)
            held = weakref.ref(params["0"]["weight"])
            gradient = torch.func.grad(lambda p: loss(p, (X, Y)))
            operator = make(batch=(X, Y))
            operator.T @ (operator @ PARAMS)
            gone = weakref.ref(operator)
            del operator, gradient, params
            assert gone() is None
            assert held() is None
    finally:
        gc.enable()


def test_dtype_of_mixed_trees():
    like = {"a": torch.zeros(2, dtype=torch.float32), "b": torch.zeros(2, dtype=torch.float64)}
    half = {"a": torch.zeros(2, dtype=torch.bfloat16), "b": torch.zeros(2, dtype=torch.float16)}
    assert identity_operator(like).dtype == torch.float64
    assert identity_operator(half).dtype == torch.float32
    assert identity_operator({"a": like["a"]}).dtype == torch.float32
    result = (2.0 * identity_operator(like)) @ fnn.tree.ones_like(like)
    assert [leaf.dtype for leaf in fnn.tree.leaves(result)] == [torch.float32, torch.float64]
    doubled = torch.tensor(2.0, dtype=torch.float64) * identity_operator({"a": torch.tensor(1.0)})
    assert (doubled @ {"a": torch.tensor(1.0)})["a"].dtype == torch.float32
    with pytest.raises(ValueError, match=r"multiplies vectors of its dtype, got torch.float32"):
        identity_operator(like) @ torch.ones(4)
    torch.testing.assert_close(identity_operator(like).dense(), torch.eye(4, dtype=torch.float64))


def test_one_sided_restrictions_are_not_symmetric():
    H = hessian_operator(loss, PARAMS, (X, Y))
    for side, shape in {"input": (N, 18), "output": (18, N)}.items():
        block = H.restrict(lambda path: path.startswith("2"), side=side)
        assert block.shape == shape
        assert block.T.shape == shape[::-1]
        assert not block.symmetric
        torch.testing.assert_close(block.T.dense(), block.dense().T)
    whole = H.restrict(lambda path: True, side="input")
    assert not whole.symmetric  # what is not known is not guessed


def test_restrictions_by_trees_and_prefixes():
    H = hessian_operator(loss, PARAMS, (X, Y))
    expected = H.restrict(lambda path: path.startswith("2")).dense()
    for choice in (
        {"0": False, "2": True},
        {"0": {"weight": False, "bias": False}, "2": True},
        fnn.tree.map_with_path(lambda path, leaf: path.startswith("2"), PARAMS),
    ):
        torch.testing.assert_close(H.restrict(choice).dense(), expected)
    with pytest.raises(ValueError, match=r"\['2'\]"):
        H.restrict({"0": True})
    with pytest.raises(ValueError, match="nothing is chosen"):
        H.restrict({"0": False, "2": False})


@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (3, 1), (2, 1), (0, 2), (2, 0), (0, 0)])
def test_operators_of_few_rows_and_columns(shape):
    matrix = fnn.random.normal(fnn.random.key(3), shape, torch.float64)
    # two leaves, the second of which is empty, so that a side without numbers is a tree all the same
    tall = lambda count: {"a": torch.zeros(count, dtype=torch.float64), "b": torch.zeros(0, dtype=torch.float64)}
    rows, columns = map(tall, shape)
    product = lambda matrix, like: lambda v: like | {"a": matrix @ v["a"]}
    operator = LinearOperator(product(matrix, rows), columns, rows, product(matrix.T, columns))
    for op, expected in ((operator, matrix), (operator.T, matrix.T), (2 * operator + operator, 3 * matrix)):
        assert op.shape == expected.shape
        eye = torch.eye(expected.shape[1], dtype=torch.float64)
        for given in (op.dense(), op.dense(chunk_size=1), op @ eye, op.columns(eye, chunk_size=1)):
            assert given.shape == expected.shape
            torch.testing.assert_close(given, expected)


def test_results_own_their_memory():
    v = fnn.tree.ones_like(PARAMS)
    for result in (
        identity_operator(PARAMS) @ v,
        identity_operator(PARAMS).restrict({"0": True, "2": False}) @ {"0": v["0"]},
    ):
        storages = {leaf.untyped_storage().data_ptr() for leaf in fnn.tree.leaves(v)}
        assert not storages & {leaf.untyped_storage().data_ptr() for leaf in fnn.tree.leaves(result)}


def test_matrices_under_vmap():
    matrices = torch.stack([torch.eye(3), 2.0 * torch.eye(3)])
    x = torch.tensor([1.0, 2.0, 3.0])
    torch.testing.assert_close(torch.func.vmap(lambda m: matrix_operator(m) @ x)(matrices), matrices @ x)
    torch.testing.assert_close(torch.func.vmap(lambda m: matrix_operator(m).T @ x)(matrices), matrices.mT @ x)
    seen = []
    torch.func.vmap(lambda m: seen.append(matrix_operator(m).symmetric) or m)(matrices)
    traced(lambda m: seen.append(matrix_operator(m).symmetric) or m, matrices[0])
    torch.func.grad(lambda m: seen.append(matrix_operator(m).symmetric) or m.sum())(matrices[0])
    torch.func.vmap(lambda c: seen.append(matrix_operator(matrices[0]).symmetric) or c)(x)  # one that is not mapped
    assert seen == [False, False, True, True]
    assert matrix_operator(matrices[0], symmetric=False).symmetric is False
    torch.testing.assert_close(matrix_operator(torch.eye(3).to_sparse()).dense(), torch.eye(3))


ERRORS = {
    "wrong path": (lambda H: H @ {"0": PARAMS["0"]}, ValueError, r"\['2'\]"),
    "wrong shape": (lambda H: H @ fnn.tree.replace(PARAMS, "0.bias", torch.zeros(9).double()), ValueError, r"\(9,\)"),
    "wrong dtype": (lambda H: H @ fnn.tree.cast(PARAMS, torch.float32), ValueError, r"float32"),
    "wrong length": (lambda H: H @ torch.zeros(3), ValueError, r"shape \(3,\)"),
    "sum of different trees": (lambda H: H + identity_operator(torch.zeros(2)), ValueError, "right.input"),
    "product by *": (lambda H: H * H, TypeError, "A @ x"),
    "damped Jacobian": (lambda H: jacobian_operator(model_fn, PARAMS, (X, Y)).damped(1.0), ValueError, "damped"),
    "no path": (lambda H: H.restrict(lambda path: False), ValueError, "the paths are"),
    "side": (lambda H: H.restrict(lambda path: True, side="rows"), ValueError, "'rows'"),
    "restricted to both sides": (
        lambda H: jacobian_operator(model_fn, PARAMS, (X, Y)).restrict(lambda path: True),
        ValueError,
        "side='both'",
    ),
    "not a tree of tensors": (lambda H: H @ None, ValueError, "operator.input"),
    "an array": (lambda H: identity_operator(VECTOR) @ VECTOR.numpy(), ValueError, "not a tensor"),
    "other vector dtype": (lambda H: H @ torch.zeros(N), ValueError, r"x.to\(torch.float64\)"),
    "matvec gives another shape": (lambda H: LinearOperator(torch.sum, VECTOR) @ VECTOR, ValueError, "matvec returned"),
    "symmetric but not square": (
        lambda H: LinearOperator(lambda v: v[:2], VECTOR, VECTOR[:2], symmetric=True),
        ValueError,
        "symmetric operator's input",
    ),
    "integers": (lambda H: matrix_operator(torch.eye(2).long()), TypeError, "torch.int64"),
    "complex": (lambda H: identity_operator(torch.zeros(2, dtype=torch.complex64)), TypeError, "complex64"),
    "configuration": (lambda H: identity_operator({"n": 3}), TypeError, r"input\['n'\] is 3"),
    "no leaves": (lambda H: identity_operator({}), ValueError, "at least one tensor"),
    "a vector as matrix": (lambda H: matrix_operator(VECTOR), ValueError, r"\(rows, columns\), got shape"),
    "sum with a tensor": (lambda H: H.dense() + H, TypeError, r"A \+ matrix_operator\(matrix\)"),
    "sum with a number": (lambda H: H + 1.0, TypeError, r"A\.damped\(number\)"),
    "difference with a tensor": (lambda H: H - H.dense(), TypeError, r"A \+ matrix_operator\(matrix\)"),
    "multiple of an array": (lambda H: VECTOR.numpy() * H, TypeError, "number or a 0-d tensor"),
    "symmetric matrix that is not square": (
        lambda H: matrix_operator(torch.zeros(2, 3), symmetric=True),
        ValueError,
        "not square",
    ),
    "no batches": (lambda H: hessian_operator(loss, PARAMS, batches=[]), ValueError, "empty"),
    "iterator": (lambda H: hessian_operator(loss, PARAMS, batches=iter(BATCHES)), ValueError, r"list\(batches\)"),
    "batch and batches": (lambda H: hessian_operator(loss, PARAMS, (X, Y), batches=BATCHES), ValueError, "not both"),
    "ragged batch": (lambda H: hessian_operator(loss, PARAMS, batches=[(X, Y[:2])]), ValueError, "leading length"),
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


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_no_more_than_rounding_counts_as_symmetric(dtype):
    for n in (2, 30):
        b = fnn.random.normal(fnn.random.key(n), (n, n), torch.float64)
        product = (b @ b.T).to(dtype)
        rounded = product + product.mT * torch.finfo(dtype).eps * fnn.random.uniform(fnn.random.key(1), (n, n), dtype)
        assert matrix_operator(product).symmetric
        assert matrix_operator(rounded).symmetric
        for entry in (1, -1):
            wrong = product.clone()
            wrong[0, entry] += 30 * n**0.5 * torch.finfo(dtype).eps * product.abs().max()
            assert not matrix_operator(wrong).symmetric
