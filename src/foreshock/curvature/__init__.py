"""Curvature of a loss: operators, eigenvalues, densities, norms; every number with its residual and its cost."""

from foreshock.curvature.batch_sharpness import BatchSharpness, batch_sharpness
from foreshock.curvature.checks import difference_check, symmetry_check
from foreshock.curvature.counterfactual import Counterfactual, Verified, counterfactual, steps_to_edge, verified
from foreshock.curvature.density import Density, spectral_density
from foreshock.curvature.directional import Directional, directional
from foreshock.curvature.edge import Edge, edge
from foreshock.curvature.eigs import EigResult, eigsh
from foreshock.curvature.forward import critical_lr, step_curvature
from foreshock.curvature.gauss_newton import GaussNewton
from foreshock.curvature.growth import Growth
from foreshock.curvature.harmless import harmless
from foreshock.curvature.hessian import Hessian
from foreshock.curvature.loader import Batches
from foreshock.curvature.norms import generalized_sharpness
from foreshock.curvature.operator import Block, Diagonal, ExplicitOperator, Operator
from foreshock.curvature.split import Split, mode_denominator, split
from foreshock.curvature.trace import diagonal, frobenius, trace
from foreshock.curvature.tracker import EdgeTracker

__all__ = [
    "BatchSharpness",
    "Batches",
    "Block",
    "Counterfactual",
    "Density",
    "Diagonal",
    "Directional",
    "Edge",
    "EdgeTracker",
    "EigResult",
    "ExplicitOperator",
    "GaussNewton",
    "Growth",
    "Hessian",
    "Operator",
    "Split",
    "Verified",
    "batch_sharpness",
    "counterfactual",
    "critical_lr",
    "diagonal",
    "difference_check",
    "directional",
    "edge",
    "eigsh",
    "frobenius",
    "generalized_sharpness",
    "harmless",
    "mode_denominator",
    "spectral_density",
    "split",
    "step_curvature",
    "steps_to_edge",
    "symmetry_check",
    "trace",
    "verified",
]
