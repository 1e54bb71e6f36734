"""Claims of a paper and what became of them here: intervals, measured values, and by how much one misses the other."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Claim"]


@dataclass(frozen=True, slots=True)
class Claim:
    """A statement whose measured number must lie in an interval, for every seed.

    Attributes:
        name: short, used in JSON.
        text: what is claimed, with the name of the number.
        low, high: the interval; infinite where one side is open.
        measured: seed -> value; NaN where the training gave none.
        source: where the interval comes from.
    """

    name: str
    text: str
    low: float
    high: float
    measured: Mapping[int, float]
    source: str = ""

    @property
    def misses(self) -> dict[int, float]:
        """Returns by how much each seed lies outside: negative below the interval, positive above, 0 inside."""
        return {seed: _outside(value, self.low, self.high) for seed, value in self.measured.items()}

    @property
    def reproduced(self) -> bool:
        """Returns whether every seed lies inside; NaN does not."""
        return bool(self.measured) and all(miss == 0 for miss in self.misses.values())

    @property
    def expected(self) -> str:
        """Returns the interval as text."""
        if self.low == self.high:
            return f"{self.low:g}"
        if math.isinf(self.high):
            return f"> {self.low:g}"
        return f"< {self.high:g}" if math.isinf(self.low) else f"{self.low:g} to {self.high:g}"

    @property
    def verdict(self) -> str:
        """Returns "reproduced", or by how much the farthest seed misses.

        >>> Claim("a", "chi settles at 1", 0.9, 1.1, {0: 1.0, 1: 1.25}).verdict
        'not: 0.15 above'
        """
        if self.reproduced:
            return "reproduced"
        if not self.measured or any(math.isnan(miss) for miss in self.misses.values()):
            return "not: no value"
        farthest = max(self.misses.values(), key=abs)
        return f"not: {abs(farthest):.2g} {'above' if farthest > 0 else 'below'}"

    def to_dict(self) -> dict[str, Any]:
        """Returns the claim for JSON."""
        return {
            "name": self.name, "claim": self.text, "low": self.low, "high": self.high,
            "measured": {str(seed): value for seed, value in self.measured.items()},
            "misses": {str(seed): miss for seed, miss in self.misses.items()},
            "reproduced": self.reproduced, "source": self.source,
        }


def _outside(value: float, low: float, high: float) -> float:
    if math.isnan(value):
        return value
    return min(value - low, 0.0) + max(value - high, 0.0)
