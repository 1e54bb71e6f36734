"""What a replay proves: the causes of an event weighed by which single changes removed it.

Each cause says how likely each change is to remove an event that it made (`REMOVES`). With the rules' scores as what
was believed before, the outcomes of the arms give, by Bayes, what is to be believed after. Arms are no independent
witnesses (halved rates, clipped updates and floors all shorten a step), so their joint weight is tempered.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from foreshock.diagnose.base import RULED_OUT, Cause
from foreshock.diagnose.wording import number, percent
from foreshock.run.event import Event
from foreshock.run.run import Run

ARMS = (
    "cut_lr", "hold_lr", "floor", "beta2", "clip_update", "clip_grad", "skip", "other_batches", "repair_moments",
    "reset_moments", "exact_softmax", "float64_loss", "float64",
)  # fmt: skip
REMOVES: Mapping[str, tuple[float, ...]] = {
    "landscape":          (0.90, 0.10, 0.45, 0.30, 0.60, 0.60, 0.15, 0.15, 0.10, 0.40, 0.04, 0.06, 0.10),
    "preconditioner":     (0.90, 0.10, 0.90, 0.50, 0.60, 0.40, 0.12, 0.12, 0.10, 0.40, 0.04, 0.06, 0.10),
    "update_burst":       (0.12, 0.03, 0.35, 0.40, 0.85, 0.55, 0.50, 0.30, 0.60, 0.20, 0.03, 0.03, 0.05),
    "softmax_absorption": (0.60, 0.05, 0.20, 0.30, 0.30, 0.50, 0.12, 0.12, 0.15, 0.30, 0.95, 0.95, 0.95),
    "outlier_batch":      (0.05, 0.03, 0.05, 0.05, 0.10, 0.10, 0.85, 0.96, 0.05, 0.08, 0.03, 0.03, 0.04),
    "schedule":           (0.25, 0.97, 0.10, 0.12, 0.80, 0.25, 0.40, 0.15, 0.12, 0.12, 0.03, 0.03, 0.05),
    "cold_start":         (0.06, 0.03, 0.05, 0.05, 0.08, 0.06, 0.20, 0.50, 0.05, 0.06, 0.03, 0.03, 0.04),
    "nonfinite":          (0.06, 0.05, 0.05, 0.05, 0.08, 0.40, 0.60, 0.50, 0.08, 0.08, 0.06, 0.10, 0.40),
}  # fmt: skip
"""Cause -> how likely each of `ARMS` removes an event that it made."""

OTHER, ANY, NOTHING = "", (0.3,) * len(ARMS), (0.04,) * len(ARMS)  # none of the causes: any change may do, or none
PRIOR_OTHER, PRIOR_UNJUDGED, LEAST = 0.1, 0.05, 0.01
TEMPER = 0.7  # of the arms' joint log-likelihood
QUOTED = 3  # arms for a cause, and as many against it, at the most
TELLING = 0.35  # difference from the other causes' mean expectation from which on an arm is quoted
BY_DATA = frozenset({"batch_size", "micro_batches"})  # a schedule of these is changed with the batches
DATA_ARMS = frozenset({"skip", "other_batches"})
CURVATURE = {"preconditioner": "the denominators", "landscape": "the landscape"}
CLEAR = 3
AHEAD, SOON, BELOW = 8.0, 2.0, 0.2  # factors on both where chi passed 1 three steps before the loss turned, less, never
CERTAIN = 0.05  # least share of either
MAKES_NO_SENSE = {  # an arm, a word of why it makes no sense -> the cause that it then cannot have been
    "hold_lr": ("does not rise", "schedule"),
    "other_batches": ("same data", "outlier_batch"),
    "floor": ("no second moments", "preconditioner"),
}
UNLIKELY = 0.1  # factor on that cause
FAILS = 0.95  # score of `not_reproducible` where the unchanged replay differs, the event does not come again ...
SEEN = 0.3  # ... and the rules had this much of a sign of it as well
ALONE, DOUBTFUL, LACKING = 0.85, 0.6, 0.4  # without; with random numbers, or objects, that could not be brought back
REPEATED = 0.1  # factor on it where the unchanged replay is bit for bit the record
REFERENCE = "replay of this run"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One arm of a replay: how much of the event it removed, 0 to 1, and its result in a few words."""

    name: str
    what: str
    gone: float
    said: str


