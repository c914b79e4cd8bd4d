"""Second derivatives: products with Hessian, Gauss-Newton and Fisher matrices, these as operators, KFAC and EKFAC."""

from fnn.curvature.dense import dense_hessian, ggn_diagonal, hessian_diagonal
from fnn.curvature.kfac import ekfac, kfac
from fnn.curvature.kronecker import KroneckerEigen, KroneckerFactors, KroneckerOperator
from fnn.curvature.laplace import predictive_covariance
from fnn.curvature.operators import empirical_fisher_operator, fisher_operator, ggn_operator, hessian_operator
from fnn.curvature.per_sample import per_sample_fisher_diagonal, per_sample_ggn_diagonal
from fnn.curvature.products import (
    empirical_fisher_product,
    fisher_product,
    ggn_product,
    hvp,
    hvp_mode,
    vhp,
)
from fnn.curvature.sparse_hessian import sparse_hessian

__all__ = [
    "KroneckerEigen",
    "KroneckerFactors",
    "KroneckerOperator",
    "dense_hessian",
    "ekfac",
    "empirical_fisher_operator",
    "empirical_fisher_product",
    "fisher_operator",
    "fisher_product",
    "ggn_diagonal",
    "ggn_operator",
    "ggn_product",
    "hessian_diagonal",
    "hessian_operator",
    "hvp",
    "hvp_mode",
    "kfac",
    "per_sample_fisher_diagonal",
    "per_sample_ggn_diagonal",
    "predictive_covariance",
    "sparse_hessian",
    "vhp",
]
