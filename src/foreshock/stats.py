"""Robust rolling statistics in plain Python: a window with its quantiles, a tail bound, a baseline, a loss scale."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable
from typing import Any

MAD_TO_SIGMA = 1.4826  # standard deviation of normal noise over its median absolute deviation
DUST = 1e-6  # noise below it is rounding (of a relative change): a severity is in units of at least this
CHANGE_TO_SIGMA = 1.0484  # the same over the median absolute change between successive values: 1.4826 / sqrt(2)


class Window:
    """The last `size` values, kept both in order of arrival and sorted.

    A push costs two bisections in a short list (under a microsecond for size 256); every quantile is one look-up.
    Values must be finite: the callers test that first.

    >>> window = Window(3, [5.0, 1.0, 2.0])
    >>> window.push(9.0), window.median()
    (5.0, 2.0)
    """

    __slots__ = ("_order", "_sorted", "size")

    def __init__(self, size: int, values: Iterable[float] = ()) -> None:
        self.size = size
        self._order: deque[float] = deque()
        self._sorted: list[float] = []
        for value in values:
            self.push(value)

    def __len__(self) -> int:
        return len(self._order)

    def push(self, value: float) -> float | None:
        """Takes the next value and returns the one that leaves the window, or None while it fills up."""
        order, ranked = self._order, self._sorted
        leaving = None
        if len(order) == self.size:
            leaving = order.popleft()
            del ranked[bisect_left(ranked, leaving)]
        order.append(value)
        insort(ranked, value)
        return leaving

    def drop(self) -> None:
        """Forgets the oldest value."""
        del self._sorted[bisect_left(self._sorted, self._order.popleft())]

    def quantile(self, q: float) -> float:
        """Returns the order statistic at share `q` in [0, 1], nearest rank; the window must not be empty."""
        return self._sorted[int(q * (len(self._sorted) - 1) + 0.5)]

    def median(self) -> float:
        """Returns the median (mean of the two middle values where their number is even), 0.0 of an empty window."""
        ranked = self._sorted
        n = len(ranked)
        half = n >> 1
        if n & 1:
            return ranked[half]
        return 0.5 * (ranked[half - 1] + ranked[half]) if n else 0.0

    def sorted(self) -> list[float]:
        """Returns the values in ascending order; read only."""
        return self._sorted

    def to_list(self) -> list[float]:
        """Returns the values in order of arrival; `Window(size, values)` restores the window."""
        return list(self._order)


def upper_scale(window: Window) -> float:
    """Returns the distance from the median to the 84th percentile: sigma for normal noise, blind to the lower tail.

    Up to 16 % of outliers above leave it bounded; outliers below, such as easy batches, do not enter.
    """
    return window.quantile(0.84) - window.median()


# What Hill's index is on the upper 5 % of normal noise, and how many values that prior knowledge is worth.
NORMAL_INDEX, PRIOR = 0.21, 4


def tail_bound(window: Window, probability: float, *, share: float = 0.05) -> float:
    """Returns the height above the median that a value passes with about `probability`, learnt from the upper tail.

    Inside the sample it is the quantile. Beyond, Weissman's estimator on the upper `share`: with the k largest values
    x_i above the order statistic x_k, all measured from the median, and Hill's index gamma = mean(ln(x_i / x_k)), the
    bound is x_k (k / (n p))^gamma. gamma is drawn towards its value on normal noise as if by four more values, since k
    is small. 0.0 without spread, and where fewer than 6 values are known.

    Source: Hill 1975, Annals of Statistics 3, 1163; Weissman 1978, JASA 73, 812.
    """
    ranked = window.sorted()
    n = len(ranked)
    k = max(3, int(share * n))
    if n <= 2 * k:
        return 0.0
    centre = window.median()
    if probability >= k / n:
        return window.quantile(1.0 - probability) - centre
    base = ranked[n - k - 1] - centre
    if base <= 0.0:
        return 0.0
    logs = sum(math.log((value - centre) / base) for value in ranked[n - k :])
    gamma = (logs + PRIOR * NORMAL_INDEX) / (k + PRIOR)
    return base * float((k / (n * probability)) ** min(gamma, 1.0))


class Baseline:
    """What the next value of a noisy, possibly falling series should be, and how far off such predictions were.

    The centre is the median of the last `half` admitted values, continued along the line from the median of the `half`
    before them, if that line falls (callers look for rises, so a rising line is not followed). `scale` is the standard
    deviation of the residuals, from up to `memory` of them; while the series is young only the later half of its
    residuals count, since the first ones tell of the steep start. All of it learns only from what `admit` is given.
    """

    __slots__ = (
        "_age", "_changes", "_expected", "_fall", "_new", "_old", "_previous", "_recent", "_usual", "half", "level",
        "residuals",
    )  # fmt: skip

    RECENT = 12  # residuals that tell of a sudden change of noise
    CHANGES = 24
    LEAST = 16  # residuals that always count
    # At most so many times what successive residuals differ by: a prediction that lags behind a trend is wrong by
    # nearly the same amount each time, and that is no noise; less for the recent ones, which a rise itself makes large.
    LAG, RECENT_LAG = 2.5, 1.5

    def __init__(self, half: int, memory: int) -> None:
        self.half = half
        self.residuals = Window(memory)
        self.level = 0.0  # median of the last `half` admitted values
        self._new, self._old = Window(half), Window(half)
        self._recent, self._changes = Window(self.RECENT), Window(self.CHANGES)
        self._fall = self._usual = self._expected = self._previous = 0.0
        self._age = 0

    def __len__(self) -> int:
        """Returns how many residuals are known."""
        return len(self.residuals)

    def residual(self, value: float) -> float:
        """Returns the value minus its prediction, minus the usual (median) error of the prediction."""
        return value - self._expected

    def scale(self) -> float:
        """Returns the standard deviation of the residuals; 0.0 while none is known.

        `upper_scale` of the memory, or the median size of the last 12 where the noise just grew, both limited by `LAG`.
        """
        if not len(self._changes):
            return 0.0
        changes = CHANGE_TO_SIGMA * self._changes.median()
        recent = MAD_TO_SIGMA * self._recent.median()
        return max(min(upper_scale(self.residuals), self.LAG * changes), min(recent, self.RECENT_LAG * changes))

    def admit(self, value: float, residual: float) -> None:
        """Learns from the next value; `residual` is what `residual(value)` returned, or less where it is winsorised."""
        new, old, memory = self._new, self._old, self.residuals
        if len(new._order) >= 3:
            memory.push(residual + self._usual)
            self._recent.push(abs(residual))
            self._changes.push(abs(residual - self._previous))
            self._previous = residual
            self._age += 1
            if len(memory._order) > max(self.LEAST, self._age // 2):
                memory.drop()
            self._usual = memory.median()
        leaving = new.push(value)
        self.level = new.median()
        self._fall = 0.0
        if leaving is not None:
            old.push(leaving)
        known = len(old._order)
        if known >= 3:
            # from the middle of the newer values to the next one, along the line through both medians
            slope = 2.0 * (self.level - old.median()) / (self.half + known)
            self._fall = min(0.0, slope) * 0.5 * (self.half + 1)
            if known == 3 and self._fall < 0.0:
                # the first slope: the errors so far were made without one, and most of them was the slope
                self.residuals = Window(memory.size, [error - self._fall for error in memory.to_list()])
                self._usual = self.residuals.median()
        self._expected = self.level + self._fall + self._usual

    def widen(self, factor: float) -> None:
        """Takes the noise for so many times what was seen of it: something is known to have made it so."""
        self.residuals = Window(self.residuals.size, [factor * error for error in self.residuals.to_list()])
        self._recent = Window(self.RECENT, [factor * error for error in self._recent.to_list()])
        self._changes = Window(self.CHANGES, [factor * change for change in self._changes.to_list()])
        self._usual, self._previous = self.residuals.median(), factor * self._previous
        self._expected = self.level + self._fall + self._usual

    def restart(self, values: Iterable[float]) -> None:
        """Forgets the level and takes it from these values; what is known about the noise stays."""
        self._new, self._old = Window(self.half, values), Window(self.half)
        self.level, self._fall = self._new.median(), 0.0
        self._expected = self.level + self._usual

    def state_dict(self) -> dict[str, Any]:
        """Returns the state as plain JSON values."""
        return {
            "new": self._new.to_list(), "old": self._old.to_list(), "residuals": self.residuals.to_list(),
            "recent": self._recent.to_list(), "changes": self._changes.to_list(),
            "fall": self._fall, "previous": self._previous, "age": self._age,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the state that `state_dict` returned."""
        self._new, self._old = Window(self.half, state["new"]), Window(self.half, state["old"])
        self.residuals = Window(self.residuals.size, state["residuals"])
        self._recent, self._changes = Window(self.RECENT, state["recent"]), Window(self.CHANGES, state["changes"])
        self._fall, self._previous, self._age = float(state["fall"]), float(state["previous"]), int(state["age"])
        self.level, self._usual = self._new.median(), self.residuals.median()
        self._expected = self.level + self._fall + self._usual


