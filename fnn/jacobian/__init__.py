"""Jacobian products, curvature operators, and linear algebra with nothing but products."""

from fnn.jacobian.estimators import (
    Estimate,
    diagonal,
    frobenius_norm,
    trace,
)
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
from fnn.jacobian.solvers import (
    Solution,
    cg,
    lsmr,
    minres,
    neumann,
)

__all__ = [
    "Estimate",
    "LinearOperator",
    "Solution",
    "cg",
    "diagonal",
    "fisher_operator",
    "frobenius_norm",
    "ggn_operator",
    "hessian_operator",
    "identity_operator",
    "jacobian_operator",
    "lsmr",
    "matrix_operator",
    "minres",
    "neumann",
    "trace",
]
