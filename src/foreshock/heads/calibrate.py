"""New logits brought to the level of old ones that cross-entropy has trained, and kept from taking their examples."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from foreshock.heads.scene import Scene

_SPREAD = 3.0  # logits: prior deviation of the shared direction's part, over the examples; 1 to 12 differ little
_WIDE = 30.0  # logits: prior deviation of scale times scores, and of the offsets' mean; keeps separable data finite
_STEPS, _TOLERANCE = 60, 1e-9
_WORK = 1e11  # numbers multiplied for one Hessian: examples beyond are left out
_LEVELS = 6  # halvings of the weight of old examples
_LOOSE = 0.01  # of the old accuracy, that the one example more may take
_AHEAD = 1.0  # nats, of old examples where too few are kept to count those lost
_HALVINGS = 3  # of the penalty on long rows, by factors
_MOST = 10.0  # log2 of that weight


@dataclass(frozen=True, slots=True)
class Calibration:
    """New logits = scale * score + direction . h + offsets.

    Attributes:
        scale: s, one for all new rows.
        offsets: (k,), zeros for a head without bias.
        direction: (d,), what all new rows share: it moves probability between old and new classes, not among the new.
        old_weight: what an old example counts beside a new one, so that the old classes keep their accuracy.
        held_out: (n, k) logits of the examples as if each had not been among them.
        kept: whether the old classes keep as much of their accuracy as was asked for, by those.
    """

    scale: float
    offsets: Tensor
    direction: Tensor
    old_weight: float
    held_out: Tensor
    kept: bool


def calibrated(
    scene: Scene,
    scores: Tensor,
    rows: Tensor,
    *,
    length: float | None,
    bias: bool,
    keep: float,
    shared: bool = True,
) -> Calibration:
    """Returns scale, offsets and shared direction that minimise the cross-entropy of new and old examples.

    A convex problem with a normal prior, solved by Newton's method. Where the old classes would keep less than `keep`
    of their accuracy, old examples count more, as little more as it takes. Both are judged by examples held out: the
    scores must be, and the fit is taken back from each example by one Newton step (approximate leave-one-out; Rad
    and Maleki 2020, arXiv 1801.10243); and one old example more than seen counts as lost, which matters where few are.

    Long rows fit the examples at hand well, and training badly: what comes after is noise that they amplify, and the
    curvature that the layers below feel grows with their square. So their root-mean-square norm is held to a limit,
    by a penalty no larger than that takes.

    Args:
        scene: the examples.
        scores: (n, k) what the new rows give, each example held out.
        rows: (k, d), the new rows.
        length: most that the root-mean-square norm of the calibrated rows may be; None: anything.
        bias: whether the head has offsets.
        keep: share of the old examples told right by the old rows alone that must be told right beside the new ones.
        shared: with a direction and offsets for each class; else one scale and one offset.
    """
    problem = _Problem(scene, scores, bias, shared)
    theta, before = problem.start(), scene.share(scene.known, scene.old)
    asked, slack = _enough(scene, keep)
    enough, penalty = asked * (before or 0.0), 0.0

    def tried(level: float, start: Tensor) -> tuple[Tensor, Tensor, bool]:
        nonlocal penalty
        weighted = problem.weighted(2.0**level)
        if length is not None:
            weighted, penalty = weighted.held_to(length, rows, start, penalty)
        solved = weighted.minimum(start)
        logits = weighted.held_out(solved)
        after = scene.share(scene.hits(logits + slack), scene.old)
        return solved, logits, after is None or after >= enough

    theta, logits, kept = tried(0.0, theta)
    low, high, best = 0.0, _MOST, 0.0
    if not kept:
        top, top_logits, kept = tried(_MOST, theta)
        best, found = _MOST, (top, top_logits)
        for _ in range(_LEVELS if kept else 0):
            middle = (low + high) / 2
            solved, out, fine = tried(middle, theta)
            if fine:
                high, best, found = middle, middle, (solved, out)
            else:
                low, theta = middle, solved
        theta, logits = found
    scale, offsets, direction = problem.parts(theta)
    return Calibration(scale, offsets, direction, 2.0**best, logits, kept)


def _enough(scene: Scene, keep: float) -> tuple[float, float]:
    """Returns the share of the old accuracy to ask for of the examples at hand, and by how much they must be ahead.

    One example more than seen counts as lost; where that is more than may be, none may be lost, nor come close.
    """
    w = scene.weights[scene.old]
    if not len(w):
        return keep, 0.0
    n = float(w.sum() ** 2 / w.square().sum())  # of examples that count alike
    lost = min((1 - keep) * n, (1 - keep + _LOOSE) * (n + 2) - 1)
    return 1 - max(0.0, lost) / n, 0.0 if lost >= 0 else _AHEAD


class _Problem:
    """Cross-entropy of new logits s z + G g + c as a function of theta = (s / spread of z, g, c)."""

    def __init__(self, scene: Scene, scores: Tensor, bias: bool, shared: bool) -> None:
        self.scene, self.bias, self.shared = scene, bias, shared
        self.w = w = scene.weights
        k = scores.shape[1]
        self.unit = float((w @ (scores - w @ scores).square()).mean().sqrt()) or 1.0
        self.z = scores / self.unit
        self.k, self.offsets = k, (k if shared else 1) if bias else 0
        h = scene.features
        self.centre = w @ h if bias else torch.zeros_like(h[0])
        self.size = _SPREAD / max(float((w @ (h - w @ h).square()).sum()) ** 0.5, 1e-300)
        self.basis: Tensor | None = None
        G = (h - self.centre) * self.size if shared else h[:, :0]
        if shared and G.shape[1] > len(G):  # the direction lies in the span of the examples
            self.basis = torch.linalg.qr(G.mT)[0]
            G = G @ self.basis
        self.G = G
        self.r = G.shape[1]
        ridge = float(w.square().sum())  # one over the number of examples that count: a standard normal prior
        p = 1 + self.r + self.offsets
        prior = torch.zeros(p, p, dtype=w.dtype, device=w.device)
        prior.diagonal()[: 1 + self.r] = ridge
        prior[0, 0] = ridge / _WIDE**2
        if self.offsets:
            at = slice(1 + self.r, p)
            even = torch.full((self.offsets, self.offsets), 1 / self.offsets, dtype=w.dtype, device=w.device)
            prior[at, at] = ridge * (torch.eye(self.offsets, dtype=w.dtype, device=w.device) - even + even / _WIDE**2)
        self.prior = prior

    def start(self) -> Tensor:
        theta = self.w.new_zeros(1 + self.r + self.offsets)
        theta[0] = 1.0
        return theta

    def weighted(self, factor: float) -> _Problem:
        """Returns the problem in which old examples count so many times more."""
        w = torch.where(self.scene.old, factor * self.w, self.w)
        other = object.__new__(_Problem)
        other.__dict__.update(self.__dict__)
        other.w = w / w.sum()
        return other

    def held_to(self, length: float, rows: Tensor, theta: Tensor, least: float) -> tuple[_Problem, float]:
        """Returns the problem with a penalty on the rows' mean square norm that keeps it within a length, and its size.

        Args:
            length: of a row.
            rows: (k, d), before calibration.
            theta: to start from.
            least: a penalty that is known to be needed.
        """
        shape = torch.zeros_like(self.prior)  # mean over rows of |s w + g|^2 = theta' shape theta
        shape[0, 0] = rows.square().sum(1).mean() / self.unit**2
        if self.shared:
            mean = rows.mean(0) / self.unit * self.size
            shape[1 : 1 + self.r, 0] = shape[0, 1 : 1 + self.r] = mean if self.basis is None else mean @ self.basis
            shape.diagonal()[1 : 1 + self.r] = self.size**2
        shape /= length**2

        def at(penalty: float) -> tuple[_Problem, bool]:
            nonlocal theta
            other = self.weighted(1.0)
            other.prior = self.prior + penalty * shape
            theta = other.minimum(theta)
            return other, float(theta @ (shape @ theta)) <= 1.0

        other, short = at(least)
        if short:
            return other, least
        low, high = least, max(4 * least, 1e-3)
        other, short = at(high)
        while not short:
            low, high = high, 4 * high
            other, short = at(high)
        for _ in range(_HALVINGS):
            middle = (low * high) ** 0.5 if low > 0 else high / 4
            tried, short = at(middle)
            if short:
                other, high = tried, middle
            else:
                low = middle
        return other, high

    def parts(self, theta: Tensor) -> tuple[float, Tensor, Tensor]:
        """Returns scale, offsets (k,) and direction (d,) in the units of scores and features."""
        g = theta[1 : 1 + self.r]
        direction = self.size * (g if self.basis is None else self.basis @ g)
        direction = direction if self.shared else torch.zeros_like(self.centre)
        offsets = torch.zeros(self.k, dtype=theta.dtype, device=theta.device)
        if self.bias:
            offsets = offsets + theta[1 + self.r :] - direction @ self.centre
        return float(theta[0]) / self.unit, offsets, direction

    def logits(self, theta: Tensor) -> Tensor:
        u = theta[0] * self.z + (self.G @ theta[1 : 1 + self.r])[:, None]
        return u + theta[1 + self.r :] if self.offsets else u

    def value(self, theta: Tensor) -> float:
        return float(self.w @ self.scene.losses(self.logits(theta)) + 0.5 * theta @ (self.prior @ theta))

    def _probabilities(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the probabilities (n, k) of the new classes, and these less the indicators of the right one."""
        u = self.logits(theta)
        p = (u - torch.logaddexp(self.scene.rest, u.logsumexp(1))[:, None]).exp()
        residual = p.clone()
        fresh = torch.nonzero(~self.scene.old)[:, 0]
        residual[fresh, self.scene.target[fresh]] -= 1
        return p, residual

    def _hessian(self, p: Tensor) -> Tensor:
        w, z, G, r = self.w, self.z, self.G, self.r
        q, a = p.sum(1), (p * z).sum(1)
        full = self.prior.clone()
        full[0, 0] += w @ ((p * z * z).sum(1) - a * a)
        full[1 : 1 + r, 0] += G.mT @ (w * a * (1 - q))
        full[1 : 1 + r, 1 : 1 + r] += G.mT @ ((w * q * (1 - q))[:, None] * G)
        if self.offsets == 1 and not self.shared:
            full[1 + r, 0] += w @ (a * (1 - q))
            full[1 + r, 1 + r] += w @ (q * (1 - q))
        elif self.offsets:
            full[1 + r :, 0] += w @ (p * (z - a[:, None]))
            full[1 + r :, 1 : 1 + r] += (p * (w * (1 - q))[:, None]).mT @ G
            full[1 + r :, 1 + r :] += torch.diag(w @ p) - p.mT @ (w[:, None] * p)
        lower = full.tril()
        return lower + lower.tril(-1).mT

    def _gradient(self, theta: Tensor, residual: Tensor) -> Tensor:
        weighted = self.w[:, None] * residual
        offsets = weighted.sum(0) if self.shared else weighted.sum()[None]
        parts = [(weighted * self.z).sum()[None], self.G.mT @ weighted.sum(1), offsets[: self.offsets]]
        return torch.cat(parts) + self.prior @ theta

    def minimum(self, theta: Tensor) -> Tensor:
        """Returns the minimum, by Newton's method with halved steps."""
        value = self.value(theta)
        for _ in range(_STEPS):
            p, residual = self._probabilities(theta)
            gradient = self._gradient(theta, residual)
            step = torch.cholesky_solve(gradient[:, None], torch.linalg.cholesky(self._hessian(p)))[:, 0]
            promised, size = float(gradient @ step), 1.0
            if promised <= _TOLERANCE:
                break
            while size > 1e-6:
                fresh = self.value(theta - size * step)
                if fresh <= value - 1e-4 * size * promised:
                    break
                size /= 2
            else:
                break
            theta, value = theta - size * step, fresh
        return theta

    def held_out(self, theta: Tensor) -> Tensor:
        """Returns the logits (n, k) with each example taken out of the fit by one Newton step.

        u + A (I - w D A)^-1 w r, with A = J H^-1 J' of the example's k logits, D = diag(p) - p p' and r = p - y.
        """
        p, residual = self._probabilities(theta)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(self._hessian(p)))
        u, k, r = self.logits(theta), self.k, self.r
        out = torch.empty_like(u)
        eye = torch.eye(k, dtype=u.dtype, device=u.device)
        spread = torch.zeros(k, self.offsets, dtype=u.dtype, device=u.device)
        spread[:] = eye if self.offsets == k and self.shared else 1.0
        chunk = max(1, (1 << 22) // (k * k))
        for start in range(0, len(u), chunk):
            at = slice(start, start + chunk)
            z, G = self.z[at], self.G[at]
            shared = G @ inverse[1 : 1 + r, 1 : 1 + r]
            A = (shared * G).sum(1)[:, None, None] + torch.zeros(k, k, dtype=u.dtype, device=u.device)
            cross = G @ inverse[1 : 1 + r, 0]
            A = A + (z * cross[:, None])[:, :, None] + (z * cross[:, None])[:, None, :]
            A = A + inverse[0, 0] * z[:, :, None] * z[:, None, :]
            if self.offsets:
                toward = (G @ inverse[1 : 1 + r, 1 + r :]) @ spread.mT  # (m, k)
                level = spread @ inverse[1 + r :, 0]  # (k,)
                A = A + toward[:, :, None] + toward[:, None, :]
                A = A + z[:, :, None] * level + level[:, None] * z[:, None, :]
                A = A + spread @ inverse[1 + r :, 1 + r :] @ spread.mT
            w = self.w[at, None, None]
            D = torch.diag_embed(p[at]) - p[at][:, :, None] * p[at][:, None, :]
            moved = torch.linalg.solve(eye - w * (D @ A), (self.w[at, None] * residual[at])[:, :, None])
            out[at] = u[at] + (A @ moved)[:, :, 0]
        return out


def thinned(scene: Scene, scores: Tensor) -> tuple[Scene, Tensor]:
    """Returns every so manieth example where all would take too long, of every class alike."""
    n, d = scene.features.shape
    step = max(1, round(n * min(n, d) ** 2 / _WORK))
    if step == 1:
        return scene, scores
    fields = {name: getattr(scene, name)[::step] for name in scene.__slots__}
    fields["weights"] = fields["weights"] / fields["weights"].sum()
    return replace(scene, **fields), scores[::step]
