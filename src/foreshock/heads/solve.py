"""The ridge regression of class indicators on features, and the other closed forms for rows, from sums alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foreshock.errors import UsageError
from foreshock.heads.statistics import HeadStatistics


@dataclass(frozen=True, slots=True)
class Solution:
    """Rows of a linear classifier.

    Attributes:
        classes: whose rows they are, (k) ids.
        weight: (k, d) float64.
        bias: (k,) float64; zeros where none was asked for.
        lam: the ridge as applied, None where there is none.
        condition: condition number of the matrix that was solved, None where none was.
        pooled: whether the covariance within classes was taken for the same in all, for want of second moments.
    """

    classes: tuple[int, ...]
    weight: Tensor
    bias: Tensor
    lam: float | None = None
    condition: float | None = None
    pooled: bool = False
    _lower: Tensor | None = None  # (d, d) Cholesky factor of what was solved
    _centre: Tensor | None = None  # (d,) mean that was taken off
    _omega: dict[int, float] | None = None  # what one example of a class counted
    _unit: bool = False  # whether the rows are means of features of norm 1

    def scores(self, h: Tensor) -> Tensor:
        """Returns W h + b, (n, k) of features (n, d)."""
        return torch.addmm(self.bias, h.double(), self.weight.mT)

    def held_out(self, h: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
        """Returns the scores (n, k) of examples that each would have without it.

        For least squares (z - a y) / (1 - a) with a = omega_i (x' (S + lam I)^-1 x), x = h - m, and omega_i more with a
        bias: leave-one-out without solving again (Allen 1974, Technometrics 16, "The relationship between variable
        selection and data augmentation"), the weights of the others kept. For means the example is taken out of its
        own.

        Args:
            h: (n, d), of those that were solved on, or others of the same classes.
            labels: (n,) their classes.
            counts: (n,) how often each was among those.
        """
        z = self.scores(h)
        own = labels[:, None] == torch.tensor(self.classes, device=labels.device)
        if self._omega is None or not self.classes:
            return z
        one = [self._omega.get(label, 0.0) for label in labels.tolist()]
        omega = counts * torch.tensor(one, dtype=torch.float64, device=h.device)
        if self._lower is None:
            reach = h.double().norm(dim=1, keepdim=True) ** (1 if self._unit else 2)  # of an example to itself
            omega = omega[:, None]
            alone = omega > 1 - _LEAST  # nothing would be left
            return torch.where(own & ~alone, (z - omega * reach) / (1 - omega).clamp(min=_LEAST), z)
        x = h.double() if self._centre is None else h.double() - self._centre
        half = torch.linalg.solve_triangular(self._lower, x.mT, upper=False)
        lever = omega * (half.square().sum(0) + (0.0 if self._centre is None else 1.0))
        lever = lever.clamp(max=1 - _LEAST)[:, None]
        without: Tensor = (z - lever * own) / (1 - lever)
        return without


@torch.no_grad()
def least_squares(
    statistics: HeadStatistics,
    classes: Sequence[int] | None = None,
    *,
    lam: float = 0.05,
    scaled: bool = False,
    bias: bool = False,
    balanced: bool = True,
    use: Sequence[int] | None = None,
) -> Solution:
    """Returns the rows that least squares gives some classes: the minimum of a strictly convex function.

    1/2 sum_i omega_i |W h_i + b - y_i|^2 + lam/2 |W|^2 with y one-hot, b not penalised, and omega_i = 1/N, or
    1/(C n_c) where classes are balanced. With means mu_c, weights pi_c = n_c/N (or 1/C), m = sum pi_c mu_c,
    S = sum_i omega_i h_i h_i':

        without bias   W = diag(pi) M' (S + lam I)^-1
        with bias      W = diag(pi) (M - m 1')' (S - m m' + lam I)^-1,  b = pi - W m

    The first, balanced, is Eq. 3 of arXiv 2503.06385 (A good start matters, CoLLAs 2025): S = Sigma_T + mu_G mu_G'.
    One Cholesky decomposition, d^3/3 + C d^2; d > N is no obstacle, for lam > 0.

    Args:
        statistics: of the features.
        classes: whose rows; all seen without it.
        lam: the ridge, .05 as in the authors' earlier weight decay.
        scaled: multiply lam by tr(S)/d (tr(S - m m')/d with a bias), so that it does not depend on the features' scale.
        bias: whether the head has one.
        balanced: every class counts the same, however many examples it has.
        use: classes whose examples are solved on; all without it.

    Raises:
        UsageError: a class without examples, or lam not above 0.
    """
    if not lam > 0:
        raise UsageError(f"lam must be above 0, for the solve is singular without a ridge; got {lam}")
    seen = statistics.classes.tolist()
    classes = seen if classes is None else list(classes)
    used = [label for label in seen if use is None or label in set(use)]
    missing = [label for label in classes if label not in set(used)]
    if missing or not used:
        raise UsageError(f"no examples of class {missing or classes} in the statistics: update them with some first")
    at = {label: place for place, label in enumerate(seen)}
    rows = torch.tensor([at[label] for label in used], device=statistics.weight.device)
    n = statistics.weight[rows]
    means = statistics.sums[rows] / n[:, None]
    pi = torch.full_like(n, 1 / len(used)) if balanced else n / n.sum()
    second, pooled = _second(statistics, used, n, means, pi, whole=len(used) == len(seen))
    centre = pi @ means if bias else torch.zeros_like(means[0])
    matrix = second - torch.outer(centre, centre)
    ridge = lam * float(matrix.diagonal().mean()) if scaled else lam
    if not ridge > 0:
        raise UsageError("the features are all the same, so that no scale for the ridge follows; give scaled=False")
    place = {label: row for row, label in enumerate(used)}
    chosen = torch.tensor([place[label] for label in classes], device=rows.device)
    right = pi[chosen, None] * (means[chosen] - centre)
    matrix = matrix + ridge * torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    lower = torch.linalg.cholesky(matrix)
    weight = torch.cholesky_solve(right.mT, lower).mT
    values = torch.linalg.eigvalsh(matrix) if len(matrix) <= _SMALL else None
    if values is not None:
        condition = float(values[-1] / values[0])
    else:
        condition = float((lower.diagonal().max() / lower.diagonal().min()) ** 2)
    offset = pi[chosen] - weight @ centre if bias else torch.zeros_like(pi[chosen])
    omega = dict(zip(used, (pi / n).tolist(), strict=True))
    return Solution(
        tuple(classes), weight, offset, ridge, condition, pooled, lower, centre if bias else None, omega
    )  # fmt: skip


_LEAST = 1e-6  # of an example's weight that is left to the others
_SMALL = 1024  # eigenvalues up to this size: beyond it the diagonal of the Cholesky factor bounds them from within


def _second(
    statistics: HeadStatistics, used: list[int], n: Tensor, means: Tensor, pi: Tensor, whole: bool
) -> tuple[Tensor, bool]:
    """Returns sum_c pi_c E[h h' | c] over some classes, and whether the covariance within them had to be pooled."""
    plain = bool(torch.allclose(pi, n / n.sum(), rtol=1e-12, atol=0))
    if plain and whole:
        return statistics.second / n.sum(), False
    if statistics.seconds is not None:
        seconds = statistics.seconds
        total = torch.zeros_like(statistics.second, device=n.device)
        for label, share in zip(used, (pi / n).tolist(), strict=True):
            total += share * seconds[label].to(n.device)
        return total, False
    every = statistics.sums / statistics.weight[:, None]
    within = (statistics.second - every.mT @ statistics.sums) / statistics.weight.sum()
    return within + means.mT @ (pi[:, None] * means), True


@torch.no_grad()
def class_means(statistics: HeadStatistics, classes: Sequence[int], *, unit: bool = False) -> Solution:
    """Returns the means of the classes' features as rows, without bias; unit: of features divided by their norm.

    The latter are not divided by their norm again, as in SGM's code (arXiv 2306.01904).

    Raises:
        UsageError: a class without examples.
    """
    at = {label: place for place, label in enumerate(statistics.classes.tolist())}
    missing = [label for label in classes if label not in at]
    if missing:
        raise UsageError(f"no examples of class {missing} in the statistics: update them with some first")
    rows = torch.tensor([at[label] for label in classes], device=statistics.weight.device)
    sums = statistics.unit_sums if unit else statistics.sums
    n = statistics.weight[rows]
    omega = dict(zip(classes, (1 / n).tolist(), strict=True))
    return Solution(tuple(classes), sums[rows] / n[:, None], torch.zeros_like(n), _omega=omega, _unit=unit)
