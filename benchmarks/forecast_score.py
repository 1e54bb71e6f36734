"""What counts as a spike, whether curvature made it, and how alarms are held against spikes.

The label (the calm rule that the published counts of Bai et al. 2025's runs are reproduced with): a loss is calm when
the last 25 lie within a factor of 1.5; the baseline is the least since calm began; a spike is triggered by the first
loss at 1.5 times the baseline or more, or one that is not finite; it ends when all is calm again.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

CALM, FACTOR = 25, 1.5


@dataclass(frozen=True, slots=True)
class Spike:
    """A rise of the loss out of calm.

    Attributes:
        trigger: first step at which the loss has risen by `FACTOR`.
        peak: step of the highest loss.
        end: last step before calm returned, or of the run.
        baseline: least loss since calm began.
        height: highest loss over the baseline.
        cause: "curvature", "noise", or "mixed".
    """

    trigger: int
    peak: int
    end: int
    baseline: float
    height: float
    cause: str = "curvature"


def spikes(losses: Sequence[float], *, factor: float = FACTOR, calm: int = CALM) -> list[Spike]:
    """Returns the spikes of a run's losses, one loss a step from step 0.

    >>> [(each.trigger, each.peak, each.height) for each in spikes([2.0] * 30 + [3.0, 4.0] + [2.0] * 40)]
    [(30, 31, 2.0)]
    """
    found: list[Spike] = []
    recent: deque[float] = deque(maxlen=calm)
    base = math.nan  # NaN: not calm
    open_at: int | None = None
    for step, loss in enumerate(losses):
        if open_at is None and not math.isnan(base):
            if not loss < factor * base:
                open_at, base_then = step, base
                recent.clear()
                base = math.nan
            else:
                base = min(base, loss)
        recent.append(loss)
        if math.isnan(base) and len(recent) == calm and max(recent) <= FACTOR * min(recent):
            if open_at is not None:
                found.append(_closed(losses, open_at, step - calm, base_then))
                open_at = None
            base = min(recent)
    if open_at is not None:
        found.append(_closed(losses, open_at, len(losses) - 1, base_then))
    return found


def _closed(losses: Sequence[float], trigger: int, end: int, base: float) -> Spike:
    end = max(trigger, end)
    peak = max(range(trigger, end + 1), key=lambda step: losses[step] if math.isfinite(losses[step]) else math.inf)
    return Spike(trigger, peak, end, base, losses[peak] / base)


HOLDS = 50  # steps for which an alarm stays good after its last reading above 1: the loss peaks just after it
NEAR = 25  # steps between two alarms of a rule without intervals that are one episode
UNDECIDED = 100  # last steps of a run, in which an alarm that is still good when it ends may yet come true


@dataclass(frozen=True, slots=True)
class Alarm:
    """An alarm that was raised at a step and holds until another."""

    raised: int
    end: float


def episodes(steps: Sequence[int]) -> list[Alarm]:
    """Returns single alarms gathered into episodes.

    >>> episodes([5, 6, 20, 90])
    [Alarm(raised=5, end=20), Alarm(raised=90, end=90)]
    """
    found: list[Alarm] = []
    for step in steps:
        if found and step - found[-1].end <= NEAR:
            found[-1] = Alarm(found[-1].raised, step)
        else:
            found.append(Alarm(step, step))
    return found


def merged(alarms: Sequence[Alarm]) -> list[Alarm]:
    """Returns alarms of several kinds, those that overlap as one.

    >>> merged([Alarm(5, 20), Alarm(9, 30), Alarm(40, 50)])
    [Alarm(raised=5, end=30), Alarm(raised=40, end=50)]
    """
    found: list[Alarm] = []
    for alarm in sorted(alarms, key=lambda each: each.raised):
        if found and alarm.raised <= found[-1].end:
            found[-1] = Alarm(found[-1].raised, max(found[-1].end, alarm.end))
        else:
            found.append(alarm)
    return found


@dataclass(frozen=True, slots=True)
class Score:
    """Alarms of one run held against its spikes.

    Attributes:
        leads: for each spike by curvature that was foretold, steps from the alarm to the trigger.
        missed: spikes by curvature without an alarm before their triggers.
        at_peak: how many spikes by curvature had an alarm no later than their peak.
        false: alarms without a spike; with each by what factor the loss rose all the same, from its least since.
        ringing: alarms accepted because the loss, still ringing, rose again by `FACTOR`.
        late: alarms raised between a spike's trigger and its end, neither foretelling nor false.
        undecided: alarms without a spike that were still good when the run ended, raised in its last 100 steps.
        on_noise: spikes by noise during which an alarm was raised that foretold no spike by curvature.
    """

    leads: Sequence[int]
    missed: Sequence[Spike]
    at_peak: int
    false: Sequence[tuple[Alarm, float]]
    ringing: int
    late: int
    undecided: int
    on_noise: Sequence[Spike]


def held_against(
    alarms: Sequence[Alarm], found: Sequence[Spike], losses: Sequence[float], *, peer: bool = False
) -> Score:
    """Returns the score of a run's alarms.

    An alarm foretells a spike whose trigger comes after it was raised and no later than `HOLDS` steps after its end. An
    alarm that foretells none may have been raised while a spike rang, when no calm baseline is left to rise from: it
    counts as right if the loss then rose by `FACTOR` from its least since the alarm, else as late. A peer, which looks
    at losses and gradients, is also right about noise; a forecast from curvature is not.
    """
    curved = [spike for spike in found if spike.cause == "curvature"]
    targets = [spike for spike in found if peer or spike.cause != "noise"]

    def foretells(alarm: Alarm, spike: Spike) -> bool:
        return alarm.raised < spike.trigger <= alarm.end + HOLDS

    leads, missed, at_peak = [], [], 0
    for spike in curved:
        before = [alarm.raised for alarm in alarms if foretells(alarm, spike)]
        if before:
            leads.append(spike.trigger - min(before))
        else:
            missed.append(spike)
        at_peak += any(alarm.raised <= spike.peak and spike.trigger <= alarm.end + HOLDS for alarm in alarms)
    false: list[tuple[Alarm, float]] = []
    ringing, late, undecided, on_noise = 0, 0, 0, {}
    for alarm in alarms:
        if any(foretells(alarm, spike) for spike in targets):
            continue
        inside = [spike for spike in found if spike.trigger <= alarm.raised <= spike.end]
        noise = [each for each in found if each.cause == "noise" and each.trigger - HOLDS <= alarm.raised <= each.end]
        on_noise |= {spike.trigger: spike for spike in noise}
        if inside and inside[0] in targets:
            rises = rise(losses, alarm.raised, min(inside[0].end, alarm.end + HOLDS)) >= FACTOR
            ringing, late = ringing + rises, late + (not rises)
        elif not noise and alarm.raised >= len(losses) - UNDECIDED and alarm.end + HOLDS >= len(losses):
            undecided += 1
        else:
            false.append((alarm, rise(losses, alarm.raised, alarm.end + HOLDS)))
    return Score(leads, missed, at_peak, false, ringing, late, undecided, list(on_noise.values()))


def rise(losses: Sequence[float], first: int, last: float) -> float:
    """Returns by what factor a loss rose from its least since a step, at most; infinite where it is not finite.

    >>> rise([9.0, 4.0, 2.0, 3.0, 1.0], 1, 4)
    1.5
    """
    least, most = math.inf, 1.0
    for loss in losses[first : int(min(last, len(losses))) + 1]:
        if not math.isfinite(loss):
            return math.inf
        least = min(least, loss)
        most = max(most, loss / least)
    return most
