"""The contract of policies."""

from __future__ import annotations

import json
import math
import os
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from foreshock.policies.sight import Policy, Sight
from foreshock.run import action as known
from foreshock.run.action import Action, Cause, Proceed
from foreshock.run.event import KINDS, Event
from foreshock.testing.contract import ContractError
from foreshock.testing.worlds import START, World, worlds

ATTEMPTS = 2400  # in each world, at most
LAST = ATTEMPTS // 4
SETTLED = 300  # attempts in a row that were taken, since the trouble began: that is an end
PASTS = 3  # that each sight is shown with
STANDING = ("clip_update", "floor")  # bounds, which leave a calm step as it is

Case = tuple[Sequence[Event], list[Action]]


def check_policy(policy: Policy) -> None:
    """Runs the contract of policies on one: a function of events and past actions that returns an `Action`.

    Every policy: answers every kind of event, several at once and none, as a `Sight` or as a plain list, with a
    well-formed action; survives NaN, infinite, missing and senseless data; changes nothing and remembers nothing
    but what it is shown; is deterministic, so that all ranks, which see the same events, do the same; does not
    intervene where nothing stands against the step, but for the standing bounds `ClipUpdate` and `Floor`; never
    lets a step that is not finite pass without a reason; stops with a reason; decides the same when its past was
    written to JSON and read again. And it comes to an end: in small worlds where every attempt is bad, where one batch
    is, where the state is damaged until it is restored, where there are no snapshots and where the data change for
    good, it goes on training or stops, and refuses no steps for ever.

    Raises:
        ContractError: at the first broken clause; an AssertionError, so test runners show it as a failure.

    >>> from foreshock.policies import ling
    >>> check_policy(ling())
    """
    cases = [(sight, past) for sight in _sights() for past in _pasts(sight)]
    answers = _check_answers(policy, cases)
    _check_survives(policy)
    _check_pure(policy, cases, answers)
    _check_ranks(policy, cases)
    _check_calm(policy)
    for what, world in worlds():
        _check_life(policy, what, world)


def _check_answers(policy: Policy, cases: Sequence[Case]) -> list[Action]:
    answers = []
    for sight, past in cases:
        answers.append(_ask(policy, sight, past))
        _check_answer(answers[-1], sight)
        _through_json(answers[-1])
    return answers


def _check_answer(answer: Action, sight: Sequence[Event]) -> None:
    if not len(sight) and answer == Proceed():
        return
    shown = ", ".join(f"{each.kind} of {each.signal}" for each in sight) or "no event"
    if not isinstance(answer, Action):
        raise ContractError(f"answers: {answer!r} to {shown}; a policy returns an Action, e.g. Proceed()")
    numbers = {name: getattr(answer, name) for name in ("factor", "limit", "kappa") if hasattr(answer, name)}
    wrong = None
    if answer.kind not in known.KINDS:
        wrong = f"unknown kind {answer.kind!r}; the kinds are {', '.join(known.KINDS)}"
    elif any(not (isinstance(x, (int, float)) and math.isfinite(x) and x > 0.0) for x in numbers.values()):
        wrong = "its number must be finite and above 0 (a step is left out by Skip, not by scaling with 0)"
    elif numbers.get("factor", 0.0) > 1.0:
        wrong = "a factor above 1 makes the step larger"
    elif getattr(answer, "steps", 1) < 1 or getattr(answer, "skip", 0) < 0:
        wrong = "it must last at least 1 step, and cannot skip fewer than none"
    elif isinstance(sight, Sight) and getattr(answer, "before", sight.step) > sight.step:
        wrong = f"it goes back to a step that is still to come, at step {sight.step}"
    elif answer.kind == "stop" and not answer.reason:
        wrong = "a stop must give its reason"
    if wrong:
        raise ContractError(f"answers: {wrong}: {answer}, to {shown}")
    loud = [each for each in sight if each.kind == "nonfinite"]
    if loud and answer.takes_step and not answer.reason:
        raise ContractError(
            f"non-finite: {answer} to a {loud[0].signal} that is not finite takes the step and says nothing; return "
            "Skip, or put foreshock.policies.refuse_nonfinite() in front of the policy with first_of"
        )


