"""Nearest-neighbour resizing with scales that are not the ratio of the sizes, where torch's derivatives differ."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fnn

FACTORS = [0.6, 1.1, 1.24, 1.7, 2.1, 2.3]


def resized(x: Tensor, factor: float | None) -> Tensor:
    if factor is None:
        return F.interpolate(x, [7] * (x.dim() - 2), mode="nearest")
    return F.interpolate(x, scale_factor=factor, mode="nearest")


def matrix_of(function, x: Tensor) -> Tensor:
    """The matrix of a linear function, from its values alone."""
    basis = torch.eye(x.numel(), dtype=x.dtype).view(-1, *x.shape)
    return torch.stack([function(e).flatten() for e in basis], 1)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("factor", FACTORS)
def test_the_gradient_of_the_layer_belongs_to_its_values(dims: int, factor: float) -> None:
    x = fnn.random.normal(fnn.random.key(0), (1, 2, *[4] * dims), torch.float64)
    apply = lambda x: fnn.layers.interpolate(x, scale_factor=factor)
    torch.testing.assert_close(apply(x), resized(x, factor), rtol=0, atol=0)
    cotangent = fnn.random.normal(fnn.random.key(1), apply(x).shape, torch.float64)
    expected = (matrix_of(apply, x).T @ cotangent.flatten()).view(x.shape)
    torch.testing.assert_close(fnn.vjp(apply, x)[1](cotangent)[0], expected)
    torch.testing.assert_close(fnn.jit(lambda x, u: fnn.vjp(apply, x)[1](u)[0])(x, cotangent), expected)


def test_generated_code_takes_the_values_of_eager_code_and_their_gradients() -> None:
    """Of torch's own function, whose eager gradients are right on images only; all factors in one compiled function."""
    xs = {dims: fnn.random.normal(fnn.random.key(0), (1, 2, *[4] * dims), torch.float64) for dims in (1, 2, 3)}
    rows = [(dims, factor) for dims in xs for factor in [*FACTORS, None]]
    cotangents = [fnn.random.normal(fnn.random.key(1), resized(xs[d], f).shape, torch.float64) for d, f in rows]

    def all_of_them(xs: dict, cotangents: list) -> list:
        found = []
        for (dims, factor), u in zip(rows, cotangents, strict=True):
            value, pullback = fnn.vjp(lambda x, factor=factor: resized(x, factor), xs[dims])
            found.append((value, pullback(u)[0]))
        return found

    compiled = fnn.jit(all_of_them, backend="inductor")(xs, cotangents)
    for (dims, factor), u, (value, gradient) in zip(rows, cotangents, compiled, strict=True):
        assert torch.equal(value, resized(xs[dims], factor))
        matrix = matrix_of(lambda x, factor=factor: resized(x, factor), xs[dims])
        torch.testing.assert_close(gradient, (matrix.T @ u.flatten()).view(xs[dims].shape))
