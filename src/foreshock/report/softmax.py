"""What the page shows of a softmax in low precision: the levels on the loss, absorption, head and features, steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from foreshock.detect.series import series
from foreshock.detect.softmax_levels import COSINE, NATS, RESIDUAL
from foreshock.diagnose.absorption import Slide, slide
from foreshock.diagnose.base import LIKELY, Diagnosis
from foreshock.diagnose.wording import count, number, percent
from foreshock.report import encode, loss_curve
from foreshock.report.columns import wants_log
from foreshock.report.decimate import keep
from foreshock.report.phrase import Phrase
from foreshock.run import Run
from foreshock.run.event import Event

BUCKETS = 400  # two points each, in every curve
BEFORE, AFTER = 0.35, 0.15  # the picture shows so many lengths of the slide before and after it
SHORT = 60  # and at least so many steps
GREW = 1.1  # growth that is worth a word
TELLING: Mapping[str, str] = {
    "absorbing": "the right class's gradient of most rows is rounded to zero; the class sums no longer vanish",
    "inflating": "head and features inflate in opposite directions, and all logits drift away together",
    "imminent": "one step shifts a logit by more than a nat",
}


@dataclass(frozen=True, slots=True)
class Softmax:
    """An event that a softmax in low precision made.

    Attributes:
        slide: since when it absorbed, inflated, and how long before the loss.
        sentence: that in words.
        levels: (name, first step, last step) of each level reached, adjacent.
        first: first step to show.
        last: last step to show.
    """

    slide: Slide
    sentence: Sequence[Phrase]
    levels: tuple[tuple[str, int, int], ...]
    first: int
    last: int


def softmax(run: Run, event: Event, diagnosis: Diagnosis) -> Softmax | None:
    """Returns the story of an event; None where its diagnosis is another, or the softmax was not at work before it.

    Args:
        run: the run, complete or so far.
        event: the event.
        diagnosis: of that event.
    """
    if diagnosis.best.name != "softmax_absorption" or diagnosis.best.score < LIKELY:
        return None
    found = slide(run, event)
    if found is None or found.since is None:
        return None
    end = found.last if found.rise is None else max(found.rise, found.last)
    length = max(SHORT, end - found.since)
    after = max(end, event.peak if event.end is None else min(event.end, event.peak + round(AFTER * length)))
    steps = run.steps
    first = max(int(steps[0]), found.since - max(SHORT, round(BEFORE * length)))
    last = min(int(steps[-1]), after + max(SHORT, round(AFTER * length)))
    return Softmax(found, _sentence(found), _levels(found, end), first, last)


def line(found: Slide) -> str:
    """Returns verdict and lead in one line of text, for tables and terminals."""
    steps = {"absorbed": found.since, "inflated": found.inflating, "above a nat a step": found.imminent}
    known = ", ".join(f"{name} from {step:,}" for name, step in steps.items() if step is not None)
    ahead = "the loss has not risen" if found.lead is None else f"{count(found.lead, 'step')} ahead of the loss"
    return f"softmax in low precision: {known}; {ahead}"


def to_json(run: Run, found: Softmax, sentence: Sequence[Phrase] | None = None) -> dict[str, object]:
    """Returns what the page draws the story from; `sentence` for another than its own."""
    here = run.window(found.first, found.last + 1)
    return {
        "sentence": [asdict(phrase) for phrase in sentence or found.sentence],
        "first": found.first,
        "last": found.last,
        "levels": [[*level, TELLING[level[0]]] for level in found.levels],
        "since": found.slide.since,
        "rise": found.slide.rise,
        **loss_curve.story(here, found.first, found.last, BUCKETS),
        "panels": [panel for panel in _panels(here) if panel["curves"]],
    }


def _sentence(found: Slide) -> list[Phrase]:
    begin, end = found.begin, found.end
    low, high = sorted((begin["absorbed"], end["absorbed"]))
    share = percent(high) if percent(low) == percent(high) else f"{low * 100:.0f} to {percent(high)}"
    said = [
        Phrase("A softmax in low precision: from step "), Phrase(f"{found.since:,}", "figure"),
        Phrase(" on the right class's gradient of "), Phrase(share, "figure"),
        Phrase(" of the rows was rounded to zero"),
    ]  # fmt: skip
    if found.inflating is not None:
        said += [Phrase(", and "), *_grown(found)]
    shift = found.most.get("sensitivity")
    if shift is not None and shift > NATS:
        said += [Phrase(", until one step shifted a logit by "), Phrase(f"{number(shift, 2)} nats", "figure")]
    said.append(Phrase(". "))
    if found.lead is not None:
        said += [Phrase("It began "), Phrase(count(found.lead, "step"), "figure"), Phrase(" before the loss rose. ")]
    else:
        said.append(Phrase("The loss has not risen yet. "))
    if found.verified:
        said += [Phrase("Float64 finds another gradient for the same logits; ")]
    use = Phrase("foreshock.cross_entropy", "name")
    return [*said, use, Phrase(" ends it.") if found.verified else Phrase(" would end it.")]


def _grown(found: Slide) -> list[Phrase]:
    """Returns how head and features inflated: those of the two that grew."""
    begin, end = found.begin.get("feature_mean"), found.end.get("feature_mean")
    grew = end / begin if begin and end else np.nan
    parts: list[list[Phrase]] = []
    if found.growth > GREW:
        parts.append([Phrase("the class mean of the head grew "), Phrase(f"{number(found.growth, 2)}-fold", "figure")])
    if grew > GREW:
        parts.append([Phrase("the mean feature grew "), Phrase(f"{number(grew, 2)}-fold", "figure")])
    if not parts:
        return [Phrase("head and features stood inflated against each other")]
    against = [Phrase(" against it")] if len(parts) == 2 else []
    return [*parts[0], *([Phrase(" and "), *parts[1]] if len(parts) == 2 else []), *against]


def _levels(found: Slide, end: int) -> tuple[tuple[str, int, int], ...]:
    """Returns the levels in the order in which they were reached, each to the step before the next."""
    known = (("absorbing", found.since), ("inflating", found.inflating), ("imminent", found.imminent))
    starts = sorted(((step, name) for name, step in known if step is not None), key=lambda pair: pair[0])
    kept: list[tuple[int, str]] = []
    for step, name in starts:
        if kept and kept[-1][0] == step:
            kept.pop()
        kept.append((step, name))
    ends = [step - 1 for step, _ in kept[1:]] + [end]
    return tuple((name, step, last) for (step, name), last in zip(kept, ends, strict=True))


def _panels(run: Run) -> list[dict[str, object]]:
    return [
        _panel(run, "absorbed", "share of the rows; thin: residual of the class sums", {
            "softmax_absorbed": "rows", "softmax_residual": "residual"}, level=RESIDUAL, top=1.0),
        _panel(run, "head", "norm of its class mean; thin: of the rest", {
            "softmax_head_mean": "class mean", "softmax_head_centred": "rest"}, log=True),
        _panel(run, "features", "norm of the mean feature", {"softmax_feature_mean": ""}),
        _panel(run, "cosine", "of the two means", {"softmax_cosine": ""}, level=COSINE),
        _panel(run, "step", "largest shift of a logit, nats", {"softmax_sensitivity": ""}, level=NATS),
    ]  # fmt: skip


def _panel(
    run: Run, name: str, hint: str, columns: Mapping[str, str], *, level: float | None = None,
    top: float | None = None, log: bool | None = None,
) -> dict[str, object]:
    curves = [(said, curve) for column, said in columns.items() if (curve := _curve(run, column)) is not None]
    scale = any(bool(curve["log"]) for _, curve in curves) if log is None else log
    return {
        "name": name, "hint": hint, "level": level, "top": top, "log": scale and level in (None, NATS),
        "curves": [{**curve, "name": said} for said, curve in curves],
    }  # fmt: skip


def _curve(run: Run, column: str) -> dict[str, object] | None:
    values = series(run, column)
    if len(values) < 2:
        return None
    kept = keep(values.values, BUCKETS)
    return {
        "x": encode.steps(values.steps[kept]), "y": encode.floats(values.values[kept]), "log": wants_log(values.values),
    }  # fmt: skip
