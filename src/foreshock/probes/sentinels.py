"""Looks at the free signals of every step, and says when curvature had better be measured more often."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Any

OPPOSED, IN_A_ROW = -0.9, 10
"""Cosine of successive gradients and how many in a row: 31 of 31 spikes and 3 false alarms in the run TL, 13 to 20
steps ahead (Bai et al. 2025, arXiv 2506.04805, cheaper proxies). False alarms cost a few readings here."""

MOST = 0.5  # share of the parameters whose second moment decays freely
AROUSED = 4.0  # how many times its least value of late g^2/v has grown by, while v still decays
RECENT = 64  # records that are of late

BEYOND = 1.0  # secant curvature, whose edge is 1
TWICE = 2  # secants in a row


class Sentinels:
    """Says at which records a free signal stirs.

    Alternation: successive gradients point against each other for ten steps. Decoupling: the second moments of most
    parameters decay freely, and the gradient has begun to grow again. Secant: the curvature along the last steps,
    measured from gradients alone, is above its edge twice in a row.
    """

    def __init__(self) -> None:
        self._opposed = 0
        self._beyond = 0
        self._feeding: deque[float] = deque(maxlen=RECENT)

    def update(self, values: Mapping[str, float]) -> bool:
        """Takes the free signals of the next record."""
        return self._alternates(values) | self._decouples(values) | self._bends(values)

    def _alternates(self, values: Mapping[str, float]) -> bool:
        cosine = values.get("grad_cosine", math.nan)
        self._opposed = self._opposed + 1 if cosine < OPPOSED else 0
        return self._opposed >= IN_A_ROW

    def _decouples(self, values: Mapping[str, float]) -> bool:
        fed, free = values.get("grad_sq_over_v_mean", math.nan), values.get("v_free", math.nan)
        if not (0.0 < fed < math.inf and free >= MOST):
            self._feeding.clear()
            return False
        least = min(self._feeding, default=math.inf)
        self._feeding.append(fed)
        return fed > AROUSED * least

    def _bends(self, values: Mapping[str, float]) -> bool:
        secant = values.get("chi_secant")
        if secant is not None:
            self._beyond = self._beyond + 1 if secant > BEYOND else 0
        return secant is not None and self._beyond >= TWICE

    def state_dict(self) -> dict[str, Any]:
        """Returns the state as plain values."""
        return {"opposed": self._opposed, "beyond": self._beyond, "feeding": list(self._feeding)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the state that `state_dict` returned."""
        self._opposed, self._beyond = int(state.get("opposed", 0)), int(state.get("beyond", 0))
        self._feeding = deque(state.get("feeding", ()), maxlen=RECENT)
