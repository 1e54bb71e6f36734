"""When to grow the batch to what over a whole training, from the course of its noise scale, and what that saves."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from foreshock.batch_size.gain import lr_factor
from foreshock.batch_size.goodput import C, Candidate, Throughput, goodput, size_of
from foreshock.batch_size.split import Split
from foreshock.batch_size.times import StepTimes
from foreshock.errors import UsageError

__all__ = ["BatchSchedule", "Phase", "schedule_advice"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of a training at one batch size.

    Attributes:
        start: share of the whole progress at which it begins, 0 to 1.
        batch: the candidate.
        lr_factor: learning rate at which it runs, in units of that of the first phase.
        steps, seconds: that it is expected to take.
        B_c: critical batch size as it begins.
        split: how the batch is made up, where splits were given.
        reason: in a sentence.
    """

    start: float
    batch: Candidate
    lr_factor: float
    steps: float
    seconds: float
    B_c: float
    reason: str
    split: Split | None = None


@dataclass(frozen=True, slots=True)
class BatchSchedule:
    """Advice for a whole training.

    Attributes:
        phases: in order.
        seconds: that the schedule takes, switches included.
        fixed: candidate -> seconds of the same progress at that size all along.
        best_fixed: the fastest of them.
    """

    phases: tuple[Phase, ...]
    seconds: float
    fixed: Mapping[Candidate, float]
    best_fixed: Candidate

    @property
    def saved(self) -> float:
        """Share of the time of the best fixed size that the schedule saves."""
        return 1.0 - self.seconds / self.fixed[self.best_fixed]

    def scaled(self, factor: float) -> BatchSchedule:
        """Returns the same of a training of so many times the steps."""
        phases = tuple(
            replace(phase, steps=factor * phase.steps, seconds=factor * phase.seconds) for phase in self.phases
        )
        fixed = {key: factor * value for key, value in self.fixed.items()}
        return BatchSchedule(phases, factor * self.seconds, MappingProxyType(fixed), self.best_fixed)

    @property
    def text(self) -> str:
        """The phases, a line each, and what they save."""
        lines = [f"{phase.start:5.0%}  {phase.reason}" for phase in self.phases]
        lines.append(f"{self.seconds:,.4g} s, {self.saved:.1%} less than {self.best_fixed} all along.")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON values."""
        return {
            "phases": [
                {"start": p.start, "batch": str(p.batch), "lr_factor": p.lr_factor, "steps": p.steps,
                 "seconds": p.seconds, "B_c": p.B_c, "reason": p.reason} for p in self.phases
            ],
            "seconds": self.seconds, "fixed": {str(key): value for key, value in self.fixed.items()},
            "best_fixed": str(self.best_fixed), "saved": self.saved,
        }  # fmt: skip


def schedule_advice(
    noise_scales: Sequence[float] | Floats,
    batches: Sequence[float] | Floats | float,
    throughput: Throughput,
    *,
    candidates: Iterable[Candidate] | None = None,
    threshold: float = 0.10,
    switch_time: float = 0.0,
    lr_rule: str = "sqrt",
    splits: Iterable[Split] = (),
    growing: bool = True,
    c: float = C,
) -> BatchSchedule:
    """Returns when a training like a recorded one should go to which batch size.

    A step at size B is B SE(B) = B/(1 + B/B_c) examples' worth of progress, so a recorded course of the noise scale
    over steps is one over progress, on which any other size takes 1/(T(B) SE(B)) seconds a unit. The batch goes from
    one size to another where that is better by `threshold` from there on and saves more than the switch takes.

    Args:
        noise_scales: (n,) gradient noise scale at evenly spaced steps of the recorded training; those that are not
            finite or not positive (undefined, gated) have the last one's.
        batches: (n,) batch size of those steps, or one for all.
        throughput: in any form that `goodput` takes.
        candidates: what to choose from; by default all in a table.
        threshold: least gain of a switch.
        switch_time: seconds that one takes.
        lr_rule: how the learning rate follows, see `gain.lr_factor`.
        splits: how each size is made up, see `split.feasible`; their batches are the candidates where none are given.
        growing: never go back to a smaller size: a noise scale that falls for a while is mostly noise.
        c: critical batch size over noise scale.

    Raises:
        UsageError: no noise scale is known, or nothing to choose from.

    Source: derived from McCandlish et al. 2018, arXiv 1812.06162, equation 2.11. Assumes that progress does not depend
    on the batch otherwise, the learning rate following it.

    >>> advice = schedule_advice([50.0] * 50 + [2000.0] * 50, 64, (1.0, 0.005), candidates=[64, 128, 256, 512, 1024])
    >>> [(phase.batch, round(phase.start, 2)) for phase in advice.phases], round(advice.saved, 2)
    ([(128, 0.0), (1024, 0.38)], 0.12)
    """
    made = {each.batch: each for each in splits}
    known: list[Candidate] = list(candidates) if candidates is not None else list(made)
    if not known and isinstance(throughput, Mapping):
        known = list(throughput)
    if not known and isinstance(throughput, StepTimes):
        known = list(throughput.seconds)
    if not known:
        raise UsageError("schedule_advice: give the candidates to choose from")
    critical = c * _filled(np.asarray(noise_scales, float))
    sizes = np.broadcast_to(np.asarray(batches, float), critical.shape)
    progress = sizes / (1.0 + sizes / critical)  # of each recorded step, in examples of full efficiency
    rates = {}
    for each in known:
        rate = goodput(throughput, math.inf, candidates=[each]).curve[each]
        rates[each] = rate / (1.0 + size_of(each) / critical)  # progress per second
    cost = {each: progress / rate for each, rate in rates.items()}  # seconds of each stretch
    left = {each: np.append(np.cumsum(seconds[::-1])[::-1], 0.0) for each, seconds in cost.items()}
    done = np.append(0.0, np.cumsum(progress)) / progress.sum()
    now = min(known, key=lambda each: cost[each][: max(1, len(critical) // 50)].sum())
    chosen: list[tuple[int, Candidate, float]] = [(0, now, 0.0)]
    for place in range(1, len(critical)):
        better = [
            each for each in known if each != now and (size_of(each) > size_of(now) or not growing)
            and rates[each][place] >= (1.0 + threshold) * rates[now][place]
            and left[now][place] - left[each][place] > switch_time
        ]  # fmt: skip
        if better:
            best = max(better, key=lambda each: rates[each][place])
            chosen.append((place, best, rates[best][place] / rates[now][place] - 1.0))
            now = best
    phases, seconds, lr = [], 0.0, 1.0
    for i, (place, each, gain) in enumerate(chosen):
        end = chosen[i + 1][0] if i + 1 < len(chosen) else len(critical)
        took = float(cost[each][place:end].sum())
        steps = float((progress[place:end] * (1.0 + size_of(each) / critical[place:end])).sum() / size_of(each))
        if i:
            scale = float(critical[place] / c)
            lr *= lr_factor(size_of(chosen[i - 1][1]), size_of(each), lr_rule, noise_scale=scale)
        phases.append(
            Phase(float(done[place]), each, lr, steps, took, float(critical[place]), _reason(each, gain, lr,
                  float(critical[place]), made.get(size_of(each))), made.get(size_of(each)))
        )  # fmt: skip
        seconds += took + (switch_time if i else 0.0)
    fixed = {each: float(value[0]) for each, value in left.items()}
    return BatchSchedule(tuple(phases), seconds, MappingProxyType(fixed), min(known, key=lambda each: fixed[each]))


def _filled(scales: Floats) -> Floats:
    """Returns noise scales in which each that is none has the last one's, and the first ones the first that is one."""
    there = np.flatnonzero(np.isfinite(scales) & (scales > 0))
    if not len(there):
        raise UsageError("schedule_advice: no noise scale is known; record one, or wait until it is defined")
    last = np.searchsorted(there, np.arange(len(scales)), side="right") - 1
    filled: Floats = scales[there[np.maximum(last, 0)]]
    return filled


def _reason(each: Candidate, gain: float, lr: float, critical: float, made: Split | None) -> str:
    said = f"Batch {each}"
    if made is not None and (made.accumulation > 1 or made.ranks > 1):
        said += f" ({made.ranks} x {made.micro_batch}, {made.accumulation} passes)"
    if not gain:
        return f"{said}, for a critical batch size of {critical:.3g}."
    return f"{said}, lr times {lr:.3g} of the first: the critical batch size is {critical:.3g}, {gain:.0%} gained."
