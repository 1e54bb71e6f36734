"""The loss, and its sharpness, over a plane."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from foreshock.curvature.eigs import EigResult, eigsh
from foreshock.curvature.hessian import Hessian
from foreshock.curvature.operator import Operator
from foreshock.errors import UsageError
from foreshock.landscape.called import modules_called, together
from foreshock.landscape.evaluate import Closure, Evaluator
from foreshock.landscape.plane import Plane
from foreshock.stability import EdgeWeights


@dataclass(frozen=True, slots=True)
class Surface:
    """A quantity over a grid on a plane.

    Attributes:
        plane: where.
        alphas: coordinates along the first axis, shape (na,).
        betas: along the second, shape (nb,).
        values: at (alphas[i], betas[j]), shape (na, nb), float64.
        quantity: "loss", "lambda_max" or "chi".
        passes: forward passes, or products with the Hessian, used.
        notes: how the numbers were obtained.
    """

    plane: Plane
    alphas: np.ndarray
    betas: np.ndarray
    values: np.ndarray
    quantity: str
    passes: int = 0
    notes: tuple[str, ...] = ()


def surface(
    closure: Closure, plane: Plane, alphas: Sequence[float] | np.ndarray, betas: Sequence[float] | np.ndarray, *,
    data: Iterable[Any] | None = None,
) -> Surface:
    """Returns the loss over a grid on a plane, in one batched pass where the closure allows it.

    Nothing is changed: parameters, buffers, modes, gradients and random numbers are afterwards what they were. Random
    numbers that the closure draws are the same at every point. What cannot be batched is evaluated point by point, with
    a note that says why; both agree to rounding.

    Args:
        closure: `closure()`, or with `data` `closure(batch)`, gives a scalar loss; one fixed batch.
        plane: see `plane_of`, `drift_plane`, `PCA.plane`.
        alphas, betas: distances along the axes, each at its own scale: `plane.project(trajectory).grid()`.
        data: the batches of a whole data set, as for `Hessian`.

    Raises:
        UsageError: a grid without points, or a closure that gives no number or another one each time.

    >>> import torch
    >>> from foreshock.landscape import plane_of
    >>> w = torch.tensor([1.0, 1.0], dtype=torch.float64, requires_grad=True)
    >>> plane = plane_of([w], torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))
    >>> surface(lambda: (w * w).sum(), plane, [0.0, 1.0], [0.0, 1.0]).values
    array([[2., 5.],
           [5., 8.]])
    """
    a, b = _axis(alphas, "alphas"), _axis(betas, "betas")
    evaluator = Evaluator(closure, plane, data=data)
    values = evaluator(_mesh(a, b)).reshape(len(a), len(b))
    notes = evaluator.notes
    if values.size > 1 and not np.ptp(values) > 0 and np.isfinite(values).all():
        notes += ("the loss is the same at every point: are the plane's parameters those that the closure reads?",)
    return Surface(plane, a, b, values, "loss", passes=evaluator.passes, notes=notes)


def sharpness(
    closure: Closure, plane: Plane, alphas: Sequence[float] | np.ndarray, betas: Sequence[float] | np.ndarray, *,
    weights: EdgeWeights | None = None, tol: float = 1e-2,
) -> Surface:
    """Returns lambda_max(H) over a grid on a plane, or with an optimizer's edge weights chi, edge 1.

    Each point starts from the eigenvector found at its neighbour, which takes a few products with the Hessian; a grid
    of 9 x 9 is enough for the level line lambda_max = 2/lr, as sharpness varies slowly. Points at which the loss or its
    curvature is not finite hold NaN. Random numbers are replayed.

    Args:
        closure: gives a scalar loss with its graph; one fixed batch.
        plane, alphas, betas: as for `surface`.
        weights: W of `edge_weights(optimizer, grads)`, held over the whole plane.
        tol: relative error wanted of each value.

    Raises:
        UsageError: a grid without points, or a closure that has no Hessian.
    """
    a, b = _axis(alphas, "alphas"), _axis(betas, "betas")
    values = np.full((len(a), len(b)), np.nan)
    model = together(modules_called(closure, plane.params))
    hessian = Hessian(closure, list(plane.params), model=model, deterministic="fix")
    operator: Operator = hessian if weights is None else hessian.conditioned(weights)
    found: EigResult | None = None
    loose = 0
    notes: tuple[str, ...] = ()
    with hessian:
        for i in range(len(a)):
            # back and forth, so that every point follows one beside it
            for j in range(len(b)) if i % 2 == 0 else range(len(b) - 1, -1, -1):
                with plane.at(float(a[i]), float(b[j])):
                    hessian.refresh()
                    try:
                        found = eigsh(operator, tol=tol, warm_start=found)
                    except UsageError as error:
                        if "no curvature at such a point" not in str(error) and "NaN or infinite" not in str(error):
                            raise
                        found = None
                        continue
                values[i, j] = found.values[0]
                loose += not bool(found.converged[0])
                notes = found.notes
    if loose:
        notes += (f"not converged to {tol:g} at {loose} of {values.size} points: lower bounds there",)
    return Surface(plane, a, b, values, "lambda_max" if weights is None else "chi", passes=hessian.matvecs, notes=notes)


def _axis(values: Sequence[float] | np.ndarray, name: str) -> np.ndarray:
    axis = np.asarray(values, dtype=float)
    if axis.ndim != 1 or not len(axis) or not np.isfinite(axis).all():
        raise UsageError(f"{name}: a list of finite distances along the axis is needed, got shape {axis.shape}")
    return axis


def _mesh(alphas: np.ndarray, betas: np.ndarray) -> np.ndarray:
    return np.stack(np.meshgrid(alphas, betas, indexing="ij"), axis=-1).reshape(-1, 2)
