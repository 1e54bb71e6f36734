"""One signal held against its range: level, trend and noise, learnt robustly from what came before.

A value is read in robust standard deviations above what level and trend say; of the logarithm where the signal was
positive, since the noise of losses and norms goes with their level.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from foreshock.detect.series import Floats, Ints
from foreshock.diagnose.wording import number
from foreshock.stats import MAD_TO_SIGMA

OUT = 5.0  # robust standard deviations from which a value is out of its range
LEAST = 0.05  # and relative change: less is not worth a word, however quiet the signal was
LEAST_LINEAR = 0.25  # the same for cosines, and share of the usual size for signals that can be negative
FEWEST = 8  # values that tell what is usual, at least
TREND = 48  # the last of them, which tell where a signal was going
ONWARD = 16  # values for which a trend goes on after them
SMOOTH = 9  # values of the running median that noise is measured against
TAIL, NORMAL_TAIL = 0.9, 2.2  # quantile of the noise, and standard deviations it may lie at; 1.64 for normal noise
LARGEST = 1e150  # sizes beyond it are not told apart, so that sums do not overflow
NAMES: Mapping[str, str] = {
    "grad_norm": "gradient norm", "update_in_lr": "update (in learning rates)", "update_norm": "update",
    "grad_sq_over_v_mean": "mean of g^2/v", "grad_sq_over_v_max": "largest g^2/v", "effective_step": "effective step",
    "grad_cosine": "cosine with the gradient before", "v_ratio": "growth of the second moment", "lr": "learning rate",
    "loss_scale": "scale of the loss", "micro_batches": "number of micro-batches", "batch_size": "batch size",
}  # fmt: skip
"""Signals in words."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One value of a signal, held against its range before the event.

    Attributes:
        signal: its name.
        step: where it was measured.
        value: the value; NaN and infinities count as measured.
        usual: what it would have been by level and trend before.
        z: how far it is above that (below, where negative) in robust standard deviations, of the logarithm where the
            signal was positive; infinite for a value that is not finite.
    """

    signal: str
    step: int
    value: float
    usual: float
    z: float

    @property
    def ratio(self) -> float:
        """The value over the usual one; NaN where that is 0."""
        return self.value / self.usual if self.usual else math.nan

    @property
    def name(self) -> str:
        """What it is, in words."""
        signal, _, tensor = self.signal.partition("/")
        return NAMES.get(signal, signal) + (f" of `{tensor}`" if tensor else "")

    @property
    def told(self) -> str:
        """The value, the usual one and the distance, in words."""
        if not math.isfinite(self.value):
            return f"{number(self.value)} (usually {number(self.usual)})"
        off = f"{abs(self.z):.1f} deviations {'above' if self.z > 0 else 'below'}"
        if self.signal.startswith("grad_cosine") or not 0 < self.ratio < math.inf:
            return f"{number(self.value)} (usually {number(self.usual)}; {off})"
        return f"{number(self.value)}, {number(self.ratio)} times the usual ({off})"

    @property
    def out(self) -> bool:
        """Whether it was out of its range, on either side."""
        return abs(self.z) >= OUT


@dataclass(frozen=True, slots=True)
class Track:
    """A signal from the beginning of its baseline until after the event; (n,) each, by record."""

    signal: str
    steps: Ints = field(repr=False)
    values: Floats = field(repr=False)
    usual: Floats = field(repr=False)
    z: Floats = field(repr=False)

    def at(self, step: int) -> Reading | None:
        """Returns the reading at exactly this step; None where there is none."""
        place = int(np.searchsorted(self.steps, step))
        return self._reading(place) if place < len(self.steps) and self.steps[place] == step else None

    def first_out(self, first: int, last: int, *, sign: int = 0) -> Reading | None:
        """Returns the first reading out of range with first <= step <= last, above it (sign 1), below (-1) or both."""
        inside = (self.steps >= first) & (self.steps <= last)
        out = np.abs(self.z) >= OUT if sign == 0 else sign * self.z >= OUT
        places = np.flatnonzero(inside & out)
        return self._reading(int(places[0])) if len(places) else None

    def most(self, first: int, last: int, *, sign: int = 1) -> Reading | None:
        """Returns the reading furthest above its range (below with sign -1) with first <= step <= last."""
        places = np.flatnonzero((self.steps >= first) & (self.steps <= last))
        return self._reading(int(places[np.argmax(sign * self.z[places])])) if len(places) else None

    def _reading(self, place: int) -> Reading:
        values = self.values[place], self.usual[place], self.z[place]
        return Reading(self.signal, int(self.steps[place]), *map(float, values))


def tracked(name: str, steps: Ints, values: Floats, base: int) -> Track | None:
    """Returns a signal held against its first `base` records; None where too few of them have it."""
    there = ~np.isnan(values)
    steps, values, base = steps[there], values[there], int(there[:base].sum())
    usual = values[:base][np.isfinite(values[:base])]
    if len(usual) < FEWEST:
        return None
    signed = name.startswith("grad_cosine") or bool((usual < 0).any())
    positive = usual[usual > 0]
    tiny = 0.0 if len(positive) == len(usual) or signed else 0.5 * float(positive.min(initial=math.inf))
    if not signed and not math.isfinite(tiny):
        signed = True  # nothing but zeros
    level = _plain if signed else partial(_logarithm, tiny=tiny)
    y = level(values)
    finite = np.isfinite(y)
    line, scale = _usual(y[:base][finite[:base]])
    past = np.arange(len(y)) - (base - 1)
    expected = line[0] + line[1] * np.minimum(past, ONWARD)
    if signed:
        scale = max(scale, LEAST_LINEAR * (1.0 if "cosine" in name else abs(line[0])) / OUT, 1e-300)
    else:
        scale = max(scale, math.log1p(LEAST) / OUT)
    scale *= 1 + OUT / len(usual)  # few records know their noise badly
    with np.errstate(all="ignore"):
        z = (y - expected) / scale
        back = expected if signed else np.maximum(np.exp(np.minimum(expected, 700.0)) - tiny, 0.0)
    return Track(name, steps, values, np.asarray(back, np.float64), np.asarray(z, np.float64))


def _plain(values: Floats) -> Floats:
    return np.clip(values, -LARGEST, LARGEST) + np.where(np.isinf(values), values, 0.0)


def _logarithm(values: Floats, tiny: float) -> Floats:
    with np.errstate(all="ignore"):
        result: Floats = np.log(np.maximum(values + tiny, 0.0))
    return result


def _usual(y: Floats) -> tuple[tuple[float, float], float]:
    """Returns level at the last value and slope per record of a resistant line, and the robust noise about it.

    Source: Tukey 1977, Exploratory Data Analysis: the slope through the medians of the outer thirds.
    """
    late = y[-TREND:]
    n = len(late)
    third = max(1, n // 3)
    slope = float(np.median(late[n - third :]) - np.median(late[:third])) / (n - third)
    rest = late - slope * np.arange(1 - n, 1)
    level = float(np.median(rest))
    scale = max(_noise(rest - level), _noise(y - _running_median(y)))
    return (level, slope), scale


def _noise(residuals: Floats) -> float:
    sizes = np.abs(residuals)
    return max(MAD_TO_SIGMA * float(np.median(sizes)), float(np.quantile(sizes, TAIL)) / NORMAL_TAIL)


def _running_median(y: Floats) -> Floats:
    width = min(SMOOTH, len(y))
    windows = np.lib.stride_tricks.sliding_window_view(y, width)
    middle = np.median(windows, axis=1)
    before = (len(y) - len(middle)) // 2
    result: Floats = np.pad(middle, (before, len(y) - len(middle) - before), mode="edge")
    return result
