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
from fnn.jacobian.spectrum import (
    Density,
    Eigenpairs,
    eigenpairs,
    log_determinant,
    spectral_density,
)

__all__ = [
    "Density",
    "Eigenpairs",
    "Estimate",
    "LinearOperator",
    "Solution",
    "cg",
    "diagonal",
    "eigenpairs",
    "fisher_operator",
    "frobenius_norm",
    "ggn_operator",
    "hessian_operator",
    "identity_operator",
    "jacobian_operator",
    "log_determinant",
    "lsmr",
    "matrix_operator",
    "minres",
    "neumann",
    "spectral_density",
    "trace",
]
