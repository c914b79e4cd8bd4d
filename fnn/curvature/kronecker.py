"""Block-diagonal matrices whose blocks are Kronecker products, or diagonal in a Kronecker product of bases."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from fnn import random
from fnn import tree as _tree
from fnn.linalg.linear_operator import LinearOperator
from fnn.tree import Tree

Damping = float | Tensor | Mapping[str, float | Tensor]


class KroneckerFactors(NamedTuple):
    """The block B kron A of one layer: X -> B X A for the joint matrix X = [weight, bias] of shape (out, in + 1)."""

    input: Tensor  # A, (in + 1, in + 1), or (groups, in + 1, in + 1) for a grouped convolution
    output: Tensor  # B, (out, out), or (groups, out, out)

    def times(self, x: Tensor) -> Tensor:
        return self.output @ x @ self.input

    def diagonal(self) -> Tensor:
        outputs, inputs = self.output.diagonal(dim1=-2, dim2=-1), self.input.diagonal(dim1=-2, dim2=-1)
        return outputs[..., :, None] * inputs[..., None, :]

    def decomposed(self) -> "KroneckerEigen":
        inputs, input_basis = torch.linalg.eigh(self.input)
        outputs, output_basis = torch.linalg.eigh(self.output)
        inputs, outputs = inputs.clamp(min=0.0), outputs.clamp(min=0.0)  # only rounding makes them negative
        return KroneckerEigen(input_basis, output_basis, outputs[..., :, None] * inputs[..., None, :])


class KroneckerEigen(NamedTuple):
    """The block of one layer by eigenvectors, the columns of V kron U, and eigenvalues: X -> V (L * V^T X U) U^T."""

    input: Tensor  # U, (in + 1, in + 1), or with a leading axis of groups
    output: Tensor  # V, (out, out)
    eigenvalues: Tensor  # L, (out, in + 1)

    def times(self, x: Tensor) -> Tensor:
        rotated = self.output.mT @ x @ self.input
        return self.output @ (self.eigenvalues * rotated) @ self.input.mT

    def diagonal(self) -> Tensor:
        return self.output.square() @ self.eigenvalues @ self.input.square().mT

    def decomposed(self) -> "KroneckerEigen":
        return self


Factors = dict[str, KroneckerFactors] | dict[str, KroneckerEigen]


class Block(NamedTuple):
    """The places of a layer's leaves in params, and how its weight is laid out."""

    weight: int
    bias: int | None
    transposed: bool  # (in, out), as in x @ weight
    groups: int


