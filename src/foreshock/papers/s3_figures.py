"""Figures of the S3 reproduction: loss and spikes against the learning rate, and S3 with one thing changed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from foreshock.papers.drawing import EDGE, GREY, WIDTH, blank, heading
from foreshock.papers.s3_arms import ABLATIONS, RIVALS, S3_ARM, Arm
from foreshock.papers.s3_bursts_figure import figure as bursts
from foreshock.papers.s3_tasks import TASKS
from foreshock.papers.s3_training import Trace
from foreshock.papers.studies import Found

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["figures"]

Studies = Mapping[int, Mapping[str, Found]]  # seed -> study -> what it found

TITLES = {"sines": "Two sines", "digits": "Digits", "images": "Fashion-MNIST", "text": "Austen"}
COLOURS = {
    "s3": "#c8323c", "adamw": "#1f4fa3", "adamw-95": "#5b8fd6", "adamw-equal": "#9cc3ea", "lion": "#96700a",
    "adabelief": "#12807a", "adan": "#8f3a84", "s3-p2": "#e08a3c", "s3-p1": "#b9a012", "s3-different": "#5e3c99",
    "s3-plain": "#7a7f8a",
}  # fmt: skip
MARKS = {
    "s3": "o", "adamw": "s", "adamw-95": "D", "adamw-equal": "v", "lion": "^", "adabelief": "P", "adan": "X",
    "s3-p2": "D", "s3-p1": "v", "s3-different": "^", "s3-plain": "P",
}  # fmt: skip
CUT = 1.25
NARROW = 10.0  # range of losses below which whole decades are no ticks
NUDGE = 0.022  # decades between neighbours, so that spreads do not lie on each other


def figures(found: Studies) -> dict[str, Figure]:
    """Returns the figures that the trainings at hand allow, by file name."""
    traces = list({
        (each.task, each.arm, each.factor, each.seed): each
        for studies in found.values() for study in studies.values() for each in study.drawn.get("traces", ())
    }.values())  # fmt: skip
    changed = (S3_ARM, *(arm for arm in ABLATIONS if not arm.keeps_decay))
    made = {"optimizers": _grid(traces, RIVALS), "ablations": _grid(traces, changed), "bursts": bursts(found)}
    return {name: figure for name, figure in made.items() if figure is not None}


def _grid(traces: Sequence[Trace], arms: Sequence[Arm]) -> Figure | None:
    """Returns final loss above spikes against the learning rate, a column for each task that has been trained."""
    arms = [arm for arm in arms if any(each.arm == arm.name for each in traces)]
    tasks = [name for name in TASKS if {arm.name for arm in arms} <= {each.arm for each in traces if each.task == name}]
    if not tasks or len(arms) < 2:
        return None
    with blank(WIDTH if len(tasks) > 2 else 0.3 * WIDTH * (len(tasks) + 1), 3.9) as figure:
        grid = figure.subplots(2, len(tasks), sharex=True, squeeze=False, height_ratios=(2, 1))
        for column, name in enumerate(tasks):
            own = [each for each in traces if each.task == name]
            _losses(grid[0, column], own, arms)
            _spikes(grid[1, column], own, arms)
            heading(grid[0, column], TITLES[name])
        grid[0, 0].set_ylabel("final training loss")
        grid[1, 0].set_ylabel("spikes a run")
        figure.supxlabel("learning rate, over the one that AdamW is given at 1x", fontsize=8)
        handles, labels = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=5 if len(arms) < 6 else 4, frameon=False,
                      fontsize=7.5, handlelength=1.6, columnspacing=1.6)  # fmt: skip
    return figure


def _places(arms: Sequence[Arm]) -> dict[str, float]:
    """Returns what each arm's learning rates are multiplied by in a picture."""
    return {arm.name: 10 ** (NUDGE * (i - (len(arms) - 1) / 2)) for i, arm in enumerate(arms)}


def _losses(axes: Axes, traces: Sequence[Trace], arms: Sequence[Arm]) -> None:
    """Draws the mean over seeds and their spread; what ended above `CUT` times the start is put there."""
    start = float(np.mean([each.losses[0] for each in traces]))
    low, top = min(each.final for each in traces), CUT * start
    room = (top / low) ** 0.07
    for arm in arms:
        own = [each for each in traces if each.arm == arm.name]
        factors = sorted({each.factor for each in own})
        groups = [[min(each.final, top) for each in own if each.factor == factor] for factor in factors]
        x = np.array(factors) * _places(arms)[arm.name]
        ours = arm.name == S3_ARM.name
        mean = [math.exp(float(np.mean(np.log(group)))) for group in groups]
        axes.plot(x, mean, color=COLOURS[arm.name], marker=MARKS[arm.name], markersize=4 if ours else 3,
                  linewidth=1.8 if ours else 0.9, zorder=5 if ours else 3, label=arm.title)  # fmt: skip
        axes.vlines(x, [min(group) for group in groups], [max(group) for group in groups], color=COLOURS[arm.name],
                    linewidth=0.8, alpha=0.7)  # fmt: skip
    axes.axhline(start, color=GREY, linewidth=0.6, linestyle=(0, (3, 2)), zorder=1)
    axes.annotate("start", (0, start), xycoords=("axes fraction", "data"), xytext=(3, -2), textcoords="offset points",
                  fontsize=6.5, color=GREY, va="top")  # fmt: skip
    axes.set(xscale="log", yscale="log", ylim=(low / room, top * room))
    axes.set_xticks([1, 3, 10, 30], ["1x", "3x", "10x", "30x"])
    axes.minorticks_off()
    if top / low < NARROW:
        fine = [each for each in (0.3, 0.5, 1, 2, 3, 5) if low / room < each < top * room]
        axes.set_yticks(fine, [f"{each:g}" for each in fine])


def _spikes(axes: Axes, traces: Sequence[Trace], arms: Sequence[Arm]) -> None:
    """Draws the mean number of spikes over seeds, and its spread."""
    from matplotlib.ticker import MaxNLocator

    most = 0
    for arm in arms:
        own = [each for each in traces if each.arm == arm.name]
        factors = sorted({each.factor for each in own})
        groups = [[len(each.spikes) for each in own if each.factor == factor] for factor in factors]
        x = np.array(factors) * _places(arms)[arm.name]
        ours = arm.name == S3_ARM.name
        axes.plot(x, [np.mean(group) for group in groups], color=COLOURS[arm.name], marker=MARKS[arm.name],
                  markersize=4 if ours else 3, linewidth=1.8 if ours else 0.9, zorder=5 if ours else 3)  # fmt: skip
        axes.vlines(x, [min(group) for group in groups], [max(group) for group in groups], color=COLOURS[arm.name],
                    linewidth=0.8, alpha=0.7)  # fmt: skip
        most = max(most, *(max(group) for group in groups))
    axes.axhline(0, color=EDGE, linewidth=0.4, zorder=1)
    axes.set_ylim(-0.08 * max(most, 2), 1.15 * max(most, 2))
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
