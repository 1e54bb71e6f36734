"""What struck first, the batch or the step: facts that `outlier_batch` and `update_burst` share.

A bad batch shows in the loss of its own step, before anything was updated by it. A bad step shows in the gradient, the
optimizer's state or the update while the loss of its batch is usual, and in the loss from the next step on. What grows
over many steps is neither.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np

from foreshock.detect.second_moment import betas
from foreshock.detect.series import near
from foreshock.diagnose.onset import BEYOND, PART, RAISED, Onset, onset, tensors
from foreshock.diagnose.usual import LARGEST, OUT, Reading
from foreshock.diagnose.wording import count
from foreshock.run.event import Event
from foreshock.run.run import Run

STEPPED = ("update_in_lr", "update_norm", "grad_norm")  # what tells how far a step went; the first that was recorded
LEAPT = ("grad_norm", "update_in_lr", "update_norm", "effective_step")
AT_CLIP, PINNED = 1e-3, 0.05  # how near to the largest norm is at it, and share of the records there that shows a clip
SINCE = 3  # records that a leap must exceed all of
LEAP, FACTOR = 4.0, 0.4  # by so many deviations, and on the scale of the logarithm: 1.5 times,
AT_ONE_GO = 0.5  # and this part of the way from the usual: what grows from step to step is left behind
SET = ("lr", "loss_scale", "micro_batches", "batch_size")  # what somebody sets, and a larger step follows from
STEADY = 0.9  # share of the free decay that second moments cannot fall below: they fall by beta2 at the most
OPPOSED, SELDOM = -0.5, 0.05  # cosine of successive gradients below which they alternate; quantile of those before
MANY = 4  # of the last, whose cosines were below all that is usual
BUILT_UP, PERHAPS = 4.0, 2.0  # log-odds of a build-up
CLIMB = 12  # records before the rise in which a build-up is looked for
GROWN = 1.5  # times as far out as some records earlier
HABIT = 8  # records before the rise in which the update is looked at


@dataclass(frozen=True, slots=True)
class Leap:
    """A step at which gradient, state or update left its range at one go.

    Attributes:
        step: which one.
        readings: what leapt, the furthest first.
        loss: the loss of its own batch; None where it was not recorded.
        off: how far that was beyond the losses just before, in deviations: above all of them, or below (negative); 0
            where it was among them, or in its range.
        lost: growth of the second moment, where it is below what beta2 allows: somebody has written to it.
    """

    step: int
    readings: tuple[Reading, ...]
    loss: Reading | None
    off: float
    lost: float | None


@dataclass(frozen=True, slots=True)
class Strike:
    """What struck first.

    Attributes:
        order: the order in which signals left their range.
        loss: where the loss rose; None where it has not.
        share: part of the rise up to the peak that came in that one record, 0 to 1, on the scale of the noise.
        gradient: what was unusual about the gradients of that batch and of those after it whose losses were high (3
            at most), one reading for each, the furthest first, be it in range.
        before: the update furthest above its range in the records before; None where none was recorded.
        leap: the largest leap of gradient or update before the rise (before the peak, where the loss has not risen).
        own: the same at the rise itself.
        climbing: records before the rise (before the leap, if there is one) in which the gradient had come a tenth of
            the way already.
        growing: whether it was out of its range in the last of them, and had been far closer a few records earlier.
        opposed: gradients up to the rise that pointed against each other, beyond what they often do.
        unseen: steps between the rise and the record before it, of which nothing is known.
        back: records from the rise until the loss was back in its range; None where it has not come back.
    """

    order: Onset
    loss: Reading | None
    share: float
    gradient: tuple[Reading, ...]
    before: Reading | None
    leap: Leap | None
    own: Leap | None
    climbing: int
    growing: bool
    opposed: int
    unseen: int
    back: int | None

    @property
    def built(self) -> tuple[float, str]:
        """How much, in log-odds, speaks for a build-up over many steps, and what it was; (0, "") where none was."""
        sure = (self.growing and self.climbing >= 2) or self.opposed >= 3
        if not sure and self.climbing <= 3 and self.opposed < 2:
            return 0.0, ""
        climbed = f"gradients were above their range for {count(self.climbing, 'record')}" if self.climbing else ""
        opposed = f"{count(self.opposed, 'gradient')} pointed against the one before" if self.opposed else ""
        said = f"Before, {' and '.join(filter(None, (climbed, opposed)))}: it built up from step to step."
        return (BUILT_UP if sure else PERHAPS), said


_FOUND: WeakKeyDictionary[Run, tuple[Event, Strike | None]] = WeakKeyDictionary()  # both causes ask


def strike(run: Run, event: Event) -> Strike | None:
    """Returns what struck first; None where nothing tells what was usual, or neither loss nor steps were recorded.

    Args:
        run: the run, complete or so far.
        event: of any kind.
    """
    run = near(run, event)
    known = _FOUND.get(run)
    if known is None or known[0] != event:
        known = _FOUND[run] = (event, _strike(run, event))
    return known[1]


def changed(order: Onset, step: int) -> tuple[Reading, ...]:
    """Returns what somebody had set otherwise at a step or shortly before, in such a way that steps become larger.

    Args:
        order: of the event.
        step: at which gradient or update were out of range, or the loss.
    """
    first = order.previous(step, HABIT)
    found = []
    for name in SET:
        if name in order.tracks:
            sign = -1 if name == "batch_size" else 1
            since = order.looked[0] if first is None else max(first, order.looked[0])
            found.append(order.tracks[name].first_out(since, step, sign=sign))
    return tuple(each for each in found if each is not None)


def _strike(run: Run, event: Event) -> Strike | None:
    order = onset(run, event)
    if order is None or not ("loss" in order.tracks or any(name in order.tracks for name in STEPPED)):
        return None
    first, last = order.looked
    rise = order.rise
    loss = None if rise is None else order.at("loss", rise)
    if rise is None:
        leap = _leap(run, order, first, last)
        return Strike(order, None, 0.0, (), None, leap, None, 0, False, 0, 0, None)
    previous = order.previous(rise)
    until = first if previous is None else previous
    leap = _leap(run, order, first, until)
    return Strike(
        order, loss, _share(order, rise, last), _gradient(run, event, rise), _before(order, rise),
        leap, _leap(run, order, rise, rise), *_climbing(order, rise, leap), _opposed(order, rise),
        0 if previous is None else rise - previous - 1, _back(order, rise),
    )  # fmt: skip


def _leap(run: Run, order: Onset, first: int, last: int) -> Leap | None:
    """Returns the leap with first <= step <= last that began it: the first of those that are half as large as any."""
    sizes: dict[int, float] = {}
    for track in (order.tracks[name] for name in LEAPT if name in order.tracks):
        z, values = np.clip(track.z, -BEYOND, BEYOND), np.clip(track.values, -LARGEST, LARGEST)
        for place in np.flatnonzero((track.steps >= first) & (track.steps <= last) & (z >= OUT)):
            recent = slice(max(0, place - SINCE), place)
            usual, value = min(float(track.usual[place]), LARGEST), float(values[place])
            size, least = float(z[place]) - max([0.0, *z[recent]]), max([usual, *values[recent]])
            if size < LEAP or usual <= 0:
                continue
            if math.log(value) - math.log(least) >= max(FACTOR, AT_ONE_GO * (math.log(value) - math.log(usual))):
                step = int(track.steps[place])
                sizes[step] = max(size, sizes.get(step, 0.0))
    if not sizes:
        return None
    at = _begun(order, min(step for step, size in sizes.items() if size >= 0.5 * max(sizes.values())), first)
    found = [order.at(name, at) for name in LEAPT]
    readings = sorted((each for each in found if each is not None and each.z >= RAISED), key=lambda each: -each.z)
    return Leap(at, tuple(readings), order.at("loss", at), _off(order, at), _lost(run, order, at))


def _begun(order: Onset, step: int, first: int) -> int:
    """Returns the step of the record before, where a leap had begun there already, not quite out of range."""
    before, earlier = order.previous(step), order.previous(step, 2)
    if before is None or earlier is None or before < first:
        return step
    for name in ("grad_norm", "update_in_lr", "update_norm"):
        now, then = order.at(name, before), order.at(name, earlier)
        if now is not None and then is not None and then.z < RAISED <= now.z - max(0.0, then.z):
            return before
    return step


def _off(order: Onset, step: int) -> float:
    """Returns how far the loss of a step was beyond those just before, and out of its range."""
    track = order.tracks.get("loss")
    now = None if track is None else track.at(step)
    if track is None or now is None:
        return 0.0
    if not math.isfinite(now.z):
        return math.inf
    place = int(np.searchsorted(track.steps, step))
    near = [0.0, *np.clip(track.z[max(0, place - SINCE) : place], -BEYOND, BEYOND)]
    beyond = max(0.0, now.z - max(near)) + min(0.0, now.z - min(near))
    return float(beyond) if abs(now.z) >= RAISED else 0.0


def _lost(run: Run, order: Onset, step: int) -> float | None:
    """Returns the growth of the second moment at a step where it is below what its own decay allows."""
    found = order.at("v_ratio", step)
    if found is None or not math.isfinite(found.value):
        return None
    beta2 = betas(run)[1]
    least = STEADY * (beta2 if beta2 is not None else min(1.0, found.usual))
    return found.value if found.value < least and found.z <= -OUT else None


def _share(order: Onset, rise: int, last: int) -> float:
    track = order.tracks["loss"]
    at, top = track.at(rise), track.most(rise, last)
    previous = order.previous(rise)
    earlier = None if previous is None else track.at(previous)
    if at is None or top is None:
        return 0.0
    below = max(0.0, earlier.z if earlier is not None else 0.0)
    if math.isinf(top.z):
        return 1.0 if math.isinf(at.z) else 0.0
    return max(0.0, min(1.0, (at.z - below) / max(top.z - below, 1e-9)))


def _gradient(run: Run, event: Event, step: int) -> tuple[Reading, ...]:
    """Returns what the gradients were like from a step on while losses were out of their range, for 3 records at most.

    Of each record what was furthest off, the furthest first: norm, size against v, norms of tensors, direction.
    """
    order = onset(run, event)
    assert order is not None
    track, found = order.tracks["loss"], list[Reading]()
    for place in range(int(np.searchsorted(track.steps, step)), len(track.steps))[:SINCE]:
        if track.z[place] < OUT and track.steps[place] != step:
            break
        found += _one_gradient(run, event, int(track.steps[place]))[:1]
    return tuple(sorted(found, key=lambda each: -abs(each.z)))


def _one_gradient(run: Run, event: Event, step: int) -> tuple[Reading, ...]:
    order = onset(run, event)
    assert order is not None
    found = [order.at(name, step) for name in ("grad_norm", "grad_sq_over_v_mean", "grad_cosine")]
    if _clipped(order, found[0]):
        found = found[1:]
    found += tensors(run, event, "grad_norm", step)[:1]
    return tuple(sorted((each for each in found if each is not None), key=lambda each: -abs(each.z)))


def _clipped(order: Onset, norm: Reading | None) -> bool:
    """Returns whether the norm of a gradient is what the loop clips it to, so that it says nothing."""
    if norm is None:
        return False
    track = order.tracks["grad_norm"]
    usual = track.values[track.steps <= order.base[1]]
    return norm.value <= (1 + AT_CLIP) * usual.max() and float((usual >= (1 - AT_CLIP) * norm.value).mean()) >= PINNED


def _before(order: Onset, rise: int) -> Reading | None:
    name = next((name for name in STEPPED if name in order.tracks), None)
    first, last = order.previous(rise, HABIT), order.previous(rise)
    if name is None or last is None:
        return None
    return order.tracks[name].most(order.looked[0] if first is None else first, last)


def _climbing(order: Onset, rise: int, leap: Leap | None) -> tuple[int, bool]:
    """Returns the records before the rise in which gradients were on their way, and whether they grew there.

    Updates that grow count as well, where it is by more: they wander, since momentum averages them.
    """
    struck = rise if leap is None else leap.step
    first, last = order.previous(rise, CLIMB), order.previous(struck)
    if first is None or last is None:
        return 0, False
    most, grew = 0, False
    gradient = "grad_norm" if "grad_norm" in order.tracks else "loss"
    step = next((name for name in STEPPED if name in order.tracks), gradient)
    for name in dict.fromkeys((gradient, step)):
        track = order.tracks.get(name)
        if track is None:
            continue
        top = track.at(struck)
        z = track.z[(track.steps >= first) & (track.steps <= last)]
        climbing = int((z >= max(RAISED, PART * min(top.z, BEYOND) if top is not None else 0.0)).sum())
        grows = False
        if len(z) >= CLIMB // 2 and climbing >= 2:
            earlier = max(RAISED, float(np.median(z[: len(z) // 2])))
            grows = bool(z[-1] >= max(OUT if name == gradient else 2 * OUT, GROWN * earlier))
        if name == gradient or grows:
            most, grew = max(most, climbing), grew or grows
    return most, grew


def turned(order: Onset, step: int) -> bool:
    """Returns whether the gradient of a step pointed against the one before, in a training where that is unusual."""
    found = order.at("grad_cosine", step)
    return found is not None and found.value <= _against(order) and found.z <= -RAISED


def _against(order: Onset) -> float:
    """Returns the cosine below which gradients pointed against each other as they seldom did before the event.

    With large rates they do so all the time: those of a small batch by its noise, others at the edge.
    """
    track = order.tracks["grad_cosine"]
    return min(OPPOSED, float(np.quantile(track.values[track.steps <= order.base[1]], SELDOM)))


def _opposed(order: Onset, rise: int) -> int:
    """Returns how many gradients in a row pointed against each other up to the rise, or how many of the last did."""
    track = order.tracks.get("grad_cosine")
    if track is None:
        return 0
    inside = (track.steps >= order.looked[0]) & (track.steps < rise)
    opposed = track.values[inside] <= _against(order)
    run = len(opposed) if opposed.all() else int(np.argmin(opposed[::-1]))
    far = int((track.z[inside][-CLIMB:] <= -OUT).sum())
    return max(run, far if far >= MANY else 0)


def _back(order: Onset, rise: int) -> int | None:
    track = order.tracks["loss"]
    after = track.z[track.steps > rise]
    for records, z in enumerate(after, 1):
        if z < RAISED:
            return records
    return None
