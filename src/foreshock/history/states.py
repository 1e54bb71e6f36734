"""Where windows begin: the ring of snapshots, taken here when a step begins or by a guard behind an update."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from foreshock.guard.holding import Holding, checked
from foreshock.guard.snapshot import Snapshot
from foreshock.guard.snapshots import Snapshots
from foreshock.history.state import State, late
from foreshock.monitor import Monitor


class States:
    """The states of a training that there are in the ring.

    Args:
        monitor: what watches it.
        snapshots: the ring: not yet attached, it is filled here; else by whoever attached it.
        given: `scheduler`, `scaler` and `ema`, or None for those there are not.

    Attributes:
        snapshots: the ring.
        own: whether it is filled here.
        urgent: a state is wanted whatever the distance to the last.
    """

    def __init__(self, monitor: Monitor, snapshots: Snapshots, given: dict[str, Any]) -> None:
        self.snapshots, self.own, self.urgent = snapshots, snapshots.holding is None, False
        self._late: dict[int, Snapshot] = {}  # beside the snapshots that were taken behind an update
        self._behind = -1  # step of the last that was taken so here
        if snapshots.holding is None:
            snapshots.attach(monitor.model, monitor.optimizer, **given)
        known = snapshots.holding
        assert known is not None
        more = {name: each for name, each in given.items() if each is not None and not self.own}
        self.holding: Holding = checked(replace(known, **more)) if more else known
        averages = ("ema",) if "ema" in more and known.ema is None else ()  # else they are in the snapshots
        self._beside = ("scheduler", "scaler", *averages)

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps of which there is the beginning, ascending."""
        return self.snapshots.steps

    def begin(self, step: int, *, clean: bool = True) -> bool:
        """Takes the state in which a step begins if that is due; returns whether there is that of this step.

        Args:
            step: that begins.
            clean: its forward pass is yet to come; else that has left its mark on running statistics by now.
        """
        if capturing():
            return False
        if self.own and self._behind != step and (clean or not self.steps):
            return self._due(step)
        if self.snapshots.steps[-1:] != (step,):
            return False
        self._late[step] = late(self.holding, step, self._beside)
        self._late = {each: held for each, held in self._late.items() if each in self.snapshots.steps}
        return True

    def end(self, step: int) -> None:
        """Takes the state behind the update of a step if that of the next is due: where forward passes are not seen."""
        if self.own and not capturing() and self._due(step + 1):
            self._behind = step + 1

    def _due(self, step: int) -> bool:
        if not (self.urgent or self.snapshots.due(step)):
            return False
        self.urgent = False
        return self.snapshots.take(step)

    def all(self) -> dict[int, State]:
        """Returns the states there are, by step."""
        return {step: State(self.snapshots._of(step), self._late.get(step)) for step in self.steps}

    def forget(self) -> None:
        """Forgets those that were taken here: they do not lead to what follows."""
        if self.own:
            self.snapshots.drop_after(-1)
        self._late.clear()


def capturing() -> bool:
    """Returns whether a CUDA graph is being captured, in which nothing may be brought to the host."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()  # type: ignore[no-untyped-call]
