"""Jacobians of functions of trees: products, dense and sparse matrices, checks, derivatives of one's own."""

from fnn.jacobian.check_grads import check_grads
from fnn.jacobian.custom_derivatives import custom_jvp, custom_vjp, stop_gradient, straight_through
from fnn.jacobian.dense import blocks_to_matrix, dense_jacobian, laplacian
from fnn.jacobian.implicit import fixed_point, root
from fnn.jacobian.linear_solve import linear_solve
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
    "fixed_point",
    "jacobian_operator",
    "jmp",
    "laplacian",
    "linear_solve",
    "linearize_by_vjp",
    "mjp",
    "ntk",
    "root",
    "sparse_jacobian",
    "stop_gradient",
    "straight_through",
]
