"""A plane through parameter space, and where parameters stand on it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from foreshock import distributed
from foreshock.curvature.edge import Edge
from foreshock.curvature.eigs import EigResult
from foreshock.curvature.space import Space, dot, norm
from foreshock.errors import UsageError
from foreshock.landscape.standing import standing_at

Direction = Edge | EigResult | Tensor | Sequence[Tensor]

# |sin| of the angle between two axes below which they span no plane: float32 directions are no better than this.
_PARALLEL = 1e-5
_MARGIN = 0.15  # of the extent of a trajectory, left free around it on each side of a grid


@dataclass(frozen=True, slots=True)
class Plane:
    """The points origin + a e1 + b e2 of parameter space; e1 and e2 are orthonormal, so a and b are distances.

    It holds three copies of the parameters: the origin (the caller's own where it was given) and two axes.

    Attributes:
        params: the parameters that stand for a point while it is looked at.
        origin: tensors shaped like them.
        axes: e1 and e2, tensors shaped like them, in the type of computation.
        names: what the axes are, for labels.
        lengths: how long the directions were that the axes were made of, the second without its part along the first:
            on a drift plane how far the training drifted.
    """

    params: tuple[Tensor, ...] = field(repr=False)
    origin: tuple[Tensor, ...] = field(repr=False)
    axes: tuple[tuple[Tensor, ...], tuple[Tensor, ...]] = field(repr=False)
    names: tuple[str, str]
    lengths: tuple[float, float]

    def points(self, coordinates: Tensor) -> list[Tensor]:
        """Returns the parameters at points, for each parameter a tensor (p, *shape) of its own type.

        Args:
            coordinates: shape (p, 2).
        """
        found = []
        for at, first, second, param in zip(self.origin, *self.axes, self.params, strict=True):
            pair = torch.stack([first.flatten(), second.flatten()])
            base = at.detach().to(first).reshape(1, -1)
            stacked = torch.addmm(base, coordinates.to(first.dtype).to(first.device), pair)
            found.append(stacked.to(param.dtype).view(len(coordinates), *param.shape))
        return found

    def point(self, a: float, b: float) -> list[Tensor]:
        """Returns the parameters at origin + a e1 + b e2, tensors shaped and typed like them."""
        coordinates = torch.tensor([[a, b]], dtype=self.axes[0][0].dtype)
        return [values[0] for values in self.points(coordinates)]

    @contextmanager
    def at(self, a: float, b: float) -> Iterator[None]:
        """Lets the parameters stand at a point for the length of a block; afterwards they are what they were."""
        with standing_at(self.params, self.point(a, b)):
            yield

    def project(
        self, snapshots: Iterable[Sequence[Tensor] | Tensor], steps: Sequence[int] | np.ndarray | None = None
    ) -> Projection:
        """Returns where snapshots of the parameters fall on the plane, and how far off it they are.

        Args:
            snapshots: a `Trajectory`, or lists of tensors shaped like the parameters, or flat vectors (n,).
            steps: their steps; by default those the trajectory knows, else 0, 1, 2, ...
        """
        space = Space(self.params)
        origin = space.flatten(self.origin)
        first, second = (space.flatten(axis) for axis in self.axes)
        exact = torch.float64 if space.device.type != "mps" else torch.float32
        rows = []
        for snapshot in snapshots:
            away = space.take(snapshot).sub(origin)
            a, b = ((away * axis).sum(dtype=exact) for axis in (first, second))
            off = away.sub_(first * a.to(away)).sub_(second * b.to(away))
            rows.append(torch.stack([a, b, torch.linalg.vector_norm(off, dtype=exact)]))
        if not rows:
            raise UsageError("project(snapshots): there is no snapshot to project")
        table = torch.stack(rows).double().cpu().numpy() if exact == torch.float64 else torch.stack(rows).cpu().numpy()
        if steps is None:
            steps = getattr(snapshots, "steps", None)
        return Projection(
            np.arange(len(table)) if steps is None else np.asarray(steps), table[:, 0], table[:, 1], table[:, 2]
        )


@dataclass(frozen=True, slots=True)
class Projection:
    """Snapshots on a plane.

    Attributes:
        steps: shape (m,).
        alphas: coordinates along the first axis, shape (m,).
        betas: along the second.
        off: distance of each snapshot from the plane, shape (m,): where it is large beside the coordinates, the loss
            under the point on the plane is not the loss of the training.
    """

    steps: np.ndarray
    alphas: np.ndarray
    betas: np.ndarray
    off: np.ndarray

    def grid(self, points: int = 41, *, margin: float = _MARGIN) -> tuple[np.ndarray, np.ndarray]:
        """Returns coordinates (alphas, betas) of a grid that covers the trajectory, each axis at its own scale.

        The scales differ by factors: a valley may be .14 wide while the drift along it is .54 long.

        Args:
            points: for each axis.
            margin: free room on each side, as a share of the trajectory's extent.
        """
        if points < 2:
            raise UsageError(f"grid(points): at least 2 for each axis, got {points}")
        return _covering(self.alphas, points, margin), _covering(self.betas, points, margin)


def _covering(values: np.ndarray, points: int, margin: float) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    extent = (high - low) or max(abs(low), 1.0) * 1e-2
    return np.linspace(low - margin * extent, high + margin * extent, points)


def plane_of(
    params: Sequence[Tensor], axis1: Direction, axis2: Direction | None = None, *,
    origin: Sequence[Tensor] | Tensor | None = None, names: tuple[str, str] | None = None,
) -> Plane:
    """Returns the plane through a point along two directions, which are made orthonormal; the first keeps its own.

    Args:
        params: the parameters that stand for points while they are looked at.
        axis1: an `Edge` (its vector), an `EigResult` (its first direction), tensors shaped like the parameters, or a
            flat vector (n,).
        axis2: likewise; left out, the second direction of `axis1`, an `EigResult` of at least two.
        origin: the point; by default a copy of the parameters as they are now.
        names: of the axes, for labels.

    Raises:
        UsageError: a direction of another shape, of length 0, or not finite; two that are parallel; parameters that
            are sharded over ranks.

    >>> w = torch.zeros(2, dtype=torch.float64)
    >>> plane = plane_of([w], torch.tensor([3.0, 0.0]), torch.tensor([1.0, 2.0]))
    >>> plane.lengths, [axis[0].tolist() for axis in plane.axes]
    ((3.0, 2.0), [[1.0, 0.0], [0.0, 1.0]])
    """
    space = Space(list(params))
    if any(distributed.sharded(param) for param in space.params):
        raise UsageError(
            "plane_of(params): they are sharded over ranks (FSDP2, tensor parallel), where none can stand at a point "
            "alone; load the weights into an unsharded model"
        )
    if axis2 is None:
        if not isinstance(axis1, EigResult) or len(axis1.directions) < 2:
            raise UsageError(
                "plane_of(axis1, axis2): two directions are needed; axis2 may be left out where axis1 is an "
                "EigResult of two eigenvectors or more"
            )
        axis2 = axis1.directions[1]
        names = names or ("u1", "u2")
    first, length1 = _unit(space, axis1, "axis1")
    second, size = _unit(space, axis2, "axis2")
    inside = dot(first, second)
    for _ in range(2):  # the second round takes away what rounding left of the first
        second = second.sub(first, alpha=dot(first, second))
    rest = norm(second)
    if rest < _PARALLEL:
        raise UsageError(f"plane_of(axis1, axis2): the directions are parallel (cosine {inside:.6f}); they span a line")
    second = second.div_(rest)
    if origin is None:
        kept = tuple(param.detach().clone() for param in space.params)
    else:
        whole = origin if not isinstance(origin, Tensor) else space.split(space.take(origin))
        kept = tuple(tensor.detach() for tensor in whole)
        space.flatten(kept)
    devices = [param.device for param in space.params]
    axes = tuple(
        tuple(piece.to(device) for piece, device in zip(space.pieces(axis), devices, strict=True))
        for axis in (first, second)
    )
    return Plane(space.params, kept, (axes[0], axes[1]), names or ("axis 1", "axis 2"), (length1, size * rest))


def drift_plane(
    params: Sequence[Tensor], begin: Sequence[Tensor] | Tensor, end: Sequence[Tensor] | Tensor, top: Direction, *,
    origin: Sequence[Tensor] | Tensor | None = None,
) -> Plane:
    """Returns the plane on which a spike happens: along the drift of the training, and along the sharpest direction.

    The first axis is (end - begin) without its part along the second, which is u1; `lengths[0]` is how far the training
    drifted. PCA finds u1 only in short windows: over 400 steps around a spike it may be the third component.

    Args:
        params: the parameters that stand for points while they are looked at.
        begin, end: parameters at two times of ordinary descent.
        top: u1 at a point between, see `plane_of`.
        origin: the point; by default a copy of the parameters as they are now.

    Source: the decomposition into valley floor and valley wall of Li et al. 2023, arXiv 2305.12133; the recipe is ours.
    """
    space = Space(list(params))
    drift = space.take(end).sub(space.take(begin))
    found = plane_of(params, top, drift, origin=origin, names=("u1", "drift"))
    return Plane(
        found.params, found.origin, (found.axes[1], found.axes[0]), ("drift", "u1"),
        (found.lengths[1], found.lengths[0]),
    )


def direction_of(space: Space, given: Direction) -> Tensor:
    """Returns a direction as a flat vector, shape (n,); of a reading or an eigenresult its first, in parameters."""
    if isinstance(given, Edge):
        return space.take(given.vector)
    return space.take(given.directions[0] if isinstance(given, EigResult) else given)


def _unit(space: Space, given: Direction, name: str) -> tuple[Tensor, float]:
    flat = direction_of(space, given)
    length = norm(flat)
    if not 0.0 < length < math.inf:
        raise UsageError(f"plane_of({name}): a direction of finite length above 0 is needed, got length {length}")
    return flat / length, length
