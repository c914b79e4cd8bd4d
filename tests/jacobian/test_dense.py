"""Whole matrices against plain torch.func in float64: blocks, modes, chunks, one graph, generated code."""

import pytest
import torch
import torch.nn.functional as F

import fnn
from fnn.curvature import dense_hessian, ggn_diagonal, ggn_product, hessian_diagonal, hessian_operator, hvp
from fnn.jacobian import (
    blocks_to_matrix,
    check_grads,
    colours,
    custom_jvp,
    dense_jacobian,
    detect_pattern,
    directional_derivatives,
    fixed_point,
    jacobian_operator,
    jmp,
    laplacian,
    linear_solve,
    linearize_by_vjp,
    mjp,
    ntk,
    root,
    sparse_jacobian,
)

MODEL = fnn.models.mlp(3, 4, 2, activation=fnn.layers.tanh)
PARAMS = fnn.tree.cast(MODEL.init(fnn.random.key(0)), torch.float64)
X = fnn.random.normal(fnn.random.key(1), (5, 3), torch.float64)
Y = fnn.random.randint(fnn.random.key(2), (5,), 0, 2)
VECTOR, UNRAVEL = fnn.tree.ravel(PARAMS)


def outputs(params, x):
    out = MODEL.apply(params, x)
    return {"b": out, "a": (out.sum(), x[0] * 2.0)}


def loss(params, x):
    return fnn.losses.cross_entropy(MODEL.apply(params, x), Y)


def close(ours, theirs):
    fnn.tree.map(lambda a, b: torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13), ours, theirs)


def dense(f):
    return torch.func.jacrev(lambda v: fnn.tree.ravel(f(UNRAVEL(v)))[0])(VECTOR)


@pytest.mark.parametrize("chunk_size", [None, 4])
@pytest.mark.parametrize("mode", ["auto", "forward", "reverse"])
def test_jacobian_has_torchs_blocks(mode, chunk_size):
    for argnums in (0, 1, (0, 1)):
        ours = dense_jacobian(outputs, argnums, mode, chunk_size)(PARAMS, X)
        theirs = torch.func.jacrev(outputs, argnums)(PARAMS, X)
        close(ours, theirs)
    blocks = dense_jacobian(outputs, 0, mode, chunk_size)(PARAMS, X)
    close(blocks_to_matrix(blocks, PARAMS), dense(lambda p: outputs(p, X)))
    assert blocks["a"][1]["0"]["weight"].shape == (3, 4, 3)


@pytest.mark.parametrize("chunk_size", [None, 7])
@pytest.mark.parametrize("mode", ["auto", "forward-over-reverse", "reverse-over-forward", "reverse-over-reverse"])
def test_hessian_has_torchs_blocks(mode, chunk_size):
    blocks = dense_hessian(loss, 0, mode, chunk_size)(PARAMS, X)
    theirs = torch.func.hessian(loss)(PARAMS, X)
    close(blocks, theirs)
    full = torch.func.hessian(lambda v: loss(UNRAVEL(v), X))(VECTOR)
    close(blocks_to_matrix(blocks, PARAMS), full)
    close(fnn.tree.ravel(hessian_diagonal(loss, 0, mode, chunk_size)(PARAMS, X))[0], full.diagonal())
    close(dense_hessian(loss, (0, 1), mode, chunk_size)(PARAMS, X), torch.func.hessian(loss, (0, 1))(PARAMS, X))


@pytest.mark.parametrize("chunk_size", [None, 3])
def test_diagonal_and_trace(chunk_size):
    p = torch.softmax(MODEL.apply(PARAMS, X), 1)
    J = dense(lambda p: MODEL.apply(p, X))
    H = torch.block_diag(*[torch.diag(row) - torch.outer(row, row) for row in p]) / len(X)
    compare = lambda out: fnn.losses.cross_entropy(out, Y)
    ours = ggn_diagonal(MODEL.apply, lambda out, x: compare(out), chunk_size)(PARAMS, X)
    close(fnn.tree.ravel(ours)[0], (J.T @ H @ J).diagonal())
    second = torch.func.hessian(lambda x: MODEL.apply(PARAMS, x[None])[0])(X[0])
    close(laplacian(MODEL.apply, 1, chunk_size)(PARAMS, X[:1])[0], second.diagonal(dim1=1, dim2=2).sum(-1))


