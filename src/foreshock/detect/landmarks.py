"""The steps at which a curvature spike turns a corner, found with hindsight in a recorded run.

chi passes 1, the gradient turns into the unstable direction, the loss turns, the second moment refills, chi falls back,
the loss peaks. Readings of chi may be rare (each hundredth step when calm), so what is found is a reading, and
`below` says how much earlier the crossing may have been.

Source: Bai et al. 2025, arXiv 2506.04805 (five stages); Li, Xu and Zhang 2023, arXiv 2305.12133 (gradient descent).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from foreshock.detect import second_moment
from foreshock.detect.series import Floats, Series, readings, series
from foreshock.run.event import Event
from foreshock.run.run import Run

RISE = 1.5  # times the loss at its turn: from there on a rise is a spike (Bai et al.'s label, with calm before it)
LEAST_RISE = 0.1  # of ln loss: less is no rise
NOISES = 5.0  # and so many times what the loss usually changes from record to record
HALF = 0.5  # an approach begins where chi was last below it: who drove the last doubling is what is asked
BRIDGE, DIP = 2, 0.97  # so many readings in a row, none below this, do not break a run above 1: solvers are 2 % exact
AFTER = 5  # steps after chi fell below 1 in which the loss peaks (measured: 1 or 2)
JUST_BEFORE = 3  # steps before the turn of the loss at which chi is above 1 if curvature turns it
STALE, HISTORY = 20, 300  # steps after which a reading says nothing more; and before, that tell how fast chi changes
LEAST_RATE = 5e-3  # of ln chi per step, where readings are few
SUSTAINED, RARE = 3, 10  # readings above 1 that are no accident; steps between readings from which they are rare
SWINGS = 4  # readings of which half below 1 are the end of a run: those of an alternating mode swing from step to step
ENVELOPE = 4  # records to either side whose largest loss counts: an unstable mode flips its sign at every step
ALONG_LATE = 20  # steps after the turn until which the curvature along the gradient may pass 1 (measured: nearly all 3)
CALM, EVEN = 25, 1.5  # so many records within this factor are calm (Bai et al.'s label)
RING = 200  # steps after the peak, or twice those of the rise, in which that is looked for
AGAIN = 20  # steps after the fall of chi from which its next rise above 1 is another event


@dataclass(frozen=True, slots=True)
class Landmarks:
    """Steps of one event; None where it did not happen (yet), or the signal that would tell is missing.

    Attributes:
        begin: where the approach begins: at the lowest chi since the event before, or where chi was last below 0.5.
        decoupled: from here to the crossing the second moment of the tensor at the edge decays freely.
        crossing: first reading of the unbroken run of chi >= 1.
        below: the last reading before it.
        along: first reading of the run of chi_gradient >= 1 that leads into the rise.
        turn: the loss is lowest.
        refill: first step at which the second moment grows again.
        risen: first step at which the loss is 1.5 times as high as at its turn.
        down: first reading of chi below 1 after the turn.
        peak: the loss is highest.
        end: the ring-down is over.
        last: last step known of the event; that of the run while it is open.
        tensor: the one with the largest share of the unstable direction.
        adam: whether there is a second moment.
        missing: signals that would be needed to tell more.
    """

    begin: int
    last: int
    adam: bool
    decoupled: int | None = None
    crossing: int | None = None
    below: int | None = None
    along: int | None = None
    turn: int | None = None
    refill: int | None = None
    risen: int | None = None
    down: int | None = None
    peak: int | None = None
    end: int | None = None
    tensor: str | None = None
    missing: tuple[str, ...] = ()


def landmarks(run: Run, event: Event) -> Landmarks:
    """Returns where the corners of an event are.

    Args:
        run: the run, complete or so far.
        event: of kind watch, imminent, transient or spike.
    """
    chi, loss = readings(run), series(run, "loss")
    first, last = (int(run.steps[0]), int(run.steps[-1])) if len(run) else (0, 0)
    gap = _gap(chi, event)
    anchor = _anchor(chi, event, gap)
    crossing = below = down = None
    if anchor is not None:
        place, below_place = _back(chi.values, anchor)
        crossing = int(chi.steps[place])
        below = int(chi.steps[below_place]) if below_place >= 0 else None
    reach = _reach(chi, anchor, event, gap, last)
    low, previous = event.onset - max(50, 3 * (event.peak - event.onset)), _previous(chi, crossing)
    if crossing is not None:  # what the loss did while chi was above 1 before is another event's
        low = max(crossing - ALONG_LATE, crossing - ALONG_LATE if previous is None else previous + 1)
    if event.signal == "chi_gradient":
        low = max(low, event.onset - ALONG_LATE)
    turn, peak = _rise(loss, event, max(first, low), reach)
    if anchor is not None:
        down = _down(chi, anchor, turn)
    settled = peak is not None and (down is not None or last - peak >= 2)
    peak = peak if settled else None
    along = None if turn is None and down is not None else _along(series(run, "chi_gradient"), crossing, turn, peak)
    begin = _begin(chi, crossing, first)
    tensor = second_moment.at_the_edge(run, crossing if crossing is not None else turn, peak or turn)
    freely, refill = None, None
    adam = second_moment.has_second_moment(run)
    to = crossing if crossing is not None else turn
    if to is not None and adam:
        freely = second_moment.free_since(run, tensor, to, floor=first if previous is None else previous)
    if turn is not None and adam:
        refill = second_moment.refill(run, (turn, reach), to)
    if crossing is None and turn is not None:
        begin = turn if freely is None else freely
    risen = None if turn is None else _risen(loss, turn, reach)
    end = None if peak is None or turn is None else _end(loss, chi, (turn, peak), down)
    return Landmarks(
        begin, last if end is None else end, adam, freely, crossing, below, along, turn, refill, risen, down, peak, end,
        tensor, _missing(run, adam, crossing, (turn, peak), chi),
    )


def _gap(chi: Series, event: Event) -> int:
    """Returns how far apart readings of chi are around an event."""
    near = chi.within(event.onset - 300, event.peak + 100)
    return int(np.median(np.diff(near.steps))) if len(near) > 2 else 1


def _anchor(chi: Series, event: Event, gap: int) -> int | None:
    """Returns the place of a reading above 1 that belongs to the event; None where there is none."""
    if event.signal == "chi":
        place = int(np.searchsorted(chi.steps, event.peak))
        known = place < len(chi) and int(chi.steps[place]) == event.peak and chi.values[place] >= 1
        return place if known else None
    slack = max(10, gap)
    inside = np.flatnonzero((chi.steps >= event.onset - slack) & (chi.steps <= max(event.peak, event.onset + 1)))
    runs = np.split(inside, np.flatnonzero(np.diff(chi.values[inside] >= 1)) + 1) if len(inside) else []
    above = [int(each[-1]) for each in runs if chi.values[each[0]] >= 1]
    if event.signal == "chi_gradient":  # which is above 1 in the same run, not in the one before
        above = [place for place in above if chi.steps[place] >= event.onset] or above
    lengths = {place: place - _back(chi.values, place)[0] + 1 for place in above}
    # a batch that is broken has a chi of its own: it takes three readings, or a rare one before the loss stirred
    early = [place for place in above if gap >= RARE and chi.steps[_back(chi.values, place)[0]] < event.onset]
    above = [place for place in above if lengths[place] >= SUSTAINED or place in early]
    # the ring-down may take chi above 1 once more, for a moment
    return max(above, key=lambda place: lengths[place]) if above else None


def _back(values: Floats, anchor: int) -> tuple[int, int]:
    """Returns the place where the unbroken run above 1 begins, and that of the reading before it (-1 for none)."""
    start = place = anchor
    while place > 0:
        place -= 1
        if values[place] >= 1:
            start = place
        elif values[place] < DIP or start - place > BRIDGE:
            break
    return start, start - 1


def _down(chi: Series, anchor: int, turn: int | None) -> int | None:
    """Returns the step of the first reading below 1 after the turn that is not one of noise: half of the next 4 are."""
    place = anchor if turn is None else max(anchor, int(np.searchsorted(chi.steps, turn)))
    if turn is not None:  # the anchor may lie far beyond the turn, where the run was long over
        above = np.flatnonzero((chi.steps >= turn) & (chi.values >= 1))
        place = int(above[0]) if len(above) and int(above[0]) <= anchor else anchor
    for at in range(place, len(chi)):
        if chi.values[at] < 1 and np.mean(chi.values[at : at + SWINGS] < 1) >= 0.5:
            return int(chi.steps[at])
    return None


def _reach(chi: Series, anchor: int | None, event: Event, gap: int, last: int) -> int:
    """Returns the last step at which the peak of the loss may be."""
    if event.signal == "loss":
        return last if event.end is None else min(last, max(event.end, event.peak))
    if event.end is None:
        return last
    past = chi.steps[chi.steps > event.end]
    until = event.end if len(past) == 0 else min(int(past[0]), event.end + 3 * gap)
    over = None if anchor is None else _down(chi, anchor, None)  # a watch may live through several excursions
    return min(last, max(until if over is None else min(until, over), event.peak) + AFTER)


def _rise(loss: Series, event: Event, low: int, high: int) -> tuple[int | None, int | None]:
    """Returns the steps of the lowest loss before its largest rise, and of the highest after it."""
    part = loss.within(low, high)
    if len(part) < 2:
        return None, None
    level = _levels(part.values)
    upper = _envelope(level)
    if event.signal == "loss":
        inside = (part.steps >= event.onset) & (part.steps <= high)
        if not inside.any():
            return None, None
        top = int(np.flatnonzero(inside)[np.argmax(level[inside])])
    else:
        climb = upper - np.minimum.accumulate(upper)
        top = int(np.argmax(climb))
        top = max(0, top - ENVELOPE) + int(np.argmax(level[max(0, top - ENVELOPE) : top + ENVELOPE + 1]))
    if top == 0:
        return None, None
    base = int(np.argmin(upper[: top + 1])) if event.signal == "loss" else int(np.argmin(upper[: max(1, top)]))
    near = slice(max(0, base - ENVELOPE), min(top, base + ENVELOPE) + 1)
    turn = near.start + len(level[near]) - 1 - int(np.argmin(level[near][::-1]))
    calm = _levels(loss.within(low - 100, int(part.steps[turn])).values)
    usual = float(np.median(np.abs(np.diff(_envelope(calm))))) if len(calm) > 4 else 0.0
    if event.signal != "loss" and level[top] - upper[base] < max(LEAST_RISE, NOISES * usual):
        return None, None
    return int(part.steps[turn]), int(part.steps[top])


def _levels(values: Floats) -> Floats:
    """Returns ln(loss), or the loss itself where it is not always positive."""
    return np.log(values) if len(values) and values.min() > 0 else values


def _envelope(values: Floats) -> Floats:
    """Returns the largest of the values around each."""
    if len(values) == 0:
        return values
    padded = np.pad(values, ENVELOPE, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * ENVELOPE + 1)
    result: Floats = windows.max(axis=1)
    return result


def _along(along: Series, crossing: int | None, turn: int | None, peak: int | None) -> int | None:
    """Returns where the run of chi_gradient >= 1 begins that leads into the rise, if readings show its beginning."""
    if turn is None and crossing is None:
        return None
    low = turn - 5 if turn is not None else (crossing or 0)
    high = turn + ALONG_LATE if turn is not None else int(along.steps[-1]) if len(along) else low
    high = high if peak is None else min(high, peak)
    inside = np.flatnonzero((along.steps >= low) & (along.steps <= high) & (along.values >= 1))
    if len(inside) == 0:
        return None
    anchor = int(inside[0])
    if turn is None:  # still going on: only a run that lasts to the end counts
        anchor = len(along) - 1
        if along.values[anchor] < 1:
            return None
    start = anchor
    while start > 0 and along.values[start - 1] >= 1:
        start -= 1
    step = int(along.steps[start])
    if turn is None and anchor - start < 2:
        return None
    first_reading = start == 0 or along.steps[start] - along.steps[start - 1] > 10
    return None if first_reading and turn is not None and crossing is not None and step > crossing + 1 else step


def _previous(chi: Series, crossing: int | None) -> int | None:
    """Returns the last step before the approach at which chi was above 1."""
    if crossing is None:
        return None
    before = chi.within(0, crossing - 1)
    above = np.flatnonzero(before.values >= 1)
    return int(before.steps[above[-1]]) if len(above) else None


def _begin(chi: Series, crossing: int | None, first: int) -> int:
    if crossing is None:
        return first
    previous = _previous(chi, crossing)
    before = chi.within(first if previous is None else previous + 1, crossing - 1)
    if len(before) == 0:
        return crossing
    small = np.flatnonzero(before.values < HALF)
    place = int(small[-1]) if len(small) else int(np.argmin(before.values))
    return int(before.steps[place])


def _risen(loss: Series, turn: int, reach: int) -> int | None:
    """Returns the first step from which the loss is 1.5 times as high as just before its turn (swings included)."""
    part, before = loss.within(turn, reach), loss.within(turn - ENVELOPE, turn)
    if len(part) == 0 or not before.values.min() > 0:
        return None
    high = np.flatnonzero(part.values >= RISE * before.values.max())
    return int(part.steps[high[0]]) if len(high) else None


def _end(loss: Series, chi: Series, rise: tuple[int, int], down: int | None) -> int | None:
    """Returns the step at which the ring-down is over; None where that is not known yet.

    Over: the loss is back below 1.5 times where it turned; or half-way back and even, its next 25 records within a
    factor 1.5; or chi passes 1 again, or it was long enough.
    """
    turn, peak = rise
    limit = peak + max(RING, 2 * (peak - turn))
    after = chi.within((peak if down is None else max(down, peak)) + AGAIN, limit)
    again = np.flatnonzero((after.values[:-1] >= 1) & (after.values[1:] >= 1))
    limit = int(after.steps[again[0]]) - 1 if len(again) else limit
    part, whole = loss.within(turn, limit), loss.within(turn - ENVELOPE, limit)
    levels = _levels(whole.values)
    level = levels[len(whole) - len(part) :]
    upper, allowed = _envelope(level), np.log(EVEN) if levels is not whole.values else 0.0
    # the envelope at the turn holds the peak itself where the rise took no more steps than it is wide
    low = min(upper[0 : ENVELOPE + 1].min(), levels[: len(whole) - len(part) + 1].max()) if len(part) else 0.0
    top = int(np.searchsorted(part.steps, peak))
    for place in range(top, len(part)):
        if upper[place] <= low + allowed:
            return int(part.steps[place])
        half_way = level[place] <= (level[0] + level[top]) / 2
        if allowed and half_way and place + CALM <= len(part) and np.ptp(level[place : place + CALM]) <= allowed:
            return int(part.steps[place])
    return int(part.steps[-1]) if len(part) and (len(again) or part.steps[-1] == limit) else None


def below_at(run: Run, chi: Series, turn: int | None, peak: int | None) -> bool:
    """Returns whether chi was below 1 as the loss rose: by a reading then, or one so low before that it could not be.

    "Could not": not at twice the rate at which chi changed most between the readings before, or v decays freely.
    """
    if turn is None:
        return False
    if (chi.within(turn - JUST_BEFORE, turn + max(0, (peak or turn) - turn) // 2).values < 1).any():
        return True
    before = chi.within(turn - HISTORY, turn)
    if not len(before) or turn - int(before.steps[-1]) > STALE or before.values.min() <= 0:
        return False
    rates = np.abs(np.diff(np.log(before.values))) / np.diff(before.steps)
    beta2 = second_moment.betas(run)[1]
    decay = -0.5 * math.log(beta2) if beta2 is not None and 0 < beta2 < 1 else 0.0
    rate = max([decay, LEAST_RATE, *rates.tolist()])
    return bool(before.values[-1] * math.exp(2 * rate * (turn - int(before.steps[-1]))) < 1)


def _missing(
    run: Run, adam: bool, crossing: int | None, rise: tuple[int | None, int | None], chi: Series
) -> tuple[str, ...]:
    wanted = [] if crossing is not None or below_at(run, chi, *rise) else ["chi"]
    if crossing is not None and "chi_gradient" not in run:
        wanted.append("chi_gradient")
    if not second_moment.ratios(run) and (adam or not second_moment.groups(run)):
        wanted.append("v_ratio")
    if "loss" not in run:
        wanted.append("loss")
    return tuple(wanted)
