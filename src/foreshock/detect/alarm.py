"""Says at a step, before it is taken, whether it or the ones after it will climb: the trigger of a cure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from foreshock.detect.base import is_finite, pack, unpack
from foreshock.run.event import Event

__all__ = ["Alarm"]

IN_A_ROW = 3  # readings above 1 that a warning takes: single crossings are noise (Bai et al. 2025, arXiv 2506.04805)
ALIGNED = 0.5  # |cosine| of the gradient and the unstable direction from which the one is made of the other
AGAIN = 3  # further readings above 1 after which a warning that stands is raised anew: what was done did not suffice
SAME = 0.5  # |cosine| of successive unstable directions; less is another one, or the noise of changing batches


class Alarm:
    """Turns readings of the coming step into events against it: `watch` where chi stays above 1, `imminent` where the
    step climbs.

    `imminent` is raised at the third reading in a row at which the curvature along the gradient (`chi_gradient_sym`,
    form S, never above chi) is above 1 while the gradient is aligned with the unstable direction. It is returned at
    each step at which that is so, and raised anew, under another key, after three more: a policy that answers each
    cause once then acts again.

    Event data: "chi", "chi_gradient_sym", "alignment" of this reading, where measured; "readings" in a row.

    >>> alarm, events = Alarm(), []
    >>> for step in range(5):
    ...     event = alarm.update(step, {"chi": 1.02, "chi_gradient_sym": 0.9 + 0.1 * step, "alignment": 0.9})
    ...     events.append(event.kind if event else "")
    >>> events
    ['', '', 'watch', 'watch', 'imminent']
    """

    def __init__(self) -> None:
        self._above = self._climbing = 0  # readings in a row
        self._event: Event | None = None

    def update(self, step: int, reading: Mapping[str, float]) -> Event | None:
        """Returns what stands against a step, given what was measured for it, before its update.

        Args:
            step: its number.
            reading: chi, and where measured chi_gradient_sym, alignment (or chi_alignment), chi_overlap with the
                direction of the reading before.
        """
        chi = reading.get("chi")
        if not is_finite(chi):
            return self._event
        overlap = reading.get("chi_overlap")
        turned = is_finite(overlap) and overlap < SAME
        self._above = 0 if chi <= 1.0 else 1 if turned else self._above + 1
        along, alignment = reading.get("chi_gradient_sym"), reading.get("alignment", reading.get("chi_alignment"))
        climbs = chi > 1.0 and is_finite(along) and along > 1.0 and is_finite(alignment) and alignment > ALIGNED
        self._climbing = self._climbing + 1 if climbs and self._above > 1 else int(climbs)
        if self._climbing >= IN_A_ROW:
            kind, signal, length = "imminent", "chi_gradient", self._climbing
        elif self._above >= IN_A_ROW:
            kind, signal, length = "watch", "chi", self._above
        else:
            self._event = None
            return None
        known = {"chi": chi, "chi_gradient_sym": along, "alignment": alignment}
        data = {name: value for name, value in known.items() if is_finite(value)} | {"readings": length}
        old = self._event
        if old is None or old.kind != kind or (length - IN_A_ROW) % AGAIN == 0:
            self._event = Event(kind, step, step, step, None, chi - 1.0, 0.0, signal, data)
        else:
            grown = chi - 1.0 > old.height
            self._event = Event(
                kind, old.raised, old.onset, step if grown else old.peak, None, max(chi - 1.0, old.height), 0.0, signal,
                data,
            )
        return self._event

    def state_dict(self) -> dict[str, Any]:
        """Returns the state as plain JSON values."""
        return {"above": self._above, "climbing": self._climbing, "event": pack(self._event)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the state that `state_dict` returned."""
        self._above, self._climbing = int(state["above"]), int(state["climbing"])
        self._event = unpack(state["event"])
