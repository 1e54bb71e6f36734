"""The loss as the page draws it: the line that the training took, and beside it what was refused or rolled back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from foreshock.detect.series import series
from foreshock.report import encode
from foreshock.report.columns import can_log, wants_log
from foreshock.report.decimate import Floats, Ints, keep, thin
from foreshock.report.detail import Span
from foreshock.run import Run

ASIDE = 1000  # buckets of refused attempts, and of what was rolled back: two points each


def to_json(run: Run, spans: Sequence[Span], *, buckets: int, ticks: int) -> dict[str, object] | None:
    """Returns the JSON value of the loss over the whole run; None where there is none.

    Args:
        run: the run.
        spans: steps to show at full resolution, as far as they are short enough to see.
        buckets: of the line, two points each.
        ticks: positions of values that are not finite.
    """
    if "loss" not in run:
        return None
    steps, values = run.measured("loss")
    bad = np.flatnonzero(~np.isfinite(values))
    told = {
        "log": wants_log(values), "can_log": can_log(values), "bad": encode.steps(steps[thin(bad, ticks)]),
        "bad_total": len(bad),
    }  # fmt: skip
    taken, refused = parted(run, steps)
    aside: dict[str, object] = {
        name: _curve(steps[part], values[part])
        for name, part in (("refused", refused & np.isfinite(values)), ("undone", ~taken & ~refused)) if part.any()
    }  # fmt: skip
    if not taken.all():
        aside["bad_refused"] = int(np.count_nonzero(~np.isfinite(values) & ~taken))
        steps, values = steps[taken], values[taken]
    kept = [keep(values, buckets)] if len(values) else [np.arange(0)]
    for span in spans:
        inside = slice(*np.searchsorted(steps, [span.first, span.last + 1]))
        kept.append(inside.start + keep(values[inside], 600))
    chosen = np.unique(np.concatenate(kept))
    line = {"x": encode.steps(steps[chosen]), "y": encode.floats(values[chosen]), "trend": _trend(steps, values)}
    return line | told | {"decimated": len(chosen) < len(steps)} | aside


def story(run: Run, first: int, last: int, buckets: int) -> dict[str, object]:
    """Returns the finite loss from one step to another as a story draws it: "loss", and "aside" what was not taken."""
    loss = series(run, "loss").within(first, last)
    taken, _ = parted(run, loss.steps)
    log = wants_log(loss.values)

    def curve(part: np.ndarray, least: int) -> dict[str, object] | None:
        if np.count_nonzero(part) < least:
            return None
        steps, values = loss.steps[part], loss.values[part]
        kept = keep(values, buckets)
        return {"x": encode.steps(steps[kept]), "y": encode.floats(values[kept]), "log": log}

    told: dict[str, object] = {"loss": curve(taken, 2)}
    aside = curve(~taken, 1)
    return told if aside is None else told | {"aside": aside}


def parted(run: Run, steps: Ints) -> tuple[np.ndarray, np.ndarray]:
    """Returns which of the steps the training took and kept, and which it refused; the others were rolled back."""
    every, taken = run.steps, run.taken
    if taken.all() or not len(steps):
        return np.ones(len(steps), np.bool_), np.zeros(len(steps), np.bool_)
    at = np.minimum(np.searchsorted(every, steps), len(every) - 1)
    known = every[at] == steps
    refused = run["skipped"][at] > 0 if "skipped" in run else np.zeros(len(steps), np.bool_)
    return taken[at] | ~known, refused & known


def _curve(steps: Ints, values: Floats) -> dict[str, object]:
    kept = keep(values, ASIDE)
    return {"x": encode.steps(steps[kept]), "y": encode.floats(values[kept]), "total": len(values)}


def _trend(steps: Ints, values: Floats) -> dict[str, object] | None:
    """Returns medians of 240 groups of records, or a few more, where the curve is noisy enough to want one."""
    size = len(values) // 240
    if size < 5:
        return None
    count = len(values) // size
    n = size * count
    groups = np.where(np.isfinite(values[:n]), values[:n], np.nan).reshape(count, size)
    groups = np.sort(groups, axis=1)  # NaN goes last
    middle = groups[:, size // 2]
    with np.errstate(over="ignore"):
        spread = groups[:, (size * 9) // 10] - groups[:, size // 10]
    finite = np.isfinite(middle) & np.isfinite(spread)
    if finite.sum() < 60 or np.median(spread[finite]) < 0.02 * np.ptp(middle[finite]):
        return None
    return {"x": encode.steps(steps[:n].reshape(count, size)[:, size // 2]), "y": encode.floats(middle)}
