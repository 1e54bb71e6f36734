"""Principal components of snapshots of the parameters."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from foreshock.curvature.eigs import eigsh
from foreshock.curvature.operator import ExplicitOperator
from foreshock.curvature.space import Space, norm
from foreshock.errors import UsageError
from foreshock.landscape.plane import Direction, Plane, direction_of

_BYTES = 1 << 25  # of float64 at a time, where snapshots are brought to double
_DENSE = 1024  # snapshots, or parameters if there are fewer, up to which all components are computed
_RANK = 1e-12  # of the largest variance, below which a component is rounding
_SEEN = 0.7  # |cos| above which a direction is called a component's own: half of its square


@dataclass(frozen=True, slots=True)
class PCA:
    """Principal components of a trajectory.

    Attributes:
        components: k unit directions, tensors shaped like the parameters; each signed so that the last snapshot lies
            further along it than the first.
        explained: share of the variance that each explains, shape (k,).
        scores: coordinates of the snapshots along them, shape (m, k).
        mean: of the snapshots, tensors shaped like the parameters.
        steps: of the snapshots, shape (m,).
        alignments: |cos| of `top` with each component, shape (k,); None where no direction was given.
        notes: what a reader has to know: which component `top` is, where it is none of the first two.
        params: the parameters that stand for points of `plane()`.
    """

    components: tuple[list[Tensor], ...] = field(repr=False)
    explained: np.ndarray
    scores: np.ndarray = field(repr=False)
    mean: list[Tensor] = field(repr=False)
    steps: np.ndarray = field(repr=False)
    alignments: np.ndarray | None
    notes: tuple[str, ...]
    params: tuple[Tensor, ...] = field(repr=False)

    def plane(self, first: int = 0, second: int = 1) -> Plane:
        """Returns the plane through the mean along two of the components.

        Raises:
            UsageError: there is no such component.
        """
        k = len(self.components)
        if not (0 <= first < k and 0 <= second < k and first != second):
            raise UsageError(f"plane({first}, {second}): two of the {k} components are needed, counted from 0")
        space = Space(self.params)
        axes = tuple(
            tuple(piece.detach().to(space.dtype) for piece in self.components[place]) for place in (first, second)
        )
        extents = np.ptp(self.scores, axis=0)
        return Plane(
            self.params, tuple(self.mean), (axes[0], axes[1]), (f"PC {first + 1}", f"PC {second + 1}"),
            (float(extents[first]), float(extents[second])),
        )


def pca(
    params: Sequence[Tensor], snapshots: Sequence[Tensor] | Sequence[Sequence[Tensor]], k: int = 2, *,
    steps: Sequence[int] | np.ndarray | None = None, top: Direction | None = None,
) -> PCA:
    """Returns the principal components of snapshots, exactly, in float64 whatever the snapshots are stored in.

    From the m x m matrix of inner products of centred snapshots (or the n x n covariance, where that is smaller), a few
    columns in double at a time: beside the snapshots memory for k + 2 vectors is needed.

    A slow drift outweighs the oscillation of a spike: in a window that is long beside the spike the sharpest direction
    may be the third component or none. Give it as `top`, read `alignments`, and prefer `drift_plane` where PCA misses
    it.

    Args:
        params: what the snapshots are of.
        snapshots: at least two, flat (n,) or as lists of tensors shaped like the parameters.
        k: components wanted; fewer where the snapshots span fewer directions.
        steps: of the snapshots; by default 0, 1, 2, ...
        top: the sharpest direction, an `Edge`, `EigResult`, tensors or a flat vector.

    Raises:
        UsageError: fewer than two snapshots, numbers that are not finite, or k below 1.

    >>> w = torch.zeros(2, dtype=torch.float64)
    >>> rows = [torch.tensor(row, dtype=torch.float64) for row in ([0.0, 1.0], [3.0, 1.0], [6.0, 1.0])]
    >>> found = pca([w], rows, top=torch.tensor([1.0, 0.0]))
    >>> found.explained, found.scores.T, found.alignments
    (array([1.]), array([[-3.,  0.,  3.]]), array([1.]))
    """
    space = Space(list(params))
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise UsageError(f"pca(k=...): a positive integer is needed, got {k!r}")
    rows = [_row(space, snapshot) for snapshot in snapshots]
    m, n = len(rows), space.n
    if m < 2:
        raise UsageError(f"pca(snapshots): at least two are needed, got {m}")
    at = np.arange(m) if steps is None else np.asarray(steps)
    if len(at) != m:
        raise UsageError(f"pca(steps): {len(at)} steps for {m} snapshots")
    mean, total, inner = _moments(rows, n)
    if not math.isfinite(total):
        raise UsageError("pca(snapshots): they hold NaN or infinite numbers")
    values, vectors = _top(inner, k)
    kept = values > _RANK * max(float(values[0]), 0.0)
    values, vectors = values[kept], vectors[:, kept]
    if not len(values):
        raise UsageError("pca(snapshots): they are all the same")
    components, scores = _components(rows, mean, values, vectors, space)
    signs = np.where(scores[-1] < scores[0], -1.0, 1.0)
    scores = scores * signs
    for component, sign in zip(components, signs, strict=True):
        component.mul_(sign)
    alignments = None if top is None else _alignments(components, direction_of(space, top))
    return PCA(
        components=tuple(space.pieces(component) for component in components),
        explained=values / total, scores=scores, mean=space.pieces(mean.to(space.device, space.dtype)), steps=at,
        alignments=alignments, notes=_notes(alignments), params=space.params,
    )  # fmt: skip


def _row(space: Space, snapshot: Tensor | Sequence[Tensor]) -> Tensor:
    """Returns a snapshot flat, where it is stored."""
    if isinstance(snapshot, Tensor) and snapshot.shape == (space.n,):
        return snapshot.detach()
    return space.take(snapshot)


def _blocks(rows: Sequence[Tensor], n: int) -> Iterator[tuple[slice, Tensor]]:
    """Yields the snapshots in double, some columns at a time, as (columns, (m, c)), less the first snapshot."""
    exact = torch.float64 if rows[0].device.type != "mps" else torch.float32
    width = max(1, _BYTES // (8 * len(rows)))
    for begin in range(0, n, width):
        columns = slice(begin, min(begin + width, n))
        base = rows[0][columns].to(exact)
        yield columns, torch.stack([row[columns].to(exact) for row in rows]).sub_(base)


def _moments(rows: Sequence[Tensor], n: int) -> tuple[Tensor, float, Tensor]:
    """Returns the mean (n,), the total sum of squares about it, and the smaller matrix of inner products, float64."""
    m = len(rows)
    exact = torch.float64 if rows[0].device.type != "mps" else torch.float32
    mean = torch.empty(n, dtype=exact, device=rows[0].device)
    if m <= n:
        inner = torch.zeros(m, m, dtype=exact, device=rows[0].device)
        for columns, block in _blocks(rows, n):
            shift = block.mean(0)
            mean[columns] = rows[0][columns].to(exact) + shift
            block.sub_(shift)
            inner.addmm_(block, block.T)
    else:
        inner = torch.zeros(n, n, dtype=exact, device=rows[0].device)
        shift = torch.stack([row.to(exact) - rows[0].to(exact) for row in rows]).mean(0)
        mean.copy_(rows[0].to(exact) + shift)
        step = max(1, _BYTES // (8 * n))
        for begin in range(0, m, step):
            block = torch.stack([row.to(exact) for row in rows[begin : begin + step]]).sub_(mean)
            inner.addmm_(block.T, block)
    return mean, float(inner.diagonal().sum()), inner.cpu().double()


def _top(inner: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the k largest eigenvalues of the matrix, from the largest down, and their eigenvectors as columns."""
    size = inner.shape[0]
    k = min(k, size)
    if size <= _DENSE:
        values, vectors = np.linalg.eigh(inner.numpy())
        return values[::-1][:k], vectors[:, ::-1][:, :k]
    found = eigsh(ExplicitOperator(inner), k, tol=1e-6, max_matvecs=max(300, 40 * k))
    return found.values, torch.stack([vector[0] for vector in found.vectors], 1).numpy()


