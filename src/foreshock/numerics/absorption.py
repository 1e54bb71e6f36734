"""How far a softmax cross-entropy has lost the gradient of its right classes to rounding, and the proof that it has.

In a confident row 1 - p_r is rounded to 0 or to a few digits, while the wrong classes' gradients p_k stay accurate down
to underflow. The gradients of a row then no longer sum to zero over the classes: the mean of the head's rows, W_G, gets
a gradient that it has not in exact arithmetic, and it and the mean feature, mu_G, grow in opposite directions.

Source: Liu, Cao, Li, Zhou 2026, arXiv 2605.06152; the share of absorbed rows is the softmax collapse of Prieto et al.
2025, arXiv 2501.04697.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from foreshock.errors import UsageError
from foreshock.numerics.layout import class_dim

NUMERICAL = 0.1
"""Relative error of the right classes' gradients above which the cause is numerical: float32 shows up to 0.02 where
gaps are below 14, and 0.06 to 1 from 15 on (measured, torch 2.13, 10 classes)."""

NOT_ALWAYS = ("absorbed", "cosine")  # NaN where there is none

CHUNK, CHUNK_DEVICE = 1 << 16, 1 << 24
"""Numbers taken to float64 at a time, on the CPU (half a MB, in its cache) and on an accelerator (128 MB)."""


@dataclass(frozen=True, slots=True)
class Absorption:
    """What rounding has left of the gradients of one batch. Means are over the rows that count.

    With g the gradient that backward has computed, r the right class of a row, all sums in float64:

    Attributes:
        rows: rows that count, those with `ignore_index` left out.
        absorbed: share of rows with g_r exactly 0 although w > 0 and wrong classes have theirs (where all of them are 0
            they were too small for the type, which is underflow); None where a row has several probable classes.
        residual: sum_i |sum_k g_ik| / sum_ik |g_ik|: 0 in exact arithmetic, 1 in full collapse.
        wrong: mean of w = sum_{k != r} p_k, as a sum of the wrong classes, never as 1 - p_r.
        margin_min, margin_median: of z_r - max_{k != r} z_k, nats.
        error: |g_r - g'_r| / |g'_r| over the rows, g' recomputed in float64 from the same logits.
        logit: mean of all logits of these rows, nats.
        head_mean: |W_G|, W_G the mean over the classes of the head's rows.
        head_centred: |W*|, Frobenius norm of the head less W_G.
        feature_mean: |mu_G|, mu_G the mean feature.
        cosine: of W_G and mu_G; None where one of them is 0.
        sensitivity: max_k |update_k . mu_G|, nats: how far a step moves a logit at the mean feature.
    """

    rows: int
    absorbed: float | None
    residual: float
    wrong: float
    margin_min: float
    margin_median: float
    error: float
    logit: float
    head_mean: float | None = None
    head_centred: float | None = None
    feature_mean: float | None = None
    cosine: float | None = None
    sensitivity: float | None = None

    @property
    def numerical(self) -> bool:
        """Whether rounding made these gradients what they are: `error` > 0.1. NaN, of logits that overflow, is not."""
        return self.error > NUMERICAL


def absorption(
    logits: Tensor, target: Tensor, *, gradient: Tensor | None = None, features: Tensor | None = None,
    head: Tensor | None = None, update: Tensor | None = None, ignore_index: int = -100,
) -> Absorption:
    """Returns how much of the right classes' gradients rounding has taken, with the float64 verdict.

    The gradient may be scaled row by row, as by a mean, class weights or a loss scale: each row's scale is read off its
    wrong classes, which rounding leaves intact (least squares); a row without any takes the median of the others.
    Nothing is written to the arguments, and O(N K + K d) work is done in pieces of a few MB.

    Args:
        logits: (N, K), (N, K, d1, ...) or (B, T, K), of any floating type.
        target: right classes, integers, in the shape of the logits without the classes' dimension; or class
            probabilities in the shape of the logits, classes in torch's place, whose largest is then "right".
        gradient: dL/d logits as backward computed it, in the shape of the logits; None for that of
            `F.cross_entropy(logits, target)` in the logits' own type.
        features: (..., d) inputs of the head, a row for each target.
        head: (K, d) weight of the head that made the logits.
        update: (K, d) change of the head in a step.
        ignore_index: target of rows that do not count.

    Raises:
        UsageError: shapes do not fit together, there are fewer than two classes, or no row counts.

    Source: Liu et al. 2026, arXiv 2605.06152, section 3; Prieto et al. 2025, arXiv 2501.04697.

    >>> import torch
    >>> z = torch.tensor([[20.0, 0.0, 0.0], [2.0, 0.0, 0.0]])  # in float32 the first row is beyond 24 ln 2 = 16.6
    >>> seen = absorption(z, torch.tensor([0, 0]))
    >>> seen.absorbed, seen.margin_min, seen.margin_median, seen.numerical
    (0.5, 2.0, 11.0, False)
    >>> seen = absorption(z[:1], torch.tensor([0]))
    >>> seen.residual, seen.error, seen.numerical
    (1.0, 1.0, True)
    """
    logits, target = logits.detach(), target.detach()
    soft = target.is_floating_point()
    if soft and target.shape != logits.shape:
        raise UsageError(
            f"absorption(target=...): class probabilities need the shape of the logits, {tuple(logits.shape)}, got "
            f"{tuple(target.shape)}; give class indices as integers"
        )
    dim = min(1, logits.dim() - 1) if soft else class_dim(logits, target)
    if logits.shape[dim] < 2:
        raise UsageError(f"absorption(logits=...): a softmax needs two classes or more, got {logits.shape[dim]}")
    if gradient is not None and gradient.shape != logits.shape:
        raise UsageError(
            f"absorption(gradient=...): needs the shape of the logits, {tuple(logits.shape)}, got "
            f"{tuple(gradient.shape)}"
        )
    rows = by_rows(logits, dim)
    aims = by_rows(target, dim) if soft else target.reshape(-1)
    counted = torch.ones(len(rows), dtype=torch.bool, device=rows.device) if soft else aims != ignore_index
    _check_head(rows.shape, features, head, update)
    if not bool(counted.any()):
        raise UsageError(f"absorption(target=...): no row counts; all {len(rows)} targets are {ignore_index}")
    given = _stock(rows, aims, ignore_index) if gradient is None else by_rows(gradient.detach(), dim)
    sums = row_sums(rows, given, aims, counted)
    found = of_rows(_numpy(sums), _numpy(counted), scale=1.0 if gradient is None else None)
    found["logit"] = float(average(rows, counted).mean())
    mean = None if features is None else average(features.detach().reshape(len(rows), -1), counted)
    parts = None if head is None else head_sums(head.detach())
    found |= of_head(None if parts is None else _numpy(parts), rows.shape[1], None if mean is None else _numpy(mean))
    if mean is not None and update is not None:
        found["sensitivity"] = float(reach(update.detach(), mean))
    values: dict[str, float | None] = {**dict.fromkeys(NOT_ALWAYS), **found}
    for name in NOT_ALWAYS:
        if values[name] != values[name]:
            values[name] = None
    return Absorption(rows=int(counted.sum()), **values)  # type: ignore[arg-type]


def row_sums(logits: Tensor, gradient: Tensor, target: Tensor, counted: Tensor) -> Tensor:
    """Returns (9 or 11, N) sums over the classes of each row, in float64, for `of_rows`; never waits for the device.

    Args:
        logits: (N, K), up to a constant a row: log-probabilities serve as well.
        gradient: (N, K).
        target: (N,) right classes, or (N, K) class probabilities up to a factor a row.
        counted: (N,) bool.
    """
    slices = list(_slices(logits))
    space = logits.new_empty((2, slices[0].stop, logits.shape[1]), dtype=wide(logits))  # once: fresh pages are dear
    if len(slices) == 1:
        return _piece(logits, gradient, target, counted, space)
    parts = [_piece(logits[rows], gradient[rows], target[rows], counted[rows], space) for rows in slices]
    return torch.cat(parts, 1)


def weighed(sums: Tensor, counted: Tensor, classes: int, least: float) -> Tensor:
    """Returns (N,) bool, those of `counted` whose loss has a weight: rows of a mask or of a class weight of 0 have a
    gradient of 0 altogether, though not so small that it would have to be.

    Args:
        sums: (9 or 11, N), of `row_sums`.
        counted: (N,) bool.
        classes: K.
        least: smallest positive number of the gradient's type.
    """
    own, near, _, others, _, _, size, along, length = sums[:9]
    norm = length  # of the wrong classes' exact gradients
    if len(sums) == 9:
        highest = torch.maximum(own, near)
        share = (near - highest).exp()
        norm = length * share / (share * others + (own - highest).exp())
    scale = (along / (length * norm)).abs().where(counted & (size > 0), torch.nan).nanmedian()
    without: Tensor = (size == 0) & (norm * scale > classes * least)
    return counted & ~without


def of_rows(sums: np.ndarray, counted: np.ndarray, *, scale: float | None = None) -> dict[str, float]:
    """Returns the quantities of `Absorption` that rows and their gradients make; `absorbed` is NaN where there is none.

    Args:
        sums: (9 or 11, N), of `row_sums`.
        counted: (N,) bool, one of them true.
        scale: what the gradient is multiplied with; None to find it out row by row.
    """
    own, near, top, others, mine, total, size, along, length, *soft = sums[:, counted]
    with np.errstate(all="ignore"):
        highest = np.maximum(own, near)
        share = np.exp(near - highest)
        mass = share * others + np.exp(own - highest)
        wrong = share * others / mass
        # with one right class a row the others' exact gradients are e_k times this
        exact, unit = (soft[0], 1.0) if soft else (-wrong, share / mass)
        fit = along / (length**2 * unit)
        known = np.isfinite(fit) & (fit != 0)
        if scale is None and not known.all():
            fit = np.where(known, fit, _median(fit[known]) if known.any() else 1.0)
        exact = exact * (fit if scale is None else scale)
        largest = np.abs(exact).max()  # so that the squares of gradients near 1e-200 are not 0
        off = np.linalg.norm((mine - exact) / largest) / np.linalg.norm(exact / largest)
        single = not soft or bool((soft[1] <= 1).all())
        return {
            "absorbed": float(((mine == 0) & (wrong > 0) & (size > 0)).mean()) if single else math.nan,
            "residual": float(np.abs(total).sum() / size.sum()) if size.any() else 0.0,
            "wrong": float(wrong.mean()),
            "margin_min": float((own - top).min()),
            "margin_median": _median(own - top),
            "error": float(off) if largest or mine.any() else 0.0,
        }


def _median(values: np.ndarray) -> float:
    ordered = np.sort(values)
    return float(ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


def head_sums(head: Tensor) -> Tensor:
    """Returns (d + 1,) in float64: the mean row of a head (K, d), and the sum of all its squares."""
    sums = torch.zeros(head.shape[1] + 1, dtype=wide(head), device=head.device)
    for rows in _slices(head):
        piece = head[rows].to(sums.dtype)
        sums[:-1] += piece.sum(0)
        sums[-1] += torch.linalg.vector_norm(piece).square()
    sums[:-1] /= len(head)
    return sums


def of_head(sums: np.ndarray | None, classes: int, mean: np.ndarray | None) -> dict[str, float]:
    """Returns the norms of the halves of a head, from `head_sums`, and of the mean feature (d,), and their cosine."""
    found: dict[str, float] = {}
    if sums is not None:
        common = float(np.linalg.norm(sums[:-1]))
        found |= {"head_mean": common, "head_centred": math.sqrt(max(0.0, sums[-1] - classes * common**2))}
    if mean is not None:
        found["feature_mean"] = float(np.linalg.norm(mean))
    if sums is not None and mean is not None:
        both = found["head_mean"] * found["feature_mean"]
        found["cosine"] = float(sums[:-1] @ mean) / both if both else math.nan
    return found


def average(values: Tensor, weights: Tensor) -> Tensor:
    """Returns the weighted mean of the rows (N, d), in float64; weights are (N,) bool or numbers."""
    weights = weights.to(wide(values))
    sums = [weights[rows] @ values[rows].to(weights.dtype) for rows in _slices(values)]
    return (sums[0] if len(sums) == 1 else torch.stack(sums).sum(0)) / weights.sum()


def reach(update: Tensor, mean: Tensor) -> Tensor:
    """Returns max_k |update_k . mean| of an update (K, d) of the head."""
    parts = [(update[rows].to(mean.dtype) @ mean).abs().amax() for rows in _slices(update)]
    return parts[0] if len(parts) == 1 else torch.stack(parts).amax()


def by_rows(values: Tensor, dim: int) -> Tensor:
    """Returns (N, K) rows, K being the size of dimension `dim`."""
    return values.movedim(dim, -1).reshape(-1, values.shape[dim])


def wide(values: Tensor) -> torch.dtype:
    """Returns float64, or float32 on the accelerator that has none."""
    return torch.float32 if values.device.type == "mps" else torch.float64


def _slices(values: Tensor) -> Iterator[slice]:
    most = CHUNK if values.device.type == "cpu" else CHUNK_DEVICE
    step = max(1, most // max(1, values.shape[1]))
    count = max(1, len(values))
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


def _piece(logits: Tensor, gradient: Tensor, target: Tensor, counted: Tensor, space: Tensor) -> Tensor:
    """Returns for some rows (9 or 11, n): z_r; the largest wrong z, as a finite number and as it is; the sum of e_k =
    exp z_k relative to it, k != r; g_r; sum g; sum |g|; sum g d and |d| of d = e. For probabilities d are the exact
    gradients of scale 1, k != r, and there follow the exact g_r and how many classes are probable."""
    soft = target.dim() == 2
    right = target.argmax(1, keepdim=True) if soft else torch.where(counted, target, 0).long().unsqueeze(1)
    z, g = space[0, : len(logits)].copy_(logits), space[1, : len(logits)].copy_(gradient)
    own = z.gather(1, right).squeeze(1)
    z.scatter_(1, right, -torch.inf)
    top = z.amax(1)
    near = top.clamp(min=torch.finfo(z.dtype).min)  # of a row whose wrong classes are all masked
    d = z.sub_(near.unsqueeze(1)).exp_()  # relative to the largest wrong class, so that no gap underflows its square
    others = d.sum(1)
    mine, total = g.gather(1, right).squeeze(1), g.sum(1)
    more = []
    if soft:
        y = target.to(z.dtype)
        log = near + others.log()
        d.mul_((y.sum(1) * (near - torch.logaddexp(log, own)).exp()).unsqueeze(1)).sub_(y).scatter_(1, right, 0.0)
        more = [-d.sum(1), (y != 0).sum(1).to(z.dtype)]
    length = torch.linalg.vector_norm(d, dim=1)
    along = d.mul_(g).sum(1)  # in place, and below: three times as fast as vecdot and a norm of order 1
    return torch.stack([own, near, top, others, mine, total, g.abs_().sum(1), along, length, *more])


def _numpy(values: Tensor) -> np.ndarray:
    return values.cpu().numpy()


def _stock(logits: Tensor, target: Tensor, ignore_index: int) -> Tensor:
    """Returns the gradient of sum reduction that `F.cross_entropy` gives, in the logits' type."""
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(logits.device.type, enabled=False):
        z = logits.clone().requires_grad_()
        aim = target.to(z.dtype) if target.dim() == 2 else target.long()
        loss = functional.cross_entropy(z, aim, reduction="sum", ignore_index=ignore_index)
        return torch.autograd.grad(loss, z)[0]


def _check_head(shape: torch.Size, features: Tensor | None, head: Tensor | None, update: Tensor | None) -> None:
    count, classes = shape
    if features is not None and (features.dim() < 2 or features.shape[:-1].numel() != count):
        raise UsageError(
            f"absorption(features=...): needs a row for each of the {count} targets, (..., d), got "
            f"{tuple(features.shape)}"
        )
    if update is not None and features is None:
        raise UsageError("absorption(update=...): needs the features as well, at whose mean logits move")
    width = "d" if features is None else features.shape[-1]
    for name, value in (("head", head), ("update", update)):
        if value is not None and (value.dim() != 2 or len(value) != classes or width not in ("d", value.shape[1])):
            raise UsageError(f"absorption({name}=...): needs shape ({classes}, {width}), got {tuple(value.shape)}")
