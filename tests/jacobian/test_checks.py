"""Checks find wrong derivatives and pass right ones; own derivatives nest to the promised order."""

import pytest
import torch

import fnn
from fnn.jacobian import check_grads, stop_gradient, straight_through

X = torch.tensor([0.3, -1.2, 2.0], dtype=torch.float64)
PARAMS = {"w": X, "b": [torch.tensor(0.7, dtype=torch.float64)]}


def good(params, x):
    return {"y": torch.tanh(params["w"] * x) + params["b"][0] ** 3, "s": params["w"].sum()}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("modes", [("fwd", "rev"), ("fwd",), ("rev",)])
def test_right_derivatives_pass(modes, dtype):
    check_grads(good, fnn.tree.cast((PARAMS, X), dtype), order=3, modes=modes)


@pytest.mark.parametrize("first", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("second", [torch.float64, torch.float32, torch.bfloat16])
def test_the_coarsest_dtype_decides_how_sharp_the_test_is(first, second):
    args = {"x": X.to(first)}, torch.tensor([0.5, 1.5, -0.75], dtype=second)
    for out in (first, second):
        check_grads(lambda p, y, out=out: {"z": (p["x"].sin() * y.cos()).to(out), "y": y * y}, args, order=1)


def test_networks_and_losses_pass():
    model = fnn.models.mlp(3, 4, 2, activation=fnn.layers.tanh)
    params = fnn.tree.cast(model.init(fnn.random.key(0)), torch.float64)
    check_grads(lambda p: fnn.losses.cross_entropy(model.apply(p, X[None]), torch.tensor([1])), (params,))


def off_by(size, kind):
    """x^2 with a mistake in one derivative."""

    def f(params):
        w, b = params["w"], params["b"]
        d = w - w.detach()
        mistake = size * {"first": d, "second": 0.5 * d * d}[kind]
        return {"fine": b**2, "bad": w**2 + mistake}

    return f


TREE = {"w": X, "b": X + 1.0}
WRONG = {
    "fwd": (off_by(1e-3, "first"), ("fwd",), r"order 1, fwd: output\['bad'\] differs from central differences by 0.00"),
    "rev": (off_by(1e-3, "first"), ("rev",), r"order 1, rev: along args\[0\]\['w'\] it differs"),
    "second fwd": (off_by(1e-3, "second"), ("fwd",), r"order 2, fwd of fwd: output\['bad'\]"),
    "second rev": (off_by(1e-3, "second"), ("rev",), r"order 2, rev of rev: along args\[0\]\['w'\]"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_derivatives_are_found(name):
    f, modes, words = WRONG[name]
    with pytest.raises(AssertionError, match=words):
        check_grads(f, (TREE,), modes=modes)


def test_networks_of_every_dtype_pass():
    """Right derivatives of right magnitudes: sums that cancel, slopes of zero, tiny and huge values."""
    x = fnn.random.normal(fnn.random.key(3), (6, 4), torch.float64)
    functions = {
        "cube at zero": lambda x: (x - x.detach()) ** 3,
        "cancels": lambda x: (x + 3.0) - 3.0,
        "softmax": lambda x: torch.softmax(x, 1).sum(1),
        "scales": lambda x: torch.tanh(x) * torch.logspace(-6, 6, 4, dtype=x.dtype),
        "tiny": lambda x: 1e-9 * torch.sin(x),
        "constant": lambda x: torch.ones_like(x),
        "half": lambda x: torch.relu(x),
        "attention": lambda x: torch.softmax(x @ x.T, 1) @ x,
        "log": lambda x: torch.logsumexp(30.0 * x, 1),
    }
    for name, f in functions.items():
        for dtype in (torch.float64, torch.float32):
            for key in fnn.random.split(fnn.random.key(4), 3):
                try:
                    check_grads(f, (x.to(dtype),), order=2, key=key)
                except AssertionError as error:
                    raise AssertionError(f"{name}, {dtype}") from error


def beside(large, factor, kind):
    """A second number whose derivative is wrong by a factor, beside a large one."""

    def f(params):
        first, second = params["w"][:1], params["w"][1:2]
        d = second - second.detach()
        wrong = torch.sin(second) + (factor - 1.0) * torch.cos(second.detach()) * d
        if kind == "second":
            wrong = torch.sin(second) - 0.5 * (factor - 1.0) * torch.sin(second.detach()) * d**2
        if kind == "argument":
            return large * torch.sin(first) + wrong
        return torch.cat([large * torch.sin(first), wrong])

    return f


@pytest.mark.parametrize("modes", [("fwd",), ("rev",)], ids=str)
@pytest.mark.parametrize("kind", ["first", "second", "argument"])
@pytest.mark.parametrize("large", [1.0, 1e4, 1e7])
def test_a_wrong_entry_beside_a_large_one_is_found(large, kind, modes):
    if kind == "argument" and modes == ("fwd",) and large > 1.0:
        return  # the sum of both: what is wrong is below the rounding of J v
    args = ({"w": X},)
    check_grads(beside(large, 1.0, kind), args, modes=modes)
    for factor in (2.0, 0.5, 1.01):
        with pytest.raises(AssertionError, match="order 2" if kind == "second" else "order 1"):
            check_grads(beside(large, factor, kind), args, modes=modes)


def test_small_values_are_checked_too():
    for scale in (1e-3, 1e-8):
        wrong = lambda x, scale=scale: scale * (torch.sin(x) + (x - x.detach()))
        with pytest.raises(AssertionError, match="at entry"):
            check_grads(wrong, (X,))


def test_float32_finds_a_wrong_entry_beside_ten_million():
    args = ({"w": X.to(torch.float32)},)
    for modes in (("fwd",), ("rev",), ("fwd", "rev")):
        check_grads(beside(1e7, 1.0, "first"), args, modes=modes)
        with pytest.raises(AssertionError, match="order 1"):
            check_grads(beside(1e7, 2.0, "first"), args, modes=modes)


def test_complex_arguments_are_refused():
    with pytest.raises(TypeError, match="real"):
        check_grads(lambda x: x * x, (X.to(torch.complex128),))


class Lopsided(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return 2.0 * x

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, cotangent):
        return 2.0 * cotangent + 1e-9 * cotangent.sum()

    @staticmethod
    def jvp(ctx, tangent):
        return 2.0 * tangent


def test_forward_against_reverse_is_sharper_than_differences():
    with pytest.raises(AssertionError, match=r"fwd against rev: <u, J v> and <J\^T u, v> differ"):
        check_grads(Lopsided.apply, (X,), order=1)


def test_errors_are_sentences():
    with pytest.raises(ValueError, match="order >= 1"):
        check_grads(torch.sin, (X,), order=0)
    with pytest.raises(ValueError, match="'fwd' and 'rev'"):
        check_grads(torch.sin, (X,), modes=("forward",))
    with pytest.raises(TypeError, match=r"primals as a tuple.*check_grads\(f, \(params,\)"):
        check_grads(torch.sin, X)
    with pytest.raises(TypeError, match=r"primals\[0\]\['n'\]"):
        check_grads(torch.sin, ({"n": torch.tensor(1)},))
    with pytest.raises(AssertionError, match="nan"):
        check_grads(torch.sqrt, (-X.abs(),))


def test_straight_through_and_stop_gradient():
    rounded = straight_through(torch.round, torch.tanh)
    assert torch.equal(rounded(X), torch.round(X))
    for make in (torch.func.jacrev, torch.func.jacfwd, torch.func.hessian):
        torch.testing.assert_close(make(rounded)(X), make(torch.tanh)(X))
    assert torch.equal(torch.func.hessian(lambda x: (stop_gradient({"a": x})["a"] ** 2).sum())(X), torch.zeros(3, 3))
    with pytest.raises(ValueError, match=r"shape \(\).*\(3,\)"):
        straight_through(torch.round, torch.sum)(X)
