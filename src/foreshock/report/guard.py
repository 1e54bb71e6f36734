"""What the page shows of a guard: how often it did what, each intervention with its cause and what came of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from foreshock.report import encode
from foreshock.report.decimate import thin
from foreshock.report.interventions import (
    MEANING,
    Group,
    cause_of,
    counted,
    how,
    interventions,
    title,
    told,
    totals,
    why,
)
from foreshock.report.phrase import Phrase
from foreshock.report.wording import count
from foreshock.run import Run
from foreshock.run.action import Action, Proceed, Rollback, Stop
from foreshock.run.event import Event

TICKS = 4000  # single attempts drawn, over all groups


def to_json(run: Run, events: Sequence[Event], *, listed: int, ticks: int = TICKS) -> dict[str, object] | None:
    """Returns the JSON value of the interventions; None where there were none.

    Args:
        run: the run.
        events: those that the page lists, in the order of their numbers.
        listed: most lines of the table.
        ticks: most single attempts to draw.
    """
    done = run.actions
    if not done:
        return None
    groups = interventions(run, listed)
    share = ticks / max(ticks, len(done))
    return {
        "lede": _lede(run, acted(done)),
        "counts": [
            {"kind": kind, "title": title(kind), "text": counted(kind, n), "meaning": MEANING.get(kind, "")}
            for kind, n in totals(done).items()
        ],
        "rows": [_row(group, events, share) for group in groups],
    }  # fmt: skip


def acted(done: Sequence[Action]) -> int:
    """Returns how often a guard changed what would have happened; a step that it accepted is no intervention."""
    return sum(not isinstance(action, Proceed) for action in done)


def sentence(run: Run) -> list[Phrase]:
    """Returns what the guard did in a sentence, and whether it ended the training; nothing where it did nothing."""
    done = run.actions
    if not acted(done):
        return []
    times = acted(done)
    often = "once" if times == 1 else f"{times:,} times"
    said = [Phrase(" The guard acted "), Phrase(often, "figure"), Phrase(f": {told(done)}.")]
    for stop in (action for action in done[-1:] if isinstance(action, Stop)):
        said += [Phrase(" It ended the training at step "), Phrase(f"{stop.step:,}", "figure")]
        said.append(Phrase(f": {stop.reason.rstrip('.')}." if stop.reason else "."))
    return said


def _lede(run: Run, interventions: int) -> str:
    n, taken = len(run), int(np.count_nonzero(run.taken))
    return f"{count(interventions, 'intervention')} in {count(n, 'attempt')}, of which the training took {taken:,}."


def _row(group: Group, events: Sequence[Event], share: float) -> dict[str, object]:
    steps = np.array([action.step for action in group.actions], np.int64)
    row: dict[str, object] = {
        "kind": group.kind, "title": title(group.kind), "how": how(group.actions), "n": len(steps),
        "first": group.first, "last": group.last, "steps": encode.steps(thin(steps, max(2, int(share * len(steps))))),
        "why": why(group), "cause": cause_of(group), "before": encode.plain(group.before),
        "after": encode.plain(group.after), "takes": group.actions[-1].takes_step, "on": group.on,
    }  # fmt: skip
    event = _event(group, events)
    if event is not None:
        row["event"] = event
    back = [[action.step, action.before] for action in group.actions if isinstance(action, Rollback)]
    if back:
        row["back"] = back[:20]
    if group.end > group.last:
        row["until"] = group.end
    return row


def _event(group: Group, events: Sequence[Event]) -> int | None:
    """Returns the number on the page of the event that a group answered to: its own, else one of its kind around it."""
    cause = group.actions[0].cause
    if cause is None:
        return None
    like = [(place, event) for place, event in enumerate(events, 1) if (event.kind, event.signal) == tuple(cause[:2])]
    for place, event in like:
        if event.raised == cause[2]:
            return place
    for place, event in like:
        if event.onset <= group.last and (event.end is None or event.end >= group.first):
            return place
    return None
