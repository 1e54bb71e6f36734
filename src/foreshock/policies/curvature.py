"""Keeps the optimizer below its edge of stability: floors denominators, cuts a learning rate that leapt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from foreshock.errors import UsageError
from foreshock.policies.compose import first_of
from foreshock.policies.nonfinite import refuse_nonfinite
from foreshock.policies.past import answers, because, first, number, said, since
from foreshock.policies.sight import Policy, Sight, seen
from foreshock.run.action import Action, CutLr, Floor, Proceed
from foreshock.run.event import Event, family

ENOUGH = 5  # floors at as many steps in a row for one cause; then the learning rate is cut at one, as the surer cure
# Steps for which a leap of the learning rate is taken back, and over which one that stays is then let in, a usual
# warm-up for small runs. Ours: a rate 30 times as large for 30 steps is over by then.
HELD, MEANT = 50, 100


def floor(kappa: float = 0.9, *, at: Literal["imminent", "watch"] = "imminent") -> Policy:
    """Returns the policy that answers warnings of the curvature family with `Floor(kappa)`.

    Denominators are raised until chi is at most `kappa`: the least change that restores stability where the
    preconditioner took it (Bai et al. 2025, arXiv 2506.04805). Where it was the learning rate that leapt (an event
    of signal "lr", or data of the warning that hold a `factor`) the leap is taken back instead, by `CutLr`: a floor
    would fill the optimizer's memory with what is no property of the gradients. After `ENOUGH` floors in a row for one
    cause the learning rate of one step is cut by kappa / chi instead, which is exact for a frozen curvature; and a
    leap that stays for `HELD` steps is then let in little by little, over `MEANT`, for it is meant.

    Args:
        kappa: what chi is brought to, below 1.
        at: "imminent" acts when the coming steps climb, few times; "watch" as soon as chi stays above 1.

    Raises:
        UsageError: `kappa` outside (0, 1), or another `at`.

    >>> from foreshock.policies import Sight
    >>> imminent = Event("imminent", 90, 88, 90, None, 0.2, 9.0, "chi_gradient", {"chi": 1.2})
    >>> floor()(Sight((imminent,), step=90), []).kappa
    0.9
    """
    if not 0.0 < kappa < 1.0:
        raise UsageError(f"floor: kappa={kappa}; it is what chi is brought to, between 0 and 1 (the edge), e.g. 0.9")
    if at not in ("imminent", "watch"):
        raise UsageError(f"floor: at={at!r}; it is 'imminent' or 'watch'")
    wanted = ("imminent",) if at == "imminent" else ("imminent", "watch")

    def stay(events: Sequence[Event], actions: Sequence[Action]) -> Action:
        if _is_below(events):
            return Proceed()
        warning = next((each for each in events if each.kind in wanted and family(each) == "curvature"), None)
        leap = first(events, ("precursor",), "lr")
        if leap is None and warning is not None and number(warning, (), "factor"):
            leap = warning
        held = None if leap is None else _take_back(events, actions, leap, kappa)
        if held is not None and (isinstance(held, CutLr) or warning is None):
            return held
        return Proceed() if warning is None else _raise_floor(events, actions, warning, kappa)

    return first_of(refuse_nonfinite(), stay)


def _is_below(events: Sequence[Event]) -> bool:
    """Says whether chi was measured for this very step and is no more than 1: the curvature along it is less still."""
    return isinstance(events, Sight) and events.values.get("chi", math.inf) <= 1.0


def _raise_floor(events: Sequence[Event], actions: Sequence[Action], warning: Event, kappa: float) -> Action:
    what, chi, now = said(warning, events), number(warning, events, "chi", "value"), seen(events).step
    recent = since(actions, now - ENOUGH)
    floors = {past.step for past in recent if isinstance(past, Floor) and past.cause == warning.key}
    if chi is not None and chi > kappa and all(now - 1 - back in floors for back in range(ENOUGH)):
        why = f"{what} after {ENOUGH} floors in a row, so this step's learning rate is cut to {kappa:g} of the edge"
        return because(CutLr(factor=kappa / chi), why, warning)
    return because(Floor(kappa=kappa), f"{what}, so denominators are raised until it is at most {kappa:g}", warning)


def _take_back(events: Sequence[Event], actions: Sequence[Action], leap: Event, kappa: float) -> Action:
    what, chi = said(leap, events), number(leap, events, "chi")
    over = number(leap, events, "factor") or (chi / kappa if chi else 2.0)
    held = sum(isinstance(past, CutLr) for past in answers(actions, leap))
    if held >= HELD + MEANT or over <= 1.0:
        return because(Proceed(), f"{what} and was held back at {held} steps, so it is taken for a setting", leap)
    factor = over ** (max(0, held - HELD) / MEANT - 1.0)
    return because(CutLr(factor=factor), f"{what}, so this step is taken at {factor:.3g} of it", leap)
