"""Two solutions seen along the eigenvectors of a Hessian, in parameters and in outputs, for train and test.

The paper's claim: solutions that generalise well and badly differ little along the sharpest directions, which carry low
frequencies that both have learned. So lambda_max is about stability and is no score of generalisation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from foreshock.curvature.eigs import EigResult
from foreshock.curvature.space import Space, dot, norm
from foreshock.errors import UsageError
from foreshock.landscape.outputs import Outputs, output_changes, real_change
from foreshock.landscape.standing import standing_at


@dataclass(frozen=True, slots=True)
class EigenProjections:
    """Projections on eigenvectors u_1 ... u_k of a Hessian at a reference point.

    Attributes:
        values: the eigenvalues, shape (k,).
        parameters: p_j = <theta - theta_ref, u_j> of the two solutions, shape (2, k).
        distances: |theta - theta_ref| of the two, shape (2,): p_j is a part of it.
        train: q_j = (1/n) <f_A - f_B, J u_j / |J u_j|> on the training inputs, shape (k,), n outputs of all inputs.
        test: the same on other inputs; None where none were given.
        difference: (1/n) |f_A - f_B| on train and, or NaN, test: the largest that |q_j| could be.
        changes: J u_j on the training inputs, at the reference, k tensors of the outputs' shape: for `spectrum_1d`.
        test_changes: the same on the test inputs; empty where none were given.
    """

    values: np.ndarray
    parameters: np.ndarray
    distances: np.ndarray
    train: np.ndarray
    test: np.ndarray | None
    difference: tuple[float, float]
    changes: tuple[Tensor, ...] = field(repr=False)
    test_changes: tuple[Tensor, ...] = field(repr=False)


def eigen_projections(
    outputs: Outputs, params: Sequence[Tensor], eigenvectors: EigResult,
    solutions: tuple[Sequence[Tensor] | Tensor, Sequence[Tensor] | Tensor], *,
    reference: Sequence[Tensor] | Tensor | None = None, test: Outputs | None = None,
) -> EigenProjections:
    """Returns how far two solutions lie along each eigenvector, in parameters and in outputs.

    Args:
        outputs: computes the outputs on the training inputs, `lambda: model(x)`.
        params: the parameters; they stand at the three points for a moment.
        eigenvectors: of the Hessian of the training loss at the reference, of `eigsh`.
        solutions: A and B, for instance reached from one start with a small and a large learning rate.
        reference: by default the parameters as they are now.
        test: computes the outputs on other inputs.

    Raises:
        UsageError: other shapes, or outputs without a graph.

    Source: Li et al. 2023, arXiv 2305.12133, section on generalisation; the definition of q_j is ours.

    >>> w = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    >>> x = torch.tensor([[3.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    >>> from foreshock.curvature import Hessian, eigsh
    >>> pairs = eigsh(Hessian(lambda: (x @ w).square().sum() / 2, [w]), k=2, tol=1e-9)
    >>> found = eigen_projections(lambda: x @ w, [w], pairs, (torch.tensor([0.0, 2.0]), torch.tensor([1.0, 2.0])))
    >>> abs(found.parameters).round(6).tolist(), abs(found.train).round(6).tolist()
    ([[0.0, 2.0], [1.0, 2.0]], [1.5, 0.0])
    """
    space = Space(list(params))
    if not isinstance(eigenvectors, EigResult):
        raise UsageError(f"eigenvectors: the result of eigsh is needed, got {type(eigenvectors).__name__}")
    if len(solutions) != 2:
        raise UsageError(f"solutions: two of them are needed, (A, B), got {len(solutions)}")
    base = space.flatten(space.params) if reference is None else space.take(reference).clone()
    units = [space.flatten(direction) for direction in eigenvectors.directions]
    units = [unit / (norm(unit) or 1.0) for unit in units]
    away = [space.take(solution) - base for solution in solutions]
    projected = np.array([[dot(each, unit) for unit in units] for each in away])
    tables = []
    for each in (outputs, test):
        if each is None:
            continue
        with standing_at(space.params, space.split(base)):
            changes = output_changes(each, space.params, units)
        apart = real_change(each, space.params, solutions[1], solutions[0]).flatten().double()
        q = [_along(apart, change) for change in changes]
        tables.append((np.array(q), float(apart.norm()) / apart.numel(), tuple(changes)))
    other = tables[1] if test is not None else None
    return EigenProjections(
        values=eigenvectors.values, parameters=projected, distances=np.array([norm(each) for each in away]),
        train=tables[0][0], test=None if other is None else other[0],
        difference=(tables[0][1], float("nan") if other is None else other[1]), changes=tables[0][2],
        test_changes=() if other is None else other[2],
    )  # fmt: skip


def _along(apart: Tensor, change: Tensor) -> float:
    """Returns (1/n) <apart, change / |change|>; 0 where the outputs do not change along the direction."""
    flat = change.flatten().double()
    size = torch.linalg.vector_norm(flat)
    return float((apart @ flat) / size) / apart.numel() if float(size) > 0 else 0.0
