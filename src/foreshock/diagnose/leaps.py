"""What a loop changed about its steps just before an event: learning rates, batches, loss scale, settings.

Each leap has a score of its own, how likely one so large and so close makes an event: those of the learning rate as
they were chosen for planned rises, those of the rest by what they do to the step or to its noise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from foreshock.detect.planned import RATIO, RECORDS
from foreshock.detect.series import Series, series
from foreshock.diagnose.wording import number
from foreshock.run.run import Run

BEFORE, NOISE = 50, 100  # steps before the rise in which a leap counts, and a change of the noise
NEAR = 20  # steps within which it counts in full
LEAPT, FIVEFOLD = 0.5, 0.95  # scores of a step that got longer by 15 %, and by five times or more
LATE, HARMLESS = 0.75, 0.4  # factors where it is further away, and where earlier ones as large did nothing
SMOOTH, ABRUPT = 0.6, 2.5  # factor where it climbed by and by; times the third largest change around, that is a leap
SMALLER, SIXTEENFOLD = 0.35, 0.92  # scores of a batch half as large, and one of a sixteenth
HALF, SIXTEEN = 2.0, 16.0
PASSED = 0.5  # share of a leap of the loss scale (on the logarithmic scale) that must be in the gradient
UNSEEN = 0.5  # score factor where the gradient was not recorded
UNWARMED = 0.9  # score of a declared switch of the batch that reset the optimizer's moments
DECLARED = 0.5  # and of one that only changed them
SETTING = 0.55  # score of another change of the optimizer's settings
OFTEN = 2  # earlier times that a batch was as small: the last of an epoch


@dataclass(frozen=True, slots=True)
class Leap:
    """One change.

    Attributes:
        what: "lr", "lr/group1", "batch_size", "micro_batches", "loss_scale", "batch_switched" or the name of a setting.
        step: first step with it.
        factor: by which a step got longer, or a batch smaller; NaN where that is not known.
        score: 0 to 1, how likely it made the event.
        told: in a sentence.
    """

    what: str
    step: int
    factor: float
    score: float
    told: str


def leaps(run: Run, rise: int) -> list[Leap]:
    """Returns the changes just before a rise of the loss, the likeliest first.

    Args:
        run: the run, or the part of it around the event.
        rise: step at which the loss rose.
    """
    found = [
        *_rates(run, rise), *_scale(run, rise), *_sizes(run, rise), *_switches(run, rise), *_settings(run, rise)
    ]  # fmt: skip
    return sorted(found, key=lambda leap: -leap.score)


def rates(run: Run) -> list[str]:
    """Returns the columns of learning rates: those of the groups where they differ."""
    return [f"lr/{group}" for group in run.tensors("lr")] or (["lr"] if "lr" in run else [])


def _since(run: Run, name: str) -> Series:
    """Returns a group's learning rate; before there were groups, that of all parameters."""
    rate, all_of_them = series(run, name), series(run, "lr")
    if not len(rate) or not len(all_of_them) or all_of_them.steps[0] >= rate.steps[0]:
        return rate
    before = all_of_them.within(0, int(rate.steps[0]) - 1)
    return Series(np.append(before.steps, rate.steps), np.append(before.values, rate.values))


def longer(factor: float) -> float:
    """Returns the score of a step that got longer by this factor.

    >>> [round(longer(factor), 2) for factor in (1.15, 2.0, 5.0, 100.0)]
    [0.5, 0.67, 0.95, 0.95]
    """
    return LEAPT + (FIVEFOLD - LEAPT) * min(1.0, math.log(factor / RATIO) / math.log(5 / RATIO))


