"""What a guard does if nobody says otherwise: for each mechanism the least that cures it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from foreshock.policies.compose import first_of
from foreshock.policies.nonfinite import ordinal
from foreshock.policies.past import answers, because, first, number, said, since
from foreshock.policies.rewind import rewind
from foreshock.policies.sight import Policy, seen
from foreshock.run.action import (
    Action,
    CutLr,
    ExactSoftmax,
    Proceed,
    Refill,
    RepairMoments,
    Rollback,
    Skip,
    Stop,
)
from foreshock.run.event import Event, family

# No paper gives numbers for these.
ROW = 2  # refusals in a row after which it is the state, not the data, that is suspected
DATA, OFTEN = 30, 100  # refusals in a row for one cause that data which stay bad are worth, and within
# a thousand steps; then they are what there is to learn
HOPELESS = 100  # refusals in a row of what is not finite, after which a training is at its end
SPAN, LATELY = 1000, 200
FAR = 2.0  # times the usual loss: a rise of so much is no matter of other data
HELD, MEANT = 30, 60  # attempts for which a learning rate that leapt is held back, and after which it is let in
BURSTS = 20  # refusals in a row of gradients that stay large
REFILLS = 5  # in as many attempts in a row; then the learning rate of one step is cut, which is the surer cure


def default(*, kappa: float = 0.9) -> Policy:
    """Returns the policy that answers each mechanism with what cures it, and leaves alone what does no harm.

    ================================  ===================================================================
    what is not finite                the step is skipped; where the state is to blame, an earlier one put back
    a loss far up                     the batch is skipped and comes again; at once, and from the third in a row on,
                                      the state is suspected: back to before what was suspicious, or to the last
                                      snapshot before the onset. Still up from a sound state: it is the data, which are
                                      left out until there are too many of them, and then learnt from
    a burst of the gradient           skipped, comes again; one that comes back to the bit is taken
    a learning rate that leapt        held back for 30 steps, then let in over 30
    moments that vanished             those of the last snapshot are put back
    parameters that leapt             an earlier state is put back
    chi above its edge                second moments are refilled along the unstable direction (`Refill`), or the
                                      learning rate is cut where it was what leapt
    a softmax that rounds             its gradient is exact from then on
    ================================  ===================================================================

    Args:
        kappa: what chi is brought to, below 1.

    >>> from foreshock.policies import Sight
    >>> spike = Event("spike", 7, 7, 7, None, 1.5, 60.0, "loss", {"records": 1, "refused": 0, "restored": 0})
    >>> default()(Sight((spike,), step=7, snapshots=(0,)), []).kind
    'skip'
    """

    def curvature(events: Sequence[Event], actions: Sequence[Action]) -> Action:
        return _curvature(events, actions, kappa)

    return first_of(_nonfinite, _weights, _moments, _loss, _rate, curvature, _softmax, _burst)


def _nonfinite(events: Sequence[Event], actions: Sequence[Action]) -> Action:
    event = first(events, ("nonfinite",), "parameters") or first(events, ("nonfinite",))
    if event is None:
        return Proceed()
    what, refused, restored = said(event, events), _number(event, "refused"), _number(event, "restored")
    damaged = event.signal == "parameters"
    if damaged or (refused >= ROW and not restored and not seen(events).tries):
        back = rewind(events, event, actions, 0)
        if back is not None:
            return because(back, f"{what} after {refused} refusals in a row, so an earlier state is put back", event)
        if damaged:
            return because(Stop(), f"{what}, and there is no earlier state to put back", event)
    if refused >= HOPELESS:
        return because(Stop(), f"{what} for {refused} attempts in a row, whatever was done", event)
    return because(_without(events), f"{what}, so the step is not taken", event)


def _loss(events: Sequence[Event], actions: Sequence[Action]) -> Action:
    event = first(events, ("spike",))
    if event is None:
        return Proceed()
    what, refused, restored = said(event, events), _number(event, "refused"), _number(event, "restored")
    if any(isinstance(past, Proceed) for past in answers(actions, event)):
        return because(Proceed(), f"{what}, as was accepted before", event)
    learning = _learning(events, actions)
    if learning is not None and not event.height > FAR * abs(_level(event)):
        why = f"{what}; since step {learning} such data are taken as they are, and this goes on"
        return because(Proceed(), why, event)
    since_when = event.data.get("since")
    if not restored and isinstance(since_when, int):
        back = _before(events, since_when)
        if back is not None:
            why = f"{what} after {event.data.get('suspect')} was suspicious at step {since_when}, so that is undone"
            return because(back, why, event)
    same = event.data.get("same") is True
    if same and any(isinstance(past, Rollback) for past in since(actions, _now(events) - LATELY)):
        why = f"{what}, the same again on the same data, and going back led here again: so it is taken"
        return because(Proceed(), why, event)
    if (refused >= ROW or same) and not restored:
        back = rewind(events, event, actions, 0)
        if back is not None:
            why = f"{what}, for the {ordinal(refused + 1)} attempt in a row, so an earlier state is put back"
            return because(back, why, event)
    recent = since(actions, _now(events) - 3 * DATA)
    skips = sum(isinstance(past, Skip) and past.cause is not None and past.cause[0] == "spike" for past in recent)
    lately = sum(isinstance(past, Skip) for past in since(actions, _now(events) - SPAN))
    if skips >= DATA or lately >= OFTEN:
        tried = "going back was no help" if restored else "there was nowhere to go back to"
        left_out = f"{lately} batches were left out within {SPAN} steps, the most that is done"
        if lately < OFTEN:
            left_out = f"{skips} batches were left out for it and {tried}"
        return because(Proceed(), f"{what}; {left_out}, so the data are taken as they are", event)
    return because(_without(events), f"{what}, so the batch is left out", event)


def _learning(events: Sequence[Event], actions: Sequence[Action]) -> int | None:
    """Returns since when data that looked bad are learnt from: once accepted, they are not refused a while later."""
    recent = since(actions, _now(events) - 3 * DATA)
    taken = [past.step for past in recent if isinstance(past, Proceed) and past.cause and past.cause[0] == "spike"]
    return min(taken, default=None)


def _level(event: Event) -> float:
    """Returns the loss before the spike; infinite where the event does not say."""
    level = event.data.get("baseline")
    return float(level) if isinstance(level, (int, float)) else math.inf


def _burst(events: Sequence[Event], actions: Sequence[Action]) -> Action:
    event = first(events, ("precursor",), "grad_norm")
    if event is None:
        return Proceed()
    factor = number(event, events, "factor") or 0.0
    stays = event.data.get("same") is True or max(_number(event, "refused"), _number(event, "records") - 1) >= BURSTS
    if stays or any(isinstance(past, Proceed) for past in answers(actions, event)):
        return because(Proceed(), f"gradients stay {factor:.3g} times as large, so they are taken", event)
    return because(_without(events), f"the gradient is {factor:.3g} times as large as usual", event)


def _rate(events: Sequence[Event], actions: Sequence[Action]) -> Action:
    """Holds a learning rate back that leapt: what it does shows only afterwards. One that stays is let in slowly."""
    event = first(events, ("precursor",), "lr")
    factor = 0.0 if event is None else number(event, events, "factor") or 0.0
    if event is None or factor <= 1.0:
        return Proceed()
    held = sum(isinstance(past, CutLr) for past in answers(actions, event))
    if held >= MEANT:
        return because(Proceed(), f"{said(event, events)} and was held back at {held} steps, so it is meant", event)
    share = factor ** (max(0.0, held - HELD) / (MEANT - HELD) - 1.0)
    return because(CutLr(factor=share), f"{said(event, events)} above all before, so {share:.3g} of it is taken", event)


def _weights(events: Sequence[Event], actions: Sequence[Action]) -> Action:
    event = first(events, ("precursor",), "parameters")
    back = None if event is None else _before(events, event.onset)
    if event is None or back is None or answers(actions, event):
        return Proceed()
    factor = number(event, events, "factor") or 0.0
    why = f"the norm of the parameters is {factor:.3g} times what it was at step {event.onset}"
    return because(back, f"{why}, so an earlier state is put back", event)


def _moments(events: Sequence[Event], actions: Sequence[Action]) -> Action:
    event = first(events, ("precursor",), "optimizer_state")
    if event is None:
        return Proceed()
    if not seen(events).snapshots:
        return because(Proceed(), "the optimizer's moments vanished, and no snapshot holds them", event)
    return because(RepairMoments(), "the optimizer's moments vanished between two steps, so they are put back", event)


def _curvature(events: Sequence[Event], actions: Sequence[Action], kappa: float) -> Action:
    event = next((each for each in events if each.kind == "imminent" and family(each) == "curvature"), None)
    chi = None if event is None else number(event, events, "chi")
    if event is None or chi is None or chi <= 1.0:
        return Proceed()
    why, now = f"{said(event, events)} and the coming steps climb", _now(events)
    if first(events, ("precursor",), "lr") is not None:
        return because(CutLr(factor=kappa / chi), f"{why} because the learning rate leapt", event)
    done = {past.step for past in since(actions, now - REFILLS) if isinstance(past, Refill)}
    if all(now - 1 - back in done for back in range(REFILLS)):
        return because(CutLr(factor=kappa / chi), f"{why} after {REFILLS} refills in a row", event)
    return because(Refill(kappa=kappa), f"{why}, so second moments are refilled to {kappa:g}", event)


def _softmax(events: Sequence[Event], actions: Sequence[Action]) -> Action:
    event = next((each for each in events if family(each) == "softmax"), None)
    if event is None or any(isinstance(past, ExactSoftmax) for past in actions):
        return Proceed()
    return because(ExactSoftmax(), f"{said(event, events)}, so its gradient is exact from now on", event)


def _without(events: Sequence[Event]) -> Skip:
    """Returns the refusal of a batch: it comes again once."""
    return Skip(data="quarantine" if seen(events).tries else "requeue")


def _before(events: Sequence[Event], step: int) -> Rollback | None:
    """Returns the rollback to before an attempt that was taken although something was suspicious."""
    snapshots = seen(events).snapshots
    return Rollback(before=step) if any(each <= step for each in snapshots) else None


def _now(events: Sequence[Event]) -> int:
    return seen(events).step


def _number(event: Event, name: str) -> int:
    value = event.data.get(name)
    return value if isinstance(value, int) else 0
