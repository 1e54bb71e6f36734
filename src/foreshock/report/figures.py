"""Figures for papers, made with matplotlib: the page's pictures as `matplotlib.figure.Figure` objects.

No pyplot and no global state: `figure.savefig("spike.pdf")` is all that is left to do. Widths are those of one and
two columns of a paper. Needs `pip install 'foreshock[figures]'`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from foreshock.detect.series import series
from foreshock.detect.stages import Stages
from foreshock.diagnose.growth import growth
from foreshock.errors import UsageError
from foreshock.report.approach import told
from foreshock.report.canvas import blank
from foreshock.report.columns import describe, tensor_signals, wants_log
from foreshock.report.decimate import Floats, Ints, keep, thin
from foreshock.report.departures import ranked
from foreshock.report.detail import HARM, Detail, detail, gather, span_of
from foreshock.report.explained import explained
from foreshock.report.heat import Heat, whole
from foreshock.report.interventions import interventions
from foreshock.report.loss_curve import parted
from foreshock.report.phrase import plain
from foreshock.report.refused import spared
from foreshock.report.summary import run_name
from foreshock.run import Run
from foreshock.run.event import Event
from foreshock.signals import EDGES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["approach", "event", "heatmap", "loss"]

WIDTH = 6.3  # inches: the text width of a usual two-column page, and of a one-column one on A4
COLOURS = {
    "line": "#2358a8", "curve": "#3b414d", "spike": "#c2410c", "divergence": "#8f3a84", "nonfinite": "#15171c",
    "drift": "#7a6200", "precursor": "#b37400", "landscape": "#0f766e",
    "guard": "#3c7a0a", "aside": "#8f959f",
}  # fmt: skip
STAGES = {
    "stable": "#8a8f9a", "approach": "#b37400", "decoupled": "#b37400", "silent": "#d9480f", "onset": "#b3123e",
    "refill": "#8f3a84", "flattening": "#8f3a84", "decay": "#2358a8", "descent": "#2358a8",
}  # fmt: skip
_STYLE: Any = {
    "font.size": 8, "axes.titlesize": 9, "axes.labelsize": 8, "xtick.labelsize": 7, "ytick.labelsize": 7,
    "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.6, "axes.titlelocation": "left",
    "axes.grid": True, "grid.color": "#e6e5e0", "grid.linewidth": 0.5, "axes.axisbelow": True, "lines.linewidth": 0.9,
    "xtick.major.width": 0.6, "ytick.major.width": 0.6, "pdf.fonttype": 42, "svg.fonttype": "none",
    "figure.dpi": 150, "savefig.dpi": 300,
}  # fmt: skip
BUCKETS = 1500  # two points each: more than the printed dots of a full-width line


def loss(run: Run, events: Sequence[Event] = ()) -> Figure:
    """Returns the loss over steps with its events marked: bands from onset to end, peaks, early warnings.

    Values that are not finite are ticks on the top edge; the axis is logarithmic where that reads better. Where a guard
    was at work the line is the loss of what the training took: refused attempts are hollow points, what was rolled back
    is dashed, and a mark above the curve stands for each intervention.

    Args:
        run: the run.
        events: its events, e.g. from `foreshock.detect.scan(run)`.

    Raises:
        UsageError: the run has no loss.
        MissingExtraError: matplotlib is not installed.
    """
    with blank(WIDTH, 2.4, _STYLE) as figure:
        axes = figure.subplots()
        steps, values = run.measured("loss")
        lost = spared(run, events)
        _guarded(axes, run, steps, values)
        _bands(axes, run, events)
        for item in events:
            at = int(np.searchsorted(steps, item.peak))
            if item.kind in HARM and item.kind != "nonfinite" and at < len(steps):
                hollow: dict[str, Any] = {"markerfacecolor": "white"} if item.key in lost else {}
                peak: dict[str, Any] = {"marker": "^", "markersize": 3.5, "color": _colour(item.kind), "clip_on": False}
                axes.plot(item.peak, values[at], **peak | hollow)
            elif item.kind not in HARM:
                mark: dict[str, Any] = {"marker": ">", "markersize": 3, "color": _colour(item.kind), "clip_on": False}
                axes.plot(item.raised, 0, transform=axes.get_xaxis_transform(), **mark)
        axes.set(xlabel="step", ylabel="loss", title=run_name(run))
    return figure


def event(run: Run, item: Event, events: Sequence[Event] = (), *, signals: int = 6) -> Figure:
    """Returns the signals around one event on a common time axis, and the tensors that moved most below them.

    The stages of a spike of the curvature family are shaded; `approach` names them.

    Args:
        run: the run.
        item: the event.
        events: all events of the run; keeps earlier ones out of what counts as normal.
        signals: most signals to draw: the event's own, the loss, and those that left their range farthest.

    Raises:
        UsageError: the run holds no records.
        MissingExtraError: matplotlib is not installed.
    """
    if len(run) == 0:
        raise UsageError("figures.event: the run holds no records")
    span = span_of(run, item, events)
    found = detail(run, span, gather(run, span))
    columns = _columns(found, signals)
    story = explained(run, item).curvature
    how = None if story is None else story.approach.stages
    heat = found.heats[0] if found.heats else None
    heights = [1.5, *[1.0] * (len(columns) - 1)] + ([max(1.0, 0.14 * len(heat.names))] if heat else [])
    with blank(WIDTH, 0.75 * sum(heights) + 0.6, _STYLE) as figure:
        grid = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
        by_column = {departure.column: departure for departure in found.wide}
        for axes, column in zip(grid, columns, strict=False):
            steps, values = found.curves[column]
            inside = slice(*np.searchsorted(steps, [span.first, span.last + 1]))
            _curve(axes, steps[inside], values[inside], COLOURS["line" if column == item.signal else "curve"])
            if column in EDGES:
                axes.axhline(1.0, color=COLOURS["spike"], linewidth=0.7, linestyle=(0, (4, 3)))
            if how is not None and how.bounds:
                _stages(axes, how, span.first, span.last, named=False)
            else:
                axes.axvspan(item.onset, span.end, color=_colour(item.kind), alpha=0.13, linewidth=0)
            moved = by_column.get(column)
            if moved is not None and moved.first is not None and moved.lead and column != item.signal:
                axes.axvline(moved.first, color=COLOURS["precursor"], linewidth=0.9)
            unit = describe(column)["unit"]
            axes.set_title(column + (f" [{unit}]" if unit and unit != column else ""), fontsize=7.5, pad=2)
        if heat is not None:
            _heat(figure, grid[-1], heat)
        grid[-1].set(xlabel="step", xlim=(span.first, max(span.last, span.first + 1)))
        figure.suptitle(f"{item.kind} at step {item.peak:,}", x=0.01, ha="left", fontsize=9)
    return figure


def approach(run: Run, item: Event) -> Figure:
    """Returns how an event of the curvature family came about: loss, chi with its edge, and who drove it, by stages.

    Args:
        run: the run.
        item: of kind watch, imminent, transient or spike.

    Raises:
        UsageError: chi was not read around the event, or it is of another kind.
        MissingExtraError: matplotlib is not installed.
    """
    found = told(run, item)
    if found is None:
        raise UsageError(f"figures.approach: no reading of chi around this {item.kind} at step {item.peak:,}")
    how, part = found.approach, run.window(found.first, found.last + 1)
    split = growth(part, max(how.marks.begin, found.first), found.last)
    heights = [1.3, 1.3] + ([1.0] if split is not None else [])
    with blank(WIDTH, 0.85 * sum(heights) + 0.9, _STYLE) as figure:
        grid = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
        for axes, column in zip(grid, ("loss", "chi"), strict=False):
            if column in part:
                _curve(axes, *part.measured(column), COLOURS["line" if column == "loss" else "curve"])
            axes.set_ylabel(column)
        along = series(part, "chi_gradient")
        if len(along):
            grid[1].plot(along.steps, along.values, color=COLOURS["spike"], linewidth=0.6, label="along the gradient")
            grid[1].legend(frameon=False, fontsize=6, loc="lower left")
            low = series(part, "chi").values.min()
            grid[1].set_ylim(bottom=min(low, how.chi_max - 0.5))
        grid[1].axhline(1.0, color=COLOURS["spike"], linewidth=0.7, linestyle=(0, (4, 3)))
        if split is not None:
            made = split.curves["denominator"] + split.curves["momentum"]
            parts = {"preconditioner": (made, "line"), "landscape": (split.curves["landscape"], "landscape")}
            parts["learning rate"] = (split.curves["learning rate"], "drift")
            for name, (values, colour) in parts.items():
                if np.abs(values).max() > 1e-3:
                    grid[2].plot(split.steps, values, color=COLOURS[colour], label=name)
            grid[2].set_ylabel("parts of ln chi")
            grid[2].legend(frameon=False, fontsize=6, loc="upper left")
        for axes in grid:
            _stages(axes, how.stages, found.first, found.last, named=axes is grid[0])
        grid[-1].set(xlabel="step", xlim=(found.first, found.last))
        figure.suptitle("\n".join(textwrap.wrap(plain(found.sentence), 112)), x=0.01, ha="left", fontsize=7.5)
    return figure


def _stages(axes: Axes, found: Stages, first: int, last: int, *, named: bool) -> None:
    for stage in found.bounds:
        begin, end = max(stage.first, first), min(stage.last + 1, last)
        if end <= begin:
            continue
        axes.axvspan(begin, end, color=STAGES[stage.name], alpha=0.12, linewidth=0)
        if named and end - begin > 0.04 * (last - first):
            mark: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "fontsize": 6.5, "ha": "center"}
            axes.text((begin + end) / 2, 1.02, stage.name, color=STAGES[stage.name], **mark)


def heatmap(run: Run, signal: str | None = None, *, tensors: int = 40, columns: int = 480) -> Figure:
    """Returns a per-tensor signal over the whole run: ln(value / the tensor's median), blue below, red above.

    Args:
        run: the run.
        signal: name of the signal; None for the first one the run holds per tensor.
        tensors: most tensors to show, those that go farthest from their median.
        columns: most columns; a cell keeps the most extreme of its steps.

    Raises:
        UsageError: the run does not hold this signal per tensor.
        MissingExtraError: matplotlib is not installed.
    """
    known = tensor_signals(run)
    name = signal if signal is not None else (known[0] if known else "grad_norm")
    if name not in known:
        raise UsageError(f"figures.heatmap: no per-tensor {name!r} in this run; it has: {', '.join(known) or 'none'}")
    heat = whole(run, name, rows=tensors, columns=columns)
    if heat is None:
        raise UsageError(f"figures.heatmap: {name!r} was never finite in this run")
    with blank(WIDTH, 0.13 * len(heat.names) + 1.0, _STYLE) as figure:
        axes = figure.subplots()
        _heat(figure, axes, heat)
        axes.set(xlabel="step", title=f"{name}, {run_name(run)}")
    return figure


def _columns(found: Detail, most: int) -> list[str]:
    moved = [item.column for item in ranked(list(found.wide))]
    order = dict.fromkeys([found.span.event.signal, "loss", *moved])
    return [column for column in order if column in found.curves][: max(1, most)]


def _curve(axes: Axes, steps: Ints, values: Floats, colour: str) -> None:
    if wants_log(values):
        axes.set_yscale("log", nonpositive="mask")
        axes.yaxis.set_minor_formatter("")
    chosen = keep(values, BUCKETS)
    finite = np.where(np.isfinite(values[chosen]), values[chosen], np.nan)
    axes.plot(steps[chosen], finite, color=colour, marker="." if len(chosen) < 3 else None)
    bad = thin(np.flatnonzero(~np.isfinite(values)), 500)
    if len(bad):
        mark: dict[str, Any] = {"marker": "|", "markersize": 5, "color": COLOURS["nonfinite"], "clip_on": False}
        axes.plot(steps[bad], np.ones(len(bad)), linestyle="", transform=axes.get_xaxis_transform(), **mark)
    if len(steps) > 1:
        axes.set_xlim(int(steps[0]), int(steps[-1]))


def _guarded(axes: Axes, run: Run, steps: Ints, values: Floats) -> None:
    """Draws the line that the training took, and what a guard refused or undid beside it."""
    taken, refused = parted(run, steps)
    _curve(axes, steps[taken], values[taken], COLOURS["line"])
    if wants_log(values):
        axes.set_yscale("log", nonpositive="mask")
    undone = ~taken & ~refused
    if undone.any():
        aside = np.where(undone, values, np.nan)
        axes.plot(steps, aside, color=COLOURS["aside"], linewidth=0.7, linestyle=(0, (3, 2)))
    if refused.any():
        some = np.flatnonzero(refused)[keep(values[refused], 500)]
        mark: dict[str, Any] = {"marker": "o", "markersize": 3, "markerfacecolor": "white", "markeredgewidth": 0.6}
        axes.plot(steps[some], values[some], linestyle="", color=COLOURS["aside"], **mark)
    for group in interventions(run):
        mark = {"marker": "v", "markersize": 3.2, "color": COLOURS["guard"], "clip_on": False}
        axes.plot(group.first, 1.0, transform=axes.get_xaxis_transform(), **mark)
        if group.begin < group.first or group.end > group.last:
            axes.axvspan(group.begin, group.end, color=COLOURS["guard"], alpha=0.1, linewidth=0)
    if len(steps) > 1:
        axes.set_xlim(int(steps[0]), int(steps[-1]))


def _bands(axes: Axes, run: Run, events: Sequence[Event]) -> None:
    last = int(run.steps[-1]) if len(run) else 0
    for item in events:
        if item.kind in HARM:
            end = last if item.end is None else item.end
            axes.axvspan(item.onset, max(end, item.onset), color=_colour(item.kind), alpha=0.13, linewidth=0)
            axes.axvline(item.onset, color=_colour(item.kind), alpha=0.25, linewidth=0.6)


def _heat(figure: Figure, axes: Axes, heat: Heat) -> None:
    finite = np.abs(heat.values[np.isfinite(heat.values)])
    end = float(np.quantile(finite, 0.995)) if len(finite) else 1.0
    end = end if end > 0 else 1e-6
    edges = np.append(heat.starts, heat.stops[-1] + 1)
    cells = np.ma.masked_invalid(np.clip(heat.values, -end, end))
    mesh = axes.pcolormesh(
        edges, np.arange(len(heat.names) + 1), cells, cmap="RdBu_r", vmin=-end, vmax=end, rasterized=True
    )
    axes.grid(False)
    axes.set_yticks(np.arange(len(heat.names)) + 0.5, [name.replace("$", r"\$") for name in heat.names], fontsize=6)
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    what = f"ln({heat.signal} / level)" if heat.ratio else f"{heat.signal} - level"
    bar = figure.colorbar(mesh, ax=axes, pad=0.01, aspect=12)
    bar.set_label(what, fontsize=7)
    bar.outline.set_visible(False)


def _colour(kind: str) -> str:
    return COLOURS.get(kind, "#0f766e")
