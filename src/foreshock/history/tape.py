"""The tape: for each attempt what it was given and what came of it, as far back as a replay can start."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from foreshock import attach
from foreshock.history.batches import Kept
from foreshock.history.streams import Streams


@dataclass(slots=True)
class Entry:
    """One attempt.

    Attributes:
        step: its number.
        losses: of its micro-batches, as they were observed; on a device until they are asked for.
        batches: those of its micro-batches that were given.
        unkept: why one of them could not be kept; empty if all were.
        streams: candidates for the random streams before its forward pass.
        rates: learning rate of each group, as the update used it.
        taken: whether the optimizer took it.
        veto: what a scaler left to the optimizer to decide by, on its device: nonzero refuses.
        actions: what a guard did about it, by name.
        clean: whether it began before its forward pass.
        broken: the state after it is not what came of it: somebody put another one there.
    """

    step: int
    losses: list[float | Tensor] = field(default_factory=list)
    batches: list[Kept] = field(default_factory=list)
    unkept: str = ""
    streams: tuple[Streams, ...] = ()
    rates: tuple[float | Tensor, ...] = ()
    taken: bool = True
    veto: Tensor | None = None
    actions: tuple[str, ...] = ()
    clean: bool = False
    broken: bool = False

    def end(self, optimizer: Optimizer, *, taken: bool) -> None:
        """Takes note of what its end tells: whether it was taken, and how it was."""
        self.taken = taken
        self.rates = tuple(_number(group.get("lr", 0.0)) for group in optimizer.param_groups)
        veto = attach.veto_of(optimizer)
        self.veto = None if veto is None else veto.detach().clone()

    def settle(self) -> None:
        """Brings what is on a device to the host."""
        self.losses = [float(each) for each in self.losses]
        self.rates = tuple(float(each) for each in self.rates)
        if self.veto is not None:
            self.taken, self.veto = self.taken and not float(self.veto), None

    @property
    def nbytes(self) -> int:
        """Bytes of its batches."""
        return sum(batch.nbytes for batch in self.batches)


class Tape:
    """The last attempts, without a gap; the oldest leave.

    Attributes:
        nbytes: bytes of all batches on it.
    """

    def __init__(self) -> None:
        self._entries: dict[int, Entry] = {}
        self._first = self._next = 0  # numbers of the first attempt and of that to come; they are consecutive
        self.nbytes = 0

    def append(self, entry: Entry) -> None:
        """Adds the attempt that follows the last; after a gap, or at an earlier one, the tape begins anew."""
        if not self._entries or entry.step != self._next:
            self.clear()
            self._first = entry.step
        self._next = entry.step + 1
        self._entries[entry.step] = entry
        self.nbytes += entry.nbytes

    def forget(self, before: int | None, memory: int) -> int | None:
        """Drops attempts before a step (None: all), and more of the oldest until their batches fit into some bytes.

        Returns the step of the last that was dropped for want of memory; None if none was.
        """
        short = None
        while self._entries:
            old = before is None or self._first < before
            if not old and self.nbytes <= memory:
                break
            self.nbytes -= self._entries.pop(self._first).nbytes
            short = short if old else self._first
            self._first += 1
        return short

    def clear(self) -> None:
        """Forgets everything."""
        self._entries.clear()
        self.nbytes = 0

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    @property
    def entries(self) -> Mapping[int, Entry]:
        """The attempts by their number, ascending."""
        return self._entries


def settled(entries: Iterable[Entry]) -> None:
    """Brings what some attempts have on a device to the host, together."""
    waiting: list[Tensor] = []
    places: list[tuple[Entry, str, int]] = []
    for entry in entries:
        for name in ("losses", "rates"):
            for at, value in enumerate(getattr(entry, name)):
                if isinstance(value, Tensor):
                    waiting.append(value)
                    places.append((entry, name, at))
    if waiting:
        device = waiting[0].device
        wide = torch.float64 if device.type != "mps" else torch.float32
        values: list[Any] = torch.stack([value.to(device, wide) for value in waiting]).tolist()
        for (entry, name, at), value in zip(places, values, strict=True):
            found = list(getattr(entry, name))
            found[at] = value
            setattr(entry, name, found if name == "losses" else tuple(found))
    for entry in entries:
        entry.settle()


def _number(rate: Any) -> float | Tensor:
    """Returns a learning rate as it is now."""
    if isinstance(rate, Tensor):
        return float(rate) if rate.device.type == "cpu" else rate.detach().clone()
    return float(rate)


def contiguous(entries: Mapping[int, Entry], start: int, most: int) -> list[Entry]:
    """Returns the attempts from `start` on, without a gap, `most` of them; none beyond one whose state was replaced."""
    found: list[Entry] = []
    while len(found) < most and start + len(found) in entries:
        found.append(entries[start + len(found)])
        if found[-1].broken:
            break
    return found
