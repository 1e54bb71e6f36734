"""Ranks the causes of an event by what the run tells."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from foreshock.diagnose import (
    cold_start,
    edge,
    nonfinite,
    not_reproducible,
    outlier_batch,
    proof,
    schedule,
    softmax_absorption,
    update_burst,
)
from foreshock.diagnose.base import LIKELY, RULED_OUT, TITLES, Cause, Diagnosis, Rule, Unjudged
from foreshock.diagnose.landscape import landscape
from foreshock.diagnose.preconditioner import preconditioner
from foreshock.diagnose.wording import percent
from foreshock.run.event import Event, family
from foreshock.run.run import Run

RULES: tuple[Rule, ...] = (
    Rule(
        "softmax_absorption", softmax_absorption.softmax_absorption, softmax_absorption.KINDS, softmax_absorption.NEEDS,
        softmax_absorption.BETTER, explains=("outlier_batch", "update_burst", "preconditioner", "landscape"),
    ),
    Rule("preconditioner", preconditioner, edge.KINDS, edge.NEEDS, edge.BETTER),
    Rule("landscape", landscape, edge.KINDS, edge.NEEDS, edge.BETTER),
    Rule(
        "outlier_batch", outlier_batch.outlier_batch, outlier_batch.KINDS, outlier_batch.NEEDS, outlier_batch.BETTER,
    ),
    Rule(
        "update_burst", update_burst.update_burst, update_burst.KINDS, update_burst.NEEDS, update_burst.BETTER,
        explains=("preconditioner", "landscape"),
    ),
    Rule(
        "schedule", schedule.schedule, schedule.KINDS, schedule.NEEDS,
        explains=("outlier_batch", "update_burst", "preconditioner", "landscape"),
    ),
    Rule(
        "cold_start", cold_start.cold_start, cold_start.KINDS, cold_start.NEEDS, cold_start.BETTER,
        explains=("outlier_batch", "update_burst", "preconditioner", "landscape"),
    ),
    Rule(
        "nonfinite", nonfinite.nonfinite, nonfinite.KINDS, nonfinite.NEEDS, nonfinite.BETTER,
        explains=("outlier_batch", "update_burst"),
    ),
    Rule(
        "not_reproducible", not_reproducible.not_reproducible, not_reproducible.KINDS, not_reproducible.NEEDS,
        not_reproducible.BETTER,
        explains=("cold_start", "nonfinite", "outlier_batch", "update_burst", "preconditioner", "landscape"),
    ),
)  # fmt: skip
"""The rules of the shipped causes."""

CALLED = {
    "nonfinite": "value that is no number", "watch": "passage of chi above 1", "imminent": "warning of the edge",
    "transient": "short passage of chi above 1", "absorbing": "absorption", "inflating": "inflation of the head",
}  # fmt: skip
"""Kinds of events in a sentence, where the kind itself is no noun."""

SURE = 0.9  # and from which on the summary says nothing of those that were not judged


def diagnose(run: Run, event: Event, rules: Sequence[Rule] = RULES) -> Diagnosis:
    """Returns why an event happened: the causes ranked by what the run tells, each with its evidence.

    Several may hold. Where none is likely the first is `unexplained`, with what was ruled out. What the run does not
    tell about is listed with the signals that would have told, so that imported runs are judged by what they have.

    Args:
        run: the run, complete or so far.
        event: one of its events, e.g. of `foreshock.scan(run)`.
        rules: the causes to judge.

    >>> from foreshock.run import Run
    >>> run = Run.from_arrays({"loss": [2.0, 2.1] * 20 + [9.0] + [2.0, 2.1] * 20, "lr": [0.1] * 81})
    >>> found = diagnose(run, Event("spike", 40, 40, 40, 40, 7.0, 100.0, "loss"))
    >>> found.best.name, round(found["outlier_batch"].score, 1), found["schedule"].score < RULED_OUT
    ('unexplained', 0.5, True)
    >>> found.unjudged[0].signals
    ('softmax_absorbed', 'softmax_residual')
    """
    judged: list[Cause] = []
    unjudged: list[Unjudged] = []
    wanted = [rule for rule in rules if _concerns(rule, event)]
    for rule in wanted:
        cause = rule.judge(run, event)
        if cause is None:
            unjudged.append(_unjudged(run, rule))
        else:
            judged.append(cause)
    judged = proof.proven(run, event, _explained_away(judged, wanted), [rule.name for rule in wanted])
    known = {cause.name for cause in judged}
    unjudged = [each for each in unjudged if each.cause not in known]
    judged.sort(key=lambda cause: -cause.score)
    causes = [cause for cause in judged if cause.score >= RULED_OUT]
    out = [cause for cause in judged if cause.score < RULED_OUT]
    curved = sum(cause.score for cause in causes if cause.name in proof.CURVATURE)  # two parts of one cause
    if max([curved, *(cause.score for cause in causes)]) < LIKELY:
        causes = sorted([*causes, _unexplained(run, causes, out, unjudged)], key=lambda cause: -cause.score)
    return Diagnosis(event, tuple(causes), tuple(out), tuple(unjudged), _summary(event, causes, out, unjudged))


def _concerns(rule: Rule, event: Event) -> bool:
    """Returns whether a cause can be asked of an event; warnings of the softmax are about nothing else."""
    return event.kind in rule.kinds and (family(event) != "softmax" or rule.name == "softmax_absorption")


def _unjudged(run: Run, rule: Rule) -> Unjudged:
    lacking = tuple(name for name in rule.needs if name not in run)
    if lacking:
        return Unjudged(rule.name, "not recorded: " + ", ".join(lacking), lacking)
    return Unjudged(rule.name, f"{' and '.join(rule.needs)} not read close enough before the event", rule.needs)


def _explained_away(judged: list[Cause], rules: Sequence[Rule]) -> list[Cause]:
    """Returns the causes with those weakened whose signs another one brings about itself."""
    for rule in rules:
        strong = next((cause for cause in judged if cause.name == rule.name and cause.score >= LIKELY), None)
        if strong is None:
            continue
        note = f"`{strong.name}` ({percent(strong.score)}) brings such signs about itself."
        judged = [
            replace(each, score=each.score * (1 - strong.score), evidence=(*each.evidence, note))
            if each.name in rule.explains and each.score >= RULED_OUT
            else each
            for each in judged
        ]
    return judged


def _unexplained(run: Run, causes: Sequence[Cause], out: Sequence[Cause], unjudged: Sequence[Unjudged]) -> Cause:
    none = math.prod(1.0 - cause.score for cause in causes)  # as if each were judged by itself
    said = [f"Not {cause.title}: {cause.evidence[0]}" for cause in out]
    said += [f"Perhaps {cause.title} ({percent(cause.score)}): {cause.evidence[0]}" for cause in causes]
    advice = [] if any(cause.name == "outlier_batch" for cause in out) else [
        "Look at the batch of the onset step: one bad batch moves nothing before it."
    ]  # fmt: skip
    wanted = list(dict.fromkeys(name for each in unjudged for name in each.signals))
    lacking = [name for name in wanted if name not in run]
    if len(lacking) < len(wanted):
        rare = ", ".join(f"`{name}`" for name in wanted if name in run)
        advice.append(f"Look more often, or give it more of the time (`every`, `max_overhead`): {rare}.")
    if lacking:
        named = ", ".join(f"`{name}`" for name in lacking)
        advice.append(f"Record more, so that the next one can be judged: {named}.")
    return Cause("unexplained", none, tuple(said), advice=tuple(advice))


def _summary(event: Event, causes: Sequence[Cause], out: Sequence[Cause], unjudged: Sequence[Unjudged]) -> str:
    best = causes[0]
    where = f"The {CALLED.get(event.kind, event.kind)} at step {event.peak:,}"
    if best.name == "unexplained":
        said = [f"{where} is unexplained by what was recorded."]
    else:
        said = [f"{where} was made by {best.title} ({percent(best.score)}). {best.evidence[0]}"]
        others = [f"{cause.title} ({percent(cause.score)})" for cause in causes[1:] if cause.name != "unexplained"]
        said += [f"It may also have been {' or '.join(others)}."] if others else []
    if out:
        said.append(f"Ruled out: {', '.join(cause.title for cause in out)}.")
    if unjudged and (best.name == "unexplained" or best.score < SURE):
        told = (f"{TITLES.get(each.cause, each.cause)} ({each.why})" for each in unjudged)
        said.append(f"Not judged: {'; '.join(told)}.")
    return " ".join(said)
