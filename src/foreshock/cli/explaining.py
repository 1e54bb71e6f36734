"""How `foreshock explain` prints: headings, paragraphs and tables as wide as the terminal, colours only there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

    from foreshock.diagnose import Cause, Diagnosis
    from foreshock.report.experiments import Attributed, Example, Replayed
    from foreshock.report.explanation import Explanation
    from foreshock.run import Event, Run

__all__ = ["nothing", "show"]

MARKS = {"removed": "✓", "weakened": "↓", "stays": "✗", "worse": "↑", "not applicable": "-", "failed": "!"}
PLAIN = {"removed": "+", "weakened": "~", "stays": "x", "worse": "X", "not applicable": "-", "failed": "!"}
STYLES = {"removed": "green", "weakened": "yellow", "stays": "red", "worse": "magenta"}
BAR = 20  # columns of a full bar
NARROW = 72  # columns below which tables leave out what is explained elsewhere
UNPROVED = "None yet: nobody has replayed it. `foreshock.replay(history, event, step_fn)` tries one change at a time."
ARMS, TENSORS, EXAMPLES, TEXT = 24, 8, 8, 160  # most of them, and most characters of an example


def nothing(run: Run, events: Sequence[Event]) -> str:
    """Returns that there is no harmful event, and which warnings there are, in a sentence or two."""
    from foreshock.report.wording import count
    from foreshock.run.event import BENIGN

    said = f"no harmful event in {count(len(run), 'step')}, nothing to explain"
    alarms = [event for event in events if event.kind not in BENIGN]
    if not alarms:
        return said
    first = alarms[0]
    warnings = count(len(alarms), "warning")
    return f"{said}; {warnings}, the first a {first.kind} at step {first.raised:,} (--step {first.raised} explains it)"


def show(name: str, found: Explanation, console: Console) -> None:
    """Prints an explanation.

    Args:
        name: of the run, as it was typed.
        found: the explanation.
        console: where to.
    """
    from rich.padding import Padding
    from rich.text import Text

    console.print(Text.assemble((name, "bold"), "  ", (found.title, "bold red" if found.place else "bold yellow")))
    console.print(Text(found.facts, "dim"))
    for title, parts in _blocks(found, console):
        console.print()
        console.print(Text(title, "bold"))
        for part in parts:
            console.print(Padding(part, (0, 0, 0, 2), expand=False))


def _blocks(found: Explanation, console: Console) -> Iterator[tuple[str, list[RenderableType]]]:
    """Yields what is printed: (heading, what stands below it)."""
    known = found.known
    told = known.diagnosis
    yield "Mechanism", [_marked(found.mechanism), *([_marked(found.story)] if found.story else [])]
    if told is not None:
        for title, lines in (("Evidence", told.best.evidence), ("What would contradict it", told.best.contradicts)):
            if lines:
                yield title, [_item(line) for line in lines]
    if known.proof is not None:
        yield "Proof", list(_proof(known.proof, console))
    elif known.remedy is not None:
        yield "Proof", [_marked(UNPROVED)]
    if known.blame is not None:
        yield from _blame(known.blame, console)
    if told is not None:
        yield from _rest(told)
    if known.remedy is not None:
        from rich.text import Text

        proved = " (proved by the replay)" if known.remedy.proved else ""
        code = [Text(""), Text(known.remedy.code, "cyan", no_wrap=False)] if known.remedy.code else []
        yield f"What to change{proved}", [_marked(known.remedy.text), *code]
    if told is not None and told.best.references:
        yield "References", [_item(line) for line in told.best.references]


def _rest(told: Diagnosis) -> Iterator[tuple[str, list[RenderableType]]]:
    """Yields the other causes: likely ones, those ruled out, those that could not be judged."""
    from foreshock.diagnose.base import TITLES
    from foreshock.diagnose.wording import percent

    def judged(cause: Cause) -> RenderableType:
        why = f": {cause.evidence[0]}" if cause.evidence else ""
        return _item(f"{cause.title} ({percent(cause.score)}){why}")

    others = [cause for cause in told.causes[1:] if cause.name != "unexplained"]
    if others:
        yield "Also likely", [judged(cause) for cause in others]
    if told.ruled_out and not any(cause.name == "unexplained" for cause in told.causes):  # whose evidence they are
        yield "Ruled out", [judged(cause) for cause in told.ruled_out]
    if told.unjudged:
        lines = []
        for each in told.unjudged:
            wanted = [name for name in each.signals if name not in each.why]
            record = f"; record next time: {', '.join(wanted)}" if wanted else ""
            lines.append(_item(f"{TITLES.get(each.cause, each.cause.replace('_', ' '))}: {each.why}{record}"))
        yield "Not judged", lines


def _proof(found: Replayed, console: Console) -> Iterator[RenderableType]:
    from rich.text import Text

    from foreshock.cli.console import table
    from foreshock.diagnose.wording import percent
    from foreshock.report.proof import head
    from foreshock.report.wording import number

    yield _marked(head(found))
    narrow = console.width < NARROW
    rows = table("arm", *([] if narrow else ["what was changed"]), "peak", "rise left", "verdict",
                 numbers=("peak", "rise left"))  # fmt: skip
    marks = PLAIN if console.options.ascii_only else MARKS
    shown = [arm for arm in found.arms if arm.verdict not in ("not applicable", "failed")][:ARMS]
    if found.peak == found.peak:
        over = f"over a level of {number(found.base)}" if found.base == found.base else ""
        rows.add_row(Text("as it was"), *([] if narrow else [over]), number(found.peak), percent(1.0), "")
    for arm in shown:
        left = percent(max(0.0, arm.share)) if abs(arm.share) < float("inf") else "-"
        verdict = Text(f"{marks[arm.verdict]} {arm.verdict}", STYLES.get(arm.verdict, ""))
        rows.add_row(Text(arm.name), *([] if narrow else [Text(arm.what)]), number(arm.peak), left, verdict)
    if shown:
        yield rows
    for word in ("not applicable", "failed"):
        arms = [f"{arm.name}{f' ({arm.why})' if arm.why else ''}" for arm in found.arms if arm.verdict == word]
        if arms:
            yield Text(f"{word}: {', '.join(arms)}", "dim")


def _blame(found: Attributed, console: Console) -> Iterator[tuple[str, list[RenderableType]]]:
    from rich.text import Text

    from foreshock.report.proof import change, examples, largest, parts, sums

    head: list[RenderableType] = [Text(change(found))]
    tensors, rest = largest(found, TENSORS)
    if tensors:
        rows = [*tensors, *([("all others", rest)] if abs(rest) >= 0.005 else [])]
        yield "Guilty tensors", [*head, _bars(rows, console)]
        head = []
    if made := parts(found):
        yield "The updates were made of", [*head, _bars(made, console)]
        head = []
    for title, some in examples(found):
        yield title, [*head, _examples(some[:EXAMPLES])]
        head = []
    if said := sums(found):
        yield "Completeness", [Text(said)]


def _bars(rows: Sequence[tuple[str, float]], console: Console) -> Table:
    """Returns shares with a bar each, as a table without a frame."""
    from rich.text import Text

    from foreshock.diagnose.wording import percent

    block = "#" if console.options.ascii_only else "█"
    most = max((abs(share) for _, share in rows), default=1.0) or 1.0
    grid = _grid()
    for name, share in rows:
        bar = block * max(1, round(BAR * abs(share) / most))
        grid.add_row(Text(name, overflow="fold"), percent(share), Text(bar, "blue" if share < 0 else "red"))
    return grid


def _examples(some: Sequence[Example]) -> Table:
    from rich.text import Text

    from foreshock.diagnose.wording import percent
    from foreshock.report.proof import one_step, short

    grid, one = _grid(), one_step(some)
    for each in some:
        place = "?" if each.index is None else f"{each.index:,}"
        where = f"example {place}" + ("" if each.step is None or one is not None else f" of step {each.step:,}")
        told = " ".join(_printable(each.text).split()) if each.text else ""
        told = told or ("a picture, shown on the page" if each.image else "")
        grid.add_row(Text(where), percent(each.share), Text(short(told, TEXT)))
    return grid


def _grid() -> Table:
    from rich.table import Table

    grid = Table.grid(padding=(0, 2))
    grid.add_column()
    grid.add_column(justify="right", no_wrap=True)
    grid.add_column(overflow="fold")
    return grid


def _printable(text: str) -> str:
    """Returns a text without what moves a terminal's cursor, hides or turns around what it writes."""
    return "".join(each if each.isprintable() or each.isspace() else "\N{REPLACEMENT CHARACTER}" for each in text)


def _marked(text: str) -> RenderableType:
    """Returns text whose `names in backticks` are set apart, on a terminal by their colour."""
    from rich.text import Text

    from foreshock.report.phrase import phrases

    return Text.assemble(*((each.text, "cyan" if each.style == "name" else "") for each in phrases(text)))


def _item(text: str) -> RenderableType:
    """Returns one line of a list, with a hanging indent."""
    from rich.table import Table

    grid = Table.grid(padding=(0, 1))
    grid.add_row("-", _marked(text))
    return grid
