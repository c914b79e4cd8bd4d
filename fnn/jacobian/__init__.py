"""Jacobian products, curvature operators, and linear algebra with nothing but products."""

from fnn.jacobian.checks import check_grads
from fnn.jacobian.estimators import (
    Estimate,
    diagonal,
    frobenius_norm,
    trace,
)
from fnn.jacobian.kronecker import KroneckerEigen, KroneckerFactors, KroneckerOperator
from fnn.jacobian.kronecker_factored import ekfac, kfac
from fnn.jacobian.linear_operator import (
    LinearOperator,
    identity_operator,
    matrix_operator,
)
from fnn.jacobian.operators import (
    empirical_fisher_operator,
    fisher_operator,
    ggn_operator,
    hessian_operator,
    jacobian_operator,
)
from fnn.jacobian.own_derivative import stop_gradient, straight_through, with_derivative
from fnn.jacobian.products import directional_derivatives, jmp, linearize, mjp
from fnn.jacobian.second_order import (
    empirical_fisher_product,
    fisher_product,
    ggn_product,
    hvp,
    hvp_mode,
    vhp,
)
from fnn.jacobian.solvers import (
    Solution,
    cg,
    lsmr,
    minres,
    neumann,
)
from fnn.jacobian.sparse import SparseJacobian, colours, sparse_jacobian
from fnn.jacobian.spectrum import (
    Density,
    Eigenpairs,
    eigenpairs,
    log_determinant,
    spectral_density,
)
from fnn.jacobian.tangent_kernel import ntk
from fnn.jacobian.whole import ggn_diagonal, hessian, hessian_diagonal, jacobian, laplacian, matrix

__all__ = [
    "Density",
    "Eigenpairs",
    "Estimate",
    "KroneckerEigen",
    "KroneckerFactors",
    "KroneckerOperator",
    "LinearOperator",
    "Solution",
    "SparseJacobian",
    "cg",
    "check_grads",
    "colours",
    "diagonal",
    "directional_derivatives",
    "eigenpairs",
    "ekfac",
    "empirical_fisher_operator",
    "empirical_fisher_product",
    "fisher_operator",
    "fisher_product",
    "frobenius_norm",
    "ggn_diagonal",
    "ggn_operator",
    "ggn_product",
    "hessian",
    "hessian_diagonal",
    "hessian_operator",
    "hvp",
    "hvp_mode",
    "identity_operator",
    "jacobian",
    "jacobian_operator",
    "jmp",
    "kfac",
    "laplacian",
    "linearize",
    "log_determinant",
    "lsmr",
    "matrix",
    "matrix_operator",
    "minres",
    "mjp",
    "neumann",
    "ntk",
    "sparse_jacobian",
    "spectral_density",
    "stop_gradient",
    "straight_through",
    "trace",
    "vhp",
    "with_derivative",
]
