"""Figures of the softmax-absorption reproduction: the timeline, the losses of all arms, thresholds against bounds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from foreshock.numerics.thresholds import absorption_bounds
from foreshock.papers.absorption_arms import ARMS
from foreshock.papers.absorption_spikes import relapses
from foreshock.papers.absorption_thresholds import CLASSES, FORMATS
from foreshock.papers.absorption_timeline_figure import EXACT, FLOAT64, STOCK, timeline
from foreshock.papers.absorption_training import Trace
from foreshock.papers.drawing import EDGE, GREY, WIDTH, blank, heading
from foreshock.papers.modular_figure import figure as modular_figure
from foreshock.papers.studies import Found

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["arms", "figures", "thresholds"]

Studies = Mapping[int, Mapping[str, Found]]  # seed -> study -> what it found

COLUMNS = 4
FLOOR, CEILING = 1e-12, 1e6
DESCENTS = {"descent-stock": STOCK, "descent-exact": EXACT, "descent-margin": "#12807a"}
TYPES = {"float16": "#96700a", "bfloat16": "#8f3a84", "float32": STOCK, "float64": EXACT}


def figures(found: Studies) -> dict[str, Figure]:
    """Returns the figures that the trainings at hand allow, by file name."""
    made = {
        "timeline": _timeline(found), "arms": arms(found), "thresholds": thresholds(found),
        "grokking": _grokking(found),
    }  # fmt: skip
    return {name: figure for name, figure in made.items() if figure is not None}


def _timeline(found: Studies) -> Figure | None:
    study = _first(found, "timeline")
    return None if study is None else timeline(study.drawn["traces"], study.drawn["levels"])


def _grokking(found: Studies) -> Figure | None:
    study = _first(found, "grokking")
    return None if study is None else modular_figure(study.drawn["modular"])


def arms(found: Studies) -> Figure | None:
    """Returns the first seed's loss in every arm, in float64 from its own logits, with the number of its spikes."""
    studies = next(iter(found.values()))
    traces: dict[str, Trace] = {
        name: trace for study in studies.values() for name, trace in study.drawn.get("traces", {}).items()
    }
    shown = [name for name in ARMS if name in traces and name not in DESCENTS]
    falls = [name for name in DESCENTS if name in traces]
    count = len(shown) + bool(falls)
    if count < 2:
        return None
    rows = math.ceil(count / COLUMNS)
    with blank(WIDTH, 1.05 * rows + 0.2) as figure:
        grid = figure.subplots(rows, COLUMNS, sharex=True, sharey=True, squeeze=False).ravel()
        for place, axes in enumerate(grid):
            axes.set_visible(place < count)
            axes.tick_params(labelbottom=place + COLUMNS >= count)
        double = traces.get("float64")
        for axes, name in zip(grid, shown, strict=False):
            _arm(axes, traces[name], double)
        if falls:
            _descents(grid[count - 1], [traces[name] for name in falls])
        grid[0].set(yscale="log", ylim=(FLOOR, CEILING), yticks=[1e-10, 1e-5, 1])
        grid[0].minorticks_off()
        grid[0].set_xlim(0, max(len(traces[name].truth) for name in shown or falls))
        figure.supxlabel("step", fontsize=8)
        figure.supylabel("loss, in float64 from the same logits (grey: training in float64)", fontsize=8)
    return figure


def _arm(axes: Axes, trace: Trace, double: Trace | None) -> None:
    spikes = relapses(trace.losses)
    axes.set_title(trace.arm.title.removeprefix("float32, "), fontsize=6.5, fontweight="bold", pad=3)
    if double is not None and trace is not double:
        axes.plot(double.truth, color=FLOAT64, linewidth=1.4, alpha=0.6)
    axes.plot(np.clip(trace.truth, FLOOR, None), color=STOCK if spikes else EXACT, linewidth=0.7)
    fitted = trace.losses.min() < 1e-6
    said = f"{len(spikes)} spike{'s' if len(spikes) != 1 else ''}" if fitted else "never below 1e-6"
    colour = STOCK if spikes else EXACT
    axes.text(0.98, 0.93, said, transform=axes.transAxes, fontsize=7, ha="right", va="top", color=colour)


