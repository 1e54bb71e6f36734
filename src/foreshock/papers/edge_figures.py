"""Figures of the edge-of-stability reproduction: chi over time, sharpness against threshold, batches and beta2."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from foreshock.papers.drawing import EDGE, WIDTH, beside, blank, edge_line, heading, spread
from foreshock.papers.edge_training import Reading, Trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["chi", "figures", "sharpness", "variations"]

Traces = Mapping[int, Mapping[str, Trace]]  # seed -> configuration -> trace


class Panel(NamedTuple):
    """A training's panel: heading, settings in grey, and the colour that means this optimizer in every figure."""

    title: str
    settings: str
    colour: str


PANELS = {
    "gd": Panel("GD", "lr 0.5", "#2358a8"),
    "momentum": Panel("Momentum", "0.9, lr 0.6", "#12807a"),
    "rmsprop": Panel("RMSprop", "lr 0.001", "#c2410c"),
    "adam": Panel("Adam", "lr 0.005", "#8f3a84"),
    "adamw": Panel("AdamW", "lr 0.005, decay 0.1", "#96700a"),
    "nadam": Panel("NAdam", "lr 0.001", "#4d7a1c"),
    "adam-beta2-0.99": Panel("Adam", "lr 0.005, \u03b2\u2082 0.99", "#8f3a84"),
}
BATCHES = {"adam": "500", "batch-250": "250", "batch-100": "100", "batch-32": "32", "batch-8": "8"}
BETAS = {"adam": "0.999", "adam-beta2-0.99": "0.99", "adam-beta2-0.9": "0.9", "adam-beta2-0.5": "0.5"}
RAMP = ((0x7A, 0x2F, 0x86), (0xC4, 0x3B, 0x6B), (0xE2, 0x74, 0x3A), (0xC9, 0x9A, 0x1E))
CEILING = 1.5  # of chi
HIGHER = 2.25  # where beta2 is small: chi goes up to 2.1 there, seeds 0 to 3
LABEL = 0.06  # height of a label, as a share of the axis


def figures(traces: Traces) -> dict[str, Figure]:
    """Returns the figures that the trainings at hand allow, by file name."""
    made = {"chi": chi(traces), "sharpness": sharpness(traces), "variations": variations(traces)}
    return {name: figure for name, figure in made.items() if figure is not None}


def chi(traces: Traces) -> Figure | None:
    """Returns chi over steps, one panel for each optimizer, one line for each seed, with the edge at 1."""
    names = _shown(traces)
    if not names:
        return None
    with _panels(traces, names, sharey=True) as (figure, grid):
        for place, (axes, name) in enumerate(zip(grid, names, strict=True)):
            colour = PANELS[name].colour
            edge_line(axes, "edge" if place == 0 else "")
            for shade, runs in zip(_shades(traces), traces.values(), strict=True):
                _line(axes, runs[name], lambda reading: reading.chi, colour, shade)
            axes.set(ylim=(0, CEILING), yticks=[0, 0.5, 1, 1.5])
            _corner(axes, f"settles at {_listed([runs[name].settled() for runs in traces.values()])}", colour)
        figure.supylabel(r"$\chi$, sharpness in units of the threshold", fontsize=8)
    return figure


