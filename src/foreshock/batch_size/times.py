"""How long an optimizer step takes, by its batch size: a table of times, the line a + b B through it, a run's own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from foreshock.errors import UsageError
from foreshock.run import Run
from foreshock.stats import MAD_TO_SIGMA

__all__ = ["StepTimes", "from_throughput", "line_through", "recorded_times", "step_times"]

FEWEST = 5  # records of a batch size in a run from which its time is told: a median of fewer may be a warm-up's
MEDIAN = math.sqrt(math.pi / 2.0)  # standard error of a median over that of a mean, for normal noise
SLIGHT = 0.02  # share by which sizes may differ and still be one: the last batches of epochs are left out


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Seconds of one step at each measured batch size.

    Attributes:
        seconds: batch size -> seconds of a step, ascending.
        fixed, per_sample: a and b of the line a + b B, least squares in relative errors, neither negative; NaN where
            fewer than two sizes are known, which no line can be drawn through.
        misfit: largest relative distance of a measured time from the line.
        infeasible: sizes that were tried and did not fit into memory.
        spread: batch size -> relative standard error of its time, where it is known.
    """

    seconds: Mapping[int, float]
    fixed: float
    per_sample: float
    misfit: float
    infeasible: tuple[int, ...] = ()
    spread: Mapping[int, float] = field(default_factory=lambda: MappingProxyType({}))

    def seconds_at(self, batch: float, *, extrapolate: bool = False) -> float:
        """Returns the seconds of a step: measured, or on the straight line between the two sizes beside it.

        Args:
            batch: its size.
            extrapolate: continue beyond the sizes that were measured, with the slope of the line through all.

        Raises:
            UsageError: the size lies outside what was measured.

        >>> round(step_times({32: 0.1, 64: 0.1, 128: 0.2}).seconds_at(96), 6)  # from a plateau to a slope
        0.15
        """
        if batch in self.seconds:
            return self.seconds[int(batch)]
        sizes, times = list(self.seconds), list(self.seconds.values())
        if sizes[0] <= batch <= sizes[-1]:
            return float(np.interp(batch, sizes, times))
        if not extrapolate:
            raise UsageError(
                f"batch {batch:g}: step times were measured from {sizes[0]} to {sizes[-1]} examples; measure that "
                "size, or give extrapolate=True to continue them in a straight line"
            )
        slope = 0.0 if math.isnan(self.per_sample) else self.per_sample
        if batch > sizes[-1]:
            return times[-1] + slope * (batch - sizes[-1])
        return max(times[0] - slope * (sizes[0] - batch), times[0] * batch / sizes[0])

    def throughput(self, batch: float, *, extrapolate: bool = False) -> float:
        """Returns examples per second at that size; errors as in `seconds_at`."""
        return batch / self.seconds_at(batch, extrapolate=extrapolate)

    def to_dict(self) -> dict[str, object]:
        """Returns plain JSON values."""
        return {
            "seconds": {str(size): value for size, value in self.seconds.items()}, "fixed": self.fixed,
            "per_sample": self.per_sample, "misfit": self.misfit, "infeasible": list(self.infeasible),
            "spread": {str(size): value for size, value in self.spread.items()},
        }  # fmt: skip


def step_times(
    seconds: Mapping[int, float | None], *, spread: Mapping[int, float] | None = None
) -> StepTimes:
    """Returns a table of step times.

    Args:
        seconds: batch size -> seconds of one step; None, NaN or infinity where it did not fit into memory.
        spread: batch size -> relative standard error.

    Raises:
        UsageError: no size has a time, or a size or a time is not positive.

    >>> table = step_times({64: 4.28, 128: 5.56, 256: 8.12})
    >>> round(table.fixed, 6), round(table.per_sample, 6), round(table.throughput(128), 2)
    (3.0, 0.02, 23.02)
    """
    known: dict[int, float] = {}
    lacking = []
    for size, value in sorted(seconds.items()):
        if not size > 0 or (value is not None and value <= 0):
            raise UsageError(f"step times: batch sizes and seconds are positive, got {size!r}: {value!r}")
        if value is None or not math.isfinite(value):
            lacking.append(int(size))
        else:
            known[int(size)] = float(value)
    if not known:
        raise UsageError("step times: no batch size has a time; give {batch size: seconds of one step}")
    sizes, times = np.array(list(known), float), np.array(list(known.values()))
    fixed, per_sample, misfit = line_through(sizes, times)
    return StepTimes(
        MappingProxyType(known), fixed, per_sample, misfit, tuple(lacking), MappingProxyType(dict(spread or {}))
    )


def from_throughput(table: Mapping[int, float | None]) -> StepTimes:
    """Returns the same from examples per second; 0 or None where a size did not fit.

    >>> from_throughput({64: 640.0, 128: 853.3333333333334}).seconds[128]
    0.15
    """
    return step_times({size: size / rate if rate else None for size, rate in table.items()})


def line_through(
    sizes: npt.NDArray[np.float64], times: npt.NDArray[np.float64]
) -> tuple[float, float, float]:
    """Returns a, b >= 0 of a + b B by least squares in relative errors, and the largest of those; NaN for one size."""
    if len(sizes) < 2:
        return math.nan, math.nan, math.nan
    columns = np.stack([1.0 / times, sizes / times], 1)
    (fixed, per_sample), *_ = np.linalg.lstsq(columns, np.ones(len(sizes)), rcond=None)
    if fixed < 0.0 or per_sample < 0.0:  # the best line with both at least 0 has one of them at 0
        column = columns[:, 1] if fixed < 0.0 else columns[:, 0]
        only = float(column.sum() / (column @ column))
        fixed, per_sample = (0.0, only) if fixed < 0.0 else (only, 0.0)
    misfit = float(np.abs(columns @ np.array([fixed, per_sample]) - 1.0).max())
    return float(fixed), float(per_sample), misfit


def recorded_times(run: Run) -> StepTimes:
    """Returns the step times of a recorded run at the batch sizes that it had: medians of `step_seconds`.

    Steps that waited for something else (an evaluation, a checkpoint) are outliers, which a median does not heed.
    A size that less than 5 steps had, such as the last batch of an epoch, is left out.

    Raises:
        UsageError: the run lacks `step_seconds` or `batch_size`.
    """
    lacking = [name for name in ("step_seconds", "batch_size") if name not in run]
    if lacking:
        raise UsageError(
            f"this run has no {' and no '.join(lacking)}: give each batch to the monitor, "
            "monitor.observe(loss, batch=batch), or give the step times yourself"
        )
    sizes, times = run["batch_size"], run["step_seconds"]
    there = np.isfinite(sizes) & np.isfinite(times) & (times > 0) & (sizes >= 1)
    there[1:] &= np.abs(sizes[1:] - sizes[:-1]) <= SLIGHT * sizes[1:]  # the step after a change waits for the loop
    found: dict[int, float | None] = {}
    spread = {}
    for size in np.unique(sizes[there]):
        part = times[there & (sizes == size)]
        if len(part) >= FEWEST:
            middle = float(np.median(part))
            found[int(size)] = middle
            noise = MAD_TO_SIGMA * float(np.median(np.abs(part - middle))) / middle
            spread[int(size)] = MEDIAN * noise / math.sqrt(len(part))
    if not found:
        raise UsageError(f"this run has no batch size that {FEWEST} steps in a row had; its step times tell nothing")
    return step_times(found, spread=spread)