def proven(run: Run, event: Event, judged: Sequence[Cause], asked: Sequence[str]) -> list[Cause]:
    """Returns the causes with what the newest replay of the event says of them; unchanged where there is none.

    Args:
        run: with its findings.
        event: one of its events.
        judged: the causes with the rules' scores.
        asked: names of the causes that were asked about, those that could not be judged included: the replay may
            bring them in.
    """
    found = run.findings_of(event, "replay")
    if not found:
        return list(judged)
    finding = _merged(found)
    if not finding.get("reproducible") and not finding.get("returns"):
        return _irreproducible(judged, finding)
    outcomes = _outcomes(finding)
    calm = [_repeated(cause, finding) if cause.name == "not_reproducible" else cause for cause in judged]
    known = {cause.name: cause for cause in calm}
    excluded = _excluded(finding, known)
    if not outcomes and not excluded:
        return calm
    names = [name for name in dict.fromkeys([*known, *asked]) if name in REMOVES]
    prior = {name: max(LEAST, known[name].score) if name in known else PRIOR_UNJUDGED for name in names}
    fits = {name: _fit(REMOVES[name], outcomes, known.get(name)) for name in names}
    weights = {
        name: prior[name] * math.exp(TEMPER * fits[name]) * (UNLIKELY if name in excluded else 1.0) for name in names
    }
    neither = [math.exp(TEMPER * _fit(expected, outcomes, None)) for expected in (ANY, NOTHING)]
    weights[OTHER] = PRIOR_OTHER * sum(neither) / len(neither)
    measured = _parted(weights, finding.get("edge"))
    total = sum(weights.values())
    result = [cause for cause in calm if cause.name not in REMOVES]
    for name in names:
        cause, score = known.get(name), weights[name] / total
        if cause is None and score < prior[name]:
            continue  # it cannot be judged, and the replay does not speak for it
        for_it, against = _telling(name, names, outcomes)
        against = [*excluded.get(name, ()), *against]
        for_it += measured if name in CURVATURE else []
        if cause is None:
            said = tuple(for_it) or ("The record does not tell; what the arms of the replay did fits it.",)
            result.append(Cause(name, score, said, tuple(against), (), (REFERENCE,), ()))
            continue
        likely = score >= max(cause.score, RULED_OUT)
        evidence = (*(for_it if likely else against), *cause.evidence)
        result.append(
            replace(cause, score=score, evidence=evidence, contradicts=(*against, *cause.contradicts))
            if for_it or against else replace(cause, score=score)
        )
    return result


def _parted(weights: dict[str, float], edge: Any) -> list[str]:
    """Parts what curvature has between denominators and landscape as chi, read along the replay, says; in words too."""
    if not isinstance(edge, Mapping):
        return []
    chi = [_float(each) for each in edge.get("chi") or ()]
    passed, lead, shares = edge.get("passed"), edge.get("lead"), edge.get("shares")
    if passed is None or not chi:
        if edge.get("verdict") == "unexplained":
            for name in CURVATURE:
                weights[name] = weights.get(name, 0.0) * BELOW
            return [f"Read {len(chi)} times along the replay, chi stayed below 1 (at most {number(max(chi))})."]
        return []
    said = f"Read {len(chi)} times along the replay, chi passed 1 at step {passed:,}"
    parts = {name: max(0.0, _float(shares.get(name))) for name in CURVATURE} if isinstance(shares, Mapping) else {}
    if isinstance(lead, int) and lead > 0:
        said += f", {lead:,} steps before the loss turned"
        for name in CURVATURE:
            weights[name] = weights.get(name, 0.0) * (AHEAD if lead >= CLEAR else SOON)
    whole = sum(parts.values())
    if whole > 0 and len(parts) == len(CURVATURE):
        both = sum(weights.get(name, 0.0) for name in CURVATURE)
        for name in CURVATURE:
            weights[name] = both * min(1 - CERTAIN, max(CERTAIN, parts[name] / whole))
        told = " and ".join(f"{percent(parts[name] / whole)} from {what}" for name, what in CURVATURE.items())
        said += f"; its growth up to there came {told}"
    return [f"{said}."]


