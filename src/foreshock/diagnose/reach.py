"""How far the run's own optimizer goes after a burst of gradient, and what would go less far."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from foreshock.bursts import BurstResponse, burst_response, largest_update, of_group
from foreshock.detect.second_moment import groups, optimizer
from foreshock.run.run import Run

__all__ = ["Reach", "reach"]

SOONER = 0.95  # beta2, or alpha: the usual choice of those who had such spikes
SECOND_MOMENT = {
    "Adam": "beta2", "NAdam": "beta2", "RAdam": "beta2", "AdaBelief": "beta2", "Yogi": "beta2", "QHAdam": "beta2",
    "RMSprop": "alpha", "Adan": "beta3", "AdEMAMix": "",
}  # fmt: skip
"""Optimizer -> the setting by which its second moment forgets; empty where a smaller one makes nothing better."""
HELPS = 1.5  # times less far, from which another choice is worth a word
S3_LINE = "optimizer = foreshock.S3.from_adamw(optimizer)"


@dataclass(frozen=True, slots=True)
class Reach:
    """How far an optimizer goes, and what would go less far.

    Attributes:
        own: the response of the run's optimizer to a burst, of the group that goes furthest.
        instead: responses of others that go less far, by what one changes; the nearest to what is there first.
    """

    own: BurstResponse
    instead: Mapping[str, BurstResponse]

    @property
    def text(self) -> str:
        """How far it goes in comparison, in a sentence or two; empty where nothing goes less far."""
        if not self.instead:
            return ""
        others = [f"{each.label} {each.displacement:.3g}" for each in self.instead.values()]
        return f"Your {self.own.text.removesuffix('.')}; after the same burst, {' and '.join(others)}."


def reach(run: Run, ratio: float = math.inf) -> Reach | None:
    """Returns how far the run's optimizer goes after a burst; None where its metadata do not tell.

    Args:
        run: the run.
        ratio: size of the burst, in usual gradients: the root of g^2/v.
    """
    kind = optimizer(run)
    found = [each for group in groups(run) if (each := of_group(kind, group, ratio=ratio)) is not None]
    if not found:
        return None
    own = max(found, key=lambda each: (each.displacement, each.peak))
    return Reach(own, _instead(kind, own, ratio))


def _instead(kind: str, own: BurstResponse, ratio: float) -> dict[str, BurstResponse]:
    """Returns what goes at least `HELPS` times less far, of an optimizer that divides by a second moment."""
    rule = largest_update(kind, {})[0]
    if rule not in SECOND_MOMENT:
        return {}
    others, name = {"S3": burst_response("S3", ratio=ratio)}, SECOND_MOMENT[rule]
    if name and own.settings[name] > SOONER and own.settings.get("beta1", 0.0) ** 2 < SOONER:
        sooner = of_group(own.optimizer, {**own.settings, name: SOONER}, ratio=ratio)
        others = {**({} if sooner is None else {name: sooner}), **others}
    return {change: each for change, each in others.items() if each.displacement * HELPS <= own.displacement}
