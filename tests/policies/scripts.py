"""Scripted events for policies, and the loop that answers them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from foreshock.policies import Action, Policy, Sight
from foreshock.run import Event


def event(raised: int, kind: str = "spike", signal: str = "loss", *, onset: int | None = None, **data: Any) -> Event:
    height = math.nan if kind == "nonfinite" else 1.5
    return Event(kind, raised, raised if onset is None else onset, raised, None, height, 60.0, signal, data)


def row(n: int, start: int = 300, kind: str = "spike", signal: str = "loss") -> list[tuple[int, Event]]:
    """Returns n attempts in a row against which one event stands, with the steps they happen at."""
    return [(start + i, event(start, kind, signal, records=i + 1)) for i in range(n)]


def answered(
    policy: Policy,
    attempts: Iterable[tuple[int, Event] | tuple[int, Event, int]],
    *,
    snapshots: Sequence[int] = (),
    values: dict[str, float] | None = None,
    past: Sequence[Action] = (),
) -> list[Action]:
    """Returns what a policy answers to attempts (step, event, tries), each with what it did before as its past."""
    actions = list(past)
    answers = []
    for step, what, *tries in attempts:
        known = tuple(each for each in snapshots if each <= step)
        answer = replace(policy(Sight((what,), step, values or {}, known, *tries), actions), step=step)
        answers.append(answer)
        if answer.kind != "proceed":
            actions.append(answer)
    return answers


def words(answers: Iterable[Action]) -> list[str]:
    """Returns actions in a word each: kind, and what becomes of the data, the factor, or the step to go back before."""
    told = ("data", "factor", "before")
    return [
        " ".join([each.kind, *(str(getattr(each, name)) for name in told if hasattr(each, name))]) for each in answers
    ]
