"""One self-contained page for one run or several: no request leaves it, nothing is loaded from anywhere."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from foreshock import __version__
from foreshock.errors import UsageError
from foreshock.report import encode
from foreshock.report.data import Budget, Explain, closely, run_json
from foreshock.report.detail import HARM
from foreshock.report.phrase import Phrase
from foreshock.report.refused import spared
from foreshock.report.settings import Row, byline, settings
from foreshock.report.summary import Tile, run_name, tiles, verdict
from foreshock.run import Run
from foreshock.run.actions import KIND as ACTION
from foreshock.run.event import Event
from foreshock.signals import SIGNALS

STYLES = ("uPlot.min.css", "page.css", "parts.css", "approach.css", "causes.css", "guard.css", "proof.css",
          "blame.css")  # fmt: skip
SCRIPTS = (
    "base.js", "marks.js", "guard.js", "loss.js", "heat.js", "stack.js", "event.js", "approach.js", "softmax.js",
    "causes.js", "proof.js", "blame.js", "page.js",
)  # fmt: skip
NOTE_LIMIT = 20  # notes and problems listed per run; the rest is counted


def write(
    runs: Run | Sequence[Run],
    path: str | Path,
    *,
    events: Sequence[Event] | Sequence[Sequence[Event]] | None = None,
    title: str | None = None,
    explain: Explain | None = None,
    focus: Event | None = None,
) -> Path:
    """Writes one HTML page that shows the runs, and returns its path.

    The page holds everything it needs and asks for nothing outside; its size does not grow with the length of the
    runs (about 1 MB for a run of a million steps and 50 signals).

    Args:
        runs: one run, or several to switch between.
        path: file to write; missing folders are made.
        events: the run's events, or one list per run; None for `foreshock.detect.scan` of each.
        title: heading of the page; None for the run's own title (meta "title" or "name").
        explain: `(run, event) -> sections` to show beside an event instead of what the free signals did.
        focus: an event that is shown with all that is known about it, however many are more severe.

    Raises:
        UsageError: no run, or events that do not match the runs.
    """
    every = (runs,) if isinstance(runs, Run) else tuple(runs)
    if not every:
        raise UsageError("report: no run was given; pass a Run or a non-empty sequence of them")
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    text = render(every, _events_per_run(every, events), title=title, explain=explain, focus=focus)
    target.write_text(text, encoding="utf-8")
    return target


def render(
    runs: Sequence[Run],
    events: Sequence[Sequence[Event]],
    *,
    title: str | None = None,
    explain: Explain | None = None,
    focus: Event | None = None,
) -> str:
    """Returns the page as text; the arguments are those of `write`, with one list of events per run."""
    budget = Budget().shared(len(runs))
    views = [
        view(run, found, budget, place, explain=explain, focus=focus)
        for place, (run, found) in enumerate(zip(runs, events, strict=True))
    ]
    style, script, theme = _styles(), _scripts(), _asset("theme.js")
    if title and len(views) == 1:
        views = [replace(views[0], name=title)]
    heading = title or (views[0].name if len(views) == 1 else f"{len(views)} runs")
    page: str = _template().render(
        title=heading,
        version=__version__,
        label=title if len(views) > 1 else None,
        runs=views,
        style=Markup(style),
        script=Markup(script),
        theme=Markup(theme),
        theme_hash=_hash(theme),
        style_hash=_hash(style),
        script_hash=_hash(script),
        glossary=[signal for signal in SIGNALS.values() if any(signal.name in view.signals for view in views)],
    )
    return page


@dataclass(frozen=True, slots=True)
class View:
    """What the template shows of one run; `json` is what the page's script draws from."""

    id: str
    name: str
    subtitle: str
    mechanism: str
    byline: list[str]
    verdict: list[Phrase]
    tiles: list[Tile]
    harm: int
    settings: list[tuple[str, list[Row]]]
    notes: list[str]
    problems: list[str]
    signals: frozenset[str]
    json: Markup


