"""How much of a change of the outputs is of low frequency, seen over the inputs.

`spectrum_1d` for inputs on a uniform line; for any others a filter in input space (`share_low`) and a transform along
their first principal axis (`projection_spectrum`), the usual methods of the literature on the frequency principle
(Xu, Zhang, Luo, Xiao, Ma 2020, arXiv 1901.06523).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import torch
from torch import Tensor

from foreshock.errors import UsageError

_BYTES = 1 << 26  # of the table of distances, and of the filter, that are held at a time
_UNEVEN = 1e-3  # of the spacing of a uniform grid, that a step of it may be off
_WAVES = 32  # frequencies of a projection spectrum unless some are given


def spectrum_1d(change: Tensor | np.ndarray, inputs: Tensor | np.ndarray | None = None) -> np.ndarray:
    """Returns the share of each frequency in a change of the outputs over a uniform grid, shape (n // 2 + 1,).

    p_k = sum over outputs of |rfft(df)_k|^2, share_k = p_k / sum_k p_k: [1] is the share of one wave over the grid.
    NaN where nothing changed.

    Args:
        change: df, shape (n,) or (n, ...), the grid along the first dimension.
        inputs: the grid, n numbers; given, it is checked to be uniform.

    Raises:
        UsageError: fewer than two points, or a grid that is not uniform.

    >>> x = np.linspace(0, 2 * np.pi, 8, endpoint=False)
    >>> spectrum_1d(np.sin(x) + 2 * np.cos(3 * x)).round(6)
    array([0. , 0.2, 0. , 0.8, 0. ])
    """
    df = _rows(change, "change").cpu().numpy()
    if len(df) < 2:
        raise UsageError(f"spectrum_1d(change): at least two points are needed, got {len(df)}")
    if inputs is not None:
        steps = np.diff(np.asarray(_tensor(inputs).double().cpu()).ravel())
        if len(steps) != len(df) - 1 or not (np.abs(steps - steps.mean()) <= _UNEVEN * abs(steps.mean())).all():
            raise UsageError(
                f"spectrum_1d(inputs): a uniform grid of {len(df)} numbers is needed; use share_low or "
                "projection_spectrum for others"
            )
    powers = (np.abs(np.fft.rfft(df, axis=0)) ** 2).sum(axis=1)
    return np.asarray(powers / powers.sum()) if powers.sum() > 0 else np.full(len(powers), np.nan)


@overload
def share_low(inputs: Tensor | np.ndarray, change: Tensor | np.ndarray, width: float) -> float: ...
@overload
def share_low(
    inputs: Tensor | np.ndarray, change: Tensor | np.ndarray, width: Sequence[float] | np.ndarray
) -> np.ndarray: ...
def share_low(
    inputs: Tensor | np.ndarray, change: Tensor | np.ndarray, width: float | Sequence[float] | np.ndarray
) -> float | np.ndarray:
    """Returns how much of a change of the outputs passes a Gaussian filter in input space: from 0 to 1.

    df_low(x_i) = sum_j G(x_i - x_j) df_j / sum_j G(x_i - x_j), G(x) = exp(-|x|^2 / (2 width^2)), and the share is
    |df_low|^2 / (|df_low|^2 + |df - df_low|^2). It falls from 1 at width 0 to that of the mean at large ones, and falls
    late where df varies slowly over the inputs: scan `width` over `widths(inputs)`, compare changes at the same one.

    Exact, in float64 where the device has it: n^2 distances, some rows at a time, all widths in one pass over them.

    Args:
        inputs: shape (n,) or (n, ...); everything behind the first dimension is one point. Scale features that are not
            alike before.
        change: df, shape (n,) or (n, ...).
        width: standard deviation of the filter, in units of the inputs; or several.

    Raises:
        UsageError: another number of inputs than of changes, or a width that is not above 0.

    >>> x = np.linspace(0, 1, 50)
    >>> slow, fast = share_low(x, np.sin(6 * x), 0.05), share_low(x, np.sin(60 * x), 0.05)
    >>> slow > 0.95 and fast < 0.1
    True
    """
    widths_wanted = np.atleast_1d(np.asarray(width, dtype=float))
    if widths_wanted.ndim != 1 or not (widths_wanted > 0).all() or not np.isfinite(widths_wanted).all():
        raise UsageError(f"share_low(width): finite widths above 0 are needed, got {width!r}")
    df = _rows(change, "change")
    x = _centred(inputs, len(df)).to(df.device)
    squares = (x * x).sum(1)
    sums = torch.zeros(len(widths_wanted), 2, dtype=df.dtype, device=df.device)
    step = max(1, _BYTES // (2 * df.element_size() * max(len(df), 1)))
    for begin in range(0, len(df), step):
        some = slice(begin, begin + step)
        distances = (squares[some, None] + squares[None, :]).addmm_(x[some], x.T, alpha=-2.0).clamp_(min=0.0)
        own = torch.arange(len(distances), device=df.device)
        distances[own, own + begin] = 0.0
        for i, each in enumerate(widths_wanted):
            gauss = torch.exp(distances * (-0.5 / each**2))
            low = (gauss @ df).div_(gauss.sum(1, keepdim=True))
            sums[i, 0] += low.square().sum()
            sums[i, 1] += (df[some] - low).square().sum()
    low, high = sums.cpu().double().numpy().T
    with np.errstate(invalid="ignore"):
        shares = low / (low + high)
    return float(shares[0]) if np.ndim(width) == 0 else np.asarray(shares)


def widths(inputs: Tensor | np.ndarray, count: int = 12, *, sample: int = 1000) -> np.ndarray:
    """Returns widths for `share_low`, geometric from half the usual distance to a nearest neighbour to the extent.

    Args:
        inputs: shape (n,) or (n, ...).
        count: how many.
        sample: inputs (evenly taken from all) whose neighbours among each other are looked at.
    """
    x = _centred(inputs, None)
    if count < 2 or len(x) < 2:
        raise UsageError(f"widths(inputs, count): two inputs and two widths are needed, got {len(x)} and {count}")
    x = x[torch.linspace(0, len(x) - 1, min(len(x), sample)).long()]
    squares = (x * x).sum(1)
    distances = (squares[:, None] + squares[None, :] - 2.0 * x @ x.T).clamp_(min=0.0).sqrt_()
    largest = float(distances.max())
    if not largest > 0:
        raise UsageError("widths(inputs): all inputs are the same")
    distances.fill_diagonal_(math.inf)
    nearest = distances.min(1).values
    # copies of an input have a nearest neighbour at no distance: rounding, in place of which the others are asked
    apart = nearest[nearest > 1e-6 * largest]
    smallest = 0.5 * float(apart.median()) if len(apart) else 1e-3 * largest
    return np.geomspace(smallest, largest, count)


@dataclass(frozen=True, slots=True)
class ProjectionSpectrum:
    """A change of the outputs, transformed along one direction of the inputs.

    Attributes:
        frequencies: in waves per unit of input along the axis, shape (m,).
        waves: the same, in waves over the extent of the inputs along the axis.
        shares: power at each frequency over that at all of them, shape (m,).
        powers: sum over outputs of |c(k)|^2.
        axis: unit vector in input space, shape (d,).
        explained: share of the inputs' variance along it: the less, the less of df the transform sees.
    """

    frequencies: np.ndarray
    waves: np.ndarray
    shares: np.ndarray
    powers: np.ndarray
    axis: np.ndarray
    explained: float


def projection_spectrum(
    inputs: Tensor | np.ndarray, change: Tensor | np.ndarray, frequencies: Sequence[float] | np.ndarray | None = None
) -> ProjectionSpectrum:
    """Returns the spectrum of a change of the outputs along the first principal axis of the inputs.

    c(k) = (1/n) sum_i df_i exp(-2 pi i k (x_i . e)), a transform of points that need not be uniform.

    Args:
        inputs: shape (n,) or (n, ...).
        change: df, shape (n,) or (n, ...).
        frequencies: k, in waves per unit along the axis; by default 0, 1, 2, ... up to 32 waves (at most n / 2) over
            the extent of the inputs.

    Raises:
        UsageError: another number of inputs than of changes, or inputs that are all the same.

    >>> x = np.linspace(0, 1, 101)[:100]
    >>> projection_spectrum(x, np.cos(2 * np.pi * 3 * x), [1.0, 2.0, 3.0]).shares.round(6)
    array([0., 0., 1.])
    """
    df = _rows(change, "change")
    x = _centred(inputs, len(df)).to(df.device)
    axis, explained = _principal(x)
    along = x @ axis
    extent = float(along.max() - along.min())
    if frequencies is None:
        given = np.arange(min(_WAVES, len(df) // 2) + 1) / extent
    else:
        given = np.asarray(frequencies, dtype=float).ravel()
    powers = []
    for k in given:
        phase = along * (2 * math.pi * k)
        real, imaginary = (torch.cos(phase) @ df) / len(df), (torch.sin(phase) @ df) / len(df)
        powers.append((real.square() + imaginary.square()).sum())
    power = torch.stack(powers).cpu().double().numpy()
    with np.errstate(invalid="ignore"):
        shares = power / power.sum()
    return ProjectionSpectrum(given, given * extent, shares, power, axis.cpu().double().numpy(), explained)


def _principal(x: Tensor) -> tuple[Tensor, float]:
    """Returns the first principal axis of centred points, and its share of their variance."""
    n, d = x.shape
    inner = x @ x.T if n < d else x.T @ x
    total = float(inner.diagonal().sum())
    if not total > 0:
        raise UsageError("projection_spectrum(inputs): all inputs are the same, so they have no principal axis")
    values, vectors = torch.linalg.eigh(inner.cpu())
    top = vectors[:, -1].to(x)
    axis = x.T @ top if n < d else top
    return axis / axis.norm(), float(values[-1]) / total


def _tensor(values: Tensor | np.ndarray) -> Tensor:
    return values.detach() if isinstance(values, Tensor) else torch.from_numpy(np.ascontiguousarray(values))


def _rows(values: Tensor | np.ndarray, name: str) -> Tensor:
    """Returns values as a matrix (n, outputs), float64 where the device has it."""
    found = _tensor(values)
    if found.dim() == 0 or not found.numel():
        raise UsageError(f"{name}: one row for each input is needed, got shape {tuple(found.shape)}")
    wide = found.float() if found.device.type == "mps" else found.double()
    return wide.reshape(len(found), -1)


def _centred(inputs: Tensor | np.ndarray, n: int | None) -> Tensor:
    x = _rows(inputs, "inputs")
    if n is not None and len(x) != n:
        raise UsageError(f"inputs: {len(x)} of them for {n} changes of the outputs")
    return x - x.mean(0)
