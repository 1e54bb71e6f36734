"""Where in an event the loss rose most, and whether the update did it or the next batch."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor

from foreshock.attribution.captured import Step, capture
from foreshock.attribution.evaluate import Evaluation, Losses
from foreshock.attribution.examples import batch_losses
from foreshock.errors import UsageError
from foreshock.history import Window
from foreshock.replay.slots import Kept

__all__ = ["Course", "Rise"]

MOST = 60  # steps that are looked at, the last before the peak
EARLIER = 3  # steps before the onset that are looked at as well
NOISY = 30  # losses before them that tell how far two are apart
USUAL = 9  # losses before them whose median is usual
NEAR = 2.0  # robust standard deviations that a batch is above what is usual before anything happened
ODD = 5.0  # robust standard deviations above it that make a batch odd, as they make a spike
SHARE = 0.1  # of what an event rises: less is nothing


@dataclass(frozen=True, slots=True)
class Rise:
    """Where a loss rose: L_b(theta_b) - L_a(theta_a) = from_step + from_batch, from one batch to the next.

    Attributes:
        step: a, whose update lies in between.
        after: b, the next step; where a batch is odd, that one.
        odd: whether b is another kind of batch: it came while a batch from before the event was still as it had been.
        from_step: what the update did: the rise without from_batch. Where b is odd, L_c(theta_b) - L_c(theta_a) for c,
            that batch from before the event, which does not rise because b is very sensitive.
        from_batch: what b has more than a with the weights from before the event; all beyond from_step where it is odd.
        calm: the step of batch c.
        pushing: the steps that are to be attributed: from the odd batch, or the step before the onset, to the one whose
            update raised c most.
    """

    step: int
    after: int
    odd: bool
    from_step: float
    from_batch: float
    calm: int
    pushing: tuple[int, ...]


class Course:
    """Goes through the steps of a window; live objects are set aside by the caller.

    Args:
        window: the steps.
        step_fn: takes one.
        per_example_loss: batch -> losses, (n,).
        beside: what `step_fn` uses and the window does not hold; every course begins with it as it is now.
        candidate: which of the states of the random streams a step begins with.

    Attributes:
        modules: what is run.
        taken: the steps that were taken.
        own: step -> the loss of its batch when it came.
        early: step -> the loss of its batch with the weights from before the event.
    """

    def __init__(
        self, window: Window, step_fn: Callable[[Any], Any], per_example_loss: Callable[[Any], Tensor],
        beside: Sequence[Kept] = (), candidate: int = 0,
    ) -> None:  # fmt: skip
        self.window, self._step_fn, self._loss = window, step_fn, per_example_loss
        self._beside, self._candidate = beside, candidate
        holding = window.holding
        self.modules = [] if holding.model is None else [holding.model]
        self._done = False
        self.own: dict[int, float] = {}
        self.early: dict[int, float] = {}
        self.taken = [step for step in window.steps if window.taken(step)]

    @property
    def params(self) -> list[Tensor]:
        """The optimizer's parameters as they are in this moment of the course."""
        return [param for group in self.window.holding.optimizer.param_groups for param in group["params"]]

    def losses(self, step: int) -> Losses:
        """Returns the losses of a step's batch as a closure, with the random numbers that the step began with."""
        losses = batch_losses(self._loss, self.window.batch(step), len(self.window.losses(step)))

        def drawn() -> Tensor:
            self._begin(step)
            return losses()

        return drawn

    def rise(self) -> Rise:
        """Returns where the loss rose, from a little before the onset to the peak.

        Raises:
            UsageError: there are no two steps of the event to compare, or no finite losses.
        """
        event = self.window.event
        last = next((step for step in self.taken if step >= event.peak), self.taken[-1])
        until = [step for step in self.taken if step <= last]
        seen = [step for step in until if step >= event.onset - EARLIER][-MOST:] or until[-2:]
        calm = next((step for step in reversed(self.taken) if step < seen[0]), seen[0])
        still: dict[int, float] = {}
        for step in self._walk(last):
            if step == seen[0]:
                self.early = {each: self._mean(each) for each in seen}
            if step >= seen[0]:
                self.own[step], still[step] = self._mean(step), self._mean(calm)
        seen = [step for step in seen if math.isfinite(self.own[step]) and math.isfinite(still[step])]
        if len(seen) < 2:
            raise UsageError("attribute_event: no two finite losses in the event, so there is no rise to split")
        pairs = list(pairwise(seen))
        a, b = max(pairs, key=lambda pair: self.own[pair[1]] - self.own[pair[0]])
        odd = self._odd(seen, still)
        pushed = max(pairs, key=lambda pair: still[pair[1]] - still[pair[0]])[0]
        if odd is not None:
            a, b = odd
            pushing = [step for step in seen if b <= step <= pushed] or [b]
        else:
            pushing = [step for step in seen if event.onset - 1 <= step <= a] or [a]
        rise = self.own[b] - self.own[a]
        moved = rise - (self.early[b] - self.early[a]) if odd is None else still[b] - still[a]
        return Rise(a, b, odd is not None, moved, rise - moved, calm, tuple(pushing))

    def _odd(self, seen: Sequence[int], still: Mapping[int, float]) -> tuple[int, int] | None:
        """Returns the step of a batch that is odd by itself, after the step before it; None where there is none.

        It is one whose loss is far above what is usual, by noise and by what the event rises, while a batch from before
        the event still has the loss it had; and with the weights from before the event it was above it as well.
        """
        before = [self.window.loss(step) for step in self.taken if step < seen[0]][-NOISY:]
        usual = statistics.median(before[-USUAL:]) if before else self.own[seen[0]]
        apart = [abs(b - a) for a, b in pairwise(before)]  # differences, so that a trend is no noise
        noise = 1.4826 * statistics.median(apart) / math.sqrt(2.0) if apart else 0.0
        rise = max(self.own[step] for step in seen) - usual
        damage = {step: still[step] - still[seen[0]] for step in seen}
        least = max(NEAR * noise, SHARE * rise / 2.0)
        found = [
            (self.own[b] - usual - damage[b], (a, b))
            for a, b in pairwise(seen)
            if damage[b] <= SHARE * rise and self.early[b] - usual > least
        ]
        excess, pair = max(found, default=(0.0, None))
        return pair if excess > SHARE * rise and (excess > ODD * noise or excess > rise / 2.0) else None

    def kept(self, steps: Sequence[int]) -> list[Step]:
        """Returns some of the steps, captured, from a course of its own.

        Raises:
            UsageError: `step_fn` takes no step of the optimizer.
        """
        found = []
        holding = self.window.holding
        for step in self._walk(steps[-1]):
            if step in steps:
                with capture(holding.optimizer, holding.model) as one:
                    self._step_fn(self.window.batch(step))
                found.append(one)
                if not one.taken:
                    raise UsageError(f"attribute_event(step_fn): it took no step of the optimizer at step {step}")
                self._done = True
        return found

    def following(self, step: int) -> int | None:
        """Returns the next step that was taken, None at the end of the window."""
        return next((each for each in self.taken if each > step), None)

    def _walk(self, last: int) -> Iterator[int]:
        """Yields each taken step up to `last` with the state before it, and then takes it unless that was done."""
        for each in self._beside:
            each.put_back()
        self.window.restore()
        for param in self.params:
            param.grad = None
        for step in self.taken:
            if step > last:
                return
            self._begin(step)
            self._done = False
            yield step
            if not self._done and step < last:
                self._begin(step)
                self._step_fn(self.window.batch(step))

    def _begin(self, step: int) -> None:
        states = self.window.rng(step)
        if states:
            self.window.set_rng(states[min(self._candidate, len(states) - 1)])

    def _mean(self, step: int) -> float:
        return float(Evaluation(self.params, self.modules).losses(self.losses(step)).mean())
