"""Curvature of a loss: operators, eigenvalues, densities, norms; every number with its residual and its cost."""

from foreshock.curvature.hessian import Hessian
from foreshock.curvature.operator import Block, Diagonal, ExplicitOperator, Operator

__all__ = ["Block", "Diagonal", "ExplicitOperator", "Hessian", "Operator"]