def banded(x):
    return torch.sin(x) + F.pad(x[1:] ** 2, (0, 1)) - F.pad(x[:-1], (1, 0)) * x


TRIDIAGONAL = sparse_jacobian(banded, torch.ones(7, 7).triu(-1).tril(1))  # colouring is no graph


def everything(params, x):
    compare = lambda out: fnn.losses.cross_entropy(out, Y)
    return {
        "forward": dense_jacobian(outputs, 1, "forward", 6)(params, x),
        "reverse": dense_jacobian(outputs, 0, "reverse", 8)(params, x),
        "hessian": dense_hessian(loss, 1)(params, x),
        "diagonal": hessian_diagonal(loss, 1, chunk_size=8)(params, x),
        "ggn diagonal": ggn_diagonal(lambda x: MODEL.apply(params, x), compare)(x),
        "laplacian": laplacian(lambda p, x: MODEL.apply(p, x[None]), 1)(params, x[0]),
        "sparse": TRIDIAGONAL(x.flatten()[:7]).dense(),
        "per sample": torch.func.vmap(dense_jacobian(MODEL.apply, 1), (None, 0))(params, x),
    }


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["replay", "inductor"])
def test_one_graph_equals_eager(backend):
    close(fnn.jit(everything, backend=backend)(PARAMS, X), everything(PARAMS, X))


def test_auxiliary_output():
    f = lambda p, x: (loss(p, x), {"seen": x.sum()})
    for make in (dense_jacobian, dense_hessian):
        blocks, aux = make(f, has_aux=True)(PARAMS, X)
        close(blocks, make(loss)(PARAMS, X))
        assert torch.equal(aux["seen"], X.sum())


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_sparse_jacobian_takes_one_product_for_each_colour(chunk_size):
    band = torch.ones(50, 50).triu(-1).tril(1)
    assert int(colours(band).max()) + 1 == 3
    x = torch.linspace(0, 1, 50, dtype=torch.float64)
    found = sparse_jacobian(banded, band, chunk_size)(x)
    close(found.dense(), torch.func.jacrev(banded)(x))
    close(found.to_sparse().to_dense(), found.dense())
    first = lambda p: {"y": torch.cat([p["a"][:1] * p["b"].sum(), p["a"][1:] ** 2])}  # a dense row: reverse mode
    p = {"b": x[:4], "a": x[:6]}
    pattern = torch.cat([torch.eye(6), torch.zeros(6, 4)], 1)
    pattern[0] = 1
    assert int(colours(pattern).max()) + 1 > int(colours(pattern.T).max()) + 1 == 2
    close(sparse_jacobian(first, pattern)(p).dense(), blocks_to_matrix(dense_jacobian(first)(p), p))


def test_auto_needs_no_forward_rule():
    target = torch.zeros(3).double()
    f = lambda x: F.huber_loss(torch.sin(x), target)
    close(dense_hessian(f)(X[0]), torch.func.jacrev(torch.func.grad(f))(X[0]))
    tall = lambda x: torch.cat([Scaled.apply(x), x])
    close(dense_jacobian(tall)(X[0]), torch.func.jacrev(tall)(X[0]))


def test_a_leaf_without_elements():
    params = {"empty": torch.zeros(2, 0), "x": torch.ones(3)}
    f = lambda p: (p["x"] ** 3).sum() + p["empty"].sum()
    assert torch.equal(blocks_to_matrix(dense_hessian(f)(params), params), 6.0 * torch.eye(3))
    assert blocks_to_matrix(dense_jacobian(lambda p: p["x"] * 2.0)(params), params).shape == (3, 3)


def test_negative_argnums_count_from_the_end():
    close(dense_jacobian(outputs, -1)(PARAMS, X), dense_jacobian(outputs, 1)(PARAMS, X))
    close(dense_hessian(loss, (-2, -1))(PARAMS, X), dense_hessian(loss, (0, 1))(PARAMS, X))
    close(laplacian(loss, -1)(PARAMS, X), laplacian(loss, 1)(PARAMS, X))


