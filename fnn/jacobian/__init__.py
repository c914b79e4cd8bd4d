"""Jacobian products, curvature operators, and linear algebra with nothing but products."""

from fnn.jacobian.linear_operator import (
    LinearOperator,
    identity_operator,
    matrix_operator,
)
from fnn.jacobian.operators import (
    fisher_operator,
    ggn_operator,
    hessian_operator,
    jacobian_operator,
)

__all__ = [
    "LinearOperator",
    "fisher_operator",
    "ggn_operator",
    "hessian_operator",
    "identity_operator",
    "jacobian_operator",
    "matrix_operator",
]