def _check_survives(policy: Policy) -> None:
    awkward: tuple[Any, ...] = (math.nan, math.inf, -math.inf, 0.0, -1.0, 1e308, None, "wide", [1.0], {})
    names = ("records", "refused", "restored", "width", "chi", "chi_gradient_sym", "factor", "alignment", "value")
    chooser = random.Random(3)
    for kind in KINDS:
        for _ in range(40):
            data = {name: chooser.choice(awkward) for name in names if chooser.random() < 0.7}
            height, severity = (chooser.choice(awkward[:6]) for _ in range(2))
            signal = chooser.choice(("loss", "grad_norm", "parameters", "lr", "chi", "", "of my own"))
            event = Event(kind, 50, chooser.choice((0, 49, 50)), 50, None, height, severity, signal, data)
            values = {name: chooser.choice(awkward[:6]) for name in ("loss", "chi", "lr") if chooser.random() < 0.7}
            snapshots = chooser.choice(((), (0,), (10, 40, 50)))
            sight = Sight((event,), 50, values, snapshots, chooser.choice((0, 1, 9)))
            for shown in (sight, [event], (event, event)):
                _check_answer(_ask(policy, shown, chooser.choice(_pasts(sight))), shown)


def _check_pure(policy: Policy, cases: Sequence[Case], answers: Sequence[Action]) -> None:
    before = [_dump(sight) for sight, _ in cases[::PASTS]]
    for (sight, past), first in reversed(list(zip(cases, answers, strict=True))):
        second = _ask(policy, sight, past)
        if second != first:
            raise ContractError(
                f"pure: the same events and {len(past)} past actions were answered by {first} and then by {second}; a "
                "policy must keep no memory of its own and draw no numbers: its memory is the actions"
            )
    if [_dump(sight) for sight, _ in cases[::PASTS]] != before:
        raise ContractError("pure: the policy changed the data of the events that it was shown")


def _check_ranks(policy: Policy, cases: Sequence[Case]) -> None:
    for sight, past in cases[PASTS - 1 :: 5 * PASTS]:
        events, read = _again(sight), [_through_json(each) for each in past]
        answers = []
        for rank in ("0", "1"):
            with _rank(rank):
                answers.append(_ask(policy, events, read))
        if answers[0] != answers[1]:
            raise ContractError(f"ranks: rank 0 answered {answers[0]} and rank 1 {answers[1]} to the same events")


def _check_calm(policy: Policy) -> None:
    calm = Sight((), 900, {"loss": 2.0, "chi": 0.4, "lr": 0.1}, (800, 890))
    shown: tuple[Sequence[Event], ...] = ([], (), Sight(), calm)
    for sight in shown:
        for past in _pasts(sight):
            answer = _ask(policy, sight, past)
            if answer.kind != "proceed" and answer.kind not in STANDING:
                raise ContractError(f"calm: {answer} where nothing stands against the step; return Proceed()")


def _check_life(policy: Policy, what: str, world: World) -> None:
    """Lives in a world, with a second self beside it whose past went through JSON at each attempt."""
    past: list[Action] = []
    read: list[Action] = []
    accepted: Cause | None = None  # acceptances are logged once a cause, as a guard does
    middle = taken = 0
    while world.step < ATTEMPTS and taken < SETTLED:
        if world.step == ATTEMPTS - LAST:
            middle = world.position
        sight = world.look()
        if sight is None:
            continue
        answer = _ask(policy, sight, past)
        _check_answer(answer, sight)
        if len(sight) and _ask(policy, sight, read) != answer:
            raise ContractError(
                f"resumes: in a world where {what}, at step {sight.step}, it decides differently when its past was "
                "written to JSON and read again"
            )
        if answer.kind == "stop":
            return
        if answer.kind != "proceed" or (answer.reason and answer.cause != accepted):
            past.append(replace(answer, step=sight.step))
            read.append(_through_json(past[-1]))
        accepted = answer.cause if answer.kind == "proceed" else None
        world.take(answer)
        taken = taken + 1 if answer.takes_step and world.step > START else 0
    if taken < SETTLED and world.position - middle < LAST // 4:
        last = past[-1] if past else None
        raise ContractError(
            f"ends: in a world where {what}, the last {LAST} of {ATTEMPTS} attempts brought "
            f"{world.position - middle} steps, {world.refused} attempts were refused and the last action was {last}; a "
            "policy must come to an end: wrap it in foreshock.policies.capped, accept the step with a reason, or Stop"
        )


