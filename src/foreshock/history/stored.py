"""A history that was written to disk, to be gone through again by a process that has not trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from foreshock.errors import UsageError
from foreshock.guard.holding import Holding, checked
from foreshock.history.arguments import Batches, checked_batches
from foreshock.history.choice import wish
from foreshock.history.pins import Pin
from foreshock.history.window import Window
from foreshock.run.event import Event, latest


class Stored:
    """The windows that a `History(monitor, spill=path)` held fast; `History.load(path)` reads them::

        history = History.load("runs/a/history")
        history.attach(model, optimizer, scheduler=scheduler)      # made as in the run; their values do not matter
        window = history.window(history.events[0])

    Args:
        pins: the windows.

    Attributes:
        monitor: None: nothing is watched.
    """

    monitor: None = None

    def __init__(self, pins: Sequence[Pin]) -> None:
        self._pins = list(pins)
        self._holding: Holding | None = None

    @property
    def events(self) -> list[Event]:
        """The events around which there are windows, ordered by the step at which they were raised."""
        return latest([event for pin in self._pins for event in pin.events.values()])

    def attach(
        self, model: nn.Module | None, optimizer: Optimizer, *, scheduler: Any = None, scaler: Any = None,
        ema: Any = None,
    ) -> None:  # fmt: skip
        """Says into which live objects windows are restored; the same that the history held.

        Raises:
            UsageError: one of them cannot be brought back.
        """
        self._holding = checked(Holding(model, optimizer, scheduler, scaler, ema))

    def window(self, event: Event, *, before: int | None = None, batches: Batches | None = None) -> Window:
        """Returns the window around an event.

        Args:
            event: one of `events`, or the same of the run.
            before: must not lie before the beginning of the window, of which there is only one.
            batches: a function or a mapping that gives the batch of a step, in place of those that were kept.

        Raises:
            UsageError: there is none.
        """
        checked_batches("window", batches)
        pin = next((pin for pin in self._pins if event.key in pin.events), None)
        if pin is None:
            there = ", ".join(f"{each.kind} of {each.raised}" for each in self.events)
            raise UsageError(f"no window around the {event.kind} raised at step {event.raised} was written; there are: "
                             f"{there}")  # fmt: skip
        if before is not None and before < pin.state.step:
            raise UsageError(f"window(before=...): this window begins at step {pin.state.step}, got {before}")
        event = pin.events[event.key]
        run = [entry for entry in pin.entries.values() if entry.step <= max(wish(event).last, pin.state.step)]
        ends = [] if pin.checkpoint is None or pin.checkpoint.step > run[-1].step else [pin.checkpoint]
        return Window(event, pin.state, run, checkpoints=ends, holding=self._holding, batches=batches)