def _descents(axes: Axes, traces: list[Trace]) -> None:
    """Draws the trainings that go on by plain gradient descent in one panel."""
    axes.set_title("GD from step 800", fontsize=6.5, fontweight="bold", pad=3)
    heights = {"descent-stock": 0.93, "descent-exact": 0.79, "descent-margin": 0.65}
    for trace in traces:
        name, colour = trace.arm.name, DESCENTS[trace.arm.name]
        axes.plot(np.clip(trace.truth, FLOOR, None), color=colour, linewidth=0.7)
        text = {"descent-stock": "torch's loss", "descent-exact": "exact loss", "descent-margin": "margin form"}[name]
        axes.text(0.98, heights[name], text, transform=axes.transAxes, fontsize=7, ha="right", va="top", color=colour)


def thresholds(found: Studies) -> Figure | None:
    """Returns thresholds against their bounds, the class sum on the way there, and what an offset does by hand."""
    study = _first(found, "thresholds")
    if study is None:
        return None
    with blank(WIDTH, 2.5) as figure:
        left, middle, right = figure.subplots(1, 3, width_ratios=(1.25, 1, 0.8))
        heading(left, "Threshold, torch's loss")
        many = np.geomspace(CLASSES[0], CLASSES[-1], 60)
        for name, colour in TYPES.items():
            low, _ = absorption_bounds(FORMATS[name].dtype, 2)
            left.fill_between(many, low, low + np.log(many - 1), color=colour, alpha=0.16, linewidth=0)
            left.axhline(low - math.log(2), color=colour, linewidth=0.6, linestyle=(0, (2, 2)))
            measured = [study.drawn["table"][name, classes] for classes in CLASSES]
            left.plot(CLASSES, measured, color=colour, marker="o", markersize=2.5, linewidth=0.8)
            left.annotate(name, (CLASSES[-1], measured[-1]), xytext=(4, 0), textcoords="offset points", fontsize=7,
                          color=colour, va="center", annotation_clip=False)  # fmt: skip
        left.set(xscale="log", ylim=(0, 46), xlabel="classes", ylabel="gap, nats", xticks=CLASSES)
        left.set_xticklabels([f"{classes}" for classes in CLASSES])
        left.minorticks_off()
        said = "shaded: p ln2 to p ln2 + ln(K-1)\ndotted: as published, (p-1) ln2"
        left.text(0.03, 0.645, said, transform=left.transAxes, fontsize=6.5, color=GREY, va="center")
        heading(middle, "Class sum", "float32, 10 classes")
        middle.axhline(0, color=EDGE, linewidth=0.5)
        middle.plot(study.drawn["gaps"], study.drawn["partial"], color=STOCK, linewidth=0.6)
        middle.set(xlabel="gap, nats", ylabel=r"$\sum_k g_k / w$", ylim=(-1.1, 1.1), yticks=[-1, 0, 1])
        heading(right, "logsumexp(z) - z$_r$")
        offsets = sorted({abs(offset) for offset in study.drawn["by hand"]})
        right.plot(range(len(offsets)), [study.drawn["by hand"][offset] for offset in offsets], color=STOCK, marker="o",
                   markersize=2.5, linewidth=0.8)  # fmt: skip
        right.axhline(absorption_bounds(FORMATS["float32"].dtype, 2)[0], color=GREY, linewidth=0.8)
        right.annotate("torch's loss", (0, 16.64), xytext=(0, 2), textcoords="offset points", fontsize=7, color=GREY)
        right.set(xlabel="offset of the logits", ylim=(0, 19), xticks=range(len(offsets)))
        right.set_xticklabels([f"{offset:g}" for offset in offsets])
    return figure


def _first(found: Studies, name: str) -> Found | None:
    """Returns what the first seed that has this study found."""
    return next((studies[name] for studies in found.values() if name in studies), None)
