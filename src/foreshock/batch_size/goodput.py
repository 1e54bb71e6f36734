"""Goodput, the useful examples per second of a batch size: throughput times statistical efficiency, and its maximum."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from numbers import Real
from types import MappingProxyType
from typing import Any, Protocol, TypeAlias, cast

from foreshock.batch_size.gain import efficiency
from foreshock.batch_size.times import StepTimes, from_throughput
from foreshock.errors import UsageError

__all__ = ["Candidate", "Goodput", "Noise", "Throughput", "critical_batch", "goodput", "optimum"]

C = 2.0
"""Critical batch size over noise scale, as COPUS sets it by hand; not measured here or there."""

Candidate: TypeAlias = "int | tuple[Any, int]"
"""A batch size, or (strategy, batch size), the strategy being whatever names it."""

Throughput: TypeAlias = (
    "StepTimes | Mapping[Any, float | None] | tuple[float, float] | Callable[[Any], float | None]"
)
"""What `goodput` takes: measured times, candidate -> examples per second, (a, b) of a + b B, or a function."""

LARGEST = 2**24  # batch size up to which the best of a function is looked for
LEAST = 1e-9  # times the noise scale, where its band begins at 0
STEP = 0.02  # relative, by which B_c is changed to see what the best batch does
GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0


class Noise(Protocol):
    """What is read of an estimated noise scale: `NoiseEstimate`, or anything like it."""

    @property
    def noise_scale(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...
    @property
    def status(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Goodput:
    """Goodput by candidate, and the best.

    Attributes:
        best: the candidate with the highest goodput: a batch size, or (strategy, batch size) where those were given.
        curve: candidate -> goodput, useful examples per second; only ratios matter for the lr-aware form.
        sensitivity: d ln B*/d ln B_c at the continuous optimum; 0.5 and less for plain goodput, up to 1 lr-aware.
        optimum: the continuous B* of the best strategy; infinite where goodput only grows.
        B_c: critical batch size that was used.
        lr_aware: whether a factor of sqrt(B) is in it.
        band: the lowest and the highest best candidate that the uncertainty of B_c allows; None where it is not known.
        infeasible: candidates without a throughput.
        misfit: where `optimum` comes from a line through measured times, its largest relative misfit; else 0.
    """

    best: Candidate
    curve: Mapping[Candidate, float]
    sensitivity: float
    optimum: float
    B_c: float
    lr_aware: bool
    band: tuple[Candidate, Candidate] | None = None
    infeasible: tuple[Candidate, ...] = ()
    misfit: float = 0.0
    _at: Callable[[Any, float], float] = field(default=lambda _key, _bc: math.nan, repr=False, compare=False)

    @property
    def batch(self) -> int:
        """Batch size of the best candidate."""
        return size_of(self.best)

    def at(self, candidate: Candidate, B_c: float | None = None) -> float:
        """Returns the goodput of any candidate, with another B_c where one is given.

        Raises:
            UsageError: nothing is known of its throughput.
        """
        return self._at(candidate, self.B_c if B_c is None else B_c)

    def gain_over(self, current: Candidate, B_c: float | None = None) -> float:
        """Returns by what share the best is better than another candidate; errors as in `at`."""
        return self.at(self.best, B_c) / self.at(current, B_c) - 1.0

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON values."""
        band = None if self.band is None else [_named(each) for each in self.band]
        return {
            "best": _named(self.best), "curve": {_named(key): value for key, value in self.curve.items()},
            "sensitivity": self.sensitivity, "optimum": self.optimum, "B_c": self.B_c, "lr_aware": self.lr_aware,
            "band": band, "infeasible": [_named(key) for key in self.infeasible], "misfit": self.misfit,
        }  # fmt: skip


