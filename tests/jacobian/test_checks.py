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
