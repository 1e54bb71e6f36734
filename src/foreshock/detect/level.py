"""The slow side of a loss: its level, the best it has been, and how far it has risen since."""

from __future__ import annotations

import math
from collections import deque
from itertools import pairwise
from typing import Any

from foreshock.stats import CHANGE_TO_SIGMA, LossScale, Window

RECENT = 65  # records whose changes tell the noise


class Level:
    """The median of the last `size` losses on the loss's scale, and what it takes to judge a rise of it.

    Attributes, known once `push` returned True: `now`, `best` (lowest level so far, or since `rebase`), `first` (level
    of the first `size` losses), `last` (the last loss). All are on the scale that `scale` maps losses to.
    """

    __slots__ = ("_recent", "best", "first", "last", "now", "scale", "size", "values")

    def __init__(self, size: int) -> None:
        self.size = size
        self.scale = LossScale()
        self.values = Window(size)
        self._recent: deque[float] = deque(maxlen=max(RECENT, size))
        self.best = math.inf
        self.now = self.last = 0.0
        self.first: float | None = None

    def push(self, value: float) -> bool:
        """Takes a finite loss that fits the scale; returns whether the window is full."""
        y = self.scale(value)
        self.last = y
        self._recent.append(y)
        self.values.push(y)
        if len(self._recent) < self.size:
            return False
        self.now = self.values.median()
        if self.first is None:
            self.first = self.now
        self.best = min(self.best, self.now)
        return True

    def refit(self, value: float) -> None:
        """Changes the scale so that it suits this loss, and maps what is kept to it."""
        back = self.scale.back
        losses, best, first, last = [back(y) for y in self.values.to_list()], self.best, self.first, back(self.last)
        best = back(best) if best < math.inf else best
        first = back(first) if first is not None else None
        self.scale.refit(value)
        self.values = Window(self.size, [self.scale(x) for x in losses])
        self._recent = deque(self.values.to_list(), maxlen=max(RECENT, self.size))
        self.best = self.scale(best) if best < math.inf else best
        self.first = self.scale(first) if first is not None else None
        self.last, self.now = self.scale(last), self.values.median()

    def rebase(self) -> None:
        """Takes the present level for the best."""
        self.best = self.now

    @property
    def rise(self) -> float:
        """How far the level stands above its best."""
        return self.now - self.best

    @property
    def baseline(self) -> float:
        """The best level, as a loss."""
        return self.scale.back(self.best)

    @property
    def height(self) -> float:
        """The rise, in units of the loss."""
        return self.scale.back(self.now) - self.baseline

    @property
    def descent(self) -> float:
        """How far the loss had fallen at its best, in units of the loss."""
        return 0.0 if self.first is None else max(0.0, self.scale.back(self.first) - self.baseline)

    def noise(self) -> float:
        """Standard deviation of the noise, from the median change between the last records."""
        changes = sorted(abs(b - a) for a, b in pairwise(self._recent))
        return CHANGE_TO_SIGMA * changes[len(changes) // 2] if changes else 0.0

    def share(self, share: float) -> float:
        """The rise that is a `share` of the loss; on the linear scale, of the descent."""
        return share * self.descent if self.scale.linear else share

    def state_dict(self) -> dict[str, Any]:
        """Returns the state as plain JSON values."""
        return {
            "scale": self.scale.state_dict(), "values": self.values.to_list(), "recent": list(self._recent),
            "best": self.best, "now": self.now, "last": self.last, "first": self.first,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the state that `state_dict` returned."""
        self.scale.load_state_dict(state["scale"])
        self.values = Window(self.size, state["values"])
        self._recent = deque(state["recent"], maxlen=max(RECENT, self.size))
        self.best, self.now, self.last, self.first = state["best"], state["now"], state["last"], state["first"]
