"""The ways to choose rows of new classes: at random, class means, least squares, each with its calibration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from foreshock.heads import HeadStatistics, init_new_rows
from foreshock.papers.heads_training import Fill, Task, draw_rows

__all__ = ["ARMS", "Arm"]


@dataclass(frozen=True, slots=True)
class Arm:
    """A way to choose new rows: its title, what does it, and for which losses it makes sense."""

    title: str
    fill: Fill
    losses: tuple[str, ...] = ("ce", "mse")


def _random(task: Task) -> dict[str, Any]:
    draw_rows(task.head, task.new, task.draw)
    return {}


def _chosen(task: Task, *, whole: bool = False, moments: bool = False, **settings: Any) -> dict[str, Any]:
    """Returns what `init_new_rows` says of the rows that it has chosen.

    Args:
        task: where they are written.
        whole: whether those of the old classes are overwritten as well.
        moments: whether the new rows are given second moments.
        settings: of `init_new_rows`.
    """
    statistics = HeadStatistics(task.head.in_features)
    statistics.update(task.features, task.labels)
    statistics.update(task.kept_features, task.kept_labels)
    new = (*task.old, *task.new) if whole else task.new
    told = init_new_rows(
        task.head, statistics, new, loss=task.loss, monitor=task.monitor,
        optimizer=task.optimizer if moments else None, **settings,
    )  # fmt: skip
    return told.to_dict()


_of = partial
ARMS: Mapping[str, Arm] = {
    "random": Arm("random", _random),
    "class-mean": Arm("class mean", _of(_chosen, method="class_mean", calibrate=None)),
    "unit-mean": Arm("unit mean", _of(_chosen, method="unit_mean", calibrate=None)),
    "ls-new": Arm("LS, new data", _of(_chosen, use="new", calibrate=None)),
    "ls": Arm("LS", _of(_chosen, calibrate=None)),
    "ls-whole": Arm("LS, all rows", _of(_chosen, whole=True, calibrate=None)),
    "unit-grid": Arm("unit mean + grid", _of(_chosen, method="unit_mean", calibrate="grid"), ("ce",)),
    "ls-grid": Arm("LS + grid", _of(_chosen, calibrate="grid"), ("ce",)),
    "unit-calibrated": Arm("unit mean, calibrated", _of(_chosen, method="unit_mean"), ("ce",)),
    "calibrated": Arm("LS, calibrated", _of(_chosen), ("ce",)),
    "foreshock": Arm("foreshock", _of(_chosen, moments=True)),
}
"""Name -> arm, in the order of the tables; the last is this library's own: calibrated, with second moments."""
