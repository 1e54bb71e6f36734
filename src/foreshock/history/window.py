"""A window: the state before an event and all that happened from there to beyond it, to be gone through again."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from foreshock.errors import UsageError
from foreshock.guard.holding import Holding, thaw
from foreshock.guard.snapshot import Snapshot
from foreshock.history.compare import Digest, digest, digest_of
from foreshock.history.streams import Streams
from foreshock.history.tape import Entry, settled
from foreshock.run.event import Event

Batches = Callable[[int], Any] | Mapping[int, Any]
"""What makes the batch of a step again."""


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
        snapshot: the state before the update of its first step.
        entries: its steps, without a gap.
        checkpoints: later snapshots within, or their digests.
        holding: the live objects; None until they are known.
        batches: what makes a batch again, in place of what was kept.

    Attributes:
        event: as it was last known.
        start: the first step; the snapshot was taken before its update.
    """

    def __init__(
        self, event: Event, snapshot: Snapshot, entries: Sequence[Entry], *, checkpoints: Sequence[Snapshot | Digest],
        holding: Holding | None, batches: Batches | None = None,
    ) -> None:  # fmt: skip
        self.event, self.start, self._snapshot = event, entries[0].step, snapshot
        self._entries = {entry.step: entry for entry in entries}
        self._checkpoints = {each.step: each for each in checkpoints}
        self._holding, self._batches = holding, batches
        settled(self._entries.values())

    def __repr__(self) -> str:
        return f"<Window of steps {self.start} to {self.steps[-1]} around the {self.event.kind} of {self.event.raised}>"

    @property
    def steps(self) -> tuple[int, ...]:
        """The numbers of the attempts, consecutive, from `start` on."""
        return tuple(self._entries)

    @property
    def checkpoints(self) -> tuple[int, ...]:
        """The steps within, after the first, before whose update there is a state to compare with."""
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
        return self._entry(step).streams

    def set_rng(self, state: Streams) -> None:
        """Sets all random streams of this process to one of the states that `rng` returned."""
        state.put_back()

    def restore(self) -> None:
        """Puts model, optimizer, scheduler, scaler and averages back to `start`, in place, bit for bit.

        Gradients, random streams, hooks and modes are left as they are.

        Raises:
            UsageError: the live objects are not those that the snapshot was taken of; nothing is written then.
        """
        holding, plan = self.holding, self._snapshot.thawer()
        thaw(self._snapshot.tree, holding, plan, rng=False, data=False)
        self._snapshot.put_back(plan)

    def same(self, step: int) -> bool:
        """Returns whether the live state is, bit for bit, the one before the update of a step of `checkpoints`.

        Raises:
            UsageError: there is no checkpoint of this step.
        """
        kept = self._snapshot if step == self.start else self._checkpoints.get(step)
        if kept is None:
            raise UsageError(f"same(step): checkpoints of this window are {self.checkpoints}, got {step}")
        known = kept if isinstance(kept, Digest) else digest(kept)
        return known == digest_of(self.holding, step)

    def _entry(self, step: int) -> Entry:
        if step not in self._entries:
            raise UsageError(f"step {step} is not in this window, which has {self.start} to {self.steps[-1]}")
        return self._entries[step]


def made_again(batches: Batches, step: int) -> Any:
    """Returns the batch that a function or a mapping gives for a step.

    Raises:
        UsageError: a mapping has none.
    """
    if callable(batches):
        return batches(step)
    try:
        return batches[step]
    except (KeyError, IndexError) as error:
        raise UsageError(f"batches: there is none for step {step}; give those of all steps of the window") from error