class LossScale:
    """Maps a loss to the scale on which its noise is even: ln(x + tiny) until it turns negative, then x itself.

    The noise of a positive loss goes with its level, and rises are ratios: from 1e-8 to 1e-6 is as much as from 0.1 to
    10. A loss that can be negative (log-densities, rewards) has no ratios, its rises are differences. `tiny` is 2^-40
    of the first loss. Exact zeros show the resolution of the loss: from the first one on, `tiny` is 8 times the
    smallest positive loss seen, so that steps of the resolution are small.

    Call `fits` with each finite loss first; where it says no, call `refit` and map anew what is kept on the old scale.

    >>> scale = LossScale()
    >>> scale.fits(2.0), round(scale(2.0), 3), scale.fits(-1.0)
    (True, 0.693, False)
    >>> scale.refit(-1.0)
    >>> scale(-1.0)
    -1.0
    """

    __slots__ = ("least", "linear", "tiny", "zero")

    LARGEST = 1e150  # beyond it products would overflow; larger losses are not told apart

    def __init__(self) -> None:
        self.linear = self.zero = False
        self.tiny = 0.0  # 0.0: no loss seen yet
        self.least = self.LARGEST

    def fits(self, value: float) -> bool:
        """Says whether the scale still suits, with this finite loss as the next."""
        if self.linear:
            return True
        if value > 0.0:
            self.least = min(self.least, value)
            if self.tiny == 0.0:
                self.tiny = max(self.least * 2.0**-40, 1e-300)
            return True
        return value == 0.0 and self.zero

    def refit(self, value: float) -> None:
        """Changes the scale so that it suits this loss: linear for a negative one, another `tiny` for a zero."""
        if value < 0.0:
            self.linear = True
        else:
            self.zero = True
            self.tiny = max(self.tiny, 8.0 * self.least if self.least < self.LARGEST else 1e-300)

    def __call__(self, value: float) -> float:
        if self.linear:
            return max(-self.LARGEST, min(self.LARGEST, value))
        return math.log(min(value, self.LARGEST) + self.tiny)

    def back(self, y: float) -> float:
        """Returns the loss whose scaled value is `y`."""
        return y if self.linear else max(0.0, math.exp(min(y, 709.0)) - self.tiny)

    def state_dict(self) -> dict[str, Any]:
        """Returns the state as plain JSON values."""
        return {name: getattr(self, name) for name in self.__slots__}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the state that `state_dict` returned."""
        for name in self.__slots__:
            setattr(self, name, state[name])
