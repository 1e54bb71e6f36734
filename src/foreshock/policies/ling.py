"""The rule of the Ling models: leave out the batch that spiked, take it in part, and go back where that is no help."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from foreshock.errors import UsageError
from foreshock.policies.compose import first_of
from foreshock.policies.nonfinite import SPAN, ordinal, refuse_nonfinite
from foreshock.policies.past import answers, because, first, hits, in_a_row, said, since, skips
from foreshock.policies.rewind import rewind
from foreshock.policies.sight import Policy, seen
from foreshock.run.action import Action, Cause, CutLr, Proceed, Scale, Skip
from foreshock.run.event import Event

# Ling names two kinds of spikes, narrow and wide, a skip, a retry and a lower learning rate, and gives no numbers for
# any of them (arXiv 2503.05139, sections on loss spikes). Those in the signature are ours.
LASTING = ("rollback", "cut_lr")  # answers to a state, not to a batch


def ling(
    *,
    retry: bool = False,
    scales: Sequence[float] = (0.5, 0.1),
    wide: int = 5,
    cooldown: int = 20,
    most: float = 0.01,
    gradients: bool = True,
) -> Policy:
    """Returns the policy of Ling team 2025, arXiv 2503.05139, made definite; it answers spikes and what is not finite.

    The first hit of a batch: the step is skipped, its data come again. The second: the step is taken, its *update*
    scaled by `scales[0]`. The third: skipped, and the batch put away for good. Within `cooldown` steps after a
    milder answer the next hit gets the next stronger one: `scales[1]`, then what follows.

    `wide` hits in a row, whatever the batches, are not the data's fault but the state's, and skipping is no cure:
    back to the newest snapshot from before the onset, and no skip for this cause any more. If it stands on: to a
    snapshot further back, once; the learning rate cut by `scales[0]` for `cooldown` steps; and then the step is
    accepted, with the reason logged, because what is left is a change of the data that stays. The same where more than
    `most` of the last 1,000 steps were skipped. What is not finite is never taken or scaled (`refuse_nonfinite`): it
    ends with a stop instead.

    Args:
        retry: the batch comes again at once instead of at a random later place.
        scales: factors on the update, each stronger than the one before.
        wide: hits in a row that make a spike wide.
        cooldown: steps after an answer within which the next one is stronger.
        most: share of 1,000 steps that may be skipped.
        gradients: a burst of the gradient (an event "precursor" of `grad_norm`) is a hit like a spike of the loss. It
            comes before the loss has moved; once such a gradient is in the second moments it slows hundreds of steps.

    Raises:
        UsageError: a factor outside (0, 1), factors that grow, `wide` below 2, a share outside (0, 1].

    >>> from foreshock.policies import Sight
    >>> spike = Event("spike", 7, 7, 7, None, 1.5, 60.0, "loss")
    >>> [ling()(Sight((spike,), step=7, tries=tries), []).kind for tries in (0, 1, 2)]
    ['skip', 'scale_update', 'skip']
    """
    _check(scales, wide, cooldown, most)
    allowed = max(1, round(most * SPAN))
    once_more: Literal["retry", "requeue"] = "retry" if retry else "requeue"

    def spikes(events: Sequence[Event], actions: Sequence[Action]) -> Action:
        event = first(events, ("spike",))
        if event is None and gradients:
            event = first(events, ("precursor",), "grad_norm")
        if event is None:
            return Proceed()
        what, now, row = said(event, events), seen(events).step, in_a_row(event, actions)

        def state(why: str) -> Action:
            return _state(events, actions, event, f"{what}{why}", scales, cooldown)

        if row >= wide:
            return state(f", {row} attempts in a row whatever the batch")
        if any(past.kind in LASTING for past in answers(actions, event)):
            return state(", and going back was no help")
        hit, recent = hits(events, event, actions), _lately(actions, now, cooldown)
        nth = f"{what} at the {ordinal(hit)} try of this batch"
        scaled = sum(isinstance(past, Scale) for past in recent)
        rung = scaled + 1 if scaled or any(past.kind in LASTING for past in recent) else hit - 1
        if hit < 3 and 0 < rung <= len(scales):
            part = scales[rung - 1]
            why = nth if hit > 1 else f"{what} within {cooldown} steps of another answer"
            return because(Scale(factor=part), f"{why}, so {part:g} of the update is taken", event)
        if hit < 3 and rung:
            return state(f" after {scaled} scaled updates in {cooldown} steps")
        skipped = skips(actions, now, SPAN)
        if skipped >= allowed:
            return state(f", and {skipped} of the last {SPAN} steps were skipped already")
        if hit < 3:
            return because(Skip(data=once_more), f"{what}, so the step is not taken", event)
        return because(Skip(data="quarantine"), f"{nth}, which is put away", event)

    return first_of(refuse_nonfinite(retry=retry, wide=wide, cooldown=cooldown, most=allowed), spikes)


def _state(
    events: Sequence[Event], actions: Sequence[Action], event: Event, why: str, scales: Sequence[float], cooldown: int
) -> Action:
    """Returns the answer to what no batch is to blame for: back, further back, a lower learning rate, acceptance."""
    near = [*answers(actions, event), *_lately(actions, seen(events).step, cooldown)]
    if any(isinstance(past, CutLr) for past in near):
        return because(Proceed(), f"{why}; nothing has changed it, so it is taken for a change that stays", event)
    back = rewind(events, event, actions, cooldown)
    if back is not None:
        return because(back, f"{why}, so the state is suspected", event)
    steps = max(1, cooldown)
    return because(
        CutLr(factor=scales[0], steps=steps),
        f"{why}, and going back is no help, so {steps} steps are taken at {scales[0]:g} of the learning rate",
        event,
    )


def _lately(actions: Sequence[Action], now: int, cooldown: int) -> list[Action]:
    return [past for past in since(actions, now - cooldown + 1) if past.cause is None or _is_ours(past.cause)]


def _is_ours(cause: Cause) -> bool:
    """Says whether this policy may have answered it; what others did about other events is no matter of a cooldown."""
    return cause[0] in ("spike", "nonfinite") or cause[:2] == ("precursor", "grad_norm")


def _check(scales: Sequence[float], wide: int, cooldown: int, most: float) -> None:
    falling = all(later < before for before, later in pairwise(scales))
    if not scales or not falling or not all(0.0 < factor < 1.0 for factor in scales):
        raise UsageError(f"ling: scales={tuple(scales)}; give factors between 0 and 1, each below the one before")
    if wide < 2 or cooldown < 0 or not 0.0 < most <= 1.0:
        raise UsageError(
            f"ling: wide={wide} cooldown={cooldown} most={most}; `wide` is at least 2, `cooldown` not negative, "
            "`most` a share of the steps between 0 and 1"
        )
