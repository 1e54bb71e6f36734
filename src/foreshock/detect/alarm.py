"""Says at a step, before it is taken, whether it or the ones after it will climb: the trigger of a cure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from foreshock.detect.base import is_finite, pack, unpack
from foreshock.detect.forecast import GROWN, IN_A_ROW, SAME, SOON, VIOLENT, WORTH
from foreshock.run.event import Event

__all__ = ["Alarm"]

ALIGNED = 0.5  # |cosine| of the gradient and the unstable direction from which the one is mostly the other
AGAIN = 3  # further readings above 1 after which a warning that stands is raised anew: what was done did not suffice
TOLD = ("chi", "chi_gradient_sym", "alignment", "chi_overlap", "expected_rise", "expected_rise_in")


class Alarm:
    """Turns readings of the coming step into what stands against it: `watch`, or `imminent` where the loss will climb.

    Both take three readings in a row with chi above 1 along one direction that lasts, as the warnings of `Forecast` do
    and by its numbers; steps without a reading do not count. It is `imminent` where the reading foretells that the loss
    will rise by 45 % or more before the second moments have caught up (`expected_rise`; where nothing bounds the rise,
    by half within 100 steps), or where a fifth of the loss is motion along the unstable direction (`chi_mode_loss`).
    Where a reading foretells nothing it is when the curvature along the gradient (`chi_gradient_sym`, form S, never
    above chi) is above 1 at three readings in a row while gradient and direction are aligned: the loss turns upwards.

    An event stands, under one key, as long as that is so, and is raised anew after three more readings: whoever answers
    a cause once then acts again. At a step without a reading nothing stands: there is no chi to be brought down.

    Acting on the outlook instead of on form S takes 3 readings an excursion instead of some 40. Measured on 4 seeds of
    the two sines under Adam (6,000 steps, each alarm answered by a refill to .85), spikes left: beta2 = .999 none of
    74 by either; beta2 = .99 one of 152 by the outlook, four by form S. On 9 stochastic trainings (batches of 32 to
    100; Adam, AdamW, RMSprop, SGD) chi of the batch at hand never passed .8.

    Event data: "chi", "chi_gradient_sym", "alignment", "expected", "expected_in" of this reading, where measured;
    "readings" in a row.

    >>> alarm, kinds = Alarm(), []
    >>> for step, rise in enumerate([1.2, 1.2, 1.2, 9.0]):
    ...     event = alarm.update(step, {"chi": 1.02, "expected_rise": rise})
    ...     kinds.append(event.kind if event else "")
    >>> kinds
    ['', '', 'watch', 'imminent']
    """

    def __init__(self) -> None:
        self._above = self._climbing = 0  # readings in a row
        self._event: Event | None = None
        self._stood = 0  # readings since it was raised

    def update(self, step: int, reading: Mapping[str, float]) -> Event | None:
        """Returns what stands against a step, given what was measured for it, before its update.

        Args:
            step: its number.
            reading: chi, and by their names as signals what else was measured: chi_gradient_sym, chi_overlap (with
                the direction of the reading before), expected_rise, expected_rise_in, chi_mode_loss, loss; `alignment`
                goes for chi_alignment. With chi_formal of 1 nothing is ever raised.
        """
        known = {name: value for name, value in reading.items() if is_finite(value)}
        if "chi_alignment" in known:
            known.setdefault("alignment", known["chi_alignment"])
        chi = known.get("chi")
        if chi is None or known.get("chi_formal", 0.0) == 1.0:
            return None
        turned = known.get("chi_overlap", 1.0) < SAME and chi < VIOLENT
        self._above = 0 if chi <= 1.0 else 1 if turned else self._above + 1
        climbs = self._above > 0 and known.get("chi_gradient_sym", 0.0) > 1.0
        climbs &= known.get("alignment", 0.0) > ALIGNED
        self._climbing = (1 if turned else self._climbing + 1) if climbs else 0
        if self._above < IN_A_ROW:
            self._event = None
            return None
        self._event = self._standing(step, chi, known, "imminent" if self._imminent(known) else "watch")
        return self._event

    def _imminent(self, known: Mapping[str, float]) -> bool:
        """Returns whether the loss is going to climb, or does so already."""
        if known.get("chi_mode_loss", 0.0) > GROWN * known.get("loss", float("inf")) > 0.0:
            return True
        if "expected_rise" in known:
            return known["expected_rise"] >= WORTH
        return known.get("expected_rise_in", float("inf")) <= SOON or self._climbing >= IN_A_ROW

    def _standing(self, step: int, chi: float, known: Mapping[str, float], kind: str) -> Event:
        data: dict[str, Any] = {name.replace("_rise", ""): known[name] for name in TOLD if name in known}
        data["readings"] = self._above
        old, height = self._event, chi - 1.0
        self._stood = self._stood + 1 if old is not None and old.kind == kind else 0
        if old is None or old.kind != kind or self._stood >= AGAIN:
            self._stood = 0
            return Event(kind, step, step, step, None, height, 0.0, "chi", data)
        if height > old.height:
            old = replace(old, peak=step, height=height)
        return replace(old, data=data)

    def state_dict(self) -> dict[str, Any]:
        """Returns the state as plain JSON values."""
        return {
            "above": self._above, "climbing": self._climbing, "stood": self._stood, "event": pack(self._event),
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the state that `state_dict` returned."""
        self._above, self._climbing = int(state["above"]), int(state["climbing"])
        self._stood, self._event = int(state.get("stood", 0)), unpack(state["event"])
