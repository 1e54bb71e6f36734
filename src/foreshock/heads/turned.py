"""Rows for heads that fix their length: there is no scale to choose, only directions and, perhaps, one offset."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from foreshock.heads.calibrate import Calibration
from foreshock.heads.scene import Scene

_REACH, _STEP = 32.0, 0.25  # logits
_TURNS = 8  # steps from the solved to the calibrated directions


def turned(
    scene: Scene, effective: Callable[[Tensor], Tensor], rows: Tensor, found: Calibration, keep: float, bias: bool
) -> tuple[Tensor, float]:
    """Returns directions (k, d) and an offset: least cross-entropy among those that keep the old accuracy.

    Tried are directions between the solved ones and those of the calibrated rows, and offsets where the head has a
    bias; where nothing keeps the accuracy, what keeps most of it.

    Args:
        scene: the examples.
        effective: rows (k, d) -> what they come to in the head.
        rows: (k, d), solved.
        found: what calibration would make of them, had they a length.
        keep: share of the old accuracy.
        bias: whether the head has one.
    """
    unit = nn.functional.normalize
    begin, end = unit(rows, dim=1), unit(found.scale * rows + found.direction, dim=1)
    before = scene.share(scene.known, scene.old)
    offsets = torch.arange(-_REACH, _REACH + _STEP, _STEP).tolist() if bias else [0.0]
    best: tuple[bool, float] | None = None
    for turn in range(_TURNS + 1):
        tried = begin + turn / _TURNS * (end - begin)
        logits = scene.features @ effective(tried).mT
        for c in offsets:
            after = scene.share(scene.hits(logits + c), scene.old)
            fine = before is None or after is None or after >= keep * before
            rank = (not fine, scene.loss(logits + c) if fine else -(after or 0.0))
            if best is None or rank < best:
                best, chosen = rank, (tried, c)
    return chosen
