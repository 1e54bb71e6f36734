"""Windows that are held fast, so that neither ring nor tape can lose them; the most severe ones stay."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from foreshock.history.choice import MARGIN, Wish
from foreshock.history.compare import Digest
from foreshock.history.state import State
from foreshock.history.tape import Entry
from foreshock.run.event import Event

REACH = 300  # steps that a window may have before the onset of a further event that it serves as well


@dataclass(slots=True)
class Pin:
    """A window that is held: it grows until its last step was taken.

    Attributes:
        events: those it is about, last versions, by key.
        state: that in which its first step began.
        entries: its attempts so far, by number.
        last: number of its last step.
        checkpoint: the newest state within.
        written: on disk as it is now.
        nbytes: bytes of its batches.
    """

    events: dict[tuple[str, str, int], Event]
    state: State
    entries: dict[int, Entry]
    last: int
    checkpoint: State | Digest | None = None
    written: bool = False
    nbytes: int = field(init=False)

    def __post_init__(self) -> None:
        self.nbytes = sum(entry.nbytes for entry in self.entries.values())

    @property
    def severity(self) -> float:
        """That of its most severe event."""
        return max(math.inf if math.isnan(event.severity) else event.severity for event in self.events.values())

    @property
    def newest(self) -> int:
        """Number of its last attempt so far."""
        return next(reversed(self.entries))

    @property
    def whole(self) -> bool:
        """Whether nothing is to come any more."""
        return self.newest >= self.last or self.entries[self.newest].broken

    @property
    def states(self) -> list[State]:
        """Those that can be gone back to."""
        return [each for each in (self.state, self.checkpoint) if isinstance(each, State)]

    def serves(self, wanted: Wish) -> bool:
        """Returns whether it can be the window of a further event."""
        start = self.state.step
        broken = any(entry.broken for step, entry in self.entries.items() if step < wanted.onset)
        return start + MARGIN <= wanted.onset <= min(self.newest + 1, start + REACH) and not broken

    def grow(self, tape: Mapping[int, Entry]) -> None:
        """Takes the attempts that follow its last one, until it is whole."""
        while not self.whole and (entry := tape.get(self.newest + 1)) is not None:
            self.entries[entry.step] = entry
            self.nbytes += entry.nbytes
            self.written = False

    def mark(self, states: Mapping[int, State]) -> None:
        """Takes the newest of some states within, or at its growing end, as the one to hold a replay against."""
        end = self.newest if self.whole else self.newest + 1
        within = [state for step, state in states.items() if self.state.step < step <= end]
        if within and (self.checkpoint is None or self.checkpoint.step < within[-1].step):
            self.checkpoint = within[-1].lent()
            self.written = False


class Pins:
    """The windows that are held, at most `keep` of them.

    Args:
        keep: how many.
    """

    def __init__(self, keep: int) -> None:
        self.keep = keep
        self._pins: list[Pin] = []

    def __len__(self) -> int:
        return len(self._pins)

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

    def drop(self, memory: int, held: int) -> None:
        """Lets go of the least severe windows that are too many, or too large.

        Args:
            memory: bytes that their batches may take.
            held: bytes that their states may take; those within, which only say whether a replay is exact, go first.
        """
        while len(self._pins) > self.keep or (self._pins and sum(pin.nbytes for pin in self._pins) > memory):
            self._drop_least()
        for pin in self._pins:
            if self._held() > held:
                pin.checkpoint = None
        while self._pins and self._held() > held:
            self._drop_least()

    def _held(self) -> int:
        return sum(state.nbytes for state in {each.step: each for pin in self._pins for each in pin.states}.values())

    def _drop_least(self) -> None:
        """Drops the least severe window; of equal ones the later, which tells less of how it began."""
        self._pins.remove(min(reversed(self._pins), key=lambda each: each.severity))
