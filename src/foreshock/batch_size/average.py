"""Exponential means of several series, with the covariance of their error: correlated noise and lag included."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

LAGS = 8  # steps over which noise may be correlated; what is correlated for longer moves, and is treated as lag


class MovingMean:
    """Bias-corrected exponential means m = sum a^(t-i) x_i / sum a^(t-i) of k series, and how far off they may be.

    `covariance` is that of m about what the series' means are now. It has two parts:

    1. Noise: V = (W_2 / W^2) sum_h k_h a^|h| Gamma_h, W and W_2 the sums of the weights and of their squares, Gamma_h
       the covariance at lag h about the mean, k_h = 1 - |h| / (L + 1) (Bartlett's window).
    2. Lag: a mean of the past is late where the series drifts. The mean of the mean, m', is later still: what is missed
       is d = f (m - m'), exactly so for a straight drift, where f says how m and m' lag behind the steps' numbers (1
       in the long run, as in Brown's double smoothing, 2 at first). d d' is added, drawn to 0 by as much as noise
       alone would make of it.

    Args:
        series: k, how many.
        ema: a, the weight of the past at each value; 1 weighs all values alike.

    Source: Newey and West 1987, Econometrica 55, 703 (the window); Brown 1963, Smoothing, Forecasting and Prediction.
    """

    def __init__(self, series: int, ema: float) -> None:
        self.ema, self.series = ema, series
        self.restart()

    def restart(self, keep: float = 0.0) -> None:
        """Forgets what was seen, all but the share `keep` of its weight, so that what comes counts for more."""
        k = self.series
        if keep <= 0.0:
            self.n, self.weight, self.squares, self.late_weight = 0, 0.0, 0.0, 0.0
            self.mean, self.late = np.zeros(k), np.zeros(k)
            self._clock, self._late_clock = 0.0, 0.0  # the same means of the numbers of the values
            self._products = np.zeros((LAGS + 1, k, k))  # weighted sums of x_t x_(t-h)' about the mean
            self._counted = np.zeros(LAGS + 1)  # their weights
            self._recent = np.zeros((LAGS, k))  # the last values, newest first
            self._held = 0  # how many of them there are
            return
        self.weight, self.late_weight, self.squares = keep * self.weight, keep * self.late_weight, keep * self.squares
        self._products *= keep
        self._counted *= keep

    def update(self, values: Sequence[float]) -> None:
        """Takes the next value of each series; they must be finite."""
        x = np.asarray(values, dtype=np.float64)
        a = self.ema
        self.n += 1
        self.weight = a * self.weight + 1.0
        self.squares = a * a * self.squares + 1.0
        before = x - self.mean
        self.mean = self.mean + before / self.weight
        self.late_weight = a * self.late_weight + 1.0
        self.late = self.late + (self.mean - self.late) / self.late_weight
        self._clock += (self.n - self._clock) / self.weight
        self._late_clock += (self._clock - self._late_clock) / self.late_weight
        off, held = x - self.mean, self._held
        self._products *= a
        self._products[0] += before[:, None] * off  # Welford's: exact about a mean that moves
        self._products[1 : held + 1] += off[:, None] * (self._recent[:held] - self.mean)[:, None]
        self._counted *= a
        self._counted[: held + 1] += 1.0
        self._recent[1:] = self._recent[:-1]
        self._recent[0] = x
        self._held = min(held + 1, LAGS)

    @property
    def effective(self) -> float:
        """How many equally weighted values would be worth as much, W^2 / W_2; 0.0 before the first."""
        return self.weight**2 / self.squares if self.squares else 0.0

    def covariance(self) -> Array:
        """Returns the covariance of the means' error, shape (k, k); infinite before there are two values."""
        k = self.series
        effective = self.effective
        if effective < 1.5:
            return np.full((k, k), math.inf)
        noise = self._long_run() / effective
        return noise + self._lag(noise)

    def _long_run(self) -> Array:
        """Returns sum_h k_h a^|h| Gamma_h, shape (k, k), each series having half its Gamma_0 at least."""
        own = self._products[0] / (self.weight - self.squares / self.weight)
        total = own
        if self._counted[-1] > 2 * LAGS:  # too few pairs say nothing
            h = np.arange(1, LAGS + 1)
            factors = (1 - h / (LAGS + 1)) * self.ema**h / self._counted[1:]
            total = own + 2 * (factors[:, None, None] * self._products[1:]).sum(0)
        least = 0.5 * np.diag(own)
        spread = np.sqrt(np.maximum(np.diag(total), least))
        bound = spread[:, None] * spread
        found: Array = np.clip(0.5 * (total + total.T), -bound, bound)
        np.fill_diagonal(found, spread * spread)
        return found

    def _lag(self, noise: Array) -> Array:
        """Returns what lag adds, shape (k, k)."""
        behind = self._clock - self._late_clock
        factor = (self.n - self._clock) / behind if behind > 0.0 else 0.0
        late = factor * (self.mean - self.late)
        spread = 0.5 * factor**3 * noise  # of d under noise alone: half the mean's in the long run, 4 times it at first
        scale = np.sqrt(np.maximum(np.diag(spread), 0.0))
        if not np.all(scale > 0.0):
            return np.outer(late, late)
        inner = spread / np.outer(scale, scale) + 1e-6 * np.eye(self.series)
        score = float((late / scale) @ np.linalg.solve(inner, late / scale)) / self.series
        return np.outer(late, late) * max(0.0, 1.0 - 1.0 / score) if score > 0.0 else np.zeros_like(noise)

    def state_dict(self) -> dict[str, Any]:
        """Returns all that is known, in plain numbers and lists."""
        return {
            "n": self.n, "weight": self.weight, "squares": self.squares, "late_weight": self.late_weight,
            "clocks": [self._clock, self._late_clock],
            "mean": self.mean.tolist(), "late": self.late.tolist(), "products": self._products.tolist(),
            "counted": self._counted.tolist(), "recent": self._recent[: self._held].tolist(),
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.n, self.weight, self.squares = int(state["n"]), float(state["weight"]), float(state["squares"])
        self.late_weight = float(state["late_weight"])
        self._clock, self._late_clock = state["clocks"]
        self.mean, self.late = np.array(state["mean"]), np.array(state["late"])
        self._products, self._counted = np.array(state["products"]), np.array(state["counted"])
        self._recent, self._held = np.zeros((LAGS, self.series)), len(state["recent"])
        self._recent[: self._held] = np.array(state["recent"]).reshape(self._held, self.series)