def sharpness(traces: Traces) -> Figure | None:
    """Returns preconditioned sharpness and its threshold on one axis, one panel for each optimizer."""
    from matplotlib.ticker import MaxNLocator

    names = _shown(traces)
    if not names:
        return None
    with _panels(traces, names, sharey=False) as (figure, grid):
        for place, (axes, name) in enumerate(zip(grid, names, strict=True)):
            colour = PANELS[name].colour
            settled = [each for each in next(iter(traces.values()))[name].readings if each.step]
            steps, thresholds = [each.step for each in settled], [each.threshold for each in settled]
            axes.plot(steps, thresholds, color=EDGE, linewidth=0.9, zorder=1)
            for shade, runs in zip(_shades(traces), traces.values(), strict=True):
                _line(axes, runs[name], lambda reading: reading.sharpness, colour, shade)
            axes.set_ylim(0, 1.45 * max(thresholds))
            axes.yaxis.set_major_locator(MaxNLocator(3))
            axes.yaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k" if value >= 1000 else f"{value:g}")
            if place == 0:
                beside(axes, "threshold", (steps[-1], thresholds[-1]), EDGE, left=True)
                beside(axes, "sharpness", (steps[len(steps) // 30], settled[len(steps) // 30].sharpness), colour)
        figure.supylabel(r"$\lambda_{\max}(P^{-1}H)$", fontsize=8)
    return figure


def variations(traces: Traces) -> Figure | None:
    """Returns chi over steps for Adam in smaller and smaller batches, and with a faster and faster second moment."""
    first = next(iter(traces.values()))
    sides = [
        (title, detail, shown, ceiling)
        for title, detail, labels, ceiling in (
            ("Batch size", "Adam", BATCHES, CEILING), ("\u03b2\u2082", "Adam, full batch", BETAS, HIGHER)
        )
        if len(shown := {name: label for name, label in labels.items() if name in first}) > 1
    ]
    if not sides:
        return None
    with blank(WIDTH / 2 * len(sides), 2.3) as figure:
        for axes, side in zip(figure.subplots(1, len(sides), squeeze=False)[0], sides, strict=True):
            title, detail, labels, ceiling = side
            heading(axes, title, detail)
            edge_line(axes, "edge" if labels is sides[0][2] else "")
            ticks = [step / 2 for step in range(int(2 * ceiling) + 1)]
            axes.set(ylim=(0, ceiling), yticks=ticks, xlabel="step", ylabel=r"$\chi$ on all samples")
            ends = []
            for place, name in enumerate(labels):
                _line(axes, first[name], lambda reading: reading.chi, _ramp(place, len(labels)), 1.0)
                ends.append(statistics.median(reading.chi for reading in first[name].readings[-5:]))
            for place, (height, label) in enumerate(zip(spread(ends, LABEL * ceiling), labels.values(), strict=True)):
                axes.annotate(
                    label, (1, height), xycoords=("axes fraction", "data"), xytext=(3, 0), textcoords="offset points",
                    fontsize=7, va="center", color=_ramp(place, len(labels)), annotation_clip=False,
                )
    return figure


@contextmanager
def _panels(traces: Traces, names: Sequence[str], *, sharey: bool) -> Iterator[tuple[Figure, list[Axes]]]:
    """Gives a figure with one titled panel for each name, over a common axis of steps."""
    count = len(names)
    columns = min(count, 2 if count == 4 else 3)
    rows = math.ceil(count / columns)
    with blank(WIDTH * columns / 3 if columns < 3 else WIDTH, 1.45 * rows + 0.3) as figure:
        grid = figure.subplots(rows, columns, sharex=True, sharey=sharey, squeeze=False).ravel()
        for place, axes in enumerate(grid):
            axes.set_visible(place < count)
            if place + columns >= count:
                axes.tick_params(labelbottom=True)
        for axes, name in zip(grid, names, strict=False):
            heading(axes, PANELS[name].title, PANELS[name].settings)
        first, *others = traces
        pale = f" (strong: seed {first}; pale: {_seeds(others)})" if others else ""
        figure.supxlabel(f"step{pale}", fontsize=8)
        yield figure, list(grid[:count])


def _shown(traces: Traces) -> list[str]:
    """Returns the configurations with a panel that every seed has; Adam once."""
    names = [name for name in PANELS if all(name in runs for runs in traces.values())]
    return [name for name in names if name != "adam-beta2-0.99" or "adam" not in names]


def _line(axes: Axes, trace: Trace, value: Callable[[Reading], float], colour: str, shade: float) -> None:
    """Draws a value over steps, without step 0: a second moment of one gradient says nothing (chi is 4 to 30 there)."""
    kept = [each for each in trace.readings if each.step]
    axes.plot(
        [each.step for each in kept], [value(each) for each in kept], color=colour, alpha=shade,
        linewidth=1.1 if shade == 1 else 0.8, zorder=3 if shade == 1 else 2,
    )
    axes.set_xlim(0, max(len(trace.losses), 1))
    axes.xaxis.set_major_locator(_ticks())


def _ticks() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(3, steps=[1, 2, 5, 10])


def _corner(axes: Axes, text: str, colour: str) -> None:
    axes.text(0.985, 0.06, text, transform=axes.transAxes, ha="right", fontsize=7, color=colour)


def _listed(values: Sequence[float]) -> str:
    """Returns up to three values one by one, more as the range that they fill."""
    if len(values) <= 3:
        return ", ".join(f"{value:.2f}" for value in values)
    return " to ".join(dict.fromkeys((f"{min(values):.2f}", f"{max(values):.2f}")))


def _seeds(seeds: Sequence[int]) -> str:
    if len(seeds) > 6:
        return f"{len(seeds)} other seeds"
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def _shades(traces: Traces) -> list[float]:
    return [1.0, *[0.45] * (len(traces) - 1)]


def _ramp(place: int, count: int) -> str:
    """Returns one of `count` colours from Adam's over red to yellow."""
    at = place / max(count - 1, 1) * (len(RAMP) - 1)
    left = min(int(at), len(RAMP) - 2)
    mixed = [round(a + (at - left) * (b - a)) for a, b in zip(RAMP[left], RAMP[left + 1], strict=True)]
    return "#{:02x}{:02x}{:02x}".format(*mixed)
