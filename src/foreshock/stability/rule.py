"""One row of the table of thresholds: what an optimizer's settings are, and how its threshold follows from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from foreshock.stability.filters import Filter

__all__ = ["NEEDED", "Decay", "Rule", "Settings", "Where"]

Settings = Mapping[str, float]
Text = str | Callable[[Settings], str]

NEEDED = math.nan  # a default that says: there is none, the setting must be given


class Decay(Enum):
    """How `weight_decay` enters the step."""

    NONE = "none"
    GRADIENT = "coupled: H becomes H + weight_decay I"
    DIRECTION = "added after the division: P^-1 H becomes P^-1 H + weight_decay I"
    DECOUPLED = "decoupled: parameters shrink by a = 1 - lr weight_decay in each step"
    FLAG = "coupled, or decoupled with decoupled_weight_decay=True"


@dataclass(frozen=True, slots=True)
class Where:
    """An abbreviation in a formula: name, text (may be empty), and value from the settings and those before it."""

    name: str
    text: Text
    value: Callable[[Settings], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A row: settings with their defaults, the momentum filter, and what to print. Booleans are 0 and 1.

    `formula` is the threshold without coupled decay; in it `{two}` stands for 1 + a, which is 2 or 2-lr*weight_decay.
    `step_size` names the setting or abbreviation that multiplies the filter's output; `shrink` is the product 1 - a
    where it is not lr*weight_decay. `warp` maps the threshold of the linear loop to that of the row (SAM). `formal`:
    the step is bounded by lr whatever the gradient, so that the number is not an alarm.
    """

    name: str
    settings: Mapping[str, float]
    filter: Callable[[Settings], Filter]
    formula: Text
    denominator: Text
    reference: str
    decay: Decay = Decay.NONE
    step_size: str = "lr"
    shrink: str = ""
    where: tuple[Where, ...] = ()
    assumptions: Callable[[Settings], tuple[str, ...]] = field(default=lambda settings: ())
    warp: Callable[[float, Settings], float] | None = None
    formal: bool = False
    aliases: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    synonyms: Mapping[str, str] = field(default_factory=dict)

    def shrinkage(self, settings: Settings) -> tuple[str, float]:
        """Returns 1 - a, what parameters lose in each step by themselves, as text and as a number."""
        decoupled = self.decay is Decay.DECOUPLED or (
            self.decay is Decay.FLAG and bool(settings["decoupled_weight_decay"])
        )
        text = self.shrink or ("lr*weight_decay" if decoupled else "")
        return text, math.prod(settings[name] for name in text.split("*")) if text else 0.0

    def coupled(self, settings: Settings) -> float:
        """Returns the coefficient of decay that passes through the filter with the gradient."""
        through = self.decay in (Decay.GRADIENT, Decay.DIRECTION) or (
            self.decay is Decay.FLAG and not settings["decoupled_weight_decay"]
        )
        return settings["weight_decay"] if through else 0.0

    def written(self, text: Text, settings: Settings) -> str:
        """Returns a text that may depend on the settings, with 1 + a filled in."""
        shrink, value = self.shrinkage(settings)
        plain = text if isinstance(text, str) else text(settings)
        return plain.replace("{two}", f"(2-{shrink})" if value else "2")