def goodput(
    throughput: Throughput,
    B_c: float | Noise,
    *,
    lr_aware: bool = False,
    candidates: Iterable[Candidate] | None = None,
    c: float = C,
    extrapolate: bool = False,
) -> Goodput:
    """Returns the goodput of each candidate and the best of them.

    Plain: T(B) SE(B), with T in examples per second and SE = 1/(1 + B/B_c). Lr-aware: T SE sqrt(B), for Adam with a
    learning rate that follows the root of the batch. With T = B/(a + b B) the optimum is B* = sqrt(a B_c/b), plain, and
    B* = (A + sqrt(A^2 + 12 a b B_c))/(2 b), A = a + b B_c, lr-aware: the first feels the root of B_c, which is set by
    hand to within a factor, the second all of it.

    Args:
        throughput: candidate -> examples per second (None or 0 where it does not fit into memory), measured
            `StepTimes`, (a, b) of step seconds a + b B, or a function of a candidate.
        B_c: critical batch size; or an estimated noise scale N, with B_c = c N and a band.
        lr_aware: multiply by sqrt(B).
        candidates: what to choose from; of a table all in it by default, else every size up to 2^24. Sizes between
            those of a table are interpolated.
        c: critical batch size over noise scale.
        extrapolate: allow candidates outside of what was measured.

    Raises:
        UsageError: an undefined noise scale, a candidate of whose throughput nothing is known, none that is feasible.

    Source: COPUS, arXiv 2604.26687 (both goodputs, c = 2; the closed forms are derived here); McCandlish et al. 2018,
    arXiv 1812.06162 (the efficiency).

    >>> goodput((3.0, 0.02), 500).best, goodput((3.0, 0.02), 500, lr_aware=True).best
    (274, 900)
    >>> goodput({64: 700.0, 128: 1100.0, 256: 1300.0}, 300).best
    128
    """
    centre, low, high = critical_batch(B_c, c)
    sight = _Sight(throughput, extrapolate)
    known = sight.known if candidates is None else tuple(dict.fromkeys(candidates))

    def at(candidate: Candidate, critical: float) -> float:
        rate, size = sight.rate(candidate), size_of(candidate)
        if rate is None or not rate > 0.0 or math.isinf(rate):
            return 0.0
        return rate * efficiency(size, critical) * (math.sqrt(size) if lr_aware else 1.0)

    def best_at(critical: float) -> Candidate:
        if known is not None:
            return max(known, key=lambda each: at(each, critical))  # the first of equals
        line = sight.line(None)
        peak = optimum(*line, critical, lr_aware=lr_aware) if line else _peak(lambda size: at(size, critical))
        if not math.isfinite(peak):
            raise UsageError(
                "goodput: it only grows with the batch here (no time per example); give the candidates to choose from"
            )
        return max((max(1, math.floor(peak)), max(1, math.ceil(peak))), key=lambda size: at(size, critical))

    if known is not None and not known:
        raise UsageError("goodput: there are no candidates to choose from")
    best = best_at(centre)
    curve = {each: at(each, centre) for each in (known if known is not None else _around(size_of(best)))}
    lacking = tuple(each for each, value in curve.items() if not value > 0.0)
    curve = {each: value for each, value in curve.items() if value > 0.0}
    if best not in curve and not at(best, centre) > 0.0:
        raise UsageError("goodput: no candidate has a throughput above 0; all were out of memory")
    line = sight.line(best[0] if isinstance(best, tuple) else None)
    if line is None and known is None:
        peak, sensitivity = _of_function(at, centre)
    else:
        peak, sensitivity = _of_line(line, centre, lr_aware)
    told = low is not None and high is not None and (known is not None or math.isfinite(high))
    band = (best_at(low), best_at(high)) if told and low is not None and high is not None else None
    return Goodput(
        best, MappingProxyType(curve), sensitivity, peak, centre, lr_aware, band, lacking, sight.misfit(best), at
    )