def _components(
    rows: Sequence[Tensor], mean: Tensor, values: np.ndarray, vectors: np.ndarray, space: Space
) -> tuple[list[Tensor], np.ndarray]:
    """Returns the components, flat, in the type of computation, and the scores (m, k)."""
    m, n, k = len(rows), space.n, len(values)
    basis = torch.from_numpy(np.ascontiguousarray(vectors)).to(mean)
    if m > n:
        directions = basis.T
        scores = torch.stack([directions @ (row.to(mean) - mean) for row in rows])
        flat = [direction.to(space.device, space.dtype).clone() for direction in directions]
        return flat, scores.cpu().double().numpy()
    scale = torch.from_numpy(1 / np.sqrt(values)).to(mean)
    found = torch.empty(k, n, dtype=space.dtype, device=space.device)
    for columns, block in _blocks(rows, n):
        block.sub_(block.mean(0))
        found[:, columns] = ((basis.T @ block) * scale[:, None]).to(found)
    return list(found), vectors * np.sqrt(values)


def _alignments(components: Sequence[Tensor], top: Tensor) -> np.ndarray:
    length = norm(top)
    if not 0.0 < length < math.inf:
        raise UsageError(f"pca(top): a direction of finite length above 0 is needed, got length {length}")
    exact = torch.float64 if top.device.type != "mps" else torch.float32
    found = torch.stack([(component * top).sum(dtype=exact) for component in components])
    return np.asarray(found.abs().cpu().double().numpy() / length).clip(max=1.0)


def _notes(alignments: np.ndarray | None) -> tuple[str, ...]:
    if alignments is None:
        return ()
    best = int(alignments.argmax())
    if best < 2 and alignments[best] >= _SEEN:
        return ()
    if alignments[best] >= _SEEN:
        return (
            f"the sharpest direction is component {best + 1} (|cos| {alignments[best]:.3f}), which the plane of the "
            "first two misses: take a shorter window, plane(first, second), or drift_plane",
        )
    return (
        f"none of the {len(alignments)} components is the sharpest direction (largest |cos| {alignments[best]:.2f}): "
        "drift outweighs it; take a shorter window, or drift_plane",
    )
