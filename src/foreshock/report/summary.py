"""The run in words: one verdict, the key figures, and a short text for terminals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from foreshock.report import guard
from foreshock.report.approach import told
from foreshock.report.departures import earliest
from foreshock.report.detail import HARM, Detail, detail, gather, most_affected, span_of
from foreshock.report.explained import Explained, explained
from foreshock.report.explained import lines as explanations
from foreshock.report.interventions import lines as interventions
from foreshock.report.interventions import told as told_of
from foreshock.report.noise import noise_figure
from foreshock.report.phrase import Phrase, plain
from foreshock.report.refused import Fate, Key, fates, spared
from foreshock.report.sections import free_signals
from foreshock.report.wording import count, date, duration, listing, number
from foreshock.run import Run, is_absent
from foreshock.run.event import Event, family

NOUNS = {
    "nonfinite": ("non-finite episode", "non-finite episodes"),
    "spike": ("spike", "spikes"),
    "divergence": ("divergence", "divergences"),
    "drift": ("slow drift", "slow drifts"),
    "precursor": ("early warning", "early warnings"),
    "watch": ("curvature watch", "curvature watches"),
    "imminent": ("curvature alarm", "curvature alarms"),
    "transient": ("transient crossing", "transient crossings"),
    "absorbing": ("absorption", "absorptions"),
    "inflating": ("head inflation", "head inflations"),
    "softmax": ("softmax alarm", "softmax alarms"),
}
NOW = 10  # steps before the last record that are now
MANY = 1000  # robust sigmas beyond which the exact number says nothing more
TIMES = "\N{MULTIPLICATION SIGN}"
_ABRUPT = ("nonfinite", "divergence", "spike")  # come before slow drifts, whatever their severity


@dataclass(frozen=True, slots=True)
class Tile:
    """One key figure: a label, its value, and a note in small print."""

    label: str
    value: str
    note: str = ""


def run_name(run: Run) -> str:
    """Returns what to call a run: its title, its name, its directory, or "run"."""
    meta = run.meta
    return str(meta.get("title") or meta.get("name") or (run.path.name if run.path is not None else "") or "run")


def by_severity(events: Sequence[Event], spared: Collection[Key] = ()) -> list[Event]:
    """Returns events, abrupt damage first, then drifts, then warnings; the most severe first, NaN severities last.

    Those that the training was `spared`, because a guard refused the steps, come after the damage that it took.
    """

    def rank(event: Event) -> tuple[bool, bool, bool, float, float, int]:
        severity = event.severity if event.severity == event.severity else -1.0
        height = event.height if event.height == event.height else -1.0
        harm = event.kind in HARM
        return (
            not harm, harm and event.key in spared, event.kind not in _ABRUPT, -severity, -height, event.raised
        )  # fmt: skip

    return sorted(events, key=rank)


def worst(run: Run, events: Sequence[Event]) -> Detail | None:
    """Returns the detail of the most severe event, or None where there is no event."""
    ordered = by_severity(events, spared(run, events))
    if not ordered or len(run) == 0:
        return None
    span = span_of(run, ordered[0], events)
    return detail(run, span, gather(run, span))


def peak_values(run: Run, events: Sequence[Event]) -> list[float]:
    """Returns the value of each event's signal at its peak; NaN where it was not recorded."""
    steps = run.steps
    columns = {signal: run[signal] for signal in {event.signal for event in events} if signal in run}
    result = []
    for event in events:
        at = int(np.searchsorted(steps, event.peak))
        known = event.signal in columns and at < len(steps) and int(steps[at]) == event.peak
        result.append(float(columns[event.signal][at]) if known else float("nan"))
    return result


def baseline(event: Event, peak: float) -> float:
    """Returns the level before the event: as the detector says, else peak minus height."""
    stored = event.data.get("baseline")
    return float(stored) if isinstance(stored, (int, float)) else peak - event.height


def verdict(run: Run, events: Sequence[Event], found: Detail | None, story: Explained | None = None) -> list[Phrase]:
    """Returns what happened in this run, in two or three sentences.

    Args:
        run: the run.
        events: all its events.
        found: the detail of the most severe one, from `worst`; None where there is none.
        story: how the most severe one came about, from `explained`; None where it is not known.
    """
    if len(run) == 0:
        return [Phrase("This run holds no records yet.")]
    steps = count(len(run), "step")
    if found is None:
        return _calm(run, steps)
    kinds = Counter(_sort(event) for event in events)
    harm = [count(kinds[kind], *NOUNS[kind]) for kind in HARM if kinds[kind]]
    signs = [count(n, *NOUNS.get(kind, (kind, kind))) for kind, n in kinds.items() if kind not in HARM]
    head = listing(harm) if harm else f"{listing(signs)} but no damage"
    result = [Phrase(head[0].upper() + head[1:], "figure"), Phrase(f" in {steps}")]
    if harm and signs:
        result.append(Phrase(f", with {listing(signs)}"))
    lost = fates(run, events)
    result += _lost([lost.get(event.key) for event in events if event.kind in HARM])
    several = len(harm) > 0 and sum(kinds[k] for k in HARM) > 1
    known = () if story is None else story.sentence or ()
    told = known and (story is None or story.story is not None or not _announced(found))
    why = known if told else [*known, *([Phrase(" ")] if known else []), *_signs(found)]
    largest = _largest(run, found, several, lost)
    return [*result, Phrase(". "), *largest, *why, *_now(run, events, found), *guard.sentence(run)]