def optimum(a: float, b: float, B_c: float, *, lr_aware: bool = False) -> float:
    """Returns the batch size of the highest goodput for step seconds a + b B; infinite where it only grows.

    >>> round(optimum(3.0, 0.02, 500), 1), round(optimum(3.0, 0.02, 500, lr_aware=True), 1)
    (273.9, 900.0)
    """
    if not (a >= 0.0 and b >= 0.0 and a + b > 0.0 and B_c > 0.0):
        raise UsageError(f"optimum: a, b >= 0, not both 0, and B_c > 0 are needed, got {a!r}, {b!r} and {B_c!r}")
    if b == 0.0 or (math.isinf(B_c) and (lr_aware or a > 0.0)):
        return math.inf
    if not lr_aware:
        return math.sqrt(a * B_c / b) if a > 0.0 else 0.0
    A = a + b * B_c
    return (A + math.sqrt(A * A + 12.0 * a * b * B_c)) / (2.0 * b)


def critical_batch(noise: float | Noise, c: float = C) -> tuple[float, float | None, float | None]:
    """Returns B_c and its band: a number as it is, without one; c times an estimated noise scale.

    Raises:
        UsageError: the estimate is gated or undefined, or the size is not positive.
    """
    size = as_number(noise)
    if size is not None:
        if not size > 0.0:
            raise UsageError(f"B_c: the critical batch size is positive, got {noise!r}")
        return size, None, None
    if not hasattr(noise, "status"):
        raise UsageError(f"B_c: a batch size, or an estimate of the noise scale, got {noise!r}")
    noise = cast(Noise, noise)
    if noise.status != "ok" or not noise.noise_scale > 0.0:
        raise UsageError(
            f"B_c: the noise scale is {noise.status}, so there is no critical batch size; average over more steps, or "
            "see what gates it"
        )
    if not c > 0.0:
        raise UsageError(f"c: critical batch size over noise scale is positive, got {c!r}")
    size = c * noise.noise_scale
    if math.isnan(noise.low) or math.isnan(noise.high):
        return size, None, None
    return size, c * max(noise.low, LEAST * noise.noise_scale), c * noise.high


def as_number(noise: float | Noise) -> float | None:
    """Returns a number, numpy's included, as a float; None for an estimate."""
    return float(noise) if isinstance(noise, Real) else None


def size_of(candidate: Candidate) -> int:
    """Returns the batch size of a candidate."""
    size = candidate[-1] if isinstance(candidate, tuple) else candidate
    if isinstance(size, bool) or not isinstance(size, Real) or not size > 0:
        raise UsageError(f"a candidate is a batch size or (strategy, batch size), got {candidate!r}")
    return size


