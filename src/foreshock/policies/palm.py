"""The rule of PaLM: go back a hundred steps and leave out the batches of the next two hundred."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from foreshock.errors import UsageError
from foreshock.policies.past import because, first, kinds, said, since
from foreshock.policies.sight import Policy, Sight, seen
from foreshock.run.action import Action, Proceed, Rollback, Stop
from foreshock.run.event import Event

MOST, SPAN = 3, 10  # rewinds within so many times the steps that one costs; ours: about 20 in a run is what PaLM needed


def palm(*, back: int = 100, skip: int = 200, on: str | Collection[str] = ("spike", "nonfinite")) -> Policy:
    """Returns the policy of Chowdhery et al. 2022, arXiv 2204.02311, section 5.1: rewind and skip a window of batches.

    At any spike, however short: back to the newest snapshot from at least `back` steps before the onset, or to the
    oldest there is, and `skip` attempts are refused, whatever they are ("roughly 100 steps before the spike started",
    "200-500 data batches"; give smaller numbers for small runs). Once for a cause: what stands on after that is
    accepted with the reason logged, and so is what comes when `MOST` rewinds within `SPAN` times `back + skip` steps
    were no help, or when there is no snapshot. What is not finite is not accepted: the training then stops.

    Args:
        back: steps before the onset.
        skip: attempts refused afterwards.
        on: kinds of events to act on. What is not finite is always acted on.

    Raises:
        UsageError: `back` below 1, `skip` negative, or no event of that kind.

    >>> from foreshock.policies import Sight
    >>> spike = Event("spike", 450, 449, 450, None, 1.5, 60.0, "loss")
    >>> action = palm()(Sight((spike,), step=450, snapshots=(200, 300, 400)), [])
    >>> action.before, action.skip
    (300, 200)
    """
    if back < 1 or skip < 0:
        raise UsageError(f"palm: back={back} skip={skip}; `back` is at least 1 step, `skip` cannot be negative")
    wanted = kinds(on) | {"nonfinite"}

    def policy(events: Sequence[Event], actions: Sequence[Action]) -> Action:
        event = first(events, ("nonfinite",)) or first(events, wanted)
        if event is None:
            return Proceed()
        span = SPAN * (back + skip)
        rewinds = [p for p in since(actions, seen(events).step - span + 1) if isinstance(p, Rollback)]
        before, what = _target(events, event, back), said(event, events)
        if any(past.cause == event.key for past in rewinds):
            why = f"{what}, and going back for it was no help"
        elif len(rewinds) >= MOST:
            why = f"{what}, after {len(rewinds)} rewinds within {span} steps"
        elif before is None:
            why = f"{what}, and there is no snapshot from before step {event.onset}"
        else:
            return because(Rollback(before=before, skip=skip), f"{what} at step {event.onset}", event)
        if event.kind == "nonfinite":
            return because(Stop(), f"{why}; what is not finite cannot be taken", event)
        return because(Proceed(), f"{why}; the step is taken as it is", event)

    return policy


def _target(events: Sequence[Event], event: Event, back: int) -> int | None:
    """Returns the newest snapshot from `back` steps before the onset, else the oldest from before it, or None."""
    wanted = event.onset - back
    if not isinstance(events, Sight):
        return wanted
    known = [each for each in events.snapshots if each < event.onset]
    return max((each for each in known if each <= wanted), default=min(known, default=None))
