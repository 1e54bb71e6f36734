"""`init_new_rows`: rows for new classes that the first batches need not pay for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from foreshock.heads import checks
from foreshock.heads.calibrate import calibrated, thinned
from foreshock.heads.drawn import examples
from foreshock.heads.grid import scale_and_offset
from foreshock.heads.layer import Layer, layer, write
from foreshock.heads.report import NewRows
from foreshock.heads.scene import Scene, scene
from foreshock.heads.solve import Solution, class_means, least_squares
from foreshock.heads.state import fresh_state
from foreshock.heads.statistics import HeadStatistics
from foreshock.heads.turned import turned

Method = Literal["ls", "class_mean", "mean", "unit_mean", "random"]
Calibrate = Literal["auto", "ce", "scale", "grid"]
Loss = Literal["auto", "ce", "mse"]
_DRAWS = 8  # of random rows, whose mean loss is the yardstick
_CHUNK = 1 << 24  # scores held at once
_THIRD = 1 / 3  # of random rows' loss: what calibration aims at
LENGTHS = (1.0, 1.5, 2.0, 3.0)
"""Of new rows, at most, in lengths of the old ones: the first that meets the aim. At 6 a backbone under SGD blew up."""
_AIM = 0.25  # of random rows' loss, held out
KEEP = 0.96  # of the old classes' accuracy; in tests .96 to .98 of it was kept


@torch.no_grad()
def init_new_rows(
    head: nn.Module,
    statistics: HeadStatistics,
    new: Iterable[int] | Tensor,
    *,
    method: Method = "ls",
    lam: float = 0.05,
    scaled: bool = False,
    use: Literal["all", "new"] = "all",
    balanced: bool = True,
    calibrate: Calibrate | None = "auto",
    loss: Loss = "auto",
    keep: float = KEEP,
    new_share: float | None = None,
    batch: tuple[Tensor, Tensor] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    generator: torch.Generator | None = None,
    monitor: Any = None,
) -> NewRows:
    """Writes rows for new classes into a head, leaves every other number as it is, and returns what comes of it.

    Least squares of the class indicators on the features (Eq. 3 of arXiv 2503.06385, `least_squares`). Under squared
    error that is the optimum. Under cross-entropy its logits lie between 0 and 1 beside old ones of any size, so they
    are calibrated: one scale for all new rows, an offset for each (in heads with a bias), and one direction that all of
    them share, by the cross-entropy of examples that each were held out, with old and new classes counting alike; if
    the old classes would keep less than `keep` of their accuracy, their examples count more until they do; and the rows
    are as long as the old ones, or longer by no more than a first loss of a quarter of random rows' takes. The
    reference calibrates by a grid of one scale and one offset (`calibrate="grid"`): deviation 1, as that costs old
    classes their accuracy.

    Args:
        head: the layer that makes logits, `weight` (C, d) and perhaps `bias` (C,): linear, weight-normalised, with rows
            of norm 1, cosine, or a convolution of size 1. Rows must be there already: `grow_rows` adds them.
        statistics: of the features that it reads, of new classes and, for calibration and balance, of old ones. On
            several ranks `reduce()` them first: every rank then writes the same.
        new: ids of the rows to write.
        method: "ls", or "class_mean" (also "mean"), "unit_mean" (of features divided by their norms), "random"
            (`nn.Linear`'s).
        lam: ridge of least squares.
        scaled: ridge in units of the features' mean square.
        use: solve on all examples, or on those of the new classes alone.
        balanced: every class counts alike in the solve, however many examples it has.
        calibrate: "auto": for cross-entropy, where there are examples of old classes; "ce": as above; "scale": one
            scale and one offset alone, held out as above; "grid": the reference's; None: not.
        loss: that the head is trained with; "auto": told by its old logits on old examples.
        keep: share of the old classes' accuracy that they must keep.
        new_share: weight of the new classes together in the batches to come. None: their share of `batch`, if there is
            one; all classes as often as in the statistics, where these look like a text, with rare new classes beside
            old ones of very different frequencies; else a half, as in rehearsal.
        batch: features and labels of the first mixed batch, if the losses in the report are to be of it.
        optimizer: gives the new rows fresh state in it (`fresh_state`).
        generator: for method "random"; seed 0 without it.
        monitor: a `Monitor`, which notes the report in its run as `rows_initialised`.

    Raises:
        UsageError: ids that are no rows, a new class without examples, features of another length, a head of unknown
            form or split over ranks, an unknown choice. Nothing was written then.

    >>> head = nn.Linear(3, 3)
    >>> statistics = HeadStatistics(3)
    >>> statistics.update(torch.eye(3).repeat(4, 1), torch.arange(3).repeat(4))
    >>> init_new_rows(head, statistics, [2], loss="mse").init_spike_ratio < 1
    True
    """
    for name, given, allowed in (("method", method, Method), ("loss", loss, Loss), ("use", use, Literal["all", "new"])):
        checks.choice(name, given, allowed)
    method = "class_mean" if method == "mean" else method
    checks.choice("calibrate", calibrate, Calibrate, None)
    checks.share("keep", keep)
    if new_share is not None:
        checks.share("new_share", new_share)
    checks.positive("lam", lam)
    checks.kinds(statistics, optimizer, generator, monitor)
    old = layer(head, statistics.dim)
    ids = checks.ids(new, len(old.weight))
    checks.fitting(statistics, ids, old, needed=method != "random" or calibrate is None)
    warnings = checks.warnings(statistics, ids, len(old.weight))
    solution = _solution(old, statistics, ids, method, lam, scaled, use, balanced, generator)

    h, y, counts, real = examples(statistics)
    share, natural = (new_share, False) if new_share is not None else _share(statistics, ids, batch)
    if natural:
        warnings.append(f"new classes are taken for {share:.1%} of the batches to come, as here; else give new_share")
    met = scene((h, y, counts), old.logits, ids, len(old.weight), new_share=None if natural else share)
    kind = _trained_with(met) if loss == "auto" else loss
    way = _way(calibrate, kind, method, met, len(ids) < len(old.weight))
    rows, bias, held_out, s, mu = _calibrated(way, old, solution, met, keep, real)

    seen = met if batch is None else _batch(old, ids, batch)
    was = seen.loss(old.logits(seen.features, ids), kind)
    random = _random_loss(old, ids, seen, kind)
    separability = _separability(old, statistics, (h, y, counts), met, lam, scaled, real)
    write(old, ids, rows, bias)
    if optimizer is not None:
        fresh_state(optimizer, head, ids)

    now = layer(head, statistics.dim)
    first = seen.loss(now.logits(seen.features, ids), kind)
    hits = met.hits(held_out)
    after, before = met.share(hits, met.old), met.share(met.known, met.old)
    if way in ("ce", "scale") and after is not None and before is not None and after < keep * before:
        warnings.append(f"old classes keep {after:.1%} of {before:.1%}, less than asked for: {_CLOSE}")
    ratio = first / random if random > 0 else None
    if way is not None and ratio is not None and ratio > _THIRD:
        warnings.append(
            f"first loss {ratio:.2f} of random rows', above a third: {_CLOSE}"
            + ("" if separability is None else f" (least squares tells {separability:.0%} of the new examples right)")
        )
    others = [each for each in range(len(old.weight)) if each not in set(ids)]
    norm = float(now.weight[ids].norm(dim=1).mean() / old.weight[others].norm(dim=1).mean()) if others else None
    result = NewRows(
        new=tuple(ids), method=method, loss=kind, calibrated=way, first_loss=first, before_loss=was, random_loss=random,
        init_spike_ratio=ratio, new_accuracy=met.share(hits, ~met.old), old_accuracy=after, old_accuracy_before=before,
        scale=s, offset=float((bias - (s or 1.0) * solution.bias).mean()) if way and old.has_bias else None,
        old_weight=mu, lam=solution.lam, condition=solution.condition, separability=separability, norm_ratio=norm,
        examples="batch" if batch is not None else "sample" if real else "normal",
        warnings=(*warnings, *checks.doubts(old, ids, now.weight[ids], solution.condition, solution.pooled)),
    )  # fmt: skip
    if monitor is not None:
        monitor.note("rows_initialised", step=monitor.step, **result.to_dict())
    return result


_HALF = 0.5
_RARE, _UNEVEN = 0.2, 0.5  # share of new classes, spread of the old ones' counts over their mean: a text, no rehearsal
_CLOSE = "new and old classes lie close in these features"


def _share(statistics: HeadStatistics, ids: list[int], batch: tuple[Tensor, Tensor] | None) -> tuple[float, bool]:
    """Returns what share of the batches to come new classes will be, and whether the statistics told so."""
    new = torch.tensor(ids)
    if batch is not None:
        labels = batch[1].flatten().cpu()
        share = float(torch.isin(labels[labels >= 0], new).double().mean())
        return (share, False) if 0 < share < 1 else (_HALF, False)
    fresh = torch.isin(statistics.classes.cpu(), new)
    counts = statistics.weight.cpu().double()
    old = counts[~fresh]
    share = float(counts[fresh].sum() / counts.sum())
    text = 0 < share < _RARE and len(old) > 1 and float(old.std() / old.mean()) > _UNEVEN
    return (share, True) if text else (_HALF, False)


def _solution(
    old: Layer, statistics: HeadStatistics, ids: list[int], method: Method, lam: float, scaled: bool, use: str,
    balanced: bool, generator: torch.Generator | None,
) -> Solution:  # fmt: skip
    if method == "ls":
        return least_squares(
            statistics, ids, lam=lam, scaled=scaled, bias=old.has_bias, balanced=balanced,
            use=ids if use == "new" else None,
        )  # fmt: skip
    if method == "random":
        return _random(old, ids, generator if generator is not None else torch.Generator().manual_seed(0))
    return class_means(statistics, ids, unit=method == "unit_mean")


def _way(calibrate: Calibrate | None, kind: str, method: str, met: Scene, rows: bool) -> Calibrate | None:
    """Returns how to calibrate: by itself only what cross-entropy has trained, with old examples to hold it to."""
    if calibrate != "auto":
        return calibrate
    there = bool(met.old.any()) or not rows
    return "ce" if kind == "ce" and method != "random" and there else None


def _calibrated(
    way: Calibrate | None, old: Layer, solution: Solution, met: Scene, keep: float, real: bool
) -> tuple[Tensor, Tensor, Tensor, float | None, float | None]:
    """Returns rows, biases, held-out logits of the examples, scale, and weight of old examples."""
    plain = solution.scores(met.features)
    held_out = solution.held_out(met.features, met.labels, met.counts) if real else plain
    rows, bias = solution.weight, solution.bias
    if old.kind != "linear":
        if way is not None:
            found = calibrated(
                *thinned(met, held_out), rows, length=None, bias=old.has_bias, keep=keep, shared=way == "ce"
            )
            rows, offset = turned(met, old.effective, rows, found, keep, old.has_bias)
            bias = torch.full_like(bias, offset)
        return rows, bias, met.features @ old.effective(rows).mT + bias, None, None
    if way is None:
        return rows, bias, held_out, None, None
    if way == "grid":
        alike = met.alike()
        s, c = scale_and_offset(alike, plain, bias=old.has_bias)
        return s * rows, s * bias + c, s * held_out + c, s, None
    others = met.target.new_ones(len(old.weight), dtype=torch.bool)
    others[list(solution.classes)] = False
    usual = float(old.weight[others].square().sum(1).mean().sqrt()) if bool(others.any()) else None
    random = _random_loss(old, list(solution.classes), met, "ce")
    fewer, kept_out = thinned(met, held_out)
    for length in LENGTHS:
        found = calibrated(
            fewer, kept_out, rows, length=length * usual if usual else None, bias=old.has_bias, keep=keep,
            shared=way == "ce",
        )  # fmt: skip
        if not usual or fewer.loss(found.held_out) <= _AIM * random:
            break
    rows, bias = found.scale * rows + found.direction, found.scale * bias + found.offsets
    whole = len(found.held_out) == len(held_out)
    return rows, bias, found.held_out if whole else met.features @ rows.mT + bias, found.scale, found.old_weight


def _random(old: Layer, ids: list[int], draw: torch.Generator) -> Solution:
    """Returns rows as `nn.Linear` draws them, uniform within 1/sqrt(d), with bias 0."""
    d = old.weight.shape[1]
    rows = (torch.rand(len(ids), d, generator=draw, dtype=torch.float64, device=draw.device) * 2 - 1) / d**0.5
    return Solution(tuple(ids), rows.to(old.weight.device), old.weight.new_zeros(len(ids)))


def _random_loss(old: Layer, ids: list[int], seen: Scene, kind: str) -> float:
    draws = [_random(old, ids, torch.Generator().manual_seed(seed)) for seed in range(_DRAWS)]
    return sum(seen.loss(seen.features @ old.effective(each.weight).mT, kind) for each in draws) / _DRAWS


def _separability(
    old: Layer, statistics: HeadStatistics, known: tuple[Tensor, Tensor, Tensor], met: Scene, lam: float,
    scaled: bool, real: bool,
) -> float | None:  # fmt: skip
    """Returns the share of new examples that least squares over all classes tells right, each held out."""
    h, y, counts = known
    whole = least_squares(statistics, lam=lam, scaled=scaled, bias=old.has_bias)
    ids, right = torch.tensor(whole.classes, device=y.device), []
    for at in torch.split(torch.arange(len(y), device=y.device), max(1, _CHUNK // len(ids))):
        z = whole.held_out(h[at], y[at], counts[at]) if real else whole.scores(h[at])
        right.append(ids[z.argmax(1)] == y[at])
    return met.share(torch.cat(right), ~met.old)


def _batch(old: Layer, ids: list[int], batch: tuple[Tensor, Tensor]) -> Scene:
    """Returns a batch of features (..., d) and labels (...,), every example counting alike."""
    reader = HeadStatistics(old.weight.shape[1], sample=0, unit=old.kind == "cosine")
    h, y, counts = reader.flat(*batch)
    return scene((h, y, counts), old.logits, ids, len(old.weight), new_share=None)


def _trained_with(met: Scene) -> Literal["ce", "mse"]:
    """Returns the loss that the old rows were trained with, by their logits of old examples.

    Squared errors to the indicators below those of the best constant are a regression's.
    """
    old, w = met.old, met.weights
    if not bool(old.any()):
        return "ce"
    share = w.new_zeros(int(met.labels.max()) + 1).index_add_(0, met.labels[old], w[old])
    share = share / share.sum()
    spread = float((share * (1 - share)).sum())
    return "mse" if float(w[old] @ met.gaps[old] / w[old].sum()) < spread else "ce"