class KroneckerOperator(LinearOperator):
    """The result of :func:`kfac` and :func:`ekfac`: a symmetric :class:`LinearOperator` with an exact inverse.

    ``factors`` is a plain tree with a block for each layer, by the dotted path of its weight. It can be averaged over
    steps or returned from a compiled function; ``with_factors`` makes an operator of it again. ``K @ v`` costs two
    matrix products for each layer. Sums, multiples and restrictions are plain operators, without ``inverse``.
    """

    factors: Factors

    def __init__(self, params: Tree, blocks: dict[str, Block], factors: Factors) -> None:
        super().__init__(partial(_product, blocks, factors), params, symmetric=True)
        self.blocks = blocks
        self.factors = factors

    def with_factors(self, factors: Factors) -> "KroneckerOperator":
        """The same layers with other factors, such as a moving average of ``factors`` by ``fnn.tree.map``."""
        return KroneckerOperator(self.input, self.blocks, factors)

    def decomposed(self) -> "KroneckerOperator":
        """The same matrix by eigenvectors and eigenvalues: one eigendecomposition, in^3 + out^3, for each layer.

        :meth:`inverse` and :meth:`log_determinant` of the result cost none, for any number of dampings.
        """
        return self.with_factors({path: block.decomposed() for path, block in self.factors.items()})

    def inverse(self, damping: Damping) -> "KroneckerOperator":
        """``(K + damping * I)^-1``, exactly, by eigendecomposition. A product costs four matrix products a layer.

        ``damping`` is a number or a 0-d tensor, or a dict of one for each layer by the path of its weight, as
        ``factors`` has them: the prior precisions of a Laplace approximation. Raises ``ValueError`` for a negative
        number, and for a dict with other paths. With 0 the result is infinite where K is singular, as the curvature of
        few samples is.

        >>> import fnn
        >>> from fnn.curvature import kfac
        >>> model = fnn.models.mlp(2, 3)
        >>> params, x = model.init(fnn.random.key(0)), torch.eye(2)
        >>> K = kfac(model.apply, params, x, likelihood="normal")
        >>> torch.allclose((K.inverse(0.1) @ K.damped(0.1)).dense(), torch.eye(9), atol=1e-5)
        True
        >>> torch.allclose(K.inverse({"0.weight": 0.1}).dense(), K.inverse(0.1).dense())
        True
        """
        return self._map_eigenvalues(lambda values: 1.0 / values, damping)

    def log_determinant(self, damping: Damping = 0.0) -> Tensor:
        """``log det(K + damping * I)``, 0-d: the sum of the logarithms; -inf where that matrix is singular.

        ``damping`` as in :meth:`inverse`.
        """
        logarithms = self._map_eigenvalues(torch.log, damping).factors
        return torch.stack([block.decomposed().eigenvalues.sum() for block in logarithms.values()]).sum()

    def diagonal(self) -> Tree:
        """The diagonal, exactly, a tree like params: one small matrix product for each layer.

        ``K.inverse(damping).diagonal()`` are the marginal variances of the parameters under a Laplace approximation.

        >>> import fnn
        >>> from fnn.curvature import kfac
        >>> model, params = fnn.layers.linear(3, 2, bias=False).apply, {"weight": torch.zeros(2, 3)}
        >>> kfac(model, params, 2.0 * torch.eye(3), likelihood="normal").diagonal()
        {'weight': tensor([[1.3333, 1.3333, 1.3333],
                [1.3333, 1.3333, 1.3333]])}
        """
        leaves, treedef = _tree.flatten(self.input)
        for path, block in self.blocks.items():
            _put(leaves, block, self.factors[path].diagonal())
        return treedef.unflatten(leaves)

    def sample(self, key: Tensor, damping: Damping) -> Tree:
        """A draw from the normal distribution with mean 0 and covariance ``(K + damping * I)^-1``, a tree like params.

        The symmetric square root of the covariance times normal numbers; ``damping`` as in :meth:`inverse`. For many
        draws, ``K = K.decomposed()`` first, and ``vmap`` over keys.

        >>> import fnn
        >>> from fnn.curvature import kfac
        >>> model = fnn.models.mlp(2, 3)
        >>> params, x = model.init(fnn.random.key(0)), torch.eye(2)
        >>> K = kfac(model.apply, params, x).decomposed()
        >>> draws = fnn.vmap(lambda key: K.sample(key, 0.1))(fnn.random.split(fnn.random.key(1), 5))
        >>> draws["0"]["weight"].shape
        torch.Size([5, 3, 2])
        """
        return self._map_eigenvalues(torch.rsqrt, damping)(random.like(key, self.input))

    def _map_eigenvalues(self, function: Callable[[Tensor], Tensor], damping: Damping) -> "KroneckerOperator":
        """``function(K + damping * I)``."""
        dampings = damping if isinstance(damping, Mapping) else dict.fromkeys(self.factors, damping)
        if set(dampings) != set(self.factors):
            raise ValueError(
                f"damping has an entry for each layer, by the path of its weight: expected {sorted(self.factors)}, got "
                f"{sorted(dampings)}"
            )
        for value in dampings.values():
            if not isinstance(value, Tensor) and not value >= 0:
                raise ValueError(f"damping is added to eigenvalues that are not negative and cannot be {value}")
        blocks = {path: block.decomposed() for path, block in self.factors.items()}
        return self.with_factors(
            {
                path: block._replace(eigenvalues=function(block.eigenvalues + dampings[path]))
                for path, block in blocks.items()
            }
        )


def _product(blocks: dict[str, Block], factors: Factors, v: Tree) -> Tree:
    leaves, treedef = _tree.flatten(v)
    for path, block in blocks.items():
        lead, out = factors[path].output.shape[:-2], factors[path].output.shape[-1]
        weight = leaves[block.weight]
        matrix = (weight.T if block.transposed else weight).reshape(*lead, out, -1)
        if block.bias is not None:
            matrix = torch.cat([matrix, leaves[block.bias].reshape(*lead, out, 1)], -1)
        _put(leaves, block, factors[path].times(matrix.to(factors[path].output.dtype)))
    return treedef.unflatten(leaves)


def _put(leaves: list[Tensor], block: Block, matrix: Tensor) -> None:
    """Replace the leaves of a layer by the entries of its joint matrix [weight, bias]: ([groups,] out, in + 1)."""
    weight = leaves[block.weight]
    matrix = matrix.to(weight.dtype)
    if block.bias is not None:
        leaves[block.bias] = matrix[..., -1].reshape(leaves[block.bias].shape).clone()
        matrix = matrix[..., :-1].clone()
    leaves[block.weight] = matrix.mT if block.transposed else matrix.reshape(weight.shape)
