"""What to do about a step that is not finite: never take it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from foreshock.policies.past import answers, because, first, hits, in_a_row, said, skips
from foreshock.policies.rewind import rewind
from foreshock.policies.sight import Policy, seen
from foreshock.run.action import Action, Proceed, Skip, Stop
from foreshock.run.event import Event

SPAN = 1000  # steps over which refusals are counted


def refuse_nonfinite(*, retry: bool = False, wide: int = 5, cooldown: int = 20, most: int = 10) -> Policy:
    """Returns the policy that answers events of kind "nonfinite", and those alone.

    The step is skipped, the batch comes again, and is put away for good at its second hit (a NaN cannot be scaled:
    0 * NaN is NaN). After `wide` attempts in a row, after `most` refusals within 1,000 steps, and at once where it is
    the parameters that are not finite, the state is to blame: back to a snapshot, then to one further back. Where
    that is no help, or there is no snapshot, the training stops with the reason; batches may be skipped until `most`
    is reached where the parameters are sound. A step that is not finite is never taken.

    Source: the rule of Ling team 2025, arXiv 2503.05139, section on loss spikes, without its second answer; numbers
    are ours.

    >>> from foreshock.policies import Sight
    >>> nan = Event("nonfinite", 7, 7, 7, None, float("nan"), float("inf"), "grad_norm")
    >>> [refuse_nonfinite()(Sight((nan,), step=7, tries=tries), []).data for tries in (0, 1)]
    ['requeue', 'quarantine']
    """

    def policy(events: Sequence[Event], actions: Sequence[Action]) -> Action:
        event = first(events, ("nonfinite",), "parameters") or first(events, ("nonfinite",))
        if event is None:
            return Proceed()
        what, row = said(event, events), in_a_row(event, actions)
        skipped = skips(actions, seen(events).step, SPAN)
        damaged, rewound = event.signal == "parameters", any(p.kind == "rollback" for p in answers(actions, event))
        if damaged or rewound or row >= wide or skipped >= most:
            back = rewind(events, event, actions, cooldown)
            if back is not None:
                why = f"{what}, {row} in a row and {skipped} refused within {SPAN} steps, so the state is suspected"
                return because(back, why, event)
            if damaged or rewound or skipped >= most:
                why = f"{what}, {skipped} steps of {SPAN} were refused, and there is nothing left to go back to"
                return because(Stop(), why, event)
        hit = hits(events, event, actions)
        if hit > 1:
            return because(Skip(data="quarantine"), f"{what} at the {ordinal(hit)} try of this batch", event)
        data: Literal["retry", "requeue"] = "retry" if retry else "requeue"
        return because(Skip(data=data), f"{what}, so the step is not taken", event)

    return policy


def ordinal(n: int) -> str:
    """Returns a place in words.

    >>> ordinal(2), ordinal(11), ordinal(23)
    ('2nd', '11th', '23rd')
    """
    ending = "th" if n % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"{n}{ending}"
