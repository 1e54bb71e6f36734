"""Small worlds that go wrong in one way each, for policies to live in: what a guard would show them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from foreshock.policies.sight import Sight
from foreshock.run.action import Action, Rollback
from foreshock.run.event import Event

START = 200  # attempts before anything happens
BATCHES = 40  # in an epoch
EVERY, KEEP = 25, 8  # attempts between snapshots, and how many there are
CLOSES = 120  # attempts after which a detector takes a level for the new one
AGAIN = 17  # attempts until a refused batch comes again
LATER = (
    ("precursor", "grad_norm"), ("precursor", "lr"), ("precursor", "optimizer_state"),
    ("precursor", "parameters"), ("imminent", "chi_gradient"), ("absorbing", "softmax_absorbed"),
)  # fmt: skip


@dataclass(slots=True)
class World:
    """A training as a policy sees it: batches come, some attempts are bad, what is done about them has consequences.

    Attributes:
        bad: says of a world whether its coming attempt is bad, and how: the kind of event, or "".
        signal: in which the bad is seen.
        lasting: whether bad attempts in a row are one event; else each is its own.
        snapshots: whether there are any.
        hurts: step whose update damages the state, until a state from before it is restored; -1 for none.
        step: number of the coming attempt.
        position: updates that the parameters consist of; a rollback takes some back.
        hurt: position from which the state is damaged; -1 while it is sound.
        refused: attempts so far, those in windows after a rollback included.
    """

    bad: Callable[[World], str]
    signal: str = "loss"
    lasting: bool = True
    snapshots: bool = True
    hurts: int = -1
    step: int = 0
    position: int = 0
    hurt: int = -1
    refused: int = 0
    batch: int = 0
    row: int = 0
    refused_row: int = 0
    restored: int = 0
    onset: int = 0
    window: int = 0
    kept: dict[int, int] = field(default_factory=dict)
    tries: dict[int, int] = field(default_factory=dict)
    away: set[int] = field(default_factory=set)
    waiting: list[tuple[int, int]] = field(default_factory=list)
    fresh: int = 0

    def look(self) -> Sight | None:
        """Returns what stands against the coming attempt, or None where it is refused whatever it is."""
        if self.snapshots and self.step % EVERY == 0:
            self.kept[self.step] = self.position
            for old in sorted(self.kept)[:-KEEP]:
                del self.kept[old]
        self.batch = self._next_batch()
        if self.window:
            self.window -= 1
            self.refused += 1
            self.step += 1
            return None
        kind = self.bad(self)
        if not kind:
            self.row = self.refused_row = self.restored = 0
            return Sight((), self.step, {"loss": 2.0, "grad_norm": 1.0, "lr": 0.1}, tuple(self.kept), self._tries())
        self.onset = self.onset if self.row and self.lasting else self.step
        self.row += 1
        return Sight((self._event(kind),), self.step, self._values(kind), tuple(self.kept), self._tries())

    def take(self, action: Action) -> None:
        """Lets the answer have its consequences."""
        if action.takes_step:
            if self.step == self.hurts:
                self.hurt = self.position
            self.position += 1
            self.refused_row = 0
            if action.kind == "scale_update":
                self.tries[self.batch] = self._tries() + 1
        else:
            self.refused += 1
            self.refused_row += 1
            self._put_back(getattr(action, "data", "drop"))
        if isinstance(action, Rollback):
            self._restore(action)
        self.step += 1

    def _restore(self, action: Rollback) -> None:
        reached = max((each for each in self.kept if each <= action.before), default=None)
        if reached is None:
            return
        self.position, self.window = self.kept[reached], action.skip
        self.kept = {step: position for step, position in self.kept.items() if step <= reached}
        self.restored += 1
        if self.position <= self.hurt:
            self.hurt = -1

    def _next_batch(self) -> int:
        for place, (due, batch) in enumerate(self.waiting):
            if due <= self.step:
                del self.waiting[place]
                return batch
        while self.fresh % BATCHES in self.away and len(self.away) < BATCHES:
            self.fresh += 1
        self.fresh += 1
        return (self.fresh - 1) % BATCHES

    def _put_back(self, data: str) -> None:
        self.tries[self.batch] = self._tries() + 1
        if data == "quarantine":
            self.away.add(self.batch)
        elif data in ("requeue", "retry"):
            self.waiting.append((self.step + (1 if data == "retry" else AGAIN), self.batch))

    def _tries(self) -> int:
        return self.tries.get(self.batch, 0)

    def _values(self, kind: str) -> Mapping[str, float]:
        value = math.nan if kind == "nonfinite" else 9.0
        return {"loss": 2.0, "grad_norm": 1.0, "lr": 0.1, self.signal: value}

    def _event(self, kind: str) -> Event:
        data = {
            "records": self.row if self.lasting else 1, "refused": self.refused_row, "restored": self.restored,
            "width": "wide" if self.lasting and self.row >= 5 else "narrow", "chi": 1.3, "factor": 30.0,
        }  # fmt: skip
        height, severity = (math.nan, math.inf) if kind == "nonfinite" else (7.0, 350.0)
        return Event(kind, self.onset, self.onset, self.step, None, height, severity, self.signal, data)


def worlds() -> Iterator[tuple[str, World]]:
    """Yields worlds, each with what happens in it in words."""
    for kind, what in (("spike", "bad"), ("nonfinite", "not finite")):

        def always(world: World, kind: str = kind) -> str:
            return kind if world.step >= START else ""

        def poisoned(world: World, kind: str = kind) -> str:
            return kind if world.batch == 7 and world.step >= START else ""

        def damaged(world: World, kind: str = kind) -> str:
            lasts = kind == "nonfinite" or world.position - world.hurt <= CLOSES
            return kind if world.hurt >= 0 and lasts else ""

        every = f"every attempt from step {START} on is {what}"
        yield every, World(always)
        yield f"{every}, each an event of its own", World(always, lasting=False)
        yield f"{every}, and there are no snapshots", World(always, snapshots=False)
        yield f"one batch of {BATCHES} is {what} whenever it comes", World(poisoned, lasting=False)
        signal = "parameters" if kind == "nonfinite" else "loss"
        yield f"the update at step {START} damages the state", World(damaged, signal, hurts=START)

    for kind, signal in LATER:

        def warned(world: World, kind: str = kind) -> str:
            return kind if world.step >= START else ""

        yield f"every attempt from step {START} on brings {kind} of {signal}", World(warned, signal)

    def changed(world: World) -> str:
        return "spike" if START <= world.step < START + CLOSES else ""

    yield f"the data change for good at step {START}", World(changed)
