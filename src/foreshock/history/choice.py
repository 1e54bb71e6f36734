"""Where a window around an event begins and ends."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from foreshock.errors import UsageError
from foreshock.history.tape import Entry, contiguous
from foreshock.run.event import Event, family

MARGIN = 20
"""Steps before the onset at which a window begins, at least: the spacing of snapshots, and more than a moment of
beta2 = 0.95 remembers."""
BEYOND = 30  # steps after the peak that still belong to a window: a spike must be seen to come down again
MOST = 400  # steps after the onset that do: a divergence may climb for ever
EARLIER = 200  # steps before the onset at which chi may have passed 1 for a window to begin before that


@dataclass(frozen=True, slots=True)
class Wish:
    """What is wanted of a window.

    Attributes:
        onset: it begins at this step or before.
        targets: steps to begin at or before, the most wanted first.
        last: its last step, if there is one.
    """

    onset: int
    targets: tuple[int, ...]
    last: int


def wish(event: Event, known: Iterable[Event] = (), before: int | None = None) -> Wish:
    """Returns what is wanted of the window around an event.

    >>> event = Event("spike", raised=310, onset=300, peak=305, end=320, height=1.0, severity=9.0, signal="loss")
    >>> wish(event)
    Wish(onset=300, targets=(280,), last=335)
    >>> wish(event, before=100)
    Wish(onset=300, targets=(100,), last=335)

    Args:
        event: the last version there is.
        known: other events; where chi passed 1 before, the window is to begin before that.
        before: the step to begin at or before, instead.
    """
    last = min(max(event.peak, event.onset) + BEYOND, event.onset + MOST)
    if before is not None:
        return Wish(min(event.onset, before) if before >= 0 else before, (before,), max(last, before))
    usual = event.onset - MARGIN
    crossed = [
        each.onset - 1 for each in known
        if family(each) == "curvature" and event.onset - EARLIER <= each.onset <= event.peak
        and (each.end is None or each.end >= usual)
    ]  # fmt: skip
    earlier = min(crossed, default=usual)
    return Wish(event.onset, (earlier, usual) if earlier < usual else (usual,), last)


def chosen(wanted: Wish, steps: Collection[int], entries: Mapping[int, Entry]) -> list[Entry] | None:
    """Returns the attempts of the best window there can be: from a snapshot to the last step wanted.

    Args:
        wanted: what is wanted.
        steps: those of the snapshots.
        entries: the attempts that are known, those under way not among them.

    Returns None where there is no snapshot at or before the onset from which all attempts up to it are known.
    """
    runs = {step: contiguous(entries, step, wanted.last - step + 1) for step in steps if step <= wanted.onset}
    usable = sorted(step for step, run in runs.items() if run and run[-1].step >= min(wanted.onset, wanted.last))
    if not usable:
        return None
    for target in wanted.targets:
        found = [step for step in usable if step <= target]
        if found:
            return runs[found[-1]]
    return runs[usable[0]]


def refusal(wanted: Wish, event: Event, steps: Collection[int], entries: Mapping[int, Entry], why: str) -> UsageError:
    """Returns the error that says why there is no window, and what to do.

    Args:
        wanted, steps, entries: as of `chosen`.
        event: what the window was to be about.
        why: there are so few of the snapshots or of the attempts; empty if nobody knows.
    """
    what = f"no window around the {event.kind} raised at step {event.raised}"
    reason = f": {why}" if why else ""
    if not steps:
        return UsageError(f"{what}: there is no snapshot{reason}")
    before = [step for step in steps if step <= wanted.onset]
    if not before:
        return UsageError(f"{what}: it begins at step {wanted.onset}, and the oldest snapshot is of step {min(steps)}"
                          f"{reason}. Snapshots thin out with age: ask for a window sooner")  # fmt: skip
    if any(entry.broken for step, entry in entries.items() if before[-1] <= step < wanted.onset):
        return UsageError(f"{what}: between the snapshot of step {before[-1]} and step {wanted.onset}, its onset, the "
                          "training was put back, loaded or given other parameters: no way leads there")  # fmt: skip
    if wanted.onset > max(entries, default=-1):
        return UsageError(f"{what}: its onset, step {wanted.onset}, has not been taken yet")
    return UsageError(f"{what}: the attempts from snapshot {before[-1]} to its onset at step {wanted.onset} are not "
                      f"all known any more{reason}")  # fmt: skip
