"""What the page shows of an event of the curvature family: the approach, the crossing, the stages, what would help."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from foreshock.detect.second_moment import growth as growth_of_v
from foreshock.detect.series import near, readings, series
from foreshock.diagnose import Advice, Approach, advice, approach
from foreshock.diagnose.growth import growth
from foreshock.report import encode, loss_curve
from foreshock.report.columns import wants_log
from foreshock.report.decimate import Floats, Ints, keep
from foreshock.report.detail import HARM
from foreshock.report.phrase import Phrase
from foreshock.report.sections import Section
from foreshock.report.story import LEAST, SIGNS, line, story
from foreshock.report.wording import number
from foreshock.run import Run
from foreshock.run.event import Event, family

KINDS = ("watch", "imminent", "transient", "spike")
BUCKETS = 400  # two points each, in every curve
BEFORE = 1.6  # the picture shows so many times the length from the crossing to the end before the crossing
SHORT = 60  # and at least so many steps
TELLING: Mapping[str, str] = {
    "stable": "the loss falls, chi is below 1",
    "decoupled": "the second moment no longer follows the gradient and decays at beta2",
    "approach": "the landscape sharpens, the loss falls",
    "silent": "chi is above 1, the loss still falls",
    "onset": "the gradient has turned into the unstable direction, the loss grows geometrically",
    "refill": "the second moment grows again, the loss still rises",
    "decay": "chi is below 1, the loss peaks and rings down",
    "flattening": "chi is below 1, the loss has not peaked yet",
    "descent": "the loss comes down again",
}
LABELS = {
    "eps": "eps", "floor": "floor under sqrt(v)", "lr": "learning rate", "beta2": "beta2", "eps_crit": "eps, for good",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Story:
    """An event of the curvature family, judged.

    Attributes:
        approach: when and by whom chi was driven over 1.
        advice: what would have held it; None where chi never passed 1.
        sentence: both in words.
        first: first step to show.
        last: last step to show.
    """

    approach: Approach
    advice: Advice | None
    sentence: Sequence[Phrase]
    first: int
    last: int


def told(run: Run, event: Event) -> Story | None:
    """Returns the story of an event; None where it is of another kind, or chi was not read around it."""
    if event.kind not in KINDS or family(event) == "softmax" or "chi" not in run:
        return None
    run = near(run, event)
    how = approach(run, event)
    if how is None:
        return None
    held, marks = advice(run, event, how=how), how.marks
    last = marks.last if marks.end is None else marks.end
    if marks.crossing is None:
        first, last = event.onset - SHORT, (event.peak if event.end is None else event.end) + SHORT
    else:
        if marks.peak is not None:  # the ring-down may be far longer than what led to it
            last = min(last, marks.peak + max(SHORT, marks.peak - marks.crossing))
        begin = min(marks.begin, marks.begin if marks.decoupled is None else marks.decoupled)
        first = max(begin - 10, marks.crossing - max(SHORT, round(BEFORE * (last - marks.crossing))))
    steps = run.steps
    return Story(how, held, story(run, event, how, held), max(first, int(steps[0])), min(last + 10, int(steps[-1])))


def unread(run: Run, event: Event) -> list[Section]:
    """Returns what keeps a spike from being judged, where chi was recorded but not close enough to it."""
    if event.kind != "spike" or "chi" not in run:
        return []
    chi = readings(near(run, event))
    before, after = chi.within(0, event.onset), chi.within(event.onset + 1, event.peak + 10**9)
    if not len(before):
        return []
    text = f"chi was {number(float(before.values[-1]))} at step {int(before.steps[-1]):,}, before the onset"
    if len(after):
        text += f", and {number(float(after.values[0]))} at step {int(after.steps[0]):,}"
    text += ". That is too little to say whether curvature made this spike: give readings more of the time "
    return [Section("Curvature", text + "(`max_overhead`), or look more often (`every`).", tone="caution")]


def lines(run: Run, events: Sequence[Event], most: int = 20) -> list[str]:
    """Returns one line for each event of the curvature family, verdict and lead, the loss's own before its alarms."""
    found: dict[object, str] = {}
    order = sorted(events, key=lambda event: (event.kind not in HARM, event.raised))
    for event in order if "chi" in run else ():
        if len(found) == most or event.kind not in KINDS or family(event) == "softmax":
            continue
        how = approach(run, event)
        if how is not None and how.marks.crossing not in found:
            key = event.key if how.marks.crossing is None else how.marks.crossing
            found[key] = f"{event.kind} at step {event.peak:,}: {line(how)}"
    return list(found.values())