def view(
    run: Run, events: Sequence[Event], budget: Budget, place: int, *, explain: Explain | None, focus: Event | None
) -> View:
    """Returns what the page shows of one run."""
    shown = closely(run, events, budget, explain, focus)
    lost = spared(run, events)
    subtitle, mechanism = (str(run.meta.get(key) or "") for key in ("subtitle", "mechanism"))
    return View(
        id=f"run-{place + 1}",
        name=run_name(run),
        subtitle=subtitle,
        mechanism=mechanism if mechanism != subtitle else "",
        byline=byline(run),
        verdict=verdict(run, events, *((shown[0].detail, shown[0].story) if shown else (None, None))),
        tiles=tiles(run, events),
        harm=sum(event.kind in HARM and event.key not in lost for event in events),
        settings=settings(run),
        notes=_at_most([_note(note) for note in run.notes if note.get("kind") != ACTION], "more notes"),
        problems=_at_most([str(problem) for problem in run.problems], "more problems"),
        signals=frozenset(column.partition("/")[0] for column in run.columns),
        json=Markup(encode.script_json(run_json(run, events, shown, budget))),
    )


def _at_most(lines: list[str], rest: str) -> list[str]:
    left = len(lines) - NOTE_LIMIT
    return lines if left <= 0 else [*lines[:NOTE_LIMIT], f"and {left:,} {rest}"]


def _note(note: Mapping[str, object]) -> str:
    """Returns a note of the run directory as one line, e.g. a probe that was disabled."""
    fields = {key: value for key, value in note.items() if key != "time"}
    kind, step = str(fields.pop("kind", "note")), fields.pop("step", None)
    where = f" at step {step:,}" if isinstance(step, int) else ""
    what, _, happened = kind.partition("_")
    if happened == "disabled" and "name" in fields:
        return f"{what} {fields['name']} was switched off{where}: {fields.get('error', 'it failed')}"
    lines = {key: _plainly(value).strip().splitlines() for key, value in fields.items() if value not in (None, [])}
    said = "; ".join(f"{key}: {text[-1]}" for key, text in lines.items() if text)
    return kind.replace("_", " ") + where + (f" ({said})" if said else "")


def _plainly(value: object) -> str:
    """Returns a value of a note as text: numbers to three digits, lists by their members."""
    if isinstance(value, list):
        return ", ".join(map(_plainly, value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _events_per_run(
    runs: Sequence[Run], events: Sequence[Event] | Sequence[Sequence[Event]] | None
) -> list[list[Event]]:
    if events is None:
        from foreshock.detect import scan

        return [scan(run) for run in runs]
    flat = [item for item in events if isinstance(item, Event)]
    if len(flat) == len(events) and (flat or len(runs) == 1):
        if len(runs) != 1:
            raise UsageError(f"report: one list of events was given for {len(runs)} runs; pass one list per run")
        return [flat]
    nested = [list(item) for item in events if not isinstance(item, Event)]
    if len(nested) != len(runs):
        raise UsageError(f"report: {len(nested)} lists of events were given for {len(runs)} runs; pass one per run")
    return nested


@cache
def _asset(name: str) -> str:
    return resources.files("foreshock.report").joinpath("assets", name).read_text(encoding="utf-8")


@cache
def _styles() -> str:
    return "\n".join(_asset(name) for name in STYLES)


@cache
def _scripts() -> str:
    """Returns all scripts as one; the address in uPlot's banner makes way for its licence."""
    licence = _asset("uPlot.LICENSE").strip()
    chart = _asset("uPlot.iife.min.js").partition("\n")[2]
    own = "\n".join(_asset(name) for name in SCRIPTS)
    code = f'/* uPlot 1.6.32\n{licence} */\n{chart}\n(() => {{"use strict";\n{own}\n}})();'
    return code.replace("</script", "<\\/script").replace("<!--", "<\\!--")


@cache
def _template() -> Template:
    source = resources.files("foreshock.report").joinpath("templates", "page.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(source)


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
