"""What is known of an optimizer's response to a burst: its settings, its course, its closed forms. Never imports torch.

The burst. One coordinate has seen gradients of one size and random sign; then comes one gradient `ratio` times as
large, then the same noise again. What is asked is where the burst takes the coordinate: the mean over the signs of the
noise, which drops out of everything linear and leaves its size in everything even. Gradients are counted in bursts, so
that the noise has the size `quiet` = 1/ratio, and 0 is the burst beside which nothing else counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

__all__ = ["Burst", "Rule", "Settings", "geometric", "left", "over"]

Settings = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Burst:
    """One burst.

    Attributes:
        quiet: size of all other gradients, that of the burst being 1.
        step: number of the step that it comes at, from 1 on; inf in the long run.
        usual: size of all other gradients in the loss's own units, for eps; inf where eps does not count.
    """

    quiet: float = 0.0
    step: float = math.inf
    usual: float = math.inf

    @property
    def power(self) -> float:
        """The square of `quiet`."""
        return self.quiet * self.quiet

    def floor(self, eps: float) -> float:
        """Returns eps in bursts."""
        return eps * self.quiet / self.usual if self.quiet else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A row of the table.

    Attributes:
        name: of the optimizer.
        settings: with their usual values; booleans are booleans.
        course: from settings and a burst to the update of each step from the burst on, in units of the learning rate,
            without end; its sign is that of the burst.
        decay: what the update is multiplied by from step to step in the end, when nothing comes after the burst.
        fade: what is left of the burst in the numerator from step to step.
        first: closed form of the update at the burst, in the long run, of a burst beside which nothing counts.
        displacement: closed form of the sum of all its updates, likewise; None where it is summed up.
        sup: the most that any gradients can make of an update at a step (inf for the long run); NaN where not known.
        formulas: `first`, `displacement` and `sup` as text, of those that are short at these settings.
        power: the update grows with the burst to this power; 0 where it is bounded.
        unit: what updates are counted in.
        reference: where the update rule is from.
        aliases: other names, in small letters, with the settings they stand for.
        shown: settings that tell two of them apart, in the order in which they are written.
    """

    name: str
    settings: Settings
    course: Callable[[Settings, Burst], Iterator[float]]
    decay: Callable[[Settings], float] = field(default=lambda s: 0.0)
    fade: Callable[[Settings], float] = field(default=lambda s: 0.0)
    first: Callable[[Settings], float] | None = None
    displacement: Callable[[Settings], float] | None = None
    sup: Callable[[Settings, float], float] = field(default=lambda s, step: math.nan)
    formulas: Callable[[Settings], Mapping[str, str]] = field(default=lambda s: {})
    power: Callable[[Settings], float] = field(default=lambda s: 0.0)
    unit: str = "learning rates"
    reference: str = ""
    aliases: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    shown: tuple[str, ...] = ("beta1", "beta2")


def left(beta: float, step: float) -> float:
    """Returns 1 - beta^step, the weight that an average has given away after so many steps.

    >>> left(0.5, 2), left(0.9, math.inf), left(0.9, 0)
    (0.75, 1.0, 0.0)
    """
    return 1.0 - math.pow(beta, step)


def over(above: float, below: float) -> float:
    """Returns a quotient in which nothing over nothing is nothing.

    >>> over(1, 2), over(0, 0), over(1, 0)
    (0.5, 0.0, inf)
    """
    if below:
        return above / below
    return math.copysign(math.inf, above) if above else 0.0


def geometric(ratio: float, terms: float = math.inf) -> float:
    """Returns 1 + ratio + ratio^2 + ..., so many terms of it.

    >>> geometric(0.5), geometric(2, 3), geometric(1, 4), geometric(1)
    (2.0, 7.0, 4, inf)
    """
    if ratio == 1:
        return terms
    if math.isinf(terms):
        return 1 / (1 - ratio) if ratio < 1 else math.inf
    try:
        return (1 - math.pow(ratio, terms)) / (1 - ratio)
    except OverflowError:
        return math.inf
