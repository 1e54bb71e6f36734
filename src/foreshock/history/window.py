"""A window: the state before an event and all that happened from there to beyond it, to be gone through again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from foreshock.errors import UsageError
from foreshock.guard.holding import Holding
from foreshock.history.arguments import Batches, made_again
from foreshock.history.compare import Digest, digest
from foreshock.history.state import State
from foreshock.history.streams import Streams, filled
from foreshock.history.tape import Entry, settled
from foreshock.monitor import Monitor
from foreshock.run.event import Event


class Window:
    """The steps around an event, and the state before the first of them.

    A step is gone through again as it was, where the loop is deterministic, by::

        window.restore()
        for step in window.steps:
            window.set_rng(window.rng(step)[0])
            if window.taken(step):
                loss = step_fn(window.batch(step))      # forward, backward, optimizer.step(), scheduler.step()

    Args:
        event: what it is about.
        state: that in which its first step began.
        entries: its steps, without a gap.
        checkpoints: states in which later ones began, or their digests.
        holding: the live objects; None until they are known.
        batches: what makes a batch again, in place of what was kept.

    Attributes:
        event: as it was last known.
        start: the first step.
        monitor: what watches the live objects, and sleeps while they are used; None where nothing does.
    """

    def __init__(
        self, event: Event, state: State, entries: Sequence[Entry], *, checkpoints: Sequence[State | Digest],
        holding: Holding | None, batches: Batches | None = None,
    ) -> None:  # fmt: skip
        self.event, self.start, self._state = event, entries[0].step, state
        self._entries = {entry.step: entry for entry in entries}
        self._checkpoints = {each.step: each for each in checkpoints}
        self._holding, self._batches = holding, batches
        self.monitor: Monitor | None = None
        settled(self._entries.values())

    def __repr__(self) -> str:
        return f"<Window of steps {self.start} to {self.steps[-1]} around the {self.event.kind} of {self.event.raised}>"

    @property
    def steps(self) -> tuple[int, ...]:
        """The numbers of the attempts, consecutive, from `start` on."""
        return tuple(self._entries)

    @property
    def checkpoints(self) -> tuple[int, ...]:
        """The steps within, after the first, for whose beginning there is a state to compare with."""
        return tuple(sorted(self._checkpoints))

    @property
    def holding(self) -> Holding:
        """The live objects that `restore` writes to.

        Raises:
            UsageError: they are not known: the window comes from a file, and nothing was attached.
        """
        if self._holding is None:
            raise UsageError("this window comes from a file: call history.attach(model, optimizer, ...) first")
        return self._holding

    def batch(self, step: int) -> Any:
        """Returns the batch of a step as it was, in tensors of its own; of several micro-batches their list.

        Raises:
            UsageError: it was not given, not kept, or overwritten since; says which, and what to do.
        """
        entry = self._entry(step)
        if self._batches is not None:
            return made_again(self._batches, step)
        if entry.unkept:
            raise UsageError(f"the batch of step {step} was not kept: {entry.unkept}")
        if not entry.batches:
            raise UsageError(
                f"the batch of step {step} is not known. Give it when the loss is observed, monitor.observe(loss, "
                "batch=batch), or say how to make it again: History(monitor, batches=lambda step: ...), or "
                "history.window(event, batches=...), with a function or a dict of step numbers"
            )
        given = [batch.give(step) for batch in entry.batches]
        return given[0] if len(given) == 1 else given

    def loss(self, step: int) -> float:
        """Returns the loss of a step exactly as it was observed, the mean of its micro-batches; NaN without one."""
        losses = self.losses(step)
        if len(losses) == 1:
            return losses[0]
        return math.fsum(losses) / len(losses) if losses else math.nan

    def losses(self, step: int) -> tuple[float, ...]:
        """Returns the loss of each micro-batch of a step."""
        return tuple(float(loss) for loss in self._entry(step).losses)

    def taken(self, step: int) -> bool:
        """Returns whether the optimizer took the step; else a guard or a scaler refused it."""
        return self._entry(step).taken

    def lr(self, step: int) -> tuple[float, ...]:
        """Returns the learning rate of each parameter group at a step, as its update used it."""
        return tuple(float(rate) for rate in self._entry(step).rates)

    def actions(self, step: int) -> tuple[str, ...]:
        """Returns what a guard did about a step, such as "clip_update"; a loop without it would have done otherwise."""
        return self._entry(step).actions

    def rng(self, step: int) -> tuple[Streams, ...]:
        """Returns the states that the random streams may have had when the step began, the likeliest first.

        The first is that before the model's forward pass, if it was seen; the other that after the step before, where
        it differs: something was drawn in between, by the loop (which a replay draws as well) or by its loader (which
        is not there). None where the step's beginning was not seen.
        """
        states = self._entry(step).streams
        # what was not looked at has not moved since, or moves as it did: but it has to begin somewhere
        return tuple(filled(each, states[0]) for each in states) if step == self.start else states

    def set_rng(self, state: Streams) -> None:
        """Sets all random streams of this process to one of the states that `rng` returned."""
        state.put_back()

    def restore(self) -> None:
        """Puts model, optimizer, scheduler, scaler and averages back to `start`, in place, bit for bit.

        Gradients, random streams, hooks and modes are left as they are.

        Raises:
            UsageError: the live objects are not those that the snapshot was taken of; nothing is written then.
        """
        self._state.restore(self.holding)

    def same(self, step: int) -> bool:
        """Returns whether the live state is, bit for bit, the one in which `start` or a step of `checkpoints` began.

        Raises:
            UsageError: there is no checkpoint of this step.
        """
        kept = self._state if step == self.start else self._checkpoints.get(step)
        if kept is None:
            raise UsageError(f"same(step): checkpoints of this window are {self.checkpoints}, got {step}")
        return (kept if isinstance(kept, Digest) else digest(kept)).is_of(self.holding)

    def _entry(self, step: int) -> Entry:
        if step not in self._entries:
            raise UsageError(f"step {step} is not in this window, which has {self.start} to {self.steps[-1]}")
        return self._entries[step]
