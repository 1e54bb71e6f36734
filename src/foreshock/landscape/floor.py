"""The floor of a valley: the lowest loss across it, place after place along it, and the curvature there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch import Tensor

from foreshock.curvature.hessian import Hessian
from foreshock.curvature.space import dot
from foreshock.errors import UsageError
from foreshock.landscape.called import modules_called, together
from foreshock.landscape.evaluate import Closure, Evaluator
from foreshock.landscape.llas import LlasIndex, index_of
from foreshock.landscape.plane import Direction, Plane, plane_of
from foreshock.landscape.surfaces import Surface

_MOST = 60  # evaluations across the valley at one place, of a gradient and a product each
_CLOSE = {True: 1e-9, False: 1e-4}  # how near to the minimum, in widths of the valley: in float64, and else
_RISE = 0.5  # of the loss on the floor: the height at which the valley's width is measured, unless one is given
_LEVEL = 1e-5  # how near to that height, relative, in the root of it
_DOUBLINGS, _ROUNDS = 20, 40  # of the distance from the floor until a wall is passed, and then to its height


@dataclass(frozen=True, slots=True)
class Floor:
    """A valley along a direction d, minimised along u across it.

    Attributes:
        offsets: a, distances along d, shape (m,).
        positions: b at the minimum of L(theta + a d + b u) over b, shape (m,).
        losses: L there: the floor.
        curvatures: u'H u there, or the sharpness where it was read off a surface.
        widths: of the valley, across, at the floor's loss + `rise`; NaN where they were not measured.
        rise: see `widths`.
        index: how curvature goes with the loss along the floor: "lower is sharper" is an LLAS region. None where
            fewer than three places have a floor.
        notes: what a reader has to know.
    """

    offsets: np.ndarray
    positions: np.ndarray
    losses: np.ndarray
    curvatures: np.ndarray
    widths: np.ndarray
    rise: float
    index: LlasIndex | None
    notes: tuple[str, ...] = ()


def floor_index(
    closure: Closure, params: Sequence[Tensor], direction: Direction, top: Direction,
    offsets: Sequence[float] | np.ndarray, *, rise: float | None = None,
) -> Floor:
    """Returns the floor of the valley around the parameters as they are now, and whether it is sharper where lower.

    With d the direction without its part along u, both of length 1, L(theta + a d + b u) is minimised over b for each
    a, from the minimum found for the a next to it, by Newton steps inside a bracket; curvature along u at the minimum
    is by a product with the Hessian. This is the direct picture of "lower loss as sharper"; along a training the loss
    and the place change at once. Nothing is changed. Random numbers are replayed.

    Args:
        closure: gives a scalar loss with its graph; one fixed batch.
        params: the parameters.
        direction: along the valley: the drift of the training, as tensors or a flat vector.
        top: across it: the sharpest direction, an `Edge`, `EigResult`, tensors or a flat vector.
        offsets: a, distances along d.
        rise: height above the floor at which the width is measured; by default half the loss on the floor nearest to 0.

    Raises:
        UsageError: as for `plane_of` and `Hessian`.

    Source: the notion is that of Li et al. 2023, arXiv 2305.12133; the measurement is ours.

    >>> import torch
    >>> w = torch.tensor([0.0, 0.3], dtype=torch.float64, requires_grad=True)
    >>> loss = lambda: torch.exp(-w[0]) + torch.exp(w[0]) * w[1] ** 2 / 2
    >>> floor = floor_index(loss, [w], torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), [0.0, 1.0, 2.0])
    >>> floor.positions.round(6) + 0.3, floor.curvatures.round(3), floor.index.relation
    (array([0., 0., 0.]), array([1.   , 2.718, 7.389]), 'lower is sharper')
    """
    places = np.asarray(offsets, dtype=float)
    if places.ndim != 1 or not len(places) or not np.isfinite(places).all():
        raise UsageError(f"offsets: a list of finite distances along the direction is needed, got {offsets!r}")
    across = plane_of(params, top, direction, names=("u1", "drift"))
    plane = Plane(across.params, across.origin, (across.axes[1], across.axes[0]), ("drift", "u1"),
                  (across.lengths[1], across.lengths[0]))  # fmt: skip
    positions, losses, curvatures = (np.full(len(places), np.nan) for _ in range(3))
    notes: list[str] = []
    model = together(modules_called(closure, plane.params))
    with Hessian(closure, list(plane.params), model=model, deterministic="fix") as hessian:
        valley = _Valley(hessian, plane)
        begin = int(np.abs(places).argmin())
        order = np.argsort(places)
        rank = int(np.flatnonzero(order == begin)[0])
        for side in (order[rank:], order[rank::-1]):  # from the place nearest to 0 outwards, both ways
            start = positions[begin] if math.isfinite(positions[begin]) else 0.0
            for i in side:
                if math.isnan(positions[i]):
                    found = valley.lowest(float(places[i]), start)
                    if found is None:
                        notes.append(f"no floor at {places[i]:g}: the loss does not turn across the direction there")
                        continue
                    positions[i], losses[i], curvatures[i] = found.b, found.loss, found.curvature
                start = positions[i]
        notes += hessian.notes
    if rise is None:
        rise = _RISE * abs(losses[begin]) if math.isfinite(losses[begin]) else math.nan
    widths = _widths(Evaluator(closure, plane), np.stack([places, positions, losses, curvatures], axis=1), rise)
    return Floor(
        places, positions, losses, curvatures, widths, rise, _index(losses, curvatures), tuple(dict.fromkeys(notes))
    )


def floor_of(loss: Surface, sharp: Surface) -> Floor:
    """Returns the floor read off two surfaces: for each alpha the lowest loss over beta, and the sharpness there.

    The minimum is that of the parabola through the lowest point and its neighbours; where the lowest point is at the
    rim there is no floor (NaN). The sharpness is interpolated between its grid points.

    Args:
        loss: over a grid of at least 3 betas.
        sharp: lambda_max or chi over a grid on the same plane, which may be coarser.

    Raises:
        UsageError: surfaces on different planes, or grids too small.
    """
    if loss.plane is not sharp.plane:
        raise UsageError("floor_of(loss, sharp): the two surfaces are on different planes")
    if len(loss.betas) < 3 or min(sharp.values.shape) < 2:
        raise UsageError("floor_of: 3 betas of loss, and 2 x 2 points of sharpness, are needed at least")
    positions, losses, curvatures = (np.full(len(loss.alphas), np.nan) for _ in range(3))
    for i, row in enumerate(loss.values):
        lowest = int(np.where(np.isfinite(row), row, np.inf).argmin())
        if 0 < lowest < len(row) - 1:
            positions[i], losses[i] = _vertex(loss.betas[lowest - 1 : lowest + 2], row[lowest - 1 : lowest + 2])
            curvatures[i] = _between(sharp, loss.alphas[i], positions[i])
    missing = int(np.isnan(positions).sum())
    notes = (f"no floor at {missing} of {len(positions)} places: the lowest loss is at the rim",) if missing else ()
    empty = np.full(len(positions), np.nan)
    return Floor(
        loss.alphas, positions, losses, curvatures, empty, math.nan, _index(losses, curvatures), notes
    )


class _Point(NamedTuple):
    b: float
    loss: float
    slope: float
    curvature: float


class _Valley:
    """Loss, slope and curvature along u at points of a plane (d, u)."""

    def __init__(self, hessian: Hessian, plane: Plane) -> None:
        self._hessian, self._plane = hessian, plane
        self._u = hessian.space.flatten(plane.axes[1])
        self._exact = hessian.space.dtype.itemsize == 8

    def at(self, a: float, b: float) -> _Point:
        hessian = self._hessian
        with self._plane.at(a, b):
            hessian.refresh()
            slope = dot(hessian.source.gradient, self._u)
            return _Point(b, hessian.loss, slope, dot(hessian.multiply(self._u), self._u))

    def lowest(self, a: float, start: float) -> _Point | None:
        """Returns the minimum over b that lies downhill from `start`; None where there is none within reach."""
        here = self.at(a, start)
        scale = math.sqrt(2 * abs(here.loss) / abs(here.curvature)) if here.curvature and here.loss else 1.0
        close = _CLOSE[self._exact] * scale
        stride = scale
        if here.curvature > 0:
            stride = min(max(2 * abs(here.slope) / here.curvature, close), scale)
        low = here
        downhill = -1.0 if here.slope > 0 else 1.0
        for count in range(_MOST):
            if here.slope == 0.0 and here.curvature > 0:
                return here
            there = self.at(a, low.b + downhill * stride)
            if not math.isfinite(there.slope) or (there.slope == 0.0 and not there.curvature > 0):
                return None  # beyond what numbers can hold, or a plain
            if (there.slope > 0) != (low.slope > 0) or there.slope == 0.0:
                return self._between(a, low, there, close, _MOST - count)
            low, stride = there, 2 * stride
            if stride > 2.0**20 * scale:
                return None
        return None

    def _between(self, a: float, first: _Point, second: _Point, close: float, most: int) -> _Point:
        """Returns the minimum between two points at which the slopes have opposite signs."""
        left, right = (first, second) if first.b < second.b else (second, first)
        best = min(first, second, key=lambda point: abs(point.slope))
        for _ in range(most):
            guess = best.b - best.slope / best.curvature if best.curvature > 0 else math.nan
            if not left.b < guess < right.b:
                guess = 0.5 * (left.b + right.b)
            if abs(guess - best.b) <= close or right.b - left.b <= close:
                return best
            before = best
            best = self.at(a, guess)
            if best.slope == 0.0:
                return best
            left, right = (best, right) if best.slope < 0 else (left, best)
            if abs(best.slope) > 0.5 * abs(before.slope):  # Newton does not gain here, at a kink for instance: halve
                middle = self.at(a, 0.5 * (left.b + right.b))
                left, right = (middle, right) if middle.slope < 0 else (left, middle)
                best = min(best, middle, key=lambda point: abs(point.slope))
        return best


def _widths(evaluator: Evaluator, floor: np.ndarray, rise: float) -> np.ndarray:
    """Returns how far apart the walls are at a height above the floor, (m,); NaN where a wall is not found.

    The roots of sqrt(L - floor) - sqrt(rise), which is a line where the valley is a parabola, by false position
    (Illinois); all walls move together, so that a round is one batched pass.

    Args:
        floor: rows of a, b, loss and curvature at the minimum, shape (m, 4).
    """
    usable = np.isfinite(floor).all(1) & (floor[:, 3] > 0)
    found = np.full(len(floor), np.nan)
    if not usable.any() or not rise > 0:
        return found
    a, b, lowest, curvature = np.repeat(floor[usable], 2, axis=0).T
    side = np.tile([-1.0, 1.0], int(usable.sum()))
    goal = math.sqrt(rise)

    def height(which: np.ndarray, distance: np.ndarray) -> np.ndarray:
        points = np.stack([a[which], b[which] + side[which] * distance], axis=1)
        return np.asarray(np.sqrt(np.maximum(evaluator(points) - lowest[which], 0.0)) - goal)

    near, far = np.zeros(len(a)), np.sqrt(2 * rise / curvature)
    low, high = np.full(len(a), -goal), np.full(len(a), np.nan)
    below = np.arange(len(a))
    for _ in range(_DOUBLINGS):
        high[below] = height(below, far[below])
        below = below[high[below] < 0]
        if not len(below):
            break
        near[below], low[below], far[below] = far[below], high[below], 2 * far[below]
    at = np.where(high >= 0, far, np.nan)  # a loss that overflows is above, and halved
    open_ = np.flatnonzero((high > _LEVEL * goal) | np.isnan(high))
    open_ = np.setdiff1d(open_, below)
    for _ in range(_ROUNDS):
        if not len(open_):
            break
        finite = np.isfinite(high[open_])
        step = np.where(finite, low[open_] / (low[open_] - np.where(finite, high[open_], 1.0)), 0.5)
        at[open_] = near[open_] + step * (far[open_] - near[open_])
        here = height(open_, at[open_])
        under = here < 0
        lower, upper = open_[under], open_[~under]
        near[lower], low[lower] = at[lower], here[under]
        far[upper], high[upper] = at[upper], here[~under]
        high[lower] = np.where(np.isfinite(high[lower]), high[lower] / 2, high[lower])
        low[upper] /= 2
        open_ = open_[~(np.abs(here) <= _LEVEL * goal)]
    at[below] = np.nan
    found[usable] = at.reshape(-1, 2).sum(1)
    return found


def _index(losses: np.ndarray, curvatures: np.ndarray) -> LlasIndex | None:
    used = np.isfinite(losses) & np.isfinite(curvatures) & (losses > 0)
    return index_of(losses[used], curvatures[used]) if used.sum() >= 3 else None


def _vertex(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Returns place and value of the minimum of the parabola through three points, the middle one the lowest."""
    if not np.isfinite(y).all():
        return float(x[1]), float(y[1])
    c, b, a = np.polynomial.polynomial.polyfit(x - x[1], y, 2)
    if not a > 0:
        return float(x[1]), float(y[1])
    at = float(np.clip(-b / (2 * a), x[0] - x[1], x[2] - x[1]))
    return float(x[1]) + at, float(c + b * at + a * at * at)


def _between(grid: Surface, a: float, b: float) -> float:
    """Returns a surface's value at a point by bilinear interpolation; NaN outside of it."""
    rows = np.array([np.interp(b, grid.betas, row, left=np.nan, right=np.nan) for row in grid.values])
    return float(np.interp(a, grid.alphas, rows, left=np.nan, right=np.nan))