def to_json(run: Run, found: Story, sentence: Sequence[Phrase] | None = None) -> dict[str, object]:
    """Returns what the page draws the story from; `sentence` for another than its own."""
    how, run = found.approach, run.window(found.first - 1, found.last + 1)
    marks = how.marks
    return {
        "sentence": [asdict(phrase) for phrase in sentence or found.sentence],
        "first": found.first,
        "last": found.last,
        "family": how.stages.family,
        "verdict": how.verdict,
        "stages": [[stage.name, stage.first, stage.last, TELLING[stage.name]] for stage in how.stages.bounds],
        "crossing": marks.crossing,
        "turn": marks.turn,
        "risen": marks.risen,
        "peak": marks.peak,
        **loss_curve.story(run, found.first, found.last, BUCKETS),
        "chi": _curve(run, "chi", found),
        "along": _curve(run, "chi_gradient", found),
        "second": _second_moment(run, found),
        "drivers": _drivers(run, found),
        "shares": _shares(how),
        "estimated": how.growth.estimated if how.growth is not None else False,
        "advice": [] if found.advice is None else _advice(found.advice),
        "missing": [] if found.advice is None else list(found.advice.missing),
    }


def _curve(run: Run, name: str, found: Story) -> dict[str, object] | None:
    values = series(run, name).within(found.first, found.last)
    return _encoded(values.steps, values.values) if len(values) > 1 else None


def _encoded(steps: Ints, values: Floats) -> dict[str, object]:
    kept = keep(values, BUCKETS)
    return {"x": encode.steps(steps[kept]), "y": encode.floats(values[kept]), "log": wants_log(values)}


def _second_moment(run: Run, found: Story) -> dict[str, object] | None:
    """Returns |v| of the tensor at the edge over what it was at the crossing, from its recorded growth."""
    steps, values = growth_of_v(run, found.approach.tensor)
    inside = (steps >= found.first) & (steps <= found.last)
    steps, values = steps[inside], values[inside]
    crossing = found.approach.marks.crossing
    if len(steps) < 2 or crossing is None or int(steps[-1]) - int(steps[0]) >= len(steps):  # thinned out: gaps
        return None
    level = np.cumsum(np.log(values))
    level -= level[min(int(np.searchsorted(steps, crossing)), len(level) - 1)]
    return {**_encoded(steps, np.exp(level)), "tensor": found.approach.tensor or ""}


def _drivers(run: Run, found: Story) -> dict[str, object] | None:
    """Returns the sums of the parts of ln chi from the beginning of the approach on."""
    marks = found.approach.marks
    if marks.crossing is None:
        return None
    split = growth(run, max(marks.begin, found.first), found.last)
    if split is None:
        return None
    kept = keep(split.curves["landscape"], BUCKETS)
    parts = split.curves
    curves = {
        "preconditioner": parts["denominator"] + parts["momentum"], "landscape": parts["landscape"],
        "learning rate": parts["learning rate"],
    }  # fmt: skip
    shown = {name: encode.floats(curve[kept]) for name, curve in curves.items() if np.abs(curve).max() > 1e-3}
    return {"x": encode.steps(split.steps[kept]), "parts": shown} if shown else None


def _shares(how: Approach) -> list[dict[str, object]]:
    """Returns the parts of the growth up to the crossing, the largest first, with the tensors of the denominators."""
    split = how.growth
    if split is None or not how.shares:
        return []
    tensors = sorted(((name, value / split.total) for name, value in split.tensors.items()), key=lambda pair: -pair[1])
    named = [{"name": name, "share": share} for name, share in tensors if share >= 0.01][:6]
    order = sorted(how.shares.items(), key=lambda pair: -pair[1])
    return [
        {"name": name, "share": share, "tensors": named if name == "preconditioner" else []}
        for name, share in order if abs(share) >= LEAST
    ]  # fmt: skip


def _advice(held: Advice) -> list[dict[str, object]]:
    return [
        {
            "label": LABELS[item.knob],
            "value": "none found" if item.value is None else f"{SIGNS[item.knob]} {number(item.value, 2)}",
            "current": "" if item.current is None else number(item.current, 3),
            "text": item.text,
            "cost": item.cost,
        }
        for item in held.items
    ]  # fmt: skip
