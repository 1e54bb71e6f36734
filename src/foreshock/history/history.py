"""The history of a training: kept beside the monitor, so that the steps around an event can be gone through again."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from foreshock import attach
from foreshock.errors import UsageError
from foreshock.guard.memory import available
from foreshock.guard.snapshot import Snapshot
from foreshock.guard.snapshots import Snapshots
from foreshock.history.batches import keep as kept
from foreshock.history.choice import Wish, chosen, refusal, wish
from foreshock.history.entrance import Entrance
from foreshock.history.pins import Pin, Pins
from foreshock.history.streams import Reader, Streams, differ, filled
from foreshock.history.tape import Entry, Tape
from foreshock.history.window import Batches, Window
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
    finite, the window around it is held fast.

    Args:
        monitor: what watches the training.
        scheduler, scaler, ema: what a snapshot holds beside model and optimizer, as of `Snapshots.attach`.
        snapshots: those of a guard, `guard.snapshots`, which the guard takes itself; or `Snapshots(...)` not yet
            attached, for bounds of one's own, which are taken here. None takes `Snapshots()`.
        batches: a function or a mapping that gives the batch of a step, in place of those that `observe` is given.
        copy: copies every batch. Else large tensors on the host are kept by reference, and what is overwritten after
            `observe` is noticed and cannot be replayed; small ones are copied anyway.
        memory: bytes of host memory that batches may take; the oldest leave first. None is a sixteenth of what is
            available at the first one.
        keep: windows that are held fast, at most; the most severe ones.
        spill: directory to write these to, for `History.load`; needs safetensors
            (`pip install 'foreshock[snapshots]'`).

    Attributes:
        monitor: what watches the training.
        snapshots: the states to begin from.

    Raises:
        UsageError: an argument that cannot work.
        MissingExtraError: safetensors is needed and not installed.
    """

    def __init__(
        self, monitor: Monitor, *, scheduler: Any = None, scaler: Any = None, ema: Any = None,
        snapshots: Snapshots | None = None, batches: Batches | None = None, copy: bool = False,
        memory: int | None = None, keep: int = 4, spill: str | os.PathLike[str] | None = None,
    ) -> None:  # fmt: skip
        _checked(monitor, snapshots, batches, memory=memory, keep=keep)
        self.monitor = monitor
        self.snapshots = snapshots if snapshots is not None else Snapshots()
        self._taking = self.snapshots.holding is None
        if self._taking:
            self.snapshots.attach(monitor.model, monitor.optimizer, scheduler=scheduler, scaler=scaler, ema=ema)
        elif any(each is not None for each in (scheduler, scaler, ema)):
            raise UsageError("History(scheduler=, scaler=, ema=): the snapshots given are attached already, and hold "
                             "what was given there; leave these out")  # fmt: skip
        self._batches, self._copy, self._memory = batches, copy, memory
        self._spill = None if spill is None else Path(spill)
        self._mishaps = Mishaps(monitor.note)
        self._tape, self._pins, self._reader = Tape(), Pins(keep), Reader()
        self._entrance = None if monitor.model is None else Entrance(monitor.model, self._forward)
        self._entry: Entry | None = None  # the attempt under way
        self._after: Streams | None = None  # the random streams after the attempt before
        self._raw: Any = None  # the batch that was given last, of the attempt under way
        self._urgent = False  # a snapshot is wanted whatever the distance
        self._short = ""  # why the tape is shorter than the ring
        self._loads: Any = None
        self._going = False

    def __enter__(self) -> History:
        if self.monitor.history not in (None, self):
            raise UsageError("History(monitor): this monitor has a history already; one is enough")
        if self.monitor.history is not self:
            self.monitor.on_event.append(self._heard)  # for good: a monitor raises what is left as it is closed
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

    @property
    def nbytes(self) -> int:
        """Bytes of host memory that batches take, beside the snapshots."""
        entries = {id(entry): entry for entry in [*self._tape, *(each for pin in self._pins for each in _of(pin))]}
        return sum(entry.nbytes for entry in entries.values())

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
        _checked_batches("window", batches)
        self.monitor.flush()
        known = {each.key: each for each in self.monitor.events}
        event = known.get(event.key, event)
        wanted = wish(event, known.values(), before)
        entries, snapshots = self._all()
        run = chosen(wanted, snapshots, entries)
        if run is None:
            why = self.snapshots.refused or self._short
            raise refusal(wanted, event, snapshots, entries, why)
        first = run[0].step
        later = [snapshots[step] for step in snapshots if first < step <= run[-1].step]
        return Window(event, _lent(snapshots[first]), run, checkpoints=[_lent(each) for each in later],
                      holding=self.snapshots.holding, batches=batches or self._batches)  # fmt: skip

    def _all(self) -> tuple[dict[int, Entry], dict[int, Snapshot]]:
        """Returns all attempts and all snapshots there are, in the ring, on the tape and held fast, by step."""
        entries: dict[int, Entry] = {}
        snapshots: dict[int, Snapshot] = {}
        for pin in self._pins:
            entries.update(pin.entries)
            snapshots.update({each.step: each for each in (pin.snapshot, pin.checkpoint) if each is not None})
        entries.update(self._tape.entries)
        snapshots.update({step: self.snapshots._of(step) for step in self.snapshots.steps})
        return dict(sorted(entries.items())), dict(sorted(snapshots.items()))

    def _forward(self) -> None:
        """Is told that a forward pass of the model is about to begin."""
        monitor = self.monitor
        if not self._awake():
            return
        try:
            if monitor.attempt.losses:
                monitor._forget_skipped()  # the attempt before has ended, and nobody has said so yet
            if self._entry is None:
                self._begin(clean=True)
        except Exception:
            self._mishaps.failed("keeping the state before a step")

    def _awake(self) -> bool:
        """Returns whether the monitor is attached, and this is its process: no replay and no worker of a loader."""
        return self._going and bool(self.monitor._hooks) and os.getpid() == self.monitor._process

    def _begin(self, *, clean: bool) -> None:
        """Takes note that an attempt begins, and takes a snapshot if one is due."""
        step, snapshots, after = self.monitor.step, self.snapshots, self._after
        self._entry = Entry(step, clean=clean)
        if self._taking and not _capturing() and (self._urgent or snapshots.due(step)):
            snapshots.take(step)
            self._urgent = False
            if snapshots.refused:
                self._mishaps.say("snapshot", f"History: {snapshots.refused}; without it nothing can be replayed")
        if not clean and after is not None:  # its forward pass is over, and may have drawn
            self._entry.streams = (after,)
            return
        now = self._reader.read(deep=not self._tape.entries or snapshots.steps[-1:] == (step,))
        self._entry.streams = (now,) if after is None or not differ(now, after) else (now, filled(after, now))

    def observed(self, loss: Tensor, batch: Any) -> None:
        """Takes the loss of an attempt, or of a micro-batch of it, and its batch; the monitor sees to it.

        Args:
            loss: (), detached.
            batch: as it was given to `observe`; None if it was not.
        """
        if not self._going:
            return
        with self._mishaps.said("keeping a batch"):
            if self._entry is None:
                self._begin(clean=False)
            entry = self._entry
            assert entry is not None
            entry.losses.append(float(loss) if loss.device.type == "cpu" else loss.clone())
            if batch is not None and self._batches is None and batch is not self._raw:
                self._raw = batch
                self._keep(entry, batch)

    def _keep(self, entry: Entry, batch: Any) -> None:
        if entry.unkept or _capturing():
            return
        found = kept(batch, copying=self._copy)
        memory = self._room()
        if (size := entry.nbytes + found.nbytes) > memory:
            entry.unkept = (f"it takes {size:,} bytes, and batches may take {memory:,}: give History(memory=...) more, "
                            "or History(batches=...) a function that makes them again")  # fmt: skip
            entry.batches.clear()
            self._mishaps.say("batch", f"History: the batch of step {entry.step} was not kept: {entry.unkept}")
            return
        entry.batches.append(found)

    def _room(self) -> int:
        if self._memory is None:
            self._memory = max(1, available() // 16)
        return self._memory

    def ended(self, *, taken: bool) -> None:
        """Takes note that the attempt under way has come to its end; the monitor sees to it, before it counts on."""
        if not self._going:
            return
        with self._mishaps.said("keeping a step"):
            entry, self._entry, self._raw = self._entry, None, None
            if entry is None or entry.step != self.monitor.step:
                entry = Entry(self.monitor.step, streams=() if self._after is None else (self._after,))
            entry.taken = taken
            entry.rates = tuple(_number(group.get("lr", 0.0)) for group in self.monitor.optimizer.param_groups)
            veto = attach.veto_of(self.monitor.optimizer)
            entry.veto = None if veto is None else veto.detach().clone()
            self._tape.append(entry)
            for pin in self._pins:
                pin.grow(entry)
            self._forget()
            self._after = self._reader.read(deep=False)

    def _forget(self) -> None:
        """Drops what no window can begin before, and what does not fit."""
        steps = self.snapshots.steps
        pinned = sum(pin.nbytes for pin in self._pins)
        if self._tape.nbytes or pinned:
            memory = self._room()
            short = self._tape.forget(steps[0] if steps else None, max(memory - pinned, memory // 2))
        else:
            short = self._tape.forget(steps[0] if steps else None, 1)
        if short is not None:
            self._short = (f"batches may take {self._memory:,} bytes, which reach back to step {short + 1}: give "
                           "History(memory=...) more")  # fmt: skip

    def noted(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Is told of a note of the run; the monitor sees to it."""
        if not self._going:
            return
        if kind == "action":
            entry = self._tape.get(int(fields.get("step", -1)))
            if entry is not None:
                entry.actions = (*entry.actions, str(fields.get("action", "")))
                if fields.get("action") == "rollback":
                    self._break(entry)
        elif kind == "resumed":
            self._tape.clear()
            self._entry, self._urgent = None, True
            if self._taking:
                self.snapshots.drop_after(-1)

    def _loaded(self, _: Any) -> None:
        """Is told that a state was loaded into the optimizer: the steps so far do not lead to those that follow."""
        if not self._awake():
            return
        last = self._tape.get(self.monitor.step - 1)
        if last is not None:
            self._break(last)

    def _break(self, entry: Entry) -> None:
        entry.broken = self._urgent = True

    def _heard(self, event: Event) -> None:
        """Is told of each version of each event of the monitor; holds the window of the loud ones fast."""
        if event.kind not in PINNED:
            return
        with self._mishaps.said("holding the window around an event"):
            wanted = wish(event, self.monitor._events.values())
            pin = self._pins.of(event) or self._pins.serving(wanted) or self._pin(event, wanted)
            if pin is None:
                return
            pin.events[event.key] = event
            pin.last = max(pin.last, wanted.last)
            for step in range(max(pin.entries) + 1, pin.last + 1):
                entry = self._tape.get(step)
                if entry is None:
                    break
                pin.grow(entry)
            within = [step for step in self.snapshots.steps if pin.snapshot.step < step <= max(pin.entries)]
            if within:
                pin.checkpoint = self.snapshots.lend(within[-1])
            pin.changed = True
            self._pins.drop(self._room() // 2, self.snapshots.memory or 0)

    def _pin(self, event: Event, wanted: Wish) -> Pin | None:
        """Returns a new window that is held fast; None where there is none."""
        entries, snapshots = self._all()
        run = chosen(wanted, snapshots, entries)
        if run is None:
            return None
        snapshot = _lent(snapshots[run[0].step])
        pin = Pin({event.key: event}, snapshot, {entry.step: entry for entry in run}, wanted.last)
        self._pins.add(pin)
        return pin


def _of(pin: Pin) -> list[Entry]:
    return list(pin.entries.values())


def _lent(snapshot: Snapshot) -> Snapshot:
    """Returns the same snapshot, whose memory is not used again."""
    snapshot.buffer.lent = True
    return snapshot


def _number(rate: Any) -> float | Tensor:
    """Returns a learning rate as it is now."""
    if isinstance(rate, Tensor):
        return float(rate) if rate.device.type == "cpu" else rate.detach().clone()
    return float(rate)


def _capturing() -> bool:
    """Returns whether a CUDA graph is being captured, in which nothing may be brought to the host."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()  # type: ignore[no-untyped-call]


def _checked(monitor: Any, snapshots: Any, batches: Any, **positive: Any) -> None:
    """Raises a UsageError that names the argument of a history that cannot work."""
    if not isinstance(monitor, Monitor):
        raise UsageError(f"History(monitor): a foreshock.Monitor is needed, got {type(monitor).__name__}")
    if snapshots is not None and not isinstance(snapshots, Snapshots):
        raise UsageError(f"History(snapshots=...): foreshock.Snapshots are needed, for example those of a guard, "
                         f"guard.snapshots; got {type(snapshots).__name__}")  # fmt: skip
    _checked_batches("History", batches)
    for name, value in positive.items():
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise UsageError(f"History({name}=...): must be a positive integer, got {value!r}")


def _checked_batches(owner: str, batches: Any) -> None:
    if batches is not None and not callable(batches) and not isinstance(batches, Mapping):
        raise UsageError(f"{owner}(batches=...): must be a function of a step number or a mapping of them, got "
                         f"{type(batches).__name__}")  # fmt: skip