class _Sight:
    """What is known of the throughput: `known` candidates, None where any size will do; rates; lines."""

    def __init__(self, throughput: Throughput, extrapolate: bool) -> None:
        self._call: Callable[[Any], float | None] | None = None
        self._tables: dict[Any, StepTimes] = {}
        self._line: tuple[float, float] | None = None
        self._lacking: set[Any] = set()
        self._extrapolate = extrapolate
        self.known: tuple[Candidate, ...] | None = None
        if isinstance(throughput, StepTimes):
            self._tables[None] = throughput
            self._lacking = set(throughput.infeasible)
            self.known = (*throughput.seconds, *throughput.infeasible)
        elif isinstance(throughput, Mapping):
            self._measured(throughput)
        elif isinstance(throughput, tuple) and len(throughput) == 2:
            a, b = (float(value) for value in throughput)
            optimum(a, b, 1.0)
            self._line = (a, b)
        elif callable(throughput):
            self._call = throughput
        else:
            raise UsageError(
                "throughput: {batch size: examples per second}, StepTimes, (a, b) of step seconds a + b B, or a "
                f"function, got {throughput!r}"
            )

    def _measured(self, table: Mapping[Any, float | None]) -> None:
        self.known = tuple(table)
        groups: dict[Any, dict[int, float | None]] = {}
        for key, rate in table.items():
            groups.setdefault(key[0] if isinstance(key, tuple) else None, {})[size_of(key)] = rate
            if not rate or rate != rate:
                self._lacking.add(key)
            elif rate < 0 or math.isinf(rate):
                raise UsageError(f"throughput: examples per second are positive, got {key!r}: {rate!r}")
        for strategy, rates in groups.items():
            if any(rate and rate == rate for rate in rates.values()):
                self._tables[strategy] = from_throughput({size: rate or None for size, rate in rates.items()})

    def rate(self, candidate: Candidate) -> float | None:
        """Returns examples per second; None where the candidate does not fit into memory."""
        size = size_of(candidate)
        if self._call is not None:
            return self._call(candidate)
        if self._line is not None:
            return size / (self._line[0] + self._line[1] * size)
        strategy = candidate[0] if isinstance(candidate, tuple) else None
        if candidate in self._lacking:
            return None
        if strategy not in self._tables:
            raise UsageError(f"throughput: nothing is known of {candidate!r}; known: {list(self.known or ())[:8]}")
        return self._tables[strategy].throughput(size, extrapolate=self._extrapolate)

    def line(self, strategy: Any) -> tuple[float, float] | None:
        """Returns a and b of a strategy's step seconds; None where there is no line."""
        if self._line is not None:
            return self._line
        table = self._tables.get(strategy)
        return None if table is None or math.isnan(table.fixed) else (table.fixed, table.per_sample)

    def misfit(self, candidate: Candidate) -> float:
        """Returns how far the line is off the times that were measured, relative."""
        table = self._tables.get(candidate[0] if isinstance(candidate, tuple) else None)
        return 0.0 if table is None else table.misfit


def _of_line(line: tuple[float, float] | None, B_c: float, lr_aware: bool) -> tuple[float, float]:
    """Returns the continuous optimum and d ln B*/d ln B_c for step seconds a + b B; NaN where there is no line."""
    if line is None:
        return math.nan, math.nan
    peak = optimum(*line, B_c, lr_aware=lr_aware)
    if not math.isfinite(peak) or peak == 0.0:
        return peak, math.nan
    if not lr_aware:
        return peak, 0.5
    a, b = line
    A = a + b * B_c  # B* = (A + R)/(2b), R^2 = A^2 + 12 a b B_c
    R = math.sqrt(A * A + 12.0 * a * b * B_c)
    return peak, B_c * (b + (A * b + 6.0 * a * b) / R) / (A + R)


def _of_function(at: Callable[[Any, float], float], B_c: float) -> tuple[float, float]:
    """Returns the same for a goodput of (size, B_c), by differences."""

    def peak_at(critical: float) -> float:
        return _peak(lambda size: at(size, critical))

    low, peak, high = (peak_at(B_c * factor) for factor in (1.0 - STEP, 1.0, 1.0 + STEP))
    return peak, math.log(high / low) / math.log((1.0 + STEP) / (1.0 - STEP))


def _peak(value: Callable[[Any], float]) -> float:
    """Returns where a function of the batch size is highest, on the logarithmic scale: a coarse look, a golden section.

    The coarse look passes over rises and falls of its own; between its places one maximum is taken for granted.
    """
    grid = [2.0 ** (place / 4.0) for place in range(4 * int(math.log2(LARGEST)) + 1)]
    place = max(range(len(grid)), key=lambda i: value(grid[i]))
    if place == len(grid) - 1:
        return math.inf
    low, high = math.log(grid[max(0, place - 1)]), math.log(grid[place + 1])
    while high - low > 1e-7:
        left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
        if value(math.exp(left)) >= value(math.exp(right)):
            high = right
        else:
            low = left
    return math.exp(0.5 * (low + high))


def _around(best: int) -> tuple[int, ...]:
    """Returns sizes to draw a curve with, where no candidates were given: powers of two and the best."""
    return tuple(sorted({best, *(2**power for power in range(max(2, best.bit_length() + 4)))}))


def _named(candidate: Candidate) -> str:
    return str(candidate) if not isinstance(candidate, tuple) else " ".join(map(str, candidate))
