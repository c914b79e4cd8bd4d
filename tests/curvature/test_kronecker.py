"""Kronecker operators where the factors are singular up to rounding: fewer samples than columns."""

import pytest
import torch

import fnn
from fnn.curvature import ekfac, kfac

MODEL = fnn.models.mlp(6, 5, 3, activation=fnn.layers.tanh)


def few_samples(make, dtype):
    params = fnn.tree.cast(MODEL.init(fnn.random.key(0)), dtype)
    return make(MODEL.apply, params, fnn.random.normal(fnn.random.key(1), (2, 6), dtype)), params


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("make", [kfac, ekfac])
def test_eigenvalues_below_zero_by_rounding_do_not_show(make, dtype):
    K, params = few_samples(make, dtype)
    for factors in K.decomposed().factors.values():
        assert (factors.eigenvalues >= 0).all()
    v = fnn.tree.ones_like(params)
    for damping in (1e-9, 1e-3):
        inverse = K.inverse(damping)
        for factors in inverse.factors.values():
            assert (factors.eigenvalues > 0).all()
            assert (factors.eigenvalues <= 1.001 / damping).all()
        assert fnn.tree.dot(v, inverse @ v) > 0
        assert K.log_determinant(damping).isfinite()
    for factors in K.inverse(0.0).factors.values():
        assert (factors.eigenvalues > 0).all()  # infinite ones included, none negative and none nan
    assert not K.log_determinant().isnan()
    with pytest.raises(ValueError, match="cannot be -1"):
        K.inverse(-1.0)