def _lost(harm: Sequence[Fate | None]) -> list[Phrase]:
    """Returns how many of the harmful events never reached the training, because a guard refused or undid them."""
    spared = [fate for fate in harm if fate is not None and fate.spared]
    if not spared:
        return []
    which = {1: "", 2: "both "}.get(len(harm), "all ") if len(spared) == len(harm) else f"{len(spared):,} of them "
    verb = "refused or rolled back" if any(fate.undone for fate in spared) else "refused"
    return [Phrase(", "), Phrase(which + verb, "figure")]


def _sort(event: Event) -> str:
    """Returns what an event is counted as: its kind, except that two mechanisms have their `imminent`."""
    return "softmax" if event.kind == "imminent" and family(event) == "softmax" else event.kind


def _calm(run: Run, steps: str) -> list[Phrase]:
    result = [Phrase("No event", "figure"), Phrase(f" in {steps}.")]
    if "loss" not in run:
        return [*result, Phrase(" The run has no loss.")]
    _, values = run.measured("loss")
    finite = values[np.isfinite(values)]
    if len(finite) == 0:
        return [*result, Phrase(" The loss was never finite.")]
    if finite.min() == finite.max():
        result += [Phrase(" The loss stayed at "), Phrase(number(float(finite[0])), "figure"), Phrase(".")]
    else:
        start, final = (Phrase(number(float(value)), "figure") for value in (finite[0], finite[-1]))
        result += [Phrase(" The loss went from "), start, Phrase(" to "), final, Phrase(" inside its own noise.")]
    return [*result, *guard.sentence(run)]


def _now(run: Run, events: Sequence[Event], found: Detail) -> list[Phrase]:
    """Returns what is coming, where chi is above 1 at the last record and the loss has not risen yet."""
    raised = (event for event in events if event.kind in ("watch", "imminent") and family(event) == "curvature")
    alarms = [event for event in raised if event is not found.span.event]
    last = max(alarms, key=lambda event: event.onset, default=None)
    if last is None or (last.end is not None and last.end < int(run.steps[-1]) - NOW):
        return []
    story = told(run, last)
    if story is None or story.approach.marks.turn is not None or story.approach.marks.down is not None:
        return []
    return [Phrase(" Now, at the last record, chi is above 1", "figure"), Phrase(". "), *story.sentence]


def _largest(run: Run, found: Detail, several: bool, lost: Mapping[Key, Fate]) -> list[Phrase]:
    event = found.span.event
    peak, fate = peak_values(run, [event])[0], lost.get(event.key)
    among = any(each.spared for each in lost.values()) and (fate is None or not fate.spared)
    largest = "The largest that was taken" if among else "The largest"
    which = f"{largest}, at step " if several and event.kind != "nonfinite" else "At step "
    result = [Phrase(which), Phrase(f"{event.peak:,}", "figure")]
    if event.kind == "nonfinite":
        result += [Phrase(" "), *_named(event.signal), Phrase(" is no longer finite")]
    else:
        took = ", took " if several else " it took "
        level = number(baseline(event, peak))
        result += [Phrase(took), *_named(event.signal), Phrase(f" from {level} to ")]
        result += [Phrase(number(peak), "figure")]
        if event.severity == event.severity and event.severity != float("inf"):
            sigmas = number(event.severity) if event.severity <= MANY else f"more than {MANY:,}"
            result.append(Phrase(f", {sigmas} robust sigmas above its level"))
    return [*result, Phrase(". " if fate is None else f"; {fate.sentence}. ")]


def _announced(found: Detail) -> bool:
    """Returns whether a signal had left its range before the onset."""
    first = earliest([item for item in (*found.wide, *found.tensors) if item.column != found.span.event.signal])
    return first is not None and (first.lead or 0) > 0


def _signs(found: Detail) -> list[Phrase]:
    """Returns which tensor moved most and which signal first, as far as the free signals tell."""
    event, result = found.span.event, []
    tensor = most_affected(found)
    if tensor is not None:
        signal, _, unit = tensor.column.partition("/")
        moved = _moved(signal, tensor.before, tensor.extreme)
        result += [Phrase(unit, "name"), Phrase(f" moved most: {moved}. ")]
    others = [item for item in (*found.wide, *found.tensors) if item.column != event.signal]
    first = earliest(others)
    if first is not None and event.kind != "precursor":
        result += [Phrase("First sign: "), Phrase(first.column, "name"), Phrase(" left its range ")]
        result += [Phrase(count(first.lead or 0, "step"), "figure"), Phrase(" before.")]
    elif event.kind in HARM and any(item.score == item.score for item in others):
        result.append(Phrase("No free signal clearly announced it."))
    return result


