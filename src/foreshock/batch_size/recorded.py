"""Advice about the batch from a recorded run: its noise scale, its step times, its curvature."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from foreshock.batch_size.advice import SwitchAdvice, switch_advice
from foreshock.batch_size.goodput import C
from foreshock.batch_size.schedule import BatchSchedule, schedule_advice
from foreshock.batch_size.times import StepTimes, recorded_times
from foreshock.errors import UsageError
from foreshock.run import Run

__all__ = ["FromRun", "recorded_advice"]

STALE = 300  # steps after which a reading of chi or of the softmax says nothing of now
POINTS = 400  # of the course of the noise scale that a schedule is made of


@dataclass(frozen=True, slots=True)
class _Reading:
    """The last noise scale that a run has, as `switch_advice` reads it."""

    noise_scale: float
    low: float
    high: float
    status: str
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FromRun:
    """What a recorded run says about its batch.

    Attributes:
        current: its last batch size.
        noise_scale, low, high, status: the last noise scale that it has, and its band.
        times: step times as recorded; None where a line was given, or the run does not tell.
        chi: last reading; None where there is none of late.
        advice: what to do now.
        schedule: what a training like it should have done; None where there is too little to tell.
    """

    current: int
    noise_scale: float
    low: float
    high: float
    status: str
    times: StepTimes | None
    chi: float | None
    advice: SwitchAdvice
    schedule: BatchSchedule | None

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON values."""
        return {
            "current": self.current, "noise_scale": self.noise_scale, "low": self.low, "high": self.high,
            "status": self.status, "times": None if self.times is None else self.times.to_dict(), "chi": self.chi,
            "advice": self.advice.to_dict(), "schedule": None if self.schedule is None else self.schedule.to_dict(),
        }  # fmt: skip


def recorded_advice(
    run: Run,
    *,
    line: tuple[float, float] | None = None,
    batches: Sequence[int] = (),
    lr_aware: bool = False,
    c: float = C,
    **rules: Any,
) -> FromRun:
    """Returns what a run says about its batch size.

    Args:
        run: with `batch_size` and the signals of `probes.NoiseScale`.
        line: a and b of step seconds a + b B; None for the times that the run has recorded.
        batches: sizes to choose from; by default those that it had, or with a line powers of two from a sixteenth of
            the last size to 64 times it.
        lr_aware, c: see `goodput`.
        rules: `threshold`, `switch_time`, `remaining_time` and `lr_rule` of `switch_advice`.

    Raises:
        UsageError: the run lacks what is needed, or had one batch size only and no line was given.
    """
    if "batch_size" not in run:
        raise UsageError("this run has no batch_size: give each batch to the monitor, observe(loss, batch=batch)")
    sizes = run["batch_size"]
    there = np.flatnonzero(np.isfinite(sizes))
    recent = sizes[there[-32:]]
    current = int(np.median(recent[recent >= 0.5 * recent.max()]))  # not the last batch of an epoch
    times = recorded_times(run) if line is None else None
    known = sorted({*batches, current}) if batches else []
    if not known:
        known = [*times.seconds] if times is not None else _powers(current)
    if len(known) < 2:
        raise UsageError(
            f"this run had one batch size only, {current}, so its step times say nothing of another: measure them "
            "(foreshock.batch_size.throughput.measure_step_times), or give the line a + b B"
        )
    throughput: StepTimes | tuple[float, float] = times if times is not None else line or (0.0, 1.0)
    reading, last = _noise(run), int(run.steps[-1])
    chi = _recent(run, "chi", last)
    gates = {name: value for name in ("softmax_absorbed", "softmax_residual")
             if (value := _recent(run, name, last)) is not None}  # fmt: skip
    advice = switch_advice(
        current, throughput, reading, batches=known, gates=gates, chi=chi, lr_aware=lr_aware, c=c, **rules
    )
    return FromRun(
        current, reading.noise_scale if reading else math.nan, reading.low if reading else math.nan,
        reading.high if reading else math.nan, reading.status if reading else "unknown", times, chi, advice,
        _schedule(run, sizes, throughput, known, c, rules),
    )


def _schedule(
    run: Run, sizes: Any, throughput: Any, known: list[int], c: float, rules: dict[str, Any]
) -> BatchSchedule | None:
    scales = run["noise_scale"] if "noise_scale" in run else np.empty(0)
    if np.isfinite(scales).sum() < 2:
        return None
    places = np.unique(np.linspace(0, len(scales) - 1, POINTS).astype(int))
    last = np.searchsorted(np.flatnonzero(np.isfinite(scales)), places, side="right") - 1
    course = scales[np.flatnonzero(np.isfinite(scales))[np.maximum(last, 0)]]
    filled = np.where(np.isfinite(sizes), sizes, np.nanmedian(sizes))[places]
    stretch = len(scales) / len(places)
    kept = {name: rules[name] for name in ("threshold", "lr_rule") if name in rules}
    paid = rules.get("switch_time", 0.0) / stretch  # each place stands for so many steps
    found = schedule_advice(course, filled, throughput, candidates=known, switch_time=paid, c=c, **kept)
    return found.scaled(stretch)


def _noise(run: Run) -> _Reading | None:
    """Returns the last noise scale; "gated" or "undefined" where that is what the probe said last."""
    names = [name for name in ("noise_scale", "noise_trace", "noise_gated") if name in run]
    last = {name: int(steps[-1]) for name in names if len(steps := run.measured(name)[0])}
    if not last:
        return None
    gated = "noise_gated" in last and run.measured("noise_gated")[1][-1] > 0
    if gated and last["noise_gated"] >= max(last.values()):
        return _Reading(math.nan, 0.0, math.inf, "gated")
    if "noise_scale" not in last or last["noise_scale"] < last.get("noise_trace", 0) - STALE:
        return _Reading(math.nan, 0.0, math.inf, "undefined")
    scale, low, high = (
        float(run.measured(name)[1][-1]) if name in run else math.nan
        for name in ("noise_scale", "noise_low", "noise_high")
    )
    return _Reading(scale, low, high, "ok" if scale > 0 else "undefined")


def _recent(run: Run, name: str, last: int) -> float | None:
    if name not in run:
        return None
    steps, values = run.measured(name)
    if not len(steps) or last - int(steps[-1]) > STALE or not math.isfinite(values[-1]):
        return None
    return float(values[-1])


def _powers(current: int) -> list[int]:
    return sorted({max(1, round(current * 2.0**power)) for power in range(-4, 7)})