def test_functions_without_forward_rules():
    """The Laplacian, derivatives along a direction and a whole Jacobian of torch's layer norm and attention."""
    weight = torch.linspace(-1, 1, 9, dtype=torch.float64).reshape(3, 3)
    native = lambda x: F.layer_norm(torch.tanh(weight @ x), (3,))
    written = lambda x: (
        (y := torch.tanh(weight @ x) - torch.tanh(weight @ x).mean()) / (y.square().mean() + 1e-5).sqrt()
    )
    x = X[0]
    H = torch.func.hessian(written)(x)
    close(laplacian(native)(x), H.diagonal(dim1=1, dim2=2).sum(-1))
    value, slope, second = directional_derivatives(native, (x,), (X[1],))
    close((value, slope, second), (written(x), torch.func.jacrev(written)(x) @ X[1], H @ X[1] @ X[1]))
    with pytest.raises(
        TypeError, match=r"third derivatives here, and those of native_layer_norm .*fnn.layers.layer_norm"
    ):
        directional_derivatives(native, (x,), (x,), 3)
    attend = lambda x: F.scaled_dot_product_attention(x[None], x[None] ** 2, x[None])[0]
    by_hand = lambda x: torch.softmax(x @ (x**2).T / 3**0.5, -1) @ x
    close(dense_jacobian(attend)(X), torch.func.jacrev(by_hand)(X))
    near = lambda x: torch.cdist(x, x[:2] + 1.0)
    distances = lambda x: (x[:, None] - x[None, :2] - 1.0).norm(dim=-1)
    for mode in ("auto", "reverse"):
        close(dense_jacobian(near, mode=mode)(X), torch.func.jacrev(distances)(X))
    if torch.__version__ >= "2.15":  # torch 2.13 has no rule for it, and the error says so
        close(dense_hessian(lambda x: near(x).sum())(X), torch.func.hessian(lambda x: distances(x).sum())(X))
    with pytest.raises(TypeError, match=r"cdist.* has a wrong backward rule under vmap"):
        torch.func.vmap(dense_jacobian(near))(X[None])


COMPLEX = torch.complex(X[0], X[1])
HOLOMORPHIC = {
    "entire": lambda z: {"a": z**3 + 2.0j * z, "b": torch.exp(z[:2])},
    "linear": lambda z: {"a": torch.complex(X[:, :3], -X[:, :3]) @ z},
}


@pytest.mark.parametrize("name", HOLOMORPHIC)
@pytest.mark.parametrize("mode", ["auto", "forward", "reverse"])
def test_holomorphic_jacobians_are_the_complex_derivatives(name, mode):
    """Against differences in a complex direction, which are the same in every direction."""
    f = HOLOMORPHIC[name]
    ours = dense_jacobian(f, mode=mode, holomorphic=True)(COMPLEX)
    for direction in (1.0, 1.0j):
        step = 1e-6 * direction
        units = torch.eye(3, dtype=torch.complex128)
        for column in range(3):
            high, low = f(COMPLEX + step * units[column]), f(COMPLEX - step * units[column])
            for key in high:
                difference = (high[key] - low[key]) / (2 * step)
                torch.testing.assert_close(ours[key][..., column], difference, rtol=1e-7, atol=1e-8)


