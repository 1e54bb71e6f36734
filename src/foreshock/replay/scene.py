"""Where an experiment takes place: the steps around an event, what is normal there, and the live objects."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.optim import Optimizer

from foreshock import distributed
from foreshock.errors import UsageError
from foreshock.guard.agreement import anywhere
from foreshock.run.event import Event

if TYPE_CHECKING:
    from foreshock.history import Window
    from foreshock.replay.slots import Kept

BEYOND = 10  # steps after the peak that are run as well, and as many again as the event took to its peak
LONGEST = 200  # of them, from the onset on
NOISE = 5.0
REACH, LEAP = 40, 3.0  # steps before the onset in which a leap made the event, and how many times all before it that is
LEVEL = 20  # losses before the onset whose median is the level, where the event does not tell it

CALM = 3  # steps before the onset from which on it is known what is usual

StepFunction = Callable[[Any], Any]


class NotApplicable(Exception):  # noqa: N818  (no error: an answer)
    """A change that makes no sense here, with the reason."""


@dataclass(slots=True)
class Scene:
    """The steps around an event.

    Attributes:
        window: the state they begin from, their batches, what their losses were.
        event: what happened in them.
        group: the ranks that train the model together; None where there is this one only.
        beside: what `step_fn` uses and the window does not hold; every course begins with it as it is now.
        step: the one under way.
        rates: step -> learning rate of each group, in the run without a change.
        norms: step -> norm of the gradient there.
        losses: step -> loss there.
        moves: step -> RMS of each tensor's update there, in the order of the optimizer's parameters.
    """

    window: Window
    event: Event
    group: distributed.Group | None = None
    beside: Sequence[Kept] = ()
    step: int = -1
    rates: dict[int, list[float]] = field(default_factory=dict)
    norms: dict[int, float] = field(default_factory=dict)
    losses: Mapping[int, float] = field(default_factory=dict)
    moves: dict[int, list[float]] = field(default_factory=dict)

    @property
    def optimizer(self) -> Optimizer:
        """The live optimizer."""
        return self.window.holding.optimizer

    @property
    def model(self) -> nn.Module | None:
        """The live model, where it is known."""
        return self.window.holding.model

    def anywhere(self, found: bool) -> bool:
        """Returns whether something is true on any rank: what they decide together, they decide by this."""
        return found if self.group is None else anywhere(found, self.group, self.params[0].device)

    @property
    def params(self) -> list[Tensor]:
        """The optimizer's parameters, in order."""
        return [param for group in self.optimizer.param_groups for param in group["params"]]

    @property
    def onset(self) -> int:
        """First step that belongs to the event."""
        return self.event.onset

    @property
    def start(self) -> int:
        """First step that is run."""
        return self.window.start

    @property
    def last(self) -> int:
        """Last step that is run: some beyond the peak, as far as there are batches."""
        peak = max(self.event.peak, self.onset)
        wanted = min(2 * peak - self.onset + BEYOND, max(peak + BEYOND, self.onset + LONGEST))
        return min(self.window.steps[-1], wanted)

    @property
    def steps(self) -> list[int]:
        """The steps that are run."""
        return [step for step in self.window.steps if step <= self.last]

    @property
    def trigger(self) -> int:
        """The first step, not long before the onset, at which loss, gradient or update leapt; else that before it.

        A burst that momentum carries on shows in the loss only steps later; what is usual is what was before it.
        """
        known = [step for step in self.steps if step in self.norms]
        tracks = [self.losses, self.norms, {step: math.hypot(*moves) for step, moves in self.moves.items()}]
        for at, step in enumerate(known):
            if step >= self.onset - 1:
                break
            past = known[max(0, at - LEVEL) : at]
            told = len(past) >= LEVEL // 2 and step >= self.onset - REACH
            if told and any(_leapt(each, past, step) for each in tracks):
                return step
        return self.onset - 1

    @property
    def before(self) -> list[int]:
        """Those of them that lie before what made the event."""
        return [step for step in self.steps if step < self.trigger]

    def level(self, losses: Mapping[int, float]) -> float:
        """Returns the loss that was normal before the event."""
        known = self.event.data.get("baseline")
        if self.event.signal == "loss" and isinstance(known, (int, float)) and math.isfinite(known):
            return float(known)
        calm = self._calm(losses)
        return statistics.median(calm) if calm else math.nan

    def usual(self, losses: Mapping[int, float]) -> float:
        """Returns the largest loss that noise made before the event; at most `NOISE` robust deviations above it."""
        calm = self._calm(losses)
        if len(calm) < LEVEL // 2:
            return -math.inf
        middle = statistics.median(calm)
        deviation = 1.4826 * statistics.median(abs(loss - middle) for loss in calm)
        return min(max(calm), middle + NOISE * deviation)

    def _calm(self, losses: Mapping[int, float]) -> list[float]:
        calm = [losses[step] for step in self.steps if step < self.onset and math.isfinite(losses.get(step, math.nan))]
        return calm[-LEVEL:]


def _leapt(track: Mapping[int, float], past: Sequence[int], step: int) -> bool:
    """Returns whether a value is far above all of the steps before it, or no number; false where it is not known."""
    before = [track[each] for each in past if math.isfinite(track.get(each, math.nan))]
    return bool(before) and step in track and not track[step] <= LEAP * max(before)


def value_of(loss: Any) -> float:
    """Returns the loss that `step_fn` has returned as a number; of several, one a micro-batch, their mean.

    Raises:
        UsageError: it is none.
    """
    if isinstance(loss, Sequence) and not isinstance(loss, str) and loss:
        values = [value_of(each) for each in loss]
        return sum(values) / len(values)
    try:
        return float(loss.detach() if isinstance(loss, Tensor) else loss)
    except (TypeError, ValueError, RuntimeError) as error:
        what = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
        raise UsageError(
            f"step_fn(batch): must take one step of the training and return its loss, one number; got {what}"
        ) from error
