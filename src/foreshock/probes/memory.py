"""What a part remembers of the step before: sums per tensor, on the host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from foreshock.probes.plan import Plan
from foreshock.probes.sweep import Totals


class Memory:
    """The sums of the last step seen, so that a step can be compared with the one before it.

    Args:
        names: the sums it keeps.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = tuple(names)
        self._number = -2
        self._values: dict[str, np.ndarray] = {}
        self._plan: Plan | None = None

    def follow(self, totals: Totals) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Returns (N,) whether the step before each was seen, and its sums (N, tensors); then keeps the last step's."""
        plan, steps = totals.plan, totals.steps
        count = len(plan.tensors)
        fits = self._plan in (plan, None) and all(len(value) == count for value in self._values.values())
        number = self._number if fits and self._values else -2
        before = {}
        for name in self._names:
            now = totals.sums[name]
            first = self._values[name] if number >= 0 else np.zeros(count)
            before[name] = np.concatenate([first[None], now[:-1]])
        known = np.concatenate([[number], steps[:-1]]) == steps - 1
        self.keep(totals)
        return known, before

    def keep(self, totals: Totals) -> None:
        """Keeps the last step's sums."""
        self._plan, self._number = totals.plan, int(totals.steps[-1])
        self._values = {name: totals.sums[name][-1].copy() for name in self._names}

    def state_dict(self) -> dict[str, Any]:
        return {"number": self._number, "values": {name: value.tolist() for name, value in self._values.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._plan, self._number = None, int(state["number"])
        self._values = {name: np.array(value, np.float64) for name, value in state["values"].items()}