def test_complex_numbers_are_jaxs_or_refused():
    jax = pytest.importorskip("jax", reason="JAX is the reference")
    jnp = jax.numpy
    with jax.enable_x64(True):
        z = jnp.array(COMPLEX.numpy())
        x = jnp.array(X[0].numpy())
        numbers = lambda a: torch.tensor(jax.device_get(a))
        ours = dense_jacobian(lambda z: torch.exp(z) * z[0], holomorphic=True, mode="reverse")(COMPLEX)
        close(ours, numbers(jax.jacrev(lambda z: jnp.exp(z) * z[0], holomorphic=True)(z)))
        ours = dense_jacobian(lambda x: torch.exp(1.0j * x))(X[0])
        close(ours, numbers(jax.jacfwd(lambda x: jnp.exp(1j * x))(x)))
        mixed = lambda z: z.conj() * z.real
        u = torch.complex(X[2], X[3])
        close(mjp(mixed, (COMPLEX,), u[None])[1][0], numbers(jax.vjp(lambda z: z.conj() * z.real, z)[1](u.numpy())[0]))
        slope = jax.jvp(lambda z: z.conj() * z.real, (z,), (jnp.array(u.numpy()),))[1]
        close(jmp(mixed, (COMPLEX,), (u[None],))[1][0], numbers(slope))
        close(linearize_by_vjp(mixed, COMPLEX)[1](u), numbers(slope))
    size = lambda z: z.abs().square().sum()
    calls = {
        "dense_jacobian": lambda: dense_jacobian(lambda z: z * 2)(COMPLEX),
        "mode='reverse'": lambda: dense_jacobian(lambda x: x * 1.0j, mode="reverse")(X[0]),
        "holomorphic=True needs": lambda: dense_jacobian(size, holomorphic=True)(COMPLEX),
        "hvp": lambda: hvp(size, (COMPLEX,), (COMPLEX,)),
        "dense_hessian": lambda: dense_hessian(size)(COMPLEX),
        "hessian_diagonal": lambda: hessian_diagonal(size)(COMPLEX),
        "hessian_operator": lambda: hessian_operator(size, COMPLEX),
        "ggn_product": lambda: ggn_product(torch.sin, size, (COMPLEX,), (COMPLEX,)),
        "ggn_diagonal": lambda: ggn_diagonal(torch.sin, size)(COMPLEX),
        "laplacian": lambda: laplacian(size)(COMPLEX),
        "directional_derivatives": lambda: directional_derivatives(torch.sin, (COMPLEX,), (COMPLEX,)),
        "jacobian_operator": lambda: jacobian_operator(torch.sin, COMPLEX),
        "sparse_jacobian": lambda: sparse_jacobian(torch.sin, torch.eye(3))(COMPLEX),
        "check_grads": lambda: check_grads(torch.sin, (COMPLEX,)),
        "real scalar": lambda: hvp(lambda x: (x * 1.0j).sum(), (X[0],), (X[0],)),
    }
    for name, call in calls.items():
        with pytest.raises((TypeError, ValueError), match=name):
            call()


class Scaled(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return 3.0 * x

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, cotangent):
        return 3.0 * cotangent


