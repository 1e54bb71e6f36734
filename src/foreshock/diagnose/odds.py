"""Log-odds of the signs of a mechanism, added up, and what they make of each other in words."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass(slots=True)
class Odds:
    """A cause on trial: log-odds so far, what speaks for it, what against, and what was read.

    >>> odds = Odds(-1.0)
    >>> odds.add(3.0, "The loss leapt.", "loss")
    >>> odds.add(-1.0, "The gradient did not.", "grad_norm")
    >>> round(odds.score, 2), odds.pro, odds.con, odds.signals
    (0.73, ['The loss leapt.'], ['The gradient did not.'], ['loss', 'grad_norm'])
    """

    total: float
    pro: list[str] = field(default_factory=list)
    con: list[str] = field(default_factory=list)
    signals: list[str] = field(default_factory=list)

    def add(self, weight: float, said: str = "", *signals: str) -> None:
        """Adds a sign; what is said of one with a negative weight speaks against."""
        self.total += weight
        if said:
            (self.pro if weight >= 0 else self.con).append(said)
        self.signals += [name for name in signals if name not in self.signals]

    @property
    def score(self) -> float:
        """The probability."""
        return 1 / (1 + math.exp(-max(-30.0, min(30.0, self.total))))
