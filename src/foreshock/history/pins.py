"""Windows that are held fast, so that neither ring nor tape can lose them; the most severe ones stay."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from foreshock.guard.snapshot import Snapshot
from foreshock.history.choice import MARGIN, Wish
from foreshock.history.tape import Entry
from foreshock.run.event import Event

REACH = 300  # steps that a window may have before the onset of a further event that it serves as well


@dataclass(slots=True)
class Pin:
    """A window that is held: it grows until its last step was taken.

    Attributes:
        events: those it is about, last versions, by key.
        snapshot: the state before its first step.
        entries: its attempts so far, by number.
        last: number of its last step.
        checkpoint: the newest snapshot within.
        changed: something is new since it was last written to disk.
    """

    events: dict[tuple[str, str, int], Event]
    snapshot: Snapshot
    entries: dict[int, Entry]
    last: int
    checkpoint: Snapshot | None = None
    changed: bool = True

    @property
    def severity(self) -> float:
        """That of its most severe event."""
        return max(math.inf if math.isnan(event.severity) else event.severity for event in self.events.values())

    @property
    def whole(self) -> bool:
        """Whether nothing is to come any more."""
        newest = max(self.entries)
        return newest >= self.last or self.entries[newest].broken

    @property
    def nbytes(self) -> int:
        """Bytes of its batches."""
        return sum(entry.nbytes for entry in self.entries.values())

    @property
    def held(self) -> int:
        """Bytes of its snapshots."""
        return sum(each.buffer.flat.numel() for each in (self.snapshot, self.checkpoint) if each is not None)

    def serves(self, wanted: Wish) -> bool:
        """Returns whether it can be the window of a further event."""
        start, newest = min(self.entries), max(self.entries)
        broken = any(entry.broken for step, entry in self.entries.items() if step < wanted.onset)
        near = start + MARGIN <= wanted.onset <= min(max(self.last, newest) + 1, start + REACH)
        return near and wanted.onset <= newest + 1 and not broken

    def grow(self, entry: Entry) -> None:
        """Takes the attempt that follows its last one, as long as it is not whole."""
        if not self.whole and entry.step == max(self.entries) + 1:
            self.entries[entry.step] = entry
            self.changed = True


class Pins:
    """The windows that are held, at most `keep` of them.

    Args:
        keep: how many.
    """

    def __init__(self, keep: int) -> None:
        self.keep = keep
        self._pins: list[Pin] = []

    def __iter__(self) -> Iterator[Pin]:
        return iter(self._pins)

    def of(self, event: Event) -> Pin | None:
        """Returns the window of an event, if it is held."""
        return next((pin for pin in self._pins if event.key in pin.events), None)

    def serving(self, wanted: Wish) -> Pin | None:
        """Returns a window that a further event can share."""
        return next((pin for pin in reversed(self._pins) if pin.serves(wanted)), None)

    def add(self, pin: Pin) -> None:
        """Holds a further window."""
        self._pins.append(pin)

    def drop(self, memory: int, held: int) -> list[Pin]:
        """Lets go of the least severe windows that are too many, or too large; returns them.

        Args:
            memory: bytes that their batches may take.
            held: bytes that their snapshots may take; those at their ends go first.
        """
        gone: list[Pin] = []
        while len(self._pins) > self.keep or (self._pins and sum(pin.nbytes for pin in self._pins) > memory):
            gone.append(self._least())
        for pin in self._pins:
            if self._held() > held:
                pin.checkpoint = None
        while self._pins and self._held() > held:
            gone.append(self._least())
        return gone

    def _held(self) -> int:
        held = [each.buffer for pin in self._pins for each in (pin.snapshot, pin.checkpoint) if each is not None]
        return sum(buffer.flat.numel() for buffer in {id(buffer): buffer for buffer in held}.values())

    def _least(self) -> Pin:
        """Takes out the least severe window; of equal ones the later, which tells less of how it began."""
        pin = min(reversed(self._pins), key=lambda each: each.severity)
        self._pins.remove(pin)
        return pin