ONE = torch.ones(2)
ERRORS = {
    "mode": (lambda: dense_jacobian(torch.sin, mode="fwd"), ValueError, "'forward' or 'reverse', got 'fwd'"),  # type: ignore[arg-type]
    "hessian mode": (lambda: dense_hessian(torch.sum, mode="forward")(ONE), ValueError, "'forward-over-reverse'"),  # type: ignore[arg-type]
    "argnums": (
        lambda: dense_jacobian(torch.sin, 1)(ONE),
        ValueError,
        "argument 1 is asked for, but the function got 1",
    ),
    "not a scalar": (lambda: dense_hessian(torch.sin)(ONE), ValueError, r"shape \(2,\)"),
    "integer": (lambda: dense_jacobian(torch.sin)({"n": torch.tensor(1)}), TypeError, r"primals\[0\]\['n'\]"),
    "no forward rule": (lambda: dense_jacobian(Scaled.apply, mode="forward")(ONE), TypeError, "mode='reverse'"),
    "wrong rule": (
        lambda: dense_jacobian(lambda x: torch.triangular_solve(x[:, None], ONE.diag())[0], mode="forward")(ONE),
        TypeError,
        "triangular_solve has a wrong forward rule",
    ),
    "no second derivative": (
        lambda: laplacian(lambda x: F.hardsigmoid(x))(ONE),
        TypeError,
        "laplacian needs the derivative of hardsigmoid_backward, for which torch .* has no rule",
    ),
    "blocks": (
        lambda: blocks_to_matrix(dense_jacobian(torch.sin)(ONE), torch.ones(3)),
        ValueError,
        r"\(2, 2\).*\(3,\)",
    ),
    "block count": (lambda: blocks_to_matrix(ONE, {"a": ONE, "b": ONE}), ValueError, "1 blocks .* 2 leaves"),
    "pattern": (lambda: sparse_jacobian(torch.sin, ONE), ValueError, r"\(outputs, inputs\), got shape \(2,\)"),
    "pattern size": (lambda: sparse_jacobian(torch.sin, torch.eye(3))(ONE), ValueError, "2 numbers.* for 3"),
    "chunk": (lambda: dense_jacobian(torch.sin, chunk_size=0)(ONE), ValueError, "positive"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_sentences(name):
    call, kind, words = ERRORS[name]
    with pytest.raises(kind, match=words):
        call()


def noisy(x):
    return x * torch.rand_like(x)


DRAWS = {
    "jmp": lambda: jmp(noisy, (ONE,), (torch.stack([ONE, ONE]),)),
    "dense_jacobian, forward": lambda: dense_jacobian(noisy, mode="forward")(ONE),
    "dense_jacobian, dropout": lambda: dense_jacobian(F.dropout, mode="forward")(ONE),
    "laplacian": lambda: laplacian(noisy)(ONE),
}


@pytest.mark.parametrize("name", DRAWS)
def test_a_function_that_draws_from_torch_is_refused(name):
    with pytest.raises(TypeError, match=r"draws random numbers from torch's generator.* key of fnn.random"):
        DRAWS[name]()


REFUSED = {
    "ntk": lambda f, x: ntk(lambda p, x: f(p)[None] * x, x, torch.ones(1, 1)),
    "ntk, product": lambda f, x: ntk(lambda p, x: f(p)[None] * x, x, torch.ones(1, 1), method="product"),
    "detect_pattern": detect_pattern,
    "sparse_jacobian": lambda f, x: sparse_jacobian(f, torch.eye(3))(x),
    "sparse_jacobian by rows": lambda f, x: sparse_jacobian(lambda x: f(x).sum()[None], torch.ones(1, 3))(x),
    "laplacian": lambda f, x: laplacian(f)(x),
    "directional_derivatives": lambda f, x: directional_derivatives(f, (x,), (x,)),
    "jacobian_operator": jacobian_operator,
    "check_grads": lambda f, x: check_grads(f, (x,)),
    "root": lambda f, x: root(f, x),
    "fixed_point": lambda f, x: fixed_point(f, x),
    "linear_solve": lambda f, x: linear_solve(f, x),
}


@pytest.mark.parametrize("name", REFUSED)
def test_complex_numbers_that_have_no_meaning_here_are_refused_on_both_sides(name):
    x = X[0, :3].contiguous()
    for f, at in ((torch.sin, x.to(torch.complex128)), (lambda x: torch.exp(1.0j * x), x)):
        with pytest.raises((TypeError, ValueError), match="complex128"):
            REFUSED[name](f, at)


def test_derivatives_of_ones_own_take_complex_numbers_as_torch_does():
    z, x, u = COMPLEX, X[0], torch.complex(X[2], X[3])
    plain = {
        "holomorphic": (lambda z: z**2, lambda z, v: 2 * z * v, z),
        "conjugate": (lambda z: (2 + 1j) * z.conj(), lambda z, v: (2 + 1j) * v.conj(), z),
        "complex output": (lambda x: torch.exp(1j * x), lambda x, v: 1j * torch.exp(1j * x) * v, x),
        "real output": (lambda z: z.abs() ** 2, lambda z, v: 2 * (z.conj() * v).real, z),
    }
    for f, slope, at in plain.values():
        own = custom_jvp(f, lambda p, t, f=f, slope=slope: (f(*p), slope(*p, *t)))
        back = u if f(at).is_complex() else u.real
        close(torch.func.vjp(own, at)[1](back)[0], torch.func.vjp(f, at)[1](back)[0])
        close(torch.func.jvp(own, (at,), (at,))[1], torch.func.jvp(f, (at,), (at,))[1])
