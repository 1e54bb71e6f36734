"""What a policy is shown: the events that stand against one attempt of a step, and the numbers they come from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import overload

from foreshock.run.action import Action
from foreshock.run.event import Event

Policy = Callable[[Sequence[Event], Sequence[Action]], Action]
"""A policy: a function of the events that stand against this attempt (a `Sight`) and of the interventions so far,
oldest first. It decides and does nothing, and all it remembers is what those two tell."""


@dataclass(frozen=True, slots=True)
class Sight(Sequence[Event]):
    """The events that stand against one attempt of an optimizer step, as a sequence.

    Attributes:
        events: what speaks against taking this step as it is; empty when all is calm.
        step: the attempt's number.
        values: the signals of this attempt, before its update: loss, grad_norm, lr, chi and so on, where measured.
        snapshots: steps of the states that a rollback could go back to, ascending.
        tries: how often this batch has been refused before; 0 where nobody knows it again.
    """

    events: tuple[Event, ...] = ()
    step: int = 0
    values: Mapping[str, float] = field(default_factory=dict)
    snapshots: tuple[int, ...] = ()
    tries: int = 0

    @overload
    def __getitem__(self, place: int) -> Event: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Event]: ...
    def __getitem__(self, place: int | slice) -> Event | Sequence[Event]:
        return self.events[place]

    def __len__(self) -> int:
        return len(self.events)

    def __iter__(self) -> Iterator[Event]:
        return iter(self.events)


def seen(events: Sequence[Event]) -> Sight:
    """Returns events as a `Sight`: as they are, or plain ones with the last step at which one was raised.

    >>> seen([]).step, len(seen([]))
    (0, 0)
    """
    if isinstance(events, Sight):
        return events
    return Sight(tuple(events), max((event.raised for event in events), default=0))