def _rates(run: Run, rise: int) -> Iterator[Leap]:
    columns = rates(run)
    for name in columns:
        rate = _since(run, name)
        factor, at, last = _grown(rate, rise - BEFORE, rise)
        if factor < RATIO:
            continue
        score = longer(factor) * (1.0 if rise - at <= NEAR else LATE) * (1.0 if _abrupt(rate, at) else SMOOTH)
        before, _, _ = _grown(rate, int(rate.steps[0]) + RECORDS, rise - 2 * BEFORE)
        harmless = before >= 0.8 * factor and not _higher(rate, at, rise)
        whose = f" of parameter {name.removeprefix('lr/')}" if len(columns) > 1 else ""
        within = "at once" if last == 1 else f"within {last} records"
        said = f"The learning rate{whose} went up {factor:.3g}-fold {within}, to {number(rate.at(at))} at step {at:,}"
        said += "; it had gone up as much before, to as high a rate, and nothing came of it." if harmless else "."
        yield Leap(name, at, factor, score * (HARMLESS if harmless else 1.0), said)


def _grown(rate: Series, first: int, last: int) -> tuple[float, int, int]:
    """Returns the largest growth within few records, the step it reached, and within how many records."""
    low, high = np.searchsorted(rate.steps, [first, last + 1])
    best, at, records = 1.0, last, 1
    for place in range(max(int(low), 1), int(high)):
        early = int(np.searchsorted(rate.steps, rate.steps[place] - RECORDS))  # of rare records, the last one
        part = rate.values[min(max(early, place - RECORDS), place - 1) : place]
        least = float(part.min())
        if least > 0 and rate.values[place] / least > best:
            best, at = float(rate.values[place]) / least, int(rate.steps[place])
            records = len(part) - int(np.flatnonzero(part <= least * (1 + 1e-9))[-1])
    return best, at, records


def _abrupt(rate: Series, at: int) -> bool:
    """Returns whether a learning rate leapt, and did not climb by and by as in a warm-up."""
    place = int(np.searchsorted(rate.steps, at))
    around = rate.values[max(0, place - RECORDS) : place + RECORDS + 1]
    with np.errstate(all="ignore"):
        moves = np.abs(np.diff(np.log(around)))
    moves = np.sort(moves[np.isfinite(moves)])[::-1]
    return len(moves) < 3 or float(moves[0]) > ABRUPT * float(moves[2])


def _higher(rate: Series, at: int, rise: int) -> bool:
    """Returns whether the learning rate had never been as high before."""
    before = rate.within(0, rise - 2 * BEFORE).values
    return not len(before) or rate.at(at) > 1.05 * float(before.max())


def _scale(run: Run, rise: int) -> Iterator[Leap]:
    """Yields a leap of what the losses were multiplied with, where the gradient took it on."""
    scale = series(run, "loss_scale")
    changed = _changed(scale, rise - BEFORE, rise)
    if changed is None or not changed[1] > 0:
        return
    at, was, now = changed
    factor = now / was
    if factor < RATIO:
        return
    gradient, micro = series(run, "grad_norm"), series(run, "micro_batches")
    before, after = gradient.within(at - RECORDS, at - 1).values, gradient.within(at, at + 2).values
    score, seen = longer(factor), "the gradients were not recorded"
    if len(before) and len(after) and np.median(before) > 0:
        grown = float(after.max() / np.median(before))
        if grown < factor**PASSED:
            return  # it was taken out again, as a gradient scaler does
        seen = f"the gradient became {grown:.3g} times as large"
    else:
        score *= UNSEEN
    summed = micro.at(at) > 1.5 * micro.at(at - 1) and 0.5 < (micro.at(at) / micro.at(at - 1)) / factor < 2
    by = f"{micro.at(at):.0f} micro-batches were added up and not averaged" if summed else (
        f"the loss was multiplied with {number(now)} in place of {number(was)} before `backward`")  # fmt: skip
    score *= 1.0 if rise - at <= NEAR else LATE
    yield Leap("micro_batches" if summed else "loss_scale", at, factor, score, f"From step {at:,} on {by}; {seen}.")


