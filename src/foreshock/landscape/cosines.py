"""How far the neurons of a layer point the same way: cosines of their input weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from foreshock.curvature.eigs import eigsh
from foreshock.curvature.operator import Operator
from foreshock.errors import UsageError

_MAP = 2048  # neurons up to which the map of cosines is kept unless it is asked for (32 MiB)
_ROWS = 1 << 22  # cosines that are held at a time


@dataclass(frozen=True, slots=True)
class Condensation:
    """The cosines between the input weights of a layer's neurons; those without weights (all 0) are left out.

    Attributes:
        neurons: how many have a direction, m.
        zeros: how many have none.
        mean: of C_ij = |cos(a_i, a_j)| over pairs i < j; NaN below two neurons.
        share_aligned: share of pairs with C_ij above `aligned`.
        aligned: that bound.
        effective: number of effective directions, m^2 / sum_ij C_ij^2, from 1 (one direction) to min(m, inputs): the
            participation ratio of the eigenvalues of C, which is also that of the Gram matrix of unit weights.
        cosines: C, shape (m, m), in the order of the layer; None where it was not kept.
        order: the neurons, by their index in the layer, sorted by the leading eigenvector of C, shape (m,): condensed
            groups come to lie side by side.
        kept: the index in the layer of each row of `cosines`, shape (m,).
    """

    neurons: int
    zeros: int
    mean: float
    share_aligned: float
    aligned: float
    effective: float
    cosines: np.ndarray | None = field(repr=False)
    order: np.ndarray = field(repr=False)
    kept: np.ndarray = field(repr=False)

    @property
    def map(self) -> np.ndarray:
        """C with rows and columns in `order`, shape (m, m).

        Raises:
            UsageError: the cosines were not kept.
        """
        if self.cosines is None:
            raise UsageError("map: the cosines were not kept; call condensation(..., keep=True)")
        rows = np.searchsorted(self.kept, self.order)
        return np.asarray(self.cosines[np.ix_(rows, rows)])


def condensation(
    weight: Tensor, bias: Tensor | None = None, *, aligned: float = 0.95, keep: bool | None = None
) -> Condensation:
    """Returns how condensed the neurons of a layer are.

    Args:
        weight: one row for each neuron, shape (m,) or (m, ...); the filters of a convolution are flattened. Of a
            transposed convolution pass `weight.transpose(0, 1)`.
        bias: shape (m,): part of each neuron's input weights, a_j = (w_j, b_j).
        aligned: |cos| above which a pair counts as aligned.
        keep: whether the map of all cosines is kept, m^2 numbers; by default up to 2048 neurons.

    Raises:
        UsageError: no neurons, a bias of another length, or numbers that are not finite.

    Source: Luo et al. 2021, arXiv 2007.07497 (condensation); Li et al. 2023, arXiv 2305.12133 (beside spikes).

    >>> found = condensation(torch.tensor([[1.0, 0.0], [-2.0, 0.0], [0.0, 3.0], [0.0, 0.0]]))
    >>> found.mean, found.share_aligned, found.effective, found.zeros
    (0.3333333333333333, 0.3333333333333333, 1.8, 1)
    """
    units, kept, zeros = _units(weight, bias)
    m = len(units)
    if not 0.0 < aligned < 1.0:
        raise UsageError(f"aligned: a cosine between 0 and 1 is needed, got {aligned!r}")
    if keep is None:
        keep = m <= _MAP
    table = np.empty((m, m)) if keep else None
    # over all ordered pairs, a neuron with itself left out: sum of C, of C^2, and how many are aligned
    sums = torch.zeros(3, dtype=units.dtype, device=units.device)
    step = max(1, _ROWS // max(m, 1))
    for begin in range(0, m, step):
        cosines = _cosines(units, begin, step)
        if table is not None:
            table[begin : begin + step] = cosines.cpu().numpy()
        own = torch.arange(len(cosines), device=units.device)
        cosines[own, own + begin] = 0.0
        sums += torch.stack([cosines.sum(), cosines.square().sum(), (cosines > aligned).sum().to(cosines)])
    total, squares, close = sums.tolist()
    pairs = m * (m - 1)
    return Condensation(
        neurons=m, zeros=zeros, mean=total / pairs if pairs else math.nan,
        share_aligned=close / pairs if pairs else math.nan, aligned=aligned,
        effective=m * m / (m + squares) if m else 0.0, cosines=table,
        order=kept[_order(units, table)], kept=kept,
    )  # fmt: skip


def _units(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, np.ndarray, int]:
    """Returns the directions of the input weights, shape (m, d), the neurons' indices, and how many have none."""
    if weight.dim() == 0 or not weight.numel():
        raise UsageError(f"weight: one row for each neuron is needed, got shape {tuple(weight.shape)}")
    wide = torch.float32 if weight.device.type == "mps" else torch.float64
    rows = weight.detach().reshape(len(weight), -1).to(wide)
    if bias is not None:
        if bias.shape != (len(rows),):
            raise UsageError(f"bias: one number for each of the {len(rows)} neurons, got shape {tuple(bias.shape)}")
        rows = torch.cat([rows, bias.detach().to(rows).unsqueeze(1)], dim=1)
    largest = rows.abs().amax(1)
    if not bool(torch.isfinite(largest).all()):
        raise UsageError("weight: it holds NaN or infinite numbers")
    alive = largest > 0
    units = rows[alive] / largest[alive].unsqueeze(1)  # first by the largest: the squares of tiny weights underflow
    units = units / units.norm(dim=1, keepdim=True)
    return units, np.flatnonzero(alive.cpu().numpy()), int((~alive).sum())


def _cosines(units: Tensor, begin: int, step: int) -> Tensor:
    return (units[begin : begin + step] @ units.T).abs_().clamp_(max=1.0)


class _Cosines(Operator):
    """C as an operator, some rows at a time."""

    def __init__(self, units: Tensor) -> None:
        super().__init__([units[:, 0]])
        self._units = units

    def _product(self, flat: Tensor) -> Tensor:
        step = max(1, _ROWS // len(flat))
        parts = [_cosines(self._units, begin, step) @ flat for begin in range(0, len(flat), step)]
        return torch.cat(parts)


def _order(units: Tensor, table: np.ndarray | None) -> np.ndarray:
    """Returns the neurons sorted by the leading eigenvector of C, from the largest entry down."""
    if len(units) < 2:
        return np.arange(len(units))
    if table is not None and len(table) <= _MAP // 2:
        leading = np.linalg.eigh(table)[1][:, -1]
    else:
        leading = eigsh(_Cosines(units), tol=1e-4).vectors[0][0].cpu().numpy()
    return np.argsort(-np.abs(leading), kind="stable")
