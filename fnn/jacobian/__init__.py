"""Jacobians of functions of trees: products, dense and sparse matrices, checks, derivatives of one's own."""

from fnn.jacobian.check_grads import check_grads
from fnn.jacobian.custom_derivatives import custom_jvp, custom_vjp, stop_gradient, straight_through
from fnn.jacobian.dense import blocks_to_matrix, dense_jacobian, laplacian
from fnn.jacobian.ntk import ntk
from fnn.jacobian.operator import jacobian_operator
from fnn.jacobian.products import directional_derivatives, jmp, linearize_by_vjp, mjp
from fnn.jacobian.sparse import SparseJacobian, colours, detect_pattern, sparse_jacobian

__all__ = [
    "SparseJacobian",
    "blocks_to_matrix",
    "check_grads",
    "colours",
    "custom_jvp",
    "custom_vjp",
    "dense_jacobian",
    "detect_pattern",
    "directional_derivatives",
    "jacobian_operator",
    "jmp",
    "laplacian",
    "linearize_by_vjp",
    "mjp",
    "ntk",
    "sparse_jacobian",
    "stop_gradient",
    "straight_through",
]