def _sizes(run: Run, rise: int) -> Iterator[Leap]:
    """Yields batches that became smaller: their gradients are noisier."""
    for name, what in (("batch_size", "examples"), ("micro_batches", "micro-batches")):
        sizes = series(run, name)
        changed = _changed(sizes, rise - NOISE, rise)
        if changed is None or not changed[2] > 0:
            continue
        at, was, now = changed
        factor = was / now
        if factor < HALF or (name == "micro_batches" and "batch_size" in run):
            continue
        score = SMALLER + (SIXTEENFOLD - SMALLER) * min(1.0, math.log(factor / HALF) / math.log(SIXTEEN / HALF))
        said = f"From step {at:,} on a step had {now:,.0f} {what} in place of {was:,.0f}"
        noise = _noisier(series(run, "grad_norm"), at, rise)
        said += f"; the gradient became {noise:.2g} times as large by its noise" if noise > RATIO else ""
        earlier = sizes.within(0, at - 1).values
        if np.sum(earlier <= 1.1 * now) >= OFTEN:
            score *= HARMLESS
            said += "; it had had as few before, and nothing came of it"
        yield Leap(name, at, factor, score, said + ".")


def _switches(run: Run, rise: int) -> Iterator[Leap]:
    """Yields declared switches of the batch or the strategy: what they did to the steps."""
    for note in run.notes:
        at = int(note.get("step", -1))
        if note.get("kind") != "batch_switched" or not rise - NOISE <= at <= rise:
            continue
        factor, moments = float(note.get("lr_factor", 1.0)), str(note.get("moments", "keep"))
        old, new = note.get("old"), note.get("new")
        score = {"reset": UNWARMED, "rescale": DECLARED}.get(moments, 0.1)
        score = max(score, longer(factor) if factor >= RATIO else 0.0)
        said = f"The batch was switched from {old} to {new} at step {at:,}, with {factor:.3g} times the learning rate"
        said += {"reset": " and the optimizer's moments reset", "rescale": " and its second moments rescaled"}.get(
            moments, ""
        )
        yield Leap("batch_switched", at, factor, score * (1.0 if rise - at <= NEAR else LATE), said + ".")


def _changed(values: Series, first: int, last: int) -> tuple[int, float, float] | None:
    """Returns the step of the largest change between two records, and the values before and from then on."""
    part = values.within(first, last)
    place = int(np.searchsorted(values.steps, first))
    level = np.concatenate((values.values[max(0, place - 1) : place], part.values))
    steps = np.concatenate((values.steps[max(0, place - 1) : place], part.steps))
    if len(level) < 2 or level.min() <= 0:
        return None
    moves = np.abs(np.diff(np.log(level)))
    at = int(np.argmax(moves))
    return (int(steps[at + 1]), float(level[at]), float(level[at + 1])) if moves[at] > 0 else None


def _noisier(gradient: Series, at: int, rise: int) -> float:
    before, after = gradient.within(at - NOISE, at - 1).values, gradient.within(at, max(at, rise - 1)).values
    return float(np.median(after) / np.median(before)) if len(before) and len(after) and np.median(before) > 0 else 0.0


def _settings(run: Run, rise: int) -> Iterator[Leap]:
    """Yields settings of the optimizer that were changed: momentum by how much longer it makes a step."""
    for note in run.notes:
        at = int(note.get("step", -1))
        if note.get("kind") != "settings_changed" or not rise - BEFORE <= at <= rise:
            continue
        name, was, now = str(note.get("setting")), note.get("was"), note.get("now")
        factor, score = _stronger(name, was, now), SETTING
        if math.isfinite(factor):
            score = longer(factor) if factor >= RATIO else 0.1
        said = f"`{name}` of parameter group {note.get('group')} went from {was} to {now} at step {at:,}."
        yield Leap(name, at, factor, score * (1.0 if rise - at <= NEAR else LATE), said)


def _stronger(name: str, was: object, now: object) -> float:
    """Returns by how much a setting makes a step longer; NaN where that is not known.

    >>> round(_stronger("momentum", 0.9, 0.99), 3), _stronger("eps", 1e-8, 1e-8)
    (10.0, nan)
    """
    if name == "momentum" and isinstance(was, (int, float)) and isinstance(now, (int, float)) and was < 1 and now < 1:
        return (1 - was) / (1 - now)
    return math.nan
