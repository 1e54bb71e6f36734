"""When and how far to go back where it is the state that is ill, not a batch."""

from __future__ import annotations

from collections.abc import Sequence

from foreshock.policies.past import further_back, since
from foreshock.policies.sight import seen
from foreshock.run.action import Action, Rollback
from foreshock.run.event import Event

# No paper says how often to go back. Twice for one cause: right before it, and once further. Four times within a
# thousand steps whatever the causes: more would undo much of what is learnt between them.
TWICE = 2
MOST, SPAN = 4, 1000
FAR = 100  # steps that PaLM went back (Chowdhery et al. 2022, arXiv 2204.02311, section 5.1)


def rewind(events: Sequence[Event], event: Event, actions: Sequence[Action], cooldown: int) -> Rollback | None:
    """Returns the rollback that is due for an event, or None where going back is no help any more.

    The first one goes to the newest snapshot from before the last update that can have made the onset. If the event
    stands on, or another comes within `cooldown` steps, the next one goes to a snapshot further back. There is no
    third one, nor a fifth one within a thousand steps, nor any without a snapshot.

    >>> from foreshock.policies import Sight
    >>> spike = Event("spike", 40, 40, 42, None, 1.0, 50.0, "loss", {"records": 5})
    >>> rewind(Sight((spike,), step=44, snapshots=(10, 30, 40)), spike, [], 20).before
    30
    """
    now = seen(events).step
    if sum(isinstance(past, Rollback) for past in since(actions, now - SPAN + 1)) >= MOST:
        return None
    tried = [past for past in actions if isinstance(past, Rollback) and _concerns(past, event, now - cooldown)]
    restored = event.data.get("restored")
    if len(tried) >= TWICE or (isinstance(restored, int) and restored >= TWICE):
        return None
    before = further_back(events, event, tried, FAR)
    return None if before is None else Rollback(before=before)


def _concerns(past: Action, event: Event, recent: int) -> bool:
    return past.cause == event.key or past.step < 0 or past.step > recent
