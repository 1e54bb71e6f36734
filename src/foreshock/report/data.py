"""What one run puts into the page: decimated curves, event details, heat maps, as JSON values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from foreshock.report import encode, guard, loss_curve
from foreshock.report.approach import to_json as approach_json
from foreshock.report.approach import unread
from foreshock.report.columns import describe, tensor_signals, wants_log, wide_columns
from foreshock.report.decimate import Floats, Ints, keep
from foreshock.report.departures import Departure, ranked
from foreshock.report.detail import HARM, Curve, Detail, Span, detail, gather, span_of
from foreshock.report.explained import Explained, explained
from foreshock.report.explained import to_json as causes_json
from foreshock.report.heat import whole
from foreshock.report.proof import blame_json, remedy_json, replay_json
from foreshock.report.refused import Fate, fates, spared
from foreshock.report.sections import Section, free_signals
from foreshock.report.softmax import to_json as softmax_json
from foreshock.report.summary import baseline, by_severity, peak_values
from foreshock.run import Run
from foreshock.run.event import KINDS, Event

PICTURES = 5  # pictures of examples take at most so great a part of the room for events

Explain = Callable[[Run, Event], Sequence[Section]]


@dataclass(frozen=True, slots=True)
class Budget:
    """How much of a run goes into the page; the defaults keep one large run well under 3 MB.

    Attributes:
        loss: buckets of the loss curve (two points each).
        signal: buckets of each small curve over the whole run.
        signals: most small curves.
        details: most events shown with all their signals, the most severe ones.
        detail_bytes: size at which no further event is shown so.
        listed: events listed in the table, the most severe ones.
        panels: signals drawn around an event.
        rows: tensors in a heat map.
        columns: columns of a heat map over the whole run.
        ticks: non-finite positions drawn.
        interventions: lines in the table of what a guard did.
    """

    loss: int = 16_000
    signal: int = 300
    signals: int = 60
    details: int = 40
    detail_bytes: int = 1_300_000
    listed: int = 5000
    panels: int = 8
    rows: int = 40
    columns: int = 480
    ticks: int = 2000
    interventions: int = 80

    def shared(self, runs: int) -> Budget:
        """Returns the part of the budget that each of several runs in one page gets."""
        if runs <= 1:
            return self
        return Budget(
            loss=max(400, self.loss // runs),
            signal=max(100, self.signal * 2 // (runs + 1)),
            signals=max(12, self.signals * 2 // (runs + 1)),
            details=max(2, self.details * 2 // (runs + 1)),
            detail_bytes=self.detail_bytes // runs,
            listed=max(100, self.listed // runs),
            panels=self.panels,
            rows=max(16, self.rows * 3 // (runs + 2)),
            columns=max(160, self.columns * 3 // (runs + 2)),
            ticks=max(200, self.ticks // runs),
            interventions=max(20, self.interventions // runs),
        )


@dataclass(frozen=True, slots=True)
class Shown:
    """An event that the page shows with all its signals: its detail, its story, and the JSON value made of them."""

    detail: Detail
    story: Explained
    json: dict[str, object]


def closely(
    run: Run, events: Sequence[Event], budget: Budget, explain: Explain | None, focus: Event | None = None
) -> list[Shown]:
    """Returns what the page shows of the most severe events, the most severe first, as many as the budget allows.

    Args:
        run: the run.
        events: all its events.
        budget: how much to keep.
        explain: what to say about an event; None for what the free signals did.
        focus: an event that is among them, however severe it is.
    """
    result: list[Shown] = []
    room = budget.detail_bytes
    order = by_severity(events, spared(run, events))[: budget.details if len(run) else 0]
    if focus is not None and order:  # next to the most severe, which has to stay the first
        wanted = [event for event in events if event.key == focus.key and event is not order[0]]
        order = [order[0], *wanted, *(event for event in order[1:] if event.key != focus.key)]
    for event in order:
        span = span_of(run, event, events)
        found = detail(run, span, gather(run, span), rows=min(24, budget.rows), columns=160)
        story = explained(run, event)
        value = _detail(run, found, story, budget, explain)
        room -= len(encode.script_json(value))
        if room < 0 and result and (focus is None or event.key != focus.key):
            break
        result.append(Shown(found, story, value))
    return result


def run_json(run: Run, events: Sequence[Event], shown: Sequence[Shown], budget: Budget) -> dict[str, object]:
    """Returns the JSON value of one run.

    Args:
        run: the run.
        events: all its events.
        shown: from `closely`.
        budget: how much to keep.
    """
    steps = run.steps
    lost = fates(run, events)
    severe = by_severity(events, spared(run, events))[: budget.listed]
    rank = {id(event): place for place, event in enumerate(severe)}
    listed = _in_order(severe)
    place = {id(item.detail.span.event): index for index, item in enumerate(shown)}
    tried = {id(item.detail.span.event): tag for item in shown if (tag := _tried(item.story))}
    heats = [whole(run, signal, rows=budget.rows, columns=budget.columns) for signal in tensor_signals(run)]
    return {
        "n": len(steps),
        "span": [int(steps[0]), int(steps[-1])] if len(steps) else [0, 0],
        "loss": loss_curve.to_json(
            run, [item.detail.span for item in shown], buckets=budget.loss, ticks=budget.ticks
        ),
        "guard": guard.to_json(run, listed, listed=budget.interventions),
        "signals": _small_curves(run, budget),
        "events": [
            _event(event, peak, rank[id(event)], place.get(id(event)), lost.get(event.key))
            | ({"tried": tried[id(event)]} if id(event) in tried else {})
            for event, peak in zip(listed, peak_values(run, listed), strict=True)
        ],
        "unlisted": len(events) - len(listed),
        "kinds": dict(KINDS),
        "details": [item.json for item in shown],
        "heats": [heat.to_json() for heat in heats if heat is not None],
    }


def place_of(run: Run, events: Sequence[Event], event: Event, budget: Budget | None = None) -> int | None:
    """Returns the number of an event on the page, from 1; None where it is not listed."""
    severe = by_severity(events, spared(run, events))[: (budget or Budget()).listed]
    return next((place for place, each in enumerate(_in_order(severe), 1) if each.key == event.key), None)


def _in_order(events: Sequence[Event]) -> list[Event]:
    return sorted(events, key=lambda event: (event.onset, event.raised))


def _small_curves(run: Run, budget: Budget) -> list[dict[str, object]]:
    result = []
    for column in wide_columns(run)[: budget.signals]:
        steps, values = run.measured(column)
        if column == "loss" or len(values) == 0:
            continue
        if len(values) > 1 and (values == values[0]).all():
            result.append({"column": column, **describe(column), "constant": float(values[0])})
        else:
            result.append(_curve(column, steps, values, budget.signal))
    return result


def _curve(column: str, steps: Ints, values: Floats, buckets: int) -> dict[str, object]:
    kept = keep(values, buckets)
    x, y = steps[kept], values[kept]
    log = wants_log(y)
    return {"column": column, **describe(column), "log": log, "x": encode.steps(x), "y": encode.floats(y)}


def _tried(story: Explained) -> str:
    """Returns in a word what experiments there are about an event; empty without any."""
    if story.proof is None:
        return "attributed" if story.blame is not None else ""
    return "proved" if story.remedy is not None and story.remedy.proved else "replayed"


def _event(event: Event, peak: float, rank: int, place: int | None, fate: Fate | None) -> dict[str, object]:
    row: dict[str, object] = {
        "kind": event.kind, "raised": event.raised, "onset": event.onset, "peak": event.peak, "end": event.end,
        "severity": encode.plain(event.severity), "signal": event.signal, "value": encode.plain(peak),
        "base": encode.plain(baseline(event, peak)), "rank": rank,
    }  # fmt: skip
    if place is not None:
        row["detail"] = place
    if event.data.get("width"):
        row["width"] = str(event.data["width"])
    if fate is not None:
        row["fate"] = {"short": fate.short, "said": fate.sentence, "spared": fate.spared}
    return row


def _detail(
    run: Run, found: Detail, story: Explained, budget: Budget, explain: Explain | None
) -> dict[str, object]:
    event = found.span.event
    said = free_signals(event, found.wide, found.tensors) if explain is None else explain(run, event)
    if story.curvature is None and story.softmax is None:
        said = [*said, *unread(run, event)]
    else:  # chi or the softmax have shown themselves long before them
        said = [replace(each, title="First free sign") if each.title == "First sign" else each for each in said]
    causes = causes_json(story, event)
    return {
        "approach": None if story.curvature is None else approach_json(run, story.curvature, story.sentence),
        "softmax": None if story.softmax is None else softmax_json(run, story.softmax, story.sentence),
        "sentence": [asdict(phrase) for phrase in story.sentence or ()],
        "causes": causes,
        "proof": None if story.proof is None else replay_json(story.proof),
        "blame": None if story.blame is None else blame_json(story.blame, budget.detail_bytes // PICTURES),
        "remedy": remedy_json(story.remedy) if causes or story.proof else None,
        "first": found.span.first,
        "last": found.span.last,
        "panels": [_panel(run, found, column, item) for column, item in _panels(found, budget.panels)],
        "heats": [heat.to_json() for heat in found.heats],
        "sections": [asdict(section) for section in said],
        "moved": [_departure(item) for item in ranked([*found.wide, *found.tensors])[:12]],
    }


def _panels(found: Detail, most: int) -> list[tuple[str, Departure | None]]:
    """Returns the signals to draw: the event's own, the loss, those that moved most, then the ordinary ones."""
    by_column = {item.column: item for item in found.wide}
    first = [column for column in (found.span.event.signal, "loss") if column in found.curves]
    first = first[::-1] if found.span.event.kind in HARM else first
    moved = [item.column for item in ranked(list(found.wide))]
    usual = [column for column in ("grad_norm", "update_rms", "v_ratio", "lr") if column in found.curves]
    order = list(dict.fromkeys([*first, *moved]))
    if len(order) < 4:
        order = list(dict.fromkeys([*order, *usual]))[:4]
    return [(column, by_column.get(column)) for column in order[:most] if column in found.curves]


def _panel(run: Run, found: Detail, column: str, item: Departure | None) -> dict[str, object]:
    steps, values = _shown(found.curves[column], found.span)
    panel = _curve(column, steps, values, 700) | {"departure": _departure(item) if item else None}
    if column == "loss":
        taken, _ = loss_curve.parted(run, steps[keep(values, 700)])
        if not taken.all():
            panel["aside"] = np.flatnonzero(~taken).tolist()
    return panel


def _shown(curve: Curve, span: Span) -> Curve:
    steps, values = curve
    inside = slice(*np.searchsorted(steps, [span.first, span.last + 1]))
    return steps[inside], values[inside]


def _departure(item: Departure) -> dict[str, object]:
    row = asdict(item)
    return {key: encode.plain(value) for key, value in row.items()}