def _sights() -> Iterator[Sequence[Event]]:
    """Yields what a guard may show: one event of each kind and signal, several at once, early and late, and none."""
    single = []
    for kind in KINDS:
        for signal in ("loss", "grad_norm", "parameters", "lr", "chi_gradient", "optimizer_state"):
            data = {"records": 1, "refused": 0, "width": "narrow", "restored": 0, "chi": 1.3, "factor": 60.0}
            value = math.nan if kind == "nonfinite" else 1.5
            single.append(Event(kind, 300, 299, 300, None, value, 60.0, signal, data))
    values = {"loss": 3.0, "grad_norm": 1.0, "lr": 0.1, "chi": 1.3}
    yield Sight()
    yield []
    for event in single:
        for tries in (0, 1, 2):
            yield Sight((event,), 300, values, (100, 250, 290, 300), tries)
        wide = Event(event.kind, 290, 290, 295, None, event.height, 60.0, event.signal, {"records": 11, "restored": 1})
        yield Sight((wide,), 300, values, (100, 250, 290, 300))
        yield Sight((event,), 300)
        yield [event]
    yield Sight(tuple(single), 300, values, (100, 250))
    yield tuple(single[::-1])


def _pasts(sight: Sequence[Event]) -> list[list[Action]]:
    """Returns none, and one of every kind of action, about this event and about others, in order."""
    cause = sight[0].key if len(sight) else None
    made = []
    for place, kind in enumerate(("skip", "scale_update", "rollback", "cut_lr", "floor", "clip_update", "stop")):
        fields = {"factor": 0.5, "limit": 1.0, "before": 250}
        for step, why in ((180 + place, ("spike", "loss", 170)), (285 + place, cause)):
            made.append(Action.from_dict(fields | {"kind": kind, "step": step, "reason": "before", "cause": why}))
    made.sort(key=lambda each: each.step)
    return [[], made[-3:], made]


def _ask(policy: Policy, sight: Sequence[Event], past: Sequence[Action]) -> Action:
    shown, given = list(sight) if isinstance(sight, list) else sight, list(past)
    try:
        answer = policy(shown, given)
    except Exception as error:
        raise ContractError(
            f"survives: the policy raised {type(error).__name__}: {error}, on {list(sight)} after {len(past)} actions"
        ) from error
    if len(shown) != len(sight) or given != past:
        raise ContractError("pure: the policy changed the list of events or of actions that it was shown")
    return answer


def _dump(events: Sequence[Event]) -> str:
    """Events as text, so that NaN equals NaN."""
    return json.dumps([each.to_dict() for each in events])


def _again(sight: Sequence[Event]) -> Sequence[Event]:
    """Returns the same events as another process would hold them."""
    events = tuple(Event.from_dict(fields) for fields in json.loads(_dump(sight)))
    if isinstance(sight, Sight):
        return Sight(events, sight.step, dict(sight.values), tuple(sight.snapshots), sight.tries)
    return list(events)


def _through_json(action: Action) -> Action:
    try:
        again = Action.from_dict(json.loads(json.dumps(action.to_dict())))
    except (TypeError, ValueError) as error:
        raise ContractError(f"answers: {action} cannot be written to JSON and read again: {error}") from error
    if again != action:
        raise ContractError(f"answers: {action} is another one when it was written to JSON and read again: {again}")
    return again


@contextmanager
def _rank(rank: str) -> Iterator[None]:
    """Makes the process look like one of several, as far as the environment says so."""
    names = ("RANK", "LOCAL_RANK")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, rank))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
