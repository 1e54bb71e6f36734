"""What a policy reads out of the events before it and the actions behind it."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

from foreshock.errors import UsageError
from foreshock.policies.sight import Sight, seen
from foreshock.run.action import Action, Skip
from foreshock.run.event import KINDS, Event


def kinds(on: str | Collection[str]) -> frozenset[str]:
    """Returns kinds of events, given one or several of their names, as a set.

    Raises:
        UsageError: no event is called so.

    >>> sorted(kinds("spike"))
    ['spike']
    """
    named = frozenset([on] if isinstance(on, str) else on)
    unknown = sorted(str(each) for each in named if each not in KINDS)
    if unknown or not named:
        what = ", ".join(unknown) or "nothing"
        raise UsageError(f"on: no event is called {what}; the kinds of events are {', '.join(KINDS)}")
    return named


def because(action: Action, reason: str, event: Event) -> Action:
    """Returns the action with why, a sentence, and the event that it answers to."""
    return replace(action, reason=reason, cause=event.key)


def first(events: Sequence[Event], on: Collection[str], signal: str | None = None) -> Event | None:
    """Returns the first event of some kinds (and of one signal), or None."""
    return next((each for each in events if each.kind in on and signal in (None, each.signal)), None)


def narrowed(events: Sequence[Event], on: Collection[str], signal: str | None = None) -> Sequence[Event]:
    """Returns the same sight with the events of some kinds (and of one signal) alone."""
    left = tuple(each for each in events if each.kind in on and signal in (None, each.signal))
    return replace(events, events=left) if isinstance(events, Sight) else left


def since(actions: Sequence[Action], step: int) -> Iterator[Action]:
    """Yields actions at or after a step, newest first; those that bear no step count as new."""
    for action in reversed(actions):
        if 0 <= action.step < step:
            return
        yield action


def skips(actions: Sequence[Action], step: int, within: int) -> int:
    """Returns how many of the last steps were skipped for a cause; those of a window after a rollback have none."""
    return sum(isinstance(past, Skip) and past.cause is not None for past in since(actions, step - within + 1))


def answers(actions: Sequence[Action], event: Event) -> list[Action]:
    """Returns what was done about an event so far, oldest first."""
    found, key, onset = [], event.key, event.onset
    for action in reversed(actions):
        if 0 <= action.step < onset:
            break
        if action.cause == key:
            found.append(action)
    return found[::-1]


def in_a_row(event: Event, actions: Sequence[Action]) -> int:
    """Returns how many attempts in a row the event has stood against, this one included.

    The event says so, and where it does not, or says less, the answers to it do.
    """
    return max(_count(event.data.get("records")), 1 + len(answers(actions, event)))


def hits(events: Sequence[Event], event: Event, actions: Sequence[Action]) -> int:
    """Returns how often this batch has been hit, now included.

    Known where batches are known again (`Sight.tries`); else by what was done right before: the batch after a
    `Skip("retry")` is the same, and it is the same still if the retried one was then scaled.
    """
    tries = _count(seen(events).tries)
    if tries:
        return 1 + tries
    past = [(each.kind, getattr(each, "data", "")) for each in answers(actions, event)]
    row = 0
    while row < len(past) and past[-1 - row] in (("skip", "retry"), ("scale_update", "")):
        row += 1
    retried = row and past[-row] == ("skip", "retry")
    return 1 + row if retried else 1


def further_back(events: Sequence[Event], event: Event, rollbacks: Sequence[Action], far: int) -> int | None:
    """Returns the step to go back before: what preceded the event, and each time what lies further back.

    The update at the onset's predecessor is the last one that can have made the onset's loss, so the first rollback
    goes to a snapshot from before that update; to one from right after it where there is no other, since what has
    happened between two steps is cured by that as well. The next one goes at least `far` steps before the onset where
    there is a snapshot so old, else to the oldest there is.

    Args:
        events: what the policy was shown; of a plain list nobody knows the snapshots.
        rollbacks: what was tried before, oldest first.

    Returns:
        The step of a snapshot (of one that might exist where nobody knows them), or None where there is none left.
    """
    before = event.onset - 1
    known = events.snapshots if isinstance(events, Sight) else None
    if not rollbacks:
        if known is None:
            return before
        older = max((each for each in known if each <= before), default=None)
        return event.onset if older is None and event.onset in known else older
    last = min(before, *(int(getattr(each, "before", before)) for each in rollbacks))
    if known is None:
        return min(last - far, before - far)
    reached = max((each for each in known if each <= last), default=last)
    left = [each for each in known if each < reached]
    return max((each for each in left if each <= event.onset - far), default=min(left, default=None))


def said(event: Event, events: Sequence[Event]) -> str:
    """Returns the event in words with its number, the beginning of a sentence.

    >>> said(Event("spike", 7, 7, 7, None, 1.5, 60.0, "loss"), [])
    'the loss rose by 1.5, 60 sigma above its noise'
    """
    if event.kind == "nonfinite":
        return f"{_called(event.signal)} not finite"
    if event.kind == "spike":
        return f"the {event.signal} rose by {event.height:.3g}, {event.severity:.3g} sigma above its noise"
    if event.kind == "precursor" and event.signal == "lr":
        factor = number(event, events, "factor")
        return "the learning rate leapt" + (f" {factor:.3g}-fold" if factor else "")
    if event.kind == "precursor" and event.signal == "grad_norm":
        ratio = number(event, events, "ratio", "factor")
        return "the gradient leapt" + (f" to {ratio:.3g} times its level" if ratio else "")
    if event.kind in ("watch", "imminent"):
        chi = number(event, events, "chi", "value")
        return "chi is above 1" if chi is None else f"chi is {chi:.3g}"
    return f"{KINDS.get(event.kind, event.kind)} ({event.signal})"


def number(event: Event, events: Sequence[Event], *names: str) -> float | None:
    """Returns the first finite positive number of these names that the event or this attempt's signals hold."""
    for name in names:
        for source in (event.data, events.values if isinstance(events, Sight) else {}):
            value = source.get(name)
            if isinstance(value, (int, float)) and math.isfinite(value) and value > 0.0:
                return float(value)
    return None


def _called(signal: str) -> str:
    names = {"parameters": "parameters are", "grad_norm": "the gradient is", "loss": "the loss is"}
    return names.get(signal, f"{signal} is")


def _count(value: object) -> int:
    """Returns a count that data may hold as anything, and nothing where it holds none."""
    if isinstance(value, (int, float)) and math.isfinite(value):
        return max(0, int(value))
    return 0
