"""Figures of the new-heads reproduction: the loss around a boundary, what is known of old and new, five tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from foreshock.papers.drawing import EDGE, GREY, WIDTH, beside, blank, heading, spread
from foreshock.papers.heads_training import Trace
from foreshock.papers.landscape_study import Found

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
PANELS = {
    "digits": "Digits, CE", "five": "Garments 5+5, CE", "five-moving": "backbone moving, CE",
    "digits-mse": "Digits, MSE", "five-mse": "Garments 5+5, MSE", "five-mse-moving": "backbone moving, MSE",
}  # fmt: skip
AHEAD, AFTER = 25, 60  # steps that are shown before a boundary and after it
SMOOTH = 5


def figures(found: Studies) -> dict[str, Figure]:
    """Returns the figures that the trainings at hand allow, by file name, of the first seed."""
    traces: dict[str, Traces] = {}
    for study in next(iter(found.values())).values():
        traces |= {name: drawn[0] for name, drawn in study.drawn.items()}
    shown = [name for name in PANELS if name in traces]
    made = {
        "boundary": boundary({name: traces[name] for name in shown}) if shown else None,
        "accuracies": accuracies({name: traces[name] for name in shown}) if shown else None,
        "sequence": sequence(traces["pairs"]) if "pairs" in traces else None,
    }
    return {name: figure for name, figure in made.items() if figure is not None}


def boundary(panels: Mapping[str, Traces]) -> Figure:
    """Returns the loss around the first boundary, a panel for each setting and a line for each choice of rows."""
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    with blank(WIDTH, 0.4 + 2.1 * rows) as figure:
        grid = figure.subplots(rows, columns, squeeze=False, sharex=True).ravel()
        for axes, (name, traces) in zip(grid, panels.items(), strict=False):
            _loss(axes, PANELS[name], traces)
        for axes in grid[len(panels) :]:
            axes.set_visible(False)
        figure.supxlabel("step after the new classes came", fontsize=8)
        figure.supylabel("loss of the batch", fontsize=8)
    return figure


def _loss(axes: Axes, title: str, traces: Traces) -> None:
    heading(axes, title)
    axes.axvline(0, color=EDGE, linewidth=0.6, linestyle=(0, (2, 2)))
    ends = []
    for name, (label, colour) in DRAWN.items():
        if name not in traces:
            continue
        first = traces[name].boundaries[0]
        before = traces[name].run["loss"][first.at - AHEAD : first.at]
        values = np.concatenate([before, first.losses[:AFTER]])
        axes.plot(np.arange(-len(before), len(values) - len(before)), values, color=colour, linewidth=0.8,
                  zorder=3 if name == "foreshock" else 2)  # fmt: skip
        axes.plot(0, first.first, color=colour, marker="o", markersize=2.8, zorder=4)
        ends.append((label, colour, first.first))
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high * 1.6)
    heights = spread([float(np.log10(value)) for *_, value in ends], np.log10(high / low) * 0.085)
    for (label, colour, _), height in zip(ends, heights, strict=True):
        axes.annotate(label, (-1.5, 10**height), fontsize=6.5, color=colour, ha="right", va="center")


def accuracies(panels: Mapping[str, Traces]) -> Figure:
    """Returns the way of each training over the plane of what is known of new and of old classes."""
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    with blank(WIDTH, 0.4 + 2.1 * rows) as figure:
        grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
        for axes, (name, traces) in zip(grid, panels.items(), strict=False):
            _plane(axes, PANELS[name], traces)
        for axes in grid[len(panels) :]:
            axes.set_visible(False)
        figure.supxlabel("accuracy of the new classes", fontsize=8)
        figure.supylabel("accuracy of the old classes", fontsize=8)
    return figure


def _plane(axes: Axes, title: str, traces: Traces) -> None:
    heading(axes, title)
    for name, (label, colour) in DRAWN.items():
        if name not in traces:
            continue
        one = traces[name].boundaries[0]
        axes.plot(one.new_accuracy, one.old, color=colour, linewidth=0.8, alpha=0.75)
        axes.plot(one.new_accuracy[0], one.old[0], color=colour, marker="o", markersize=5)
        axes.plot(one.new_accuracy[-1], one.old[-1], color=colour, marker="x", markersize=4)
        beside(axes, label, (one.new_accuracy[0], one.old[0]), colour, left=one.new_accuracy[0] > 0.6)
    axes.axhline(traces["random"].boundaries[0].old_before, color=GREY, linewidth=0.6, linestyle=(0, (2, 2)))
    axes.set(xlim=(-0.03, 1.03), ylim=(-0.06, 1.06), xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])


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
            known.annotate(label, (steps[-1] - start, values[-1]), xytext=(3, 0), textcoords="offset points",
                           fontsize=7, color=colour, va="center", annotation_clip=False)  # fmt: skip
        loss.set(yscale="log", ylabel="loss")
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


def _titles(names: Sequence[str]) -> list[str]:
    return [DRAWN[name][0] for name in names]
