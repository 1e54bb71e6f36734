"""Curvature of a loss: operators, eigenvalues, densities, norms; every number with its residual and its cost."""

from foreshock.curvature.eigs import EigResult, eigsh
from foreshock.curvature.hessian import Hessian
from foreshock.curvature.operator import Block, Diagonal, ExplicitOperator, Operator

__all__ = ["Block", "Diagonal", "EigResult", "ExplicitOperator", "Hessian", "Operator", "eigsh"]
