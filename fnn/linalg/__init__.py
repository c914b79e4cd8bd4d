"""Linear algebra with nothing but products: operators, solvers, spectra and stochastic estimators."""

from fnn.linalg.estimators import Estimate, estimate_diagonal, estimate_frobenius_norm, estimate_trace
from fnn.linalg.iteration import Solution
from fnn.linalg.lanczos import Density, Eigenpairs, eigenpairs, log_determinant, spectral_density
from fnn.linalg.linear_operator import LinearOperator, identity_operator, matrix_operator
from fnn.linalg.solvers import cg, gmres, lsmr, minres, neumann

__all__ = [
    "Density",
    "Eigenpairs",
    "Estimate",
    "LinearOperator",
    "Solution",
    "cg",
    "eigenpairs",
    "estimate_diagonal",
    "estimate_frobenius_norm",
    "estimate_trace",
    "gmres",
    "identity_operator",
    "log_determinant",
    "lsmr",
    "matrix_operator",
    "minres",
    "neumann",
    "spectral_density",
]
