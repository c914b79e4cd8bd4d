"""Complex numbers in every layer and loss, and params without a leaf in every function: right, or a sentence."""

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fnn
from fnn import curvature, gradients, jacobian, linalg, tree
from tests.contracts.case import Case
from tests.contracts.cases import CASES

FNN = str(Path(fnn.__file__).parent)


def is_sentence(error: Exception) -> bool:
    """True if fnn has raised the error, and not torch deep inside."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return last.filename.startswith(FNN) and isinstance(error, (ValueError, TypeError))


# these rows compare x with numbers, to make a mask of it, before they call the layer
COMPARING = {
    "lstm, projected, two directions, lengths",
    "gru, state, lengths",
    "multi_head_attention, masks, weights of each head",
    "multi_head_attention, boolean masks, added keys",
    "multi_head_attention, cross-attention",
    "transformer_encoder_layer",
    "transformer_decoder_layer",
    "transformer",
}


def of_parts(case: Case, power: int = 1) -> Callable:
    """For a power of a function that is linear in x: from what it gives for the real and the imaginary part."""
    ones = tree.ones_like(case.params)

    def reference(params: Any, x: Tensor) -> Tensor:
        x = params["scale"] * x
        real, imaginary = case.reference(ones, x.real), case.reference(ones, x.imag)
        roots = [part.sign() * part.abs() ** (1 / power) for part in (real, imaginary)]
        return torch.complex(*roots) ** power

    return reference


def glu(case: Case) -> Callable:
    def reference(params: Any, x: Tensor) -> Tensor:
        first, second = (params["scale"] * x).chunk(2, 1)
        return first / (1 + torch.exp(-second))

    return reference


# torch has no complex numbers here
REFERENCES: dict[str, Callable[[Case], Callable]] = {
    "rotary_positions": of_parts,
    "rotary_positions, interleaved": of_parts,
    "max_unpool1d": lambda case: of_parts(case, 3),
    "max_unpool1d, size": lambda case: of_parts(case, 3),
    "max_unpool2d": lambda case: of_parts(case, 3),
    "max_unpool3d": lambda case: of_parts(case, 3),
    "glu": glu,
}


@pytest.mark.parametrize("name", [name for name in CASES if name not in COMPARING])
def test_complex_numbers_are_right_or_refused(name: str) -> None:
    case = CASES[name]()
    if not case.x.is_floating_point():
        pytest.skip("the inputs are integers")
    z = torch.complex(case.x, 0.5 * case.x.flip(0))
    complex_params = tree.map(lambda p: torch.complex(p, 0.3 * p) if p.is_floating_point() else p, case.params)
    for params in (case.params, complex_params):
        try:
            found = case.function(params, z)
        except Exception as error:
            if not is_sentence(error):
                raise
        else:
            reference = REFERENCES[name](case) if name in REFERENCES else case.reference
            torch.testing.assert_close(found, reference(params, z))


X = torch.ones(3, 2)
value, vector = (lambda params: torch.ones(())), (lambda params: torch.ones(3))
loss = lambda params, batch: batch.sum()
EMPTY: dict[str, Callable[[Any], Any]] = {
    "jvp": lambda p: fnn.jvp(vector, (p,), (p,)),
    "jacrev": lambda p: fnn.jacrev(vector)(p),
    "jacfwd": lambda p: fnn.jacfwd(vector)(p),
    "hessian": lambda p: fnn.hessian(value)(p),
    "vmap": lambda p: fnn.vmap(vector)(p),
    "dense_jacobian": lambda p: jacobian.dense_jacobian(vector)(p),
    "dense_jacobian, forward": lambda p: jacobian.dense_jacobian(vector, mode="forward")(p),
    "jacobian_operator": lambda p: jacobian.jacobian_operator(vector, p),
    "jmp": lambda p: jacobian.jmp(vector, (p,), (p,)),
    "mjp": lambda p: jacobian.mjp(vector, (p,), torch.ones(2, 3)),
    "laplacian": lambda p: jacobian.laplacian(value)(p),
    "directional_derivatives": lambda p: jacobian.directional_derivatives(vector, (p,), (p,)),
    "check_grads": lambda p: jacobian.check_grads(value, (p,)),
    "detect_pattern": lambda p: jacobian.detect_pattern(vector, p),
    "sparse_jacobian": lambda p: jacobian.sparse_jacobian(vector, torch.eye(3))(p),
    "ntk": lambda p: jacobian.ntk(lambda params, x: x, p, X),
    "ntk, product": lambda p: jacobian.ntk(lambda params, x: x, p, X, method="product"),
    "hvp": lambda p: curvature.hvp(value, (p,), (p,)),
    "vhp": lambda p: curvature.vhp(value, (p,), (p,)),
    "hvp_mode": lambda p: curvature.hvp_mode(value, (p,)),
    "dense_hessian": lambda p: curvature.dense_hessian(value)(p),
    "hessian_diagonal": lambda p: curvature.hessian_diagonal(value)(p),
    "hessian_operator": lambda p: curvature.hessian_operator(value, p),
    "ggn_product": lambda p: curvature.ggn_product(vector, lambda y: (y**2).sum(), (p,), (p,)),
    "ggn_diagonal": lambda p: curvature.ggn_diagonal(vector, lambda y: (y**2).sum())(p),
    "ggn_operator": lambda p: curvature.ggn_operator(vector, lambda y: (y**2).sum(), p),
    "fisher_product": lambda p: curvature.fisher_product(lambda params: X, (p,), (p,)),
    "fisher_operator": lambda p: curvature.fisher_operator(lambda params, x: x, p, X),
    "empirical_fisher_operator": lambda p: curvature.empirical_fisher_operator(loss, p, X),
    "kfac": lambda p: curvature.kfac(lambda params, x: x, p, X),
    "ekfac": lambda p: curvature.ekfac(lambda params, x: x, p, X),
    "per_sample_norms": lambda p: gradients.per_sample_norms(loss)(p, X),
    "per_sample_norms, ghost": lambda p: gradients.per_sample_norms(loss, method="ghost")(p, X),
    "per_sample_norms, exact": lambda p: gradients.per_sample_norms(loss, method="exact")(p, X),
    "clipped_grad": lambda p: fnn.clipped_grad(loss, 1.0)(p, X),
    "gradient_noise_scale": lambda p: gradients.gradient_noise_scale(loss)(p, X),
    "ghost_plan": lambda p: gradients.ghost_plan(loss)(p, X),
    "LinearOperator": lambda p: linalg.LinearOperator(lambda v: v, p),
    "batches": lambda p: list(fnn.data.batches(p, 2)),
    "unstack": tree.unstack,
    "leading_length": tree.leading_length,
}


@pytest.mark.parametrize("params", [{}, {"0": {}, "1": ()}], ids=["empty", "empty parts"])
@pytest.mark.parametrize("name", EMPTY)
def test_params_without_a_leaf_are_a_sentence(name: str, params: Any) -> None:
    with pytest.raises((ValueError, TypeError)) as found:
        EMPTY[name](params)
    assert is_sentence(found.value), repr(found.value)


def test_params_without_a_leaf_train() -> None:
    """A network without parameters goes through a train step, and comes back as it was."""
    params: Any = {"0": {}, "1": ()}
    found, grads = fnn.value_and_grad(loss)(params, X)
    assert (float(found), grads) == (6.0, params)
    assert fnn.per_sample_grad(loss)(params, X) == params
    assert fnn.jit(fnn.grad(loss))(params, X) == params
    assert fnn.vjp(vector, params)[1](torch.ones(3)) == (params,)
    for optimizer in (fnn.optim.adam(), fnn.optim.sgd(momentum=0.9), fnn.optim.clip_by_global_norm(1.0)):
        updates, _ = optimizer.update(grads, optimizer.init(params), params)
        assert fnn.optim.apply_updates(params, updates) == params
