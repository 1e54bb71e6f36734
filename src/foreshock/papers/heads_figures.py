"""Figures of the new-heads reproduction: the loss around a boundary, what is known of old and new, five tasks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from foreshock.papers.drawing import EDGE, GREY, WIDTH, blank, heading
from foreshock.papers.heads_training import Trace
from foreshock.papers.studies import Found

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["accuracies", "boundary", "figures", "sequence"]

Studies = Mapping[int, Mapping[str, Found]]  # seed -> study -> what it found
Traces = Mapping[str, Trace]

RANDOM, MEAN, UNIT, LS, GRID, SHIPPED = "#c2410c", "#96700a", "#c49a1a", "#12807a", "#8f3a84", "#2358a8"
DRAWN = {
    "random": ("random", RANDOM), "class-mean": ("class mean", MEAN), "unit-mean": ("unit mean", UNIT),
    "ls": ("LS", LS), "ls-grid": ("LS + grid", GRID), "foreshock": ("foreshock", SHIPPED),
}  # fmt: skip
PANELS = (("digits", "five", "five-moving"), ("digits-mse", "five-mse", "five-mse-moving"))
"""Settings by rows of panels: cross-entropy, squared error."""
TITLES = {
    "digits": "Digits 5+5", "five": "Garments 5+5", "five-moving": "Garments, moving",
    "digits-mse": "Digits, MSE", "five-mse": "Garments, MSE", "five-mse-moving": "Moving, MSE",
}  # fmt: skip
WAYS = ("random", "ls-grid", "foreshock")  # whose way over the plane of accuracies is drawn
AHEAD, AFTER = 25, 60  # steps that are shown before a boundary and after it
BEYOND = 15.0  # times the loss of random rows from which a first loss is told and not drawn
FLOOR = 0.02  # of losses that are drawn over five tasks: two classes are soon known better than is of interest


def figures(found: Studies) -> dict[str, Figure]:
    """Returns the figures that the trainings at hand allow, by file name, of the first seed."""
    traces: dict[str, Traces] = {}
    for study in next(iter(found.values())).values():
        traces |= {name: drawn[0] for name, drawn in study.drawn.items()}
    shown = [row for row in ([name for name in names if name in traces] for names in PANELS) if row]
    made = {
        "boundary": boundary(shown, traces) if shown else None,
        "accuracies": accuracies(shown, traces) if shown else None,
        "sequence": sequence(traces["pairs"]) if "pairs" in traces else None,
    }
    return {name: figure for name, figure in made.items() if figure is not None}


def boundary(shown: Sequence[Sequence[str]], traces: Mapping[str, Traces]) -> Figure:
    """Returns the loss around the first boundary, a panel for each setting and a line for each choice of rows."""
    with blank(WIDTH, 0.5 + 2.0 * len(shown)) as figure:
        grid = figure.subplots(len(shown), max(map(len, shown)), squeeze=False, sharex=True)
        for axes, name in _panels(grid, shown):
            _loss(axes, TITLES[name], traces[name])
        _legend(figure, shown, traces)
        figure.supxlabel("steps since the new classes came", fontsize=8)
        figure.supylabel("loss of the batch", fontsize=8)
    return figure


def _panels(grid: npt.NDArray[np.object_], shown: Sequence[Sequence[str]]) -> Iterator[tuple[Axes, str]]:
    """Yields axes and setting of each panel; what is left over is hidden."""
    for line, names in zip(grid, shown, strict=True):
        for place, axes in enumerate(line):
            axes.set_visible(place < len(names))
            if place < len(names):
                yield axes, names[place]


def _legend(figure: Figure, shown: Sequence[Sequence[str]], traces: Mapping[str, Traces]) -> None:
    from matplotlib.lines import Line2D

    there = {name for names in shown for setting in names for name in traces[setting]}
    handles = [Line2D([], [], color=colour, label=label) for name, (label, colour) in DRAWN.items() if name in there]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False, fontsize=7,
                  handlelength=1.2, columnspacing=1.4)  # fmt: skip


def _loss(axes: Axes, title: str, traces: Traces) -> None:
    heading(axes, title)
    axes.axvline(0, color=EDGE, linewidth=0.6, linestyle=(0, (2, 2)))
    limit = BEYOND * traces["random"].boundaries[0].first
    highest, beyond = 0.0, []
    for name, (label, colour) in DRAWN.items():
        if name not in traces:
            continue
        first = traces[name].boundaries[0]
        if first.first > limit:
            beyond.append((f"{label}: {first.first:,.3g}", colour))
            continue
        before = traces[name].run["loss"][first.at - AHEAD : first.at]
        values = np.concatenate([before, first.losses[:AFTER]])
        highest = max(highest, float(first.losses[:AFTER].max()))
        order = 4 if name == "foreshock" else 3
        axes.plot(np.arange(-len(before), len(values) - len(before)), values, color=colour, linewidth=0.8, zorder=order)
        axes.plot(0, first.first, color=colour, marker="o", markersize=3, zorder=order + 2)
    axes.set(yscale="log", xlim=(-AHEAD, AFTER))
    axes.set_ylim(None, 1.8 * highest)
    axes.yaxis.set_minor_formatter("")
    for place, (text, colour) in enumerate(beyond):
        axes.text(0.97, 0.96 - 0.1 * place, f"{text} \u2191", transform=axes.transAxes, fontsize=6.5, color=colour,
                  ha="right", va="top")  # fmt: skip


def accuracies(shown: Sequence[Sequence[str]], traces: Mapping[str, Traces]) -> Figure:
    """Returns what is known of new and of old classes: untrained (dots) and at the end (crosses)."""
    with blank(WIDTH, 0.5 + 2.0 * len(shown)) as figure:
        grid = figure.subplots(len(shown), max(map(len, shown)), squeeze=False, sharex=True, sharey=True)
        for axes, name in _panels(grid, shown):
            _plane(axes, TITLES[name], traces[name])
        _legend(figure, shown, traces)
        figure.supxlabel("accuracy of the new classes: dots untrained, crosses at the end", fontsize=8)
        figure.supylabel("accuracy of the old classes", fontsize=8)
    return figure


def _plane(axes: Axes, title: str, traces: Traces) -> None:
    heading(axes, title)
    axes.axhline(traces["random"].boundaries[0].old_before, color=GREY, linewidth=0.6, linestyle=(0, (2, 2)))
    for name, (_, colour) in DRAWN.items():
        if name not in traces:
            continue
        one = traces[name].boundaries[0]
        if name in WAYS:
            axes.plot(one.new_accuracy, one.old, color=colour, linewidth=0.7, alpha=0.55)
        order = 5 if name == "foreshock" else 4
        axes.plot(one.new_accuracy[0], one.old[0], color=colour, marker="o", markersize=5, zorder=order)
        axes.plot(one.new_accuracy[-1], one.old[-1], color=colour, marker="x", markersize=4.5, markeredgewidth=1.2,
                  zorder=order)  # fmt: skip
    axes.set(xlim=(-0.04, 1.04), ylim=(-0.06, 1.06), xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])


def sequence(traces: Traces) -> Figure:
    """Returns the loss over five tasks, random rows beside those of this library, and what is known of all classes."""
    with blank(WIDTH, 3.4) as figure:
        loss, known = figure.subplots(2, 1, sharex=True, height_ratios=(1.3, 1))
        heading(loss, "Five tasks of two classes", "cross-entropy, features that stand still, 20 examples a class kept")
        for name in ("random", "ls", "foreshock"):
            label, colour = DRAWN[name]
            trace = traces[name]
            start = trace.boundaries[0].at
            losses = trace.run["loss"]
            loss.plot(np.arange(len(losses)) - start, losses, color=colour, linewidth=0.6, alpha=0.9)
            steps, values = _all_classes(trace)
            known.plot(steps - start, values, color=colour, linewidth=0.9)
            loss.plot([], [], color=colour, label=label)
        loss.legend(loc="lower right", frameon=False, fontsize=7, ncols=3)
        loss.set(yscale="log", ylabel="loss", ylim=(FLOOR, None))
        known.set(ylabel="accuracy, all classes", xlabel="step", xlim=(-50, len(losses) - start))
        for axes in (loss, known):
            for each in trace.boundaries:
                axes.axvline(each.at - start, color=EDGE, linewidth=0.5, linestyle=(0, (2, 2)))
    return figure


def _all_classes(trace: Trace) -> tuple[np.ndarray, np.ndarray]:
    steps: list[float] = []
    values: list[float] = []
    for each in trace.boundaries:
        steps += [*(each.at + each.steps), each.at + len(each.losses)]
        values += [*(each.old * (1 - each.share) + each.new_accuracy * each.share), np.nan]
    return np.array(steps), np.array(values)