def _named(signal: str) -> list[Phrase]:
    return [Phrase("the loss")] if signal == "loss" else [Phrase(signal, "name")]


def _moved(signal: str, before: float, extreme: float) -> str:
    if before > 0 and abs(extreme) < float("inf") and extreme > 0:
        ratio = extreme / before
        return f"{signal} {TIMES}{number(ratio)}" if ratio >= 1 else f"{signal} down to 1/{number(1 / ratio)}"
    return f"{signal} from {number(before)} to {number(extreme)}"


def tiles(run: Run, events: Sequence[Event]) -> list[Tile]:
    """Returns the key figures of a run."""
    steps = run.steps
    n = len(steps)
    span = f"{int(steps[0]):,} to {int(steps[-1]):,}" if n else ""
    result = [Tile("Steps", f"{n:,}", span)]
    times = run.times[np.isfinite(run.times) & (run.times > 0)] if n else np.empty(0)
    if len(times) > 1 and times[-1] > times[0]:
        wall = float(times[-1] - times[0])
        result.append(Tile("Wall time", duration(wall), f"{duration(wall / max(1, n - 1))} a step"))
    if "loss" in run:
        loss = run.accepted("loss")
        known = ~is_absent(loss)
        at, loss = steps[known], loss[known]
        finite = np.isfinite(loss)
        if finite.any():
            best = int(np.argmin(np.where(finite, loss, np.inf)))
            note = f"at step {int(at[-1]):,}"
            result.append(Tile("Final loss", number(float(loss[-1])), note))
            result.append(Tile("Best loss", number(float(loss[best])), f"at step {int(at[best]):,}"))
    kinds = Counter(_sort(event) for event in events)
    harm = sum(kinds[kind] for kind in HARM)
    parts = [count(n, *NOUNS.get(kind, (kind, kind))) for kind, n in kinds.most_common()]
    result.append(Tile("Events", f"{harm:,}", listing(parts) if parts else "none found"))
    if done := run.actions:
        result.append(Tile("Interventions", f"{guard.acted(done):,}", told_of(done)))
    if noise := noise_figure(run):
        result.append(Tile("Noise scale", *noise))
    spent = _inside_foreshock(run)
    if spent is not None:
        seconds, share = spent
        result.append(Tile("In foreshock", f"{100 * share:.2g} %", f"{duration(seconds)} of host time"))
    return result


def _inside_foreshock(run: Run) -> tuple[float, float] | None:
    if "monitor_seconds" not in run or "step_seconds" not in run:
        return None
    inside, total = (float(np.nansum(run.measured(name)[1])) for name in ("monitor_seconds", "step_seconds"))
    return (inside, inside / total) if total > 0 else None


def summary(run: Run, events: Sequence[Event]) -> str:
    """Returns a short plain-text summary of a run, for terminals: name, verdict, figures, the largest events.

    Args:
        run: the run.
        events: its events, e.g. from `foreshock.detect.scan(run)`.
    """
    found = worst(run, events)
    name = run_name(run)
    story = None if found is None else explained(run, found.span.event)
    lines = [name, "=" * len(name), plain(verdict(run, events, found, story)), ""]
    lines += [f"  {tile.label:<13} {tile.value:<14} {tile.note}".rstrip() for tile in tiles(run, events)]
    if run.meta.get("created"):
        lines.append(f"  {'Started':<13} {date(run.meta['created'])}")
    if events:
        lines += ["", "  kind            onset      peak       end  value at peak  severity"]
        lost = fates(run, events)
        shown = by_severity(events, [key for key, fate in lost.items() if fate.spared])[:8]
        values = peak_values(run, shown)
        lines += [_row(event, value, lost.get(event.key)) for event, value in zip(shown, values, strict=True)]
        if len(events) > 8:
            lines.append(f"  ... and {len(events) - 8:,} more")
        causes = explanations(run, shown)
        lines += ["", "How it came about:", *(f"  {each}" for each in causes)] if causes else []
    if acted := interventions(run):
        lines += ["", "What the guard did:", *(f"  {each}" for each in acted)]
    if found is not None:
        lines += ["", *(section.plain() for section in free_signals(found.span.event, found.wide, found.tensors))]
    for problem in run.problems:
        lines += ["", f"Problem: {problem}"]
    return "\n".join(lines) + "\n"


def _row(event: Event, value: float, fate: Fate | None) -> str:
    end = "open" if event.end is None else f"{event.end:,}"
    figures = f"{number(value):>13}  {number(event.severity):>8}"
    lost = "" if fate is None else f"  {fate.sentence}"
    return f"  {event.kind:<12} {event.onset:>8,}  {event.peak:>8,}  {end:>8}  {figures}{lost}"