def _merged(findings: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Returns the newest replay, with the arms of those before it that began and ended alike; the newest of each."""
    newest = findings[-1]
    like = [each for each in findings if all(each.get(name) == newest.get(name) for name in ("start", "reproducible"))]
    arms = {str(arm.get("name")): arm for each in like for arm in _arms(each)}
    edge = next((each["edge"] for each in reversed(like) if each.get("edge")), None)
    return {**newest, "arms": list(arms.values()), "edge": edge}


def _outcomes(finding: Mapping[str, Any]) -> list[Outcome]:
    """Returns the arms that were run, and are known."""
    found = []
    gone = {"removed": 1.0, "weakened": 0.5, "stays": 0.0, "worse": 0.0}
    for arm in _arms(finding):
        verdict = str(arm.get("verdict"))
        if arm.get("name") in ARMS and verdict in gone:
            instead = f"peak {number(_float(arm.get('peak')))} instead of {number(_float(finding.get('peak')))}"
            words = {"removed": "is gone", "weakened": "is weaker", "stays": "stays", "worse": "is worse"}[verdict]
            what = str(arm.get("what") or arm["name"])
            found.append(Outcome(arm["name"], what, gone[verdict], f"{words} ({instead})"))
    return found


def _arms(finding: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    arms = finding.get("arms")
    return [arm for arm in arms if isinstance(arm, Mapping)] if isinstance(arms, list | tuple) else []


def _float(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _excluded(finding: Mapping[str, Any], known: Mapping[str, Cause]) -> dict[str, list[str]]:
    """Returns causes that an event cannot have where the arm against them makes no sense, each with the reason."""
    found = {}
    for arm in _arms(finding):
        word, cause = MAKES_NO_SENSE.get(str(arm.get("name")), ("", ""))
        by_data = cause == "schedule" and cause in known and not BY_DATA.isdisjoint(known[cause].signals)
        if word and arm.get("verdict") == "not applicable" and word in str(arm.get("why")) and not by_data:
            found[cause] = [f"In the steps that were run again, {arm['why']}."]
    return found


def _peak(found: Mapping[str, Any]) -> str:
    """Returns the peak of an arm or of the original; "?" where another version has left it out."""
    peak = found.get("peak")
    return number(float(peak)) if isinstance(peak, int | float) else "?"


def _fit(expected: Sequence[float], outcomes: Sequence[Outcome], cause: Cause | None) -> float:
    """Returns the log-likelihood of what the arms did."""
    by_data = cause is not None and cause.name == "schedule" and not BY_DATA.isdisjoint(cause.signals)
    total = 0.0
    for outcome in outcomes:
        if by_data and outcome.name in DATA_ARMS:
            continue
        p = expected[ARMS.index(outcome.name)]
        total += outcome.gone * math.log(p) + (1 - outcome.gone) * math.log(1 - p)
    return total


def _telling(name: str, names: Sequence[str], outcomes: Sequence[Outcome]) -> tuple[list[str], list[str]]:
    """Returns what the arms say for a cause and against it, by those that tell it best from the others; cures first."""
    told: list[tuple[bool, bool, float, str]] = []
    others = [REMOVES[other] for other in names if other != name] or [ANY]
    for outcome in outcomes:
        place = ARMS.index(outcome.name)
        own = REMOVES[name][place]
        apart = abs(own - sum(other[place] for other in others) / len(others))
        if apart < TELLING:
            continue
        agrees = outcome.gone >= 0.5 if own > 0.5 else outcome.gone < 0.5
        said = f"Run again with `{outcome.name}` ({outcome.what}), the spike {outcome.said}."
        told.append((agrees, outcome.gone < 0.5, -apart, said))
    told.sort()
    for_it, against = ([said for agrees, _, _, said in told if agrees is wanted][:QUOTED] for wanted in (True, False))
    return for_it, against


def _repeated(cause: Cause, finding: Mapping[str, Any]) -> Cause:
    said = "Run again from a snapshot, the training repeats bit for bit: it is reproducible."
    if not finding.get("reproducible"):
        said = "Run again from a snapshot, the training is not the record bit for bit, but the event comes again."
    return replace(cause, score=cause.score * REPEATED, evidence=(said, *cause.evidence))


def _irreproducible(judged: Sequence[Cause], finding: Mapping[str, Any]) -> list[Cause]:
    """Returns the causes with that of a replay that differs on top, and all others less likely by as much."""
    old = next((cause for cause in judged if cause.name == "not_reproducible"), None)
    fails = FAILS if old is not None and old.score >= SEEN else ALONE
    if finding.get("beside") or finding.get("drawn"):
        fails = LACKING if finding.get("beside") else DOUBTFUL
    said, again = _differs(finding)
    made = Cause("not_reproducible", fails, (said,)) if old is None else old
    evidence = (said, again, *(() if old is None else old.evidence))
    note = f"The replay differs from the record ({percent(fails)} `not_reproducible`)."
    rest = [
        replace(cause, score=cause.score * (1 - fails) ** 0.5, evidence=(*cause.evidence, note))
        for cause in judged if cause.name != "not_reproducible"
    ]
    return [replace(made, score=max(fails, made.score), evidence=tuple(filter(None, evidence))), *rest]


def _differs(finding: Mapping[str, Any]) -> tuple[str, str]:
    """Returns where a replay differs from the record, and what a second try says of that."""
    at = finding.get("differs_at")
    where = f" at step {at:,}" if isinstance(at, int) else ""
    said = f"Run again from the same state on the same batches, the training differs from the record{where}"
    beside = finding.get("beside")
    if beside and isinstance(beside, (list, tuple)):
        names = ", ".join(f"`{each}`" for each in beside)
        return f"{said}.", (
            f"`step_fn` changes {names}, which the history does not hold, so that they could not be brought back: give "
            "them to `History(...)`."
        )
    if finding.get("drawn"):
        return f"{said}.", "The loop draws random numbers between its steps, which could not be drawn again."
    again = {
        True: "A second try gives the first one's losses: what happened then is not in `step_fn`: a fault of the "
        "hardware, or something outside of it that changed weights, state or data.",
        False: "A second try differs again: some operation of it is not deterministic.",
    }
    return f"{said}, and the event does not come.", again.get(finding.get("repeats"), "")  # type: ignore[arg-type]
