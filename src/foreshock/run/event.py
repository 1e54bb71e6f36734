"""An event: something in a run that begins, peaks and ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

KINDS: Mapping[str, str] = {
    "nonfinite": "a signal turned NaN or infinite",
    "spike": "the loss rose abruptly above its recent noise",
    "divergence": "the loss left its level and did not come back",
    "drift": "the loss climbs slowly, step by step inside its noise",
    "precursor": "a free signal left its range before the loss did",
    "watch": "the stability ratio chi stays above 1",
    "imminent": "the next steps climb: the curvature along the gradient stays above its edge of stability "
    "(`chi_gradient`), or one step shifts a logit by more than a nat while the softmax absorbs (`softmax_sensitivity`)",
    "transient": "chi passed 1 and nothing came of it: too short, of no lasting direction, or self-limiting",
    "absorbing": "low-precision softmax rounds the right class's gradient to zero",
    "inflating": "while it does, the class mean of the head and the mean feature inflate in opposite directions",
}

BENIGN = frozenset({"transient"})
"""Kinds that are no alarm: labels of what looked like one."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that begins, peaks and ends in a run; frozen, so a growing event is a sequence of versions.

    A detector emits an event when it is raised (`end` is None: still open) and again, with the same `key`, when it
    is known better or has ended. Whoever keeps events keeps the last version of each key. All positions are step
    numbers of the run, not array indices.

    Attributes:
        kind: one of `KINDS`.
        raised: step at which the alarm went off: what a live user would have seen.
        onset: first step that belongs to the event (at most `raised` for a spike; for a precursor the step of the
            first abnormal value).
        peak: step of the largest (finite) value so far, or of the non-finite value.
        end: last step that belongs to the event; None while it is open.
        height: value at the peak minus the baseline, in units of `signal`; inf or nan are allowed.
        severity: height over the robust scale of the noise before the onset (a z-score); inf for non-finite values.
        signal: name of the signal it was seen in, e.g. "loss".
        data: plain JSON values that explain it, e.g. {"baseline": 2.1, "scale": 0.02, "width": "narrow"}.
    """

    kind: str
    raised: int
    onset: int
    peak: int
    end: int | None
    height: float
    severity: float
    signal: str
    data: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, int]:
        """Identity that all versions of one event share."""
        return (self.kind, self.signal, self.raised)

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as plain values, for JSON."""
        return asdict(self) | {"data": dict(self.data)}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Event:
        """Returns the event that `to_dict` described; unknown fields of later versions are ignored."""
        return cls(**{name: fields[name] for name in cls.__dataclass_fields__})


def family(event: Event) -> Literal["curvature", "softmax", ""]:
    """Returns the mechanism that an early warning is about; empty for events that name none.

    Both mechanisms have their `imminent`; the signal tells which.
    """
    if event.kind in ("absorbing", "inflating") or event.signal.startswith("softmax_"):
        return "softmax"
    return "curvature" if event.kind in ("watch", "imminent", "transient") else ""


def latest(events: Mapping[Any, Event] | list[Event] | tuple[Event, ...]) -> list[Event]:
    """Returns the last version of each event, ordered by the step at which it was raised."""
    values = events.values() if isinstance(events, Mapping) else events
    by_key = {event.key: event for event in values}
    return sorted(by_key.values(), key=lambda event: (event.raised, event.onset, event.kind))
