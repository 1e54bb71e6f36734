"""The table of the S3 reproduction: one row for each optimizer and learning rate of a task, over its seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from foreshock.papers.s3_arms import ADAMW, ARMS
from foreshock.papers.s3_training import Trace
from foreshock.papers.studies import Found

__all__ = ["COLUMNS", "rows"]

COLUMNS = (
    "training", "optimizer", "lr", "seeds", "spikes", "rise", "diverged", "loss", "held out", "accuracy",
    "to AdamW's loss", "max |u|",
)  # fmt: skip


def rows(found: Sequence[Found]) -> list[tuple[str, ...]]:
    """Returns a row for each training that was repeated with several seeds: sums of diverged runs, else means.

    "to AdamW's loss": steps to the lowest final loss that AdamW .9/.999 has at any learning rate with the same seed.
    """
    traces = {
        (each.task, each.arm, each.factor, each.seed): each for study in found for each in study.drawn.get("traces", ())
    }
    targets: dict[tuple[str, int], float] = {}
    for each in traces.values():
        if each.arm == ADAMW.name:
            targets[each.task, each.seed] = min(targets.get((each.task, each.seed), math.inf), each.final)
    grouped: dict[tuple[str, str, float], list[Trace]] = {}
    for (task, arm, factor, _), each in traces.items():
        grouped.setdefault((task, arm, factor), []).append(each)
    return [_row(group, targets) for group in grouped.values()]


def _row(group: Sequence[Trace], targets: dict[tuple[str, int], float]) -> tuple[str, ...]:
    first = group[0]
    reached = [each.reaches(targets.get((each.task, each.seed), -math.inf)) for each in group]
    return (
        first.task, ARMS[first.arm].title, f"{first.lr:.2g} ({first.factor:g}x)", str(len(group)),
        f"{np.mean([len(each.spikes) for each in group]):.2g}", f"{max(each.rise for each in group):.2g}",
        str(sum(each.diverged for each in group)), _mean([each.final for each in group]),
        _mean([each.held for each in group]), _mean([each.accuracy for each in group]),
        "never" if math.inf in reached else f"{np.mean(reached):.0f}", f"{max(each.largest for each in group):.3g}",
    )


def _mean(values: Sequence[float]) -> str:
    mean = float(np.mean(values))
    return "-" if math.isnan(mean) else f"{mean:.3g}"
