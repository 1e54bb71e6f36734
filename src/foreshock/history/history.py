"""The history of a training: kept beside the monitor, so that the steps around an event can be gone through again."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from foreshock.curvature.harmless import under_way
from foreshock.errors import UsageError
from foreshock.guard.memory import available
from foreshock.guard.snapshots import Snapshots
from foreshock.history import disk
from foreshock.history.arguments import Batches, checked, checked_batches
from foreshock.history.batches import keep as kept
from foreshock.history.choice import Wish, chosen, refusal, wish
from foreshock.history.entrance import Entrance
from foreshock.history.pins import Pin, Pins
from foreshock.history.spilling import Spilling
from foreshock.history.state import State
from foreshock.history.states import States, capturing
from foreshock.history.stored import Stored
from foreshock.history.streams import Reader, Streams, differ
from foreshock.history.tape import Entry, Tape
from foreshock.history.window import Window
from foreshock.mishaps import Mishaps
from foreshock.monitor import Monitor
from foreshock.run.event import Event

PINNED = ("spike", "divergence", "drift", "nonfinite")
"""Kinds of events around which windows are held fast."""


class History:
    """Keeps what is needed to go through the steps around an event again, and changes nothing::

        with fs.Monitor(model, optimizer) as monitor, fs.History(monitor, scheduler=scheduler) as history:
            for batch in loader:
                loss = loss_fn(model(batch))
                monitor.observe(loss, batch=batch)
                ...
        window = history.window(monitor.events[0])

    Kept are snapshots, taken right before a step's forward pass, and from the oldest of them on each attempt: its
    batch, its losses, whether it was taken, its learning rates, and the states of the random streams it began with.
    Snapshots thin out with age, so where the monitor raises a spike, a divergence, a drift or something that is not
    finite, the window around it is held fast. A failure in here is a single `ForeshockWarning`.

    Args:
        monitor: what watches the training.
        scheduler, scaler, ema: what is put back beside model and optimizer, as of `Snapshots.attach`.
        snapshots: those of a guard, `guard.snapshots`, which the guard takes itself; or `Snapshots(...)` not yet
            attached, for bounds of one's own, which are taken here. None takes `Snapshots()`.
        batches: a function or a mapping that gives the batch of a step, in place of those that `observe` is given.
        copy: copies every batch. Else large tensors on the host are kept by reference, and what is overwritten after
            `observe` is noticed and cannot be replayed; small ones are copied anyway.
        memory: bytes of host memory that batches may take; the oldest leave first, and of windows that are held the
            least severe. None is a process's share of a sixteenth of what is available at the first batch.
        keep: windows that are held fast, at most; the most severe ones. Their states take as much memory as the ring's
            may, at most.
        spill: directory to write these to as well, for `History.load`: when one is raised and when it is whole, which
            waits for the disk. Needs safetensors (`pip install 'foreshock[snapshots]'`).

    Attributes:
        monitor: what watches the training.

    Raises:
        UsageError: an argument that cannot work.
        MissingExtraError: safetensors is needed and not installed.
    """

    def __init__(
        self, monitor: Monitor, *, scheduler: Any = None, scaler: Any = None, ema: Any = None,
        snapshots: Snapshots | None = None, batches: Batches | None = None, copy: bool = False,
        memory: int | None = None, keep: int = 4, spill: str | os.PathLike[str] | None = None,
    ) -> None:  # fmt: skip
        checked(monitor, snapshots, batches, memory=memory, keep=keep)
        self.monitor = monitor
        beside = {"scheduler": scheduler, "scaler": scaler, "ema": ema}
        self._states = States(monitor, Snapshots() if snapshots is None else snapshots, beside)
        self._batches, self._copy, self._memory = batches, copy, memory
        self._mishaps = Mishaps(monitor.note)
        self._spilling = None if spill is None else Spilling(Path(spill), self._mishaps)
        self._tape, self._pins, self._reader = Tape(), Pins(keep), Reader()
        self._entrance = None if monitor.model is None else Entrance(monitor.model, self._forward)
        self._entry: Entry | None = None  # the attempt under way
        self._after: Streams | None = None  # the random streams after the attempt before
        self._raw: Any = None  # the batch that was given last, of the attempt under way
        self._begins = False  # whether there is the state in which it began
        self._short = ""  # why the tape is shorter than the ring
        self._loads: Any = None
        self._going = False

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Stored:
        """Returns the windows that a `History(monitor, spill=path)` wrote, for a fresh model and optimizer.

        Raises:
            RunError: there is none that is whole; those that are not are left out with a `ForeshockWarning`.
            MissingExtraError: safetensors is not installed.
        """
        return Stored(disk.read_all(Path(path)))

    def __enter__(self) -> History:
        if self.monitor.history is None:
            self.monitor.on_event.append(self._heard)  # for good: a monitor raises what is left as it is closed
        elif self.monitor.history is not self:
            raise UsageError("History(monitor): this monitor has a history already; one is enough")
        self.monitor.history = self
        self._going = True
        if self._entrance is not None:
            with self._mishaps.said("watching forward passes"):
                self._entrance.open()
        self._loads = self.monitor.optimizer.register_load_state_dict_post_hook(self._loaded)
        self._after = self._reader.read()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Keeps nothing more; what is there stays, for windows."""
        if not self._going:
            return
        self.monitor.flush()  # so that what has happened is heard while it can still be seen
        self._going = False
        if self._entrance is not None:
            self._entrance.close()
        self._loads.remove()
        if self._spilling is not None:
            self._spilling.write(self._pins, all_of_them=True)

    @property
    def snapshots(self) -> Snapshots:
        """The ring of states to begin from."""
        return self._states.snapshots

    @property
    def nbytes(self) -> int:
        """Bytes of host memory that batches take, beside the snapshots."""
        held = {id(entry): entry for pin in self._pins for entry in pin.entries.values()}
        return sum(entry.nbytes for entry in (held | {id(entry): entry for entry in self._tape}).values())

    def window(self, event: Event, *, before: int | None = None, batches: Batches | None = None) -> Window:
        """Returns the window around an event: from a snapshot before its onset to some steps beyond its peak.

        It begins at the newest snapshot 20 steps before the onset or earlier, and if chi passed 1 some time before
        that, before it did; where there is none, at the oldest that there is.

        Args:
            event: one of the monitor's, or any other of this run.
            before: begin at the newest snapshot at or before this step instead.
            batches: a function or a mapping that gives the batch of a step, in place of those that were kept.

        Raises:
            UsageError: there is no such window, or not any more; says why.
        """
        if not isinstance(event, Event):
            raise UsageError(f"window(event): one of monitor.events is needed, got {type(event).__name__}")
        checked_batches("window", batches)
        known = {each.key: each for each in self.monitor.events}
        event = known.get(event.key, event)
        wanted = wish(event, known.values(), before)
        entries, states = self._all()
        run = chosen(wanted, states, entries)
        if run is None:
            raise refusal(wanted, event, states, entries, self._states.snapshots.refused or self._short)
        first, last = run[0].step, run[-1].step
        later = [state.lent() for step, state in states.items() if first < step <= last]
        made_again = self._batches if batches is None else batches
        found = Window(event, states[first].lent(), run, checkpoints=later, holding=self._states.holding,
                       batches=made_again)  # fmt: skip
        found.monitor = self.monitor
        return found

    def _all(self) -> tuple[dict[int, Entry], dict[int, State]]:
        """Returns all attempts and all states there are, in the ring, on the tape and held fast, by step."""
        entries: dict[int, Entry] = {}
        states: dict[int, State] = {}
        for pin in self._pins:
            entries |= pin.entries
            states |= {state.step: state for state in pin.states}
        entries |= self._tape.entries
        states |= self._states.all()
        return dict(sorted(entries.items())), dict(sorted(states.items()))

    def _awake(self) -> bool:
        """Returns whether this is the training: no replay, no worker of a loader, no measurement at other weights."""
        watched = self._going and bool(self.monitor._hooks) and os.getpid() == self.monitor._process
        return watched and not under_way()

    def _forward(self) -> None:
        """Is told that a forward pass of the model is about to begin."""
        monitor = self.monitor
        if not self._awake():
            return
        try:
            if monitor.attempt.losses:
                monitor._forget_skipped()  # the attempt before may have ended, and nobody has said so yet
            if self._entry is None:
                self._begin(clean=True)
        except Exception:
            self._mishaps.failed("keeping the state before a step")

    def _begin(self, *, clean: bool) -> None:
        """Takes note that an attempt begins; `clean` says that its forward pass is yet to come."""
        step, after = self.monitor.step, self._after
        self._entry = Entry(step, clean=clean)
        self._begins = self._states.begin(step, clean=clean)
        if self._begins:
            for pin in self._pins:
                pin.mark(self._states.all())
        elif refused := self._states.snapshots.refused:
            self._mishaps.say("snapshot", f"History: {refused}; without snapshots nothing can be gone through again")
        if not clean and after is not None:  # it may have drawn since
            self._entry.streams = (after,)
            return
        now = self._reader.read(deep=self._begins or not self._tape.entries)
        self._entry.streams = (now,) if after is None or not differ(now, after) else (now, after)

    def observed(self, loss: Tensor, batch: Any) -> None:
        """Takes the loss of an attempt, or of a micro-batch of it, and its batch; the monitor sees to it.

        Args:
            loss: (), detached.
            batch: as it was given to `observe`; None if it was not.
        """
        if not self._going:
            return
        try:
            if self._entry is None:
                self._begin(clean=False)
            entry = self._entry
            assert entry is not None
            entry.losses.append(float(loss) if loss.is_cpu else loss.clone())
            if batch is not None and self._batches is None and batch is not self._raw:
                self._raw = batch
                self._keep(entry, batch)
        except Exception:
            self._mishaps.failed("keeping a batch")

    def _keep(self, entry: Entry, batch: Any) -> None:
        if entry.unkept or capturing():
            return
        found, memory = kept(batch, copying=self._copy), self._room()
        if (size := entry.nbytes + found.nbytes) > memory:
            entry.unkept = (f"it takes {size:,} bytes, and batches may take {memory:,}: give History(memory=...) more, "
                            "or History(batches=...) a function that makes them again")  # fmt: skip
            entry.batches.clear()
            self._mishaps.say("batch", f"History: the batch of step {entry.step} was not kept: {entry.unkept}")
            return
        entry.batches.append(found)

    def _room(self) -> int:
        """Returns the bytes that batches may take."""
        if self._memory is None:
            self._memory = max(1, available() // 16 // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
        return self._memory

    def ended(self, *, taken: bool) -> None:
        """Takes note that the attempt under way has come to its end; the monitor sees to it, before it counts on."""
        if not self._going:
            return
        try:
            entry, self._entry, self._raw = self._entry, None, None
            if entry is None or entry.step != self.monitor.step:
                entry = Entry(self.monitor.step, streams=(self._after or self._reader.read(),))
            entry.end(self.monitor.optimizer, taken=taken)
            self._tape.append(entry)
            for pin in self._pins:
                pin.grow(self._tape.entries)
            if self._spilling is not None:
                self._spilling.write(self._pins)
            self._forget()
            if entry.clean:
                self._after = self._reader.again()
            else:  # forward passes are not seen to begin
                self._states.end(entry.step)
                self._after = self._reader.read(deep=False)
        except Exception:
            self._mishaps.failed("keeping a step")

    def _forget(self) -> None:
        """Drops what no window can begin before, once in a while, and what does not fit."""
        memory = self._memory or 0  # of batches there is none as long as it is not known
        if not self._begins and self._tape.nbytes <= memory // 2 and self._tape.entries:
            return
        steps = self._states.steps
        pinned = sum(pin.nbytes for pin in self._pins)
        short = self._tape.forget(steps[0] if steps else None, max(memory - pinned, memory // 2))
        if short is not None:
            self._short = (f"batches may take {memory:,} bytes, which reach back to step {short + 1}: give "
                           "History(memory=...) more")  # fmt: skip

    def noted(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Is told of a note of the run; the monitor sees to it."""
        if not self._going:
            return
        if kind == "action":
            entry = self._tape.entries.get(int(fields.get("step", -1)))
            if entry is not None:
                entry.actions = (*entry.actions, str(fields.get("action", "")))
                if fields.get("action") == "rollback":
                    self._break(entry)
        elif kind == "parameters_changed":  # before this step; what was kept of those there were is of no use
            last = self._tape.entries.get(int(fields.get("step", 0)) - 1)
            if last is not None:
                self._break(last)
        elif kind == "resumed":
            self._tape.clear()
            self._states.forget()
            self._entry, self._states.urgent = None, True

    def _loaded(self, _: Any) -> None:
        """Is told that a state was loaded into the optimizer: the steps so far do not lead to those that follow."""
        last = self._tape.entries.get(self.monitor.step - 1)
        if self._awake() and last is not None:
            self._break(last)

    def _break(self, entry: Entry) -> None:
        entry.broken = self._states.urgent = True

    def _heard(self, event: Event) -> None:
        """Is told of each version of each event of the monitor; holds the window of the loud ones fast."""
        if event.kind not in PINNED:
            return
        with self._mishaps.said("holding the window around an event"):
            wanted = wish(event, self.monitor._events.values())
            pin = self._pins.of(event) or self._pins.serving(wanted) or self._pin(event, wanted)
            if pin is None:
                return
            pin.written = pin.written and pin.events.get(event.key) == event
            pin.events[event.key] = event
            pin.last = max(pin.last, wanted.last)
            pin.grow(self._tape.entries)
            pin.mark(self._states.all())
            self._pins.drop(self._room() // 2, self._states.snapshots.memory or 0)
            if self._spilling is not None:
                self._spilling.write(self._pins, all_of_them=not self._going)

    def _pin(self, event: Event, wanted: Wish) -> Pin | None:
        """Returns a new window that is held fast; None where there is none."""
        entries, states = self._all()
        run = chosen(wanted, states, entries)
        if run is None:
            return None
        pin = Pin({event.key: event}, states[run[0].step].lent(), {entry.step: entry for entry in run}, wanted.last)
        self._pins.add(pin)
        return pin
